"""What the generator saw of each sample: a 64-bit hash of the input, kept as a column."""

from __future__ import annotations

import numpy as np

from fostore.schema.columns import Column
from fostore.schema.sides import Side


def hashes(role: str, keyword: str, name: str) -> Side:
    """A side column of 64-bit hashes, taken as they come."""
    made = Column(name, "uint64", "uint64", (), (), role)
    return Side(
        role,
        keyword,
        column=lambda values: made,
        fits=lambda column: (column.dtype, column.shape) == (made.dtype, made.shape),
        encode=lambda values, column, start: np.asarray(values, dtype="<u8"),
    )


SIDE = hashes("fingerprint", "fingerprints", "input_hash")
