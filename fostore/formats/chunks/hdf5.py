"""HDF5 datasets in chunks and filters, decoded by fostore itself (spec/hdf5.md, other layouts).

h5py says where the chunks lie and which filters they went through, while the file is opened and never
later. Filters come from an allow-list and none of HDF5's runs, so that no plugin can be loaded, and
a chunk that is not there is damage: the fill value is never read.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from fostore.errors import DamageError, FormatError, UnsafeError, UnsupportedError
from fostore.formats.chunks import codecs
from fostore.formats.chunks.codecs import CodecError, Decoder
from fostore.formats.chunks.foreign import (
    ForeignArray,
    ForeignReader,
    Index,
    Survey,
    check_chunks,
    require_sealed,
)
from fostore.formats.hdf5 import slots
from fostore.formats.hdf5.file import open_dataset, open_store, opened, recorded_end
from fostore.formats.hdf5.records import HASHES, HEADER, HEADER_MAGIC, PROGRESS
from fostore.places.names import place_of
from fostore.places.place import Place
from fostore.schema import jsontext
from fostore.schema.header import Header
from fostore.schema.ranges import Range
from fostore.schema.row import Array

FILTERS = {1: "gzip", 2: "shuffle", 3: "fletcher32", 32000: "lzf"}
"""The filters that are decoded, by HDF5's numbers; everything else is refused."""

MAX_CHUNKS = 1 << 24
"""Chunks of one dataset: a record of 32 bytes is kept for each."""

_MAX_HEADER = 64 << 20
_PIECE_BYTES = 256 << 10
_KINDS = "fiu"
_WITHOUT_USER_BLOCK = (
    "copy what is in it to a file without one: with h5py.File(old) as a, h5py.File(new, 'w') as b: "
    "[a.copy(name, b) for name in a]"
)


def open_sealed(path: Path, why: Exception) -> ForeignReader:
    """The reader of a sealed store whose datasets lie in a way of their own.

    Args:
        path: the file, links resolved.
        why: what is different about it, for the message where that is not allowed.

    Raises:
        UnsupportedError: it is not sealed, or has a filter outside the allow-list; names it.
        DamageError: it was cut, or its header is damaged.
        FormatError, UnsafeError: as `fostore.open` has it.
    """
    file = File(path)
    try:
        with file.root() as root:
            if h5py.h5i.get_file_id(root).get_create_plist().get_userblock():
                raise UnsupportedError(f"{path} has a user block; {_WITHOUT_USER_BLOCK}")
            header = _header(root, file)
            require_sealed(header, str(path), why)
            columns = [open_foreign_dataset(root, c.name, file) for c in header.schema.columns]
            hashes = open_foreign_dataset(root, HASHES, file)
        return ForeignReader(header, columns, hashes, recheck=file.check, release=file.close)
    except BaseException:
        file.close()
        raise


class File:
    """An HDF5 file as bytes at offsets: it stays the file that was opened, whatever takes its path.

    Safe for several threads and across forks: nothing but a descriptor is kept.
    """

    def __init__(self, path: Path | Place) -> None:
        self._file = open_store(place_of(path))
        self.path = str(self._file)
        self.check, self.close = self._file.check, self._file.close
        self.size, end = self._file.size, recorded_end(self._file)
        if self.size < end:
            self.close()
            raise DamageError(
                f"{self.path} was cut: {self.size:,} bytes are there, {end:,} were written; restore it from a copy"
            )

    def root(self) -> Any:
        """A context in which h5py has the root group open."""
        return opened(self._file, self.size)

    def read(self, offset: int, size: int) -> bytes:
        """`size` bytes at `offset`.

        Raises:
            CodecError: the file ends before.
            ArgumentError: the file is closed.
        """
        data = self._file.read(offset, size)
        if len(data) != size:
            raise CodecError("it was cut")
        return data


