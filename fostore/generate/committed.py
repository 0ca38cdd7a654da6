"""Rows that a store has already, and what happens where they were made from something else."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fostore.reading.store import Store
from fostore.schema import identity
from fostore.schema.ranges import Ranges
from fostore.schema.row import Array, Schema

_ReadColumn = Callable[[str, int, int], Array]
"""(name, start, stop) to rows of a column, as stored."""


Rows = tuple[Ranges, _ReadColumn]
"""Which rows there are, and what reads them."""


def rows_of(store: Store) -> Rows:
    """The committed rows of an open store, and what reads rows of a column of it, as stored."""

    def column(name: str, start: int, stop: int) -> Array:
        view = store.reader.column(store.schema.index(name))
        return view.take(np.arange(start, stop))

    return store.committed, column


class Consent:
    """What differs from what a store was made from: refused, or recorded where the user accepts it."""

    def __init__(self, path: Path | str, accepts: bool, is_shared: bool) -> None:
        self._path = path
        self._accepts = accepts
        self._cure = identity.JOINED if is_shared else identity.ANEW
        self.recorded: list[str] = []
        """What the metadata of the store are yet to say."""

    def differs(self, *differences: str) -> None:
        """
        Raises:
            IdentityError: the user has not accepted differences; nothing was written.
        """
        if not differences or not self._accepts:
            cure = f"{self._cure}, or go on with accept_differences=True"
            identity.refuse(self._path, differences, cure)
            return
        warnings.warn(
            f"{self._path} goes on although {'; '.join(differences)}: recorded in its metadata",
            stacklevel=2,
        )
        self.recorded += differences

    def refuse(self, *differences: str) -> None:
        """Raise IdentityError for what no consent helps with: the rows would be of two kinds."""
        identity.refuse(self._path, differences, self._cure)

    def check_shape(self, row_shape: tuple[int, ...], schema: Schema) -> None:
        """Refuse a model that gives other classes or members than the store has."""
        if row_shape != schema.row_shape:
            self.refuse(
                f"the model gives rows of shape {row_shape}, the store has {schema.row_shape}"
            )


@dataclass(frozen=True, slots=True)
class CommittedRows:
    """Rows of a store: which there are, and how they are read."""

    path: Path | str
    schema: Schema
    rows: Ranges
    column: _ReadColumn
    batch_size: int | None
    """Samples a batch when the store was begun, where it says so."""

    def hashes(self, start: int, stop: int) -> Array:
        """Of the inputs that the generator saw."""
        return self.column("input_hash", start, stop)

    def labels(self, start: int, stop: int) -> Array:
        """Hashes of the labels."""
        return self.column("label_hash", start, stop)

    @property
    def picked(self) -> list[int]:
        """The first, the middle and the last committed row."""
        rows = len(self.rows)
        # A dataset that was cut, shifted or sorted differs at an end or in the middle.
        places = sorted({0, rows // 2, rows - 1})
        listed = []
        for start, stop in self.rows:
            while places and places[0] < stop - start:
                listed.append(start + places.pop(0))
            places = [place - (stop - start) for place in places]
        return listed
