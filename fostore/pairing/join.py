"""Samples and rows brought together by id."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fostore.errors import ArgumentError, FostoreError
from fostore.pairing.content import refuse
from fostore.reading.selection import Stored
from fostore.schema.row import Array, Column

_PIECE = 1 << 16


def join(ids: Any, stored: Stored, column: Column) -> Array | None:
    """The position of each sample's distribution, int64 (num_samples,); None where sample i is at i.

    Takes memory for a sorted copy of the ids, and only where they are not in the store's order.

    Args:
        ids: one key a sample, integers or strings.
        column: the store's column of ids.

    Raises:
        ArgumentError: ids of another type than the store's.
        IdentityError: an id that the store does not have, or that comes twice; names the first.
    """
    keys = encode(ids, column)
    positions = stored.positions
    known = _flat(stored.take_column(column.name, positions), column)
    in_order = len(positions) == 0 or int(positions[-1]) == len(positions) - 1
    if in_order and len(keys) == len(known) and bool(np.array_equal(keys, known)):
        return None
    # Sealing compares all ids; a writer of an older release did not before that.
    if stored is stored.store and not stored.store.is_sealed:
        _refuse_repeats(known, column)
    at, is_known = _find(_codes(keys), _codes(known), keys, known)
    if not is_known.all() and column.dtype != "int64":  # unless two keys had one hash
        at, is_known = _find(keys, known, keys, known)
    if not is_known.all():
        index = int(np.flatnonzero(~is_known)[0])
        raise refuse(
            f"sample {index} has the id {_shown(keys[index], column)!r}, which the store does not have"
            f" ({int((~is_known).sum())} of {len(keys)} ids are unknown)",
            "Generate the distributions of these samples as well, or leave them out of the dataset",
        )
    # Two samples of one id would share a row, and nobody would see it: refused by name.
    joined = np.asarray(positions[at], np.int64)
    by_position = np.argsort(joined, kind="stable")
    repeated = np.flatnonzero(joined[by_position][1:] == joined[by_position][:-1])
    if len(repeated):
        second = by_position[repeated + 1]
        nearest = int(np.argmin(second))
        first, index = int(by_position[repeated[nearest]]), int(second[nearest])
        raise refuse(
            f"samples {first} and {index} have one id, {_shown(keys[index], column)!r}",
            "An id names one sample",
        )
    return joined


def encode(ids: Any, column: Column) -> Array:
    """Ids as they can be compared with those that `column` keeps: int64, or bytes.

    Raises:
        ArgumentError: they are of another type, so that none could be found.
    """
    if hasattr(ids, "tolist") or not isinstance(ids, Sequence):
        ids = np.asarray(ids)
    if column.dtype == "int64":
        try:
            keys = np.asarray(ids)
        except (ValueError, OverflowError) as error:
            raise ArgumentError(f"ids make no array of integers: {error}") from error
        if keys.ndim != 1 or (keys.dtype.kind not in "iu" and keys.size):
            raise ArgumentError(
                f"the store keeps integers as ids, {keys.dtype} of shape {keys.shape} came"
            )
        if keys.dtype == np.uint64 and keys.size and keys.max() > np.iinfo(np.int64).max:
            raise ArgumentError("ids beyond 63 bits came, and the store keeps none of these")
        return keys.astype(np.int64, copy=False)
    # One byte more than the store keeps: a longer key stays one that is not there.
    texts = np.empty(len(ids), f"S{column.shape[0] + 1}")
    for start in range(0, len(ids), _PIECE):
        piece = ids[start : start + _PIECE]
        try:
            texts[start : start + len(piece)] = list(map(str.encode, piece))
        except (TypeError, UnicodeEncodeError):
            index = next(i for i, key in enumerate(piece, start) if not _is_text(key))
            raise ArgumentError(
                f"the store keeps text as ids, {ids[index]!r} came for sample {index}"
            ) from None
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


def _flat(stored: Array, column: Column) -> Array:
    if column.dtype == "int64":
        return stored
    return np.ascontiguousarray(stored).view(f"S{column.shape[0]}").reshape(-1)


def _codes(keys: Array) -> Array:
    """Numbers that stand for the keys: integers sort many times faster than text."""
    if keys.dtype.kind == "i":
        return keys
    from xxhash import xxh3_64_digest as digest  # import cost: only ids that are text

    codes = np.empty(len(keys), np.uint64)
    for start in range(0, len(keys), _PIECE):
        piece = keys[start : start + _PIECE].tolist()
        codes[start : start + len(piece)] = np.frombuffer(b"".join(map(digest, piece)), ">u8")
    return codes


def _find(codes: Array, known_codes: Array, keys: Array, known: Array) -> tuple[Array, Array]:
    """The index in `known` of each key, and whether it is known at all."""
    if not len(known):
        return np.zeros(len(keys), np.int64), np.zeros(len(keys), bool)
    order, asked = np.argsort(known_codes), np.argsort(codes)
    at = np.empty(len(keys), np.int64)
    # Asked for in order, a search walks memory once.
    at[asked] = np.searchsorted(known_codes[order], codes[asked])
    at = order[np.minimum(at, len(order) - 1)]
    return at, known[at] == keys


def _refuse_repeats(known: Array, column: Column) -> None:
    order = np.argsort(known, kind="stable")
    repeated = np.flatnonzero(known[order][1:] == known[order][:-1])
    if len(repeated):
        first, second = (int(order[repeated[0] + k]) for k in (0, 1))
        raise refuse(
            f"rows {first} and {second} of the unfinished store have one id, "
            f"{_shown(known[first], column)!r}",
            "An id names one sample; generate the store anew",
        )


def _shown(key: Any, column: Column) -> Any:
    return int(key) if column.dtype == "int64" else bytes(key).decode("utf-8", "replace")
