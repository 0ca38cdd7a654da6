"""Part B of loading.py: a shuffled epoch of torch batches, with every library and with our own loader."""

from __future__ import annotations

import argparse
import functools
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import _bench
import numpy as np
import torch
from _rows import BATCH, Copy, Seen, Width, chosen, copies, widths
from peers import FLAT
from torch.utils.data import DataLoader, Dataset

import fostore
from fostore.loading.order import Order
from fostore.torch import FirstOrderDataset, output_dataloader

STOCK_GOALS = {10: 0.85, 1000: 0.95}
"""Of a hand-written memmap dataset with `__getitems__` and a pass-through collate, by classes."""
OWN_GOAL = 0.95
"""Of bare np.take over the same order, the making of the order included on both sides."""
HIDDEN_GOAL = 1.0
"""With a prefetch thread, of the same loader without, where the consumer computes."""

Epoch = Callable[[], Iterable[Any]]


class Gathered(Dataset[Any]):
    """A dataset as an expert writes it by hand: one gather a batch."""

    def __init__(self, gather: Callable[[np.ndarray], np.ndarray], num_rows: int) -> None:
        self.gather = gather
        self.num_rows = num_rows

    def __len__(self) -> int:
        return self.num_rows

    def __getitems__(self, indices: Sequence[int]) -> torch.Tensor:
        return torch.from_numpy(self.gather(np.asarray(indices)))


def as_it_is(batch: Any) -> Any:
    """The collate function of a dataset that gives whole batches."""
    return batch


def stock(copy: Copy, num_rows: int) -> Epoch:
    """The DataLoader of torch over `Gathered`."""

    def epoch() -> Iterable[Any]:
        dataset = Gathered(copy.gather, num_rows)
        return DataLoader(dataset, batch_size=BATCH, shuffle=True, collate_fn=as_it_is)

    return epoch


def bare(copy: Copy, num_rows: int) -> Epoch:
    """np.take and nothing else, over the order that our own loader follows."""

    def epoch() -> Iterator[Any]:
        for wanted in Order(num_rows, BATCH, shuffle=True, seed=0).batches(epoch=0):
            yield torch.from_numpy(copy.gather(wanted))

    return epoch


def bare_permutation(copy: Copy, num_rows: int) -> Epoch:
    """The same over NumPy's permutation, which is all made before the first batch."""

    def epoch() -> Iterator[Any]:
        order = np.random.default_rng(0).permutation(num_rows)
        for start in range(0, num_rows, BATCH):
            yield torch.from_numpy(copy.gather(order[start : start + BATCH]))

    return epoch


def ours_stock(store: fostore.Store) -> Epoch:
    """Our dataset in torch's own DataLoader, with its default collate."""

    def epoch() -> Iterable[Any]:
        dataset = FirstOrderDataset(None, store, dtype=None)
        return DataLoader(dataset, batch_size=BATCH, shuffle=True)

    return epoch


def ours(store: fostore.Store, **options: Any) -> Epoch:
    """Our own loader."""

    def epoch() -> Iterable[Any]:
        loader: Iterable[Any] = output_dataloader(
            None, store, batch_size=BATCH, shuffle=True, seed=0, dtype=None, **options
        )
        return loader

    return epoch


class Computing:
    """A consumer that multiplies every batch by a matrix: about as long as a small head takes."""

    def __init__(self, width: Width) -> None:
        self.weights = torch.ones(width.num_classes, 4096 if width.num_classes < 100 else 64)

    def __call__(self, batch: torch.Tensor) -> None:
        torch.mm(batch.float(), self.weights)


def nothing(batch: Any) -> None:
    """The consumer that only counts."""


