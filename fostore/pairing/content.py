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

from fostore.errors import FostoreError, GenerationError, IdentityError
from fostore.generate.framework import Framework
from fostore.generate.probe import OPAQUE, UNSTABLE, Probe
from fostore.generate.samples import Indexed, Indices, Reading
from fostore.progress import Progress
from fostore.reading.selection import Stored
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
"""A coin flip (a random mirror image) shows the same side sixteen times in 1 of 32,768 cases."""
_BATCH = 64


_ADVICE = (
    "Give the dataset as it was when the distributions were generated. Where it was permuted or cut, "
    "generate with ids= and pair with ids= (check='ids'). Where the student is meant to see another "
    "view of the same samples, say so: check='ids', or check='length' without ids"
)


def refuse(difference: str, advice: str = _ADVICE) -> IdentityError:
    """The error for a dataset whose samples are not those of the distributions."""
    return IdentityError(
        f"the dataset and its distributions differ: {difference}. {advice}", (difference,)
    )


class Undecided(Exception):
    """Content cannot be compared; says why, and whether that is news to the user."""

    def __init__(self, reason: str, *, warn: bool = False) -> None:
        super().__init__(reason)
        self.reason, self.warn = reason, warn


@dataclass(frozen=True, slots=True)
class _Difference:
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
        stored: Stored,
        joined: Stored,
    ) -> None:
        """`joined` are the rows of `stored` in the order of the dataset: itself, or a selection."""
        recorded = stored.dataset_facts.get("content")
        column = stored.schema.role("fingerprint")
        if recorded == UNSTABLE:
            reason = "the generator's dataset read differently each time (random augmentation?)"
            raise Undecided(reason, warn=True)
        if recorded == OPAQUE:
            raise Undecided("the generator could not hash its inputs", warn=True)
        if column is None:
            raise Undecided("the distributions come without input hashes")
        size = stored.meta.get("batch_size")
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
        self._stored, self._joined, self._column = stored, joined, column.name
        self.batch_size = size
        self._excuse = _excuse(stored, input_getter)
        made_by = stored.meta.get("framework")
        self._other_framework = made_by if made_by not in (None, framework.name) else None

    def __len__(self) -> int:
        return self.samples.num_samples

    def _kept(self, indices: Indices) -> Array:
        """The hashes that the store keeps for samples."""
        return self._joined.take_column(self._column, np.asarray(indices, np.int64))

    def _position(self, value: int) -> int | None:
        """Where the store keeps this hash first."""
        return self._stored.find(self._column, value)

    def compare(self, batch: Indices) -> _Difference | None:
        """The first sample of a batch whose input differs, for good.

        Raises:
            Undecided: samples cannot be read or hashed, or they read differently each time.
        """
        hashes = self._hashes(batch)
        kept = self._kept(batch)
        for at in np.flatnonzero(hashes != kept).tolist():
            difference = _Difference(int(batch[at]), int(hashes[at]))
            if self._is_real(difference, int(kept[at])):
                return difference
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

    def _is_real(self, difference: _Difference, then: int) -> bool:
        """Whether a difference stays where the sample is read again."""
        if self._excuse is not None:
            if self._are_elsewhere():
                return True
            raise Undecided(self._excuse, warn=True)
        index = difference.index
        with suppress(GenerationError):
            in_order = self._joined is self._stored
            if in_order and then == self.probe.in_batch(index):
                return False
        # A dataset of random views differs by chance; only what stays different is another sample.
        views: set[int | None] = set()
        for _ in range(0, _REREADS, 4):
            if len(views) < 2:
                views.update(self._alone([index] * 4))
        if len(views) > 1:
            raise Undecided(
                f"sample {index} reads differently each time (random augmentation?)", warn=True
            )
        return then not in views

    def refusal(self, difference: _Difference, note: str = "") -> IdentityError:
        """The error for a difference, which names the sample.

        Raises:
            Undecided: another framework reads every sample differently.
        """
        is_elsewhere = self._position(difference.now) is not None
        if not is_elsewhere and self._other_framework is not None and self._all_differ():
            raise Undecided(
                f"the distributions were generated with {self._other_framework}, and no input reads "
                f"the same with {self.framework.name}",
                warn=True,
            )
        return refuse(self.describe(difference) + note)

    def describe(self, difference: _Difference) -> str:
        """What a difference is, in a user's words."""
        index, position = difference.index, self._position(difference.now)
        if position is None:
            return f"sample {index} of the dataset has another content than the generator saw"
        return (
            f"sample {index} of the dataset is sample {position} of the store: the dataset was "
            "shuffled or reordered"
        )

    def _few(self) -> tuple[Array, Array]:
        """The hashes of some samples, and those that the store keeps for them."""
        samples = np.array(list(islice(spread(len(self)), FEWEST)))
        return self._hashes(samples), self._kept(samples)

    def _are_elsewhere(self) -> bool:
        """Whether inputs are those of other rows: then they were read alike, and are out of order."""
        hashes, kept = self._few()
        moved = hashes[hashes != kept].tolist()
        elsewhere = sum(self._position(value) is not None for value in moved)
        return 2 * elsewhere > len(moved)

    def _all_differ(self) -> bool:
        hashes, kept = self._few()
        return bool((hashes != kept).all())


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
                met, compared = _walk(contents, len(contents), math.inf, progress)
            if met is not None:
                raise contents.refusal(met)
            return compared
        met, compared = _some(contents, SECONDS)
        if met is None:
            return compared
        first, agreed = _walk(contents, met.index, WALK_SECONDS)
        unread = f" (samples {agreed} to {met.index - 1} were not all read)"
        raise contents.refusal(first or met, "" if first or agreed >= met.index else unread)


