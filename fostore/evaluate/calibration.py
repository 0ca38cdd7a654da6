"""Calibration: whether of the samples that get the probability p, a share of p is right."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from fostore.errors import ArgumentError
from fostore.evaluate.figures import figures
from fostore.evaluate.labels import labels_of
from fostore.evaluate.rows import Piece, over_classes, pieces, refuse_empty
from fostore.evaluate.sources import rows_of
from fostore.evaluate.sums import Sums
from fostore.schema.integers import integer
from fostore.schema.row import Array
from fostore.schema.shown import Grid, Tabled, counted

NUM_BINS = 15
"""Bins of equal width, as Guo et al. have them."""
_MOST_BINS = 100_000


@dataclass(frozen=True, slots=True, repr=False)
class Reliability(Tabled):
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

    def grid(self) -> Grid:
        """A line a bin that holds samples."""
        columns = (self.lower, self.upper, self.count, self.confidence, self.accuracy)
        rows = zip(*(column.tolist() for column in columns), strict=True)
        return Grid(
            f"Reliability of {counted(self.num_samples, 'sample')}, ECE {self.ece:.4g}",
            [row for row in rows if row[2]],
            ("above", "up to", "samples", "confidence", "accuracy"),
        )

    def to_json(self) -> dict[str, Any]:
        """The table as JSON: null where a bin is empty."""
        names = ("lower", "upper", "count", "confidence", "accuracy")
        columns = [figures(getattr(self, name)) for name in names]
        rows = [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]
        return {"ece": self.ece, "mce": self.mce, "bins": rows}


class _Bins:
    """Samples, hits and the exact sum of probabilities in each bin, of one class or of each."""

    def __init__(self, bins: Any, num_classes: int | None = None) -> None:
        bins = integer(bins, "bins", 1, _MOST_BINS)
        self.shape = (bins, num_classes)
        size = bins * (1 if num_classes is None else num_classes)
        self.samples = 0
        self.count = np.zeros(size, np.int64)
        self.hits = np.zeros(size, np.int64)
        self.mass = Sums((size,))  # exact: any cut into pieces and ranks gives the same bits

    def add(self, probs: Array, hits: tuple[Any, Any]) -> None:
        """Add probabilities (n, classes); `hits` says where among them the label is."""
        bins = self.shape[0]
        at = np.ceil(probs * bins)
        at -= 1  # b/bins < p <= (b + 1)/bins, and 0 lies in the first
        at = np.clip(at, 0, bins - 1).astype(np.int64) + np.arange(probs.shape[1]) * bins
        self.samples += len(probs)
        if self.shape[1] is None:  # of each class all samples count: a tenth of the time is saved
            self.count += np.bincount(at.ravel(), minlength=len(self.count))
        self.hits += np.bincount(at[hits], minlength=len(self.hits))
        self.mass.add_at(at.ravel(), probs.ravel())

    def merge(self, other: _Bins) -> None:
        """Add what another of the same shape has."""
        if self.shape != other.shape:
            raise ArgumentError(
                f"accumulators of {self.shape} and {other.shape} (bins, classes) cannot be merged"
            )
        self.samples += other.samples
        self.count += other.count
        self.hits += other.hits
        self.mass.merge(other.mass)


class Calibration:
    """Accumulates a reliability table; `merge` adds what another rank has, exactly.

    Source: Guo, Pleiss, Sun and Weinberger, "On Calibration of Modern Neural Networks" (2017),
    section 2; Naeini, Cooper and Hauskrecht, "Obtaining Well Calibrated Probabilities Using Bayesian
    Binning" (2015).
    """

    def __init__(self, bins: int = NUM_BINS) -> None:
        self._bins = _Bins(bins)
        self.bins = self._bins.shape[0]

    def update(self, probs: Array, labels: Array) -> None:
        """Add samples: (n, K) probabilities that sum to 1, and their classes (n,)."""
        right = np.flatnonzero(probs.argmax(axis=-1) == labels)
        self._bins.add(probs.max(axis=-1, keepdims=True), (right, 0))

    def merge(self, other: Calibration) -> None:
        """Add what another, of as many bins, has accumulated."""
        self._bins.merge(other._bins)

    def result(self) -> Reliability:
        """The table."""
        edges, count = np.linspace(0.0, 1.0, self.bins + 1), self._bins.count.copy()
        with np.errstate(invalid="ignore"):  # an empty bin: 0 / 0 is NaN, as it should be
            confidence, accuracy = self._bins.mass.total() / count, self._bins.hits / count
        return Reliability(edges[:-1], edges[1:], count, confidence, accuracy)


class ClasswiseCalibration:
    """Accumulates the calibration error of each class; memory for num_classes x bins numbers."""

    def __init__(self, num_classes: int, bins: int = NUM_BINS) -> None:
        self._bins = _Bins(bins, num_classes)
        self.bins, self.num_classes = self._bins.shape[0], num_classes

    def update(self, probs: Array, labels: Array) -> None:
        """Add samples: (n, K) probabilities that sum to 1, and their classes (n,)."""
        self._bins.add(probs, (np.arange(len(labels)), labels))

    def merge(self, other: ClasswiseCalibration) -> None:
        """Add what another, of as many classes and bins, has accumulated."""
        self._bins.merge(other._bins)

    def result(self) -> Array:
        """The error of each class, float64 (num_classes,); their mean is the classwise ECE."""
        gaps = np.abs(self._bins.mass.total() - self._bins.hits)
        return over_classes(gaps.reshape(self.num_classes, self.bins)) / self._bins.samples


def reliability(store: Any, labels: Any = None, bins: int = NUM_BINS) -> Reliability:
    """The reliability table of the most probable class; one pass.

    Args:
        store: distributions; members are averaged.
        labels: one class a sample: numbers, names, a mapping by index, or a file; None: the store's own.
        bins: of equal width. 15, as the paper has it; probly has 10.

    Raises:
        ArgumentError: no samples, or labels that do not fit.
        RowError: a row is no distribution.

    Source: Guo et al. (2017), section 2.

    >>> table = reliability([[0.9, 0.1], [0.6, 0.4], [0.3, 0.7]], [0, 1, 1], bins=5)
    >>> table.count.tolist(), round(table.ece, 4)
    ([0, 0, 1, 1, 1], 0.3333)
    """
    table = Calibration(bins)
    for piece, classes in labelled(store, labels):
        table.update(piece.mean, classes)
    return table.result()


def ece(store: Any, labels: Any = None, bins: int = NUM_BINS) -> float:
    """The expected calibration error, 0 to 1: how far confidence is from accuracy, bin by bin.

    Parameters, source and errors are those of `reliability`.
    """
    return reliability(store, labels, bins).ece


def classwise_ece(store: Any, labels: Any = None, bins: int = NUM_BINS) -> float:
    """The classwise expected calibration error, 0 to 1: the mean over classes of each class's own.

    Every probability counts, not only the largest. Parameters and errors are those of `reliability`.

    Source: Kull, Perello-Nieto, Kangsepp, Silva Filho, Song and Flach, "Beyond Temperature Scaling"
    (2019), section 2; Nixon et al., "Measuring Calibration in Deep Learning" (2019), as SCE.

    >>> classwise_ece([[1.0, 0.0], [0.0, 1.0]], [0, 1])
    0.0
    """
    rows = rows_of(store)
    table = ClasswiseCalibration(rows.num_classes, bins)
    for piece, classes in labelled(rows, labels):
        table.update(piece.mean, classes)
    return float(table.result().mean())


def labelled(store: Any, labels: Any) -> Iterator[tuple[Piece, Array]]:
    """Pieces and the labels of their rows, from front to back.

    Raises:
        ArgumentError: no samples, or labels that do not fit.
    """
    rows = rows_of(store)
    classes = labels_of(labels, rows)  # all of them, before a row is read
    refuse_empty(rows, "metrics")
    for (piece,) in pieces(rows):
        yield piece, classes[piece.start : piece.stop]
