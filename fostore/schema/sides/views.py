"""How samples were augmented: (seed, view) a row, kept as a column so that a transform can be replayed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from fostore.errors import ArgumentError, RowError
from fostore.schema.columns import Array, Column
from fostore.schema.integers import integers
from fostore.schema.sides import Side

VIEW = Column("view", "int64", "int64", ("seed_view",), (2,), "view")
"""What a store keeps of a view: the seed of the transform's random numbers, and which view it is."""


def encode_views(views: Any, error: type[ArgumentError] | type[RowError] = ArgumentError) -> Array:
    """(seed, view) of each row, int64 (n, 2); where seeds alone came, (n,), the view is 0.

    Raises:
        error: no integers, or of another shape.
    """
    given = integers(
        views,
        "views",
        error,
        shapes=((), (2,)),
        expected="a seed a row (n,), or a seed and the number of the view (n, 2)",
    )
    return given if given.ndim == 2 else np.stack([given, np.zeros_like(given)], axis=1)


def _column(views: Any) -> Column:
    if views is not True:
        encode_views(views)
    return VIEW


SIDE = Side(
    "view",
    "views",
    _column,
    fits=lambda column: replace(column, name=VIEW.name, extra=VIEW.extra) == VIEW,
    encode=lambda views, column, start: encode_views(views, RowError),
)
