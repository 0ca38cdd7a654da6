"""fostore for torch: the generator, the dataset and the loader; the only folder that imports torch."""

from __future__ import annotations

from fostore.generate.tuning import BatchSizeFinder
from fostore.torch.dataset import FirstOrderDataset, output_dataloader, output_fo_dataloader
from fostore.torch.framework import to_device
from fostore.torch.generator import FirstOrderDataGenerator

find_optimal_batch_size = BatchSizeFinder(FirstOrderDataGenerator)

__all__ = [
    "FirstOrderDataGenerator",
    "FirstOrderDataset",
    "find_optimal_batch_size",
    "output_dataloader",
    "output_fo_dataloader",
    "to_device",
]
