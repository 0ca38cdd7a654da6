"""FirstOrderDataset for JAX: samples with their distributions as JAX arrays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp

from fostore.columns import is_frame, is_sparse, numbers_of
from fostore.containers import Rows
from fostore.errors import ArgumentError
from fostore.jax.framework import JaxFramework
from fostore.jax.place import place
from fostore.nested import OddSample, collate
from fostore.pairing.dataset import PairedDataset
from fostore.schema import Array


class FirstOrderDataset(PairedDataset, Sequence[Any]):
    """A dataset whose samples come with their distributions: (input, label, distribution).

    Without labels: (input, distribution); without a base dataset the distribution alone; with
    `target_key` the sample, a dict, with the distribution in it. A distribution is a float32 JAX
    array (num_classes,), or (num_members, num_classes). Parameters and errors are those of
    `fostore.pairing.dataset.PairedDataset`.

    >>> dataset = FirstOrderDataset([(1.0, 0), (2.0, 1)], {0: [0.5, 0.5], 1: [0.25, 0.75]})
    >>> dataset[1]
    (2.0, 1, Array([0.25, 0.75], dtype=float32))
    """

    def __getitem__(self, index: Any) -> Any:
        found = super().__getitem__(index)
        if self.base_dataset is None:
            return jnp.asarray(found)
        if self.target_key is not None:
            return {**found, self.target_key: jnp.asarray(found[self.target_key])}
        return (*found[:-1], jnp.asarray(found[-1]))

    def rows_of(self, samples: Array) -> Any:
        """The distributions of `samples` as one JAX array."""
        return jnp.asarray(self.gather(samples))

    def read_batches(self, samples: Array, batch_size: int) -> list[Any]:
        """The batches of a stretch of samples as JAX arrays; one gather serves all of them."""
        batches: list[Any] = place(self.host_batches(samples, batch_size), None)
        return batches

    def host_batches(self, samples: Array, batch_size: int) -> list[Any]:
        """The same batches as NumPy arrays, which no one writes to afterwards.

        They are cut apart here: a slice of an array on a device costs more than placing it.
        """
        return super().read_batches(samples, batch_size)

    def _framework(self) -> JaxFramework:
        return JaxFramework("cpu", ())

    def _check_rows(self, rows: Rows) -> None:
        rows.require_numbers()
        if is_sparse(rows.data):
            raise ArgumentError(
                "the rows of a SciPy sparse matrix are no JAX arrays; give dense rows (matrix.toarray(), or "
                "input_getter=lambda row: row.toarray()[0], a row at a time)"
            )

    def _one(self, rows: Rows, index: int) -> Any:
        return self._take(rows, range(index, index + 1))[0]

    def _take(self, rows: Rows, samples: Array | range) -> Any:
        batch = rows.take(samples)
        return numbers_of(batch) if is_frame(batch) else batch

    def _collate(self, samples: Sequence[Any]) -> Any:
        sizes = list(map(len, samples))
        if len(set(sizes)) > 1:  # parts may differ in shape, samples not in what they are made of
            place = next(i for i, size in enumerate(sizes) if size != sizes[0])
            raise OddSample(place, f"has {sizes[place]} parts, the first has {sizes[0]}")
        return collate(samples, ragged=True)
