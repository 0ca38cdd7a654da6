"""h5py: a contiguous dataset."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from peers.peer import Gather, Peer


def write(path: Path, rows: np.ndarray) -> None:
    """Contiguous, uncompressed."""
    import h5py

    with h5py.File(path, "w", libver="latest") as file:
        file.create_dataset("rows", data=rows)


def open_rows(path: Path) -> Gather:
    """One selection of sorted rows a batch, put back in order: half the time of a read a row."""
    import h5py

    stored = h5py.File(path, "r")["rows"]

    def gather(wanted: np.ndarray) -> np.ndarray:
        ordered, places = np.unique(wanted, return_inverse=True)
        rows: np.ndarray = stored[ordered][places]
        return rows

    return gather


CONTIGUOUS = Peer(
    "h5py, contiguous",
    "one selection of the sorted rows",
    "h5py",
    "h5py",
    write,
    open_rows,
    fresh="""
import h5py
rows = h5py.File(path)["rows"][wanted.start:wanted.stop:wanted.step]
""",
)
