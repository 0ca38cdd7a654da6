"""The seam between the one generation loop and an array library.

A framework is one subclass and one generator that makes it; what a library does not do differently
stands here already.
"""

from __future__ import annotations

import inspect
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from fostore.containers.columns import is_frame
from fostore.encodings import encoding_of
from fostore.errors import ArgumentError
from fostore.generate.memory import says_out_of_memory
from fostore.generate.randomness import (
    Draw,
    kept_random_states,
    random_state,
    seed_random_states,
    stir_random_states,
)
from fostore.generate.samples import Reading, Samples
from fostore.schema import identity
from fostore.schema.row import Array, Schema

Model = Callable[..., Any]


@dataclass(frozen=True, slots=True)
class Kept:
    """What is kept of a model's output.

    `mode` is what the model gives ("logits" or "probs"; one a member where members differ), `kind`
    what is kept ("probs", "log_probs" or "logits"; "auto" until the mode is known), `dtype` the dtype
    of the store; logits are divided by `temperature`. `encoding` is the spec of a store that asked for
    one. A framework's `keep` sees one mode and one kind.
    """

    mode: str | tuple[str, ...]
    kind: str = "probs"
    dtype: str = "float32"
    temperature: float = 1.0
    encoding: Mapping[str, Any] | None = None


