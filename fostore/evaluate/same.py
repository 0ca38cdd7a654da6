"""Whether two sources hold distributions of the same samples and classes; refused where they do not."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator

import numpy as np

from fostore.errors import ArgumentError, IdentityError
from fostore.evaluate.rows import Rows, aligned
from fostore.generate.labels import differ as labels_differ
from fostore.reading.selection import Selection, Stored
from fostore.schema.class_names import difference, same
from fostore.schema.row import TOKEN, Array, Column
from fostore.schema.sides import side_of
from fostore.schema.sides.ids import decode_ids

LEVELS = ("auto", "length")
_PIECE = 1 << 16
_FACTS = {
    "length": "the lengths of their datasets",
    "labels": "the hashes of their labels",
    "ids": "the hashes of their ids",
    "fingerprint": "the fingerprints of their datasets",
}
_SAMPLES = (
    "Bring the rows into one order with store.select(rows), or generate one of them anew; "
    "check='length' (--check length) compares row by row whatever the samples are"
)
_CLASSES = (
    "Bring the classes into one order and compare arrays: store[:][:, order], where class k of the "
    "result is class order[k] of the store"
)
_Ids = Callable[[int, int], Array]
"""The ids of the rows from `start` to `stop`."""


def check_same(first: Rows, *others: Rows, check: str = "auto") -> None:
    """Raise unless row i is of the same sample and class k the same class in all sources.

    Asks whether it is the same *sample*, not the same view of it: two models may well have seen one
    image at two sizes. Arrays and mappings know nothing of their samples but how many they are; of
    files that are no stores, ids are compared, which reads the files once more.

    Args:
        check: "auto" compares indices, class names, and what the stores recorded of their datasets:
            length, labels, fingerprint, ids row by row, tokens, and the hashes of what their models saw
            (where some rows agree, all must, whatever the ids say). "length" leaves out everything
            but indices and classes.

    Raises:
        IdentityError: `differences` lists what differs; the message names the first row or class.
        ArgumentError: lengths, indices or numbers of classes differ.

    Warns:
        UserWarning: the models saw other inputs for every row.
    """
    if check not in LEVELS:
        raise ArgumentError(f"check is {check!r}, expected one of {list(LEVELS)}")
    aligned(first, *others)
    for other in others:
        differences, advice = [], _CLASSES
        ours, theirs = first.class_names, other.class_names
        # Other classes make a comparison of samples idle, and have another cure.
        if ours is not None and theirs is not None and not same(ours, theirs):
            differences = [difference(ours, theirs, ("in the one", "in the other"))]
        elif check == "auto":
            differences, advice = [*_datasets(first, other), *_rows(first, other)], _SAMPLES
        if differences:
            raise IdentityError(
                f"{first.where} and {other.where} cannot be compared: {'; '.join(differences)}. "
                f"{advice}",
                tuple(differences),
            )


def _datasets(first: Rows, other: Rows) -> Iterator[str]:
    """What was recorded of the datasets; a part of a store has other facts than the whole."""
    one, two = first.stored, other.stored
    if one is None or two is None or isinstance(one, Selection) or isinstance(two, Selection):
        return
    for key, words in _FACTS.items():
        a, b = one.dataset_facts.get(key), two.dataset_facts.get(key)
        if a is not None and b is not None and a != b:
            yield f"{words} differ ({a!r} and {b!r})"


def _rows(one: Rows, other: Rows) -> list[str]:
    """Ids row by row, and the hashes of what the models saw."""
    first, second = _ids_of(one), _ids_of(other)
    if first is not None and second is not None:
        for start in range(0, one.count, _PIECE):
            stop = min(start + _PIECE, one.count)
            ours, theirs = first(start, stop), second(start, stop)
            different = np.flatnonzero(ours != theirs)
            if len(different):
                at = int(different[0])
                return [
                    f"row {start + at} has the id {ours[at].item()!r} in the one and "
                    f"{theirs[at].item()!r} in the other"
                ]
    if one.stored is None or other.stored is None:
        return []
    ids = None if second is None else first
    # A token or a label that differs says more to people than a hash does.
    return (
        _tokens(one.stored, other.stored)
        or _labels(one.stored, other.stored, ids)
        or _hashes(one.stored, other.stored, ids)
    )


def _tokens(one: Stored, other: Stored) -> list[str]:
    """The first row that is of another sequence, position or token, of stores whose rows are tokens."""
    for column in one.schema.columns[len(one.schema.content) :]:
        differs = None
        if side_of(column.role).row_axis == TOKEN:
            differs = _different(one, other, column.role)
        if differs is not None:
            at = one.positions[np.argmax(differs[0]) :][:1]
            row, ours = int(at[0]), int(one.take_column(column.name, at)[0])
            theirs = int(other.take_column(differs[2].name, at)[0])
            return [f"row {row} is of {column.role} {ours} in the one and {theirs} in the other"]
    return []


def _ids_of(rows: Rows) -> _Ids | None:
    stored = rows.stored
    if stored is None:
        return rows.ids
    column = stored.schema.role("id")
    if column is None:
        return None
    positions = stored.positions
    return lambda start, stop: decode_ids(
        stored.take_column(column.name, positions[start:stop]), column
    )


def _labels(one: Stored, other: Stored, ids: _Ids | None) -> list[str]:
    labels = _different(one, other, "label")
    if labels is None:
        return []
    at = int(np.argmax(labels[0]))
    return [f"{_name(at, ids)} has another label in the one than in the other"]


def _different(one: Stored, other: Stored, role: str) -> tuple[Array, Column, Column] | None:
    """Which rows differ in a column of one number that both have; None where none does."""
    ours, theirs = one.schema.role(role), other.schema.role(role)
    if ours is None or theirs is None:
        return None
    are_other = labels_differ if role == "label" else np.not_equal
    every = one.positions
    cuts = [every[start : start + _PIECE] for start in range(0, len(every), _PIECE)]
    differ = np.concatenate(
        [
            np.zeros(0, bool),
            *(
                are_other(one.take_column(ours.name, at), other.take_column(theirs.name, at))
                for at in cuts
            ),
        ]
    )
    return (differ, ours, theirs) if differ.any() else None


def _name(row: int, ids: _Ids | None) -> str:
    return f"row {row}" if ids is None else f"row {row} (id {ids(row, row + 1)[0].item()!r})"


def _hashes(one: Stored, other: Stored, ids: _Ids | None) -> list[str]:
    inputs = _different(one, other, "fingerprint")
    if inputs is None:
        return []
    differ, *columns = inputs
    at = int(np.argmax(differ))
    value = int(one.take_column(columns[0].name, [at])[0])
    elsewhere = other.find(columns[1].name, value)
    if elsewhere is not None:
        return [
            f"what the model saw for {_name(at, ids)} of the one is {_name(elsewhere, ids)} of the other"
        ]
    if not differ.all():  # another preprocessing would have changed all of them
        return [
            f"the models saw other inputs for {int(differ.sum())} rows, first for {_name(at, ids)}"
        ]
    warnings.warn(
        "the models saw other inputs for every row: the same samples prepared in another way, or "
        f"other samples; {'ids' if ids else 'their lengths and labels'} alone say which. "
        "check='length' says that this is meant",
        stacklevel=5,  # who called kl(), compare() ...
    )
    return []
