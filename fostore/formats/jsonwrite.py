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
from fostore.schema import digest, geometry
from fostore.schema.halves import widen
from fostore.schema.header import Header
from fostore.schema.jsontext import check_json, dumps
from fostore.schema.ranges import Range, Ranges
from fostore.schema.row import Array, Column, Schema

KEY = "fostore"
"""The key in `meta` under which the header of a store stands."""

_MAX_INDEX = 1 << 53
_BATCH_NUMBERS = 1 << 16
_TEXT_NUMBERS = (
    1 << 12
)  # a text of over 128 KiB is memory that the system hands out afresh each time
_WRITTEN_BYTES = 1 << 20

Read = Callable[[int, int, int], Array]
"""(column, start, stop) to the stored rows of that column."""


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
        found = digest.store_digest(header, np.array(hashes, np.uint8))
        header = replace(header, sealed=True, digest=found)
    _write(Path(path), header, given.indices, read)


def export(
    path: Path, reader: Readable, meta: Mapping[str, Any] | None = None, *, in_place: bool = False
) -> None:
    """Write all committed rows of an open store, every column as it is stored, and its header.

    `meta` is added to the store's metadata. `in_place` is for a path that is a temporary one of the
    caller's already: an error or a kill leaves half of a document there, and nothing beside it.
    """
    merged = {**reader.header.meta, **_checked_meta(meta)}

    def read(column: int, start: int, stop: int) -> Array:
        rows: Array = reader.column(column).read(start, stop)
        return rows

    header = replace(reader.header, meta=merged)
    if in_place:
        _write_new(path, header, reader.committed, read)
    else:
        _write(path, header, reader.committed, read)


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
    return "distributions" if column == 0 and schema.kind == "probs" else name


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
        found = [_array(row, start + i) for i, row in enumerate(given)]
        shape = found[0].shape if schema is None else schema.row_shape
        for i, row in enumerate(found):
            if row.shape != shape:
                raise RowError(f"row {start + i} has shape {row.shape}, expected {shape}")
        return np.stack(found)

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
    if isinstance(key, bool) or not 0 <= index < _MAX_INDEX:
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


def pieces(ranges: Ranges, size: int) -> Iterator[Range]:
    """Ranges cut at the multiples of `size`."""
    for first, last in ranges:
        for _, start, stop in geometry.split_at_units(first, last, size):
            yield start, stop


def _write(path: Path, header: Header, committed: Ranges, read: Read) -> None:
    """Write the document under a temporary name beside `path`, make it durable, and rename it."""
    disk.make_folders(path.parent)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        _write_new(temporary, header, committed, read)
        disk.rename(temporary, path)
    except BaseException:
        disk.remove(temporary)
        raise
    disk.sync_directory(path.parent)


def _write_new(path: Path, header: Header, committed: Ranges, read: Read) -> None:
    """Write the document at `path`, over what is there, and make its bytes durable."""
    attributes = header.to_json()
    meta = {**attributes["meta"], KEY: attributes[KEY]}
    fd = disk.open_file(path, write=True, create=True)
    try:
        disk.truncate(fd, 0)
        offset = 0
        for text in _joined(_texts(header, meta, committed, read)):
            disk.write_at(fd, text, offset)
            offset += len(text)
        disk.sync_data(fd)
    finally:
        os.close(fd)


def _joined(texts: Iterator[bytes]) -> Iterator[bytes]:
    """Texts put together to pieces that are worth a system call."""
    parts, size = [], 0
    for text in texts:
        parts.append(text)
        size += len(text)
        if size >= _WRITTEN_BYTES:
            yield b"".join(parts)
            parts, size = [], 0
    yield b"".join(parts)


def _texts(header: Header, meta: dict[str, Any], committed: Ranges, read: Read) -> Iterator[bytes]:
    schema = header.schema
    yield b'{"meta": ' + dumps(meta)
    for i, column in enumerate(schema.columns):
        yield b',\n"%s": {' % table_name(schema, i).encode()
        separator = b"\n"
        row = math.prod(column.shape)
        batch, part = max(1, _BATCH_NUMBERS // row), max(1, _TEXT_NUMBERS // row)
        for start, stop in pieces(committed, batch):
            rows = read(i, start, stop)
            for at in range(0, stop - start, part):
                yield separator + _rows_text(column, start + at, rows[at : at + part])
                separator = b",\n"
        yield b"\n}"
    yield b"}\n"


def _rows_text(column: Column, start: int, rows: Array) -> bytes:
    """Rows as members of an object, a line each; minus infinity, which only logarithms have, becomes null."""
    import orjson

    if column.dtype == "utf8":
        texts = [dumps(row.tobytes().rstrip(b"\0").decode("utf-8")) for row in rows]
        return b",\n".join(b'"%d": %s' % item for item in enumerate(texts, start))
    numbers = widen(rows, column.dtype) if column.dtype == "bfloat16" else rows
    numbers = np.ascontiguousarray(numbers, numbers.dtype.newbyteorder("="))
    # One call for many rows; their text is cut where a row begins, and the keys go in between.
    text = orjson.dumps(numbers, option=orjson.OPT_SERIALIZE_NUMPY)
    keys = orjson.dumps(np.arange(start, start + len(rows)), option=orjson.OPT_SERIALIZE_NUMPY)
    opening = b"[" * len(column.shape)
    if opening:
        cut = text[1:-1].split(opening)[1:]
    else:
        cut = [number + b"," for number in text[1:-1].split(b",")]
        cut[-1] = cut[-1][:-1]
    parts = [b'\n"'] * (4 * len(cut))
    parts[0] = b'"'
    parts[1::4] = keys[1:-1].split(b",")
    parts[2::4] = [b'": ' + opening] * len(cut)
    parts[3::4] = cut
    return b"".join(parts)
