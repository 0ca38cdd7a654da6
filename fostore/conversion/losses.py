"""How far converted rows are from what they were: total variation, Kullback-Leibler, changed argmax."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fostore.encodings import encoding_of
from fostore.schema.row import Array, Schema

_PIECE_VALUES = 1 << 17
"""Numbers that are measured at once: a handful of copies in float64 are made of them."""


class Losses:
    """The measured error of a lossy conversion, over rows that pass by.

    Total variation is half the sum of absolute differences; KL(before || after) is in nats, infinite
    where a class lost all its probability. Source: Cover and Thomas, Elements of Information Theory.
    """

    def __init__(self, before: Schema, after: Schema) -> None:
        self._schemas = (before, after)
        self._count = 0
        self._sums = np.zeros(2)
        self._most = np.zeros(2)
        self._argmax = 0

    def update(self, before: Sequence[Array], after: Sequence[Array]) -> None:
        """The same rows before and after, as stored columns."""
        rows, schema = len(before[0]), self._schemas[0]
        piece = max(_PIECE_VALUES // (schema.num_classes * (schema.num_members or 1)), 1)
        for start in range(0, rows, piece):
            self._measure(
                *(
                    _float64_probs([column[start : start + piece] for column in columns], schema)
                    for columns, schema in zip((before, after), self._schemas, strict=True)
                )
            )

    def _measure(self, p: Array, q: Array) -> None:
        tv = np.abs(p - q).sum(axis=-1) / 2
        # p ln 0 is minus infinity, and KL infinite, as it should be; 0 ln 0 is 0.
        with np.errstate(divide="ignore", invalid="ignore"):
            terms = np.where(p > 0, p * (np.log(p) - np.log(q)), 0.0)
        kl = np.maximum(terms.sum(axis=-1), 0.0)  # rounding may leave less than nothing
        self._count += tv.size
        for i, values in enumerate((tv, kl)):
            self._sums[i] += values.sum()
            self._most[i] = max(self._most[i], values.max())
        self._argmax += int((p.argmax(axis=-1) != q.argmax(axis=-1)).sum())

    def report(self) -> dict[str, Any]:
        """What a receipt says: means and maxima; "inf" where KL is infinite, as JSON has no number for it."""
        means = self._sums / max(self._count, 1)
        values = {
            "mean_tv": means[0],
            "max_tv": self._most[0],
            "mean_kl": means[1],
            "max_kl": self._most[1],
        }
        plain = {name: float(x) if np.isfinite(x) else "inf" for name, x in values.items()}
        return {"distributions": self._count, **plain, "argmax_changes": self._argmax}


def _float64_probs(stored: Sequence[Array], schema: Schema) -> Array:
    """What stored rows mean, in float64 and summing to 1."""
    values = encoding_of(schema).rows(stored, schema).astype(np.float64)
    if schema.kind in ("log_probs", "logits"):
        values = np.exp(values - values.max(axis=-1, keepdims=True))
    normalised: Array = values / values.sum(axis=-1, keepdims=True)
    return normalised
