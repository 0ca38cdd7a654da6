"""The memory of a shuffled epoch over a store that is several times larger than the memory allowed.

A child process in a memory cgroup of its own (Linux, as root; without one, the figures are told
without a limit) takes every row of the store once, in batches, and checks each. It must end, and
its private memory must not grow. Then two processes at once read one store without a limit: what
they share and what is their own.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import _bench
import numpy as np
from cold import Rows, drop, make

import fostore
from fostore.loading.order import Order

NUM_CLASSES, DTYPE = 1000, "float16"
BATCH = 256
GOAL_MB = 10
WORKERS = 2
_CGROUPS = (
    # where groups are made, the file that holds the limit, the one that takes a process, most ever used
    ("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "tasks", "memory.max_usage_in_bytes"),
    ("/sys/fs/cgroup", "memory.max", "cgroup.procs", "memory.peak"),
)


@contextlib.contextmanager
def limited(limit: int) -> Iterator[tuple[Path, str, str] | None]:
    """A memory cgroup of `limit` bytes: its folder, the file for processes, the file of its peak; None without."""
    for parent, limiting, joining, peaking in _CGROUPS:
        group = Path(parent) / f"fostore-bench-{os.getpid()}"
        try:
            group.mkdir()
        except OSError:
            continue
        try:
            (group / limiting).write_text(str(limit))
        except OSError:
            group.rmdir()
            continue
        try:
            yield group, joining, peaking
        finally:
            for _ in range(100):  # the last process may still be on its way out
                try:
                    group.rmdir()
                    break
                except OSError:
                    time.sleep(0.05)
        return
    yield None


def memory() -> dict[str, int]:
    """Kilobytes by name: RssAnon and RssFile of this process, and the Pss of its maps."""
    found = {}
    for name in ("status", "smaps_rollup"):
        for line in Path(f"/proc/self/{name}").read_text().splitlines():
            key, _, value = line.partition(":")
            if value.endswith(" kB"):
                found[key] = int(value[:-3])
    return {name: found[name] for name in ("RssAnon", "RssFile", "Pss")}


# ---------------------------------------------------------------- in the child


def child(path: Path, expected: Path, rank: int, num_ranks: int, ahead: bool) -> dict[str, float]:
    """One shuffled epoch (this rank's part), every row checked; how memory grew since the first batch."""
    pool = np.load(expected)
    store = fostore.open(path)
    data = Rows(path, 0, len(store), pool)
    order = Order(len(store), BATCH, shuffle=True, seed=1, rank=rank, num_ranks=num_ranks)
    batches = order.batches(0)
    seen = np.zeros(len(store), bool)
    out = np.empty((BATCH, NUM_CLASSES), DTYPE)
    rows = next(batches)
    before, private = {}, 0
    blocks = resource.getrusage(resource.RUSAGE_SELF).ru_inblock
    number, begin = 0, time.perf_counter()
    while rows is not None:
        following = next(batches, None)
        if ahead and following is not None:
            store.announce(following)
        batch = store.take(rows, out[: len(rows)])
        assert (batch == data.expected(rows)).all()
        seen[rows] = True
        rows, number = following, number + 1
        if number == 10:
            before = memory()
        elif number % 200 == 0:
            private = max(private, memory()["RssAnon"])
    seconds = time.perf_counter() - begin
    blocks = resource.getrusage(resource.RUSAGE_SELF).ru_inblock - blocks
    assert num_ranks > 1 or seen.all()
    after = memory()
    if num_ranks > 1:  # until the other one is there as well, so that both share
        print("ready", flush=True)
        sys.stdin.readline()
        after = memory()
        print(json.dumps(after), flush=True)
        sys.stdin.readline()  # nobody leaves before all have looked
        return {}
    return {
        "private": (max(private, after["RssAnon"]) - before["RssAnon"]) / 1e3,
        "file": after["RssFile"] / 1e3,
        "seconds": seconds,
        "read": blocks * 512 / 1e9,
    }


# ---------------------------------------------------------------- in the parent


def start(path: Path, expected: Path, *arguments: object, join: Path | None) -> subprocess.Popen:
    """A child, in the cgroup whose file for processes is `join`."""
    words = [sys.executable, __file__, "--child", str(path), str(expected), *map(str, arguments)]
    if join is not None:
        words = ["sh", "-c", 'echo $$ > "$0" && exec "$@"', str(join), *words]
    pipe = subprocess.PIPE
    return subprocess.Popen(words, stdin=pipe, stdout=pipe, text=True)


def epoch(path: Path, expected: Path, limit: int | None, ahead: bool) -> tuple[dict, float | None]:
    """What a child tells of an epoch, and the most that its group used (bytes)."""
    with contextlib.ExitStack() as stack:
        group = stack.enter_context(limited(limit)) if limit is not None else None
        drop(path)
        join = group[0] / group[1] if group else None
        process = start(path, expected, 0, 1, int(ahead), join=join)
        told, _ = process.communicate()
        if process.returncode:
            raise SystemExit(f"the epoch ended with {process.returncode}")
        peak = None
        if group and (group[0] / group[2]).exists():
            peak = float((group[0] / group[2]).read_text())
        return json.loads(told.splitlines()[-1]), peak


def sharing(path: Path, expected: Path) -> list[dict[str, int]]:
    """The memory of each of several processes that read one store at the same time."""
    processes = [start(path, expected, i, WORKERS, 0, join=None) for i in range(WORKERS)]
    answers = []
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        assert process.stdout is not None
        print(file=process.stdin, flush=True)
        answers.append(json.loads(process.stdout.readline()))
    for process in processes:
        process.communicate("\n")
    return answers


def main(arguments: argparse.Namespace) -> None:
    num_bytes = (200 << 20) if arguments.quick else (1500 << 20)
    limit = (100 << 20) if arguments.quick else (256 << 20)
    with _bench.scratch(arguments.dir) as folder:
        about = _bench.machine(folder, ["numpy", "h5py"])
        data = make(folder, NUM_CLASSES, DTYPE, num_bytes)
        expected = folder / "pool.npy"
        np.save(expected, data.pool)
        with limited(limit) as group:
            can_limit = group is not None
        lines = []
        for ahead in (False, True):
            kept: dict[str, list[float]] = {}
            for _ in range(arguments.rounds):
                told, peak = epoch(data.path, expected, limit if can_limit else None, ahead)
                for key, value in told.items():
                    kept.setdefault(key, []).append(value)
                kept.setdefault("peak", []).append((peak or float("nan")) / 1e6)
            middle = {key: _bench.Spread.of(values).median for key, values in kept.items()}
            private = max(kept["private"])
            lines.append(
                [
                    "take, the next batch announced" if ahead else "take",
                    f"{data.count / middle['seconds']:,.0f}",
                    f"{middle['read']:.2f}",
                    f"{middle['peak']:.0f}",
                    f"{middle['file']:.0f}",
                    f"{private:.1f}",
                    f"{GOAL_MB} at most",
                    _bench.verdict(private <= GOAL_MB),
                ]
            )
        shared = sharing(data.path, expected)
    allowed = (
        f"{limit >> 20} MiB allowed by a memory cgroup, page cache included"
        if can_limit
        else "no limit: no memory cgroup can be made here"
    )
    headers = ["what", "rows/s", "GB read", "MB at most", "file pages, MB", "private growth, MB"]
    parts = [
        about,
        f"A shuffled epoch over {num_bytes >> 20:,} MiB ({data.count:,} x {NUM_CLASSES:,} {DTYPE}), batches of "
        f"{BATCH}, every row checked; {allowed}; nothing in memory at the start; {arguments.rounds} rounds:",
        _bench.table([*headers, "goal", ""], lines),
        f"{WORKERS} processes, each half of the same epoch, no limit, both still there when they were looked at:",
        _bench.table(
            ["process", "RssFile, MB", "Pss, MB", "RssAnon, MB"],
            [
                [str(i), *(f"{told[key] / 1e3:.0f}" for key in ("RssFile", "Pss", "RssAnon"))]
                for i, told in enumerate(shared)
            ],
        ),
    ]
    _bench.report("epoch memory", parts, record=not arguments.quick)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        path, expected, *numbers = sys.argv[2:]
        rank, num_ranks, ahead = map(int, numbers)
        result = child(Path(path), Path(expected), rank, num_ranks, bool(ahead))
        print(json.dumps(result))
    else:
        main(_bench.parse(_bench.parser(__doc__, rounds=3)))
