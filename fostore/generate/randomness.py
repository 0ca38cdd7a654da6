"""The global random states of NumPy, Python and torch: kept as they were found, compared, and seeded.

torch is asked where it is loaded already: datasets of every framework draw with it.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True, slots=True)
class Draw:
    """One draw of one batch, or of one sample: its randomness is a function of these three."""

    seed: int
    number: int
    row: int

    @property
    def entropy(self) -> np.random.SeedSequence:
        """What the random states of the model's call are made from; `row` is the batch's first."""
        return np.random.SeedSequence(self.seed, spawn_key=(self.number, self.row, 0))

    @property
    def of_sample(self) -> np.random.SeedSequence:
        """What the random states are made from in which the dataset reads sample `row`."""
        return np.random.SeedSequence(self.seed, spawn_key=(self.number, self.row, 1))

    def seed64(self) -> int:
        """The number that torch's states are seeded with."""
        return int(self.entropy.generate_state(1, np.uint64)[0])

    def seed32(self) -> int:
        """What a model's parameter `seed` gets: NumPy takes no larger one."""
        return self.seed64() % 2**32

    def generator(self) -> np.random.Generator:
        """A generator of NumPy's for the draw."""
        return np.random.default_rng(self.entropy)


@contextmanager
def kept_random_states() -> Iterator[None]:
    """Whatever the block draws, the global states are afterwards as before."""
    numpy_state = np.random.get_state(legacy=False)
    python_state = random.getstate()
    torch = _torch()
    torch_state = None if torch is None else torch.get_rng_state()
    try:
        yield
    finally:
        np.random.set_state(numpy_state)
        random.setstate(python_state)
        if torch is not None:
            torch.set_rng_state(torch_state)


def random_state() -> tuple[Any, ...]:
    """Where the global states stand; another value means that something has drawn."""
    state: Any = np.random.get_state()
    _, key, position, has_gauss, cached = state
    torch = _torch()
    of_torch = b"" if torch is None else torch.get_rng_state().numpy().tobytes()
    return (key.tobytes(), position, has_gauss, cached), random.getstate(), of_torch


def seed_random_states(entropy: np.random.SeedSequence) -> None:
    """Set the global states to a function of `entropy`."""
    words = entropy.generate_state(4)
    np.random.seed(words)
    random.seed(words.tobytes())
    torch = _torch()
    if torch is not None:  # its CPU alone: torch.manual_seed would reach for every device
        torch.default_generator.manual_seed(int(entropy.generate_state(1, np.uint64)[0]))


def _torch() -> Any | None:
    torch = sys.modules.get("torch")
    return torch if hasattr(torch, "default_generator") else None


def stir_random_states() -> None:
    """Whatever draws from the global states draws other numbers from now on."""
    # from the states themselves, and `kept_random_states` of whoever calls puts these back
    seed_random_states(np.random.SeedSequence(random.getrandbits(64) ^ 1))


class Seeded:
    """A map dataset in which sample `draw * len + index` is sample `index`, as it reads in that draw.

    The global random states of the reading process are set before each sample is read.
    """

    def __init__(self, dataset: Any, seed: int) -> None:
        self._dataset = dataset
        self._seed = seed
        self._samples = len(dataset)

    def __len__(self) -> int:
        return self._samples

    def __getitem__(self, flat: int) -> Any:
        draw, index = divmod(int(flat), self._samples)
        seed_random_states(Draw(self._seed, draw, index).of_sample)
        return self._dataset[index]
