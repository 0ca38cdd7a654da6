"""Which share of samples their credal sets cover, how sure that number is, and sets that say it of one sample."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

from fostore.errors import ArgumentError
from fostore.evaluate.credal import SLACK, hull_covered, interval_covered, tv_ball_covered
from fostore.evaluate.rows import pieces
from fostore.evaluate.sources import rows_of
from fostore.schema.row import Array
from fostore.schema.shown import Grid, Tabled


class Coverage(Tabled, float):
    """The share of samples that are covered, a float; with the interval that the true share lies in.

    `low` and `high` bound it with confidence `confidence_level` by Wilson's score interval, for
    samples drawn independently.

    Source: Wilson, "Probable Inference, the Law of Succession, and Statistical Inference" (1927).

    >>> Coverage(90, 100)
    Coverage(0.9, 90 of 100, 95 % interval 0.8256 to 0.9448)
    >>> f"{Coverage(90, 100):.2%}"
    '90.00%'
    """

    __slots__ = ("confidence_level", "high", "low", "num_covered", "num_samples")

    num_covered: int
    num_samples: int
    confidence_level: float
    low: float
    high: float

    def __new__(
        cls, num_covered: int, num_samples: int, confidence_level: float = 0.95
    ) -> Coverage:
        """`num_covered` of `num_samples`, at least one."""
        if num_samples < 1:
            raise ArgumentError("there are no samples, so there is no coverage")
        check_level(confidence_level)
        self = super().__new__(cls, num_covered / num_samples)
        self.num_covered, self.num_samples = num_covered, num_samples
        self.confidence_level = confidence_level
        z = NormalDist().inv_cdf((1 + confidence_level) / 2)
        share, shrink = num_covered / num_samples, 1 + z * z / num_samples
        middle = (share + z * z / (2 * num_samples)) / shrink
        half = share * (1 - share) / num_samples + z * z / (4 * num_samples * num_samples)
        spread = z / shrink * half**0.5
        # There the formula gives 0 and 1 but for rounding.
        self.low = 0.0 if num_covered == 0 else middle - spread
        self.high = 1.0 if num_covered == num_samples else middle + spread
        return self

    def __getnewargs__(self) -> tuple[Any, ...]:  # or a float pickles as its value alone
        return self.num_covered, self.num_samples, self.confidence_level

    def merge(self, other: Coverage) -> Coverage:
        """The coverage of these samples and another rank's together."""
        return Coverage(
            self.num_covered + other.num_covered,
            self.num_samples + other.num_samples,
            self.confidence_level,
        )

    def grid(self) -> Grid:
        """The share, of how many, and its interval."""
        interval = f"{self.low:.4g} to {self.high:.4g}"
        return Grid(
            "Coverage",
            [
                ("covered", float(self)),
                ("samples", f"{self.num_covered:,} of {self.num_samples:,}"),
                (f"{self.confidence_level * 100:g} % interval", interval),
            ],
        )

    def __repr__(self) -> str:
        return (
            f"Coverage({float(self):.4g}, {self.num_covered:,} of {self.num_samples:,}, "
            f"{self.confidence_level * 100:g} % interval {self.low:.4g} to {self.high:.4g})"
        )


def coverage(covered: Any, *, confidence_level: float = 0.95) -> Coverage:
    """What `covered.mean()` is, with a confidence interval.

    Args:
        covered: one bool a sample, as `interval_covered`, `tv_ball_covered` and `hull_covered` give.
        confidence_level: of the interval, between 0 and 1.

    Raises:
        ArgumentError: no bools, or none at all.

    >>> coverage(np.array([True, True, False, True])).num_covered
    3
    """
    array = np.asarray(covered)
    if array.dtype != bool or array.ndim != 1:
        raise ArgumentError(
            f"covered is {array.dtype} of shape {array.shape}, expected one bool a sample"
        )
    return Coverage(int(np.count_nonzero(array)), len(array), confidence_level)


def check_level(confidence_level: float) -> None:
    """Raise ArgumentError unless 0 < confidence_level < 1."""
    if not 0 < confidence_level < 1:
        raise ArgumentError(
            f"confidence_level is {confidence_level!r}, expected a number between 0 and 1, such as 0.9"
        )


# ------------------------------------------------------------------ one set a sample


@dataclass(frozen=True, slots=True)
class Interval:
    """The distributions between `lower` and `upper` (num_classes,) in every class."""

    lower: Any
    upper: Any
    tol: float = SLACK

    def contains(self, target: Any) -> bool:
        """Whether one distribution (num_classes,) is among them."""
        lower, upper, row = _one(self.lower), _one(self.upper), _one(target)
        return bool(interval_covered(lower, upper, row, self.tol)[0])


@dataclass(frozen=True, slots=True)
class Ball:
    """The distributions at most `radius` in total variation from `center` (num_classes,)."""

    center: Any
    radius: float

    def contains(self, target: Any) -> bool:
        """Whether one distribution (num_classes,) is among them."""
        return bool(tv_ball_covered(_one(self.center), self.radius, _one(target))[0])


@dataclass(frozen=True, slots=True)
class Hull:
    """The mixtures of `vertices` (num_vertices, num_classes)."""

    vertices: Any
    tol: float = 5e-4

    def contains(self, target: Any) -> bool:
        """Whether one distribution (num_classes,) is among them."""
        return bool(hull_covered(_one(self.vertices), _one(target), self.tol)[0])


def compute_coverage(credal_sets: Any, ground_truth: Any) -> Coverage:
    """The share of samples whose ground truth their credal set contains, as in the guide.

    Args:
        credal_sets: `credal_sets[index]` is an object with `contains(distribution)`: an `Interval`, a
            `Ball`, a `Hull`, or yours.
        ground_truth: distributions, by index; each is handed over as float64 (num_classes,).

    Returns:
        A float, with the bounds of its 95 % confidence interval: `low` and `high`.

    Raises:
        ArgumentError: a sample has no credal set, it has no `contains`, or there is no sample.
        RowError: a ground truth is no distribution.

    >>> sets = {0: Ball([0.5, 0.5], 0.2), 1: Interval([0.0, 0.8], [0.2, 1.0])}
    >>> compute_coverage(sets, {0: [0.6, 0.4], 1: [0.5, 0.5]})
    Coverage(0.5, 1 of 2, 95 % interval 0.09453 to 0.9055)
    """
    rows = rows_of(ground_truth, "ground_truth")
    if len(rows.row_shape) != 1:
        raise ArgumentError(f"{rows.where} has members, expected one distribution a sample")
    if not isinstance(credal_sets, Mapping) and len(credal_sets) != rows.count:
        raise ArgumentError(f"{len(credal_sets)} credal sets for {rows.count} samples")
    indices = rows.indices.tolist()
    covered = 0
    for (piece,) in pieces(rows):
        for index, target in zip(indices[piece.start : piece.stop], piece.probs, strict=True):
            covered += _contains(credal_sets, index, target)
    return Coverage(covered, rows.count)


def _contains(credal_sets: Any, index: int, target: Array) -> bool:
    try:
        one = credal_sets[index]
    except (LookupError, TypeError) as error:
        raise ArgumentError(f"sample {index} has no credal set") from error
    contains = getattr(one, "contains", None)
    if contains is None:
        raise ArgumentError(
            f"the credal set of sample {index} is a {type(one).__name__}, which has no contains(); "
            "fostore.evaluate.Hull(members), Interval(lower, upper) and Ball(center, radius) have one"
        )
    return bool(contains(target))


def _one(row: Any) -> Array:
    return np.asarray(row, np.float64)[None]
