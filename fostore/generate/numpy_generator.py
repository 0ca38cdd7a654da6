"""The generator for models over NumPy arrays, without any framework."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fostore.generate.adapters import adapt
from fostore.generate.framework import Framework, Model
from fostore.generate.generator import Generator
from fostore.generate.numpy_framework import NumpyFramework


class FirstOrderDataGenerator(Generator):
    """Generates the distributions of any callable over NumPy arrays, without a framework.

    The model gets a batch of inputs (n, ...) and returns (n, num_classes), or with `members`
    (n, num_members, num_classes): a NumPy array, a list of numbers, or anything with `__array__` or
    `__dlpack__`. Three kinds of model need no wrapper: a scikit-learn estimator is asked for
    `predict_proba`, a Keras or TensorFlow model for `predict_on_batch` (inference, on whatever
    backend), an ONNX Runtime session is `run`.

    Args:
        model: a callable or one of those, or a list, whose outputs become the members of an ensemble.
        device: "cpu", "cuda", "gpu" or "tpu"; recorded only, the model places its data itself.
        batch_size: samples a batch.
        output_mode: "logits" applies a softmax, "probs" uses outputs as they are, "auto" decides by
            the first batch and checks every later one.
        output_transform: applied to the model's output, before `output_mode`. For a list of models
            it gets the list of outputs.
        input_getter: gets one sample of the dataset, returns the model's input; by default the
            first part of a tuple, or of a list that is no list of numbers, or else the sample itself.
        model_name: kept in the metadata.
        members: one model gives the members of an ensemble, (n, num_members, num_classes).

    Raises:
        ArgumentError: a parameter cannot be used, or the model is a torch module.

    >>> import numpy as np
    >>> generator = FirstOrderDataGenerator(lambda x: x @ np.eye(2), output_mode="logits")
    >>> generator.generate_distributions(np.zeros((3, 2)), progress=False)[2]
    array([0.5, 0.5], dtype=float32)
    """

    def _adapt(self, model: Any) -> Any:
        return adapt(model)

    def _make_framework(self, device: str, models: Sequence[Model]) -> Framework:
        return NumpyFramework(device, models)
