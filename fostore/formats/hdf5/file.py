"""An HDF5 file as a store: what it says of itself and where its datasets lie, read as a stranger's.

h5py is at work only while a file is inspected or built, through `HDF5Stream` and never through a path. So a file that
was cut can still be read far enough to say which rows it lost.

The truth about a store lies in its dataset `header`, in two alternating slots (slots.py), so that replacing it is
atomic at any length; what is committed lies in `progress` in the same way. `fostore` and `meta` mirror the header.
"""

from __future__ import annotations

import math
import os
import stat
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from fostore import disk
from fostore.errors import (
    DamageError,
    FormatError,
    FostoreError,
    StoreNotFoundError,
    UnsafeError,
    UnsupportedError,
)
from fostore.formats import OtherLayoutError, Run
from fostore.formats.hdf5 import slots
from fostore.formats.hdf5.stream import HDF5Stream
from fostore.schema import jsontext
from fostore.schema.header import MAX_TEXT, Header
from fostore.schema.ranges import Ranges
from fostore.schema.row import Array

HEADER_MAGIC = b"FOheader"
RUNS_MAGIC = b"FOruns\x00\x01"
HEADER, PROGRESS, HASHES = "header", "progress", "block_hashes"
MIRRORS = ("fostore", "meta")

_ONLY_OURS = (
    "only a sealed store may lie so, and none can be written to: copy its rows to a new one"
)
_MAX_SLOT = 256 << 20
_MAX_MEMBERS = 1000
_ADVICE = (
    "it may be damaged, or another kind of HDF5 file: fostore opens the stores that fostore wrote"
)


@dataclass(frozen=True, slots=True)
class Place:
    """Where the bytes of a dataset lie; `offset` is 0 where it has none."""

    offset: int
    shape: tuple[int, ...]
    itemsize: int

    @property
    def nbytes(self) -> int:
        """The bytes of all elements."""
        return math.prod(self.shape) * self.itemsize


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
    places: Mapping[str, Place]
    mirrors: Mapping[str, Mirror]
    foreign: tuple[str, ...]
    end: int

    @property
    def capacity(self) -> int:
        """How many entries a progress slot has room for."""
        return (self.places[PROGRESS].shape[1] - slots.HEAD.size) // slots.ENTRY.size


