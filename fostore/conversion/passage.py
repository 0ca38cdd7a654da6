"""The rows of a plan on their way: each batch checked, changed, measured and hashed as it passes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from fostore.conversion.losses import Losses
from fostore.conversion.plan import Plan
from fostore.encodings import encoding_of
from fostore.encodings.fidelity import Figures
from fostore.errors import DamageError
from fostore.files.hashing import Digester
from fostore.files.table import Batch, Table
from fostore.progress import LOG, Progress
from fostore.schema.ranges import Ranges
from fostore.schema.row import Array
from fostore.schema.sides import Bounds, side_of
from fostore.schema.sides.known import KnownIds

_SAMPLED = 64
"""Rows that `verify="sample"` compares, beside the first and the last."""


class Passage:
    """Rows from the source of a plan as its destination gets them; they pass once.

    `is_hashed` is switched off where somebody else hashes them all.
    """

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        header = plan.header
        LOG.info(
            "converting %s to %s: %s rows", plan.source.where, plan.destination, header.num_samples
        )
        self.is_hashed = True
        self._digester = Digester(header.schema, *header.counts.values())
        rule = next((step.rule for step in plan.steps if step.rule is not None), None)
        before = plan.selected.schema
        bound = plan.options.max_kl
        self._losses = Losses(before, header.schema, rule, bound) if plan.lossy else None
        key = header.schema.role("id")
        self._key = 0 if key is None else header.schema.index(key.name)
        # The writer of a store looks itself, and of a source with a digest its writer has looked. What
        # went by on a stream cannot be read again.
        looks = plan.file_format is not None and plan.source.digest is None
        looks = looks and plan.source.num_rows is not None
        self._known = KnownIds(key, self._ids) if looks and key is not None else None
        self.num_rows = header.num_samples or 0
        self.sampled: dict[int, list[bytes]] = {}
        """The bytes of the rows that `verify="sample"` compares, by row."""
        if plan.options.verify == "sample" and self.num_rows:
            picked = np.random.default_rng(0).integers(0, self.num_rows, _SAMPLED).tolist()
            self.sampled = {row: [] for row in sorted({0, self.num_rows - 1, *picked})}

    def rows(self, start: int, bar: Progress) -> Iterator[Batch]:
        """The rows from `start` on as they are written; those before only pass by the digest."""
        selected = self._plan.selected
        encoding, content = encoding_of(selected.schema), len(selected.schema.content)
        position = 0
        for before in selected.batches(0, self._plan.rows_at_once):
            stop = position + len(before[0])
            if not selected.trusted:
                encoding.check(before[:content], selected.schema, position)
                self._check_sides(before[content:], position)
            batch = self._changed(before, position)
            if self._known is not None:
                self._known.add(position, batch[self._key], Ranges.of((0, position)))
            if self._losses is not None:
                self._losses.update(before, batch)
            if self.is_hashed:
                self._digester.update(batch)
            for row in self.sampled:
                if position <= row < stop:
                    self.sampled[row] = [column[row - position].tobytes() for column in batch]
            if stop > start:
                skip = max(start - position, 0)
                yield [column[skip:] for column in batch] if skip else batch
                bar.add(stop - position - skip)
            position = stop
        self.num_rows = position

    def digest(self) -> str:
        """The digest of all rows; only after they have passed."""
        return self._digester.digest()

    def compare(self, table: Table) -> None:
        """Raise DamageError unless the rows that were sampled read back from `table` as they passed."""
        for row, expected in self.sampled.items():
            columns = next(iter(table.batches(row, 1)))
            if [column[0].tobytes() for column in columns] != expected:
                raise DamageError(
                    f"row {row} reads back otherwise than it was written; nothing was published",
                    ((row, row + 1),),
                )

    @property
    def measured(self) -> dict[str, Any] | None:
        """The error of what is lossy; None where nothing is."""
        return None if self._losses is None else self._losses.report()

    @property
    def figures(self) -> Figures | None:
        """The same as the header of a store has it."""
        return None if self._losses is None else self._losses.figures

    def close(self) -> None:
        """End the threads that hash."""
        self._digester.close()

    def _check_sides(self, stored: Batch, position: int) -> None:
        """Raise RowError for a value beside the rows that no store may hold."""
        schema = self._plan.selected.schema
        bounds = Bounds(schema.num_classes, self._plan.selected.num_sequences, schema.vocab_size)
        columns = schema.columns[len(schema.content) :]
        for column, values in zip(columns, stored, strict=True):
            check = side_of(column.role).check
            if check is not None:
                check(values, bounds, position)

    def _changed(self, batch: Batch, position: int) -> Batch:
        for step in self._plan.steps:
            batch = step.step(batch, position)
        return batch

    def _ids(self, start: int, stop: int) -> Array:
        """The ids of rows that have passed, read once more."""
        keys = []
        for batch in self._plan.selected.batches(start, stop - start):
            keys.append(self._changed(batch, start)[self._key][: stop - start])
            start += len(keys[-1])
            if start == stop:
                break
        return np.concatenate(keys)
