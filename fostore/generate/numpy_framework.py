"""The NumPy side of generation: models over arrays, or over anything with `__array__` or `__dlpack__`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np

from fostore.errors import ArgumentError
from fostore.generate.adapters import Adapted
from fostore.generate.datasets import numpy_samples
from fostore.generate.framework import Framework, Kept, Model, refuse_torch_modules
from fostore.generate.memory import copied
from fostore.generate.randomness import Draw
from fostore.generate.samples import Reading, Samples
from fostore.schema import identity, simplex


class NumpyFramework(Framework):
    """See `Framework`; the device is recorded only."""

    name = "numpy"
    version = np.__version__
    tensor_name = "a NumPy array (or a list of numbers, or anything with __array__ or __dlpack__)"
    how_to_draw = (
        "draw from np.random or random in the model, or let it take a parameter rng, which gets a "
        "np.random.Generator"
    )
    random_parameters = {  # noqa: RUF012
        "rng": Draw.generator,
        "generator": Draw.generator,
        "random_state": Draw.generator,
        "seed": Draw.seed32,
    }

    def __init__(self, device: str, models: Sequence[Model]) -> None:
        if device not in ("cpu", "cuda", "gpu", "tpu"):
            raise ArgumentError(
                f"device is {device!r}, expected 'cpu', 'cuda', 'gpu' or 'tpu' (recorded only: "
                "a framework-agnostic model places its data itself)"
            )
        self.device = device
        refuse_torch_modules(models)

    def samples(self, data: Any, reading: Reading) -> Samples:
        return numpy_samples(data, reading)

    def running(self, models: Sequence[Model], draws: bool = False) -> AbstractContextManager[None]:
        return self.kept_random_states()

    def describe(self, model: Model) -> dict[str, Any]:
        if isinstance(model, Adapted):
            return model.describe()
        return identity.describe_callable(model, identity.hash_leaves)

    def to_device(self, data: Any, *, copy: bool = False) -> Any:
        return copied(data) if copy else data

    def tensor(self, output: Any) -> Any | None:
        if isinstance(output, np.ndarray):
            return output
        if isinstance(output, Mapping):
            return None  # its `logits` are looked for: see `Models._tensor`
        try:
            if hasattr(output, "__array__"):
                array = np.asarray(output)
            elif hasattr(output, "__dlpack__"):
                array = np.from_dlpack(output)
            elif isinstance(output, (list, tuple)) and not _holds_arrays(output):
                array = np.asarray(output)
            else:
                return None
        except (ValueError, TypeError, BufferError, RuntimeError):
            return None
        return None if array.dtype == object else array

    def is_floating(self, tensor: Any) -> bool:
        return bool(tensor.dtype.kind == "f" or tensor.dtype.name == "bfloat16")

    def stack(self, tensors: Sequence[Any]) -> Any:
        return np.stack(tensors, axis=1)

    def keep(self, tensor: Any, kept: Kept) -> Any:
        wide = tensor.dtype == np.float64 or kept.dtype == "float64"
        # float16 overflows at 65,504, which a sum of exponentials reaches
        x = tensor.astype(np.float64 if wide else np.float32, copy=False)
        if kept.mode == "logits":
            if kept.temperature != 1.0:
                x = x / kept.temperature
            # a row that is not finite becomes NaN: refused by name
            with np.errstate(invalid="ignore"):
                if kept.kind == "probs":
                    x = simplex.softmax(x)
                elif kept.kind == "log_probs":
                    x = simplex.log_softmax(x)
        elif kept.kind == "log_probs":
            with np.errstate(divide="ignore", invalid="ignore"):
                x = np.log(x)
        return x if kept.dtype == "float64" else x.astype(np.float32, copy=False)

    def host(self, leaf: Any) -> Any | None:
        return super().host(np.asarray(leaf) if isinstance(leaf, (bool, int, float)) else leaf)


def _holds_arrays(data: Any) -> bool:
    """Whether nested lists hold arrays, each an output of its own, and not the numbers of one."""
    if not isinstance(data, (list, tuple)):
        return len(getattr(data, "shape", ())) > 0
    if data and isinstance(data[0], (int, float)):
        return False  # numbers, and NumPy refuses to make one array of numbers and arrays
    return any(map(_holds_arrays, data))
