"""The torch side of generation: devices, evaluation mode, softmax on the device, copies to the host."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import torch

from fostore.errors import ArgumentError
from fostore.generate.framework import Framework, Kept, Model
from fostore.generate.memory import copied_leaf
from fostore.generate.randomness import Draw
from fostore.generate.samples import Reading, Samples
from fostore.nested import Arrays, map_leaves
from fostore.schema.row import Array
from fostore.torch import modules
from fostore.torch.arrays import Held, dtype_name
from fostore.torch.modes import Modes
from fostore.torch.samples import torch_samples
from fostore.torch.topk import select_topk

_FLOATS = {"float16": torch.float16, "float64": torch.float64}


class TorchFramework(Framework):
    """See `fostore.generate.framework.Framework`."""

    name = "torch"
    version = str(torch.__version__)
    tensor_name = "a torch.Tensor"
    how_to_draw = (
        "let the model hold dropout (torch.nn.Dropout and its kin), draw from torch's global "
        "generator, or take a parameter generator, which gets a torch.Generator on its device"
    )

    def __init__(self, device: str | torch.device) -> None:
        self._device = find_device(device)
        self.device = str(self._device)
        self.overlaps = self._device.type == "cuda"
        self._modes = Modes()

    def samples(self, data: Any, reading: Reading) -> Samples:
        return torch_samples(data, reading)

    # Models

    @contextmanager
    def running(self, models: Sequence[Model], draws: bool = False) -> Iterator[None]:
        for module in modules.modules_of(models):
            modules.move(module, self._device)
        every = modules.modules_within(models)
        self._modes = Modes(draws)
        with self.kept_random_states(), self._modes.of(every), torch.no_grad():
            yield

    def calling(self) -> AbstractContextManager[None]:
        return self._modes.watched()

    def signature(self, model: Model) -> inspect.Signature | None:
        if isinstance(model, torch.nn.Module):
            model = modules.unwrapped(model).forward
        return super().signature(model)

    def describe(self, model: Model) -> dict[str, Any]:
        return modules.describe(model)

    def see(self, item: Any) -> Any:
        return modules.see(item)

    # Random states

    @property
    def random_parameters(self) -> Mapping[str, Callable[[Draw], Any]]:
        def generator(draw: Draw) -> torch.Generator:
            return torch.Generator(self._device).manual_seed(draw.seed64())

        return {"generator": generator, "seed": Draw.seed32}

    def begin_draw(self, draw: Draw) -> None:
        super().begin_draw(draw)
        self._seed_accelerators(draw.seed64())

    def stir_random_states(self) -> None:
        super().stir_random_states()
        self._seed_accelerators(int(torch.randint(1 << 62, ())))

    def _seed_accelerators(self, seed: int) -> None:
        if self._draws_on_cuda():
            torch.cuda.manual_seed_all(seed)
        if self._device.type == "mps":
            torch.mps.manual_seed(seed)

    @contextmanager
    def kept_random_states(self) -> Iterator[None]:
        with ExitStack() as stack:
            stack.enter_context(super().kept_random_states())
            if self._draws_on_cuda():
                stack.callback(torch.cuda.set_rng_state_all, torch.cuda.get_rng_state_all())
            if self._device.type == "mps":
                stack.callback(torch.mps.set_rng_state, torch.mps.get_rng_state())
            yield

    def random_state(self) -> Any:
        states = torch.cuda.get_rng_state_all() if self._draws_on_cuda() else []
        if self._device.type == "mps":
            states = [torch.mps.get_rng_state()]
        return super().random_state(), [state.numpy().tobytes() for state in states]

    def _draws_on_cuda(self) -> bool:
        if self._device.type == "cuda":
            return True
        # asking an idle CUDA for its states would initialise it, which costs seconds and memory
        return torch.cuda.is_available() and bool(torch.cuda.is_initialized())

    # Arrays

    def to_device(self, data: Any, *, copy: bool = False) -> Any:
        return to_device(data, self._device, copy=copy)

    def tensor(self, output: Any) -> Any | None:
        return output.detach() if isinstance(output, torch.Tensor) else None

    def is_floating(self, tensor: Any) -> bool:
        return bool(tensor.is_floating_point())

    def dtype_name(self, tensor: Any) -> str:
        return dtype_name(tensor)

    def stack(self, tensors: Sequence[Any]) -> Any:
        return torch.stack(tuple(tensors), dim=1)

    def keep(self, tensor: Any, kept: Kept) -> Any:
        wide = tensor.dtype == torch.float64 or kept.dtype == "float64"
        x = tensor.to(torch.float64 if wide else torch.float32)
        if kept.mode == "logits":
            if kept.temperature != 1.0:
                x = x / kept.temperature
            if kept.kind == "probs":
                x = torch.softmax(x, dim=-1)
            elif kept.kind == "log_probs":
                x = torch.log_softmax(x, dim=-1)
        elif kept.kind == "log_probs":
            x = torch.log(x)
        # half of the bytes to the host; logits and logarithms are rounded by the encoding
        halved = kept.dtype == "float16" and kept.kind == "probs"
        return x.to(_FLOATS[kept.dtype] if halved or kept.dtype == "float64" else torch.float32)

    def select(self, logits: Any, k: int, temperatures: Sequence[float], entropy: bool) -> Any:
        return select_topk(logits, k, temperatures, tail_entropy=entropy)

    def start_copy(self, tensor: Any) -> Any:
        if tensor.device.type != "cuda":
            return tensor, None, None
        # Only a copy into pinned memory leaves the caller's thread free while it runs.
        pinned = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        pinned.copy_(tensor, non_blocking=True)
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(tensor.device))
        return pinned, event, tensor  # the source lives until the copy is done

    def finish_copy(self, copy: Any) -> Array:
        tensor, event, _ = copy
        if event is not None:
            event.synchronize()
        return _numpy_of(tensor)

    def host(self, leaf: Any) -> Any | None:
        if isinstance(leaf, torch.Tensor):
            return _raw_numpy(leaf)
        return leaf.numbers if isinstance(leaf, Held) else None

    def out_of_memory(self, error: BaseException) -> bool:
        return isinstance(error, torch.OutOfMemoryError) or super().out_of_memory(error)

    def free_memory(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.empty_cache()


def find_device(device: str | torch.device) -> torch.device:
    """The device that a name means: "cpu", "cuda", "cuda:1", "gpu" (whatever there is), "mps" ..."""
    name = str(device)
    if name == "gpu":
        name = (
            "mps" if not torch.cuda.is_available() and torch.backends.mps.is_available() else "cuda"
        )
    if name == "tpu":
        name = "xla"
    try:
        place = torch.device(name)
    except RuntimeError as error:
        raise ArgumentError(
            f"device is {name!r}, expected 'cpu', 'cuda', 'cuda:1', 'gpu' or 'tpu'"
        ) from error
    if place.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (place.index or 0) >= count:
            has = "no CUDA device" if count == 0 else f"{count} CUDA devices"
            raise ArgumentError(
                f"device is {str(device)!r}, and torch finds {has}; use device='cpu', or "
                "'cuda' if torch.cuda.is_available() else 'cpu'"
            )
    elif place.type == "mps" and not torch.backends.mps.is_available():
        raise ArgumentError(
            f"device is {str(device)!r}, and torch finds no Metal device; use 'cpu'"
        )
    elif place.type != "cpu":
        try:
            torch.empty(0, device=place)
        except (RuntimeError, NotImplementedError, AssertionError) as error:
            raise ArgumentError(
                f"device is {str(device)!r}, and this torch has no such device; use 'cpu'"
            ) from error
    return place


def to_device(data: Any, device: str | torch.device, *, copy: bool = False) -> Any:
    """Nested data (dicts, lists, tuples, named tuples) with every tensor on `device`.

    Dtypes and containers stay as they are, and so does everything that has no `.to`. Objects that
    move themselves (a `BatchEncoding`, a graph batch) are asked to. With `copy`, also what lies on
    the device already comes in memory of its own.

    >>> to_device({"ids": [torch.ones(2, dtype=torch.int64)], "text": "a"}, "cpu")
    {'ids': [tensor([1, 1])], 'text': 'a'}
    """
    place = torch.device(device) if isinstance(device, str) else device
    if isinstance(data, torch.Tensor):
        return data.to(place, non_blocking=True, copy=copy)
    is_nested = isinstance(data, (dict, list, tuple, Arrays))
    moves_itself = callable(getattr(data, "to", None)) and not is_nested
    if moves_itself and not (copy and isinstance(data, Mapping)):
        return (copied_leaf(data) if copy else data).to(place)

    def move(leaf: Any) -> Any:
        if isinstance(leaf, torch.Tensor):
            return leaf.to(place, non_blocking=True, copy=copy)
        own = copied_leaf(leaf) if copy else leaf
        return own.to(place) if callable(getattr(own, "to", None)) else own

    return map_leaves(move, data)


def _numpy_of(tensor: torch.Tensor) -> Array:
    """A tensor's numbers as a NumPy array, a view where it lies on the CPU; bfloat16 as float32."""
    tensor = tensor.detach().cpu()
    if tensor.dtype == torch.bfloat16 or tensor.dtype not in _NUMPY:
        tensor = tensor.float()
    array: Array = tensor.resolve_conj().resolve_neg().numpy()
    return array


_NUMPY = {torch.float16, torch.float32, torch.float64, torch.int32, torch.int64}


def _raw_numpy(tensor: torch.Tensor) -> Array | None:
    """A tensor's bytes as a C-contiguous NumPy array (bfloat16 as uint16); None where it has none."""
    try:
        tensor = tensor.detach().cpu().contiguous()
        if tensor.dtype == torch.bfloat16:
            return tensor.view(torch.int16).numpy().view("uint16")
        array: Array = tensor.numpy()
    except (RuntimeError, TypeError, NotImplementedError):  # sparse, quantised, float8
        return None
    return array
