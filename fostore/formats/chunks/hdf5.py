"""HDF5 datasets in chunks and filters, decoded by fostore itself (spec/hdf5.md, other layouts).

h5py says where the chunks lie and which filters they went through, while the file is opened and never
later. Filters come from an allow-list, and HDF5 runs none on the file, so that no plugin can be loaded;
a chunk that is not there is damage: the fill value is never read.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import h5py
import numpy as np

from fostore.errors import DamageError, FormatError, UnsafeError, UnsupportedError
from fostore.formats.chunks import codecs
from fostore.formats.chunks.array import (
    ForeignArray,
    Index,
    Packed,
    Packing,
    Survey,
    check_chunks,
)
from fostore.formats.chunks.codecs import CodecError, Decoder
from fostore.formats.chunks.lzf import lzf
from fostore.formats.chunks.reader import ForeignReader, require_sealed
from fostore.formats.hdf5 import slots
from fostore.formats.hdf5.file import open_dataset, open_whole, opened
from fostore.formats.hdf5.records import HASHES, HEADER, HEADER_MAGIC
from fostore.places.place import File, Place
from fostore.schema import jsontext
from fostore.schema.header import Header
from fostore.schema.ranges import Range
from fostore.schema.row import Array

_SHUFFLE = 2
_FILTERS: dict[int, tuple[str, Decoder | None]] = {
    1: ("gzip", codecs.deflate),
    _SHUFFLE: ("shuffle", None),  # made for the size of an element
    3: ("fletcher32", codecs.fletcher32),
    32000: ("lzf", lzf),
}
"""The filters that are decoded, by HDF5's numbers; everything else is refused."""

_MAX_CHUNKS = 1 << 24
"""Chunks of one dataset: a record of 32 bytes is kept for each."""

_MAX_HEADER = 64 << 20
_PIECE_BYTES = 256 << 10
_KINDS = "fiu"
_WITHOUT_USER_BLOCK = (
    "copy what is in it to a file without one: with h5py.File(old) as a, h5py.File(new, 'w') as b: "
    "[a.copy(name, b) for name in a]"
)


def open_sealed(place: Place, why: Exception) -> ForeignReader:
    """The reader of a sealed store whose datasets lie in a way of their own.

    Args:
        place: the file.
        why: what is different about it, for the message where that is not allowed.

    Raises:
        UnsupportedError: it is not sealed, or has a filter outside the allow-list; names it.
        DamageError: it was cut, or its header is damaged.
        FormatError, UnsafeError: as `fostore.open` has it.
    """
    file = open_whole(place)
    try:
        with opened(file, file.size) as root:
            if h5py.h5i.get_file_id(root).get_create_plist().get_userblock():
                raise UnsupportedError(f"{file} has a user block; {_WITHOUT_USER_BLOCK}")
            header = _header(root, file)
            require_sealed(header, str(file), why)
            columns = [
                open_foreign_dataset(root, c.name, file, texts=c.layout is not None)
                for c in header.schema.columns
            ]
            hashes = open_foreign_dataset(root, HASHES, file)
        return ForeignReader(header, columns, hashes, file)
    except BaseException:
        file.close()
        raise


def _header(root: Any, file: File) -> Header:
    where = f"{file}, dataset {HEADER!r}"
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


