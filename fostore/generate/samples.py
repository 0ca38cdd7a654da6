"""Samples: what is generated from, in batches that each know the dataset indices of their rows.

A row belongs to a dataset index, never to the moment at which it arrived.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import tee
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from fostore.containers.collate import OddSample, samples_of
from fostore.errors import ArgumentError, FostoreError, GenerationError
from fostore.generate.assembly import Assembly, Collate
from fostore.generate.labels import Labelled
from fostore.generate.tokens import Sequences, Tokens
from fostore.nested import Getter, num_rows
from fostore.schema.ranges import Range, Ranges
from fostore.schema.row import Array

Indices: TypeAlias = "range | Array"
"""The dataset indices of the samples of one batch, in the order of its rows."""
ENDLESS = 1 << 62
"""Where a stream of unknown length ends."""


@dataclass(frozen=True, slots=True)
class Reading:
    """How a dataset is read: samples a batch, what the model's input is, how samples become a batch."""

    batch_size: int
    input_getter: Getter | None = None
    collate_fn: Collate | None = None
    seed: int | None = None
    """Of draws: each sample is read from random states that are a function of it."""
    sequences: Sequences | None = None
    """How samples that are sequences become a batch, where a row is a token."""


class Batch(NamedTuple):
    """Rows that pass through together: whose they are, the model's input, and (if asked for) their labels.

    `labels` are hashes, `exact` the labels themselves; `tokens` the positions of sequences that are rows.
    """

    indices: Indices
    inputs: Any
    labels: Array | None = None
    exact: list[Any] | None = None
    tokens: Tokens | None = None

    def of_rows(self, count: int | None = None) -> Indices:
        """The sample of each row, or of the first ones: several may be of one sequence."""
        if self.tokens is None:
            return self.indices[:count]
        return np.asarray(self.indices)[self.tokens.sequences[:count]]


def _batch(indices: Indices, handed: Any) -> Batch:
    return Batch(indices, *handed) if isinstance(handed, Labelled) else Batch(indices, handed)


# ------------------------------------------------------------------ which samples make a batch


