"""An array whose axes come last first, as rows: its numbers are kept in a file without a name and read across."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np

from fostore.errors import FormatError
from fostore.places.spool import Spool
from fostore.schema.row import Array

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
        self._held: Spool | None = None

    def batches(self, start: int, rows: int) -> Iterator[Array]:
        """The rows from `start` on, at most `rows` at a time, each batch a fresh array."""
        held, total = self._spooled(), self._shape[0]
        lines = math.prod(self._shape[1:])
        for first in range(start, total, rows):
            count = min(rows, total - first)
            across = [
                held.read(line * total + first, line * total + first + count)
                for line in range(lines)
            ]
            whole = np.stack(across).reshape(*self._shape[:0:-1], count)
            yield np.ascontiguousarray(whole.transpose())

    def _spooled(self) -> Spool:
        """All numbers, one a row of the spool, in the order in which they lie."""
        if self._held is not None:
            return self._held
        lies = self._shape[::-1]
        held = Spool("numbers whose axes are swapped")
        for batch in self._read(0, max(_PIECE_BYTES // max(math.prod(lies[1:]) * 8, 1), 1)):
            held.append(batch.reshape(-1).astype(batch.dtype.newbyteorder("<"), copy=False))
        if not held.num_rows or held.num_rows != math.prod(self._shape):
            raise FormatError(f"an array of the shape {lies} was announced, and fewer numbers came")
        self._held = held
        return held
