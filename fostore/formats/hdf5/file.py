"""An HDF5 file as a store: what it says of itself and where its datasets lie, read as a stranger's.

h5py is at work only while a file is inspected or built, through `HDF5Stream` and never through a path. So a file that
was cut can still be read far enough to say which rows it lost.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import h5py
import numpy as np

from fostore.errors import (
    DamageError,
    FormatError,
    FostoreError,
    StoreNotFoundError,
    UnsafeError,
    UnsupportedError,
)
from fostore.formats import ONLY_OURS, OtherLayoutError
from fostore.formats.hdf5 import slots
from fostore.formats.hdf5.records import (
    HASHES,
    HEADER,
    HEADER_MAGIC,
    MAX_SLOT,
    MIRRORS,
    OFFSETS,
    PROGRESS,
    Extent,
    read_record,
)
from fostore.formats.hdf5.stream import HDF5Stream
from fostore.places.place import File, Place
from fostore.schema import digest, jsontext
from fostore.schema.header import MAX_TEXT, Header
from fostore.schema.row import TOKEN

_MAX_MEMBERS = 1000
_ADVICE = (
    "it may be damaged, or another kind of HDF5 file: fostore opens the stores that fostore wrote"
)
_UINT8 = np.dtype("u1")


@dataclass(frozen=True, slots=True)
class Mirror:
    """The JSON of the header as plain readers find it; `offset` is None where it cannot be located."""

    offset: int | None
    text: bytes


@dataclass(frozen=True, slots=True)
class Layout:
    """What an inspected file holds: its newest header and where its datasets lie.

    `foreign` names what fostore did not put there. `end` is where HDF5 says that the file ends.
    """

    header: Header
    header_sequence: int
    extents: Mapping[str, Extent]
    mirrors: Mapping[str, Mirror]
    foreign: tuple[str, ...]
    end: int

    @property
    def capacity(self) -> int:
        """How many entries a progress slot has room for."""
        return (self.extents[PROGRESS].shape[1] - slots.HEAD.size) // slots.ENTRY.size


def inspect(file: File) -> Layout:
    """Read what a file says of itself, without trusting it: only sizes and places, no rows.

    Raises:
        FormatError: not HDF5, or not a store; UnsupportedError or UnsafeError for what no store has.
        DamageError: the file was cut (names the rows), or both slots of the header are damaged.
    """
    size, end = file.size, _recorded_end(file)
    cut = f"{file} was cut: {size:,} bytes are there, {end:,} were written"
    try:
        # As long as it was: HDF5 refuses a shorter file before it says anything of what is left.
        with opened(file, max(size, end)) as root:
            layout = _inspect(file, root, end)
    except (FormatError, DamageError) as error:
        if size < end:
            raise DamageError(f"{cut}; restore it from a copy") from error
        raise
    if size < end:
        num_samples = layout.header.num_samples or 0
        left = [num_samples]
        for column in layout.header.schema.columns:
            left.append(max(size - layout.extents[column.name].offset, 0) // column.row_bytes)
        lost = (min(left), num_samples)
        raise DamageError(
            f"{cut}; rows {lost[0]} to {lost[1] - 1} are lost: restore it from a copy", rows=(lost,)
        )
    _check_extents(layout.extents, size, str(file))
    return layout


def _inspect(file: File, root: Any, end: int) -> Layout:
    path = str(file)
    count = root.get_num_objs()
    if count > _MAX_MEMBERS:
        raise FormatError(f"{path} has {count:,} members, a store has a handful; {_ADVICE}")
    names = [root.get_objname_by_idx(i).decode("utf-8", "backslashreplace") for i in range(count)]
    extents = {HEADER: _extent(root, HEADER, _UINT8, (2, None), path)}
    where = f"{path}, dataset {HEADER!r}"
    record = read_record(file, extents[HEADER], HEADER_MAGIC, where)
    if len(record.payload) > MAX_TEXT:
        raise UnsafeError(
            f"{where} takes {len(record.payload):,} bytes, expected at most {MAX_TEXT:,}"
        )
    header = Header.from_json(jsontext.loads(record.payload, where), where)
    if header.num_samples is None:
        raise FormatError(f"{where}: num_samples is null, which an HDF5 store cannot have")
    extents[PROGRESS] = _extent(root, PROGRESS, _UINT8, (2, None), path)
    hashes = (digest.num_blocks(header), len(digest.hashed_columns(header)), digest.HASH_BYTES)
    extents[HASHES] = _extent(root, HASHES, _UINT8, hashes, path)
    if header.num_sequences is not None:
        shape = (header.num_sequences + 1,)
        extents[OFFSETS] = _extent(root, OFFSETS, np.dtype("<i8"), shape, path)
    elif header.schema.row_axis == TOKEN:
        raise FormatError(f"{where}: num_sequences is null, which an HDF5 store cannot have")
    for column in header.schema.columns:
        if column.name in extents or column.name in MIRRORS:
            raise FormatError(f"{where}: a column has the reserved name {column.name!r}")
        row = column.lying
        rows_shape = (header.num_samples, *row.shape)
        extents[column.name] = _extent(root, column.name, row.dtype, rows_shape, path)
    mirrors = {}
    for name in MIRRORS:
        if name in names:
            extent = extents[name] = _extent(root, name, _UINT8, (None,), path)
            if extent.nbytes <= MAX_SLOT:
                mirrors[name] = Mirror(extent.offset, file.read(extent.offset, extent.nbytes))
        elif (text := _read_text(root, name, path)) is not None:
            # HDF5 does not tell where attributes lie; who writes them searches (`build.locate`).
            mirrors[name] = Mirror(-1, text)
    foreign = [name for name in names if name not in extents]
    attributes: list[bytes] = []

    def note(name: bytes) -> bool | None:
        attributes.append(name)
        return (
            len(attributes) == _MAX_MEMBERS or None
        )  # True ends it: a stranger's file may have any number

    h5py.h5a.iterate(root, note)
    for raw in attributes:
        name = raw.decode("utf-8", "backslashreplace")
        if name not in MIRRORS or name in extents:
            foreign.append(f"attribute {name}")
    return Layout(header, record.sequence, extents, mirrors, tuple(foreign), end)


def _extent(
    root: Any, name: str, dtype: np.dtype[Any], shape: tuple[int | None, ...], path: str
) -> Extent:
    """Where a dataset of the root lies, after everything was refused that is no plain run of bytes.

    None in `shape` stands for any size.

    Raises:
        OtherLayoutError: chunks, filters, another byte order, or bytes that begin at an odd place.
    """
    where = f"{path}, dataset {name!r}"
    dataset, plist = open_dataset(root, name, path)
    layout = plist.get_layout()
    if layout != h5py.h5d.CONTIGUOUS or plist.get_nfilters():
        names = {h5py.h5d.CHUNKED: "chunked", h5py.h5d.COMPACT: "compact"}
        how = names.get(layout, "unknown") + (" with filters" if plist.get_nfilters() else "")
        raise OtherLayoutError(f"{where} has the layout {how!r}, expected contiguous; {ONLY_OURS}")
    kind = dataset.get_type()
    if not kind.equal(type_of(dtype)):
        if kind.equal(type_of(dtype.newbyteorder(">"))):
            raise OtherLayoutError(f"{where} has another dtype, big-endian; {ONLY_OURS}")
        expected = (
            f"texts of {dtype.itemsize} bytes"
            if dtype.kind == "S"
            else f"{dtype.name}, little-endian"
        )
        raise UnsupportedError(f"{where} has another dtype than {expected}")
    lying = tuple(map(int, dataset.shape))
    fits = len(lying) == len(shape)
    if not fits or lying != tuple(
        [b if a is None else a for a, b in zip(shape, lying, strict=True)]
    ):
        sizes = tuple("any" if n is None else n for n in shape)
        raise FormatError(f"{where} has the shape {lying}, expected {sizes}")
    offset = int(dataset.get_offset() or 0)
    if offset % dtype.alignment:
        raise OtherLayoutError(
            f"{where} begins at byte {offset:,}, no multiple of {dtype.itemsize}; {ONLY_OURS}"
        )
    return Extent(offset, lying, dtype.itemsize)


@cache
def type_of(dtype: np.dtype[Any]) -> Any:
    """HDF5's type of numbers, or of texts of one width: UTF-8, padded with NUL. Not to be changed."""
    if dtype.kind != "S":
        return h5py.h5t.py_create(dtype)
    kind = h5py.h5t.C_S1.copy()
    kind.set_size(dtype.itemsize)
    kind.set_strpad(h5py.h5t.STR_NULLPAD)
    kind.set_cset(h5py.h5t.CSET_UTF8)
    return kind


