"""Which sequence each token row belongs to: a number that never decreases, kept as a column and hashed."""

from __future__ import annotations

from typing import Any

from fostore.errors import RowError
from fostore.schema.columns import Array, Column
from fostore.schema.integers import check_below, integers
from fostore.schema.sides import Bounds, Side, like

_COLUMN = Column("sequence", "int64", "int64", (), (), "sequence")


def encode(values: Any, column: Column, start: int) -> Array:
    """Numbers of the token rows from `start` on, in the dtype of their column; raises RowError."""
    return integers(values, f"{column.name}s", RowError, dtype=column.numpy_dtype, start=start)


def _check(stored: Array, bounds: Bounds, start: int) -> None:
    check_below(stored, bounds.num_sequences, start, "sequence")


SIDE = Side(
    "sequence",
    "sequences",
    column=lambda values: _COLUMN,
    fits=like(_COLUMN),
    encode=encode,
    check=_check,
    row_axis="token",
)
