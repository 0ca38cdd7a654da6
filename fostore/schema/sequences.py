"""Sequences of token rows: which rows each owns, and the order in which they come (spec/core.md)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from fostore.errors import FostoreError, RowError, UnsafeError
from fostore.schema.columns import Array
from fostore.schema.ranges import Ranges
from fostore.schema.row import Schema

_FREE, _PER_ROW = 1 << 20, 64

_ReadColumn = Callable[[int, int, int], Array]
"""(index of a column, start, stop) to rows that are there, as they are stored."""

_Seen = tuple[int, tuple[int, ...]]
"""A row, its sequence, and where it has one its position."""


def offsets_of(pieces: Iterable[Array], num_sequences: int) -> Array:
    """Where each sequence begins, and the last one ends: int64 (num_sequences + 1,), from 0 on.

    Args:
        pieces: the sequence of each row, in pieces that follow each other.

    Raises:
        RowError: they decrease, or are not in 0 to `num_sequences` - 1.
    """
    offsets, last = np.zeros(num_sequences + 1, np.int64), 0
    for piece in pieces:
        if not len(piece):
            continue
        ends = np.append(np.flatnonzero(piece[1:] != piece[:-1]) + 1, len(piece))
        numbers = piece[ends - 1]
        # Compared, or a number below 0 would count from the end, and one that comes again be lost.
        if numbers[0] < last or (numbers[1:] < numbers[:-1]).any() or numbers[-1] >= num_sequences:
            raise RowError(f"sequences are no numbers from 0 to {num_sequences - 1} in order")
        offsets[numbers + 1] += np.diff(ends, prepend=0)
        last = int(numbers[-1])
    return np.cumsum(offsets, out=offsets)


def check_count(
    num_sequences: int, num_rows: int, where: str, error: type[FostoreError] = UnsafeError
) -> None:
    """Raise `error` where there are more sequences than so many rows may have: each takes 8 bytes of memory."""
    most = _FREE + _PER_ROW * num_rows
    if num_sequences > most:
        raise error(
            f"{where} has {num_sequences:,} sequences with {num_rows:,} rows, and a store of these has at "
            f"most {most:,}: number sequences from 0 on, without large gaps"
        )


class RowOrder:
    """Whether rows stand in the order of their sequences; takes batches of rows as they come.

    Args:
        schema: of token rows.
        read: gives rows that are there; where rows come in order, none are asked for.
    """

    def __init__(self, schema: Schema, read: _ReadColumn | None = None) -> None:
        names = ("sequence", "position")
        self._columns = [schema.columns.index(c) for c in map(schema.role, names) if c is not None]
        self._read = read
        self._seen: _Seen | None = None
        """The row that came last, and what it has."""

    def add(self, start: int, columns: Sequence[Array], written: Ranges) -> None:
        """Take rows from `start` on, one array a column of the schema, where the rows `written` are there.

        Raises:
            RowError: names the first row that does not follow the one before. None was taken.
        """
        keys = [columns[index] for index in self._columns]
        stop = start + len(keys[0])
        if start == stop:
            return
        seen = self._seen
        if seen is None or seen[0] != start - 1 or start - 1 not in written:
            before = written.overlap(0, start)
            seen = self._at(before[-1][1] - 1) if before else None
        _check(start, keys, seen)
        if written.items[-1:] > ((stop, 0),):
            after = next(first for first, _ in written if first >= stop)
            _check_pair((stop - 1, _key(keys, -1)), self._at(after))
        self._seen = (stop - 1, _key(keys, -1))

    def follow(self, start: int, columns: Sequence[Array] | Mapping[int, Array]) -> None:
        """Take rows behind all that came, with gaps or without; what is wrong was taken as well.

        Raises:
            RowError: as `add` does.
        """
        keys = [columns[index] for index in self._columns]
        if not len(keys[0]):
            return
        seen, self._seen = self._seen, (start + len(keys[0]) - 1, _key(keys, -1))
        _check(start, keys, seen)

    def _at(self, row: int) -> _Seen:
        assert self._read is not None
        return row, _key([self._read(index, row, row + 1) for index in self._columns], 0)


def _key(keys: Sequence[Array], at: int) -> tuple[int, ...]:
    return tuple(int(key[at]) for key in keys)


def _check(start: int, keys: Sequence[Array], seen: _Seen | None) -> None:
    if seen is not None:
        _check_pair(seen, (start, _key(keys, 0)))
    sequence = keys[0]
    wrong = sequence[1:] < sequence[:-1]
    for position in keys[1:]:
        wrong |= (sequence[1:] == sequence[:-1]) & (position[1:] <= position[:-1])
    if wrong.any():
        at = int(np.argmax(wrong))
        _check_pair((start + at, _key(keys, at)), (start + at + 1, _key(keys, at + 1)))


def _check_pair(before: _Seen, after: _Seen) -> None:
    """Of two rows of one sequence the position grows, where rows have one."""
    (row, key), (other, following) = before, after
    if key < following or (len(key) == 1 and key == following):
        return
    words = ("sequence {}", "sequence {}, position {}")[len(key) - 1]
    rule = "sequences never decrease" + ", and positions grow in each" * (len(key) > 1)
    raise RowError(
        f"row {other} is of {words.format(*following)}, and row {row} before it of {words.format(*key)}: {rule}"
    )
