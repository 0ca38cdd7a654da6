"""What a writer knows of the rows it wrote: runs and their checksums, block hashes, which units are whole.

Rows pass through `put` once; checksum and hash are taken while they are hot.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fostore import digest, geometry
from fostore.errors import DamageError
from fostore.formats import Run, UnitWriter
from fostore.header import Header
from fostore.ranges import Range
from fostore.schema import Array

_READ_BYTES = 8 << 20


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


class Ledger:
    """The bookkeeping of one writer over one `UnitWriter`.

    `seal` may run in another thread than `put`, for a unit that no later `put` touches.
    """

    def __init__(self, units: UnitWriter) -> None:
        header = units.header
        self._files = units
        self._columns = header.schema.columns
        self._hashed = [i for i, column in enumerate(self._columns) if column.hashed]
        self._unit_rows = header.unit_rows
        self._block_rows = header.block_rows
        self._open: dict[int, _Unit] = {}
        self._hashers: list[Any] = []
        self._hashers_at = -1

    def put(self, start: int, columns: Sequence[Array]) -> None:
        """Write rows at `start` and take account of them; after an error they count as not written."""
        stop = start + len(columns[0])
        for unit, first, last in geometry.split_at_units(start, stop, self._unit_rows):
            parts = [array[first - start : last - start] for array in columns]
            for i, part in enumerate(parts):
                self._files.write(i, first, part)
            self._account(unit, first, last, parts)

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
                parts = self._read(first, last)
                crcs = [digest.crc(part, value) for part, value in zip(parts, crcs, strict=True)]
                self._hash(unit, state, first, last, parts)
            state.add(_Growing(run.start, run.stop, crcs, run.stop))
            if run.crc is None:
                sound = self._matches_hashes(unit, run)
            else:
                sound = digest.combine_crcs(crcs) == run.crc
            if not sound:
                raise DamageError(
                    f"rows {run.start} to {run.stop - 1} were committed and their bytes have changed "
                    "since: the disk or another program damaged them; see `fostore verify`, restore "
                    "the store from a copy, or make it anew with exists='overwrite'",
                    ((run.start, run.stop),),
                )

    def uncommitted(self) -> list[Run]:
        """The runs that grew since they were last recorded; they count as recorded from now on."""
        runs = []
        for state in self._open.values():
            for run in state.runs.values():
                if run.stop > run.recorded:
                    run.recorded = run.stop
                    runs.append(Run(run.start, run.stop, digest.combine_crcs(run.crcs)))
        return runs

    def whole_units(self, num_samples: int | None) -> list[Range]:
        """The units, as row ranges, that are wholly written and not sealed."""
        whole = []
        for unit, state in self._open.items():
            start, stop = geometry.unit_range(unit, self._unit_rows, num_samples)
            if state.rows == stop - start:
                whole.append((start, stop))
        return whole

    def seal(self, start: int, stop: int) -> None:
        """Seal a whole unit whose rows are committed."""
        unit = start // self._unit_rows
        state = self._open[unit]
        blocks = block_ranges(start, stop, self._block_rows)
        hashes = state.hashes[: len(blocks)]
        for block, (first, last) in enumerate(blocks):
            if not hashes[block].any():
                hashes[block] = self._block_hashes(first, last)
        self._files.seal(unit, stop - start, hashes)
        del self._open[unit]

    def finish(self, header: Header) -> str:
        """Seal what is left of a store whose every row is committed, and give its digest."""
        assert header.num_samples is not None
        for start, stop in self.whole_units(header.num_samples):
            self.seal(start, stop)
        parts = []
        for unit in range(-(-header.num_samples // self._unit_rows)):
            start, stop = geometry.unit_range(unit, self._unit_rows, header.num_samples)
            blocks = block_ranges(start, stop, self._block_rows)
            hashes = np.array(self._files.hashes(unit)[: len(blocks)])
            unknown = [b for b in range(len(blocks)) if not hashes[b].any()]
            for block in unknown:
                hashes[block] = self._block_hashes(*blocks[block])
            if unknown:
                self._files.seal(unit, stop - start, hashes)
            parts.append(hashes)
        none = np.zeros((0, len(self._hashed), digest.HASH_BYTES), np.uint8)
        return digest.store_digest(header, np.concatenate([none, *parts]))

    def _account(self, unit: int, start: int, stop: int, parts: list[Array]) -> None:
        state = self._unit(unit)
        self._hash(unit, state, start, stop, parts)
        run = state.runs.get(start)
        known = [0] * len(parts) if run is None else run.crcs
        crcs = [digest.crc(part, value) for part, value in zip(parts, known, strict=True)]
        if run is None:
            state.add(_Growing(start, stop, crcs, start))
            return
        del state.runs[start]
        state.runs[stop] = run
        state.rows += stop - start
        run.crcs, run.stop = crcs, stop

    def _unit(self, unit: int) -> _Unit:
        state = self._open.get(unit)
        if state is None:
            blocks = self._unit_rows // self._block_rows
            shape = (blocks, len(self._hashed), digest.HASH_BYTES)
            state = self._open[unit] = _Unit(np.zeros(shape, np.uint8))
        return state

    def _hash(self, unit: int, state: _Unit, start: int, stop: int, parts: list[Array]) -> None:
        """Hash blocks as their rows pass; a block that comes in pieces out of order is left for `seal`."""
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
                    hashers[i].update(digest.buffer(parts[column][row - start : end - start]))
                    if end - row + inside == self._block_rows:
                        state.hashes[block, i] = np.frombuffer(hashers[i].digest(), np.uint8)
                at = end
            row = end
        self._hashers, self._hashers_at = hashers, at if at == stop else -1

    def _matches_hashes(self, unit: int, run: Run) -> bool:
        """Whether the rows just read from a sealed, partial unit are those that it was sealed with."""
        fresh, stored = self._open[unit].hashes, self._files.hashes(unit)
        for block, (first, last) in enumerate(block_ranges(run.start, run.stop, self._block_rows)):
            known = fresh[block] if fresh[block].any() else self._block_hashes(first, last)
            if not np.array_equal(known, stored[block]):
                return False
        return True

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


def block_ranges(start: int, stop: int, block_rows: int) -> list[Range]:
    """The blocks of the rows `[start, stop)`, where `start` begins a block."""
    return [(row, min(row + block_rows, stop)) for row in range(start, stop, block_rows)]
