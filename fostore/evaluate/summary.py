"""What `fostore stats` and `fostore compare` say: a store, or two stores of the same samples, in one pass."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from fostore.evaluate.calibration import NUM_BINS
from fostore.evaluate.divergence import js_of, kl_of, tv_of
from fostore.evaluate.figures import figures
from fostore.evaluate.histogram import Histogram, LogHistogram
from fostore.evaluate.label_sets import LabelSets
from fostore.evaluate.labels import labels_of, stored_labels
from fostore.evaluate.metrics import Labelled, Metrics
from fostore.evaluate.rows import Piece, Rows, pieces, refuse_empty
from fostore.evaluate.same import check_same
from fostore.evaluate.selecting import Top
from fostore.evaluate.sources import check_rule, rows_of
from fostore.evaluate.sums import Mean, Moments, Sums
from fostore.evaluate.uncertainty import aleatoric_of, entropy_of, epistemic_of
from fostore.reading.selection import Stored
from fostore.schema.row import Array
from fostore.schema.shown import Grid, Tabled, counted
from fostore.schema.sides import side_of

_POINTS = 4000
_SQUARE = 1000
"""Classes up to which mistakes are counted pair by pair: 8 MB."""
_UNCERTAIN = 12
_MOMENTS = ("", "mean", "std", "least", "most")
_DECADES = 9
"""Below 1e-9 two rows are the same but for rounding."""
_FURTHEST = 5


@dataclass(frozen=True, slots=True)
class Uncertain:
    """One of the most uncertain samples."""

    index: int
    id: str | int | None
    """Its key, where a store keeps keys."""
    entropy: float
    predicted: int
    """The most probable class."""
    confidence: float
    """The probability of that class."""
    label: int | None


@dataclass(frozen=True, slots=True)
class Confusion:
    """Which classes are taken for which."""

    label_count: Array
    """Samples of each class, int64 (num_classes,)."""
    right: Array
    """Those of them whose most probable class is theirs, int64 (num_classes,)."""
    matrix: Array | None
    """Samples by [label, most probable class], int64; None of more than 1,000 classes."""

    @classmethod
    def empty(cls, num_classes: int) -> Confusion:
        """A confusion of no samples."""
        label_count, right = np.zeros((2, num_classes), np.int64)
        square = num_classes <= _SQUARE
        matrix = np.zeros((num_classes, num_classes), np.int64) if square else None
        return cls(label_count, right, matrix)

    def add(self, labels: Array, predicted: Array) -> None:
        """Count the labels (n,) of some samples and their most probable classes (n,)."""
        size = len(self.right)
        self.label_count[:] += np.bincount(labels, minlength=size)
        self.right[:] += np.bincount(labels[labels == predicted], minlength=size)
        if self.matrix is not None:
            pairs = np.bincount(labels * size + predicted, minlength=size * size)
            self.matrix[:] += pairs.reshape(size, size)

    def worst(self, n: int) -> list[tuple[int, int, int]]:
        """The `n` most frequent mistakes, the most frequent first: (label, predicted, samples)."""
        if self.matrix is None:
            return []
        mistakes = self.matrix.copy()
        np.fill_diagonal(mistakes, 0)
        order = np.argsort(-mistakes, axis=None, kind="stable")[:n]
        pairs = zip(*np.unravel_index(order, mistakes.shape), strict=True)
        return [(int(i), int(j), int(mistakes[i, j])) for i, j in pairs if mistakes[i, j]]


@dataclass(frozen=True, slots=True, repr=False)
class Summary(Tabled):
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
    confidences: Histogram
    """Of largest probabilities, 0 to 1."""
    most_uncertain: list[Uncertain]
    """The 12 samples of the highest entropy, the highest first."""
    metrics: Metrics | None
    points: Array
    """Of three classes: distributions spread evenly over the rows, (at most 4,000, 3); else none."""
    point_labels: Array | None
    parted: Array
    """Of an ensemble: (aleatoric, epistemic) of samples spread evenly over the rows, (at most 4,000, 2)."""
    confusion: Confusion | None
    label_sets: LabelSets | None
    """With labels: how many classes it takes to hold them."""
    rule: str | None = None
    """Of top-k rows: by which the classes that are not kept have probabilities."""

    def grid(self) -> Grid:
        """Mean and range of each figure, and with labels the metrics."""
        members = f", {self.num_members:,} members" if self.num_members else ""
        uncertainty = "total, nats" if self.num_members else "entropy, nats"
        named = {
            uncertainty: self.entropy,
            "aleatoric, nats": self.aleatoric,
            "epistemic, nats": self.epistemic,
            "confidence": self.confidence,
        }
        rows = _of_moments(named)
        if self.metrics is not None:
            rows += [(*row, "", "", "") for row in self.metrics.grid().rows]
        size = (
            f"{counted(self.num_samples, 'sample')}, {counted(self.num_classes, 'class')}{members}"
        )
        return Grid(f"{self.where}: {size}", rows, _MOMENTS)

    def to_json(self) -> dict[str, Any]:
        """The summary as JSON."""
        names = (
            "num_samples num_classes num_members class_names entropy aleatoric epistemic confidence"
        )
        others = {name: getattr(self, name) for name in f"{names} mean_probs predicted".split()}
        ends = {"entropy_histogram": self.histogram, "labels": self.metrics}
        return {"path": self.where, **figures(others), **figures(ends)}


def summarize(
    store: Any, labels: Any = None, *, bins: int = NUM_BINS, rule: str | None = None
) -> Summary:
    """What a store looks like, and with labels how right it is; one pass.

    Args:
        store: distributions.
        labels: one class a sample: numbers, names, a mapping by index, or a file; by default those
            that the store keeps, if it does.
        bins: of the calibration errors.
        rule: of top-k rows, see `fostore.evaluate.by_rule`.

    Raises:
        ArgumentError: no samples, labels that do not fit, or top-k rows without a rule that makes all classes.
        RowError: a row is no distribution.

    >>> summary = summarize([[0.5, 0.5], [1.0, 0.0]], labels=[0, 0])
    >>> round(summary.entropy.mean, 4), summary.metrics.accuracy
    (0.3466, 1.0)
    """
    rows = rows_of(store, rule=rule)
    check_rule(rule, rows)
    refuse_empty(rows, "statistics")
    labels = stored_labels(rows) if labels is None else labels
    classes = None if labels is None else labels_of(labels, rows)
    entropies, aleatoric, epistemic, confidence = _Entropies(rows), Mean(), Mean(), Mean()
    mass, predicted = Sums((rows.num_classes,)), np.zeros(rows.num_classes, np.int64)
    confidences, uncertain = Histogram.empty(0.0, 1.0), _MostUncertain()
    has_members = len(rows.row_shape) == 2
    size = 0 if classes is None else rows.num_classes  # without labels nothing is kept of a class
    labelled, confusion = Labelled(size, bins), Confusion.empty(size)
    sets = LabelSets.empty(size, has_members=has_members)
    every = -(-rows.count // _POINTS)
    points: list[Array] = [np.empty((0, rows.num_classes))]
    parted: list[Array] = [np.empty((0, 2))]
    for (piece,) in pieces(rows):
        # Counted from row 0 on, whatever the pieces.
        spread = slice(-piece.start % every, None, every)
        tops, sure = piece.mean.argmax(axis=-1), piece.mean.max(axis=-1)
        uncertain.update(piece, entropies.update(piece), tops, sure)
        confidence.update(sure)
        confidences.add(sure)
        mass.add(piece.mean)
        predicted += np.bincount(tops, minlength=rows.num_classes)
        if has_members:
            shares = aleatoric_of(piece), epistemic_of(piece)
            aleatoric.update(shares[0])
            epistemic.update(shares[1])
            parted.append(np.stack([share[spread] for share in shares], axis=1))
        if classes is not None:
            here = classes[piece.start : piece.stop]
            labelled.add(piece, here)
            confusion.add(here, tops)
            sets.add(piece, here)
        if rows.num_classes == 3:
            points.append(piece.mean[spread].copy())  # or the whole piece would stay
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
        histogram=entropies.histogram.binned(),
        confidences=confidences.binned(),
        most_uncertain=uncertain.result(rows, classes),
        metrics=None if classes is None else labelled.result(),
        points=np.concatenate(points),
        point_labels=None if classes is None else classes[::every],
        parted=np.concatenate(parted),
        confusion=None if classes is None else confusion,
        label_sets=None if classes is None else sets,
        rule=rows.rule,
    )


@dataclass(frozen=True, slots=True, repr=False)
class Comparison(Tabled):
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
    magnitudes: LogHistogram
    """Of total variation, by its order of magnitude: from 1e-9 to 1."""
    entropy_histograms: tuple[Histogram, Histogram]

    def grid(self) -> Grid:
        """Mean and range of each divergence."""
        named: dict[str, Moments | None] = {
            "KL(A || B), nats": self.kl,
            "KL(B || A), nats": self.kl_reverse,
            "JS, nats": self.js,
            "TV": self.tv,
            "entropy of A, nats": self.entropies[0],
            "entropy of B, nats": self.entropies[1],
        }
        rows = [*_of_moments(named), ("same top class", self.agreement, "", "", "")]
        return Grid(f"A {self.first}, B {self.second}", rows, _MOMENTS)

    def to_json(self) -> dict[str, Any]:
        """The comparison as JSON; an infinite divergence is null."""
        names = "first second num_samples num_classes agreement kl kl_reverse js tv".split()
        return {
            **{name: figures(getattr(self, name)) for name in names},
            "entropy": figures(self.entropies),
            "furthest": [{"index": index, "tv": far} for index, far in self.furthest],
            "tv_histogram": self.histogram.to_json(),
        }


def compare(first: Any, second: Any, *, check: str = "auto", rule: str | None = None) -> Comparison:
    """How far two stores of the same samples are apart; one pass over both.

    Args:
        first, second: distributions; members are averaged.
        check: how they are compared before; see `fostore.evaluate.same.check_same`.
        rule: of those that are top-k rows, see `fostore.evaluate.by_rule`.

    Raises:
        IdentityError: other samples or classes; says what differs.
        ArgumentError, RowError: no samples, not as many, or no distributions.

    >>> compare([[0.5, 0.5]], [[0.25, 0.75]]).tv.mean
    0.25
    """
    p, q = rows_of(first, "first", rule=rule), rows_of(second, "second", rule=rule)
    check_rule(rule, p, q)
    check_same(p, q, check=check)
    refuse_empty(p, "comparison")
    functions: list[Callable[[Piece, Piece], Array]]
    functions = [kl_of, lambda a, b: kl_of(b, a), js_of, tv_of]
    means = [Mean() for _ in functions]
    agreement, top, spread = Mean(), Top(_FURTHEST), Histogram.empty(0.0, 1.0)
    magnitudes = LogHistogram.empty(_DECADES)
    entropies = [_Entropies(rows) for rows in (p, q)]
    indices = p.indices
    for a, b in pieces(p, q):
        for mean, function in zip(means, functions, strict=True):
            distances = function(a, b)
            mean.update(distances)
        spread.add(distances)  # the last: total variation
        magnitudes.add(np.log10(distances[distances >= 10.0**-_DECADES]))
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
        histogram=spread.binned(),
        magnitudes=LogHistogram.counting(magnitudes, p.count),
        entropy_histograms=(entropies[0].histogram.binned(), entropies[1].histogram.binned()),
    )


def _of_moments(named: Mapping[str, Moments | None]) -> list[tuple[Any, ...]]:
    """A row a figure, as `_MOMENTS` heads them."""
    known = [(name, each) for name, each in named.items() if each is not None]
    return [(name, each.mean, each.std, each.least, each.most) for name, each in known]


class _Entropies:
    def __init__(self, rows: Rows) -> None:
        self.mean = Mean()
        self.histogram = Histogram.empty(0.0, math.log(rows.num_classes))

    def update(self, piece: Piece) -> Array:
        entropies = entropy_of(piece)
        self.mean.update(entropies)
        self.histogram.add(entropies)
        return entropies


class _MostUncertain:
    """The rows of the highest entropies, with what is told of them beside it."""

    def __init__(self) -> None:
        self._top = Top(_UNCERTAIN)
        self._seen: dict[int, tuple[int, float]] = {}  # by row: its class, and how sure

    def update(self, piece: Piece, entropies: Array, tops: Array, sure: Array) -> None:
        self._top.update(np.arange(piece.start, piece.stop), entropies)
        # Only those of a piece that are among the highest so far: twelve, whatever the piece.
        for row, _ in self._top.result():
            if row >= piece.start:
                at = row - piece.start
                self._seen[row] = int(tops[at]), float(sure[at])

    def result(self, rows: Rows, labels: Array | None) -> list[Uncertain]:
        ranked = self._top.result()
        positions = np.array([row for row, _ in ranked], np.int64)
        indices, ids = rows.indices, _ids_of(rows.stored, positions)
        return [
            Uncertain(
                index=int(indices[row]),
                id=None if ids is None else ids[i],
                entropy=entropy,
                predicted=self._seen[row][0],
                confidence=self._seen[row][1],
                label=None if labels is None else int(labels[row]),
            )
            for i, (row, entropy) in enumerate(ranked)
        ]


def _ids_of(stored: Stored | None, positions: Array) -> list[Any] | None:
    column = None if stored is None else stored.schema.role("id")
    if stored is None or column is None:
        return None
    stored_keys = stored.take_column(column.name, positions)
    keys: list[Any] = side_of(column.role).decode(stored_keys, column).tolist()
    return keys
