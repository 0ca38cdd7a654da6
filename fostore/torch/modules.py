"""Torch modules during generation: found, moved and hashed; `modes` puts them into evaluation mode."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

from fostore.generate.framework import Model
from fostore.generate.reach import reached
from fostore.schema import identity
from fostore.torch.arrays import dtype_name

_REGISTERED = vars(nn.Module()).keys()
"""The attributes in which every module keeps what `modules()` and its kin know."""


def modules_of(models: Sequence[Model]) -> list[nn.Module]:
    """The modules behind models: themselves, or what a function, method or partial refers to."""
    modules: dict[int, nn.Module] = {}
    for model in models:
        for module in _behind(model):
            modules.setdefault(id(module), module)
    return list(modules.values())


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
        named = getattr(function, "__globals__", {})
        for cell in identity.filled_cells(getattr(function, "__closure__", None) or ()):
            if isinstance(cell.cell_contents, nn.Module):
                yield cell.cell_contents
        for name in getattr(getattr(function, "__code__", None), "co_names", ()):
            if isinstance(named.get(name), nn.Module):
                yield named[name]


def modules_within(models: Sequence[Model]) -> list[nn.Module]:
    """Every module that models may run: those of `modules_of`, and those that lie deeper.

    They are put into evaluation mode, but not moved: an object may place its own modules. What hides
    from this search is seen when it runs (`modes`); inside a function that torch has compiled
    already, nothing but this search sees it.
    """
    modules = {id(module): module for module in modules_of(models)}
    looked: set[int] = set()
    waiting: list[Any] = [*modules.values(), *models]
    while waiting:
        new: list[Any] = []
        for item in reached(waiting, lambda item: isinstance(item, nn.Module)):
            if isinstance(item, nn.Module) and id(item) not in looked:
                new += _unregistered(item)
                looked.add(id(item))
                modules.setdefault(id(item), item)
        waiting = new
    return list(modules.values())


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
    """The identity of a model: class, parts and tensors of a module, and its details.

    What `state_dict` keeps as plain tensors decides; quantised weights, extra state, buffers that are
    not persistent, settings, attributes and code are details (see `identity.Details`). Hooks are not: most of
    them only watch, and what others change is seen in the rows.
    """
    if not isinstance(model, nn.Module):
        return identity.describe_callable(model, _leaves, see)
    module = unwrapped(model)
    tensors: dict[str, str] = {}
    state = module.state_dict(keep_vars=True)
    for name, tensor in state.items():
        entry = _entry(tensor) if _is_plain(tensor) else None
        if entry is not None:
            tensors[name] = entry
    details = identity.Details(see, known=[state[name] for name in tensors])
    for name in state.keys() - tensors.keys():
        details.put(f"the state {name!r}", state[name])
    settings: dict[str, dict[str, Any]] = {}
    for name, part in module.named_modules():
        details.look_at_class(type(part))
        if identity.is_of_library(type(part)):  # many: one entry a class
            settings.setdefault(type(part).__qualname__, {})[name] = _settings(part)
        else:
            for key, value in _settings(part).items():
                details.put(f"the attribute {f'{name}.{key}'.lstrip('.')!r}", value)
    for kind, held in settings.items():
        details.put(f"a setting of {kind}", held)
    return {
        "class": type(module).__qualname__,
        "modules": {name: type(part).__qualname__ for name, part in module.named_modules() if name},
        "tensors": tensors,
        **details.result(),
    }


_BASE = frozenset(vars(nn.Module())) | {"training"}


def _settings(module: nn.Module) -> dict[str, Any]:
    """What a module holds beside what `state_dict` keeps, and beside the modules in it."""
    held = {
        name: value
        for name, value in identity.attributes_of(module).items()
        if name not in _BASE and not (name.startswith("_") and identity.is_of_library(type(module)))
    }
    buffers = {name: module._buffers[name] for name in sorted(module._non_persistent_buffers_set)}
    code = getattr(module, "code", None)  # of scripted and exported modules
    settings = {**held, **buffers}
    return {**settings, "code": code} if isinstance(code, str) else settings


def see(item: Any) -> Any:
    """See `identity.See`."""
    if isinstance(item, torch.Tensor):
        return _entry(item) or identity.UNSEEN
    if isinstance(item, nn.Module):
        module = unwrapped(item)
        held = {**module._parameters, **module._buffers, **module._modules}
        extra = getattr(type(module), "get_extra_state", nn.Module.get_extra_state)
        if extra is not nn.Module.get_extra_state:
            held["extra state"] = module.get_extra_state()
        return {**held, **_settings(module)}
    compiled = getattr(item, "_torchdynamo_orig_callable", None)
    if compiled is not None:  # what torch.compile holds beside it is the compiler's, and moves
        return {"function": compiled}
    if isinstance(item, torch.device):
        return "a device"  # recorded elsewhere, and never compared
    if isinstance(item, (torch.dtype, torch.layout, torch.memory_format, torch.Size)):
        return str(item)
    return None


def _is_plain(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and not value.is_quantized


def _entry(tensor: torch.Tensor) -> str | None:
    try:
        if tensor.is_quantized:
            return _quantised(tensor)
        flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    except (RuntimeError, TypeError, NotImplementedError, ValueError):
        return None  # sparse, or not initialised yet
    return identity.array_entry(dtype_name(tensor), tuple(tensor.shape), flat)


def _quantised(tensor: torch.Tensor) -> str:
    if tensor.qscheme() in (torch.per_tensor_affine, torch.per_tensor_symmetric):
        scales = f"{tensor.q_scale()} {tensor.q_zero_point()}"
    else:
        channels = tensor.q_per_channel_scales(), tensor.q_per_channel_zero_points()
        scales = repr([part.tolist() for part in channels])
    integers = tensor.detach().cpu().int_repr().contiguous().numpy()
    data = integers.tobytes() + scales.encode()
    return identity.array_entry(dtype_name(tensor), tuple(tensor.shape), data)


def _parts(item: Any) -> Any:
    """What `identity.hash_leaves` is to know of torch: tensors, and modules by what they keep."""
    if isinstance(item, nn.Module):
        return {f".{name}": one for name, one in item.state_dict().items() if _is_plain(one)}
    return (_entry(item) or identity.UNSEEN) if isinstance(item, torch.Tensor) else None


_leaves = functools.partial(identity.hash_leaves, parts=_parts)
