"""tensorstore: Zarr v3, the sharded layout of our own stores."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from peers.peer import Gather, Peer

_CHUNK_BYTES, _SHARD_CHUNKS = 1 << 18, 1 << 7  # smaller chunks cost up to three times as much


def write(path: Path, rows: np.ndarray) -> None:
    """Uncompressed inner chunks of whole rows in shards of about 32 MB."""
    import tensorstore

    chunk_rows = max(_CHUNK_BYTES // rows[0].nbytes, 1)
    shard_rows = min(chunk_rows * _SHARD_CHUNKS, -(-len(rows) // chunk_rows) * chunk_rows)
    array = tensorstore.open(
        {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(path)}},
        create=True,
        dtype=rows.dtype.name,
        shape=rows.shape,
        chunk_layout=tensorstore.ChunkLayout(
            write_chunk_shape=(shard_rows, rows.shape[1]),
            read_chunk_shape=(chunk_rows, rows.shape[1]),
        ),
    ).result()
    array[:].write(rows).result()


def open_rows(path: Path) -> Gather:
    """A cache that holds everything, never checked against the files again; one outer index a batch."""
    import tensorstore

    array = tensorstore.open(
        {
            "driver": "zarr3",
            "kvstore": {"driver": "file", "path": str(path)},
            "recheck_cached_data": False,
            "recheck_cached_metadata": False,
        },
        open=True,
        context=tensorstore.Context({"cache_pool": {"total_bytes_limit": 1 << 30}}),
    ).result()

    def gather(wanted: np.ndarray) -> np.ndarray:
        found: np.ndarray = array.oindex[wanted].read().result()
        return found

    return gather


ZARR3 = Peer(
    "tensorstore, zarr3",
    "all chunks in its cache, oindex",
    "tensorstore",
    "tensorstore",
    write,
    open_rows,
)
