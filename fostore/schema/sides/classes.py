"""The class of each sample, as its dataset says: a class number, kept as a column and hashed as ids are."""

from __future__ import annotations

from typing import Any

import numpy as np

from fostore.errors import ArgumentError, RowError
from fostore.schema.columns import Array, Column
from fostore.schema.sides import Bounds, Side

_COLUMN = Column("label", "int64", "int64", (), (), "class_label")


def _numbers(labels: Any, error: type[ArgumentError] | type[RowError]) -> Array:
    try:
        given = np.asarray(labels)
    except (ValueError, OverflowError) as wrong:
        raise error(f"class_labels make no array of integers: {wrong}") from wrong
    if given.ndim != 1 or (given.dtype.kind not in "iu" and given.size):
        raise error(
            f"class_labels are {given.dtype} of shape {given.shape}, expected a class number a row (n,)"
        )
    if given.dtype == np.uint64 and given.size and given.max() > np.iinfo(np.int64).max:
        raise error("a class number is beyond 63 bits")
    return np.ascontiguousarray(given, dtype="<i8")


def _column(labels: Any) -> Column:
    if labels is not True:
        _numbers(labels, ArgumentError)
    return _COLUMN


def check_labels(stored: Array, bounds: Bounds, start: int) -> None:
    """Raise RowError, naming the row counted from `start`, where a label is none of the classes."""
    bad = (stored < 0) | (stored >= bounds.num_classes)
    if bad.any():
        row = int(np.argmax(bad))
        raise RowError(
            f"the label of row {start + row} is {stored[row]}, expected a class number, 0 to "
            f"{bounds.num_classes - 1}"
        )


SIDE = Side(
    "class_label",
    "class_labels",
    _column,
    fits=lambda column: (column.dtype, column.shape) == (_COLUMN.dtype, _COLUMN.shape),
    encode=lambda labels, column, start: _numbers(labels, RowError),
    check=check_labels,
)
