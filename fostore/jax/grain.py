"""Grain sources and datasets whose record is a whole batch; the only file that imports grain.

Grain takes 20 to 400 microseconds a record, whatever is in it: a record of one sample would cost many
times what reading it does.
"""

from __future__ import annotations

import operator
import os
from collections.abc import Mapping
from typing import Any, Unpack

import grain

from fostore.errors import ArgumentError
from fostore.loading.options import Options, OrderOptions, named
from fostore.loading.order import Order, Shuffle
from fostore.pairing.dataset import FirstOrderDataset, PairedDataset
from fostore.reading.selection import Selection

Samples = PairedDataset | Mapping[int, Any] | Selection | str | os.PathLike[str]


class GrainSource:
    """Record i is batch i: nested NumPy arrays; a `grain.sources.RandomAccessDataSource`.

    The records after those of one epoch are the batches of the next, in its own order. Any record can
    be asked for at any time, by several threads, where the dataset allows that. Pickles as small as
    the dataset does (a store pickles as its path), so that worker processes can have it.

    Args:
        data: a `FirstOrderDataset` of NumPy or JAX; or a store, its path, or a mapping, for the
            distributions alone.
        batch_size, drop_last, pad_last, rank, num_ranks: see `SimpleDataLoader`. Batches are split
            over ranks here, or records over them by Grain: one of the two.
        shuffle: another order in every epoch, the same as with the loaders; needs a `seed`.
        first_epoch: the epoch that record 0 begins.
        num_epochs: how many epochs `len` counts.

    Raises:
        ArgumentError: a value cannot be used, or two contradict each other.

    >>> source = GrainSource({i: [i / 4, 1 - i / 4] for i in range(4)}, 3)
    >>> len(source), source[1]
    (2, array([[0.75, 0.25]], dtype=float32))
    """

    @named
    def __init__(
        self,
        data: Samples,
        batch_size: int = 64,
        *,
        shuffle: Shuffle = False,
        first_epoch: int = 0,
        num_epochs: int = 1,
        **order: Unpack[OrderOptions],
    ) -> None:
        options = Options(batch_size, shuffle, **order)
        if shuffle and options.seed is None:
            raise ArgumentError(
                "shuffle=True needs seed=: Grain asks for records again after a restart, and they "
                "must be the same"
            )
        if first_epoch < 0 or num_epochs < 1:
            raise ArgumentError(
                f"first_epoch is {first_epoch!r} and num_epochs {num_epochs!r}, expected at least 0 "
                "and 1"
            )
        self.dataset = data if isinstance(data, PairedDataset) else FirstOrderDataset(None, data)
        self.order: Order = options.cursor(len(self.dataset), lengths=self.dataset.lengths).order
        self.first_epoch = first_epoch
        self.num_epochs = num_epochs

    def __len__(self) -> int:
        return self.num_epochs * self.order.num_batches()

    def __getitem__(self, index: Any) -> Any:
        at = operator.index(index)
        if not 0 <= at < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        return self.record(at)

    def record(self, index: int) -> Any:
        """The batch of a record, also beyond `len`: the epochs go on."""
        epoch, batch = divmod(index, self.order.num_batches())
        samples = self.order.batch(self.first_epoch + epoch, batch)
        # As NumPy: Grain's workers are processes, in which no JAX array should be made.
        read = getattr(self.dataset, "host_batches", self.dataset.read_batches)
        return read(samples, self.order.batch_size)[0]

    def __repr__(self) -> str:
        # Grain compares this with what a checkpoint holds: the same source, the same text.
        order = self.order
        return (
            f"GrainSource(num_samples={order.num_samples}, batch_size={order.batch_size}, "
            f"shuffle={order.shuffle}, seed={order.seed}, last={order.last!r}, rank={order.rank}, "
            f"num_ranks={order.num_ranks}, first_epoch={self.first_epoch}, "
            f"num_epochs={self.num_epochs})"
        )


class _BatchDataset(grain.MapDataset[Any]):  # type: ignore[misc]  # Grain ships no types
    """A Grain dataset over a source that goes on after its last epoch."""

    def __init__(self, source: GrainSource) -> None:
        super().__init__()
        self._batches = source

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return self.slice(index)
        return self._batches.record(index) if len(self) else None

    def __str__(self) -> str:
        return repr(self._batches)


grain_source = GrainSource
"""Batches as records for `grain.DataLoader`."""


def grain_dataset(data: Samples, batch_size: int = 64, **options: Any) -> grain.MapDataset[Any]:
    """A `grain.MapDataset` of batches; parameters and errors are those of `GrainSource`.

    `repeat` makes later epochs, each in its own order. An iterator's state is Grain's: it counts
    batches handed out. Grain reads up to 500 records ahead by default; with batches as records less
    will do:

    >>> rows = {i: [i / 4, 1 - i / 4] for i in range(4)}
    >>> options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=4)
    >>> dataset = grain_dataset(rows, 2, shuffle=True, seed=7).repeat(2).to_iter_dataset(options)
    >>> iterator = iter(dataset)
    >>> first, state = next(iterator), iterator.get_state()
    >>> second = next(iterator)
    >>> iterator.set_state(state)
    >>> (next(iterator) == second).all()
    np.True_

    `grain.experimental.device_put(dataset, device)` places the batches on devices. Before
    `mp_prefetch` Grain wants absl's flags parsed (`absl.app.run`, or `flags.FLAGS.mark_as_parsed()`).
    """
    return _BatchDataset(GrainSource(data, batch_size, **options))
