"""Samples and rows brought together by id."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fostore.errors import ArgumentError, FostoreError
from fostore.pairing.origin import Origin, refuse
from fostore.schema.row import Array, Column

_PIECE = 1 << 16


def join(ids: Any, origin: Origin, column: Column) -> Array | None:
    """The place of each sample's distribution, int64 (num_samples,); None where sample i is at place i.

    Takes memory for a sorted copy of the ids, and only where they are not in the store's order.

    Args:
        ids: one key a sample, integers or strings.
        column: the store's column of ids.

    Raises:
        ArgumentError: ids of another type than the store's.
        IdentityError: an id that the store does not have, or that comes twice; names the first.
    """
    wanted = encode(ids, column)
    places = origin.places
    there = _flat(origin.take(column, places), column)
    in_order = len(places) == 0 or int(places[-1]) == len(places) - 1
    if in_order and len(wanted) == len(there) and bool(np.array_equal(wanted, there)):
        return None
    if not origin.store.is_sealed and origin.chosen is None:
        _refuse_repeats(there, column)
    at, known = _find(_codes(wanted), _codes(there), wanted, there)
    if not known.all() and column.dtype != "int64":  # unless two keys had one hash
        at, known = _find(wanted, there, wanted, there)
    if not known.all():
        index = int(np.flatnonzero(~known)[0])
        raise refuse(
            f"sample {index} has the id {_shown(wanted[index], column)!r}, which the store does not have"
            f" ({int((~known).sum())} of {len(wanted)} ids are unknown)",
            "Generate the distributions of these samples as well, or leave them out of the dataset",
        )
    found = np.asarray(places[at], np.int64)
    by_place = np.argsort(found, kind="stable")
    repeated = np.flatnonzero(found[by_place][1:] == found[by_place][:-1])
    if len(repeated):
        second = by_place[repeated + 1]
        nearest = int(np.argmin(second))
        first, index = int(by_place[repeated[nearest]]), int(second[nearest])
        raise refuse(
            f"samples {first} and {index} have one id, {_shown(wanted[index], column)!r}",
            "An id names one sample",
        )
    return found


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
    found = np.empty(len(ids), f"S{column.shape[0] + 1}")
    for start in range(0, len(ids), _PIECE):
        part = ids[start : start + _PIECE]
        try:
            found[start : start + len(part)] = list(map(str.encode, part))
        except (TypeError, UnicodeEncodeError):
            index = next(i for i, key in enumerate(part, start) if not _is_text(key))
            raise ArgumentError(
                f"the store keeps text as ids, {ids[index]!r} came for sample {index}"
            ) from None
    return found


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
    from xxhash import xxh3_64_digest as digest

    codes = np.empty(len(keys), np.uint64)
    for start in range(0, len(keys), _PIECE):
        part = keys[start : start + _PIECE].tolist()
        codes[start : start + len(part)] = np.frombuffer(b"".join(map(digest, part)), ">u8")
    return codes


def _find(codes: Array, there_codes: Array, keys: Array, there: Array) -> tuple[Array, Array]:
    """The index in `there` of each key, and whether it is there at all."""
    if not len(there):
        return np.zeros(len(keys), np.int64), np.zeros(len(keys), bool)
    order, asked = np.argsort(there_codes), np.argsort(codes)
    at = np.empty(len(keys), np.int64)
    # Asked for in order, a search walks memory once.
    at[asked] = np.searchsorted(there_codes[order], codes[asked])
    at = order[np.minimum(at, len(order) - 1)]
    return at, there[at] == keys


def _refuse_repeats(there: Array, column: Column) -> None:
    order = np.argsort(there, kind="stable")
    repeated = np.flatnonzero(there[order][1:] == there[order][:-1])
    if len(repeated):
        first, second = (int(order[repeated[0] + k]) for k in (0, 1))
        raise refuse(
            f"rows {first} and {second} of the unfinished store have one id, "
            f"{_shown(there[first], column)!r}",
            "An id names one sample; generate the store anew",
        )


def _shown(key: Any, column: Column) -> Any:
    return int(key) if column.dtype == "int64" else bytes(key).decode("utf-8", "replace")
