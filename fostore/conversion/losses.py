"""How far converted rows are from what they were: total variation, Kullback-Leibler, changed argmax."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from fostore.encodings import encoding_of
from fostore.encodings.fidelity import Bound, Errors, Figures
from fostore.encodings.topk_rows import TopK, masses
from fostore.schema.row import Array, Schema

_PIECE_VALUES = 1 << 17
"""Numbers that are measured at once: a handful of copies in float64 are made of them."""


class Losses:
    """The measured error of a lossy conversion, over rows that pass by.

    Total variation is half the sum of absolute differences; KL(before || after) is in nats, infinite
    where a class lost all its probability. Source: Cover and Thomas, Elements of Information Theory.
    """

    def __init__(
        self, before: Schema, after: Schema, rule: str | None = None, max_kl: float | None = None
    ) -> None:
        """`rule`: by which rows became whole that do not keep every class; `max_kl`: nats that one may lose at most."""
        self._schemas = (before, after)
        self._rule = rule
        self._bound = Bound(max_kl, after)
        self.figures = Figures()

    def update(self, before: Sequence[Array], after: Sequence[Array]) -> None:
        """The same rows before and after, as stored columns.

        Raises:
            RowError: one loses more than it may; names it.
        """
        rows, schema = len(before[0]), self._schemas[0]
        piece = max(_PIECE_VALUES // (schema.num_classes * (schema.num_members or 1)), 1)
        for start in range(0, rows, piece):
            at = slice(start, start + piece)
            old, new = ([column[at] for column in columns] for columns in (before, after))
            outcomes = _outcomes(new, self._schemas[1])
            if outcomes is None:
                p = _float64_probs(old, self._schemas[0], self._rule)
                q = _float64_probs(new, self._schemas[1])
                missing = _missing(
                    p, q, encoding_of(self._schemas[1]).sparse(new, self._schemas[1])
                )
            else:  # classes that became one outcome are one before as well
                ids, q = outcomes
                p = _joined(_all_probs(old, self._schemas[0], self._rule), ids)
                missing = p[..., -1]
            self._measure(p, q, missing)

    def _measure(self, p: Array, q: Array, missing: Array) -> None:
        # p ln 0 is minus infinity, and KL infinite, as it should be; 0 ln 0 is 0.
        with np.errstate(divide="ignore", invalid="ignore"):
            terms = np.where(p > 0, p * (np.log(p) - np.log(q)), 0.0)
        errors = Errors(
            kl=np.maximum(terms.sum(axis=-1), 0.0),  # rounding may leave less than nothing
            tv=np.abs(p - q).sum(axis=-1) / 2,
            missing_mass=missing,
            flips=p.argmax(axis=-1) != q.argmax(axis=-1),
        )
        rows = self.figures.num_rows + np.arange(len(p))
        self._bound.check(rows, errors)
        self.figures = self.figures.add(rows, errors)

    def report(self) -> dict[str, Any]:
        """What a receipt says: means and maxima; "inf" where KL is infinite, as JSON has no number for it."""
        figures = self.figures
        values = {
            "mean_tv": figures.tv_mean,
            "max_tv": figures.tv_max,
            "mean_kl": figures.kl_mean,
            "max_kl": figures.kl_max,
        }
        plain = {name: x if math.isfinite(x or 0) else "inf" for name, x in values.items()}
        distributions = figures.num_rows * (self._schemas[0].num_members or 1)
        flips = figures.argmax_flips or 0
        return {
            "distributions": distributions,
            **{name: x or 0.0 for name, x in plain.items()},
            "argmax_changes": flips,
        }


def _float64_probs(stored: Sequence[Array], schema: Schema, rule: str | None = None) -> Array:
    """What stored rows mean, in float64 and summing to 1."""
    values = encoding_of(schema).rows(stored, schema, rule).astype(np.float64)
    if schema.kind in ("log_probs", "logits"):
        values = np.exp(values - values.max(axis=-1, keepdims=True))
    normalised: Array = values / values.sum(axis=-1, keepdims=True)
    return normalised


def _missing(p: Array, q: Array, topk: TopK | None) -> Array:
    """What the classes weigh that are not kept; of rows that keep all, those that have nothing left."""
    if topk is None:
        others = np.where(q > 0, 0.0, p)
    else:
        others = p.copy()
        np.put_along_axis(others, topk.ids.astype(np.int64), 0, -1)
    missing: Array = others.sum(axis=-1)
    return missing


def _outcomes(stored: Sequence[Array], schema: Schema) -> tuple[Array, Array] | None:
    """Of rows that leave classes open: those that are kept, and the masses of these and of all others; else None."""
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
