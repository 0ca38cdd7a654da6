"""Torch modules during generation: found, moved and hashed; `modes` puts them into evaluation mode."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import nn

from fostore import identity
from fostore.generate.reach import reached

Model = Callable[..., Any]
_REGISTERED = vars(nn.Module()).keys()
"""The attributes in which every module keeps what `modules()` and its kin know."""


def modules_of(models: Sequence[Model]) -> list[nn.Module]:
    """The modules behind models: themselves, or what a function, method or partial refers to."""
    found: dict[int, nn.Module] = {}
    for model in models:
        for module in _behind(model):
            found.setdefault(id(module), module)
    return list(found.values())


def _behind(model: Any) -> Iterator[nn.Module]:
    if isinstance(model, nn.Module):
        yield model
    elif isinstance(model, functools.partial):
        for part in (model.func, *model.args, *model.keywords.values()):
            yield from _behind(part)
    else:
        owner = getattr(model, "__self__", None)
        if isinstance(owner, nn.Module):
            yield owner
        function = getattr(model, "__func__", model)
        cells = list(getattr(function, "__closure__", None) or ())
        named = getattr(function, "__globals__", {})
        for cell in cells:
            try:
                inner = cell.cell_contents
            except ValueError:  # bound later
                continue
            if isinstance(inner, nn.Module):
                yield inner
        for name in getattr(getattr(function, "__code__", None), "co_names", ()):
            if isinstance(named.get(name), nn.Module):
                yield named[name]


def modules_within(models: Sequence[Model]) -> list[nn.Module]:
    """Every module that models may run: those of `modules_of`, and those that lie deeper.

    They are put into evaluation mode, but not moved: an object may place its own modules. What hides
    from this search is seen when it runs (`modes`); inside a function that torch has compiled
    already, nothing but this search sees it.
    """
    found = {id(module): module for module in modules_of(models)}
    looked: set[int] = set()
    waiting: list[Any] = [*found.values(), *models]
    while waiting:
        new: list[Any] = []
        for item in reached(waiting, lambda item: isinstance(item, nn.Module)):
            if isinstance(item, nn.Module) and id(item) not in looked:
                new += _unregistered(item)
                looked.add(id(item))
                found.setdefault(id(item), item)
        waiting = new
    return list(found.values())


def _unregistered(module: nn.Module) -> Iterator[Any]:
    """What a module and its submodules hold beside parameters, buffers and submodules."""
    for part in module.modules():
        yield from (value for name, value in vars(part).items() if name not in _REGISTERED)


def unwrapped(module: nn.Module) -> nn.Module:
    """The module inside torch.compile, DataParallel and their like."""
    while True:
        inner = getattr(module, "_orig_mod", None)
        if inner is None and isinstance(
            module, (nn.DataParallel, nn.parallel.DistributedDataParallel)
        ):
            inner = module.module
        if not isinstance(inner, nn.Module):
            return module
        module = inner


def move(module: nn.Module, device: torch.device) -> None:
    """Bring a module to `device`; from an accelerator to the CPU (the default device) with a warning.

    A module that is spread over several devices stays where it is.
    """
    places = {tensor.device for tensor in (*module.parameters(), *module.buffers())}
    if len(places) != 1:
        return
    (place,) = places
    index: Any = device.index  # None stands for the current one, which torch's types leave out
    same_index = index is None or place.index == index
    if place.type == device.type and same_index:
        return
    if place.type != "cpu":
        warnings.warn(
            f"the model sits on {place} and device is '{device}': it is moved there "
            f"(say device='{place}' to run it where it is)",
            stacklevel=4,
        )
    module.to(device)


def describe(model: Model) -> dict[str, Any]:
    """The identity of a model: class, parts and tensors of a module; else opaque (see `identity`)."""
    if not isinstance(model, nn.Module):
        return identity.describe_callable(model, _leaves)
    module = unwrapped(model)
    tensors: dict[str, str] = {}
    opaque = False
    for name, tensor in module.state_dict().items():
        entry = _entry(tensor) if isinstance(tensor, torch.Tensor) else None
        if entry is None:
            opaque = opaque or isinstance(tensor, torch.Tensor)
        else:
            tensors[name] = entry
    described: dict[str, Any] = {
        "class": type(module).__qualname__,
        "modules": {name: type(part).__qualname__ for name, part in module.named_modules() if name},
        "tensors": tensors,
        "details": _details(module),
    }
    # A module without a tensor may still hold numbers; only what it gives can tell.
    return {**described, "opaque": True} if opaque or not tensors else described


def _details(module: nn.Module) -> str:
    """What a state_dict leaves out: buffers that are not persistent, settings, the code of forward.

    See `identity.details_of` for what a difference means.
    """
    kept = module.state_dict().keys()
    buffers = [(n, _entry(b)) for n, b in module.named_buffers() if n not in kept]
    settings = [(n, part.extra_repr()) for n, part in module.named_modules()]
    codes = [getattr(type(part).forward, "__code__", None) for part in module.modules()]
    code = [c.co_code.hex() for c in codes if c is not None]
    return identity.hash_bytes(repr((buffers, settings, code)).encode())


def _entry(tensor: torch.Tensor) -> str | None:
    try:
        flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    except (RuntimeError, TypeError, NotImplementedError, ValueError):
        return None  # quantised, sparse, or not initialised yet
    return identity.array_entry(str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape), flat)


def _leaves(data: Any) -> dict[str, str] | None:
    """Entries of the tensors, modules and plain values in nested data, by path."""
    entries: dict[str, str] = {}

    def collect(item: Any, path: str) -> bool:
        if isinstance(item, nn.Module):
            return all(collect(t, f"{path}.{name}") for name, t in item.state_dict().items())
        if isinstance(item, torch.Tensor):
            entry = _entry(item)
            if entry is not None:
                entries[path] = entry
            return entry is not None
        if isinstance(item, dict):
            return all(collect(part, f"{path}[{key!r}]") for key, part in item.items())
        if isinstance(item, (list, tuple)):
            return all(collect(part, f"{path}[{i}]") for i, part in enumerate(item))
        plain = identity.hash_leaves(item)
        if plain is not None:
            entries.update({f"{path}{name}": entry for name, entry in plain.items()})
        return plain is not None

    return entries if collect(data, "") else None
