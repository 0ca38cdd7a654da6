"""Nested data (dicts, lists, tuples and named tuples of leaves), walked without knowing a framework."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from fostore.errors import ArgumentError


def is_namedtuple(data: Any) -> bool:
    """Whether `data` is a tuple whose type is built from its fields, one argument each."""
    return isinstance(data, tuple) and hasattr(data, "_fields")


def map_leaves(function: Callable[[Any], Any], data: Any) -> Any:
    """The same structure with `function` of every leaf; containers keep their types.

    >>> map_leaves(lambda leaf: leaf + 1, {"a": [1, 2], "b": (3,)})
    {'a': [2, 3], 'b': (4,)}
    """
    if isinstance(data, Mapping):
        mapped = {key: map_leaves(function, item) for key, item in data.items()}
        if type(data) is dict:
            return mapped
        try:
            clone: Any = copy.copy(data)  # keeps a subclass and what it carries beside its items
            clone.update(mapped)
        except (TypeError, AttributeError):  # a mapping that cannot be changed
            return mapped
        return clone
    if is_namedtuple(data):
        return type(data)(*(map_leaves(function, item) for item in data))
    if isinstance(data, tuple):
        return tuple(map_leaves(function, item) for item in data)
    if isinstance(data, list):
        return [map_leaves(function, item) for item in data]
    return function(data)


def leaves(data: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every leaf with its path, in a fixed order; a list of strings is one leaf (a collated batch)."""
    if isinstance(data, Mapping):
        for key, item in data.items():
            yield from leaves(item, f"{path}[{key!r}]")
    elif isinstance(data, (list, tuple)) and not is_strings(data):
        for i, item in enumerate(data):
            yield from leaves(item, f"{path}[{i}]")
    else:
        yield path, data


def is_strings(data: Any) -> bool:
    """Whether `data` is a list of strings, which is how collation batches them."""
    return isinstance(data, (list, tuple)) and bool(data) and all(type(s) is str for s in data)


def num_rows(data: Any) -> int | None:
    """Rows of a collated batch: the length of its first array or list of strings; None if it has none."""
    for _, leaf in leaves(data):
        shape = getattr(leaf, "shape", None)
        if shape is not None and len(shape):
            return int(shape[0])
        if is_strings(leaf):
            return len(leaf)
    return None


def slice_rows(data: Any, start: int, stop: int, rows: int) -> Any:
    """Rows `[start, stop)` of a collated batch of `rows`; leaves that hold something else stay whole."""
    return _map_rows(lambda part: part[start:stop], data, rows)


def pad_rows(data: Any, rows: int, size: int) -> Any:
    """A collated batch of `rows` with its last row repeated until it has `size`; freshly gathered.

    >>> pad_rows({"x": np.array([1, 2]), "text": ["a", "b"]}, 2, 3)
    {'x': array([1, 2, 2]), 'text': ['a', 'b', 'b']}
    """
    places = np.minimum(np.arange(size), rows - 1)

    def pad(part: Any) -> Any:
        return [part[i] for i in places] if isinstance(part, (list, tuple)) else part[places]

    return _map_rows(pad, data, rows)


def _map_rows(function: Callable[[Any], Any], data: Any, rows: int) -> Any:
    """`function` of every leaf that has a row a sample; other leaves stay as they are."""
    if is_strings(data) and len(data) == rows:
        return function(data)
    if isinstance(data, Mapping):
        mapped = {key: _map_rows(function, item, rows) for key, item in data.items()}
        return mapped if type(data) is dict else _refill(data, mapped)
    if isinstance(data, (list, tuple)):
        items = [_map_rows(function, item, rows) for item in data]
        if is_namedtuple(data):
            return type(data)(*items)
        return tuple(items) if isinstance(data, tuple) else items
    shape = getattr(data, "shape", None)
    return function(data) if shape is not None and len(shape) and int(shape[0]) == rows else data


def _refill(data: Any, items: dict[Any, Any]) -> Any:
    clone = copy.copy(data)
    clone.update(items)
    return clone


def collate(samples: Sequence[Any], *, ragged: bool = False) -> Any:
    """Samples as one batch of NumPy arrays, nested as one sample is; dtypes stay as they are.

    Arrays and numbers are stacked along a new first axis; strings and other objects become lists.

    Args:
        ragged: what differs in shape or length becomes a list of the samples' parts as well.

    Raises:
        ArgumentError: samples differ in shape or structure; the message names the first that does.

    >>> collate([(1, "a"), (2, "b")])
    (array([1, 2]), ['a', 'b'])
    """
    first = samples[0]
    if isinstance(first, Mapping):
        return {key: collate([one[key] for one in samples], ragged=ragged) for key in first}
    if isinstance(first, (tuple, list)):
        lengths = [len(sample) for sample in samples]
        if len(set(lengths)) > 1:
            if ragged:
                return _copied(samples)
            other = next(i for i, n in enumerate(lengths) if n != lengths[0])
            raise ArgumentError(
                f"sample {other} of the batch has {lengths[other]} parts, the first has {lengths[0]}; "
                "give a collate_fn that brings them together"
            )
        parts = [collate(part, ragged=ragged) for part in zip(*samples, strict=True)]
        if is_namedtuple(first):
            return type(first)(*parts)
        return tuple(parts) if isinstance(first, tuple) else parts
    if isinstance(first, (int, float, complex, np.generic)):
        return np.asarray(samples)
    if hasattr(first, "shape") and (hasattr(first, "__array__") or hasattr(first, "__dlpack__")):
        arrays = [np.asarray(sample) for sample in samples]
        try:
            return np.stack(arrays)
        except ValueError:
            if ragged:
                return _copied(arrays)
            other = next(i for i, a in enumerate(arrays) if a.shape != arrays[0].shape)
            raise ArgumentError(
                f"sample {other} of the batch has the shape {arrays[other].shape}, the first has "
                f"{arrays[0].shape}; give a collate_fn that pads or crops them"
            ) from None
    return list(samples)


def _copied(samples: Sequence[Any]) -> list[Any]:
    """The samples with arrays of their own: a batch is nobody else's memory, which may change."""
    return [
        map_leaves(lambda leaf: np.array(leaf) if isinstance(leaf, np.ndarray) else leaf, one)
        for one in samples
    ]
