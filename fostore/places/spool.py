"""Rows that wait until they are read: in memory while they are few, else in a file without a name.

The file lies beside what is being written, else in the temporary folder, which may be small, or memory, where
the disk that takes the result has room for the rows in any case. It is gone with its last user, whatever
happens to the process.
"""

from __future__ import annotations

import math
import mmap
import os
import tempfile
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from fostore import disk
from fostore.errors import SpaceError

MEMORY = 8 << 20
"""Bytes of a spool up to which its rows stay in memory: a file costs more than they do."""

_Array = np.ndarray[Any, Any]
_folder: ContextVar[Path | None] = ContextVar("folder", default=None)


@contextmanager
def beside(path: Path | None) -> Iterator[None]:
    """Files that begin in this block lie on the disk of `path`, which need not exist yet; None changes nothing."""
    folder = _folder.get() if path is None else path.parent
    while folder is not None and not folder.is_dir():
        folder = folder.parent
    token = _folder.set(folder)
    try:
        yield
    finally:
        _folder.reset(token)


class Scratch:
    """An open file that no name leads to. Safe for several threads; closed with its last user.

    Args:
        what: names the rows in errors.

    Raises:
        SpaceError: the disk is full; names the folder.
        PlaceError: the folder cannot be written.
    """

    def __init__(self, what: str) -> None:
        self._what = what
        chosen = _folder.get()
        self._is_temporary = chosen is None
        self.folder = Path(tempfile.gettempdir()) if chosen is None else chosen
        self.fd = disk.open_unnamed(self.folder)
        # Whoever fails on the way to his rows need not know that they waited here.
        self.close = weakref.finalize(self, os.close, self.fd)

    def write(self, data: Any, offset: int) -> None:
        """Write all of `data` at `offset`."""
        try:
            disk.write_at(self.fd, data, offset)
        except SpaceError as error:
            cure = "free some space there"
            if self._is_temporary:
                where = f"temporary folder {str(self.folder)!r}"
                cure += ", or set TMPDIR to a folder on a larger disk"
            else:
                where = f"folder of the destination, {str(self.folder)!r}"
                cure += ", or choose a destination on a larger disk"
            raise SpaceError(
                f"{self._what}: its rows do not fit into the {where} ({error}); {cure}"
            ) from error


class Spool:
    """Rows of one shape and dtype: written anywhere, and read anywhere afterwards.

    Args:
        what: names the rows in errors.
        dtype, shape: of a row; by default what the first ones say.

    Raises:
        SpaceError: by whatever writes; the disk is full. Names the folder.
    """

    def __init__(
        self, what: str, dtype: np.dtype[Any] | None = None, shape: tuple[int, ...] = ()
    ) -> None:
        self._what = what
        self._held: _Array | None = None  # in memory; of more rows than there are
        self._file: Scratch | None = None
        self.dtype, self.shape = dtype, shape
        self.num_rows = 0
        """Rows up to the last one that was written."""

    def append(self, rows: _Array) -> None:
        """Keep the next rows (n, ...)."""
        self.write(rows, self.num_rows)

    def write(self, rows: _Array, start: int) -> None:
        """Keep rows (n, ...) from `start` on; there may be none between them and what was written before."""
        self._reserve(rows, start + len(rows))
        if self._file is None:
            assert self._held is not None
            self._held[start : start + len(rows)] = rows
        else:
            self._file.write(np.ascontiguousarray(rows), start * self.row_bytes)

    def scatter(self, rows: _Array, index: _Array) -> None:
        """Keep rows (n, ...) under increasing indices."""
        self._reserve(rows, int(index[-1]) + 1)
        if self._file is None:
            assert self._held is not None
            self._held[index] = rows
            return
        rows, size = np.ascontiguousarray(rows), self.row_bytes
        cuts = [0, *(np.flatnonzero(np.diff(index) != 1) + 1).tolist(), len(index)]
        for begin, end in pairwise(cuts):
            self._file.write(rows[begin:end], int(index[begin]) * size)

    @property
    def row_bytes(self) -> int:
        """Bytes of a row."""
        assert self.dtype is not None, "a row was written"
        return self.dtype.itemsize * math.prod(self.shape)

    def batches(self, count: int) -> Iterator[_Array]:
        """All rows, at most `count` at a time."""
        for start in range(0, self.num_rows, count):
            yield self.read(start, min(start + count, self.num_rows))

    def read(self, start: int, stop: int) -> _Array:
        """The rows `[start, stop)`, all of which were written."""
        if self._held is not None:
            return self._held[start:stop]
        assert self._file is not None
        raw = disk.read_at(self._file.fd, start * self.row_bytes, (stop - start) * self.row_bytes)
        return np.frombuffer(raw, self.dtype).reshape(-1, *self.shape)

    def array(self) -> _Array:
        """All rows as one array, on the pages of the file where there is one; what nobody wrote is zero bytes.

        It outlives the spool. Private memory is taken by neither.
        """
        if self._file is not None:
            pages = mmap.mmap(self._file.fd, self.num_rows * self.row_bytes)
            return np.frombuffer(pages, self.dtype).reshape(-1, *self.shape)
        if self._held is None:
            return np.empty((0, *self.shape), self.dtype)
        return self._held[: self.num_rows]

    def _reserve(self, rows: _Array, stop: int) -> None:
        """Room for rows up to `stop`, among which are `rows`."""
        if self.dtype is None:
            self.dtype, self.shape = rows.dtype, rows.shape[1:]
        self.num_rows = max(self.num_rows, stop)
        held = self._held
        if self._file is not None or (held is not None and stop <= len(held)):
            return
        # Without pwrite (Windows) rows stay in memory.
        if stop * self.row_bytes > MEMORY and hasattr(os, "pwrite"):
            self._file, self._held = Scratch(self._what), None
            if held is not None:
                self._file.write(held, 0)
            return
        count = max(stop, min(2 * stop, MEMORY // self.row_bytes))
        self._held = np.zeros((count, *self.shape), self.dtype)
        if held is not None:
            self._held[: len(held)] = held
