"""LitData: optimised chunks on this machine."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from peers.peer import INSTALL_BARE, Gather, Peer

_CHUNK_BYTES = 1 << 26


def write(path: Path, rows: np.ndarray) -> None:
    """Rows as blocks of one flat stream of numbers, which LitData maps; it is meant for tokens.

    The usual layout, a sample an item, took six times as long to read.
    """
    import torch
    from litdata.streaming.item_loader import TokensLoader
    from litdata.streaming.writer import BinaryWriter

    loader = TokensLoader(block_size=rows.shape[1])
    writer = BinaryWriter(str(path), chunk_bytes=_CHUNK_BYTES, item_loader=loader)
    for i, row in enumerate(torch.from_numpy(rows)):
        writer[i] = row
    writer.done()
    writer.merge()
    path.with_suffix(".width").write_text(str(rows.shape[1]))


def _dataset(path: Path, **options: Any) -> Any:
    from litdata import StreamingDataset
    from litdata.streaming.item_loader import TokensLoader

    width = int(path.with_suffix(".width").read_text())
    return StreamingDataset(str(path), item_loader=TokensLoader(block_size=width), **options)


def open_rows(path: Path) -> Gather:
    """A sample at a time: there is no batched read."""
    import torch

    dataset = _dataset(path)

    def gather(wanted: np.ndarray) -> np.ndarray:
        rows: np.ndarray = torch.stack([dataset[row] for row in wanted.tolist()]).numpy()
        return rows

    return gather


def stream(path: Path, batch_size: int) -> Iterable[Any]:
    """Its own loader and its own shuffle: chunks first, then within each chunk."""
    from litdata import StreamingDataLoader

    loader: Iterable[Any] = StreamingDataLoader(
        _dataset(path, shuffle=True, seed=0), batch_size=batch_size
    )
    return loader


BLOCKS = Peer(
    "LitData",
    "blocks of a flat stream",
    "litdata",
    "litdata",
    write,
    open_rows,
    stream=stream,
    stream_name="LitData StreamingDataLoader, its own shuffle",
    install=INSTALL_BARE,
)
