"""fostore for JAX: the generator, the dataset and the loader; the only folder that imports jax."""

from __future__ import annotations

from fostore.jax.dataset import FirstOrderDataset, output_dataloader, output_fo_dataloader
from fostore.jax.framework import to_device
from fostore.jax.generator import FirstOrderDataGenerator
from fostore.jax.tuning import find_optimal_batch_size

__all__ = [
    "FirstOrderDataGenerator",
    "FirstOrderDataset",
    "find_optimal_batch_size",
    "output_dataloader",
    "output_fo_dataloader",
    "to_device",
]