def open_dataset(root: Any, name: str, path: str) -> tuple[Any, Any]:
    """A dataset of the root whose bytes all lie in this file, and how it was made; no link is followed.

    Raises:
        FormatError: there is none.
        UnsafeError: a link, external storage, or a virtual dataset.
    """
    where = f"{path}, dataset {name!r}"
    key = name.encode()
    # The low-level calls: `root[name]` would follow links on its way.
    if not root.links.exists(key):
        raise FormatError(f"{path} has no dataset {name!r}; {_ADVICE}")
    if root.links.get_info(key).type != h5py.h5l.TYPE_HARD:
        raise UnsafeError(f"{where} is a soft or external link, which is never followed")
    if h5py.h5o.get_info(root, key).type != h5py.h5o.TYPE_DATASET:
        raise FormatError(f"{where} is no dataset; {_ADVICE}")
    dataset = h5py.h5d.open(root, key)
    plist = dataset.get_create_plist()
    if plist.get_layout() == h5py.h5d.VIRTUAL or plist.get_external_count():
        raise UnsafeError(f"{where} takes its bytes from other files, which are never followed")
    return dataset, plist


def _read_text(root: Any, name: str, path: str) -> bytes | None:
    """The bytes of a fixed-length text attribute of the root; None where there is no such attribute."""
    if not h5py.h5a.exists(root, name.encode()):
        return None
    attribute = h5py.h5a.open(root, name.encode())
    kind = attribute.get_type()
    if kind.get_class() != h5py.h5t.STRING or kind.is_variable_str() or attribute.shape != ():
        raise UnsupportedError(f"{path}: attribute {name!r} is no single text of fixed length")
    if kind.get_size() > 1 << 16:
        raise UnsafeError(f"{path}: attribute {name!r} claims {kind.get_size():,} bytes")
    text = np.empty((), dtype=f"S{kind.get_size()}")
    attribute.read(text, mtype=kind)
    return text.tobytes()


