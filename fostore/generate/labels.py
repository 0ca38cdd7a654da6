"""Labels that stand only in the samples: hashed as samples are read, and compared with those of before.

A store keeps one hash a row (spec/core.md, Identity), so that a dataset whose labels moved is told from the
one that was generated from, also where random augmentation makes every input another one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from itertools import repeat
from typing import Any, NamedTuple

import numpy as np
from xxhash import xxh3_64_intdigest as digest

from fostore.errors import ArgumentError
from fostore.nested import LABELS, is_numbers
from fostore.schema.row import Array

_WHOLE, _FRACTION, _TEXT, _SEVERAL = 1, 2, 3, 4
"""Seeds of the hashes, as a promise of the format."""
_FORM = 62
"""From this bit on a hash says what form of label it is of; the bits below are of the label itself."""
_BELOW = (1 << _FORM) - 1
_FORMS = {_WHOLE: 0, _FRACTION: 0, _TEXT: 1, _SEVERAL: 2}
NOTHING = np.uint64(3 << _FORM)
"""The hash of no label, and of one that is nothing of these."""
_MANY = 4096
"""More numbers than that are an image (a mask), which augmentation changes with the input."""


class Labelled(NamedTuple):
    """A batch on its way from where samples are read: its inputs, a hash a label, the labels themselves.

    And of sequences the positions that are rows (`fostore.generate.tokens.Tokens`).
    """

    inputs: Any
    labels: Array | None
    exact: list[Any] | None = None
    tokens: Any = None


def hash_labels(samples: Sequence[Any]) -> Array:
    """A hash of each sample's label, uint64 (n,); `NOTHING` where one has none that can be compared.

    >>> hash_labels([("x", 1), ("y", 2)]).shape, (hash_labels(["x", ("x", None)]) == NOTHING).all()
    ((2,), np.True_)
    """
    return hash_each([_label_of(sample) for sample in samples])


def exact_labels(samples: Sequence[Any]) -> list[Any]:
    """Each sample's label as Python's number or text, where it is one; None where a sample has none.

    >>> exact_labels([("x", np.int64(3)), {"image": 0, "label": "cat"}, "x"])
    [3, 'cat', None]
    """
    return [_plain(_label_of(sample)) for sample in samples]


def class_numbers(
    labels: Sequence[Any] | None,
    num_classes: int,
    names: Sequence[str] | None,
    indices: Sequence[int] | Array,
) -> Array:
    """The class of each sample, int64 (n,), by its number, or by its name among `names`.

    Raises:
        ArgumentError: a label that is none of the classes; names its sample.
    """
    if labels is None:
        raise ArgumentError(
            "keep_labels=True, and these samples come without labels: give a dataset of (input, label), or "
            "leave keep_labels out"
        )
    by_name = {name: number for number, name in enumerate(names or ())}
    numbers = [by_name.get(label) if isinstance(label, str) else label for label in labels]
    for place, number in enumerate(numbers):
        if type(number) is not int or not 0 <= number < num_classes:
            or_name = "" if names is None else f", or one of the names {list(names)[:5]}"
            raise ArgumentError(
                f"keep_labels=True, and sample {int(indices[place])} has the label {labels[place]!r:.80}, "
                f"expected a class number, 0 to {num_classes - 1}{or_name}"
            )
    return np.array(numbers, np.int64)


def tells(hashes: Array) -> bool:
    """Whether any of the samples has a label that can be compared."""
    return bool((hashes != NOTHING).any())


def comparable(now: Array, then: Array) -> Array:
    """Which hashes say of two labels whether they are the same: both are numbers, texts, or several numbers.

    A class by its name and by its number, or by a vector, says nothing about the other.
    """
    forms: Array = now >> np.uint64(_FORM)
    same: Array = (forms == then >> np.uint64(_FORM)) & (now != NOTHING)
    return same


def differ(now: Array, then: Array) -> Array:
    """Which labels are others for sure."""
    different: Array = comparable(now, then) & (now != then)
    return different


def _label_of(sample: Any) -> Any:
    if type(sample) is tuple or (isinstance(sample, (tuple, list)) and not is_numbers(sample)):
        return sample[1] if len(sample) > 1 else None
    if isinstance(sample, Mapping):
        return next((sample[name] for name in LABELS if name in sample), None)
    return None


def hash_each(labels: Iterable[Any]) -> Array:
    """The same of labels by themselves, of any container; the hash of 3 is that of a tensor of 3 or of 3.0."""
    if hasattr(labels, "__array__"):
        labels = np.asarray(labels).tolist()
    elif _is_numpys(labels):  # at once: one by one takes three times as long
        labels = np.array(labels).tolist()
    listed = [label if type(label) in _PLAIN else _plain(label) for label in labels]
    kinds = set(map(type, listed))
    if kinds == {type(None)}:
        return np.full(len(listed), NOTHING)
    if kinds == {int}:  # as most are: without Python between two of them
        with suppress(OverflowError):
            parts: Any = np.array(listed, "<i8").view("V8").tolist()
            whole = np.fromiter(map(digest, parts, repeat(_WHOLE)), np.uint64, len(listed))
            return whole & np.uint64(_BELOW)
    hashes = np.full(len(listed), NOTHING)
    for place, label in enumerate(listed):
        hashed = _bytes_of(label)
        if hashed is not None:
            hashes[place] = digest(*hashed) & _BELOW | _FORMS[hashed[1]] << _FORM
    return hashes


def _bytes_of(label: Any) -> tuple[bytes, int] | None:
    """What of a label is hashed, and with which seed; None where nothing is."""
    if isinstance(label, float) and label.is_integer() and abs(label) < 2**63:
        label = int(label)
    if isinstance(label, int):
        fits = -(2**63) <= label < 2**63
        return (label.to_bytes(8, "little", signed=True), _WHOLE) if fits else None
    if isinstance(label, float):
        return np.array(label, "<f8").tobytes(), _FRACTION
    if isinstance(label, str):
        return label.encode("utf-8", "surrogatepass"), _TEXT
    if isinstance(label, np.ndarray):
        return (label.astype("<f8") + 0.0).tobytes(), _SEVERAL
    return None


def _is_numpys(labels: Any) -> bool:
    """Whether all labels are numbers of one NumPy type: of several, one array would change them."""
    first = labels[0] if isinstance(labels, list) and labels else None
    return isinstance(first, np.generic) and len(set(map(type, labels))) == 1


_PLAIN = (int, float, str, type(None))


def _plain(label: Any) -> Any:
    """A label as Python's number or text: of NumPy's, of a tensor without axes, or of a bool; several
    numbers (a multi-label target) as an array.
    """
    if isinstance(label, str):
        return str(label)
    if isinstance(label, (bool, np.bool_)):
        return int(label)
    shape = getattr(label, "shape", None)
    if shape == () and hasattr(label, "item"):
        item = label.item()
        return int(item) if isinstance(item, bool) else item
    if shape is not None:
        return _array(label) if math.prod(shape) <= _MANY else None
    several = list(label) if isinstance(label, tuple) else label
    return _array(several) if is_numbers(several) else label


def _array(label: Any) -> Any:
    """Several numbers as an array; None where they are none, or not as many in each place."""
    with suppress(ValueError, TypeError, OverflowError, RuntimeError):
        try:
            array = np.asarray(label)
        except (TypeError, RuntimeError):  # NumPy knows no bfloat16, and no other device
            array = np.asarray(label.tolist())
        if array.dtype.kind in "biuf" and array.size <= _MANY:
            return array
    return None
