"""How samples were augmented: (seed, view) a row, kept as a column so that a transform can be replayed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from fostore.errors import ArgumentError, RowError
from fostore.schema.columns import Array, Column

VIEW = Column("view", "int64", "int64", ("seed_view",), (2,), "view")
"""What a store keeps of a view: the seed of the transform's random numbers, and which view it is."""


def encode_views(views: Any, error: type[ArgumentError] | type[RowError] = ArgumentError) -> Array:
    """(seed, view) of each row, int64 (n, 2); where seeds alone came, (n,), the view is 0.

    Raises:
        error: no integers, or of another shape.
    """
    try:
        given = np.asarray(views)
    except (ValueError, OverflowError) as wrong:
        raise error(f"views make no array of integers: {wrong}") from wrong
    pairs = given.ndim == 2 and given.shape[1] == 2
    if given.dtype.kind not in "iu" or not (given.ndim == 1 or pairs):
        raise error(
            f"views are {given.dtype} of shape {given.shape}, expected integers: a seed a row (n,), "
            "or a seed and the number of the view (n, 2)"
        )
    if given.dtype == np.uint64 and given.size and given.max() > np.iinfo(np.int64).max:
        raise error("a seed or view is beyond 63 bits")
    both = given if pairs else np.stack([given, np.zeros_like(given)], axis=1)
    return np.ascontiguousarray(both, dtype="<i8")


class _Views:
    """See `fostore.schema.sides.Side`."""

    role, keyword = "view", "views"

    def column(self, values: Any) -> Column:
        """One column, whatever the seeds are."""
        if values is not True:
            encode_views(values)
        return VIEW

    def fits(self, column: Column) -> bool:
        """A seed and a view, and nothing else."""
        return (column.dtype, column.axes, column.shape) == (VIEW.dtype, VIEW.axes, VIEW.shape)

    def encode(self, values: Any, column: Column, start: int) -> Array:
        """See `encode_views`."""
        return encode_views(values, RowError)

    def decode(self, stored: Array, column: Column) -> Array:
        """(seed, view) of each row, as they are stored."""
        return stored

    def known(self, column: Column, read: Callable[[int, int], Array]) -> None:
        """Many samples may be augmented alike."""


SIDE = _Views()
