"""output_dataloader for torch: a DataLoader whose order is seeded, resumable and split over ranks exactly."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from typing import Any, overload

from torch.utils.data import DataLoader, default_collate

from fostore.errors import ArgumentError
from fostore.loading.cursor import Cursor, Resumable
from fostore.loading.loader import run
from fostore.loading.options import Options, named, take_order
from fostore.loading.order import Order, Shuffle
from fostore.pairing.options import PairOptions
from fostore.reading.selection import Selection
from fostore.schema.row import Array
from fostore.torch.ahead import can_pin, to_pinned, torch_states, with_modes
from fostore.torch.dataset import FirstOrderDataset
from fostore.torch.rows import with_lists
from fostore.torch.sampler import EpochSampler
from fostore.torch.workers import starting_workers

_DEFAULTS = Options()


class OutputLoader(Resumable, DataLoader[Any]):
    """A DataLoader over a dataset, in an order of ours: seeded, resumable, exact on any number of ranks.

    Each iteration is the next epoch. Without workers, batches are read in one thread ahead; with
    workers, by torch's. The state counts batches handed out, whatever was read ahead.

    Args:
        dataset: a map-style dataset, best a `FirstOrderDataset`.
        batch_sampler: an `EpochSampler`, instead of the arguments that say the order.
        others: see `output_dataloader`, and `torch.utils.data.DataLoader`.

    Raises:
        ArgumentError: a value cannot be used, or two contradict each other.
    """

    @named
    def __init__(
        self,
        dataset: Any,
        batch_size: int = 64,
        shuffle: Shuffle = False,
        *,
        prefetch: int = 2,
        batch_sampler: Any = None,
        **options: Any,
    ) -> None:
        order, options = take_order(options)
        asked = Options(batch_size, shuffle, **order)
        # Lightning makes loaders anew from the attributes that are named as the arguments are.
        self.seed, self.pad_last = asked.seed, asked.pad_last
        self.rank, self.num_ranks = asked.rank, asked.num_ranks
        self.prefetch = prefetch
        if not options.get("in_order", True):
            raise ArgumentError(
                "in_order=False hands batches out in any order, so that nobody could say where the "
                "loader is; leave it out, or use a DataLoader of torch's over a FirstOrderDataset"
            )
        options["pin_memory"] = bool(options.get("pin_memory")) and can_pin()
        options["collate_fn"] = with_lists(options.get("collate_fn"))
        self.epochs: EpochSampler | None = None
        if batch_sampler is None:
            options.pop("sampler", None)
            generator = options.get("generator")
            self.epochs = EpochSampler(dataset, batch_size, shuffle, generator=generator, **order)
        elif isinstance(batch_sampler, EpochSampler):
            _check_sampler(batch_sampler.order, len(dataset), asked)
            batch_sampler.adopt(seed=asked.seed, pad_last=asked.pad_last)
            self.epochs = batch_sampler
        else:  # Lightning wraps ours where it predicts
            super().__init__(dataset, batch_sampler=batch_sampler, **options)
            return
        if self.epochs.order.shuffle == "blocks" and options.get("num_workers"):
            _refuse_single_rows(dataset)
        options.update(sampler=self.epochs.sampler, batch_size=self.epochs.batch_size)
        super().__init__(dataset, drop_last=self.epochs.drop_last, **options)
        # torch has made a plain one, and refuses another by `__setattr__`.
        vars(self)["batch_sampler"] = self.epochs

    def __iter__(self) -> Any:
        if self.epochs is None:
            return super().__iter__()
        self.epochs.check_seed()
        if self.num_workers > 0:
            return self._from_workers(self.epochs)
        dataset: Any = self.dataset
        read, limit = self._read, 1
        if self.collate_fn is default_collate and hasattr(dataset, "read_batches"):
            read = self._read_stretch
            limit = dataset.batches_at_once(self.epochs.batch_size, ahead=self.prefetch > 0)
        return run(
            self.cursor,
            with_modes(read),
            limit=limit,
            prefetch=self.prefetch,
            states=torch_states,
            announce=getattr(dataset, "announce", None),
        )

    @property
    def cursor(self) -> Cursor:  # type: ignore[override]  # made anew where a sampler is adopted
        """Where the loader is.

        Raises:
            ArgumentError: it follows a sampler that is not ours.
        """
        if self.epochs is None:
            raise ArgumentError(
                f"the order of this loader is that of {type(self.batch_sampler).__name__}, whose "
                "place in an epoch is not known here; give shuffle= and seed= instead of a sampler"
            )
        return self.epochs.cursor

    def _from_workers(self, epochs: EpochSampler) -> Iterator[Any]:
        begun = epochs.cursor.begin()
        with starting_workers(), epochs.starting(*begun):
            batches = super().__iter__()
        # Closed here, so that worker processes end with this generator also where somebody keeps it:
        # since Python 3.12.3 `close` alone leaves what a generator holds (see `ahead`).
        with closing(epochs.cursor.counted(self._served(batches), *begun)) as counted:
            yield from counted

    def _served(self, batches: Iterator[Any]) -> Iterator[Any]:
        """The batches of workers, refused as soon as another iteration has taken the workers over."""
        self._latest = iteration = object()
        for batch in batches:
            yield batch
            if self.persistent_workers and self._latest is not iteration:
                raise RuntimeError(
                    "a newer iteration over this loader has taken its persistent workers, which serve one "
                    "at a time; end an iteration before the next, or leave persistent_workers out"
                )

    def _read_stretch(self, samples: Array) -> Sequence[Any]:
        dataset: Any = self.dataset
        batches: list[Any] = dataset.read_batches(samples, self.cursor.order.batch_size)
        return [to_pinned(batch) for batch in batches] if self.pin_memory else batches

    def _read(self, samples: Array) -> Sequence[Any]:
        indices = samples.tolist()
        many = getattr(self.dataset, "__getitems__", None)
        chosen = many(indices) if many is not None else [self.dataset[i] for i in indices]
        batch = self.collate_fn(chosen)
        return [to_pinned(batch) if self.pin_memory else batch]


@overload
def output_dataloader(
    base_dataset: Any,
    distributions: Mapping[int, Any] | Selection | str | os.PathLike[str],
    batch_size: int = 64,
    shuffle: Shuffle = False,
    num_workers: int = 0,
    pin_memory: bool = False,
    input_getter: Callable[[Any], Any] | None = None,
    *,
    sampler: None = None,
    batch_sampler: EpochSampler | None = None,
    **options: Any,
) -> OutputLoader: ...


@overload
def output_dataloader(
    base_dataset: Any,
    distributions: Mapping[int, Any] | Selection | str | os.PathLike[str],
    *args: Any,
    **options: Any,
) -> DataLoader[Any]: ...


@named
def output_dataloader(
    base_dataset: Any,
    distributions: Mapping[int, Any] | Selection | str | os.PathLike[str],
    batch_size: int | None = 64,
    shuffle: Shuffle = False,
    num_workers: int = 0,
    pin_memory: bool = False,
    input_getter: Callable[[Any], Any] | None = None,
    **options: Any,
) -> DataLoader[Any]:
    """A DataLoader of batches [inputs, labels, distributions], or [inputs, distributions].

    Args:
        base_dataset, distributions, input_getter: see `FirstOrderDataset`; None as base_dataset
            gives distributions alone.
        batch_size: samples a batch of one rank, at least 1.
        shuffle: another order in every epoch, the same as that of NumPy and JAX loaders here.
        num_workers: processes that read, for base datasets that decode; 0 reads in a thread ahead,
            which is faster for everything else. None for shuffle="blocks" of rows behind a url.
        pin_memory: batches in page-locked memory; without an accelerator it has no effect.
        seed: 0 to 2**64 - 1, makes the orders repeatable; None draws one from torch's global
            random numbers (or `generator=`) now.
        drop_last: leave out a last batch that is shorter.
        pad_last: fill it up with samples from the epoch's beginning.
        rank, num_ranks: this process's part of every global batch of `batch_size * num_ranks`.
            Leave them out under Accelerate, which takes its part itself; see docs/distributed.md.
        prefetch: batches that the thread reads ahead; 0 for none. A dataset that draws from the
            global random states is read in the caller's thread all the same.
        ids, check, target_key, dtype, as_kind, temperature, rule, layout: see `FirstOrderDataset`.
        collate_fn: as torch has it; of token rows it makes the student's batch of the samples of
            `base_dataset` alone, and rows are laid where that has their tokens.
        options: any other keyword of `torch.utils.data.DataLoader`. With an order of your own
            (`sampler`, `batch_sampler`, `batch_size=None`) the result is torch's DataLoader, which
            has no state.

    Raises:
        ArgumentError, IdentityError: see `FirstOrderDataset`.

    >>> loader = output_dataloader([(1.0, 0), (2.0, 1)], {0: [0.9, 0.1], 1: [0.2, 0.8]})
    >>> inputs, labels, distributions = next(iter(loader))
    >>> labels, distributions.shape
    (tensor([0, 1]), torch.Size([2, 2]))
    """
    chosen = {name: options.pop(name) for name in PairOptions.__annotations__ if name in options}
    dataset = FirstOrderDataset(base_dataset, distributions, input_getter, **chosen)
    options = {name: value for name, value in options.items() if value is not None}
    if dataset.has_sequences and "collate_fn" in options:
        options["collate_fn"] = dataset.collator(options["collate_fn"])
    options.update(shuffle=shuffle, num_workers=num_workers, pin_memory=pin_memory)
    batch_sampler = options.get("batch_sampler")
    foreign = batch_sampler is not None and not isinstance(batch_sampler, EpochSampler)
    if batch_size is None or "sampler" in options or foreign:
        return _stock(dataset, None if batch_size is None else int(batch_size), options)
    return OutputLoader(dataset, batch_size=batch_size, **options)


def _refuse_single_rows(dataset: Any) -> None:
    """Refuse workers that would fetch blocks row by row: each reads its batch alone, in which few lie together."""
    if getattr(dataset, "is_remote", False):
        raise ArgumentError(
            "shuffle='blocks' reads windows of rows ahead, and workers read each batch alone, a request a row: use "
            "num_workers=0, where a thread reads ahead; or Store.download the rows, for which workers are fine; or "
            "shuffle=True, if a request a row is what you want"
        )


def _check_sampler(order: Order, num_samples: int, asked: Options) -> None:
    """Refuse a sampler for another dataset, or for another order than is asked for beside it."""
    if order.num_samples != num_samples:
        raise ArgumentError(
            f"the EpochSampler is for {order.num_samples} samples, and the dataset has {num_samples}"
        )
    own = {
        "shuffle": order.shuffle,
        "drop_last": order.last == "drop",
        "num_ranks": order.num_ranks,
    }
    for name, has in own.items():
        value = getattr(asked, name)
        if value not in (has, getattr(_DEFAULTS, name)):
            raise ArgumentError(
                f"{name}={value!r} contradicts the EpochSampler, which has {has!r}; say the "
                "order there"
            )


def _stock(dataset: Any, batch_size: int | None, options: dict[str, Any]) -> DataLoader[Any]:
    """A DataLoader of torch's, for an order that the user brings."""
    options.pop("prefetch", None)
    ours = {"seed", "pad_last", "rank", "num_ranks"} & options.keys()
    if ours:
        raise ArgumentError(
            f"{sorted(ours)} say an order, and so does your own sampler or batch_size=None; choose one"
        )
    options["pin_memory"] = options["pin_memory"] and can_pin()
    if batch_size is not None:
        options["collate_fn"] = with_lists(options.get("collate_fn"))
    if "batch_sampler" not in options:
        options["batch_size"] = batch_size
    return DataLoader(dataset, **options)


output_fo_dataloader = output_dataloader