def num_blocks(header: Header) -> int:
    """How many blocks the planned rows make."""
    return -(-(header.num_samples or 0) // header.block_rows)


def num_hashed(header: Header) -> int:
    """How many columns have block hashes."""
    return sum(column.hashed for column in header.schema.columns)


def read_hashes(fd: int, layout: Layout, start: int, stop: int) -> Array:
    """Block hashes as they lie, uint8 (blocks, hashed columns, 32), of the rows `[start, stop)`."""
    place, size = layout.places[HASHES], layout.header.block_rows
    first, last = start // size, -(-stop // size)
    width = place.shape[1] * place.shape[2]
    data = disk.read_at(fd, place.offset + first * width, (last - first) * width)
    whole = bytes(data).ljust((last - first) * width, b"\0")
    return np.frombuffer(whole, np.uint8).reshape(last - first, *place.shape[1:])


def sealed_and_open(
    header: Header, entries: Sequence[Run], *, short_unit: bool
) -> tuple[Ranges, list[Run]]:
    """The rows of sealed units, and the runs of the others; see `slots.sealed_and_open`."""
    rows = header.num_samples or 0
    return slots.sealed_and_open(entries, header.unit_rows, rows, short_unit=short_unit)


def read_slots(fd: int, place: Place) -> tuple[bytes, bytes]:
    """Both slots of a dataset, each as far as its head says that it is used."""
    room = place.shape[1]
    found = []
    for slot in (0, 1):
        offset = place.offset + slot * room
        head = disk.read_at(fd, offset, slots.HEAD.size)
        used = slots.payload_bytes(head) if len(head) == slots.HEAD.size else 0
        used = used if used <= min(room - slots.HEAD.size, _MAX_SLOT) else 0
        found.append(bytes(head + disk.read_at(fd, offset + slots.HEAD.size, used)))
    return found[0], found[1]


def read_record(fd: int, place: Place, magic: bytes, where: str) -> slots.Record:
    """The newest valid record.

    Raises:
        DamageError: neither slot holds one, not even after a while (a writer may be at work on one).
    """
    for attempt in range(5):
        record = slots.newest(magic, read_slots(fd, place))
        if record is not None:
            return record
        time.sleep(0.002 * attempt)
    raise DamageError(
        f"{where}: both slots are damaged, so what is committed is not known; restore the file from a copy"
    )


def read_runs(fd: int, layout: Layout, path: Path) -> tuple[int, list[Run]]:
    """The sequence of the newest commit and its entries, with what the commit before says of the same runs.

    Raises:
        DamageError: neither slot holds one. FormatError: entries that no writer files.
    """
    place, num_samples = layout.places[PROGRESS], layout.header.num_samples or 0
    where = f"{path}, dataset 'progress'"
    record = read_record(fd, place, RUNS_MAGIC, where)
    entries = slots.unpack_runs(record.payload, num_samples, where)
    before = slots.unpack(RUNS_MAGIC, 1 - record.slot, read_slots(fd, place)[1 - record.slot])
    if before is None or before.sequence != record.sequence - 1:
        return record.sequence, entries
    known = {run.start: run for run in slots.unpack_runs(before.payload, num_samples, where)}
    return record.sequence, [_with_earlier(run, known.get(run.start)) for run in entries]


def _with_earlier(run: Run, before: Run | None) -> Run:
    if before is None or before.crc is None or run.crc is None or not before.stop < run.stop:
        return run
    return replace(run, earlier=((before.stop, before.crc),))


def write_record(fd: int, place: Place, magic: bytes, record: slots.Record) -> bool:
    """Write a record into its slot; False, and nothing written, where it does not fit. Not durable."""
    data = slots.pack(magic, record)
    if len(data) > place.shape[1]:
        return False
    disk.write_at(fd, data, place.offset + record.slot * place.shape[1])
    return True


def inspect(fd: int, path: Path) -> Layout:
    """Read what a file says of itself, without trusting it: only sizes and places, no rows.

    Raises:
        FormatError: not HDF5, or not a store; UnsupportedError or UnsafeError for what no store has.
        DamageError: the file was cut (names the rows), or both slots of the header are damaged.
    """
    size = os.fstat(fd).st_size
    end = recorded_end(fd)
    cut = f"{path} was cut: {size:,} bytes are there, {end:,} were written"
    try:
        with opened(fd, max(size, end), path) as root:
            layout = _inspect(fd, root, path, end)
    except (FormatError, DamageError) as error:
        if size < end:
            raise DamageError(f"{cut}; restore it from a copy") from error
        raise
    if size < end:
        num_samples = layout.header.num_samples or 0
        left = [num_samples]
        for column in layout.header.schema.columns:
            left.append(max(size - layout.places[column.name].offset, 0) // column.row_bytes)
        lost = (min(left), num_samples)
        raise DamageError(
            f"{cut}; rows {lost[0]} to {lost[1] - 1} are lost: restore it from a copy", rows=(lost,)
        )
    check_places(layout.places, size, path)
    return layout


def _inspect(fd: int, root: Any, path: Path, end: int) -> Layout:
    count = root.get_num_objs()
    if count > _MAX_MEMBERS:
        raise FormatError(f"{path} has {count:,} members, a store has a handful; {_ADVICE}")
    names = [root.get_objname_by_idx(i).decode("utf-8", "backslashreplace") for i in range(count)]
    uint8 = np.dtype("u1")
    places = {HEADER: _place(root, HEADER, uint8, (2, None), path)}
    record = read_record(fd, places[HEADER], HEADER_MAGIC, f"{path}, dataset 'header'")
    where = f"{path}, dataset 'header'"
    if len(record.payload) > MAX_TEXT:
        raise UnsafeError(
            f"{where} takes {len(record.payload):,} bytes, expected at most {MAX_TEXT:,}"
        )
    header = Header.from_json(jsontext.loads(record.payload, where), where)
    if header.num_samples is None:
        raise FormatError(f"{where}: num_samples is null, which an HDF5 store cannot have")
    places[PROGRESS] = _place(root, PROGRESS, uint8, (2, None), path)
    hashes = (num_blocks(header), num_hashed(header), 32)
    places[HASHES] = _place(root, HASHES, uint8, hashes, path)
    for column in header.schema.columns:
        if column.name in places or column.name in MIRRORS:
            raise FormatError(f"{where}: a column has the reserved name {column.name!r}")
        shape = (header.num_samples, *column.shape)
        places[column.name] = _place(root, column.name, column.numpy_dtype, shape, path)
    for name in MIRRORS:
        if name in names:
            places[name] = _place(root, name, uint8, (None,), path)
    mirrors = {}
    for name in MIRRORS:
        text = None if name in places else _read_text(root, name, path)
        if text is not None:
            mirrors[name] = Mirror(-1, text)
        elif name in places and places[name].nbytes <= _MAX_SLOT:
            place = places[name]
            mirrors[name] = Mirror(
                place.offset, bytes(disk.read_at(fd, place.offset, place.nbytes))
            )
    foreign = [name for name in names if name not in places]
    num_attributes = h5py.h5a.get_num_attrs(root)
    for i in range(min(num_attributes, _MAX_MEMBERS)):
        name = h5py.h5a.open(root, index=i).name.decode("utf-8", "backslashreplace")
        if name not in MIRRORS or name in places:
            foreign.append(f"attribute {name}")
    return Layout(header, record.sequence, places, mirrors, tuple(foreign), end)


def _place(
    root: Any, name: str, dtype: np.dtype[Any], shape: tuple[int | None, ...], path: Path
) -> Place:
    """The place of a dataset of the root, after everything was refused that is no plain run of bytes.

    None in `shape` stands for any size.

    Raises:
        OtherLayoutError: chunks, filters, another byte order, or bytes that begin at an odd place.
    """
    where = f"{path}, dataset {name!r}"
    dataset = open_dataset(root, name, path)
    plist = dataset.get_create_plist()
    layout = plist.get_layout()
    if layout != h5py.h5d.CONTIGUOUS or plist.get_nfilters():
        names = {h5py.h5d.CHUNKED: "chunked", h5py.h5d.COMPACT: "compact"}
        how = names.get(layout, "unknown") + (" with filters" if plist.get_nfilters() else "")
        raise OtherLayoutError(f"{where} has the layout {how!r}, expected contiguous; {_ONLY_OURS}")
    kind = dataset.get_type()
    if not kind.equal(h5py.h5t.py_create(dtype)):
        if kind.equal(h5py.h5t.py_create(dtype.newbyteorder(">"))):
            raise OtherLayoutError(f"{where} has another dtype, big-endian; {_ONLY_OURS}")
        raise UnsupportedError(f"{where} has another dtype than {dtype.name}, little-endian")
    found = tuple(int(n) for n in dataset.shape)
    fits = len(found) == len(shape) and all(
        w in (n, None) for n, w in zip(found, shape, strict=True)
    )
    if not fits:
        wanted = tuple("any" if n is None else n for n in shape)
        raise FormatError(f"{where} has the shape {found}, expected {wanted}")
    offset = int(dataset.get_offset() or 0)
    if offset % dtype.itemsize:
        raise OtherLayoutError(
            f"{where} begins at byte {offset:,}, no multiple of {dtype.itemsize}; {_ONLY_OURS}"
        )
    return Place(offset, found, dtype.itemsize)


def open_dataset(root: Any, name: str, path: Path) -> Any:
    """A dataset of the root whose bytes all lie in this file; no link is followed.

    Raises:
        FormatError: there is none.
        UnsafeError: a link, external storage, or a virtual dataset.
    """
    where = f"{path}, dataset {name!r}"
    key = name.encode()
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
    return dataset


def _read_text(root: Any, name: str, path: Path) -> bytes | None:
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


def check_places(places: Mapping[str, Place], size: int, path: Path) -> None:
    """Refuse datasets that reach beyond the file or lie on each other."""
    position, before = 0, ""
    for name, place in sorted(places.items(), key=lambda item: item[1].offset):
        if not place.nbytes:
            continue
        where = f"{path}, dataset {name!r}"
        if place.offset + place.nbytes > size:
            raise UnsafeError(
                f"{where} claims bytes {place.offset:,} to {place.offset + place.nbytes:,} of a file "
                f"of {size:,} bytes"
            )
        if place.offset < max(position, 1):
            raise UnsafeError(f"{where} lies on the bytes of {before or 'the superblock'!r}")
        position, before = place.offset + place.nbytes, name


def recorded_end(fd: int) -> int:
    """Where the file ended when HDF5 wrote it (superblock version 0, as libver earliest has it, 2 or 3), else 0."""
    head = disk.read_at(fd, 0, 48)
    if len(head) < 48 or head[:8] != b"\x89HDF\r\n\x1a\n":
        return 0
    at = {(0, head[13]): 40, (2, head[9]): 28, (3, head[9]): 28}.get((head[8], 8))
    return 0 if at is None else min(int.from_bytes(head[at : at + 8], "little"), 1 << 62)


@contextmanager
def opened(fd: int, size: int, path: Path) -> Iterator[Any]:
    """The root group; whatever h5py raises on the way becomes a FormatError."""
    file = HDF5Stream(fd, size)
    try:
        with h5py.File(file, "r") as hdf5:
            yield h5py.h5g.open(hdf5.id, b"/")
    except FostoreError:
        raise
    except Exception as error:
        if file.error is None:
            raise FormatError(f"{path} cannot be read as HDF5 ({error}); {_ADVICE}") from error
    if isinstance(file.error, UnsafeError):
        raise UnsafeError(f"{path} cannot be read as HDF5: {file.error}; {_ADVICE}")
    if file.error is not None:
        raise file.error


def open_store(path: Path, *, write: bool = False) -> int:
    """A descriptor of the regular file at `path`, links resolved before by the caller."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # opening a pipe would wait for its other end
            raise FormatError(f"{path} is not a file; an HDF5 store is one")
        return disk.open_file(path, write=write)
    except FileNotFoundError as error:
        raise StoreNotFoundError(f"there is no store at {str(path)!r}") from error
