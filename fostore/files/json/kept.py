"""Where the rows of a column are put while a JSON document is read: at their place in a spool, or gathered in memory.

Both keep rows under different indices (`put` gives an index that was there before, where there is one), tell
which are there (`ranges`), and give the rows `[start, stop)`, all of which are there (`read`).
"""

from __future__ import annotations

import numpy as np

from fostore.errors import UnsafeError
from fostore.places.spool import Spool
from fostore.schema.ranges import Range, Ranges
from fostore.schema.row import Array

_LEAST_LIMIT = 64 << 20
_AT_ONCE = 1 << 20


class Gathered:
    """A column's rows in memory, whatever their indices."""

    def __init__(self, where: str, size: int) -> None:
        self._seen: set[int] = set()
        self._slices: list[tuple[Array, Array]] = []

    def put(self, index: Array, rows: Array) -> int | None:
        numbers = index.tolist()
        twice = next((i for i in numbers if i in self._seen), None)
        self._seen.update(numbers)
        self._slices.append(_sorted(index, rows))
        return twice

    @property
    def ranges(self) -> Ranges:
        """The indices that are there."""
        return ranges_of(self.in_order()[0]) if self._slices else Ranges()

    def read(self, start: int, stop: int) -> Array:
        """Rows that are there."""
        index, rows = self.in_order()
        begin = int(np.searchsorted(index, start))
        return rows[begin : begin + stop - start]

    def in_order(self) -> tuple[Array, Array]:
        """The indices, increasing, and their rows; there is at least one."""
        if len(self._slices) > 1:
            index, rows = map(np.concatenate, zip(*self._slices, strict=True))
            self._slices = [_sorted(index, rows)]
        return self._slices[0]


class Placed:
    """A column's rows at their indices, in a spool; beside them, in another one, which are there.

    Args:
        where: names the document in errors.
        size: bytes of the document. An index that would make the column more than 64 times as
            large (and more than 64 MiB) is refused.
    """

    def __init__(self, where: str, size: int) -> None:
        self._where = where
        # What is not there is filled: a text of a hundred bytes must not take a disk (J-20).
        self._limit = max(_LEAST_LIMIT, 64 * size)
        self._spool = Spool(where)
        # A byte a row, which goes to a file as well: in memory, indices in any order would take it without bounds.
        self._flags = Spool(where, np.dtype(bool))
        self._count = 0

    def put(self, index: Array, rows: Array) -> int | None:
        """Keep rows; none of them where one was there before.

        Raises:
            UnsafeError: an index far beyond what the document can hold.
            SpaceError: the disk of temporary files is full; names its folder.
        """
        index, rows = _sorted(index, rows)
        last, count = int(index[-1]), self._count + len(index)
        size = (last + 1) * rows[0].nbytes
        if size > self._limit:
            raise UnsafeError(
                f"{self._where}: row {last} lies far beyond the {count} rows that are there; an array up "
                f"to it would take {size:,} bytes"
            )
        if index[0] < self._flags.num_rows:  # of rows in order none can have been there
            known = index[index < self._flags.num_rows]
            again = known[self._flags.array()[known]]
            if len(again):
                return int(again[0])
        self._flags.scatter(np.ones(len(index), bool), index)
        self._spool.scatter(rows, index)
        self._count = count
        return None

    @property
    def ranges(self) -> Ranges:
        pairs: list[Range] = []
        start = 0
        for flags in self._flags.batches(_AT_ONCE):
            edges = np.flatnonzero(np.diff(flags, prepend=False, append=False)) + start
            pairs += zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True)
            start += len(flags)
        return Ranges.of(*pairs)

    def read(self, start: int, stop: int) -> Array:
        return self._spool.read(start, stop)

    def array(self) -> Array:
        """All rows up to the last, of which there is one, as an array; what is not there is NaN, or zero bytes."""
        spool = self._spool
        if spool.dtype is not None and spool.dtype.kind == "f":
            count = max(1, _AT_ONCE // spool.row_bytes)
            nothing = np.full((count, *spool.shape), np.nan, spool.dtype)
            for first, last in self.ranges.missing(spool.num_rows):
                for start in range(first, last, count):
                    spool.write(nothing[: last - start], start)
        return spool.array()


def _sorted(index: Array, rows: Array) -> tuple[Array, Array]:
    if np.all(index[1:] > index[:-1]):
        return index, rows
    order = np.argsort(index)
    return index[order], rows[order]


def ranges_of(index: Array) -> Ranges:
    """Increasing indices as ranges."""
    if not len(index):
        return Ranges()
    cuts = np.flatnonzero(np.diff(index) != 1)
    starts = index[np.concatenate(([0], cuts + 1))]
    stops = index[np.concatenate((cuts, [len(index) - 1]))] + 1
    return Ranges(tuple(zip(starts.tolist(), stops.tolist(), strict=True)))
