"""Part C of loading.py: what distributions add to a base dataset that costs 50 microseconds a sample."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import _bench
import numpy as np
import torch
from _rows import BATCH, Width, assert_rows, copies, widths
from peers import ours
from torch.utils.data import DataLoader, Dataset

import fostore
from fostore.torch import FirstOrderDataset, output_dataloader

SAMPLE_SECONDS = 50e-6
GOAL = 1.02


class Decoding(Dataset[Any]):
    """Samples (input, label) that take as long as decoding a small image; the label is the index."""

    def __init__(self, num_samples: int) -> None:
        self.inputs = torch.arange(num_samples * 16, dtype=torch.float32).reshape(-1, 16)

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        end = time.perf_counter() + SAMPLE_SECONDS
        while time.perf_counter() < end:
            pass
        return self.inputs[index], index


def case(batches: Iterable[Any], rows: np.ndarray | None) -> Callable[[], float]:
    """A round: the seconds of an epoch; with `rows`, the last batch is compared afterwards."""

    def measure() -> float:
        begin = time.perf_counter()
        for batch in batches:
            last = batch
        seconds = time.perf_counter() - begin
        if rows is not None:
            _, labels, distributions = last
            assert_rows(distributions, rows[labels.numpy()], "the paired loader")
        return seconds

    return measure


def assert_pairs(batches: Iterable[Any], rows: np.ndarray) -> None:
    """A whole epoch: every sample once, with its own input and its own distribution."""
    labels = []
    for inputs, numbers, distributions in batches:
        assert_rows(distributions, rows[numbers.numpy()], "the paired loader")
        assert torch.equal(inputs[:, 0], numbers * 16.0), "inputs of other samples"
        labels += numbers.tolist()
    assert sorted(labels) == list(range(len(rows)))


def part(folder: Path, width: Width, rounds: int) -> str:
    """The table of one width."""
    rows = width.distributions()
    base = Decoding(len(rows))
    kept, _ = copies(folder, rows, [ours.ZARR])
    store = fostore.open(ours.place(kept[ours.ZARR.name].path, ".zarr"))

    def stock() -> Iterable[Any]:
        paired = FirstOrderDataset(base, store, dtype=None)
        return DataLoader(paired, batch_size=BATCH, shuffle=True)

    def own() -> Iterable[Any]:
        loader: Iterable[Any] = output_dataloader(
            base, store, batch_size=BATCH, shuffle=True, seed=0, dtype=None
        )
        return loader

    alone = "base dataset alone, DataLoader"
    cases = {alone: case(DataLoader(base, batch_size=BATCH, shuffle=True), None)}
    making = {alone: ""}
    for name, make in (("paired, DataLoader", stock), ("paired, output_dataloader", own)):
        begin = time.perf_counter()
        loader = make()
        making[name] = f"{(time.perf_counter() - begin) * 1e3:.1f}"
        assert_pairs(loader, rows)
        cases[name] = case(loader, rows)
    times = _bench.interleave(cases, rounds)
    lines = []
    for name, values in times.items():
        milliseconds = f"{_bench.Spread.of(values).median * 1e3:.0f}"
        if name == alone:
            lines.append([name, "", milliseconds, "", "", ""])
            continue
        ratio = _bench.ratio(values, times[alone])
        verdict = _bench.verdict(ratio.median <= GOAL)
        lines.append([name, making[name], milliseconds, ratio.text(3), f"{GOAL} at most", verdict])
    headers = ["what", "ms to make", "ms an epoch", "of the base dataset alone", "goal", ""]
    return f"**{width.text}**:\n\n" + _bench.table(headers, lines)


def run(arguments: argparse.Namespace) -> list[str]:
    """Both widths, with as many samples as take half a second."""
    num_samples = 1024 if arguments.quick else 10_240
    parts = [
        f"Shuffled epochs of a base dataset of {SAMPLE_SECONDS * 1e6:.0f} us a sample, batches of "
        f"{BATCH}, no workers, {arguments.rounds} rounds in turn. Dataset and loader are made once, "
        "which checks the pairing:"
    ]
    for width in widths(arguments.quick):
        small = Width(num_samples, width.num_classes, width.dtype)
        with _bench.scratch(arguments.dir) as folder:
            parts.append(part(folder, small, arguments.rounds))
    return parts
