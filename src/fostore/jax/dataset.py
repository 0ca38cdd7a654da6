"""FirstOrderDataset and output_dataloader for JAX: samples with their distributions as JAX arrays."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from fostore.generate.dataset import PairedDataset
from fostore.generate.loader import SimpleDataLoader
from fostore.generate.nested import collate, map_leaves
from fostore.schema import Array


class FirstOrderDataset(PairedDataset, Sequence[Any]):
    """A dataset whose samples come with their distributions: (input, label, distribution).

    Without labels: (input, distribution). A distribution is a float32 JAX array (num_classes,), or
    (num_members, num_classes).

    Args:
        base_dataset: anything with `__len__` and `__getitem__`.
        distributions: a mapping from dataset index to a row, a `Store`, or a path to one.
        input_getter: gets one sample, returns its input.

    Raises:
        ArgumentError: a sample has no distribution, or there are more than samples.

    >>> dataset = FirstOrderDataset([(1.0, 0), (2.0, 1)], {0: [0.5, 0.5], 1: [0.25, 0.75]})
    >>> dataset[1]
    (2.0, 1, Array([0.25, 0.75], dtype=float32))
    """

    def _as_row(self, row: Array) -> Any:
        return jnp.asarray(row)


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
    """Batches (inputs, labels, distributions), or (inputs, distributions), as JAX arrays.

    `num_workers` and `pin_memory` are the guide's; JAX reads in this process, so they have no effect.

    Raises:
        ArgumentError: see `FirstOrderDataset`.
    """
    dataset = FirstOrderDataset(base_dataset, distributions, input_getter)
    return SimpleDataLoader(
        dataset, batch_size, shuffle, seed=seed, drop_last=drop_last, collate_fn=_as_jax
    )


def _as_jax(samples: Sequence[Any]) -> Any:
    def place(leaf: Any) -> Any:
        return (
            jnp.asarray(leaf)
            if isinstance(leaf, np.ndarray) and leaf.dtype.kind in "biuf"
            else leaf
        )

    return map_leaves(place, collate(samples))


output_fo_dataloader = output_dataloader
