"""The journal of a Zarr store in progress: which rows are committed, as bytes and back (spec/integrity.md).

A header of 128 bytes, then records of 40 bytes that are only ever appended. A commit is one or more
records that share a sequence number and count down; it holds when all of them are there. Pure: no files.
"""

from __future__ import annotations

import json
import struct
from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass, replace
from uuid import UUID

from fostore.errors import ArgumentError, DamageError, FormatError, UnsupportedError
from fostore.formats import Run
from fostore.schema.digest import checksum
from fostore.schema.header import Header
from fostore.schema.row import Schema

HEADER_BYTES = 128
RECORD_BYTES = 40
MAX_RECORDS = 1 << 16
"""Records of one commit at most: as many as the countdown can number."""

_MAGIC = b"FOSTJRN\n"
_VERSION = 1
_HEADER = struct.Struct("<8sI16sIQ64s20xI")
_RECORD = struct.Struct("<4sIQQQHHI")
_RECORD_MAGIC = b"FORC"
_CRC = struct.Struct("<I")
_NO_CRC = 1  # flag: the run has no checksum of its own


def _schema_crc(schema: Schema) -> int:
    """A checksum of everything that decides what the bytes of a row mean."""
    text = json.dumps(schema.to_json(), sort_keys=True, separators=(",", ":"))
    return checksum(text.encode())


@dataclass(frozen=True, slots=True)
class JournalHeader:
    """Whose journal this is: the store, its schema and geometry, and the writer that owns the file."""

    store_id: UUID
    schema_crc: int
    unit_rows: int
    owner: str

    @classmethod
    def of(cls, header: Header, owner: str) -> JournalHeader:
        """The header of a new journal of a store.

        Raises:
            FormatError: the store's id is no UUID.
        """
        try:
            store_id = UUID(header.id)
        except ValueError as error:
            raise FormatError(f"the id of the store is {header.id!r}, expected a UUID") from error
        if not 0 < len(owner.encode()) <= 64 or "\0" in owner:
            raise ArgumentError(f"owner is {owner!r}, expected 1 to 64 bytes of text")
        return cls(store_id, _schema_crc(header.schema), header.unit_rows, owner)

    def pack(self) -> bytes:
        """The 128 bytes that open a journal."""
        owner = self.owner.encode()
        fields = self.store_id.bytes, self.schema_crc, self.unit_rows, owner
        body = _HEADER.pack(_MAGIC, _VERSION, *fields, 0)[:-4]
        return body + _CRC.pack(checksum(body))

    @classmethod
    def unpack(cls, data: bytes, where: str) -> JournalHeader:
        """Parse the first 128 bytes of a journal.

        Raises:
            DamageError: too short, or a checksum that does not fit.
            FormatError, UnsupportedError: no journal, or a newer one.
        """
        if len(data) < HEADER_BYTES:
            raise DamageError(
                f"{where} has {len(data)} bytes, a journal begins with {HEADER_BYTES}"
            )
        magic, version, store_id, schema, unit_rows, owner, own = _HEADER.unpack(
            data[:HEADER_BYTES]
        )
        if checksum(data[: HEADER_BYTES - 4]) != own:
            raise DamageError(f"{where}: the header of the journal does not have its checksum")
        if magic != _MAGIC:
            raise FormatError(f"{where} is not a journal: it begins with {magic!r}")
        if version != _VERSION:
            raise UnsupportedError(f"{where} has version {version}, this release reads {_VERSION}")
        try:
            name = owner.rstrip(b"\0").decode()
        except UnicodeDecodeError as error:
            raise FormatError(f"{where}: the owner {owner!r} is not text") from error
        return cls(UUID(bytes=store_id), schema, unit_rows, name)


@dataclass(frozen=True, slots=True)
class Journal:
    """What a journal says: `runs` in row order, the last commit's `sequence`, and the `num_bytes` that count.

    `problems` lists what contradicts itself, each with the rows it concerns where they are known;
    bytes beyond `num_bytes` that are no problem are a torn tail, left by a kill.
    """

    header: JournalHeader
    runs: tuple[Run, ...]
    sequence: int
    num_bytes: int
    problems: tuple[tuple[str, tuple[int, int] | None], ...] = ()


