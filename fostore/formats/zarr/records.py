"""The records of units that are written whole, by whoever comes: one file a unit, which is its commit (spec/zarr.md).

A record is made once, and never changes: a unit that has one is done, whoever else still writes it. Before it, one name
decides who may go on: who finds files of an attempt that did not commit puts a mark in the record's place first.
"""

from __future__ import annotations

import os
import socket
import struct
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fostore.errors import DamageError, FormatError
from fostore.formats.zarr.folder import Folder, unit_of
from fostore.places.place import Place, Storage
from fostore.schema import digest, geometry, jsontext
from fostore.schema.header import now
from fostore.schema.ranges import Ranges
from fostore.schema.row import Array, expect

RECORDS = ".fostore.units"
"""The folder of records, in that of the first column, where plain readers do not look."""

_LINE_BYTES = 512
"""A mark is shorter, and a record begins with a line of so many or a multiple: a list tells them apart."""
_CRC = struct.Struct("<I")
_WHO = ("attempt", "by", "written")
_WINDOW = 256
"""Records that are asked for at once."""
_LISTED_UNITS = 1000
"""A list gives as many names in one answer as this: for fewer units each record is asked for."""


def _writer_name() -> str:
    """Who writes, as records have it: host and process."""
    return f"{socket.gethostname()}:{os.getpid()}"


@dataclass(frozen=True, slots=True)
class UnitRecord:
    """What a unit's file of the record says: rows, columns and hashes of the attempt that committed it.

    Without rows it is a mark: the unit is taken by `attempt`, and no other attempt may commit it.
    """

    attempt: str = field(default_factory=lambda: uuid.uuid4().hex)
    by: str = field(default_factory=_writer_name)
    written: str = field(default_factory=now)
    rows: int = 0
    columns: tuple[tuple[int, int, str], ...] = ()
    """Of each column in schema order the bytes of its shard, the crc32c of its rows, and the version of the file."""
    hashes: Array | None = field(default=None, compare=False)
    """The block hashes, uint8 (blocks of the rows, hashed columns, 32)."""
    hashes_version: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """What its writer knows of the rows; nothing here is looked at."""

    @property
    def is_commit(self) -> bool:
        """Whether the unit is committed."""
        return self.rows > 0

    def pack(self, unit: int) -> bytes:
        """The bytes of the file, which says whose it is: copied to another name it is no record."""
        who = {"unit": unit, **{key: getattr(self, key) for key in _WHO}}
        if not self.is_commit:
            body = jsontext.canonical(who) + b"\n"
            return body + _CRC.pack(digest.checksum(body))
        assert self.hashes is not None
        columns = [list(column) for column in self.columns]
        line = jsontext.canonical(
            {
                **who,
                "rows": self.rows,
                "columns": columns,
                "hashes": self.hashes_version,
                "facts": dict(self.facts),
            }
        )
        line += b" " * (-(len(line) + 1) % _LINE_BYTES) + b"\n"
        body = line + self.hashes.tobytes()
        return body + _CRC.pack(digest.checksum(body))


