"""FirstOrderDataset for torch: samples with their distributions as tensors, read a batch at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from fostore.containers.rows import Rows
from fostore.encodings.topk_rows import TopK
from fostore.errors import ArgumentError
from fostore.pairing.dataset import PairedDataset
from fostore.schema.row import Array
from fostore.torch.arrays import tensor_of, tensors_of
from fostore.torch.framework import TorchFramework
from fostore.torch.rows import DictRow, PairedBatch
from fostore.torch.sequences import SequenceBatch, SequenceCollator, as_tensors
from fostore.torch.topk import as_topk


class FirstOrderDataset(PairedDataset, Dataset[Any]):
    """A dataset whose samples come with their distributions: (input, label, distribution).

    Without labels: (input, distribution); without a base dataset the distribution alone; with a
    `target_key` a mapping (not a `dict`: Hugging Face's Trainer would drop the distribution). A
    distribution is a float32 tensor (num_classes,), or (num_members, num_classes); of a store of
    top-k rows a `TopK` of tensors. Parameters and errors are those of `PairedDataset`.

    A stock DataLoader with its default collate_fn asks for whole batches, which are gathered once;
    `Subset`, `random_split` and worker processes keep that. Pickles small: a store as its path.

    >>> dataset = FirstOrderDataset([(1.0, 0), (2.0, 1)], {0: [0.9, 0.1], 1: [0.2, 0.8]})
    >>> dataset[1]
    (2.0, 1, tensor([0.2000, 0.8000]))
    """

    def __getitem__(self, index: Any) -> Any:
        # A row of a sequence knows how it is collated: torch's own collation takes no lines of several lengths.
        return (
            super().__getitem__(index) if self._sequences is None else self.__getitems__([index])[0]
        )

    def __getitems__(self, indices: Sequence[int]) -> PairedBatch | SequenceBatch:
        """The samples of one batch, in the order asked for.

        Raises:
            IndexError: names the first index that is out of range.
        """
        samples = np.fromiter(indices, np.int64, len(indices))
        try:
            rows = self.rows_of(samples)
        except LookupError:
            # Checked only then: a pass over the indices costs as much as the gather.
            count = len(self)
            bad = (samples < -count) | (samples >= count)
            if bad.any():
                raise IndexError(
                    f"sample {indices[int(bad.argmax())]} of a dataset of {count} samples"
                ) from None
            samples[samples < 0] += count  # as a list has them; a store refuses negative rows
            rows = self.rows_of(samples)
        return self._whole(samples, rows)

    _finish = staticmethod(as_tensors)
    _integers = np.int64

    def collator(self, collate_fn: Callable[[Any], Any] | None = None) -> SequenceCollator:
        """A collate_fn for loops that make their own loaders (`data_collator` of Hugging Face's Trainer).

        Args:
            collate_fn: makes the student's batch of a list of samples of the base dataset, such as a collator
                of Hugging Face's; None fills lines up with 0 (labels with -100) behind their tokens.

        Raises:
            ArgumentError: the rows are no tokens; torch's own default_collate makes batches of these.
        """
        if self._sequences is None:
            raise ArgumentError(
                "the distributions are of samples, not of tokens: the default collate_fn makes their batches"
            )
        return SequenceCollator(self._sequences.by(collate_fn))

    def _whole(self, samples: Array, rows: Any) -> PairedBatch | SequenceBatch:
        if self._sequences is not None:
            some: Any = None if self.base_dataset is None else self.samples(samples)
            if some is not None and self.target_key is not None:
                some = [self._mapping(sample) for sample in some]
            return SequenceBatch(some, rows, self._sequences, samples.tolist())
        chosen: Any = None
        if self.base_dataset is not None:
            chosen = self._together(samples)
            if not isinstance(chosen, torch.Tensor):
                chosen = self.samples(samples)
            if self.target_key is not None:
                chosen = [self._mapping(sample) for sample in chosen]
        return PairedBatch(chosen, rows, self.input_getter, self.target_key, samples.tolist())

    def rows_of(self, samples: Array) -> Any:
        """The distributions of `samples` as one tensor, or a `TopK`; torch widens halves faster than NumPy does."""
        half, dtype = self._given.half, self._given.dtype
        if self._sequences is not None:
            return self.gather(samples)  # of NumPy, until it is known where they go
        if half is None:
            return self._as_rows(self.gather(samples))
        halves = torch.from_numpy(self._given.take_kept(self._rows_at(samples)))
        if half.dtype == "bfloat16":
            halves = halves.view(torch.bfloat16)
        is_double = dtype is not None and dtype.itemsize == 8
        return halves.to(torch.float64 if is_double else torch.float32)

    def read_batches(self, samples: Array, batch_size: int) -> list[Any]:
        """The collated batches of a stretch of samples, `batch_size` each; one gather serves all."""
        rows = self.rows_of(samples)
        # Not `split`: autograd would take what is done in place to one batch for done to all.
        starts = range(0, len(samples), batch_size)
        if len(samples) <= batch_size:
            cut: Sequence[Any] = [rows]
        elif isinstance(rows, torch.Tensor):
            cut = torch.unsafe_split(rows, batch_size)
        else:
            cut = [rows[start : start + batch_size] for start in starts]
        if self.base_dataset is None:
            return list(cut) if self._sequences is None else list(map(self._sequences.alone, cut))
        return [
            self._whole(samples[start : start + batch_size], own).collated()
            for start, own in zip(starts, cut, strict=True)
        ]

    def _framework(self) -> TorchFramework:
        return TorchFramework("cpu")

    def _check_rows(self, rows: Rows) -> None:
        rows.require_numbers()

    def _one(self, rows: Rows, index: int) -> Any:
        return self._take(rows, range(index, index + 1))[0]

    def _take(self, rows: Rows, samples: Array | range) -> Any:
        batch = rows.take(samples)
        return tensor_of(batch) if rows.has_dtype else tensors_of(batch)

    def _as_rows(self, rows: Any) -> Any:
        if self._sequences is not None:
            return as_tensors(rows)
        return as_topk(rows) if isinstance(rows, TopK) else torch.from_numpy(rows)

    def _as_dict(self, sample: dict[str, Any]) -> Any:
        return DictRow(sample)
