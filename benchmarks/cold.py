"""Batches of random rows that are not in memory, and what the machinery for that costs where they are.

All cases read one HDF5 file, whose rows lie as in a flat file, and start with none of its pages in
the page cache. The yardstick reads past the page cache: io_uring with O_DIRECT in C (uring.c), or
a pool of threads where there is no C compiler or the kernel refuses io_uring.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import resource
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import _bench
import numpy as np

import fostore

BATCH, BATCHES = 256, 20
BLOCK = 4096
THREADS = 16
POOL = 4096
COLD_GOAL, HOT_GOAL = 1.5, 1.05
WIDTHS = ((10, "float32"), (1000, "float16"))
OURS, AHEAD = "fostore take", "fostore take, the next batch announced"

Reading = Callable[[list[np.ndarray]], Iterator[np.ndarray]]
"""From the rows of every batch to the batches, one after another."""


@dataclass(frozen=True, slots=True)
class Rows:
    """A store of `count` rows, where they lie in its file, and what they are."""

    path: Path
    offset: int
    count: int
    pool: np.ndarray

    @property
    def row_bytes(self) -> int:
        return self.pool.strides[0]

    def expected(self, rows: np.ndarray) -> np.ndarray:
        """What a reader must give: row i is one of a pool of distributions."""
        return self.pool[rows * 2_654_435_761 % POOL]


def make(folder: Path, num_classes: int, dtype: str, num_bytes: int) -> Rows:
    """A sealed store of about `num_bytes`."""
    weights = np.random.default_rng(0).random((POOL, num_classes), np.float32)
    pool = (weights / weights.sum(axis=1, keepdims=True)).astype(dtype)
    count = num_bytes // pool.strides[0]
    path = folder / f"{num_classes}.h5"
    rows = Rows(path, 0, count, pool)
    step = max(1, (8 << 20) // pool.strides[0])
    with fostore.create(path, num_samples=count, num_classes=num_classes, dtype=dtype) as writer:
        for start in range(0, count, step):
            writer.append(rows.expected(np.arange(start, min(start + step, count))))
    offset = fostore.open(path).reader.segments(0)[0].offset
    return Rows(path, offset, count, pool)


def drop(path: Path) -> None:
    """Take a file that nobody maps out of the page cache."""
    fd = os.open(path, os.O_RDONLY)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)


@contextmanager
def opened(path: Path, flags: int = 0) -> Iterator[int]:
    """A descriptor for reading."""
    fd = os.open(path, os.O_RDONLY | flags)
    try:
        yield fd
    finally:
        os.close(fd)


# ---------------------------------------------------------------- readers


def by_memmap(data: Rows, batches: list[np.ndarray]) -> Iterator[np.ndarray]:
    shape = (data.count, data.pool.shape[1])
    flat = np.memmap(data.path, data.pool.dtype, "r", data.offset, shape)
    for rows in batches:
        yield np.take(flat, rows, axis=0)


def by_pread(data: Rows, batches: list[np.ndarray]) -> Iterator[np.ndarray]:
    size = data.row_bytes
    with opened(data.path) as fd:
        for rows in batches:
            out = np.empty((len(rows), size), np.uint8)
            for place, offset in zip(out, (data.offset + rows * size).tolist(), strict=True):
                os.preadv(fd, [place], offset)
            yield out.view(data.pool.dtype)


def by_threads(data: Rows, batches: list[np.ndarray]) -> Iterator[np.ndarray]:
    size = data.row_bytes
    with opened(data.path) as fd, ThreadPoolExecutor(THREADS) as pool:

        def read(part: np.ndarray, offsets: np.ndarray) -> None:
            for place, offset in zip(part, offsets.tolist(), strict=True):
                os.preadv(fd, [place], offset)

        for rows in batches:
            out = np.empty((len(rows), size), np.uint8)
            parts = np.array_split(out, THREADS)
            list(pool.map(read, parts, np.array_split(data.offset + rows * size, THREADS)))
            yield out.view(data.pool.dtype)


def by_take(data: Rows, batches: list[np.ndarray]) -> Iterator[np.ndarray]:
    with fostore.open(data.path) as store:
        for rows in batches:
            yield store.take(rows)


def by_take_ahead(data: Rows, batches: list[np.ndarray]) -> Iterator[np.ndarray]:
    with fostore.open(data.path) as store:
        for rows, following in zip(batches, [*batches[1:], None], strict=True):
            if following is not None:
                store.announce(following)
            yield store.take(rows)


def by_direct_threads(data: Rows, batches: list[np.ndarray]) -> Iterator[np.ndarray]:
    """The yardstick without io_uring: 64 threads that read whole blocks with O_DIRECT."""
    size = data.row_bytes
    slot = -(-size // BLOCK) * BLOCK + BLOCK
    with opened(data.path, os.O_DIRECT) as fd, ThreadPoolExecutor(64) as pool:
        raw = np.empty(BATCH * slot + BLOCK, np.uint8)
        skip = -raw.ctypes.data % BLOCK
        slots = raw[skip : skip + BATCH * slot].reshape(BATCH, slot)
        for rows in batches:
            out = np.empty((len(rows), size), np.uint8)

            def read(place: int, offset: int, out: np.ndarray = out) -> None:
                begin = offset // BLOCK * BLOCK
                needed = -(-(offset + size) // BLOCK) * BLOCK - begin
                os.preadv(fd, [slots[place, :needed]], begin)
                out[place] = slots[place, offset - begin : offset - begin + size]

            list(pool.map(read, range(len(rows)), (data.offset + rows * size).tolist()))
            yield out.view(data.pool.dtype)


def uring(folder: Path, slot_bytes: int) -> tuple[Any, Any] | str:
    """The library and a ring, or why there is none."""
    compiler = shutil.which("cc")
    if compiler is None:
        return "there is no C compiler"
    target = folder / "uring.so"
    source = Path(__file__).with_name("uring.c")
    built = subprocess.run(
        [compiler, "-O2", "-shared", "-fPIC", "-o", str(target), str(source)], capture_output=True
    )
    if built.returncode:
        return "uring.c does not build here"
    library: Any = ctypes.CDLL(str(target), use_errno=True)
    library.ring_open.restype = ctypes.c_void_p
    library.ring_open.argtypes = [ctypes.c_uint64]
    int64 = ctypes.c_int64
    library.ring_take.argtypes = [
        *(ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p),
        *(int64, int64, int64, ctypes.c_void_p),
    ]
    ring = library.ring_open(slot_bytes)
    if not ring:
        return f"the kernel refuses io_uring ({os.strerror(ctypes.get_errno())})"
    return library, ring


def by_uring(
    library: Any, ring: Any, data: Rows, batches: list[np.ndarray]
) -> Iterator[np.ndarray]:
    size = data.row_bytes
    with opened(data.path, os.O_DIRECT) as fd:
        for rows in batches:
            out = np.empty((len(rows), size), np.uint8)
            offsets = data.offset + rows * size
            code = library.ring_take(
                ring, fd, offsets.ctypes.data, len(rows), size, BLOCK, out.ctypes.data
            )
            assert code == 0, os.strerror(code)
            yield out.view(data.pool.dtype)


# ---------------------------------------------------------------- cold


def turn(
    read: Callable[[Rows, list[np.ndarray]], Iterator[np.ndarray]],
    data: Rows,
    random: np.random.Generator,
    megabytes: list[float],
) -> float:
    """Microseconds a batch of one case from a cold start; every row is checked."""
    batches = list(random.integers(0, data.count, (BATCHES, BATCH)))
    drop(data.path)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_inblock
    seconds, reader = 0.0, read(data, batches)
    for rows in batches:
        begin = time.perf_counter()
        batch = next(reader)
        seconds += time.perf_counter() - begin
        assert (batch == data.expected(rows)).all()
    reader.close()  # type: ignore[attr-defined]
    blocks = resource.getrusage(resource.RUSAGE_SELF).ru_inblock - before
    assert blocks, "nothing was read: the file stayed in memory"
    megabytes.append(blocks * 512 / 1e6 / BATCHES)
    return seconds / BATCHES * 1e6


def cold(folder: Path, data: Rows, rounds: int) -> list[list[str]]:
    """A line of the table for each case."""
    made = uring(folder, -(-data.row_bytes // BLOCK) * BLOCK + BLOCK)
    if isinstance(made, str):
        yardstick, direct = f"O_DIRECT, 64 threads: {made}", by_direct_threads
    else:
        yardstick, direct = "io_uring, O_DIRECT, in C", partial(by_uring, *made)
    readers = {
        yardstick: direct,
        OURS: by_take,
        AHEAD: by_take_ahead,
        f"pread, {THREADS} threads": by_threads,
        "pread, one after another": by_pread,
        "np.memmap, np.take": by_memmap,
    }
    random = np.random.default_rng(0)
    read: dict[str, list[float]] = {name: [] for name in readers}
    times = _bench.interleave(
        {name: partial(turn, read_, data, random, read[name]) for name, read_ in readers.items()},
        rounds,
    )
    lines = []
    for name, values in times.items():
        share = _bench.ratio(values, times[yardstick])
        ours = name in (OURS, AHEAD)
        lines.append(
            [
                f"{data.pool.shape[1]:,} x {data.pool.dtype}",
                name,
                f"{_bench.Spread.of(values).median:,.0f}",
                f"{_bench.Spread.of(read[name]).median:.2f}",
                "1" if name == yardstick else share.text(2),
                f"{COLD_GOAL} at most" if ours else "",
                _bench.verdict(share.median <= COLD_GOAL) if ours else "",
            ]
        )
    return lines


# ---------------------------------------------------------------- hot


def hot(data: Rows, rounds: int, *, first_touch: bool) -> list[str]:
    """The time of resident batches with the machinery, over the same views without it."""
    count = min(data.count, (64 << 20) // data.row_bytes)
    random = np.random.default_rng(1)
    batches = list(random.integers(0, count, (1000, BATCH)))
    kept: dict[bool, list[Any]] = {True: [], False: []}

    def taken(machinery: bool) -> float:
        if first_touch or not kept[machinery]:
            store = fostore.open(data.path)
            view = store.reader.column(0)
            if not machinery:
                view._paging = None  # type: ignore[attr-defined]
            kept[machinery] = [store]
        store = kept[machinery][0]
        begin = time.perf_counter()
        for rows in batches:
            store.take(rows)
        seconds = time.perf_counter() - begin
        assert (store.take(batches[0]) == data.expected(batches[0])).all()
        assert not store.reader.column(0).is_cold
        return seconds / len(batches) * 1e6

    with fostore.open(data.path) as store:
        store.take(np.arange(count))  # now it is in memory
    times = _bench.interleave(
        {name: partial(taken, name == "with") for name in ("with", "without")},
        rounds * (3 if first_touch else 10),
    )
    share = _bench.ratio(times["with"], times["without"])
    what = "pages that this process touches first" if first_touch else "touched before"
    return [
        f"{data.pool.shape[1]:,} x {data.pool.dtype}",
        f"in memory, {what}",
        f"{_bench.Spread.of(times['with']).median:.1f}",
        f"{_bench.Spread.of(times['without']).median:.1f}",
        share.text(3),
        f"{HOT_GOAL} at most",
        _bench.verdict(share.median <= HOT_GOAL),
    ]


def main(arguments: argparse.Namespace) -> None:
    num_bytes = (100 << 20) if arguments.quick else (1400 << 20)
    cold_lines, hot_lines = [], []
    with _bench.scratch(arguments.dir) as folder:
        about = _bench.machine(folder, ["numpy", "h5py"])
        for num_classes, dtype in WIDTHS:
            data = make(folder, num_classes, dtype, num_bytes)
            cold_lines += cold(folder, data, arguments.rounds)
            for first_touch in (False, True):
                hot_lines.append(hot(data, arguments.rounds, first_touch=first_touch))
            _bench.discard(data.path)
    parts = [
        about,
        f"Cold: {num_bytes >> 20:,} MiB of rows, none of them in memory when a turn begins; {BATCHES} batches "
        f"of {BATCH} random rows a turn, {arguments.rounds} rounds; what a turn read counts all that the "
        "kernel fetched, divided by its batches:",
        _bench.table(
            ["rows", "what", "us a batch", "MB read a batch", "of the yardstick", "goal", ""],
            cold_lines,
        ),
        "Hot: `take` of 256 random rows among 64 MiB, as it is, over the same without anything that "
        "looks after cold data:",
        _bench.table(["rows", "what", "us a batch", "us without", "ratio", "goal", ""], hot_lines),
    ]
    _bench.report("cold", parts, record=not arguments.quick)


if __name__ == "__main__":
    main(_bench.parse(_bench.parser(__doc__, rounds=7)))
