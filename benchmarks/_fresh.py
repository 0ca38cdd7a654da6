"""Part E of loading.py: a fresh process that imports a library, opens its file and takes one batch."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import _bench
import numpy as np
from _rows import BATCH, Width, chosen, copies, widths
from peers import FLAT, Peer

GOAL = 1.1

_BEFORE = """
import sys
path, wanted = sys.argv[1], range(0, int(sys.argv[2]), int(sys.argv[3]))
"""
_AFTER = """
print(len(rows), rows.sum(dtype="float64"))
"""


def case(peer: Peer, path: Path, rows: np.ndarray, compiled: Path) -> Callable[[], float]:
    """Milliseconds of one process, whose batch is checked by its sum.

    Every library's modules are compiled to `compiled` by the round that does not count, as
    installing a wheel compiles them: not all environments write bytecode for a checkout.
    """
    environment = {**os.environ, "PYTHONPYCACHEPREFIX": str(compiled)}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    step = len(rows) // BATCH
    stop = step * BATCH
    expected = f"{BATCH} {rows[:stop:step].sum(dtype='float64')}"
    command = [sys.executable, "-c", _BEFORE + peer.fresh + _AFTER, str(path), str(stop), str(step)]

    def measure() -> float:
        begin = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
        seconds = time.perf_counter() - begin
        found = done.stdout.strip()
        assert found == expected, f"{peer.name} gives {found!r}, expected {expected!r}"
        return seconds * 1e3

    return measure


def part(folder: Path, width: Width, rounds: int, peers: Sequence[Peer]) -> str:
    """The table."""
    rows = width.distributions()
    kept, lost = copies(folder, rows, peers)
    times = _bench.interleave(
        {
            name: case(copy.peer, copy.path, rows, folder / "compiled")
            for name, copy in kept.items()
        },
        rounds,
    )
    lines = []
    for peer in peers:
        if peer.name in lost:
            lines.append([peer.name, lost[peer.name], "", "", ""])
            continue
        ratio = _bench.ratio(times[peer.name], times[FLAT.name])
        ours = peer.module == "fostore"
        lines.append(
            [
                peer.name,
                _bench.Spread.of(times[peer.name]).text(0),
                ratio.text(2),
                f"{GOAL} at most" if ours else "",
                _bench.verdict(ratio.median <= GOAL) if ours else "",
            ]
        )
    return _bench.table(["what", "ms", "of np.memmap's time", "goal", ""], lines)


def run(arguments: argparse.Namespace) -> list[str]:
    """One width: a first batch is import and open."""
    width = widths(arguments.quick)[0]
    rounds = arguments.rounds if arguments.quick else 3 * arguments.rounds
    with _bench.scratch(arguments.dir) as folder:
        peers = [peer for peer in chosen(arguments) if peer.fresh]
        table = part(folder, width, rounds, peers)
    return [
        f"A fresh process from its start to its end: import, open, every {width.num_rows // BATCH}th "
        f"of {width.text}; {rounds} rounds:",
        table,
    ]