@dataclass(frozen=True, slots=True)
class Sequential:
    """Batches in dataset order: batch k holds the rows `[k * batch_size, (k + 1) * batch_size)`.

    They are the same in every run, also in one that resumes: that is why a resumed store is
    bit-identical to an uninterrupted one.

    >>> [list(b) for b in Sequential(7, 3).touching(Ranges.of((4, 5), (6, 7)))]
    [[3, 4, 5], [6]]
    """

    num_samples: int
    batch_size: int
    drop_last: bool = False

    @property
    def num_rows(self) -> int:
        """Rows that the batches hold together."""
        rest = self.num_samples % self.batch_size if self.drop_last else 0
        return self.num_samples - rest

    def touching(self, wanted: Ranges) -> Iterator[range]:
        """The batches that hold a wanted row, in order."""
        done = 0
        for start, stop in wanted:
            first = max(start // self.batch_size, done)  # two ranges may meet in one batch
            done = -(-min(stop, self.num_rows) // self.batch_size)
            for k in range(first, done):
                yield range(k * self.batch_size, min((k + 1) * self.batch_size, self.num_rows))


@dataclass(frozen=True, slots=True)
class Listed:
    """Batches whose indices a sampler named: any order, any sizes, no index twice."""

    batches: tuple[Array, ...]

    @classmethod
    def of(cls, batches: Iterable[Iterable[int]], num_samples: int) -> Listed:
        """Batches of indices into a dataset of `num_samples`."""
        listed = tuple(np.asarray(list(batch), np.int64) for batch in batches)
        every = np.concatenate(listed) if listed else np.empty(0, np.int64)
        if every.size and (every.min() < 0 or every.max() >= num_samples):
            wrong = int(every[(every < 0) | (every >= num_samples)][0])
            raise ArgumentError(
                f"the sampler names sample {wrong}, but the dataset has {num_samples} samples"
            )
        order = np.sort(every)
        twice = order[1:][order[1:] == order[:-1]]
        if twice.size:
            raise ArgumentError(
                f"the sampler names sample {int(twice[0])} more than once; "
                "a distribution is generated once for each sample: use a sampler without repeats"
            )
        return cls(listed)

    @property
    def num_rows(self) -> int:
        """Rows that the batches hold together."""
        return sum(map(len, self.batches))

    @property
    def batch_size(self) -> int | None:
        """Samples of the largest batch; None without batches."""
        return max(map(len, self.batches), default=None)

    def touching(self, wanted: Ranges) -> Iterator[Array]:
        """The batches that hold a wanted row, in the sampler's order."""
        starts = np.array([start for start, _ in wanted], np.int64)
        stops = np.array([stop for _, stop in wanted], np.int64)
        for batch in self.batches:
            # the wanted range that begins last before each index, or -1: ranges are sorted and disjoint
            at = np.searchsorted(starts, batch, side="right") - 1
            if ((at >= 0) & (batch < stops[at])).any() if starts.size else False:
                yield batch


def holding(batches: Sequential | Listed, index: int) -> Indices:
    """The batch that holds a sample."""
    touching: Iterator[Indices] = batches.touching(Ranges.of((index, index + 1)))
    return next(touching)


# ------------------------------------------------------------------ samples by index, samples that pass


@dataclass(frozen=True, slots=True)
class Indexed:
    """Samples that are asked for by index.

    `read(batches, assemble, few)` yields what `assemble` makes of each batch of indices, in that order;
    `few` says that only a handful is read, so that no fleet of workers is started for them.
    """

    dataset: Any
    num_samples: int
    batches: Sequential | Listed
    read: Callable[[Iterable[Indices], Assembly, bool], Iterator[Any]]
    assemble: Assembly
    fresh: bool = False
    """Whether arrays of a batch are stacked anew each time, so that nobody else holds their memory."""
    seeded: bool = False
    """Whether samples are read through `randomness.Seeded`, which takes an index for each draw."""
    draws_views: bool = False
    """Whether `read` yields a view for each draw; see `draws.Views`."""
    noun = "dataset"

    def steps(self, wanted: Ranges, _: _Passed | None = None) -> Iterator[Batch]:
        """The batches that hold wanted rows; no others are read."""
        return self.inputs(self.batches.touching(wanted))

    def inputs(self, batches: Iterable[Indices], *, few: bool = False) -> Iterator[Batch]:
        """Batches of indices with their inputs.

        Raises:
            GenerationError, ArgumentError: names the sample that cannot be read or does not go with the
                others; where that cannot be told, the samples of the batch.
        """
        # Two iterators: workers ask for batches long before these come back and are named.
        asked, named = tee(batches)
        reader: Iterator[Any] | None = None
        for indices in named:
            try:
                reader = iter(self.read(asked, self.assemble, few)) if reader is None else reader
                handed = next(reader)
            except StopIteration:
                raise GenerationError(
                    f"the loader ended before {name_samples(self._samples(indices))}; nothing of them "
                    "was generated"
                ) from None
            except OddSample as odd:
                raise odd.named(int(self._samples(indices)[odd.place])) from odd
            except FostoreError:
                raise
            except Exception as error:
                raise self._named(self._samples(indices), error) from error
            yield _batch(indices, handed)

    def few(self, *batches: Indices) -> Iterator[Any]:
        """The inputs of a handful of batches, read one after the other; see `inputs`."""
        return (batch.inputs for batch in self.inputs(batches, few=True))

    def _samples(self, indices: Indices) -> Indices:
        """The samples that indices mean, whichever draw they are of."""
        return np.asarray(indices) % self.num_samples if self.seeded else indices

    def _named(self, indices: Indices, error: Exception) -> FostoreError:
        """The error for the one bad sample of a batch: they are read again, one at a time, here."""
        if "DataLoader worker" in str(error) and "Caught" not in str(error):
            # a worker died: what it read would kill this process as well
            return failed(self.noun, indices, error)
        samples = []
        for index in map(int, indices):
            try:
                samples += samples_of(self.dataset, [index])
            except Exception as alone:
                rest = "" if len(indices) == 1 else f" (of {name_samples(indices)})"
                return GenerationError(
                    f"the dataset failed on sample {index}{rest}: {type(alone).__name__}: {alone}"
                )
        try:
            self.assemble(samples)
        except OddSample as odd:
            return odd.named(int(indices[odd.place]))
        except Exception:  # the one that is at hand says as much
            pass
        return failed(self.noun, indices, error)


@dataclass(frozen=True, slots=True)
class Stream:
    """Samples that can only be iterated; the position of a sample in the stream is its index.

    `read(assemble)` yields assembled batches from the beginning. `num_samples` is None where nobody
    knows it.
    """

    dataset: Any
    num_samples: int | None
    read: Callable[[Assembly], Iterator[Any]]
    assemble: Assembly
    drop_last: bool = False
    noun = "stream"

    def steps(self, wanted: Ranges, passed: _Passed | None = None) -> Iterator[Batch]:
        """The batches that hold wanted rows; all others before them are read too, and are `passed`."""
        position = 0
        last = wanted.items[-1][1] if wanted.items else 0
        reader: Iterator[Any] | None = None
        while position < last:  # what comes after the last wanted row is not even read
            try:
                reader = iter(self.read(self.assemble)) if reader is None else reader
                handed = next(reader)
            except StopIteration:
                return
            except OddSample as odd:
                raise odd.named(position + odd.place, self.noun) from odd
            except FostoreError:
                raise
            except Exception as error:
                raise GenerationError(
                    f"the dataset failed after {position} samples: {type(error).__name__}: {error}"
                ) from error
            batch = _batch(range(0), handed)
            rows = num_rows(batch.inputs)
            if rows is None:
                raise ArgumentError(
                    f"a batch of the stream holds no array ({type(batch.inputs).__name__}), so its number "
                    "of samples is not known; give an input_getter or a collate_fn that returns arrays"
                )
            indices = range(position, position + rows)
            position += rows
            if self.num_samples is not None and position > self.num_samples:
                raise GenerationError(
                    f"the stream goes on after {self.num_samples} samples, which its length says is "
                    "all; correct its __len__, or leave it out"
                )
            batch = batch._replace(indices=indices)
            if wanted.overlap(indices.start, indices.stop):
                yield batch
            elif passed is not None:
                passed(batch)


Samples: TypeAlias = "Indexed | Stream"
_Passed = Callable[[Batch], None]


def labelled(samples: Samples, *, hashes: bool, exact: bool) -> Samples:
    """The same samples, whose batches come with a hash of each label, or with the labels themselves."""
    return replace(samples, assemble=replace(samples.assemble, labelled=hashes, exact=exact))


def checked_range(rows: Any, samples: Samples) -> Range | None:
    """Rows that are asked for, `(start, stop)`; None of all of them.

    Raises ArgumentError where there are none such, and for a stream.
    """
    if rows is None:
        return None
    if isinstance(samples, Stream):
        raise ArgumentError("rows= needs a dataset with __len__ and __getitem__, this one streams")
    try:
        start, stop = (int(n.__index__()) for n in rows)
    except (TypeError, ValueError, AttributeError):
        raise ArgumentError(f"rows is {rows!r}, expected (start, stop)") from None
    if not 0 <= start < stop <= samples.num_samples:
        raise ArgumentError(
            f"rows is {(start, stop)}, expected 0 <= start < stop <= {samples.num_samples}"
        )
    return start, stop


def failed(what: str, indices: Indices, error: BaseException) -> GenerationError:
    """The error that says which samples were at hand when the model or the dataset failed."""
    return GenerationError(
        f"the {what} failed on {name_samples(indices)}: {type(error).__name__}: {error}"
    )


def name_samples(indices: Indices) -> str:
    """The samples of a batch in a user's words.

    >>> name_samples(range(3, 9)), name_samples(range(1)), name_samples(np.array([4, 2]))
    ('samples 3 to 8', 'sample 0', 'samples 4, 2')
    """
    if isinstance(indices, np.ndarray):  # of rows, of which a sample may have several
        indices = indices[np.diff(indices, prepend=-1) != 0]
    items = [int(i) for i in (indices[:6] if len(indices) > 6 else indices)]
    if len(indices) == 1:
        return f"sample {items[0]}"
    if isinstance(indices, range) or bool((np.diff(indices) == 1).all()):
        return f"samples {int(indices[0])} to {int(indices[-1])}"
    dots = f" and {len(indices) - 6} more" if len(indices) > 6 else ""
    return f"samples {', '.join(map(str, items))}{dots}"
