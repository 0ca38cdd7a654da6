"""Nested data (dicts, lists, tuples and named tuples of leaves), walked without knowing a framework.

One rule for lists, on every side: **a list of numbers, nested too, is a value** (one array), any other
list is structure, as a tuple is.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from fostore.errors import ArgumentError

_LABELS = ("label", "labels", "target", "targets", "y")

Getter = Callable[[Any], Any]


class PerSample(list[Any]):
    """A list with one entry for each sample of a batch: what makes no array, such as text."""


def is_numbers(data: Any) -> bool:
    """Whether `data` is a list of numbers, or of such lists, nested to the same depth everywhere.

    >>> is_numbers([0.1, 2, True]), is_numbers([[1, 2], [3]]), is_numbers([[0.1, 0.2], 1])
    (True, True, False)
    >>> is_numbers((0.1, 0.2)), is_numbers(["a"]), is_numbers([(1, 2)])
    (False, False, False)
    """
    return isinstance(data, list) and _depth(data) is not None


def _depth(data: list[Any]) -> int | None:
    """Lists around each number; None where that is no list of numbers. An empty list has any depth."""
    kinds = set(map(type, data))
    if all(issubclass(kind, _NUMBERS) for kind in kinds):
        return 1 if data else 0
    if not all(issubclass(kind, list) for kind in kinds):
        return None
    deepest = 0
    for depth in map(_depth, data):
        if depth is None or (depth and deepest and depth != deepest):
            return None
        deepest = max(depth, deepest)
    return 1 + deepest


_NUMBERS = (int, float, complex, np.number, np.bool_)


def split(sample: Any, input_getter: Getter | None = None) -> tuple[Any, ...]:
    """(input, label) of a sample, or (input,) where it has no label; what comes after is left out.

    Of a tuple, or a list that is no list of numbers, the second part is the label; of a dict, where an
    input_getter takes the input out of it, what stands under "label", "labels", "target", "targets"
    or "y".

    >>> split((1, 2)), split((1,)), split(1), split([[0.1, 0.2], 1]), split([0.1, 0.2, 0.3])
    ((1, 2), (1,), (1,), ([0.1, 0.2], 1), ([0.1, 0.2, 0.3],))
    >>> split({"image": 1, "label": 2}, lambda sample: sample["image"])
    (1, 2)
    """
    if isinstance(sample, (tuple, list)) and sample and not is_numbers(sample):
        chosen = sample[0] if input_getter is None else input_getter(sample)
        return (chosen,) if len(sample) == 1 else (chosen, sample[1])
    if input_getter is None:
        return (sample,)
    chosen = input_getter(sample)
    if isinstance(sample, Mapping):
        for name in _LABELS:
            if name in sample:
                return chosen, sample[name]
    return (chosen,)


def split_all(samples: Sequence[Any], input_getter: Getter | None = None) -> list[tuple[Any, ...]]:
    """`split` of each sample; plain pairs, as most are, pass as they came and cost next to nothing."""
    if input_getter is not None:
        return [split(one, input_getter) for one in samples]
    return [one if type(one) is tuple and len(one) == 2 else split(one) for one in samples]


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

    def cut(leaf: Any) -> Any:
        shape = getattr(leaf, "shape", None)
        batched = shape is not None and len(shape) and int(shape[0]) == rows
        return leaf[start:stop] if batched else leaf

    if is_strings(data) and len(data) == rows:
        return data[start:stop]
    if isinstance(data, Mapping):
        cut_items = {key: slice_rows(item, start, stop, rows) for key, item in data.items()}
        return cut_items if type(data) is dict else _refill(data, cut_items)
    if isinstance(data, (list, tuple)):
        items = [slice_rows(item, start, stop, rows) for item in data]
        if is_namedtuple(data):
            return type(data)(*items)
        return tuple(items) if isinstance(data, tuple) else items
    return cut(data)


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
