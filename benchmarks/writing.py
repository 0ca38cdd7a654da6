"""How fast a store takes rows until they are durable, as a share of a flat file's speed.

The flat file is the limit: pwrite of every batch, fdatasync each second and at the end, nothing
checked. The stores check every row, hash it, commit each second and end sealed, digest included.
"""

from __future__ import annotations

import argparse
import cProfile
import inspect
import os
import pstats
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import _bench
import numpy as np

import fostore
from fostore import disk
from fostore.schema import geometry

COMMIT_SECONDS = 1.0
RAM_DISK = Path("/dev/shm")
_POOL_BYTES = 8 << 20


@dataclass(frozen=True, slots=True)
class Work:
    """The rows of a run: batch after batch from a pool of distributions that repeats."""

    name: str
    pool: np.ndarray
    num_rows: int
    batch_rows: int
    goal: float

    @property
    def megabytes(self) -> str:
        return f"{self.num_rows * self.row_bytes / 1e6:,.0f} MB"

    @classmethod
    def of(
        cls, name: str, shape: tuple[int, int], dtype: str, batch_rows: int, goal: float
    ) -> Work:
        """Random rows; `shape` is (rows, classes), rows a multiple of the batch."""
        num_rows, num_classes = shape
        row_bytes = num_classes * np.dtype(dtype).itemsize
        batches = max(_POOL_BYTES // (row_bytes * batch_rows), 1)
        logits = np.random.default_rng(0).normal(size=(batches * batch_rows, num_classes))
        weights = np.exp(3 * logits)
        pool = (weights / weights.sum(axis=1, keepdims=True)).astype(dtype)
        return cls(name, pool, num_rows // batch_rows * batch_rows, batch_rows, goal)

    @property
    def num_classes(self) -> int:
        """Classes of a row."""
        return int(self.pool.shape[1])

    @property
    def row_bytes(self) -> int:
        """Bytes of a row."""
        return self.num_classes * self.pool.itemsize

    def batches(self) -> Iterator[tuple[int, np.ndarray]]:
        """`(start, rows)` of every batch."""
        step = self.batch_rows
        parts = [self.pool[i : i + step] for i in range(0, len(self.pool), step)]
        for number, start in enumerate(range(0, self.num_rows, step)):
            yield start, parts[number % len(parts)]

    def assert_rows(self, rows: Any, what: str) -> None:
        """Every row lies where it belongs."""
        assert rows.shape[0] == self.num_rows, f"{what}: {rows.shape[0]} of {self.num_rows} rows"
        step = len(self.pool)
        for start in range(0, self.num_rows, step):
            there = np.asarray(rows[start : start + step])
            assert np.array_equal(there, self.pool[: len(there)]), f"{what}: wrong rows at {start}"


# ---------------------------------------------------------------- what is compared


def flat_file(path: Path, work: Work) -> float:
    """The limit: one file, pwrite and fdatasync."""
    begin = last = time.perf_counter()
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    for start, rows in work.batches():
        done = os.pwrite(fd, rows.data, start * work.row_bytes)
        assert done == rows.nbytes
        if time.perf_counter() - last >= COMMIT_SECONDS:
            os.fdatasync(fd)
            last = time.perf_counter()
    os.fdatasync(fd)
    seconds = time.perf_counter() - begin
    os.close(fd)
    work.assert_rows(
        np.memmap(path, work.pool.dtype, "r", shape=(work.num_rows, work.num_classes)), "flat"
    )
    return seconds


def write_store(path: Path, work: Work) -> None:
    """A whole store, sealed and closed."""
    with fostore.create(
        path,
        num_samples=work.num_rows,
        num_classes=work.num_classes,
        dtype=work.pool.dtype.name,
        commit_seconds=COMMIT_SECONDS,
    ) as writer:
        for _, rows in work.batches():
            writer.append(rows)


def store(path: Path, work: Work, digests: set[str]) -> float:
    """Ours, timed from create to close."""
    begin = time.perf_counter()
    write_store(path, work)
    seconds = time.perf_counter() - begin
    with fostore.open(path) as opened:
        assert opened.is_sealed
        work.assert_rows(opened.array, path.suffix)
        digests.add(opened.digest())
    assert len(digests) == 1, "the digest depends on more than the rows"
    return seconds


def gathered(work: Work, unit_rows: int) -> Iterator[tuple[int, np.ndarray]]:
    """Batches collected to whole units in memory: without it a sharded array is rewritten each time."""
    buffer = np.empty((unit_rows, work.num_classes), work.pool.dtype)
    count = 0
    for start, rows in work.batches():
        while len(rows):
            part = rows[: unit_rows - count]
            buffer[count : count + len(part)] = part
            count += len(part)
            start, rows = start + len(part), rows[len(part) :]
            if count == unit_rows or start == work.num_rows:
                yield start - count, buffer[:count]
                count = 0


def zarr_python(path: Path, work: Work, shape: tuple[int, int]) -> float:
    """zarr-python, the same shards and inner chunks; it never syncs, so each shard is synced here."""
    import zarr

    unit_rows, inner_rows = shape
    begin = time.perf_counter()
    array = zarr.create_array(
        path,
        shape=(work.num_rows, work.num_classes),
        chunks=(inner_rows, work.num_classes),
        shards=(unit_rows, work.num_classes),
        dtype=work.pool.dtype,
        compressors=None,
        filters=None,
        fill_value=float("nan"),
    )
    for start, rows in gathered(work, unit_rows):
        array[start : start + len(rows)] = rows
        sync(path / "c" / str(start // unit_rows) / "0")
    sync(path / "zarr.json")
    seconds = time.perf_counter() - begin
    work.assert_rows(zarr.open_array(path, mode="r"), "zarr-python")
    return seconds


def tensorstore(path: Path, work: Work, shape: tuple[int, int]) -> float:
    """tensorstore, the same shards and inner chunks; it syncs each shard itself."""
    import tensorstore as ts

    unit_rows, inner_rows = shape
    bytes_codec = {"name": "bytes", "configuration": {"endian": "little"}}
    sharding = {
        "chunk_shape": [inner_rows, work.num_classes],
        "codecs": [bytes_codec],
        "index_codecs": [bytes_codec, {"name": "crc32c"}],
    }
    grid = {"chunk_shape": [unit_rows, work.num_classes]}
    begin = time.perf_counter()
    array = ts.open(
        {
            "driver": "zarr3",
            "kvstore": {"driver": "file", "path": str(path)},
            "metadata": {
                "shape": [work.num_rows, work.num_classes],
                "chunk_grid": {"name": "regular", "configuration": grid},
                "data_type": work.pool.dtype.name,
                "codecs": [{"name": "sharding_indexed", "configuration": sharding}],
                "fill_value": "NaN",
            },
        },
        create=True,
        open=True,
    ).result()
    for start, rows in gathered(work, unit_rows):
        array[start : start + len(rows)].write(rows).result()
    seconds = time.perf_counter() - begin
    work.assert_rows(array.read().result(), "tensorstore")
    return seconds


def h5py_contiguous(path: Path, work: Work) -> float:
    """h5py, one contiguous dataset, flushed and synced each second; a kill may lose the file."""
    import h5py

    begin = last = time.perf_counter()
    with h5py.File(path, "w") as file:
        data = file.create_dataset("probs", (work.num_rows, work.num_classes), work.pool.dtype)
        for start, rows in work.batches():
            data[start : start + len(rows)] = rows
            if time.perf_counter() - last >= COMMIT_SECONDS:
                file.flush()
                sync(path)
                last = time.perf_counter()
    sync(path)
    seconds = time.perf_counter() - begin
    with h5py.File(path, "r") as file:
        work.assert_rows(file["probs"], "h5py")
    return seconds


def sync(path: Path) -> None:
    """Make a file that another library wrote durable."""
    fd = os.open(path, os.O_RDWR)
    os.fdatasync(fd)
    os.close(fd)


# ---------------------------------------------------------------- the run


def layout(folder: Path, work: Work) -> tuple[int, int]:
    """The unit and the inner chunk, in rows, that fostore chooses for this work."""
    with fostore.create(
        folder / "layout.zarr",
        num_samples=work.num_rows,
        num_classes=work.num_classes,
        dtype=work.pool.dtype.name,
    ) as writer:
        unit_rows = writer.header.unit_rows
        writer.close()
    _bench.discard(folder / "layout.zarr")
    return unit_rows, geometry.inner_rows(work.row_bytes, unit_rows)


def fresh(path: Path, run: Callable[[Path], float]) -> float:
    """One run on a clean path, with nothing dirty left by the one before."""
    os.sync()
    try:
        return run(path)
    finally:
        _bench.discard(path)


def compare(
    folder: Path, work: Work, rounds: int, *, peers: bool = False, goal: bool = False
) -> str:
    """The table of one workload on one file system, with other libraries or against the goal."""
    digests: set[str] = set()
    cases: dict[str, tuple[str, Callable[[Path], float]]] = {
        "flat file": ("flat.bin", partial(flat_file, work=work)),
        "fostore Zarr": ("ours.zarr", partial(store, work=work, digests=digests)),
        "fostore HDF5": ("ours.h5", partial(store, work=work, digests=digests)),
    }
    if peers:
        shape = layout(folder, work)
        cases |= {
            "h5py, contiguous": ("peer.h5", partial(h5py_contiguous, work=work)),
            "tensorstore, whole shards": ("ts.zarr", partial(tensorstore, work=work, shape=shape)),
            "zarr-python, whole shards": ("zp.zarr", partial(zarr_python, work=work, shape=shape)),
        }
    times = _bench.interleave(
        {name: partial(fresh, folder / file, run) for name, (file, run) in cases.items()}, rounds
    )
    lines = []
    for name, seconds in times.items():
        middle = _bench.Spread.of(seconds).median
        share = _bench.ratio(times["flat file"], seconds)
        ours = name.startswith("fostore") and goal
        lines.append(
            [
                name,
                share.text(),
                f"{work.num_rows / middle / 1e6:.2f}",
                f"{work.num_rows * work.row_bytes / middle / 1e6:,.0f}",
                f"{work.goal} or more" if ours else "",
                _bench.verdict(share.median >= work.goal) if ours else "",
            ]
        )
    return _bench.table(
        ["what", "speed, of the flat file's", "M rows/s", "MB/s", "goal", ""], lines
    )


def profile(folder: Path, work: Work) -> None:
    """Where the time of our own code goes: by function, then by system call and thread."""
    for suffix in (".zarr", ".h5"):
        path = folder / f"profile{suffix}"
        write_store(path, work)  # modules load here
        _bench.discard(path)
        profiler = cProfile.Profile()
        profiler.runcall(write_store, path, work)
        print(f"\n{work.name}, {suffix}, {-(-work.num_rows // work.batch_rows)} batches")
        pstats.Stats(profiler).sort_stats("tottime").print_stats(18)
        _bench.discard(path)
        with timed_disk() as calls:
            write_store(path, work)
        _bench.discard(path)
        lines = [
            [name, thread, str(len(times)), f"{sum(times) * 1e3:.1f}", f"{max(times) * 1e3:.2f}"]
            for (name, thread), times in sorted(calls.items(), key=lambda item: -sum(item[1]))
        ]
        print(_bench.table(["call of fostore.disk", "thread", "calls", "ms", "longest, ms"], lines))


@contextmanager
def timed_disk() -> Iterator[dict[tuple[str, str], list[float]]]:
    """Seconds of every call that changes the disk, by name and thread, while the block runs."""
    calls: dict[tuple[str, str], list[float]] = {}
    originals = {
        name: value
        for name, value in vars(disk).items()
        if inspect.isfunction(value) and value.__module__ == disk.__name__
    }

    def timed(name: str, *arguments: Any, **options: Any) -> Any:
        begin = time.perf_counter()
        try:
            return originals[name](*arguments, **options)
        finally:
            key = name, threading.current_thread().name.split("_")[0]
            calls.setdefault(key, []).append(time.perf_counter() - begin)

    for name in originals:
        setattr(disk, name, partial(timed, name))
    try:
        yield calls
    finally:
        for name, original in originals.items():
            setattr(disk, name, original)


def main(arguments: argparse.Namespace) -> None:
    scale = 100 if arguments.quick else 1
    works = [
        Work.of(
            "1,000 classes, float16, batches of 256",
            (1_024_000 // scale, 1000),
            "float16",
            256,
            0.9,
        ),
        Work.of(
            "10 classes, float32, batches of 512", (51_200_000 // scale, 10), "float32", 512, 0.85
        ),
    ]
    short = [replace(work, num_rows=work.num_rows // 5) for work in works]
    has_ram_disk = RAM_DISK.is_dir() and os.access(RAM_DISK, os.W_OK)
    parts = []
    with _bench.scratch(arguments.dir) as folder:
        if arguments.profile:
            for work in works:
                profile(folder, work)
            return
        parts.append(
            _bench.machine(folder, ["numpy", "zarr", "h5py", "tensorstore", "blake3", "crc32c"])
        )
        here = _bench.file_system(folder)
        for work in works:
            parts.append(
                f"**{work.name}**, {work.megabytes} a run, several sync intervals long, "
                f"{arguments.rounds} rounds, on {here}, durable:"
            )
            parts.append(compare(folder, work, arguments.rounds, goal=True))
        for work in short:
            parts.append(
                f"**{work.name}**, {work.megabytes} a run, which ends before the first second does, so "
                f"that each side syncs once, at the end; on {here}, durable, no goal:"
            )
            parts.append(compare(folder, work, arguments.rounds, peers=True))
    if has_ram_disk and not arguments.disk_only:
        with _bench.scratch(RAM_DISK) as folder:
            for work in short:
                parts.append(
                    f"**{work.name}**, {work.megabytes} a run on a RAM disk "
                    f"({_bench.file_system(folder)}), where syncing costs nothing: the software's own "
                    "cost, no goal:"
                )
                parts.append(compare(folder, work, arguments.rounds))
    _bench.report("writing", parts, record=not arguments.quick)


if __name__ == "__main__":
    options = _bench.parser(__doc__, rounds=5)
    options.add_argument(
        "--profile", action="store_true", help="cProfile of our side, nothing else"
    )
    options.add_argument("--disk-only", action="store_true", help="leave the RAM disk out")
    main(_bench.parse(options))