def first_difference(contents: Contents) -> str | None:
    """What the first sample is whose input differs, where some seconds suffice to find it."""
    with contents.framework.kept_random_states():
        met, agreed = _walk(contents, len(contents), WALK_SECONDS)
    if met is not None:
        return contents.describe(met)
    return "the inputs of all samples are the same" if agreed == len(contents) else None


def _some(contents: Contents, seconds: float) -> tuple[_Difference | None, int]:
    """The first difference met in a spread of samples; how many were compared."""
    compared = 0
    for batch in in_time(len(contents), seconds, contents.batch_size):
        difference = contents.compare(batch)
        compared += len(batch)
        if difference is not None:
            return difference, compared
    return None, compared


def in_time(count: int, seconds: float, most: int, first: int = 1) -> Iterator[Array]:
    """Samples from everywhere (see `spread`), as long as time is left; `FEWEST` however long they take.

    They come in batches that grow from `first` samples to `most`.
    """
    started = time.monotonic()
    order = spread(count)
    done, size = 0, first
    while batch := list(islice(order, size)):
        yield np.array(batch)
        done += len(batch)
        size = min(max(2 * size, FEWEST - done), most)
        if done >= FEWEST:  # as many as the time that is left will do for, by those so far
            spent = time.monotonic() - started
            size = int(min(size, (seconds - spent) * done / max(spent, 1e-9)))
        if size < 1:
            break


def _walk(
    contents: Contents, stop: int, seconds: float, progress: Progress | None = None
) -> tuple[_Difference | None, int]:
    """The first difference before sample `stop`, in order; how many samples before it agree."""
    started = time.monotonic()
    agreed = 0
    for batch in contents.samples.batches.touching(Ranges.of((0, stop)) if stop else Ranges()):
        if time.monotonic() - started > seconds:
            break
        difference = contents.compare(batch)
        if difference is not None:
            return difference, difference.index
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
    # Steps of the golden ratio fall into the largest gap left; one prime to `count` meets every number.
    step = max(round(count * (math.sqrt(5) - 1) / 2), 1)
    while math.gcd(step, count) != 1:
        step += 1
    ends = [0, count - 1] if count > 1 else [0] * count
    between = (k * step % count for k in range(1, count))
    return chain(ends, (index for index in between if index != count - 1))


def _excuse(stored: Stored, input_getter: Callable[[Any], Any] | None) -> str | None:
    """Why a difference between inputs would say nothing."""
    if stored.dataset_facts.get("collate") is not None:
        return "the generator made batches with a collate_fn of its own"
    if stored.dataset_facts.get("input_getter") != identity.describe_function(input_getter):
        return "the generator had another input_getter (with the same, they could be compared)"
    return None
