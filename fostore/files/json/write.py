"""Writing the guide's JSON: whole documents, each number in the shortest text that reads back exactly."""

from __future__ import annotations

import math
import operator
import secrets
from collections.abc import Iterable, Iterator, Mapping
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
from fostore.schema.jsontext import check_object, dumps
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
    export(Path(path), _Given(distributions), meta)


def export(path: Path, reader: _Readable, meta: Mapping[str, Any] | None = None) -> None:
    """Write all committed rows of an open store, every column as it is stored, and its header.

    Replaces the file at once: written under a temporary name beside it, made durable, renamed. `meta` is
    added to the store's metadata.
    """
    added = check_object(meta)
    if KEY in added:
        raise ArgumentError(f"meta has the key {KEY!r}, which fostore keeps for its own; rename it")
    header = replace(reader.header, meta={**reader.header.meta, **added})

    def rows_of(i: int, column: Column) -> Rows:
        view, size = reader.column(i), max(1, _BATCH_NUMBERS // math.prod(column.shape))
        for start, stop in pieces(reader.committed, size):
            yield start, view.read(start, stop)

    disk.make_folders(path.parent)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        write_document(temporary, header, starmap(rows_of, enumerate(header.schema.columns)))
        disk.rename(temporary, path)
    except BaseException:
        disk.remove(temporary)
        raise
    disk.sync_directory(path.parent)  # or a power cut takes the new name back


def table_name(schema: Schema, column: int) -> str:
    """The key under which a column's rows stand: the guide's for probabilities, else the column's name."""
    name = schema.columns[column].name
    # By its name: what an encoding keeps of probabilities must not be read as them.
    return DISTRIBUTIONS if column == 0 and name == schema.kind == "probs" else name


class _Readable(Protocol):
    """What is written of a reader; a column has `read(start, stop)`."""

    @property
    def header(self) -> Header: ...
    @property
    def committed(self) -> Ranges: ...
    def column(self, index: int, /) -> Any: ...


# ------------------------------------------------------------------ what a caller gives


class _Given:
    """Probabilities that a caller has in a mapping, as a reader of one column."""

    def __init__(self, mapping: Mapping[int, Any]) -> None:
        self._mapping = mapping
        self._keys = {_index(key): key for key in mapping}
        if not self._keys:
            raise ArgumentError("there are no distributions to save: the mapping is empty")
        self._take = getattr(mapping, "take", None)
        self.committed = ranges_of(np.array(sorted(self._keys), np.int64))
        first, stop = self.committed.items[0][0], self.committed.items[-1][1]
        self._shape = _array(mapping[self._keys[first]], first).shape
        rows = ((i, mapping[k]) for i, k in self._keys.items() if not self._take or i == first)
        dtype = str(np.result_type(*{_array(row, i).dtype for i, row in rows}))
        known = dtype if dtype in ("float16", "float32", "bfloat16") else "float64"
        self.header = header_of_probs(self._shape, known, stop)
        # The digest stands before the rows, so they are read twice: a copy would take as much memory again.
        hashes = [
            [digest.block_hash(self.read(start, stop))]
            for start, stop in pieces(self.committed, self.header.block_rows)
        ]
        self.header = sealed_if_whole(self.header, self.committed, np.array(hashes, np.uint8))

    def column(self, index: int, /) -> _Given:
        return self

    def read(self, start: int, stop: int) -> Array:
        """The rows `[start, stop)` as they are stored."""
        if self._take is not None:
            rows = np.asarray(self._take(np.arange(start, stop)))
        else:
            arrays = [_array(self._mapping[self._keys[i]], i) for i in range(start, stop)]
            for i, array in enumerate(arrays, start):
                if array.shape != self._shape:
                    raise RowError(f"row {i} has shape {array.shape}, expected {self._shape}")
            rows = np.concatenate(arrays).reshape(len(arrays), *self._shape)
        return encoding_of(self.header.schema).encode(rows, self.header.schema, start)[0]


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


def _array(row: Any, index: int) -> Array:
    """One row as a float array; lists of numbers are float64, as they are in Python."""
    if type(row) is np.ndarray and row.dtype.kind == "f" and row.ndim in (1, 2):
        return row  # as most are
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
