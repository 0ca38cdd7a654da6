"""Rows that wait in temporary files without a name: those of a stream, side columns, axes that are swapped."""

from __future__ import annotations

import math
import mmap
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace

import numpy as np

from fostore.errors import FormatError
from fostore.files.table import Batch
from fostore.places.scratch import Scratch
from fostore.schema.header import Header
from fostore.schema.row import Array, Column

_PIECE_BYTES = 4 << 20


class Spooled:
    """Rows of one column, written once from front to back and then read anywhere."""

    def __init__(self, column: Column) -> None:
        self._column = column
        self._file = Scratch(f"column {column.name!r}")
        self.num_rows = 0

    def append(self, rows: Array) -> None:
        """Keep the next rows."""
        self._file.write(rows, self.num_rows * self._column.row_bytes)
        self.num_rows += len(rows)

    def read(self, start: int, stop: int) -> Array:
        """The rows `[start, stop)`."""
        size = self._column.row_bytes
        raw = self._file.read((stop - start) * size, start * size)
        return np.frombuffer(raw, self._column.numpy_dtype).reshape(-1, *self._column.shape)

    def batches(self, rows: int) -> Iterator[Array]:
        """All rows, at most `rows` at a time."""
        for first in range(0, self.num_rows, rows):
            yield self.read(first, min(first + rows, self.num_rows))

    def mapped(self) -> Array:
        """All rows, on the pages of the file: no memory is taken that the system cannot have back."""
        shape = (self.num_rows, *self._column.shape)
        if not math.prod(shape):
            return np.empty(shape, self._column.numpy_dtype)
        pages = mmap.mmap(self._file.fd, 0)  # the file has no other bytes
        return np.frombuffer(pages, self._column.numpy_dtype).reshape(shape)

    def close(self) -> None:
        """Give the disk back."""
        self._file.close()


@contextmanager
def spooled(columns: Sequence[Column]) -> Iterator[list[Spooled]]:
    """A spool a column, for as long as the block lasts."""
    with ExitStack() as stack:
        spools = []
        for column in columns:
            spools.append(Spooled(column))
            stack.callback(spools[-1].close)
        yield spools


def keep(spools: Sequence[Spooled], columns: Sequence[Array]) -> int:
    """Keep the next rows of several columns; how many there are."""
    for spool, rows in zip(spools, columns, strict=True):
        spool.append(np.ascontiguousarray(rows))
    return len(columns[0]) if columns else 0


@contextmanager
def counted(
    header: Header, batches: Iterator[Batch]
) -> Iterator[tuple[Header, int, Iterator[Batch]]]:
    """The header, its number of rows and its rows; a stream is spooled first to be counted."""
    if header.num_samples is not None:
        yield header, header.num_samples, batches
        return
    with spooled(header.schema.columns) as spools:
        most = max((keep(spools, batch) for batch in batches), default=1) or 1
        again = (list(columns) for columns in zip(*(s.batches(most) for s in spools), strict=True))
        yield replace(header, num_samples=spools[0].num_rows), spools[0].num_rows, again


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
        self._held: Spooled | None = None

    def batches(self, start: int, rows: int) -> Iterator[Array]:
        """The rows from `start` on, at most `rows` at a time, each batch a fresh array."""
        held, total = self._spooled(), self._shape[0]
        lines = math.prod(self._shape[1:])
        for first in range(start, total, rows):
            count = min(rows, total - first)
            lines_of = [
                held.read(line * total + first, line * total + first + count)
                for line in range(lines)
            ]
            whole = np.stack(lines_of).reshape(*self._shape[:0:-1], count)
            yield np.ascontiguousarray(whole.transpose())

    def _spooled(self) -> Spooled:
        """All numbers, one a row of the spool, in the order in which they lie."""
        if self._held is not None:
            return self._held
        lies, held = self._shape[::-1], None
        for batch in self._read(0, max(_PIECE_BYTES // max(math.prod(lies[1:]) * 8, 1), 1)):
            if held is None:
                name = batch.dtype.newbyteorder("=").name
                held = Spooled(Column("numbers", name, name, (), ()))
                weakref.finalize(self, held.close)
            held.append(np.ascontiguousarray(batch.reshape(-1), batch.dtype.newbyteorder("<")))
        if held is None or held.num_rows != math.prod(self._shape):
            raise FormatError(f"an array of the shape {lies} was announced, and fewer numbers came")
        self._held = held
        return held
