"""What a writer learns of how far its rows are from those that came: of a few as they pass, of all at the seal.

The few are drawn by their numbers, so that a run that resumes looks at the same ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from fostore.encodings import encoding_of
from fostore.encodings.bound import Bound
from fostore.encodings.fidelity import COLUMNS, COMPARED, Errors, Figures, compare
from fostore.encodings.topk_rows import Selected
from fostore.encodings.uniform import uniform
from fostore.schema.header import Header
from fostore.schema.ranges import Ranges
from fostore.schema.row import Array

_WHERE = "attribute 'fidelity'"
_ROWS, _LEAST, _VALUES = 1024, 64, 1 << 26
"""Rows that are compared in all, but at most so many numbers of them, if that leaves the least."""
_A_DOUBLING = 128
"""Rows that are compared of a stream each time its length has doubled."""
_PIECE_BYTES = 8 << 20


class Watch:
    """Errors of the rows of one writer: what stands in the header of the store."""

    def __init__(self, header: Header, max_kl: float | None) -> None:
        """`max_kl`: nats that a row may lose at most; None is no bound."""
        self._schema = header.schema
        # Where numbers are rounded and nothing else, what that costs is known beforehand.
        self._looks = max_kl is not None or encoding_of(header.schema).is_lossy
        # A sealed store that goes on is a stream: how long it was is no plan.
        self._planned = None if header.sealed else header.num_samples
        self._bound = Bound(max_kl, header.schema)
        self._known = dict(header.fidelity or {})
        self._compared = Figures.from_json(self._known.get(COMPARED, {}), _WHERE)
        self._seen: Ranges | None = None
        self._waiting: list[tuple[Array, Errors, Array]] = []
        """Of rows that are not committed yet."""
        self._joined: dict[str, Figures] = {}

    @property
    def has_news(self) -> bool:
        """Whether rows were compared of which the header says nothing yet."""
        return bool(self._waiting)

    def look(self, start: int, rows: Array | Selected, columns: Sequence[Array]) -> None:
        """Compare some rows of a batch with what will be stored of them.

        Raises:
            RowError: one loses more than it may; names it.
        """
        if not self._looks:
            return
        stop = start + len(columns[0])
        picked, weights = sampled(start, stop, self._planned, self._schema.row_shape)
        if not len(picked):
            return
        chosen = picked - start
        few = [column[chosen] for column in columns[: len(self._schema.content)]]
        errors = compare(_take(rows, chosen), few, self._schema)
        self._bound.check(picked, errors)
        self._waiting.append((picked, errors, weights))

    def of_committed(self, rows: Ranges) -> Mapping[str, Any] | None:
        """What the header says once `rows` are durable; None where that is nothing new."""
        if rows is self._seen:  # no commit since: asked with every batch
            return None
        self._seen = rows
        before, waiting = self._compared, self._waiting
        self._waiting = [one for one in waiting if not _lies_in(rows, one[0])]
        for picked, errors, weights in waiting:
            if _lies_in(rows, picked):
                self._compared = self._compared.add(picked, errors, weights)
        return None if self._compared is before else self._saying(COMPARED, self._compared)

    def measured(self, compared: Figures | None, max_kl: float | None) -> None:
        """Let the header say at the seal what a conversion has found of all rows; None where nothing is lossy.

        What the columns say is bound by `max_kl` all the same: a rule loses what it leaves out.
        """
        self._bound = Bound(max_kl, self._schema, stays=False)
        if self._looks and compared is not None:
            self._compared = compared
            self._saying(COMPARED, compared)

    def of_all(
        self, num_rows: int, read: Callable[[int, int], list[Array]]
    ) -> Mapping[str, Any] | None:
        """What the header says once all rows are there, which are read piece by piece; None where that is nothing.

        Raises:
            RowError: a row loses more than it may; names it.
        """
        encoding, schema = encoding_of(self._schema), self._schema
        if self._joined:  # each unit was looked at by who wrote it
            return self._of_units()
        self._bound.check_figures(self._compared)  # of rows that an earlier run wrote
        known = Figures.from_json(self._known.get(COLUMNS, {}), _WHERE)
        if known.num_rows == num_rows:  # a copy of a store that says it
            self._bound.check_figures(known)
            return self._known or None
        # Of no rows first: most encodings say nothing by their columns, and reading them would be for nothing.
        if not self._looks or encoding.fidelity(read(0, 0), schema) is None:
            return self._known or None
        figures, step = Figures(), max(_PIECE_BYTES // sum(c.row_bytes for c in schema.content), 1)
        for start in range(0, num_rows, step):
            stop = min(start + step, num_rows)
            errors = encoding.fidelity(read(start, stop), schema)
            assert errors is not None, "whether columns say something depends on the schema alone"
            self._bound.check(np.arange(start, stop), errors)
            figures = figures.add(np.arange(start, stop), errors)
        return self._saying(COLUMNS, figures)

    def of_unit(
        self, start: int, stop: int, read: Callable[[int, int], list[Array]]
    ) -> Mapping[str, Any]:
        """What is known of the rows of a unit that is committed as a whole, where several write: for its record.

        May run in another thread than `look`, for rows that have all passed there.
        """
        if not self._looks:
            return {}
        compared = Figures()
        for picked, errors, weights in tuple(self._waiting):
            inside = (picked >= start) & (picked < stop)
            if inside.any():
                known = (errors.kl, errors.tv, errors.missing_mass, errors.flips)
                few = Errors(*(None if one is None else one[inside] for one in known))
                compared = compared.add(picked[inside], few, weights[inside])
        figures, encoding = Figures(), encoding_of(self._schema)
        step = max(_PIECE_BYTES // sum(c.row_bytes for c in self._schema.content), 1)
        for first in range(start, stop, step):
            last = min(first + step, stop)
            columns = read(first, last)[: len(self._schema.content)]
            by_columns = encoding.fidelity(columns, self._schema)
            if by_columns is None:
                break
            self._bound.check(np.arange(first, last), by_columns)
            figures = figures.add(np.arange(first, last), by_columns)
        named = {COMPARED: compared, COLUMNS: figures}
        return {name: one.to_json() for name, one in named.items() if one.num_rows}

    def join(self, facts: Mapping[str, Any]) -> None:
        """Take what the record of a unit says, at the seal."""
        for source in (COMPARED, COLUMNS):
            if source in facts:
                figures = Figures.from_json(facts[source], "the record of a unit")
                before = self._joined.get(source, Figures())
                self._joined[source] = before.joined(figures)

    def _of_units(self) -> Mapping[str, Any] | None:
        for source, figures in self._joined.items():
            self._saying(source, figures)
        return self._known or None

    def _saying(self, source: str, figures: Figures) -> Mapping[str, Any]:
        self._known = {**self._known, source: figures.to_json()}
        return self._known


def _lies_in(committed: Ranges, rows: Array) -> bool:
    return all(int(row) in committed for row in rows)


def _take(rows: Array | Selected, chosen: Array) -> Any:
    if isinstance(rows, Selected):
        return Selected(*(None if x is None else np.asarray(x)[chosen] for x in rows))
    return rows[chosen]


def sampled(
    start: int, stop: int, planned: int | None, row_shape: tuple[int, ...]
) -> tuple[Array, Array]:
    """The rows of `start` to `stop - 1` that are compared, and how many rows each of them stands for."""
    numbers = np.arange(start, stop)
    if planned is None:
        every = np.exp2(np.floor(np.log2(numbers + 1))) / _A_DOUBLING
    else:
        most = max(min(_ROWS, _VALUES // math.prod(row_shape)), _LEAST)
        every = np.full(len(numbers), planned / most)
    every = np.maximum(every, 1.0)
    picked = uniform(0, start, stop) * every < 1
    return numbers[picked], every[picked]
