"""What a model or a function is made of beside its tensors: code, attributes, captured values, globals.

Details may differ for reasons that change no output, so they never decide alone: a resume computes
committed rows again, and they say what to name, or how many rows to look at. They are the same in
every process: no addresses, no order of sets, no versions of libraries.
"""

from __future__ import annotations

import enum
import functools
import inspect
import logging
import pathlib
import pickle
import threading
import types
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from fostore.schema.identity.code import (
    HEAP,
    code_entry,
    filled_cells,
    is_library,
    is_of_library,
    names_read,
    source_of,
)
from fostore.schema.identity.hashing import UNSEEN, hash_bytes, hash_leaves

See = Callable[[Any], "str | Mapping[str, Any] | None"]
"""How a framework sees an object: an entry (`UNSEEN` where it cannot be hashed), its parts by name,
or None where it knows no more than anybody."""

_DEPTH, _MOST, _MOST_BYTES, _MOST_ENTRIES = 20, 100_000, 1 << 30, 500
"""How far is looked: steps, objects, bytes of arrays; and how many entries are kept."""
_SILENT = frozenset("__init__ __new__ __repr__ __str__ __eq__ __hash__ __del__ __reduce__".split())
"""Methods that say nothing of what an object that exists already gives."""
_NEUTRAL = (logging.Logger, logging.LoggerAdapter, type(threading.Lock()), type(threading.RLock()))
_NO_STATE = (TypeError, ValueError, AttributeError, RuntimeError, pickle.PickleError)


