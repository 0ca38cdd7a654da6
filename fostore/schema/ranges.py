"""A set of rows, kept as sorted, disjoint `(start, stop)` ranges."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

Range = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Ranges:
    """An immutable set of integers, made of half-open ranges; touching ranges are merged.

    >>> rows = Ranges.of((0, 4), (8, 10), (4, 6))
    >>> rows.items
    ((0, 6), (8, 10))
    >>> len(rows), rows.missing(12), rows.covers(1, 6), rows.covers(5, 9)
    (8, ((6, 8), (10, 12)), True, False)
    """

    items: tuple[Range, ...] = ()

    @classmethod
    def of(cls, *ranges: Range) -> Ranges:
        """The union of `ranges`; empty ones are left out."""
        merged: list[Range] = []
        for start, stop in sorted(r for r in ranges if r[0] < r[1]):
            if merged and start <= merged[-1][1]:
                merged[-1] = (merged[-1][0], max(stop, merged[-1][1]))
            else:
                merged.append((start, stop))
        return cls(tuple(merged))

    def union(self, ranges: Iterable[Range]) -> Ranges:
        """This set and `ranges` together."""
        return Ranges.of(*self.items, *iter(ranges))

    def add(self, start: int, stop: int) -> Ranges:
        """This set and `[start, stop)`; one comparison where the range extends the last one."""
        items = self.items
        if items and start == items[-1][1] and start < stop:
            return Ranges((*items[:-1], (items[-1][0], stop)))
        if start >= stop:
            return self
        first = bisect_left(items, start, key=lambda item: item[1])
        last = bisect_right(items, stop, key=lambda item: item[0])
        if first < last:
            start, stop = min(start, items[first][0]), max(stop, items[last - 1][1])
        return Ranges((*items[:first], (start, stop), *items[last:]))

    def missing(self, stop: int, start: int = 0) -> tuple[Range, ...]:
        """What lies in `[start, stop)` and not in this set."""
        gaps: list[Range] = []
        position = start
        for first, last in self.items:
            if first >= stop:
                break
            if first > position:
                gaps.append((position, first))
            position = max(position, last)
        if position < stop:
            gaps.append((position, stop))
        return tuple(gaps)

    def covers(self, start: int, stop: int) -> bool:
        """Whether every integer of `[start, stop)` is in this set."""
        return not self.missing(stop, start) if start < stop else True

    def overlap(self, start: int, stop: int) -> tuple[Range, ...]:
        """The part of this set that lies in `[start, stop)`."""
        if start >= stop:
            return ()
        # Compared as tuples, not by a key: a call for each comparison, several times a batch.
        first = max(bisect_left(self.items, (start,)) - 1, 0)
        last = bisect_left(self.items, (stop,))
        touching = self.items[first:last]
        return tuple([(max(a, start), min(b, stop)) for a, b in touching if b > start])

    @property
    def prefix(self) -> int:
        """How many of the integers from 0 on are in this set without a gap."""
        return self.items[0][1] if self.items and self.items[0][0] == 0 else 0

    def __contains__(self, row: int) -> bool:
        at = bisect_right(self.items, row, key=lambda item: item[0])
        return at > 0 and self.items[at - 1][1] > row

    def __bool__(self) -> bool:
        return bool(self.items)

    def __len__(self) -> int:
        return sum(stop - start for start, stop in self.items)

    def __iter__(self) -> Iterator[Range]:
        return iter(self.items)


def describe(ranges: Iterable[Range], limit: int = 4) -> str:
    """Ranges in a user's words: the rows they hold, the last one included.

    >>> describe([(0, 1), (4, 9)])
    'row 0 and rows 4 to 8'
    """
    # Of `Ranges` itself, `list` would make room for as many as there are rows.
    items = list(iter(ranges))
    if not items:
        return "no rows"
    words = [f"row {a}" if b - a == 1 else f"rows {a} to {b - 1}" for a, b in items[:limit]]
    if len(items) > limit:
        words.append(f"{len(items) - limit} more ranges")
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
