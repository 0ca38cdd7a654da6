"""How functions that a user gives stand in an identity: by name, arguments and source."""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Callable
from typing import Any

from fostore.schema.identity.code import filled_cells, is_library, source_of
from fostore.schema.identity.details import Details, See
from fostore.schema.identity.hashing import hash_bytes, hash_leaves

Leaves = Callable[[Any], "dict[str, str] | None"]
"""Entries of the arrays in nested data, by path; None where something in it cannot be hashed."""


def describe_function(function: Callable[..., Any] | None) -> dict[str, Any] | None:
    """A function's qualified name and the hash of its source and of the values that it captured.

    The source is hashed as the syntax tree prints it, so comments and layout do not count.
    """
    if function is None:
        return None
    if isinstance(function, functools.partial):
        inner = describe_function(function.func) or {}
        arguments = hash_leaves([list(function.args), function.keywords])
        text = "opaque" if arguments is None else repr(sorted(arguments.items()))
        return {**inner, "arguments": hash_bytes(text.encode())}
    name = getattr(function, "__qualname__", None) or type(function).__qualname__
    source = _source_hash(inspect.unwrap(function))
    return {"name": name} if source is None else {"name": name, "source": source}


def _source_hash(function: Callable[..., Any]) -> str | None:
    """The hash of a Python function's source and captured plain values; None where there is none."""
    target = _routine_of(function)
    plain = getattr(target, "__func__", target)
    if not isinstance(plain, types.FunctionType) or is_library(str(plain.__module__)):
        return None
    text = source_of(plain)
    if text is None:
        return None
    cells = [cell.cell_contents for cell in filled_cells(plain.__closure__ or ())]
    defaults = [list(plain.__defaults__ or ()), dict(plain.__kwdefaults__ or {})]
    captured = hash_leaves([cells, *defaults])
    values = "" if captured is None else repr(sorted(captured.items()))
    return hash_bytes(f"{text}\n{values}".encode())


def _routine_of(function: Callable[..., Any]) -> Any:
    """The function itself; of an object its `forward` (a torch module's), or else its `__call__`."""
    if inspect.isroutine(function):
        return function
    named = type(function)
    return getattr(named, "forward", None) or getattr(named, "__call__", None)  # noqa: B004


def describe_callable(
    model: Callable[..., Any], leaves: Leaves, see: See | None = None
) -> dict[str, Any]:
    """A model that is a plain callable: its name, the arguments of a `functools.partial` by their
    hashes, and its details.
    """
    named: Any = model
    tensors: dict[str, str] = {}
    while isinstance(named, functools.partial):
        tensors = {**(leaves([list(named.args), named.keywords]) or {}), **tensors}
        named = named.func
    name = getattr(named, "__qualname__", None) or type(named).__qualname__
    described: dict[str, Any] = {"class": name}
    if isinstance(model, functools.partial):
        described["tensors"] = tensors
    return {**described, **Details(see).of(model)}
