"""Sums that no order changes: exact integers in units of 2^-43, so that pieces, ranks and merges agree bit by bit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from fostore.errors import ArgumentError
from fostore.schema import Array

_BITS = 43  # a piece has at most 2^19 rows, so its fractions sum to less than 2^62
_MOST = 2.0**40
_BLOCK = 1 << 19


class Sums:
    """Sums of numbers below 2^40, each rounded to 2^-43 (6e-14 at most) before it is added."""

    def __init__(self, shape: tuple[int, ...] = ()) -> None:
        self._whole = np.zeros(shape, np.int64)
        self._part = np.zeros(shape, np.int64)

    def add(self, values: Array) -> None:
        """Add up (n, *shape) along the first axis."""
        for start in range(0, len(values), _BLOCK):
            whole, part = _split(values[start : start + _BLOCK])
            self._carry(np.add.reduce(whole, axis=0), np.add.reduce(part, axis=0))

    def add_at(self, index: Array, values: Array) -> None:
        """Add each of `values` (n,) to the sum that `index` (n,) names."""
        for start in range(0, len(values), _BLOCK):
            whole, part = _split(values[start : start + _BLOCK])
            sums = np.zeros((2, *self._whole.shape), np.int64)
            np.add.at(sums[0], index[start : start + _BLOCK], whole)
            np.add.at(sums[1], index[start : start + _BLOCK], part)
            self._carry(sums[0], sums[1])

    def merge(self, other: Sums) -> None:
        """Add what another has added up."""
        self._carry(other._whole, other._part)

    def total(self) -> Array:
        """The sums, float64."""
        return self._whole + self._part * 2.0**-_BITS

    def _carry(self, whole: Any, part: Any) -> None:
        self._part = self._part + part
        self._whole = self._whole + whole + (self._part >> _BITS)
        self._part = self._part & ((1 << _BITS) - 1)


def _split(values: Array) -> tuple[Array, Array]:
    whole = np.floor(values)
    part = np.rint((values - whole) * 2.0**_BITS)
    return whole.astype(np.int64), part.astype(np.int64)


@dataclass(frozen=True, slots=True)
class Moments:
    """What a `Mean` found; `mean` and `std` are infinite where one value is."""

    num_samples: int
    mean: float
    std: float
    """The population's standard deviation."""
    least: float
    most: float
    num_infinite: int


class Mean:
    """Accumulates the mean, standard deviation and range of numbers, one a sample.

    `update` takes (n,) numbers, none NaN; `merge` what another rank has accumulated; `result` may be
    asked for at any time. Whatever the order and the cuts, the result is the same, bit by bit. A
    number above 2^40 counts as infinite.

    >>> one, other = Mean(), Mean()
    >>> one.update(np.array([1.0, 2.0]))
    >>> other.update(np.array([6.0]))
    >>> one.merge(other)
    >>> one.result().mean
    3.0
    """

    def __init__(self) -> None:
        self._count = self._infinite = 0
        self._sums = Sums((2,))
        self._least, self._most = float("inf"), float("-inf")

    def update(self, values: Array) -> None:
        """Add the numbers of some samples."""
        values = np.asarray(values, np.float64)
        if np.isnan(values).any():
            raise ArgumentError(f"number {int(np.argmax(np.isnan(values)))} is NaN")
        self._count += len(values)
        if not len(values):
            return
        self._least = min(self._least, float(values.min()))
        self._most = max(self._most, float(values.max()))
        finite = np.abs(values) < _MOST
        if not finite.all():
            self._infinite += int(len(values) - finite.sum())
            values = values[finite]
        root = np.minimum(np.abs(values), 2.0**20)  # squares stay below 2^40 as well
        self._sums.add(np.stack([values, root * root], axis=1))

    def merge(self, other: Mean) -> None:
        """Add what another accumulated."""
        self._count += other._count
        self._infinite += other._infinite
        self._sums.merge(other._sums)
        self._least = min(self._least, other._least)
        self._most = max(self._most, other._most)

    def result(self) -> Moments:
        """Of no samples at all, the numbers are NaN."""
        if not self._count:
            return Moments(0, float("nan"), float("nan"), float("nan"), float("nan"), 0)
        if self._infinite:
            infinite = float("inf")
            return Moments(self._count, infinite, infinite, self._least, self._most, self._infinite)
        mean, square = (self._sums.total() / self._count).tolist()
        std = max(square - mean * mean, 0.0) ** 0.5
        return Moments(self._count, mean, std, self._least, self._most, 0)
