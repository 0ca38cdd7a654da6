"""Rows of tokens of Hugging Face's models: their tokenizers, datasets and collators, as people use them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch.utils.data import DataLoader

import fostore
from fostore.errors import ArgumentError
from fostore.torch import FirstOrderDataGenerator

# transformers reaches for names of torch that are on their way out
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
TEXTS = [str.split.__doc__ or "", "a", dict.update.__doc__ or "", "Return the", "of", "x y z"]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    pieces = Tokenizer(models.BPE())
    pieces.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=["<end>"], show_progress=False)
    pieces.train_from_iterator([*TEXTS, str.__doc__ or ""], trainer)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=pieces, pad_token="<end>", eos_token="<end>", name_or_path="little"
    )


@pytest.fixture(scope="module")
def model() -> Any:
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=300,
        n_positions=256,
        n_embd=32,
        n_layer=2,
        n_head=2,
        bos_token_id=0,
        eos_token_id=0,
    )
    gpt = transformers.GPT2LMHeadModel(config)
    for weights in gpt.parameters():  # far from 0, so that no two rows are alike
        weights.data.mul_(3)
    return gpt.eval()


def assert_rows(store: fostore.Store, model: Any, sequences: list[list[int]]) -> None:
    assert store.is_sealed
    assert store.num_sequences == len(sequences)
    for at, ids in enumerate(sequences):
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0]
        rows = range(int(store.offsets[at]), int(store.offsets[at + 1]))
        kept = store.take_topk(rows)
        assert kept.ids.tolist() == logits.topk(8).indices.tolist()
        expected = logits.topk(8).values - logits.amax(-1, keepdim=True)
        np.testing.assert_allclose(kept.values, expected, rtol=1e-4, atol=1e-3)
    assert store.verify() == []


def generated(model: Any, data: Any, path: Path, **options: Any) -> fostore.Store:
    generator = FirstOrderDataGenerator(model, batch_size=3)
    asked: dict[str, Any] = {"rows": "tokens", "encoding": "topk", "k": 8, **options}
    store: fostore.Store = generator.generate_distributions(data, False, store=path, **asked)
    return store


@pytest.mark.parametrize("suffix", [".zarr", ".h5"])
def test_texts_tokens_and_datasets_give_one_digest(
    model: Any, tokenizer: Any, suffix: str, tmp_path: Path
) -> None:
    sequences = [tokenizer(text)["input_ids"] for text in TEXTS]
    dataset = datasets.Dataset.from_dict({"text": TEXTS}).map(
        lambda row: dict(tokenizer(row["text"])), remove_columns=["text"]
    )
    kinds: dict[str, Any] = {
        "samples": [dict(tokenizer(text)) for text in TEXTS],
        "numbers": [{"input_ids": ids} for ids in sequences],
        "dataset": dataset,
        "tensors": dataset.with_format("torch"),
        "loader": DataLoader(
            dataset,  # type: ignore[arg-type]
            batch_size=3,
            collate_fn=transformers.DataCollatorWithPadding(tokenizer),
            num_workers=1,
        ),
        "labels": DataLoader(
            dataset,  # type: ignore[arg-type]
            batch_size=3,
            collate_fn=transformers.DataCollatorForLanguageModeling(tokenizer, mlm=False),
        ),
    }
    digests = set()
    for name, data in kinds.items():
        store = generated(model, data, tmp_path / f"{name}{suffix}")
        assert_rows(store, model, sequences)
        digests.add(store.digest())
    store = generated(model, TEXTS, tmp_path / f"texts{suffix}", tokenizer=tokenizer)
    assert store.header.identity["dataset"]["tokenizer"]["name"] == "little"
    assert {store.digest()} == digests


def test_positions_that_count_the_padding_before_them_are_refused(
    model: Any, tokenizer: Any, tmp_path: Path
) -> None:
    def before(samples: Any) -> Any:
        return tokenizer.pad(samples, padding_side="left", return_tensors="pt")

    def counted(samples: Any) -> Any:
        batch = before(samples)
        places = batch["attention_mask"].cumsum(-1) - 1
        return {**batch, "position_ids": places.clamp(min=0)}

    samples = [dict(tokenizer(text)) for text in TEXTS]
    with pytest.raises(ArgumentError, match="counts positions with the padding before them"):
        generated(model, samples, tmp_path / "a.zarr", collate_fn=before)
    store = generated(model, samples, tmp_path / "b.zarr", collate_fn=counted)
    assert_rows(store, model, [one["input_ids"] for one in samples])


def test_a_model_in_half_precision_has_rows_like_any_other(
    model: Any, tokenizer: Any, tmp_path: Path
) -> None:
    half = transformers.GPT2LMHeadModel(model.config)
    half.load_state_dict(model.state_dict())
    store = generated(half.bfloat16(), TEXTS, tmp_path / "a.zarr", tokenizer=tokenizer)
    assert store.is_sealed
    assert (
        generated(half, TEXTS, tmp_path / "a.zarr", tokenizer=tokenizer).digest() == store.digest()
    )


STORY = """
import numpy as np

