"""The sequences of a store of token rows: all rows of each, one after another or padded to one length."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from fostore.encodings import encoding_of
from fostore.errors import ArgumentError, DamageError, RowError, UncommittedError
from fostore.nested import Arrays, map_leaves
from fostore.reading.request import as_rows
from fostore.schema.header import Header
from fostore.schema.ranges import describe
from fostore.schema.row import TOKEN, Array
from fostore.schema.sequences import check_count, offsets_of

if TYPE_CHECKING:
    from fostore.reading.store import Store

_PIECE_ROWS = 1 << 20


@dataclass(frozen=True, slots=True)
class FlatBatch(Arrays):
    """Rows of some sequences, one after another; of n sequences with m rows together. `batch[i]` are those of one.

    Arrays of NumPy, torch or JAX.
    """

    distributions: Any
    """(m, [num_members,] num_classes) as `Store.take` gives them, or a `TopK` of m rows."""
    offsets: Any
    """int64 (n + 1,): sequence i has the rows `offsets[i]` to `offsets[i + 1]` of this batch."""
    tokens: Any
    """(m,), integers: the input token at each row; None where the store keeps none."""
    positions: Any
    """(m,), integers: where in its sequence each row stands; None where no rows are left out."""
    index: Any = None
    """int64 (m,), beside a student's batch (n, length): where each row's token stands in it, line after line, so
    that `logits.reshape(n * length, -1)[index]` are the student's rows; else None."""

    def map(self, function: Callable[[Any], Any]) -> FlatBatch:
        """The same with `function` of each array."""
        arrays = (self.offsets, self.tokens, self.positions, self.index)
        mapped = (None if array is None else function(array) for array in arrays)
        return FlatBatch(map_leaves(function, self.distributions), *mapped)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, sequences: Any) -> FlatBatch:
        """Those of one sequence, or of some that follow each other (a slice)."""
        if not isinstance(sequences, slice):
            if not 0 <= sequences < len(self):
                raise IndexError(f"sequence {sequences} of a batch of {len(self)}")
            sequences = slice(sequences, sequences + 1)
        start, stop, _ = sequences.indices(len(self))
        first, last = int(self.offsets[start]), int(self.offsets[max(start, stop)])
        kept = (self.tokens, self.positions, self.index)
        return FlatBatch(
            self.distributions[first:last],
            self.offsets[start : max(start, stop) + 1] - first,
            *(None if array is None else array[first:last] for array in kept),
        )

    def lines(self) -> Array:
        """Which of the sequences each row is of, int64 (m,)."""
        return np.repeat(np.arange(len(self)), np.diff(self.offsets))

    def places(self) -> Array:
        """Where in its sequence each row stands, int64 (m,)."""
        if self.positions is not None:
            return np.asarray(self.positions, np.int64)
        begins: Array = np.repeat(self.offsets[:-1], np.diff(self.offsets))
        return np.arange(len(begins)) - begins

    def padded(
        self, length: int | None = None, index: Array | None = None, integers: Any = None
    ) -> PaddedBatch:
        """The rows of NumPy in lines, one a sequence, of one length: at their positions, or where `index` says.

        `integers` is the dtype of classes and tokens; None: as they are.
        """
        if length is None:
            length = int(self.places().max(initial=-1)) + 1
        at = self.lines() * length + self.places() if index is None else index
        starts, stops = self.offsets[:-1], self.offsets[1:]
        is_there = starts < stops
        starts, stops = starts[is_there], stops[is_there]
        # Rows that follow each other are copied at once; those between which some are left out one by one.
        whole = bool((at[stops - 1] - at[starts] == stops - 1 - starts).all())
        runs = list(zip(at[starts].tolist(), starts.tolist(), stops.tolist(), strict=True))

        def spread(rows: Array) -> Array:
            dtype = integers if integers is not None and rows.dtype.kind in "iu" else rows.dtype
            shape = (len(self) * length, *rows.shape[1:])
            if not whole:
                out = np.zeros(shape, dtype)
                out[at] = rows
                return out.reshape(len(self), length, *rows.shape[1:])
            out, end = np.empty(shape, dtype), 0
            for place, start, stop in runs:
                out[end:place] = 0
                end = place + stop - start
                out[place:end] = rows[start:stop]
            out[end:] = 0
            return out.reshape(len(self), length, *rows.shape[1:])

        return PaddedBatch(
            map_leaves(spread, self.distributions),
            spread(np.ones(len(at), bool)),
            None if self.tokens is None else spread(self.tokens),
        )


