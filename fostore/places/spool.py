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
    """Rows of one shape and dtype, which the first ones say: written anywhere, and read anywhere afterwards.

    Args:
        what: names the rows in errors.

    Raises:
        SpaceError: by whatever writes; the disk is full. Names the folder.
    """

    def __init__(self, what: str) -> None:
        self._what = what
        self._held: _Array | None = None  # in memory; of more rows than there are
        self._file: Scratch | None = None
        self.dtype: np.dtype[Any] = np.dtype("u1")
        self.shape: tuple[int, ...] = ()
        self.row_bytes = 0
        """Bytes of a row; 0 before the first."""
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
        cuts = [0, *(np.flatnonzero(np.diff(index) != 1) + 1).tolist(), len(index)]
        for begin, end in pairwise(cuts):
            self.write(rows[begin:end], int(index[begin]))

    def read(self, start: int, stop: int) -> _Array:
        """The rows `[start, stop)`, all of which were written."""
        if self._held is not None:
            return self._held[start:stop]
        assert self._file is not None
        raw = disk.read_at(self._file.fd, start * self.row_bytes, (stop - start) * self.row_bytes)
        return np.frombuffer(raw, self.dtype).reshape(-1, *self.shape)

    def array(self) -> _Array:
        """All rows as one read-only array, mapped where they lie in a file; what nobody wrote is zero bytes."""
        if self._held is not None:
            rows = self._held[: self.num_rows]
            rows.setflags(write=False)
            return rows
        assert self._file is not None
        mapped = mmap.mmap(self._file.fd, self.num_rows * self.row_bytes, access=mmap.ACCESS_READ)
        return np.frombuffer(mapped, self.dtype).reshape(-1, *self.shape)

    def _reserve(self, rows: _Array, stop: int) -> None:
        """Room for rows up to `stop`, among which are `rows`."""
        if not self.row_bytes:
            self.dtype, self.shape = rows.dtype, rows.shape[1:]
            self.row_bytes = rows.dtype.itemsize * math.prod(self.shape)
        self.num_rows = max(self.num_rows, stop)
        if self._file is not None:
            return
        held = self._held
        # Without pwrite (Windows) rows stay in memory.
        if stop * self.row_bytes > MEMORY and hasattr(os, "pwrite"):
            self._file, self._held = Scratch(self._what), None
            if held is not None:
                self._file.write(held, 0)
        elif held is None or len(held) < stop:
            count = max(stop, min(0 if held is None else 2 * len(held), MEMORY // self.row_bytes))
            self._held = np.zeros((count, *self.shape), self.dtype)
            if held is not None:
                self._held[: len(held)] = held
