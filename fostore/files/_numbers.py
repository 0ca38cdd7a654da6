"""Numbers as a file has them, as a store keeps them: in any order of bytes, votes as floats, percentages."""

from __future__ import annotations

import numpy as np

from fostore.encodings import encoding_of
from fostore.encodings.rows import as_counts, round_to
from fostore.errors import FormatError, RowError
from fostore.files.table import Batch
from fostore.schema.halves import widen
from fostore.schema.row import FLOATS, Array, Schema


def _in_order(array: Array, dtype: str) -> Array:
    """C-contiguous, little-endian, aliasing where it can; bfloat16 as its bits."""
    return np.ascontiguousarray(array, np.dtype(FLOATS.get(dtype, dtype)).newbyteorder("<"))


def numbers(rows: Array, dtype: str) -> Array:
    """Rows that NumPy calculates with."""
    return widen(_in_order(rows, dtype), dtype)


def votes(dtype: str, where: str, rows: Array, start: int) -> Array:
    """Whole numbers of votes that lie as floats.

    Raises:
        FormatError: one is negative, or not whole; names the row.
    """
    values = numbers(rows, dtype)
    with np.errstate(invalid="ignore"):
        good = (values >= 0) & (values == np.rint(values)) & (values < 2.0**53)
    if not good.all():
        at = np.argwhere(~good)[0]
        raise FormatError(
            f"{where}: row {start + at[0]} holds {values[tuple(at)]!r:.40} at class {at[-1]}, "
            "expected a number of votes: whole, 0 or more"
        )
    return values.astype("<u8")


def hundredths(dtype: str, rows: Array, start: int) -> Array:
    """Percentages as the probabilities that they are, rounded once."""
    return round_to(numbers(rows, dtype).astype(np.float64) / 100, dtype)


def columns_of(schema: Schema, where: str, rows: Array, start: int) -> Batch:
    """The columns that a store keeps of rows; their values are not looked at."""
    try:
        if schema.kind == "counts":
            return [as_counts(rows, schema.dtype, start)]
        if schema.kind == "logits":
            return encoding_of(schema).encode(numbers(rows, schema.dtype), schema, start)
        return [_in_order(rows, schema.dtype)]
    except RowError as error:
        raise FormatError(f"{where}: {error}") from error
