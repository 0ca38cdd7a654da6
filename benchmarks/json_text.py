"""What JSON costs: writing and reading it beside other libraries, and the memory that a document of 2 GB takes.

Written is a sealed Zarr store, by the others rows that lie ready as lists; every file ends synced.
Read is a document of ours: we check every row, its key and its place, and give one array; the
others give what they parse. Memory is that of a process of its own: what belongs to it alone
(RssAnon, sampled every five milliseconds), and the peak of all that was resident (VmHWM), which
counts the pages of mapped files as well.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import _bench
import numpy as np
import orjson

import fostore
from fostore.files.json import export

SHAPES = [(50_000, 10), (20_000, 1000)]
QUICK_SHAPES = [(4_000, 10), (400, 1000)]
WRITE_GOAL, READ_GOAL, MEMORY_GOAL_MB = 30, 8, 100
_MB = 1e6


def optional(name: str) -> Any:
    """A module, or None where it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


ijson, simdjson = optional("ijson"), optional("simdjson")


def distributions(num_rows: int, num_classes: int) -> np.ndarray:
    """Float32 rows that sum to 1."""
    weights = np.random.default_rng(0).random((num_rows, num_classes), np.float32)
    rows: np.ndarray = weights / weights.sum(axis=1, keepdims=True)
    return rows


def synced(path: Path, write: Callable[[Any], object], mode: str = "w") -> None:
    """Write a file and make it durable."""
    with path.open(mode) as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())


# ---------------------------------------------------------------- writing


def writers(store: fostore.Store, rows: np.ndarray, path: Path) -> dict[str, Callable[[], float]]:
    """What is timed, by name; each checks what it wrote."""
    lists = {"meta": {}, "distributions": {str(i): row for i, row in enumerate(rows.tolist())}}
    arrays = {"meta": {}, "distributions": {str(i): row for i, row in enumerate(rows)}}
    whole = orjson.OPT_SERIALIZE_NUMPY

    def timed(write: Callable[[], object]) -> Callable[[], float]:
        def run() -> float:
            begin = time.perf_counter()
            write()
            seconds = time.perf_counter() - begin
            table = orjson.loads(path.read_bytes())["distributions"]
            assert list(table) == list(lists["distributions"])
            assert np.array_equal(np.array(list(table.values()), np.float32), rows)
            return seconds

        return run

    return {
        "fostore": timed(lambda: export(path, store.reader)),
        "json.dump": timed(lambda: synced(path, lambda file: json.dump(lists, file))),
        "json.dumps": timed(lambda: synced(path, lambda file: file.write(json.dumps(lists)))),
        "orjson, whole": timed(
            lambda: synced(path, lambda file: file.write(orjson.dumps(arrays, option=whole)), "wb")
        ),
    }


# ---------------------------------------------------------------- reading


def by_ijson(path: Path) -> dict[str, Any]:
    """Row by row, as ijson streams them."""
    with path.open("rb") as file:
        return dict(ijson.kvitems(file, "distributions", use_float=True))


def by_simdjson(path: Path) -> dict[str, Any]:
    """The whole document, as Python objects."""
    table: dict[str, Any] = simdjson.Parser().parse(path.read_bytes()).as_dict()["distributions"]
    return table


def readers(path: Path, rows: np.ndarray) -> dict[str, Callable[[], float]]:
    """What is timed, by name; each checks what it read."""

    def ours() -> float:
        begin = time.perf_counter()
        store = fostore.open(path)
        seconds = time.perf_counter() - begin
        assert np.array_equal(store.array, rows)
        return seconds

    def timed(read: Callable[[], Any]) -> Callable[[], float]:
        def run() -> float:
            begin = time.perf_counter()
            table = read()
            seconds = time.perf_counter() - begin
            assert np.array_equal(np.array([table[str(i)] for i in range(len(rows))], "f4"), rows)
            return seconds

        return run

    def stdlib() -> Any:
        with path.open("rb") as file:
            return json.load(file)["distributions"]

    found = {
        "fostore": ours,
        "json.load": timed(stdlib),
        "orjson, whole": timed(lambda: orjson.loads(path.read_bytes())["distributions"]),
    }
    if ijson is not None:
        found["ijson"] = timed(lambda: by_ijson(path))
    if simdjson is not None:
        found["pysimdjson, whole"] = timed(lambda: by_simdjson(path))
    return found


def compared(times: dict[str, list[float]], base: str, goal: int) -> list[list[str]]:
    """One line a library: seconds, and how many times as fast as the standard library."""
    lines = []
    for name, seconds in times.items():
        ratio = _bench.ratio(times[base], seconds)
        goals = [f"{goal} times", _bench.verdict(ratio.median >= goal)]
        lines.append(
            [
                name,
                f"{_bench.Spread.of(seconds).median:.3f}",
                ratio.text(1),
                *(goals if name == "fostore" else ["", ""]),
            ]
        )
    return lines


