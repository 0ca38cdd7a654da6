"""FileArray: an array in a file, whatever it lies in: what it is, and how its rows are read piece by piece."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from fostore.schema.row import COUNTS, FLOATS

SIGNED = {"int8": "uint8", "int16": "uint16", "int32": "uint32", "int64": "uint64"}
"""Whole numbers with a sign, of which votes have none."""


def unread(start: int, rows: int) -> Iterator[Any]:
    """The rows of an array that no store can have."""
    yield from ()


@dataclass(frozen=True, slots=True)
class FileArray:
    """An array in a file; `batches(start, rows)` gives raw rows in any order of bytes, bfloat16 as its bits."""

    dtype: str
    """Its name, "bfloat16" included, or what it holds instead of numbers, in a message's words."""
    shape: tuple[int, ...]
    """The first axis is that of the rows; 0 of a stream."""
    batches: Callable[[int, int], Iterator[Any]] = unread
    is_reversed: bool = False
    """Whether the file says that its axes come last first."""
    note: str = ""
    """What a receipt says of how its rows were found."""

    @property
    def num_rows(self) -> int:
        """How many there are along its first axis."""
        return self.shape[0] if self.shape else 0

    @property
    def is_float(self) -> bool:
        """Whether it may hold probabilities or logits."""
        return self.dtype in FLOATS

    @property
    def is_count(self) -> bool:
        """Whether it may hold votes."""
        return self.dtype in COUNTS or self.dtype in SIGNED


def name_of(dtype: np.dtype[Any]) -> str:
    """The name of a dtype in any byte order."""
    return dtype.newbyteorder("=").name