def joined(batches: Sequence[FlatBatch]) -> FlatBatch:
    """The sequences of several batches, of one store, as one; arrays of NumPy, in memory of their own."""
    arrays: list[list[Any]] = []
    for batch in batches:
        arrays.append([])
        batch.map(arrays[-1].append)
    columns = (np.concatenate(list(map(np.asarray, own))) for own in zip(*arrays, strict=True))
    flat = batches[0].map(lambda _: next(columns))
    counts = [np.diff(np.asarray(batch.offsets)) for batch in batches]
    offsets = np.cumsum(np.concatenate([np.zeros(1, np.int64), *counts]))
    return replace(flat, offsets=offsets)


@dataclass(frozen=True, slots=True)
class PaddedBatch(Arrays):
    """Rows of n sequences, each where its token is, so that they lie as a model's batch does.

    Arrays of NumPy, torch or JAX. What is no row is zeros: finite, so that a loss which leaves it out by `mask`
    has a gradient.
    """

    distributions: Any
    """(n, length, [num_members,] num_classes), or a `TopK` of these."""
    mask: Any
    """bool (n, length): whether there is a row."""
    tokens: Any
    """(n, length), integers, or None."""

    def map(self, function: Callable[[Any], Any]) -> PaddedBatch:
        """The same with `function` of each array."""
        tokens = None if self.tokens is None else function(self.tokens)
        return PaddedBatch(map_leaves(function, self.distributions), function(self.mask), tokens)

    def __len__(self) -> int:
        return len(self.mask)


class Sequenced:
    """What a store of token rows has more than others."""

    header: Header
    store: Store
    _sequences: Sequences | None = None

    @property
    def num_sequences(self) -> int | None:
        """Sequences planned, of token rows; None while a stream runs, and where rows are samples."""
        return self.header.num_sequences

    @property
    def sequences(self) -> Sequences:
        """The sequences of token rows of which rows are committed; kept until `refresh`.

        Raises:
            ArgumentError: rows are no tokens.
            UncommittedError: there are gaps in the rows.

        >>> import fostore, tempfile
        >>> path = tempfile.mkdtemp() + "/words.zarr"
        >>> with fostore.create(path, num_classes=2, rows="tokens") as writer:
        ...     rows = np.array([[0.5, 0.5], [0.75, 0.25], [0.25, 0.75]])
        ...     writer.append(rows, sequences=[0, 0, 1], tokens=[1, 0, 1])
        >>> store = fostore.open(path)
        >>> store.num_sequences, store.offsets.tolist(), store.sequences[0].tokens.tolist()
        (2, [0, 2, 3], [1, 0])
        >>> store.sequences.padded([1, 0]).mask.tolist()
        [[True, False], [True, True]]
        """
        sequences = self._sequences
        if sequences is None:
            sequences = self._sequences = Sequences(self.store)
        return sequences

    @property
    def offsets(self) -> Array:
        """Where each of them begins, and the last one ends: int64 (sequences + 1,), read-only."""
        return self.sequences.offsets


