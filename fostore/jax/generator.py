"""The generator for JAX models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax

from fostore.generate.framework import Framework, Model
from fostore.generate.generator import Generator
from fostore.jax.framework import JaxFramework


class FirstOrderDataGenerator(Generator):
    """Generates the distributions of JAX models: functions, jit functions, partials, pytrees.

    The model gets a batch of inputs on the device and returns (n, num_classes), or with `members`
    (n, num_members, num_classes). Batches are put together with NumPy; softmax and casts run on the device.

    Args:
        model: a callable over arrays (or what `jax.export` gives), or a list of them, whose outputs
            become the members of an ensemble.
        device: "cpu", "gpu" (or "cuda") or "tpu".
        batch_size: samples a batch.
        output_mode: "logits" applies a softmax, "probs" uses outputs as they are, "auto" decides by
            the first batch and checks every later one.
        output_transform: applied to the model's output, before `output_mode`. For a list of models
            it gets the list of outputs.
        input_getter: gets one sample of the dataset, returns the model's input; by default the
            first part of a tuple, or of a list that is no list of numbers, or else the sample.
        model_name: kept in the metadata.
        members: one model gives the members of an ensemble, (n, num_members, num_classes).

    Raises:
        ArgumentError: a parameter cannot be used, or the device is not there.

    >>> import jax, numpy as np
    >>> generator = FirstOrderDataGenerator(jax.jit(lambda x: x * 2), output_mode="logits")
    >>> generator.generate_distributions(np.zeros((3, 2)), progress=False)[2]
    array([0.5, 0.5], dtype=float32)
    """

    def _adapt(self, model: Any) -> Any:
        return model.call if isinstance(model, jax.export.Exported) else model

    def _make_framework(self, device: str, models: Sequence[Model]) -> Framework:
        return JaxFramework(device, models)
