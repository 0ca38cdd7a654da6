"""The seam between the one generation loop and an array library, and its NumPy side."""

from __future__ import annotations

import copy as copying
import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from fostore.containers.columns import is_frame
from fostore.errors import ArgumentError
from fostore.generate.adapters import Adapted
from fostore.generate.assembly import Collate
from fostore.generate.numpy_source import numpy_source
from fostore.generate.randomness import (
    Draw,
    kept_random_states,
    random_state,
    seed_random_states,
    stir_random_states,
)
from fostore.generate.source import Source
from fostore.nested import Getter, map_leaves
from fostore.schema import identity, simplex
from fostore.schema.row import Array


@dataclass(frozen=True, slots=True)
class Reading:
    """How a dataset is read: samples a batch, what the model's input is, how samples become a batch."""

    batch_size: int
    input_getter: Getter | None
    collate_fn: Collate | None
    seed: int | None = None
    """Of draws: each sample is read from random states that are a function of it."""


@dataclass(frozen=True, slots=True)
class Selection:
    """What is kept of a model's output.

    `mode` is what the model gives ("logits" or "probs"; one a member where members differ), `kind`
    what is kept ("probs", "log_probs" or "logits"), `dtype` the dtype of the store; logits are
    divided by `temperature`. A framework's `select` sees one mode.
    """

    mode: str | tuple[str, ...]
    kind: str = "probs"
    dtype: str = "float32"
    temperature: float = 1.0


class Framework(Protocol):
    """What the generation loop asks of an array library.

    `tensor`, `stack`, `select` and `start_copy` run in the caller's thread, on the device;
    `finish_copy` may run in another one where `overlaps` is true. Nothing here changes values
    except `select`, and nothing draws random numbers that outlive `running`.
    """

    name: str
    device: str
    overlaps: bool
    """Whether copying to the host and writing go on beside the next batch (an accelerator)."""

    def source(self, data: Any, reading: Reading) -> Source:
        """What is iterated: a dataset, a stream or a loader as (indices, inputs).

        Raises ArgumentError for what is no dataset, and for a loader whose order is not known.
        """
        ...

    def running(
        self, models: Sequence[Callable[..., Any]], draws: bool = False
    ) -> AbstractContextManager[None]:
        """Models on the device, in evaluation mode, without gradients; all as before afterwards.

        With `draws` what draws random numbers on purpose (dropout) stays on. The random states of
        the library, NumPy and Python are restored as well.
        """
        ...

    def calling(self) -> AbstractContextManager[None]:
        """Around each call of a model or a transform: what only then can be seen to train is caught."""
        ...

    def random_state(self) -> Any:
        """Where the random states stand that a model may draw from; comparable with `==`."""
        ...

    @property
    def random_parameters(self) -> Sequence[str]:
        """Names of parameters by which a model takes its randomness."""
        ...

    @property
    def how_to_draw(self) -> str:
        """What makes a model draw, for messages."""
        ...

    def begin_draw(self, draw: Draw, parameter: str | None) -> dict[str, Any]:
        """Set every random state to a function of `draw`; what the model gets as `parameter`."""
        ...

    def kept_random_states(self) -> AbstractContextManager[None]:
        """A block whose draws leave no trace in any global random state."""
        ...

    def stir_random_states(self) -> None:
        """Let everything that draws draw other numbers from now on."""
        ...

    def to_device(self, data: Any, *, copy: bool = False) -> Any:
        """Nested data with every array on the device; dtypes and containers stay as they are.

        With `copy` nobody else holds the memory of the result: what had to be moved is new anyway,
        and the rest is copied.
        """
        ...

    def signature(self, model: Callable[..., Any]) -> inspect.Signature | None:
        """The parameters that a model takes, where they can be known."""
        ...

    def tensor(self, output: Any) -> Any | None:
        """`output` as an array of this library with `.shape`; None if it is none."""
        ...

    @property
    def tensor_name(self) -> str:
        """What a model must return, as messages name it."""
        ...

    def is_floating(self, tensor: Any) -> bool:
        """Whether the numbers are real floating point numbers."""
        ...

    def dtype_name(self, tensor: Any) -> str:
        """The dtype as a schema names it."""
        ...

    def stack(self, tensors: Sequence[Any]) -> Any:
        """Outputs (N, K) of M members as one (N, M, K)."""
        ...

    def select(self, tensor: Any, selection: Selection) -> Any:
        """What is to be kept of an output, on the device; softmax runs in float32 or wider."""
        ...

    def start_copy(self, tensor: Any) -> Any:
        """Begin to bring a tensor to the host."""
        ...

    def finish_copy(self, copy: Any) -> Array:
        """The array that `start_copy` began to bring; float32 where NumPy lacks the dtype."""
        ...

    def host(self, leaf: Any) -> Any | None:
        """The bytes of an array leaf as a C-contiguous NumPy array of any dtype; None if it is none.

        Of what this side holds back from NumPy until a model takes it: what it holds.
        """
        ...

    def out_of_memory(self, error: BaseException) -> bool:
        """Whether an error says that the device's memory is exhausted."""
        ...

    def free_memory(self) -> None:
        """Give cached device memory back."""
        ...

    def describe(self, model: Callable[..., Any]) -> dict[str, Any]:
        """The identity of a model (DESIGN: identity): its class, tensors and details."""
        ...

    def details(self, function: Callable[..., Any]) -> dict[str, Any]:
        """What a function is made of, as `identity.Details` keeps it."""
        ...

    def software(self) -> dict[str, str]:
        """Versions worth recording; never checked."""
        ...


