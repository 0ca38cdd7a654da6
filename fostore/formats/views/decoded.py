"""A column that has to be decoded before it can be read: blocks of rows, kept in a cache of bounded size.

The same results as a mapped column (view.py), at the cost of decoding: for layouts that do not lie as flat rows.
"""

from __future__ import annotations

import itertools
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable

import numpy as np

from fostore.formats.views.spooled import spooled
from fostore.schema.halves import aligned_empty
from fostore.schema.row import Array, Column

CACHE_BYTES = 64 << 20
"""Bytes of decoded rows that one store keeps at most, apart from one block a column, however large that is."""


class BlockCache:
    """The arrays that were used last, up to `max_bytes`; the newest one is kept whatever its size.

    Safe for several threads. A forked child begins with an empty cache of its own.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._begin()

    def _begin(self) -> None:
        self._pid = os.getpid()
        self._guard = threading.Lock()  # another thread may have held the parent's for ever
        self._blocks: OrderedDict[Hashable, Array] = OrderedDict()
        self._nbytes = 0

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays that are kept."""
        return self._nbytes

    def get(self, key: Hashable, make: Callable[[], Array]) -> Array:
        """The array of `key`, read-only; `make` is called where it is not kept, outside all locks."""
        if os.getpid() != self._pid:
            self._begin()
        with self._guard:
            block = self._blocks.get(key)
            if block is not None:
                self._blocks.move_to_end(key)
                return block
        block = make()
        block.flags.writeable = False
        with self._guard:
            if key not in self._blocks:
                self._blocks[key] = block
                self._nbytes += block.nbytes
            while self._nbytes > self._max_bytes and len(self._blocks) > 1:
                self._nbytes -= self._blocks.popitem(last=False)[1].nbytes
        return block

    def clear(self) -> None:
        """Keep nothing; arrays that were handed out stay valid."""
        self._begin()


class DecodedView:
    """A column whose rows come from `read(start, stop)`, which decodes: a `ColumnView`.

    `block_rows` rows are decoded at once (whole chunks of what lies on disk), and at most `max_bytes`
    of them are kept. Taking rows costs one decoded block for each block that they touch and that is not kept.
    """

    def __init__(
        self,
        column: Column,
        num_rows: int,
        read: Callable[[int, int], Array],
        *,
        block_rows: int,
        max_bytes: int = CACHE_BYTES,
    ) -> None:
        self._column = column
        self._num_rows = num_rows
        self._read = read
        self._block_rows = block_rows
        self._cache = BlockCache(max_bytes)
        self._whole: Array | None = None

    @property
    def array(self) -> Array:
        """The column as one read-only array; the first time all rows are decoded into a temporary file."""
        if self._whole is None:
            self._whole = spooled(self._read, self._num_rows, self._column, self._block_rows)
        return self._whole

    def take(self, rows: Array, out: Array | None = None) -> Array:
        """A fresh, 64-byte-aligned array of the rows, or `out`, filled in the order asked for."""
        rows = np.asarray(rows, dtype=np.int64)
        if out is None:
            out = aligned_empty((len(rows), *self._column.shape), self._column.numpy_dtype)
        if len(rows) == 0:
            return out
        blocks = rows // self._block_rows
        order = np.argsort(blocks, kind="stable")
        ordered = blocks[order]
        cuts = [0, *(np.flatnonzero(ordered[1:] != ordered[:-1]) + 1).tolist(), len(rows)]
        for first, last in itertools.pairwise(cuts):
            number, places = int(ordered[first]), order[first:last]
            out[places] = self._block(number)[rows[places] - number * self._block_rows]
        return out

    @property
    def is_cold(self) -> bool:
        """False: nothing is announced here."""
        return False

    def announce(self, rows: Array) -> None:
        """Nothing."""

    def read(self, start: int, stop: int) -> Array:
        """The rows `[start, stop)`, read-only: a view where one block holds them, else a copy."""
        size = self._block_rows
        number = start // size
        if start < stop <= (number + 1) * size:
            return self._block(number)[start - number * size : stop - number * size]
        out = np.empty((max(stop - start, 0), *self._column.shape), self._column.numpy_dtype)
        row = start
        while row < stop:
            number = row // size
            end = min(stop, (number + 1) * size)
            out[row - start : end - start] = self._block(number)[row - number * size :][: end - row]
            row = end
        return out

    def _block(self, number: int) -> Array:
        start = number * self._block_rows
        stop = min(start + self._block_rows, self._num_rows)
        return self._cache.get(number, lambda: self._read(start, stop))
