"""The part of `generation.py` on language models: top-k rows of tokens against the bare forward pass."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import _bench
import numpy as np
import torch

import fostore
from fostore.torch import FirstOrderDataGenerator

GOAL, GPU_GOAL = 1.35, 1.05
_K = 64


@dataclass(frozen=True, slots=True)
class Corpus:
    """Sequences of random tokens, which a model of GPT-2's smallest size reads in batches, padded on the right."""

    model: Any
    batches: list[dict[str, torch.Tensor]]
    samples: list[dict[str, list[int]]]
    batch_size: int
    device: str

    @classmethod
    def made(cls, device: str, *, quick: bool) -> Corpus:
        """GPT-2 with random weights: 124 million of them, 50,257 classes; a tenth of that in a quick run."""
        import transformers

        torch.manual_seed(0)
        small = {"n_layer": 2, "n_embd": 96, "n_head": 2, "vocab_size": 5000} if quick else {}
        model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**small)).eval().to(device)
        size, longest = (4, 128) if device == "cpu" else (32, 512)
        rng = np.random.default_rng(0)
        lengths = rng.integers(longest // 2, longest + 1, size * (2 if quick else 6))
        classes = model.config.vocab_size
        samples = [{"input_ids": rng.integers(0, classes, n).tolist()} for n in lengths.tolist()]
        batches = []
        for start in range(0, len(samples), size):
            some = [torch.tensor(one["input_ids"]) for one in samples[start : start + size]]
            ids = torch.nn.utils.rnn.pad_sequence(some, batch_first=True)
            mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(one) for one in some], True)
            batches.append({"input_ids": ids, "attention_mask": mask})
        return cls(model, batches, samples, size, device)

    def bare(self) -> float:
        """Seconds of the forward pass alone; nothing is kept."""
        begin = time.perf_counter()
        with torch.inference_mode():
            for batch in self.batches:
                logits = self.model(
                    **{key: one.to(self.device) for key, one in batch.items()}
                ).logits
                float(logits[-1, -1, -1])  # waits for the device
        return time.perf_counter() - begin

    def with_store(self, folder: Path) -> float:
        """Seconds of the generator with a store of top-k rows, sealed and opened; checked after it."""
        path = folder / "tokens.zarr"
        begin = time.perf_counter()
        generator = FirstOrderDataGenerator(
            self.model, self.device, self.batch_size, output_mode="logits"
        )
        store = generator.generate_distributions(
            self.samples,
            progress=False,
            store=path,
            rows="tokens",
            encoding="topk",
            k=_K,
            dtype="float16",
            temperatures=(2.0,),
        )
        seconds = time.perf_counter() - begin
        self._check(store)
        store.close()
        _bench.discard(path)
        return seconds

    def _check(self, store: fostore.Store) -> None:
        assert store.is_sealed
        assert store.num_sequences == len(self.samples)
        batch = {key: one.to(self.device) for key, one in self.batches[0].items()}
        with torch.inference_mode():
            logits = self.model(**batch).logits[0].float().cpu().numpy()
        rows = len(self.samples[0]["input_ids"])
        kept = store.take_topk(range(rows))
        best = np.take_along_axis(logits[:rows], kept.ids.astype(np.int64), -1)
        expected = best - best[:, :1]
        assert np.allclose(kept.values, expected, rtol=2e-3, atol=2e-3), "other rows"


def compare(device: str, folder: Path, rounds: int, *, quick: bool) -> list[str]:
    """One line of the table."""
    corpus = Corpus.made(device, quick=quick)
    corpus.bare()
    times = _bench.interleave(
        {"bare": corpus.bare, "store": partial(corpus.with_store, folder)}, rounds
    )
    share = _bench.ratio(times["store"], times["bare"])
    tokens = sum(len(one["input_ids"]) for one in corpus.samples)
    goal = GOAL if device == "cpu" else GPU_GOAL
    return [
        f"GPT-2 small, {corpus.model.config.vocab_size:,} classes, top {_K} float16, batches of "
        f"{corpus.batch_size} sequences",
        f"{tokens:,}",
        f"{tokens / _bench.Spread.of(times['bare']).median:,.0f}",
        f"{tokens / _bench.Spread.of(times['store']).median:,.0f}",
        share.text(3),
        f"{goal:g}",
        _bench.verdict(share.median <= goal),
    ]


HEADERS = ["what", "tokens", "bare, tokens/s", "with a store, tokens/s", "of its time", "goal", ""]
