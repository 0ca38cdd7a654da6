"""Writing the guide's JSON: whole documents, each number in the shortest text that reads back exactly."""

from __future__ import annotations

import math
import operator
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import starmap
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from fostore import disk
from fostore.encodings import encoding_of, make_schema
from fostore.errors import ArgumentError, RowError
from fostore.files._header import KEY
from fostore.files._sink import Sink
from fostore.files._text import bare_cells, indices, woven
from fostore.files.json.kept import ranges_of
from fostore.files.json.rows import MAX_INDEX
from fostore.schema import digest, geometry
from fostore.schema.header import Header
from fostore.schema.jsontext import check_json, dumps
from fostore.schema.ranges import Range, Ranges
from fostore.schema.row import Array, Column, Schema

DISTRIBUTIONS = "distributions"
"""The key of the rows of probabilities."""

_BATCH_NUMBERS = 1 << 16
_TEXT_NUMBERS = 1 << 12  # more text at once is memory that the system hands out afresh each time
_WRITTEN_BYTES = 1 << 20

Rows = Iterable[tuple[int, Array]]
"""The rows of a column from front to back, some at a time, each time with the index of the first."""


def save(
    path: str | Path, distributions: Mapping[int, Any], meta: Mapping[str, Any] | None = None
) -> None:
    """Write distributions by sample index, with metadata, in the guide's layout; replaces the file at once.

    Every number is written in the shortest form that reads back exactly in its dtype: the widest
    among the rows, float64 for lists.

    Args:
        path: missing parent folders are made.
        distributions: index (0, 1, ..., gaps are allowed) to row: a list, or an array of NumPy, torch
            or JAX, (num_classes,) or (num_members, num_classes). A store works too.
        meta: any JSON with string keys; "fostore" is taken.

    Raises:
        ArgumentError: no distributions, a key that is no index, or metadata that JSON cannot hold.
        RowError: rows that are not finite, are no distributions, or differ in shape.
        After any error the file that was there stands.
    """
    checked = _checked_meta(meta)
    given = _Given(distributions)
    first, stop = given.indices.items[0][0], given.indices.items[-1][1]
    shape, dtype = given.rows(first, first + 1).shape[1:], given.dtype()
    known = dtype if dtype in ("float16", "float32", "bfloat16") else "float64"
    header = header_of_probs(shape, known, stop, meta=checked)
    encoding = encoding_of(header.schema)

    def read(column: int, start: int, stop: int) -> Array:
        rows = given.rows(start, stop, header.schema.row_shape)
        return encoding.encode(rows, header.schema, start)[column]

    hashes = [
        [digest.block_hash(read(0, start, stop))]
        for start, stop in pieces(given.indices, header.block_rows)
    ]
    header = sealed_if_whole(header, given.indices, np.array(hashes, np.uint8))
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

    def rows(self, start: int, stop: int, shape: tuple[int, ...] | None = None) -> Array:
        """The rows `[start, stop)`, all of one shape: by default the first one's."""
        if self._take is not None:
            return np.asarray(self._take(np.arange(start, stop)))
        given = [self._mapping[self._keys[i]] for i in range(start, stop)]
        kinds = {_plain(row) for row in given}
        plain = kinds.pop() if len(kinds) == 1 else None
        if plain is not None and shape in (None, plain[1]):
            return np.concatenate(given).reshape(len(given), *plain[1])
        arrays = [_array(row, start + i) for i, row in enumerate(given)]
        shape = arrays[0].shape if shape is None else shape
        for i, row in enumerate(arrays):
            if row.shape != shape:
                raise RowError(f"row {start + i} has shape {row.shape}, expected {shape}")
        return np.stack(arrays)

    def dtype(self) -> str:
        """The widest dtype among the rows."""
        if self._take is not None:
            first = self.indices.items[0][0]
            return str(self.rows(first, first + 1).dtype)
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


def header_of_probs(shape: tuple[int, ...], dtype: str, stop: int, **others: Any) -> Header:
    """The header of probabilities, rows of `shape`, up to index `stop`."""
    schema = make_schema(shape[-1], num_members=shape[0] if len(shape) > 1 else None, dtype=dtype)
    sizes = schema.row_bytes
    return Header(
        schema, stop, geometry.unit_rows(sizes, stop), geometry.block_rows(sizes), **others
    )


def sealed_if_whole(header: Header, ranges: Ranges, hashes: Array) -> Header:
    """The header with the digest of these rows, if they are all that it plans."""
    if len(ranges) < (header.num_samples or 0):
        return header
    return replace(header, sealed=True, digest=digest.store_digest(header, hashes))


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

    def rows_of(i: int, column: Column) -> Iterator[tuple[int, Array]]:
        for start, stop in pieces(ranges, max(1, _BATCH_NUMBERS // math.prod(column.shape))):
            yield start, read(i, start, stop)

    disk.make_folders(path.parent)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        write_document(temporary, header, starmap(rows_of, enumerate(header.schema.columns)))
        disk.rename(temporary, path)
    except BaseException:
        disk.remove(temporary)
        raise
    disk.sync_directory(path.parent)


def write_document(path: Path, header: Header, columns: Iterable[Rows]) -> None:
    """Write a document at `path`, over what is there, and make its bytes durable.

    Each column is read through before the next one. An error or a kill leaves half of a document.
    """
    texts, size = list[bytes](), 0
    with Sink(path) as sink:
        for text in _texts(header, columns):
            texts.append(text)
            size += len(text)
            if size >= _WRITTEN_BYTES:  # which is worth a system call
                sink.write(b"".join(texts))
                texts, size = [], 0
        sink.write(b"".join(texts))


def _texts(header: Header, columns: Iterable[Rows]) -> Iterator[bytes]:
    attributes = header.to_json()
    yield b'{"meta": ' + dumps({**attributes["meta"], KEY: attributes[KEY]})
    for i, (column, batches) in enumerate(zip(header.schema.columns, columns, strict=True)):
        yield b',\n"%s": {' % table_name(header.schema, i).encode()
        step = max(1, _TEXT_NUMBERS // math.prod(column.shape))
        is_first = True
        for start, rows in batches:
            for at in range(0, len(rows), step):
                opening, texts, closing = bare_cells(column, rows[at : at + step])
                keys = indices(start + at, start + at + len(texts))
                text = woven(b',\n"', keys, b'": ' + opening, texts, closing)
                yield text[1:] if is_first else text
                is_first = False
        yield b"\n}"
    yield b"}\n"
