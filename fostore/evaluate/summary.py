"""What `fostore stats` and `fostore compare` say: a store, or two stores of the same samples, in one pass."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from fostore.evaluate.calibration import NUM_BINS
from fostore.evaluate.divergence import js_of, kl_of, tv_of
from fostore.evaluate.figures import figures
from fostore.evaluate.labels import labels_of
from fostore.evaluate.metrics import Labelled, Metrics
from fostore.evaluate.rows import Piece, Rows, pieces, refuse_empty
from fostore.evaluate.same import check_same
from fostore.evaluate.selecting import Top
from fostore.evaluate.sources import rows_of
from fostore.evaluate.sums import Mean, Moments, Sums
from fostore.evaluate.uncertainty import aleatoric_of, entropy_of, epistemic_of
from fostore.schema.row import Array

_HISTOGRAM = 60
_POINTS = 4000
_FURTHEST = 5


@dataclass(frozen=True, slots=True)
class Histogram:
    """Samples in bins of equal width."""

    least: float
    most: float
    count: Array

    @property
    def edges(self) -> Array:
        """The bounds of the bins, one more than there are bins."""
        return np.linspace(self.least, self.most, len(self.count) + 1)

    @classmethod
    def empty(cls, least: float, most: float) -> Histogram:
        """A histogram of no samples."""
        return cls(least, most, np.zeros(_HISTOGRAM, np.int64))

    def add(self, values: Array) -> None:
        """Count numbers into their bins; what rounding puts outside belongs to the outermost."""
        width = (self.most - self.least) / len(self.count)
        # No width: of one class alone, all entropies are 0.
        at = (values - self.least) / width if width else np.zeros(len(values))
        at = np.clip(at, 0, len(self.count) - 1).astype(np.int64)
        self.count[:] += np.bincount(at, minlength=len(self.count))

    def to_json(self) -> dict[str, Any]:
        """The histogram as JSON."""
        return {"least": self.least, "most": self.most, "count": self.count.tolist()}


@dataclass(frozen=True, slots=True)
class Summary:
    """What the distributions of one source look like; uncertainties in nats."""

    where: str
    num_samples: int
    num_classes: int
    num_members: int | None
    class_names: tuple[str, ...] | None
    entropy: Moments
    """Of the members' average; the total uncertainty of an ensemble."""
    aleatoric: Moments | None
    epistemic: Moments | None
    confidence: Moments
    """The largest probability of each row."""
    mean_probs: Array
    """The average distribution, (num_classes,)."""
    predicted: Array
    """Samples of which a class is the most probable one, int64 (num_classes,)."""
    histogram: Histogram
    """Of entropies, 0 to ln num_classes."""
    metrics: Metrics | None
    points: Array
    """Of three classes: distributions spread evenly over the rows, (at most 4,000, 3); else none."""
    point_labels: Array | None

    def to_json(self) -> dict[str, Any]:
        """The summary as JSON."""
        names = (
            "num_samples num_classes num_members class_names entropy aleatoric epistemic confidence"
        )
        others = {name: getattr(self, name) for name in f"{names} mean_probs predicted".split()}
        ends = {"entropy_histogram": self.histogram, "labels": self.metrics}
        return {"path": self.where, **figures(others), **figures(ends)}


