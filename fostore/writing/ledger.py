"""What a writer knows of the rows it wrote: runs and their checksums, block hashes, which units are whole.

Rows pass through `account` once; checksum and hash are taken while they are hot.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, cast

import numpy as np

from fostore.errors import DamageError
from fostore.formats import Run, UnitsWriter, UnitWriter, WholeUnit
from fostore.reading.proof import RunCheck
from fostore.schema import digest, geometry
from fostore.schema.header import Header
from fostore.schema.ranges import Range, Ranges, describe
from fostore.schema.row import Array

_READ_BYTES = 8 << 20
_GROUP = 32  # units sealed together: their files are open at once


def rows_in(units: UnitWriter) -> Ranges:
    """The rows that a store had when it was opened for writing."""
    return Ranges.of(*units.sealed.items, *((run.start, run.stop) for run in units.runs))


@dataclass(slots=True)
class _Growing:
    """A run that may still grow: `crcs` holds the running crc32c of each column."""

    start: int
    stop: int
    crcs: list[int]
    recorded: int


@dataclass(slots=True)
class _Unit:
    """A unit that is not sealed: its runs and the hashes of its blocks, zero where unknown."""

    hashes: Array
    rows: int = 0
    runs: dict[int, _Growing] = field(default_factory=dict)
    """By the row at which they stop, where they may grow."""

    def add(self, run: _Growing) -> None:
        self.runs[run.stop] = run
        self.rows += run.stop - run.start


class _Witness(Protocol):
    """Who knows something of rows that needs no second look at them when a store is finished."""

    def of_unit(
        self, start: int, stop: int, read: Callable[[int, int], list[Array]]
    ) -> Mapping[str, Any]:
        """What the record of a unit is to say, JSON; in the thread that commits. `read` gives all columns of rows."""
        ...

    def join(self, facts: Mapping[str, Any]) -> None:
        """Take what the record of the next unit says, at the seal."""
        ...


class Ledger:
    """The bookkeeping of one writer over one `UnitWriter`.

    `seal` may run in another thread than `account`, for units whose rows have all been accounted for.
    """

    def __init__(self, units: UnitWriter) -> None:
        header = units.header
        self._files = units
        self._columns = header.schema.columns
        self._hashed = [i for i, column in enumerate(self._columns) if column.hashed]
        self._unit_rows = header.unit_rows
        self._block_rows = header.block_rows
        self._open: dict[int, _Unit] = {}
        self._grown: list[tuple[_Growing, int]] = []
        self._hashers: list[Any] = []
        self._hashers_at = -1
        self._promised: Array | None = None
        self.witnesses: Sequence[_Witness] = ()
        """What they know of the rows is kept in the records of units, where they have any."""

    def promise(self, hashes: Array) -> None:
        """Take the block hashes of all rows, (blocks, hashed columns, 32), for those that they will have."""
        self._promised = hashes
        for unit, state in self._open.items():
            unknown = ~state.hashes.any(axis=(1, 2))
            state.hashes[unknown] = self._promised_of(unit)[unknown]

    def _promised_of(self, unit: int) -> Array:
        blocks = self._unit_rows // self._block_rows
        hashes = np.zeros((blocks, len(self._hashed), digest.HASH_BYTES), np.uint8)
        if self._promised is not None:
            of_unit = self._promised[unit * blocks : (unit + 1) * blocks]
            hashes[: len(of_unit)] = of_unit
        return hashes

    def account(self, start: int, columns: Sequence[Array]) -> None:
        """Take account of rows of one unit at `start`, one array a column, written before they are committed."""
        unit, stop = start // self._unit_rows, start + len(columns[0])
        state = self._unit(unit)
        known = state.runs.get(stop)
        if known is not None and known.start <= start:
            return  # written once more, after an interruption
        self._hash(unit, state, start, stop, columns)
        # Rows behind a run grow it: what is written in order is one record a unit at each commit.
        run = state.runs.get(start)
        before = [0] * len(columns) if run is None else run.crcs
        crcs = [digest.crc(column, value) for column, value in zip(columns, before, strict=True)]
        if run is None:
            state.add(_Growing(start, stop, crcs, start))
            return
        del state.runs[start]
        state.runs[stop] = run
        state.rows += stop - start
        run.crcs, run.stop = crcs, stop

    def adopt(self) -> None:
        """Read the committed rows of units that are not sealed, and check them against their record.

        Raises:
            DamageError: data that was durable before it was recorded has changed: no crash does that.
        """
        for run in sorted(self._files.runs, key=lambda r: r.start):
            unit = run.start // self._unit_rows
            state = self._unit(unit)
            crcs = [0] * len(self._columns)
            for first, last in self._pieces(run.start, run.stop):
                pieces = self._read(first, last)
                crcs = [
                    digest.crc(column, value) for column, value in zip(pieces, crcs, strict=True)
                ]
                self._hash(unit, state, first, last, pieces)
            adopted = _Growing(run.start, run.stop, crcs, run.stop)
            state.add(adopted)
            if not run.grows:  # rows behind it are a run of their own: see `Run.grows`
                del state.runs[run.stop]
            if run.crc is None:
                lost = self._damaged_blocks(unit, run)
            elif digest.combine_crcs(crcs) != run.crc:
                lost = RunCheck(run, self._columns, self._read).damage()
            else:
                lost = ()
            if lost:
                raise DamageError(
                    f"{describe(lost)} were committed and their bytes have changed "
                    "since: the disk or another program damaged them; see `fostore verify`, restore "
                    "the store from a copy, or make it anew with exists='overwrite'",
                    lost,
                )

    def uncommitted(self) -> list[Run]:
        """The runs that grew since they were last recorded."""
        self._grown = []
        runs = []
        for unit in self._open.values():
            for run in unit.runs.values():
                if run.stop > run.recorded:
                    self._grown.append((run, run.stop))
                    runs.append(Run(run.start, run.stop, digest.combine_crcs(run.crcs)))
        return runs

    def recorded(self) -> None:
        """The runs that `uncommitted` gave last are committed; may run in another thread than `account`."""
        for run, stop in self._grown:
            run.recorded = stop

    def whole_units(self, num_samples: int | None) -> list[Range]:
        """The units, as row ranges, that are wholly written and not sealed."""
        whole = []
        for unit, state in self._open.items():
            start, stop = geometry.unit_range(unit, self._unit_rows, num_samples)
            if state.rows == stop - start:
                whole.append((start, stop))
        return whole

    def seal(self, whole: Sequence[Range]) -> None:
        """Seal whole units, given as row ranges, whose rows are committed."""
        for at in range(0, len(whole), _GROUP):
            # A seal syncs once for all of its units, and keeps the files of all open meanwhile.
            group = whole[at : at + _GROUP]
            units = []
            for start, stop in group:
                hashes = self._open[start // self._unit_rows].hashes
                one = self._whole(start, stop, hashes)
                if not self._files.commits_runs:
                    facts = [x.of_unit(start, stop, self._read) for x in self.witnesses]
                    one = replace(one, facts={k: v for some in facts for k, v in some.items()})
                units.append(one)
            self._files.seal(units)
            for start, _ in group:
                del self._open[start // self._unit_rows]

    def finish(self, header: Header) -> str:
        """Seal what is left of a store whose every row is committed, and give its digest."""
        assert header.num_samples is not None
        self.seal(self.whole_units(header.num_samples))
        return digest.digest_of_pieces(header, self._hashes(header.num_samples))

    def _hashes(self, num_samples: int) -> Iterator[Array]:
        """The hashes of every unit in order, one unit in memory at a time: those of all may be more than fits."""
        for unit in range(-(-num_samples // self._unit_rows)):
            start, stop = geometry.unit_range(unit, self._unit_rows, num_samples)
            stored = self._files.hashes(unit)
            whole = self._whole(start, stop, np.array(stored))
            if not self._files.commits_runs:
                facts = cast(UnitsWriter, self._files).facts(unit)
                for witness in self.witnesses:
                    witness.join(facts)
            # Hashes that came out of order are worked out now: a reader checks block by block.
            if not np.array_equal(whole.hashes, stored):
                self._files.seal([whole])
            yield whole.hashes

    def _whole(self, start: int, stop: int, hashes: Array) -> WholeUnit:
        """A whole unit with all its hashes, those that are unknown (zero) computed from its rows."""
        num_blocks = -(-(stop - start) // self._block_rows)
        hashes = hashes[:num_blocks]
        for block in np.flatnonzero(~hashes.any(axis=(1, 2))):
            first = start + int(block) * self._block_rows
            hashes[block] = self._block_hashes(first, min(first + self._block_rows, stop))
        return WholeUnit(start // self._unit_rows, stop - start, hashes)

    def _unit(self, unit: int) -> _Unit:
        state = self._open.get(unit)
        if state is None:
            state = self._open[unit] = _Unit(self._promised_of(unit))
        return state

    def _hash(
        self, unit: int, state: _Unit, start: int, stop: int, pieces: Sequence[Array]
    ) -> None:
        """Hash blocks as their rows pass; a block that comes in pieces out of order is left for `seal`."""
        if self._promised is not None:
            return
        hashers, at = self._hashers, self._hashers_at
        self._hashers_at = -1  # an interruption here leaves no half-fed hasher behind
        row = start
        while row < stop:
            block, inside = divmod(row - unit * self._unit_rows, self._block_rows)
            end = min(stop, row - inside + self._block_rows)
            if inside == 0:
                hashers, at = [digest.hasher() for _ in self._hashed], row
            if row == at:
                for i, column in enumerate(self._hashed):
                    hashers[i].update(digest.buffer(pieces[column][row - start : end - start]))
                    if end - row + inside == self._block_rows:
                        state.hashes[block, i] = np.frombuffer(hashers[i].digest(), np.uint8)
                at = end
            row = end
        self._hashers, self._hashers_at = hashers, at if at == stop else -1

    def _damaged_blocks(self, unit: int, run: Run) -> tuple[Range, ...]:
        """The blocks just read from a sealed, partial unit that are not those that it was sealed with."""
        fresh, stored = self._open[unit].hashes, self._files.hashes(unit)
        first = unit * self._unit_rows
        lost = Ranges()
        for block in np.flatnonzero(stored.any(axis=(1, 2))):
            start = first + int(block) * self._block_rows
            stop = min(start + self._block_rows, run.stop)
            if run.start <= start < stop:
                known = fresh[block] if fresh[block].any() else self._block_hashes(start, stop)
                if not np.array_equal(known, stored[block]):
                    lost = lost.add(start, stop)
        return lost.items

    def _block_hashes(self, start: int, stop: int) -> Array:
        columns = self._read(start, stop)
        return np.stack([digest.block_hash(columns[i]) for i in self._hashed])

    def _read(self, start: int, stop: int) -> list[Array]:
        return [self._files.read(i, start, stop) for i in range(len(self._columns))]

    def _pieces(self, start: int, stop: int) -> Iterator[Range]:
        rows = max(_READ_BYTES // max(c.row_bytes for c in self._columns), 1)
        while start < stop:
            yield start, min(start + rows, stop)
            start += rows