def pack_commit(runs: Sequence[Run], sequence: int) -> bytes:
    """The records of one commit: at least one run and at most `MAX_RECORDS`."""
    if not 0 < len(runs) <= MAX_RECORDS:
        raise ArgumentError(f"a commit has 1 to {MAX_RECORDS} runs, {len(runs)} came")
    records = []
    for left, run in zip(range(len(runs) - 1, -1, -1), runs, strict=True):
        crc, flags = (0, _NO_CRC) if run.crc is None else (run.crc, 0)
        fields = _RECORD_MAGIC, crc, run.start, run.stop, sequence, left, flags, 0
        body = _RECORD.pack(*fields)[:-4]
        records.append(body + _CRC.pack(checksum(body)))
    return b"".join(records)


def parse(
    data: bytes, where: str, num_samples: int | None = None, *, strict: bool = True
) -> Journal:
    """Read a journal; a torn tail is dropped, for the commit it belongs to was never acknowledged.

    Args:
        data: the whole file.
        where: names it in messages.
        num_samples: the plan, which no run may exceed; None: there is none.
        strict: raise at the first problem; otherwise list them and keep what is sound.

    Raises:
        DamageError: a bad record with records of later commits behind it, runs that straddle a unit,
            overlap or exceed the plan. Names the rows where they are known.
    """
    header = JournalHeader.unpack(data, where)
    records, problems = _sound_records(data, where)
    runs = _Runs(header.unit_rows, num_samples)
    for number, run in records:
        problem = runs.add(run)
        if problem:
            problems.append((f"{where}: record {number} {problem}", (run.start, run.stop)))
    if strict and problems:
        message, rows = problems[0]
        raise DamageError(message, () if rows is None else (rows,))
    num_bytes = HEADER_BYTES + RECORD_BYTES * (records[-1][0] + 1 if records else 0)
    sequence = _RECORD.unpack_from(data, num_bytes - RECORD_BYTES)[4] if records else 0
    return Journal(header, runs.sorted(), sequence, num_bytes, tuple(problems))


def _sound_records(
    data: bytes, where: str
) -> tuple[list[tuple[int, Run]], list[tuple[str, tuple[int, int] | None]]]:
    """The numbered records of whole commits, and what is wrong with those between them."""
    kept: list[tuple[int, Run]] = []
    open_commit: list[tuple[int, Run]] = []
    problems: list[tuple[str, tuple[int, int] | None]] = []
    suspect: int | None = (
        None  # the first record that does not follow; torn, unless a later commit does
    )
    sequence, left = 0, 0
    count = (len(data) - HEADER_BYTES) // RECORD_BYTES
    for number in range(count):
        at = HEADER_BYTES + number * RECORD_BYTES
        magic, crc, start, stop, own_sequence, own_left, flags, own = _RECORD.unpack_from(data, at)
        if magic != _RECORD_MAGIC or checksum(data[at : at + RECORD_BYTES - 4]) != own:
            suspect = number if suspect is None else suspect
            continue
        run = Run(start, stop, None if flags & _NO_CRC else crc)
        follows = (
            own_sequence == sequence and own_left == left - 1
            if left
            else (own_sequence == sequence + 1)
        )
        if suspect is None and not follows:
            suspect = number
        if suspect is not None:
            torn_sequence = sequence if left else sequence + 1
            if own_sequence <= torn_sequence:
                continue
            message = (
                f"{where}: record {suspect} is damaged, and later commits stand behind it: "
                "a crash does not do that"
            )
            problems.append((message, None))
            suspect, open_commit = None, []
        open_commit.append((number, run))
        sequence, left = own_sequence, own_left
        if left == 0:
            kept += open_commit
            open_commit = []
    if suspect is not None:
        at = HEADER_BYTES + suspect * RECORD_BYTES
        lost = _before_one_byte_changed(data[at : at + RECORD_BYTES], sequence, left)
        if lost is not None:
            message = (
                f"{where}: record {suspect}, of rows {lost.start} to {lost.stop - 1}, has one byte that is "
                "not what was written: a crash does not do that, the disk does. These rows were committed; "
                "restore the store from a copy, or convert what is left of it to a new one"
            )
            problems.append((message, (lost.start, lost.stop)))
    return kept, problems


