"""Sums without rounding, at any scale: pieces, ranks and merges in any order agree bit by bit."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from fostore.errors import ArgumentError
from fostore.schema.row import Array

_BLOCK = 1 << 20
_LOWEST = -1200  # 2^-1200 divides every number of float64's, and every unit below
_FULL = 1 << 10  # blocks, each of at most 2^52 units, after which a sum of int64 may be full
_SCALE = 540  # squares of numbers beyond 2^±480 would leave the range; scaled by 2^∓540 they stay


class Sums:
    """Exact sums of finite numbers below 2^900, any of them as small as float64 has them."""

    def __init__(self, shape: tuple[int, ...] = ()) -> None:
        self._shape = shape
        self._exact = [0] * math.prod(shape)
        self._units: dict[int, Array] = {}  # by the binary exponent of the unit
        self._num_blocks = 0

    def add(self, values: Array) -> None:
        """Add up (n, *shape) along the first axis."""
        for start in range(0, len(values), _BLOCK):
            for unit, whole in _parts(values[start : start + _BLOCK]):
                # einsum adds narrow rows up in a third of the time that add.reduce takes.
                self._carry(unit, np.einsum("i...->...", whole))

    def add_at(self, index: Array, values: Array) -> None:
        """Add each of `values` (n,) to the sum that `index` (n,) names; `shape` has one axis."""
        for start in range(0, len(values), _BLOCK):
            at = index[start : start + _BLOCK]
            for unit, whole in _parts(values[start : start + _BLOCK]):
                self._carry(unit, np.bincount(at, whole, len(self._exact)))

    def merge(self, other: Sums) -> None:
        """Add what another has added up."""
        self._exact = [a + b for a, b in zip(self._fold(), other._fold(), strict=True)]

    def exact(self) -> list[Fraction]:
        """The sums, without rounding, in C order."""
        return [Fraction(total, 1 << -_LOWEST) for total in self._fold()]

    def total(self) -> Array:
        """The sums, each rounded once to float64."""
        unit = 1 << -_LOWEST
        return np.array([one / unit for one in self._fold()], np.float64).reshape(self._shape)

    def _carry(self, unit: int, sums: Any) -> None:
        """Add a block's sums, which are whole numbers of 2^unit."""
        self._units[unit] = self._units.get(unit, 0) + np.ldexp(sums, -unit).astype(np.int64)
        self._num_blocks += 1
        if self._num_blocks >= _FULL:
            self._fold()

    def _fold(self) -> list[int]:
        """The sums as integers in units of 2^-1200."""
        for unit, sums in self._units.items():
            listed = np.ravel(sums).tolist()
            self._exact = [
                a + (b << unit - _LOWEST) for a, b in zip(self._exact, listed, strict=True)
            ]
        self._units.clear()
        self._num_blocks = 0
        return self._exact


def _parts(values: Array) -> Iterator[tuple[int, Array]]:
    """Numbers as sums of whole numbers of 2^unit, from the coarsest unit down.

    Each unit is that many times the next that the sum of a part is below 2^52 units: float64 adds
    them up exactly, in any order.
    """
    rest = np.array(values, np.float64)
    step = 52 - len(rest).bit_length()
    size = math.frexp(np.max(np.abs(rest), initial=0.0))[1]
    unit = -((step - size) // step) * step
    while rest.any():
        # Beside 1.5 * 2^52 units float64 keeps whole units, and nothing less.
        high = math.ldexp(1.5, 52 + unit)
        whole = rest + high
        whole -= high
        yield unit, whole
        rest -= whole
        unit -= step


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
    asked for at any time. Sums are exact and rounded once, at the end: the result is right to the
    last bits at any scale, and the same, bit by bit, whatever the order and the cuts.

    >>> one, other = Mean(), Mean()
    >>> one.update(np.array([1.0, 2.0]))
    >>> other.update(np.array([6.0]))
    >>> one.merge(other)
    >>> one.result().mean
    3.0
    """

    def __init__(self) -> None:
        self._count = self._infinite = 0
        self._sums: dict[int, tuple[Sums, Sums]] = {}  # by scale: of the numbers, of their squares
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
        if not np.isfinite([self._least, self._most]).all():
            finite = np.isfinite(values)
            self._infinite += int(len(values) - finite.sum())
            values = values[finite]
        sizes = np.frexp(values)[1]
        for scale, here in (
            (0, np.abs(sizes) <= 480),
            (_SCALE, sizes > 480),
            (-_SCALE, sizes < -480),
        ):
            if here.any():
                self._add(scale, np.ldexp(values[here], -scale) if scale else values[here])

    def _add(self, scale: int, values: Array) -> None:
        numbers, squares = self._sums.setdefault(scale, (Sums(), Sums()))
        numbers.add(values)
        for terms in _squared(values):
            squares.add(terms)

    def merge(self, other: Mean) -> None:
        """Add what another accumulated."""
        self._count += other._count
        self._infinite += other._infinite
        for scale, theirs in other._sums.items():
            ours = self._sums.setdefault(scale, (Sums(), Sums()))
            for one, more in zip(ours, theirs, strict=True):
                one.merge(more)
        self._least = min(self._least, other._least)
        self._most = max(self._most, other._most)

    def result(self) -> Moments:
        """Of no samples at all, the numbers are NaN."""
        if not self._count:
            return Moments(0, float("nan"), float("nan"), float("nan"), float("nan"), 0)
        if self._infinite:
            infinite = float("inf")
            return Moments(self._count, infinite, infinite, self._least, self._most, self._infinite)
        mean = square = Fraction()
        for scale, (numbers, squares) in self._sums.items():
            unit = Fraction(2) ** scale
            mean += numbers.exact()[0] * unit / self._count
            square += squares.exact()[0] * unit**2 / self._count
        std = _root(square - mean**2)
        return Moments(self._count, float(mean), std, self._least, self._most, 0)


def _squared(x: Array) -> tuple[Array, Array]:
    """The squares of numbers, and what rounding took from each (Dekker, 1971): exact below 2^480."""
    high = x * 134217729.0  # 2^27 + 1
    high -= high - x
    low = x - high
    square = x * x
    rest: Array = ((high * high - square) + 2 * high * low) + low * low
    return square, rest


def _root(x: Fraction) -> float:
    """The square root, right to float64's last bit."""
    top, bottom = x.numerator, x.denominator
    shift = max(128 + bottom.bit_length() - top.bit_length(), 0) // 2
    return float(Fraction(math.isqrt((top << 2 * shift) // bottom), 1 << shift))
