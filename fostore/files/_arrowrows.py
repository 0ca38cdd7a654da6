"""Arrow columns and rows: fixed-size lists of numbers, nested for members; shared by Parquet and Arrow files."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from fostore.encodings.rows import round_to
from fostore.errors import FormatError, RowError
from fostore.files._header import KEY, text_of
from fostore.files.array import FileArray
from fostore.schema.halves import widen
from fostore.schema.header import Header
from fostore.schema.row import Array, Column
from fostore.schema.sides.ids import encode_ids

_NUMBERS = {
    pa.float16(): "float16",
    pa.float32(): "float32",
    pa.float64(): "float64",
    pa.uint8(): "uint8",
    pa.uint16(): "uint16",
    pa.uint32(): "uint32",
    pa.uint64(): "uint64",
    pa.int8(): "int8",
    pa.int16(): "int16",
    pa.int32(): "int32",
    pa.int64(): "int64",
}
_TYPES = {name: kind for kind, name in _NUMBERS.items()}


# ------------------------------------------------------------------ writing


def arrow_schema(header: Header, *, with_header: bool = True) -> Any:
    """The Arrow schema of a store's columns; bfloat16, which Arrow has not, as float32."""
    fields = [
        pa.field(column.name, _type(column), nullable=False) for column in header.schema.columns
    ]
    return pa.schema(fields, {KEY: text_of(header)} if with_header else None)


def record_batch(header: Header, batch: list[Array], schema: Any) -> Any:
    """Rows as a record batch; the numbers are not copied."""
    arrays = [
        _arrow(rows, column) for rows, column in zip(batch, header.schema.columns, strict=True)
    ]
    return pa.record_batch(arrays, schema=schema)


def _type(column: Column) -> Any:
    if column.dtype == "utf8":
        return pa.string()
    kind = _TYPES["float32" if column.dtype == "bfloat16" else column.dtype]
    for size in reversed(column.shape):
        kind = pa.list_(pa.field("item", kind, nullable=False), size)
    return kind


def _arrow(rows: Array, column: Column) -> Any:
    if column.dtype == "utf8":
        texts = [row.tobytes().rstrip(b"\0").decode("utf-8") for row in rows]
        return pa.array(texts, pa.string())
    numbers = widen(rows, column.dtype) if column.dtype == "bfloat16" else rows
    array = pa.array(np.ascontiguousarray(numbers).reshape(-1))
    kinds = [_type(column)]
    for _ in column.shape[1:]:
        kinds.append(kinds[-1].value_type)
    for kind in reversed(kinds) if column.shape else ():
        array = pa.FixedSizeListArray.from_arrays(array, type=kind)
    return array


# ------------------------------------------------------------------ reading


def found_in(schema: Any) -> dict[str, FileArray]:
    """The columns of lists of numbers, with their shapes; 0 stands for a length that the rows say."""
    arrays: dict[str, FileArray] = {}
    for field in schema:
        shape: list[int] = [0]
        kind = _plain(field.type)
        while (size := _list_size(kind)) is not None:
            shape.append(size)
            kind = _plain(kind.value_type)
        if kind in _NUMBERS and len(shape) > 1:
            arrays[field.name] = FileArray(_NUMBERS[kind], tuple(shape))
    return arrays


def number_type(kind: Any) -> str | None:
    """The name of the numbers of a type; None where it holds something else."""
    return _NUMBERS.get(_plain(kind))


def row_shape(array: Any, where: str) -> tuple[int, ...]:
    """The shape of the first row of a column of lists."""
    shape: list[int] = []
    array = _storage(sound(array.slice(0, 1), 0, where))
    while (size := _list_size(array.type)) is not None:
        if size == 0:
            if not len(array) or array.null_count:
                raise FormatError(f"{where}: the first row is empty")
            size = len(array[0])
        shape.append(size)
        array = _storage(array.flatten())
    return tuple(shape)


def sound(array: Any, row: int, where: str) -> Any:
    """The array, whose offsets and lengths lead to nothing but its own bytes.

    They come from the file, and Arrow follows them out of its memory: the system then kills the process, or what lies
    there is read.

    Raises:
        FormatError: they contradict each other.
    """
    try:
        array.validate(full=True)
    except (pa.ArrowInvalid, pa.ArrowIndexError) as error:
        raise FormatError(f"{where}, from row {row} on: {error}") from error
    return array


def numbers(array: Any, dtype: str, shape: tuple[int, ...], row: int, where: str) -> Array:
    """Rows of lists as one array (n, *shape), a copy.

    Raises:
        FormatError: a null, a row of another length, or buffers that contradict each other.
    """
    count = len(array)
    array = _storage(sound(array, row, where))
    per_row = 1
    for size in shape:
        _refuse_nulls(array, per_row, row, where)
        if _list_size(array.type) is None:
            raise FormatError(f"{where} holds {array.type}, expected lists of shape {shape}")
        if not pa.types.is_fixed_size_list(array.type):
            lengths = np.diff(array.offsets.to_numpy(zero_copy_only=False))
            if (lengths != size).any():
                bad = int(np.flatnonzero(lengths != size)[0])
                raise FormatError(
                    f"{where}: row {row + bad // per_row} has {lengths[bad]} numbers, expected {size}"
                )
        elif array.type.list_size != size:
            raise FormatError(f"{where} holds lists of {array.type.list_size}, expected {size}")
        array = _storage(array.flatten())
        per_row *= size
    _refuse_nulls(array, per_row, row, where)
    if array.type != _TYPES[dtype]:
        raise FormatError(f"{where} holds {array.type}, expected {dtype}")
    values = array.to_numpy(zero_copy_only=False)
    return np.array(values, np.dtype(dtype).newbyteorder("<")).reshape(count, *shape)


def stored(array: Any, column: Column, row: int, where: str) -> Array:
    """A column as the store keeps it, from what `record_batch` made of it."""
    where = f"{where}::{column.name}"
    if column.dtype == "utf8":
        array = _storage(sound(array, row, where))
        if not (pa.types.is_string(array.type) or pa.types.is_large_string(array.type)):
            raise FormatError(f"{where} holds {array.type}, expected text")
        _refuse_nulls(array, 1, row, where)
        try:
            return encode_ids(array.to_pylist(), column, row)
        except RowError as error:
            raise FormatError(f"{where}: {error}") from error
    dtype = "float32" if column.dtype == "bfloat16" else column.dtype
    rows = numbers(array, dtype, column.shape, row, where)
    return round_to(rows, "bfloat16") if column.dtype == "bfloat16" else rows


def _refuse_nulls(array: Any, per_row: int, row: int, where: str) -> None:
    if array.null_count:
        bad = int(np.flatnonzero(array.is_null().to_numpy(zero_copy_only=False))[0])
        raise FormatError(f"{where}: row {row + bad // per_row} holds a null, expected numbers")


def _list_size(kind: Any) -> int | None:
    """The length of a type's lists, 0 where each has its own; None where it is no list."""
    if pa.types.is_fixed_size_list(kind):
        return int(kind.list_size)
    return 0 if pa.types.is_list(kind) or pa.types.is_large_list(kind) else None


def _plain(kind: Any) -> Any:
    return kind.storage_type if isinstance(kind, pa.BaseExtensionType) else kind


def _storage(array: Any) -> Any:
    return array.storage if isinstance(array, pa.ExtensionArray) else array
