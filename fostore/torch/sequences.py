"""Sequences of token rows for torch: samples with all rows of theirs, collated as a student's batch needs them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data._utils.collate import default_collate_fn_map

from fostore.nested import map_leaves, split
from fostore.pairing.sequences import SequenceCollate
from fostore.reading.sequences import FlatBatch, joined
from fostore.torch.rows import DictRow


def as_tensors(batch: Any) -> Any:
    """Nested arrays of NumPy as tensors, integers as int64, by which torch gathers; all else as it is."""
    return map_leaves(_as_tensor, batch)


def _as_tensor(leaf: Any) -> Any:
    if not isinstance(leaf, np.ndarray) or leaf.dtype.kind not in "biuf":
        return leaf
    return torch.from_numpy(leaf.astype(np.int64, copy=False) if leaf.dtype.kind in "iu" else leaf)


class SequenceRow(tuple[Any, ...]):
    """A sample (input, [label,] `FlatBatch`): a tuple that knows how it is collated."""

    together: SequenceCollate
    number: int


class SequenceDictRow(DictRow):
    """A dict sample with its `FlatBatch`: a mapping that knows how it is collated."""

    together: SequenceCollate
    number: int


class SequenceBatch(Sequence[Any]):
    """The samples that a dataset was asked for at once, the rows of their sequences gathered together.

    Iterating gives plain rows, which any other collate_fn may take.
    """

    __slots__ = ("numbers", "rows", "samples", "together")

    def __init__(
        self,
        samples: list[Any] | None,
        rows: FlatBatch,
        together: SequenceCollate,
        numbers: list[int],
    ) -> None:
        """`samples` are those of the base dataset, None where there is none; `rows` are of NumPy."""
        self.samples, self.rows = samples, rows
        self.together, self.numbers = together, numbers

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[at] for at in range(*index.indices(len(self)))]
        rows = as_tensors(self.rows[index])  # raises IndexError at the end
        if self.samples is None:
            return rows
        sample, key = self.samples[index], self.together.target_key
        row: Any = (
            SequenceRow((*split(sample, self.together.input_getter), rows))
            if key is None
            else SequenceDictRow({**sample, key: rows})
        )
        row.together, row.number = self.together, self.numbers[index]
        return row

    def __iter__(self) -> Iterator[Any]:
        return (self[at] for at in range(len(self)))

    def __reduce__(self) -> tuple[Any, ...]:
        return list, (list(self),)  # a worker process hands over what a plain dataset would

    def collated(self, together: SequenceCollate | None = None) -> Any:
        """The batch, as `together` (by default the dataset's way) makes it."""
        together = together or self.together
        if self.samples is None:
            return together.alone(self.rows)
        return together(self.samples, self.rows, self.numbers)


class SequenceCollator:
    """A collate_fn of samples that come with their sequences, also for loops that make their own loaders."""

    takes_batches = True

    def __init__(self, together: SequenceCollate) -> None:
        self.together = together

    def __call__(self, rows: Sequence[Any]) -> Any:
        if isinstance(rows, SequenceBatch):
            return rows.collated(self.together)
        return _collated(rows, self.together)


def _collated(rows: Sequence[Any], together: SequenceCollate) -> Any:
    """Rows that somebody took out of a batch."""
    if isinstance(rows[0], FlatBatch):
        return together.alone(joined(rows))
    numbers = [row.number for row in rows]
    if isinstance(rows[0], DictRow):
        key = together.target_key
        samples: list[Any] = [{k: v for k, v in row.items() if k != key} for row in rows]
        return together(samples, joined([row[key] for row in rows]), numbers)
    taken = together.without_getter()  # it has been called
    return taken([tuple(row[:-1]) for row in rows], joined([row[-1] for row in rows]), numbers)


def _collate_rows(batch: Any, *, collate_fn_map: Any = None) -> Any:
    if isinstance(batch, SequenceBatch):
        return batch.collated()
    return _collated(batch, getattr(batch[0], "together", _PLAIN))


_PLAIN = SequenceCollate(finish=as_tensors)
"""How rows are collated that come without samples."""

for _kind in (SequenceRow, SequenceDictRow, FlatBatch):
    default_collate_fn_map[_kind] = _collate_rows