class NumpyFramework:
    """Models that take and return NumPy arrays, or anything with `__array__` or `__dlpack__`."""

    name = "numpy"
    overlaps = False
    tensor_name = "a NumPy array (or a list of numbers, or anything with __array__ or __dlpack__)"

    def __init__(self, device: str, models: Sequence[Callable[..., Any]]) -> None:
        if device not in ("cpu", "cuda", "gpu", "tpu"):
            raise ArgumentError(
                f"device is {device!r}, expected 'cpu', 'cuda', 'gpu' or 'tpu' (recorded only: "
                "a framework-agnostic model places its data itself)"
            )
        self.device = device
        refuse_torch_modules(models)

    def source(self, data: Any, reading: Reading) -> Source:
        return numpy_source(
            data, reading.batch_size, reading.input_getter, reading.collate_fn, seed=reading.seed
        )

    def running(
        self, models: Sequence[Callable[..., Any]], draws: bool = False
    ) -> AbstractContextManager[None]:
        return kept_random_states()

    def calling(self) -> AbstractContextManager[None]:
        return nullcontext()

    def random_state(self) -> Any:
        return random_state()

    random_parameters = ("rng", "generator", "random_state", "seed")
    how_to_draw = (
        "draw from np.random or random in the model, or let it take a parameter rng, which gets a "
        "np.random.Generator"
    )

    def begin_draw(self, draw: Draw, parameter: str | None) -> dict[str, Any]:
        number = seed_random_states(draw.entropy)
        if parameter is None:
            return {}
        seeded = number % 2**32 if parameter == "seed" else np.random.default_rng(draw.entropy)
        return {parameter: seeded}

    def kept_random_states(self) -> AbstractContextManager[None]:
        return kept_random_states()

    def stir_random_states(self) -> None:
        stir_random_states()

    def to_device(self, data: Any, *, copy: bool = False) -> Any:
        return copied(data) if copy else data

    def signature(self, model: Callable[..., Any]) -> inspect.Signature | None:
        return signature_of(model)

    def tensor(self, output: Any) -> Any | None:
        if isinstance(output, np.ndarray):
            return output
        if isinstance(output, Mapping):
            return None
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

    def dtype_name(self, tensor: Any) -> str:
        return str(tensor.dtype.name)

    def stack(self, tensors: Sequence[Any]) -> Any:
        return np.stack(tensors, axis=1)

    def select(self, tensor: Any, selection: Selection) -> Any:
        wide = tensor.dtype == np.float64 or selection.dtype == "float64"
        x = tensor.astype(np.float64 if wide else np.float32, copy=False)
        if selection.mode == "logits":
            if selection.temperature != 1.0:
                x = x / selection.temperature
            with np.errstate(
                invalid="ignore"
            ):  # a row that is not finite becomes NaN: refused by name
                if selection.kind == "probs":
                    x = simplex.softmax(x)
                elif selection.kind == "log_probs":
                    x = simplex.log_softmax(x)
        elif selection.kind == "log_probs":
            with np.errstate(divide="ignore", invalid="ignore"):
                x = np.log(x)
        return x if selection.dtype == "float64" else x.astype(np.float32, copy=False)

    def start_copy(self, tensor: Any) -> Any:
        return tensor

    def finish_copy(self, copy: Any) -> Array:
        array: Array = copy
        return array.astype(np.float32) if array.dtype.name == "bfloat16" else array

    def host(self, leaf: Any) -> Array | None:
        if is_frame(leaf):
            return None  # by its columns: see `fostore.containers.columns.hashed_parts`
        if isinstance(leaf, (bool, int, float, np.generic)) or hasattr(leaf, "__array__"):
            array = np.ascontiguousarray(leaf).reshape(np.shape(leaf))
            return None if array.dtype == object else array
        return None

    def out_of_memory(self, error: BaseException) -> bool:
        return isinstance(error, MemoryError) or says_out_of_memory(error)

    def free_memory(self) -> None:
        return None

    def describe(self, model: Callable[..., Any]) -> dict[str, Any]:
        if isinstance(model, Adapted):
            return model.describe()
        return identity.describe_callable(model, identity.hash_leaves)

    def details(self, function: Callable[..., Any]) -> dict[str, Any]:
        return identity.Details().of(function)

    def software(self) -> dict[str, str]:
        return {"framework": "numpy", "framework_version": np.__version__}