def open_foreign_dataset(root: Any, name: str, file: File, *, texts: bool = False) -> ForeignArray:
    """A dataset of numbers of the root, after all that it asks for was checked; reads where its chunks lie.

    Args:
        root: the root group, open in h5py; not used any more when this has returned.
        name: the dataset.
        file: the file that the rows are read from.
        texts: whether texts of one width, padded with NUL, are expected instead of numbers.

    Raises:
        UnsupportedError: a filter, layout or dtype that is not decoded here; names it.
        UnsafeError: links, other files, or chunks that take too much memory.
        FormatError: no such dataset, or one that contradicts itself.
    """
    where = f"{file}, dataset {name!r}"
    dataset, plist = open_dataset(root, name, str(file))
    stored, kind = dataset.dtype, dataset.get_type()
    if texts:  # in ASCII as well, as h5py copies them
        plain = stored.kind == "S" and kind.get_strpad() == h5py.h5t.STR_NULLPAD
    else:
        plain = stored.kind in _KINDS and stored.itemsize <= 8
        plain = plain and kind.equal(h5py.h5t.py_create(stored))
    if not plain:
        expected = "texts of one width, padded with NUL" if texts else "plain numbers"
        raise UnsupportedError(f"{where} has the dtype {str(stored)!r:.80}, expected {expected}")
    shape = tuple(int(n) for n in dataset.shape)
    if not shape or not all(shape[1:]):
        raise FormatError(f"{where} has the shape {shape}, expected rows of numbers")
    decoders: tuple[Decoder, ...] = ()
    row_bytes = 0
    if plist.get_layout() == h5py.h5d.CONTIGUOUS:
        row_bytes = math.prod(shape[1:]) * stored.itemsize
        chunk_shape = (_piece_rows(row_bytes, shape[0]), *shape[1:])
        check_chunks(shape, chunk_shape, stored.itemsize, where)
        table = _flat_table(dataset.get_offset(), row_bytes, shape[0], chunk_shape[0], file, where)
    elif plist.get_layout() == h5py.h5d.CHUNKED:
        has_user_block = bool(h5py.h5i.get_file_id(root).get_create_plist().get_userblock())
        if has_user_block and h5py.version.hdf5_version_tuple < (2, 0, 0):
            # Older libraries name the places of chunks now with and now without the user block.
            raise UnsupportedError(f"{where} is chunked behind a user block; {_WITHOUT_USER_BLOCK}")
        chunk_shape = tuple(int(n) for n in plist.get_chunk())
        check_chunks(shape, chunk_shape, stored.itemsize, where)
        decoders = _filters(plist, stored, where)
        table = _table(dataset, _grid(shape, chunk_shape), chunk_shape, file, where)
    else:
        raise UnsupportedError(f"{where} has the layout 'compact', expected chunks or contiguous")
    packing = Packing(tuple(range(len(shape))), stored, decoders)
    container = _Dataset(where, _grid(shape, chunk_shape), table, row_bytes)
    read = partial(_read, file)
    return ForeignArray(where, shape, chunk_shape, packing, container, read)


def _read(file: File, name: str, start: int, stop: int) -> bytes:
    return file.read(start, stop - start)  # nothing in the file has a name


