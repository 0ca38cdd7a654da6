"""What an HDF5 store keeps beside its rows: records in two alternating slots (slots.py), and block hashes.

The truth about a store lies in its dataset `header`, so that replacing it is atomic at any length; what is committed
lies in `progress` in the same way. `fostore` and `meta` mirror the header for plain readers.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace

import numpy as np

from fostore import disk
from fostore.errors import DamageError
from fostore.formats import Run
from fostore.formats.hdf5 import slots
from fostore.places.place import File
from fostore.schema.row import Array

HEADER_MAGIC = b"FOheader"
RUNS_MAGIC = b"FOruns\x00\x01"
HEADER, PROGRESS, HASHES = "header", "progress", "block_hashes"
OFFSETS = "offsets"
"""Where the sequences of token rows begin, int64 (num_sequences + 1,); it counts once the store is sealed."""
MIRRORS = ("fostore", "meta")
MAX_SLOT = 256 << 20
_ATTEMPTS = 5
_FRONT_BYTES = 16 << 10


@dataclass(frozen=True, slots=True)
class Extent:
    """Where the bytes of a dataset lie; `offset` is 0 where it has none."""

    offset: int
    shape: tuple[int, ...]
    itemsize: int

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.itemsize


def read_hashes(file: File, extent: Extent, block_rows: int, start: int, stop: int) -> Array:
    """Block hashes as they lie, uint8 (blocks, hashed columns, 32), of the rows `[start, stop)`."""
    first, last = start // block_rows, -(-stop // block_rows)
    width = extent.shape[1] * extent.shape[2]
    data = file.read(extent.offset + first * width, (last - first) * width)
    # Of a file that was cut: zero is a hash that nobody knows, and the cut is told elsewhere.
    whole = data.ljust((last - first) * width, b"\0")
    return np.frombuffer(whole, np.uint8).reshape(last - first, *extent.shape[1:])


def read_slots(file: File, extent: Extent) -> tuple[bytes, bytes]:
    """Both slots of a dataset, each as far as its head says that it is used."""
    room = extent.shape[1]

    def read(offset: int) -> bytes:
        data = file.read(offset, min(room, _FRONT_BYTES))  # head and payload at once, of nearly all
        used = slots.payload_bytes(data) if len(data) >= slots.HEAD.size else 0
        used = used if used <= min(room - slots.HEAD.size, MAX_SLOT) else 0
        left = slots.HEAD.size + used - len(data)
        if left > 0 and len(data) == _FRONT_BYTES:
            data += file.read(offset + len(data), left)
        return data[: slots.HEAD.size + used]

    return read(extent.offset), read(extent.offset + room)


def read_record(file: File, extent: Extent, magic: bytes, where: str) -> slots.Record:
    """The newest valid record.

    Raises:
        DamageError: neither slot holds one, not even after a while (a writer may be at work on one).
    """
    return _newest(file, extent, magic, where)[0]


def read_runs(file: File, extent: Extent, num_samples: int) -> tuple[int, list[Run]]:
    """The sequence of the newest commit and its entries, with what the commit before says of the same runs.

    Raises:
        DamageError: neither slot holds one. FormatError: entries that no writer files.
    """
    where = f"{file}, dataset {PROGRESS!r}"
    record, pair = _newest(file, extent, RUNS_MAGIC, where)
    entries = slots.unpack_runs(record.payload, num_samples, where)
    before = slots.unpack(RUNS_MAGIC, 1 - record.slot, pair[1 - record.slot])
    # An older one says nothing of how these runs grew.
    if before is None or before.sequence != record.sequence - 1:
        return record.sequence, entries
    known = {run.start: run for run in slots.unpack_runs(before.payload, num_samples, where)}
    return record.sequence, [_with_earlier(run, known.get(run.start)) for run in entries]


def _newest(
    file: File, extent: Extent, magic: bytes, where: str
) -> tuple[slots.Record, tuple[bytes, bytes]]:
    for attempt in range(_ATTEMPTS):
        pair = read_slots(file, extent)
        record = slots.newest(magic, pair)
        if record is not None:
            return record, pair
        time.sleep(0.002 * attempt)
    raise DamageError(
        f"{where}: both slots are damaged, so what is committed is not known; restore the file from a copy"
    )


def _with_earlier(run: Run, before: Run | None) -> Run:
    if before is None or before.crc is None or run.crc is None or not before.stop < run.stop:
        return run
    return replace(run, earlier=((before.stop, before.crc),))


def write_record(fd: int, extent: Extent, magic: bytes, record: slots.Record) -> bool:
    """Write a record into its slot; False, and nothing written, where it does not fit. Not durable."""
    data = slots.pack(magic, record)
    if len(data) > extent.shape[1]:
        return False
    disk.write_at(fd, data, extent.offset + record.slot * extent.shape[1])
    return True
