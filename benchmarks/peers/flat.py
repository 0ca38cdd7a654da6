"""A flat file of rows under np.memmap: the yardstick, which knows nothing but its bytes."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from peers.peer import Gather, Peer


def write(path: Path, rows: np.ndarray) -> None:
    """The rows and, beside them, their shape."""
    np.save(path.with_suffix(".npy"), rows)


def open_rows(path: Path) -> Gather:
    """One np.take a batch, without the overhead that np.memmap adds to every result as a subclass."""
    rows = np.asarray(np.load(path.with_suffix(".npy"), mmap_mode="r"))

    def gather(wanted: np.ndarray) -> np.ndarray:
        return np.take(rows, wanted, axis=0)

    return gather


MEMMAP = Peer(
    "np.memmap of a flat file",
    "np.take",
    "numpy",
    "numpy",
    write,
    open_rows,
    fresh="""
import numpy
stored = numpy.load(path + ".npy", mmap_mode="r")
rows = numpy.take(stored, numpy.arange(wanted.start, wanted.stop, wanted.step), axis=0)
""",
)
