"""What a source names: a store, a file, an array inside one, a folder or a pattern of shards, a stream."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from fostore import digest, disk, geometry
from fostore.conversion import files
from fostore.conversion.files import Hints
from fostore.conversion.hashing import Digester
from fostore.conversion.table import Batch, Table
from fostore.errors import ArgumentError, DamageError, StoreNotFoundError
from fostore.formats import SUFFIXES as STORES
from fostore.formats import is_store
from fostore.place import absent, inside
from fostore.ranges import describe
from fostore.schema import Array, Column, Schema
from fostore.store import Selection, Store
from fostore.store import open as open_store

_ZARR_FILES = ("zarr.json", ".zarray", ".zgroup")

STREAM = "-"
"""Names the standard input or output, as JSON Lines."""

Source = str | os.PathLike[str] | Store | Selection | Table | Sequence[Any]


def open_table(source: Source, hints: Hints | None = None, rows: slice | None = None) -> Table:
    """The rows that `source` names, nothing read yet.

    Args:
        source: a path; `path::inside` for an array in a file; a folder or a pattern of shards, which
            come one after another in the order of their names; a list of those; a `Store` or a
            `Selection`; "-" for JSON Lines on the standard input.
        hints: what a file does not say itself.
        rows: those that will be wanted; a store that is not finished then shows what it has.

    Raises:
        StoreNotFoundError, FormatError, UnsupportedError, UnsafeError: as the format says.
        ArgumentError: rows are missing, shards disagree, or a hint is needed; says which.
    """
    hints = hints or Hints()
    if isinstance(source, Table):
        return source
    if isinstance(source, Store):
        return store_table(source, rows)
    if isinstance(source, Selection):
        return selection_table(source)
    if isinstance(source, (list, tuple)):
        return joined([open_table(part, hints) for part in source])
    if isinstance(source, (str, os.PathLike)) and os.fspath(source) == STREAM:
        return files.file_format("jsonl").read(Path(STREAM), hints)
    path, name = inside(source)  # type: ignore[arg-type]  # which refuses all else
    if name:
        hints = replace(hints, inside=name)
    with disk.refusing(path):
        if path.exists():
            return _open_path(path, hints, rows)
        if not glob.has_magic(str(path)):
            raise StoreNotFoundError(absent(path))
        shards = sorted(glob.glob(str(path)), key=_natural)
    if not shards:
        raise StoreNotFoundError(f"no file matches {str(path)!r}")
    return joined([open_table(shard, hints) for shard in shards])


def _open_path(path: Path, hints: Hints, rows: slice | None) -> Table:
    suffix = path.suffix.lower()
    if hints.format is not None:
        return files.file_format(hints.format).read(path, hints)
    if not hints.inside and suffix in STORES and is_store(path):
        return store_table(open_store(path), rows)
    if suffix in files.SUFFIXES:
        return files.file_format(files.SUFFIXES[suffix]).read(path, hints)
    if path.is_dir() and (path / "state.json").exists() and (path / "dataset_info.json").exists():
        return files.file_format("arrow").read(path, hints)  # a folder of Hugging Face datasets
    if path.is_dir() and (path / "dataset_dict.json").exists():
        raise ArgumentError(
            f"{str(path)!r} holds the splits of a dataset; name one, a folder in it"
        )
    if path.is_dir() and any((path / name).exists() for name in _ZARR_FILES):
        return files.file_format("plain-zarr").read(path, hints)
    if path.is_dir():
        return _folder(path, hints)
    raise ArgumentError(
        f"{str(path)!r} has the suffix {path.suffix!r}; what can be read ends in one of "
        f"{sorted({*STORES, *files.SUFFIXES})}"
    )


def _folder(path: Path, hints: Hints) -> Table:
    """A folder of shards: files of one format, in the order of their names."""
    known = {*STORES, *files.SUFFIXES}
    shards = sorted(
        (
            str(child)
            for child in path.iterdir()
            if child.suffix.lower() in known and child.name[0] != "."
        ),
        key=_natural,
    )
    suffixes = {Path(shard).suffix.lower() for shard in shards}
    if len(suffixes) != 1:
        has = f"files of several formats ({', '.join(sorted(suffixes))})" if suffixes else "no file"
        raise ArgumentError(
            f"the folder {str(path)!r} holds {has} that can be read; name the shards by a pattern, "
            f"such as {str(path)!r}/*.npy"
        )
    return joined([open_table(shard, hints) for shard in shards])


def _natural(name: str) -> list[Any]:
    """Sorts shard-2 before shard-10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


