"""A side column that no release has: a weight a row, never equal twice."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from fostore.errors import RowError
from fostore.schema.columns import Array, Column
from fostore.schema.ranges import Ranges

COLUMN = Column("weight", "float32", "float32", (), (), "weight")


class Weights:
    """See `fostore.schema.sides.Side`."""

    role, keyword = "weight", "weights"

    def column(self, values: Any) -> Column:
        return COLUMN

    def fits(self, column: Column) -> bool:
        return column.dtype == "float32"

    def encode(self, values: Any, column: Column, start: int) -> Array:
        return np.asarray(values, "<f4")

    def decode(self, stored: Array, column: Column) -> Array:
        return stored

    def known(self, column: Column, read: Callable[[int, int], Array]) -> Seen:
        return Seen(read)


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


SIDE = Weights()
