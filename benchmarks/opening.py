"""What it costs to open a store: in a fresh process up to the first batch, and at a billion rows.

A fresh process that imports fostore, opens a store and takes 256 rows stands against one that only
imports NumPy (Zarr) or h5py (HDF5). A sealed store of a billion rows, most of them holes, shows
that opening reads metadata alone.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import _bench
import numpy as np

import fostore

NUM_CLASSES = 10
BATCH = 256
HUGE_UNIT_ROWS = 1 << 20
HUGE_UNITS = 954  # the first whole number of units beyond 1e9 rows
ZARR_GOAL, HDF5_GOAL_MS, HUGE_GOAL_MS = 1.4, 20, 10

FIRST_BATCH = """
import fostore, sys
store = fostore.open(sys.argv[1])
rows = store.take(range(0, len(store), int(sys.argv[2])))
print(rows.shape[0], rows.sum(dtype="float64"), *sorted({"zarr", "h5py", "torch"} & set(sys.modules)))
"""


def distributions(num_rows: int) -> np.ndarray:
    """Float32 rows that sum to 1."""
    weights = np.random.default_rng(0).random((num_rows, NUM_CLASSES), np.float32)
    rows: np.ndarray = weights / weights.sum(axis=1, keepdims=True)
    return rows


def write(path: Path, rows: np.ndarray, unit_rows: int | None = None) -> None:
    """A sealed store."""
    with fostore.create(
        path, num_samples=len(rows), num_classes=NUM_CLASSES, unit_rows=unit_rows
    ) as writer:
        writer.append(rows)


# ---------------------------------------------------------------- a fresh process


def process(code: str, *arguments: str, expect: str = "") -> float:
    """Milliseconds of one Python process, whose output is checked."""
    begin = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True
    )
    seconds = time.perf_counter() - begin
    assert done.stdout.strip() == expect, f"{done.stdout.strip()!r}, expected {expect!r}"
    return seconds * 1e3


def fresh_processes(folder: Path, num_rows: int, rounds: int) -> str:
    """The table of imports, opens and first batches."""
    rows = distributions(num_rows)
    step = num_rows // BATCH
    expected = f"{BATCH} {rows[::step].sum(dtype='float64')}"
    cases = {"import numpy": partial(process, "import numpy")}
    for name, suffix, module in (("Zarr", ".zarr", ""), ("HDF5", ".h5", " h5py")):
        write(folder / f"small{suffix}", rows)
        path = str(folder / f"small{suffix}")
        # What it printed says which libraries it loaded: none for Zarr.
        cases[f"fostore, first batch of {name}"] = partial(
            process, FIRST_BATCH, path, str(step), expect=expected + module
        )
    cases["import h5py"] = partial(process, "import h5py")
    times = _bench.interleave(cases, rounds)
    numpy_only, zarr, hdf5, h5py_only = times.values()
    share, beyond = _bench.ratio(zarr, numpy_only), _bench.difference(hdf5, h5py_only)
    middles = [f"{_bench.Spread.of(values).median:.0f}" for values in times.values()]
    return _bench.table(
        ["what", "ms", "against", "", "goal", ""],
        [
            [
                "Zarr: import, open, first batch",
                middles[1],
                f"import numpy, {middles[0]} ms",
                share.text(2, " times"),
                f"{ZARR_GOAL} times at most",
                _bench.verdict(share.median <= ZARR_GOAL),
            ],
            [
                "HDF5: import, open, first batch",
                middles[2],
                f"import h5py, {middles[3]} ms",
                beyond.text(1, " ms more"),
                f"{HDF5_GOAL_MS} ms more at most",
                _bench.verdict(beyond.median <= HDF5_GOAL_MS),
            ],
        ],
    )


# ---------------------------------------------------------------- a billion rows


def grow(path: Path, units: int) -> int:
    """Make a sealed store of one full unit claim `units` of them; the others are holes. Gives the rows.

    Written by hand in the layout of spec/zarr.md: a shard is its rows and, at the end, an index
    that is the same for all full units.
    """
    num_rows = units * HUGE_UNIT_ROWS
    group = json.loads((path / "zarr.json").read_text())
    header = group["attributes"]["fostore"]
    header["num_samples"] = num_rows
    (path / "zarr.json").write_text(json.dumps(group))
    for name, length in (
        ("probs", num_rows),
        ("block_hashes", num_rows // header["block_rows"]),
    ):
        metadata = json.loads((path / name / "zarr.json").read_text())
        metadata["shape"][0] = length
        (path / name / "zarr.json").write_text(json.dumps(metadata))
    first = path / "probs" / "c" / "0" / "0"
    data_bytes = HUGE_UNIT_ROWS * NUM_CLASSES * 4
    index = first.read_bytes()[data_bytes:]
    for unit in range(1, units):
        shard = path / "probs" / "c" / str(unit) / "0"
        shard.parent.mkdir()
        with shard.open("wb") as file:
            file.seek(data_bytes)
            file.write(index)
    return num_rows


def huge(folder: Path, units: int, repeats: int) -> str:
    """The table of a store of a billion rows."""
    path = folder / "huge.zarr"
    rows = distributions(HUGE_UNIT_ROWS)
    write(path, rows, HUGE_UNIT_ROWS)
    num_rows = grow(path, units)
    touched: list[str] = []
    watching = False

    def watch(event: str, details: tuple[object, ...]) -> None:
        if watching and event == "open":
            touched.append(os.path.basename(str(details[0])))

    sys.addaudithook(watch)
    opens, takes = [], []
    wanted = np.arange(0, HUGE_UNIT_ROWS, HUGE_UNIT_ROWS // BATCH)
    far = np.array([num_rows - 1])
    fostore.open(path).close()  # modules load here
    for _ in range(repeats):
        touched.clear()
        watching = True
        begin = time.perf_counter()
        store = fostore.open(path)
        opened = time.perf_counter()
        watching = False
        assert set(touched) == {"zarr.json"}, f"opening read {sorted(set(touched))}"
        batch = store.take(wanted)
        takes.append((time.perf_counter() - opened) * 1e3)
        opens.append((opened - begin) * 1e3)
        assert len(store) == num_rows
        assert store.is_sealed
        assert np.array_equal(batch, rows[wanted])
        assert not store.take(far).any()
        store.close()
    spread = _bench.Spread.of(opens)
    return _bench.table(
        ["what", "ms", "goal", ""],
        [
            [
                f"open of {num_rows:,} sealed rows in {units} units",
                spread.text(1),
                f"under {HUGE_GOAL_MS} ms",
                _bench.verdict(spread.median < HUGE_GOAL_MS),
            ],
            ["its first batch, which maps all units", _bench.Spread.of(takes).text(1), "", ""],
        ],
    )


def main(arguments: argparse.Namespace) -> None:
    num_rows, units = (25_600, 20) if arguments.quick else (204_800, HUGE_UNITS)
    with _bench.scratch(arguments.dir) as folder:
        parts = [
            _bench.machine(folder, ["numpy", "h5py"]),
            f"A fresh process, {arguments.rounds} rounds, {num_rows:,} rows of 10 float32, "
            f"{BATCH} rows taken:",
            fresh_processes(folder, num_rows, arguments.rounds),
            "In this process, files of holes with one real unit; only `zarr.json` files are opened:",
            huge(folder, units, max(arguments.rounds, 5)),
        ]
    _bench.report("opening", parts, record=not arguments.quick)


if __name__ == "__main__":
    main(_bench.parse(_bench.parser(__doc__, rounds=21)))
