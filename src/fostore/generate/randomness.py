"""The random states of NumPy and Python, kept as they were found."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np


@contextmanager
def kept_random_states() -> Iterator[None]:
    """Whatever the block draws, the global states of NumPy and Python are afterwards as before."""
    numpy_state = np.random.get_state(legacy=False)
    python_state = random.getstate()
    try:
        yield
    finally:
        np.random.set_state(numpy_state)
        random.setstate(python_state)


def stir_random_states() -> None:
    """Whatever draws from the global states of NumPy and Python draws other numbers from now on."""
    random.seed(random.getrandbits(64) ^ 1)
    np.random.seed(random.getrandbits(32))
