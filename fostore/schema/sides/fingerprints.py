"""What the generator saw of each sample: a 64-bit hash of the input, kept as a column."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from fostore.schema.columns import Array, Column


class HashSide:
    """A side column of 64-bit hashes, not checked: see `fostore.schema.sides.Side`."""

    def __init__(self, role: str, keyword: str, name: str) -> None:
        self.role, self.keyword = role, keyword
        self._column = Column(name, "uint64", "uint64", (), (), role)

    def column(self, values: Any) -> Column:
        """One column, whatever the hashes are."""
        return self._column

    def fits(self, column: Column) -> bool:
        """One number a row, whatever its name."""
        return (column.dtype, column.shape) == ("uint64", ())

    def encode(self, values: Any, column: Column, start: int) -> Array:
        """Hashes as they are."""
        return np.asarray(values, dtype="<u8")

    def decode(self, stored: Array, column: Column) -> Array:
        """Hashes as they are."""
        return stored

    def known(self, column: Column, read: Callable[[int, int], Array]) -> None:
        """Equal inputs, and equal labels, have equal hashes."""


SIDE = HashSide("fingerprint", "fingerprints", "input_hash")
