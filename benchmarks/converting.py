"""How fast do stores become stores of another format, and `.npy` a store, beside a copy of the same bytes?

A conversion is checked in full: what was written is read back and its digest is that of the source. It
is durable as well, which `cp` is not; so it stands beside `cp` alone and beside `cp` with a sync of the
copy. Every file system cache is warm, every disk written out before a case begins.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import _bench
import numpy as np

import fostore

NUM_CLASSES = 1000
GOAL = 0.8
BATCH = 8192


def write_sources(folder: Path, num_rows: int) -> dict[str, Path]:
    """The same rows as a Zarr store, an HDF5 store and a `.npy` file."""
    paths = {name: folder / f"source{name}" for name in (".zarr", ".h5", ".npy")}
    plain = np.lib.format.open_memmap(
        paths[".npy"], "w+", dtype=np.float32, shape=(num_rows, NUM_CLASSES)
    )
    weights = np.random.default_rng(0).random((BATCH, NUM_CLASSES), np.float32)
    rows = weights / weights.sum(axis=1, keepdims=True)
    options = {"num_samples": num_rows, "num_classes": NUM_CLASSES}
    with (
        fostore.create(paths[".zarr"], **options) as one,
        fostore.create(paths[".h5"], **options) as other,
    ):
        for start in range(0, num_rows, BATCH):
            batch = np.roll(rows, start // BATCH, axis=1)[: num_rows - start]
            plain[start : start + len(batch)] = batch
            one.append(batch)
            other.append(batch)
    plain.flush()
    return paths


# ---------------------------------------------------------------- cases


def timed(run: Callable[[Path], None], check: Callable[[Path], None], out: Path) -> float:
    """Seconds of `run`, after everything before it was written out; the result is checked and removed."""
    os.sync()
    begin = time.perf_counter()
    run(out)
    seconds = time.perf_counter() - begin
    check(out)
    _bench.discard(out)
    return seconds


def copy(source: Path, out: Path, *, durable: bool) -> None:
    """`cp -r`, and where asked for a sync of every file of the copy."""
    subprocess.run(["cp", "-r", str(source), str(out)], check=True)
    files = [out] if out.is_file() else [path for path in out.rglob("*") if path.is_file()]
    for file in files if durable else []:
        fd = os.open(file, os.O_RDONLY)
        os.fsync(fd)
        os.close(fd)


def convert(source: Path, out: Path, *, verify: str = "full") -> None:
    """What users run."""
    fostore.convert(source, out, verify=verify, progress=False)


def repack(source: Path, out: Path) -> None:
    """The HDF Group's own copier."""
    subprocess.run(["h5repack", str(source), str(out)], check=True)


def same_size(source: Path, out: Path) -> None:
    """A copy is as large as what was copied."""

    def size(path: Path) -> int:
        files = [path] if path.is_file() else path.rglob("*")
        return sum(file.stat().st_size for file in files if file.is_file())

    assert size(out) == size(source)


def same_digest(digest: str, out: Path) -> None:
    """What came out holds the rows that went in."""
    assert fostore.open(out).digest() == digest


def cases(folder: Path, paths: Mapping[str, Path]) -> dict[str, Callable[[], float]]:
    """Every case by its name; each returns its seconds."""
    digest = fostore.open(paths[".zarr"]).digest()
    assert fostore.open(paths[".h5"]).digest() == digest
    found: dict[str, Callable[[], float]] = {}
    for name, path in paths.items():
        for durable in (False, True):
            label = f"cp {name}" + (", synced" if durable else "")
            run = partial(copy, path, durable=durable)
            found[label] = partial(timed, run, partial(same_size, path), folder / f"copy{name}")
    ways = [(".zarr", ".h5"), (".h5", ".zarr"), (".zarr", ".zarr"), (".npy", ".zarr")]
    check = partial(same_digest, digest)
    for one, other in ways:
        out = folder / f"out{other}"
        found[f"{one} to {other}"] = partial(timed, partial(convert, paths[one]), check, out)
        if one != other:
            run = partial(convert, paths[one], verify="none")
            found[f"{one} to {other}, unverified"] = partial(timed, run, check, out)
    if shutil.which("h5repack"):
        run = partial(repack, paths[".h5"])
        found["h5repack"] = partial(timed, run, lambda out: None, folder / "packed.h5")
    return found


def report(found: Mapping[str, list[float]], num_bytes: int) -> str:
    """The table: rates, and how they stand to the copies of the same source."""
    rows = []
    for name, seconds in found.items():
        rate = _bench.Spread.of([num_bytes / 1e9 / s for s in seconds])
        if " to " not in name:
            rows.append([name, rate.text(), "", "", ""])
            continue
        source = name.split(" to ")[0]
        plain = _bench.ratio(found[f"cp {source}"], seconds)
        synced = _bench.ratio(found[f"cp {source}, synced"], seconds)
        goal = "" if name.endswith("unverified") else _bench.verdict(synced.median >= GOAL)
        rows.append([name, rate.text(), plain.text(), synced.text(), goal])
    headers = ["case", "GB/s", "of cp", "of cp, synced", f"goal {GOAL} of cp, synced"]
    return _bench.table(headers, rows)


def main(arguments: argparse.Namespace) -> None:
    num_rows = 16 * BATCH // 4 if arguments.quick else 32 * BATCH
    with _bench.scratch(arguments.dir) as folder:
        paths = write_sources(folder, num_rows)
        num_bytes = num_rows * NUM_CLASSES * 4
        found = _bench.interleave(cases(folder, paths), arguments.rounds)
        absent = "" if "h5repack" in found else " h5repack is not installed here."
        parts = [
            _bench.machine(folder, ["numpy", "h5py", "blake3", "crc32c"]),
            f"{num_rows:,} rows of {NUM_CLASSES} float32 ({num_bytes / 1e9:.2f} GB), "
            f"{arguments.rounds} rounds. A ratio above 1 is faster than the copy.{absent}",
            report(found, num_bytes),
        ]
    _bench.report("converting", parts, record=not arguments.quick)


if __name__ == "__main__":
    main(_bench.parse(_bench.parser(__doc__, rounds=7)))
