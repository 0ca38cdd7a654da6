"""Sequences of tokens: how they become a batch, and which positions of it are rows.

A sequence is a sample of the base dataset; a row belongs to one of its tokens. Row t of a sequence is what
the model gives at its token t: nothing is shifted, and padding has no row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fostore.containers.collate import OddSample
from fostore.encodings.rows import as_array
from fostore.errors import ArgumentError
from fostore.generate.labels import Labelled
from fostore.generate.options import TOKEN_ROWS, Options
from fostore.nested import PerSample, is_numbers, map_leaves
from fostore.schema.row import Array

_IDS, _MASK, _LABELS, _LENGTHS = "input_ids", "attention_mask", "labels", ("lengths", "length")
_TEXT = "text"
LOOKED_AT = 64
"""Rows that tell what a model gives: all of a batch are too many to bring to the host."""
_UNLABELLED = -100
"""What stands in labels where no loss is taken, as everywhere in Hugging Face's libraries."""
_NOT_FOR_MODELS = (_LABELS, *_LENGTHS)
"""Keys of a batch that say which positions count; labels would make a model compute a loss nobody asks for."""


@dataclass(frozen=True, slots=True)
class Tokens:
    """The positions of a batch of sequences that are rows, in the order of the rows."""

    shape: tuple[int, int]
    """(sequences, length): of the batch, padding included."""
    places: Array
    """(n,), int64: where each row lies in the batch, counted sequence by sequence."""
    tokens: Array
    """(n,), int64: the token at that place, which the model was given."""
    positions: Array
    """(n,), int64: which token of its sequence it is, padding not counted."""
    spans: Array
    """(sequences, 2), int64: where each sequence begins and ends in the batch; what is outside is padding."""

    def __len__(self) -> int:
        return len(self.places)

    @property
    def sequences(self) -> Array:
        """(n,), int64: the sequence of each row, from 0 in each batch."""
        return self.places // max(self.shape[1], 1)

    def of(self, start: int, stop: int) -> Tokens:
        """Those of some of the sequences."""
        length = self.shape[1]
        first, last = np.searchsorted(self.places, (start * length, stop * length))
        return Tokens(
            (stop - start, length),
            self.places[first:last] - start * length,
            self.tokens[first:last],
            self.positions[first:last],
            self.spans[start:stop],
        )

    def evened(self) -> Tokens:
        """The same with the last row repeated, so that batches of one shape have one of eight numbers of rows."""
        step = max(self.shape[0] * self.shape[1] // 8, 1)
        more = -len(self) % step if len(self) else 0
        rows = np.minimum(np.arange(len(self) + more), len(self) - 1)
        places, tokens, positions = self.places[rows], self.tokens[rows], self.positions[rows]
        return Tokens(self.shape, places, tokens, positions, self.spans)

    def alone(self) -> tuple[int, Tokens] | None:
        """The sequence with the most padding, and its rows if it were alone; None where nothing is padded."""
        sizes = np.diff(self.spans, axis=1)[:, 0]
        sizes[np.bincount(self.sequences, minlength=len(sizes)) == 0] = self.shape[1]
        sequence = int(np.argmin(sizes)) if len(sizes) else 0
        if not len(self) or sizes[sequence] == self.shape[1]:
            return None
        own = self.of(sequence, sequence + 1)
        begin, end = own.spans[0].tolist()
        places, span = own.places - begin, np.array([[0, end - begin]])
        return sequence, Tokens((1, end - begin), places, own.tokens, own.positions, span)

    def cut(self, inputs: Any, sequence: int) -> Any:
        """What a model would get of one sequence without its padding."""
        begin, end = self.spans[sequence].tolist()
        rows = slice(sequence, sequence + 1)

        def cut(leaf: Any) -> Any:
            shape = tuple(getattr(leaf, "shape", ()))
            if shape[:2] == self.shape:
                return leaf[rows, begin:end]
            return leaf[rows] if shape[:1] == self.shape[:1] else leaf

        return map_leaves(cut, inputs)

    def take(self, output: Any) -> Any:
        """The rows (n, classes) of an output (sequences, length, classes), on its device."""
        flat = output.reshape((-1, output.shape[-1]))
        return flat if len(self) == flat.shape[0] else flat[self.places]


@dataclass(frozen=True, slots=True)
class Sequences:
    """How samples that are sequences of tokens, or texts, become a batch; in a worker's process as well."""

    rows: str
    """"tokens", or "labelled": the positions whose next token is one that labels name."""
    tokenizer: Callable[[Any], Any] | None = None

    def tokenized(self, inputs: Sequence[Any]) -> list[Any]:
        """Texts as what the tokenizer makes of each; anything else as it came.

        Raises OddSample for a text where there is no tokenizer.
        """
        tokenized = []
        for place, one in enumerate(inputs):
            if isinstance(one, Mapping) and _IDS not in one:
                one = one.get(_TEXT, one)
            if not isinstance(one, str):
                tokenized.append(one)
            elif self.tokenizer is None:
                raise OddSample(place, "is a text; give the tokenizer of the model (tokenizer=)")
            else:
                tokenized.append(self.tokenizer(one))
        return tokenized

    def padded(self, inputs: Sequence[Any]) -> tuple[list[Any], Array]:
        """Sequences of one length, padded on the right, and the length (n,) that each had.

        A mapping gets an attention mask, and every entry of it that has as many entries as tokens is padded.

        Raises OddSample for what is no sequence of integers.
        """
        lengths = np.array([_length(one, place) for place, one in enumerate(inputs)], np.int64)
        longest = int(lengths.max(initial=0))
        pad = getattr(self.tokenizer, "pad_token_id", None) or 0
        every = zip(inputs, lengths.tolist(), strict=True)
        return [_padded(one, length, longest, pad) for one, length in every], lengths

    def tokens_of(self, batch: Any, lengths: Array | None) -> Tokens:
        """Which positions of a batch are rows.

        Args:
            lengths: tokens of each sequence, where they were padded here; else the batch says it itself.

        Raises:
            ArgumentError: the batch holds no token numbers (sequences, length), or does not say what is padding.
        """
        ids = _ids_of(batch)
        attended = _attended(batch, ids, lengths)
        counted = np.cumsum(attended, axis=1) - 1
        kept = attended if self.rows == "tokens" else _labelled(batch, attended)
        tokens = ids[kept].astype(np.int64)
        if tokens.size and tokens.min() < 0:
            raise ArgumentError(f"a token is {tokens.min()}, expected numbers from 0 on")
        lengths = attended.sum(axis=1)
        begins = np.where(lengths > 0, attended.argmax(axis=1) if ids.shape[1] else 0, 0)
        return Tokens(
            (ids.shape[0], ids.shape[1]),
            np.flatnonzero(kept),
            tokens,
            counted[kept],
            np.stack([begins, begins + lengths], axis=1),
        )

    def handed(self, batch: Any, lengths: Array | None = None) -> Labelled:
        """What of a batch the model gets, with its positions; see `tokens_of`."""
        tokens = self.tokens_of(batch, lengths)
        if isinstance(batch, Mapping):
            batch = {key: item for key, item in batch.items() if key not in _NOT_FOR_MODELS}
        return Labelled(batch, None, tokens=tokens)


def _length(one: Any, place: int) -> int:
    if isinstance(one, Mapping):
        if _IDS not in one:
            raise OddSample(
                place, f"has the keys {list(one)[:6]}, expected {_IDS!r}, the numbers of its tokens"
            )
        one = one[_IDS]
    ids = as_array(one)
    if ids.ndim != 1 or (ids.size and ids.dtype.kind not in "iu"):
        raise OddSample(
            place,
            f"is {ids.dtype} of shape {ids.shape}, expected a sequence of token numbers (length,), a "
            f"mapping with {_IDS!r}, or a text and a tokenizer",
        )
    return len(ids)


def _padded(one: Any, length: int, longest: int, pad: int) -> Any:
    if not isinstance(one, Mapping):
        return _filled(one, longest, pad)
    filling = {_IDS: pad, _LABELS: _UNLABELLED}
    padded = {
        key: _filled(item, longest, filling.get(key, 0)) if _is_long(item, length) else item
        for key, item in one.items()
    }
    return {_MASK: _filled(np.ones(length, np.int64), longest, 0), **padded}


def _is_long(item: Any, length: int) -> bool:
    """Whether an entry of a sample has a number for each token."""
    shape = getattr(item, "shape", None)
    if shape is not None:
        return tuple(shape) == (length,)
    return isinstance(item, list) and len(item) == length and (not item or is_numbers(item))


def _filled(item: Any, longest: int, filling: int) -> Array:
    numbers = as_array(item)
    numbers = (
        numbers.astype(np.int64) if numbers.dtype.kind in "iub" or not numbers.size else numbers
    )
    return np.pad(numbers, (0, longest - len(numbers)), constant_values=filling)


def _ids_of(batch: Any) -> Array:
    ids = batch.get(_IDS) if isinstance(batch, Mapping) else batch
    is_array = hasattr(ids, "shape") and not isinstance(ids, PerSample)
    numbers = as_array(ids) if is_array else None
    if numbers is None or numbers.ndim != 2 or numbers.dtype.kind not in "iu":
        came = (
            type(ids).__name__ if numbers is None else f"{numbers.dtype} of shape {numbers.shape}"
        )
        has = f" of a batch with the keys {list(batch)[:6]}" if isinstance(batch, Mapping) else ""
        raise ArgumentError(
            f"rows of tokens are made of the numbers of tokens (sequences, length), as {_IDS!r} or alone; "
            f"{came} came{has}"
        )
    return numbers


def _attended(batch: Any, ids: Array, lengths: Array | None) -> Array:
    """Which positions are no padding (sequences, length); those of a sequence lie side by side."""
    given = dict(batch) if isinstance(batch, Mapping) else {}
    if lengths is None:
        lengths = next((as_array(given[key]) for key in _LENGTHS if key in given), None)
    if given.get(_MASK) is not None:
        mask = as_array(given[_MASK]) != 0
        if mask.shape != ids.shape:
            raise ArgumentError(
                f"{_MASK} has the shape {mask.shape}, expected that of {_IDS}, {ids.shape}"
            )
        begins = np.diff(mask.astype(np.int8), axis=1, prepend=0) == 1
        if (begins.sum(axis=1) > 1).any():
            at = int(np.flatnonzero(begins.sum(axis=1) > 1)[0])
            raise ArgumentError(
                f"{_MASK} of the sequence in place {at} of its batch has a hole: tokens of a sequence lie side "
                "by side, with padding before or behind them"
            )
        attended: Array = mask
        return attended
    if lengths is None:
        raise ArgumentError(
            f"the batch does not say what is padding: let the collate_fn give {_MASK!r} (or 'lengths', of "
            "sequences that are padded on the right), or leave it out: sequences are padded here"
        )
    if lengths.shape != (len(ids),) or (lengths < 0).any() or (lengths > ids.shape[1]).any():
        raise ArgumentError(
            f"lengths are {lengths.tolist()[:8]} for {len(ids)} sequences of at most {ids.shape[1]} tokens"
        )
    return np.arange(ids.shape[1]) < lengths[:, None]


def _labelled(batch: Any, attended: Array) -> Array:
    """The positions whose next token has a label: those whose prediction a loss looks at."""
    labels = batch.get(_LABELS) if isinstance(batch, Mapping) else None
    named = None if labels is None else as_array(labels)
    if named is None or named.shape != attended.shape:
        came = "none came" if named is None else f"labels of shape {named.shape} came"
        raise ArgumentError(
            f"rows='labelled' needs {_LABELS!r} beside {_IDS!r}, one for each token, {_UNLABELLED} where "
            f"there is none: {came}"
        )
    kept = np.zeros_like(attended)
    # labels are those of the tokens themselves: a model shifts them, and so does its loss
    kept[:, :-1] = attended[:, :-1] & attended[:, 1:] & (named[:, 1:] != _UNLABELLED)
    return kept


def check_rows_of_tokens(options: Options, members: bool) -> None:
    """Raise ArgumentError for what rows of tokens cannot go with, and for what only they have."""
    rows = options.of_tokens
    if rows is None:
        if options.tokenizer is not None:
            raise ArgumentError("tokenizer= is of rows of tokens: say rows='tokens'")
        return
    if rows not in TOKEN_ROWS:
        raise ArgumentError(
            f"rows is {rows!r}, expected (start, stop), or one of {list(TOKEN_ROWS)} of a language model"
        )
    if options.store is None:
        raise ArgumentError(f"rows={rows!r} needs a store (store=): in memory a row is a sample")
    if members:
        raise ArgumentError(
            f"rows={rows!r} with members=True: give a list of models, each of which is a member"
        )
    for name in ("ids", "views", "keep_labels", "num_draws"):
        value = getattr(options, name)
        if value is not None and value is not False:
            raise ArgumentError(
                f"{name}= is of rows a sample, and rows={rows!r} makes a row a token"
            )


def refuse_order(batches: Iterator[Any], num_samples: int) -> None:
    """Raise ArgumentError unless batches name all samples in their order, as rows of tokens lie."""
    after = 0
    for indices in batches:
        if not np.array_equal(np.asarray(indices), np.arange(after, after + len(indices))):
            raise ArgumentError(
                "rows of tokens lie in the order of the dataset, and the sampler names its samples in another "
                "one: give batch_size= (sort the dataset by length to have batches of one length)"
            )
        after += len(indices)
    if after != num_samples:
        raise ArgumentError(f"the sampler names {after} of {num_samples} sequences")
