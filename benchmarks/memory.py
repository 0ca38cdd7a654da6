"""How much memory generation with a store needs beyond the model, its framework and its batches.

Each figure is a process of its own. One runs the bare loop (dataset, model, softmax) and keeps
nothing, the other the generator with a store; the difference of their peaks is what fostore costs.
What is counted is anonymous memory (RssAnon, sampled every two milliseconds), which is what a
process takes from others. The peak of all resident memory (ru_maxrss) stands beside it: it misses no moment,
and counts also the pages of files and libraries that happen to be mapped.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import _bench
import numpy as np

NUM_CLASSES = 1000
NUM_FEATURES = 16
BATCH = 256
GOAL_MB = 150
BARE_BATCHES = 400
_STATM = Path("/proc/self/statm")


class Samples:
    """A dataset of `length` samples that takes the memory of a thousand."""

    def __init__(self, length: int) -> None:
        self.length = length
        self.pool = np.random.default_rng(0).normal(size=(1024, NUM_FEATURES)).astype(np.float32)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        if not 0 <= index < self.length:
            raise IndexError(index)
        return self.pool[index % len(self.pool)], 0


def weights() -> np.ndarray:
    """The weights of the linear model, (features, classes)."""
    return np.random.default_rng(1).normal(size=(NUM_FEATURES, NUM_CLASSES)).astype(np.float32)


def linear(inputs: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """The model of the framework-agnostic side: logits (n, classes)."""
    return inputs @ matrix


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities in float32."""
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    rows: np.ndarray = shifted / shifted.sum(axis=1, keepdims=True)
    return rows


# ---------------------------------------------------------------- in the child


class Peak:
    """The highest anonymous memory, in bytes, while the block runs; None where the system does not say."""

    def __init__(self) -> None:
        self.value: int | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def _watch(self) -> None:
        while not self._stop.is_set():
            self._look()
            time.sleep(0.002)

    def _look(self) -> None:
        if _STATM.exists():
            # Pages: resident, and those of them that files and shared memory lie behind.
            resident, shared = map(int, _STATM.read_text().split()[1:3])
            self.value = max(self.value or 0, (resident - shared) * resource.getpagesize())

    def __enter__(self) -> Peak:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._look()
        self._stop.set()
        self._thread.join()


def bare_numpy(data: Samples) -> None:
    model = partial(linear, matrix=weights())
    for start in range(0, min(len(data), BARE_BATCHES * BATCH), BATCH):
        stop = min(start + BATCH, len(data))
        softmax(model(np.stack([data[i][0] for i in range(start, stop)]))).astype(np.float16)


def store_numpy(data: Samples, path: Path) -> Any:
    import fostore

    generator = fostore.FirstOrderDataGenerator(
        partial(linear, matrix=weights()), batch_size=BATCH, output_mode="logits"
    )
    return generator.generate_distributions(data, progress=False, store=path, dtype="float16")


def torch_model() -> Any:
    """The same model as a torch module."""
    import torch

    model = torch.nn.Linear(NUM_FEATURES, NUM_CLASSES, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.from_numpy(weights().T))
    return model.eval()


def bare_torch(data: Samples) -> None:
    import torch
    from torch.utils.data import DataLoader

    model = torch_model()
    with torch.inference_mode():
        for number, (inputs, _) in enumerate(DataLoader(data, batch_size=BATCH)):
            torch.softmax(model(inputs), dim=-1).half().numpy()
            if number == BARE_BATCHES:
                break


def store_torch(data: Samples, path: Path) -> Any:
    from fostore.torch import FirstOrderDataGenerator

    generator = FirstOrderDataGenerator(torch_model(), batch_size=BATCH, output_mode="logits")
    return generator.generate_distributions(data, progress=False, store=path, dtype="float16")


BARE = {"numpy": bare_numpy, "torch": bare_torch}
STORE = {"numpy": store_numpy, "torch": store_torch}


def child(side: str, loop: str, num_rows: int, folder: Path) -> dict[str, Any]:
    """Run one side in this process, check what it made, and tell the peaks."""
    data = Samples(num_rows)
    path = folder / f"{side}.zarr"
    store = None
    begin = time.perf_counter()
    with Peak() as peak:
        if loop == "bare":
            BARE[side](data)
        else:
            store = STORE[side](data, path)
    seconds = time.perf_counter() - begin
    # Kilobytes, but bytes on macOS. Read before the check, which takes memory of its own.
    whole = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << (
        0 if sys.platform == "darwin" else 10
    )
    if store is not None:
        assert store.is_sealed
        assert store.shape == (num_rows, NUM_CLASSES)
        picked = np.linspace(0, num_rows - 1, 1000).astype(np.int64)
        expected = softmax(np.stack([data[int(i)][0] for i in picked]) @ weights())
        assert np.allclose(store.take(picked).astype(np.float32), expected, rtol=2e-3, atol=1e-6)
        _bench.discard(path)
    return {"anonymous": peak.value, "resident": whole, "seconds": seconds}


# ---------------------------------------------------------------- in the parent


def measure(side: str, loop: str, num_rows: int, folder: Path) -> dict[str, Any]:
    """What a child process tells."""
    done = subprocess.run(
        [sys.executable, __file__, "--child", side, loop, str(num_rows), str(folder)],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return told


def main(arguments: argparse.Namespace) -> None:
    num_rows = 40_000 if arguments.quick else 1_000_000
    lines = []
    with _bench.scratch(arguments.dir) as folder:
        for side in ("numpy", "torch"):
            found: dict[str, list[dict[str, Any]]] = {"bare": [], "store": []}
            for _ in range(arguments.rounds):
                for loop, results in found.items():
                    results.append(measure(side, loop, num_rows, folder))
            counted = "resident" if found["bare"][0]["anonymous"] is None else "anonymous"
            beyond, resident = (
                _bench.difference(
                    *([r[key] / 1e6 for r in found[loop]] for loop in ("store", "bare"))
                )
                for key in (counted, "resident")
            )
            peaks = [
                _bench.Spread.of([result[counted] / 1e6 for result in found[loop]]).median
                for loop in ("bare", "store")
            ]
            lines.append(
                [
                    f"{side}, {num_rows:,} x {NUM_CLASSES:,} float16",
                    f"{peaks[0]:.0f}",
                    f"{peaks[1]:.0f}",
                    beyond.text(0),
                    resident.text(0),
                    f"under {GOAL_MB} MB",
                    _bench.verdict(beyond.median < GOAL_MB),
                ]
            )
        parts = [
            _bench.machine(folder, ["numpy", "torch", "zarr"]),
            f"{num_rows * NUM_CLASSES * 2 / 1e6:,.0f} MB of rows, batches of {BATCH}, "
            f"{arguments.rounds} rounds; peak anonymous memory in MB, each in a process of its own:",
            _bench.table(
                ["what", "bare loop", "with a store", "more", "more resident", "goal", ""], lines
            ),
        ]
    _bench.report("memory", parts, record=not arguments.quick)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        side, loop, num_rows, folder = sys.argv[2:6]
        print(json.dumps(child(side, loop, int(num_rows), Path(folder))))
    else:
        main(_bench.parse(_bench.parser(__doc__, rounds=3)))