class Details:
    """A walk through objects; every entry is found under words that a message can use."""

    def __init__(self, see: See | None = None, known: Iterable[Any] = ()) -> None:
        """`known` are objects that stand in the identity already."""
        self._see = see
        self._alive: list[Any] = list(known)  # an id means an object only while that lives
        self._memo = {id(item): "known" for item in self._alive}
        self._entries: dict[str, str] = {}
        self._bytes = 0
        self.is_opaque = False

    def of(self, model: Any) -> dict[str, Any]:
        """{"details": entries} of a callable, and "opaque" where something in it cannot be hashed."""
        self._root(model)
        return self.result()

    def result(self) -> dict[str, Any]:
        """What was put in until now, as an identity keeps it."""
        # A model of thousands of attributes would make a header of megabytes: the rest is one hash.
        names = sorted(self._entries)
        kept = {name: self._entries[name] for name in names[:_MOST_ENTRIES]}
        rest = [(name, self._entries[name]) for name in names[_MOST_ENTRIES:]]
        if rest:
            kept["everything else"] = _hash(rest)
        return {"details": kept, **({"opaque": True} if self.is_opaque else {})}

    def put(self, name: str, value: Any) -> None:
        """Look at a value and keep its entry under a name; the same name again joins both."""
        self._keep(name, self.entry(value))

    def entry(self, item: Any, depth: int = 0) -> str:
        """A short text that two equal values share, in any process."""
        plain = _plain(item)
        if plain is not None:
            return plain
        if id(item) in self._memo:
            return self._memo[id(item)]
        if depth > _DEPTH or len(self._memo) > _MOST:
            return self._unseen()
        self._alive.append(item)
        self._memo[id(item)] = "itself"  # where it contains itself
        entry = self._memo[id(item)] = self._look(item, depth + 1)
        return entry

    def look_at_class(self, kind: type) -> None:
        """Every method and class attribute of a class and its bases that belong to no library."""
        for base in kind.__mro__:
            if is_of_library(base) or id(base) in self._memo:
                continue
            self._memo[id(base)] = f"class {base.__qualname__}"
            self._alive.append(base)
            for name, value in vars(base).items():
                function = _function_in(value)
                if function is not None:
                    if name not in _SILENT:
                        self.entry(function)
                elif not name.startswith(("__", "_abc_")) and not _is_descriptor(value):
                    self.put(f"{base.__qualname__}.{name}", value)

    def _root(self, model: Any) -> None:
        self._alive.append(model)
        if isinstance(model, functools.partial):
            self.put("the arguments of the partial", [model.args, model.keywords])
            self._root(model.func)
        elif isinstance(model, types.MethodType):
            self._root(model.__self__)
            self.entry(model.__func__)
        elif (
            inspect.isroutine(model)
            or inspect.isclass(model)
            or hasattr(model, "__wrapped__")
            or _plain(model) is not None
        ):
            self.put("the function", model)
        else:
            self._memo[id(model)] = "itself"
            self.look_at_class(type(model))
            parts = None if self._see is None else self._see(model)
            for name, value in (
                parts if isinstance(parts, Mapping) else attributes_of(model)
            ).items():
                self.put(f"the attribute {name!r}", value)

    def _keep(self, name: str, entry: str) -> None:
        before = self._entries.setdefault(name, entry)
        if entry != before:
            self._entries[name] = _hash(sorted((before, entry)))

    def _unseen(self) -> str:
        self.is_opaque = True
        return UNSEEN

    def _look(self, item: Any, depth: int) -> str:
        seen = None if self._see is None else self._see(item)
        if seen == UNSEEN:
            return self._unseen()
        if isinstance(seen, str):
            return seen
        if seen is not None:
            return self._object(item, seen, depth)
        if isinstance(item, (list, tuple, deque)):
            return f"{type(item).__name__} {self._sequence(item, depth)}"
        if isinstance(item, Mapping):
            pairs = [(self.entry(k, depth), self.entry(v, depth)) for k, v in item.items()]
            return f"{type(item).__name__} {_hash(sorted(pairs))}"
        if isinstance(item, (set, frozenset)):
            return f"set {_hash(sorted(self.entry(part, depth) for part in item))}"
        if isinstance(item, types.FunctionType):
            return self._function(item, depth)
        function = _function_in(item)
        if function is not None:
            return self.entry(function, depth)
        if isinstance(item, types.MethodType):
            return f"method {self._sequence([item.__self__, item.__func__], depth)}"
        if isinstance(item, functools.partial):
            return f"partial {self._sequence([item.func, item.args, item.keywords], depth)}"
        if isinstance(item, types.ModuleType):
            return f"module {item.__name__}"
        if isinstance(item, type):
            self.look_at_class(item)
            return f"class {_name(item)}"
        if hasattr(item, "__wrapped__"):
            return f"wrapped {self.entry(item.__wrapped__, depth)}"
        if isinstance(item, types.BuiltinFunctionType):
            owner = None if isinstance(item.__self__, types.ModuleType) else item.__self__
            return f"function {_name(item)} {self.entry(owner, depth)}"
        if isinstance(item, _NEUTRAL):
            return type(item).__name__
        if hasattr(item, "__array__") and hasattr(item, "shape"):
            return self._array(item)
        if inspect.isroutine(item):
            return f"function {_name(item)}"
        return self._object(item, None, depth)

    def _sequence(self, items: Iterable[Any], depth: int) -> str:
        return _hash([self.entry(part, depth) for part in items])

    def _array(self, item: Any) -> str:
        self._bytes += int(getattr(item, "nbytes", 0))
        if self._bytes > _MOST_BYTES or getattr(getattr(item, "dtype", None), "hasobject", False):
            return self._unseen()
        entries = hash_leaves(item)
        return self._unseen() if entries is None else entries[""]

    def _object(self, item: Any, parts: Mapping[str, Any] | None, depth: int) -> str:
        self.look_at_class(type(item))
        if parts is None:
            parts = attributes_of(item)
            if not parts or any(not base.__flags__ & HEAP for base in type(item).__mro__[:-1]):
                reduced = _reduced(item)  # its state lies outside Python
                if reduced is None:
                    return self._unseen()
                parts = {**parts, **reduced}
        # Sorted: the order in which attributes were set is no property of the object.
        pairs = sorted((name, self.entry(value, depth)) for name, value in parts.items())
        return f"{type(item).__qualname__} {_hash(pairs)}"

    def _function(self, function: types.FunctionType, depth: int) -> str:
        name, code = function.__qualname__, function.__code__
        cells = filled_cells(function.__closure__ or ())
        # `__globals__`, since wrappers take over the `__module__` of what they wrap
        if is_library(str(function.__globals__.get("__name__"))):
            inner = [getattr(function, "__wrapped__", None), [cell.cell_contents for cell in cells]]
            within = self._sequence(inner, depth) if function.__closure__ else ""
            return f"function {function.__module__}.{name} {within}".rstrip()
        self._keep(f"the code of {name}", code_entry(function))
        for free, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
            if free != "__class__" and any(cell is one for one in cells):  # `==` compares contents
                self._keep(f"{free!r} in {name}", self.entry(cell.cell_contents, depth))
        if function.__defaults__ or function.__kwdefaults__:
            defaults = [function.__defaults__, function.__kwdefaults__]
            self._keep(f"the defaults of {name}", self.entry(defaults, depth))
        named, attributes = names_read(code)
        for key in sorted(named & function.__globals__.keys()):
            value = function.__globals__[key]
            if not isinstance(value, types.ModuleType):
                self._keep(f"the global {key!r}", self.entry(value, depth))
            elif not is_library(value.__name__):
                for part in sorted(attributes & vars(value).keys()):
                    self._keep(f"{key}.{part}", self.entry(vars(value)[part], depth))
        return f"function {name}"


