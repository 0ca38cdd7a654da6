"""Digests of rows that pass by in order: whole blocks are hashed on other cores while the next rows come."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np

from fostore.encodings.threads import num_threads
from fostore.files.table import Batch, Table
from fostore.progress import Progress
from fostore.schema import digest, geometry
from fostore.schema.header import Header
from fostore.schema.row import Array, Schema

_WORKERS = num_threads()
_SMALL_BYTES = 256 << 10  # below, handing over costs more than hashing


class Digester:
    """The digest of a store of the rows that pass by; `with` ends its threads.

    Batches are kept until they are hashed, at most two a thread.
    """

    def __init__(
        self, schema: Schema, num_rows: int | None, num_sequences: int | None = None
    ) -> None:
        self._header = Header(
            schema,
            num_rows,
            1,
            geometry.block_rows(schema.row_bytes),
            num_sequences=num_sequences,
        )
        sequence = schema.role("sequence")
        self._sequence = None if sequence is None else schema.index(sequence.name)
        self._num_sequences = 0
        self._hashed = [i for i, column in enumerate(schema.columns) if column.hashed]
        self._hashes: list[Array | Future[Array]] = []
        self._waiting: list[Future[Array]] = []
        self._partial: list[Any] = []
        self._pool: ThreadPoolExecutor | None = None
        self.num_rows = 0

    def update(self, columns: Sequence[Array]) -> None:
        """The next rows, one array a column of the stored dtype, in schema order."""
        size, row, rows = self._header.block_rows, 0, len(columns[0])
        while row < rows:
            inside = self.num_rows % size
            whole = (rows - row) // size * size if inside == 0 else 0
            stop = row + whole if whole else min(rows, row + size - inside)
            pieces = [columns[i][row:stop] for i in self._hashed]
            if whole:
                self._blocks(pieces, whole // size)
            else:
                self._piece(pieces, inside)
            self.num_rows += stop - row
            row = stop
        if rows and self._sequence is not None:
            self._num_sequences = int(columns[self._sequence][-1]) + 1

    def digest(self) -> str:
        """The digest of all rows so far; nothing may follow.

        Raises:
            ArgumentError: they are not as many as were planned.
        """
        if self._partial:
            self._end_block()
        # In the order of the blocks, whichever thread was done first.
        hashes = [one if isinstance(one, np.ndarray) else one.result() for one in self._hashes]
        empty = np.zeros((0, len(self._hashed), digest.HASH_BYTES), np.uint8)
        header = replace(self._header, **self.counts)
        return digest.store_digest(header, np.concatenate([empty, *hashes]))

    @property
    def counts(self) -> dict[str, Any]:
        """How many rows were planned, or have passed, and of token rows how many sequences."""
        passed = {"num_samples": self.num_rows, "num_sequences": self._num_sequences}
        planned = self._header.counts
        return {name: passed[name] if count is None else count for name, count in planned.items()}

    def _blocks(self, pieces: list[Array], count: int) -> None:
        if _WORKERS < 2 or sum(piece.nbytes for piece in pieces) < _SMALL_BYTES:
            self._hashes.append(_hash_blocks(pieces, count))
            return
        if self._pool is None:
            self._pool = ThreadPoolExecutor(_WORKERS, thread_name_prefix="fostore-digest")
        # A job keeps its rows in memory, so only so many wait.
        while len(self._waiting) >= 2 * _WORKERS:
            self._waiting.pop(0).result()
        job = self._pool.submit(_hash_blocks, pieces, count)
        self._waiting.append(job)
        self._hashes.append(job)

    def _piece(self, pieces: list[Array], inside: int) -> None:
        """Part of a block, which is hashed here and now."""
        # The next rows of the block are not there yet, and to keep these would be a copy of each.
        self._partial = self._partial or [digest.hasher() for _ in pieces]
        for one, piece in zip(self._partial, pieces, strict=True):
            one.update(digest.buffer(piece))
        if inside + len(pieces[0]) == self._header.block_rows:
            self._end_block()

    def _end_block(self) -> None:
        flat = b"".join(one.digest() for one in self._partial)
        self._hashes.append(np.frombuffer(flat, np.uint8).reshape(1, -1, digest.HASH_BYTES))
        self._partial = []

    def close(self) -> None:
        """End the threads; again is no error."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._pool = None

    def __enter__(self) -> Digester:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _hash_blocks(pieces: Sequence[Array], count: int) -> Array:
    size = len(pieces[0]) // count
    hashes = np.empty((count, len(pieces), digest.HASH_BYTES), np.uint8)
    for block in range(count):
        for i, piece in enumerate(pieces):
            hashes[block, i] = digest.block_hash(piece[block * size : (block + 1) * size])
    return hashes


def digest_of(table: Table, rows: int, bar: Progress | None = None) -> str:
    """The digest of all rows of a table, read anew, so many at a time."""
    with Digester(table.schema, table.num_rows, table.num_sequences) as digester:
        for batch in table.batches(0, rows):
            digester.update(batch)
            if bar is not None:
                bar.add(len(batch[0]))
        return digester.digest()


class HashedTable:
    """The rows of a table as somebody else reads them, with the digest of all once all have passed."""

    def __init__(self, table: Table) -> None:
        self._table = table
        self._digester = Digester(table.schema, table.num_rows, table.num_sequences)

    def batches(self, start: int, rows: int) -> Iterator[Batch]:
        """As `Table.batches`; the first reading from row 0 on is hashed."""
        is_hashed = start == 0 == self._digester.num_rows
        for batch in self._table.batches(start, rows):
            if is_hashed:
                self._digester.update(batch)
            yield batch

    def digest(self) -> str:
        """The digest of the table; only after all rows have passed."""
        return self._digester.digest()

    def close(self) -> None:
        self._digester.close()
