"""Table: rows on their way from one format to another, with everything that is known about them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate, pairwise
from typing import Any, TypeVar

import numpy as np

from fostore.errors import FormatError
from fostore.reading.proof import Proof
from fostore.schema.header import Header
from fostore.schema.row import Array, Schema

Batch = list[Array]
"""Some consecutive rows: one C-contiguous array of the stored dtype a column, in schema order."""
Batches = Callable[[int, int], Iterator[Batch]]
"""(first row, rows at a time) to the rows from there on."""
Rows = TypeVar("Rows")


@dataclass(frozen=True, slots=True)
class Table:
    """Rows that can be read piece by piece, in order, and what goes with them.

    `batches(start, rows)` reads from row `start` to the end, at most `rows` at a time; a stream
    (`num_rows` None) can be read once, from 0. A batch stays as it is when the next one is asked
    for: other threads may still be hashing it. Values were checked by whoever made the table, or
    are checked by `Encoding.check` as they pass: `trusted` says which.
    """

    where: str
    """Names the source in messages and receipts."""
    format: str
    schema: Schema
    num_rows: int | None
    batches: Batches
    num_sequences: int | None = None
    """Of token rows; None where it is not known before all have passed."""
    meta: Mapping[str, Any] = field(default_factory=dict)
    identity: Mapping[str, Any] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Keys of a header that a newer minor version wrote."""
    digest: str | None = None
    """The digest that the source claims, where it is a sealed store."""
    header: Header | None = None
    """Of a source that has one; who changes the rows makes another."""
    trusted: bool = False
    """Whether rows need no check of their values as long as their digest comes out as `digest`."""
    proof: Proof | None = None
    """Of a store: what it keeps of its rows, which `stores.guarded` holds them against."""
    checked: str = "none"
    """What of the rows is held against their source as they are read: "full", "part" (`notes` names
    the rest) or "none", as where a source keeps no checksum."""
    files: Sequence[str] = ()
    """The paths that the rows come from, where `where` is not the only one."""
    notes: Sequence[str] = ()
    """What the importer decided, for the receipt: a class order, a dtype that was widened."""
    took: frozenset[str] = frozenset()
    """The hints that the importer follows; any other has no effect, and must say what the file says."""
    adopted: str | None = None
    """The column beside the rows whose keys became the ids without being asked for."""

    @property
    def paths(self) -> Sequence[str]:
        """What the rows come from, as `where` names it."""
        return self.files or (self.where,)

    def remade(self, schema: Schema, batches: Batches, **others: Any) -> Table:
        """Other rows that are made of these: nobody knows their digest, so their values are checked as they pass."""
        unknown: dict[str, Any] = {"digest": None, "proof": None, "trusted": False}
        return replace(self, schema=schema, batches=batches, **{**unknown, **others})


def check_count(came: int, announced: int | None) -> None:
    """Raise FormatError where other rows came than were announced."""
    if announced not in (None, came):
        raise FormatError(f"{came} rows came and {announced} were announced")


def several(tables: Sequence[Table], schema: Schema, batches: Batches, **others: Any) -> Table:
    """One table that is made of the rows of several; what is not in `others` is as the first has it."""
    checked = {table.checked for table in tables}
    return tables[0].remade(
        schema,
        batches,
        checked=checked.pop() if len(checked) == 1 else "part",
        took=frozenset().union(*(table.took for table in tables)),
        files=[path for table in tables for path in table.paths],
        **others,
    )


def in_turn(
    readers: Sequence[Callable[[int, int], Iterator[Rows]]], counts: Sequence[int]
) -> Callable[[int, int], Iterator[Rows]]:
    """Readers of so many rows each, one after another, as one reader."""
    ranges = list(pairwise(accumulate(counts, initial=0)))

    def batches(start: int, rows: int) -> Iterator[Rows]:
        for read, (begin, end) in zip(readers, ranges, strict=True):
            if start < end:
                yield from read(max(start - begin, 0), rows)

    return batches


def changed(
    read: Callable[[int, int], Iterator[Any]], change: Callable[[Any, int], Any]
) -> Callable[[int, int], Iterator[Any]]:
    """A reader of what `change` makes of each piece and the number of its first row; a piece is rows, or a `Batch`."""

    def batches(start: int, rows: int) -> Iterator[Any]:
        for piece in read(start, rows):
            count = len(piece[0]) if isinstance(piece, list) else len(piece)
            yield change(piece, start)
            start += count

    return batches


class Cut:
    """Batches handed out in pieces of any size, each row read once: sources cut their rows differently."""

    def __init__(self, batches: Iterator[Sequence[Any]]) -> None:
        self._batches = batches
        self._left: Sequence[Any] = ()

    def take(self, count: int) -> list[Any]:
        """The next `count` rows of every column.

        Raises:
            FormatError: there are fewer.
        """
        pieces: list[list[Any]] = []
        while count or not pieces:
            if not self._left:
                self._left = next(self._batches, ())
                if not self._left:
                    raise FormatError(f"{count} rows fewer came than were announced")
            pieces.append([column[:count] for column in self._left])
            rest = [column[count:] for column in self._left]
            self._left = rest if len(rest[0]) else ()
            count -= len(pieces[-1][0])
        return (
            pieces[0]
            if len(pieces) == 1
            else [_chained(columns) for columns in zip(*pieces, strict=True)]
        )


def _chained(columns: Sequence[Any]) -> Any:
    if isinstance(columns[0], np.ndarray):
        return np.concatenate(columns)
    return [value for column in columns for value in column]