def case(
    epoch: Epoch, num_rows: int, seconds: float, consume: Callable[[Any], None] = nothing
) -> Callable[[], float]:
    """A round: rows a second over whole epochs, from the making of the loader on.

    Short epochs are repeated for half of `seconds`. One that takes longer than `seconds` is cut, and
    its rest counted at the speed of its batches after the first.
    """
    num_batches = -(-num_rows // BATCH)

    def once() -> float:
        begin = time.perf_counter()
        first = now = begin
        done = 0
        for batch in epoch():
            consume(batch)
            now = time.perf_counter()
            if not done:
                first = now
            done += 1
            if now - begin > seconds and done > 2:
                break
        now = time.perf_counter() if done == num_batches else now
        rest = (now - first) / (done - 1) * (num_batches - done) if done < num_batches else 0.0
        return now - begin + rest

    def measure() -> float:
        spent = [once()]
        while sum(spent) < seconds / 2:
            spent.append(once())
        return num_rows * len(spent) / sum(spent)

    return measure


def lines_of(
    speeds: dict[str, list[float]], goals: dict[str, tuple[str, float]], against: str
) -> list[list[str]]:
    """One line a case: its speed, its ratio to `against`, and its goal against what the goal names."""
    lines = []
    for name, values in speeds.items():
        goal = verdict = ""
        if name in goals:
            other, least = goals[name]
            share = _bench.ratio(values, speeds[other])
            beside = "" if other == against else f" of {other!r}"
            goal = f"{least}{beside} or more; {share.text(2)}"
            verdict = _bench.verdict(round(share.median, 2) >= least)
        speed = _bench.Spread.of(values).median
        ratio = _bench.ratio(values, speeds[against])
        digits = 2 if ratio.median >= 0.1 else 4
        lines.append([name, f"{speed / 1e6:.3f}", ratio.text(digits), goal, verdict])
    return lines


def part(folder: Path, width: Width, arguments: argparse.Namespace) -> list[str]:
    """The tables of one width."""
    rows = width.distributions()
    num_rows = len(rows)
    seen = Seen(rows)
    peers = chosen(arguments)
    kept, lost = copies(folder, rows, peers)
    seconds = 0.05 if arguments.quick else 0.6
    flat = kept[FLAT.name]
    stores = {
        name: fostore.open(kept[f"fostore {name}"].path.with_suffix(suffix))
        for name, suffix in (("Zarr", ".zarr"), ("HDF5", ".h5"))
    }
    yardstick = "np.memmap, dataset by hand"
    epochs: dict[str, Epoch] = {yardstick: stock(flat, num_rows)}
    goals: dict[str, tuple[str, float]] = {}
    for name, store in stores.items():
        title = f"fostore {name}, FirstOrderDataset"
        epochs[title] = ours_stock(store)
        goals[title] = (yardstick, STOCK_GOALS[width.num_classes])
    epochs["bare np.take, the same order"] = bare(flat, num_rows)
    epochs["bare np.take, NumPy's permutation"] = bare_permutation(flat, num_rows)
    for name, store in stores.items():
        title = f"fostore {name}, output_dataloader"
        epochs[title] = ours(store, prefetch=0)
        goals[title] = ("bare np.take, the same order", OWN_GOAL)
    missing = []
    for peer in peers:
        if peer.name in lost:
            missing.append([peer.name, lost[peer.name], "", "", ""])
        elif peer is not FLAT and peer.module != "fostore":
            epochs[peer.name] = stock(kept[peer.name], num_rows)
            if peer.stream is not None:
                epochs[peer.stream_name] = functools.partial(
                    peer.stream, kept[peer.name].path, BATCH
                )
    for name, epoch in epochs.items():
        seen.assert_epoch(epoch(), name, 2 * seconds)
    cases = {name: case(epoch, num_rows, seconds) for name, epoch in epochs.items()}
    speeds = _bench.interleave(cases, arguments.rounds)
    headers = ["what", "M rows/s", f"of {yardstick!r}", "goal", ""]
    tables = [
        f"**{width.text}**:",
        _bench.table(headers, lines_of(speeds, goals, yardstick) + missing),
    ]
    computing = Computing(width)
    without, with_thread = "prefetch=0", "prefetch=2"
    hidden = {
        without: ours(stores["Zarr"], prefetch=0),
        with_thread: ours(stores["Zarr"], prefetch=2),
    }
    for name, epoch in hidden.items():
        seen.assert_epoch(epoch(), name, 2 * seconds)
    speeds = _bench.interleave(
        {name: case(epoch, num_rows, 4 * seconds, computing) for name, epoch in hidden.items()},
        arguments.rounds,
    )
    lines = lines_of(speeds, {with_thread: (without, HIDDEN_GOAL)}, without)
    return [
        *tables,
        "The same with a consumer that multiplies each batch by a matrix "
        f"{tuple(computing.weights.shape)}; fostore Zarr, output_dataloader:",
        _bench.table(["what", "M rows/s", f"of {without}", "goal", ""], lines),
    ]


def run(arguments: argparse.Namespace) -> list[str]:
    """Both widths."""
    parts = [
        f"Shuffled epochs of torch batches of {BATCH}, no workers, {arguments.rounds} rounds in turn; "
        "an untimed epoch of each is checked for every row once. Libraries stand in torch's "
        "DataLoader, at one gather a batch by hand (`__getitems__`, pass-through collate), where "
        "nothing else is said; our dataset with torch's default collate. Epochs over 0.6 s are cut "
        "and their rest counted at their own speed:"
    ]
    for width in widths(arguments.quick):
        with _bench.scratch(arguments.dir) as folder:
            parts += part(folder, width, arguments)
    return parts
