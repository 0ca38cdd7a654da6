"""An array whose axes come last first, as rows: its numbers are kept in a file without a name and read across."""

from __future__ import annotations

import math
import os
import weakref
from collections.abc import Callable, Iterator

import numpy as np

from fostore import disk
from fostore.errors import FormatError
from fostore.schema import Array

_PIECE_BYTES = 4 << 20


class Swapped:
    """Rows of shape `shape[1:]` from an array that lies as `shape[::-1]`, whatever it lies in.

    The array is copied to a temporary file when the first rows are asked for, once; memory holds one
    batch. MATLAB, Julia, R and Fortran write the axes of an array in this order.
    """

    def __init__(
        self, shape: tuple[int, ...], batches: Callable[[int, int], Iterator[Array]]
    ) -> None:
        self._shape = shape
        self._read = batches
        self._fd: int | None = None
        self._dtype = np.dtype("u1")

    def batches(self, start: int, rows: int) -> Iterator[Array]:
        """The rows from `start` on, at most `rows` at a time, each batch a fresh array."""
        fd = self._spooled()
        total, size = self._shape[0], self._dtype.itemsize
        lines = math.prod(self._shape[1:])
        for first in range(start, total, rows):
            count = min(rows, total - first)
            across = np.empty((lines, count), self._dtype)
            for line in range(lines):
                raw = os.pread(fd, count * size, (line * total + first) * size)
                across[line] = np.frombuffer(raw, self._dtype)
            whole = across.reshape(*self._shape[:0:-1], count)
            yield np.ascontiguousarray(whole.transpose())

    def _spooled(self) -> int:
        if self._fd is not None:
            return self._fd
        fd, at = disk.open_unnamed(), 0
        weakref.finalize(self, os.close, fd)
        lies = self._shape[::-1]
        rows = max(_PIECE_BYTES // max(math.prod(lies[1:]) * 8, 1), 1)
        for batch in self._read(0, rows):
            self._dtype = batch.dtype
            disk.write_at(fd, np.ascontiguousarray(batch), at)
            at += batch.nbytes
        if at != math.prod(self._shape) * self._dtype.itemsize:
            raise FormatError(f"an array of the shape {lies} was announced, and {at:,} bytes came")
        self._fd = fd
        return fd
