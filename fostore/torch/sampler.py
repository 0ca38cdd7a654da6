"""EpochSampler: the batches of every epoch as torch's loaders take them, seeded, resumable, for any number of ranks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sized
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import distributed
from torch.utils.data import DistributedSampler, RandomSampler, Sampler, SequentialSampler

from fostore.errors import ArgumentError
from fostore.loading.cursor import Cursor
from fostore.loading.loader import make_plan
from fostore.loading.plan import Plan


class EpochSampler(Sampler[list[int]]):
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

    def __init__(
        self,
        data_source: int | Sized,
        batch_size: int = 64,
        shuffle: bool = False,
        *,
        seed: int | None = None,
        drop_last: bool = False,
        pad_last: bool = False,
        rank: int = 0,
        num_ranks: int = 1,
        generator: torch.Generator | None = None,
    ) -> None:
        if isinstance(data_source, EpochOrder):
            plan = data_source.cursor.plan
            data_source, shuffle, seed = plan.num_samples, plan.shuffle, plan.seed
            rank, num_ranks = plan.rank, plan.num_ranks
        elif isinstance(data_source, DistributedSampler):
            given: Any = data_source
            data_source, shuffle, seed = len(given.dataset), given.shuffle, given.seed
            rank, num_ranks = given.rank, given.num_replicas
        elif isinstance(data_source, (RandomSampler, SequentialSampler)):
            shuffle = isinstance(data_source, RandomSampler)
        elif isinstance(data_source, Sampler):
            raise ArgumentError(
                f"EpochSampler has an order of its own and cannot follow {type(data_source).__name__}; "
                "give the dataset, or use torch's BatchSampler"
            )
        self.cursor = make_plan(
            data_source if isinstance(data_source, int) else len(data_source),
            batch_size,
            shuffle,
            seed,
            drop_last=drop_last,
            pad_last=pad_last,
            rank=rank,
            num_ranks=num_ranks,
            fresh_seed=lambda: draw_seed(generator),
        )
        self.seed_was_drawn = shuffle and seed is None
        self.sampler = (RankOrder if num_ranks > 1 else EpochOrder)(self.cursor)
        self._start: tuple[int, int] | None = None

    @property
    def plan(self) -> Plan:
        """The order of every epoch."""
        return self.cursor.plan

    @property
    def batch_size(self) -> int:
        """Samples a batch."""
        return self.plan.batch_size

    @property
    def drop_last(self) -> bool:
        """Whether a shorter last batch is left out."""
        return self.plan.last == "drop"

    def __len__(self) -> int:
        """Batches of a whole epoch, also where the next iteration begins in the middle of one."""
        return self.plan.num_batches()

    def __iter__(self) -> Iterator[list[int]]:
        self.check_seed()
        return self._counted() if self._start is None else self._from(*self._start)

    def _from(self, epoch: int, position: int) -> Iterator[list[int]]:
        for batch in self.plan.batches(epoch, position):
            yield batch.tolist()

    def _counted(self) -> Iterator[list[int]]:
        cursor, plan = self.cursor, self.plan
        epoch, position = cursor.begin()
        for batch in self._from(epoch, position):
            position = plan.after(position)
            cursor.hand_out(epoch, position)
            yield batch
        cursor.end(epoch)

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
        if self.seed_was_drawn and distributed.is_available() and distributed.is_initialized():
            world = distributed.get_world_size()
            if world > 1:
                raise ArgumentError(
                    f"{world} processes that shuffle need one seed, else each takes samples of its "
                    "own order; give seed="
                )

    def adopt(self, *, seed: int | None, pad_last: bool) -> None:
        """Take over what a loop that builds samplers anew has no word for."""
        plan = self.plan
        last = "pad" if pad_last else plan.last
        wanted = replace(plan if seed is None else replace(plan, seed=seed), last=last)
        if wanted != plan:  # else it keeps its place
            self.cursor = Cursor(wanted)
            self.sampler = type(self.sampler)(self.cursor)
        self.seed_was_drawn = self.seed_was_drawn and seed is None

    def set_epoch(self, epoch: int) -> None:
        """Make the next iteration this epoch; see `Cursor.set_epoch`."""
        self.cursor.set_epoch(epoch)

    def state_dict(self) -> dict[str, Any]:
        """Where the sampler is, after the batches that were drawn."""
        return self.cursor.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there with the next iteration; batch size and ranks may differ.

        Raises:
            ArgumentError: the state is of another order of samples; the sampler stays where it was.
        """
        self.cursor.load_state_dict(state)
        self.seed_was_drawn = False


class EpochOrder(Sampler[int]):
    """The single samples of what is left of an epoch: what loops look for under `.sampler`."""

    def __init__(self, cursor: Cursor) -> None:
        self.cursor = cursor

    def __iter__(self) -> Iterator[int]:
        state = self.cursor.state_dict()
        for stretch in self.cursor.plan.stretches(state["epoch"], state["position"]):
            yield from stretch.tolist()

    def __len__(self) -> int:
        """Samples that this rank is handed in an epoch."""
        plan = self.cursor.plan
        whole, rest = divmod(plan.num_samples, plan.global_batch_size)
        shorter = rest // plan.num_ranks + (plan.rank < rest % plan.num_ranks)
        last = {"drop": 0, "pad": plan.batch_size if rest else 0, "short": shorter}[plan.last]
        return whole * plan.batch_size + last

    def set_epoch(self, epoch: int) -> None:
        """See `Cursor.set_epoch`."""
        self.cursor.set_epoch(epoch)


class RankOrder(EpochOrder, DistributedSampler[int]):
    """The same where ranks were given: a DistributedSampler, so that Lightning does not shard again."""

    def __init__(self, cursor: Cursor) -> None:
        EpochOrder.__init__(self, cursor)
        plan = cursor.plan
        self.dataset = range(plan.num_samples)  # type: ignore[assignment]  # its length is what counts
        self.rank, self.num_replicas = plan.rank, plan.num_ranks
        self.shuffle, self.seed, self.drop_last = plan.shuffle, plan.seed, plan.last == "drop"


def draw_seed(generator: torch.Generator | None) -> int:
    """A seed from torch's random numbers: `torch.manual_seed` makes it repeatable."""
    drawn = torch.empty((), dtype=torch.int64, device="cpu").random_(generator=generator)
    return int(drawn.item())
