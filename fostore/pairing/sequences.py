"""Sequences paired with their token rows: whose they are, and where a student's batch has their tokens."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import replace
from typing import Any

import numpy as np

from fostore.containers.collate import OddSample, bring_together, collate, samples_of
from fostore.errors import ArgumentError
from fostore.generate.framework import Framework
from fostore.nested import split, split_all
from fostore.pairing.check import Pairing
from fostore.pairing.content import SECONDS, in_time, refuse
from fostore.pairing.distributions import Distributions
from fostore.reading.sequences import FlatBatch
from fostore.reading.store import Store
from fostore.schema.row import TOKEN, Array

_LAYOUTS = ("padded", "flat")
IDS, MASK, LABELS = "input_ids", "attention_mask", "labels"
"""What Hugging Face's tokenizers and models call tokens, which of them are there, and the labels at each."""
_FILL = {LABELS: -100}
"""What fills a line up behind its tokens, where it is not 0: a label that losses leave out."""
_BATCH = 64
_ANNOUNCED_BYTES = 256 << 20
_ADVICE = (
    "The teacher saw another text, or one that was tokenised or cut otherwise: give the dataset as it was when "
    "the rows were generated. check='length' says that another view is meant"
)


class TokenDistributions(Distributions):
    """Token rows by the number of their sequence: sample i is sequence i."""

    def __init__(self, rows: Distributions, store: Store) -> None:
        vars(self).update(vars(rows))
        if not store.is_sealed:
            raise ArgumentError(
                f"{store.path} is not finished, and its last sequence may still grow: finish the store first"
            )
        self._of_rows = rows
        self.sequences = store.sequences
        # Rows are widened as they are gathered: what is padded afterwards has another shape.
        self.half = None

    def __len__(self) -> int:
        return len(self.sequences)

    def take(self, rows: Array) -> FlatBatch:
        """All rows of the sequences of some samples (int64), fresh."""
        return self._in_students(self.sequences.flat(rows, self._of_rows.take))

    def tokens(self, rows: Array) -> FlatBatch:
        """The same without distributions: what of the sequences is compared."""
        return self._in_students(self.sequences.flat(rows, lambda rows: rows))

    def _in_students(self, flat: FlatBatch) -> FlatBatch:
        if self.class_map is None or flat.tokens is None:
            return flat
        return replace(flat, tokens=self.class_map.classes[flat.tokens])

    def announce(self, rows: Array) -> None:
        """A hint that the rows of the sequences of these samples will be taken next."""
        own = self.sequences.rows(rows)[0]
        # What is announced of a store behind a url is kept in memory until it is taken, a window of samples at a time.
        if len(own) * sum(self.sequences.store.schema.row_bytes) <= _ANNOUNCED_BYTES:
            self.sequences.store.announce(own)

    def mapped(self) -> None:
        """Nothing: sequences have several lengths."""

    @property
    def row_bytes(self) -> None:
        """Nothing, as above."""


def by_sequence(rows: Distributions) -> Distributions:
    """The distributions, by sequence where they are rows of tokens.

    Raises:
        ArgumentError: they are some rows of tokens without their sequences, or of a store that is not finished.
    """
    stored = rows.stored
    if stored is None or stored.schema.row_axis != TOKEN:
        return rows
    if not isinstance(stored, Store):
        raise ArgumentError(
            f"a selection of {stored.store.path} has rows of tokens without their sequences; pair the store, "
            "and torch.utils.data.Subset(dataset, indices) or a loader takes some of its sequences"
        )
    return TokenDistributions(rows, stored)


# ------------------------------------------------------------------ is it the same sequence?


