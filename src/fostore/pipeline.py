"""What happens to rows after they were checked: gathered, written and hashed, made durable.

Three steps in order, each beside the one before: the caller's thread gathers rows into batches of
about 1 MiB, one thread writes and hashes them, one waits for the disk.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol

import numpy as np

from fostore.errors import FostoreError
from fostore.formats import Run, UnitWriter
from fostore.ledger import Ledger
from fostore.ranges import Range, Ranges
from fostore.schema import Array, Schema

_BATCH_BYTES = 1 << 20  # one system call, one hash; larger ones leave the processor's cache
_WAITING = 3  # batches that may wait to be written: a bound on memory


class Pipeline:
    """Rows in, commits out; used by one thread, the writer's.

    `overlap` says whether batches are written and hashed in a thread of their own; where a model
    computes on the same cores that costs more than it gains. Only waiting for the disk always has
    a thread. After an error nothing more is taken; the last commit stands.
    """

    def __init__(
        self, units: UnitWriter, there: Ranges, *, commit_seconds: float, overlap: bool
    ) -> None:
        self.ledger = Ledger(units)
        self.committed = there
        self._units = units
        self._schema = units.header.schema
        self._commit_seconds = commit_seconds
        self._handed = there
        self._written = there
        self._batch = _Batch(self._schema)
        self._spare: deque[_Batch] = deque()
        self._writing: _Lane = _Thread("fostore-write", _WAITING) if overlap else _Inline()
        self._disk = _Thread("fostore-commit", 1)
        self._last_commit = time.monotonic()
        self._torn = False

    @property
    def accepted(self) -> Ranges:
        """The rows that were taken, durable or not."""
        batch = self._batch
        if not batch.count:
            return self._handed
        return self._handed.add(batch.start, batch.start + batch.count)

    @property
    def end(self) -> int:
        """The row after the last one that was taken."""
        items, batch = self._handed.items, self._batch
        end = items[-1][1] if items else 0
        return max(end, batch.start + batch.count) if batch.count else end

    def check(self) -> None:
        """Raise what went wrong since: errors of the threads come one batch late."""
        if self._torn:
            raise FostoreError(
                "writing was interrupted in the middle of a batch; close the store and resume it"
            )
        self._writing.check()
        self._disk.check()

    def put(self, start: int, columns: Sequence[Array]) -> None:
        """Take rows, one array a column; they are copied. Commits when it is time."""
        self._torn = True  # an interruption in here leaves nobody knowing how far it came
        rows, done = len(columns[0]), 0
        while done < rows:
            batch = self._batch
            if batch.count and batch.start + batch.count != start + done:
                self._hand_over()
                continue
            done += batch.fill(start + done, columns, done)
            if batch.is_full:
                self._hand_over()
        if time.monotonic() - self._last_commit >= self._commit_seconds:
            self._hand_over()
            self._begin_commit()
        self._torn = False

    def drain(self) -> None:
        """Wait until every row that was taken can be read back."""
        self._hand_over()
        self._writing.join()

    def commit(self) -> None:
        """Make every row that was taken durable, and seal units that are whole.

        After an interruption in `put`: the rows that had been written by then.
        """
        if not self._torn:
            self._hand_over()
        self._begin_commit()
        self._writing.join()
        self._disk.join()

    def close(self) -> None:
        """End the threads; what was not committed is given up."""
        self._writing.close()
        self._disk.close()

    def _hand_over(self) -> None:
        batch = self._batch
        if batch.count:
            self._handed = self._handed.add(batch.start, batch.start + batch.count)
            self._writing.submit(self._write, batch)  # the batch is the thread's from here on
            self._batch = self._spare.popleft() if self._spare else _Batch(self._schema)

    def _begin_commit(self) -> None:
        self._last_commit = time.monotonic()
        self._writing.submit(self._start_commit)

    # In the writing thread

    def _write(self, batch: _Batch) -> None:
        start, stop = batch.start, batch.start + batch.count
        self.ledger.put(start, batch.arrays())
        self._written = self._written.add(start, stop)
        batch.count = 0
        self._spare.append(batch)
        unit_rows = self._units.header.unit_rows
        if start // unit_rows != stop // unit_rows and self._disk.is_idle():
            # A unit is full: have the disk begin, so that the commit finds little left to wait for.
            self._disk.submit(self._units.sync)

    def _start_commit(self) -> None:
        self._disk.join()
        runs = self.ledger.uncommitted()
        whole = self.ledger.whole_units(self._units.header.num_samples)
        if runs or whole:
            self._disk.submit(self._commit_now, runs, whole, self._written)

    # In the thread that waits for the disk

    def _commit_now(self, runs: list[Run], whole: list[Range], written: Ranges) -> None:
        if runs:
            self._units.sync()
            self._units.commit(runs)
        self.committed = written
        self.ledger.seal(whole)


class _Batch:
    """Rows in a row, gathered up to about 1 MiB."""

    def __init__(self, schema: Schema) -> None:
        capacity = max(_BATCH_BYTES // max(schema.row_bytes), 1)
        self._arrays = [np.empty((capacity, *c.shape), c.numpy_dtype) for c in schema.columns]
        self._capacity = capacity
        self.start = 0
        self.count = 0

    @property
    def is_full(self) -> bool:
        return self.count == self._capacity

    def fill(self, start: int, columns: Sequence[Array], skip: int) -> int:
        """Take what fits of the columns' rows from `skip` on; how many they were."""
        rows = min(self._capacity - self.count, len(columns[0]) - skip)
        end = self.count + rows
        for buffer, array in zip(self._arrays, columns, strict=True):
            buffer[self.count : end] = array[skip : skip + rows]
        if not self.count:
            self.start = start
        self.count = end
        return rows

    def arrays(self) -> list[Array]:
        return [buffer[: self.count] for buffer in self._arrays]


class _Lane(Protocol):
    """Jobs done in order; the first error ends it and is raised by every later call."""

    def submit(self, job: Callable[..., None], *arguments: Any) -> None: ...
    def check(self) -> None: ...
    def join(self) -> None: ...
    def close(self) -> None: ...


class _Inline:
    """The caller does the job."""

    def submit(self, job: Callable[..., None], *arguments: Any) -> None:
        job(*arguments)

    def check(self) -> None:
        return None

    def join(self) -> None:
        return None

    def close(self) -> None:
        return None


class _Thread:
    """One thread does the jobs; `submit` waits while `depth` of them are not done."""

    def __init__(self, name: str, depth: int) -> None:
        self._name = name
        self._depth = depth
        self._pool: ThreadPoolExecutor | None = None
        self._jobs: deque[Future[None]] = deque()
        self._error: BaseException | None = None

    def submit(self, job: Callable[..., None], *arguments: Any) -> None:
        while len(self._jobs) >= self._depth:
            self._wait()
        self.check()
        if self._pool is None:
            self._pool = ThreadPoolExecutor(1, thread_name_prefix=self._name)
        self._jobs.append(self._pool.submit(self._do, job, arguments))

    def _do(self, job: Callable[..., None], arguments: tuple[Any, ...]) -> None:
        if self._error is None:  # what comes after an error is not done: it may build on it
            try:
                job(*arguments)
            except BaseException as error:
                self._error = error

    def is_idle(self) -> bool:
        return all(job.done() for job in self._jobs)

    def check(self) -> None:
        if self._error is not None:
            raise self._error

    def join(self) -> None:
        while self._jobs:
            self._wait()
        self.check()

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True)

    def _wait(self) -> None:
        self._jobs[0].result()
        self._jobs.popleft()
