"""Top-k rows of one set of classes as rows of another: a teacher's vocabulary as the student has it.

A map sends each class of the teacher to one of the student. What it makes of a row is exact or it is refused: nobody
knows which classes the rest of a row is made of, so that no rule may need it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from fostore.encodings.selection import log_total
from fostore.encodings.topk_rows import TopK
from fostore.errors import ArgumentError, RowError
from fostore.schema.row import Array

_NOWHERE = -1


class ClassMap:
    """Where the student has each class of the teacher.

    Args:
        classes: (num_classes of the teacher,), integers: the class that the student has for each; several may share
            one. -1 is a class that the student does not have.
        num_classes: of the student; by default one more than the largest in `classes`.
        rule: what rows are taken for where a call does not say; by default that of their store.

    Raises:
        ArgumentError: no integers of that shape, or a class that the student cannot have.

    >>> halves = ClassMap([0, 0, 1, 1])
    >>> halves.dense(np.array([[0.5, 0.25, 0.125, 0.125]])).tolist()
    [[0.75, 0.25]]
    """

    def __init__(
        self, classes: Any, num_classes: int | None = None, *, rule: str | None = None
    ) -> None:
        self.rule = rule
        array = np.asarray(classes)
        if array.ndim != 1 or array.dtype.kind not in "iu" or not array.size:
            raise ArgumentError(
                f"class_map is {array.dtype} of shape {array.shape}, expected the student's class for each of the "
                "teacher's, integers (num_classes,), and -1 where it has none"
            )
        array = array.astype(np.int64)
        most = int(array.max()) + 1 if num_classes is None else int(num_classes)
        outside = (array < _NOWHERE) | (array >= most)
        if outside.any() or most < 1:
            at = int(np.argmax(outside))
            raise ArgumentError(
                f"class_map sends class {at} to {array[at]}, and the student has the classes 0 to {most - 1}"
            )
        self.classes: Array = array
        self.num_classes = most
        counts = np.bincount(array[array >= 0], minlength=most)
        self._shared = counts[np.maximum(array, 0)]
        """How many classes of the teacher go where each goes."""
        self.is_one_to_one = bool((array >= 0).all() and (counts == 1).all())

    def __call__(self, topk: TopK, rule: str | None = None) -> TopK:
        """The same rows over the student's classes; NumPy arrays.

        Classes that share one add up, in float64; the place that becomes free has no weight, and none is
        there beyond the student's classes. At a temperature other
        than 1 it is the added weights that are softened.

        Args:
            topk: rows over as many classes as the map is long.
            rule: what the rows are taken for; that of the store by default.

        Raises:
            ArgumentError: another number of classes, or a rule that would need to know the classes of the rest:
                `uniform` where classes share one or are missing.
            RowError: `coarse`, and a class of the row shares one with a class of its rest: how much of the rest is
                that one's nobody knows. `renorm` and `zero`, and a kept class that the student does not have.
                `coarse` and `zero`, and a rest of rows that have a place for every class of the student.
        """
        rule = rule or self.rule or topk.rule
        if topk.num_classes != len(self.classes):
            raise ArgumentError(
                f"class_map is of {len(self.classes):,} classes, and the rows are of {topk.num_classes:,}"
            )
        ids = np.asarray(topk.ids).astype(np.int64)
        sent = self.classes[ids]
        if self.is_one_to_one:
            return self._made(topk, rule, np.asarray(topk.values), sent, topk.residual)
        if rule == "uniform":
            raise ArgumentError(
                "the rule 'uniform' gives each class of the rest the same, and class_map merges or drops some of them, "
                "nobody knows which; coarse and renorm can be mapped"
            )
        values = np.asarray(topk.values, np.float64)
        known = np.isfinite(values)
        lost = (sent == _NOWHERE) & known
        residual = np.asarray(topk.residual, np.float64)
        if rule == "coarse":
            self._check_groups(ids, sent, known)
            residual = np.logaddexp(residual, log_total(np.where(lost, values, -np.inf)))
        elif lost.any():
            row = int(np.argwhere(lost)[0][0])
            raise RowError(
                f"row {row} of these keeps the class {ids[lost][0]}, which the student does not have (-1): its weight "
                "would be lost; rule='coarse' adds it to the rest"
            )
        merged, at = _merged(np.where(lost, -np.inf, values), sent)
        # No more places than the student has classes: those that are cut have no weight.
        most = min(merged.shape[-1], self.num_classes)
        if rule != "renorm" and 1 < most == self.num_classes and np.isneginf(merged[..., -1]).all():
            most -= 1  # a class is left for the rest
        merged, at = merged[..., :most], at[..., :most]
        if most == self.num_classes and rule != "renorm":
            self._check_none_left(residual)
        return self._made(topk, rule, merged, at, residual)

    def _check_none_left(self, residual: Array) -> None:
        """Raise RowError where a row has a rest that nothing would count: every class of the student has a place."""
        has_rest = ~np.isneginf(residual)
        if has_rest.any():
            raise RowError(
                f"row {int(np.argwhere(has_rest)[0][0])} of these has a rest beside places for all {self.num_classes} "
                "classes of the student, none of which it could be: rule='renorm' leaves the rest out"
            )

    def dense(self, probs: Array) -> Array:
        """Probabilities of all of the teacher's classes (..., K) as those of the student's, added up in float64.

        Raises:
            ArgumentError: another number of classes.
            RowError: a class that the student does not have (-1) has a probability other than 0.
        """
        if probs.shape[-1] != len(self.classes):
            raise ArgumentError(
                f"class_map is of {len(self.classes):,} classes, and the rows are of {probs.shape[-1]:,}"
            )
        gone = probs[..., self.classes == _NOWHERE]
        if gone.any():
            at = int(np.flatnonzero(self.classes == _NOWHERE)[np.argwhere(gone)[0][-1]])
            raise RowError(
                f"the student does not have class {at} (-1), to which the teacher gives a probability"
            )
        summed = np.zeros((*probs.shape[:-1], self.num_classes))
        columns = np.moveaxis(summed, -1, 0)  # a view: what is added lands in `summed`
        np.add.at(columns, np.maximum(self.classes, 0), np.moveaxis(probs, -1, 0))
        return summed.astype(probs.dtype)

    def _check_groups(self, ids: Array, sent: Array, known: Array) -> None:
        """Raise RowError where the rest of a row may hold a class that shares one with a kept class."""
        kept = (sent[..., :, None] == sent[..., None, :]) & known[..., None, :]
        open_ends = (sent >= 0) & known & (kept.sum(axis=-1) < self._shared[ids])
        if open_ends.any():
            row = int(np.argwhere(open_ends)[0][0])
            old = int(ids[open_ends][0])
            raise RowError(
                f"row {row} of these keeps the class {old}, which shares {self.classes[old]} with classes of its rest: "
                "how much of the rest is theirs nobody knows; rule='renorm' leaves the rest out"
            )

    def _made(self, topk: TopK, rule: str, values: Array, ids: Array, residual: Any) -> TopK:
        dtype = np.uint16 if self.num_classes <= 1 << 16 else np.uint32
        is_same = self.is_one_to_one
        return replace(
            topk,
            values=values.astype(np.asarray(topk.values).dtype),
            ids=ids.astype(dtype),
            residual=np.asarray(residual).astype(np.asarray(topk.residual).dtype),
            num_classes=self.num_classes,
            rule=rule,
            temperatures=topk.temperatures if is_same else (),
            residual_t=topk.residual_t if is_same else None,
        )


def _merged(values: Array, sent: Array) -> tuple[Array, Array]:
    """Weights of equal classes added up, largest first; a place that becomes free names the first class again."""
    order = np.argsort(sent, axis=-1, kind="stable")
    ids = np.take_along_axis(sent, order, -1)
    logs = np.take_along_axis(values, order, -1)
    k = ids.shape[-1]
    for rank in range(1, k):  # runs of equal classes: each adds to the last of its run
        same = ids[..., rank] == ids[..., rank - 1]
        total = np.logaddexp(logs[..., rank - 1], logs[..., rank])
        logs[..., rank] = np.where(same, total, logs[..., rank])
        logs[..., rank - 1] = np.where(same, -np.inf, logs[..., rank - 1])
    by_weight = np.lexsort((ids, -logs), axis=-1)
    ids, logs = np.take_along_axis(ids, by_weight, -1), np.take_along_axis(logs, by_weight, -1)
    return logs, np.maximum(np.where(np.isneginf(logs), ids[..., :1], ids), 0)
