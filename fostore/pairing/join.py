"""Samples and rows brought together by id."""

from __future__ import annotations

from typing import Any

import numpy as np

from fostore.pairing.content import refuse
from fostore.reading.ids import codes, encode, flat, shown
from fostore.reading.selection import Stored
from fostore.schema.row import Array, Column


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
    known = flat(stored.take_column(column.name, positions), column)
    in_order = len(positions) == 0 or int(positions[-1]) == len(positions) - 1
    if in_order and len(keys) == len(known) and bool(np.array_equal(keys, known)):
        return None
    # Sealing compares all ids; a writer of an older release did not before that.
    if stored is stored.store and not stored.store.is_sealed:
        _refuse_repeats(known, column)
    at, is_known = _find(codes(keys), codes(known), keys, known)
    if not is_known.all() and column.dtype != "int64":  # unless two keys had one hash
        at, is_known = _find(keys, known, keys, known)
    if not is_known.all():
        index = int(np.flatnonzero(~is_known)[0])
        raise refuse(
            f"sample {index} has the id {shown(keys[index], column)!r}, which the store does not have"
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
            f"samples {first} and {index} have one id, {shown(keys[index], column)!r}",
            "An id names one sample",
        )
    return joined


def _find(numbers: Array, known_numbers: Array, keys: Array, known: Array) -> tuple[Array, Array]:
    """The index in `known` of each key, and whether it is known at all."""
    if not len(known):
        return np.zeros(len(keys), np.int64), np.zeros(len(keys), bool)
    order, asked = np.argsort(known_numbers), np.argsort(numbers)
    at = np.empty(len(keys), np.int64)
    # Asked for in order, a search walks memory once.
    at[asked] = np.searchsorted(known_numbers[order], numbers[asked])
    at = order[np.minimum(at, len(order) - 1)]
    return at, known[at] == keys


def _refuse_repeats(known: Array, column: Column) -> None:
    order = np.argsort(known, kind="stable")
    repeated = np.flatnonzero(known[order][1:] == known[order][:-1])
    if len(repeated):
        first, second = (int(order[repeated[0] + k]) for k in (0, 1))
        raise refuse(
            f"rows {first} and {second} of the unfinished store have one id, "
            f"{shown(known[first], column)!r}",
            "An id names one sample; generate the store anew",
        )