def parse(data: bytes, folder: Folder, unit: int) -> UnitRecord:
    """The record, or mark, of a unit.

    Raises:
        DamageError: it does not have its checksum, or is not of this unit; names the rows.
    """
    where = f"{folder.place}/{name_of(folder, unit)}"
    start, stop = geometry.unit_range(unit, folder.header.unit_rows, folder.header.num_samples)
    lost = ((start, stop),)
    body, own = data[:-4], data[-4:]
    if len(own) < 4 or digest.checksum(body) != _CRC.unpack(own)[0]:
        raise DamageError(f"{where}: the record of the unit does not have its checksum", lost)
    line, _, rest = body.partition(b"\n")
    try:
        value = jsontext.loads(line.rstrip(b" "), where)
        attempt, by, written = (expect(value, key, str, where) for key in _WHO)
        if expect(value, "unit", int, where) != unit:
            raise FormatError(f"it is that of unit {value['unit']}")
        if "rows" not in value:
            return UnitRecord(attempt, by, written)
        rows = expect(value, "rows", int, where)
        columns = tuple(
            (int(size), int(crc), str(version))
            for size, crc, version in expect(value, "columns", list, where)
        )
        version = expect(value, "hashes", str, where)
        facts = expect(value, "facts", dict, where)
    except (FormatError, ValueError, TypeError) as error:
        raise DamageError(f"{where} is no record of a unit: {error}", lost) from error
    shape = (-(-rows // folder.header.block_rows), *folder.hashes.chunk_shape[1:])
    if len(columns) != len(folder.shards) or len(rest) != int(np.prod(shape)):
        raise DamageError(f"{where} does not hold the columns and hashes of {rows} rows", lost)
    if rows != stop - start:
        raise DamageError(f"{where} has {rows} rows, and the unit {stop - start}", lost)
    hashes = np.frombuffer(rest, np.uint8).reshape(shape)
    return UnitRecord(attempt, by, written, rows, columns, hashes, version, facts)


def folder_of(folder: Folder) -> str:
    """The folder of the records: of this store alone, so that who still writes an older one commits nothing."""
    return f"{folder.shards[0].name}/{RECORDS}/{folder.header.id}"


def name_of(folder: Folder, unit: int) -> str:
    """The record of a unit."""
    return f"{folder_of(folder)}/{unit}"


def limit_of(folder: Folder) -> int:
    """Bytes that a record has at most."""
    return folder.hashes.chunk_bytes + (len(folder.shards) + 1) * 1024 + 8192


def committed_units(folder: Folder, units: Sequence[int] | None = None) -> list[int]:
    """The units that have a record, in order; of `units` where they are few, else of all.

    Looks at names and sizes alone: what a record says is held against the files when the store is finished.
    """
    place, where = folder.place, folder_of(folder)
    sized: Iterable[tuple[int | None, int | None]]
    if isinstance(place, Storage) and (units is None or len(units) > _LISTED_UNITS):
        listed = place.listed(where)
        sized = ((unit_of(one.name.rpartition("/")[2]), one.size) for one in listed)
    else:
        if units is None:  # a cache, which has no list with sizes
            try:
                named = [unit_of(name) for name in place.names(where)]
            except FileNotFoundError:
                named = []
            units = sorted(unit for unit in named if unit is not None)
        sized = zip(units, _sizes_of(place, [name_of(folder, unit) for unit in units]), strict=True)
    num_units = num_units_of(folder)
    return sorted(
        unit
        for unit, size in sized
        if unit is not None and unit < num_units and (size or 0) > _LINE_BYTES
    )


def read_records(folder: Folder, units: Sequence[int]) -> Iterator[UnitRecord | None]:
    """The records of units, many requests at a time; None where there is none, or no sound one."""
    names, limit = [name_of(folder, unit) for unit in units], limit_of(folder)
    for at in range(0, len(units), _WINDOW):
        some = names[at : at + _WINDOW]
        try:
            pieces = [data for data, _ in folder.place.read_many([(n, 0, limit) for n in some])]
        except FileNotFoundError:  # of one of them: then each by itself
            pieces = [read_or_nothing(folder.place, name, limit) for name in some]
        for unit, data in zip(units[at : at + _WINDOW], pieces, strict=True):
            try:
                record = parse(data, folder, unit) if data else None
            except DamageError:
                record = None
            yield record if record is not None and record.is_commit else None


def read_or_nothing(place: Place, name: str, limit: int) -> bytes:
    """A file as a whole; no bytes where there is none."""
    try:
        return place.read(name, limit)
    except FileNotFoundError:
        return b""


def num_units_of(folder: Folder) -> int:
    """How many units the planned rows make."""
    return -(-(folder.header.num_samples or 0) // folder.header.unit_rows)


def _sizes_of(place: Place, names: Sequence[str]) -> list[int | None]:
    """The bytes of files, many requests at a time where each takes one."""
    if place.is_local or len(names) < 2:
        return [place.size(name) for name in names]
    # Here, for a folder and readers of sealed stores do without.
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(min(64, len(names)), "fostore-units") as pool:
        return list(pool.map(place.size, names))


def rows_of(folder: Folder, units: Iterable[int]) -> Ranges:
    """The rows of units, which come in order."""
    unit_rows, planned = folder.header.unit_rows, folder.header.num_samples or 0
    ranges: list[tuple[int, int]] = []
    for unit in units:  # merged as they come: a pair for each of a million would take 200 MB
        start, stop = geometry.unit_range(unit, unit_rows, planned)
        if ranges and ranges[-1][1] == start:
            ranges[-1] = (ranges[-1][0], stop)
        else:
            ranges.append((start, stop))
    return Ranges(tuple(ranges))
