"""What does a store of so many rows take that many machines write? Objects, bytes, requests, memory, time of finish.

    python benchmarks/plan.py 1e12 10 --dtype float16 --workers 64
    python benchmarks/plan.py 1e9 32000 --encoding topk --k 128 --rows tokens
    python benchmarks/plan.py          # both, and a million units; recorded

Nothing is computed on paper but the network: a worker writes one unit, and the store is finished, by the code that
does it, on a storage that makes up the units nobody wrote (_imagined.py).
"""

from __future__ import annotations

import gc
import multiprocessing
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import _bench
import numpy as np
from _imagined import TOKENS, Imagined

import fostore
from fostore.encodings.topk_rows import Selected
from fostore.errors import FostoreError
from fostore.places.place import Storage

_READ_ROWS = 10_000_000
"""Rows that the finisher reads here at most; that of more is run on a part of them."""


@dataclass(frozen=True, slots=True)
class Job:
    """What is planned."""

    name: str
    num_rows: int
    num_classes: int
    options: dict[str, Any]
    workers: int
    part: int = 1
    """The finisher is run on so many times fewer units, where it would take too long; what it does is multiplied."""


@dataclass(frozen=True, slots=True)
class Done:
    """What a process did: requests by kind, bytes in and out, MB that it grew by at most, seconds without a network."""

    calls: dict[str, int]
    read: int
    written: int
    grown: float
    seconds: float


@dataclass(frozen=True, slots=True)
class Network:
    """What requests take: milliseconds of one, and of a page of a list; MB a second; how many at a time."""

    request_ms: float
    list_ms: float
    mbps: float
    at_once: int = 64

    def seconds(self, done: Done) -> float:
        """Of what was done: pages of lists one after another, all else many at a time."""
        singles = sum(count for kind, count in done.calls.items() if kind != "LIST")
        waits = done.calls.get("LIST", 0) * self.list_ms + singles * self.request_ms / self.at_once
        return waits / 1e3 + (done.read + done.written) / 1e6 / self.mbps


JOBS = (
    Job("1e12 rows x 10 classes, float16", 10**12, 10, {"dtype": "float16"}, 64),
    Job(
        "1e9 tokens x top-128 of 32,000",
        10**9,
        32_000,
        {
            "encoding": "topk",
            "k": 128,
            "dtype": "float16",
            "rows": "tokens",
            "num_sequences": 10**9 // TOKENS,
        },
        64,
        100,
    ),
    Job(
        "a million units of 1,024 rows x 10",
        1024 * 10**6,
        10,
        {"dtype": "float32", "unit_rows": 1024},
        64,
    ),
)


# ---------------------------------------------------------------- what is run, each in a process of its own


def planned(job: Job) -> tuple[Imagined, Any]:
    place = Imagined()
    assert isinstance(place, Storage)
    plan = fostore.plan(place, num_samples=job.num_rows, num_classes=job.num_classes, **job.options)
    return place, plan


def layout(job: Job) -> tuple[int, int, int, int]:
    """Units, rows a unit, bytes a row, columns."""
    _, plan = planned(job)
    schema = plan.header.schema
    row = sum(schema.row_bytes)
    return plan.num_units, plan.header.unit_rows, row, len(schema.columns)


def worker(job: Job) -> Done:
    """The first worker opens its share and writes one unit of it."""
    place, plan = planned(job)
    workers = min(job.workers, plan.num_units)
    share = (0, workers)
    _write_next(place, job, share)  # what is loaded and made once
    place.calls.clear()
    place.bytes.clear()
    return _measured(place, lambda: _write_next(place, job, share))


def _write_next(place: Imagined, job: Job, share: tuple[int, int]) -> None:
    for unit in fostore.open_units(place, shard=share):
        rows, beside = _rows(job, unit)
        unit.write(rows, **beside)
        return


def finisher(job: Job) -> Done:
    """All units are there."""
    num_rows = job.num_rows // job.part
    options = dict(job.options)
    if "num_sequences" in options:
        options["num_sequences"] //= job.part
    place, _ = planned(replace(job, num_rows=num_rows, options=options))
    place.commit_all()

    def finish() -> None:
        store = fostore.finish(place)
        assert store.is_sealed
        assert len(store) == num_rows

    done = _measured(place, finish)
    return replace(
        done,
        calls={
            kind: count if kind == "PUT" else count * job.part for kind, count in done.calls.items()
        },
        read=done.read * job.part,
        seconds=done.seconds * job.part,
    )


def _rows(job: Job, unit: Any) -> tuple[Any, dict[str, Any]]:
    """Distributions of a unit, and what goes beside them."""
    count, k = len(unit), job.options.get("k")
    if k is None:
        dtype = job.options.get("dtype", "float32")
        return np.full((count, job.num_classes), 1 / job.num_classes, dtype), {}
    values = np.full((count, k), 0.5 / k, np.float32)
    ids = np.broadcast_to(np.arange(k), (count, k))
    selected = Selected(values, ids, np.full(count, np.log(0.5), np.float32))
    if job.options.get("rows") != "tokens":
        return selected, {}
    sequences = np.arange(unit.start, unit.stop) // TOKENS
    return selected, {"sequences": sequences, "tokens": np.zeros(count, np.int64)}


