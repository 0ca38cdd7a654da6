"""EpochSampler: the batches of every epoch as torch's loaders take them, seeded, resumable, for any number of ranks."""

from __future__ import annotations

from collections.abc import Iterator, Sized
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Unpack

import torch
from torch import distributed
from torch.utils.data import DistributedSampler, RandomSampler, Sampler, SequentialSampler

from fostore.errors import ArgumentError
from fostore.loading.cursor import Cursor, Resumable
from fostore.loading.options import Options, OrderOptions, named
from fostore.loading.order import Order, Shuffle


class EpochSampler(Resumable, Sampler[list[int]]):
    """The batches of every epoch, as lists of sample indices: `DataLoader(..., batch_sampler=this)`.

    The order is that of every loader here for the same seed. Each iteration is the next epoch;
    `set_epoch` chooses it. Its state counts the batches that were *drawn*, which a loader with
    worker processes does ahead of time; `output_dataloader` counts those that were handed out.

    Args:
        data_source: the dataset, or its length. A loop that shards on its own (Lightning) gives
            torch's DistributedSampler here: its rank, shuffling and seed are followed, its padding
            is not.
        batch_size, shuffle, seed, drop_last, pad_last, rank, num_ranks: see `output_dataloader`.
        generator: where a seed is drawn from if none is given; default: torch's global one.

    Raises:
        ArgumentError: a value cannot be used, or two contradict each other.

    >>> sampler = EpochSampler(5, batch_size=2)
    >>> list(sampler), len(sampler)
    ([[0, 1], [2, 3], [4]], 3)
    """

    @named
    def __init__(
        self,
        data_source: int | Sized,
        batch_size: int = 64,
        shuffle: Shuffle = False,
        *,
        generator: torch.Generator | None = None,
        **order: Unpack[OrderOptions],
    ) -> None:
        other: Any = data_source  # the attributes of torch's samplers have no types
        # First of all samplers: where there are ranks ours is a DistributedSampler as well.
        if isinstance(other, _SingleSamples):  # Lightning hands our own back, to be followed again
            own = other.cursor.order
            data_source, shuffle = own.num_samples, own.shuffle
            order.update({"seed": own.seed, "rank": own.rank, "num_ranks": own.num_ranks})
        elif isinstance(other, DistributedSampler):
            data_source, shuffle = len(other.dataset), other.shuffle  # type: ignore[arg-type]  # torch asks it too
            order.update({"seed": other.seed, "rank": other.rank, "num_ranks": other.num_replicas})
        elif isinstance(other, (RandomSampler, SequentialSampler)):
            shuffle = isinstance(other, RandomSampler)
        elif isinstance(other, Sampler):
            raise ArgumentError(
                f"EpochSampler has an order of its own and cannot follow {type(other).__name__}; "
                "give the dataset, or use torch's BatchSampler"
            )
        options = Options(batch_size, shuffle, **order)
        self.cursor = options.cursor(
            data_source if isinstance(data_source, int) else len(data_source),
            fresh_seed=lambda: _draw_seed(generator),
            lengths=getattr(data_source, "lengths", None),
        )
        kind = _RankedSamples if options.num_ranks > 1 else _SingleSamples
        self.sampler: _SingleSamples = kind(self.cursor)
        self._start: tuple[int, int] | None = None

    @property
    def order(self) -> Order:
        """The order of every epoch."""
        return self.cursor.order

    @property
    def batch_size(self) -> int:
        """Samples a batch."""
        return self.order.batch_size

    @property
    def drop_last(self) -> bool:
        """Whether a shorter last batch is left out."""
        return self.order.last == "drop"

    def __len__(self) -> int:
        """Batches of a whole epoch, also where the next iteration begins in the middle of one."""
        return self.order.num_batches()

    def __iter__(self) -> Iterator[list[int]]:
        self.check_seed()
        if self._start is not None:
            return self._from(*self._start)
        # A generator of its own: the iteration begins with its first batch, not with `iter`.
        return self._counted()

    def _from(self, epoch: int, position: int) -> Iterator[list[int]]:
        for batch in self.order.batches(epoch, position):
            yield batch.tolist()

    def _counted(self) -> Iterator[list[int]]:
        begun = self.cursor.begin()
        yield from self.cursor.counted(self._from(*begun), *begun)

    @contextmanager
    def starting(self, epoch: int, position: int) -> Iterator[None]:
        """Iterations begun in here start there and are not counted: the loader counts."""
        self._start = (epoch, position)
        try:
            yield
        finally:
            self._start = None

    def check_seed(self) -> None:
        """Raise where each of several processes would shuffle in an order of its own.

        Raises:
            ArgumentError: several processes run, and nobody gave a seed.
        """
        # Asked when an epoch begins: a loader may be made before the group of processes is.
        if self.cursor.seed_was_drawn and distributed.is_available():
            world = distributed.get_world_size() if distributed.is_initialized() else 1
            if world > 1:
                raise ArgumentError(
                    f"{world} processes that shuffle need one seed, else each takes samples of its "
                    "own order; give seed="
                )

    def adopt(self, *, seed: int | None, pad_last: bool) -> None:
        """Take over what a loop that builds samplers anew has no word for."""
        old, drawn = self.order, self.cursor.seed_was_drawn
        last = "pad" if pad_last else old.last
        order = replace(old, last=last, seed=old.seed if seed is None else seed)
        if order != old:  # else it keeps its position
            self.cursor = Cursor(order)
            self.sampler = type(self.sampler)(self.cursor)
        self.cursor.seed_was_drawn = drawn and seed is None


class _SingleSamples(Sampler[int]):
    """The single samples of what is left of an epoch: what loops look for under `.sampler`."""

    def __init__(self, cursor: Cursor) -> None:
        self.cursor = cursor

    def __iter__(self) -> Iterator[int]:
        state = self.cursor.state_dict()
        for stretch in self.cursor.order.stretches(state["epoch"], state["position"]):
            yield from stretch.tolist()

    def __len__(self) -> int:
        """Samples that this rank is handed in an epoch."""
        order = self.cursor.order
        whole, rest = divmod(order.num_samples, order.global_batch_size)
        shorter = rest // order.num_ranks + (order.rank < rest % order.num_ranks)
        last = {"drop": 0, "pad": order.batch_size if rest else 0, "short": shorter}[order.last]
        return whole * order.batch_size + last

    def set_epoch(self, epoch: int) -> None:
        """See `Cursor.set_epoch`."""
        self.cursor.set_epoch(epoch)


class _RankedSamples(_SingleSamples, DistributedSampler[int]):
    """The same where ranks were given: a DistributedSampler, so that Lightning does not shard again."""

    def __init__(self, cursor: Cursor) -> None:
        _SingleSamples.__init__(self, cursor)
        order = cursor.order
        self.dataset = range(order.num_samples)  # type: ignore[assignment]  # its length is what counts
        self.rank, self.num_replicas = order.rank, order.num_ranks
        self.shuffle, self.seed, self.drop_last = (
            bool(order.shuffle),
            order.seed,
            order.last == "drop",
        )


def _draw_seed(generator: torch.Generator | None) -> int:
    """A seed from torch's random numbers: `torch.manual_seed` makes it repeatable."""
    drawn = torch.empty((), dtype=torch.int64, device="cpu").random_(generator=generator)
    return int(drawn.item())
