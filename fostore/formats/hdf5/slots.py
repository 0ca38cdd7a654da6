"""One record kept in two alternating slots, so that a torn write costs the newest record and no more.

A record with the sequence number n lies in slot n % 2: writing one leaves the one before untouched.
A slot is a head {magic 8 bytes, sequence u64, length u64, crc32c u32, 0 u32}, little-endian, and `length`
bytes of payload; the crc32c covers head (with the crc as 0) and payload. What follows is undefined.
Pure functions on bytes; the HDF5 format keeps its header and its committed runs this way.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from fostore.errors import FormatError
from fostore.formats import Run
from fostore.schema import geometry
from fostore.schema.digest import checksum
from fostore.schema.ranges import Ranges

HEAD = struct.Struct("<8sQQII")
ENTRY = struct.Struct("<QQII")
"""A run: start u64, stop u64, crc32c u32, and 1 where there is a crc, else 0."""


@dataclass(frozen=True, slots=True)
class Record:
    """What a slot holds: the `sequence`, counted from 1, says which of two is newer."""

    sequence: int
    payload: bytes

    @property
    def slot(self) -> int:
        """The slot that this record belongs to, 0 or 1."""
        return self.sequence % 2


def pack(magic: bytes, record: Record) -> bytes:
    """The bytes of a slot; `magic` is 8 bytes that say what the payload is."""
    length = len(record.payload)
    crc = checksum(HEAD.pack(magic, record.sequence, length, 0, 0) + record.payload)
    return HEAD.pack(magic, record.sequence, length, crc, 0) + record.payload


def unpack(magic: bytes, slot: int, data: bytes) -> Record | None:
    """The record at the start of `data`, or None where it is torn, foreign or in the wrong slot."""
    if len(data) < HEAD.size:  # the file was cut
        return None
    opening, sequence, length, crc, zero = HEAD.unpack_from(data)
    # A record in the other slot is a copy that somebody made: its number could beat the newest one.
    if opening != magic or zero or sequence < 1 or sequence % 2 != slot:
        return None
    payload = bytes(data[HEAD.size : HEAD.size + length])
    if (
        len(payload) != length
        or checksum(HEAD.pack(magic, sequence, length, 0, 0) + payload) != crc
    ):
        return None
    return Record(sequence, payload)


def payload_bytes(head: bytes) -> int:
    """How many bytes of payload a head announces; what it says has not been checked."""
    return int(HEAD.unpack_from(head)[2])


def newest(magic: bytes, slots: Sequence[bytes]) -> Record | None:
    """The valid record with the highest sequence; None where both slots are damaged."""
    records = [unpack(magic, slot, data) for slot, data in enumerate(slots)]
    return max((r for r in records if r is not None), key=lambda r: r.sequence, default=None)


def pack_runs(runs: Iterable[Run]) -> bytes:
    """Runs, sorted, 24 bytes each; runs without a crc that touch become one entry."""
    entries: list[Run] = []
    for run in sorted(runs, key=lambda r: (r.start, r.stop)):
        last = entries[-1] if entries else None
        if last and last.crc is None and run.crc is None and run.start <= last.stop:
            entries[-1] = Run(last.start, max(last.stop, run.stop), None)
        else:
            entries.append(run)
    return b"".join(
        ENTRY.pack(run.start, run.stop, run.crc or 0, run.crc is not None) for run in entries
    )


def unpack_runs(payload: bytes, num_samples: int, where: str) -> list[Run]:
    """The entries as they lie; those without a crc may span several units.

    Raises:
        FormatError: an entry is cut, empty, or names rows that the store does not have.
    """
    if len(payload) % ENTRY.size:
        raise FormatError(
            f"{where}: {len(payload)} bytes of runs, which is no multiple of {ENTRY.size}"
        )
    runs = []
    for start, stop, crc, has_crc in ENTRY.iter_unpack(payload):
        if not start < stop <= num_samples or has_crc > 1:
            raise FormatError(
                f"{where}: a run holds rows {start} to {stop - 1} of a store with {num_samples} rows"
            )
        runs.append(Run(start, stop, crc if has_crc else None))
    return runs


def split_at_units(runs: Iterable[Run], unit_rows: int) -> Iterator[tuple[int, Run]]:
    """`(unit, run)` for every run, those without a crc cut at unit boundaries."""
    for run in runs:
        if run.crc is not None:
            yield run.start // unit_rows, run
            continue
        for unit, start, stop in geometry.split_at_units(run.start, run.stop, unit_rows):
            yield unit, Run(start, stop, None)


def sealed_and_open(
    entries: Sequence[Run],
    unit_rows: int,
    num_samples: int,
    *,
    short_unit: bool,
) -> tuple[Ranges, list[Run]]:
    """The rows of sealed units, and the runs of the others.

    A unit is sealed where runs without a crc cover it: they are recorded once its block hashes are
    durable, which hashes that lie there do not tell of themselves. The last unit counts only with
    `short_unit` where it is short: a writer may have to go on with it.
    """
    units: dict[int, list[Run]] = {}
    for unit, run in split_at_units(entries, unit_rows):
        units.setdefault(unit, []).append(run)
    sealed, open_runs = [], []
    for unit, runs in units.items():
        start, stop = geometry.unit_range(unit, unit_rows, num_samples)
        covered = Ranges.of(*((run.start, run.stop) for run in runs)).covers(start, stop)
        if (
            covered
            and (short_unit or stop - start == unit_rows)
            and all(run.crc is None for run in runs)
        ):
            sealed.append((start, stop))
        else:
            open_runs += runs
    return Ranges.of(*sealed), open_runs
