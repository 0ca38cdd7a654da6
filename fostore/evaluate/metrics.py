"""How right distributions are about labels: accuracy, negative log-likelihood, Brier score, calibration."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from fostore.evaluate.calibration import (
    NUM_BINS,
    Calibration,
    ClasswiseCalibration,
    Reliability,
    labelled,
)
from fostore.evaluate.figures import figures
from fostore.evaluate.rows import Piece, over_classes
from fostore.evaluate.sources import rows_of
from fostore.evaluate.sums import Mean
from fostore.schema.row import Array
from fostore.schema.shown import Grid, Tabled, counted


@dataclass(frozen=True, slots=True, repr=False)
class Metrics(Tabled):
    """What `Labelled` found; see `accuracy`, `nll`, `brier`, `ece` and `classwise_ece`."""

    num_samples: int
    accuracy: float
    nll: float
    brier: float
    ece: float
    classwise_ece: float
    num_impossible: int
    """Samples whose label has the probability 0, so that `nll` is infinite."""
    reliability: Reliability

    def grid(self) -> Grid:
        """A line a metric; the bins are in `reliability`."""
        return Grid(
            f"Metrics of {counted(self.num_samples, 'label')}",
            [
                ("accuracy", self.accuracy),
                ("NLL, nats", self.nll),
                ("Brier", self.brier),
                ("ECE", self.ece),
                ("classwise ECE", self.classwise_ece),
                ("impossible labels", self.num_impossible),
            ],
            ("metric", "value"),
        )

    def to_json(self) -> dict[str, Any]:
        """The metrics as JSON; an infinite `nll` is null."""
        return {field.name: figures(getattr(self, field.name)) for field in fields(self)}


class Labelled:
    """Accumulates every metric of labels in one pass; ranks `merge` theirs, exactly.

    >>> one, other = Labelled(2), Labelled(2)
    >>> one.update([[0.9, 0.1]], [0])
    >>> other.update([[0.4, 0.6]], [0])
    >>> one.merge(other)
    >>> one.result().accuracy
    0.5
    """

    def __init__(self, num_classes: int, bins: int = NUM_BINS) -> None:
        self._means = {_right_of: Mean(), _nll_of: Mean(), _brier_of: Mean()}
        self._calibration = Calibration(bins)
        self._classwise = ClasswiseCalibration(num_classes, bins)

    def update(self, distributions: Any, labels: Any) -> None:
        """Add distributions (a store, a batch of rows ...) and one label each."""
        for piece, classes in labelled(distributions, labels):
            self.add(piece, classes)

    def add(self, piece: Piece, labels: Array) -> None:
        """Add a piece and its labels, int64 (n,)."""
        for function, mean in self._means.items():
            mean.update(function(piece, labels))
        self._calibration.update(piece.mean, labels)
        self._classwise.update(piece.mean, labels)

    def merge(self, other: Labelled) -> None:
        """Add what another rank has accumulated."""
        self._calibration.merge(other._calibration)
        self._classwise.merge(other._classwise)
        for function, mean in self._means.items():
            mean.merge(other._means[function])

    def result(self) -> Metrics:
        """The metrics of all samples so far, at least one."""
        table = self._calibration.result()
        right, nll, brier = (mean.result() for mean in self._means.values())
        return Metrics(
            num_samples=nll.num_samples,
            accuracy=right.mean,
            nll=nll.mean,
            brier=brier.mean,
            ece=table.ece,
            classwise_ece=float(self._classwise.result().mean()),
            num_impossible=nll.num_infinite,
            reliability=table,
        )


def label_metrics(store: Any, labels: Any = None, bins: int = NUM_BINS) -> Metrics:
    """All metrics of labels in one pass.

    Args:
        store: distributions; members are averaged.
        labels: one class a sample: numbers, names, a mapping by index, or a file; None: the store's own.
        bins: of the calibration errors.

    Raises:
        ArgumentError: no samples, or labels that do not fit; names the first.
        RowError: a row is no distribution.

    >>> label_metrics([[0.9, 0.1], [0.4, 0.6]], [0, 0]).accuracy
    0.5
    """
    rows = rows_of(store)
    metrics = Labelled(rows.num_classes, bins)
    metrics.update(rows, labels)
    return metrics.result()


def accuracy(store: Any, labels: Any = None) -> float:
    """The share of samples whose most probable class is their label, 0 to 1; of equal ones the first.

    Parameters and errors are those of `label_metrics`.

    Source: Hastie, Tibshirani and Friedman, "The Elements of Statistical Learning" (2009), section
    7.2: 1 minus the 0-1 loss.

    >>> accuracy([[0.5, 0.5], [0.4, 0.6]], [0, 0])
    0.5
    """
    return _mean(_right_of, store, labels)


def nll(store: Any, labels: Any = None) -> float:
    """The mean negative log-likelihood - ln p_label, in nats, 0 and more; also called log loss.

    Infinite where a label has the probability 0. Stored logits and log-probabilities are used as they
    are, so that a tiny probability is no 0. Parameters and errors are those of `label_metrics`.

    Source: Good, "Rational Decisions" (1952).

    >>> round(nll([[0.5, 0.5], [0.25, 0.75]], [0, 1]), 4)
    0.4904
    """
    return _mean(_nll_of, store, labels)


def brier(store: Any, labels: Any = None) -> float:
    """The mean Brier score sum_k (p_k - [k is the label])^2, 0 to 2.

    All classes count, as Brier has it; for two classes it is twice what scikit-learn gives by
    default. Parameters and errors are those of `label_metrics`.

    Source: Brier, "Verification of Forecasts Expressed in Terms of Probability" (1950).

    >>> brier([[0.5, 0.5]], [0])
    0.5
    """
    return _mean(_brier_of, store, labels)


def _mean(function: Any, store: Any, labels: Any) -> float:
    mean = Mean()
    for piece, classes in labelled(store, labels):
        mean.update(function(piece, classes))
    return mean.result().mean


# ------------------------------------------------------------------ of a piece and its labels


def _right_of(piece: Piece, labels: Array) -> Array:
    """1.0 where the most probable class is the label, else 0.0."""
    return np.asarray(piece.mean.argmax(axis=-1) == labels, np.float64)


def _nll_of(piece: Piece, labels: Array) -> Array:
    """See `nll`."""
    # Rounding may leave the logarithm of 1 above 0.
    return np.maximum(-piece.mean_logs[np.arange(len(labels)), labels], 0.0)


def _brier_of(piece: Piece, labels: Array) -> Array:
    """See `brier`."""
    off = piece.mean.copy()
    off[np.arange(len(labels)), labels] -= 1.0
    off *= off
    return over_classes(off)
