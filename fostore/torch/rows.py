"""Rows and batches that torch's own default_collate turns into gathered tensors, without stacking rows."""

from __future__ import annotations

from collections import UserDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch.utils.data._utils.collate import default_collate, default_collate_fn_map

from fostore.containers.collate import bring_together
from fostore.encodings.topk_rows import TopK
from fostore.nested import split, split_all
from fostore.torch.arrays import together
from fostore.torch.topk import as_topk, stacked

TensorRows: TypeAlias = torch.Tensor | TopK
"""Distributions of a batch: of all classes in one tensor, or of the largest."""


class Row(tuple[Any, ...]):
    """A sample (input, [label,] distribution): a tuple, of a type that marks where it comes from."""

    __slots__ = ()


class DictRow(UserDict[str, Any]):
    """A dict sample with its distribution: a mapping, and no `dict`.

    Hugging Face's Trainer drops the keys that a model's `forward` does not name out of samples that
    are dicts; it would train without the distributions and say nothing.
    """

    def __init__(self, items: Mapping[str, Any] | None = None) -> None:
        self.data = {} if items is None else dict(items)


class TensorRow(torch.Tensor):
    """A distribution alone, of a type that marks where it comes from; results of it are plain tensors."""

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]  # as torch says to


class PairedBatch(Sequence[Any]):
    """The samples that a dataset was asked for at once, their distributions gathered in one tensor.

    torch chooses how to collate by the type of the first sample, so `batch[0]` is of a marked type.
    Iterating gives plain tuples (or mappings, or tensors), which any other collate_fn may take.
    """

    __slots__ = ("_indices", "_samples", "input_getter", "rows", "target_key")

    def __init__(
        self,
        samples: list[Any] | torch.Tensor | None,
        rows: TensorRows,
        input_getter: Callable[[Any], Any] | None,
        target_key: str | None,
        indices: Sequence[int],
    ) -> None:
        """`samples` are those of the base dataset, or one tensor of their inputs; None: there is none."""
        self._samples = samples
        self.rows = rows
        self.input_getter = input_getter
        self.target_key = target_key
        self._indices = indices

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return list(self)[index]
        row = self.rows[index]  # raises IndexError at the end
        if self._samples is None:
            return row if isinstance(row, TopK) else row.as_subclass(TensorRow)
        sample = self._with_row(self._samples[index], row)
        return Row(sample) if isinstance(sample, tuple) else sample

    def __iter__(self) -> Iterator[Any]:
        rows: Iterable[Any]
        if isinstance(self.rows, TopK):
            rows = map(self.rows.__getitem__, range(len(self.rows)))
        else:
            rows = self.rows.unbind()
        if self._samples is None:
            return iter(rows)
        return map(self._with_row, self._samples, rows)

    def __reduce__(self) -> tuple[Any, ...]:
        return list, (list(self),)  # a worker process hands over what a plain dataset would

    def _with_row(self, sample: Any, row: TensorRows) -> Any:
        if self.target_key is None:
            return (*split(sample, self.input_getter), row)
        return DictRow({**sample, self.target_key: row})

    def collated(self, collate_fn_map: Any = default_collate_fn_map) -> Any:
        """What default_collate makes of plain rows: [inputs, [labels,] distributions], or a dict."""
        if self._samples is None:
            return self.rows
        if self.target_key is not None:
            samples = self._together([dict(one) for one in self._samples], collate_fn_map)
            return {**samples, self.target_key: self.rows}
        if not isinstance(self._samples, list):  # inputs that came as one batch
            return [self._samples, self.rows]
        return [*self._together(self._samples, collate_fn_map), self.rows]

    def _together(self, samples: list[Any], collate_fn_map: Any) -> Any:
        def bring(some: Sequence[Any]) -> Any:
            parts = some if self.target_key is not None else split_all(some, self.input_getter)
            return together(parts, collate_fn_map)

        return bring_together(bring, samples, self._indices)


class ListCollate:
    """A collate_fn that gets a list of its rows, as from any other dataset: many insist on one."""

    def __init__(self, collate_fn: Callable[[Any], Any]) -> None:
        self.collate_fn = collate_fn

    def __call__(self, rows: Sequence[Any]) -> Any:
        return self.collate_fn(list(rows))


def with_lists(collate_fn: Callable[[Any], Any] | None) -> Callable[[Any], Any] | None:
    """What a loader calls for a user's collate_fn; torch's own takes a `PairedBatch` as it is."""
    whole = isinstance(collate_fn, ListCollate) or getattr(collate_fn, "takes_batches", False)
    if collate_fn is None or collate_fn is default_collate or whole:
        return collate_fn
    return ListCollate(collate_fn)


def _collate_rows(batch: Any, *, collate_fn_map: Any = None) -> Any:
    if isinstance(batch, PairedBatch):
        return batch.collated(collate_fn_map)
    return together([_plain(row) for row in batch], collate_fn_map)


def _plain(row: Any) -> Any:
    """A row that somebody took out of a batch, as if it came from any other dataset."""
    if isinstance(row, DictRow):
        return row.data
    if isinstance(row, Row):
        return tuple(row)
    return row.as_subclass(torch.Tensor) if isinstance(row, TensorRow) else row


def _collate_topk(batch: Any, *, collate_fn_map: Any = None) -> Any:
    if isinstance(batch, PairedBatch):
        return batch.collated(collate_fn_map)
    return stacked([as_topk(row) for row in batch])


default_collate_fn_map[TopK] = _collate_topk
for _kind in (Row, DictRow, TensorRow):
    default_collate_fn_map[_kind] = _collate_rows
