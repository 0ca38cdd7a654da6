"""Fresh arrays that begin at a multiple of 64 bytes: JAX takes those without a copy."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from fostore.schema.row import Array

ALIGNMENT = 64
BYTES = np.dtype(np.uint8)
byte_of: Callable[[Any], ctypes.c_char] = ctypes.c_char.from_buffer
"""The first byte of an array, for its address: NumPy's own `ctypes` attribute costs more than a small batch."""


def aligned_empty(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """A fresh, uninitialised array whose data begins at a multiple of 64 bytes."""
    raw: Array = np.empty(math.prod(shape) * dtype.itemsize + ALIGNMENT, BYTES)
    skip = -ctypes.addressof(byte_of(raw)) % ALIGNMENT
    fresh: Array = np.ndarray(shape, dtype, raw, skip)
    return fresh
