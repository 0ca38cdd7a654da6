"""A column as one array where none lies on disk: decoded once into a temporary file without a name."""

from __future__ import annotations

import mmap
from collections.abc import Callable

import numpy as np

from fostore.places.scratch import Scratch
from fostore.schema.row import Array, Column


def spooled(
    read: Callable[[int, int], Array], num_rows: int, column: Column, block_rows: int
) -> Array:
    """All rows of a column as one read-only array, mapped from a file that is gone with it.

    Takes the time to read every row once, room for them in the temporary folder, and memory for
    `block_rows` rows.

    Raises:
        SpaceError: the disk of temporary files is full; names its folder.
        DamageError: as `read` does.
    """
    shape = (num_rows, *column.shape)
    size = num_rows * column.row_bytes
    if not size:
        return np.empty(shape, column.numpy_dtype)
    file = Scratch(f"column {column.name!r}")
    try:
        for start in range(0, num_rows, block_rows):
            rows = np.ascontiguousarray(read(start, min(start + block_rows, num_rows)))
            file.write(rows.reshape(-1).view(np.uint8).data, start * column.row_bytes)
        mapped = mmap.mmap(file.fd, size, access=mmap.ACCESS_READ)
    finally:
        file.close()
    return np.frombuffer(mapped, column.numpy_dtype).reshape(shape)
