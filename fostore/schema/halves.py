"""Fresh arrays as JAX takes them without a copy; and in these float16 and bfloat16 as float32, and back.

Exact for every pattern of bits, and as fast as NumPy can.
NumPy widens float16 one number after another, a third as fast as memory. Shifted into a float32's
place, the bits of a finite half are its value times 2^-112, so one multiplication does for all of them.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from fostore.schema.row import Array

ALIGNMENT = 64
"""JAX takes what begins at a multiple of so many bytes as it lies, and copies everything else."""
BYTES = np.dtype(np.uint8)
byte_of: Callable[[Any], ctypes.c_char] = ctypes.c_char.from_buffer
"""The first byte of an array, for its address: NumPy's own `ctypes` attribute costs more than a small batch."""

HALVES = ("float16", "bfloat16")
SCALE = 2.0**112
"""What float16 bits, shifted to where float32 has them, lack: a power of two, so it is exact."""

_FLOAT32 = np.dtype(np.float32)
_SMALL = 8192  # up to here NumPy's own loop costs less than six calls
_INFINITY = 0x7C00  # bits of float16's: every pattern from here on is no number
_SIGN_AND_NUMBER = np.int32(-0x70000001)  # the sign, and the 28 bits that a shifted half takes
_LEAST = np.full(1, 2.0**-136, np.float32)  # float16's smallest number, shifted


def aligned_empty(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """A fresh, uninitialised array whose data begins at a multiple of 64 bytes."""
    raw: Array = np.empty(math.prod(shape) * dtype.itemsize + ALIGNMENT, BYTES)
    skip = -ctypes.addressof(byte_of(raw)) % ALIGNMENT
    fresh: Array = np.ndarray(shape, dtype, raw, skip)
    return fresh


def widen(stored: Array, dtype: str) -> Array:
    """Stored numbers for arithmetic: float16 and bfloat16 (uint16 bits) as float32, others as they are."""
    if dtype == "bfloat16":
        return bfloat16_to_float32(stored)
    return float16_to_float32(stored) if dtype == "float16" else stored


def float16_to_float32(halves: Array) -> Array:
    """The float32 numbers that float16 numbers are; exact, NaN stays NaN, a fresh and aligned array."""
    # A thread that a library has told to take subnormal numbers for zero must not multiply here.
    widened = aligned_empty(halves.shape, _FLOAT32)
    if halves.size <= _SMALL or not halves.dtype.isnative or not (_LEAST * SCALE)[0]:
        np.copyto(widened, halves)
        return widened
    bits: Array = np.ascontiguousarray(halves).view(np.int16)
    wide = widened.view(np.int32)
    np.copyto(wide, bits)
    np.left_shift(wide, 13, out=wide)
    greatest = int(np.maximum.reduce(bits.view(np.uint16), axis=None))
    if greatest >= _INFINITY:  # some are negative, or no numbers: else they would be too large
        np.bitwise_and(wide, _SIGN_AND_NUMBER, out=wide)
    np.multiply(widened, np.float32(SCALE), out=widened)
    if greatest >= _INFINITY | 0x8000 or np.maximum.reduce(bits, axis=None) >= _INFINITY:
        odd = bits & _INFINITY == _INFINITY
        widened[odd] = halves[odd].astype(np.float32)
    return widened


def bfloat16_to_float32(bits: Array) -> Array:
    """The float32 numbers that bfloat16 bits (uint16) stand for; exact, a fresh and aligned array."""
    widened = aligned_empty(bits.shape, _FLOAT32)
    wide = widened.view(np.uint32)
    np.copyto(wide, bits)
    np.left_shift(wide, 16, out=wide)
    return widened


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
