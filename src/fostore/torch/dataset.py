"""FirstOrderDataset and output_dataloader for torch: samples with their distributions as tensors."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from fostore.generate.dataset import PairedDataset
from fostore.schema import Array


class FirstOrderDataset(PairedDataset, Dataset[Any]):
    """A dataset whose samples come with their distributions: (input, label, distribution).

    Without labels: (input, distribution). A distribution is a float32 tensor (num_classes,), or
    (num_members, num_classes).

    Args:
        base_dataset: any map-style dataset.
        distributions: a mapping from dataset index to a row, a `Store`, or a path to one.
        input_getter: gets one sample, returns its input.

    Raises:
        ArgumentError: a sample has no distribution, or there are more than samples.

    >>> dataset = FirstOrderDataset([(1.0, 0), (2.0, 1)], {0: [0.9, 0.1], 1: [0.2, 0.8]})
    >>> dataset[1]
    (2.0, 1, tensor([0.2000, 0.8000]))
    """

    def _as_row(self, row: Array) -> Any:
        return torch.from_numpy(row)


def output_dataloader(
    base_dataset: Any,
    distributions: Mapping[int, Any] | str | os.PathLike[str],
    batch_size: int = 64,
    shuffle: bool = False,
    num_workers: int = 0,
    pin_memory: bool = False,
    input_getter: Callable[[Any], Any] | None = None,
    **options: Any,
) -> DataLoader[Any]:
    """A DataLoader of batches (inputs, labels, distributions), or (inputs, distributions).

    Args:
        base_dataset, distributions, input_getter: see `FirstOrderDataset`.
        batch_size, shuffle, num_workers: as torch has them.
        pin_memory: as torch has it; without an accelerator it has no effect and makes no noise.
        options: any other keyword of `torch.utils.data.DataLoader`.

    Raises:
        ArgumentError: see `FirstOrderDataset`.
    """
    dataset = FirstOrderDataset(base_dataset, distributions, input_getter)
    return DataLoader(
        dataset,
        batch_size=batch_size,
        shuffle=shuffle,
        num_workers=num_workers,
        pin_memory=pin_memory and torch.accelerator.is_available(),
        **options,
    )


output_fo_dataloader = output_dataloader
