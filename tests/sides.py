"""The three sides of generation behind one face, so that a shared promise is one test."""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np

import fostore

NUM_CLASSES = 5


class Side:
    """A framework: its public names, and NumPy functions as models of it."""

    def __init__(self, name: str) -> None:
        self.name = name

    @functools.cached_property
    def module(self) -> ModuleType:
        if self.name == "numpy":
            return fostore
        import importlib

        return importlib.import_module(f"fostore.{self.name}")

    def generator(self, model: Any, *args: Any, **options: Any) -> Any:
        return self.module.FirstOrderDataGenerator(model, *args, **options)

    def array(self, values: Any) -> Any:
        """An array of the framework."""
        if self.name == "torch":
            import torch

            return torch.from_numpy(np.array(values))
        if self.name == "jax":
            import jax.numpy as jnp

            return jnp.asarray(values)
        return np.asarray(values)

    def model(self, function: Callable[[np.ndarray], Any]) -> Callable[[Any], Any]:
        """A model of the framework that computes `function` on the batch as NumPy has it."""

        def run(batch: Any) -> Any:
            return self.array(function(np.asarray(batch)))

        return run

    def softmax(self, x: Any) -> Any:
        if self.name == "torch":
            return x.softmax(-1)
        if self.name == "jax":
            import jax

            return jax.nn.softmax(x, axis=-1)
        return softmax(x)


SIDES = {name: Side(name) for name in ("numpy", "torch", "jax")}


def softmax(x: np.ndarray) -> np.ndarray:
    """The oracle."""
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


class Pairs:
    """A dataset of (input, label), which remembers what was read."""

    def __init__(self, inputs: np.ndarray, labels: np.ndarray | None = None) -> None:
        self.inputs = inputs
        self.labels = labels
        self.read: list[int] = []

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int) -> Any:
        if not 0 <= index < len(self.inputs):
            raise IndexError(index)
        self.read.append(index)
        if self.labels is None:
            return self.inputs[index]
        return self.inputs[index], int(self.labels[index])


class Stream:
    """A dataset that can only be iterated."""

    def __init__(self, inputs: np.ndarray) -> None:
        self.inputs = inputs

    def __iter__(self) -> Any:
        return ((x, 0) for x in self.inputs)


class Linear:
    """Logits x @ weight; counts the samples of its calls, and can be told to fail."""

    def __init__(self, seed: int = 0, features: int = 4) -> None:
        self.weight = np.random.default_rng(seed).normal(size=(features, NUM_CLASSES)) * 2
        self.weight = self.weight.astype(np.float32)
        self.batches: list[int] = []
        self.fail_at: int | None = None
        self.error: BaseException = ValueError("no luck")

    def __call__(self, x: np.ndarray) -> np.ndarray:
        if self.fail_at is not None and len(self.batches) == self.fail_at:
            raise self.error
        self.batches.append(len(x))
        return np.stack([row @ self.weight for row in x])  # a row's bits do not depend on its batch


def make_pairs(samples: int = 100, seed: int = 1) -> Pairs:
    """Random inputs (samples, 4) with labels."""
    rng = np.random.default_rng(seed)
    inputs = rng.normal(size=(samples, 4)).astype(np.float32)
    return Pairs(inputs, rng.integers(0, NUM_CLASSES, samples))