def check_sequences(
    base_dataset: Any,
    given: TokenDistributions,
    *,
    ids: Any,
    check: str,
    framework: Framework,
    input_getter: Callable[[Any], Any] | None,
) -> Pairing:
    """Raise unless sample i of the dataset is sequence i of the store; parameters as for `check_pairing`.

    "auto" compares the tokens of as many samples as a second allows, "content" those of all.

    Raises:
        ArgumentError: another number of samples, samples without tokens, or ids, which sequences have none of.
        IdentityError: other tokens; names the sequence and the position that differ.
    """
    if ids is not None or check == "ids":
        raise ArgumentError(
            "sequences are known by their numbers and compared by their tokens, not joined by ids: leave ids= "
            "out, and check='auto'"
        )
    if base_dataset is None:
        return Pairing(None, ())
    count, sequences = len(base_dataset), given.sequences
    if count != len(sequences):
        raise ArgumentError(
            f"the dataset has {count} samples and {sequences.store.path} {len(sequences)} sequences; pair the "
            "dataset that the rows were generated from, and take a part of the pairs (torch.utils.data.Subset)"
        )
    if check == "length" or not sequences.has_tokens:
        why = f"check={check!r} leaves it out" if check == "length" else "the store keeps no tokens"
        if check == "content":
            raise ArgumentError(f"check='content' compares tokens, and {why}")
        return Pairing(None, ("length",), {"content": why})
    pieces = range(0, count, _BATCH)
    batches = (
        (np.arange(start, min(start + _BATCH, count)) for start in pieces)
        if check == "content"
        else in_time(count, SECONDS, _BATCH)
    )
    compared = 0
    with framework.kept_random_states():
        for batch in batches:
            tokens = [
                tokens_of(split(one, input_getter)[0], int(at))
                for at, one in zip(batch, samples_of(base_dataset, batch.tolist()), strict=True)
            ]
            rows = given.tokens(batch)
            for line, (at, own) in enumerate(zip(batch.tolist(), tokens, strict=True)):
                _compare(own, rows[line], at)
            compared += len(batch)
    return Pairing(None, ("length", "content"), {}, compared)


def tokens_of(inputs: Any, sample: int) -> Array:
    """The tokens of one sample, (n,): its `input_ids`, without those that its `attention_mask` leaves out.

    Raises:
        ArgumentError: there are none; names the sample.
    """
    keep = None
    if isinstance(inputs, Mapping):
        inputs, keep = inputs.get(IDS), inputs.get(MASK)
    tokens = np.asarray([] if inputs is None else inputs)
    if inputs is None or tokens.ndim != 1 or (tokens.dtype.kind not in "iu" and tokens.size):
        what = (
            f"no {IDS!r}"
            if inputs is None
            else f"{tokens.dtype} of shape {tokens.shape} for tokens"
        )
        raise ArgumentError(
            f"sample {sample} has {what}, expected integers (n,), alone or under {IDS!r} in a dict; "
            "input_getter= takes them out of another sample"
        )
    return tokens if keep is None else tokens[np.asarray(keep) != 0]


def _compare(own: Array, rows: FlatBatch, sample: int) -> None:
    """Refuse tokens that are not those of the rows; `rows` are of one sequence."""
    kept, places = rows.tokens, rows.positions
    assert kept is not None
    if places is None:
        places = np.arange(len(kept))
    few = places < len(own)
    wrong = np.flatnonzero(own[places[few]] != kept[few])
    if len(wrong):
        at = int(places[wrong[0]])
        raise refuse(
            f"sequence {sample} of the dataset has token {own[at]} at position {at}, and the store keeps "
            f"{kept[wrong[0]]} there",
            _ADVICE,
        )
    if not few.all() or (rows.positions is None and len(own) != len(kept)):
        last = int(places.max(initial=-1)) + 1
        raise refuse(
            f"sequence {sample} of the dataset has {len(own)} tokens, and the store has rows of {last}",
            _ADVICE,
        )


# ------------------------------------------------------------------ beside a student's batch


def as_it_is(batch: Any) -> Any:
    """The batch: NumPy's arrays stay."""
    return batch


