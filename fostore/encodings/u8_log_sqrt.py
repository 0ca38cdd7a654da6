"""The u8_log_sqrt encoding: 8-bit codes of the root of how far a class lies under its row's largest one.

A quarter of the bytes of float32. The root makes steps narrow where classes are likely: |Δ log p| is about the root of
the depth times the step, so that 254 codes do what would take thousands of even ones.
"""

from __future__ import annotations

import numpy as np

from fostore.encodings.codes import Codes
from fostore.schema.row import Array


class _U8LogSqrt(Codes):
    """See `fostore.encodings.Encoding`; every method is a pure function."""

    name = "u8_log_sqrt"
    dtype = "uint8"
    largest_step = 2.0**-4

    def counted(self, depth: Array) -> Array:
        """The root of the depth."""
        root: Array = np.sqrt(depth, out=depth)
        return root

    def depth(self, counted: Array) -> Array:
        """The square."""
        square: Array = np.square(counted, out=counted)
        return square


ENCODING = _U8LogSqrt()