def holds_store(path: Path | Place) -> bool:
    """Whether an HDF5 file says that it is a store; true where it cannot be read, for the store's reader to say why."""
    try:
        file = File(path)
    except (FormatError, DamageError):
        return True
    try:
        with file.root() as root:
            marked = h5py.h5a.exists(root, b"fostore")
            return bool(
                marked or all(root.links.exists(name.encode()) for name in (HEADER, PROGRESS))
            )
    except FormatError:
        return True
    finally:
        file.close()


def _header(root: Any, file: File) -> Header:
    where = f"{file.path}, dataset {HEADER!r}"
    array = open_foreign_dataset(root, HEADER, file)
    if len(array.shape) != 2 or array.shape[0] != 2 or array.dtype != np.dtype("u1"):
        raise FormatError(f"{where} is {array.dtype} {array.shape}, expected two slots of bytes")
    if array.shape[1] * 2 > _MAX_HEADER:
        raise UnsafeError(
            f"{where} claims {array.shape[1] * 2:,} bytes, expected at most {_MAX_HEADER:,}"
        )
    try:
        rows = array.read(0, 2)
    except DamageError as error:
        raise DamageError(f"{where} is damaged ({error}); restore the file from a copy") from error
    record = slots.newest(HEADER_MAGIC, [rows[0].tobytes(), rows[1].tobytes()])
    if record is None:
        raise DamageError(f"{where}: both slots are damaged; restore the file from a copy")
    return Header.from_json(jsontext.loads(record.payload, where), where)


