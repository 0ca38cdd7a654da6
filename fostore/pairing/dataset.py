"""FirstOrderDataset: a dataset whose samples come with their distributions."""

from __future__ import annotations

import operator
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from fostore.containers.collate import bring_together, collate, samples_of
from fostore.containers.rows import Rows, as_dataset
from fostore.errors import ArgumentError, IdentityError
from fostore.generate.framework import Framework
from fostore.generate.numpy_framework import NumpyFramework
from fostore.nested import leaves, split, split_all
from fostore.pairing.check import Pairing, check_pairing
from fostore.pairing.distributions import Distributions
from fostore.pairing.sequences import (
    SequenceCollate,
    TokenDistributions,
    as_it_is,
    by_sequence,
    check_sequences,
)
from fostore.pairing.vocabulary import check_vocabulary
from fostore.reading.selection import Selection
from fostore.schema.row import Array

_GATHER_BYTES, _AHEAD_BYTES = 1 << 20, 2 << 20
"""Distributions gathered at once where nothing else has to be read: small batches share one gather.

The second is for a thread that reads ahead. More saves no time, and pushes out of the caches what the
loop computes with.
"""

_GATHER_ROWS = 8192
"""The same in rows: from a cold disk each is a page and a read, and the first batch waits for all."""


class PairedDataset:
    """A dataset and its distributions, checked against each other; what every side's dataset is.

    A side adds its own kind of dataset, of rows (`_as_rows`) and of batch (`_collate`). A sample is
    split into its input and its label (`split`); what a tuple holds after these is left out. Pickled,
    a store travels as its path, and another store in its place is refused (IdentityError).

    Args:
        base_dataset: anything with `__len__` and `__getitem__`, or what has rows (a frame, a table, a
            sparse matrix, an array on disk); None: distributions alone.
        distributions: a mapping from dataset index to a row, a `Store`, a `Selection`, or the
            path or url of a store.
        input_getter: gets one sample, returns its input.
        ids: one key a sample of `base_dataset`. Where the store has ids too, samples are joined with
            their rows by id, so that a permuted or cut dataset is paired rightly.
        check: how the two are compared; see `fostore.pairing.check.check_pairing`.
        target_key: samples are dicts, and their distribution goes in under this key.
        dtype: of the distributions handed out: a floating one; None: as they are stored.
        as_kind, temperature: see `Store.take`; a mapping, whose rows could be anything, takes none.
        rule: of a store of top-k rows, whose samples come with a `TopK` each: dense rows instead,
            as `Store.take` makes them by this rule.
        layout: of token rows in batches: "padded" (a `PaddedBatch`, rows where the student's batch has
            their tokens) or "flat" (a `FlatBatch`, whose `index` says where that is).
        pad_length: of the lines of such batches; by default that of the longest sequence in each.
        class_map: the student's class (its token, of token rows) for each of the teacher's, integers
            (num_classes,), or a `ClassMap`; rows and tokens come in the student's, where that is exact.
        tokenizer: the student's, of token rows: another vocabulary than the teacher's is refused, where
            no class_map leads from one to the other.

    Of a store of token rows sample i is sequence i, and comes with a `FlatBatch` of its rows.

    Raises:
        ArgumentError: a sample has no distribution, or there are more than samples.
        IdentityError: they belong to other samples; names the first that differs.
    """

    def __init__(
        self,
        base_dataset: Any,
        distributions: Mapping[int, Any] | Selection | str | os.PathLike[str],
        input_getter: Callable[[Any], Any] | None = None,
        *,
        ids: Any = None,
        check: str = "auto",
        target_key: str | None = None,
        dtype: str | None = "float32",
        as_kind: str = "probs",
        temperature: float | None = None,
        rule: str | None = None,
        layout: str = "padded",
        pad_length: int | None = None,
        class_map: Any = None,
        tokenizer: Any = None,
    ) -> None:
        base = as_dataset(base_dataset)
        has_samples = hasattr(base, "__getitem__") and hasattr(base, "__len__")
        if base_dataset is not None and not has_samples:
            raise ArgumentError(
                f"base_dataset is {type(base_dataset).__name__}, expected __len__ and __getitem__"
            )
        self._given = by_sequence(
            Distributions(
                distributions,
                dtype=dtype,
                as_kind=as_kind,
                temperature=temperature,
                rule=rule,
                class_map=class_map,
            )
        )
        if tokenizer is not None:
            check_vocabulary(self._given, tokenizer)
        self.distributions = self._given.source
        self.base_dataset = base_dataset
        self._base = base
        """The base dataset, as one whose `[i]` is sample i: a frame's would be a column."""
        whole = isinstance(base, Rows) and input_getter is None and target_key is None
        self._rows = None
        self._sequences = None
        if isinstance(self._given, TokenDistributions):
            self._sequences = SequenceCollate(
                layout=layout,
                pad_length=pad_length,
                compare=check != "length",
                input_getter=input_getter,
                target_key=target_key,
                finish=self._finish,
                integers=self._integers,
            )
        elif whole:
            self._rows = base
        if self._rows is not None:
            self._check_rows(self._rows)
        self.input_getter = input_getter
        self.target_key = target_key
        against: dict[str, Any] = {"ids": ids, "check": check, "input_getter": input_getter}
        against["framework"] = self._framework()
        self.pairing: Pairing = (
            check_sequences(base, self._given, **against)
            if isinstance(self._given, TokenDistributions)
            else check_pairing(base, self.distributions, **against)
        )

    _finish = staticmethod(as_it_is)
    """Makes the side's arrays of a batch of sequences, whose arrays are NumPy's."""
    _integers: Any = None
    """The dtype of its integers there; None: as they are stored."""

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_paired_with": self._given.keys()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        paired_with = state.pop("_paired_with")
        vars(self).update(state)
        # A store travels as its path, and what lies there by now nobody has compared.
        now = self._given.keys()
        if all(one is None or one != other for one, other in zip(paired_with, now, strict=True)):
            raise IdentityError(
                "another store has taken the place of the one that this dataset was paired with; make "
                "the dataset anew, so that the two are compared",
                ("store",),
            )

    def __len__(self) -> int:
        return len(self._given if self.base_dataset is None else self._base)

    def __getitem__(self, index: Any) -> Any:
        at = _sample(index, len(self))
        row = self._as_rows(self.gather(np.array([at]))[0])  # cut here: on a device that costs more
        if self.base_dataset is None:
            return row
        if self._rows is not None:
            return (self._one(self._rows, at), row)
        return self._with_row(self._base[at], row)

    @property
    def has_sequences(self) -> bool:
        """Whether samples are sequences, which come with the rows of their tokens."""
        return self._sequences is not None

    @property
    def lengths(self) -> Array | None:
        """How many rows each sample has, int64 (len,), where samples are sequences; else None."""
        given = self._given
        return given.sequences.lengths if isinstance(given, TokenDistributions) else None

    def _rows_at(self, samples: Array) -> Array:
        """The row of each sample, as ids say where both sides have ids."""
        rows = self.pairing.rows
        return samples if rows is None else rows[samples]

    def gather(self, samples: Array) -> Any:
        """The distributions of `samples` (int64, none out of range), fresh and writable: (n, [M,] K), or a `TopK`."""
        return self._given.take(self._rows_at(samples))

    @property
    def is_remote(self) -> bool:
        """Whether the distributions lie behind a url, where each of them costs a request."""
        stored = self._given.stored
        return stored is not None and not stored.store.place.is_local

    def announce(self, samples: Array) -> None:
        """A hint that the distributions of `samples` will be gathered next; see `Store.announce`."""
        if self._given.stored is not None:
            self._given.stored.announce(self._rows_at(samples))

    def rows_of(self, samples: Array) -> Any:
        """The distributions of `samples` as the side's array."""
        return self._as_rows(self.gather(samples))

    def samples(self, samples: Array) -> list[Any]:
        """Samples of the base dataset, asked for at once where it can (`__getitems__`)."""
        return samples_of(self._base, samples.tolist())

    def read_batches(self, samples: Array, batch_size: int) -> list[Any]:
        """The batches of a stretch of samples, `batch_size` each; one gather serves all of them."""
        return self._batches(samples, batch_size, self.rows_of(samples))

    def _batches(self, samples: Array, batch_size: int, rows: Any) -> list[Any]:
        """The same, of rows that were gathered."""
        starts = range(0, len(samples), batch_size)
        cut = [rows[start : start + batch_size] for start in starts]
        if self.base_dataset is None:
            return cut if self._sequences is None else list(map(self._sequences.alone, cut))
        return [
            self._batch(samples[start : start + batch_size], own)
            for start, own in zip(starts, cut, strict=True)
        ]

    def batches_at_once(self, batch_size: int, *, ahead: bool = False) -> int:
        """How many batches to ask `read_batches` for: several where nothing but rows is read.

        `ahead`: a thread asks, which hands them over: the fewer times the better.
        """
        row_bytes = self._given.row_bytes
        if self.base_dataset is not None or row_bytes is None:
            return 1
        rows = min((_AHEAD_BYTES if ahead else _GATHER_BYTES) // row_bytes, _GATHER_ROWS)
        return max(rows // batch_size, 1)

    def _together(self, samples: Array) -> Any | None:
        """The inputs of samples at once, where the base dataset is a container of them; else None."""
        return None if self._rows is None else self._take(self._rows, samples)

    def _batch(self, samples: Array, rows: Any) -> Any:
        together = self._together(samples)
        if together is not None:
            return (together, rows)
        chosen = self.samples(samples)
        if self._sequences is not None:
            if self.target_key is not None:
                chosen = [self._mapping(one) for one in chosen]
            return self._sequences(chosen, rows, samples.tolist())
        if self.target_key is not None:
            chosen = [self._mapping(one) for one in chosen]
            return self._with_row(bring_together(self._collate, chosen, samples.tolist()), rows)

        def bring(some: Sequence[Any]) -> Any:
            return self._collate(split_all(some, self.input_getter))

        return (*bring_together(bring, chosen, samples.tolist()), rows)

    def _with_row(self, sample: Any, row: Any) -> Any:
        if self.target_key is None:
            return (*split(sample, self.input_getter), row)
        return self._as_dict({**self._mapping(sample), self.target_key: row})

    def _mapping(self, sample: Any) -> Mapping[str, Any]:
        if isinstance(self._base, Rows) and hasattr(sample, "to_dict"):
            sample = sample.to_dict()  # a row of a pandas frame
        if not isinstance(sample, Mapping):
            raise ArgumentError(
                f"target_key={self.target_key!r} is for samples that are dicts, this one is "
                f"{type(sample).__name__}; leave it out to get (input, label, distribution)"
            )
        if self.target_key in sample:
            raise ArgumentError(
                f"the samples have {self.target_key!r} already; choose another target_key"
            )
        return sample

    def as_pairs(self) -> Pairs:
        """A plain view of (input, distribution), with `targets` and `classes` as torchvision has them.

        Raises:
            ArgumentError: there is no base dataset, and so no inputs.
        """
        if self.base_dataset is None:
            raise ArgumentError("there is no base dataset, so there are no inputs to pair with")
        return Pairs(self)

    @property
    def class_names(self) -> list[str]:
        """The store's class names, or the base dataset's, or the numbers of the classes as text."""
        return self._given.class_names(self.base_dataset)

    def all_rows(self) -> Any:
        """All distributions, read-only: mapped where a store has them so, else copied; top-k rows as a `TopK`."""
        rows = self._given.mapped() if self.pairing.rows is None else None
        if rows is None:
            rows = self.gather(np.arange(len(self)))
            for _, array in leaves(rows):
                array.flags.writeable = False
        return rows

    # What a side adds

    def _framework(self) -> Framework:
        """How samples are read, so that their hashes are those that a generator of this side makes."""
        return NumpyFramework("cpu", ())

    def _check_rows(self, rows: Rows) -> None:
        """Refuse a container whose rows this side cannot hand out."""

    def _one(self, rows: Rows, index: int) -> Any:
        """A row of a container as the side's input."""
        return rows[index]

    def _take(self, rows: Rows, samples: Array | range) -> Any:
        """Rows of a container as the side's batch of inputs."""
        return rows.take(samples)

    def _as_rows(self, rows: Any) -> Any:
        """Fresh distributions, of one sample or of several, as the side's array, or as a `TopK` of its arrays."""
        return rows

    def _collate(self, samples: Sequence[Any]) -> Any:
        """Samples, or their parts, as one batch."""
        return collate(samples)

    def _as_dict(self, sample: dict[str, Any]) -> Any:
        """A dict sample as the side's loops want it."""
        return sample


def _sample(index: Any, count: int) -> int:
    """The sample that an index names, which may count from the end."""
    at = operator.index(index)
    at += count if at < 0 else 0
    if not 0 <= at < count:
        raise IndexError(f"sample {index} of a dataset of {count} samples")
    return at


class FirstOrderDataset(PairedDataset, Sequence[Any]):
    """A dataset whose samples come with their distributions: (input, label, distribution).

    Without labels: (input, distribution); without a base dataset the distribution alone. A
    distribution is a float32 array (num_classes,), or (num_members, num_classes); of a store of
    top-k rows a `TopK`. Parameters and errors are those of `PairedDataset`.

    >>> dataset = FirstOrderDataset([("cat", 0), ("dog", 1)], {0: [0.9, 0.1], 1: [0.2, 0.8]})
    >>> dataset[1]
    ('dog', 1, array([0.2, 0.8], dtype=float32))
    """


class Pairs(Sequence[Any]):
    """(input, distribution) for each sample, with `targets` and `classes`; made by `as_pairs()`.

    The distribution takes the place of the label, which is left out.
    """

    def __init__(self, paired: PairedDataset) -> None:
        self._paired = paired

    @property
    def targets(self) -> Any:
        """All distributions, read-only (num_samples, [M,] K): mapped where the store has them so, else copied."""
        return self._paired.all_rows()

    @property
    def classes(self) -> list[str]:
        """The name of each class: the store's, or the base dataset's, or its number as text."""
        return self._paired.class_names

    def __len__(self) -> int:
        return len(self._paired)

    def __getitem__(self, index: Any) -> Any:
        return self.__getitems__([_sample(index, len(self))])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Any]:
        """The pairs of a batch; their distributions are gathered at once."""
        paired = self._paired
        at = np.asarray(indices, np.int64)
        samples = paired.samples(at)
        inputs = [split(sample, paired.input_getter)[0] for sample in samples]
        rows = paired.rows_of(at)
        return [(one, rows[i]) for i, one in enumerate(inputs)]

    def __repr__(self) -> str:
        return f"<Pairs of {len(self)} samples, {len(self.classes)} classes>"