class Sequences(Sequence[FlatBatch]):
    """The sequences of a store: their rows, in any order and number; made by `Store.sequences`.

    Reads where they begin when it is made, 8 bytes a sequence, and rows when they are asked for.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self.offsets = read_offsets(store)
        """int64 (len + 1,), read-only: sequence i has the rows `offsets[i]` to `offsets[i + 1]` of the store."""

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, at: Any) -> Any:
        if isinstance(at, slice):
            return self.take(np.arange(*at.indices(len(self))))
        return self.take([at])

    def __reduce__(self) -> tuple[Any, ...]:
        return Sequences, (self.store,)

    @property
    def has_tokens(self) -> bool:
        """Whether the store keeps the input token at each row."""
        return self.store.schema.role("token") is not None

    @property
    def lengths(self) -> Array:
        """How many rows each sequence has, int64 (len,)."""
        return np.diff(self.offsets)

    def take(self, sequences: Any) -> FlatBatch:
        """All rows of some sequences, in the order asked for; duplicates are allowed.

        Args:
            sequences: (n,) integers, each 0 to `len` - 1.

        Raises:
            UncommittedError: names a sequence that is negative, or of which no row is committed.
            ArgumentError: they are no integers.
        """
        return self.flat(sequences, partial(_distributions_of, self.store))

    def flat(self, sequences: Any, take: Callable[[Array], Any]) -> FlatBatch:
        """The same, with what `take` gives of the rows of the store as their distributions."""
        rows, offsets = self.rows(self._resolve(sequences))
        return FlatBatch(
            take(rows), offsets, self._side("token", rows), self._side("position", rows)
        )

    def padded(self, sequences: Any, length: int | None = None) -> PaddedBatch:
        """The same, each sequence in a line of its own, and each row at its position in it.

        Args:
            sequences: as for `take`.
            length: of the lines; by default what the longest sequence of these takes.

        Raises:
            ArgumentError: a sequence is longer than `length`; names it.
            UncommittedError: as for `take`.
        """
        flat = self.take(sequences)
        places = flat.places()
        if length is not None and len(places) and (last := int(places.max())) >= length:
            line = int(flat.lines()[np.argmax(places >= length)])
            raise ArgumentError(
                f"sequence {int(as_rows(sequences)[line])} has a row at position {length} or behind it, and a "
                f"length of {length} was asked for: give length={last + 1}, or leave it out"
            )
        return flat.padded(length)

    def rows(self, sequences: Array) -> tuple[Array, Array]:
        """The rows of sequences that are there, int64, and where in them each sequence begins."""
        starts, counts = (
            self.offsets[sequences],
            self.offsets[sequences + 1] - self.offsets[sequences],
        )
        offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])
        rows = np.arange(offsets[-1]) + np.repeat(starts - offsets[:-1], counts)
        return rows, offsets

    def _resolve(self, sequences: Any) -> Array:
        asked = as_rows(sequences)
        bad = asked[(asked < 0) | (asked >= len(self))]
        if len(bad):
            has = f"the sequences 0 to {len(self) - 1}" if len(self) else "no sequences"
            raise UncommittedError(
                f"sequence {int(bad[0])} was asked for; {self.store.path} has {has}"
            )
        return asked

    def _side(self, role: str, rows: Array) -> Array | None:
        column = self.store.schema.role(role)
        return None if column is None else self.store.take_column(column.name, rows)


def _distributions_of(store: Store, rows: Array) -> Any:
    """The distributions of rows as training takes them: a `TopK` where an encoding keeps some classes."""
    is_sparse = encoding_of(store.schema).is_sparse(store.schema)
    return store.take_topk(rows) if is_sparse else store.take(rows)


def read_offsets(store: Store) -> Array:
    """Where the committed sequences of a store begin: int64 (sequences + 1,), read-only.

    Of a sealed store from its array of them; else from the column of sequences, of those of which a row is committed.

    Raises:
        ArgumentError: rows are no tokens.
        UncommittedError: there are gaps in the rows.
        DamageError: the array contradicts the number of rows.
        UnsafeError: more sequences are claimed than such a store may have.
    """
    reader, where = store.reader, str(store.path)
    if store.schema.row_axis != TOKEN:
        raise ArgumentError(
            f"{where} has rows of samples, not of tokens: it has no sequences; take(rows) gives its rows"
        )
    num_rows = reader.committed.prefix
    if len(reader.committed) != num_rows:
        gaps = describe(reader.committed.missing(reader.committed.items[-1][1]))
        raise UncommittedError(
            f"{gaps} of {where} are not committed, so no sequence behind is known"
        )
    offsets = reader.offsets()
    if offsets is None:
        offsets = _derived(store, num_rows)
    elif offsets[0] != 0 or offsets[-1] != num_rows or (offsets[1:] < offsets[:-1]).any():
        raise DamageError(
            f"the offsets of {where} do not lead from row 0 to row {num_rows}: the store is damaged; verify() "
            "tells what else is"
        )
    offsets.flags.writeable = False
    return offsets


def _derived(store: Store, num_rows: int) -> Array:
    index = store.schema.index("sequence")
    view = store.reader.column(index)
    last = int(view.read(num_rows - 1, num_rows)[0]) if num_rows else -1
    count = store.header.num_sequences if store.is_sealed else None
    count = last + 1 if count is None else count
    check_count(count, num_rows, str(store.path))
    starts = range(0, num_rows, _PIECE_ROWS)
    pieces = (view.read(start, min(start + _PIECE_ROWS, num_rows)) for start in starts)
    try:
        return offsets_of(pieces, count)
    except RowError as error:
        raise DamageError(
            f"the column 'sequence' of {store.path} is damaged ({error}); verify() names the rows"
        ) from error
