"""A column as one array where none lies on disk: decoded once into a spool."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from fostore.places.spool import Spool
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
    if not num_rows * column.row_bytes:
        return np.empty((num_rows, *column.shape), column.numpy_dtype)
    spool = Spool(f"column {column.name!r}", column.numpy_dtype, column.shape)
    for start in range(0, num_rows, block_rows):
        spool.append(read(start, min(start + block_rows, num_rows)))
    array = spool.array()
    array.setflags(write=False)
    return array
