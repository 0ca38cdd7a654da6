"""Rows by id: an index over the keys that are there, made when the first one is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fostore.errors import ArgumentError, DamageError, FostoreError, UncommittedError
from fostore.schema.integers import integers
from fostore.schema.row import Array, Column

if TYPE_CHECKING:
    from fostore.reading.selection import Stored

_PIECE = 1 << 16


class Index:
    """Where each id stands in a store or a selection; takes 16 bytes a row, and 24 for a moment.

    Numbers that stand for the ids are kept, in order, each with its position. Ids that are text are
    compared with those of the rows found, so that two with one hash are never taken for each other.
    """

    def __init__(self, stored: Stored, column: Column) -> None:
        self._stored, self._column = stored, column
        positions = stored.positions
        numbers = np.empty(len(positions), np.int64 if column.dtype == "int64" else np.uint64)
        for start in range(0, len(positions), _PIECE):
            piece = positions[start : start + _PIECE]
            numbers[start : start + len(piece)] = codes(self._keys(piece))
        order = np.argsort(numbers, kind="stable")  # of a row that was selected twice, the first
        self._numbers, self._positions = numbers[order], positions[order]
        self._refuse_repeats()

    def find(self, ids: Any) -> tuple[Array, Array]:
        """Positions, int64 (n,), and whether each id is there (n,); where it is not the position says nothing.

        Raises:
            ArgumentError: ids of another type than the store's.
        """
        keys = encode(ids, self._column)
        positions, is_known = np.zeros(len(keys), np.int64), np.zeros(len(keys), bool)
        if len(self._numbers):
            for start in range(0, len(keys), _PIECE):
                piece = slice(start, start + _PIECE)
                positions[piece], is_known[piece] = self._find(keys[piece])
        return positions, is_known

    def _find(self, keys: Array) -> tuple[Array, Array]:
        asked, last = codes(keys), len(self._numbers) - 1
        at = np.minimum(np.searchsorted(self._numbers, asked), last)
        is_known = self._numbers[at] == asked
        if keys.dtype.kind == "S":
            left = np.flatnonzero(is_known)
            while len(left):  # once, but where two ids have one hash
                is_known[left] = self._keys(self._positions[at[left]]) == keys[left]
                left = left[~is_known[left] & (at[left] < last)]
                at[left] += 1
                left = left[self._numbers[at[left]] == asked[left]]
        return self._positions[at], is_known

    def _keys(self, positions: Array) -> Array:
        return flat(self._stored.take_column(self._column.name, positions), self._column)

    def _refuse_repeats(self) -> None:
        """A writer lets no id come twice; a stranger's may have, and either row could be meant."""
        again = np.flatnonzero(self._numbers[1:] == self._numbers[:-1])
        for start in range(0, len(again), _PIECE):
            one = self._positions[again[start : start + _PIECE]]
            other = self._positions[again[start : start + _PIECE] + 1]
            rows = self._stored.resolve(one), self._stored.resolve(other)
            twice = np.flatnonzero((self._keys(one) == self._keys(other)) & (rows[0] != rows[1]))
            if len(twice):
                first, second = sorted((int(rows[0][twice[0]]), int(rows[1][twice[0]])))
                key = shown(self._keys(one[twice[:1]])[0], self._column)
                raise DamageError(
                    f"rows {first} and {second} of {self._stored.store.path} have one id, {key!r}, and an "
                    "id names one sample; verify() tells whether the store is damaged"
                )


def index_of(stored: Stored, index: Index, ids: Any) -> Array:
    """The positions of `ids`, all of them there; see `Stored.index_of`."""
    positions, is_known = index.find(ids)
    if not is_known.all():
        unknown = np.flatnonzero(~is_known)
        keys = ", ".join(repr(_plain(ids[at])) for at in unknown[:4].tolist())
        more = (
            f" ({len(unknown)} of {len(positions)} ids are not there)" if len(unknown) > 1 else ""
        )
        store = stored.store
        where = str(store.path) if stored is store else f"the selection of {store.path}"
        raise UncommittedError(
            f"the id {keys} was asked for; {where} has no row of it"
            + ("" if store.is_sealed else " committed so far")
            + more
        )
    return positions


def _plain(key: Any) -> Any:
    return key.item() if isinstance(key, np.generic) else key


def encode(ids: Any, column: Column) -> Array:
    """Ids as they can be compared with those that `column` keeps: int64, or bytes.

    Raises:
        ArgumentError: they are of another type, so that none could be found.
    """
    if hasattr(ids, "tolist") or not isinstance(ids, Sequence):
        ids = np.asarray(ids)
    if column.dtype == "int64":
        return integers(ids, "the store keeps integers as ids", ArgumentError)
    # One byte more than the store keeps: a longer key stays one that is not there.
    texts = np.empty(len(ids), f"S{column.shape[0] + 1}")
    for start in range(0, len(ids), _PIECE):
        piece = ids[start : start + _PIECE]
        try:
            texts[start : start + len(piece)] = list(map(str.encode, piece))
            has_nul = "\0" in "".join(piece)
        except (TypeError, UnicodeEncodeError):
            index = next(i for i, key in enumerate(piece, start) if not _is_text(key))
            raise ArgumentError(
                f"the store keeps text as ids, {ids[index]!r} came for sample {index}"
            ) from None
        if has_nul:  # NumPy takes one at the end for padding: the id of another sample
            index = next(i for i, key in enumerate(piece, start) if "\0" in key)
            raise ArgumentError(f"sample {index} has the id {ids[index]!r}; an id holds no NUL")
    return texts


def fits(ids: Any, column: Column) -> bool:
    """Whether `ids` are of the type that `column` keeps."""
    try:
        encode(ids, column)
    except (FostoreError, TypeError, ValueError):
        return False
    return True


def _is_text(key: Any) -> bool:
    return isinstance(key, str) and key.encode("utf-8", "ignore").decode() == key


def flat(stored: Array, column: Column) -> Array:
    """Stored ids (n,), as `encode` has them: int64, or bytes."""
    if column.dtype == "int64":
        return stored
    return np.ascontiguousarray(stored).view(f"S{column.shape[0]}").reshape(-1)


def codes(keys: Array) -> Array:
    """Numbers that stand for the keys: integers sort many times faster than text."""
    if keys.dtype.kind == "i":
        return keys
    from xxhash import xxh3_64_digest as digest  # import cost: only ids that are text

    hashes = np.empty(len(keys), np.uint64)
    for start in range(0, len(keys), _PIECE):
        piece = keys[start : start + _PIECE].tolist()
        hashes[start : start + len(piece)] = np.frombuffer(b"".join(map(digest, piece)), ">u8")
    return hashes


def shown(key: Any, column: Column) -> Any:
    """An id, as `encode` has it, in a message."""
    return int(key) if column.dtype == "int64" else bytes(key).decode("utf-8", "replace")
