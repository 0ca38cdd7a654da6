"""How far converted rows are from what they were: total variation, Kullback-Leibler, changed argmax."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fostore.encodings import encoding_of
from fostore.encodings.topk_rows import masses
from fostore.schema.row import Array, Schema

_PIECE_VALUES = 1 << 17
"""Numbers that are measured at once: a handful of copies in float64 are made of them."""


class Losses:
    """The measured error of a lossy conversion, over rows that pass by.

    Total variation is half the sum of absolute differences; KL(before || after) is in nats, infinite
    where a class lost all its probability. Source: Cover and Thomas, Elements of Information Theory.
    """

    def __init__(self, before: Schema, after: Schema, rule: str | None = None) -> None:
        self._schemas = (before, after)
        self._rule = rule
        self._count = 0
        self._sums = np.zeros(2)
        self._most = np.zeros(2)
        self._argmax = 0

    def update(self, before: Sequence[Array], after: Sequence[Array]) -> None:
        """The same rows before and after, as stored columns."""
        rows, schema = len(before[0]), self._schemas[0]
        piece = max(_PIECE_VALUES // (schema.num_classes * (schema.num_members or 1)), 1)
        for start in range(0, rows, piece):
            at = slice(start, start + piece)
            old, new = ([column[at] for column in columns] for columns in (before, after))
            outcomes = _outcomes(new, self._schemas[1])
            if outcomes is None:
                p = _float64_probs(old, self._schemas[0], self._rule)
                self._measure(p, _float64_probs(new, self._schemas[1]))
            else:  # classes that became one outcome are one before as well
                ids, q = outcomes
                self._measure(_joined(_all_probs(old, self._schemas[0], self._rule), ids), q)

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


def _float64_probs(stored: Sequence[Array], schema: Schema, rule: str | None = None) -> Array:
    """What stored rows mean, in float64 and summing to 1."""
    values = encoding_of(schema).rows(stored, schema, rule).astype(np.float64)
    if schema.kind in ("log_probs", "logits"):
        values = np.exp(values - values.max(axis=-1, keepdims=True))
    normalised: Array = values / values.sum(axis=-1, keepdims=True)
    return normalised


def _outcomes(stored: Sequence[Array], schema: Schema) -> tuple[Array, Array] | None:
    """Of rows that leave some classes open: those that are kept, and the masses of these and of all others; else None."""
    topk = encoding_of(schema).sparse(stored, schema)
    if topk is None or topk.rule not in ("coarse", "zero"):
        return None
    return topk.ids.astype(np.int64), masses(topk)


def _all_probs(stored: Sequence[Array], schema: Schema, rule: str | None) -> Array:
    """Every class, float64; of classes that are no longer known one by one what they have together is missing."""
    if rule is None and _outcomes(stored, schema) is not None:
        return encoding_of(schema).decode(stored, schema, rule="zero").astype(np.float64)
    return _float64_probs(stored, schema, rule)


def _joined(probs: Array, ids: Array) -> Array:
    """The masses of some classes of each row, and what is left of 1."""
    kept = np.take_along_axis(probs, ids, -1)
    np.put_along_axis(probs, ids, 0, -1)
    missing = 1 - (kept.sum(axis=-1, keepdims=True) + probs.sum(axis=-1, keepdims=True))
    rest = probs.sum(axis=-1, keepdims=True) + np.maximum(missing, 0)
    return np.concatenate([kept, rest], axis=-1)
