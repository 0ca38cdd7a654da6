"""A few samples read on purpose, and what they say: do inputs repeat, are they what a store saw, whose labels.

A difference counts where it stays: a sample that reads differently each time says nothing. Who reads
keeps the random states (`Framework.kept_random_states`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fostore.containers.collate import samples_of
from fostore.containers.columns import hashed_parts
from fostore.generate.framework import Framework
from fostore.generate.labels import comparable, differ, hash_each, hash_labels
from fostore.generate.samples import Indexed, Indices, holding
from fostore.nested import PerSample, leaves
from fostore.schema import identity
from fostore.schema.row import Array

HASHED, UNSTABLE, OPAQUE = "hashed", "unstable", "opaque"
"""What inputs are good for later: compared by hash; random augmentation; nothing in them has bytes."""
REREADS = 8
"""A coin flip (a random mirror image) shows the same side eight times in 1 of 128 cases."""
_LABEL_REREADS = 4


def hash_inputs(framework: Framework, inputs: Any, rows: int) -> Array | None:
    """One hash a row (uint64) of a collated batch; None where something in it has no bytes."""

    held = framework.held

    def entries() -> Any:
        for path, leaf in leaves(inputs):
            # texts are asked by type first: they are many, and no array
            for inner, column in hashed_parts(path, leaf if isinstance(leaf, str) else held(leaf)):
                if isinstance(column, PerSample):
                    column = PerSample(one if type(one) is str else held(one) for one in column)
                yield inner, column

    return identity.row_hashes(entries(), rows)


@dataclass(frozen=True, slots=True)
class Probe:
    """Hashes of the inputs of a few samples, uint64; None where they have no bytes.

    Raises GenerationError where the dataset fails, which names the samples.
    """

    framework: Framework
    samples: Indexed

    def together(self, *batches: Indices) -> list[Array | None]:
        """Those of batches, read in one go, so that workers with a seed of their own draw on."""
        read = self.samples.few(*batches)
        return [
            hash_inputs(self.framework, inputs, len(batch))
            for batch, inputs in zip(batches, read, strict=True)
        ]

    def alone(self, indices: Sequence[int]) -> list[int | None]:
        """That of each sample, read by itself."""
        hashes = self.together(*(range(i, i + 1) for i in indices))
        return [None if one is None else int(one[0]) for one in hashes]

    def in_batch(self, index: int) -> int | None:
        """That of a sample among its batch: collation may pad it to its neighbours' length."""
        batch = holding(self.samples.batches, index)
        hashes = None if len(batch) == 1 else self.together(batch)[0]
        return None if hashes is None else int(hashes[np.asarray(batch) == index][0])

    def moves(self, index: int, times: int = REREADS) -> bool:
        """Whether a sample reads differently from time to time."""
        return len(set(self.alone([index] * times))) > 1


class NoLabels(Exception):
    """Samples that cannot be read by themselves, or have no label that can be compared."""


def moved_label(dataset: object, indices: Indices, stored: Array) -> int | None:
    """The first of some samples whose label is another one than the hash that was `stored`, for good.

    None where there is none: a label that reads differently each time (mixed, or drawn) says nothing.

    Raises:
        NoLabels: a sample cannot be read, or no label can be compared with what was recorded.
    """
    now = _labels(dataset, indices)
    for at in np.flatnonzero(_differ(now, stored)).tolist():
        index = int(indices[at])
        again = {int(_labels(dataset, [index])[0]) for _ in range(_LABEL_REREADS)}
        if len(again | {int(now[at])}) == 1:
            return index
    return None


def moved_entry(labels: object, stored: Array) -> int | None:
    """The same of labels that a dataset tells all at once, one for each of `stored`."""
    now = hash_each(labels)  # type: ignore[arg-type]  # of any container
    if len(now) != len(stored):
        raise NoLabels
    different = np.flatnonzero(_differ(now, stored))
    return int(different[0]) if len(different) else None


def _differ(now: Array, stored: Array) -> Array:
    if not comparable(now, stored).any():
        raise NoLabels
    return differ(now, stored)


def _labels(dataset: object, indices: Any) -> Array:
    try:
        return hash_labels(samples_of(dataset, np.asarray(indices).tolist()))
    except Exception as error:  # whatever a dataset of the user's raises
        raise NoLabels from error