def _before_one_byte_changed(record: bytes, sequence: int, left: int) -> Run | None:
    """The run of an unsound record that some other value of one byte makes sound and the next one due.

    A write that a crash tore is no such record: a disk writes sectors whole, so that of a record its
    beginning is lost, with the magic, or its end, with the checksum, or both: 4 bytes at least.
    """
    body, own = record[:-4], _CRC.unpack(record[-4:])[0]
    if checksum(body) == own:
        return None  # sound, and not the one that is due
    zero = checksum(bytes(len(body)))
    wrong = checksum(body) ^ own
    candidates = [body] if sum(map(bool, wrong.to_bytes(4, "little"))) == 1 else []
    for at in range(len(body)):  # the crc32c of a difference does not depend on what it is added to
        before, after = bytes(at), bytes(len(body) - at - 1)
        for change in range(1, 256):
            if checksum(before + bytes([change]) + after) ^ zero == wrong:
                candidates.append(body[:at] + bytes([body[at] ^ change]) + body[at + 1 :])
    for candidate in candidates:
        fields = _RECORD.unpack(candidate + bytes(4))
        magic, crc, start, stop, own_sequence, own_left, flags, _ = fields
        due = (
            (own_sequence, own_left) == (sequence, left - 1)
            if left
            else own_sequence == sequence + 1
        )
        if magic == _RECORD_MAGIC and due and start < stop:
            return Run(start, stop, None if flags & _NO_CRC else crc)
    return None


class _Runs:
    """Runs as records add them: a run may replace those it contains, and overlap no other."""

    def __init__(self, unit_rows: int, num_samples: int | None) -> None:
        self._unit_rows = unit_rows
        self._num_samples = num_samples
        self._starts: list[int] = []
        self._runs: dict[int, Run] = {}
        self._earlier: dict[int, list[tuple[int, int]]] = {}

    def add(self, run: Run) -> str | None:
        """Take a run in, or say what is wrong with it."""
        if run.start >= run.stop:
            return f"has no rows: {run.start} to {run.stop}"
        if run.start // self._unit_rows != (run.stop - 1) // self._unit_rows:
            return f"straddles a unit of {self._unit_rows} rows: rows {run.start} to {run.stop - 1}"
        if self._num_samples is not None and run.stop > self._num_samples:
            return f"has rows to {run.stop - 1} and the store plans {self._num_samples} rows"
        old = self._runs.get(run.start)
        if old is not None and old.stop <= run.stop and run.stop <= self._next(run.start):
            if old.crc is not None and old.stop < run.stop:
                self._earlier.setdefault(run.start, []).append((old.stop, old.crc))
            self._runs[run.start] = run
            return None
        at = bisect_left(self._starts, run.start)
        before = self._runs[self._starts[at - 1]] if at else None
        if before is not None and before.stop > run.start:
            return self._overlap(run, before)
        end = at
        while end < len(self._starts) and self._starts[end] < run.stop:
            other = self._runs[self._starts[end]]
            if other.stop > run.stop:
                return self._overlap(run, other)
            end += 1
        for start in self._starts[at:end]:
            del self._runs[start]
            self._earlier.pop(start, None)
        del self._starts[at:end]
        insort(self._starts, run.start)
        self._runs[run.start] = run
        return None

    def sorted(self) -> tuple[Run, ...]:
        runs = (self._runs[start] for start in self._starts)
        return tuple(replace(r, earlier=tuple(self._earlier.get(r.start, ()))) for r in runs)

    def _next(self, start: int) -> int:
        at = bisect_left(self._starts, start) + 1
        return self._starts[at] if at < len(self._starts) else 1 << 64

    @staticmethod
    def _overlap(run: Run, other: Run) -> str:
        return (
            f"has rows {run.start} to {run.stop - 1}, which overlap rows {other.start} to "
            f"{other.stop - 1} of an earlier one"
        )
