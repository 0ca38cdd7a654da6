"""Whether samples still have the labels that were recorded as they were read."""

from __future__ import annotations

import numpy as np

from fostore.containers.rows import samples_of
from fostore.generate.labels import comparable, differ, hash_labels, hash_values
from fostore.generate.source import Indices
from fostore.schema.row import Array

_REREADS = 4


def moved_label(dataset: object, indices: Indices, stored: Array) -> int | None:
    """The first of some samples whose label is another one now, for good; None where there is none.

    A label that reads differently each time (mixed, or drawn) says nothing. Random states are drawn from.

    Args:
        stored: the hashes that were recorded, one a sample.

    Raises:
        NoLabels: a sample cannot be read, or no label can be compared with what was recorded.
    """
    now = _labels(dataset, indices)
    for at in np.flatnonzero(_differ(now, stored)).tolist():
        index = int(indices[at])
        again = {int(_labels(dataset, range(index, index + 1))[0]) for _ in range(_REREADS)}
        if len(again | {int(now[at])}) == 1:
            return index
    return None


def moved_entry(labels: object, stored: Array) -> int | None:
    """The same of labels that a dataset tells all at once, one for each of `stored`."""
    now = hash_values(labels)  # type: ignore[arg-type]  # of any container
    if len(now) != len(stored):
        raise NoLabels
    different = np.flatnonzero(_differ(now, stored))
    return int(different[0]) if len(different) else None


class NoLabels(Exception):
    """Samples that cannot be read by themselves, or have no label that can be compared."""


def _differ(now: Array, stored: Array) -> Array:
    if not comparable(now, stored).any():
        raise NoLabels
    return differ(now, stored)


def _labels(dataset: object, indices: Indices) -> Array:
    try:
        return hash_labels(samples_of(dataset, np.asarray(indices).tolist()))
    except Exception as error:  # whatever a dataset of the user's raises
        raise NoLabels from error
