"""fostore for JAX: the generator, the dataset and the loader; the only folder that imports jax."""

from __future__ import annotations

from fostore.generate.tuning import BatchSizeFinder
from fostore.jax.dataset import FirstOrderDataset
from fostore.jax.distillation import distillation_loss
from fostore.jax.framework import to_device
from fostore.jax.generator import FirstOrderDataGenerator
from fostore.jax.loader import DeviceLoader, output_dataloader, output_fo_dataloader
from fostore.jax.topk import select_topk
from fostore.jax.topk_loss import topk_distillation_loss

find_optimal_batch_size = BatchSizeFinder(FirstOrderDataGenerator)

__all__ = [
    "DeviceLoader",
    "FirstOrderDataGenerator",
    "FirstOrderDataset",
    "distillation_loss",
    "find_optimal_batch_size",
    "output_dataloader",
    "output_fo_dataloader",
    "select_topk",
    "to_device",
    "topk_distillation_loss",
]
