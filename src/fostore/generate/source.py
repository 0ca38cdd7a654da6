"""What is iterated: batches of inputs, each with the dataset indices of its samples.

A row belongs to a dataset index, never to the moment at which it arrived.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import tee
from typing import Any, TypeAlias

import numpy as np

from fostore.errors import ArgumentError, FostoreError, GenerationError
from fostore.generate.labels import Labelled, Noted, hash_labels
from fostore.nested import (
    LABELS,
    Getter,
    OddSample,
    common_rows,
    is_entries,
    is_numbers,
    num_rows,
    split,
    split_all,
)
from fostore.nested import collate as collate_arrays
from fostore.ranges import Ranges
from fostore.schema import Array

Indices: TypeAlias = "range | Array"
"""The dataset indices of the samples of one batch, in the order of its rows."""

Collate = Callable[[Any], Any]


@dataclass(frozen=True, slots=True)
class Assembly:
    """How a list of samples becomes the model's input, in this process or in a worker's.

    The one place where input and label part: a getter sees whole samples, so does a collate_fn of the
    user's; else the inputs alone are brought together, in the side's own way.
    """

    getter: Getter | None = None
    collate: Collate | None = None
    """What makes a batch of samples, where it is the user's own."""
    together: Collate = collate_arrays
    """What makes a batch of inputs, where the user says nothing."""
    labels: Noted = field(default_factory=Noted, compare=False)
    """Whether labels come along as well."""

    def __call__(self, samples: Sequence[Any]) -> Any:
        """
        Raises:
            OddSample: one of the samples is None, is a batch itself, does not go with the others, or was
                left out by the collate_fn.
        """
        if self.getter is None and self.collate is None and is_batch(samples[0]):
            raise OddSample(0, IS_BATCH)
        try:
            inputs = self._bring(samples)
        except OddSample:
            raise
        except Exception as error:
            raise self._explained(samples, error) from error
        if self.collate is not None:
            self._check_rows(samples, inputs)
        return Labelled(inputs, hash_labels(samples)) if self.labels.wanted else inputs

    def _bring(self, samples: Sequence[Any]) -> Any:
        if self.getter is None and self.collate is not None:
            return input_of(self.collate(samples))
        parts = split_all(samples) if self.getter is None else self._taken(samples)
        inputs = [part[0] for part in parts]
        for place, one in enumerate(inputs):
            if one is None:
                raise OddSample(place, _none(self.getter, samples[place]))
        return (self.collate or self.together)(inputs)

    def _taken(self, samples: Sequence[Any]) -> list[tuple[Any, ...]]:
        return [split(sample, self.getter) for sample in samples]

    def _explained(self, samples: Sequence[Any], error: Exception) -> Exception:
        """The error of the first sample that cannot be brought together with the first one, or `error`."""
        for place, one in enumerate(samples):
            if one is None:
                return OddSample(place, "is None")
            try:
                self._bring([samples[0], one] if place else [one])
            except OddSample as odd:
                return OddSample(place, odd.reason)
            except Exception as alone:
                beside = " beside the first one" if place else ""
                return OddSample(place, f"makes no batch{beside}: {type(alone).__name__}: {alone}")
        return error

    def _check_rows(self, samples: Sequence[Any], inputs: Any) -> None:
        """Refuse a collate_fn that leaves samples out, where it can be told which."""
        rows = common_rows(inputs)
        if rows is None or rows >= len(samples):
            return
        gone = [place for place, one in enumerate(samples) if one is None or self._drops(one)]
        if len(gone) == len(samples) - rows:
            what = "is None, and the" if samples[gone[0]] is None else "was left out: the"
            more = f" ({len(gone) - 1} more are)" if len(gone) > 1 else ""
            raise OddSample(
                gone[0],
                f"{what} collate_fn gave {rows} rows for the {len(samples)} samples of a batch{more}; "
                "every sample needs one row: leave it out of the dataset, as "
                "torch.utils.data.Subset(dataset, indices) does, or let it be a blank sample",
            )

    def _drops(self, sample: Any) -> bool:
        try:
            return not common_rows(self._bring([sample]))
        except Exception:  # nothing is left to make a batch of
            return True


