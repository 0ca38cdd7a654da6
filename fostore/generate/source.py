"""What is iterated: batches of inputs, each with the dataset indices of its samples.

A row belongs to a dataset index, never to the moment at which it arrived.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import tee
from typing import Any, TypeAlias

import numpy as np

from fostore.containers.rows import samples_of
from fostore.errors import ArgumentError, FostoreError, GenerationError
from fostore.generate.assembly import Assembly
from fostore.nested import OddSample, num_rows
from fostore.schema.ranges import Ranges
from fostore.schema.row import Array

Indices: TypeAlias = "range | Array"
"""The dataset indices of the samples of one batch, in the order of its rows."""


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
            first = max(start // self.batch_size, done)
            done = -(-min(stop, self.num_rows) // self.batch_size)
            for k in range(first, done):
                yield range(k * self.batch_size, min((k + 1) * self.batch_size, self.num_rows))

    def holding(self, index: int) -> Indices:
        """The batch that holds a sample."""
        return next(self.touching(Ranges.of((index, index + 1))))


@dataclass(frozen=True, slots=True)
class Listed:
    """Batches whose indices a sampler named: any order, any sizes, no index twice."""

    batches: tuple[Array, ...]

    @classmethod
    def of(cls, batches: Iterable[Iterable[int]], num_samples: int) -> Listed:
        """Batches of indices into a dataset of `num_samples`.

        Raises:
            ArgumentError: an index comes twice, or is outside the dataset.
        """
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
        return sum(len(batch) for batch in self.batches)

    def touching(self, wanted: Ranges) -> Iterator[Array]:
        """The batches that hold a wanted row, in the sampler's order."""
        starts = np.array([start for start, _ in wanted], np.int64)
        stops = np.array([stop for _, stop in wanted], np.int64)
        for batch in self.batches:
            at = np.searchsorted(starts, batch, side="right") - 1
            if ((at >= 0) & (batch < stops[at])).any() if starts.size else False:
                yield batch

    def holding(self, index: int) -> Indices:
        """The batch that holds a sample."""
        return next(self.touching(Ranges.of((index, index + 1))))


@dataclass(frozen=True, slots=True)
class MapSource:
    """A dataset whose samples are asked for by index.

    `read(batches, few)` yields the assembled inputs of each batch of indices, in that order; `few`
    says that only a handful is read, so that no fleet of workers is started for them.
    """

    dataset: Any
    num_samples: int
    batches: Sequential | Listed
    read: Callable[[Iterable[Indices], bool], Iterator[Any]]
    assemble: Assembly
    fresh: bool = False
    """Whether arrays of a batch are stacked anew each time, so that nobody else holds their memory."""
    seeded: bool = False
    """Whether samples are read through `randomness.Seeded`, which takes an index for each draw."""
    draws_views: bool = False
    """Whether `read` yields a view for each draw; see `draws.Views`."""

    def inputs(
        self, batches: Iterable[Indices], *, few: bool = False
    ) -> Iterator[tuple[Indices, Any]]:
        """Batches of indices with their inputs.

        Raises:
            GenerationError, ArgumentError: names the sample that cannot be read or does not go with the
                others; where that cannot be told, the samples of the batch.
        """
        asked, named = tee(batches)
        reader: Iterator[Any] | None = None
        for indices in named:
            try:
                reader = iter(self.read(asked, few)) if reader is None else reader
                inputs = self.assemble.labels.take(next(reader))
            except StopIteration:
                named_now = name_samples(self._samples(indices))
                raise GenerationError(
                    f"the loader ended before {named_now}; nothing of them was generated"
                ) from None
            except OddSample as odd:
                raise odd.named(int(self._samples(indices)[odd.place])) from odd
            except FostoreError:
                raise
            except Exception as error:
                raise self._named(self._samples(indices), error) from error
            yield indices, inputs

    def few(self, *batches: Indices) -> Iterator[Any]:
        """The inputs of a handful of batches, read one after the other; see `inputs`."""
        return (inputs for _, inputs in self.inputs(batches, few=True))

    def _samples(self, indices: Indices) -> Indices:
        """The samples that indices mean, whichever draw they are of."""
        return np.asarray(indices) % self.num_samples if self.seeded else indices

    def _named(self, indices: Indices, error: Exception) -> FostoreError:
        """The error for the one bad sample of a batch: they are read again, one at a time, here."""
        if "DataLoader worker" in str(error) and "Caught" not in str(error):
            return failed(
                "dataset", indices, error
            )  # a worker died: what it read would kill this one
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
        return failed("dataset", indices, error)


