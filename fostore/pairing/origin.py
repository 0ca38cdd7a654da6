"""What distributions know of the samples that they were made from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from fostore.errors import IdentityError
from fostore.reading.store import Selection, Store
from fostore.schema.row import Array, Column, Schema

_PIECE = 1 << 20


@dataclass(frozen=True, slots=True)
class Origin:
    """The identity, ids and input hashes of a store, or of some of its rows.

    A *place* is where a distribution is asked for: a row of the store, or a position in a Selection.
    """

    store: Store
    chosen: Array | None
    """The rows of a Selection; None: all rows of the store."""

    @property
    def schema(self) -> Schema:
        """What a row is."""
        return self.store.schema

    @property
    def dataset(self) -> Mapping[str, Any]:
        """What the generator recorded of its dataset; empty where no generator did."""
        found = self.store.header.identity.get("dataset", {})
        return found if isinstance(found, Mapping) else {}

    def __len__(self) -> int:
        return len(self.store) if self.chosen is None else len(self.chosen)

    @property
    def places(self) -> Array:
        """Where there is a distribution, in order."""
        if self.chosen is not None:
            return np.arange(len(self.chosen))
        parts = [np.arange(start, stop) for start, stop in self.store.committed]
        return np.concatenate([np.empty(0, np.int64), *parts])

    def rows(self, places: Array) -> Array:
        """The rows of the store that lie at `places`."""
        return places if self.chosen is None else self.chosen[places]

    def take(self, column: Column, places: Array) -> Array:
        """One column at `places`, as it is stored."""
        view = self.store.reader.column(self.schema.index(column.name))
        return view.take(self.rows(places))

    def find(self, column: Column, value: int) -> int | None:
        """The first place at which a column of numbers holds `value`."""
        places = self.places
        for start in range(0, len(places), _PIECE):
            part = places[start : start + _PIECE]
            found = np.flatnonzero(self.take(column, part) == value)
            if len(found):
                return int(part[found[0]])
        return None


def origin_of(distributions: Any) -> Origin | None:
    """What a store or a selection knows; None for a dict, which knows nothing."""
    if isinstance(distributions, Selection):
        return Origin(distributions.store, distributions.rows)
    return Origin(distributions, None) if isinstance(distributions, Store) else None


def refuse(difference: str, advice: str) -> IdentityError:
    """The error for a dataset whose samples are not those of the distributions."""
    return IdentityError(
        f"the dataset and its distributions differ: {difference}. {advice}", (difference,)
    )