def _grid(shape: tuple[int, ...], chunk_shape: tuple[int, ...]) -> Index:
    """How many chunks stand along each axis."""
    return tuple(-(-size // chunk) for size, chunk in zip(shape, chunk_shape, strict=True))


def read_texts(root: Any, name: str, file: File, start: int, stop: int) -> list[bytes]:
    """The texts `[start, stop)` of a dataset of one axis, fewer where it ends.

    Texts of any length lie in heaps that only HDF5 itself can read: it reads them here, from the
    descriptor, and with no other filter than those that are decoded.

    Raises:
        UnsupportedError: more axes, or a filter that is not decoded.
        UnsafeError: links, other files, or chunks that take too much memory.
    """
    where = f"{file}, dataset {name!r}"
    dataset, plist = open_dataset(root, name, str(file))
    if len(dataset.shape) != 1 or dataset.get_type().get_class() != h5py.h5t.STRING:
        raise UnsupportedError(f"{where} is no list of texts")
    if plist.get_layout() == h5py.h5d.CHUNKED:
        check_chunks(dataset.shape, plist.get_chunk(), dataset.dtype.itemsize, where)
        _filters(plist, dataset.dtype, where)
    texts = h5py.Dataset(dataset)[start : min(stop, dataset.shape[0])]
    return [text.encode() if isinstance(text, str) else bytes(text) for text in texts]


def _filters(plist: Any, stored: np.dtype[Any], where: str) -> tuple[Decoder, ...]:
    """The decoders of a dataset's filters, in the order in which they packed."""
    decoders = []
    for at in range(plist.get_nfilters()):
        number, _, values, name = plist.get_filter(at)
        if number not in _FILTERS:
            names = sorted(name for name, _ in _FILTERS.values())
            raise UnsupportedError(
                f"{where} has the filter {number} ({name!r:.60}); fostore decodes {names}"
            )
        if number == _SHUFFLE and values and values[0] != stored.itemsize:
            raise FormatError(f"{where}: the shuffle filter has elements of {values[0]} bytes")
        decoders.append(_FILTERS[number][1] or codecs.shuffle(stored.itemsize))
    return tuple(decoders)


def _piece_rows(row_bytes: int, num_rows: int) -> int:
    """Rows that are read together where there are no chunks: few bytes, but no more than a million pieces."""
    nbytes = max(_PIECE_BYTES, row_bytes * num_rows >> 20)
    return max(min(nbytes // max(row_bytes, 1), num_rows), 1)


def _flat_table(
    offset: int | None, row_bytes: int, num_rows: int, piece_rows: int, file: File, where: str
) -> Array:
    """Where the pieces of a contiguous dataset lie, as `_table`; none where it has no bytes in the file."""
    if offset is None:
        return np.empty((0, 4), np.uint64)
    end = offset + num_rows * row_bytes
    if end > file.size:
        raise UnsafeError(f"{where} claims bytes up to {end:,} of a file of {file.size:,} bytes")
    starts = np.arange(0, num_rows, piece_rows, dtype=np.int64)
    sizes = np.minimum(num_rows - starts, piece_rows) * row_bytes
    numbers = np.arange(len(starts))
    table = [numbers, offset + starts * row_bytes, sizes, np.zeros_like(starts)]
    return np.stack(table, axis=1).astype(np.uint64)


def _table(
    dataset: Any, grid: Index, chunk_shape: tuple[int, ...], file: File, where: str
) -> Array:
    """Where the chunks lie: uint64 (chunks, 4) of number in the grid, offset, size and mask, by number.

    One that lies beyond the end of the file, or of the shape, is nobody's.
    """
    count = dataset.get_num_chunks()
    most = min(_MAX_CHUNKS, math.prod(grid))  # a crafted index may list one chunk over and over
    if count > most or math.prod(grid) >= 1 << 62:
        raise UnsafeError(f"{where} has {count:,} chunks, expected at most {most:,}")
    chunks: list[tuple[int, int, int, int]] = []

    def note(info: Any) -> None:
        number, is_inside = 0, info.byte_offset + info.size <= file.size
        for offset, size, length in zip(info.chunk_offset, chunk_shape, grid, strict=True):
            is_inside &= offset // size < length
            number = number * length + offset // size
        if is_inside:
            chunks.append((number, info.byte_offset, info.size, info.filter_mask))

    if count:
        dataset.chunk_iter(note)
    table = np.array(chunks, np.uint64).reshape(-1, 4)
    return table[np.unique(table[:, 0], return_index=True)[1]]


@dataclass(frozen=True, slots=True)
class _Dataset:
    """A container whose chunks lie where `table` says; `row_bytes` where its last one ends with the rows, else 0."""

    name: str
    grid: Index
    table: Array
    row_bytes: int

    def where(self, index: Index) -> str:
        return self.name

    def locate(self, index: Index) -> Packed:
        number = int(np.ravel_multi_index(index, self.grid))
        at = int(np.searchsorted(self.table[:, 0], np.uint64(number)))
        if at == len(self.table) or int(self.table[at, 0]) != number:
            raise CodecError(f"its chunk {list(index)} is missing: nobody wrote it")
        _, start, size, mask = map(int, self.table[at])
        return Packed("", start, size, mask, size // self.row_bytes if self.row_bytes else None)

    def survey(self, rows_of: Callable[[Index], Range]) -> Survey:
        return np.stack(np.unravel_index(self.table[:, 0].astype(np.int64), self.grid), axis=1), ()
