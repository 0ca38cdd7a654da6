"""FirstOrderDataset: a dataset whose samples come with their distributions; and loaders over it."""

from __future__ import annotations

import operator
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fostore.errors import ArgumentError
from fostore.generate.loader import SimpleDataLoader
from fostore.schema import Array
from fostore.store import Store
from fostore.store import open as open_store

_LABELS = ("label", "labels", "target", "targets", "y")


class PairedDataset:
    """A dataset and its distributions, checked against each other; what every side's dataset is.

    A side adds its own kind of dataset and of row (`_as_row`).

    Args:
        base_dataset: anything with `__len__` and `__getitem__`.
        distributions: a mapping from dataset index to a row, a `Store`, or a path to one.
        input_getter: gets one sample, returns its input.

    Raises:
        ArgumentError: a sample has no distribution, or there are more than samples.
    """

    def __init__(
        self,
        base_dataset: Any,
        distributions: Mapping[int, Any] | str | os.PathLike[str],
        input_getter: Callable[[Any], Any] | None = None,
    ) -> None:
        if not hasattr(base_dataset, "__getitem__") or not hasattr(base_dataset, "__len__"):
            raise ArgumentError(
                f"base_dataset is {type(base_dataset).__name__}, expected __len__ and __getitem__"
            )
        if isinstance(distributions, (str, os.PathLike)):
            distributions = open_store(Path(distributions))
        if not isinstance(distributions, Mapping):
            raise ArgumentError(
                f"distributions is {type(distributions).__name__}, expected a dict from dataset "
                "index to distribution, a Store, or a path to one"
            )
        self.base_dataset = base_dataset
        self.distributions = distributions
        self.input_getter = input_getter
        check_pairing(len(base_dataset), distributions)

    def __len__(self) -> int:
        return len(self.base_dataset)

    def __getitem__(self, index: Any) -> Any:
        at = operator.index(index)
        if at < 0:
            at += len(self)
        if not 0 <= at < len(self):
            raise IndexError(f"sample {index} of a dataset of {len(self)} samples")
        sample = self.base_dataset[at]
        row = np.array(self.distributions[at], np.float32)  # fresh and writable
        return (*split(sample, self.input_getter), self._as_row(row))

    def _as_row(self, row: Array) -> Any:
        return row


def check_pairing(samples: int, distributions: Mapping[int, Any]) -> None:
    """Raise unless there is one distribution for each of `samples` samples.

    Raises:
        ArgumentError: names the first sample without a distribution.
    """
    count = len(distributions)
    if isinstance(distributions, Store):
        first = distributions.committed.prefix
        whole = first == count == samples
    else:
        first = next((i for i in range(min(samples, count + 1)) if i not in distributions), samples)
        whole = count == samples and first == samples
    if whole:
        return
    keys = list(distributions)[:1]
    if keys and not isinstance(keys[0], (int, np.integer)):
        raise ArgumentError(
            f"distributions has the key {keys[0]!r}; keys are dataset indices (integers), as "
            "generate_distributions and load_distributions return them"
        )
    if first < samples:
        raise ArgumentError(
            f"the dataset has {samples} samples and there are {count} distributions: sample {first} "
            "has none. Generate the others (with drop_last=False), or pair a Subset of the dataset "
            "with the distributions of its samples, renumbered from 0"
        )
    raise ArgumentError(
        f"the dataset has {samples} samples, but there are {count} distributions; they were "
        "generated from another dataset, or from a larger part of it"
    )


def split(sample: Any, input_getter: Callable[[Any], Any] | None) -> tuple[Any, ...]:
    """(input, label) of a sample, or (input,) where it has no label.

    Of a tuple or list the second part is the label; of a dict, where an input_getter takes the
    input out of it, what stands under "label", "labels", "target", "targets" or "y".

    >>> split((1, 2), None), split((1,), None), split(1, None)
    ((1, 2), (1,), (1,))
    >>> split({"image": 1, "label": 2}, lambda sample: sample["image"])
    (1, 2)
    """
    if isinstance(sample, (tuple, list)) and sample:
        chosen = sample[0] if input_getter is None else input_getter(sample)
        return (chosen,) if len(sample) == 1 else (chosen, sample[1])
    if input_getter is None:
        return (sample,)
    chosen = input_getter(sample)
    if isinstance(sample, Mapping):
        for name in _LABELS:
            if name in sample:
                return chosen, sample[name]
    return (chosen,)


class FirstOrderDataset(PairedDataset, Sequence[Any]):
    """A dataset whose samples come with their distributions: (input, label, distribution).

    Without labels: (input, distribution). A distribution is a float32 array (num_classes,), or
    (num_members, num_classes). Parameters and errors are those of the guide:

    Args:
        base_dataset: anything with `__len__` and `__getitem__`.
        distributions: a mapping from dataset index to a row, a `Store`, or a path to one.
        input_getter: gets one sample, returns its input.

    Raises:
        ArgumentError: a sample has no distribution, or there are more than samples.

    >>> dataset = FirstOrderDataset([("cat", 0), ("dog", 1)], {0: [0.9, 0.1], 1: [0.2, 0.8]})
    >>> dataset[1]
    ('dog', 1, array([0.2, 0.8], dtype=float32))
    """


def output_dataloader(
    base_dataset: Any,
    distributions: Mapping[int, Any] | str | os.PathLike[str],
    batch_size: int = 64,
    shuffle: bool = False,
    num_workers: int = 0,
    pin_memory: bool = False,
    input_getter: Callable[[Any], Any] | None = None,
    *,
    seed: int | None = None,
    drop_last: bool = False,
) -> SimpleDataLoader:
    """Batches (inputs, labels, distributions), or (inputs, distributions), as NumPy arrays.

    `num_workers` and `pin_memory` are the guide's; without a framework they have no effect.

    Raises:
        ArgumentError: see `FirstOrderDataset`.

    >>> loader = output_dataloader([(1.0, 0), (2.0, 1)], {0: [0.9, 0.1], 1: [0.2, 0.8]})
    >>> inputs, labels, distributions = next(iter(loader))
    >>> distributions.shape
    (2, 2)
    """
    dataset = FirstOrderDataset(base_dataset, distributions, input_getter)
    return SimpleDataLoader(dataset, batch_size, shuffle, seed=seed, drop_last=drop_last)


output_fo_dataloader = output_dataloader
