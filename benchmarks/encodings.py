"""What do top-k rows of language models cost and lose, from the model's logits to the student's gradient?

Each figure is checked against float64, or against what anybody would write: torch.topk, a dense loss, a bare loop.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import _bench
import _killed
import losses
import numpy as np
import torch
from _killed import COMMITS, TOPK, K, write_tokens
from _language import language_logits, zipf_logits
from _tokens import Corpus

import fostore
from fostore.encodings import encoding_of
from fostore.encodings.fidelity import compare, log_probs
from fostore.encodings.selection import select
from fostore.torch import (
    output_dataloader,
)


@dataclass(frozen=True, slots=True)
class Line:
    """One figure beside its goal."""

    what: str
    measured: str
    goal: str
    met: bool

    def cells(self) -> list[str]:
        """A row of the table."""
        return [self.what, self.measured, self.goal, _bench.verdict(self.met)]


def stored(path: Path, logits: np.ndarray, **options: Any) -> fostore.Store:
    """A sealed store of these rows."""
    n, num_classes = logits.shape
    with fostore.create(path, num_samples=n, num_classes=num_classes, **TOPK, **options) as writer:
        for start in range(0, n, 64):
            writer.append(logits[start : start + 64])
    return fostore.open(path)


# ---------------------------------------------------------------- what is kept


def sizes(folder: Path) -> Iterator[Line]:
    """Bytes a token, with the number of its sequence and the token itself."""
    for num_classes, goal in ((32_000, 280), (128_000, 404)):
        path = folder / f"size-{num_classes}.zarr"
        options = {"rows": "tokens", "num_sequences": 1, "num_samples": 2}
        with fostore.create(path, num_classes=num_classes, **options, **TOPK) as writer:
            writer.append(zipf_logits(2, num_classes), sequences=[0, 0], tokens=[1, 2])
        taken = sum(fostore.open(path).schema.row_bytes)
        what = f"bytes a token, k = {K}, {num_classes:,} classes"
        yield Line(what, f"{taken}", f"at most {goal}", taken <= goal)


def fidelity(folder: Path, rows: dict[str, np.ndarray]) -> Iterator[Line]:
    """What is lost under `coarse`, what `uniform` says of itself, and what is known at another temperature."""
    for name, logits in rows.items():
        store = stored(folder / f"{name}.zarr", logits, temperatures=(2.0,))
        lost = (store.header.fidelity or {})["compared"]
        assert lost["num_rows"] == len(logits)
        kl, flips = lost["kl_mean"], lost["argmax_flips"]
        yield Line(f"KL, coarse, {name}", f"{kl:.1e}", "at most 2e-7", kl <= 2e-7)
        yield Line(f"argmax changed, {name}", f"{flips}", "0", flips == 0)
        topk = store.take_topk(range(len(logits)))
        off = residual_error(logits, topk)
        yield Line(f"residual's relative error, {name}", f"{off:.1e}", "2e-6", off <= 2e-6)
        softened = softened_kl(logits, topk, 2.0)
        yield Line(
            f"KL at T = 2, coarse, {name}", f"{softened:.1e}", "at most 1e-7", softened <= 1e-7
        )
        for dtype in ("float16", "float32"):
            apart = uniform_error(logits, dtype)
            what = f"KL of uniform, as stored against true, {dtype}, {name}"
            yield Line(what, f"{apart:.1e}", "within 1e-4 a row", apart <= 1e-4)


def uniform_error(logits: np.ndarray, dtype: str) -> float:
    """How far the KL of `uniform` from the columns is from that of the logits, at most."""
    options = {"name": "topk", "k": K, "rule": "uniform", "tail_entropy": True}
    schema = fostore.encodings.make_schema(
        logits.shape[1], kind="logits", dtype=dtype, encoding=options
    )
    columns = encoding_of(schema).encode(logits, schema, 0)
    said, true = encoding_of(schema).fidelity(columns, schema), compare(logits, columns, schema)
    assert said is not None
    assert said.kl is not None
    assert true.kl is not None
    return float(np.abs(said.kl - true.kl).max())


def residual_error(logits: np.ndarray, topk: Any) -> float:
    """The largest relative error of the weight of all others, against float64."""
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    np.put_along_axis(shifted, topk.ids.astype(np.int64), -np.inf, axis=-1)
    exact = np.exp(shifted).sum(axis=-1)
    return float(np.abs(np.exp(topk.residual.astype(np.float64)) / exact - 1).max())


def softened_kl(logits: np.ndarray, topk: Any, temperature: float) -> float:
    """The mean KL over k + 1 outcomes at a temperature whose residual is kept."""
    exact = log_probs(logits / np.float64(temperature), "logits")
    ids = topk.ids.astype(np.int64)
    kept = np.take_along_axis(exact, ids, axis=-1)
    rest = np.exp(exact)
    np.put_along_axis(rest, ids, 0, axis=-1)
    given = np.concatenate([kept, np.log(rest.sum(axis=-1, keepdims=True))], axis=-1)
    at = topk.temperatures.index(temperature)
    beside = topk.residual_t[:, at : at + 1].astype(np.float64)
    weights = np.concatenate([topk.values.astype(np.float64) / temperature, beside], axis=-1)
    weights -= np.logaddexp.reduce(weights, axis=-1, keepdims=True)
    return float((np.exp(given) * (given - weights)).sum(axis=-1).mean())


# ---------------------------------------------------------------- the loss


def training() -> Iterator[Line]:
    """The gradient, and the memory of a step; `losses.py` has the other rules."""
    off = losses.gradient_error("coarse")
    yield Line("loss gradient against dense, float64", f"{off:.1e}", "1e-12", off <= 1e-12)
    taken, dense = (
        losses.measured(case, 512, 128_256, "float32")[0] for case in ("coarse", "dense")
    )
    what = "memory of a loss, logits of 128,256 classes"
    measured = f"{taken:.2f} times them (dense {dense:.1f})"
    yield Line(what, measured, "at most 2.2", taken <= 2.2)


# ---------------------------------------------------------------- speed


def timed(work: Callable[[], Any]) -> Callable[[], float]:
    """Seconds that a call takes."""

    def run() -> float:
        began = time.perf_counter()
        work()
        return time.perf_counter() - began

    return run


def selection(rows: dict[str, np.ndarray], rounds: int) -> Iterator[Line]:
    """The same classes as torch.topk where no numbers are equal, in no more time."""
    for name, logits in rows.items():
        tensor = torch.from_numpy(logits)
        ours, theirs = select(logits, K), tensor.topk(K).indices.numpy()
        values = [np.take_along_axis(logits, ids, axis=-1) for ids in (ours, theirs)]
        np.testing.assert_array_equal(*values)
        cases = {"ours": lambda x=logits: select(x, K), "torch": lambda x=tensor: x.topk(K)}
        times = _bench.interleave({key: timed(case) for key, case in cases.items()}, rounds)
        ratio = _bench.ratio(times["ours"], times["torch"])
        speed = len(logits) / np.median(times["ours"])
        measured = f"{ratio.text()} of its time, {speed:,.0f} rows/s"
        yield Line(f"selection, {name}", measured, "at most torch.topk's", ratio.median <= 1)


def loading(folder: Path, tokens: int) -> Iterator[Line]:
    """Padded batches of a store that lies in memory, in a shuffled epoch."""
    rng = np.random.default_rng(0)
    num_classes, lengths = 32_000, []
    while sum(lengths) < tokens:
        lengths.append(int(rng.integers(200, 800)))
    count = sum(lengths)
    path = folder / "loaded.zarr"
    inputs = rng.integers(0, num_classes, count).astype(np.uint16)
    options = {"rows": "tokens", "num_sequences": len(lengths), "num_samples": count, **TOPK}
    logits = language_logits(256)
    numbers = np.repeat(np.arange(len(lengths)), lengths)
    with fostore.create(path, num_classes=num_classes, **options) as writer:
        for start in range(0, count, 256):
            size = min(256, count - start)
            at = slice(start, start + size)
            writer.append(logits[:size], sequences=numbers[at], tokens=inputs[at])
    ends = np.cumsum(lengths)
    samples = [
        {"input_ids": torch.from_numpy(inputs[end - size : end].astype(np.int64))}
        for end, size in zip(ends, lengths, strict=True)
    ]
    loader = output_dataloader(samples, path, batch_size=8, shuffle=True, seed=0)

    def epoch() -> float:
        began, seen = time.perf_counter(), 0
        for _, rows in loader:
            seen += int(rows.mask.sum())
        assert seen == count
        return count / (time.perf_counter() - began)

    epoch()
    speed = max(epoch() for _ in range(3))
    yield Line("loader, hot, padded", f"{speed / 1e6:.1f}M tokens/s", "5M", speed >= 5e6)


def generation(folder: Path, rounds: int, *, quick: bool) -> Iterator[Line]:
    """A whole run with a store against the bare forward pass; `generation.py` has the other models."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    corpus = Corpus.made(device, quick=quick)
    cases = {"bare": corpus.bare, "store": partial(corpus.with_store, folder)}
    times = _bench.interleave(cases, rounds)
    ratio = _bench.ratio(times["store"], times["bare"])
    goal = 1.05 if device == "cuda" else 1.35
    what = f"generation with a store, {corpus.model.config.vocab_size:,} classes, {device}"
    yield Line(what, f"{ratio.text()} of the forward pass", f"at most {goal}", ratio.median <= goal)


