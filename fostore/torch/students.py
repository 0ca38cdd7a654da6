"""Students of a teacher on digits: what distillation gains there, and what it does not.

A student sees 700 scans without labels, and its teacher's distributions of them in a store. One is
distilled from the distributions, a twin learns the teacher's most probable class of each scan.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from fostore import evaluate
from fostore.torch.digits import NUM_CLASSES, Scans, Teacher
from fostore.torch.distillation import distillation_loss
from fostore.torch.generator import FirstOrderDataGenerator
from fostore.torch.loader import output_dataloader

_CONFIDENCE = 0.9
MEASURES = {
    "accuracy": 1,
    "KL(teacher || student), nats": -1,
    "ECE": -1,
    "NLL, nats": -1,
    f"covered by {_CONFIDENCE:.0%} TV balls": 0,
    "  of this radius": 0,
}
"""What is measured of a student, and whether more (1) or less (-1) of it is better. Covered is the
share of scans whose teacher's distribution lies in the ball around the student's, of the radius in
total variation that 298 other scans were enough to set."""


def compare(teacher: Teacher, seed: int, store: Path) -> tuple[float, list[float], list[float]]:
    """The teacher's accuracy on the test, and the measures of the distilled student and of its twin.

    Both learn from `store`, which the teacher fills: it is made, or continued. The random state of
    torch is as it was, afterwards.
    """
    unlabelled, test = Scans("unlabelled", seed), Scans("test", seed)
    generator = FirstOrderDataGenerator(
        teacher, output_mode="probs", model_name="three residual CNNs"
    )
    rows = generator.generate_distributions(unlabelled, progress=False, store=store)
    known = generator.generate_distributions(test, progress=False)
    distilled, twin = (
        _measured(_student(unlabelled, rows, seed, loss), test, known, seed)
        for loss in (
            distillation_loss,
            lambda logits, probs: functional.cross_entropy(logits, probs.argmax(dim=-1)),
        )
    )
    return evaluate.accuracy(known, test.labels), distilled, twin


def _student(
    scans: Scans, rows: Mapping[int, Any], seed: int, loss: Callable[[Tensor, Tensor], Tensor]
) -> nn.Module:
    """A perceptron of one hidden layer, trained on what a store says of the scans."""
    loader = output_dataloader(scans, rows, 50, shuffle=True, seed=seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        student = nn.Sequential(
            nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, NUM_CLASSES)
        )
        optimizer = torch.optim.AdamW(student.parameters(), lr=0.01, weight_decay=0.01)
        for _ in range(40):
            for inputs, _label, probs in loader:
                optimizer.zero_grad()
                loss(student(inputs), probs).backward()
                optimizer.step()
    return student.eval()


def _measured(student: nn.Module, test: Scans, known: Mapping[int, Any], seed: int) -> list[float]:
    generator = FirstOrderDataGenerator(student, output_mode="logits")
    predicted = generator.generate_distributions(test, progress=False)
    calibrating, others = evaluate.split(predicted, [0.5, 0.5], seed)
    calibrating_known, others_known = evaluate.split(known, [0.5, 0.5], seed)
    radius = evaluate.conformal_radius(calibrating, calibrating_known, confidence_level=_CONFIDENCE)
    labelled = evaluate.label_metrics(predicted, test.labels)
    divergence = float(evaluate.kl(known, predicted).mean())
    covered = float(evaluate.tv_ball_covered(others, radius, others_known).mean())
    return [labelled.accuracy, divergence, labelled.ece, labelled.nll, covered, radius]
