"""What a callable can reach: the objects behind functions, partials, methods and containers."""

from __future__ import annotations

import functools
import inspect
import types
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any

from fostore.schema import identity

_DEPTH, _MANY, _MOST = 6, 256, 20_000
"""How far is looked: steps, items of one container, things in all."""
_PLAIN = (int, float, complex, str, bytes, type(None), types.BuiltinFunctionType)
_LIBRARIES = ("builtins", "collections", "functools", "numpy", "scipy", "torch", "jax", "flax")
"""Whose functions and classes hold no model of a user's."""


def reached(models: Iterable[Any], is_end: Callable[[Any], bool]) -> Iterator[Any]:
    """Every object behind models, once; what `is_end` says yes to is not looked into.

    No code of the user's runs for it: properties are not asked, iterators not moved. What hides
    behind such code is not found.
    """
    seen: dict[int, Any] = {}  # the objects too: an id is free again once its object is gone
    # breadth first: what is near is found before the limits end the search
    waiting = deque((model, _DEPTH) for model in models)
    while waiting and len(seen) < _MOST:
        item, depth = waiting.popleft()
        if isinstance(item, _PLAIN) or id(item) in seen:
            continue
        seen[id(item)] = item
        yield item
        if depth and not is_end(item):
            waiting.extend((part, depth - 1) for part in _parts(item))


def _parts(item: Any) -> list[Any]:
    if isinstance(item, (list, tuple, deque, set, frozenset)):
        return list(islice(item, _MANY))
    if isinstance(item, dict):  # of no other mapping: it may read its values from a disk
        return list(islice(dict.values(item), _MANY))
    if isinstance(item, weakref.ref):
        return [item()]
    if isinstance(item, functools.partial):
        return [item.func, *item.args, *item.keywords.values()]
    if isinstance(item, types.MethodType):
        return [item.__self__, item.__func__]
    if isinstance(item, property):
        return [item.fget]
    if isinstance(item, (staticmethod, classmethod)):
        return [item.__func__]
    if isinstance(item, types.FunctionType):
        return _of_function(item)
    if isinstance(item, (type, types.ModuleType)) or _is_array(item):
        return []  # of these only what a function names: see _of_function
    return _of_object(item)


def _of_function(function: types.FunctionType) -> list[Any]:
    """What it closes over, its defaults, and the globals that it names, with their attributes."""
    wrapped = [function.__wrapped__] if hasattr(function, "__wrapped__") else []
    cells = [cell.cell_contents for cell in identity.filled_cells(function.__closure__ or ())]
    defaults = [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
    if _is_library(function.__module__):
        return [*wrapped, *cells, *defaults]
    names = list(_names(function.__code__))
    named_globals = [function.__globals__[name] for name in names if name in function.__globals__]
    for owner in [*named_globals, *cells]:
        named = owner.__name__ if isinstance(owner, types.ModuleType) else None
        if isinstance(owner, type):
            named = owner.__module__
        if named is not None and not _is_library(named):
            named_globals += [inspect.getattr_static(owner, name, None) for name in names]
    return [*wrapped, *cells, *defaults, *named_globals]


def _of_object(item: Any) -> list[Any]:
    """Its attributes and slots, those of its classes, and what it wraps."""
    held = list(islice(getattr(item, "__dict__", {}).values(), _MANY))
    for cls in type(item).__mro__:
        if _is_library(cls.__module__):
            continue
        for name, value in islice(vars(cls).items(), _MANY):
            if isinstance(value, types.MemberDescriptorType):
                value = getattr(item, name, None)  # a slot
            held.append(value)
    if inspect.getattr_static(item, "__wrapped__", None) is None:
        return held
    return [*held, getattr(item, "__wrapped__", None)]  # a jit function of JAX has no __dict__


def _names(code: types.CodeType) -> Iterator[str]:
    yield from code.co_names
    for const in code.co_consts:
        if isinstance(const, types.CodeType):  # a comprehension, a function inside
            yield from _names(const)


def _is_library(module: str | None) -> bool:
    return (module or "").partition(".")[0] in _LIBRARIES


def _is_array(item: Any) -> bool:
    return hasattr(type(item), "shape") and hasattr(type(item), "dtype")
