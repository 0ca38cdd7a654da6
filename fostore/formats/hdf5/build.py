"""How an HDF5 store is built, and how its JSON for plain readers is kept up to date.

The mirrors are the root's `fostore` and `meta`: attributes, or uint8 datasets where they are longer than HDF5's
old object headers take. They are JSON, padded with spaces to the room that they have, and are rewritten in place
after the header's record is durable (hdf5_file.py). What changes when a run ends comes first in `fostore`, inside
one disk sector: where nothing else changes, as at the end of a run, not even a power cut shows a plain reader half.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from fostore import disk
from fostore.errors import ArgumentError
from fostore.formats import Run
from fostore.formats.hdf5 import slots
from fostore.formats.hdf5.file import Layout, Mirror, inspect, type_of
from fostore.formats.hdf5.records import (
    HASHES,
    HEADER,
    HEADER_MAGIC,
    MIRRORS,
    OFFSETS,
    PROGRESS,
    RUNS_MAGIC,
    Extent,
    write_record,
)
from fostore.formats.hdf5.stream import HDF5Stream
from fostore.places.local import LocalFile
from fostore.schema import digest, jsontext
from fostore.schema.header import CHECKSUM, Header

PAGE = 4096
_MAX_ATTRIBUTE = 60_000
"""Bytes: object headers of libver earliest take messages of less than 64 kB."""
_SPARE_RUNS = 64
_INT64 = np.dtype("<i8")

_SECTOR = 512
_STATE = ("sealed", "digest", "updated", CHECKSUM)
_STATE_BYTES = 256  # room for them; half a sector, so that it can be kept inside one
_SPARE_BYTES = 6000  # an identity or metadata may come later; beyond, the file is made anew
_MAX_SEARCH = 64 << 20


def build(fd: int, header: Header, runs: slots.Record, path: Path) -> Layout:
    """Make a whole, empty store in the empty file `fd`: datasets allocated, slots and mirrors written.

    Args:
        fd: open for writing.
        header: with `num_samples`.
        runs: the first record of the progress slots.
        path: names the file in messages.

    Raises:
        ArgumentError: a column has a name that the format needs for itself.
        SpaceError: the disk cannot hold the file. What was built is of no use then.
    """
    taken = {HEADER, PROGRESS, HASHES, OFFSETS, *MIRRORS} & {
        column.name for column in header.schema.columns
    }
    if taken:
        raise ArgumentError(
            f"HDF5 stores need the name {min(taken)!r} for themselves; rename the column"
        )
    num_samples = header.num_samples or 0
    disk.require_free(path, sum(header.schema.row_bytes) * num_samples)
    first = header_record(header, 1)
    header_room = _pages(slots.HEAD.size + 2 * len(first.payload) + _SPARE_BYTES)
    units = -(-num_samples // header.unit_rows)
    runs_room = _pages(slots.HEAD.size + slots.ENTRY.size * (units + _SPARE_RUNS))
    texts = _mirror_texts(header)
    rooms = {name: len(text) * 3 // 2 + _SPARE_BYTES for name, text in texts.items()}
    short = [name for name, text in texts.items() if len(text) + _SECTOR <= _MAX_ATTRIBUTE]

    uint8 = np.dtype("u1")
    datasets: dict[str, tuple[tuple[int, ...], np.dtype[Any]]] = {
        HEADER: ((2, header_room), uint8),
        PROGRESS: ((2, runs_room), uint8),
        HASHES: ((digest.num_blocks(header), len(digest.hashed_columns(header)), 32), uint8),
        **(
            {} if header.num_sequences is None else {OFFSETS: ((header.num_sequences + 1,), _INT64)}
        ),
        **{name: ((rooms[name],), uint8) for name in MIRRORS if name not in short},
        **{c.name: ((num_samples, *c.lying.shape), c.lying.dtype) for c in header.schema.columns},
    }
    with _writing(
        fd, "w"
    ) as hdf5:  # everything that describes comes first in the file, close together
        for name in short:
            _write_text(hdf5.id, name, texts[name].ljust(min(rooms[name], _MAX_ATTRIBUTE)))
        for name, (shape, dtype) in datasets.items():
            _describe(hdf5, name, shape, dtype)
        for column in header.schema.columns:
            axes = [axis.encode() for axis in (header.schema.row_axis, *column.lying.axes)]
            hdf5[column.name].attrs.create("axes", np.array(axes, dtype=f"S{max(map(len, axes))}"))
    with _writing(fd, "r+", alignment_threshold=1, alignment_interval=PAGE) as hdf5:
        for name, (shape, _) in datasets.items():
            if 0 not in shape:
                # The first write gives the dataset its place.
                hdf5[name][(0,) * len(shape)] = b"" if hdf5[name].dtype.kind == "S" else 0
        offsets = {name: hdf5[name].id.get_offset() for name in (HEADER, PROGRESS)}
    write_record(fd, Extent(offsets[HEADER], (2, header_room), 1), HEADER_MAGIC, first)
    write_record(fd, Extent(offsets[PROGRESS], (2, runs_room), 1), RUNS_MAGIC, runs)
    disk.allocate(fd, 0, os.fstat(fd).st_size)
    layout = inspect(LocalFile(path, fd, owned=False))
    for offset, data in plan_mirrors(fd, layout, header) or ():
        disk.write_at(fd, data, offset)
    return layout


def make(
    path: Path,
    header: Header,
    runs: Sequence[Run],
    fill: Callable[[int, Layout], None] | None = None,
) -> int:
    """Build a file beside `path`, fill it, and move it to `path` at once; its descriptor."""
    temporary = disk.unfinished(path)
    disk.remove(temporary)
    fd = disk.open_file(temporary, write=True, create=True)
    try:
        layout = build(fd, header, slots.Record(1, slots.pack_runs(runs)), path)
        if fill is not None:
            fill(fd, layout)
        disk.sync_data(fd)
        disk.rename(temporary, path)
    except BaseException:
        os.close(fd)
        with suppress(OSError):
            disk.remove(temporary)
        raise
    return fd


def _pages(size: int) -> int:
    return -(-size // PAGE) * PAGE


@contextmanager
def _writing(fd: int, mode: str, **settings: int) -> Iterator[Any]:
    """h5py on the file, all of whose writes go through `fostore.disk`; their errors come out as they are."""
    file = HDF5Stream(LocalFile("", fd, owned=False), os.fstat(fd).st_size)
    try:
        with h5py.File(file, mode, libver="earliest", track_order=False, **settings) as hdf5:
            yield hdf5
    except Exception:
        if file.error is None:
            raise
    if file.error is not None:
        raise file.error


def _describe(hdf5: Any, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    """A contiguous dataset that has no place in the file yet."""
    plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plist.set_layout(h5py.h5d.CONTIGUOUS)
    plist.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    plist.set_obj_track_times(False)
    space = h5py.h5s.create_simple(shape)
    h5py.h5d.create(hdf5.id, name.encode(), type_of(dtype), space, plist)


def _write_text(parent: Any, name: str, text: bytes) -> None:
    kind = type_of(np.dtype(f"S{len(text)}"))
    attribute = h5py.h5a.create(parent, name.encode(), kind, h5py.h5s.create(h5py.h5s.SCALAR))
    attribute.write(np.array(text, dtype=f"S{len(text)}"), mtype=kind)


def header_record(header: Header, sequence: int) -> slots.Record:
    """The record that holds a header."""
    return slots.Record(sequence, jsontext.dumps(header.to_json()))


def _mirror_texts(header: Header) -> dict[str, bytes]:
    """The JSON of the mirrors: the state of the run first, in a fixed number of bytes."""
    attributes = header.to_json()
    fostore = attributes["fostore"]
    state = {key: fostore.pop(key) for key in _STATE if key in fostore}
    first = (jsontext.dumps(state)[:-1] + b", ").ljust(_STATE_BYTES)
    return {
        "fostore": first + jsontext.dumps(fostore)[1:],
        "meta": jsontext.dumps(attributes["meta"]),
    }


def plan_mirrors(fd: int, layout: Layout, header: Header) -> list[tuple[int, bytes]] | None:
    """The writes `(offset, bytes)` that bring the mirrors up to `header`; None where that takes a new file.

    There is none for a mirror that says it already.
    """
    changes = []
    mirrors = locate(fd, layout).mirrors
    for name, text in _mirror_texts(header).items():
        mirror = mirrors.get(name)
        if mirror is None or mirror.offset is None:
            return None
        inside = mirror.offset % _SECTOR
        lead = -inside % _SECTOR if inside + _STATE_BYTES > _SECTOR else 0
        data = (b" " * lead + text).ljust(len(mirror.text))
        if len(data) > len(mirror.text):
            return None
        if data != mirror.text:
            changes.append((mirror.offset, data))
    return changes


def locate(fd: int, layout: Layout) -> Layout:
    """The layout with the place of every mirror: HDF5 tells it for datasets, attributes are searched for.

    The search goes over all bytes outside the datasets; a text that is not there exactly once (HDF5 may leave an
    old copy behind when somebody edits attributes) has no place, and changing it takes a new file.
    """
    if all(mirror.offset != -1 for mirror in layout.mirrors.values()):
        return layout
    position, gaps = 0, []
    extents = sorted((p.offset, p.offset + p.nbytes) for p in layout.extents.values() if p.nbytes)
    for start, stop in [*extents, (os.fstat(fd).st_size, 0)]:
        gaps.append((position, max(start - position, 0)))
        position = max(position, stop)
    located = {}
    small = sum(size for _, size in gaps) <= _MAX_SEARCH
    pieces = [(start, disk.read_at(fd, start, size)) for start, size in gaps] if small else []
    for name, mirror in layout.mirrors.items():
        if mirror.offset != -1:
            located[name] = mirror
            continue
        hits = [(start, piece) for start, piece in pieces if mirror.text in piece]
        once = len(hits) == 1 and hits[0][1].count(mirror.text) == 1
        offset = hits[0][0] + hits[0][1].find(mirror.text) if once else None
        located[name] = Mirror(offset, mirror.text)
    return replace(layout, mirrors=located)
