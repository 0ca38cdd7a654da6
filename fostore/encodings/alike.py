"""Whether logarithms that were computed twice are the same, but for other kernels and for what keeping them costs."""

from __future__ import annotations

import numpy as np

from fostore.schema.row import Array

_LEVEL = 100.0
"""More than that is a mask, and no level of a row's logits."""


def far(then: Array, again: Array, noise: float, slack: Array | float) -> Array:
    """For each of (..., K) numbers, whether they are more apart than `slack` and n (1 + |x| + m).

    n is the noise, m the median of |x| in the row, at most 100.
    """
    size = np.minimum(np.abs(then), np.abs(again))
    return _apart(then, again, slack + noise * (1 + size + level_of(size)[..., None]))


def far_sums(then: Array, again: Array, noise: float, level: Array) -> Array:
    """The same of one number a row, where `level` is the m of the row."""
    return _apart(then, again, noise * (1 + np.minimum(np.abs(then), np.abs(again)) + level))


def level_of(size: Array) -> Array:
    """The median of |x| in each row (..., K)."""
    level: Array = np.median(np.minimum(size, _LEVEL), axis=-1)
    return level


def _apart(one: Array, other: Array, allowed: Array) -> Array:
    with np.errstate(invalid="ignore"):
        # minus infinity on both sides is a class that is excluded on both
        apart: Array = (one != other) & ~(np.abs(one - other) <= allowed)
    return apart


def by_row(bad: Array) -> Array:
    """Whether anything is bad in a row (n, ...)."""
    whole: Array = np.any(bad.reshape(len(bad), -1), axis=-1)
    return whole
