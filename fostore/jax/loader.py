"""DeviceLoader and output_dataloader for JAX: batches as arrays on a device, or split over several."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Unpack

import jax
import numpy as np

from fostore.errors import ArgumentError
from fostore.jax.dataset import FirstOrderDataset
from fostore.jax.devices import find_devices, put
from fostore.loading.loader import SimpleDataLoader, run
from fostore.loading.options import OrderOptions, named, take_order
from fostore.loading.order import Shuffle
from fostore.nested import leaves
from fostore.pairing.loader import LoaderOptions
from fostore.reading.selection import Selection
from fostore.schema.row import Array

_MASK_KEY = "mask"
"""Under this key the mask of the last batch stands in batches that are dicts."""


class DeviceLoader(SimpleDataLoader):
    """Batches of a `FirstOrderDataset` as JAX arrays, placed ahead of the training loop.

    The order, the epochs and the state are those of `SimpleDataLoader`: the same seed gives the same
    batches with NumPy, torch and JAX. A last batch that is shorter is handed out as it is, and a
    jitted step is compiled once more for it; `drop_last`, `pad_last` and `mask_last` avoid that.

    Args:
        dataset: a `FirstOrderDataset` of this module.
        batch_size, shuffle, seed, drop_last, pad_last, rank, num_ranks: see `SimpleDataLoader`.
        mask_last: fill the last batch up as `pad_last` does, and add a mask to every batch: bool
            (batch_size,), True for the samples that count, as last element or under "mask". A rank's
            mask can be all False where there are few samples.
        prefetch: groups of batches that a thread reads and places ahead (a group is one batch, or
            256 KiB of distributions where nothing else is read); 0 for none. A dataset that draws
            from the global random states is read in the caller's thread all the same.
        device: "cpu", "gpu:0" and so on, a `jax.Device`, or a `Sharding` that splits the first axis
            of all arrays; None: JAX's default device as it is where an iteration begins. With a
            sharding over several processes each rank's batch is its part of one global array.

    Raises:
        ArgumentError: a value cannot be used, two contradict each other, or a batch cannot be split
            evenly over the devices.
    """

    dataset: FirstOrderDataset

    @named
    def __init__(
        self,
        dataset: FirstOrderDataset,
        batch_size: int = 64,
        shuffle: Shuffle = False,
        *,
        mask_last: bool = False,
        prefetch: int = 2,
        device: Any = None,
        **order: Unpack[OrderOptions],
    ) -> None:
        if mask_last and order.get("drop_last"):  # before `pad_last` is said for it, and blamed
            raise ArgumentError(
                "drop_last leaves the last batch out, mask_last fills it; choose one"
            )
        # A mask says which samples count: they stand in a batch of the full size.
        order["pad_last"] = order.get("pad_last", False) or mask_last
        super().__init__(dataset, batch_size, shuffle, prefetch=prefetch, **order)
        self.mask_last = mask_last
        self.device = find_devices(device)
        if isinstance(self.device, jax.sharding.Sharding):
            self._check_split(self.device)

    def __iter__(self) -> Iterator[Any]:
        # The contexts `jax.default_device` and `jax.enable_x64` hold in the thread that enters them.
        config: Any = jax.config
        default, wide = config.jax_default_device, bool(config.jax_enable_x64)

        def read(samples: Array) -> Sequence[Any]:
            with jax.default_device(default), jax.enable_x64(wide):
                return self.dataset.placed_batches(samples, self.batch_size, self.device)

        def add_mask(batch: Any, own: int) -> Any:
            mask = self._mask(own)  # one a batch: a step may donate it
            if isinstance(batch, dict):
                if _MASK_KEY in batch:
                    raise ArgumentError(
                        f"the samples have {_MASK_KEY!r} already, where mask_last puts its mask"
                    )
                return {**batch, _MASK_KEY: mask}
            return (*batch, mask) if isinstance(batch, tuple) else (batch, mask)

        return run(
            self.cursor,
            read,
            limit=self.dataset.batches_at_once(self.batch_size),
            prefetch=self.prefetch,
            finish=add_mask if self.mask_last else None,
            announce=self.dataset.announce,
        )

    def _mask(self, own: int) -> Any:
        return put(np.arange(self.batch_size) < own, self.device)

    def _check_split(self, sharding: jax.sharding.Sharding) -> None:
        """Refuse batches that the devices cannot share evenly, before the first one is read."""
        order = self.cursor.order
        parts = 1 if sharding.is_fully_addressable else order.num_ranks
        none = np.zeros(min(len(self.dataset), 1), np.int64)
        row = next(leaf.shape[1:] for _, leaf in leaves(self.dataset.gather(none)))
        rest = order.num_samples % order.global_batch_size
        whole = order.batch_size * parts
        last = 0
        if order.last == "short":
            last = rest if parts > 1 else order.num_own(order.num_samples - rest)
        for size in (whole, last):
            try:
                sharding.shard_shape((size, *row))
            except ValueError as error:
                if size != whole:
                    raise ArgumentError(
                        f"the last batch has {size} of {whole} samples, which {sharding} "
                        "cannot split evenly; use drop_last=True, pad_last=True, which repeats "
                        "samples, or mask_last=True, which also says which"
                    ) from error
                raise ArgumentError(
                    f"batches of {size} samples with distributions {row} cannot be split "
                    f"by {sharding}: {error}"
                ) from error


@named
def output_dataloader(
    base_dataset: Any,
    distributions: Mapping[int, Any] | Selection | str | os.PathLike[str],
    batch_size: int = 64,
    shuffle: Shuffle = False,
    num_workers: int = 0,
    pin_memory: bool = False,
    input_getter: Callable[[Any], Any] | None = None,
    *,
    mask_last: bool = False,
    prefetch: int = 2,
    device: Any = None,
    **options: Unpack[LoaderOptions],
) -> DeviceLoader:
    """Batches (inputs, labels, distributions), or (inputs, distributions), as JAX arrays.

    Without a base dataset: the distributions alone; with `target_key`: dicts. Inputs of several
    shapes become a list of arrays, text and other objects a list. Without JAX's x64 mode 64-bit
    numbers become 32-bit ones, as everywhere in JAX.

    `num_workers` and `pin_memory` are the guide's; JAX reads in this process, so they have no effect.

    Args:
        seed, drop_last, pad_last, mask_last, rank, num_ranks, prefetch, device: see `DeviceLoader`.
        options: `ids`, `check`, `target_key`, `dtype`, ... of `FirstOrderDataset`.

    Raises:
        ArgumentError, IdentityError: see `FirstOrderDataset` and `DeviceLoader`.

    >>> loader = output_dataloader([(1.0, 0), (2.0, 1)], {0: [0.5, 0.5], 1: [0.25, 0.75]})
    >>> inputs, labels, distributions = next(iter(loader))
    >>> distributions
    Array([[0.5 , 0.5 ],
           [0.25, 0.75]], dtype=float32)
    """
    order, pair = take_order(options)
    dataset = FirstOrderDataset(base_dataset, distributions, input_getter, **pair)
    return DeviceLoader(
        dataset,
        batch_size,
        shuffle,
        mask_last=mask_last,
        prefetch=prefetch,
        device=device,
        **order,
    )


output_fo_dataloader = output_dataloader
