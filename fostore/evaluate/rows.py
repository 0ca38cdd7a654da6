"""Rows that are read piece by piece, each renormalised in float64: what everything here is computed from.

`pieces` is the one loop of this package: everything else is a function of a piece, or adds pieces up.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from fostore.encodings.rows import log
from fostore.errors import ArgumentError, RowError, UncommittedError
from fostore.reading.selection import Stored
from fostore.schema import simplex
from fostore.schema.halves import widen
from fostore.schema.row import ROUNDOFF, Array

BUDGET = 1 << 19
"""Numbers of a piece, 4 MiB of float64; working on it takes a few times that, whatever the store's size."""


class Piece:
    """Some consecutive rows, each renormalised to sum to 1 in float64.

    `probs` are as they came, (n, K) or (n, M, K); `mean` is the distribution that an ensemble
    predicts, the average of its members, (n, K). Logarithms are those that were stored, where
    logarithms were, so that no tiny probability is lost.
    """

    def __init__(self, start: int, probs: Array, logs: Array | None = None) -> None:
        self.start = start
        self.probs = probs
        self._stored_logs = logs

    def __len__(self) -> int:
        return len(self.probs)

    @property
    def stop(self) -> int:
        return self.start + len(self)

    @cached_property
    def logs(self) -> Array:
        """Logarithms of `probs`; minus infinity for 0."""
        return log(self.probs) if self._stored_logs is None else self._stored_logs

    @property
    def members(self) -> Piece:
        """The piece with a member axis, (n, M, K); a single distribution is one member."""
        if self.probs.ndim == 3:
            return self
        logs = None if self._stored_logs is None else self._stored_logs[:, None]
        return Piece(self.start, self.probs[:, None], logs)

    @cached_property
    def mean(self) -> Array:
        """The average over members, (n, K)."""
        if self.probs.ndim == 2:
            return self.probs
        mean: Array = np.add.reduce(self.probs, axis=1) / self.probs.shape[1]
        return mean

    @cached_property
    def mean_logs(self) -> Array:
        """The logarithm of the average over members, (n, K)."""
        if self.probs.ndim == 2:
            return self.logs
        if self._stored_logs is None:
            return log(self.mean)
        # The logarithm of a sum of exponentials, around the largest: so no member's tiny
        # probability is lost, and a class that all members exclude is no infinity minus itself.
        top = np.maximum(self.logs.max(axis=1), np.finfo(np.float64).min)
        with np.errstate(under="ignore"):
            total = np.add.reduce(np.exp(self.logs - top[:, None]), axis=1)
        mean_logs: Array = log(total / self.logs.shape[1]) + top
        return mean_logs


@dataclass(frozen=True, slots=True)
class Rows:
    """What is known of a source before a row of it is read."""

    where: str
    """Names the source in messages."""
    count: int
    row_shape: tuple[int, ...]
    """([num_members,] num_classes)."""
    read: Callable[[int, int], Array]
    """The rows from `start` to `stop` as they are kept, and as `in_logs` says."""
    in_logs: bool = False
    tol: float | None = None
    """How far a row's sum may be from 1; None where rows are numbers and no distributions."""
    roundoff: float = ROUNDOFF["float64"]
    """Half a unit in the last place of the numbers kept, relative."""
    keys: Array | None = None
    """The index of each row, int64, ascending; None: row i has index i."""
    class_names: tuple[str, ...] | None = None
    stored: Stored | None = None
    """The store or selection that the rows are of."""
    ids: Callable[[int, int], Array] | None = None
    """Of a file that has them: the ids of the rows from `start` to `stop`, (stop - start,)."""
    numbers: int | None = None
    """Numbers that reading a row takes, where they are more than the row has."""
    rule: str | None = None
    """By which classes that are not kept have probabilities; None where every class is kept."""
    unfinished: str = ""
    """What a store that is not finished misses, in words."""

    @property
    def numbers_a_row(self) -> int:
        """Numbers that reading a row takes."""
        return math.prod(self.row_shape) if self.numbers is None else self.numbers

    @property
    def num_classes(self) -> int:
        """Classes of a distribution."""
        return self.row_shape[-1]

    @property
    def indices(self) -> Array:
        """The index of each row."""
        return np.arange(self.count) if self.keys is None else self.keys

    def piece(self, start: int, stop: int) -> Piece:
        """The rows from `start` to `stop`, checked and renormalised.

        Raises:
            RowError: a row is no distribution (or holds NaN); names it.
        """
        kept = self.read(start, stop)
        if self.tol is None:
            numbers = np.asarray(kept, np.float64)
            if not np.isfinite(numbers).all():
                row = start + int(np.argwhere(~np.isfinite(numbers))[0][0])
                raise RowError(f"{self.where}: row {row} holds a number that is not finite")
            return Piece(start, numbers)
        # Checked before the division, which would hide a sum that is off.
        try:
            simplex.check(kept, "log_probs" if self.in_logs else "probs", self.tol, start)
        except RowError as error:
            raise RowError(f"{self.where}: {error}") from None
        # A copy: what a store gives may be its mapped file.
        wide = np.array(widen(kept, kept.dtype.name), np.float64)
        if not self.in_logs:
            wide /= np.add.reduce(wide, axis=-1, keepdims=True)
            return Piece(start, wide)
        # Taken from the logarithms, since a probability under 1e-308 is left in them alone.
        with np.errstate(under="ignore"):
            wide -= np.log(np.add.reduce(np.exp(wide), axis=-1, keepdims=True))
            return Piece(start, np.exp(wide), wide)


