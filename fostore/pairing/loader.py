"""output_dataloader without a framework: batches of a dataset and its distributions as NumPy arrays."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any, Unpack

from fostore.loading.loader import SimpleDataLoader
from fostore.loading.options import OrderOptions, named, take_order
from fostore.loading.order import Shuffle
from fostore.pairing.dataset import FirstOrderDataset
from fostore.pairing.options import PairOptions
from fostore.reading.selection import Selection


class LoaderOptions(PairOptions, OrderOptions):
    """The keywords of an `output_dataloader`, for type checkers."""


@named
def output_dataloader(
    base_dataset: Any,
    distributions: Mapping[int, Any] | Selection | str | os.PathLike[str],
    batch_size: int = 64,
    shuffle: Shuffle = False,
    num_workers: int = 0,
    pin_memory: bool = False,
    input_getter: Callable[[Any], Any] | None = None,
    *,
    prefetch: int = 2,
    **options: Unpack[LoaderOptions],
) -> SimpleDataLoader:
    """Batches (inputs, labels, distributions), or (inputs, distributions), as NumPy arrays.

    `num_workers` and `pin_memory` are the guide's; without a framework they have no effect.

    Args:
        seed, drop_last, pad_last, rank, num_ranks, prefetch: see `SimpleDataLoader`.
        options: `ids`, `check`, `target_key`, `dtype`, ... of `FirstOrderDataset`.

    Raises:
        ArgumentError, IdentityError: see `FirstOrderDataset`.

    >>> loader = output_dataloader([(1.0, 0), (2.0, 1)], {0: [0.9, 0.1], 1: [0.2, 0.8]})
    >>> inputs, labels, distributions = next(iter(loader))
    >>> distributions.shape
    (2, 2)
    """
    order, pair = take_order(options)
    dataset = FirstOrderDataset(base_dataset, distributions, input_getter, **pair)
    return SimpleDataLoader(dataset, batch_size, shuffle, prefetch=prefetch, **order)


output_fo_dataloader = output_dataloader
