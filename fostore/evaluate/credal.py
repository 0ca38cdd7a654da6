"""Credal sets, sets of distributions that may hold the true one: from members, bounds, vertices, or a ball.

probly 0.x differs in two ways: it rounds probabilities to three decimals before it asks whether a
set covers them, which here `tol` does without moving any number; and its calibration error has 10
bins where `fostore.evaluate.ece` has 15, as the paper has it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.lib.mixins import NDArrayOperatorsMixin

from fostore.errors import ArgumentError
from fostore.evaluate.divergence import tv_of
from fostore.evaluate.rows import Piece, Rows, aligned, over_classes, per_row
from fostore.evaluate.same import check_same
from fostore.evaluate.sources import members_of, numbers_of, rows_of
from fostore.schema.row import Array

SLACK = 1e-6
"""What arithmetic in float32 may move a probability by; the rounding of the stored dtype comes on top."""


class Bound(NDArrayOperatorsMixin):
    """The smallest or largest probability that any member gives, (num_samples, num_classes) float64.

    Nothing is read by making one. `bound[start:stop]` and `bound[rows]` read these rows,
    `np.asarray(bound)` all of them; arithmetic and comparisons give arrays. Where a function of
    this package takes bounds, it reads them piece by piece.
    """

    def __init__(self, members: _Members, side: int) -> None:
        self.members = members
        self._side = side
        self.shape = (members.rows.count, members.rows.num_classes)
        self.dtype = np.dtype(np.float64)
        self.ndim = 2

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any) -> Array:
        if isinstance(rows, slice):
            start, stop, step = rows.indices(len(self))
            if step == 1:
                return self.members.bounds(start, max(start, stop))[self._side]
            rows = np.arange(start, stop, step)
        chosen = np.arange(len(self))[rows]
        if chosen.ndim == 0:
            return np.asarray(self[int(chosen) : int(chosen) + 1][0])
        each = [self[row : row + 1] for row in chosen.tolist()]
        return np.concatenate([np.empty((0, self.shape[1])), *each])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        bound = per_row(
            lambda piece: _bounds_of(piece)[self._side], self.members.rows, shape=self.shape[1:]
        )
        return bound if dtype is None else bound.astype(dtype, copy=False)

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **options: Any) -> Any:
        plain = [np.asarray(x) if isinstance(x, Bound) else x for x in inputs]
        return getattr(ufunc, method)(*plain, **options)

    def __repr__(self) -> str:
        side = "upper" if self._side else "lower"
        return f"<{side} bound of {self.members.rows.where}, {self.shape}>"


class _Members:
    """Members that two bounds share, so that reading both reads each row once."""

    def __init__(self, rows: Rows) -> None:
        self.rows = rows
        self._last: tuple[int, int, tuple[Array, Array]] | None = None

    def bounds(self, start: int, stop: int) -> tuple[Array, Array]:
        """The smallest and the largest of the rows from `start` to `stop`."""
        last = self._last
        if last is None or last[:2] != (start, stop):
            last = self._last = (start, stop, _bounds_of(self.rows.piece(start, stop)))
        return last[2]


def _bounds_of(piece: Piece) -> tuple[Array, Array]:
    members = piece.members.probs
    return members.min(axis=1), members.max(axis=1)


def interval(store: Any) -> tuple[Bound, Bound]:
    """The probability interval of each class: the smallest and the largest that a member gives it.

    Reads nothing yet; see `Bound`. `interval_covered` and `interval_width` of the two read the
    members once.

    Args:
        store: distributions with a member axis, or a list of one store a member.

    Returns:
        (lower, upper), each (num_samples, num_classes).

    Source: Campos, Huete and Moral, "Probability Intervals: a Tool for Uncertain Reasoning" (1994).

    >>> lower, upper = interval(np.array([[[0.2, 0.8], [0.4, 0.6]]]))
    >>> lower[0].tolist(), upper[0].tolist()
    ([0.2, 0.6], [0.4, 0.8])
    """
    members = _Members(members_of(store))
    return Bound(members, 0), Bound(members, 1)


def interval_covered(
    lower: Any, upper: Any, target: Any, tol: float | None = None, *, check: str = "auto"
) -> Array:
    """Whether each target lies between the bounds in every class, bool (num_samples,).

    `.mean()` is the coverage; `coverage(...)` gives it with a confidence interval. One pass.

    Args:
        lower, upper: (num_samples, num_classes), as `interval` gives them, or arrays.
        target: distributions of the same samples.
        tol: by how much a probability may miss a bound. Default: 1e-6, and half a unit in the last
            place of the dtype that the members or the target are stored in (float16: 5e-4).

    Raises:
        ArgumentError: a lower bound above its upper one, or shapes that differ.
        IdentityError: members and target are of other samples.
        RowError: a target is no distribution (NaN, for one), or a bound is not finite.

    Source: Campos, Huete and Moral (1994), definition 1.

    >>> lower, upper = np.array([[0.1, 0.5]]), np.array([[0.5, 0.9]])
    >>> interval_covered(lower, upper, [[0.3, 0.7]]).tolist()
    [True]
    """
    low, high, goal = _bounds(lower, "lower"), _bounds(upper, "upper"), rows_of(target, "target")
    aligned(low, high, goal)
    for bound in (lower, upper):
        if isinstance(bound, Bound):
            check_same(bound.members.rows, goal, check=check)
    slack = _tolerance(tol, low, high, goal)

    def covered(a: Piece, b: Piece, t: Piece) -> Array:
        _refuse_crossed(a, b)
        inside = (t.mean >= a.probs - slack) & (t.mean <= b.probs + slack)
        return np.asarray(inside.all(axis=-1))

    return per_row(covered, low, high, goal, dtype=np.bool_)


def interval_width(lower: Any, upper: Any) -> Array:
    """The mean width of each row's intervals, float64 (num_samples,), 0 to 1; its mean is the efficiency.

    Smaller is better, among sets of the same coverage. Parameters and errors are those of
    `interval_covered`. Defined here, after the efficiency of prediction sets, their mean size
    (Vovk, Gammerman and Shafer, Algorithmic Learning in a Random World, 2005).

    >>> interval_width(np.array([[0.1, 0.5]]), np.array([[0.5, 0.9]])).round(3).tolist()
    [0.4]
    """

    def width(a: Piece, b: Piece) -> Array:
        _refuse_crossed(a, b)
        return np.asarray(over_classes(b.probs - a.probs) / a.probs.shape[-1])

    low, high = _bounds(lower, "lower"), _bounds(upper, "upper")
    aligned(low, high)
    return per_row(width, low, high)


def tv_ball_covered(
    center: Any, radius: Any, target: Any, *, tol: float = 1e-9, check: str = "auto"
) -> Array:
    """Whether each target is at most `radius` in total variation from its center, bool (num_samples,).

    Args:
        center: distributions; an ensemble's members are averaged.
        radius: one number, such as `conformal_radius` gives, or one a sample; inf covers everything.
        target: distributions of the same samples.
        tol: what rounding may add to a distance.

    Raises:
        ArgumentError: a radius is negative or NaN, or lengths differ.
        IdentityError, RowError: as for `tv`.

    Source: Montes, Miranda and Destercke, "Unifying Neighbourhood and Distortion Models: Part II"
    (2020): the total variation model.

    >>> tv_ball_covered([[0.5, 0.5]], 0.2, [[0.6, 0.4]]).tolist()
    [True]
    """
    middle, goal = rows_of(center, "center"), rows_of(target, "target")
    check_same(middle, goal, check=check)
    radii = np.asarray(radius, np.float64)
    if radii.ndim and radii.shape != (middle.count,):
        raise ArgumentError(
            f"radius has the shape {radii.shape}, expected one number or ({middle.count},)"
        )
    if not (radii >= 0).all():
        raise ArgumentError("a radius is negative or NaN, expected 0 or more")

    def covered(c: Piece, t: Piece) -> Array:
        return tv_of(c, t) <= tol + (radii[c.start : c.stop] if radii.ndim else radii)

    return per_row(covered, middle, goal, dtype=np.bool_)


def hull_covered(vertices: Any, target: Any, tol: float = 5e-4, *, check: str = "auto") -> Array:
    """Whether each target is a mixture of its vertices, bool (num_samples,): a linear program a row.

    Covered is a target of which some mixture of the vertices is at most `tol` away in every class.
    All are renormalised in float64 first: in float16, an exact test would reject an ensemble's own
    mean every time, which is what `tol` is for. Most rows are decided without a program: outside of
    the vertices' intervals, or at a vertex or their mean. A program takes some milliseconds.

    Args:
        vertices: (num_samples, num_vertices, num_classes), the members of an ensemble for one; or a
            list of one store a vertex.
        target: distributions of the same samples.
        tol: the largest difference in a class; what the solver resolves is about 1e-7.

    Raises:
        ArgumentError: SciPy is missing (`pip install 'fostore[evaluate]'`), or shapes differ.
        IdentityError, RowError: as for `kl`.

    Source: Levi, "The Enterprise of Knowledge" (1980): convex credal sets; membership of a convex
    hull as a linear program: Boyd and Vandenberghe, "Convex Optimization" (2004), section 6.1.

    >>> corners = np.array([[[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]])
    >>> hull_covered(corners, [[0.3, 0.7, 0.0]]).tolist(), hull_covered(corners, [[0.3, 0.6, 0.1]]).tolist()
    ([True], [False])
    """
    corners, goal = members_of(vertices, check=check), rows_of(target, "target")
    check_same(corners, goal, check=check)
    if not tol >= 0:
        raise ArgumentError(f"tol is {tol!r}, expected 0 or more")

    def covered(v: Piece, t: Piece) -> Array:
        members, targets = v.members.probs, t.mean
        outside = targets < members.min(axis=1) - tol
        outside |= targets > members.max(axis=1) + tol
        known = np.concatenate([members, v.mean[:, None]], axis=1)
        near: Array = np.abs(known - targets[:, None]).max(axis=-1).min(axis=1) <= tol
        undecided = np.flatnonzero(~near & ~outside.any(axis=-1))
        if members.shape[-1] <= 2:  # a hull of two classes is an interval
            near[undecided] = True
            return near
        for row in undecided.tolist():
            near[row] = distance(members[row], targets[row]) <= tol
        return near

    return per_row(covered, corners, goal, dtype=np.bool_)


# ------------------------------------------------------------------ what they share


def distance(vertices: Array, target: Array) -> float:
    """The least, over mixtures of `vertices` (M, K), of the largest difference to `target` (K,).

    min s subject to |sum_m w_m v_mk - t_k| <= s for every class k, w >= 0, sum_m w_m = 1.

    Raises:
        ArgumentError: SciPy is not installed.
    """
    try:
        from scipy.optimize import linprog  # an extra, without which most rows are decided
    except ImportError as error:
        raise ArgumentError(
            "a convex hull needs SciPy: pip install 'fostore[evaluate]' (or scipy)"
        ) from error
    members = len(vertices)
    slack = np.full((len(target), 1), -1.0)
    program = linprog(
        np.append(np.zeros(members), 1.0),
        A_ub=np.block([[vertices.T, slack], [-vertices.T, slack]]),
        b_ub=np.concatenate([target, -target]),
        A_eq=np.append(np.ones(members), 0.0)[None],
        b_eq=[1.0],
        method="highs",
    )
    if program.status != 0:
        raise ArgumentError(
            f"the linear program of a convex hull was not solved: {program.message}"
        )
    return float(program.fun)


def _bounds(bound: Any, name: str) -> Rows:
    rows = numbers_of(bound, name)
    if len(rows.row_shape) != 1:
        raise ArgumentError(f"{name} has members, expected the shape (num_samples, num_classes)")
    if not isinstance(bound, Bound):
        return rows
    # To read a bound is to read its members: pieces are sized, and tolerances chosen, by those.
    members = bound.members.rows
    return replace(
        rows, numbers=members.numbers_a_row, roundoff=members.roundoff, keys=members.keys
    )


def _refuse_crossed(low: Piece, high: Piece) -> None:
    crossed = (low.probs > high.probs).any(axis=-1)
    if crossed.any():
        row = low.start + int(np.argmax(crossed))
        raise ArgumentError(f"row {row} has a lower bound above its upper bound; exchange the two?")


def _tolerance(tol: float | None, *sources: Rows) -> float:
    if tol is None:
        return SLACK + max(rows.roundoff for rows in sources)
    if not tol >= 0:
        raise ArgumentError(f"tol is {tol!r}, expected 0 or more")
    return tol