class Framework(ABC):
    """What the generation loop asks of an array library.

    `tensor`, `stack`, `keep`, `encode` and `start_copy` run in the caller's thread, on the device;
    `finish_copy` may run in another one where `overlaps` is true. Nothing here changes values
    except `keep` and `encode`, and nothing draws random numbers that outlive `running`.
    """

    name: ClassVar[str]
    version: ClassVar[str]
    tensor_name: ClassVar[str]
    """What a model must return, as messages name it."""
    how_to_draw: ClassVar[str]
    """What makes a model draw, for messages."""
    device: str
    overlaps = False
    """Whether copying to the host and writing go on beside the next batch (an accelerator)."""

    compiles: ClassVar[bool] = False
    """Whether arrays of a new shape cost a compilation, so that rows had better come in few shapes."""

    @abstractmethod
    def samples(self, data: Any, reading: Reading) -> Samples:
        """What is iterated: a dataset, a stream or a loader.

        Raises ArgumentError for what is no dataset, and for a loader whose order is not known.
        """

    # Models

    @abstractmethod
    def running(self, models: Sequence[Model], draws: bool = False) -> AbstractContextManager[None]:
        """Models on the device, in evaluation mode, without gradients; all as before afterwards.

        With `draws` what draws random numbers on purpose (dropout) stays on. The random states of
        the library, NumPy and Python are restored as well.
        """

    def calling(self) -> AbstractContextManager[None]:
        """Around each call of a model or a transform: what only then can be seen to train is caught."""
        return nullcontext()

    def signature(self, model: Model) -> inspect.Signature | None:
        """The parameters that a model takes, where they can be known."""
        try:
            return inspect.signature(model)
        except (ValueError, TypeError):
            return None

    @abstractmethod
    def describe(self, model: Model) -> dict[str, Any]:
        """The identity of a model (spec/core.md, Identity): its class, tensors and details."""

    def see(self, item: Any) -> Any:
        """How identities see this library's objects: see `identity.See`."""
        return None

    def details(self, function: Model) -> dict[str, Any]:
        """What a function is made of, as `identity.Details` keeps it."""
        return identity.Details(self.see).of(function)

    def software(self) -> dict[str, str]:
        """Versions worth recording; never checked."""
        return {"framework": self.name, "framework_version": self.version}

    # Random states

    def random_state(self) -> Any:
        """Where the random states stand that a model may draw from; comparable with `==`."""
        return random_state()

    @property
    @abstractmethod
    def random_parameters(self) -> Mapping[str, Callable[[Draw], Any]]:
        """The parameters by which a model takes its randomness, and what one gets in a draw."""

    def begin_draw(self, draw: Draw) -> None:
        """Set every random state to a function of `draw`."""
        seed_random_states(draw.entropy)

    def kept_random_states(self) -> AbstractContextManager[None]:
        """A block whose draws leave no trace in any global random state."""
        return kept_random_states()

    def stir_random_states(self) -> None:
        """Let everything that draws draw other numbers from now on."""
        stir_random_states()

    # Arrays

    @abstractmethod
    def to_device(self, data: Any, *, copy: bool = False) -> Any:
        """Nested data with every array on the device; dtypes and containers stay as they are.

        With `copy` nobody else holds the memory of the result: what had to be moved is new anyway,
        and the rest is copied.
        """

    @abstractmethod
    def tensor(self, output: Any) -> Any | None:
        """`output` as an array of this library with `.shape`; None if it is none."""

    @abstractmethod
    def is_floating(self, tensor: Any) -> bool:
        """Whether the numbers are real floating point numbers."""

    def dtype_name(self, tensor: Any) -> str:
        """The dtype as a schema names it."""
        return str(tensor.dtype.name)

    @abstractmethod
    def stack(self, tensors: Sequence[Any]) -> Any:
        """Outputs (N, K) of M members as one (N, M, K)."""

    @abstractmethod
    def keep(self, tensor: Any, kept: Kept) -> Any:
        """What is to be kept of an output, on the device; softmax runs in float32 or wider."""

    def encode(self, tensor: Any, schema: Schema) -> Any:
        """What an encoding needs of rows that are kept, chosen on the device: k numbers a row, or the tensor itself.

        On a CPU NumPy selects, when rows are written: there an error names its row.
        """
        asked = encoding_of(schema).selects(schema) if self.overlaps else None
        if asked is None or schema.kind != "logits":
            return tensor
        entropy = any(column.name == "tail_entropy" for column in schema.content)
        return self.select(tensor, *asked, entropy)

    def select(self, logits: Any, k: int, temperatures: Sequence[float], entropy: bool) -> Any:
        """The k largest logits of each row and what the rest weighs (`Selected`), where this side selects."""
        return logits

    def start_copy(self, tensor: Any) -> Any:
        """Begin to bring a tensor to the host."""
        return tensor

    def finish_copy(self, copy: Any) -> Array:
        """The array that `start_copy` began to bring; float32 where NumPy lacks the dtype."""
        array = np.asarray(copy)
        return array if array.dtype.kind in "fiu" else array.astype(np.float32)

    def fetch(self, *tensors: Any) -> Array:
        """Tensors on the host, one below the other."""
        parts = [self.finish_copy(self.start_copy(tensor)) for tensor in tensors]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def host(self, leaf: Any) -> Any | None:
        """The bytes of an array leaf as a C-contiguous NumPy array of any dtype; None if it is none.

        Of what this side holds back from NumPy until a model takes it: what it holds.
        """
        # a frame is hashed by its columns: see `fostore.containers.columns.hashed_parts`
        if is_frame(leaf) or not hasattr(leaf, "__array__"):
            return None
        array = np.asarray(leaf)
        # `ascontiguousarray` alone makes one axis of none
        return None if array.dtype == object else np.ascontiguousarray(array).reshape(array.shape)

    def held(self, leaf: Any) -> Any:
        """What `host` gives of a leaf; the leaf itself where that is nothing."""
        array = self.host(leaf)
        return leaf if array is None else array

    def out_of_memory(self, error: BaseException) -> bool:
        """Whether an error says that the device's memory is exhausted."""
        return isinstance(error, MemoryError) or says_out_of_memory(error)

    def free_memory(self) -> None:  # noqa: B027  # most libraries keep none back
        """Give cached device memory back."""


def refuse_torch_modules(models: Sequence[Model]) -> None:
    """Point whoever gives a torch module to the generator that knows how to run it.

    A module means that torch is imported already, so looking costs no import.
    """
    torch: Any = sys.modules.get("torch")
    for model in models if torch is not None else ():
        if isinstance(model, torch.nn.Module):
            raise ArgumentError(
                f"the model is a torch module ({type(model).__name__}); use "
                "fostore.torch.FirstOrderDataGenerator, which runs it in evaluation mode and "
                "without gradients"
            )
