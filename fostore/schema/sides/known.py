"""The ids of the rows that are there, so that one that comes again is refused with the batch that brings it.

Ids that only grow, as indices do, take no memory. All others take 8 bytes a row, and 24 for a moment now and then:
a number that stands for each id, in sorted runs. Where two numbers are equal, the ids themselves are compared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from fostore.errors import RowError
from fostore.schema.columns import Array, Column
from fostore.schema.identity import row_hashes
from fostore.schema.ranges import Ranges
from fostore.schema.sides.ids import decode_ids

_RECENT = 1 << 16
_READ_ROWS = 1 << 16


class KnownIds:
    """The ids of one store; used by its writer.

    Args:
        column: that of the ids.
        read: (start, stop) to the ids of rows that are there, as they are stored.
    """

    def __init__(self, column: Column, read: Callable[[int, int], Array]) -> None:
        self._column = column
        self._read = read
        self._is_loaded = False
        self._last: int | None = None
        """The largest id, as long as ids only grew."""
        self._grows = column.dtype == "int64"
        self._runs: list[Array] = []  # sorted, each more than twice as long as the next
        self._recent: set[int] = set()

    def load(self, there: Ranges) -> None:
        """Take those of the rows that are there already; once.

        Raises:
            RowError: two of them have one id; names both.
        """
        if self._is_loaded:
            return
        before = Ranges()
        for start, stop in _pieces(there):
            self._add(start, self._read(start, stop), before)
            before = before.add(start, stop)
        self._is_loaded = True

    def add(self, start: int, stored: Array, there: Ranges) -> None:
        """Take those of the rows from `start` on, where the rows `there` were taken before.

        Raises:
            RowError: an id came before, or twice in these rows; names both rows. None was taken.
        """
        self.load(there)
        self._add(start, stored, there)

    def _add(self, start: int, stored: Array, before: Ranges) -> None:
        if not len(stored):
            return
        if self._grows:
            if (self._last is None or self._last < stored[0]) and (stored[1:] > stored[:-1]).all():
                self._last = int(stored[-1])
                return
            self._grows = False
            for first, last in _pieces(before):
                self._keep(self._numbers(self._read(first, last)))
        numbers = self._numbers(stored)
        again = self._again(numbers)
        if len(again):
            self._compare(start, stored, numbers, again, before)
        self._keep(numbers)

    def _numbers(self, stored: Array) -> Array:
        """What stands for each id, uint64: itself where it has 8 bytes."""
        if self._column.dtype == "int64":
            return np.ascontiguousarray(stored).view(np.uint64)
        hashes = row_hashes([("", np.ascontiguousarray(stored))], len(stored))
        assert hashes is not None
        return hashes

    def _again(self, numbers: Array) -> Array:
        """Those of the numbers that came before, or twice here."""
        ordered = np.sort(numbers)
        is_again = np.zeros(len(ordered), bool)
        is_again[1:] = ordered[1:] == ordered[:-1]
        for run in self._runs:
            at = np.minimum(np.searchsorted(run, ordered), len(run) - 1)
            is_again |= run[at] == ordered
        again = ordered[is_again]
        recent = self._recent.intersection(numbers.tolist())
        return np.unique(np.append(again, np.array(list(recent), np.uint64))) if recent else again

    def _keep(self, numbers: Array) -> None:
        self._recent.update(numbers.tolist())
        if len(self._recent) < _RECENT:
            return
        run = np.sort(np.fromiter(self._recent, np.uint64, len(self._recent)))
        while self._runs and len(self._runs[-1]) <= 2 * len(run):
            run = np.sort(np.concatenate([self._runs.pop(), run]), kind="stable")
        self._runs.append(run)
        self._recent = set()

    def _compare(
        self, start: int, stored: Array, numbers: Array, again: Array, before: Ranges
    ) -> None:
        """Compare the ids that have one number: those of rows before are read once more."""
        rows: dict[bytes, int] = {}

        def look(first: int, ids: Array, of: Array) -> None:
            for at in np.flatnonzero(np.isin(of, again)).tolist():
                row, key = first + at, ids[at].tobytes()
                if key in rows:
                    shown = decode_ids(ids[at : at + 1], self._column)[0].item()
                    raise RowError(
                        f"row {row} has the id {shown!r}, which row {rows[key]} has already; an id names "
                        "one sample, and nothing of this batch was written"
                    )
                rows[key] = row

        for first, last in _pieces(before):
            ids = self._read(first, last)
            look(first, ids, self._numbers(ids))
        look(start, stored, numbers)


def _pieces(ranges: Ranges) -> Iterator[tuple[int, int]]:
    for start, stop in ranges:
        for first in range(start, stop, _READ_ROWS):
            yield first, min(first + _READ_ROWS, stop)
