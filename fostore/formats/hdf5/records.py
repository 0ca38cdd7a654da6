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
from fostore.schema.header import Header
from fostore.schema.row import Array

HEADER_MAGIC = b"FOheader"
RUNS_MAGIC = b"FOruns\x00\x01"
HEADER, PROGRESS, HASHES = "header", "progress", "block_hashes"
MIRRORS = ("fostore", "meta")
MAX_SLOT = 256 << 20
_ATTEMPTS = 5


@dataclass(frozen=True, slots=True)
class Extent:
    """Where the bytes of a dataset lie; `offset` is 0 where it has none."""

    offset: int
    shape: tuple[int, ...]
    itemsize: int

    @property
    def nbytes(self) -> int:
        """The bytes of all elements."""
        return math.prod(self.shape) * self.itemsize


def num_blocks(header: Header) -> int:
    """How many blocks the planned rows make."""
    return -(-(header.num_samples or 0) // header.block_rows)


def num_hashed(header: Header) -> int:
    """How many columns have block hashes."""
    return sum(column.hashed for column in header.schema.columns)


def read_hashes(file: File, extent: Extent, block_rows: int, start: int, stop: int) -> Array:
    """Block hashes as they lie, uint8 (blocks, hashed columns, 32), of the rows `[start, stop)`."""
    first, last = start // block_rows, -(-stop // block_rows)
    width = extent.shape[1] * extent.shape[2]
    data = file.read(extent.offset + first * width, (last - first) * width)
    whole = data.ljust((last - first) * width, b"\0")
    return np.frombuffer(whole, np.uint8).reshape(last - first, *extent.shape[1:])


def read_slots(file: File, extent: Extent) -> tuple[bytes, bytes]:
    """Both slots of a dataset, each as far as its head says that it is used."""
    room = extent.shape[1]

    def read(offset: int) -> bytes:
        head = file.read(offset, slots.HEAD.size)
        used = slots.payload_bytes(head) if len(head) == slots.HEAD.size else 0
        used = used if used <= min(room - slots.HEAD.size, MAX_SLOT) else 0
        return head + file.read(offset + slots.HEAD.size, used)

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
