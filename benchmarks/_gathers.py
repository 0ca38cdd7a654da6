"""Part A of loading.py: what 256 random rows cost, with every library."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import _bench
import numpy as np
from _rows import BATCH, Copy, Width, assert_rows, chosen, copies, widths
from peers import FLAT

GOALS = {10: 1.1, 1000: 1.0}
"""Of the time of np.take on a flat np.memmap, by number of classes."""
TIMES = {"HF datasets": 150, "zarr-python": 3000, "zarr-python, fostore's files": 3000}
"""How many times slower than fostore's faster format another should be, at 10 classes."""

_FEWEST, _MOST = 3, 200
OURS = ("fostore Zarr", "fostore HDF5")


def case(copy: Copy, rows: np.ndarray, seconds: float) -> Callable[[], float]:
    """A round: the median time of a batch in microseconds; every batch is compared, untimed."""
    random = np.random.default_rng(2)

    def measure() -> float:
        times: list[float] = []
        end = time.perf_counter() + seconds
        while len(times) < _FEWEST or (len(times) < _MOST and time.perf_counter() < end):
            wanted = random.integers(0, len(rows), BATCH)
            begin = time.perf_counter()
            batch = copy.gather(wanted)
            times.append(time.perf_counter() - begin)
            assert_rows(batch, rows[wanted], copy.peer.name)
        return float(np.median(times)) * 1e6

    return measure


def part(folder: Path, width: Width, arguments: argparse.Namespace) -> str:
    """The table of one width."""
    rows = width.distributions()
    peers = chosen(arguments)
    kept, lost = copies(folder, rows, peers)
    seconds = 0.01 if arguments.quick else 0.15
    times = _bench.interleave(
        {name: case(copy, rows, seconds) for name, copy in kept.items()}, arguments.rounds
    )
    best = min(OURS, key=lambda name: _bench.Spread.of(times[name]).median)
    lines = []
    for peer in peers:
        if peer.name in lost:
            lines.append([peer.name, lost[peer.name], "", "", "", "", ""])
            continue
        spread = _bench.Spread.of(times[peer.name])
        ratio = _bench.ratio(times[peer.name], times[FLAT.name])
        beside = _bench.ratio(times[peer.name], times[best])
        goal = verdict = ""
        if peer.name in OURS and width.num_classes in GOALS:
            limit = GOALS[width.num_classes]
            goal, verdict = f"{limit} of np.memmap at most", _bench.verdict(ratio.median <= limit)
        elif peer.name in TIMES and width.num_classes == 10:
            wanted = TIMES[peer.name]
            goal, verdict = f"over {wanted:,} times fostore", _bench.verdict(beside.median > wanted)
        lines.append(
            [
                peer.name,
                peer.setting,
                spread.text(0 if spread.median >= 1000 else 1),
                ratio.text(2 if ratio.median < 10 else 0),
                f"{beside.median:,.{2 if beside.median < 10 else 0}f}",
                goal,
                verdict,
            ]
        )
    headers = ["what", "how", "us a batch", "of np.memmap's time", f"of {best}'s", "goal", ""]
    return f"**{width.text}**:\n\n" + _bench.table(headers, lines)


def run(arguments: argparse.Namespace) -> list[str]:
    """Both widths."""
    parts = [
        f"{BATCH} random rows of a warm store, {arguments.rounds} rounds in turn, the median batch "
        "of each; all batches compared with what was written:"
    ]
    for width in widths(arguments.quick):
        with _bench.scratch(arguments.dir) as folder:
            parts.append(part(folder, width, arguments))
    return parts
