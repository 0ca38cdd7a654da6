"""What several test files share: rows to write, and readers that know nothing of fostore."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from fostore.schema import digest, geometry
from fostore.schema.header import Header
from fostore.schema.row import Schema

SUFFIXES = (".zarr", ".h5")


def probs(num_samples: int, num_classes: int = 3, *, seed: int = 0, start: int = 0) -> np.ndarray:
    """Float32 distributions (num_samples, num_classes) of the rows from `start` on: a function of row and seed."""
    rows = np.arange(start, start + num_samples, dtype=np.uint64)[:, None]
    classes = np.arange(num_classes, dtype=np.uint64)[None, :]
    mixed = (rows * 1_000_003 + classes * 7919 + np.uint64(seed) * 104_729 + 12_345) % 9973
    weights = (mixed + 1).astype(np.float64)
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)


def plain_rows(path: Path, name: str = "probs") -> np.ndarray:
    """What plain zarr-python or h5py sees."""
    if path.suffix == ".zarr":
        import zarr

        group: Any = zarr.open_group(path, mode="r")
        return np.asarray(group[name][:])
    import h5py

    with h5py.File(path, "r", locking=False) as file:
        return np.asarray(file[name][:])


def data_files(path: Path) -> dict[str, bytes]:
    """The bytes of every file of rows of a store, by relative name; headers (times, ids) left out."""
    if path.suffix == ".zarr":
        return {
            str(file.relative_to(path)): file.read_bytes()
            for file in sorted(path.rglob("*"))
            if file.is_file() and file.name != "zarr.json"
        }
    import h5py

    with h5py.File(path, "r") as file:
        return {
            name: file[name][:].tobytes()
            for name in sorted(file)
            if name not in ("header", "progress")
        }


def row_crc(columns: Sequence[np.ndarray]) -> int:
    """`Run.crc` of rows that are given as one array a column, in schema order."""
    return digest.combine_crcs([digest.crc(rows) for rows in columns])


def saved_as(
    path: Path, rows: np.ndarray, schema: Schema, meta: dict[str, Any] | None = None
) -> None:
    """A JSON document of all rows that a generator would give for this schema, of any kind."""
    from fostore.encodings import encoding_of
    from fostore.files.json import FORMAT

    sizes = (geometry.unit_rows(schema.row_bytes, len(rows)), geometry.block_rows(schema.row_bytes))
    header = Header(schema, len(rows), *sizes, meta=meta or {})
    FORMAT.write(path, header, iter([encoding_of(schema).encode(rows, schema, 0)]), 0)


@contextmanager
def collected_after(allocations: int) -> Iterator[None]:
    """A block in which the collector runs once so many more objects were made that it counts."""
    before, was_enabled = gc.get_threshold(), gc.isenabled()
    gc.enable()
    gc.set_threshold(gc.get_count()[0] + allocations, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)
        if not was_enabled:
            gc.disable()


@contextmanager
def uncollected() -> Iterator[None]:
    """A block in which cycles wait, so that the next collection finds them young."""
    gc.freeze()
    gc.collect()  # and with it the objects that Python keeps for use again, which no collection sees
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.unfreeze()