def summarize(store: Any, labels: Any = None, *, bins: int = NUM_BINS) -> Summary:
    """What a store looks like, and with labels how right it is; one pass.

    Args:
        store: distributions.
        labels: one class a sample: numbers, names, a mapping by index, or a file.
        bins: of the calibration errors.

    Raises:
        ArgumentError: no samples, or labels that do not fit.
        RowError: a row is no distribution.

    >>> summary = summarize([[0.5, 0.5], [1.0, 0.0]], labels=[0, 0])
    >>> round(summary.entropy.mean, 4), summary.metrics.accuracy
    (0.3466, 1.0)
    """
    rows = rows_of(store)
    refuse_empty(rows, "statistics")
    classes = None if labels is None else labels_of(labels, rows)
    labelled = None if classes is None else Labelled(rows.num_classes, bins)
    entropies, aleatoric, epistemic, confidence = _Entropies(rows), Mean(), Mean(), Mean()
    mass, predicted = Sums((rows.num_classes,)), np.zeros(rows.num_classes, np.int64)
    has_members = len(rows.row_shape) == 2
    every = -(-rows.count // _POINTS)
    points: list[Array] = [np.empty((0, rows.num_classes))]
    for (piece,) in pieces(rows):
        entropies.update(piece)
        confidence.update(piece.mean.max(axis=-1))
        mass.add(piece.mean)
        predicted += np.bincount(piece.mean.argmax(axis=-1), minlength=rows.num_classes)
        if has_members:
            aleatoric.update(aleatoric_of(piece))
            epistemic.update(epistemic_of(piece))
        if labelled is not None and classes is not None:
            labelled.add(piece, classes[piece.start : piece.stop])
        if rows.num_classes == 3:
            # Counted from row 0 on, whatever the pieces; a copy, or the whole piece would stay.
            points.append(piece.mean[-piece.start % every :: every].copy())
    return Summary(
        where=rows.where,
        num_samples=rows.count,
        num_classes=rows.num_classes,
        num_members=rows.row_shape[0] if has_members else None,
        class_names=rows.class_names,
        entropy=entropies.mean.result(),
        aleatoric=aleatoric.result() if has_members else None,
        epistemic=epistemic.result() if has_members else None,
        confidence=confidence.result(),
        mean_probs=mass.total() / rows.count,
        predicted=predicted,
        histogram=entropies.histogram,
        metrics=None if labelled is None else labelled.result(),
        points=np.concatenate(points),
        point_labels=None if classes is None else classes[::every],
    )


@dataclass(frozen=True, slots=True)
class Comparison:
    """How far two sources of the same samples are apart, in nats; `first` is p, `second` is q."""

    first: str
    second: str
    num_samples: int
    num_classes: int
    agreement: float
    """The share of samples with the same most probable class."""
    kl: Moments
    """KL(p || q)."""
    kl_reverse: Moments
    """KL(q || p)."""
    js: Moments
    tv: Moments
    entropies: tuple[Moments, Moments]
    furthest: list[tuple[int, float]]
    """(index, total variation) of the samples that differ most."""
    histogram: Histogram
    """Of total variation, 0 to 1."""
    entropy_histograms: tuple[Histogram, Histogram]

    def to_json(self) -> dict[str, Any]:
        """The comparison as JSON; an infinite divergence is null."""
        names = "first second num_samples num_classes agreement kl kl_reverse js tv".split()
        return {
            **{name: figures(getattr(self, name)) for name in names},
            "entropy": figures(self.entropies),
            "furthest": [{"index": index, "tv": far} for index, far in self.furthest],
            "tv_histogram": self.histogram.to_json(),
        }


def compare(first: Any, second: Any, *, check: str = "auto") -> Comparison:
    """How far two stores of the same samples are apart; one pass over both.

    Args:
        first, second: distributions; members are averaged.
        check: how they are compared before; see `fostore.evaluate.same.check_same`.

    Raises:
        IdentityError: other samples or classes; says what differs.
        ArgumentError, RowError: no samples, not as many, or no distributions.

    >>> compare([[0.5, 0.5]], [[0.25, 0.75]]).tv.mean
    0.25
    """
    p, q = rows_of(first, "first"), rows_of(second, "second")
    check_same(p, q, check=check)
    refuse_empty(p, "comparison")
    functions: list[Callable[[Piece, Piece], Array]]
    functions = [kl_of, lambda a, b: kl_of(b, a), js_of, tv_of]
    means = [Mean() for _ in functions]
    agreement, top, spread = Mean(), Top(_FURTHEST), Histogram.empty(0.0, 1.0)
    entropies = [_Entropies(rows) for rows in (p, q)]
    indices = p.indices
    for a, b in pieces(p, q):
        for mean, function in zip(means, functions, strict=True):
            distances = function(a, b)
            mean.update(distances)
        spread.add(distances)  # the last: total variation
        top.update(indices[a.start : a.stop], distances)
        agreement.update(a.mean.argmax(axis=-1) == b.mean.argmax(axis=-1))
        for entropy, piece in zip(entropies, (a, b), strict=True):
            entropy.update(piece)
    kl, kl_reverse, js, tv = (mean.result() for mean in means)
    return Comparison(
        first=p.where,
        second=q.where,
        num_samples=p.count,
        num_classes=p.num_classes,
        agreement=agreement.result().mean,
        kl=kl,
        kl_reverse=kl_reverse,
        js=js,
        tv=tv,
        entropies=(entropies[0].mean.result(), entropies[1].mean.result()),
        furthest=top.result(),
        histogram=spread,
        entropy_histograms=(entropies[0].histogram, entropies[1].histogram),
    )


class _Entropies:
    def __init__(self, rows: Rows) -> None:
        self.mean = Mean()
        self.histogram = Histogram.empty(0.0, math.log(rows.num_classes))

    def update(self, piece: Piece) -> None:
        entropies = entropy_of(piece)
        self.mean.update(entropies)
        self.histogram.add(entropies)
