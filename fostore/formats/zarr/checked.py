"""Records of units held against the files that they are of, in an order and in memory that bear a million of them."""

from __future__ import annotations

from collections import OrderedDict

import numpy as np

from fostore.errors import UnsupportedError
from fostore.formats.zarr.folder import Folder, read_hashes, unit_of
from fostore.formats.zarr.layout import Shards
from fostore.formats.zarr.records import UnitRecord, num_units_of, read_or_nothing, read_records
from fostore.places.place import Storage
from fostore.schema import digest
from fostore.schema.row import Array

_WINDOW = 256
"""Records that are asked for at once, and kept: whoever reads them goes through all in order."""


class Checked:
    """The records of all units, each looked at when its hashes are asked for.

    One list of every column is made before the first: 8 bytes a unit and column are kept of it.
    """

    def __init__(self, folder: Folder) -> None:
        self._folder = folder
        if not isinstance(folder.place, Storage):
            raise UnsupportedError(
                f"{folder.place} is not finished, and its files cannot be listed with their sizes: look at it where "
                "it lies, without a cache"
            )
        self._place = folder.place
        self._stamps: list[Array] = []
        self._records: OrderedDict[int, UnitRecord | None] = OrderedDict()
        self._is_seen = np.zeros(0, bool)
        self._is_broken = np.zeros(0, bool)
        self._unfinished: list[str] = []
        self.mends: list[tuple[str, bytes]] = []
        """Files that are to have other bytes: hashes that are not those of the rows beside them."""

    def hashes(self, unit: int) -> Array:
        """The block hashes of a unit, as its record has them; all zero where it has none."""
        record = self.record(unit)
        if record is None or record.hashes is None:
            return np.zeros(
                (self._num_blocks(unit), *self._folder.hashes.chunk_shape[1:]), np.uint8
            )
        return record.hashes

    def record(self, unit: int) -> UnitRecord | None:
        """The record of a unit, held against its files; None where there is none, or no sound one."""
        if not self._stamps:
            self._list()
        if unit not in self._records:
            units = range(unit, min(unit + _WINDOW, len(self._is_seen)))
            for one, record in zip(units, read_records(self._folder, units), strict=True):
                self._records[one] = record
                if not self._is_seen[one]:
                    self._is_seen[one] = True
                    self._is_broken[one] = record is None or not self._is_right(one, record)
            while len(self._records) > 2 * _WINDOW:
                self._records.popitem(last=False)
        return self._records[unit]

    def broken(self, units: range) -> list[int]:
        """Those of the units whose record is not that of the files."""
        for unit in units:
            if not (self._stamps and self._is_seen[unit]):
                self.record(unit)
        if not units:
            return []
        return [unit for unit in units if self._is_broken[unit]]

    def unfinished(self) -> list[str]:
        """Names of files of the arrays, and beside them, that were cut short: of attempts that were killed."""
        if not self._stamps:
            self._list()
        root = self._place.names() if self._place.is_local else {}
        return [*self._unfinished, *(name for name in root if _is_unfinished(name))]

    def stored_hashes(self, unit: int) -> Array:
        """The block hashes of a unit of a sealed store."""
        return read_hashes(self._folder, unit)[: self._num_blocks(unit)]

    def _num_blocks(self, unit: int) -> int:
        rows = self._folder.unit_stop(unit) - unit * self._folder.header.unit_rows
        return -(-rows // self._folder.header.block_rows)

    def _list(self) -> None:
        num_units = num_units_of(self._folder)
        self._is_seen, self._is_broken = np.zeros((2, num_units), bool)
        for layout in self._folder.layouts:
            stamps = np.zeros(num_units, np.int64)
            for one in self._place.listed(layout.name):
                unit = unit_of(one.name.removeprefix(f"{layout.name}/c/").partition("/")[0])
                if unit is not None and unit < num_units and one.name == layout.key(unit):
                    stamps[unit] = _stamp(one.size, str(one.version))
                elif _is_unfinished(one.name.rpartition("/")[2]):
                    self._unfinished.append(one.name)
            self._stamps.append(stamps)

    def _is_right(self, unit: int, record: UnitRecord) -> bool:
        """Whether the files of a unit are those that its record names, or hold the same bytes."""
        *stamps, of_hashes = self._stamps
        for layout, known, (size, crc, version) in zip(
            self._folder.shards, stamps, record.columns, strict=True
        ):
            if size != layout.shard_bytes(record.rows):
                return False
            # Copied by another tool, a file has another version: then its bytes decide.
            if known[unit] != _stamp(size, version) and not self._holds(layout, unit, record, crc):
                return False
        if of_hashes[unit] != _stamp(self._folder.hashes.chunk_bytes, record.hashes_version):
            self._mend(unit, record)
        return True

    def _holds(self, layout: Shards, unit: int, record: UnitRecord, crc: int) -> bool:
        size, index = layout.shard_bytes(record.rows), b"".join(layout.index_pieces(record.rows))
        data = read_or_nothing(self._place, layout.key(unit), size)
        rows = record.rows * layout.column.row_bytes
        is_whole = len(data) == size and data.endswith(index)
        return is_whole and digest.checksum(memoryview(data)[:rows]) == crc

    def _mend(self, unit: int, record: UnitRecord) -> None:
        assert record.hashes is not None
        layout = self._folder.hashes
        chunk = np.zeros(layout.chunk_shape, np.uint8)
        chunk[: len(record.hashes)] = record.hashes
        name = layout.key(unit)
        if read_or_nothing(self._place, name, layout.chunk_bytes) != chunk.tobytes():
            self.mends.append((name, chunk.tobytes()))


def _is_unfinished(name: str) -> bool:
    return name.startswith(".") and name.endswith((".tmp", ".lock"))


def _stamp(size: int, version: str) -> int:
    """What stands for a file in a list of many; 0 is none."""
    return hash((size, version)) or 1
