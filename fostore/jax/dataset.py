"""FirstOrderDataset for JAX: samples with their distributions as JAX arrays."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fostore.containers.collate import OddSample, collate, first_other
from fostore.containers.columns import is_frame, is_sparse, numbers_of
from fostore.containers.rows import Rows
from fostore.errors import ArgumentError
from fostore.jax.devices import Devices, is_accelerator, put
from fostore.jax.framework import JaxFramework
from fostore.nested import map_leaves
from fostore.pairing.dataset import PairedDataset
from fostore.reading.sequences import FlatBatch, PaddedBatch
from fostore.schema.row import Array

# Batches of sequences go through `jax.jit` and its kind as they are.
jax.tree_util.register_dataclass(
    FlatBatch,
    data_fields=["distributions", "offsets", "tokens", "positions", "index"],
    meta_fields=[],
)
jax.tree_util.register_dataclass(
    PaddedBatch, data_fields=["distributions", "mask", "tokens"], meta_fields=[]
)


class FirstOrderDataset(PairedDataset, Sequence[Any]):
    """A dataset whose samples come with their distributions: (input, label, distribution).

    Without labels: (input, distribution); without a base dataset the distribution alone; with
    `target_key` the sample, a dict, with the distribution in it. A distribution is a float32 JAX
    array (num_classes,), or (num_members, num_classes); of a store of top-k rows a `TopK` of these.
    Parameters and errors are those of `fostore.pairing.dataset.PairedDataset`.

    >>> dataset = FirstOrderDataset([(1.0, 0), (2.0, 1)], {0: [0.5, 0.5], 1: [0.25, 0.75]})
    >>> dataset[1]
    (2.0, 1, Array([0.25, 0.75], dtype=float32))
    """

    def read_batches(self, samples: Array, batch_size: int) -> list[Any]:
        """The batches of a stretch of samples as JAX arrays; one gather serves all of them."""
        return self.placed_batches(samples, batch_size, None)

    def host_batches(self, samples: Array, batch_size: int) -> list[Any]:
        """The same batches as NumPy arrays, which no one writes to afterwards.

        They are cut apart here: a slice of an array on a device costs more than placing it.
        """
        return self._batches(samples, batch_size, self.gather(samples))

    def placed_batches(self, samples: Array, batch_size: int, devices: Devices | None) -> list[Any]:
        """The same batches on a device, to which halves travel as they are stored.

        On a CPU NumPy widens them before: that takes a third of the time that XLA takes.
        """
        half = self._given.half
        if half is None or not is_accelerator(devices):
            placed: list[Any] = put(self.host_batches(samples, batch_size), devices)
            return placed
        stored = self._given.take_kept(self._rows_at(samples))
        if half.dtype == "bfloat16":
            stored = stored.view(jnp.dtype(jnp.bfloat16))
        asked = jax.dtypes.canonicalize_dtype(self._given.dtype or np.float32)
        return [
            self._with_rows(batch, lambda rows: rows.astype(asked))
            for batch in put(self._batches(samples, batch_size, stored), devices)
        ]

    def _with_rows(self, batch: Any, change: Callable[[Any], Any]) -> Any:
        """A batch with its distributions changed."""
        if self.base_dataset is None:
            return change(batch)
        if self.target_key is not None:
            return {**batch, self.target_key: change(batch[self.target_key])}
        return (*batch[:-1], change(batch[-1]))

    def _as_rows(self, rows: Any) -> Any:
        return map_leaves(jnp.asarray, rows)

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
            at = first_other(sizes)
            raise OddSample(at, f"has {sizes[at]} parts, the first has {sizes[0]}")
        return collate(samples, ragged=True)