def pieces(*sources: Rows) -> Iterator[tuple[Piece, ...]]:
    """The rows of all sources side by side, from front to back; each row is read once.

    The sources must have as many rows as the first one. Memory depends on `BUDGET` alone.
    """
    # Pieces of all sources are in memory together.
    numbers = sum(rows.numbers_a_row for rows in sources)
    step = max(BUDGET // max(numbers, 1), 1)
    for start in range(0, sources[0].count, step):
        stop = min(start + step, sources[0].count)
        yield tuple(rows.piece(start, stop) for rows in sources)


def per_row(
    function: Callable[..., Array],
    *sources: Rows,
    dtype: type[Any] = np.float64,
    shape: tuple[int, ...] = (),
) -> Array:
    """What `function` says of each row, (n, *shape): of one piece a source, never looking across rows."""
    results = np.empty((sources[0].count, *shape), dtype)
    for group in pieces(*sources):
        results[group[0].start : group[0].stop] = function(*group)
    return results


def aligned(*sources: Rows) -> None:
    """Raise unless row i of every source has the same index, and as many classes.

    Raises:
        UncommittedError: lengths differ, and a store is not finished.
        ArgumentError: lengths, indices or numbers of classes differ; names the first that does.
    """
    first = sources[0]
    for other in sources[1:]:
        if other.count != first.count:
            for one in (first, other):
                if one.unfinished:
                    raise UncommittedError(
                        f"{one.unfinished}; finish the store, or compare what is there: "
                        f"store.select(range({one.count})) of both"
                    )
            raise ArgumentError(
                f"{first.where} has {first.count} rows and {other.where} has {other.count}; "
                "compare the same samples: store.select(rows) takes a part of a store"
            )
        if (first.keys is not None or other.keys is not None) and not np.array_equal(
            first.indices, other.indices
        ):
            at = int(np.flatnonzero(first.indices != other.indices)[0])
            raise ArgumentError(
                f"row {at} of {first.where} has the index {first.indices[at]}, "
                f"of {other.where} the index {other.indices[at]}"
            )
        if first.count and other.num_classes != first.num_classes:
            raise ArgumentError(
                f"{first.where} has {first.num_classes} classes and {other.where} has "
                f"{other.num_classes}"
            )


def refuse_empty(rows: Rows, what: str) -> None:
    """Raise ArgumentError where there is no row, and so no mean of anything."""
    if rows.count == 0:
        raise ArgumentError(f"{rows.where} has no rows, so it has no {what}")


def over_classes(terms: Array) -> Array:
    """The sum of each row's terms, along the last axis."""
    sums: Array = np.add.reduce(terms, axis=-1)
    return sums
