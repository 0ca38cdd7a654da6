"""The sequences of a store of token rows: all rows of each, one after another or padded to one length."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fostore.errors import ArgumentError, DamageError, UncommittedError, UnsafeError
from fostore.reading.request import as_rows
from fostore.schema.ranges import describe
from fostore.schema.row import TOKEN, Array
from fostore.schema.sequences import check_count, offsets_of

if TYPE_CHECKING:
    from fostore.reading.store import Store

_PIECE_ROWS = 1 << 20


@dataclass(frozen=True, slots=True)
class FlatBatch:
    """Rows of some sequences, one after another; of n sequences with m rows together."""

    distributions: Any
    """(m, [num_members,] num_classes) as `Store.take` gives them, or a `TopK` of m rows."""
    offsets: Array
    """int64 (n + 1,): sequence i has the rows `offsets[i]` to `offsets[i + 1]` of this batch."""
    tokens: Array | None
    """(m,), uint16 or uint32: the input token at each row; None where the store keeps none."""
    positions: Array | None
    """(m,), uint32: where in its sequence each row stands; None where no rows are left out."""


@dataclass(frozen=True, slots=True)
class PaddedBatch:
    """Rows of n sequences, each at its position, so that they lie as a model's batch does."""

    distributions: Any
    """(n, length, [num_members,] num_classes), or a `TopK` of these; zeros where there is no row."""
    mask: Array
    """bool (n, length): whether there is a row."""
    tokens: Array | None
    """(n, length), or None; zeros where there is no row."""


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
        asked = self._resolve(sequences)
        rows, offsets = self.rows(asked)
        return FlatBatch(
            distributions_of(self.store, rows),
            offsets,
            self._side("token", rows),
            self._positions(rows),
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
        asked = self._resolve(sequences)
        rows, offsets = self.rows(asked)
        counts = np.diff(offsets)
        lines = np.repeat(np.arange(len(asked)), counts)
        places = self._positions(rows)
        if places is None:
            places = np.arange(len(rows)) - np.repeat(offsets[:-1], counts)
        else:
            places = places.astype(np.int64)
        longest = int(places.max()) + 1 if len(places) else 0
        length = longest if length is None else length
        if longest > length:
            line = int(lines[np.argmax(places >= length)])
            raise ArgumentError(
                f"sequence {int(asked[line])} has a row at position {longest - 1} or before, beyond a length of "
                f"{length}: give length={longest}, or leave it out"
            )
        into = lines * length + places

        def spread(flat: Array) -> Array:
            out = np.zeros((len(asked) * length, *flat.shape[1:]), flat.dtype)
            out[into] = flat
            return out.reshape(len(asked), length, *flat.shape[1:])

        distributions = distributions_of(self.store, rows)
        tokens = self._side("token", rows)
        return PaddedBatch(
            distributions.map(spread) if hasattr(distributions, "map") else spread(distributions),
            spread(np.ones(len(rows), bool)),
            None if tokens is None else spread(tokens),
        )

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

    def _positions(self, rows: Array) -> Array | None:
        return self._side("position", rows)


def distributions_of(store: Store, rows: Array) -> Any:
    """The distributions of rows as training takes them: sparse where they are kept so."""
    return store.take(rows)


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
    except (IndexError, ValueError, MemoryError) as error:
        raise UnsafeError(
            f"the column 'sequence' of {store.path} has numbers beyond its {count:,} sequences ({error}): it is "
            "damaged; verify() names the rows"
        ) from error
