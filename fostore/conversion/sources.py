"""What a source names: a store, a file, an array inside one, a folder or a pattern of shards, a stream."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fostore import disk, files
from fostore.conversion.joining import joined
from fostore.conversion.options import HINTS
from fostore.encodings import encoding_of
from fostore.encodings.topk_rows import masses
from fostore.errors import ArgumentError, FormatError, StoreNotFoundError
from fostore.files import Hints
from fostore.files.stores import selection_table, store_table
from fostore.files.table import Table
from fostore.formats import SUFFIXES as STORES
from fostore.formats import is_store
from fostore.places.litter import is_litter
from fostore.places.names import STREAM, absent, inside, is_url
from fostore.places.place import ByUrl
from fostore.reading.named import MANIFEST
from fostore.reading.selection import Selection
from fostore.reading.store import Store
from fostore.reading.store import open as open_store
from fostore.schema.row import TOKEN, Array, Schema
from fostore.schema.sides import Bounds, side_of

Source = str | os.PathLike[str] | Store | Selection | Table | Sequence[Any]


def open_table(source: Source, hints: Hints | None = None, rows: slice | None = None) -> Table:
    """The rows that `source` names, nothing read yet.

    Args:
        source: a path, or the url of a store; `path::inside` for an array in a file; a folder or a pattern
            of shards, which come one after another in the order of their names; a list of those; a `Store`, the
            place of one, or a `Selection`; "-" for JSON Lines on the standard input.
        hints: what a file does not say itself.
        rows: those that will be wanted; a store that is not finished then shows what it has.

    Raises:
        StoreNotFoundError, FormatError, UnsupportedError, UnsafeError: as the format says.
        ArgumentError: rows are missing, shards disagree, or a hint is needed; says which.
    """
    hints = hints or Hints()
    if isinstance(source, Table):
        return _agreeing(source, hints)
    if isinstance(source, ByUrl):
        source = Store(source)  # type: ignore[arg-type]  # every one is a Place
    if isinstance(source, Store):
        return _agreeing(store_table(source, rows), hints)
    if isinstance(source, Selection):
        return _agreeing(selection_table(source), hints)
    if isinstance(source, (list, tuple)):
        return joined([open_table(one, hints) for one in source])
    if isinstance(source, (str, os.PathLike)) and os.fspath(source) == STREAM:
        return _agreeing(files.file_format("jsonl").read(Path(STREAM), hints), hints)
    if isinstance(source, str) and is_url(source):
        return _agreeing(store_table(open_store(source), rows), hints)
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


class First(NamedTuple):
    """One of the first rows of a source, as people look at it."""

    beside: dict[str, Any]
    """What goes with it, where the source keeps it: "id", "label" (the number of its class), of a token row
    "sequence", "token" and "position"."""
    classes: Array
    """([M,] k): the classes that are known, largest first; all of them, or those that top-k rows keep."""
    probs: Array
    """([M,] k): what each has."""
    numbers: dict[str, Any]
    """All that is known of the row, as JSON."""


def first_rows(
    source: Source, count: int, *, format: str | None = None, kind: str | None = None
) -> tuple[Schema, list[First]]:
    """The first rows of a source as probabilities, and their schema.

    Args:
        format, kind: what a file does not say itself.

    Raises:
        RowError: a row is none. Else as `open_table`.
    """
    # Of a store that is not finished those that it has; fewer than none are wanted of it.
    table = open_table(source, Hints(format=format, kind=kind), rows=slice(0, 0))
    schema = table.schema
    batch = next(iter(table.batches(0, count)), None) if count else None
    if batch is None:
        return schema, []
    batch = [rows[:count] for rows in batch]
    content = batch[: len(schema.content)]
    encoding = encoding_of(schema)
    encoding.check(content, schema, 0)
    topk = None if encoding.is_whole(schema) else encoding.sparse(content, schema)
    firsts = []
    for i, beside in enumerate(_beside(batch, schema)):
        if topk is None:
            row = encoding.decode([column[i : i + 1] for column in content], schema)[0]
            order = np.argsort(-row, axis=-1, kind="stable")
            probs, numbers = np.take_along_axis(row, order, -1), {"probs": row.tolist()}
            firsts.append(First(beside, order, probs, numbers))
        else:
            order, weights = topk.ids[i], masses(topk)[i]
            probs, others = weights[..., :-1], weights[..., -1]
            kept = {"classes": order.tolist(), "probs": probs.tolist(), "others": others.tolist()}
            firsts.append(First(beside, order, probs, kept))
    return schema, firsts


_SHOWN = {"id": "id", "class_label": "label"}
"""The roles whose values people know a row by, and how they are called then; of tokens all that say where one is."""


def _beside(batch: Sequence[Array], schema: Schema) -> list[dict[str, Any]]:
    """What side columns say of each row of a batch, as a user gave it."""
    beside: list[dict[str, Any]] = [{} for _ in batch[0]]
    for column, stored in zip(schema.columns, batch, strict=True):
        if column.role == "content":
            continue
        side = side_of(column.role)
        name = _SHOWN.get(column.role) or (column.name if side.row_axis == TOKEN else None)
        if name is None:
            continue
        if side.check is not None:
            side.check(stored, Bounds(schema.num_classes, None, schema.vocab_size), 0)
        for row, value in zip(beside, side.decode(stored, column).tolist(), strict=True):
            row[name] = value
    return beside


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
    for name, keyword in HINTS.items():
        given = getattr(hints, name)
        if name in _FREE or given in (None, ()) or name in table.took or given == says.get(name):
            continue
        flag = "--" + keyword.replace("_", "-")
        leave = f"leave {keyword}= ({flag}) out"
        if name in says and table.took:
            raise ArgumentError(
                f"{keyword}={given!r} has no effect on {schema.kind} of {table.where}; {leave}"
            )
        if name in says:
            called = "sum tolerance" if name == "tol" else name
            changes = "; kind= (--kind) changes what they become" if name == "kind" else ""
            raise ArgumentError(
                f"{table.where} says of itself that its {called} is {says[name]!r}, and "
                f"{keyword}={given!r} says otherwise: {leave}{changes}"
            )
        raise ArgumentError(f"{keyword}={given!r} has no effect on {table.where}; {leave}")
    return table


_FREE = ("format", "class_names")
"""Hints that need no effect: the format was followed, and names are given to rows that have none."""


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
    if path.is_dir() and (path / MANIFEST).is_file():
        return store_table(open_store(path), rows)  # a published bundle
    if path.is_dir() and (path / "state.json").exists() and (path / "dataset_info.json").exists():
        return files.file_format("arrow").read(path, hints)  # a folder of Hugging Face datasets
    if path.is_dir() and (path / "dataset_dict.json").exists():
        raise ArgumentError(
            f"{str(path)!r} holds the splits of a dataset; name one, a folder in it"
        )
    if is_zarr(path):
        return files.file_format("plain-zarr").read(path, hints)
    if path.is_dir():
        return _folder(path, hints)
    raise FormatError(
        f"{str(path)!r} has the suffix {path.suffix!r}; what can be read ends in one of "
        f"{sorted({*STORES, *files.SUFFIXES})}; of another file say the format: source_format= (--from), "
        f"one of {sorted(files.FILES)}"
    )


def is_zarr(path: Path) -> bool:
    """Whether a folder is an array or a group of Zarr, of version 2 or 3."""
    return any((path / name).exists() for name in ("zarr.json", ".zarray", ".zgroup"))


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
    return [(int(run), "") if run.isdigit() else (-1, run) for run in re.split(r"(\d+)", name)]
