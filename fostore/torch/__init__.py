"""fostore for torch: the generator, the dataset and the loader; the only folder that imports torch."""

from __future__ import annotations

from fostore.generate.tuning import BatchSizeFinder
from fostore.torch.ahead import prefetch_to_device
from fostore.torch.dataset import FirstOrderDataset
from fostore.torch.distillation import distillation_loss
from fostore.torch.framework import to_device
from fostore.torch.generator import FirstOrderDataGenerator
from fostore.torch.loader import OutputLoader, output_dataloader, output_fo_dataloader
from fostore.torch.sampler import EpochSampler
from fostore.torch.topk import as_topk, select_topk
from fostore.torch.topk_loss import topk_distillation_loss

find_optimal_batch_size = BatchSizeFinder(FirstOrderDataGenerator)

__all__ = [
    "EpochSampler",
    "FirstOrderDataGenerator",
    "FirstOrderDataset",
    "OutputLoader",
    "as_topk",
    "distillation_loss",
    "find_optimal_batch_size",
    "output_dataloader",
    "output_fo_dataloader",
    "prefetch_to_device",
    "select_topk",
    "to_device",
    "topk_distillation_loss",
]
