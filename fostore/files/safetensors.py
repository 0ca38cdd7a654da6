"""The safetensors format: named tensors one after another behind a JSON header (huggingface/safetensors, Format)."""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from fostore.errors import FormatError, UnsafeError, UnsupportedError
from fostore.files import DTYPES, FileFormat, Hints, Holds
from fostore.files._arrays import arrays_table
from fostore.files._flat import Flat, open_source
from fostore.files._header import KEY, Sealing, text_of
from fostore.files._sink import Sink
from fostore.files._spool import counted
from fostore.files.array import FileArray
from fostore.files.table import Batch, Table
from fostore.schema import jsontext
from fostore.schema.digest import buffer
from fostore.schema.header import Header

_MAX_HEADER = 100_000_000  # the limit of the format's own reader
_METADATA = "__metadata__"
_DTYPES = {
    "F16": "float16",
    "BF16": "bfloat16",
    "F32": "float32",
    "F64": "float64",
    "U8": "uint8",
    "U16": "uint16",
    "U32": "uint32",
    "U64": "uint64",
    "I8": "int8",
    "I16": "int16",
    "I32": "int32",
    "I64": "int64",
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_STORED = {"bfloat16": "uint16"}


class _Safetensors(FileFormat):
    """See `fostore.files.FileFormat`; the library of that name is not needed."""

    name = "safetensors"
    holds = Holds(header=True, dtypes=DTYPES)

    def read(self, path: Path, hints: Hints) -> Table:
        """The rows of a tensor; its header is parsed strictly and held against the file's bytes."""
        where = str(path)
        arrays, metadata = _read_header(path)
        named = arrays.get(hints.inside or "")
        if named is not None and named.dtype not in _NAMES:
            raise UnsupportedError(
                f"{where}::{hints.inside} holds {named.dtype}, which no store has"
            )
        return arrays_table(where, self.name, arrays, hints, header_text=metadata.get(KEY))

    def write(self, path: Path, header: Header, batches: Iterator[Batch], start: int) -> None:
        """Write anew; tensors grow side by side."""
        header, num_rows, batches = counted(header, batches)
        passing = Sealing(header, batches)
        columns = header.schema.columns
        text, offsets = _header_text(passing, num_rows)
        with Sink(path) as sink:
            sink.write(text)
            for batch in passing:
                for i, column in enumerate(batch):
                    sink.fill(buffer(column).data, len(text) + offsets[i])
                    offsets[i] += len(column) * columns[i].row_bytes
        passing.fill_file(path)


def _header_text(passing: Sealing, num_rows: int) -> tuple[bytes, list[int]]:
    """The bytes before the data, and where each column's data begins behind them: wide numbers first."""
    columns = passing.header.schema.columns
    # The format wants no gaps, and readers in C want numbers at multiples of their width.
    order = sorted(range(len(columns)), key=lambda i: -columns[i].numpy_dtype.itemsize)
    offsets = [0] * len(columns)
    entries: dict[str, Any] = {_METADATA: {KEY: text_of(passing.header).decode()}}
    end = 0
    for i in order:
        column = columns[i]
        offsets[i], end = end, end + num_rows * column.row_bytes
        entries[column.name] = {
            "dtype": _NAMES["uint8" if column.dtype == "utf8" else column.dtype],
            "shape": [num_rows, *column.shape],
            "data_offsets": [offsets[i], end],
        }
    text = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # so that the data begins at a multiple of 8
    if len(text) > _MAX_HEADER:
        raise UnsupportedError(
            f"the header takes {len(text):,} bytes, and safetensors allow {_MAX_HEADER:,}; leave "
            "metadata out, or choose another format"
        )
    return struct.pack("<Q", len(text)) + text, offsets


def _read_header(path: Path) -> tuple[dict[str, FileArray], dict[str, str]]:
    """The tensors of a file and its metadata."""
    where = str(path)
    fd, size = open_source(path)
    with os.fdopen(fd, "rb") as file:
        prefix = file.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else size
        if length > size - 8 or length > _MAX_HEADER:
            raise UnsafeError(
                f"{where} claims a header of {length:,} bytes, and has {size:,}: it is no safetensors "
                "file, or was cut"
            )
        entries = jsontext.loads(file.read(length), f"{where}: the header")
    if not isinstance(entries, dict):
        raise FormatError(f"{where}: the header is {type(entries).__name__}, expected an object")
    metadata = entries.pop(_METADATA, {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise FormatError(f"{where}: {_METADATA} must be an object of strings")
    begin = 8 + length
    tensors = {
        name: _tensor(path, name, entry, begin, size - begin) for name, entry in entries.items()
    }
    return tensors, metadata


def _tensor(path: Path, name: str, entry: Any, begin: int, available: int) -> FileArray:
    where = f"{path}::{name}"
    try:
        dtype, shape, (start, stop) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
        known = _DTYPES.get(dtype)  # a TypeError of a dtype that is no text
    except (KeyError, TypeError, ValueError) as error:
        raise FormatError(f"{where} lacks its dtype, shape or data_offsets") from error
    if any(type(n) is not int or n < 0 for n in (*shape, start, stop)):
        raise FormatError(f"{where} has the shape {shape} and the offsets {start} to {stop}")
    if not start <= stop <= available:
        raise UnsafeError(
            f"{where} claims the bytes {start:,} to {stop:,}, and {available:,} are there: the file was "
            "cut, or its header lies"
        )
    if known is None:
        return FileArray(str(dtype), shape)
    stored = np.dtype(_STORED.get(known, known)).newbyteorder("<")
    if math.prod(shape) * stored.itemsize != stop - start:
        raise FormatError(f"{where} has {stop - start:,} bytes for the shape {shape} of {dtype}")
    return FileArray(known, shape, Flat(path, begin + start, stored, shape).batches)


FORMAT = _Safetensors()
