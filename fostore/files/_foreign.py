"""A plain array in chunks, as rows on their way: chunks that are not there are damage, never zeros."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

from fostore.errors import ArgumentError
from fostore.files._arrays import Lying
from fostore.files.guess import Found, name_of
from fostore.formats.chunks.array import ForeignArray
from fostore.schema.row import Array

_LARGE_CHUNK = 64 << 20


def lying(array: ForeignArray, *, is_reversed: bool = False) -> Lying:
    """An array in chunks as one of a file's arrays; DamageError while it is read."""

    def batches(start: int, count: int) -> Iterator[Array]:
        """Whole chunks are decoded, each once, and none that the first batch does not need with it."""
        size, total = array.chunk_rows, array.shape[0]
        high = start - start % size
        while high < total:
            low, high = high, min(-(-(max(start, high) + count) // size) * size, total)
            block = array.read(low, high)
            for first in range(max(start, low), high, count):
                yield block[first - low : min(first + count, high) - low]

    return Lying(Found(name_of(array.dtype), array.shape), batches, is_reversed)


def chunk_notes(array: ForeignArray) -> list[str]:
    """What a receipt says of chunks that take much memory."""
    rows = array.chunk_rows * math.prod(array.shape[1:]) * array.dtype.itemsize
    if rows <= _LARGE_CHUNK:
        return []
    return [f"its chunks take {rows >> 20} MiB each when they are read, whatever max_memory says"]


def refuse_writing(path: Path, suffix: str) -> NoReturn:
    """What `write` does: a store is a plain array as well, with a header beside it."""
    raise ArgumentError(
        f"{str(path)!r}: a plain array is only read. Write a store, whose rows are a plain array for "
        f"other tools: convert to a path that ends in {suffix}"
    )