def _check_extents(extents: Mapping[str, Extent], size: int, path: str) -> None:
    """Refuse datasets that reach beyond the file or lie on each other."""
    position, before = 0, ""
    for name, extent in sorted(extents.items(), key=lambda item: item[1].offset):
        nbytes = extent.nbytes
        if not nbytes:
            continue
        where = f"{path}, dataset {name!r}"
        if extent.offset + nbytes > size:
            raise UnsafeError(
                f"{where} claims bytes {extent.offset:,} to {extent.offset + nbytes:,} of a file "
                f"of {size:,} bytes"
            )
        if extent.offset < max(position, 1):
            raise UnsafeError(f"{where} lies on the bytes of {before or 'the superblock'!r}")
        position, before = extent.offset + nbytes, name


def _recorded_end(file: File) -> int:
    """Where the file ended when HDF5 wrote it (superblock version 0, as libver earliest has it, 2 or 3), else 0."""
    # Read here: the library says nothing of a file that it does not open.
    head = file.read(0, 48)
    if len(head) < 48 or head[:8] != b"\x89HDF\r\n\x1a\n":
        return 0
    at = {(0, head[13]): 40, (2, head[9]): 28, (3, head[9]): 28}.get((head[8], 8))
    return 0 if at is None else min(int.from_bytes(head[at : at + 8], "little"), 1 << 62)


@contextmanager
def opened(file: File, size: int) -> Iterator[Any]:
    """The root group; whatever h5py raises on the way becomes a FormatError."""
    stream = HDF5Stream(file, size)
    try:
        with h5py.File(stream, "r") as hdf5:
            yield h5py.h5g.open(hdf5.id, b"/")
    except FostoreError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # what the system says of the file; the library's own errors have no number
        if stream.error is None:
            raise FormatError(f"{file} cannot be read as HDF5 ({error}); {_ADVICE}") from error
    if isinstance(stream.error, UnsafeError):
        raise UnsafeError(f"{file} cannot be read as HDF5: {stream.error}; {_ADVICE}")
    if stream.error is not None:
        raise stream.error


def open_store(place: Place) -> File:
    """The file of a place, which is one.

    Raises:
        StoreNotFoundError, FormatError: there is none, or a folder, a pipe, a device.
    """
    try:
        return place.open()
    except FileNotFoundError as error:
        raise StoreNotFoundError(f"there is no store at {str(place)!r}") from error
    except UnsafeError as error:
        raise FormatError(f"{place} is not a file; an HDF5 store is one") from error


def open_whole(place: Place) -> File:
    """The HDF5 file of a place: it stays the file that was opened, and no handle of HDF5 is kept.

    Raises:
        DamageError: it was cut.
        StoreNotFoundError, FormatError: as `open_store` does.
    """
    file = open_store(place)
    size, end = file.size, _recorded_end(file)
    if size < end:
        file.close()
        raise DamageError(
            f"{file} was cut: {size:,} bytes are there, {end:,} were written; restore it from a copy"
        )
    return file


def holds_store(place: Place) -> bool:
    """Whether an HDF5 file says that it is a store; true where it cannot be read, for the store's reader to say why."""
    try:
        with closing(open_whole(place)) as file, opened(file, file.size) as root:
            marked = h5py.h5a.exists(root, MIRRORS[0].encode())
            return bool(marked or all(root.links.exists(n.encode()) for n in (HEADER, PROGRESS)))
    except StoreNotFoundError:
        return False
    except (FormatError, DamageError):
        return True
