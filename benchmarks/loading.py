"""How fast rows come back: gathers, epochs and first batches, beside the formats that training uses.

Every library has its own copy of the same rows, at the setting that an expert would choose
(`peers/`, one file each), and what it gives is compared with what was written. A library that is
not installed keeps its line, which says how to get it. README.md says what each part asks.
"""

from __future__ import annotations

import argparse
import importlib
import os
import warnings

# Quiet before the libraries are imported: progress bars, telemetry, and one thread a computation,
# which leaves the other core to whoever prefetches.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import _bench
from peers import PEERS

PARTS = {
    "A": ("gather", "_gathers"),
    "B": ("epoch", "_epochs"),
    "C": ("paired", "_paired"),
    "D": ("jax", "_jax"),
    "E": ("fresh process", "_fresh"),
    "F": ("halves", "_halves"),
    "G": ("sequences", "_sequences"),
}
_MACHINERY = ["numpy", "torch", "jax"]


def main(arguments: argparse.Namespace) -> None:
    warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
    whole = not arguments.quick and arguments.only is None
    packages = dict.fromkeys([*_MACHINERY, *(peer.package for peer in PEERS)])
    for letter in arguments.part.upper().split(","):
        name, module = PARTS[letter]
        parts = importlib.import_module(module).run(arguments)
        machine = _bench.machine(arguments.dir, list(packages))
        _bench.report(f"loading, {name}", [machine, *parts], record=whole)


if __name__ == "__main__":
    options = _bench.parser(__doc__, rounds=7)
    options.add_argument("--part", default="A,B,C,D,E,F,G", help="parts to run, such as A,E")
    options.add_argument(
        "--only",
        help="libraries beside fostore and np.memmap, such as tensordict,HF; records nothing",
    )
    main(_bench.parse(options))
