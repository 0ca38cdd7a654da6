"""Reading and moving ahead of a torch loop: what a thread must know of its caller, and batches on a device."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, closing
from functools import partial
from typing import Any, TypeVar

import torch
from torch.utils.data._utils.pin_memory import pin_memory

from fostore.errors import ArgumentError
from fostore.loading.prefetch import ahead, random_states
from fostore.nested import leaves, map_leaves
from fostore.schema.integers import integer
from fostore.torch.framework import find_device, to_device

_T = TypeVar("_T")


def torch_states() -> Any:
    """What tells whether Python's, NumPy's or torch's global random numbers were drawn."""
    return random_states(), torch.get_rng_state().numpy().tobytes()  # tensors compare one by one


def with_modes(function: Callable[..., _T]) -> Callable[..., _T]:
    """`function` under the caller's modes, in whichever thread it runs.

    torch keeps gradient mode, inference mode, autocast and the default device for each thread apart.
    """
    modes: list[Callable[[], AbstractContextManager[Any]]] = []
    if torch.is_inference_mode_enabled():
        modes.append(torch.inference_mode)
    elif not torch.is_grad_enabled():
        modes.append(torch.no_grad)
    default = torch.get_default_device()
    if default.type != "cpu":
        modes.append(lambda: default)
    for kind in {"cpu", _accelerator() or "cpu"}:
        if torch.is_autocast_enabled(kind):
            dtype = torch.get_autocast_dtype(kind)
            modes.append(partial(torch.autocast, kind, dtype))
    if not modes:
        return function

    def call(*args: Any) -> _T:
        with ExitStack() as stack:
            for mode in modes:
                stack.enter_context(mode())
            return function(*args)

    return call


def can_pin() -> bool:
    """Whether there is an accelerator that page-locked memory helps."""
    return _accelerator() not in (None, "mps")


def _accelerator() -> str | None:
    if not torch.accelerator.is_available():
        return None
    device = torch.accelerator.current_accelerator()
    return None if device is None else device.type


class DevicePrefetcher:
    """Batches of a loader on a device, up to `depth` of them moved ahead; see `prefetch_to_device`."""

    def __init__(self, loader: Iterable[Any], device: str | torch.device, depth: int) -> None:
        self.loader = loader
        self.device = find_device(device)
        self.depth = integer(depth, "depth", 0)
        self._state: Any = None

    def __len__(self) -> int:
        return len(self.loader)  # type: ignore[arg-type]  # where the loader has a length

    def __iter__(self) -> Iterator[Any]:
        move, arrive = self._by_stream() if self.device.type == "cuda" else (self._to_device, None)
        with closing(ahead(self._counted(move), self.depth, torch_states)) as ready:
            for moved, state in ready:
                self._state = state
                yield moved if arrive is None else arrive(moved)
        self._state = None

    def state_dict(self) -> Any:
        """The loader's state after the batches that were handed out here, not those moved ahead.

        Raises:
            ArgumentError: the loader has no state.
        """
        return self._snapshot() if self._state is None else self._state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there with the next iteration.

        Raises:
            ArgumentError: the state does not fit the loader, or it takes none.
        """
        load = getattr(self.loader, "load_state_dict", None)
        if load is None:
            raise ArgumentError(f"{type(self.loader).__name__} has no load_state_dict")
        load(state)
        self._state = None

    def set_epoch(self, epoch: int) -> None:
        """Make the next iteration this epoch, where the loader knows epochs."""
        set_epoch = getattr(self.loader, "set_epoch", None)
        if set_epoch is not None:
            set_epoch(epoch)
            self._state = None

    def _snapshot(self) -> Any:
        state_dict = getattr(self.loader, "state_dict", None)
        if state_dict is None:
            raise ArgumentError(f"{type(self.loader).__name__} has no state_dict")
        return state_dict()

    def _counted(self, move: Callable[[Any], _T]) -> Iterator[tuple[_T, Any]]:
        """Moved batches, each with the loader's state after it."""
        has_state = callable(getattr(self.loader, "state_dict", None))
        batches = iter(self.loader)
        move = with_modes(move)
        return ((move(one), self._snapshot() if has_state else None) for one in batches)

    def _to_device(self, batch: Any) -> Any:
        return to_device(batch, self.device)

    def _by_stream(self) -> tuple[Callable[[Any], Any], Callable[[Any], Any]]:
        """Copies on a stream of their own, from page-locked memory, so that the caller's goes on.

        What starts a batch's copy, and what gives the batch to the caller's stream.
        """
        side = torch.cuda.Stream(self.device)

        def send(leaf: Any) -> Any:
            if not isinstance(leaf, torch.Tensor):
                return leaf
            source = leaf.pin_memory() if leaf.device.type == "cpu" else leaf
            return source.to(self.device, non_blocking=True)

        def move(batch: Any) -> tuple[Any, torch.cuda.Event]:
            with torch.cuda.device(self.device), torch.cuda.stream(side):
                moved = map_leaves(send, batch)
                done = torch.cuda.Event()
                done.record(side)
            return moved, done

        def arrive(sent: tuple[Any, torch.cuda.Event]) -> Any:
            batch, done = sent
            stream = torch.cuda.current_stream(self.device)
            stream.wait_event(done)
            for _, leaf in leaves(batch):
                if isinstance(leaf, torch.Tensor) and leaf.is_cuda:
                    # Made on the side stream: its memory must not be given to the next copy there
                    # while the caller's stream still reads it.
                    leaf.record_stream(stream)
            return self._to_device(batch)  # objects that move themselves, on the caller's stream

        return move, arrive


def to_pinned(batch: Any) -> Any:
    """Nested data with every CPU tensor in page-locked memory, from where copies do not block."""
    return pin_memory(batch)


def prefetch_to_device(
    loader: Iterable[Any], device: str | torch.device, depth: int = 2
) -> DevicePrefetcher:
    """The batches of a loader on a device, in their order, moved there ahead of the loop.

    A thread draws from the loader and moves; on CUDA it copies from page-locked memory on a stream
    of its own, which the caller's stream waits for. Errors are raised where their batch would have
    come; leaving early ends the thread. Ask the result for `state_dict`, not the loader, which is
    ahead.

    Args:
        loader: any iterable of batches: tensors, or dicts, lists and tuples of them.
        device: "cuda", "cuda:1", "cpu", ...
        depth: batches moved beyond the one in use; 0 moves each when it is asked for.

    Raises:
        ArgumentError: torch has no such device, or `depth` is no number of batches.

    >>> loader = [torch.zeros(2), torch.ones(2)]
    >>> [batch.tolist() for batch in prefetch_to_device(loader, "cpu")]
    [[0.0, 0.0], [1.0, 1.0]]
    """
    return DevicePrefetcher(loader, device, depth)
