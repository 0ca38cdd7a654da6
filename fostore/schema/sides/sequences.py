"""Which sequence each token row belongs to: a number that never decreases, kept as a column and hashed."""

from __future__ import annotations

from typing import Any

import numpy as np

from fostore.errors import RowError
from fostore.schema.columns import Array, Column
from fostore.schema.sides import Bounds, Side

_COLUMN = Column("sequence", "int64", "int64", (), (), "sequence")


def integers(values: Any, column: Column, start: int) -> Array:
    """Numbers of the rows from `start` on, in the dtype of their column.

    Raises:
        RowError: no integers, another shape than (n,), or one that the dtype does not hold.
    """
    expected = f"expected an integer a row (n,), {column.dtype}"
    try:
        given = np.asarray(values)
    except (ValueError, OverflowError) as error:
        raise RowError(f"{column.name} of the rows from {start} on: {error}; {expected}") from error
    if given.ndim != 1 or (given.dtype.kind not in "iu" and given.size):
        raise RowError(
            f"{column.name} of the rows from {start} on is {given.dtype} of shape {given.shape}; {expected}"
        )
    limits = np.iinfo(column.stored)
    if given.size and not (limits.min <= int(given.min()) and int(given.max()) <= limits.max):
        row = int(np.argmax((given < limits.min) | (given > limits.max)))
        raise RowError(f"{column.name} of row {start + row} is {given[row]}; {expected}")
    return np.ascontiguousarray(given, dtype=column.numpy_dtype)


def check_below(stored: Array, limit: int | None, start: int, what: str) -> None:
    """Raise RowError, naming the row counted from `start`, where a number is not in 0 to `limit` - 1."""
    bad = stored < 0 if limit is None else (stored < 0) | (stored >= limit)
    if bad.any():
        row = int(np.argmax(bad))
        expected = "at least 0" if limit is None else f"0 to {limit - 1}"
        raise RowError(f"the {what} of row {start + row} is {stored[row]}, expected {expected}")


def _check(stored: Array, bounds: Bounds, start: int) -> None:
    check_below(stored, bounds.num_sequences, start, "sequence")


SIDE = Side(
    "sequence",
    "sequences",
    column=lambda values: _COLUMN,
    fits=lambda column: (column.dtype, column.shape) == (_COLUMN.dtype, _COLUMN.shape),
    encode=integers,
    check=_check,
    row_axis="token",
)
