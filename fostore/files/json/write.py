"""Writing the guide's JSON: whole documents, each number in the shortest text that reads back exactly."""

from __future__ import annotations

import math
import operator
import os
import secrets
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from fostore import disk
from fostore.encodings import encoding_of, make_schema
from fostore.errors import ArgumentError, RowError
from fostore.files._header import KEY
from fostore.files._text import bare_cells, indices, woven
from fostore.files.json.rows import MAX_INDEX
from fostore.schema import digest, geometry
from fostore.schema.header import Header
from fostore.schema.jsontext import check_json, dumps
from fostore.schema.ranges import Range, Ranges
from fostore.schema.row import Array, Schema

DISTRIBUTIONS = "distributions"
"""The key of the rows of probabilities."""

_BATCH_NUMBERS = 1 << 16
_TEXT_NUMBERS = 1 << 12  # more text at once is memory that the system hands out afresh each time
_WRITTEN_BYTES = 1 << 20

Rows = Callable[[int], Iterator[tuple[int, Array]]]
"""Of a column: its rows from front to back, some at a time, each time with the index of the first."""


def save(
    path: str | Path,
    distributions: Mapping[int, Any],
    meta: Mapping[str, Any] | None = None,
    schema: Schema | Header | None = None,
) -> None:
    """Write distributions by sample index, with metadata, in the guide's layout; replaces the file at once.

    Every number is written in the shortest form that reads back exactly in its dtype.

    Args:
        path: missing parent folders are made.
        distributions: index (0, 1, ..., gaps are allowed) to row: a list, or an array of NumPy, torch
            or JAX, (num_classes,) or (num_members, num_classes). A store works too.
        meta: any JSON with string keys; "fostore" is taken.
        schema: what the rows are; by default probabilities of the widest dtype among the rows, float64
            for lists. A header hands on its identity too.

    Raises:
        ArgumentError: no distributions, a key that is no index, or metadata that JSON cannot hold.
        RowError: rows that are not finite, are no distributions, or differ in shape.
        After any error the file that was there stands.
    """
    checked = _checked_meta(meta)
    given = _Given(distributions)
    header = _header_for(given, schema, checked)
    encoding = encoding_of(header.schema)

    def read(column: int, start: int, stop: int) -> Array:
        rows = given.rows(start, stop, header.schema)
        return encoding.encode(rows, header.schema, start)[column]

    columns = range(len(header.schema.columns))
    hashes = [
        [digest.block_hash(read(column, start, stop)) for column in columns]
        for start, stop in pieces(given.indices, header.block_rows)
    ]
    if len(given.indices) == header.num_samples:
        whole = digest.store_digest(header, np.array(hashes, np.uint8))
        header = replace(header, sealed=True, digest=whole)
    _replace(Path(path), header, given.indices, read)


def export(path: Path, reader: Readable, meta: Mapping[str, Any] | None = None) -> None:
    """Write all committed rows of an open store, every column as it is stored, and its header.

    `meta` is added to the store's metadata.
    """

    def read(column: int, start: int, stop: int) -> Array:
        rows: Array = reader.column(column).read(start, stop)
        return rows

    header = replace(reader.header, meta={**reader.header.meta, **_checked_meta(meta)})
    _replace(path, header, reader.committed, read)


def _checked_meta(meta: Mapping[str, Any] | None) -> dict[str, Any]:
    checked: dict[str, Any] = check_json(dict(meta or {}))
    if KEY in checked:
        raise ArgumentError(f"meta has the key {KEY!r}, which fostore keeps for its own; rename it")
    return checked


def ranges_of(index: Array) -> Ranges:
    """Increasing indices as ranges."""
    if not len(index):
        return Ranges()
    cuts = np.flatnonzero(np.diff(index) != 1)
    starts = index[np.concatenate(([0], cuts + 1))]
    stops = index[np.concatenate((cuts, [len(index) - 1]))] + 1
    return Ranges(tuple(zip(starts.tolist(), stops.tolist(), strict=True)))


def table_name(schema: Schema, column: int) -> str:
    """The key under which a column's rows stand: the guide's for probabilities, else the column's name."""
    name = schema.columns[column].name
    return DISTRIBUTIONS if column == 0 and schema.kind == "probs" else name


class Readable(Protocol):
    """What is written of a reader: its header, which rows there are, and its columns one after another."""

    @property
    def header(self) -> Header: ...
    @property
    def committed(self) -> Ranges: ...
    def column(self, index: int) -> Any:
        """The column at `index`, with `read(start, stop)`."""
        ...


# ------------------------------------------------------------------ what a caller gives


class _Given:
    """Rows that a caller has in a mapping, in order of their index and in NumPy."""

    def __init__(self, mapping: Mapping[int, Any]) -> None:
        self._mapping = mapping
        keys = {_index(key): key for key in mapping}
        if not keys:
            raise ArgumentError("there are no distributions to save: the mapping is empty")
        self._keys = keys
        self._take = getattr(mapping, "take", None)
        self.indices = ranges_of(np.array(sorted(keys), np.int64))
        self.first = self.indices.items[0][0]

    def rows(self, start: int, stop: int, schema: Schema | None) -> Array:
        """The rows `[start, stop)`, all of one shape: the schema's where there is one."""
        if self._take is not None:
            return np.asarray(self._take(np.arange(start, stop)))
        given = [self._mapping[self._keys[i]] for i in range(start, stop)]
        kinds = {_plain(row) for row in given}
        plain = kinds.pop() if len(kinds) == 1 else None
        if plain is not None and (schema is None or plain[1] == schema.row_shape):
            return np.concatenate(given).reshape(len(given), *plain[1])
        arrays = [_array(row, start + i) for i, row in enumerate(given)]
        shape = arrays[0].shape if schema is None else schema.row_shape
        for i, row in enumerate(arrays):
            if row.shape != shape:
                raise RowError(f"row {start + i} has shape {row.shape}, expected {shape}")
        return np.stack(arrays)

    def dtype(self) -> str:
        """The widest dtype among the rows."""
        if self._take is not None:
            return str(self.rows(self.first, self.first + 1, None).dtype)
        dtypes = {
            plain[0] if (plain := _plain(row)) else _array(row, 0).dtype
            for row in self._mapping.values()
        }
        return str(np.result_type(*dtypes))


