"""Writing a Zarr store in whole units, from any number of processes and machines at once (spec/zarr.md).

No lock and no claim: the shards of a unit, then its hashes, then its record, which commits it. Every file is made under
the condition that nobody made it; what an attempt left that did not commit is replaced by who put a mark in the place
of its record, so that whoever wakes up late changes nothing that was committed or sealed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import chain
from typing import Any

import numpy as np

from fostore.errors import ArgumentError, DamageError, FormatError, LockedError, RowError
from fostore.formats import Run, UnitsClaim, WholeUnit
from fostore.formats.claim import WHOLE
from fostore.formats.zarr.checked import Checked
from fostore.formats.zarr.folder import MAX_METADATA, METADATA, Folder, offsets_files
from fostore.formats.zarr.layout import HASHES, Shards
from fostore.formats.zarr.records import (
    RECORDS,
    UnitRecord,
    committed_units,
    limit_of,
    name_of,
    num_units_of,
    parse,
    rows_of,
)
from fostore.formats.zarr.state import group_metadata, parse_header, read_header
from fostore.places.place import Storage, Version
from fostore.schema import digest, geometry
from fostore.schema.header import UNITS, Header
from fostore.schema.ranges import Ranges, describe
from fostore.schema.row import Array

_ATTEMPTS = 4
_OPEN_BYTES = 2 << 30
"""Of units that are begun and not whole: they wait in memory."""
_KEPT = 2
"""Units whose memory is used again: fresh pages cost as much as to fill them."""


def begin(place: Storage, header: Header) -> None:
    """Make an empty store, or leave what somebody made before: the one file that says so is made once."""
    place.put(METADATA, group_metadata(replace(header, commits=UNITS)))


class ZarrUnits:
    """A `UnitWriter` that commits whole units alone; see `fostore.formats.UnitWriter`.

    Rows of a unit wait in memory until it is whole. `sealed` are the rows, of what is claimed, that have a record.
    """

    header: Header
    sealed: Ranges
    runs: tuple[Run, ...] = ()
    commits_runs = False

    def __init__(self, place: Storage, claim: UnitsClaim = WHOLE) -> None:
        """
        Args:
            claim: or what gives it, of the number of units.
        """
        self._place = place
        self._open: dict[int, list[Array]] = {}
        self._free: list[list[Array]] = []
        self._look()
        num_units = num_units_of(self._folder)
        self.claim = claim(num_units) if callable(claim) else claim
        if not self.header.sealed:
            units = range(*(self.claim.units or (0, num_units)))
            self.sealed = rows_of(self._folder, committed_units(self._folder, units))
            if place.version(METADATA) != self._version:
                self._look()  # it may have been finished, and then the records went meanwhile
        self._checked = Checked(self._folder)
        if self.header.sealed:
            every = Ranges.of((0, self.header.num_samples or 0))
            self.sealed = self.claim.rows(self.header.unit_rows, every)
            if self.claim.is_whole:
                self.clean()

    def _look(self) -> None:
        """See what the store says of itself now."""
        text, self._version = _versioned(self._place)
        self.header = parse_header(text, f"{self._place.url}/{METADATA}")
        self._folder = Folder.of(self._place, self.header)

    # Rows

    def write(self, column: int, start: int, rows: Array) -> None:
        """Keep rows at `start`, all inside one unit, in memory."""
        unit = start // self.header.unit_rows
        layout = self._folder.shards[column]
        if rows.shape[1:] != layout.column.shape or rows.dtype != layout.column.numpy_dtype:
            raise ArgumentError(
                f"column {layout.name!r} takes rows of {layout.column.stored} and shape "
                f"{layout.column.shape}, {rows.dtype} and shape {rows.shape[1:]} came"
            )
        files = self._open.get(unit)
        if files is None:
            files = self._open[unit] = self._files(unit)
        first = start - unit * self.header.unit_rows
        _rows_in(files[column], layout, first, first + len(rows))[:] = rows

    def _files(self, unit: int) -> list[Array]:
        """Room for the shards of a unit."""
        if not self.claim.holds(unit) or self.header.sealed:
            raise ArgumentError(
                f"unit {unit} cannot be written: it is not of {self.claim.units}, or all is sealed"
            )
        with suppress(IndexError):  # the thread that commits adds some, and takes none
            return self._free.pop()
        rows = min(self.header.unit_rows, self.header.num_samples or 0)
        sizes = [layout.shard_bytes(rows) for layout in self._folder.shards]
        if self._open and (len(self._open) + 1) * sum(sizes) > _OPEN_BYTES:
            raise ArgumentError(
                f"units {sorted(self._open)} are begun and none is whole: {self._place} takes whole units, "
                f"which wait in memory, {sum(sizes):,} bytes each. Write rows in order (a loader without a "
                "sampler), or to a folder of this machine with fostore.create, and convert that"
            )
        return [np.empty(size, np.uint8) for size in sizes]

    def read(self, column: int, start: int, stop: int) -> Array:
        """Rows written before, all inside one unit.

        Raises:
            DamageError: their file is missing or too short.
        """
        layout = self._folder.shards[column]
        unit = start // self.header.unit_rows
        first, last = (row - unit * self.header.unit_rows for row in (start, stop))
        files = self._open.get(unit)
        if files is not None:
            return _rows_in(files[column], layout, first, last).copy()
        return _fetched(self._folder, layout, unit, first, last)

    def sync(self) -> None:
        """Nothing is durable before its unit is whole."""

    def commit(self, runs: Sequence[Run]) -> None:
        """Nothing is committed before its unit is whole."""

    # Whole units

    def seal(self, units: Sequence[WholeUnit]) -> None:
        """Commit whole units, one after another; one that somebody else committed is as good.

        Raises:
            LockedError: others take a unit from each other; the units before it are committed.
            FormatError: another store has taken the place.
        """
        for whole in units:
            whole.check(self.header)
            if not self.sealed.covers(*self._range(whole.unit)):
                self._commit(whole)
                self.sealed = self.sealed.add(*self._range(whole.unit))
            files = self._open.pop(whole.unit, None)
            if files is not None and len(self._free) < _KEPT:
                self._free.append(files)

    def _range(self, unit: int) -> tuple[int, int]:
        return geometry.unit_range(unit, self.header.unit_rows, self.header.num_samples)

    def _commit(self, whole: WholeUnit) -> None:
        shards, crcs = [], []
        for layout, file in zip(self._folder.shards, self._open[whole.unit], strict=True):
            rows = _rows_in(file, layout, 0, whole.num_rows)
            crcs.append(digest.crc(rows))
            end, size = layout.data_bytes(whole.num_rows), layout.shard_bytes(whole.num_rows)
            file[rows.nbytes : end] = digest.buffer(layout.padding(whole.num_rows))
            file[end:size] = np.frombuffer(b"".join(layout.index_pieces(whole.num_rows)), np.uint8)
            shards.append((layout.key(whole.unit), file[:size]))
        chunk = np.zeros(self._folder.hashes.chunk_shape, np.uint8)
        chunk[: len(whole.hashes)] = whole.hashes
        files = [*shards, (self._folder.hashes.key(whole.unit), digest.buffer(chunk))]
        for _ in range(_ATTEMPTS):
            mark = None
            record = UnitRecord(rows=whole.num_rows, hashes=whole.hashes, facts=whole.facts)
            versions: list[str] = []
            for name, data in files:
                version = self._place.put(name, data)
                if version is None:
                    # Another attempt was here, which has not committed: what it left is replaced.
                    if mark is None:
                        mark = self._take(whole.unit, record)
                    if mark is None:
                        return
                    version = self._over(name, data, whole.unit, mark)
                versions.append(str(version))
            columns = zip([len(file) for _, file in shards], crcs, versions, strict=False)
            done = replace(record, columns=tuple(columns), hashes_version=versions[-1])
            name = name_of(self._folder, whole.unit)
            if self._place.put(name, done.pack(whole.unit), mark) is not None:
                return
            held, _ = self._record(whole.unit)
            # Ours too: a server that answered nothing may have done what it was asked for.
            if held is not None and held.is_commit:
                return
        raise self._contended(whole.unit)

    def _take(self, unit: int, record: UnitRecord) -> Version:
        """Put the mark of an attempt in the place of a unit's record: no other can commit it then.

        None where it is committed, or the whole store is sealed.
        """
        name, mark = name_of(self._folder, unit), replace(record, rows=0, hashes=None).pack(unit)
        for _ in range(_ATTEMPTS):
            held, before = self._record(unit)
            if held is not None and held.is_commit:
                return None
            version = self._place.put(name, mark, before)
            if version is not None:
                # Behind the mark: from here on nobody else commits the unit, so the store is not sealed.
                if self._is_sealed():
                    self._place.delete([name])
                    return None
                return version
        raise self._contended(unit)

    def _over(self, name: str, data: Any, unit: int = 0, mark: Version = None) -> Version:
        """Replace a file; with a `mark` only while that holds the unit, else None: another attempt goes on then."""
        for _ in range(_ATTEMPTS):
            # The version comes first: who takes the unit after our look at the mark writes the file anew.
            before = self._place.version(name)
            if mark is not None and self._place.version(name_of(self._folder, unit)) != mark:
                return None
            version = self._place.put(name, data, before)
            if version is not None:
                return version
        raise LockedError(f"{self._place}/{name} is being written by others; run it again")

    def _record(self, unit: int) -> tuple[UnitRecord | None, Version]:
        """What lies in the place of a unit's record, and its version; a damaged one is no record."""
        name = name_of(self._folder, unit)
        try:
            ((data, version),) = self._place.read_many([(name, 0, limit_of(self._folder))])
        except FileNotFoundError:
            return None, None
        try:
            return parse(data, self._folder, unit), version
        except DamageError:
            return None, version

    def _is_sealed(self) -> bool:
        """Whether the store was sealed since; raises FormatError where another one lies there."""
        header = parse_header(read_header(self._place), f"{self._place.url}/{METADATA}")
        if header.id != self.header.id:
            raise FormatError(
                f"another store has taken the place of {self._place}; nothing of it was changed"
            )
        return header.sealed

    def _contended(self, unit: int) -> LockedError:
        held, _ = self._record(unit)
        by = "others" if held is None else held.by
        return LockedError(
            f"unit {unit} of {self._place} is being written by {by} as well, and neither gets to its end; give "
            "each process a shard of its own (shard=(i, n), --shard i/n), and run this one again"
        )

    def hashes(self, unit: int) -> Array:
        """The block hashes of a committed unit, as its record has them; all zero where unknown."""
        if self.header.sealed:
            return self._checked.stored_hashes(unit)
        return self._checked.hashes(unit)

    def facts(self, unit: int) -> Mapping[str, Any]:
        """What the record of a unit says of its rows, beside what it is."""
        record = None if self.header.sealed else self._checked.record(unit)
        return {} if record is None else record.facts

    # The header

    def replan(self, header: Header) -> None:
        """Replace identity and metadata of a store that is not sealed; what others added meanwhile stays.

        Raises:
            LockedError: others change it again and again.
        """
        for _ in range(_ATTEMPTS):
            if self.header.sealed:
                raise ArgumentError(
                    f"{self._place} is sealed: it was written in whole units, and does not grow where it is; "
                    "fostore.convert it to a folder, and extend that"
                )
            if (header.counts, header.unit_rows) != (self.header.counts, self.header.unit_rows):
                raise ArgumentError(f"{self._place} keeps its rows and unit_rows as planned")
            if self._put_header(replace(header, commits=UNITS)):
                return
            header = replace(header, meta={**self.header.meta, **header.meta})
        raise LockedError(f"what {self._place} says of itself is changed by others; run it again")

    def _put_header(self, header: Header) -> bool:
        """Replace the header as it was seen last; false where it is another one by now, which is seen then."""
        version = self._place.put(METADATA, group_metadata(header), self._version)
        if version is None:
            self._look()
            return False
        self._version = version
        self.header = header
        self._folder = Folder.of(self._place, header)
        return True

    def finish(self, header: Header, offsets: Array | None = None) -> None:
        """All units are committed: hold each against its record, publish shapes and header, remove the records.

        Raises:
            RowError: files are not those of their records. Their units are given up, and are missing from now on.
            LockedError: another process changed what the store says of itself meanwhile.
        """
        self.claim.check_whole("finish")
        if not self.header.sealed:
            self._expect_right()
        if not self.header.sealed:
            rows = header.num_samples or 0
            for layout in self._folder.shards:
                self._publish(f"{layout.name}/{METADATA}", layout.text(rows))
            hashes = self._folder.hashes
            self._publish(f"{HASHES}/{METADATA}", hashes.text(-(-rows // header.block_rows)))
            for name, data in () if offsets is None else offsets_files(offsets):
                self._publish(name, data)
        header = replace(header, commits=None)
        if not self._put_header(header) and self.header.digest != header.digest:
            raise LockedError(
                f"what {self._place} says of itself was changed by another process meanwhile; call it again"
            )
        self.clean()

    def _publish(self, name: str, data: bytes) -> None:
        """Make a file that every finisher makes with the same bytes."""
        if self._place.put(name, data) is None:
            ((held, _),) = self._place.read_many([(name, 0, len(data) + 1)])
            if held != data:
                self._over(name, data)

    def _expect_right(self) -> None:
        broken = self._checked.broken(range(num_units_of(self._folder)))
        for name, data in self._checked.mends:
            self._over(name, data)
        if broken:
            self._look()  # another finisher may have been faster, and removed the records
        if not broken or self.header.sealed:
            return
        for unit in broken:
            _, before = self._record(unit)
            mark = replace(UnitRecord(), by=f"{UnitRecord().by} (finish)")
            self._place.put(name_of(self._folder, unit), mark.pack(unit), before)
        lost = rows_of(self._folder, broken)
        raise RowError(
            f"{describe(lost)} of {self._place} do not lie as their records say: another writer or a tool changed "
            "them. They are given up, and are missing now: write them again (fostore missing), then finish"
        )

    def clean(self) -> None:
        """Remove records, and what attempts left that were cut short, of a store that is sealed."""
        records = self._place.listed(f"{self._folder.shards[0].name}/{RECORDS}")
        first = next(records, None)
        if first is None:
            return
        # The records last: as long as there are some, the next one looks for what else was left.
        names = (one.name for one in chain((first,), records))
        self._place.delete(chain(self._checked.unfinished(), names))

    def close(self) -> None:
        """Give up the rows of units that are not whole. Again is no error."""
        self._open.clear()
        self._free.clear()


def _versioned(place: Storage) -> tuple[bytes, Version]:
    """The text of the header, and the version that it is of."""
    read_header(place)  # says what is wrong, if there is none
    ((text, version),) = place.read_many([(METADATA, 0, MAX_METADATA)])
    return text, version


def _rows_in(file: Array, layout: Shards, first: int, last: int) -> Array:
    """Rows of a shard in memory, as they are stored: a view."""
    size = layout.column.row_bytes
    flat = file[first * size : last * size].view(layout.column.numpy_dtype)
    return flat.reshape(last - first, *layout.column.shape)


def _fetched(folder: Folder, layout: Shards, unit: int, first: int, last: int) -> Array:
    size, name = layout.column.row_bytes, layout.key(unit)
    start = unit * folder.header.unit_rows
    lost = ((start + first, start + last),)
    try:
        ((data, _),) = folder.place.read_many([(name, first * size, last * size)])
    except FileNotFoundError as error:
        message = f"{folder.place}/{name} is missing, and with it {describe(lost)}"
        raise DamageError(message, lost) from error
    if len(data) != (last - first) * size:
        raise DamageError(f"{folder.place}/{name} was cut, and with it {describe(lost)}", lost)
    return _rows_in(np.frombuffer(data, np.uint8), layout, 0, last - first)
