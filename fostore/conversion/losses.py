"""How far converted rows are from what they were: total variation, Kullback-Leibler, changed argmax."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from fostore.encodings import encoding_of
from fostore.encodings.bound import Bound
from fostore.encodings.fidelity import Errors, Figures
from fostore.encodings.topk_rows import TopK, masses
from fostore.schema.row import Array, Schema

_PIECE_VALUES = 1 << 17
"""Numbers that are measured at once: a handful of copies in float64 are made of them."""


class Losses:
    """The measured error of a lossy conversion, over rows that pass by.

    Total variation is half the sum of absolute differences; KL(before || after) is in nats, infinite
    where a class lost all its probability. Source: Cover and Thomas, Elements of Information Theory.
    """

    def __init__(
        self, before: Schema, after: Schema, rule: str | None = None, max_kl: float | None = None
    ) -> None:
        """`rule`: by which rows became whole that do not keep every class; `max_kl`: nats that one may lose at most."""
        self._schemas = (before, after)
        self._rule = rule
        self._bound = Bound(max_kl, after, stays=False)
        self.figures = Figures()

    def update(self, before: Sequence[Array], after: Sequence[Array]) -> None:
        """The same rows before and after, as stored columns.

        Raises:
            RowError: one loses more than it may; names it.
        """
        rows, (old, new) = len(before[0]), self._schemas
        # What lies beside the distributions stays as it is.
        before, after = before[: len(old.content)], after[: len(new.content)]
        # Where neither is made dense, what is worked on is as wide as what is stored.
        width = math.prod(old.columns[0].shape) if self._are_open else math.prod(old.row_shape)
        piece = max(_PIECE_VALUES // width, 1)
        for start in range(0, rows, piece):
            at = slice(start, start + piece)
            self._measure(*self._pair([c[at] for c in before], [c[at] for c in after]))

    @property
    def _are_open(self) -> bool:
        return self._rule is None and all(map(_is_open, self._schemas))

    def _pair(self, before: list[Array], after: list[Array]) -> tuple[Array, Array, Array]:
        """The distributions of some rows before and after, over the same outcomes, and what is not kept of them."""
        old, new = self._schemas
        if not _is_open(new):
            rule = new.encoding.get("rule") if self._rule is None and _is_open(old) else self._rule
            p, q = _float64_probs(before, old, rule), _float64_probs(after, new)
            return p, q, _missing(p, q, encoding_of(new).sparse(after, new))
        # Classes that became one outcome are one before as well.
        ids, q = _outcomes(after, new)
        if self._are_open:
            p = _narrowed(*_outcomes(before, old), ids)
        else:
            p = _joined(_float64_probs(before, old, self._rule), ids)
        return p, q, p[..., -1]

    def _measure(self, p: Array, q: Array, missing: Array) -> None:
        # p ln 0 is minus infinity, and KL infinite, as it should be; 0 ln 0 is 0.
        with np.errstate(divide="ignore", invalid="ignore"):
            terms = np.where(p > 0, p * (np.log(p) - np.log(q)), 0.0)
        errors = Errors(
            kl=np.maximum(terms.sum(axis=-1), 0.0),  # rounding may leave less than nothing
            tv=np.abs(p - q).sum(axis=-1) / 2,
            missing_mass=missing,
            flips=p.argmax(axis=-1) != q.argmax(axis=-1),
        )
        rows = self.figures.num_rows + np.arange(len(p))
        self._bound.check(rows, errors)
        self.figures = self.figures.add(rows, errors)

    def report(self) -> dict[str, Any]:
        """What a receipt says: means and maxima; "inf" where KL is infinite, as JSON has no number for it."""
        figures = self.figures
        values = {
            "mean_tv": figures.tv_mean,
            "max_tv": figures.tv_max,
            "mean_kl": figures.kl_mean,
            "max_kl": figures.kl_max,
        }
        plain = {name: x if math.isfinite(x or 0) else "inf" for name, x in values.items()}
        distributions = figures.num_rows * (self._schemas[0].num_members or 1)
        flips = figures.argmax_flips or 0
        return {
            "distributions": distributions,
            **{name: x or 0.0 for name, x in plain.items()},
            "argmax_changes": flips,
        }


def _float64_probs(stored: Sequence[Array], schema: Schema, rule: str | None = None) -> Array:
    """What stored rows mean, in float64 and summing to 1."""
    values = encoding_of(schema).rows(stored, schema, rule).astype(np.float64)
    if schema.kind in ("log_probs", "logits"):
        values = np.exp(values - values.max(axis=-1, keepdims=True))
    normalised: Array = values / values.sum(axis=-1, keepdims=True)
    return normalised


def _missing(p: Array, q: Array, topk: TopK | None) -> Array:
    """What the classes weigh that are not kept; of rows that keep all, those that have nothing left."""
    if topk is None:
        others = np.where(q > 0, 0.0, p)
    else:
        others = p.copy()
        np.put_along_axis(others, topk.ids.astype(np.int64), 0, -1)
    missing: Array = others.sum(axis=-1)
    return missing


def _is_open(schema: Schema) -> bool:
    """Whether rows leave open what some classes have, which are one outcome then."""
    is_whole = encoding_of(schema).is_whole(schema)
    return not is_whole and schema.encoding.get("rule") in ("coarse", "zero")


def _outcomes(stored: Sequence[Array], schema: Schema) -> tuple[Array, Array]:
    """Of rows that leave classes open: those that are kept, and the masses of these and of all others."""
    topk = encoding_of(schema).sparse(stored, schema)
    assert topk is not None
    return topk.ids.astype(np.int64), masses(topk)


def _narrowed(ids: Array, probs: Array, fewer: Array) -> Array:
    """The masses of the first classes of rows, in the order of `fewer`, and of all others."""
    k = fewer.shape[-1]
    ours, theirs = np.argsort(ids[..., :k], axis=-1), np.argsort(fewer, axis=-1)
    narrowed = np.empty((*fewer.shape[:-1], k + 1))
    np.put_along_axis(narrowed, theirs, np.take_along_axis(probs, ours, -1), -1)
    narrowed[..., k] = probs[..., k:].sum(axis=-1)
    return narrowed


def _joined(probs: Array, ids: Array) -> Array:
    """The masses of some classes of each row, and of all others."""
    kept = np.take_along_axis(probs, ids, -1)
    np.put_along_axis(probs, ids, 0, -1)
    return np.concatenate([kept, probs.sum(axis=-1, keepdims=True)], axis=-1)