@dataclass(frozen=True, slots=True)
class StreamSource:
    """A dataset that can only be iterated; the position of a sample in the stream is its index.

    `read()` yields collated inputs from the beginning. `num_samples` is None where nobody knows it.
    """

    dataset: Any
    num_samples: int | None
    read: Callable[[], Iterator[Any]]
    assemble: Assembly
    drop_last: bool = False


Source: TypeAlias = "MapSource | StreamSource"
Seen = Callable[[range, Any], None]


def steps(
    source: Source, wanted: Ranges, seen: Seen | None = None
) -> Iterator[tuple[Indices, Any]]:
    """The batches that hold wanted rows, as (indices, inputs); of a map dataset no others are read.

    Of a stream all are read, since there is no other way past them; `seen` is called with those
    that hold no wanted row.

    Raises:
        GenerationError: the dataset failed; the message names the samples.
    """
    if isinstance(source, StreamSource):
        yield from _stream(source, wanted, seen)
        return
    yield from source.inputs(source.batches.touching(wanted))


def _stream(
    source: StreamSource, wanted: Ranges, seen: Seen | None
) -> Iterator[tuple[Indices, Any]]:
    position = 0
    last = wanted.items[-1][1] if wanted.items else 0
    reader: Iterator[Any] | None = None
    while position < last:
        try:
            reader = iter(source.read()) if reader is None else reader
            inputs = source.assemble.labels.take(next(reader))
        except StopIteration:
            return
        except OddSample as odd:
            raise ArgumentError(
                f"sample {position + odd.place} of the stream {odd.reason}"
            ) from odd
        except FostoreError:
            raise
        except Exception as error:
            raise GenerationError(
                f"the dataset failed after {position} samples: {type(error).__name__}: {error}"
            ) from error
        rows = num_rows(inputs)
        if rows is None:
            raise ArgumentError(
                f"a batch of the stream holds no array ({type(inputs).__name__}), so its number of "
                "samples is not known; give an input_getter or a collate_fn that returns arrays"
            )
        indices = range(position, position + rows)
        position += rows
        if source.num_samples is not None and position > source.num_samples:
            raise GenerationError(
                f"the stream goes on after {source.num_samples} samples, which its length says is "
                "all; correct its __len__, or leave it out"
            )
        if wanted.overlap(indices.start, indices.stop):
            yield indices, inputs
        elif seen is not None:
            seen(indices, inputs)


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
    items = [int(i) for i in (indices[:6] if len(indices) > 6 else indices)]
    if len(indices) == 1:
        return f"sample {items[0]}"
    if isinstance(indices, range) or bool((np.diff(indices) == 1).all()):
        return f"samples {int(indices[0])} to {int(indices[-1])}"
    dots = f" and {len(indices) - 6} more" if len(indices) > 6 else ""
    return f"samples {', '.join(map(str, items))}{dots}"


def read_samples(dataset: Any, batches: Iterable[Indices], assemble: Assembly) -> Iterator[Any]:
    """The inputs of batches of a map dataset."""
    for indices in batches:
        yield assemble(samples_of(dataset, _listed(indices)))


def _listed(indices: Indices) -> list[int]:
    return indices.tolist() if isinstance(indices, np.ndarray) else list(indices)


def read_stream(stream: Iterable[Any], batch_size: int, assemble: Assembly) -> Iterator[Any]:
    """The inputs of a stream of samples; the last batch may be short."""
    samples: list[Any] = []
    for sample in stream:
        samples.append(sample)
        if len(samples) == batch_size:
            yield assemble(samples)
            samples = []
    if samples:
        yield assemble(samples)