def _measured(place: Imagined, function: Any) -> Done:
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the highest memory so far is that of now
    before, begin = _memory("VmRSS"), time.perf_counter()
    function()
    seconds = time.perf_counter() - begin
    sent, got = place.bytes["PUT"], place.bytes["GET"]
    return Done(dict(place.calls), got, sent, _memory("VmHWM") - before, seconds)


def _memory(name: str) -> float:
    """MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) * 1024 / 1e6


def alone(function: Any, job: Job) -> Any:
    """In a process of its own, so that memory is counted from nothing."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, (job,))


# ---------------------------------------------------------------- what is said


def line(job: Job, network: Network) -> list[str]:
    units, unit_rows, row_bytes, columns = layout(job)
    share = -(-units // job.workers)
    one, end = alone(worker, job), alone(finisher, job)
    begin = one.calls.get("HEAD", 0) + one.calls.get("LIST", 0)
    puts = one.calls["PUT"]
    objects = units * (columns + 1) + columns + 2
    written = units * one.written
    return [
        job.name,
        f"{units:,} of {unit_rows:,} rows, {unit_rows * row_bytes / 2**20:.1f} MiB",
        f"{objects:,} + {units:,} records",
        f"{written / 1e9:,.1f} GB",
        f"{share:,} units each: {begin:,} to begin, {share * puts:,} PUT ({puts} a unit)",
        f"{one.grown:.0f} MB",
        ", ".join(f"{end.calls[kind]:,} {kind}" for kind in ("LIST", "GET", "PUT", "DELETE") if kind in end.calls),
        f"{end.read / 1e9:,.2f} GB",
        f"{end.grown:.0f} MB",
        f"{end.seconds:,.0f} s + {network.seconds(end):,.0f} s of network"
        + (f" (of 1/{job.part}, times that)" if job.part > 1 else ""),
    ]  # fmt: skip


TITLES = [
    "", "units", "objects", "bytes", "requests of a worker", "memory of a worker", "requests to finish",
    "read to finish", "memory to finish", "time to finish",
]  # fmt: skip


def main() -> None:
    options = _bench.parser(str(__doc__).splitlines()[0], 1)
    options.add_argument("num_rows", nargs="?", type=float, help="rows, such as 1e12")
    options.add_argument("num_classes", nargs="?", type=int)
    options.add_argument("--encoding")
    options.add_argument("--k", type=int)
    options.add_argument("--dtype", default="float32")
    options.add_argument("--rows", choices=["samples", "tokens"])
    options.add_argument("--members", dest="num_members", type=int)
    options.add_argument("--unit-rows", type=int)
    options.add_argument("--workers", type=int, default=64)
    options.add_argument("--request-ms", type=float, default=30)
    options.add_argument("--list-ms", type=float, default=100)
    options.add_argument("--mbps", type=float, default=500)
    given = _bench.parse(options)
    network = Network(given.request_ms, given.list_ms, given.mbps)
    jobs = JOBS
    if given.quick:
        jobs = tuple(replace(job, num_rows=job.num_rows // 10_000, part=1) for job in JOBS)
    if given.num_rows is not None:
        names = ("encoding", "k", "dtype", "rows", "num_members", "unit_rows")
        chosen = {name: getattr(given, name) for name in names if getattr(given, name) is not None}
        # The columns are read where an encoding says what it lost, or where tokens have sequences.
        part = max(int(given.num_rows) // _READ_ROWS, 1) if given.encoding or given.rows else 1
        jobs = (
            Job("asked for", int(given.num_rows), given.num_classes, chosen, given.workers, part),
        )
    rows = []
    for job in jobs:
        try:
            rows.append(line(job, network))
        except FostoreError as error:
            options.error(str(error))
        print(*rows[-1], sep="; ", flush=True)
    table = _bench.table(["", *(row[0] for row in rows)], [
        [title, *(row[at] for row in rows)] for at, title in enumerate(TITLES) if title
    ])  # fmt: skip
    parts = [
        _bench.machine(given.dir, ["numpy", "blake3"]),
        f"{jobs[0].workers} workers. Requests, bytes, memory and seconds are of the code that does it: a worker writes "
        "one unit, and the store is finished, on a storage that makes up the units nobody wrote. Memory is what a "
        f"process grew by. On paper is the network: {network.request_ms:.0f} ms a request, {network.at_once} at once, "
        f"{network.list_ms:.0f} ms a page of a list of 1,000 names, one after another, {network.mbps:.0f} MB/s.",
        table,
    ]
    _bench.report("plan", parts, record=not given.quick and given.num_rows is None)


if __name__ == "__main__":
    main()
