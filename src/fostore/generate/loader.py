"""SimpleDataLoader: batches of a dataset as NumPy arrays, without any framework."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from fostore.errors import ArgumentError
from fostore.generate.nested import collate


class SimpleDataLoader:
    """Batches of a dataset with `__len__` and `__getitem__`, as nested NumPy arrays.

    Args:
        dataset: anything with `__len__` and `__getitem__`.
        batch_size: samples a batch, at least 1; the last batch may be shorter.
        shuffle: another order in every epoch. No global random state is read or changed.
        seed: makes the orders repeatable; None draws fresh ones.
        drop_last: leave out a last batch that is shorter.
        collate_fn: makes a batch of a list of samples; default: arrays and numbers are stacked.

    Raises:
        ArgumentError: batch_size is no positive integer.

    >>> loader = SimpleDataLoader([(0, "a"), (1, "b"), (2, "c")], batch_size=2)
    >>> len(loader), [labels for _, labels in loader]
    (2, [['a', 'b'], ['c']])
    """

    def __init__(
        self,
        dataset: Any,
        batch_size: int = 64,
        shuffle: bool = False,
        *,
        seed: int | None = None,
        drop_last: bool = False,
        collate_fn: Callable[[Any], Any] | None = None,
    ) -> None:
        self.dataset = dataset
        self.batch_size = check_batch_size(batch_size)
        self.shuffle = shuffle
        self.drop_last = drop_last
        self.collate_fn = collate_fn
        self._random = np.random.default_rng(seed)

    def __len__(self) -> int:
        samples = len(self.dataset)
        if self.drop_last:
            return samples // self.batch_size
        return -(-samples // self.batch_size)

    def __iter__(self) -> Iterator[Any]:
        samples = len(self.dataset)
        order = self._random.permutation(samples) if self.shuffle else np.arange(samples)
        together = self.collate_fn or collate
        for k in range(len(self)):
            rows = order[k * self.batch_size : (k + 1) * self.batch_size].tolist()
            yield together([self.dataset[i] for i in rows])


def check_batch_size(batch_size: Any) -> int:
    """`batch_size` as an int.

    Raises:
        ArgumentError: it is no positive integer.
    """
    if isinstance(batch_size, bool) or not hasattr(batch_size, "__index__") or batch_size < 1:
        raise ArgumentError(f"batch_size is {batch_size!r}, expected an integer of at least 1")
    return int(batch_size)
