"""Distillation with Lightning: the loader is fostore's, the loss one line of `training_step`.

    python examples/distil_lightning.py

Needs `lightning`. Writes `distil_lightning.zarr` into the current folder; takes a few seconds. The loader
keeps its place in Lightning's checkpoints, so that a run goes on in the middle of an epoch.
"""

from __future__ import annotations

import argparse
from typing import Any

import lightning
import torch
from torch import nn

from fostore.evaluate import kl
from fostore.torch import FirstOrderDataGenerator, distillation_loss, output_dataloader
from fostore.torch.digits import Scans, train

TEMPERATURE = 2.0


class Student(lightning.LightningModule):
    """A perceptron that is distilled."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))

    def forward(self, scans: torch.Tensor) -> torch.Tensor:
        """Logits (n, 10)."""
        return self.net(scans)

    def training_step(self, batch: Any, _index: int) -> torch.Tensor:
        """Batches are (scans, digits, log-probabilities of the teacher)."""
        scans, _digits, known = batch
        return distillation_loss(self(scans), known, TEMPERATURE, teacher_kind="log_probs")

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam."""
        return torch.optim.Adam(self.parameters(), lr=0.01)


def main(epochs: int) -> None:
    teacher, dataset, test = train(Scans("train")), Scans("unlabelled"), Scans("test")
    generator = FirstOrderDataGenerator(teacher, output_mode="probs", model_name="digits teacher")
    store = generator.generate_distributions(
        dataset, store="distil_lightning.zarr", store_as="log_probs"
    )
    known = generator.generate_distributions(test, progress=False)

    lightning.seed_everything(0, verbose=False)
    student = Student()

    def distance() -> float:
        asked = FirstOrderDataGenerator(student, output_mode="logits")
        return float(kl(known, asked.generate_distributions(test, progress=False)).mean())

    before = distance()
    loader = output_dataloader(
        dataset, store, batch_size=50, shuffle=True, seed=0, as_kind="log_probs"
    )
    trainer = lightning.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(student, loader)
    print(f"KL(teacher || student): {before:.3f} before, {distance():.3f} after")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--epochs", type=int, default=30)
    main(parser.parse_args().epochs)
