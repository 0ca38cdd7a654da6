"""A histogram that is filled while rows stream by, and whose bins are chosen when all have been seen."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from fostore.schema.row import Array

_FINE = 5040
"""Bins while counting: a number with many divisors, so that they join into almost any number of equal ones."""
_MOST = 240
_DIVISORS = [n for n in range(1, _MOST + 1) if _FINE % n == 0]


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
        """A histogram of no samples, in bins so fine that the rule has a choice."""
        return cls(least, most, np.zeros(_FINE, np.int64))

    def add(self, values: Array) -> None:
        """Count numbers into their bins; what rounding puts outside belongs to the outermost."""
        width = (self.most - self.least) / len(self.count)
        # No width: of one class alone, all entropies are 0.
        at = (values - self.least) / width if width else np.zeros(len(values))
        at = np.clip(at, 0, len(self.count) - 1).astype(np.int64)
        self.count[:] += np.bincount(at, minlength=len(self.count))

    def binned(self) -> Histogram:
        """The same samples in as many bins as they are enough for, at most 240.

        The finer of Freedman and Diaconis' rule and Sturges', as NumPy's "auto" has it.

        Source: Freedman and Diaconis, "On the Histogram as a Density Estimator" (1981); Sturges,
        "The Choice of a Class Interval" (1926).

        >>> values = np.random.default_rng(0).random(118)
        >>> counting = Histogram.empty(0.0, 1.0)
        >>> counting.add(values)
        >>> counting.binned().count.tolist()
        [17, 10, 10, 15, 14, 16, 13, 23]
        """
        num_samples = int(self.count.sum())
        if not num_samples:
            return Histogram(self.least, self.most, np.zeros(1, np.int64))
        low, high = np.searchsorted(np.cumsum(self.count), [num_samples / 4, num_samples * 3 / 4])
        wide = 2 * max(int(high - low), 1) / num_samples ** (1 / 3)  # in fine bins
        # Sturges' number is of the span that has samples, which may be a corner of the range.
        span = np.ptp(np.flatnonzero(self.count)) + 1
        wide = min(wide, span / (1 + math.log2(num_samples)))
        bins = next((n for n in _DIVISORS if n >= len(self.count) / wide - 1e-9), _MOST)
        return Histogram(self.least, self.most, self.count.reshape(bins, -1).sum(axis=1))

    def to_json(self) -> dict[str, Any]:
        """The histogram as JSON."""
        return {"least": self.least, "most": self.most, "count": self.count.tolist()}


@dataclass(frozen=True, slots=True)
class LogHistogram:
    """Samples by the order of magnitude of a number, which may be 0: four bins a decade."""

    equal: int
    """Samples whose number is 0, or below the first bin."""
    counted: Histogram
    """Of decimal logarithms."""

    @classmethod
    def counting(cls, histogram: Histogram, num_samples: int) -> LogHistogram:
        """What a histogram of logarithms says of `num_samples`; those it lacks were 0."""
        return cls(num_samples - int(histogram.count.sum()), histogram)

    @staticmethod
    def empty(decades: int) -> Histogram:
        """A histogram of no samples, from 10^-decades to 1."""
        return Histogram(-float(decades), 0.0, np.zeros(4 * decades, np.int64))

    @property
    def edges(self) -> Array:
        """The bounds of the bins, ascending."""
        edges: Array = 10.0**self.counted.edges
        return edges
