"""A plain array in chunks, as rows on their way: chunks that are not there are damage, never zeros."""

from __future__ import annotations

import math
from collections.abc import Iterator

from fostore.errors import ArgumentError
from fostore.files.array import FileArray, name_of
from fostore.formats.chunks.array import ForeignArray
from fostore.schema.row import Array

DEPTH, MOST = 6, 1000
"""How far arrays are looked for in groups, and how many in one."""
_LARGE_CHUNK = 64 << 20


def chunked(array: ForeignArray) -> FileArray:
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

    return FileArray(name_of(array.dtype), array.shape, batches)


def chunk_notes(array: ForeignArray) -> list[str]:
    """What a receipt says of chunks that take much memory."""
    rows = array.chunk_rows * math.prod(array.shape[1:]) * array.dtype.itemsize
    if rows <= _LARGE_CHUNK:
        return []
    return [f"its chunks take {rows >> 20} MiB each when they are read, whatever max_memory says"]


def inside_of(path: object, name: str, refused: str = "") -> str:
    """An array's name inside a file or folder, where none of `refused` may be in it.

    Raises:
        ArgumentError: it could lead out of it.
    """
    steps = name.strip("/").split("/")
    if any(step in ("", ".", "..") or not set(refused).isdisjoint(step) for step in steps):
        raise ArgumentError(f"{name!r} is no path inside {path}, such as group/probs")
    return "/".join(steps)
