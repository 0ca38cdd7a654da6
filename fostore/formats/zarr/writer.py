"""Writing a Zarr store: rows to tails, commits to the journal, whole units to shards (spec/zarr.md).

The order is what makes a kill harmless: the hashes of whole units, then their shards, then the shapes
that show them to plain readers; a final header before the journal goes.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fostore import disk
from fostore.errors import ArgumentError, DamageError
from fostore.formats import Run, WholeUnit
from fostore.formats.claim import WHOLE, Claim
from fostore.formats.zarr import journal
from fostore.formats.zarr.folder import METADATA, Folder, locate, read_hashes, write_offsets
from fostore.formats.zarr.journal import JournalHeader
from fostore.formats.zarr.layout import HASHES
from fostore.formats.zarr.state import State, group_metadata
from fostore.formats.zarr.tails import Tails, clean
from fostore.schema import digest
from fostore.schema.header import Header
from fostore.schema.ranges import Ranges, describe
from fostore.schema.row import Array


class ZarrWriter:
    """A `UnitWriter` of a Zarr store; see `fostore.formats.UnitWriter`."""

    header: Header
    sealed: Ranges
    runs: tuple[Run, ...]
    commits_runs = True

    def __init__(
        self, state: State, sealed: Ranges, runs: tuple[Run, ...], claim: Claim = WHOLE
    ) -> None:
        self.header = state.header
        self.sealed, self.runs = sealed, runs
        self._folder = state.folder
        self._tails = Tails(state.folder)
        self._guard = threading.Lock()
        self._shapes = list(state.shapes)
        self._num_blocks = state.num_blocks
        self._committed = state.committed
        # Published rows of the unit that goes on, until the journal has them with a checksum.
        self._bases = {run.start // self.header.unit_rows: run for run in runs if run.crc is None}
        self._recorded = {run.start // self.header.unit_rows for run in runs if run.crc is not None}
        self._writable: set[int] = set()  # units that were looked at by `_reopen`
        self._claim = claim
        own = state.journals.get(claim.owner)
        self._sequence = own.sequence if own else 0
        self._journal_end = own.num_bytes if own else journal.HEADER_BYTES
        self._journal: int | None = None
        self._failed = False
        if own is not None:
            self._open_journal()
        elif not claim.is_whole:
            self._begin_journal(self.header)

    # Rows

    def write(self, column: int, start: int, rows: Array) -> None:
        """Write rows at `start`, all inside one unit. Not durable."""
        layout = self._folder.shards[column].column
        if rows.shape[1:] != layout.shape or rows.dtype != layout.numpy_dtype:
            raise ArgumentError(
                f"column {layout.name!r} takes rows of {layout.stored} and shape {layout.shape}, "
                f"{rows.dtype} and shape {rows.shape[1:]} came"
            )
        if not len(rows):
            return
        unit = self._unit_of(start, start + len(rows))
        if unit not in self._writable:
            self._reopen(unit)
        offset = (start - unit * self.header.unit_rows) * layout.row_bytes
        self._tails.write(column, unit, digest.buffer(rows), offset)

    def read(self, column: int, start: int, stop: int) -> Array:
        """Rows written before, all inside one unit.

        Raises:
            DamageError: their file is missing or too short.
        """
        layout = self._folder.shards[column]
        rows = np.empty((max(stop - start, 0), *layout.column.shape), layout.column.numpy_dtype)
        if start >= stop:
            return rows
        unit = self._unit_of(start, stop)
        name = locate(self._folder, column, unit, in_progress=True)
        lost = ((start, stop),)
        if name is None:
            missing = f"{self._folder.path}/{layout.key(unit)}"
            raise DamageError(f"{missing} is missing, and with it {describe(lost)}", lost)
        buffer = digest.buffer(rows).data
        at = (start - unit * self.header.unit_rows) * layout.column.row_bytes
        # Opened anew each time: the thread that seals may rename the file.
        path = self._folder.path / name
        fd = disk.open_file(path)
        try:
            if disk.read_into(fd, buffer, at) < len(buffer):
                raise DamageError(f"{path} was cut, and with it {describe(lost)}", lost)
        finally:
            os.close(fd)
        return rows

    # Durable

    def sync(self) -> None:
        """Make all rows that were written before the call durable."""
        self._tails.sync()

    def commit(self, runs: Sequence[Run]) -> None:
        """Record runs whose rows are durable; when this returns they are committed.

        Raises:
            ArgumentError: a run that straddles a unit, or a sealed store that was not replanned.
            SpaceError: the disk is full; the last commit stands.
        """
        if not runs:
            return
        if self._failed:
            raise DamageError("a commit failed halfway before; close the store and resume it")
        units = [self._unit_of(run.start, run.stop) for run in runs]
        for unit in {*units} - self._writable:
            self._check_claimed("commit", unit)
        if self._bases:
            runs = [*self._published_runs(runs), *runs]
        for at in range(0, len(runs), journal.MAX_RECORDS):
            self._append(runs[at : at + journal.MAX_RECORDS])
        with self._guard:
            for run in runs:
                self._bases.pop(run.start // self.header.unit_rows, None)
                self._recorded.add(run.start // self.header.unit_rows)
                self._committed = self._committed.add(run.start, run.stop)

    def _append(self, runs: Sequence[Run]) -> None:
        assert self._journal is not None
        data = journal.pack_commit(runs, self._sequence + 1)
        # A write that fails halfway is written over by the next commit, which has the same sequence.
        disk.write_at(self._journal, data, self._journal_end)
        try:
            disk.sync_data(self._journal)
        except BaseException:
            self._failed = True  # nobody knows what is durable: no commit may follow
            raise
        self._journal_end += len(data)
        self._sequence += 1

    def _published_runs(self, runs: Sequence[Run]) -> list[Run]:
        """Published rows of units that `runs` go on with, now with a checksum.

        From here on their block hashes may be those of a longer block, so they cannot vouch for them.
        """
        published = []
        for unit in sorted({run.start // self.header.unit_rows for run in runs}):
            base = self._bases.get(unit)
            if base is None or any(r.start <= base.start and base.stop <= r.stop for r in runs):
                continue
            crc = digest.crc_of_rows(self.read, self.header.schema.row_bytes, base.start, base.stop)
            published.append(Run(base.start, base.stop, crc))
        return published

    # Sealed

    def seal(self, units: Sequence[WholeUnit]) -> None:
        """Units are whole: their hashes, then their shards, then the shapes. Idempotent.

        Every step is made durable for all units together, before the next one begins.

        Raises:
            ArgumentError: rows or hashes that a unit does not have.
            DamageError: a column has neither tail nor whole shard.
        """
        for whole in units:
            self._check_whole(whole)
        path, layouts = self._folder.path, self._folder.shards
        hashes = [(w.unit, self._stage_hashes(w)) for w in units if not self._has_hashes(w)]
        # The index goes behind the rows: a tail becomes a shard where it lies, nothing is copied.
        complete = [
            (index, whole.unit)
            for whole in units
            for index in range(len(layouts))
            if self._tails.complete(index, whole.unit, whole.num_rows)
        ]
        self._tails.sync()
        for _, temporary in hashes:
            disk.sync_file(temporary)
        chunks = [path / self._folder.hashes.key(unit) for unit, _ in hashes]
        shards = [path / layouts[index].key(unit) for index, unit in complete]
        # Before any rename: a name that is durable in a folder whose own name is not is lost with it.
        disk.make_folders(*(file.parent for file in (*chunks, *shards)))
        for (_, temporary), chunk in zip(hashes, chunks, strict=True):
            disk.rename(temporary, chunk)
        self._sync_names(path / HASHES, chunks)
        # Shards after hashes: a kill in between leaves hashes without rows, which nobody reads.
        for index, unit in complete:
            self._tails.place(index, unit)
        for index, layout in enumerate(layouts):
            shards = [path / layout.key(whole.unit) for whole in units]
            self._sync_names(self._folder.array(index), shards)
            for whole, shard in zip(units, shards, strict=True):
                size = self._folder.place.size(layout.key(whole.unit))
                if size != layout.shard_bytes(whole.num_rows):
                    start = whole.unit * self.header.unit_rows
                    lost = ((start, start + whole.num_rows),)
                    message = f"{shard} is missing or cut, and with it {describe(lost)}"
                    raise DamageError(message, lost)
        with self._guard:
            for whole in units:
                start = whole.unit * self.header.unit_rows
                self.sealed = self.sealed.add(start, start + whole.num_rows)
                self._recorded.discard(whole.unit)
                self._writable.discard(whole.unit)
            prefix = self.sealed.prefix
        self._publish(prefix)

    def _check_whole(self, whole: WholeUnit) -> None:
        start = whole.unit * self.header.unit_rows
        stop = start + whole.num_rows
        self._unit_of(start, stop)
        whole.check(self.header)
        with self._guard:
            missing = self._committed.missing(stop, start)
        if missing:
            raise ArgumentError(
                f"unit {whole.unit} cannot be sealed: {describe(missing)} are not committed"
            )

    def hashes(self, unit: int) -> Array:
        """The block hashes of a sealed unit, or of what was sealed of it; zero where unknown."""
        start = unit * self.header.unit_rows
        shown = self.sealed.union([(0, min(self._shapes))])
        rows = len(Ranges(shown.overlap(start, start + self.header.unit_rows)))
        rows = rows or self._folder.unit_stop(unit) - start
        held = -(-rows // self.header.block_rows)
        if unit in self._recorded:
            # They may be those of longer blocks, from a seal that a kill cut short.
            return np.zeros((held, *self._folder.hashes.chunk_shape[1:]), np.uint8)
        return read_hashes(self._folder, unit)[:held]

    def replan(self, header: Header) -> None:
        """Replace the header of a store that goes on: not sealed, no digest; same id, schema, units."""
        self._claim.check_whole("replan")
        old = self.header
        if header.sealed or header.digest is not None:
            raise ArgumentError("replan takes a header that is not sealed, without digest")
        if (header.id, header.schema, header.unit_rows) != (old.id, old.schema, old.unit_rows):
            raise ArgumentError("replan keeps the id, the schema and unit_rows of a store")
        end = self._committed.items[-1][1] if self._committed else 0
        if header.num_samples is not None and header.num_samples < end:
            raise ArgumentError(f"{header.num_samples} rows are planned and {end} are committed")
        text = group_metadata(header)
        if self._journal is None:  # before the header: a store that is not sealed has a journal
            self._begin_journal(header)
        disk.write_whole(self._folder.path / METADATA, text)
        self._set_header(header)

    def finish(self, header: Header, offsets: Array | None = None) -> None:
        """Publish the final header and remove what only a run in progress needs.

        Raises:
            ArgumentError: the header is not sealed, or rows are missing.
        """
        self._claim.check_whole("finish")
        rows = header.num_samples
        if not header.sealed or rows is None:
            raise ArgumentError("finish takes a header that is sealed and has num_samples")
        published = self.sealed.union([(0, min(self._shapes))]).prefix
        if self._committed.items != (((0, rows),) if rows else ()) or published < rows:
            raise ArgumentError(
                f"{rows} rows are to be published; {len(self._committed)} are committed and "
                f"{published} of them sealed"
            )
        text = group_metadata(header)
        self._publish(rows)
        write_offsets(self._folder, offsets)
        disk.write_whole(self._folder.path / METADATA, text)
        self._set_header(header)
        self._close_journal()
        self._tails.close()
        clean(self._folder, self._claim, keep_units=None)

    def close(self) -> None:
        """Release files; what was not committed is gone. Again is no error."""
        self._tails.close()
        self._close_journal()

    def heal(self) -> None:
        """Show plain readers what a kill kept from them: rows that were sealed and not published."""
        self._publish(max(self.sealed.prefix, min(self._shapes)))

    # How

    def _unit_of(self, start: int, stop: int) -> int:
        unit_rows, plan = self.header.unit_rows, self.header.num_samples
        unit = start // unit_rows
        if not 0 <= start < stop <= (unit + 1) * unit_rows or (plan is not None and stop > plan):
            raise ArgumentError(
                f"rows {start} to {stop - 1} are empty, straddle a unit of {unit_rows} rows or "
                f"exceed the plan of {plan}"
            )
        return unit

    def _check_claimed(self, what: str, unit: int) -> None:
        if self.header.sealed:
            raise ArgumentError(f"{what}: the store is sealed; replan it first")
        if not self._claim.holds(unit):
            raise ArgumentError(
                f"{what}: unit {unit} is not one of {self._claim.units}, which {self._claim.owner!r} claims"
            )

    def _reopen(self, unit: int) -> None:
        """The first write to a unit: refused where it is sealed and full; a partial one goes on."""
        self._check_claimed("write", unit)
        start, stop = unit * self.header.unit_rows, (unit + 1) * self.header.unit_rows
        with self._guard:
            sealed = self.sealed.overlap(start, stop)
            if sealed == ((start, stop),):
                raise ArgumentError(f"unit {unit} is sealed, and a sealed row never changes")
            if sealed:
                self._bases[unit] = Run(sealed[0][0], sealed[-1][1], None)
                kept = [(first, min(last, start)) for first, last in self.sealed if first < start]
                beyond = [(max(first, stop), last) for first, last in self.sealed if last > stop]
                self.sealed = Ranges.of(*kept, *beyond)
            self._writable.add(unit)

    def _hash_chunk(self, whole: WholeUnit) -> Array:
        chunk = np.zeros(self._folder.hashes.chunk_shape, np.uint8)
        chunk[: len(whole.hashes)] = whole.hashes
        return chunk

    def _has_hashes(self, whole: WholeUnit) -> bool:
        # Compared, not only looked for: a kill may have left those of a unit that was shorter.
        is_there = self._folder.place.size(self._folder.hashes.key(whole.unit)) is not None
        return is_there and np.array_equal(
            read_hashes(self._folder, whole.unit), self._hash_chunk(whole)
        )

    def _stage_hashes(self, whole: WholeUnit) -> Path:
        """Write a unit's hash chunk under a temporary name, not durable yet."""
        temporary = self._folder.path / HASHES / f".{whole.unit}.tmp"
        disk.remove(temporary)
        fd = disk.open_file(temporary, write=True, create=True)
        try:
            disk.write_at(fd, self._hash_chunk(whole), 0)
        finally:
            os.close(fd)
        return temporary

    @staticmethod
    def _sync_names(array: Path, paths: Sequence[Path]) -> None:
        """Make the names of files, and then those that are gone from the array, durable."""
        for folder in (*dict.fromkeys(path.parent for path in paths), array):
            disk.sync_directory(folder)

    def _publish(self, rows: int) -> None:
        """Raise the shapes to `rows`; they are never lowered.

        Shapes are of all units: rows of a claim wait, committed and sealed, until all units are held.
        """
        if not self._claim.is_whole:
            return
        for index, layout in enumerate(self._folder.shards):
            if self._shapes[index] < rows:
                disk.write_whole(self._folder.array(index) / METADATA, layout.text(rows))
                self._shapes[index] = rows
        # Last: whoever finds a hash finds the rows that it is of.
        blocks = -(-rows // self.header.block_rows)
        if self._num_blocks < blocks:
            text = self._folder.hashes.text(blocks)
            disk.write_whole(self._folder.path / HASHES / METADATA, text)
            self._num_blocks = blocks

    def _set_header(self, header: Header) -> None:
        self.header = header
        self._writable = set()
        self._folder = Folder.of(self._folder.place, header)

    def _begin_journal(self, header: Header) -> None:
        owner = self._claim.owner
        disk.write_whole(self._folder.journal(owner), JournalHeader.of(header, owner).pack())
        self._sequence, self._journal_end = 0, journal.HEADER_BYTES
        self._open_journal()

    def _open_journal(self) -> None:
        self._journal = disk.open_file(self._folder.journal(self._claim.owner), write=True)
        if os.fstat(self._journal).st_size != self._journal_end:
            disk.truncate(self._journal, self._journal_end)  # a torn tail
            disk.sync_data(self._journal)

    def _close_journal(self) -> None:
        if self._journal is not None:
            os.close(self._journal)
            self._journal = None
