"""Where in its sequence each token row stands, of sequences of which rows are left out; kept as a column and hashed."""

from __future__ import annotations

from fostore.schema.columns import Column
from fostore.schema.sides import Side, like
from fostore.schema.sides.sequences import encode

_COLUMN = Column("position", "uint32", "uint32", (), (), "position")

SIDE = Side(
    "position",
    "positions",
    column=lambda values: _COLUMN,
    fits=like(_COLUMN),
    encode=encode,
    row_axis="token",
)
