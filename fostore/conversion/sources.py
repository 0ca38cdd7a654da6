"""What a source names: a store, a file, an array inside one, a folder or a pattern of shards, a stream."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from fostore import disk, files
from fostore.errors import ArgumentError, FormatError, StoreNotFoundError
from fostore.files import Hints
from fostore.files._keys import agreed
from fostore.files.stores import guarded, selection_table, store_table
from fostore.files.table import Batch, Table, least_checked
from fostore.formats import SUFFIXES as STORES
from fostore.formats import is_store
from fostore.places.litter import is_litter
from fostore.places.names import absent, inside
from fostore.reading.store import Selection, Store
from fostore.reading.store import open as open_store
from fostore.schema.row import Array, Column, Schema

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
        return _agreeing(source, hints)
    if isinstance(source, Store):
        return _agreeing(store_table(source, rows), hints)
    if isinstance(source, Selection):
        return _agreeing(selection_table(source), hints)
    if isinstance(source, (list, tuple)):
        return joined([open_table(part, hints) for part in source])
    if isinstance(source, (str, os.PathLike)) and os.fspath(source) == STREAM:
        return _agreeing(files.file_format("jsonl").read(Path(STREAM), hints), hints)
    path, name = inside(source)  # type: ignore[arg-type]  # which refuses all else
    if name:
        hints = replace(hints, inside=name)
    with disk.refusing(path):
        if path.exists():
            return _agreeing(_open_path(path, hints, rows), hints)
        if not glob.has_magic(str(path)):
            raise StoreNotFoundError(absent(path))
        shards = _in_order(glob.glob(str(path)))
    if not shards:
        raise StoreNotFoundError(f"no file matches {str(path)!r}")
    return joined([open_table(shard, hints) for shard in shards])


def _agreeing(table: Table, hints: Hints) -> Table:
    """The table, if every hint had an effect on it or says what it says itself.

    Raises:
        ArgumentError: a hint contradicts the source, or could change nothing.
    """
    schema = table.schema
    says = {
        "kind": schema.kind,
        "dtype": schema.dtype,
        "temperature": schema.temperature,
        "tol": schema.sum_tolerance,
    }
    for name, (keyword, option) in _HINTS.items():
        given = getattr(hints, name)
        if given in (None, ()) or name in table.took or given == says.get(name):
            continue
        leave = f"leave {keyword}= ({option}) out"
        if name in says and table.took:
            raise ArgumentError(
                f"{keyword}={given!r} has no effect on {schema.kind} of {table.where}; {leave}"
            )
        if name in says:
            changes = "; kind= (--kind) changes what they become" if name == "kind" else ""
            raise ArgumentError(
                f"{table.where} says of itself that its {_CALLED[name]} is {says[name]!r}, and "
                f"{keyword}={given!r} says otherwise: {leave}{changes}"
            )
        raise ArgumentError(f"{keyword}={given!r} has no effect on {table.where}; {leave}")
    return table


_CALLED = {"kind": "kind", "dtype": "dtype", "temperature": "temperature", "tol": "sum tolerance"}
_HINTS = {
    "kind": ("source_kind", "--source-kind"),
    "dtype": ("source_dtype", "--source-dtype"),
    "temperature": ("temperature", "--temperature"),
    "tol": ("source_tol", "--source-tol"),
    "id_column": ("id_column", "--id-column"),
    "columns": ("columns", "--columns"),
    "drop": ("drop", "--drop"),
    "delimiter": ("delimiter", "--delimiter"),
    "decimal": ("decimal", "--decimal"),
    "transpose": ("transpose", "--transpose"),
}
"""What a user says of a file that may not say it itself, and how he says it."""


def _open_path(path: Path, hints: Hints, rows: slice | None) -> Table:
    suffix = path.suffix.lower()
    if hints.format is not None:
        return files.file_format(hints.format).read(path, hints)
    if suffix in STORES and is_store(path):
        store = open_store(path)
        # Its rows by the name of their array are its rows: the store knows which are written, and their checksums.
        if (hints.inside or "").strip("/") in (
            "",
            *(column.name for column in store.schema.content),
        ):
            return store_table(store, rows)
    if suffix in files.SUFFIXES:
        return files.file_format(files.SUFFIXES[suffix]).read(path, replace(hints, rows=rows))
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
    raise FormatError(
        f"{str(path)!r} has the suffix {path.suffix!r}; what can be read ends in one of "
        f"{sorted({*STORES, *files.SUFFIXES})}; of another file say the format: source_format= (--from), "
        f"one of {sorted(files.FILES)}"
    )


def _folder(path: Path, hints: Hints) -> Table:
    """A folder of shards: files of one format, in the order of their names."""
    known = {*STORES, *files.SUFFIXES}
    shards = _in_order(
        str(child)
        for child in path.iterdir()
        if child.suffix.lower() in known and child.name[0] != "."
    )
    suffixes = {Path(shard).suffix.lower() for shard in shards}
    if len(suffixes) != 1:
        has = f"files of several formats ({', '.join(sorted(suffixes))})" if suffixes else "no file"
        raise (ArgumentError if suffixes else FormatError)(
            f"the folder {str(path)!r} holds {has} that can be read; name the shards by a pattern, "
            f"such as {str(path)!r}/*.npy"
        )
    return joined([open_table(shard, hints) for shard in shards])


def _in_order(names: Iterable[str]) -> list[str]:
    """The shards among names of files: a conflicted copy of a sync tool would bring its rows twice."""
    return sorted((name for name in names if not is_litter(Path(name).name)), key=_natural)


def _natural(name: str) -> list[Any]:
    """Sorts shard-2 before shard-10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


# ------------------------------------------------------------------ stores


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
    tables = agreed([guarded(table) for table in tables])
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
        proof=None,
        checked=least_checked(tables),
        took=frozenset().union(*(table.took for table in tables)),
        files=[path for table in tables for path in table.files or (table.where,)],
        notes=(
            *(note for table in tables for note in table.notes),
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
