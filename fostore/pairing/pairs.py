"""A plain (input, distribution) view of a paired dataset, for code that expects torchvision's shape."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import numpy as np

from fostore.nested import split
from fostore.pairing.dataset import PairedDataset
from fostore.schema.row import Array


class Pairs(Sequence[Any]):
    """(input, distribution) for each sample, with `targets` and `classes`; made by `as_pairs()`.

    The distribution takes the place of the label, which is left out.
    """

    def __init__(self, paired: PairedDataset) -> None:
        self._paired = paired

    @property
    def targets(self) -> Array:
        """All distributions, read-only (num_samples, [M,] K): mapped where the store has them so, else copied."""
        return self._paired.all_rows()

    @property
    def classes(self) -> list[str]:
        """The name of each class: the store's, or the base dataset's, or its number as text."""
        return self._paired.class_names

    def __len__(self) -> int:
        return len(self._paired)

    def __getitem__(self, index: Any) -> Any:
        at = operator.index(index)
        at += len(self) if at < 0 else 0
        if not 0 <= at < len(self):
            raise IndexError(f"sample {index} of a dataset of {len(self)} samples")
        return self.__getitems__([at])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Any]:
        """The pairs of a batch; their distributions are gathered at once."""
        paired = self._paired
        at = np.asarray(indices, np.int64)
        samples = paired.samples(at)
        inputs = [split(sample, paired.input_getter)[0] for sample in samples]
        return list(zip(inputs, paired.rows_of(at), strict=True))

    def __repr__(self) -> str:
        return f"<Pairs of {len(self)} samples, {len(self.classes)} classes>"
