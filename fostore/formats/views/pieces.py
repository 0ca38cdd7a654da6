"""A column that comes in pieces of consecutive rows: decoded ones, or files that cannot be one address range.

The same results as a mapped column (view.py), at the cost of getting pieces.
"""

from __future__ import annotations

import mmap
import sys
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from fostore.errors import UncommittedError
from fostore.formats.views.guard import Guard
from fostore.places.spool import Scratch
from fostore.schema.aligned import aligned_empty
from fostore.schema.ranges import describe
from fostore.schema.row import Array, Column

CACHE_BYTES = 64 << 20
"""Bytes of decoded rows that one store keeps at most, apart from one piece a column, however large that is."""

_SPOOLED_BYTES = 4 << 20


class ArrayCache:
    """The arrays that were used last, within bounds; the newest one is kept whatever its size.

    Safe for several threads, and in a forked child.
    """

    def __init__(self, max_bytes: int, max_arrays: int = sys.maxsize) -> None:
        self._max_bytes, self._max_arrays = max_bytes, max_arrays
        self._guard = Guard()
        self._arrays: OrderedDict[Hashable, Array] = OrderedDict()
        self.nbytes = 0

    def get(self, key: Hashable, make: Callable[[], Array]) -> Array:
        """The array of `key`, read-only; `make` is called where it is not kept, outside all locks."""
        with self._guard:
            array = self._arrays.get(key)
            if array is not None:
                self._arrays.move_to_end(key)
                return array
        array = make()
        array.flags.writeable = False
        with self._guard:
            # A fork may come between any two of these lines: the child then counts too much, never too little.
            if key not in self._arrays:
                self.nbytes += array.nbytes
                self._arrays[key] = array
            while len(self._arrays) > 1 and (
                self.nbytes > self._max_bytes or len(self._arrays) > self._max_arrays
            ):
                self.nbytes -= self._arrays.popitem(last=False)[1].nbytes
        return array


class Pieces(Protocol):
    """Where rows lie in the pieces of a column; numbers need not begin at 0. Safe for several threads."""

    def number_of(self, rows: Any) -> Any:
        """The piece that each row (int64) lies in, if in any."""
        ...

    def start_of(self, number: int) -> int:
        """The first row of a piece."""
        ...

    def load(self, number: int) -> Array:
        """The rows of a piece, in their order."""
        ...


@dataclass(frozen=True, slots=True)
class EvenPieces:
    """Pieces of `piece_rows` rows (the last one is shorter) that `read(start, stop)` gives; see `Pieces`."""

    read: Callable[[int, int], Array]
    piece_rows: int
    num_rows: int

    def number_of(self, rows: Any) -> Any:
        return rows // self.piece_rows

    def start_of(self, number: int) -> int:
        return number * self.piece_rows

    def load(self, number: int) -> Array:
        start = number * self.piece_rows
        return self.read(start, min(start + self.piece_rows, self.num_rows))


class PieceView:
    """A column in pieces, of which those used last are kept: a `ColumnView`.

    Taking rows costs one `load` for each piece that they touch and that is not kept. Rows that lie
    in no piece raise UncommittedError.
    """

    def __init__(self, column: Column, num_rows: int, pieces: Pieces, cache: ArrayCache) -> None:
        self._column, self._num_rows = column, num_rows
        self._pieces, self._cache = pieces, cache
        self._whole: Array | None = None

    @property
    def array(self) -> Array:
        """The column as one read-only array, mapped from a file without a name into which all rows are read once.

        Takes room for them in the temporary folder, and memory for a piece and 4 MiB.

        Raises:
            SpaceError: the disk of temporary files is full; names its folder.
            DamageError: a piece is missing or damaged.
        """
        if self._whole is None:
            self._whole = self._spooled()
        return self._whole

    def _spooled(self) -> Array:
        column, row_bytes = self._column, self._column.row_bytes
        if not self._num_rows:
            return _empty(column, 0)
        file = Scratch(f"column {column.name!r}")
        step = max(_SPOOLED_BYTES // row_bytes, 1)
        try:
            for start in range(0, self._num_rows, step):
                rows = np.ascontiguousarray(self.read(start, min(start + step, self._num_rows)))
                file.write(rows.reshape(-1).view(np.uint8).data, start * row_bytes)
            mapped = mmap.mmap(file.fd, self._num_rows * row_bytes, access=mmap.ACCESS_READ)
        finally:
            file.close()
        return np.frombuffer(mapped, column.numpy_dtype).reshape(-1, *column.shape)

    def take(self, rows: Array, out: Array | None = None) -> Array:
        """A fresh, 64-byte-aligned array of the rows, or `out`, filled in the order asked for."""
        rows = np.asarray(rows, dtype=np.int64)
        if out is None:
            out = aligned_empty((len(rows), *self._column.shape), self._column.numpy_dtype)
        numbers = self._pieces.number_of(rows)
        order = np.argsort(numbers, kind="stable")
        ordered = numbers[order]
        for at in np.split(order, np.flatnonzero(ordered[1:] != ordered[:-1]) + 1):
            if len(at):
                some = rows[at]
                start, piece = self._piece_of(some[0], int(some.min()), int(some.max()) + 1)
                out[at] = piece[some - start]
        return out

    @property
    def is_cold(self) -> bool:
        """False: nothing is announced here."""
        return False

    def announce(self, rows: Array) -> None:
        """Nothing."""

    def read(self, start: int, stop: int) -> Array:
        """The rows `[start, stop)`, read-only: a view where one piece holds them, else a copy."""
        out, row = None, start
        while row < stop:
            first, piece = self._piece_of(row, row, row + 1)
            end = min(stop, first + len(piece))
            if end - row == stop - start:
                return piece[row - first : end - first]
            if out is None:
                out = _empty(self._column, stop - start)
            out[row - start : end - start] = piece[row - first : end - first]
            row = end
        return _empty(self._column, 0) if out is None else out

    def _piece_of(self, row: int, start: int, stop: int) -> tuple[int, Array]:
        """The piece that `row` lies in, with its first row; it must hold all of `[start, stop)`."""
        number = int(self._pieces.number_of(row))
        first = self._pieces.start_of(number)
        piece = self._cache.get(number, lambda: self._pieces.load(number))
        if start < first or stop > first + len(piece):
            raise UncommittedError(
                f"column {self._column.name!r} does not hold all of the {describe([(start, stop)])}"
            )
        return first, piece


def _empty(column: Column, num_rows: int) -> Array:
    return np.empty((num_rows, *column.shape), column.numpy_dtype)
