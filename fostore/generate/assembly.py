"""How samples become the model's input: where input and label part, and what is no sample at all."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fostore.containers.collate import IS_NONE, LEAVE_OUT, OddSample, find_odd
from fostore.containers.collate import collate as collate_arrays
from fostore.generate.labels import Labelled, exact_labels, hash_labels
from fostore.generate.tokens import Sequences
from fostore.nested import LABELS, Getter, common_rows, is_entries, is_numbers, split, split_all
from fostore.schema.row import Array

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
    labelled: bool = False
    """Whether batches come with a hash of each label (`Labelled`)."""
    exact: bool = False
    """Whether batches come with the labels themselves."""
    sequences: Sequences | None = None
    """How samples that are sequences become a batch, where a row is a token."""

    def __call__(self, samples: Sequence[Any]) -> Any:
        """
        Raises:
            OddSample: one of the samples is None, is a batch itself, does not go with the others, or was
                left out by the collate_fn.
        """
        if self.getter is None and self.collate is None and is_batch(samples[0]):
            raise OddSample(0, _IS_BATCH)
        lengths: Array | None = None
        try:
            if self.sequences is None:
                inputs = self._bring(samples)
            else:
                inputs, lengths = self._bring_sequences(samples, self.sequences)
        except Exception as error:
            odd = find_odd(self._bring, samples, error)
            if odd is None:
                raise
            raise odd from (None if odd is error else error)
        if self.collate is not None:
            self._check_rows(samples, inputs)
        if self.sequences is not None:
            return self.sequences.handed(inputs, lengths)
        if not (self.labelled or self.exact):
            return inputs
        hashes = hash_labels(samples) if self.labelled else None
        return Labelled(inputs, hashes, exact_labels(samples) if self.exact else None)

    def _bring(self, samples: Sequence[Any]) -> Any:
        if self.getter is None and self.collate is not None:
            return input_of(self.collate(samples))
        return (self.collate or self.together)(self._inputs(samples))

    def _bring_sequences(
        self, samples: Sequence[Any], sequences: Sequences
    ) -> tuple[Any, Array | None]:
        """The same of sequences, and their lengths where they are padded here."""
        if self.getter is None and self.collate is not None:
            return input_of(self.collate(samples)), None
        inputs = sequences.tokenized(self._inputs(samples))
        if self.collate is not None:
            return self.collate(inputs), None
        inputs, lengths = sequences.padded(inputs)
        return self.together(inputs), lengths

    def _inputs(self, samples: Sequence[Any]) -> list[Any]:
        parts = split_all(samples) if self.getter is None else self._taken(samples)
        inputs = [part[0] for part in parts]
        for place, one in enumerate(inputs):
            if one is None:
                by = "has the input None" + ("" if self.getter is None else ", by the input_getter")
                raise OddSample(
                    place, f"{'is None' if samples[place] is None else by}; {LEAVE_OUT}"
                )
        return inputs

    def _taken(self, samples: Sequence[Any]) -> list[tuple[Any, ...]]:
        parts = []
        for place, sample in enumerate(samples):
            try:
                parts.append(split(sample, self.getter))
            except Exception as error:
                if sample is None:
                    raise OddSample(place, IS_NONE) from error
                raise OddSample(
                    place,
                    f"is one on which the input_getter failed: {type(error).__name__}: {error}",
                ) from error
        return parts

    def _check_rows(self, samples: Sequence[Any], inputs: Any) -> None:
        """Refuse a collate_fn that leaves samples out, where it can be told which."""
        rows = common_rows(inputs)
        if rows is None or rows >= len(samples):
            return
        gone = [place for place, one in enumerate(samples) if one is None or self._drops(one)]
        if len(gone) == len(samples) - rows:
            none = samples[gone[0]] is None
            raise OddSample(
                gone[0],
                f"{IS_NONE if none else _LEFT_OUT}. The collate_fn gave {rows} rows for the {len(samples)} "
                "samples of a batch",
            )

    def _drops(self, sample: Any) -> bool:
        try:
            return not common_rows(self._bring([sample]))
        except Exception:  # nothing is left to make a batch of
            return True


_LEFT_OUT = f"was left out by the collate_fn; {LEAVE_OUT}"
_IS_BATCH = (
    "is a whole batch: all its parts have one axis of the same length in front. Rows are kept by sample: "
    "give the Dataset itself, or a DataLoader over it with shuffle=False (of a generator, the samples one "
    "by one: for pair in zip(*batch)); or, where this is one sample, say so with "
    "input_getter=lambda sample: sample[0]"
)


def is_batch(item: Any) -> bool:
    """Whether what a dataset gives as one sample is a batch: inputs and labels with one axis in front.

    Inputs have two axes at least, or are a list of texts; labels one, or two and another shape than the
    inputs (an image and its mask are no batch). Where a part has no such axis it is a sample, and one
    of a single row is taken for what it says it is.

    >>> import numpy as np
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


def has_batch_axis(item: Any) -> bool:
    """Whether all parts of what a dataset gives have one axis of the same length in front, as batches do."""
    parts = list(item.values()) if isinstance(item, Mapping) else item
    if not isinstance(parts, (tuple, list)) or len(parts) < 2 or is_numbers(parts):
        return False
    shapes = [_shape(part) for part in parts]
    lengths = {shape[0] if shape else None for shape in shapes}
    wide = any(len(shape) > 1 for shape in shapes) or is_entries(parts[0])
    return len(lengths) == 1 and None not in lengths and wide


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
