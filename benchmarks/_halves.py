"""Part F of loading.py: shuffled torch epochs of halves that are handed out as float32."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import _bench
import numpy as np
import torch
from _epochs import as_it_is, case, lines_of
from _paired import assert_pairs
from _rows import BATCH, Seen, Width
from torch.utils.data import DataLoader, Dataset, TensorDataset, default_collate

import fostore
from fostore.schema.halves import float32_to_bfloat16, widen
from fostore.torch import FirstOrderDataset, output_dataloader

GOAL = 0.9
"""Of a dataset as an expert writes it, which hands out float32 as well."""


class ByHand(Dataset[Any]):
    """A memory map of halves, gathered a batch at a time and widened by torch; with samples or without."""

    def __init__(self, stored: np.ndarray, dtype: str, base: Dataset[Any] | None) -> None:
        self.stored, self.is_bfloat16, self.base = stored, dtype == "bfloat16", base

    def __len__(self) -> int:
        return len(self.stored)

    def __getitems__(self, indices: Sequence[int]) -> Any:
        rows = torch.from_numpy(np.take(self.stored, np.asarray(indices), axis=0))
        rows = (rows.view(torch.bfloat16) if self.is_bfloat16 else rows).to(torch.float32)
        if self.base is None:
            return rows
        return [*default_collate([self.base[i] for i in indices]), rows]


def part(folder: Path, width: Width, arguments: argparse.Namespace) -> list[str]:
    """The tables of one dtype: distributions alone, and beside the samples of a base dataset."""
    rows = Width(width.num_rows, width.num_classes, "float32").distributions()
    stored = float32_to_bfloat16(rows) if width.dtype == "bfloat16" else rows.astype(width.dtype)
    np.save(folder / "rows.npy", stored)
    with fostore.create(
        folder / "rows.zarr",
        num_samples=len(rows),
        num_classes=width.num_classes,
        dtype=width.dtype,
    ) as writer:
        writer.append(rows)
    rows = widen(stored, width.dtype)
    inputs = torch.arange(len(rows) * 16, dtype=torch.float32).reshape(-1, 16)
    pairs = TensorDataset(inputs, torch.arange(len(rows)))
    seconds = 0.05 if arguments.quick else 0.6
    seen = Seen(rows)
    mapped = np.asarray(np.load(folder / "rows.npy", mmap_mode="r"))
    store = fostore.open(folder / "rows.zarr")
    tables = []
    for base in (None, pairs):

        def by_hand(base: Any = base) -> Iterable[Any]:
            dataset = ByHand(mapped, width.dtype, base)
            return DataLoader(dataset, batch_size=BATCH, shuffle=True, collate_fn=as_it_is)

        paired = FirstOrderDataset(base, store, check="length")
        ours = DataLoader(paired, batch_size=BATCH, shuffle=True)
        own = output_dataloader(base, store, BATCH, True, seed=0, check="length")
        yardstick = "np.memmap, dataset by hand"
        epochs: dict[str, Callable[[], Iterable[Any]]] = {
            yardstick: by_hand,
            "fostore Zarr, FirstOrderDataset": lambda ours=ours: ours,  # type: ignore[misc]
            "fostore Zarr, output_dataloader": lambda own=own: own,  # type: ignore[misc]
        }
        for name, epoch in epochs.items():
            if base is None:
                seen.assert_epoch(epoch(), name, 60.0)
            else:
                assert_pairs(epoch(), rows)
        cases = {name: case(epoch, len(rows), seconds) for name, epoch in epochs.items()}
        speeds = _bench.interleave(cases, arguments.rounds)
        goals = {name: (yardstick, GOAL) for name in epochs if name != yardstick}
        what = "distributions alone" if base is None else "paired with a `TensorDataset`"
        tables.append(
            f"**{width.num_rows:,} rows of {width.num_classes:,} {width.dtype}**, {what}:\n\n"
            + _bench.table(
                ["what", "M rows/s", f"of {yardstick!r}", "goal", ""],
                lines_of(speeds, goals, yardstick),
            )
        )
    return tables


def run(arguments: argparse.Namespace) -> list[str]:
    """Wide rows as float16 and bfloat16, and as float32 for comparison."""
    num_rows = 2_000 if arguments.quick else 50_000
    parts = [
        f"Shuffled epochs of torch batches of {BATCH}, handed out as float32, no workers, "
        f"{arguments.rounds} rounds in turn; an untimed epoch of each is checked. The dataset by hand "
        "gathers a memory map of the same bytes once a batch and widens by torch; with samples, both "
        "sides read and collate those of one `TensorDataset`:"
    ]
    for dtype in ("float16", "bfloat16", "float32"):
        with _bench.scratch(arguments.dir) as folder:
            parts += part(folder, Width(num_rows, 1000, dtype), arguments)
    return parts
