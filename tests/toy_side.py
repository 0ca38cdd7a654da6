"""A side column that no release has: a weight a row, never equal twice."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from fostore.errors import RowError
from fostore.schema.columns import Array, Column
from fostore.schema.ranges import Ranges
from fostore.schema.sides import Side

COLUMN = Column("weight", "float32", "float32", (), (), "weight")


class Seen:
    """See `fostore.schema.sides.Known`."""

    def __init__(self, read: Callable[[int, int], Array]) -> None:
        self._read = read

    def load(self, there: Ranges) -> None:
        pass

    def add(self, start: int, stored: Array, there: Ranges) -> None:
        for first, stop in there:
            if np.isin(stored, self._read(first, stop)).any():
                raise RowError(f"a weight of the rows from {start} on is there already")


SIDE = Side(
    "weight",
    "weights",
    column=lambda values: COLUMN,
    fits=lambda column: column.dtype == "float32",
    encode=lambda values, column, start: np.asarray(values, "<f4"),
    known=lambda column, read: Seen(read),
)
