"""Random numbers that are a function of a seed and a counter: the same on every machine, in any order, in any batch.

Source: Steele, Lea and Flood, "Fast Splittable Pseudorandom Number Generators" (2014): SplitMix64.
"""

from __future__ import annotations

import numpy as np

from fostore.schema.row import Array

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_FINEST = 2.0**-53


def uniform(seed: int, start: int, stop: int) -> Array:
    """Numbers of [0, 1), float64 (stop - start,), those of the counters `start` to `stop - 1`, which wrap at 2^64.

    >>> uniform(0, 3, 5).tolist() == uniform(0, 0, 5).tolist()[3:]
    True
    """
    counter = np.arange(stop - start, dtype=np.uint64) + np.uint64(start & ((1 << 64) - 1))
    bits = _mixed(counter * _GOLDEN + _mixed(np.array([seed], np.uint64) + _GOLDEN))
    numbers: Array = (bits >> np.uint64(11)) * _FINEST
    return numbers


def _mixed(x: Array) -> Array:
    """64 bits in which each bit of `x` counts."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: Array = x ^ (x >> np.uint64(31))
    return mixed