def open_foreign_dataset(root: Any, name: str, file: File) -> ForeignArray:
    """A dataset of numbers of the root, after all that it asks for was checked; reads where its chunks lie.

    Args:
        root: the root group, open in h5py; not used any more when this has returned.
        name: the dataset.
        file: the file that the rows are read from.

    Raises:
        UnsupportedError: a filter, layout or dtype that is not decoded here; names it.
        UnsafeError: links, other files, or chunks that take too much memory.
        FormatError: no such dataset, or one that contradicts itself.
    """
    where = f"{file.path}, dataset {name!r}"
    dataset, plist = open_dataset(root, name, file.path)
    stored = dataset.dtype
    plain = stored.kind in _KINDS and stored.itemsize <= 8
    if not plain or not dataset.get_type().equal(h5py.h5t.py_create(stored)):
        raise UnsupportedError(f"{where} has the dtype {str(stored)!r:.80}, expected plain numbers")
    shape = tuple(int(n) for n in dataset.shape)
    if not shape:
        raise FormatError(f"{where} is a single number")
    row_bytes = math.prod(shape[1:]) * stored.itemsize
    has_user_block = bool(h5py.h5i.get_file_id(root).get_create_plist().get_userblock())
    if plist.get_layout() == h5py.h5d.CONTIGUOUS:
        rows = max(min(_PIECE_BYTES // max(row_bytes, 1), shape[0]), 1)
        chunk_shape = (rows, *shape[1:])
        if math.prod(shape):
            check_chunks(shape, chunk_shape, stored.itemsize, where)
        flat = _Flat(file, where, stored, shape, chunk_shape, dataset.get_offset())
        return _array(where, stored, shape, chunk_shape, flat)
    if plist.get_layout() != h5py.h5d.CHUNKED:
        raise UnsupportedError(f"{where} has the layout 'compact', expected chunks or contiguous")
    if has_user_block and h5py.version.hdf5_version_tuple < (2, 0, 0):
        # Older libraries name the places of chunks now with and now without the user block.
        raise UnsupportedError(f"{where} is chunked behind a user block; {_WITHOUT_USER_BLOCK}")
    chunk_shape = tuple(int(n) for n in plist.get_chunk())
    check_chunks(shape, chunk_shape, stored.itemsize, where)
    filters = _filters(plist, stored, where)
    table = _table(dataset, shape, chunk_shape, where)
    return _array(
        where,
        stored,
        shape,
        chunk_shape,
        _Chunked(file, where, stored, shape, chunk_shape, filters, table),
    )


def read_foreign_texts(
    root: Any, name: str, file: File, start: int, stop: int
) -> tuple[int, list[Any]]:
    """How many texts a dataset has along its only axis, and those of `[start, stop)`, as bytes.

    Texts of any length lie in heaps that only HDF5 itself can read: it reads them here, from the
    descriptor, and with no other filter than those that are decoded.

    Raises:
        UnsupportedError: more axes, or a filter that is not decoded.
        UnsafeError: links, other files, or chunks that take too much memory.
    """
    where = f"{file.path}, dataset {name!r}"
    dataset, plist = open_dataset(root, name, file.path)
    shape = tuple(int(n) for n in dataset.shape)
    if len(shape) != 1 or dataset.get_type().get_class() != h5py.h5t.STRING:
        raise UnsupportedError(f"{where} is no list of texts")
    if plist.get_layout() == h5py.h5d.CHUNKED:
        check_chunks(shape, plist.get_chunk(), dataset.dtype.itemsize, where)
        _filters(plist, dataset.dtype, where)
    texts = h5py.Dataset(dataset)[start : min(stop, shape[0])]
    return shape[0], [text.encode() if isinstance(text, str) else bytes(text) for text in texts]


def _array(
    where: str,
    stored: np.dtype[Any],
    shape: tuple[int, ...],
    chunk_shape: tuple[int, ...],
    lying: Any,
) -> ForeignArray:
    little = stored.newbyteorder("<")
    return ForeignArray(where, shape, little, chunk_shape, lying.load, lying.survey)


def _filters(plist: Any, stored: np.dtype[Any], where: str) -> tuple[Decoder, ...]:
    """The decoders of a dataset's filters, in the order in which they packed."""
    decoders = []
    for at in range(plist.get_nfilters()):
        number, _, values, called = plist.get_filter(at)
        name = FILTERS.get(number)
        if name is None:
            raise UnsupportedError(
                f"{where} has the filter {number} ({called!r:.60}); fostore decodes {sorted(FILTERS.values())}"
            )
        if name == "shuffle":
            if values and values[0] != stored.itemsize:
                raise FormatError(f"{where}: the shuffle filter has elements of {values[0]} bytes")
            decoders.append(codecs.shuffle(stored.itemsize))
        else:
            decoders.append(
                {"gzip": codecs.deflate, "lzf": codecs.lzf}.get(name, codecs.fletcher32)
            )
    return tuple(decoders)


def _table(dataset: Any, shape: tuple[int, ...], chunk_shape: tuple[int, ...], where: str) -> Array:
    """Where the chunks lie: uint64 (chunks, 4) of number in the grid, offset, size and mask, by number."""
    grid = [-(-size // chunk) for size, chunk in zip(shape, chunk_shape, strict=True)]
    count = dataset.get_num_chunks()
    most = min(MAX_CHUNKS, math.prod(grid))  # a crafted index may list one chunk over and over
    if count > most or math.prod(grid) >= 1 << 62:
        raise UnsafeError(f"{where} has {count:,} chunks, expected at most {most:,}")
    found: list[tuple[int, int, int, int]] = []

    def note(info: Any) -> None:
        number = 0
        for at, chunk, size in zip(info.chunk_offset, chunk_shape, grid, strict=True):
            if at // chunk >= size:
                return  # beyond the shape: nobody's rows
            number = number * size + at // chunk
        found.append((number, info.byte_offset, info.size, info.filter_mask))

    if count:
        dataset.chunk_iter(note)
    table = np.array(found, np.uint64).reshape(-1, 4)
    return table[np.unique(table[:, 0], return_index=True)[1]]


class _Flat:
    """A contiguous dataset, in pieces."""

    def __init__(
        self,
        file: File,
        where: str,
        stored: np.dtype[Any],
        shape: tuple[int, ...],
        chunk_shape: tuple[int, ...],
        offset: int | None,
    ) -> None:
        self._file, self._where, self._stored = file, where, stored
        self._shape, self._piece_rows = shape, chunk_shape[0]
        self._row_bytes = math.prod(shape[1:]) * stored.itemsize
        self._offset = offset
        end = (offset or 0) + shape[0] * self._row_bytes
        if offset is not None and end > file.size:
            raise UnsafeError(
                f"{where} claims bytes up to {end:,} of a file of {file.size:,} bytes"
            )

    def load(self, index: Index) -> Array:
        start = index[0] * self._piece_rows
        stop = min(start + self._piece_rows, self._shape[0])
        try:
            if self._offset is None:
                raise CodecError("it has no bytes in the file: nobody wrote it")
            size = (stop - start) * self._row_bytes
            data = self._file.read(self._offset + start * self._row_bytes, size)
        except CodecError as error:
            raise _damage(self._where, (start, stop), error) from error
        return _little(data, self._stored, (stop - start, *self._shape[1:]))

    def survey(self) -> Survey:
        pieces = -(-self._shape[0] // self._piece_rows) if self._offset is not None else 0
        present = np.zeros((pieces, len(self._shape)), np.int64)
        present[:, 0] = np.arange(pieces)
        return Survey(present)


class _Chunked:
    """A chunked dataset, whose chunks lie where `table` says."""

    def __init__(
        self,
        file: File,
        where: str,
        stored: np.dtype[Any],
        shape: tuple[int, ...],
        chunk_shape: tuple[int, ...],
        filters: Sequence[Decoder],
        table: Array,
    ) -> None:
        self._file, self._where, self._stored = file, where, stored
        self._shape, self._chunk_shape = shape, chunk_shape
        self._filters, self._table = filters, table
        self._grid = tuple(-(-n // m) for n, m in zip(shape, chunk_shape, strict=True))
        self._nbytes = math.prod(chunk_shape) * stored.itemsize

    def load(self, index: Index) -> Array:
        start = index[0] * self._chunk_shape[0]
        rows = start, min(start + self._chunk_shape[0], self._shape[0])
        number = int(np.ravel_multi_index(index, self._grid))
        at = int(np.searchsorted(self._table[:, 0], np.uint64(number)))
        try:
            if at == len(self._table) or int(self._table[at, 0]) != number:
                raise CodecError(f"its chunk {list(index)} is missing: nobody wrote it")
            _, offset, size, mask = map(int, self._table[at])
            filters = [f for bit, f in enumerate(self._filters) if not mask >> bit & 1]
            if size > (codecs.packed_limit(self._nbytes) if filters else self._nbytes):
                raise CodecError(f"its chunk {list(index)} has {size:,} bytes")
            data = codecs.unpack(self._file.read(offset, size), filters, self._nbytes)
        except CodecError as error:
            raise _damage(self._where, rows, error) from error
        return _little(data, self._stored, self._chunk_shape)

    def survey(self) -> Survey:
        numbers = self._table[:, 0].astype(np.int64)
        if not len(numbers):
            return Survey(np.empty((0, len(self._shape)), np.int64))
        problems: list[tuple[Range | None, str]] = []
        ends = self._table[:, 1] + self._table[:, 2]
        for number in numbers[ends > self._file.size].tolist():
            start = int(np.unravel_index(number, self._grid)[0]) * self._chunk_shape[0]
            rows = start, min(start + self._chunk_shape[0], self._shape[0])
            problems.append((rows, _damage(self._where, rows, CodecError("it was cut")).message))
        return Survey(np.stack(np.unravel_index(numbers, self._grid), axis=1), tuple(problems))


def _little(data: Any, stored: np.dtype[Any], shape: tuple[int, ...]) -> Array:
    rows: Array = np.frombuffer(data, stored).reshape(shape)
    return rows.astype(stored.newbyteorder("<"), copy=False)


def _damage(where: str, rows: Range, error: Exception) -> DamageError:
    return DamageError(f"{where} is damaged: {error} (rows {rows[0]} to {rows[1] - 1})", (rows,))
