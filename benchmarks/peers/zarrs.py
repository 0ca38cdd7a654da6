"""zarr-python: uncompressed, in the chunks that suit it best, and over the files of our own store."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from peers import ours
from peers.peer import Gather, Peer

_CHUNK_BYTES = 1 << 20  # the fastest of 8 KiB to 32 MiB, sharded or not


def write(path: Path, rows: np.ndarray) -> None:
    """Uncompressed chunks of whole rows, one file each."""
    import zarr

    chunk_rows = min(max(_CHUNK_BYTES // rows[0].nbytes, 1), len(rows))
    array = zarr.create_array(
        path,
        shape=rows.shape,
        dtype=rows.dtype,
        chunks=(chunk_rows, rows.shape[1]),
        compressors=None,
    )
    array[:] = rows


def open_rows(path: Path) -> Gather:
    """One orthogonal selection a batch."""
    import zarr

    array = zarr.open_array(path, mode="r")

    def gather(wanted: np.ndarray) -> np.ndarray:
        return np.asarray(array.oindex[wanted])

    return gather


def open_ours(path: Path) -> Gather:
    """The same selection over the sharded files that fostore wrote."""
    return open_rows(ours.place(path, ".zarr") / "probs")


UNCOMPRESSED = Peer(
    "zarr-python",
    "uncompressed chunks of 1 MiB, oindex",
    "zarr",
    "zarr",
    write,
    open_rows,
    fresh="""
import zarr
rows = zarr.open_array(path, mode="r")[wanted.start:wanted.stop:wanted.step]
""",
)
OURS = Peer(
    "zarr-python, fostore's files",
    "shards of 32 MiB with chunks of 256 KiB, oindex",
    "zarr",
    "zarr",
    ours.ZARR.write,
    open_ours,
)
