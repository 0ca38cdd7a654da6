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
from fostore.schema.row import Array

LABELS = ("label", "labels", "target", "targets", "y")
"""The keys under which dict samples have their label."""

Getter = Callable[[Any], Any]
"""Takes the input out of a sample."""

_Bring = Callable[[Any], Any]
"""Makes one batch of a list of samples."""


class PerSample(list[Any]):
    """A list with one entry for each sample of a batch: what makes no array, such as text."""

    def __getitem__(self, index: Any) -> Any:
        item = super().__getitem__(index)
        return PerSample(item) if isinstance(index, slice) else item


LEAVE_OUT = (
    "leave it out of the dataset, as torch.utils.data.Subset(dataset, indices) does, or let it be a blank "
    "sample: every sample has a row"
)
IS_NONE = f"is None; {LEAVE_OUT}"


class OddSample(ArgumentError):
    """One sample of a batch does not go with the others; `place` is where it stands in the batch."""

    def __init__(self, place: int, reason: str) -> None:
        super().__init__(f"sample {place} of the batch {reason}")
        self.place, self.reason = place, reason

    def __reduce__(self) -> tuple[Any, ...]:
        return OddSample, (self.place, self.reason)  # from a worker's process

    def named(self, index: int, of: str = "dataset") -> ArgumentError:
        """The same, said of its index in the dataset."""
        return ArgumentError(f"sample {index} of the {of} {self.reason}")


def bring_together(bring: _Bring, samples: Sequence[Any], indices: Sequence[int]) -> Any:
    """`bring(samples)`, where an error names the index of the sample that does not go with the others.

    Raises:
        ArgumentError: names it; where it cannot be told which it is, what `bring` raised.
    """
    try:
        return bring(samples)
    except Exception as error:
        odd = find_odd(bring, samples, error)
        if odd is None:
            raise
        raise odd.named(int(indices[odd.place])) from error


def find_odd(bring: _Bring, samples: Sequence[Any], error: Exception) -> OddSample | None:
    """The first sample that cannot be brought together with the first one, where all of them failed."""
    for at, one in enumerate(samples):
        if one is None:
            return OddSample(at, IS_NONE)
    if isinstance(error, OddSample):
        return error
    for at, one in enumerate(samples):
        try:
            bring([samples[0], one] if at else [one])
        except OddSample as odd:
            return OddSample(at, odd.reason)
        except Exception as alone:
            beside = " beside the first one" if at else ""
            return OddSample(
                at,
                f"makes no batch{beside}: {type(alone).__name__}: {alone}; give a collate_fn that brings "
                "such samples together, or leave it out",
            )
    return None


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


def _is_namedtuple(data: Any) -> bool:
    """Whether `data` is a tuple whose type is built from its fields, one argument each."""
    return isinstance(data, tuple) and hasattr(data, "_fields")


def map_leaves(function: Callable[[Any], Any], data: Any) -> Any:
    """The same structure with `function` of every leaf; containers keep their types.

    >>> map_leaves(lambda leaf: leaf + 1, {"a": [1, 2], "b": (3,)})
    {'a': [2, 3], 'b': (4,)}
    """
    if isinstance(data, (Mapping, list, tuple)):
        return _map_items(lambda item: map_leaves(function, item), data)
    return function(data)


def _map_items(function: Callable[[Any], Any], data: Any) -> Any:
    """A dict, list or tuple of the same type, with `function` of each of its items."""
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
    if _is_namedtuple(data):
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
    if isinstance(data, (Mapping, list, tuple)) and not is_entries(data):
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


def stack_numbers(samples: Sequence[Any]) -> Any:
    """Lists of numbers, one a sample, as one array (n, ...); as they are where they differ in length.

    Returns:
        An array in the dtype that NumPy gives it, or a `PerSample` of the lists.

    Raises:
        OddSample: names the first that is no list of numbers.
    """
    try:
        stacked = np.array(samples)
    except ValueError:
        stacked = np.empty(0, object)
    if stacked.dtype.kind in "biufc":
        return stacked
    for at, sample in enumerate(samples):
        if not is_numbers(sample):
            raise OddSample(at, f"is {_what(sample)}, the first is a list of numbers")
    return PerSample(samples)


