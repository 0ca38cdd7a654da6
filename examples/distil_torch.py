"""Distillation in a plain torch loop: a teacher's store, a student, and how close it comes.

    python examples/distil_torch.py

Writes `distil_torch.zarr` into the current folder; takes a few seconds. Against the guide's loop: the
temperature softens both sides, the loss is multiplied by its square, and gradients are set to zero
before each step, since torch adds them up.
"""

from __future__ import annotations

import argparse

import torch
from torch import nn

from fostore.evaluate import kl
from fostore.torch import FirstOrderDataGenerator, distillation_loss, output_dataloader
from fostore.torch.digits import Scans, train

TEMPERATURE = 2.0


def distance(student: nn.Module, teacher: nn.Module) -> float:
    """The mean KL(teacher ‖ student) in nats on scans that neither was trained on."""
    test = Scans("test")
    known, said = (
        FirstOrderDataGenerator(model, output_mode=mode).generate_distributions(
            test, progress=False
        )
        for model, mode in ((teacher, "probs"), (student, "logits"))
    )
    return float(kl(known, said).mean())


def main(epochs: int) -> None:
    teacher, dataset = train(Scans("train")), Scans("unlabelled")
    generator = FirstOrderDataGenerator(teacher, output_mode="probs", model_name="digits teacher")
    store = generator.generate_distributions(
        dataset, store="distil_torch.zarr", store_as="log_probs"
    )

    torch.manual_seed(0)
    student = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    before = distance(student, teacher)
    optimizer = torch.optim.Adam(student.parameters(), lr=0.01)
    loader = output_dataloader(
        dataset, store, batch_size=50, shuffle=True, seed=0, as_kind="log_probs"
    )
    for _ in range(epochs):
        for scans, digits, known in loader:
            logits = student(scans)
            soft = distillation_loss(logits, known, TEMPERATURE, teacher_kind="log_probs")
            hard = nn.functional.cross_entropy(logits, digits)
            loss = 0.9 * soft + 0.1 * hard  # T² keeps the two in proportion, whatever T is
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    print(f"KL(teacher || student): {before:.3f} before, {distance(student, teacher):.3f} after")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--epochs", type=int, default=30)
    main(parser.parse_args().epochs)
