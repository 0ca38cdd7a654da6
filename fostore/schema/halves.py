"""float16 and bfloat16 as float32 and back: exact for every pattern of bits, and as fast as NumPy can.

NumPy widens float16 one number after another, a third as fast as memory. Shifted into a float32's
place, the bits of a finite half are its value times 2^-112, so one multiplication does for all of them.
"""

from __future__ import annotations

import numpy as np

from fostore.schema.aligned import aligned_empty
from fostore.schema.row import Array

HALVES = ("float16", "bfloat16")
SCALE = 2.0**112
"""What float16 bits, shifted into the place of float32 bits, lack: a power of two, so it is exact."""

_FLOAT32 = np.dtype(np.float32)
_SMALL = 8192  # up to here NumPy's own loop costs less than six calls
_INFINITY = 0x7C00  # bits of float16's: every pattern from here on is no number
_SIGN_AND_NUMBER = np.int32(-0x70000001)  # the sign, and the 28 bits that a shifted half takes
_LEAST = np.full(1, 2.0**-136, np.float32)  # float16's smallest number, shifted


def widen(stored: Array, dtype: str) -> Array:
    """Stored numbers for arithmetic: float16 and bfloat16 (uint16 bits) as float32, others as they are."""
    if dtype == "bfloat16":
        return bfloat16_to_float32(stored)
    return float16_to_float32(stored) if dtype == "float16" else stored


def float16_to_float32(halves: Array) -> Array:
    """The float32 numbers that float16 numbers are; exact, NaN stays NaN, a fresh and aligned array."""
    # A thread that a library has told to take subnormal numbers for zero must not multiply here.
    found = aligned_empty(halves.shape, _FLOAT32)
    if halves.size <= _SMALL or not halves.dtype.isnative or not (_LEAST * SCALE)[0]:
        np.copyto(found, halves)
        return found
    bits: Array = np.ascontiguousarray(halves).view(np.int16)
    wide = found.view(np.int32)
    np.copyto(wide, bits)
    np.left_shift(wide, 13, out=wide)
    greatest = int(np.maximum.reduce(bits.view(np.uint16), axis=None))
    if greatest >= _INFINITY:  # some are negative, or no numbers: else they would be too large
        np.bitwise_and(wide, _SIGN_AND_NUMBER, out=wide)
    np.multiply(found, np.float32(SCALE), out=found)
    if greatest >= _INFINITY | 0x8000 or np.maximum.reduce(bits, axis=None) >= _INFINITY:
        odd = bits & _INFINITY == _INFINITY
        found[odd] = halves[odd].astype(np.float32)
    return found


def bfloat16_to_float32(bits: Array) -> Array:
    """The float32 numbers that bfloat16 bits (uint16) stand for; exact, a fresh and aligned array."""
    found = aligned_empty(bits.shape, _FLOAT32)
    wide = found.view(np.uint32)
    np.copyto(wide, bits)
    np.left_shift(wide, 16, out=wide)
    return found


def float32_to_bfloat16(x: Array) -> Array:
    """The bits (uint16) of the nearest bfloat16 numbers, ties to even; NaN stays NaN.

    Numbers beyond the largest become infinities, as IEEE 754 rounds them.
    """
    x = np.ascontiguousarray(x, np.float32)
    bits = x.view(np.uint32)
    rounded = bits >> 16
    rounded &= 1
    rounded += 0x7FFF
    rounded += bits
    rounded >>= 16
    result = rounded.astype(np.uint16)
    nan = np.isnan(x)
    if nan.any():  # rounding could carry a NaN's payload over into an infinity, or into zero
        result[nan] = (bits[nan] >> 16).astype(np.uint16) | np.uint16(0x0040)
    return result
