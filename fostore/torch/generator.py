"""The generator for torch models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from fostore.errors import ArgumentError
from fostore.generate.framework import Framework, Model
from fostore.generate.generator import Generator
from fostore.torch.framework import TorchFramework


class FirstOrderDataGenerator(Generator):
    """Generates the distributions of torch models, in evaluation mode and without gradients.

    The model gets a batch of inputs on the device and returns (n, num_classes), or with `members`
    (n, num_members, num_classes): a tensor, or an object or dict with `logits`. A dict batch whose keys are the
    model's parameters is given as keywords. Softmax and casts run on the device.

    Args:
        model: an `nn.Module` or any callable over tensors, or a list of them, whose outputs become
            the members of an ensemble. It is moved to the device.
        device: "cpu", "cuda", "cuda:1", "gpu", "mps" or "tpu".
        batch_size: samples a batch; a DataLoader brings its own.
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

    >>> import torch
    >>> from torch.utils.data import TensorDataset
    >>> generator = FirstOrderDataGenerator(torch.nn.Identity(), output_mode="logits")
    >>> generator.generate_distributions(TensorDataset(torch.zeros(3, 2)), progress=False)[2]
    array([0.5, 0.5], dtype=float32)
    """

    def _adapt(self, model: Any) -> Any:
        if isinstance(model, torch.nn.ModuleList):
            raise ArgumentError(
                "the model is a ModuleList, which has no forward; give list(modules), whose outputs are "
                "the members of an ensemble"
            )
        return model

    def _make_framework(self, device: str, models: Sequence[Model]) -> Framework:
        return TorchFramework(device)
