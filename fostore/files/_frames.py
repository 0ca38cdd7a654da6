"""Tables of Arrow columns: rows in a column of lists, or a column a class; shared by Parquet and Arrow files."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa

from fostore.errors import ArgumentError, FormatError
from fostore.files import Hints
from fostore.files._arrowrows import found_in, number_type, numbers, row_shape, sound, stored
from fostore.files._header import KEY, headed_table, header_of
from fostore.files._keys import Beside, keyed
from fostore.files._wide import layout
from fostore.files.array import FileArray
from fostore.files.guess import choose, plain_table
from fostore.files.table import Batch, Table
from fostore.schema import jsontext
from fostore.schema.header import Header
from fostore.schema.row import Array

_FIRST_ROWS = 64
_FIRST_VALUES = 1 << 16
Convert = Callable[[Any, int], Any]
"""What is made of a record batch, and the number of its first row."""
Batches = Callable[[list[str], int, int, Convert], Iterator[Any]]
"""(names, first row, rows at a time, convert) to what was made of each batch."""


def arrow_table(
    path: str, format: str, schema: Any, hints: Hints, num_rows: int, batches_of: Batches
) -> Table:
    """The rows of a file of Arrow columns: those that its header names, else what is found, with the ids beside them.

    Args:
        path: names the file in messages.
        format: the name of the format.
        schema: Arrow's, with the file's metadata: a header of ours, what pandas says of the index.
        hints: what the user says.
        num_rows: how many there are.
        batches_of: reads columns by their names.

    Raises:
        FormatError: the columns are not what the header says.
        ArgumentError: it is not plain which columns hold the rows; says what to say.
        Others: as `plain_table`.
    """
    try:
        schema.names  # noqa: B018  # which Arrow decodes when it is asked for them
    except UnicodeDecodeError as error:
        raise FormatError(f"{path} is damaged: the name of a column is no UTF-8") from error
    text = (schema.metadata or {}).get(KEY.encode())
    header = None if text is None else header_of(text, path, hints.inside)
    if header is not None:
        return _headed(path, format, schema, header, num_rows, batches_of)
    lists = found_in(schema)
    index, counted = _index(schema)
    if hints.columns is not None or (not lists and hints.inside is None):
        table, others = _wide_table(path, format, schema, hints, num_rows, batches_of, index)
    else:
        name = choose(lists, path, hints.inside)
        table = _list_table(path, format, name, lists, hints, num_rows, batches_of)
        others = [field.name for field in schema if field.name != name]
    beside = {
        name: _beside(schema.field(name), name in index, name, batches_of)
        for name in others
        if schema.names.count(name) == 1
    }
    if counted is not None:
        beside[counted[0]] = Beside("a range", _range(counted[1], num_rows), is_index=True)
    return keyed(table, beside, hints)


def _headed(
    path: str, format: str, schema: Any, header: Header, num_rows: int, batches_of: Batches
) -> Table:
    columns = header.schema.columns
    names = [column.name for column in columns]
    missing = [name for name in names if name not in schema.names]
    if missing:
        raise FormatError(f"{path} lacks the columns {missing}, which its header names")

    def convert(batch: Any, row: int) -> Batch:
        return [stored(batch.column(i), column, row, path) for i, column in enumerate(columns)]

    def batches(start: int, rows: int) -> Iterator[Batch]:
        return batches_of(names, start, rows, convert)

    return headed_table(path, format, header, num_rows, batches)


def _list_table(
    path: str,
    format: str,
    name: str,
    lists: Mapping[str, FileArray],
    hints: Hints,
    num_rows: int,
    batches_of: Batches,
) -> Table:
    """The rows of one column of lists; the first row says how long they are."""
    where, rows_of = f"{path}::{name}", lists[name]
    first = next(batches_of([name], 0, 1, lambda batch, row: batch.column(0)), None)
    shape = rows_of.shape[1:] if first is None or not len(first) else row_shape(first, where)

    def convert(batch: Any, row: int) -> Array:
        return numbers(batch.column(0), rows_of.dtype, shape, row, where)

    def batches(start: int, rows: int) -> Iterator[Array]:
        return batches_of([name], start, rows, convert)

    array = FileArray(rows_of.dtype, (num_rows, *shape), batches)
    return plain_table(where, format, array, hints)


def _wide_table(
    path: str,
    format: str,
    schema: Any,
    hints: Hints,
    num_rows: int,
    batches_of: Batches,
    index: set[str],
) -> tuple[Table, list[str]]:
    """The rows of a table with a column a class, and the names of the other columns."""
    names = [name for name in schema.names if name not in index]
    types = {field.name: number_type(field.type) for field in schema}
    if len(set(schema.names)) != len(schema.names):
        twice = next(name for name in schema.names if schema.names.count(name) > 1)
        raise FormatError(f"{path} has two columns {twice!r}; rename one of them")
    if not any(types[name] for name in names):
        raise ArgumentError(
            f"{path} has no column of numbers or of lists of numbers; it has {names[:12]}"
        )
    first = _first_numbers(path, names, types, batches_of)
    inner = replace(hints, drop=[n for n in hints.drop if n in names])
    inner = replace(inner, id_column=None) if hints.id_column in index else inner
    whole = [name for name in names if (types[name] or "float")[:3] in ("int", "uin")]
    kind = hints.kind or ("counts" if len(whole) == len(names) else None)
    wide = layout(path, names, first, inner, kind)
    classes = [names[i] for i in wide.classes]
    dtype = _common([str(types[name]) for name in classes])

    def convert(batch: Any, row: int) -> Array:
        columns = [
            numbers(batch.column(i), str(types[name]), (), row, f"{path}::{name}")
            for i, name in enumerate(classes)
        ]
        return np.ascontiguousarray(np.stack(columns, axis=1), dtype)

    def batches(start: int, rows: int) -> Iterator[Array]:
        return batches_of(classes, start, rows, convert)

    table = plain_table(
        path,
        format,
        FileArray(dtype, (num_rows, len(classes)), batches),
        hints,
        class_names=wide.class_names,
        notes=wide.notes,
    )
    others = [name for name in schema.names if name not in classes]
    return replace(table, took=table.took | {"columns"}), others


def _first_numbers(
    path: str, names: list[str], types: Mapping[str, str | None], batches_of: Batches
) -> list[Array | None]:
    rows = max(2, min(_FIRST_ROWS, _FIRST_VALUES // max(len(names), 1)))
    known = [name for name in names if types[name]]

    def convert(batch: Any, row: int) -> list[Array]:
        return [
            numbers(batch.column(i), str(types[name]), (), row, f"{path}::{name}")
            for i, name in enumerate(known)
        ]

    first = next(batches_of(known, 0, rows, convert), [np.empty(0) for _ in known])
    values = {name: np.asarray(one, np.float64) for name, one in zip(known, first, strict=True)}
    return [values.get(name) for name in names]


def _common(dtypes: list[str]) -> str:
    """The dtype that holds the numbers of all columns."""
    if any(dtype.startswith("float") for dtype in dtypes):
        floats = [np.dtype(d if d.startswith("float") else "float64") for d in dtypes]
        return str(np.result_type(*floats).name)
    name = str(np.result_type(*(np.dtype(d) for d in dtypes)).name)
    return name if not name.startswith("float") else "int64"


def _index(schema: Any) -> tuple[set[str], tuple[str, Any] | None]:
    """The columns that are a frame's index, and a range that is one and is not stored, with its name.

    Source: "Storing pandas DataFrame objects in Apache Parquet format" (pandas, developer guide).
    """
    text = (schema.metadata or {}).get(b"pandas")
    if text is None:
        return set(), None
    try:
        entries = jsontext.loads(text, "pandas")["index_columns"]
        named = {entry for entry in entries if isinstance(entry, str) and entry in schema.names}
        ranges = [entry for entry in entries if isinstance(entry, dict)]
        if len(ranges) == 1 and ranges[0]["kind"] == "range":
            start, stop, step = (int(np.int64(ranges[0][key])) for key in ("start", "stop", "step"))
            if (start, step) == (0, 1):
                return named, None  # where the rows stand anyway
            name = ranges[0].get("name")
            return named, (name if isinstance(name, str) else "index", range(start, stop, step))
    except (FormatError, KeyError, TypeError, ValueError, OverflowError):
        return set(), None
    return named, None


def _range(values: range, num_rows: int) -> Callable[[int, int], Iterator[Array]] | None:
    # Not by `len`, which raises for a stranger's range that is longer than memory has addresses.
    if -(-(values.stop - values.start) // values.step) != num_rows:
        return None

    def read(start: int, rows: int) -> Iterator[Array]:
        for first in range(start, num_rows, rows):
            some = values[first : first + rows]
            yield np.arange(some.start, some.stop, some.step, dtype=np.int64)

    return read


def _beside(field: Any, is_index: bool, name: str, batches_of: Batches) -> Beside:
    kind = field.type.value_type if pa.types.is_dictionary(field.type) else field.type
    is_text = any(
        check(kind)
        for check in (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
    )
    is_key = is_text or (number_type(kind) or "")[:3] in ("int", "uin")

    def convert(batch: Any, row: int) -> Any:
        array = sound(batch.column(0), row, name)
        if pa.types.is_dictionary(array.type):
            array = array.dictionary_decode()
        if is_text or array.null_count:
            return array.to_pylist()
        return array.to_numpy(zero_copy_only=False)

    def read(start: int, rows: int) -> Iterator[Any]:
        return batches_of([name], start, rows, convert)

    what = "text" if is_text else str(field.type)
    return Beside(what, read if is_key else None, is_index=is_index)
