"""Inputs compared with what the generator saw: is it the same view of the same sample?"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

import numpy as np

from fostore.errors import ArgumentError, FostoreError, GenerationError, IdentityError
from fostore.generate.framework import Framework
from fostore.generate.probe import OPAQUE, UNSTABLE, Probe
from fostore.generate.samples import Indexed, Indices, Reading
from fostore.pairing.origin import Origin, refuse
from fostore.progress import Progress
from fostore.schema import identity
from fostore.schema.ranges import Ranges
from fostore.schema.row import Array

SECONDS = 1.0
"""How long comparing some samples may take."""
WALK_SECONDS = 5.0
"""How long the first sample that differs is looked for."""
FEWEST = 8
"""Samples that are compared however long it takes: the first, the last and some between."""
_REREADS = 16
_BATCH = 64

ADVICE = (
    "Give the dataset as it was when the distributions were generated. Where it was permuted or cut, "
    "generate with ids= and pair with ids= (check='ids'). Where the student is meant to see another "
    "view of the same samples, say so: check='ids', or check='length' without ids"
)


class Undecided(Exception):
    """Content cannot be compared; says why, and whether that is news to the user."""

    def __init__(self, reason: str, *, warn: bool = False) -> None:
        super().__init__(reason)
        self.reason, self.warn = reason, warn


@dataclass(frozen=True, slots=True)
class Difference:
    """A sample that reads differently from what the generator saw."""

    index: int
    now: int
    """The hash of its input."""


class Contents:
    """The input hashes of a dataset beside those that a store keeps.

    Raises:
        Undecided: where that cannot be known at all.
    """

    def __init__(
        self,
        framework: Framework,
        base_dataset: Any,
        input_getter: Callable[[Any], Any] | None,
        origin: Origin,
        places: Array | None,
    ) -> None:
        kept = origin.dataset.get("content")
        column = origin.schema.role("fingerprint")
        if kept == UNSTABLE:
            reason = "the generator's dataset read differently each time (random augmentation?)"
            raise Undecided(reason, warn=True)
        if kept == OPAQUE:
            raise Undecided("the generator could not hash its inputs", warn=True)
        if column is None:
            raise Undecided("the distributions come without input hashes")
        size = origin.store.meta.get("batch_size")
        size = size if type(size) is int and size > 0 else _BATCH
        try:
            samples = framework.samples(base_dataset, Reading(size, input_getter))
        except FostoreError as error:
            raise Undecided(f"the dataset is not one that a generator reads ({error})") from error
        if not isinstance(samples, Indexed):
            raise Undecided("the dataset can only be iterated")
        self.framework = framework
        self.samples = samples
        self.probe = Probe(framework, samples)
        self.origin, self.column = origin, column
        self.places = places
        self.batch_size = size
        self.excuse = _excuse(origin, input_getter)
        made_by = origin.store.meta.get("framework")
        self.other_framework = made_by if made_by not in (None, framework.name) else None

    def __len__(self) -> int:
        return self.samples.num_samples

    def stored(self, indices: Indices) -> Array:
        """The hashes that the store keeps for samples."""
        samples = np.asarray(indices, np.int64)
        places = samples if self.places is None else self.places[samples]
        return self.origin.take(self.column, places)

    def compare(self, batch: Indices) -> Difference | None:
        """The first sample of a batch whose input differs, for good.

        Raises:
            Undecided: samples cannot be read or hashed, or they read differently each time.
        """
        hashes = self._hashes(batch)
        stored = self.stored(batch)
        for at in np.flatnonzero(hashes != stored).tolist():
            found = Difference(int(batch[at]), int(hashes[at]))
            if self._is_real(found, int(stored[at])):
                return found
        return None

    def _hashes(self, batch: Indices) -> Array:
        try:
            (hashes,) = self.probe.together(batch)
        except GenerationError:  # samples of several shapes make no batch together
            alone = self._alone([int(index) for index in batch])
            hashes = None if None in alone else np.array(alone, np.uint64)
        if hashes is None:
            raise Undecided("the inputs of the dataset cannot be hashed", warn=True)
        return hashes

    def _alone(self, indices: list[int]) -> list[int | None]:
        try:
            return self.probe.alone(indices)
        except GenerationError as error:
            raise Undecided(f"it cannot be read as a generator reads it ({error})") from error

    def _is_real(self, found: Difference, then: int) -> bool:
        """Whether a difference stays where the sample is read again."""
        if self.excuse is not None:
            if self._are_elsewhere():
                return True
            raise Undecided(self.excuse, warn=True)
        with suppress(GenerationError):
            by_batch = self.places is None
            if by_batch and then == self.probe.in_batch(found.index):
                return False
        views: set[int | None] = set()
        for _ in range(0, _REREADS, 4):
            if len(views) < 2:
                views.update(self._alone([found.index] * 4))
        if len(views) > 1:
            raise Undecided(
                f"sample {found.index} reads differently each time (random augmentation?)",
                warn=True,
            )
        return then not in views

    def refusal(self, found: Difference, note: str = "") -> IdentityError:
        """The error for a difference, which names the sample.

        Raises:
            Undecided: another framework reads every sample differently.
        """
        is_elsewhere = self.origin.find(self.column, found.now) is not None
        if not is_elsewhere and self.other_framework is not None and self._all_differ():
            raise Undecided(
                f"the distributions were generated with {self.other_framework}, and no input reads "
                f"the same with {self.framework.name}",
                warn=True,
            )
        return refuse(self.describe(found) + note, ADVICE)

    def describe(self, found: Difference) -> str:
        """What a difference is, in a user's words."""
        place = self.origin.find(self.column, found.now)
        if place is None:
            return f"sample {found.index} of the dataset has another content than the generator saw"
        return (
            f"sample {found.index} of the dataset is sample {place} of the store: the dataset was "
            "shuffled or reordered"
        )

    def _are_elsewhere(self) -> bool:
        """Whether inputs are those of other rows: then they were read alike, and are out of order."""
        some = np.array(list(islice(spread(len(self)), FEWEST)))
        hashes, stored = self._hashes(some), self.stored(some)
        moved = hashes[hashes != stored].tolist()
        found = sum(self.origin.find(self.column, value) is not None for value in moved)
        return 2 * found > len(moved)

    def _all_differ(self) -> bool:
        some = np.array(list(islice(spread(len(self)), FEWEST)))
        return bool((self._hashes(some) != self.stored(some)).all())


