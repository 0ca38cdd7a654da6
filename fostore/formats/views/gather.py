"""The gather: rows of one array into a fresh, aligned one, at the speed of memory.

Two things that were measured carry it. The first word of every wide row is read before any row is
copied, so that the processor looks up the pages of many rows at once. Addresses are asked for
without the ctypes attribute of arrays, which costs more than a small batch. One thread gathers: see
docs/decisions/0016.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable

import numpy as np

from fostore.schema.halves import ALIGNMENT, BYTES, byte_of
from fostore.schema.row import Array

_TOUCH_ROW_BYTES = 1024
_TOUCH_ROWS = 256  # more, and the first lines of the rows are gone again before they are copied

Gather = Callable[[Array, Array | None], Array]
"""Rows (m,) int64, checked by the caller, and `out` (m, ...) or None; gives `out` or a fresh array."""


def gather_of(array: Array) -> Gather:
    """The function that gathers rows of an array (n, ...), C-contiguous, in the order asked for.

    It takes rows from 0 to n - 1 and an array of the array's dtype to be filled, or None for a
    fresh, 64-byte-aligned one. What is in `out` after an error is undefined. A closure, since for a
    batch of narrow rows each look at an attribute shows.
    """
    take, shape, dtype = array.take, array.shape[1:], array.dtype
    row_bytes = math.prod(shape) * dtype.itemsize
    width = shape[0] if len(shape) == 1 else None
    touched = row_bytes >= _TOUCH_ROW_BYTES and array.flags.c_contiguous
    empty, view, address, byte = np.empty, np.ndarray, ctypes.addressof, byte_of

    def gather(rows: Array, out: Array | None = None) -> Array:
        count = len(rows)
        size = count * row_bytes
        if out is None:
            # aligned_empty, written out
            raw: Array = empty(size + ALIGNMENT, BYTES)
            whole = (count, *shape) if width is None else (count, width)
            out = view(whole, dtype, raw, -address(byte(raw)) % ALIGNMENT)
        if touched:
            _fill(array, rows, out)
        elif size:
            # mode="raise" with `out` would copy everything twice.
            take(rows, 0, out, "clip")
        return out

    return gather


def _fill(array: Array, rows: Array, out: Array) -> None:
    """Copy wide rows, reading the first word of each of the next `_TOUCH_ROWS` beforehand."""
    flat = array.reshape(-1)
    width = flat.size // max(len(array), 1)
    for start in range(0, len(rows), _TOUCH_ROWS):
        some = rows[start : start + _TOUCH_ROWS]
        flat.take(some * width, mode="clip")
        array.take(some, 0, out[start : start + _TOUCH_ROWS], "clip")
