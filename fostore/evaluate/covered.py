"""Coverage: which share of samples a credal set covers, and how sure that number is."""

from __future__ import annotations

from statistics import NormalDist
from typing import Any

import numpy as np

from fostore.errors import ArgumentError


class Coverage(float):
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
        self.low = 0.0 if num_covered == 0 else middle - spread
        self.high = 1.0 if num_covered == num_samples else middle + spread
        return self

    def __getnewargs__(self) -> tuple[Any, ...]:
        return self.num_covered, self.num_samples, self.confidence_level

    def merge(self, other: Coverage) -> Coverage:
        """The coverage of these samples and another rank's together."""
        return Coverage(
            self.num_covered + other.num_covered,
            self.num_samples + other.num_samples,
            self.confidence_level,
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
