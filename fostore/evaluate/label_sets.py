"""How many classes it takes to hold the label: balls of a promised coverage, and what an ensemble leaves open."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from fostore.evaluate.conformal import rank_of
from fostore.evaluate.covered import Coverage
from fostore.evaluate.histogram import Histogram
from fostore.evaluate.rows import Piece
from fostore.schema.row import Array


@dataclass(frozen=True, slots=True)
class LabelSets:
    """Counts, from one pass in any cut, of which sets around the predictions hold the labels, and how many classes.

    A ball in total variation around a distribution p holds class k (all mass on k) where 1 - p_k is at most its
    radius. An ensemble leaves a class open unless all members give another more than any of them gives it.

    Source: Sadinle, Lei and Wasserman, "Least Ambiguous Set-Valued Classifiers with Bounded Error Levels" (2019),
    for balls of a promised coverage; Troffaes, "Decision Making under Uncertainty Using Imprecise Probabilities"
    (2007), section 3.2, for interval dominance.
    """

    to_label: Histogram
    """Samples by the distance of their label, 1 - p_label, 0 to 1."""
    to_class: Histogram
    """The classes of all samples by their distance."""
    left_open: Array | None
    """Of an ensemble: samples by [classes left open, whether the label is one], int64 (num_classes + 1, 2)."""

    @classmethod
    def empty(cls, num_classes: int, *, has_members: bool) -> LabelSets:
        """The sets of no samples."""
        left_open = np.zeros((num_classes + 1, 2), np.int64) if has_members else None
        return cls(Histogram.empty(0.0, 1.0), Histogram.empty(0.0, 1.0), left_open)

    def add(self, piece: Piece, labels: Array) -> None:
        """Count some rows and their labels, int64 (n,)."""
        rows = np.arange(len(labels))
        self.to_label.add(1.0 - piece.mean[rows, labels])
        self.to_class.add(1.0 - piece.mean.ravel())
        if self.left_open is not None:
            members = piece.members.probs
            is_open = members.max(axis=1) >= members.min(axis=1).max(axis=-1)[:, None]
            np.add.at(self.left_open, (is_open.sum(axis=-1), is_open[rows, labels].astype(int)), 1)

    def ball(self, confidence_level: float) -> tuple[float, float] | None:
        """The radius that covers a new sample's label with `confidence_level`, and the mean number of classes in it.

        At most 1/5040 above what `conformal_radius` gives; None where that is infinite: there are too few samples.
        """
        num_samples = int(self.to_label.count.sum())
        rank = rank_of(confidence_level, num_samples)
        if rank > num_samples:
            return None
        at = int(np.searchsorted(np.cumsum(self.to_label.count), rank))
        held = int(self.to_class.count[: at + 1].sum())
        return float(self.to_label.edges[at + 1]), held / num_samples

    @property
    def covered(self) -> Coverage:
        """How often the label is among the classes that an ensemble leaves open."""
        return _coverage(self._open)

    @property
    def mean_open(self) -> float:
        """How many classes an ensemble leaves open on average."""
        counts = self._open.sum(axis=1)
        return float(counts @ np.arange(len(counts)) / counts.sum())

    def by_width(self) -> Iterator[tuple[int, int, Coverage]]:
        """`covered` of the samples with 1, 2, 3 to 4, 5 to 8 ... classes left open: (least, most, of those), if any."""
        least = 1
        while least < len(self._open):
            most = min(max(2 * least - 2, least), len(self._open) - 1)
            counted = self._open[least : most + 1]
            if counted.any():
                yield least, most, _coverage(counted)
            least = most + 1

    @property
    def _open(self) -> Array:
        assert self.left_open is not None, "asked of an ensemble alone"
        return self.left_open


def _coverage(counted: Array) -> Coverage:
    return Coverage(int(counted[:, 1].sum()), int(counted.sum()))
