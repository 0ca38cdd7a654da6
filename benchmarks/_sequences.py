"""Part G of loading.py: shuffled epochs of sequences of top-k rows, padded and flat, and where sequences begin."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import _bench
import numpy as np

import fostore
from fostore.encodings.topk_rows import Selected
from fostore.schema.sequences import offsets_of
from fostore.torch import output_dataloader

VOCABULARY, K, BATCH = 32_000, 64, 16
GOAL = 5.0
"""Million tokens a second, of padded batches."""
OFFSETS_GOAL = 2.8
"""Milliseconds, of 407,000 rows."""


def made(path: Path, num_sequences: int) -> tuple[fostore.Store, list[Any]]:
    """A store of sequences of 200 to 800 tokens, and the tokens of each."""
    chance = np.random.default_rng(0)
    lengths = chance.integers(200, 800, num_sequences)
    num_rows = int(lengths.sum())
    numbers = np.repeat(np.arange(num_sequences), lengths)
    tokens = chance.integers(0, VOCABULARY, num_rows)
    options: dict[str, Any] = {"num_samples": num_rows, "num_sequences": num_sequences}
    options |= {"num_classes": VOCABULARY, "rows": "tokens", "kind": "logits", "dtype": "float16"}
    with fostore.create(path, encoding="topk", k=K, **options) as writer:
        for start in range(0, num_rows, 1 << 16):
            own = slice(start, start + (1 << 16))
            count = len(numbers[own])
            values = np.cumsum(chance.random((count, K), dtype=np.float32) * -0.1, axis=1)
            rows = Selected(
                values - values[:, :1],
                chance.integers(0, 100, (count, 1)) + np.arange(K) * 200,
                np.full(count, -3, np.float32),
                np.full(count, 5, np.float32),
            )
            writer.append(rows, sequences=numbers[own], tokens=tokens[own])
    return fostore.open(path), np.split(tokens, np.cumsum(lengths)[:-1])


def epoch(loader: Any) -> Callable[[], float]:
    """A round: the seconds of an epoch."""

    def measure() -> float:
        begin = time.perf_counter()
        for _ in loader:
            pass
        return time.perf_counter() - begin

    return measure


def assert_sequences(store: fostore.Store, loader: Any) -> None:
    """A whole epoch: every token once, with its own row."""
    seen = 0
    for inputs, rows in loader:
        at = rows.mask if hasattr(rows, "mask") else slice(None)
        own = inputs[at] if hasattr(rows, "mask") else inputs.reshape(-1)[rows.index]
        assert (own == rows.tokens[at]).all(), "rows of other tokens"
        first = rows.distributions.map(lambda array, at=at: array[at][0])
        lines = store.take_topk(np.flatnonzero(store.column("token") == int(own[0])))
        own_row = (lines.ids == first.ids.numpy()).all(1) & np.isclose(
            lines.values, first.values
        ).all(1)
        assert own_row.any(), "the row of another token"
        seen += len(own)
    assert seen == len(store)


def run(arguments: argparse.Namespace) -> list[str]:
    """Epochs of both layouts, as float32 and as stored."""
    with _bench.scratch(arguments.dir) as folder:
        store, samples = made(folder / "rows.zarr", 40 if arguments.quick else 800)
        options: dict[str, Any] = {"batch_size": BATCH, "shuffle": True, "seed": 0}
        cases = {}
        for name, more in {
            "padded, float32": {},
            "padded, as stored": {"dtype": None},
            "flat, float32": {"layout": "flat"},
        }.items():
            loader = output_dataloader(samples, store, **options, **more)
            assert_sequences(store, loader)
            cases[name] = epoch(loader)
        times = _bench.interleave(cases, arguments.rounds)
        lines = []
        for name, seconds in times.items():
            rate = len(store) / _bench.Spread.of(seconds).median / 1e6
            goal = name.startswith("padded")
            verdict = _bench.verdict(rate >= GOAL) if goal else ""
            lines.append([name, f"{rate:.1f}", f"{GOAL:.0f} at least" if goal else "", verdict])
        begin = time.perf_counter()
        offsets = fostore.open(store.path).offsets
        read = time.perf_counter() - begin
        column = store.column("sequence")
        begin = time.perf_counter()
        derived = offsets_of([column], len(offsets) - 1)
        milliseconds = (time.perf_counter() - begin) * 1e3
        assert np.array_equal(offsets, derived)
        verdict = _bench.verdict(milliseconds <= OFFSETS_GOAL)
        return [
            f"Shuffled torch epochs of {len(samples)} sequences, {len(store):,} tokens, k = {K} of {VOCABULARY:,} "
            f"classes, batches of {BATCH} with tokens compared, {arguments.rounds} rounds in turn:",
            _bench.table(["what", "million tokens a second", "goal", ""], lines),
            f"Where sequences begin: {read * 1e3:.1f} ms to open the store and read it, {milliseconds:.2f} ms to "
            f"derive it from the column (goal {OFFSETS_GOAL}: {verdict}).",
        ]
