"""How fast a batch of random rows comes out of an open store, and what `np.take` on a flat file needs.

256 random rows from a Zarr and an HDF5 store against `np.take` on an `np.memmap` of the same rows;
two ways to gather in two threads, which are not built, against our one, on a quiet machine and with
busy processes beside; one row; and opening a store of many units. Everything is in the page cache.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import _bench
import numpy as np

import fostore

BATCH = 256
NARROW_GOAL, WIDE_GOAL, TWO_GOAL = 1.1, 1.0, 0.6
ROW_GOAL_US, OPEN_GOAL_MS = 2, 20
REPEATS = 20

Take = Callable[[np.ndarray], np.ndarray]


class Case:
    """The same rows three times: a flat file, a Zarr and an HDF5 store."""

    def __init__(self, folder: Path, num_rows: int, num_classes: int, dtype: str) -> None:
        self.shape, self.dtype = (num_rows, num_classes), np.dtype(dtype)
        self.name = f"{num_rows:,} x {num_classes:,} {dtype}"
        flat = folder / f"{num_classes}-{dtype}.bin"
        self.stores = {
            name: folder / (flat.stem + s) for name, s in (("Zarr", ".zarr"), ("HDF5", ".h5"))
        }
        rng = np.random.default_rng(0)
        writers = [
            fostore.create(path, num_samples=num_rows, num_classes=num_classes, dtype=dtype)
            for path in self.stores.values()
        ]
        step = (8 << 20) // (num_classes * 4)
        with flat.open("wb") as file, contextlib.ExitStack() as closing:
            for writer in writers:
                closing.enter_context(writer)
            for start in range(0, num_rows, step):
                rows = rng.random((min(step, num_rows - start), num_classes), np.float32)
                rows = (rows / rows.sum(axis=1, keepdims=True)).astype(dtype)
                file.write(rows.data)
                for writer in writers:
                    writer.append(rows)
        self.flat = np.memmap(flat, dtype, "r", shape=self.shape)
        self.takes: dict[str, Take] = {"np.memmap": lambda rows: np.take(self.flat, rows, axis=0)}
        for name, path in self.stores.items():
            self.takes[name] = warm(fostore.open(path), self.flat)

    def times(self, rounds: int, batch: int = BATCH) -> dict[str, list[float]]:
        """Microseconds a batch, one number a round."""
        rng = np.random.default_rng(1)
        return _bench.interleave(
            {
                name: lambda take=take: timed(take, self.flat, rng, batch)  # type: ignore[misc]
                for name, take in self.takes.items()
            },
            rounds,
        )


def warm(store: fostore.Store, flat: np.ndarray) -> Take:
    """The store's `take`, after every row was checked and enough was taken to know it resident."""
    step = max((16 << 20) // flat[0].nbytes, 1)
    for start in range(0, len(flat), step):
        rows = np.arange(start, min(start + step, len(flat)))
        assert np.array_equal(store.take(rows), flat[start : start + step])
    rng = np.random.default_rng(2)
    for _ in range(100):
        store.take(rng.integers(0, len(flat), BATCH))
    return store.take


def timed(take: Take, flat: np.ndarray, rng: np.random.Generator, batch: int) -> float:
    """Microseconds a batch of random rows; the last one is checked."""
    wanted = rng.integers(0, len(flat), (REPEATS, batch))
    begin = time.perf_counter()
    for rows in wanted:
        found = take(rows)
    seconds = time.perf_counter() - begin
    assert np.array_equal(found, flat[wanted[-1]])
    return seconds / REPEATS * 1e6


@contextlib.contextmanager
def busy(count: int) -> Iterator[None]:
    """Other processes that compute."""
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        time.sleep(0.2 if loops else 0)
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


# ---------------------------------------------------------------- the tables


def batches(cases: list[Case], rounds: int) -> str:
    """256 random rows."""
    lines = []
    for case in cases:
        times = case.times(rounds)
        goal = NARROW_GOAL if case.shape[1] < 100 else WIDE_GOAL
        flat = times.pop("np.memmap")
        for name, values in times.items():
            share = _bench.ratio(values, flat)
            lines.append(
                [
                    case.name,
                    name,
                    f"{_bench.Spread.of(values).median:.1f}",
                    f"{_bench.Spread.of(flat).median:.1f}",
                    share.text(),
                    f"{goal} at most",
                    _bench.verdict(share.median <= goal),
                ]
            )
    return _bench.table(["rows", "format", "us", "np.take, us", "ratio", "goal", ""], lines)


def halves(array: np.ndarray, pool: ThreadPoolExecutor) -> Take:
    """np.take of two halves of a batch: one in a waiting thread, one in the caller's."""

    def take(rows: np.ndarray) -> np.ndarray:
        out = np.empty((len(rows), *array.shape[1:]), array.dtype)
        middle = len(rows) // 2
        other = pool.submit(np.take, array, rows[middle:], 0, out[middle:], "clip")
        np.take(array, rows[:middle], 0, out[:middle], "clip")
        other.result()
        return out

    return take


def selected(array: np.ndarray) -> Take:
    """torch.index_select in two threads, into a tensor that is kept."""
    import torch

    torch.set_num_threads(2)
    kept: dict[int, torch.Tensor] = {}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        whole = torch.from_numpy(array)

    def take(rows: np.ndarray) -> np.ndarray:
        out = kept.setdefault(len(rows), torch.empty((len(rows), *whole.shape[1:])))
        torch.index_select(whole, 0, torch.from_numpy(rows), out=out)
        return out.numpy()

    return take


def two_threads(case: Case, rounds: int, cores: int) -> str:
    """What gathering in two threads would give beside our one, with 0 and `cores` busy processes."""
    array, lines = fostore.open(case.stores["Zarr"]).array, []
    with ThreadPoolExecutor(1) as pool:
        takes = {
            "ours": case.takes["Zarr"],
            "np.take of two halves": halves(array, pool),
            "torch.index_select(out=)": selected(array),
        }
        for others in (0, cores):
            for batch in (BATCH, 4 * BATCH, 16 * BATCH):
                rng = np.random.default_rng(3)
                cases = {
                    name: lambda t=take, b=batch, r=rng: timed(t, case.flat, r, b)  # type: ignore[misc]
                    for name, take in takes.items()
                }
                with busy(others):
                    times = _bench.interleave(cases, rounds)
                one = times.pop("ours")
                for name, values in times.items():
                    share = _bench.ratio(values, one)
                    sums = sum(values) / sum(one)
                    lines.append(
                        [
                            f"{batch:,} rows, {batch * array[0].nbytes / 2**20:.1f} MiB",
                            str(others),
                            name,
                            f"{_bench.Spread.of(one).median:.0f}",
                            share.text(),
                            f"{sums:.2f}",
                            _bench.verdict(share.median <= TWO_GOAL),
                        ]
                    )
    headers = ["batch", "busy processes", "not built", "ours, us", "of ours", "of the sums"]
    return _bench.table([*headers, f"goal {TWO_GOAL}"], lines)


def one_row(case: Case, rounds: int) -> list[str]:
    """`store[i]`, in microseconds."""
    store = fostore.open(case.stores["Zarr"])
    rng = np.random.default_rng(4)

    def measure() -> float:
        wanted = rng.integers(0, len(case.flat), 2000).tolist()
        begin = time.perf_counter()
        for index in wanted:
            found = store[index]
        seconds = time.perf_counter() - begin
        assert np.array_equal(found, case.flat[wanted[-1]])
        return seconds / len(wanted) * 1e6

    spread = _bench.Spread.of(_bench.interleave({"row": measure}, rounds)["row"])
    goal = f"under {ROW_GOAL_US} us"
    return [
        f"store[i], {case.name}",
        spread.text(2, " us"),
        goal,
        _bench.verdict(spread.median < ROW_GOAL_US),
    ]


def many_units(folder: Path, units: int, rounds: int) -> list[str]:
    """Opening a store of many units, and its first batch, which maps them all, in milliseconds."""
    path = folder / "units.zarr"
    unit_rows = 1024
    rows = np.full((unit_rows, 10), 0.1, np.float32)
    with fostore.create(
        path, num_samples=units * unit_rows, num_classes=10, unit_rows=unit_rows
    ) as writer:
        for _ in range(units):
            writer.append(rows)
    wanted = np.random.default_rng(5).integers(0, units * unit_rows, BATCH)

    def measure() -> float:
        begin = time.perf_counter()
        store = fostore.open(path)
        found = store.take(wanted)
        seconds = time.perf_counter() - begin
        assert np.array_equal(found, rows[wanted % unit_rows])
        store.close()
        return seconds * 1e3

    spread = _bench.Spread.of(_bench.interleave({"open": measure}, rounds)["open"])
    goal = f"under {OPEN_GOAL_MS} ms"
    return [
        f"open of {units:,} units and the first batch",
        spread.text(1, " ms"),
        goal,
        _bench.verdict(spread.median < OPEN_GOAL_MS),
    ]


def main(arguments: argparse.Namespace) -> None:
    sizes = [(1_000_000, 10, "float32"), (200_000, 1000, "float16"), (100_000, 1000, "float32")]
    units = 1000
    if arguments.quick:
        sizes, units = [(rows // 20, classes, dtype) for rows, classes, dtype in sizes], 50
    cores = os.cpu_count() or 1
    with _bench.scratch(arguments.dir) as folder:
        cases = [Case(folder, *size) for size in sizes]
        parts = [
            _bench.machine(folder, ["numpy", "torch"]),
            f"{BATCH} random rows, {arguments.rounds} rounds of {REPEATS} batches:",
            batches(cases, arguments.rounds),
            f"Batches of {cases[2].name} from Zarr, on {cores} cores, each ratio to our `take` in one "
            "thread. Two threads are not built (docs/decisions/0016); these are the two simplest ways "
            "to have them. The ratio of the sums of all rounds is where a stall shows:",
            two_threads(cases[2], arguments.rounds, cores),
            "Other costs:",
            _bench.table(
                ["what", "", "goal", ""],
                [
                    one_row(cases[0], arguments.rounds),
                    many_units(folder, units, max(arguments.rounds // 4, 2)),
                ],
            ),
        ]
    _bench.report("gather", parts, record=not arguments.quick)


if __name__ == "__main__":
    main(_bench.parse(_bench.parser(__doc__, rounds=41)))
