"""Rows that wait in spools: those of a stream, side columns, axes that are swapped."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from fostore.errors import FormatError
from fostore.files.table import Batch
from fostore.places.spool import Spool
from fostore.schema.header import Header
from fostore.schema.row import Array, Column

_PIECE_BYTES = 4 << 20


def spools_of(columns: Sequence[Column]) -> list[Spool]:
    """A spool a column."""
    return [Spool(f"column {c.name!r}", c.numpy_dtype, c.shape) for c in columns]


def keep(spools: Sequence[Spool], columns: Sequence[Array]) -> int:
    """Keep the next rows of several columns; how many there are."""
    for spool, rows in zip(spools, columns, strict=True):
        spool.append(rows)
    return len(columns[0]) if columns else 0


def counted(header: Header, batches: Iterator[Batch]) -> tuple[Header, int, Iterator[Batch]]:
    """The header, its number of rows and its rows; a stream is spooled first to be counted."""
    if header.num_samples is not None:
        return header, header.num_samples, batches
    spools = spools_of(header.schema.columns)
    # They come again in batches as large as they came, which is the memory that was allowed.
    most = max((keep(spools, batch) for batch in batches), default=1) or 1
    again = (list(columns) for columns in zip(*(s.batches(most) for s in spools), strict=True))
    num_rows, column = spools[0].num_rows, header.schema.role("sequence")
    counts: dict[str, Any] = {"num_samples": num_rows}
    if column is not None and header.num_sequences is None:
        last = spools[header.schema.index(column.name)].read(num_rows - 1, num_rows)
        counts["num_sequences"] = int(last[0]) + 1 if num_rows else 0
    return replace(header, **counts), num_rows, again


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
        self._held: Spool | None = None

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

    def _spooled(self) -> Spool:
        """All numbers, one a row of the spool, in the order in which they lie."""
        if self._held is not None:
            return self._held
        lies, held = self._shape[::-1], Spool("numbers whose axes are swapped")
        for batch in self._read(0, max(_PIECE_BYTES // max(math.prod(lies[1:]) * 8, 1), 1)):
            held.append(batch.reshape(-1).astype(batch.dtype.newbyteorder("<"), copy=False))
        if not held.num_rows or held.num_rows != math.prod(self._shape):
            raise FormatError(f"an array of the shape {lies} was announced, and fewer numbers came")
        self._held = held
        return held
