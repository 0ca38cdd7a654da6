"""The input token of each token row: which sample a sequence is, token by token; kept as a column and hashed."""

from __future__ import annotations

from typing import Any

from fostore.schema.columns import Array, Column
from fostore.schema.integers import check_below
from fostore.schema.sides import Bounds, Side
from fostore.schema.sides.sequences import encode

VOCABULARY = "vocab_size"
"""The key of the column that says how many tokens there are: each is less."""
_NARROW = 1 << 16


def _column(values: Any) -> Column:
    """The column of tokens under the size that `values` promises as text; True is of a store that is there."""
    size = int(values) if isinstance(values, str) else 1 << 32
    dtype = "uint16" if size <= _NARROW else "uint32"
    return Column("token", dtype, dtype, (), (), "token", {VOCABULARY: size})


def _fits(column: Column) -> bool:
    size = column.extra.get(VOCABULARY)
    if type(size) is not int or not 1 <= size <= 1 << 32:
        return False
    dtype = "uint16" if size <= _NARROW else "uint32"
    return (column.dtype, column.shape) == (dtype, ())


def _check(stored: Array, bounds: Bounds, start: int) -> None:
    check_below(stored, bounds.vocab_size, start, "token")


SIDE = Side("token", "tokens", _column, fits=_fits, encode=encode, check=_check, row_axis="token")
