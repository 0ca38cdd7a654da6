"""Several tables as one, one after another: the shards of a folder, of a pattern or of a list."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import accumulate

import numpy as np

from fostore.errors import ArgumentError
from fostore.files._keys import agreed
from fostore.files.stores import guarded
from fostore.files.table import Batch, Table, changed, in_turn, several
from fostore.schema.row import Array, Column, Schema


def joined(tables: Sequence[Table]) -> Table:
    """Several tables as one, one after another.

    Raises:
        ArgumentError: there is none, or they hold different things; names the first that differs.
    """
    if len(tables) < 2:
        if not tables:
            raise ArgumentError("no source was given")
        return tables[0]
    # Nobody compares a digest of one shard when all pass as one, so each is held against its own.
    tables = agreed([guarded(table) for table in tables])
    first = tables[0]
    for other in tables[1:]:
        difference = _difference(first, other)
        if difference:
            raise ArgumentError(
                f"{other.where} cannot follow {first.where}: {difference}. Nothing was written"
            )
    schema, sequence = _common(tables), first.schema.role("sequence")
    counts = [table.num_rows for table in tables if table.num_rows is not None]
    if len(counts) < len(tables):
        raise ArgumentError("a stream of unknown length cannot be one of several sources")
    readers, num_sequences = [table.batches for table in tables], None
    if sequence is not None:
        numbers = [table.num_sequences or 0 for table in tables]
        begins = accumulate(numbers[:-1], initial=0)
        index, num_sequences = first.schema.index(sequence.name), sum(numbers)
        readers = [
            changed(r, partial(_behind, index, n)) for r, n in zip(readers, begins, strict=True)
        ]
    read = in_turn(readers, counts)

    def batches(start: int, rows: int) -> Iterator[Batch]:
        for batch in read(start, rows):
            yield [_padded(rows, c.shape) for rows, c in zip(batch, schema.columns, strict=True)]

    same_meta = all(table.meta == first.meta for table in tables)
    return several(
        tables,
        schema,
        batches,
        where=f"{first.where} and {len(tables) - 1} more",
        num_rows=sum(counts),
        num_sequences=num_sequences,
        meta=first.meta if same_meta else {"sources": [dict(table.meta) for table in tables]},
        identity=first.identity if all(t.identity == first.identity for t in tables) else {},
        notes=(
            *(note for table in tables for note in table.notes),
            f"joined {len(tables)} sources: {', '.join(t.where for t in tables[:4])}",
        ),
    )


def _behind(index: int, begin: int, batch: Batch, start: int) -> Batch:
    """Rows of sequences that are numbered from `begin` on."""
    return [*batch[:index], batch[index] + begin, *batch[index + 1 :]]


def _difference(one: Table, other: Table) -> str | None:
    """Why rows of two tables do not belong into one, or None."""
    for name in (
        "num_classes",
        "num_members",
        "kind",
        "dtype",
        "class_names",
        "temperature",
        "encoding",
    ):
        a, b = getattr(one.schema, name), getattr(other.schema, name)
        if a != b:
            return f"its {name} is {b!r:.200}, expected {a!r:.200}; {_cure(name, one, other)}"
    for name in ("row_axis", "vocab_size"):
        a, b = getattr(one.schema, name), getattr(other.schema, name)
        if a != b:
            return f"its {name} is {b!r}, expected {a!r}"
    if [_widest(c) for c in one.schema.columns] != [_widest(c) for c in other.schema.columns]:
        names, others = ([column.name for column in t.schema.columns] for t in (one, other))
        return (
            f"its columns are {others}, expected {names}; id_column= (--id-column) says which column of a plain "
            "file are the ids, drop= (--drop) leaves one out, and convert(ids=) gives ids to a source alone"
        )
    return None


_HINTS = {
    "kind": ("kind", "source_kind= (--source-kind)"),
    "dtype": ("dtype", "source_dtype= (--source-dtype)"),
    "temperature": ("temperature", "temperature= (--temperature)"),
    "num_classes": ("columns", "columns= (--columns)"),
}
"""What a plain file does not say itself: the field of `Hints`, and the option that says it."""
_CHANGES = {
    "kind": "kind= (--kind)",
    "dtype": "dtype= (--dtype)",
    "encoding": "encoding= (--encoding)",
    "num_classes": "classes= (--classes)",
    "num_members": "member= (--member)",
    "class_names": "classes= (--classes), which puts them in one order",
}
"""The option of a conversion that changes what a source says of itself."""


def _cure(name: str, one: Table, other: Table) -> str:
    """What brings the two together: a hint for a source that says nothing itself, else a conversion before."""
    if name == "class_names" and None in (one.schema.class_names, other.schema.class_names):
        return "class_names= (--class-names) gives names to the rows that have none"
    hint, option = _HINTS.get(name, (name, ""))
    for table in (other, one):
        if hint in table.took:
            return f"{option} says what {table.where} holds"
    if name not in _CHANGES:
        return "rows of several temperatures do not belong into one store"
    return f"convert one of them first, with {_CHANGES[name]}"


def _widest(column: Column) -> Column:
    """The column without the width of its texts, which may differ."""
    return replace(column, shape=(0,)) if column.dtype == "utf8" else column


def _common(tables: Sequence[Table]) -> Schema:
    """The schema that holds the rows of all: the widest texts, the largest tolerance."""
    columns = tuple(
        replace(column, shape=max(table.schema.columns[i].shape for table in tables))
        for i, column in enumerate(tables[0].schema.columns)
    )
    tolerance = max(table.schema.sum_tolerance for table in tables)
    return replace(tables[0].schema, columns=columns, sum_tolerance=tolerance)


def _padded(rows: Array, shape: tuple[int, ...]) -> Array:
    """Texts of fixed width in a wider column; all else as it is."""
    if rows.shape[1:] == shape:
        return rows
    wide: Array = np.zeros((len(rows), *shape), rows.dtype)
    wide[:, : rows.shape[1]] = rows
    return wide
