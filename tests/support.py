"""What several test files share: rows to write, and readers that know nothing of fostore."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fostore.schema import digest

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
