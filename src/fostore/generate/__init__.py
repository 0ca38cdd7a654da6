"""Generation: streaming the distributions of a model over a dataset; one loop for all frameworks."""

from __future__ import annotations

from fostore.generate.dataset import FirstOrderDataset, output_dataloader, output_fo_dataloader
from fostore.generate.generator import FirstOrderDataGenerator
from fostore.generate.loader import SimpleDataLoader
from fostore.generate.sizes import estimate_size

__all__ = [
    "FirstOrderDataGenerator",
    "FirstOrderDataset",
    "SimpleDataLoader",
    "estimate_size",
    "output_dataloader",
    "output_fo_dataloader",
]
