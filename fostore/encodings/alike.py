"""Whether logarithms that were computed twice are the same, but for other kernels and for what keeping them costs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from fostore.schema.row import ROUNDOFF, Array, Schema

if TYPE_CHECKING:
    from fostore.encodings.topk_rows import TopK

_LEAST = {"float16": 2.0**-14}
"""The least normal number, where it is larger than that of float32."""
_TINY = float(np.finfo(np.float32).tiny)

_LEVEL = 100.0
"""More than that is a mask, and no level of a row's logits."""


def least_log(dtype: str) -> float:
    """The logarithm of the least normal number of a dtype, or of float32: probabilities under it count as it."""
    return float(np.log(max(_LEAST.get(dtype, 0.0), _TINY)))


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


def far_kept(sides: Sequence[tuple[TopK, Array | None]], schema: Schema, noise: float) -> Array:
    """For each number of top-k rows (..., k + 1 or 2), whether they are apart: kept classes, the others, the level.

    Both sides with their logsumexp, of logits. A class that is kept on one side alone lies no higher than the least
    kept one of the other.
    """
    (then, level_then), (again, level_again) = sides
    unit = ROUNDOFF[schema.dtype]
    least = least_log(schema.dtype) if schema.kind == "probs" else -np.inf
    one, other = (np.maximum(rows.values.astype(np.float64), least) for rows in (then, again))
    bad = np.zeros(one.shape, bool)
    for ids, values, asked, given in (
        (then.ids, one, again.ids, other),
        (again.ids, other, then.ids, one),
    ):
        known = _values_of(ids, values, asked, schema.num_classes)
        expected = np.where(np.isnan(known), values[..., -1:], known)
        met = np.where(np.isnan(known), np.maximum(given, expected), given)
        bad |= far(expected, met, noise, 2 * unit * (1 + np.abs(np.where(np.isinf(met), 0, met))))
    level = level_of(np.abs(one))
    sums = [(then.residual, again.residual)]
    if level_then is not None and level_again is not None:
        sums.append((level_then, level_again))
    apart = [far_sums(a.astype(np.float64), b.astype(np.float64), noise, level) for a, b in sums]
    return np.concatenate([bad, *(one[..., None] for one in apart)], axis=-1)


def _values_of(ids: Array, values: Array, asked: Array, num_classes: int) -> Array:
    """The values of the classes `asked` (..., k), NaN where they are not among `ids`."""
    shape = ids.shape
    rows = (
        np.arange(ids.size // shape[-1])[:, None] * num_classes
    )  # makes the classes of each row its own
    keys, sought = (x.reshape(-1, shape[-1]).astype(np.int64) + rows for x in (ids, asked))
    order = np.argsort(keys, axis=None)
    at = np.minimum(np.searchsorted(keys.ravel()[order], sought.ravel()), keys.size - 1)
    is_there = keys.ravel()[order][at] == sought.ravel()
    return np.where(is_there, values.ravel()[order][at], np.nan).reshape(shape)


def by_row(bad: Array) -> Array:
    """Whether anything is bad in a row (n, ...)."""
    whole: Array = np.any(bad.reshape(len(bad), -1), axis=-1)
    return whole