V = 60
table = np.random.default_rng(0).normal(size=(V, V)).astype(np.float32) * 2
texts = ["hello world", "a", "", "distributions of tokens", "of a little model"] * 3
calls = 0


def teacher(ids):
    return np.cumsum(table[np.asarray(ids)], axis=1, dtype=np.float32)


def unlucky():
    def model(ids):
        global calls
        calls += 1
        if calls == 4:
            raise OSError("the power is gone")
        return teacher(ids)

    return model


def tokenizer(text):
    return [ord(letter) % V for letter in text]
"""


@pytest.mark.parametrize("suffix", [".zarr", ".h5"])
def test_the_command_goes_on_with_tokens_and_bounds_what_is_lost(
    suffix: str, tmp_path: Path
) -> None:
    (tmp_path / "story.py").write_text(STORY)
    shown = {"--rows": "tokens", "--tokenizer": "story.py:tokenizer", "--encoding": "topk"}
    shown |= {"--k": "8", "--dtype": "float16", "--temperatures": "2,4", "--batch-size": "4"}
    shown |= {"--model-fingerprint": "v1", "--commit-seconds": "0"}
    options = [text for pair in shown.items() for text in pair]

    def ran(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "fostore.cli", *arguments]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)

    def generated(model: str, path: str, *more: str) -> subprocess.CompletedProcess[str]:
        return ran("generate", f"story.py:{model}", "story.py:texts", "-o", path, *options, *more)

    path, whole = tmp_path / f"tokens{suffix}", tmp_path / f"whole{suffix}"
    failed = generated("unlucky", path.name)
    assert failed.returncode == 1
    assert "the power is gone" in failed.stderr
    begun = fostore.open(path)
    assert len(begun) > 0
    assert not begun.is_sealed
    for one in (path, whole):
        done = generated("teacher", one.name)
        assert done.returncode == 0, done.stderr
    store = fostore.open(path)
    assert store.digest() == fostore.open(whole).digest()
    assert np.diff(store.offsets).tolist() == [11, 1, 0, 23, 17] * 3
    assert dict(store.schema.encoding)["temperatures"] == [2.0, 4.0]
    assert json.loads(ran("info", path.name, "--json").stdout)["num_sequences"] == 15
    assert ran("verify", path.name).returncode == 0
    lost = generated("teacher", f"strict{suffix}", "--rule", "uniform", "--max-kl", "1e-9")
    assert lost.returncode == 1
    assert "max_kl" in lost.stderr
    words = ran("generate", "story.py:teacher", "story.py:texts", "-o", "a.zarr", "--rows", "words")
    assert "--rows is 'words', expected start:stop" in words.stderr
