"""Nested data (dicts, lists, tuples and named tuples of leaves), walked without knowing a framework.

One rule for lists, on every side: **a list of numbers, nested too, is a value** (one array), any other
list is structure, as a tuple is.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from fostore.schema.row import Array

LABELS = ("label", "labels", "target", "targets", "y")
"""The keys under which dict samples have their label."""

Getter = Callable[[Any], Any]
"""Takes the input out of a sample."""


class PerSample(list[Any]):
    """A list with one entry for each sample of a batch: what makes no array, such as text."""

    def __getitem__(self, index: Any) -> Any:
        item = super().__getitem__(index)
        return PerSample(item) if isinstance(index, slice) else item


class Arrays:
    """Arrays that belong together and travel as one; each of them is a leaf of nested data.

    With `to` and `pin_memory`, as training loops of torch call them on whatever a batch holds.
    """

    __slots__ = ()

    def map(self, function: Callable[[Any], Any]) -> Any:
        """The same with `function` of each array."""
        raise NotImplementedError

    def to(self, device: Any, **options: Any) -> Any:
        """The same with its tensors on a device of torch."""
        return self.map(lambda one: one.to(device, **options) if hasattr(one, "to") else one)

    def pin_memory(self) -> Any:
        """The same with its tensors in page-locked memory, from where copies do not block."""
        return self.map(lambda one: one.pin_memory() if hasattr(one, "pin_memory") else one)


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
    kinds = set(map(type, data))  # of a long list few types are left to look at
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
        for name in LABELS:
            if name in sample:
                return chosen, sample[name]
    return (chosen,)


def split_all(samples: Sequence[Any], input_getter: Getter | None = None) -> list[tuple[Any, ...]]:
    """`split` of each sample; plain pairs and inputs alone, as most are, pass as they came and cost nothing."""
    if input_getter is not None:
        return [split(one, input_getter) for one in samples]
    return [one if type(one) is tuple and 0 < len(one) < 3 else split(one) for one in samples]


def each(function: Callable[[Any], Any], rows: Any) -> Any:
    """`function` of an array, or of every array of a named tuple of them, of which some may be None.

    >>> each(len, [1, 2])
    2
    """
    if not is_namedtuple(rows):
        return function(rows)
    return type(rows)(*(None if column is None else function(column) for column in rows))


def is_namedtuple(data: Any) -> bool:
    """Whether `data` is a tuple whose type is built from its fields, one argument each."""
    return isinstance(data, tuple) and hasattr(data, "_fields")


def map_leaves(function: Callable[[Any], Any], data: Any) -> Any:
    """The same structure with `function` of every leaf; containers keep their types.

    >>> map_leaves(lambda leaf: leaf + 1, {"a": [1, 2], "b": (3,)})
    {'a': [2, 3], 'b': (4,)}
    """
    if isinstance(data, (Mapping, list, tuple, Arrays)):
        return _map_items(lambda item: map_leaves(function, item), data)
    return function(data)


def _map_items(function: Callable[[Any], Any], data: Any) -> Any:
    """A dict, list, tuple or `Arrays` of the same type, with `function` of each of its items."""
    if isinstance(data, Arrays):
        return data.map(function)
    if isinstance(data, Mapping):
        mapped = {key: function(item) for key, item in data.items()}
        if type(data) is dict:
            return mapped
        try:
            clone: Any = copy.copy(data)  # keeps a subclass and what it carries beside its items
            clone.update(mapped)
        except (TypeError, AttributeError):  # a mapping that cannot be changed
            return mapped
        return clone
    if is_namedtuple(data):
        return type(data)(*map(function, data))
    return tuple(map(function, data)) if isinstance(data, tuple) else list(map(function, data))


def leaves(data: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every leaf with its path, in a fixed order; what has an entry a sample is one leaf (see `is_entries`)."""
    if isinstance(data, Mapping):
        for key, item in data.items():
            yield from leaves(item, f"{path}[{key!r}]")
    elif isinstance(data, (list, tuple)) and not is_entries(data):
        for i, item in enumerate(data):
            yield from leaves(item, f"{path}[{i}]")
    elif isinstance(data, Arrays):
        items: list[Any] = []
        data.map(items.append)
        for i, item in enumerate(items):
            yield from leaves(item, f"{path}[{i}]")
    else:
        yield path, data


