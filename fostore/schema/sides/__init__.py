"""Columns beside the distributions: what each row says of its sample.

A side column is one file in this folder and one line in `SIDES`. Nobody else asks for a role to know what to do.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any, NamedTuple, Protocol

from fostore.schema.columns import Array, Column
from fostore.schema.ranges import Ranges

Read = Callable[[int, int], Array]
"""(start, stop) to rows that are there, as they are stored."""


class Bounds(NamedTuple):
    """What the values of side columns are under; None where nobody knows it yet."""

    num_classes: int
    num_sequences: int | None = None
    vocab_size: int | None = None


class Known(Protocol):
    """The values of a side column that are there, where none may come twice."""

    def load(self, written: Ranges) -> None:
        """Take those of the rows that are there already; once.

        Raises RowError where two of them have one value.
        """
        ...

    def add(self, start: int, stored: Array, written: Ranges) -> None:
        """Take those of the rows from `start` on, where the rows `written` were taken before.

        Raises RowError, and takes none, where one came before.
        """
        ...


def _as_stored(stored: Array, column: Column) -> Array:
    return stored


@dataclass(frozen=True, slots=True)
class Side:
    """What the values of one role are, and how they lie in their column; a store has one such column at most.

    Values come with a batch, or all at once when the store is made: then a text or True promises
    them with each batch.
    """

    role: str
    keyword: str
    """The parameter of `create`, `append` and `write` that brings the values."""
    column: Callable[[Any], Column]
    """The column that keeps values, or values as they are promised.

    Raises ArgumentError where they cannot be kept, or one comes twice that may not.
    """
    fits: Callable[[Column], bool]
    """Whether a store may have this column in the role."""
    encode: Callable[[Any, Column, int], Array]
    """(values, column, first row) to what the column stores; raises RowError."""
    decode: Callable[[Array, Column], Array] = _as_stored
    """What a user sees of stored rows; raises DamageError."""
    known: Callable[[Column, Read], Known] | None = None
    """What refuses a value that came before; None where values may repeat."""
    check: Callable[[Array, Bounds, int], None] | None = None
    """(stored rows, what they are under, first row): raises RowError where a store may not hold them."""
    row_axis: str | None = None
    """The row axis that a store with this column has; None: any."""


SIDES = {
    "id": "fostore.schema.sides.ids",
    "fingerprint": "fostore.schema.sides.fingerprints",
    "view": "fostore.schema.sides.views",
    "label": "fostore.schema.sides.labels",
    "class_label": "fostore.schema.sides.classes",
    "sequence": "fostore.schema.sides.sequences",
    "token": "fostore.schema.sides.tokens",
    "position": "fostore.schema.sides.positions",
}
"""By role, in the order that the columns have in a new store."""


@cache
def side_of(role: str) -> Side:
    """The side column that plays `role`, one of `SIDES`."""
    side: Side = import_module(SIDES[role]).SIDE
    return side


def like(made: Column) -> Callable[[Column], bool]:
    """Whether a column holds rows as `made` does, whatever its name."""
    return lambda column: (column.dtype, column.shape) == (made.dtype, made.shape)


def is_promise(values: Any) -> bool:
    """Whether `values` only say that values will come with each batch, and of which kind."""
    return isinstance(values, (bool, str))
