"""Distillation with JAX and Flax NNX, from a scikit-learn teacher: no torch anywhere.

    python examples/distil_flax.py

Needs `flax`, `optax` and `scikit-learn`. Writes `distil_flax.zarr` into the current folder; takes a few
seconds. The teacher is an estimator that goes into the generator as it is.
"""

from __future__ import annotations

import argparse

import jax
import numpy as np
import optax
from flax import nnx
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

import fostore
import fostore.jax
from fostore.evaluate import kl
from fostore.jax import distillation_loss, output_dataloader

TEMPERATURE = 2.0


class Student(nnx.Module):
    """A perceptron: scans (n, 64) to logits (n, 10)."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.hidden = nnx.Linear(64, 64, rngs=rngs)
        self.head = nnx.Linear(64, 10, rngs=rngs)

    def __call__(self, scans: jax.Array) -> jax.Array:
        """Logits."""
        return self.head(nnx.relu(self.hidden(scans)))


@nnx.jit
def step(
    student: Student, optimizer: nnx.Optimizer[Student], scans: jax.Array, known: jax.Array
) -> None:
    """One step towards the teacher."""

    def loss(student: Student) -> jax.Array:
        return distillation_loss(student(scans), known, TEMPERATURE, teacher_kind="log_probs")

    optimizer.update(student, nnx.grad(loss)(student))


def main(epochs: int) -> None:
    images, digits = load_digits(return_X_y=True)
    images = (images / 16).astype(np.float32)
    order = np.random.default_rng(0).permutation(len(images))
    train, unlabelled, test = images[order[:500]], images[order[500:1200]], images[order[1200:]]
    teacher = LogisticRegression(C=0.3, max_iter=500).fit(train, digits[order[:500]])
    generator = fostore.FirstOrderDataGenerator(teacher, output_mode="probs")
    store = generator.generate_distributions(
        unlabelled, store="distil_flax.zarr", store_as="log_probs"
    )
    known = generator.generate_distributions(test, progress=False)

    student = Student(nnx.Rngs(0))

    def distance() -> float:
        asked = fostore.jax.FirstOrderDataGenerator(student, batch_size=597, output_mode="logits")
        return float(kl(known, asked.generate_distributions(test, progress=False)).mean())

    before = distance()
    optimizer = nnx.Optimizer(student, optax.adam(0.01), wrt=nnx.Param)
    loader = output_dataloader(
        unlabelled, store, batch_size=50, shuffle=True, seed=0, as_kind="log_probs"
    )
    for _ in range(epochs):
        for scans, rows in loader:
            step(student, optimizer, scans, rows)
    print(f"KL(teacher || student): {before:.4f} before, {distance():.4f} after")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--epochs", type=int, default=30)
    main(parser.parse_args().epochs)
