"""Rows that nobody wrote: an array that was made before it was filled looks whole, and its rest like distributions.

Zeros are logits of a uniform distribution; a fill value, or one row copied to the end, may pass for probabilities.
Only sources that fostore did not write are looked at: in a store, what is not committed is not there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from fostore.errors import RowError
from fostore.files.table import Batch, Table
from fostore.schema.halves import widen
from fostore.schema.identity import row_hashes
from fostore.schema.ranges import Range, Ranges, describe
from fostore.schema.row import Array, Schema

_KEPT = 64
"""Ranges of constant rows that are remembered; more are counted to the next."""
_LEAST, _LEAST_UNIFORM = 3, 2
"""Rows of one run at the end that are too many, if no run before was as long."""
_COUNTED = 1 << 14
"""Rows of which it is counted how often each comes."""
_CHANCE = 1e-3
"""How likely a run at the end may be before it is no accident, by how often its row came before."""


class Watch:
    """Looks at rows as they pass, in order, and says at their end which of them seem to be unwritten.

    Args:
        first: the number of the first row.
    """

    def __init__(self, schema: Schema, where: str, first: int, *, is_allowed: bool) -> None:
        self.first = self.position = first
        self._schema = schema
        self._where = where
        self._is_allowed = is_allowed
        self._constant = Ranges()
        self._before: Batch = []
        self._same_since = first
        self._longest = 0
        self._counts: Counter[int] = Counter()
        self._counted = 0
        self._numbers: Array | None = None
        self._are_labels = True
        self.notes: tuple[str, ...] = ()

    def update(self, columns: Batch) -> None:
        """The next rows, one array a column."""
        content = columns[: len(self._schema.content)]
        count = len(content[0])
        if not count:
            return
        if self._schema.kind != "counts":
            same = _as_before(content, self._before)
            if self._schema.kind == "logits" and self._schema.num_classes > 1:
                self._note(_unwritten(content, same))
            changes = self.position + np.flatnonzero(~same)
            if len(changes):
                lengths = np.diff(changes, prepend=self._same_since)
                self._longest = max(self._longest, int(lengths.max()))
                self._same_since = int(changes[-1])
            self._count(content)
            self._compare(content[0])
            self._before = [column[-1:].copy() for column in content]
        self.position += count

    def end(self) -> None:
        """All rows have passed.

        Raises:
            RowError: some seem to be unwritten, and that was not allowed; names them.
        """
        unwritten = [*self._constant_rows(), *self._same_rows()]
        if unwritten and not self._is_allowed:
            what, since = unwritten[0]
            cure = f"leave them out with rows=slice({self.first}, {since}) (--rows {self.first}:{since}), "
            raise RowError(
                f"{self._where}: {what}, as in an array that was made before it was filled; "
                f"{cure if self.first < since else ''}write them, or say allow_constant=True "
                "(--allow-constant) if they are meant"
            )
        self.notes = tuple(f"{what}, which was allowed" for what, _ in unwritten)

    def _count(self, content: Batch) -> None:
        """How often each row comes, of those at the beginning."""
        count = min(len(content[0]), _COUNTED - self._counted)
        if count > 0:
            numbers = np.unique(_hashed([c[:count] for c in content]), return_counts=True)
            self._counts.update(dict(zip(*(each.tolist() for each in numbers), strict=True)))
            self._counted += count

    def _compare(self, rows: Array) -> None:
        """Whether all rows hold the same numbers in some order, as labels do, hard ones or smoothed."""
        if self._are_labels:
            numbers = np.sort(rows, axis=-1)
            self._numbers = numbers[0].copy() if self._numbers is None else self._numbers
            self._are_labels = bool((numbers == self._numbers).all())

    def _note(self, is_constant: Array) -> None:
        """Remember rows; the first that is looked at is the one before those of the batch."""
        edges = np.flatnonzero(np.diff(is_constant, prepend=False, append=False))
        for start, stop in (self.position - 1 + edges).reshape(-1, 2).tolist():
            self._constant = self._constant.add(start, stop)
            items = self._constant.items
            if len(items) > _KEPT:
                self._constant = Ranges((*items[:-2], (items[-2][0], items[-1][1])))

    def _constant_rows(self) -> Iterator[tuple[str, int]]:
        items = self._constant.items
        if items:
            # What can be left out at the end, if that is all.
            since = items[0][0] if items == ((items[0][0], self.position),) else self.first
            yield f"{describe(items)} have one number for all classes", since

    def _same_rows(self) -> Iterator[tuple[str, int]]:
        rows: Range = (self._same_since, self.position)
        count = rows[1] - rows[0]
        if rows[0] == self.first or count <= self._longest or self._constant or self._are_labels:
            return  # a prior that is the same for all is no tail
        values = widen(self._before[0][0], self._schema.dtype)
        is_uniform = bool(_constant(values[None])[0]) and self._schema.num_classes > 1
        certain = {"probs": 1, "log_probs": 0}.get(self._schema.kind)
        is_one_hot = certain is not None and bool((values == certain).any(axis=-1).all())
        least = _LEAST_UNIFORM if is_uniform else _LEAST
        is_usual = not is_uniform and self._share(rows[0]) ** count >= _CHANCE
        if count >= least and not is_one_hot and not is_usual:  # hard labels in order are alike
            yield f"{describe([rows])}, the last ones, are all the same", rows[0]

    def _share(self, since: int) -> float:
        """How often the last row came before `since`, of all that were counted there: few rows, many alike."""
        behind = max(self.first + self._counted - since, 0)
        before = self._counted - behind
        return (self._counts[int(_hashed(self._before)[0])] - behind) / before if before else 0.0


def watched(table: Table, rows: slice | None, *, is_allowed: bool) -> tuple[Table, Watch]:
    """The table, whose rows are looked at when they are read first; and the one who looks.

    The last batch that is wanted comes only once all rows have been judged.
    """
    first, last = 0, table.num_rows
    if rows is not None and table.num_rows is not None:
        chosen = range(table.num_rows)[rows]
        first, last = (chosen[0], chosen[-1] + 1) if chosen else (0, 0)
    watch = Watch(table.schema, table.where, first, is_allowed=is_allowed)

    def batches(start: int, size: int) -> Iterator[Batch]:
        if not start == first == watch.position:
            yield from table.batches(start, size)
            return
        for batch in table.batches(start, size):
            if last is None or watch.position < last:
                kept = None if last is None else last - watch.position
                watch.update([column[:kept] for column in batch])
                if watch.position == last:
                    watch.end()
            yield batch
        if last is None:
            watch.end()

    return replace(table, batches=batches), watch


def _constant(rows: Array) -> Array:
    """Which rows hold one number for all classes, in any member."""
    same = rows[..., 0] == rows[..., -1]
    if same.any():
        same[same] = (rows[same] == rows[same][..., :1]).all(axis=-1)
    any_member: Array = same.reshape(len(rows), -1).any(axis=1)
    return any_member


def _unwritten(content: Batch, same: Array) -> Array:
    """Which rows of logits nobody wrote: the row before these, and these.

    Two numbers that were rounded may be equal; nobody wrote those that are zeros, or the same again.
    """
    rows, levels = content[0], content[1]
    constant, marks = _constant(rows), np.zeros(len(rows) + 1, bool)
    if rows.shape[-1] == 2:
        are_zeros = (abs(levels - np.log(2)) < 1e-6).reshape(len(rows), -1).any(axis=1)
        marks[:-1] = again = constant & same
        constant &= again | are_zeros
    marks[1:] |= constant
    return marks


def _hashed(columns: Sequence[Array]) -> Array:
    """A number for each row, the same for equal rows."""
    hashes = row_hashes(((str(at), column) for at, column in enumerate(columns)), len(columns[0]))
    assert hashes is not None  # numbers have bytes
    return hashes


def _as_before(columns: Sequence[Array], before: Sequence[Array]) -> Array:
    """Which rows are the same as the row before them; the first is compared with `before`, if there is one."""
    count = len(columns[0])
    same = np.zeros(count, bool)
    first = columns[0].reshape(count, -1)
    same[1:] = first[1:, 0] == first[:-1, 0]
    at = np.flatnonzero(same)
    for column in columns:
        if len(at):
            flat = column.reshape(count, -1)
            same[at] &= (flat[at] == flat[at - 1]).all(axis=1)
    if before:
        same[0] = all(np.array_equal(c[:1], b) for c, b in zip(columns, before, strict=True))
    return same