class SequenceCollate:
    """Brings samples and their sequences together: the student's batch, and each row where its token stands there.

    Args:
        layout: "padded", a `PaddedBatch` of the shape of the student's tokens, or "flat", a `FlatBatch` whose
            `index` says where each row's token is.
        pad_length: of the lines; by default that of the longest sequence of the batch.
        compare: whether the tokens of each batch are compared with those that the store keeps.
        input_getter, target_key: see `PairedDataset`.
        collate_fn: makes the student's batch of a list of samples, such as a collator of Hugging Face's; by
            default lines are filled up with 0 behind their tokens, labels with -100, and an `attention_mask`
            says where.
        finish: makes the side's arrays of those of NumPy.
        integers: the dtype in which the side has classes and tokens, where it is one: a pass less than to widen them.
    """

    def __init__(
        self,
        *,
        layout: str = "padded",
        pad_length: int | None = None,
        compare: bool = True,
        input_getter: Callable[[Any], Any] | None = None,
        target_key: str | None = None,
        collate_fn: Callable[[Any], Any] | None = None,
        finish: Callable[[Any], Any] = as_it_is,
        integers: Any = None,
    ) -> None:
        if layout not in _LAYOUTS:
            raise ArgumentError(f"layout is {layout!r:.80}, expected one of {list(_LAYOUTS)}")
        self.layout, self.compare, self.pad_length = layout, compare, pad_length
        self.input_getter, self.target_key = input_getter, target_key
        self.collate_fn, self.finish, self.integers = collate_fn, finish, integers

    def without_getter(self) -> SequenceCollate:
        """The same for samples whose inputs have been taken out."""
        other = copy(self)
        other.input_getter = None
        return other

    def by(self, collate_fn: Callable[[Any], Any] | None) -> SequenceCollate:
        """The same with another way of making the student's batch."""
        other = copy(self)
        other.collate_fn = collate_fn
        return other

    def alone(self, rows: FlatBatch) -> Any:
        """Rows without samples, in the layout that is asked for."""
        if self.layout == "flat":
            return self.finish(rows)
        return self.finish(rows.padded(self.pad_length, integers=self.integers))

    def __call__(self, samples: Sequence[Any], rows: FlatBatch, numbers: Sequence[int]) -> Any:
        """(inputs, [labels,] rows) of samples whose sequences `rows` are, or a dict with the rows in it.

        Args:
            numbers: the samples' own, for messages.

        Raises:
            ArgumentError: samples that make no batch of tokens.
            IdentityError: a token is not that of its row; names sequence and position.
        """
        parts = bring_together(self._parts, samples, numbers)
        teacher = self._beside(parts[0], rows, numbers)
        if self.target_key is not None:
            return self.finish({**parts[0], self.target_key: teacher})
        return self.finish((*parts, teacher))

    def _parts(self, samples: Sequence[Any]) -> tuple[Any, ...]:
        if self.collate_fn is not None:
            made = self.collate_fn(list(samples))
            return tuple(made) if isinstance(made, (tuple, list)) else (made,)
        if self.target_key is not None:
            return (_filled_up(samples, self.pad_length),)
        columns = list(zip(*split_all(samples, self.input_getter), strict=True))
        labels = (_together(column, LABELS, self.pad_length, columns[0]) for column in columns[1:])
        return (_filled_up(columns[0], self.pad_length), *labels)

    def _beside(self, inputs: Any, rows: FlatBatch, numbers: Sequence[int]) -> Any:
        is_dict = isinstance(inputs, Mapping)
        ids = np.asarray(inputs[IDS] if is_dict else inputs)
        if ids.ndim != 2 or len(ids) != len(rows):
            raise ArgumentError(
                f"the student's batch has tokens of shape {ids.shape}, expected ({len(rows)}, length): a line a "
                "sample, under 'input_ids' where it is a dict"
            )
        mask = inputs.get(MASK) if is_dict else None
        index = _index(rows, ids.shape, None if mask is None else np.asarray(mask), numbers)
        if self.compare and rows.tokens is not None:
            own = ids.reshape(-1)[index]
            wrong = np.flatnonzero(own != rows.tokens)
            if len(wrong):
                line, at = int(index[wrong[0]]) // ids.shape[1], int(wrong[0])
                place = rows.places()[at]
                raise refuse(
                    f"sequence {numbers[line]} has token {own[at]} at position {place} of the student's batch, and "
                    f"the store keeps {rows.tokens[at]} there",
                    _ADVICE,
                )
        if self.layout == "flat":
            return replace(rows, index=index)
        return rows.padded(ids.shape[1], index, self.integers)