def attributes_of(item: Any) -> dict[str, Any]:
    """What an object holds: the items of its `__dict__` and of its slots that are filled."""
    held = dict(getattr(item, "__dict__", None) or {})
    for base in type(item).__mro__:
        slots = vars(base).get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            mangled = f"_{base.__name__.lstrip('_')}{name}" if name.startswith("__") else name
            if name not in ("__dict__", "__weakref__") and hasattr(item, mangled):
                held[name] = getattr(item, mangled)
    if not is_of_library(type(item)):
        return held
    # transformers keeps Python's hash of a configuration in it, which is another one in each process.
    return {name: value for name, value in held.items() if not _is_own_hash(name, value)}


def _is_own_hash(name: str, value: Any) -> bool:
    return name.startswith("_") and name.endswith("hash") and type(value) is int


def _reduced(item: Any) -> Mapping[str, Any] | None:
    """What pickle would keep of an object of an extension; None where that knows none."""
    try:
        made = item.__reduce_ex__(2)
    except _NO_STATE:
        return None
    return {"state": made if isinstance(made, str) else list(made[1:3])}


def _function_in(value: Any) -> types.FunctionType | None:
    """The function of a method, property or class attribute."""
    if isinstance(value, (staticmethod, classmethod)):
        value = value.__func__
    elif isinstance(value, property):
        value = value.fget
    elif isinstance(value, functools.cached_property):
        value = value.func
    if not isinstance(value, types.FunctionType):
        return None
    return None if value.__code__.co_filename == "<string>" else value  # made by dataclass


def _is_descriptor(value: Any) -> bool:
    """Whether a class attribute stands for something that its objects hold."""
    return inspect.isdatadescriptor(value) or isinstance(value, types.MemberDescriptorType)


def _plain(item: Any) -> str | None:
    if isinstance(item, enum.Enum):
        return f"{type(item).__qualname__}.{item.name}"
    if item is None or isinstance(item, (bool, int, float, complex, range, slice)):
        text = f"{type(item).__name__} {item!r}"
        return text if len(text) < 60 else _hash([text])
    if isinstance(item, (str, bytes, pathlib.PurePath)):  # hashed: it may be a secret
        return f"{type(item).__name__} {_hash([str(item)])}"
    if isinstance(item, np.generic):
        return f"{item.dtype.name} {_hash([repr(item.tolist())])}"
    if isinstance(item, np.ufunc):
        return f"ufunc {item.__name__}"
    if item is NotImplemented or item is Ellipsis or isinstance(item, np.dtype):
        return str(item)
    return None


def _name(item: Any) -> str:
    return f"{getattr(item, '__module__', '')}.{item.__qualname__}"


def _hash(parts: Any) -> str:
    return hash_bytes(repr(parts).encode())


# ------------------------------------------------------------------ functions and callables that users give

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
