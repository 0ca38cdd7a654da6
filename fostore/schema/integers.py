"""Integers that a caller gave, one alone or one a row: read, and held against what they are under."""

from __future__ import annotations

from math import inf
from operator import index
from typing import Any

import numpy as np

from fostore.errors import ArgumentError, RowError
from fostore.schema.columns import Array

_INT64 = np.dtype("<i8")
_ONE_A_ROW = ((),)


def integer(value: Any, name: str, least: float = -inf, most: float = inf) -> int:
    """`value` as an int; True and False are none.

    Raises:
        ArgumentError: no integer, or none from `least` to `most`.
    """
    try:
        number = None if isinstance(value, bool) else index(value)
    except TypeError:
        number = None
    if number is None or not least <= number <= most:
        above = f" of at least {least}" if least != -inf else ""
        bounds = f" from {least:,} to {most:,}" if most != inf else above
        raise ArgumentError(f"{name} is {value!r:.80}, expected an integer{bounds}")
    return number


def integers(
    values: Any,
    what: str,
    error: type[ArgumentError] | type[RowError],
    *,
    dtype: np.dtype[Any] = _INT64,
    start: int = 0,
    shapes: tuple[tuple[int, ...], ...] = _ONE_A_ROW,
    expected: str = "an integer a row (n,)",
) -> Array:
    """`values` in `dtype`, C-contiguous; may be `values` themselves.

    Args:
        what: the name of the values in a message, and `start` the row of the first.
        shapes: those that a row may have.

    Raises:
        error: no integers, another shape, or one that the dtype does not hold.
    """
    expected = f"expected {expected}, {dtype.name}"
    try:
        given = np.asarray(values)
    except (ValueError, OverflowError) as wrong:
        raise error(f"{what}: {wrong}; {expected}") from wrong
    is_other = given.dtype.kind not in "iu" and given.size
    if not given.ndim or given.shape[1:] not in shapes or is_other:
        raise error(f"{what}: {given.dtype} of shape {given.shape} came, {expected}")
    if given.size and not np.can_cast(given.dtype, dtype):
        limits = np.iinfo(dtype)
        bad = (given < limits.min) | (given > limits.max)
        if bad.any():
            at = tuple(np.argwhere(bad)[0].tolist())
            raise error(f"{what}: {given[at]} came at row {start + at[0]}, {expected}")
    return np.ascontiguousarray(given, dtype=dtype)


def check_below(stored: Array, limit: int | None, start: int, what: str) -> None:
    """Raise RowError, naming the row counted from `start`, where a number is not in 0 to `limit` - 1."""
    bad = stored < 0 if limit is None else (stored < 0) | (stored >= limit)
    if bad.any():
        row = int(np.argmax(bad))
        expected = "at least 0" if limit is None else f"0 to {limit - 1}"
        raise RowError(f"the {what} of row {start + row} is {stored[row]}, expected {expected}")