def _index(key: Any) -> int:
    try:
        index = operator.index(key)
    except TypeError:
        index = -1
    if isinstance(key, bool) or not 0 <= index < MAX_INDEX:
        raise ArgumentError(
            f"the distributions have the key {key!r}, expected the index of a sample (an integer, 0 "
            "or more)"
        )
    return index


def _plain(row: Any) -> tuple[np.dtype[Any], tuple[int, ...]] | None:
    """Dtype and shape of a row that is a NumPy array of floats already, as most are."""
    if type(row) is np.ndarray and row.dtype.kind == "f" and row.ndim in (1, 2):
        return row.dtype, row.shape
    return None


def _array(row: Any, index: int) -> Array:
    """One row as a float array; lists of numbers are float64, as they are in Python."""
    if hasattr(row, "detach"):
        row = row.detach().cpu()
        if str(row.dtype) == "torch.bfloat16":
            row = row.float()
    try:
        array = np.asarray(row)
    except ValueError as error:
        raise RowError(f"row {index} is no row of numbers: {error}") from error
    if array.dtype.kind in "iu" and isinstance(row, (list, tuple)):
        return array.astype(np.float64)
    if array.ndim not in (1, 2) or array.dtype.kind not in "fiuV":
        raise RowError(
            f"row {index} has dtype {array.dtype} and shape {array.shape}, expected numbers of shape "
            "(num_classes,) or (num_members, num_classes)"
        )
    return array


def _header_for(given: _Given, schema: Schema | Header | None, meta: dict[str, Any]) -> Header:
    stop = given.indices.items[-1][1]
    header = schema if isinstance(schema, Header) else None
    if header is not None:
        schema = header.schema
        stop = max(stop, header.num_samples or 0)
    elif schema is None:
        shape = given.rows(given.first, given.first + 1, None).shape[1:]
        dtype = given.dtype()
        members = shape[0] if len(shape) > 1 else None
        known = dtype if dtype in ("float16", "float32", "bfloat16") else "float64"
        schema = make_schema(shape[-1], num_members=members, dtype=known)
    assert isinstance(schema, Schema)
    if schema.content != schema.columns:
        raise ArgumentError("rows alone cannot fill side columns; use fostore.convert on the store")
    units = geometry.unit_rows(schema.row_bytes, stop)
    blocks = geometry.block_rows(schema.row_bytes)
    if header is None:
        return Header(schema, stop, units, blocks, meta=meta)
    return replace(header, num_samples=stop, unit_rows=units, meta=meta, sealed=False, digest=None)


# ------------------------------------------------------------------ a document as text


def pieces(ranges: Ranges, size: int) -> Iterator[Range]:
    """Ranges cut at the multiples of `size`."""
    for first, last in ranges:
        for _, start, stop in geometry.split_at_units(first, last, size):
            yield start, stop


def _replace(
    path: Path, header: Header, ranges: Ranges, read: Callable[[int, int, int], Array]
) -> None:
    """Write a document under a temporary name beside `path`, make it durable, and rename it.

    Args:
        ranges: the rows.
        read: (column, start, stop) to the stored rows of that column.
    """

    def rows_of(column: int) -> Iterator[tuple[int, Array]]:
        numbers = math.prod(header.schema.columns[column].shape)
        for start, stop in pieces(ranges, max(1, _BATCH_NUMBERS // numbers)):
            yield start, read(column, start, stop)

    disk.make_folders(path.parent)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        write_document(temporary, header, rows_of)
        disk.rename(temporary, path)
    except BaseException:
        disk.remove(temporary)
        raise
    disk.sync_directory(path.parent)


def write_document(path: Path, header: Header, rows_of: Rows) -> None:
    """Write a document at `path`, over what is there, and make its bytes durable.

    The columns are asked for one after the other. An error or a kill leaves half of a document.
    """
    fd = disk.open_file(path, write=True, create=True)
    try:
        disk.truncate(fd, 0)
        offset, texts, size = 0, list[bytes](), 0
        for text in _texts(header, rows_of):
            texts.append(text)
            size += len(text)
            if size >= _WRITTEN_BYTES:  # which is worth a system call
                disk.write_at(fd, b"".join(texts), offset)
                offset, texts, size = offset + size, [], 0
        disk.write_at(fd, b"".join(texts), offset)
        disk.sync_data(fd)
    finally:
        os.close(fd)


def _texts(header: Header, rows_of: Rows) -> Iterator[bytes]:
    attributes = header.to_json()
    yield b'{"meta": ' + dumps({**attributes["meta"], KEY: attributes[KEY]})
    for i, column in enumerate(header.schema.columns):
        yield b',\n"%s": {' % table_name(header.schema, i).encode()
        step = max(1, _TEXT_NUMBERS // math.prod(column.shape))
        is_first = True
        for start, rows in rows_of(i):
            for at in range(0, len(rows), step):
                opening, texts, closing = bare_cells(column, rows[at : at + step])
                keys = indices(start + at, start + at + len(texts))
                text = woven(b',\n"', keys, b'": ' + opening, texts, closing)
                yield text[1:] if is_first else text
                is_first = False
        yield b"\n}"
    yield b"}\n"