def _holds_arrays(data: Any) -> bool:
    """Whether nested lists hold arrays, each an output of its own, and not the numbers of one."""
    if not isinstance(data, (list, tuple)):
        return len(getattr(data, "shape", ())) > 0
    if data and isinstance(data[0], (int, float)):
        return False  # numbers, and NumPy refuses to make one array of numbers and arrays
    return any(map(_holds_arrays, data))


_EXHAUSTED = (
    "out of memory",  # CUDA, HIP, MPS, XPU
    "resource_exhausted",  # XLA
    "oom when allocating",  # TensorFlow
    "can't allocate memory",  # torch on a CPU, and on Windows:
    "not enough memory",
    "failed to allocate memory",  # ONNX Runtime, also as "smaller than requested bytes"
    "smaller than requested bytes",
    "bad_alloc",
    "bad allocation",
    "status_alloc_failed",  # cuBLAS, cuDNN
)


def says_out_of_memory(error: BaseException) -> bool:
    """Whether an error's text speaks of exhausted memory, as the libraries put it.

    >>> says_out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried ..."))
    True
    """
    text = str(error).lower()
    return isinstance(error, Exception) and any(words in text for words in _EXHAUSTED)


def copied(data: Any) -> Any:
    """Nested data in memory that nobody else holds; strings and plain numbers stay as they are.

    >>> rows = np.zeros(2)
    >>> np.shares_memory(copied({"x": rows})["x"], rows)
    False
    """
    return map_leaves(copied_leaf, data)


def copied_leaf(leaf: Any) -> Any:
    """One array, or anything else that can copy itself, in memory of its own."""
    if isinstance(leaf, np.ndarray):  # strides stay, since they may decide how sums are rounded
        is_objects = leaf.dtype == object
        return copying.deepcopy(leaf) if is_objects else np.array(leaf, order="K", subok=True)
    # Tensors, graph batches and polars frames clone; JAX, sparse and pandas, images copy.
    clone = getattr(leaf, "clone", None) or getattr(leaf, "copy", None)
    return clone() if callable(clone) and not isinstance(leaf, type) else leaf


def signature_of(model: Callable[..., Any]) -> inspect.Signature | None:
    """The parameters of a callable, or None where Python cannot tell."""
    try:
        return inspect.signature(model)
    except (ValueError, TypeError):
        return None


def refuse_torch_modules(models: Sequence[Callable[..., Any]]) -> None:
    """Point whoever gives a torch module to the generator that knows how to run it.

    A module means that torch is imported already, so looking costs no import.
    """
    torch = sys.modules.get("torch")
    if torch is None:
        return
    for model in models:
        if isinstance(model, torch.nn.Module):
            raise ArgumentError(
                f"the model is a torch module ({type(model).__name__}); use "
                "fostore.torch.FirstOrderDataGenerator, which runs it in evaluation mode and "
                "without gradients"
            )


def device_mapper(place: Callable[[Any], Any], data: Any) -> Any:
    """Nested data with `place` applied to every leaf; None and strings stay as they are."""
    return map_leaves(
        lambda leaf: leaf if leaf is None or isinstance(leaf, str) else place(leaf), data
    )
