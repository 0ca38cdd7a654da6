"""What happens to rows after they were checked: gathered, written and hashed, made durable.

Gathering, writing and hashing happen in the caller's thread, while the rows are in its cache (a
thread for them was measured slower at every size); only waiting for the disk has a thread.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import numpy as np

from fostore.errors import FostoreError, RowError
from fostore.formats import Run, UnitWriter
from fostore.schema import geometry
from fostore.schema.ranges import Range, Ranges, describe
from fostore.schema.row import Array, Schema
from fostore.writing.ledger import Ledger

_GATHERED_BYTES = 1 << 20  # small batches are gathered up to this: one system call, one hash
_LARGE_BYTES = 256 << 10  # larger batches are written as they come: a copy would cost more


class Pipeline:
    """Rows in, commits out; used by one thread, the writer's.

    After an error nothing more is taken; the last commit stands.
    """

    def __init__(self, units: UnitWriter, written: Ranges, *, commit_seconds: float) -> None:
        self.ledger = Ledger(units)
        self.committed = written
        self._units = units
        self._unit_rows = units.header.unit_rows
        self._row_bytes = sum(units.header.schema.row_bytes)
        self._commit_seconds = commit_seconds
        self._written = written
        self._gathered = _Gathered(units.header.schema)
        self._disk = _Background("fostore-commit")
        self._last_commit = time.monotonic()
        self._torn = False
        self.end = written.items[-1][1] if written else 0
        """The row after the last one that was taken."""

    @property
    def accepted(self) -> Ranges:
        """The rows that were taken, durable or not."""
        few = self._gathered
        return self._written.add(few.start, few.start + few.count)

    def check_free(self, start: int, stop: int, planned: int | None) -> None:
        """Raise RowError where `[start, stop)` lies before 0, behind the plan, or over rows that were taken."""
        if start < 0:
            raise RowError(f"rows start at 0, {start} came")
        if planned is not None and stop > planned:
            raise RowError(
                f"the store plans {planned} rows, this batch would end at row {stop - 1}; "
                "to extend it, resume it with exists='resume' and a larger num_samples"
            )
        taken = self.accepted.overlap(start, stop)
        if taken:
            raise RowError(f"{describe(taken)} are written already, and a row never changes")

    def check(self) -> None:
        """Raise what went wrong since; an error of the commit thread comes one batch late."""
        if self._torn:
            raise FostoreError(
                "writing failed in the middle of a batch; close the store and resume"
            )
        self._disk.check()

    def put(self, start: int, columns: Sequence[Array]) -> None:
        """Take rows, one array a column; commits when it is time. The arrays may be reused afterwards."""
        self._torn = True  # an interruption in here leaves nobody knowing how far it came
        rows, few = len(columns[0]), self._gathered
        is_small = rows * self._row_bytes < _LARGE_BYTES
        if few.count and not (
            is_small and few.start + few.count == start and few.count + rows <= few.capacity
        ):
            self.drain()
        if is_small:
            few.add(start, columns)
        else:
            self._write(start, columns)
        self.end = max(self.end, start + rows)
        self._torn = False
        if time.monotonic() - self._last_commit >= self._commit_seconds:
            self.drain()
            self._begin_commit()

    def is_idle(self) -> bool:
        """Whether no commit is on its way."""
        return self._disk.is_idle()

    def drain(self) -> None:
        """Write every row that was taken, so that it can be read back; after an interruption, again."""
        few = self._gathered
        if few.count:
            self._write(few.start, few.arrays())
            few.count = 0  # last: what was interrupted is written again

    def read(self, index: int, start: int, stop: int) -> Array:
        """Rows of a column that were taken, as they are stored.

        Raises:
            RowError: some were not.
        """
        gaps = self.accepted.missing(stop, start)
        if gaps:
            raise RowError(f"{describe(gaps)} are not written")
        self.drain()
        pieces = geometry.split_at_units(start, stop, self._unit_rows)
        arrays = [self._units.read(index, first, last) for _, first, last in pieces]
        column = self._units.header.schema.columns[index]
        return np.concatenate([np.empty((0, *column.shape), column.numpy_dtype), *arrays])

    def commit(self) -> None:
        """Make every row that was taken durable, and seal units that are whole.

        After a failure in `put`: the rows that had been taken before, as far as the disk takes them.
        """
        with suppress(*([OSError] if self._torn else [])):  # the first error has been raised
            self.drain()
        self._begin_commit()
        self._disk.join()

    def close(self) -> None:
        """End the thread; what was not committed is given up."""
        self._disk.close()

    def _write(self, start: int, columns: Sequence[Array]) -> None:
        stop = start + len(columns[0])
        for _, first, last in geometry.split_at_units(start, stop, self._unit_rows):
            pieces = [rows[first - start : last - start] for rows in columns]
            for i, column in enumerate(pieces):
                self._units.write(i, first, column)
            self.ledger.account(first, pieces)
            self._written = self._written.add(first, last)
            if last % self._unit_rows == 0 and not self._units.commits_runs:
                self._begin_commit()  # whole units wait in memory: one is on its way, and one is filled
        if start // self._unit_rows != stop // self._unit_rows and self._disk.is_idle():
            # A unit is full: have the disk begin, so that the commit finds little left to wait for.
            self._disk.submit(self._units.sync)

    def _begin_commit(self) -> None:
        self._last_commit = time.monotonic()
        self._disk.join()
        runs = self.ledger.uncommitted()
        whole = self.ledger.whole_units(self._units.header.num_samples)
        if runs or whole:
            self._disk.submit(self._commit_now, runs, whole, self._written)

    def _commit_now(self, runs: list[Run], whole: list[Range], written: Ranges) -> None:
        if self._units.commits_runs:
            if runs:
                self._units.sync()
                self._units.commit(runs)
                self.ledger.recorded()
            self.committed = written
            self.ledger.seal(whole)
        else:
            try:
                self.ledger.seal(whole)
            finally:  # those before one that could not be
                self.committed = self._units.sealed


class _Gathered:
    """Small batches in a row, gathered into one."""

    def __init__(self, schema: Schema) -> None:
        self._columns = schema.columns
        self.capacity = _GATHERED_BYTES // sum(schema.row_bytes)
        self._buffers: list[Array] = []
        self.start = 0
        self.count = 0

    def add(self, start: int, columns: Sequence[Array]) -> None:
        if not self._buffers:
            shapes = [((self.capacity, *c.shape), c.numpy_dtype) for c in self._columns]
            self._buffers = [np.empty(shape, dtype) for shape, dtype in shapes]
        if not self.count:
            self.start = start
        end = self.count + len(columns[0])
        for buffer, rows in zip(self._buffers, columns, strict=True):
            buffer[self.count : end] = rows
        self.count = end

    def arrays(self) -> list[Array]:
        return [buffer[: self.count] for buffer in self._buffers]


class _Background:
    """One job at a time in one thread; the error of a job is raised by every later call."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._pool: ThreadPoolExecutor | None = None
        self._job: Future[None] | None = None

    def submit(self, job: Callable[..., None], *arguments: Any) -> None:
        self.join()
        if self._pool is None:
            self._pool = ThreadPoolExecutor(1, thread_name_prefix=self._name)
        ticket = _Ticket()
        try:
            self._job = self._pool.submit(ticket.run, job, arguments)
        except BaseException:
            ticket.void()  # an interruption: whether the job was taken is not known
            raise

    def is_idle(self) -> bool:
        return self._job is None or self._job.done()

    def check(self) -> None:
        if self._job is not None and self._job.done():
            self._job.result()

    def join(self) -> None:
        if self._job is not None:
            self._job.result()

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True)


class _Ticket:
    """The right of one job to run; when `void` returns, it has ended or never will begin."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._is_valid = True

    def run(self, job: Callable[..., None], arguments: tuple[Any, ...]) -> None:
        with self._guard:
            if self._is_valid:
                job(*arguments)

    def void(self) -> None:
        with self._guard:
            self._is_valid = False
