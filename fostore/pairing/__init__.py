"""Pairing: a dataset whose samples come with their distributions, checked to be of the same samples."""

from __future__ import annotations

from fostore.pairing.dataset import FirstOrderDataset
from fostore.pairing.loader import output_dataloader, output_fo_dataloader

__all__ = ["FirstOrderDataset", "output_dataloader", "output_fo_dataloader"]
