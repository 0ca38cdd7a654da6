"""fostore's own two formats."""

from __future__ import annotations

from pathlib import Path

import numpy as np

import fostore
from peers.peer import Gather, Peer

FRESH = """
import fostore
store = fostore.open(path + {suffix!r})
rows = store.take(wanted)
"""


def place(path: Path, suffix: str) -> Path:
    """Where `write` puts the store."""
    return path.with_suffix(suffix)


def peer(name: str, suffix: str) -> Peer:
    """The format that belongs to `suffix`."""

    def write(path: Path, rows: np.ndarray) -> None:
        with fostore.create(
            place(path, suffix),
            num_samples=len(rows),
            num_classes=rows.shape[1],
            dtype=rows.dtype.name,
        ) as writer:
            for start in range(0, len(rows), 1 << 16):
                writer.append(rows[start : start + (1 << 16)])

    def open_rows(path: Path) -> Gather:
        return fostore.open(place(path, suffix)).take

    fresh = FRESH.format(suffix=suffix)
    return Peer(name, "Store.take", "fostore", "fostore", write, open_rows, fresh=fresh)


ZARR = peer("fostore Zarr", ".zarr")
HDF5 = peer("fostore HDF5", ".h5")