def _none(getter: Getter | None, sample: Any) -> str:
    if sample is None:
        return "is None"
    return "has the input None" if getter is None else "is None after the input_getter"


IS_BATCH = (
    "is a whole batch: all its parts have one axis of the same length in front. Rows are kept by sample: "
    "give the Dataset itself, or a DataLoader over it with shuffle=False; or, where this is one sample, "
    "say so with input_getter=lambda sample: sample[0]"
)


def is_batch(item: Any) -> bool:
    """Whether what a dataset gives as one sample is a batch: inputs and labels with one axis in front.

    Inputs have two axes at least, or are a list of texts; labels one, or two and another shape than the
    inputs (an image and its mask are no batch). Where a part has no such axis it is a sample, and one
    of a single row is taken for what it says it is.

    >>> is_batch((np.zeros((16, 8)), np.zeros(16))), is_batch((np.zeros((3, 8, 8)), 7))
    (True, False)
    """
    if isinstance(item, Mapping):
        parts = [part for key, part in item.items() if key not in LABELS]
        labels = [part for key, part in item.items() if key in LABELS]
        if not labels or not parts:
            return False
    elif isinstance(item, (tuple, list)) and len(item) > 1 and not is_numbers(item):
        parts, labels = list(item[:1]), list(item[1:])
    else:
        return False
    shapes = [_shape(part) for part in (*parts, *labels)]
    lengths = {shape[0] if shape else 0 for shape in shapes}
    if len(lengths) != 1 or lengths.pop() < 2:
        return False
    inputs, others = shapes[: len(parts)], shapes[len(parts) :]
    wide = any(len(shape) > 1 for shape in inputs) or any(map(is_entries, parts))
    return wide and any(len(one) == 1 or (len(one) == 2 and one != inputs[0]) for one in others)


def _shape(part: Any) -> tuple[int, ...]:
    """The axes of an array, of a list of numbers or of a list of texts; () for anything else."""
    shape = getattr(part, "shape", None)
    if shape is not None:
        return tuple(shape)
    if is_numbers(part):
        return (
            (len(part), *(_shape(part[0]) if isinstance(part[0], list) else ())) if part else (0,)
        )
    return (len(part),) if is_entries(part) else ()


def input_of(batch: Any) -> Any:
    """The input of a batch that a user's collate_fn made: its first part, or the batch itself."""
    is_structure = isinstance(batch, (tuple, list)) and len(batch) > 0
    if is_structure and not (is_entries(batch) or is_numbers(batch)):
        return batch[0]
    return batch


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
                raise GenerationError(
                    f"the loader ended before {name_samples(indices)}; nothing of them was generated"
                ) from None
            except OddSample as odd:
                raise _odd(odd, int(indices[odd.place])) from odd
            except FostoreError:
                raise
            except Exception as error:
                raise self._named(indices, error) from error
            yield indices, inputs

    def _named(self, indices: Indices, error: Exception) -> FostoreError:
        """The error for the one bad sample of a batch: they are read again, one at a time, here."""
        if "DataLoader worker" in str(error) and "Caught" not in str(error):
            return failed(
                "dataset", indices, error
            )  # a worker died: what it read would kill this one
        samples = []
        for index in map(int, indices):
            try:
                samples += samples_of(self.dataset, range(index, index + 1))
            except Exception as alone:
                rest = "" if len(indices) == 1 else f" (of {name_samples(indices)})"
                return GenerationError(
                    f"the dataset failed on sample {index}{rest}: {type(alone).__name__}: {alone}"
                )
        try:
            self.assemble(samples)
        except OddSample as odd:
            return _odd(odd, int(indices[odd.place]))
        except Exception:  # the one that is at hand says as much
            pass
        return failed("dataset", indices, error)


def _odd(odd: OddSample, index: int) -> FostoreError:
    return ArgumentError(f"sample {index} of the dataset {odd.reason}")


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
        yield assemble(samples_of(dataset, indices))


def samples_of(dataset: Any, indices: Indices) -> list[Any]:
    """Samples of a map dataset, asked for at once where it can (`__getitems__`)."""
    listed = indices.tolist() if isinstance(indices, np.ndarray) else list(indices)
    many = getattr(dataset, "__getitems__", None)
    return list(many(listed)) if many is not None else [dataset[i] for i in listed]


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
