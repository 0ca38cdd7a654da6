"""Calibration: whether of the samples that get the probability p, a share of p is right."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from fostore.errors import ArgumentError
from fostore.evaluate.labels import labels_of
from fostore.evaluate.rows import Piece, pieces, refuse_empty, rows_of
from fostore.evaluate.sums import Sums
from fostore.schema.row import Array

NUM_BINS = 15
"""Bins of equal width, as Guo et al. have them."""


@dataclass(frozen=True, slots=True)
class Reliability:
    """A reliability table: bin b holds the samples with lower[b] < confidence <= upper[b].

    All arrays are (num_bins,); `confidence` and `accuracy` of an empty bin are NaN.
    """

    lower: Array
    upper: Array
    count: Array
    """Samples in each bin, int64."""
    confidence: Array
    """Their mean largest probability."""
    accuracy: Array
    """The share of them whose most probable class is their label."""

    @property
    def num_samples(self) -> int:
        """Samples in all bins."""
        return int(self.count.sum())

    @property
    def ece(self) -> float:
        """The expected calibration error: the mean of |accuracy - confidence|, weighted by samples."""
        gaps = np.abs(self.accuracy - self.confidence)
        return float(np.nansum(self.count * gaps) / self.num_samples)

    @property
    def mce(self) -> float:
        """The maximum calibration error: the largest gap of a bin."""
        return float(np.nanmax(np.abs(self.accuracy - self.confidence)))

    def to_json(self) -> dict[str, Any]:
        """The table as JSON: null where a bin is empty."""
        rows = zip(
            self.lower.tolist(),
            self.upper.tolist(),
            self.count.tolist(),
            self.confidence.tolist(),
            self.accuracy.tolist(),
            strict=True,
        )
        names = ("lower", "upper", "count", "confidence", "accuracy")
        return {
            "ece": self.ece,
            "mce": self.mce,
            "bins": [
                {k: None if v != v else v for k, v in zip(names, row, strict=True)} for row in rows
            ],
        }


class Calibration:
    """Accumulates a reliability table; `merge` adds what another rank has, exactly.

    Source: Guo, Pleiss, Sun and Weinberger, "On Calibration of Modern Neural Networks" (2017),
    section 2; Naeini, Cooper and Hauskrecht, "Obtaining Well Calibrated Probabilities Using Bayesian
    Binning" (2015).
    """

    def __init__(self, bins: int = NUM_BINS) -> None:
        self.bins = _check_bins(bins)
        self._count = np.zeros(bins, np.int64)
        self._hits = np.zeros(bins, np.int64)
        self._confidence = Sums((bins,))

    def update(self, probs: Array, labels: Array) -> None:
        """Add samples: (n, K) probabilities that sum to 1, and their classes (n,)."""
        confidence = probs.max(axis=-1)
        right = probs.argmax(axis=-1) == labels
        at = bin_of(confidence, self.bins)
        self._count += np.bincount(at, minlength=self.bins)
        self._hits += np.bincount(at[right], minlength=self.bins)
        self._confidence.add_at(at, confidence)

    def merge(self, other: Calibration) -> None:
        """Add what another, of as many bins, has accumulated."""
        _check_merge(self, other)
        self._count = self._count + other._count
        self._hits = self._hits + other._hits
        self._confidence.merge(other._confidence)

    def result(self) -> Reliability:
        """The table."""
        edges = np.linspace(0.0, 1.0, self.bins + 1)
        with np.errstate(invalid="ignore"):
            confidence = self._confidence.total() / self._count
            accuracy = self._hits / self._count
        return Reliability(edges[:-1], edges[1:], self._count.copy(), confidence, accuracy)


class ClasswiseCalibration:
    """Accumulates the calibration error of each class; memory for num_classes x bins numbers."""

    def __init__(self, num_classes: int, bins: int = NUM_BINS) -> None:
        self.bins = _check_bins(bins)
        self.num_classes = num_classes
        self._samples = 0
        self._hits = np.zeros(num_classes * bins, np.int64)
        self._probability = Sums((num_classes * bins,))

    def update(self, probs: Array, labels: Array) -> None:
        """Add samples: (n, K) probabilities that sum to 1, and their classes (n,)."""
        at = bin_of(probs, self.bins)
        at += np.arange(self.num_classes) * self.bins
        self._samples += len(probs)
        self._probability.add_at(at.ravel(), probs.ravel())
        self._hits += np.bincount(
            at[np.arange(len(labels)), labels], minlength=self.num_classes * self.bins
        )

    def merge(self, other: ClasswiseCalibration) -> None:
        """Add what another, of as many classes and bins, has accumulated."""
        _check_merge(self, other)
        self._samples += other._samples
        self._hits = self._hits + other._hits
        self._probability.merge(other._probability)

    def result(self) -> Array:
        """The error of each class, float64 (num_classes,); their mean is the classwise ECE."""
        gaps = np.abs(self._probability.total() - self._hits).reshape(self.num_classes, self.bins)
        found: Array = np.add.reduce(gaps, axis=1) / self._samples
        return found


def reliability(store: Any, labels: Any, bins: int = NUM_BINS) -> Reliability:
    """The reliability table of the most probable class; one pass.

    Args:
        store: distributions; members are averaged.
        labels: one class a sample: numbers, names, a mapping by index, or a file.
        bins: of equal width. 15, as the paper has it; probly has 10.

    Raises:
        ArgumentError: no samples, or labels that do not fit.
        RowError: a row is no distribution.

    Source: Guo et al. (2017), section 2.

    >>> table = reliability([[0.9, 0.1], [0.6, 0.4], [0.3, 0.7]], [0, 1, 1], bins=5)
    >>> table.count.tolist(), round(table.ece, 4)
    ([0, 0, 1, 1, 1], 0.3333)
    """
    found = Calibration(bins)
    for piece, part in labelled(store, labels):
        found.update(piece.mean, part)
    return found.result()


def ece(store: Any, labels: Any, bins: int = NUM_BINS) -> float:
    """The expected calibration error, 0 to 1: how far confidence is from accuracy, bin by bin.

    Parameters, source and errors are those of `reliability`.
    """
    return reliability(store, labels, bins).ece


def classwise_ece(store: Any, labels: Any, bins: int = NUM_BINS) -> float:
    """The classwise expected calibration error, 0 to 1: the mean over classes of each class's own.

    Every probability counts, not only the largest. Parameters and errors are those of `reliability`.

    Source: Kull, Perello-Nieto, Kangsepp, Silva Filho, Song and Flach, "Beyond Temperature Scaling"
    (2019), section 2; Nixon et al., "Measuring Calibration in Deep Learning" (2019), as SCE.

    >>> classwise_ece([[1.0, 0.0], [0.0, 1.0]], [0, 1])
    0.0
    """
    rows = rows_of(store)
    found = ClasswiseCalibration(rows.num_classes, bins)
    for piece, part in labelled(rows, labels):
        found.update(piece.mean, part)
    return float(found.result().mean())


def labelled(store: Any, labels: Any) -> Iterator[tuple[Piece, Array]]:
    """Pieces and the labels of their rows, from front to back.

    Raises:
        ArgumentError: no samples, or labels that do not fit.
    """
    rows = rows_of(store)
    classes = labels_of(labels, rows)
    refuse_empty(rows, "metrics")
    for (piece,) in pieces(rows):
        yield piece, classes[piece.start : piece.stop]


def bin_of(probs: Array, bins: int) -> Array:
    """The bin of each probability: b/bins < p <= (b + 1)/bins, and 0 in the first; int64."""
    at = np.ceil(probs * bins)
    at -= 1
    found: Array = np.clip(at, 0, bins - 1).astype(np.int64)
    return found


def _check_bins(bins: Any) -> int:
    if not isinstance(bins, (int, np.integer)) or bins < 1:
        raise ArgumentError(f"bins is {bins!r}, expected an integer of at least 1")
    return int(bins)


def _check_merge(one: Any, other: Any) -> None:
    ours, theirs = ((a.bins, getattr(a, "num_classes", None)) for a in (one, other))
    if ours != theirs:
        raise ArgumentError(f"accumulators of {ours} and {theirs} (bins, classes) cannot be merged")