# ------------------------------------------------------------------ stores


def store_table(store: Store, rows: slice | None = None) -> Table:
    """All rows of a store, as they are stored; with `rows` those from 0 on that are committed.

    Raises:
        ArgumentError: rows that are wanted are not committed yet; says which.
    """
    header, missing = store.header, store.missing()
    there = store.committed.prefix
    stop = None if rows is None else rows.stop
    if missing and (stop is None or not 0 <= stop <= there):
        raise ArgumentError(
            f"{describe(missing)} of {store.path} are missing; finish the store, or convert what is "
            f"there: rows=slice(0, {there}), or --rows 0:{there}"
        )
    if missing:
        return _rows_of(store, there, None)
    return _rows_of(store, len(store), header.digest)


def _rows_of(store: Store, num_rows: int, digest: str | None) -> Table:
    header = store.header
    reader = store.reader

    def batches(start: int, rows: int) -> Iterator[Batch]:
        views = [reader.column(i) for i in range(len(header.schema.columns))]
        for first in range(start, num_rows, rows):
            stop = min(first + rows, num_rows)
            yield [view.read(first, stop) for view in views]

    return Table(
        where=str(store.path),
        format=store.format,
        schema=header.schema,
        num_rows=num_rows,
        batches=batches,
        meta=header.meta,
        identity=header.identity,
        extra=header.extra,
        digest=digest,
        trusted=digest is not None,
        block_hashes=None if digest is None else reader.block_hashes,
    )


