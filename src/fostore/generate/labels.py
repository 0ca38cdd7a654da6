"""Labels that stand only in the samples: hashed as samples are read, and compared with those of before.

A store keeps one hash a row (spec/core.md, Identity), so that a dataset whose labels moved is told from the
one that was generated from, also where random augmentation makes every input another one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import repeat
from typing import Any, NamedTuple

import numpy as np

from fostore.nested import LABELS, is_numbers
from fostore.schema import Array

_WHOLE, _FRACTION, _TEXT = 1, 2, 3
"""Seeds of the hashes: no text has the hash of a number, as a promise of the format."""


class Labelled(NamedTuple):
    """A batch on its way from where samples are read: its inputs, and a hash a label."""

    inputs: Any
    labels: Array | None


class Noted:
    """Whether labels are hashed as samples are read, and those of the batch that came last."""

    __slots__ = ("last", "wanted")

    def __init__(self) -> None:
        self.wanted = False
        self.last: Array | None = None

    def take(self, batch: Any) -> Any:
        """The inputs of a batch as it came; its labels are `last` until the next one is taken."""
        labelled = isinstance(batch, Labelled)
        self.last = batch.labels if labelled else None
        return batch.inputs if labelled else batch


def hash_labels(samples: Sequence[Any]) -> Array | None:
    """A hash of each sample's label, uint64 (n,); None where one has none, or no number or text.

    >>> hash_labels([("x", 1), ("y", 2)]).shape, hash_labels(["x", "y"])
    ((2,), None)
    """
    labels = []
    for sample in samples:
        if type(sample) is tuple or (isinstance(sample, (tuple, list)) and not is_numbers(sample)):
            if len(sample) < 2:
                return None
            labels.append(sample[1])
        elif isinstance(sample, Mapping):
            name = next((name for name in LABELS if name in sample), None)
            if name is None:
                return None
            labels.append(sample[name])
        else:
            return None
    return hash_values(labels)


def hash_values(labels: Iterable[Any]) -> Array | None:
    """The same of labels by themselves, of any container; the hash of 3 is that of a tensor of 3 or of 3.0."""
    from xxhash import xxh3_64_intdigest as digest

    if hasattr(labels, "__array__"):
        labels = np.asarray(labels).tolist()
    elif _is_numpys(labels):  # at once: one by one takes three times as long
        labels = np.array(labels).tolist()
    listed = [label if type(label) in _PLAIN else _plain(label) for label in labels]
    if set(map(type, listed)) == {int}:  # as most are: without Python between two of them
        try:
            parts: Any = np.array(listed, "<i8").view("V8").tolist()
        except OverflowError:
            return None
        return np.fromiter(map(digest, parts, repeat(_WHOLE)), np.uint64, len(listed))
    hashes = []
    for label in listed:
        if isinstance(label, float) and label.is_integer() and abs(label) < 2**63:
            label = int(label)
        if isinstance(label, int):
            if not -(2**63) <= label < 2**63:
                return None
            hashes.append(digest(label.to_bytes(8, "little", signed=True), _WHOLE))
        elif isinstance(label, float):
            hashes.append(digest(np.array(label, "<f8").tobytes(), _FRACTION))
        elif isinstance(label, str):
            hashes.append(digest(label.encode("utf-8", "surrogatepass"), _TEXT))
        else:
            return None
    return np.array(hashes, np.uint64)


def _is_numpys(labels: Any) -> bool:
    """Whether all labels are numbers of one NumPy type: of several, one array would change them."""
    first = labels[0] if isinstance(labels, list) and labels else None
    return isinstance(first, np.generic) and len(set(map(type, labels))) == 1


_PLAIN = (int, float, str)


def _plain(label: Any) -> Any:
    """A label as Python's number or text: of NumPy's, of a tensor without axes, or of a bool."""
    if isinstance(label, str):
        return str(label)
    if isinstance(label, (bool, np.bool_)):
        return int(label)
    if getattr(label, "shape", None) == () and hasattr(label, "item"):
        item = label.item()
        return int(item) if isinstance(item, bool) else item
    return label
