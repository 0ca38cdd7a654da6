"""Rows that lie one after another in a file, read piece by piece, nothing mapped and nothing held."""

from __future__ import annotations

import math
import mmap
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fostore import disk
from fostore.errors import FormatError, UnsafeError
from fostore.schema.digest import buffer
from fostore.schema.row import Array

MAX_LINE = 1 << 28
"""Of a text: a file without line ends would be read into memory as a whole."""


def open_source(path: Path) -> tuple[int, int]:
    """A descriptor of a regular file that a user named, and its bytes; links are followed.

    Raises:
        StoreNotFoundError: there is none.
        FormatError: it is a folder, a pipe or a device.
    """
    return disk.open_named(path, "a file of rows")


def fill(file: Any, view: memoryview, where: str) -> None:
    """Read from a file until a buffer is full.

    Raises:
        FormatError: the file ends before.
    """
    while view:
        read = file.readinto(view)
        if not read:
            raise FormatError(
                f"{where} ends before its last row: it was cut, or changed while it was read"
            )
        view = view[read:]


@dataclass(frozen=True, slots=True)
class Flat:
    """An array of `shape` that begins at byte `offset` of a file; `fortran`: its first axis varies fastest."""

    path: Path
    offset: int
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    fortran: bool = False

    def check(self, available: int, where: str) -> None:
        """Refuse an array that the bytes which are there cannot hold.

        Raises:
            UnsafeError: it claims more than `available` bytes.
        """
        if any(size < 0 for size in self.shape):
            raise FormatError(f"{where} has the shape {self.shape}")
        if self.num_bytes > available:
            raise UnsafeError(
                f"{where} claims the shape {self.shape} of {self.dtype}, which are {self.num_bytes:,} "
                f"bytes, and {max(available, 0):,} are there: the file was cut, or its header lies"
            )

    @property
    def num_bytes(self) -> int:
        """Bytes of all rows."""
        return math.prod(self.shape) * self.dtype.itemsize

    def batches(self, start: int, rows: int) -> Iterator[Array]:
        """The rows from `start` on, at most `rows` at a time, each batch a fresh array.

        Raises:
            FormatError: the file has become shorter since it was opened.
        """
        if start >= self.shape[0]:
            return
        fd, size = open_source(self.path)
        try:
            # Also before mapping: behind the end of a file the system kills whoever reads (SIGBUS).
            if size < self.offset + self.num_bytes:
                raise FormatError(f"{self.path} has become shorter while it was read")
            pieces = self._columns(fd, start, rows) if self.fortran else self._rows(fd, start, rows)
            yield from pieces
        finally:
            os.close(fd)

    def _rows(self, fd: int, start: int, rows: int) -> Iterator[Array]:
        # Bits without a name for their numbers, which a hint may give them.
        dtype = np.dtype("<u2") if self.dtype == np.dtype("V2") else self.dtype
        with os.fdopen(fd, "rb", buffering=0, closefd=False) as file:
            file.seek(self.offset + start * (self.num_bytes // self.shape[0]))
            for first in range(start, self.shape[0], rows):
                count = min(rows, self.shape[0] - first)
                batch = np.empty((count, *self.shape[1:]), dtype)
                fill(file, buffer(batch).data, str(self.path))
                yield batch

    def _columns(self, fd: int, start: int, rows: int) -> Iterator[Array]:
        # A row lies in as many places as it has numbers: mapped, since a call for each would cost more than
        # the row. Pages are given back after each batch, or the whole file would count as ours.
        with mmap.mmap(fd, self.offset + self.num_bytes, access=mmap.ACCESS_READ) as mapped:
            for first in range(start, self.shape[0], rows):
                whole = np.ndarray(self.shape, self.dtype, mapped, self.offset, order="F")
                batch = np.array(whole[first : first + rows], order="C")
                del whole
                if hasattr(mapped, "madvise") and hasattr(mmap, "MADV_DONTNEED"):
                    mapped.madvise(mmap.MADV_DONTNEED)
                yield batch
