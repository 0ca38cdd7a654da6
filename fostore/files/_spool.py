"""A stream of unknown length kept in temporary files without a name, for formats that must know the length first."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
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

    def close(self) -> None:
        """Give the disk back."""
        self._file.close()


@contextmanager
def counted(
    header: Header, batches: Iterator[Batch]
) -> Iterator[tuple[Header, int, Iterator[Batch]]]:
    """The header, its number of rows and its rows; a stream is spooled first to be counted."""
    if header.num_samples is not None:
        yield header, header.num_samples, batches
        return
    spools = [Spooled(column) for column in header.schema.columns]
    try:
        rows = 1
        for batch in batches:
            rows = max(rows, len(batch[0]))
            for spool, column in zip(spools, batch, strict=True):
                spool.append(np.ascontiguousarray(column))
        total = spools[0].num_rows
        again = (
            [spool.read(first, min(first + rows, total)) for spool in spools]
            for first in range(0, total, rows)
        )
        yield replace(header, num_samples=total), total, again
    finally:
        for spool in spools:
            spool.close()
