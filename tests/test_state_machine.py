"""A writer under any sequence of appends, writes, commits, crashes, resumes and closes, against an array in memory."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import fostore
from fostore.errors import RowError
from support import plain_rows, probs

N, K, UNIT = 5000, 3, 1024


class WriterMachine(RuleBasedStateMachine):
    """The model: `values` holds what was written, `committed` and `written` say which rows."""

    suffix = ".zarr"

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="fostore-machine-"))
        self.path = self.folder / f"store{self.suffix}"
        self.values = probs(N, K)
        self.committed = np.zeros(N, bool)
        self.written = np.zeros(N, bool)
        self.writer: fostore.Writer | None = None

    def teardown(self) -> None:
        if self.writer is not None:
            self.writer.close()
        shutil.rmtree(self.folder)

    @initialize()
    def create(self) -> None:
        self.writer = fostore.create(
            self.path,
            num_samples=N,
            num_classes=K,
            unit_rows=UNIT,
            commit_seconds=1e9,
            ids=list(range(N)),
        )

    @precondition(lambda self: self.writer is not None)
    @rule(rows=st.integers(1, 1500))
    def append(self, rows: int) -> None:
        assert self.writer is not None
        start = self.writer._position
        self._write(start, rows, lambda batch: self.writer.append(batch))  # type: ignore[union-attr]

    @precondition(lambda self: self.writer is not None)
    @rule(start=st.integers(0, N - 1), rows=st.integers(1, 1500))
    def write(self, start: int, rows: int) -> None:
        self._write(start, rows, lambda batch: self.writer.write(start, batch))  # type: ignore[union-attr]

    def _write(self, start: int, rows: int, action: object) -> None:
        stop = min(start + rows, N)
        if start >= stop:
            return
        if self.written[start:stop].any():
            with pytest.raises(RowError, match="written already"):
                action(self.values[start:stop])  # type: ignore[operator]
        else:
            action(self.values[start:stop])  # type: ignore[operator]
            self.written[start:stop] = True

    @precondition(lambda self: self.writer is not None)
    @rule()
    def commit(self) -> None:
        assert self.writer is not None
        self.writer.commit()
        self.committed |= self.written

    @precondition(lambda self: self.writer is not None)
    @rule()
    def crash(self) -> None:
        """Everything that the process held is gone: what was not committed as well."""
        assert self.writer is not None
        self.writer.release()
        self.writer = None
        self.written = self.committed.copy()

    @precondition(lambda self: self.writer is not None)
    @rule()
    def close(self) -> None:
        assert self.writer is not None
        self.writer.close()
        self.writer = None
        self.committed |= self.written

    @precondition(lambda self: self.writer is None)
    @rule()
    def resume(self) -> None:
        self.writer = fostore.create(
            self.path, exists="resume", commit_seconds=1e9, ids=list(range(N))
        )
        assert len(self.writer) == self.committed.sum()

    @precondition(lambda self: self.writer is not None)
    @rule()
    def seal(self) -> None:
        assert self.writer is not None
        if self.written.all():
            self.writer.seal()
            self.committed |= self.written
        else:
            with pytest.raises(RowError, match="missing"):
                self.writer.seal()

    @invariant()
    def readers_see_committed_rows_and_no_others(self) -> None:
        if not self.path.exists():
            return
        store = fostore.open(self.path)
        there = np.flatnonzero(self.committed)
        assert np.array_equal(np.fromiter(store, int, len(store)), there)
        assert np.array_equal(store.take(there), self.values[there])
        ids = store.ids
        assert ids is not None
        assert np.array_equal(ids, there)

    @invariant()
    def plain_readers_open_the_store(self) -> None:
        if not self.path.exists():
            return
        rows = plain_rows(self.path)
        if self.suffix == ".zarr":
            assert np.array_equal(rows, self.values[: len(rows)])
        else:
            assert np.array_equal(rows[self.committed], self.values[self.committed])


class Hdf5Machine(WriterMachine):
    """The same life, in HDF5."""

    suffix = ".h5"


TestZarr = WriterMachine.TestCase
TestHdf5 = Hdf5Machine.TestCase
