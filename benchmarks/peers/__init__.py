"""The libraries that fostore is measured against: one adapter a file, all of them in PEERS."""

from __future__ import annotations

from peers import (
    array_records,
    flat,
    hdf5,
    huggingface,
    lances,
    litdatas,
    mosaic,
    ours,
    tensordicts,
    tensorstores,
    zarrs,
)
from peers.peer import Peer

__all__ = ["FLAT", "PEERS", "Peer"]

FLAT = flat.MEMMAP
"""The yardstick: what every ratio is taken to."""

PEERS: tuple[Peer, ...] = (
    FLAT,
    ours.ZARR,
    ours.HDF5,
    tensordicts.MEMMAP,
    tensorstores.ZARR3,
    huggingface.PYARROW,
    huggingface.ARROW,
    huggingface.NUMPY,
    hdf5.CONTIGUOUS,
    lances.TAKE,
    array_records.READER,
    mosaic.LOCAL,
    litdatas.BLOCKS,
    zarrs.UNCOMPRESSED,
    zarrs.OURS,
)
"""Every library, roughly from fast to slow."""