def _index(
    rows: FlatBatch, shape: tuple[int, ...], mask: Array | None, numbers: Sequence[int]
) -> Array:
    """Where each row's token stands in a batch of this shape, counted line after line.

    Raises:
        ArgumentError: a line has fewer tokens than its sequence needs, or others.
    """
    places, lines = rows.places(), rows.lines()
    if mask is None:
        held = np.full(len(rows), shape[1])
        index = lines * shape[1] + places
    else:
        held = np.count_nonzero(mask, axis=1)
        begins = np.concatenate([np.zeros(1, np.int64), np.cumsum(held)])
        if rows.positions is None and not np.array_equal(held, np.diff(rows.offsets)):
            line = int(np.argmax(held != np.diff(rows.offsets)))
            raise ArgumentError(
                f"sequence {numbers[line]} has {held[line]} tokens in the student's batch, and the store has "
                f"{rows.offsets[line + 1] - rows.offsets[line]} rows of it: was it cut (max_length, truncation)?"
            )
        index = np.zeros(0, np.int64)
    if len(places) and (places >= held[lines]).any():
        line = int(lines[np.argmax(places >= held[lines])])
        raise ArgumentError(
            f"sequence {numbers[line]} has {held[line]} tokens in the student's batch, and the store has a row "
            f"behind these: was it cut (max_length, truncation)?"
        )
    if mask is not None:
        index = np.flatnonzero(mask)[begins[lines] + places]
    return index


def _filled_up(inputs: Sequence[Any], length: int | None) -> Any:
    """Inputs of several lengths as one batch: a dict where they are dicts, with a mask of what is there."""
    if not isinstance(inputs[0], Mapping):
        return _together(inputs, IDS, length, inputs)
    for at, one in enumerate(inputs):
        if IDS not in one or one.keys() != inputs[0].keys():
            raise OddSample(at, f"has the keys {sorted(one)}, expected {sorted({IDS, *inputs[0]})}")
    batch = {key: _together([one[key] for one in inputs], key, length, inputs) for key in inputs[0]}
    if MASK not in batch:
        lengths = np.array([len(one[IDS]) for one in inputs])
        batch[MASK] = (np.arange(batch[IDS].shape[1]) < lengths[:, None]).astype(np.int64)
    return batch


def _together(values: Sequence[Any], key: str, length: int | None, inputs: Sequence[Any]) -> Any:
    """What samples have under a key: one line each, filled up, where that is a number a token of its inputs."""
    arrays = [np.asarray(one) for one in values]
    counts = [len(one[IDS] if isinstance(one, Mapping) else one) for one in inputs]
    is_a_line = all(a.ndim and len(a) == count for a, count in zip(arrays, counts, strict=True))
    if not is_a_line or arrays[0].dtype.kind not in "biuf":
        return collate(list(values))
    longest = max(counts)
    if length is not None and longest > length:
        at = int(np.argmax(np.array(counts) > length))
        raise OddSample(at, f"has {counts[at]} tokens, and pad_length is {length}")
    shape = (len(arrays), length or longest, *arrays[0].shape[1:])
    batch = np.full(shape, _FILL.get(key, 0), arrays[0].dtype)
    for line, array in zip(batch, arrays, strict=True):
        line[: len(array)] = array
    return batch
