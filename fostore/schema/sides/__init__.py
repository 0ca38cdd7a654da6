"""Columns beside the distributions: what each row says of its sample.

A side column is one file in this folder and one line in `SIDES`. Nobody else asks for a role to know what to do.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib import import_module
from typing import Any, Protocol

from fostore.schema.columns import Array, Column
from fostore.schema.ranges import Ranges


class Known(Protocol):
    """The values of a side column that are there, where none may come twice."""

    def load(self, there: Ranges) -> None:
        """Take those of the rows that are there already; once.

        Raises RowError where two of them have one value.
        """
        ...

    def add(self, start: int, stored: Array, there: Ranges) -> None:
        """Take those of the rows from `start` on, where the rows `there` were taken before.

        Raises RowError, and takes none, where one came before.
        """
        ...


class Side(Protocol):
    """What the values of one role are, and how they lie in their column; a store has one such column at most.

    Values come with a batch, or all at once when the store is made: then a text or True promises
    them with each batch.
    """

    role: str
    keyword: str
    """The parameter of `create`, `append` and `write` that brings the values."""

    def column(self, values: Any) -> Column:
        """The column that keeps `values`, or values as they are promised.

        Raises ArgumentError where they cannot be kept, or one comes twice that may not.
        """
        ...

    def fits(self, column: Column) -> bool:
        """Whether a store may have this column in the role."""
        ...

    def encode(self, values: Any, column: Column, start: int) -> Array:
        """Values of the rows from `start` on, as the column stores them; raises RowError."""
        ...

    def decode(self, stored: Array, column: Column) -> Array:
        """What a user sees of stored rows; raises DamageError."""
        ...

    def known(self, column: Column, read: Callable[[int, int], Array]) -> Known | None:
        """What refuses a value that came before; None where values may repeat.

        `read`: (start, stop) to rows that are there, as they are stored.
        """
        ...


SIDES = {
    "id": "fostore.schema.sides.ids",
    "fingerprint": "fostore.schema.sides.fingerprints",
    "view": "fostore.schema.sides.views",
    "label": "fostore.schema.sides.labels",
}
"""By role, in the order that the columns have in a new store."""


@cache
def side_of(role: str) -> Side:
    """The side column that plays `role`, one of `SIDES`."""
    side: Side = import_module(SIDES[role]).SIDE
    return side


def is_promise(values: Any) -> bool:
    """Whether `values` only say that values will come with each batch, and of which kind."""
    return isinstance(values, (bool, str))
