"""Rows put in their place as they come: a column in memory while it is small, else in a temporary file without a name.

The file is gone with its last user, whatever happens to the process.
"""

from __future__ import annotations

import mmap
import os
from itertools import pairwise
from typing import Any

import numpy as np

from fostore.errors import UnsafeError
from fostore.places.scratch import Scratch
from fostore.schema.ranges import Range, Ranges
from fostore.schema.row import Array

_MEMORY = 8 << 20
_LEAST_LIMIT = 64 << 20


class Spool:
    """One column, placed by index; the first rows say what a row is.

    Args:
        where: names the document in errors.
        size: bytes of the document. An index that would make the column more than 64 times as
            large (and more than 64 MiB) is refused.
    """

    def __init__(self, where: str, size: int) -> None:
        self._where = where
        self._limit = max(_LEAST_LIMIT, 64 * size)
        self._present = Present()
        self._rows: Array | None = None  # in memory; of more rows than there are
        self._file: Scratch | None = None
        self._row_bytes = 0
        self._dtype: np.dtype[Any] = np.dtype("f8")
        self._shape: tuple[int, ...] = ()

    def put(self, index: Array, rows: Array) -> int | None:
        """Keep rows (n, ...), of one shape and dtype all along, under `n` different indices.

        Returns an index that was there before; nothing is kept then.

        Raises:
            UnsafeError: an index far beyond what the document can hold.
            SpaceError: the disk of temporary files is full; names its folder.
        """
        if not self._row_bytes:
            self._shape, self._dtype = rows.shape[1:], rows.dtype
            self._row_bytes = rows[0].nbytes
        gaps = np.diff(index)
        if gaps.size and int(gaps.min()) < 0:
            order = np.argsort(index)
            index, rows = index[order], rows[order]
            gaps = np.diff(index)
        stop = int(index[-1]) + 1
        if stop * self._row_bytes > self._limit:
            raise UnsafeError(
                f"{self._where}: row {stop - 1} lies far beyond the {self._present.count + len(index)} "
                f"rows that are there; an array up to it would take {stop * self._row_bytes:,} bytes"
            )
        cuts = [0, *(np.flatnonzero(gaps != 1) + 1).tolist(), len(index)]
        runs = [(int(index[begin]), begin, end) for begin, end in pairwise(cuts)]
        twice = self._present.add(
            index, [(first, first + end - begin) for first, begin, end in runs]
        )
        if twice is not None:
            return twice
        if self._file is None and stop * self._row_bytes > _MEMORY and hasattr(os, "pwrite"):
            self._spill()
        if self._file is None:
            held = self._in_memory(stop)
            if len(runs) == 1:
                held[runs[0][0] : stop] = rows
            else:
                held[index] = rows
        else:
            for first, begin, end in runs:
                self._write(rows[begin:end], first)
        return None

    @property
    def ranges(self) -> Ranges:
        """The indices that are there."""
        return self._present.ranges()

    def read(self, start: int, stop: int) -> Array:
        """The rows `[start, stop)`, all of which are there."""
        if self._file is None:
            assert self._rows is not None, "rows that are there were put"
            return self._rows[start:stop]
        raw = self._file.read((stop - start) * self._row_bytes, start * self._row_bytes)
        return np.frombuffer(raw, self._dtype).reshape(-1, *self._shape)

    def array(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        """All rows up to the last as one array; those that are not there are NaN or zero bytes."""
        ranges = self.ranges
        if not ranges.items:
            return np.zeros((0, *shape), dtype)
        stop = ranges.items[-1][1]
        if self._dtype.kind == "f":
            step = max(1, (1 << 20) // max(self._row_bytes, 1))
            for first, last in ranges.missing(stop):
                for begin in range(first, last, step):
                    count = min(step, last - begin)
                    self._fill(np.full((count, *self._shape), np.nan, self._dtype), begin)
        if self._file is None:
            return self._in_memory(stop)[:stop]
        mapped = mmap.mmap(self._file.fd, stop * self._row_bytes, access=mmap.ACCESS_READ)
        return np.frombuffer(mapped, self._dtype).reshape(-1, *self._shape)

    def close(self) -> None:
        """Release the file; arrays stay valid."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _in_memory(self, stop: int) -> Array:
        held = 0 if self._rows is None else len(self._rows)
        if self._rows is None or held < stop:
            count = max(stop, min(2 * held, _MEMORY // self._row_bytes))
            grown = np.zeros((count, *self._shape), self._dtype)
            if self._rows is not None:
                grown[:held] = self._rows
            self._rows = grown
        return self._rows

    def _spill(self) -> None:
        self._file = Scratch(self._where)
        if self._rows is not None:
            self._write(self._rows, 0)
            self._rows = None

    def _fill(self, rows: Array, start: int) -> None:
        if self._file is None:
            self._in_memory(start + len(rows))[start : start + len(rows)] = rows
        else:
            self._write(rows, start)

    def _write(self, rows: Array, start: int) -> None:
        assert self._file is not None
        self._file.write(np.ascontiguousarray(rows), start * self._row_bytes)


class Present:
    """Which indices have come: ranges while they increase, one bit each from the first that does not."""

    def __init__(self) -> None:
        self.count = 0
        self._items: list[Range] = []
        self._bits: Array | None = None

    def add(self, index: Array, runs: list[Range]) -> int | None:
        """Add increasing indices, which are those of `runs`; gives one that was there before, and then adds none."""
        items = self._items
        if self._bits is None and not (items and runs[0][0] < items[-1][1]):
            if items and items[-1][1] == runs[0][0]:
                items[-1] = (items[-1][0], runs[0][1])
                runs = runs[1:]
            items.extend(runs)
            self.count += len(index)
            return None
        if self._bits is None:
            self._bits = self._as_bits()
        bits, places = self._bits, index >> 3
        needed = int(places.max()) + 1
        if needed > len(bits):
            grown = np.zeros(max(needed, 2 * len(bits)), np.uint8)
            grown[: len(bits)] = bits
            bits = self._bits = grown
        masks = np.left_shift(np.uint8(1), (index & 7).astype(np.uint8))
        again = np.flatnonzero(bits[places] & masks)
        if len(again):
            return int(index[again[0]])
        np.bitwise_or.at(bits, places, masks)
        self.count += len(index)
        return None

    def _as_bits(self) -> Array:
        items = self._items
        bits = np.zeros((items[-1][1] + 7) // 8 if items else 1, np.uint8)
        for first, last in items:
            low, high = -(-first // 8), last // 8
            if low < high:
                bits[low:high] = 255
            for i in (*range(first, min(low * 8, last)), *range(max(high * 8, first), last)):
                bits[i >> 3] |= 1 << (i & 7)
        return bits

    def ranges(self) -> Ranges:
        """All indices."""
        if self._bits is None:
            return Ranges(tuple(self._items))
        found: list[Range] = []
        step = 1 << 17
        for begin in range(0, len(self._bits), step):
            flags = np.unpackbits(self._bits[begin : begin + step], bitorder="little")
            edges = np.flatnonzero(np.diff(flags, prepend=np.uint8(0), append=np.uint8(0)))
            for first, last in (edges.reshape(-1, 2) + begin * 8).tolist():
                if found and found[-1][1] == first:
                    found[-1] = (found[-1][0], last)
                else:
                    found.append((first, last))
        return Ranges(tuple(found))
