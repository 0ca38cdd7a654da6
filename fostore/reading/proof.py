"""Whether rows still have the bytes that were written: what a store keeps of them, held against what lies there.

Blocks of sealed units have hashes, runs that are only committed have checksums that grew with them. Both are
compared before a row is copied, adopted or reported, and a difference names as few rows as they can tell.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from fostore.errors import DamageError
from fostore.formats import ColumnView, Reader, Run
from fostore.schema import digest
from fostore.schema.header import Header
from fostore.schema.ranges import Range, Ranges, describe
from fostore.schema.row import Array, Column

_READ_BYTES = 8 << 20
_MAX_GUESSES = 16

_ReadRows = Callable[[int, int], Sequence[Array]]
"""(start, stop) to the rows as they lie, one array a column."""


class RunCheck:
    """A committed run against its checksum, piece by piece, from its first row on.

    The checksums of earlier commits of the run cut it into pieces, so that damage has an address.
    Behind a damaged piece the check goes on from what the record says there: exact with one column;
    with several, on the assumption that one of them was damaged, which the next checksum proves.
    """

    def __init__(self, run: Run, columns: Sequence[Column], read: _ReadRows) -> None:
        assert run.crc is not None
        self._run = run
        self._columns = columns
        self._read = read
        self._left = [*run.earlier, (run.stop, run.crc)][::-1]
        self._guesses = [[0] * len(columns)]  # of the columns' checksums up to `_position`
        self._position = run.start
        self.damaged = Ranges()

    def damage(self, stop: int | None = None) -> tuple[Range, ...]:
        """The pieces up to row `stop` (of the whole run by default) that do not have their checksum."""
        stop = self._run.stop if stop is None else stop
        while self._left and self._position < stop:
            self._step(*self._left.pop())
        return self.damaged.items

    def _step(self, end: int, crc: int) -> None:
        guesses = self._guesses
        rows = max(_READ_BYTES // max(column.row_bytes for column in self._columns), 1)
        for first in range(self._position, end, rows):
            columns = self._read(first, min(first + rows, end))
            guesses = [
                [digest.crc(column, value) for column, value in zip(columns, crcs, strict=True)]
                for crcs in guesses
            ]
        right = [crcs for crcs in guesses if digest.combine_crcs(crcs) == crc]
        if right:
            self._guesses = right
        else:
            self.damaged = self.damaged.add(self._position, end)
            every = range(len(self._columns))
            self._guesses = [digest.other_crc(crcs, i, crc) for crcs in guesses for i in every]
            if len(self._guesses) > _MAX_GUESSES:  # of what follows nothing can be told
                self.damaged = self.damaged.add(self._position, self._run.stop)
                self._left = []
        self._position = end


class Proof:
    """What an open store keeps of the bytes of its rows; each block and run is read once, when it is asked for.

    Args:
        where: names the store in messages.
    """

    def __init__(self, reader: Reader, where: str) -> None:
        self._reader = reader
        self._where = where
        self._header: Header = reader.header
        self._committed = reader.committed
        columns = self._header.schema.columns
        self._hashed = [i for i, column in enumerate(columns) if column.hashed]
        runs = sorted((r for r in reader.runs() if r.crc is not None), key=lambda r: r.start)
        self._runs = [(run, RunCheck(run, columns, self._read)) for run in runs]
        self._starts = [run.start for run in runs]

    @cached_property
    def hashes(self) -> Array | None:
        """The hashes of all blocks, (blocks, hashed columns, 32), where they are those of the digest; else None."""
        stored, header = self._stored, self._header
        whole = header.sealed and bool(stored.any(axis=2).all())
        return stored if whole and digest.store_digest(header, stored) == header.digest else None

    def unknown(self, start: int, stop: int) -> tuple[Range, ...]:
        """The rows of `[start, stop)` of which nothing is kept, so that nobody can tell whether they changed."""
        if self._header.digest is not None:
            return ()
        size = self._header.block_rows
        blocks = np.flatnonzero(self._stored.any(axis=(1, 2))).tolist()
        kept = Ranges.of(
            *((block * size, block * size + size) for block in blocks),
            *((run.start, run.stop) for run, _ in self._runs),
        )
        committed = self._committed.overlap(start, stop)
        return tuple(gap for a, b in committed for gap in kept.missing(b, a))

    def check(self, start: int, stop: int, columns: Sequence[Array] | None = None) -> None:
        """Hold the rows `[start, stop)`, and what is hashed with them, against what is kept.

        Args:
            columns: the rows themselves where the caller has them, one array a column.

        Raises:
            DamageError: names the rows of the blocks, or pieces of runs, that have other bytes.
        """
        if start >= stop:
            return
        if self._header.sealed and self.hashes is None:
            self._check_digest()
            return
        damaged = [*self._blocks(start, stop, columns), *self._pieces(start, stop)]
        if damaged:
            rows = Ranges.of(*damaged)
            raise DamageError(
                f"{self._where} is damaged: {describe(rows)} do not have the bytes that were "
                f"{'sealed' if self._header.sealed else 'committed'}; restore it from a copy",
                rows.items,
            )

    def check_rows(self, rows: Array) -> None:
        """The same for some rows, int64 in any order."""
        size = self._header.block_rows
        ordered = np.unique(rows)
        cuts = np.flatnonzero(np.diff(ordered // size)) + 1
        for block in np.split(ordered, cuts) if len(ordered) else ():
            self.check(int(block[0]), int(block[-1]) + 1)

    @cached_property
    def _stored(self) -> Array:
        return self._reader.block_hashes()

    @cached_property
    def _is_right(self) -> Array:
        """Blocks that were compared already."""
        return np.zeros(len(self._stored), bool)

    def _blocks(self, start: int, stop: int, columns: Sequence[Array] | None) -> Iterator[Range]:
        size = self._header.block_rows
        for block in range(start // size, min(-(-stop // size), len(self._stored))):
            known = self._stored[block]
            if self._is_right[block] or not known.any():
                continue
            first = block * size
            committed = self._committed.overlap(first, first + size)
            last = committed[0][1] if committed else first
            if columns is not None and start <= first and last <= stop:
                rows: Sequence[Array] = [c[first - start : last - start] for c in columns]
            else:
                rows = self._read(first, last)
            if np.array_equal(self._hashes_of(rows), known):
                self._is_right[block] = True
            else:
                yield first, last

    def _pieces(self, start: int, stop: int) -> Iterator[Range]:
        for at in range(max(bisect_right(self._starts, start) - 1, 0), len(self._runs)):
            run, check = self._runs[at]
            if run.start >= stop:
                return
            yield from (
                r for r in check.damage(min(stop, run.stop)) if r[0] < stop and start < r[1]
            )

    def _check_digest(self) -> None:
        """All rows of a sealed store whose block hashes are not those of its digest, once."""
        header, size = self._header, self._header.block_rows
        total = header.num_samples or 0
        fresh = np.zeros(
            (digest.num_blocks(header), len(self._hashed), digest.HASH_BYTES), np.uint8
        )
        for block in range(len(fresh)):
            rows = self._read(block * size, min(block * size + size, total))
            fresh[block] = self._hashes_of(rows)
        if digest.store_digest(header, fresh) != header.digest:
            raise DamageError(
                f"{self._where} is damaged: its rows do not have the digest {header.digest}; restore "
                "it from a copy"
            )
        self._stored = self.hashes = fresh
        self._is_right = np.ones(len(fresh), bool)

    def _hashes_of(self, rows: Sequence[Array]) -> Array:
        return np.stack([digest.block_hash(rows[i]) for i in self._hashed])

    def _read(self, start: int, stop: int) -> list[Array]:
        return [view.read(start, stop) for view in self._views]

    @cached_property
    def _views(self) -> list[ColumnView]:
        return [self._reader.column(i) for i in range(len(self._header.schema.columns))]


class Proven:
    """A reader whose rows are checked as they are read; for those who copy all of a store, column after column."""

    def __init__(self, reader: Reader, where: str) -> None:
        self.header = reader.header
        self.committed = reader.committed
        self._reader = reader
        self._proof = Proof(reader, where)

    def column(self, index: int) -> Any:
        """The view of a column, whose `read` raises DamageError where rows have changed."""
        return _ProvenView(self._reader.column(index), self._proof)


class _ProvenView:
    def __init__(self, view: ColumnView, proof: Proof) -> None:
        self._view = view
        self._proof = proof

    def read(self, start: int, stop: int) -> Array:
        self._proof.check(start, stop)
        return self._view.read(start, stop)
