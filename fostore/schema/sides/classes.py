"""The class of each sample, as its dataset says: a class number, kept as a column and hashed as ids are."""

from __future__ import annotations

from typing import Any

from fostore.errors import ArgumentError, RowError
from fostore.schema.columns import Array, Column
from fostore.schema.integers import check_below, integers
from fostore.schema.sides import Bounds, Side, like

_COLUMN = Column("label", "int64", "int64", (), (), "class_label")
_KEYWORD = "class_labels"


def _column(labels: Any) -> Column:
    if labels is not True:
        integers(labels, _KEYWORD, ArgumentError)
    return _COLUMN


def _check(stored: Array, bounds: Bounds, start: int) -> None:
    check_below(stored, bounds.num_classes, start, "label")


SIDE = Side(
    "class_label",
    _KEYWORD,
    _column,
    fits=like(_COLUMN),
    encode=lambda labels, column, start: integers(labels, _KEYWORD, RowError, start=start),
    check=_check,
)
