"""Part D of loading.py: a shuffled epoch to JAX device arrays."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import _bench
import jax
from _epochs import case, lines_of
from _rows import BATCH, Copy, Seen, Width, copies, widths
from peers import FLAT, ours

import fostore
from fostore.jax import output_dataloader
from fostore.loading.order import Order

GOAL = 0.8


def put(copy: Copy, num_rows: int) -> Callable[[], Iterator[Any]]:
    """np.take and device_put, over the order that our own loader follows."""

    def epoch() -> Iterator[Any]:
        for wanted in Order(num_rows, BATCH, shuffle=True, seed=0).batches(epoch=0):
            yield jax.device_put(copy.gather(wanted))

    return epoch


def loaded(store: fostore.Store, **options: Any) -> Callable[[], Iterable[Any]]:
    """Our own loader."""

    def epoch() -> Iterable[Any]:
        loader: Iterable[Any] = output_dataloader(
            None, store, batch_size=BATCH, shuffle=True, seed=0, dtype=None, **options
        )
        return loader

    return epoch


def part(folder: Path, width: Width, arguments: argparse.Namespace) -> str:
    """The table of one width."""
    rows = width.distributions()
    seen = Seen(rows)
    kept, _ = copies(folder, rows, [FLAT, ours.ZARR])
    store = fostore.open(ours.place(kept[ours.ZARR.name].path, ".zarr"))
    seconds = 0.05 if arguments.quick else 1.0
    flat = "np.memmap, np.take and device_put"
    epochs: dict[str, Callable[[], Iterable[Any]]] = {
        flat: put(kept[FLAT.name], len(rows)),
        "fostore Zarr, prefetch=0": loaded(store, prefetch=0),
        "fostore Zarr, as it comes": loaded(store),
    }
    for name, epoch in epochs.items():
        seen.assert_epoch(map(checked, epoch()), name, 2 * seconds)
    speeds = _bench.interleave(
        {
            name: case(epoch, len(rows), seconds, jax.block_until_ready)
            for name, epoch in epochs.items()
        },
        arguments.rounds,
    )
    goals = {name: (flat, GOAL) for name in epochs if name != flat}
    headers = ["what", "M rows/s", f"of {flat!r}", "goal", ""]
    return f"**{width.text}**:\n\n" + _bench.table(headers, lines_of(speeds, goals, flat))


def checked(batch: Any) -> jax.Array:
    """The batch, which must be a device array."""
    assert isinstance(batch, jax.Array), f"a batch is {type(batch).__name__}, not a jax.Array"
    return batch


def run(arguments: argparse.Namespace) -> list[str]:
    """Both widths."""
    parts = [
        f"Shuffled epochs of batches of {BATCH} as JAX arrays on {jax.devices()[0].platform}, each "
        f"waited for, {arguments.rounds} rounds in turn:"
    ]
    for width in widths(arguments.quick):
        with _bench.scratch(arguments.dir) as folder:
            parts.append(part(folder, width, arguments))
    return parts