def speed(folder: Path, shape: tuple[int, int], rounds: int) -> list[str]:
    """The tables of writing and reading."""
    rows = distributions(*shape)
    with fostore.create(folder / "a.zarr", num_samples=shape[0], num_classes=shape[1]) as writer:
        writer.append(rows)
    store = fostore.open(folder / "a.zarr")
    written = _bench.interleave(writers(store, rows, folder / "a.json"), rounds)
    export(folder / "a.json", store.reader)
    size = (folder / "a.json").stat().st_size / _MB
    read = _bench.interleave(readers(folder / "a.json", rows), rounds)
    store.close()
    for name in ("a.zarr", "a.json"):
        _bench.discard(folder / name)
    title = f"{shape[0]:,} x {shape[1]:,} float32, {size:,.0f} MB of text"
    return [
        f"Writing {title}:",
        _bench.table(
            ["writing", "s", "times json.dump", "goal", ""],
            compared(written, "json.dump", WRITE_GOAL),
        ),
        f"Reading {title}:",
        _bench.table(
            ["reading", "s", "times json.load", "goal", ""],
            compared(read, "json.load", READ_GOAL),
        ),
    ]


# ---------------------------------------------------------------- memory


def status(key: str) -> float:
    """A figure of this process, in MB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key):
            return int(line.split()[1]) * 1024 / _MB
    raise KeyError(key)


def child(source: Path, target: Path, num_rows: int) -> None:
    """Read a document, check some rows, write it again, and tell the peaks."""
    peak, stop = 0.0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not stop.wait(0.005):
            peak = max(peak, status("RssAnon"))

    thread = threading.Thread(target=watch)
    thread.start()
    begin = time.perf_counter()
    store = fostore.open(source)
    opened = time.perf_counter()
    told = {"read": [peak, status("VmHWM"), opened - begin]}
    assert len(store) == num_rows
    peak = 0.0
    begin = time.perf_counter()
    export(target, store.reader)
    told["write"] = [peak, status("VmHWM"), time.perf_counter() - begin]
    stop.set()
    thread.join()
    block = distributions(1000, 1000)
    rows = np.arange(0, num_rows, 1009)
    assert np.array_equal(store.take(rows).astype(np.float32), block[rows % 1000])
    print(json.dumps(told))


def memory(folder: Path, num_rows: int) -> list[str]:
    """The table of a large document of the guide's layout, with `meta` at its end."""
    texts = [
        orjson.dumps(row, option=orjson.OPT_SERIALIZE_NUMPY) for row in distributions(1000, 1000)
    ]
    source, target = folder / "large.json", folder / "again.json"
    with source.open("wb") as file:
        file.write(b'{"distributions": {')
        for i in range(num_rows):
            file.write(b'%b\n "%d": %b' % (b"," if i else b"", i, texts[i % 1000]))
        file.write(b'}, "meta": {"dataset": "none"}}')
    size = source.stat().st_size
    done = subprocess.run(
        [sys.executable, __file__, "--child", str(source), str(target), str(num_rows)],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    told = json.loads(done.stdout.splitlines()[-1])
    lines = []
    for what, (private, resident, seconds) in told.items():
        speed_text = f"{size / _MB / seconds:,.0f}"
        goal = [f"under {MEMORY_GOAL_MB} MB private", _bench.verdict(private < MEMORY_GOAL_MB)]
        lines.append([what, f"{private:.0f}", f"{resident:,.0f}", speed_text, *goal])
    for path in (source, target):
        _bench.discard(path)
    return [
        f"A document of {size / 1e9:.2f} GB, {num_rows:,} x 1,000, `meta` last, in a process of its own "
        "(what is written is read from the mapped store, whose pages count as resident):",
        _bench.table(["what", "private MB", "resident MB", "MB/s", "goal", ""], lines),
    ]


def main(arguments: argparse.Namespace) -> None:
    missing = [
        name for name, module in (("ijson", ijson), ("pysimdjson", simdjson)) if module is None
    ]
    with _bench.scratch(arguments.dir) as folder:
        parts = [_bench.machine(folder, ["numpy", "orjson", "ijson", "pysimdjson"])]
        if missing:
            parts.append(f"Not installed, and so not compared: {', '.join(missing)}.")
        for shape in QUICK_SHAPES if arguments.quick else SHAPES:
            parts += speed(folder, shape, arguments.rounds)
        if Path("/proc/self/status").exists():
            parts += memory(folder, 5_000 if arguments.quick else 155_000)
        else:
            parts.append("Memory: this system does not say what a process takes.")
    _bench.report("json_text", parts, record=not arguments.quick)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]))
    else:
        main(_bench.parse(_bench.parser(__doc__, rounds=3)))
