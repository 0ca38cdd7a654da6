"""The distributions of a paired dataset, as its user wants them: their kind, their temperature, their dtype."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from fostore.encodings import encoding_of
from fostore.encodings.class_map import ClassMap
from fostore.errors import ArgumentError
from fostore.reading.request import is_softened
from fostore.reading.selection import Selection
from fostore.reading.store import Store
from fostore.reading.store import open as open_store
from fostore.schema.class_names import names_of_dataset
from fostore.schema.halves import HALVES, widen
from fostore.schema.row import Array, Column


class Distributions:
    """Rows of a store, a selection or a mapping, in the form that is asked for; `source` is what was given.

    Args:
        source: a mapping from dataset index to a row, a `Store`, a `Selection`, or the path
            or url of a store.
        dtype: a floating one; None: as they are stored.
        as_kind, temperature, rule: see `Store.take`; a mapping, whose rows could be anything, takes
            none. Without a rule, top-k rows are handed out as they are kept.
        class_map: the student's class for each of the teacher's, see `ClassMap`.

    Raises:
        ArgumentError: one of them cannot be used.
    """

    def __init__(
        self,
        source: Any,
        *,
        dtype: str | None,
        as_kind: str,
        temperature: float | None,
        rule: str | None,
        class_map: Any = None,
    ) -> None:
        if isinstance(source, (str, os.PathLike)):
            source = open_store(source)
        if not isinstance(source, (Mapping, Selection)):
            raise ArgumentError(
                f"distributions is {type(source).__name__}, expected a dict from dataset "
                "index to distribution, a Store, or the path or url of one"
            )
        self.source = source
        # Asked once: a Mapping is an abstract class, for which Python looks long.
        self.stored = source if isinstance(source, (Store, Selection)) else None
        self.dtype = None if dtype is None else _as_dtype(dtype)
        self._as_kind, self._temperature, self._rule = as_kind, temperature, rule
        softened = temperature is not None and is_softened(temperature)
        is_changed = as_kind != "probs" or softened
        if self.stored is None and (is_changed or rule is not None):
            raise ArgumentError(
                f"as_kind={as_kind!r}, temperature={temperature!r} and rule={rule!r} are for a store, which says "
                f"what its rows are; those of a {type(source).__name__} are handed out as they came"
            )
        if self.stored is not None and rule is not None:
            encoding_of(self.stored.schema).check_dense(self.stored.schema, rule)
        self.is_sparse = self.stored is not None and rule is None and _keeps_some(self.stored)
        """Whether they are handed out as `TopK`: the classes that are kept, and what the others weigh."""
        if self.is_sparse and is_changed:
            raise ArgumentError(
                f"as_kind={as_kind!r} and temperature={temperature!r} are for rows of all classes, and these are "
                "of the largest: leave them to the loss, or name a rule for the others (rule='uniform')"
            )
        self.class_map = _as_map(class_map)
        if self.class_map is not None and as_kind != "probs":
            raise ArgumentError(
                f"class_map adds probabilities up, and as_kind={as_kind!r} asks for others; leave as_kind out"
            )
        # Halves are gathered as they are stored and widened afterwards: half the bytes from memory.
        is_plain = not softened and self.class_map is None
        self.half = self._find_half() if is_plain else None

    def __len__(self) -> int:
        return len(self.source)

    def _find_half(self) -> Column | None:
        """The column of halves that are handed out wider and otherwise as they are; else None."""
        if self.stored is None:
            return None
        schema, dtype = self.stored.schema, self.dtype
        if dtype is None:  # what `Store.take` gives
            is_given = (schema.kind, schema.dtype) == ("probs", "float16")
            dtype = np.dtype(np.float16 if is_given else np.float32)
        as_kind = self._as_kind  # logits lie without the level of their row
        is_kept = as_kind != "logits" and encoding_of(schema).is_plain(schema, as_kind)
        is_wider = schema.dtype in HALVES and dtype != np.float16
        return schema.columns[0] if is_kept and is_wider else None

    def take(self, rows: Array) -> Any:
        """The distributions of `rows` (int64), fresh and writable: (n, [M,] K), or a `TopK` of n rows."""
        if self.is_sparse and self.stored is not None:
            topk = self.stored.take_topk(rows)
            if self.class_map is not None:
                topk = self.class_map(topk)
            if self.dtype is None:
                return topk
            values = topk.values
            if values.dtype == np.float16 != self.dtype:
                values = widen(values, "float16")
            return replace(topk, values=values.astype(self.dtype, copy=False))
        taken = self.take_kept(rows)
        if self.half is not None:
            taken = widen(taken, self.half.dtype)
        if self.dtype is None or taken.dtype == self.dtype:
            return taken
        return taken.astype(self.dtype)

    def take_kept(self, rows: Array) -> Array:
        """The same before they are widened: with `half` the numbers that the store keeps."""
        if self.stored is None:
            taken = self._from_mapping(rows.tolist())
            return taken if self.class_map is None else self.class_map.dense(taken)
        if self.half is not None:
            return self.stored.take_column(self.half.name, rows)
        taken = self.stored.take(
            rows, as_kind=self._as_kind, temperature=self._temperature, rule=self._rule
        )
        return taken if self.class_map is None else self.class_map.dense(taken)

    def _from_mapping(self, rows: list[int]) -> Array:
        chosen = [self.source[row] for row in rows]
        try:
            made = np.array(chosen)
        except ValueError:  # of several lengths
            made = np.empty(0)
        if chosen and (made.ndim < 2 or made.dtype.kind not in "fiu"):
            sizes = [len(one) if hasattr(one, "__len__") else None for one in chosen]
            at = next((i for i, size in enumerate(sizes) if size != sizes[0]), 0)
            raise ArgumentError(
                f"the distribution of sample {rows[at]} is {chosen[at]!r:.60}; expected numbers, one a "
                "class, and as many for every sample"
            )
        return made

    def mapped(self) -> Array | None:
        """All of them as one read-only array, where that is what a store has, number by number."""
        store = self.source
        if self.class_map is not None:
            return None
        if not (isinstance(store, Store) and store.is_plain and self._as_kind == "probs"):
            return None
        is_as_stored = self.dtype in (None, store.schema.columns[0].numpy_dtype)
        return store.array if is_as_stored and self._temperature is None else None

    @property
    def row_bytes(self) -> int | None:
        """Bytes of a row as it is handed out; None of a mapping."""
        if self.stored is None:
            return None
        schema, wider = self.stored.schema, 1 if self.half is None else 2  # float32, once widened
        kept = sum(schema.row_bytes) * wider
        encoding = encoding_of(schema)
        if self.is_sparse or encoding.is_plain(schema, schema.kind):
            return kept
        return max(kept, encoding.decoded_bytes(schema))

    def keys(self) -> tuple[str | None, str | None]:
        """The store's id and digest: one of them stays the same as long as its rows do."""
        header = None if self.stored is None else self.stored.header
        return ("", None) if header is None else (header.id, header.digest)

    def class_names(self, dataset: Any) -> list[str]:
        """The store's class names, or the dataset's, or the numbers of the classes as text."""
        if isinstance(self.source, (Store, Selection)):
            names, num_classes = self.source.schema.class_names, self.source.num_classes
        else:
            names, num_classes = None, np.shape(next(iter(self.source.values())))[-1]
        names = names or names_of_dataset(dataset)
        if names is None or len(names) != num_classes:
            return [str(number) for number in range(num_classes)]
        return list(names)


def _keeps_some(stored: Store | Selection) -> bool:
    """Whether rows are of the largest classes only."""
    return encoding_of(stored.schema).is_sparse(stored.schema)


def _as_dtype(dtype: Any) -> np.dtype[Any]:
    try:
        made: np.dtype[Any] = np.dtype(dtype)
    except TypeError:
        made = np.dtype(object)
    if made.kind != "f":
        raise ArgumentError(
            f"dtype is {dtype!r}, expected 'float16', 'float32' or 'float64', or None for "
            "distributions as they are stored"
        )
    return made


def _as_map(class_map: Any) -> ClassMap | None:
    return (
        class_map if class_map is None or isinstance(class_map, ClassMap) else ClassMap(class_map)
    )