def first_other(values: Sequence[Any]) -> int:
    """Where the first value stands that is not as the one before all."""
    return next(at for at, value in enumerate(values) if value != values[0])


def _what(value: Any) -> str:
    return "None" if value is None else f"a {type(value).__name__} ({value!r:.40})"


def collate(samples: Sequence[Any], *, ragged: bool = False) -> Any:
    """Samples as one batch of NumPy arrays, nested as one sample is; dtypes stay as they are.

    Arrays, numbers and lists of numbers are stacked along a new first axis; strings, other objects and
    lists of numbers that differ in length become a list with one entry a sample.

    Args:
        ragged: arrays and structures that differ in shape or length become a list as well.

    Raises:
        OddSample: samples differ in shape or structure; names the first that does.

    >>> collate([(1, "a"), (2, "b")])
    (array([1, 2]), ['a', 'b'])
    >>> collate([[0.5, 1.5], [2.5, 3.5]]).shape
    (2, 2)
    """
    first = samples[0]
    if isinstance(first, Mapping):
        return {key: collate(_under(key, samples), ragged=ragged) for key in first}
    if is_numbers(first):
        return stack_numbers(samples)
    if isinstance(first, (tuple, list)):
        lengths = [len(one) if isinstance(one, (tuple, list)) else None for one in samples]
        if len(set(lengths)) > 1:
            if ragged and None not in lengths:
                return _copied(samples)
            at = first_other(lengths)
            raise OddSample(
                at,
                f"is {_what(samples[at])}, the first has {lengths[0]} parts"
                if lengths[at] is None
                else f"has {lengths[at]} parts, the first has {lengths[0]}; "
                "give a collate_fn that brings them together",
            )
        parts = [collate(part, ragged=ragged) for part in zip(*samples, strict=True)]
        if _is_namedtuple(first):
            return type(first)(*parts)
        return tuple(parts) if isinstance(first, tuple) else parts
    if isinstance(first, (int, float, complex, np.generic)):
        return _stacked(np.asarray(samples), samples)
    if hasattr(first, "shape") and (hasattr(first, "__array__") or hasattr(first, "__dlpack__")):
        arrays = [np.asarray(sample) for sample in samples]
        try:
            stacked = np.stack(arrays)
        except ValueError:
            at = first_other([array.shape for array in arrays])
            if samples[at] is None:
                raise OddSample(at, IS_NONE) from None
            if ragged:
                return _copied(arrays)
            raise OddSample(
                at,
                f"has the shape {arrays[at].shape}, the first has {arrays[0].shape}; "
                "give a collate_fn that pads or crops them",
            ) from None
        return stacked if arrays[0].dtype == object else _stacked(stacked, samples)
    return PerSample(samples)


def _under(key: Any, samples: Sequence[Any]) -> list[Any]:
    try:
        return [one[key] for one in samples]
    except (KeyError, TypeError, IndexError):
        for at, one in enumerate(samples):
            if not isinstance(one, Mapping):
                raise OddSample(at, f"is {_what(one)}, the first is a dict") from None
            if key not in one:
                raise OddSample(at, f"has no {key!r}, which the first has") from None
        raise


def _stacked(stacked: Array, samples: Sequence[Any]) -> Array:
    """What NumPy made of numbers; it makes objects or text of numbers with something else between them."""
    if stacked.dtype.kind in "OUS" and not isinstance(samples[0], (np.str_, np.bytes_, np.object_)):
        kinds = [np.asarray(sample).dtype.kind for sample in samples]
        at = next((i for i, kind in enumerate(kinds) if kind in "OUS"), None)
        if at is not None and kinds[0] not in "OUS":
            raise OddSample(at, f"is {_what(samples[at])}, the first is a number")
    return stacked


def _copied(samples: Sequence[Any]) -> PerSample:
    """The samples with arrays of their own: a batch is nobody else's memory, which may change."""
    return PerSample(
        map_leaves(lambda leaf: np.array(leaf) if isinstance(leaf, np.ndarray) else leaf, one)
        for one in samples
    )
