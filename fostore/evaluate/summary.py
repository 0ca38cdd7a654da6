"""What `fostore stats` and `fostore compare` say: a store, or two stores of the same samples, in one pass."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from fostore.evaluate.calibration import NUM_BINS
from fostore.evaluate.divergence import js_of, kl_of, tv_of
from fostore.evaluate.labels import labels_of
from fostore.evaluate.metrics import Labelled, Metrics
from fostore.evaluate.rows import Piece, Rows, pieces, refuse_empty, rows_of
from fostore.evaluate.same import check_same
from fostore.evaluate.scores import aleatoric_of, entropy_of, epistemic_of
from fostore.evaluate.selecting import Top
from fostore.evaluate.sums import Mean, Moments, Sums
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
        return {
            "path": self.where,
            "num_samples": self.num_samples,
            "num_classes": self.num_classes,
            "num_members": self.num_members,
            "class_names": None if self.class_names is None else list(self.class_names),
            "entropy": asdict(self.entropy),
            "aleatoric": None if self.aleatoric is None else asdict(self.aleatoric),
            "epistemic": None if self.epistemic is None else asdict(self.epistemic),
            "confidence": asdict(self.confidence),
            "mean_probs": self.mean_probs.tolist(),
            "predicted": self.predicted.tolist(),
            "entropy_histogram": self.histogram.to_json(),
            "labels": None if self.metrics is None else self.metrics.to_json(),
        }


def summarize(store: Any, labels: Any = None, *, bins: int = NUM_BINS) -> Summary:
    """What a store looks like, and with labels how right it is; one pass.

    Args:
        store: distributions.
        labels: one class a sample: numbers, names, a mapping by index, or a file.
        bins: of the calibration errors.

    Raises:
        ArgumentError: no samples, or labels that do not fit.
        RowError: a row is no distribution.

    >>> found = summarize([[0.5, 0.5], [1.0, 0.0]], labels=[0, 0])
    >>> round(found.entropy.mean, 4), found.metrics.accuracy
    (0.3466, 1.0)
    """
    rows = rows_of(store)
    refuse_empty(rows, "statistics")
    classes = None if labels is None else labels_of(labels, rows)
    labelled = None if classes is None else Labelled(rows.num_classes, bins)
    entropy, aleatoric, epistemic, confidence = Mean(), Mean(), Mean(), Mean()
    mass, predicted = Sums((rows.num_classes,)), np.zeros(rows.num_classes, np.int64)
    histogram = Histogram.empty(0.0, math.log(rows.num_classes))
    has_members = len(rows.row_shape) == 2
    every = -(-rows.count // _POINTS)
    points: list[Array] = [np.empty((0, rows.num_classes))]
    for (piece,) in pieces(rows):
        found = entropy_of(piece)
        entropy.update(found)
        histogram.add(found)
        confidence.update(piece.mean.max(axis=-1))
        mass.add(piece.mean)
        predicted += np.bincount(piece.mean.argmax(axis=-1), minlength=rows.num_classes)
        if has_members:
            aleatoric.update(aleatoric_of(piece))
            epistemic.update(epistemic_of(piece))
        if labelled is not None and classes is not None:
            labelled.add(piece, classes[piece.start : piece.stop])
        if rows.num_classes == 3:
            points.append(piece.mean[-piece.start % every :: every].copy())
    return Summary(
        where=rows.where,
        num_samples=rows.count,
        num_classes=rows.num_classes,
        num_members=rows.row_shape[0] if has_members else None,
        class_names=rows.class_names,
        entropy=entropy.result(),
        aleatoric=aleatoric.result() if has_members else None,
        epistemic=epistemic.result() if has_members else None,
        confidence=confidence.result(),
        mean_probs=mass.total() / rows.count,
        predicted=predicted,
        histogram=histogram,
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
        kinds = {"kl": self.kl, "kl_reverse": self.kl_reverse, "js": self.js, "tv": self.tv}
        return {
            "first": self.first,
            "second": self.second,
            "num_samples": self.num_samples,
            "num_classes": self.num_classes,
            "agreement": self.agreement,
            **{name: _finite(asdict(found)) for name, found in kinds.items()},
            "entropy": [asdict(one) for one in self.entropies],
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
    functions = (kl_of, lambda a, b: kl_of(b, a), js_of, tv_of)
    means = [Mean() for _ in functions]
    agreement, top, spread = Mean(), Top(_FURTHEST), Histogram.empty(0.0, 1.0)
    entropies = [_Entropies(rows) for rows in (p, q)]
    indices = p.indices
    for a, b in pieces(p, q):
        found = [function(a, b) for function in functions]
        for mean, values in zip(means, found, strict=True):
            mean.update(values)
        spread.add(found[3])
        top.update(indices[a.start : a.stop], found[3])
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
        found = entropy_of(piece)
        self.mean.update(found)
        self.histogram.add(found)


def _finite(numbers: dict[str, Any]) -> dict[str, Any]:
    return {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in numbers.items()
    }