def is_entries(data: Any) -> bool:
    """Whether `data` is a list with one entry a sample: ours, or the strings that torch's collation lists."""
    if isinstance(data, PerSample):
        return True
    return isinstance(data, (list, tuple)) and bool(data) and all(type(s) is str for s in data)


def num_rows(data: Any) -> int | None:
    """Rows of a collated batch: the length of its first leaf that has rows; None if none has."""
    return next((rows for _, leaf in leaves(data) if (rows := _rows_of(leaf)) is not None), None)


def common_rows(data: Any) -> int | None:
    """The number of rows in which all leaves of a batch that have rows agree; None where they do not."""
    lengths = {_rows_of(leaf) for _, leaf in leaves(data)} - {None}
    return lengths.pop() if len(lengths) == 1 else None


def _rows_of(leaf: Any) -> int | None:
    """How many rows a leaf has, one a sample; None where it has no such axis."""
    shape = getattr(leaf, "shape", None)
    if shape is not None and len(shape):
        return int(shape[0])
    return len(leaf) if is_entries(leaf) else None


def slice_rows(data: Any, start: int, stop: int, rows: int) -> Any:
    """Rows `[start, stop)` of a collated batch of `rows`; leaves that hold something else stay whole."""
    return _map_rows(lambda leaf: pick(leaf, slice(start, stop)), data, rows)


def pad_rows(data: Any, rows: int, size: int) -> Any:
    """A collated batch of `rows` with its last row repeated until it has `size`; freshly gathered.

    >>> pad_rows({"x": np.array([1, 2]), "text": ["a", "b"]}, 2, 3)
    {'x': array([1, 2, 2]), 'text': ['a', 'b', 'b']}
    """
    return take_rows(data, np.minimum(np.arange(size), rows - 1), rows)


def take_rows(data: Any, positions: Array, rows: int) -> Any:
    """The rows of a collated batch of `rows` at `positions`, in their order; freshly gathered.

    >>> take_rows({"x": np.array([1, 2]), "text": ["a", "b"]}, np.array([1, 0]), 2)
    {'x': array([2, 1]), 'text': ['b', 'a']}
    """
    return _map_rows(lambda leaf: pick(leaf, positions), data, rows)


def pick(leaf: Any, rows: slice | Array) -> Any:
    """Rows of one leaf that has an entry a sample: an array, a frame, or a list with one each."""
    if is_entries(leaf) and not isinstance(rows, slice):
        return type(leaf)(leaf[row] for row in rows)
    return getattr(leaf, "iloc", leaf)[rows]


def _map_rows(function: Callable[[Any], Any], data: Any, rows: int) -> Any:
    """`function` of every leaf that has a row a sample; other leaves stay as they are."""
    if isinstance(data, (Mapping, list, tuple, Arrays)) and not is_entries(data):
        return _map_items(lambda item: _map_rows(function, item, rows), data)
    return function(data) if _rows_of(data) == rows else data


def map_numbers(function: Callable[[Any], Any], data: Any) -> Any:
    """The same structure with `function` of every list of numbers in it; all else stays as it is.

    >>> map_numbers(sum, {"a": [1, 2], "b": ([[1, 2], 3], "text")})
    {'a': 3, 'b': ([3, 3], 'text')}
    """
    if isinstance(data, list) and is_numbers(data):
        return function(data)
    if isinstance(data, Mapping) or (isinstance(data, (list, tuple)) and data):
        return _map_items(lambda item: map_numbers(function, item), data)
    return data


def has_numbers(data: Any) -> bool:
    """Whether a list of numbers stands anywhere in `data`."""
    if isinstance(data, Mapping):
        return any(map(has_numbers, data.values()))
    if isinstance(data, list) and is_numbers(data):
        return True
    return isinstance(data, (list, tuple)) and any(map(has_numbers, data))
