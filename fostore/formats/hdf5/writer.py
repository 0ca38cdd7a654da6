"""Writing an HDF5 store in place: rows, then hashes, then one of two slots that names them."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from fostore import disk
from fostore.errors import ArgumentError, DamageError, RowError, UnsupportedError
from fostore.formats import Run, WholeUnit
from fostore.formats.hdf5 import slots
from fostore.formats.hdf5.build import header_record, make, plan_mirrors
from fostore.formats.hdf5.file import Layout, inspect
from fostore.formats.hdf5.records import (
    HASHES,
    HEADER,
    HEADER_MAGIC,
    OFFSETS,
    PROGRESS,
    RUNS_MAGIC,
    read_hashes,
    read_runs,
    write_record,
)
from fostore.places.local import LocalFile
from fostore.schema import digest, geometry
from fostore.schema.header import Header
from fostore.schema.ranges import Range, Ranges
from fostore.schema.row import Array

_COPY_BYTES = 8 << 20


class HDF5Writer:
    """A store in an HDF5 file, opened for writing; see `fostore.formats.UnitWriter`.

    A sealed unit has all its block hashes; once they are durable, a slot merges its runs into one
    entry without a checksum, so that a slot holds little more than the units in progress.
    """

    header: Header
    sealed: Ranges
    runs: tuple[Run, ...]
    commits_runs = True

    def __init__(self, path: Path, fd: int) -> None:
        self._path = path
        self._guard = threading.Lock()
        self._adopt(fd)
        changes = plan_mirrors(fd, self._layout, self.header)
        if changes:
            self._write_mirrors(changes)

    def _adopt(self, fd: int) -> None:
        """Take `fd` as the file from now on, and what it says as what is."""
        file = LocalFile(self._path, fd, owned=False)
        layout = inspect(file)
        num_samples = layout.header.num_samples or 0
        self._sequence, entries = read_runs(file, layout.extents[PROGRESS], num_samples)
        self._fd, self._hdf5, self._layout, self.header = fd, file, layout, layout.header
        self._marked, runs = slots.sealed_and_open(
            entries, self.header.unit_rows, num_samples, short_unit=False
        )
        self.sealed, self.runs = self._marked, tuple(runs)
        self._open: dict[int, tuple[Run, ...]] = {}
        for run in runs:
            self._file(self._open, run)
        self._stale = {u for u in self._open if self._read_hashes(u).any()}

    def write(self, column: int, start: int, rows: Array) -> None:
        """Write rows at `start` into the page cache; an error leaves committed rows untouched."""
        spec = self.header.schema.columns[column]
        stop = start + len(rows)
        if start < 0 or stop > (self.header.num_samples or 0) or rows.dtype != spec.numpy_dtype:
            raise RowError(
                f"rows {start} to {stop - 1} of {rows.dtype} do not fit column {spec.name!r} of "
                f"{self.header.num_samples} rows of {spec.stored}"
            )
        if rows.size:
            offset = self._layout.extents[spec.name].offset + start * spec.row_bytes
            disk.write_at(self._fd, rows.reshape(-1).view(np.uint8), offset)

    def read(self, column: int, start: int, stop: int) -> Array:
        """Rows written before, as a fresh array."""
        spec = self.header.schema.columns[column]
        offset = self._layout.extents[spec.name].offset + start * spec.row_bytes
        rows = np.empty((stop - start, *spec.shape), spec.numpy_dtype)
        if disk.read_into(self._fd, digest.buffer(rows), offset) < rows.nbytes:
            raise DamageError(f"{self._path} was cut while it was written", ((start, stop),))
        return rows

    def sync(self) -> None:
        """Make everything durable that was written before the call."""
        disk.sync_data(self._fd)

    def commit(self, runs: Sequence[Run]) -> None:
        """Record runs in the slot that is not the newest, and sync it.

        Raises:
            RowError: more separate runs than a slot has room for; nothing was recorded.
            ArgumentError: a run crosses a unit or the end of the store.
        """
        with self._guard:
            # Before the record: no reader may find a hash of fewer rows than a unit has by then.
            for unit in {run.start // self.header.unit_rows for run in runs}:
                self._reopen(unit)
            new = dict(self._open)
            for run in runs:
                self._file(new, run)
            self._record(new)

    def _record(self, runs: dict[int, tuple[Run, ...]]) -> None:
        payload = slots.pack_runs(self._entries(runs))
        room = self._layout.capacity
        if len(payload) > room * slots.ENTRY.size:
            raise RowError(
                f"{len(payload) // slots.ENTRY.size} separate runs of rows are committed to "
                f"{self._path}, which has room for {room}; write the rows of a unit "
                f"({self.header.unit_rows} rows) in order, or use a .zarr store, which has no such bound"
            )
        # After a failure the same slot is written again: the other one is the last commit.
        record = slots.Record(self._sequence + 1, payload)
        write_record(self._fd, self._layout.extents[PROGRESS], RUNS_MAGIC, record)
        disk.sync_data(self._fd)
        self._sequence, self._open = record.sequence, runs

    def _reopen(self, unit: int) -> None:
        """Let a unit go on that has block hashes: from now on its rows have checksums instead.

        The hashes are taken away: whoever reads them as they lie would find that of a short block
        to be of fewer rows than it has now.
        """
        if unit not in self._stale:
            return
        runs = self._open.get(unit, ())
        if any(run.crc is None for run in runs):
            checked = [
                run if run.crc is not None else replace(run, crc=self._crc(run)) for run in runs
            ]
            self._record({**self._open, unit: tuple(checked)})
        zeros = bytes(self._read_hashes(unit).nbytes)
        disk.write_at(self._fd, zeros, self._hashes_at(unit))
        disk.sync_data(self._fd)
        self._stale.discard(unit)

    def _bounds(self, unit: int) -> Range:
        return geometry.unit_range(unit, self.header.unit_rows, self.header.num_samples)

    def _read_hashes(self, unit: int) -> Array:
        extent, block_rows = self._layout.extents[HASHES], self.header.block_rows
        return read_hashes(self._hdf5, extent, block_rows, *self._bounds(unit))

    def _hashes_at(self, unit: int) -> int:
        extent = self._layout.extents[HASHES]
        block = unit * (self.header.unit_rows // self.header.block_rows)
        return extent.offset + block * extent.shape[1] * extent.shape[2]

    def _crc(self, run: Run) -> int:
        return digest.crc_of_rows(self.read, self.header.schema.row_bytes, run.start, run.stop)

    def _entries(self, open_units: dict[int, tuple[Run, ...]]) -> list[Run]:
        """All that is committed: sealed rows, and the runs of open units."""
        entries = [Run(start, stop, None) for start, stop in self._marked]
        return entries + [run for runs in open_units.values() for run in runs]

    def _file(self, open_units: dict[int, tuple[Run, ...]], run: Run) -> None:
        """Add a run to its unit; runs that it covers are replaced by it."""
        unit = run.start // self.header.unit_rows
        start, stop = self._bounds(unit)
        if not start <= run.start < run.stop <= stop:
            raise ArgumentError(
                f"a run of rows {run.start} to {run.stop - 1} does not lie in the unit of rows "
                f"{start} to {stop - 1}"
            )
        others = open_units.get(unit, ())
        kept = [
            r for r in others if r.start < run.start or (r.start > run.start and r.stop > run.stop)
        ]
        open_units[unit] = (*kept, run)

    def seal(self, units: Sequence[WholeUnit]) -> None:
        """File the block hashes of whole units, and once they are durable the slot that says so.

        Hashes that lie there tell nothing of themselves: a write that failed leaves half of one.
        """
        known = []
        for whole in units:
            whole.check(self.header)
            data = np.ascontiguousarray(whole.hashes).reshape(-1)
            disk.write_at(self._fd, data, self._hashes_at(whole.unit))
            start = whole.unit * self.header.unit_rows
            with self._guard:
                self.sealed = self.sealed.add(start, start + whole.num_rows)
            if whole.hashes.any(axis=2).all():  # else one is unknown: the runs keep their checksums
                known.append(whole.unit)
        if not known:
            return
        disk.sync_data(self._fd)
        with self._guard:
            for unit in known:
                self._marked = self._marked.add(*self._bounds(unit))
            self._record({u: runs for u, runs in self._open.items() if u not in known})

    def hashes(self, unit: int) -> Array:
        """The block hashes of a unit, uint8 (blocks, hashed columns, 32)."""
        start, stop = self._bounds(unit)
        stored = self._read_hashes(unit)
        known = any(run.crc is None for run in self._open.get(unit, ()))
        return stored if known or self.sealed.covers(start, stop) else np.zeros_like(stored)

    def replan(self, header: Header) -> None:
        """Replace the header; a larger num_samples costs a copy of the committed rows.

        What was written and not committed is gone where a copy is made. A kill, an error or a full
        disk leaves the store as it was, or as it should be.
        """
        planned, num_samples = self.header.num_samples or 0, check_planned(header)
        if num_samples < planned:
            raise ArgumentError(
                f"the store plans {planned} rows and cannot shrink to {num_samples}"
            )
        self._put_header(header)

    def finish(self, header: Header, offsets: Array | None = None) -> None:
        """Publish the final header, after everything that it speaks of is durable."""
        num_samples = self.header.num_samples or 0
        if header.num_samples != num_samples or not self.sealed.covers(0, num_samples):
            raise ArgumentError(f"not all of the {header.num_samples} rows are in sealed units")
        if offsets is not None:
            extent = self._layout.extents[OFFSETS]
            if extent.shape != offsets.shape:
                raise ArgumentError(f"{offsets.shape} offsets for {extent.shape[0] - 1} sequences")
            disk.write_at(self._fd, offsets.astype("<i8").view(np.uint8), extent.offset)
            disk.sync_data(self._fd)
        self._put_header(header)

    def _put_header(self, header: Header) -> None:
        changes = plan_mirrors(self._fd, self._layout, header)
        record = header_record(header, self._layout.header_sequence + 1)
        extent = self._layout.extents[HEADER]
        fits = changes is not None and header.counts == self.header.counts
        if not fits or not write_record(self._fd, extent, HEADER_MAGIC, record):
            self._rebuild(header)
            return
        disk.sync_data(self._fd)
        self.header = header
        self._write_mirrors(changes or ())

    def _write_mirrors(self, changes: Sequence[tuple[int, bytes]]) -> None:
        for offset, data in changes:
            disk.write_at(self._fd, data, offset)
        disk.sync_data(self._fd)
        self._layout = inspect(self._hdf5)

    def _rebuild(self, header: Header) -> None:
        """Put a new file with `header`, and everything committed, in the place of this one."""
        if self._layout.foreign:
            raise UnsupportedError(
                f"{self._path} must be rebuilt, and what others have put there would be lost: "
                f"{list(self._layout.foreign)}; move that to another file first"
            )
        entries = self._entries(self._open)
        committed = Ranges.of(*((run.start, run.stop) for run in entries))

        def fill(fd: int, layout: Layout) -> None:
            for column in header.schema.columns:
                for start, stop in committed:
                    skip, size = start * column.row_bytes, (stop - start) * column.row_bytes
                    self._copy(fd, layout, column.name, skip, size)
            for name in {HASHES, OFFSETS} & layout.extents.keys():
                old, new = self._layout.extents[name].nbytes, layout.extents[name].nbytes
                self._copy(fd, layout, name, 0, min(old, new))

        # A new file: a contiguous dataset cannot grow.
        fd = make(self._path, header, entries, fill)
        old = self._fd
        self._adopt(fd)
        os.close(old)
        disk.sync_directory(self._path.parent)

    def _copy(self, fd: int, layout: Layout, name: str, skip: int, size: int) -> None:
        source, target = self._layout.extents[name].offset, layout.extents[name].offset
        for done in range(skip, skip + size, _COPY_BYTES):
            count = min(_COPY_BYTES, skip + size - done)
            disk.write_at(fd, disk.read_at(self._fd, source + done, count), target + done)

    def close(self) -> None:
        """Close the file; what was not committed is gone."""
        if self._fd < 0:
            return
        fd, self._fd = self._fd, -1
        os.close(fd)


def check_planned(header: Header) -> int:
    """The number of samples, which this format must know from the start."""
    if header.num_samples is None:
        raise ArgumentError(
            "an HDF5 store has a fixed size: give num_samples=, or use a path that ends in .zarr, "
            "since Zarr takes a stream of unknown length"
        )
    if None in header.counts.values():
        raise ArgumentError(
            "an HDF5 store has a fixed size: give num_sequences= as well, or use a path that ends in .zarr"
        )
    return header.num_samples
