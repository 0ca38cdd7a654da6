"""Distillation with Hugging Face's Trainer, over a Hugging Face dataset.

    python examples/distil_hf_trainer.py

Needs `transformers`, `accelerate` and `datasets`. Writes `distil_hf_trainer.zarr` into the current folder;
takes a few seconds. The distributions go in under "labels", which is what the Trainer hands to
`compute_loss_func`; any other key would do with a `compute_loss` of one's own.
"""

from __future__ import annotations

import argparse
import tempfile
from typing import Any

import datasets
import torch
import transformers
from torch import nn
from transformers.modeling_outputs import SequenceClassifierOutput

from fostore.evaluate import kl
from fostore.torch import FirstOrderDataGenerator, FirstOrderDataset, distillation_loss
from fostore.torch.digits import Scans, train

TEMPERATURE = 2.0


class Student(nn.Module):
    """A perceptron with the inputs and outputs of a model of transformers."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))

    def forward(self, pixels: torch.Tensor) -> SequenceClassifierOutput:
        """Logits (n, 10), where a generator and the loss below find them."""
        return SequenceClassifierOutput(logits=self.net(pixels))


def loss(output: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
    """What the Trainer minimises: `labels` are the teacher's log-probabilities."""
    return distillation_loss(output.logits, labels, TEMPERATURE, teacher_kind="log_probs")


def as_dataset(part: Any) -> datasets.Dataset:
    """Scans as a Hugging Face dataset of dicts, without labels."""
    return datasets.Dataset.from_dict({"pixels": Scans(part).scans.numpy()}).with_format("torch")


def main(epochs: int) -> None:
    teacher, dataset, test = train(Scans("train")), as_dataset("unlabelled"), as_dataset("test")
    generator = FirstOrderDataGenerator(
        teacher,
        output_mode="probs",
        input_getter=lambda sample: sample["pixels"],
        model_name="digits teacher",
    )
    store = generator.generate_distributions(
        dataset, store="distil_hf_trainer.zarr", store_as="log_probs"
    )
    known = generator.generate_distributions(test, progress=False)

    transformers.set_seed(0)
    student = Student()

    def distance() -> float:  # the student takes the dicts as they are
        asked = FirstOrderDataGenerator(student, output_mode="logits")
        return float(kl(known, asked.generate_distributions(test, progress=False)).mean())

    before = distance()
    rows = FirstOrderDataset(
        dataset,
        store,
        input_getter=lambda sample: sample["pixels"],
        target_key="labels",
        as_kind="log_probs",
    )
    with tempfile.TemporaryDirectory() as folder:
        arguments = transformers.TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=50,
            num_train_epochs=epochs,
            learning_rate=0.01,
            seed=0,
            use_cpu=True,
            report_to=[],
            disable_tqdm=True,
            save_strategy="no",
            logging_strategy="no",
        )
        trainer = transformers.Trainer(
            model=student, args=arguments, train_dataset=rows, compute_loss_func=loss
        )
        trainer.train()
    print(f"KL(teacher || student): {before:.3f} before, {distance():.3f} after")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--epochs", type=int, default=30)
    main(parser.parse_args().epochs)