# ---------------------------------------------------------------- kills


def kills(folder: Path) -> Iterator[Line]:
    """Killed at every commit, each time by itself; what goes on has the digest of one run."""
    digests = set()
    for suffix in (".zarr", ".h5"):
        whole = folder / f"whole{suffix}"
        write_tokens(whole, -1)
        digests.add(fostore.open(whole).digest())
        for die_at in range(COMMITS):
            path = folder / f"killed-{die_at}{suffix}"
            command = [sys.executable, _killed.__file__, str(path), str(die_at)]
            killed = subprocess.run(command, capture_output=True, text=True, check=False)
            assert killed.returncode == -signal.SIGKILL, killed.stderr
            write_tokens(path, -1)
            digests.add(fostore.open(path).digest())
    measured = f"{2 * COMMITS} kills, {len(digests)} digest"
    yield Line("kill -9 at every commit", measured, "1", len(digests) == 1)


# ---------------------------------------------------------------- the whole


def main() -> None:
    """Run all, and put the table into RESULTS.md."""
    arguments = _bench.parse(_bench.parser(__doc__ or "", 5))
    quick, rounds = arguments.quick, arguments.rounds
    torch.set_num_threads(min(2, os.cpu_count() or 1))
    few = 16 if quick else 256
    rows = {
        "32,000 classes": language_logits(max(few, 32)),
        "128,256 classes": zipf_logits(few // 4, 128_256),
    }
    with _bench.scratch(arguments.dir) as folder:
        lines = [
            *sizes(folder),
            *fidelity(folder, rows),
            *training(),
            *selection(rows, rounds),
            *loading(folder, 20_000 if quick else 400_000),
            *generation(folder, rounds, quick=quick),
            *kills(folder),
        ]
        table = _bench.table(["what", "measured", "goal", ""], [line.cells() for line in lines])
        parts = [_bench.machine(folder, ["numpy", "torch"]), table]
        _bench.report("Encodings", parts, record=not quick)


if __name__ == "__main__":
    main()
