"""Rows that wait in temporary files without a name: those of a stream, or columns behind the first."""

from __future__ import annotations

import math
import mmap
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace

import numpy as np

from fostore.files.table import Batch
from fostore.places.scratch import Scratch
from fostore.schema.header import Header
from fostore.schema.row import Array, Column


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
