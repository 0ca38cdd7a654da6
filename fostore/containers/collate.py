"""Samples of a dataset asked for and brought together as one batch; one that does not go with the others is named."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from fostore.errors import ArgumentError
from fostore.nested import PerSample, is_namedtuple, is_numbers, map_leaves
from fostore.schema.row import Array

_Bring = Callable[[Any], Any]
"""Makes one batch of a list of samples."""

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


def samples_of(dataset: Any, indices: Sequence[int]) -> list[Any]:
    """Samples of a map dataset, asked for at once where it can (`__getitems__`).

    Raises:
        ArgumentError: `__getitems__` gave another number of them.
        Exception: what the dataset raises, with a note that names the sample.
    """
    many = getattr(dataset, "__getitems__", None)
    if many is not None:
        given = many(indices)
        if isinstance(given, Mapping) or len(given) != len(indices):
            raise ArgumentError(
                f"__getitems__ of {type(dataset).__name__} was asked for {len(indices)} samples and gave a "
                f"{type(given).__name__} of {len(given)}; expected a list of one sample for each index, "
                "in their order, else distributions would go to other samples"
            )
        return list(given)
    samples: list[Any] = []
    try:
        for index in indices:
            samples.append(dataset[index])
    except Exception as error:
        error.add_note(f"sample {indices[len(samples)]} of the dataset")
        raise
    return samples


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
        if is_namedtuple(first):
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
