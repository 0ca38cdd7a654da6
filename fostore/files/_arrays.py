"""Files of named arrays: which one holds the rows, arrays that follow each other, and what lies beside them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from fostore.errors import ArgumentError, FormatError
from fostore.files import Hints
from fostore.files._header import headed_table, header_of
from fostore.files._keys import Beside, keyed
from fostore.files._wide import numbered
from fostore.files.array import FileArray
from fostore.files.guess import choose, matrices, plain_table
from fostore.files.table import Batch, Table, in_turn
from fostore.schema.header import Header
from fostore.schema.row import Array, Column

_LOOKED_AT, _FEW = 64, 8
"""Rows that are looked at, and under which nothing is concluded from them."""


def arrays_table(
    path: str,
    format: str,
    arrays: Mapping[str, FileArray],
    hints: Hints,
    *,
    meta: Mapping[str, Any] | None = None,
    notes: Sequence[str] = (),
    header_text: bytes | str | None = None,
) -> Table:
    """The rows of a file of named arrays: those that its header names, else what is found, with the ids beside them.

    Raises:
        FormatError: the arrays are not what the header says; names the first that is not.
        ArgumentError: it is not plain which array holds the rows, or what they are; says what to say.
        Others: as `plain_table`.
    """
    header = None if header_text is None else header_of(header_text, path, hints.inside)
    if header is not None:
        return _headed(path, format, header, arrays)
    names = None if hints.inside is not None else _sequence(arrays)
    if names is None:
        chosen = [choose(arrays, path, hints.inside)]
        array, where = arrays[chosen[0]], f"{path}::{chosen[0]}"
    else:
        chosen, where = names, f"{path}::{names[0]} to {names[-1]}"
        _refuse_mixture(chosen, arrays, path)
        array = joined([arrays[name] for name in chosen])
        notes = (
            *notes,
            f"{len(chosen)} arrays follow each other in the order of their numbers, {chosen[0]} to "
            f"{chosen[-1]}: {array.num_rows} rows. If they are other things, name one: "
            f"{path}::{chosen[0]}",
        )
    notes = (*notes, array.note) if array.note else notes
    # MATLAB's, as the file says; a user who says otherwise knows better.
    if array.is_reversed and hints.transpose is None:
        hints = replace(hints, transpose=True)
    table = plain_table(where, format, array, hints, meta=meta, notes=notes)
    # Letter by letter, since the names are parted where their numbers are; `_folder` cuts what is left.
    folder = _folder(os.path.commonprefix(chosen))  # noqa: RUF071
    beside = {
        name.removeprefix(folder): _beside(one, table.num_rows)
        for name, one in arrays.items()
        if name not in chosen and _folder(name) == folder
    }
    return keyed(table, beside, hints)


def _headed(path: str, format: str, header: Header, arrays: Mapping[str, FileArray]) -> Table:
    """The columns that a header names, each of which must be as it says."""
    columns = header.schema.columns
    for column in columns:
        array = arrays.get(column.name)
        if array is None:
            raise FormatError(f"{path} has no array {column.name!r}, which its header names")
        shape = array.shape
        if (array.dtype, shape[1:]) not in _ways(column):
            raise FormatError(
                f"{path}: array {column.name!r} is {array.dtype} {shape}, expected "
                f"{column.stored} and rows of {column.shape} by the header"
            )
    counts = {arrays[column.name].num_rows for column in columns}
    if len(counts) > 1:
        raise FormatError(f"{path}: its arrays differ in their number of rows, {sorted(counts)}")

    def batches(start: int, rows: int) -> Iterator[Batch]:
        pieces = [arrays[column.name].batches(start, rows) for column in columns]
        for batch in zip(*pieces, strict=True):
            yield [_stored(array, column) for array, column in zip(batch, columns, strict=True)]

    return headed_table(path, format, header, counts.pop(), batches)


def _ways(column: Column) -> list[tuple[str, tuple[int, ...]]]:
    """The dtypes and shapes of a row in which a column may lie: NumPy has texts as bytes, and no bfloat16."""
    ways = [(column.stored, column.shape), (column.dtype, column.shape)]
    return [*ways, (f"bytes{8 * column.row_bytes}", ())] if column.dtype == "utf8" else ways


def _stored(array: Array, column: Column) -> Array:
    if array.dtype.kind == "S":
        return array.view(np.uint8).reshape(len(array), *column.shape)
    return np.ascontiguousarray(array, column.numpy_dtype)


def joined(arrays: Sequence[FileArray]) -> FileArray:
    """Arrays of one dtype and one shape of row, one after another."""
    counts = [array.num_rows for array in arrays]
    shape = (sum(counts), *arrays[0].shape[1:])
    return FileArray(arrays[0].dtype, shape, in_turn([array.batches for array in arrays], counts))


def _sequence(arrays: Mapping[str, FileArray]) -> list[str] | None:
    """The names of arrays that follow each other, in order, where all that may be rows are such; else None.

    Raises:
        ArgumentError: they are numbered, and a number is missing.
    """
    names = matrices(arrays)
    rows = {(arrays[name].dtype, arrays[name].shape[1:]) for name in names}
    if len(names) < 2 or len(rows) > 1:
        return None
    numbers = numbered(names)
    if numbers is None:
        return None
    return [names[i] for i in np.argsort(numbers)]


def _refuse_mixture(names: Sequence[str], arrays: Mapping[str, FileArray], where: str) -> None:
    """Refuse numbered arrays of which some hold whole numbers alone, one-hot labels say, and others do not."""
    whole: dict[str, bool] = {}
    for name in names:
        rows = next(arrays[name].batches(0, _LOOKED_AT), None)
        if rows is not None and len(rows) >= _FEW and rows.dtype.kind == "f":
            whole[name] = bool((rows == np.rint(rows)).all())
    if len(set(whole.values())) > 1:
        odd = [name for name, is_whole in whole.items() if is_whole]
        others = [name for name, is_whole in whole.items() if not is_whole]
        raise ArgumentError(
            f"{where}: {odd[:4]} hold whole numbers alone, and {others[:4]} do not, so they are not rows that "
            f"follow each other; say which array holds the rows: {where}::{others[0]}"
        )


def _beside(array: FileArray, num_rows: int | None) -> Beside:
    shape = array.shape
    what = f"{array.dtype} {shape}"
    fits = shape in ((num_rows,), (num_rows, 1))
    return Beside(what, array.batches if fits else None)


def _folder(name: str) -> str:
    return name[: name.rfind("/") + 1]
