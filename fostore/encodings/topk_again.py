"""Whether top-k rows that were computed twice are the same: by class, since noise moves the last ones."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from fostore.encodings.alike import by_row, far_sums, level_of
from fostore.schema.halves import widen
from fostore.schema.row import UNIT_ROUNDOFF, Array, Schema

_SUMS = ("residual", "logsumexp", "residual_t")
"""Columns of sums over classes."""


def other_rows(
    stored: Mapping[str, Array], now: Mapping[str, Array], schema: Schema, noise: float
) -> Array:
    """For each row, whether it is another one; both sides are the content columns by name."""
    then, again = (_logs(side["values"], schema) for side in (stored, now))
    bad = _other_classes(then, stored["ids"], again, now["ids"], schema, noise)
    bad |= _other_classes(again, now["ids"], then, stored["ids"], schema, noise)
    whole = by_row(bad)
    level = level_of(np.minimum(np.abs(then), np.abs(again)))
    for name in _SUMS:
        if name in stored:
            one, other = (side[name].astype(np.float64) for side in (stored, now))
            wide = level.reshape(level.shape + (1,) * (one.ndim - level.ndim))
            whole |= by_row(far_sums(one, other, noise, wide))
    return whole


def _logs(values: Array, schema: Schema) -> Array:
    wide = widen(values, schema.dtype).astype(np.float64)
    if schema.kind != "probs":
        return wide
    logs: Array = np.log(np.maximum(wide, float(np.finfo(np.float32).tiny)))
    return logs


def _other_classes(
    one: Array, ids: Array, other: Array, other_ids: Array, schema: Schema, noise: float
) -> Array:
    """Which of the classes of one side (..., k) the other has otherwise."""
    k, num_classes = one.shape[-1], schema.num_classes
    x, y = one.reshape(-1, k), other.reshape(-1, k)
    row = np.arange(len(x), dtype=np.int64)[:, None] * num_classes
    keys, other_keys = (row + side.reshape(-1, k).astype(np.int64) for side in (ids, other_ids))
    order = np.argsort(other_keys, axis=None)
    at = order[np.minimum(np.searchsorted(other_keys.ravel(), keys, sorter=order), order.size - 1)]
    is_kept = other_keys.ravel()[at] == keys
    held = np.where(is_kept, y.ravel()[at], y[:, -1:])
    size = np.minimum(np.abs(x), np.abs(held))
    slack = 2 * UNIT_ROUNDOFF[schema.dtype]
    allowed = slack * np.where(np.isfinite(size), size, 0) if schema.kind != "probs" else slack
    allowed = allowed + noise * (1 + size + level_of(size)[:, None])
    with np.errstate(invalid="ignore"):
        # a class that the other side does not keep is no larger than the last one that it keeps
        near = np.where(is_kept, np.abs(x - held), x - held) <= allowed
        bad: Array = (x != held) & ~near
    return bad.reshape(one.shape)