def check_content(contents: Contents, *, every: bool) -> int:
    """Compare all samples, or as many as a second allows; how many were.

    Random states are afterwards as before.

    Raises:
        IdentityError: names the first sample that differs.
        Undecided: content decides nothing, and says why.
    """
    with contents.framework.kept_random_states():
        if every:
            with Progress(True, len(contents), name="comparing samples") as progress:
                found, compared = _walk(contents, len(contents), math.inf, progress)
            if found is not None:
                raise contents.refusal(found)
            return compared
        found, compared = _some(contents, SECONDS)
        if found is None:
            return compared
        first, agreed = _walk(contents, found.index, WALK_SECONDS)
        unread = f" (samples {agreed} to {found.index - 1} were not all read)"
        raise contents.refusal(first or found, "" if first or agreed >= found.index else unread)


def first_difference(contents: Contents) -> str | None:
    """What the first sample is whose input differs, where some seconds suffice to find it."""
    with contents.framework.kept_random_states():
        found, agreed = _walk(contents, len(contents), WALK_SECONDS)
    if found is not None:
        return contents.describe(found)
    return "the inputs of all samples are the same" if agreed == len(contents) else None


def _some(contents: Contents, seconds: float) -> tuple[Difference | None, int]:
    """The first difference met in a spread of samples; how many were compared."""
    started = time.monotonic()
    order = spread(len(contents))
    compared, size = 0, 1
    while batch := list(islice(order, size)):
        found = contents.compare(np.array(batch))
        compared += len(batch)
        if found is not None:
            return found, compared
        spent = time.monotonic() - started
        size = min(max(2 * size, FEWEST - compared), contents.batch_size)
        if compared >= FEWEST:
            size = min(size, int((seconds - spent) * compared / max(spent, 1e-9)))
        if size < 1:
            break
    return None, compared


def _walk(
    contents: Contents, stop: int, seconds: float, progress: Progress | None = None
) -> tuple[Difference | None, int]:
    """The first difference before sample `stop`, in order; how many samples before it agree."""
    started = time.monotonic()
    agreed = 0
    for batch in contents.samples.batches.touching(Ranges.of((0, stop)) if stop else Ranges()):
        if time.monotonic() - started > seconds:
            break
        found = contents.compare(batch)
        if found is not None:
            return found, found.index
        agreed += len(batch)
        if progress is not None:
            progress.add(len(batch))
    return None, agreed


def spread(count: int) -> Iterator[int]:
    """0, the last one, then all others, each as far from those before as can be (golden ratio).

    Fixed, and without a list of them in memory.

    >>> list(spread(8))
    [0, 7, 5, 2, 4, 1, 6, 3]
    """
    step = max(round(count * (math.sqrt(5) - 1) / 2), 1)
    while math.gcd(step, count) != 1:
        step += 1
    ends = [0, count - 1] if count > 1 else [0] * count
    between = (k * step % count for k in range(1, count))
    return chain(ends, (index for index in between if index != count - 1))


def _excuse(origin: Origin, input_getter: Callable[[Any], Any] | None) -> str | None:
    """Why a difference between inputs would say nothing."""
    if origin.dataset.get("collate") is not None:
        return "the generator made batches with a collate_fn of its own"
    if origin.dataset.get("input_getter") != identity.describe_function(input_getter):
        return "the generator had another input_getter (with the same, they could be compared)"
    return None


def must_compare(reason: str) -> ArgumentError:
    """The error for content that was asked to be compared and cannot be."""
    return ArgumentError(
        f"check='content' compares the inputs of all samples, and {reason}; check='auto' compares "
        "what can be compared, check='ids' goes by ids"
    )