def guarded(table: Table) -> Table:
    """The table, whose every block of rows is held against its hash as it is read, if it has any.

    So a part of a sealed store can be taken and damage in it is still found; where there is a digest
    alone, all rows must pass before it can be. Whoever reads all rows and compares their digest does
    not need it.
    """
    if table.digest is None or not table.num_rows:
        return table
    if table.block_hashes is None:
        return replace(table, batches=_compared(table))
    claimed, num_rows = table.block_hashes, table.num_rows
    size = geometry.block_rows(table.schema.row_bytes)

    def batches(start: int, rows: int) -> Iterator[Batch]:
        known = claimed()
        checked = -1
        for batch in table.batches(start, rows):
            stop = start + len(batch[0])
            for block in range(start // size, -(-stop // size)):
                first, last = block * size, min((block + 1) * size, num_rows)
                if block == checked or not known[block].any():
                    continue
                inside = start <= first and last <= stop
                columns = (
                    [column[first - start : last - start] for column in batch]
                    if inside
                    else next(iter(table.batches(first, last - first)))
                )
                _check_block(table, columns, known[block], first, last)
                checked = block
            yield batch
            start = stop

    return replace(table, batches=batches, block_hashes=None)


def _check_block(table: Table, columns: Batch, claimed: Array, first: int, last: int) -> None:
    """Hold the rows `[first, last)`, a block, against its hashes."""
    hashed = [i for i, column in enumerate(table.schema.columns) if column.hashed]
    found = [digest.block_hash(columns[i]) for i in hashed]
    if not np.array_equal(np.stack(found), claimed):
        raise DamageError(
            f"{table.where} is damaged: rows {first} to {last - 1} do not have the bytes that were "
            "sealed; restore it from a copy",
            ((first, last),),
        )


def _compared(table: Table) -> Callable[[int, int], Iterator[Batch]]:
    def batches(start: int, rows: int) -> Iterator[Batch]:
        if start:
            yield from table.batches(start, rows)
            return
        with Digester(table.schema, table.num_rows) as digester:
            for batch in table.batches(0, rows):
                digester.update(batch)
                yield batch
            if digester.digest() != table.digest:
                raise DamageError(
                    f"{table.where} is damaged: its rows do not have the digest {table.digest}"
                )

    return batches


def selection_table(selection: Selection) -> Table:
    """The rows of a selection, renumbered from 0; of a sealed store each of their blocks is checked once."""
    store = selection.store
    reader, schema = store.reader, store.schema
    size = geometry.block_rows(schema.row_bytes)

    def batches(start: int, rows: int) -> Iterator[Batch]:
        views = [reader.column(i) for i in range(len(schema.columns))]
        whole = None if store.header.digest is None else _rows_of(store, len(store), None)
        known = reader.block_hashes() if whole is not None else None
        seen: set[int] = set()
        for first in range(start, len(selection), rows):
            wanted = np.asarray(selection.rows[first : first + rows], np.int64)
            if whole is not None and known is not None:
                for block in sorted(set((wanted // size).tolist()) - seen):
                    begin, end = block * size, min((block + 1) * size, len(store))
                    columns = [view.read(begin, end) for view in views]
                    if known[block].any():
                        _check_block(whole, columns, known[block], begin, end)
                    seen.add(block)
            yield [view.take(wanted) for view in views]

    return Table(
        where=f"{store.path} ({len(selection)} rows)",
        format=store.format,
        schema=schema,
        num_rows=len(selection),
        batches=batches,
        files=(str(store.path),),
        meta=store.meta,
        extra=store.header.extra,
    )


# ------------------------------------------------------------------ shards


def joined(tables: Sequence[Table]) -> Table:
    """Several tables as one, one after another.

    Raises:
        ArgumentError: there is none, or they hold different things; names the first that differs.
    """
    if len(tables) < 2:
        if not tables:
            raise ArgumentError("no source was given")
        return tables[0]
    tables = [guarded(table) for table in tables]
    first = tables[0]
    for other in tables[1:]:
        difference = _difference(first, other)
        if difference:
            raise ArgumentError(f"{other.where} cannot follow {first.where}: {difference}")
    schema = _common(tables)
    counts = [table.num_rows for table in tables]
    if any(count is None for count in counts):
        raise ArgumentError("a stream of unknown length cannot be one of several sources")
    starts = np.cumsum([0, *counts]).tolist()

    def batches(start: int, rows: int) -> Iterator[Batch]:
        for table, (begin, end) in zip(tables, pairwise(starts), strict=True):
            if start < end:
                for batch in table.batches(max(start - begin, 0), rows):
                    yield [
                        _padded(part, c.shape)
                        for part, c in zip(batch, schema.columns, strict=True)
                    ]

    same_meta = all(table.meta == first.meta for table in tables)
    return replace(
        first,
        where=f"{first.where} and {len(tables) - 1} more",
        schema=schema,
        num_rows=starts[-1],
        batches=batches,
        meta=first.meta if same_meta else {"sources": [dict(table.meta) for table in tables]},
        identity=first.identity if all(t.identity == first.identity for t in tables) else {},
        digest=None,
        trusted=False,
        block_hashes=None,
        files=[path for table in tables for path in table.files or (table.where,)],
        notes=(
            *first.notes,
            f"joined {len(tables)} sources: {', '.join(t.where for t in tables[:4])}",
        ),
    )


def _difference(one: Table, other: Table) -> str | None:
    """Why rows of two tables do not belong into one, or None."""
    for name in ("num_classes", "num_members", "kind", "dtype", "class_names", "temperature"):
        a, b = getattr(one.schema, name), getattr(other.schema, name)
        if a != b:
            return f"its {name} is {b!r:.200}, expected {a!r:.200}"
    if [_widest(c) for c in one.schema.columns] != [_widest(c) for c in other.schema.columns]:
        return "its columns differ: " + str([column.name for column in other.schema.columns])
    return None


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
