"""Rows chosen from a store."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fostore.errors import UncommittedError
from fostore.reading.request import as_rows
from fostore.reading.stored import Stored
from fostore.schema.row import Array

if TYPE_CHECKING:
    from fostore.reading.store import Store


class Selection(Stored, Sequence[Array]):
    """Some rows of a store, renumbered from 0; nothing is read until rows are asked for."""

    def __init__(self, store: Store, rows: Array) -> None:
        self.store = store
        self.rows = rows

    @property
    def positions(self) -> Array:
        """Every row that can be taken: 0 to `len - 1`."""
        return np.arange(len(self))

    def resolve(self, rows: Any) -> Array:
        """The rows of the store that these rows of the selection are; see `Stored.resolve`."""
        positions = as_rows(rows)
        if positions.size and (positions.min() < 0 or positions.max() >= len(self)):
            raise UncommittedError(f"the selection has the rows 0 to {len(self) - 1}")
        return self.rows[positions]

    def select(self, rows: Any) -> Selection:
        """Some of these rows, renumbered from 0 in the order given."""
        return Selection(self.store, self.resolve(rows))

    def take(
        self,
        rows: Any,
        out: Array | None = None,
        *,
        as_kind: str = "probs",
        temperature: float | None = None,
    ) -> Array:
        """The distributions of these rows of the selection; see `Store.take`."""
        resolved = self.resolve(rows)
        return self.store.take(resolved, out, as_kind=as_kind, temperature=temperature)

    def __getitem__(self, row: Any) -> Any:
        if isinstance(row, slice):
            return Selection(self.store, self.rows[row])
        return self.take((operator.index(row),))[0]

    def __len__(self) -> int:
        return len(self.rows)
