"""What the generator saw of each sample: a 64-bit hash of the input, kept as a column."""

from __future__ import annotations

from operator import index
from typing import Any

import numpy as np

from fostore.errors import RowError
from fostore.schema.columns import Array, Column
from fostore.schema.sides import Side, like


def hashes(role: str, keyword: str, name: str) -> Side:
    """A side column of 64-bit hashes, taken as they come."""
    made = Column(name, "uint64", "uint64", (), (), role)
    expected = "expected a 64-bit hash a row, uint64 (signed ones become such by .view('uint64'))"

    def encode(values: Any, column: Column, start: int) -> Array:
        # Never by a cast alone: 1.5 and 1.7 would be one hash, and so two inputs one sample. Of a list
        # NumPy makes floats where one hash has 64 bits and another has not.
        is_array = hasattr(values, "dtype")
        try:
            given = np.asarray(values if is_array else np.array([*map(index, values)], "<u8"))
        except (TypeError, OverflowError) as error:
            raise RowError(f"{keyword} at row {start}: {error}; {expected}") from error
        is_signed = given.dtype.kind == "i" and given.size and given.min() < 0
        if given.dtype.kind not in "iu" or is_signed:
            kind = f"{given.dtype}, some below 0" if is_signed else given.dtype
            raise RowError(f"{keyword} at row {start} are {kind}; {expected}")
        return given.astype("<u8", copy=False)

    return Side(
        role,
        keyword,
        column=lambda values: made,
        fits=like(made),
        encode=encode,
    )


SIDE = hashes("fingerprint", "fingerprints", "input_hash")
