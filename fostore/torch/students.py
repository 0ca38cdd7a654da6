"""Students of a teacher on digits: what distillation gains there, and what it does not.

A student sees 700 scans without labels, and its teacher's distributions of them in a store. One is
distilled from the distributions, a twin learns the teacher's most probable class of each scan.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from fostore import evaluate
from fostore.reading.store import Store
from fostore.schema.row import Array
from fostore.torch.digits import NUM_CLASSES, Scans, Teacher
from fostore.torch.distillation import distillation_loss
from fostore.torch.generator import FirstOrderDataGenerator
from fostore.torch.loader import output_dataloader

EPOCHS = 40
CONFIDENCE = 0.9
_HIDDEN = 64
_BATCH = 50
_RATE = 0.01

_Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Figures:
    """How a student does on the scans for the test.

    `kl` is the mean KL(teacher ‖ student) in nats. `covered` is the share of the scans whose teacher's
    distribution lies in the ball around the student's, of a radius in total variation (`radius`)
    that 298 other scans were enough to set.
    """

    accuracy: float
    kl: float
    ece: float
    nll: float
    radius: float
    covered: float


@dataclass(frozen=True, slots=True)
class Outcome:
    """One seed: the teacher's accuracy on the test, and the two students."""

    teacher: float
    distilled: Figures
    by_class: Figures


def by_distribution(logits: Tensor, rows: Tensor) -> Tensor:
    """The loss of the distilled student."""
    return distillation_loss(logits, rows)


def by_class(logits: Tensor, rows: Tensor) -> Tensor:
    """The loss of its twin, which learns the teacher's most probable class."""
    return functional.cross_entropy(logits, rows.argmax(dim=-1))


def compare(teacher: Teacher, seed: int, store: Path) -> Outcome:
    """Train both students on the store that the teacher fills, and measure them.

    `store` is made, or continued. The random state of torch is as it was, afterwards.
    """
    unlabelled, test = Scans("unlabelled", seed), Scans("test", seed)
    asked = FirstOrderDataGenerator(teacher, output_mode="probs", model_name="three residual CNNs")
    rows = asked.generate_distributions(unlabelled, progress=False, store=store)
    known = asked.generate_distributions(test, progress=False)
    students = [train(unlabelled, rows, loss, seed) for loss in (by_distribution, by_class)]
    distilled, twin = (_measure(student, test, known, seed) for student in students)
    return Outcome(evaluate.accuracy(known, test.labels), distilled, twin)


def train(scans: Scans, store: Store, loss: _Loss, seed: int) -> nn.Module:
    """A perceptron of one hidden layer, trained on what a store says of the scans; in eval mode."""
    loader = output_dataloader(scans, store, _BATCH, shuffle=True, seed=seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        student = nn.Sequential(
            nn.Flatten(), nn.Linear(64, _HIDDEN), nn.ReLU(), nn.Linear(_HIDDEN, NUM_CLASSES)
        )
        optimizer = torch.optim.AdamW(student.parameters(), lr=_RATE, weight_decay=0.01)
        for _ in range(EPOCHS):
            for inputs, _label, rows in loader:
                optimizer.zero_grad()
                loss(student(inputs), rows).backward()  # type: ignore[no-untyped-call]
                optimizer.step()
    return student.eval()


def _measure(student: nn.Module, test: Scans, known: Mapping[int, Array], seed: int) -> Figures:
    generator = FirstOrderDataGenerator(student, output_mode="logits")
    predicted = generator.generate_distributions(test, progress=False)
    halves = [0.5, 0.5]
    parts: Any = [evaluate.split(rows, halves, seed) for rows in (predicted, known)]
    (calibrating, others), (calibrating_known, others_known) = parts
    radius = evaluate.conformal_radius(calibrating, calibrating_known, confidence_level=CONFIDENCE)
    labelled = evaluate.label_metrics(predicted, test.labels)
    return Figures(
        accuracy=labelled.accuracy,
        kl=float(evaluate.kl(known, predicted).mean()),
        ece=labelled.ece,
        nll=labelled.nll,
        radius=radius,
        covered=float(evaluate.tv_ball_covered(others, radius, others_known).mean()),
    )
