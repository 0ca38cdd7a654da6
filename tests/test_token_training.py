"""Training on token rows: whose sequence it is, batches beside a student's, other people's loops; NumPy, torch, JAX."""

from __future__ import annotations

import logging
import pickle
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader, Subset, default_collate

import fostore
import fostore.jax
import fostore.torch
from fostore.encodings.topk_rows import TopK
from fostore.errors import ArgumentError, IdentityError
from fostore.loading.order import Order
from fostore.reading.sequences import FlatBatch, PaddedBatch, joined
from support import SUFFIXES

V, K = 300, 6
LENGTHS = [3, 9, 5, 1, 7, 12, 2, 4, 8, 6, 11]
STARTS = np.concatenate([[0], np.cumsum(LENGTHS)])
N = int(STARTS[-1])
NUMBERS = np.repeat(np.arange(len(LENGTHS)), LENGTHS)
TOKENS = np.arange(N) * 31 % V
LOGITS = (np.random.default_rng(0).normal(size=(N, V)) * 3).astype(np.float32)
OF = {i: slice(int(STARTS[i]), int(STARTS[i + 1])) for i in range(len(LENGTHS))}
SAMPLES = [{"input_ids": TOKENS[OF[i]].tolist(), "labels": TOKENS[OF[i]].tolist()} for i in OF]

# Lightning and transformers reach for names of torch and importlib that are on their way out.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


def made(path: Path, rows: Any = slice(None), **options: Any) -> fostore.Store:
    given: dict[str, Any] = {"kind": "logits", "dtype": "float16", "num_classes": V}
    given |= {"num_samples": len(TOKENS[rows]), "num_sequences": len(LENGTHS), "rows": "tokens"}
    if options.pop("topk", True):
        given |= {"encoding": "topk", "k": K, "temperatures": (2.0,)}
    beside: dict[str, Any] = {"sequences": NUMBERS[rows], "tokens": TOKENS[rows]}
    if options.get("positions"):
        beside["positions"] = (np.arange(N) - np.repeat(STARTS[:-1], LENGTHS))[rows]
    if options.get("tokens") is False:
        del beside["tokens"]
    with fostore.create(path, **given | options) as writer:
        writer.append(LOGITS[rows], **beside)
    return fostore.open(path)


@pytest.fixture(params=SUFFIXES)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> fostore.Store:
    return made(tmp_path / f"rows{request.param}")


@pytest.fixture(params=[fostore, fostore.torch, fostore.jax], ids=lambda m: m.__name__)
def side(request: pytest.FixtureRequest) -> Any:
    return request.param


def sequences_in(batch: Any) -> list[int]:
    """Which sequences the lines of a student's batch are: their first tokens are all different."""
    first = [SAMPLES[i]["input_ids"][0] for i in range(len(LENGTHS))]
    assert len(set(first)) == len(first)
    ids, mask = np.asarray(batch["input_ids"]), np.asarray(batch["attention_mask"])
    return [first.index(int(line[keep != 0][0])) for line, keep in zip(ids, mask, strict=True)]


def assert_beside(store: fostore.Store, inputs: Any, padded: Any) -> None:
    """Each row is where the student's batch has its token, and it is the row of that token."""
    numbers, mask = sequences_in(inputs), np.asarray(padded.mask)
    np.testing.assert_array_equal(mask, np.asarray(inputs["attention_mask"]) != 0)
    np.testing.assert_array_equal(
        np.asarray(padded.tokens)[mask], np.asarray(inputs["input_ids"])[mask]
    )
    expected = store.take_topk(np.concatenate([np.arange(N)[OF[i]] for i in numbers]))
    assert isinstance(padded.distributions, TopK)
    softened = ["residual_t"] if expected.temperatures else []
    for name in ("values", "ids", "residual", *softened):
        rows = np.asarray(getattr(padded.distributions, name))
        assert rows.shape[:2] == mask.shape
        np.testing.assert_array_equal(rows[mask], getattr(expected, name))
        assert not rows[~mask].any()


# ------------------------------------------------------------------ numbers alone


@given(st.lists(st.integers(0, 5), min_size=1, max_size=6), st.integers(0, 3), st.data())
def test_padded_rows_are_where_their_index_says(
    lengths: list[int], more: int, data: st.DataObject
) -> None:
    """The oracle goes row by row; places are left, right, or anywhere that grows."""
    width = max(lengths) + more
    places = [
        sorted(data.draw(st.permutations(range(max(width, 1))))[:length]) for length in lengths
    ]
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    index = np.array([i * width + p for i, own in enumerate(places) for p in own], np.int64)
    values = np.arange(1.0, len(index) + 1)
    flat = FlatBatch(values[:, None] * [1, 2], offsets, np.arange(len(index)), None)
    padded = flat.padded(width, index)
    expected = np.zeros((len(lengths), width, 2))
    for row, at in enumerate(index):
        expected[at // width, at % width] = values[row] * np.array([1, 2])
    np.testing.assert_array_equal(padded.distributions, expected)
    np.testing.assert_array_equal(padded.mask, expected[..., 0] > 0)
    again = joined([flat[i] for i in range(len(flat))])
    np.testing.assert_array_equal(again.distributions, flat.distributions)
    np.testing.assert_array_equal(again.offsets, offsets)


# ------------------------------------------------------------------ whose sequence it is


def test_sample_i_comes_with_sequence_i(side: Any, store: fostore.Store) -> None:
    dataset = side.FirstOrderDataset(SAMPLES, store)
    assert dataset.pairing.checked == ("length", "content")
    assert len(dataset) == len(LENGTHS)
    inputs, rows = dataset[5]
    assert inputs["input_ids"] == SAMPLES[5]["input_ids"]
    np.testing.assert_array_equal(np.asarray(rows.tokens), TOKENS[OF[5]])
    expected = store.take_topk(np.arange(N)[OF[5]])
    np.testing.assert_array_equal(np.asarray(rows.distributions.ids), expected.ids)
    assert type(dataset[-1][1]) is FlatBatch
    with pytest.raises(IndexError):
        _ = dataset[len(LENGTHS)]


def other(**changed: Any) -> list[Any]:
    """The samples with another one at 6."""
    return [{**one, **changed} if i == 6 else one for i, one in enumerate(SAMPLES)]


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        (other(input_ids=[1, 2]), r"sequence 6 of the dataset has token 1 at position 0, and the "),
        (other(input_ids=[*SAMPLES[6]["input_ids"][:1], 5]), r"has token 5 at position 1, and"),
        (other(input_ids=SAMPLES[6]["input_ids"] + [1]), "6 of the dataset has 3 tokens, and .* 2"),
        (other(input_ids=SAMPLES[6]["input_ids"][:1]), "sequence 6 .* has 1 tokens, .* rows of 2"),
        (SAMPLES[::-1], "sequence 0 of the dataset has"),
    ],
)
def test_other_tokens_are_refused_by_sequence_and_position(
    side: Any, store: fostore.Store, samples: Any, message: str
) -> None:
    with pytest.raises(IdentityError, match=message):
        side.FirstOrderDataset(samples, store)
    with pytest.raises(IdentityError, match=message):
        side.FirstOrderDataset(samples, store, check="content")
    assert side.FirstOrderDataset(samples, store, check="length").pairing.checked == ("length",)


def test_padding_of_a_sample_is_none_of_its_tokens(side: Any, store: fostore.Store) -> None:
    padded = [
        {"input_ids": [0] * (12 - n) + one["input_ids"], "attention_mask": [0] * (12 - n) + [1] * n}
        for one, n in zip(SAMPLES, LENGTHS, strict=True)
    ]
    dataset = side.FirstOrderDataset(padded, store)
    assert "content" in dataset.pairing.checked
    for inputs, rows in side.output_dataloader(padded, store, batch_size=4):
        assert inputs["input_ids"].shape[1] == 12
        assert_beside(store, inputs, rows)


def test_what_is_no_pair_is_refused(side: Any, store: fostore.Store, tmp_path: Path) -> None:
    pair = side.FirstOrderDataset
    with pytest.raises(ArgumentError, match=r"10 samples and .* 11 sequences"):
        pair(SAMPLES[:10], store)
    with pytest.raises(ArgumentError, match="not joined by ids"):
        pair(SAMPLES, store, ids=range(11))
    with pytest.raises(ArgumentError, match="rows of tokens without their sequences"):
        pair(SAMPLES, store.select([0, 1]))
    with pytest.raises(ArgumentError, match="sample 0 has no 'input_ids', expected"):
        pair([{"text": "a"}] * 11, store)
    with pytest.raises(ArgumentError, match=r"sample 0 has float64 of shape \(2,\) for tokens"):
        pair([np.zeros(2)] * 11, store)
    with pytest.raises(ArgumentError, match="layout is 'nested'"):
        pair(SAMPLES, store, layout="nested")
    bare = made(tmp_path / "bare.zarr", tokens=False)
    assert pair(SAMPLES, bare).pairing.not_checked == {"content": "the store keeps no tokens"}
    with pytest.raises(ArgumentError, match="check='content' compares tokens, and"):
        pair(SAMPLES, bare, check="content")
    with fostore.create(tmp_path / "open.zarr", num_classes=V, rows="tokens", kind="logits") as one:
        one.append(LOGITS[:3], sequences=[0] * 3, tokens=TOKENS[:3])
        one.commit()
        with pytest.raises(ArgumentError, match="is not finished"):
            pair(SAMPLES[:1], tmp_path / "open.zarr")


# ------------------------------------------------------------------ batches beside a student's


@pytest.mark.parametrize("shuffle", [False, True])
def test_padded_batches_are_aligned_with_the_students(
    side: Any, store: fostore.Store, shuffle: bool
) -> None:
    seen = []
    loader = side.output_dataloader(SAMPLES, store, batch_size=4, shuffle=shuffle, seed=1)
    for inputs, rows in loader:
        assert type(rows) is PaddedBatch
        assert_beside(store, inputs, rows)
        labels, mask = np.asarray(inputs["labels"]), np.asarray(rows.mask)
        assert (labels[~mask] == -100).all()
        seen += sequences_in(inputs)
    assert sorted(seen) == list(range(11))
    assert (seen == sorted(seen)) is not shuffle


def test_flat_batches_say_where_their_tokens_stand(side: Any, store: fostore.Store) -> None:
    for inputs, rows in side.output_dataloader(SAMPLES, store, batch_size=4, layout="flat"):
        ids, index = np.asarray(inputs["input_ids"]), np.asarray(rows.index)
        np.testing.assert_array_equal(ids.reshape(-1)[index], np.asarray(rows.tokens))
        numbers = sequences_in(inputs)
        assert np.diff(rows.offsets).tolist() == [LENGTHS[i] for i in numbers]
        assert len(rows.distributions) == sum(LENGTHS[i] for i in numbers)


@pytest.mark.parametrize("layout", ["padded", "flat"])
def test_rows_that_are_left_out_leave_gaps(side: Any, tmp_path: Path, layout: str) -> None:
    """Every third token has a row, as where only answers have labels."""
    kept = np.arange(0, N, 3)
    store = made(tmp_path / "a.zarr", kept, positions=True)
    for inputs, rows in side.output_dataloader(SAMPLES, store, batch_size=4, layout=layout):
        numbers = sequences_in(inputs)
        own = np.concatenate([kept[np.isin(kept, np.arange(N)[OF[i]])] for i in numbers])
        ids = np.asarray(inputs["input_ids"])
        at = np.asarray(rows.mask) if layout == "padded" else np.asarray(rows.index)
        taken = ids[at] if layout == "padded" else ids.reshape(-1)[at]
        np.testing.assert_array_equal(taken, TOKENS[own])
        given = np.asarray(rows.distributions.ids)
        given = given[at] if layout == "padded" else given
        np.testing.assert_array_equal(given, store.take_topk(np.searchsorted(kept, own)).ids)


def test_tokens_alone_dicts_and_pairs_make_batches(side: Any, store: fostore.Store) -> None:
    alone = [np.array(one["input_ids"]) for one in SAMPLES]
    ids, rows = next(iter(side.output_dataloader(alone, store, batch_size=3)))
    np.testing.assert_array_equal(np.asarray(ids), np.asarray(rows.tokens))
    pairs = [(one["input_ids"], one["labels"]) for one in SAMPLES]
    _, labels, rows = next(iter(side.output_dataloader(pairs, store, batch_size=3)))
    mask = np.asarray(rows.mask)
    np.testing.assert_array_equal(np.asarray(labels)[mask], np.asarray(rows.tokens)[mask])
    batch = next(iter(side.output_dataloader(SAMPLES, store, batch_size=3, target_key="teacher")))
    assert_beside(store, batch, batch["teacher"])
    rows = next(iter(side.output_dataloader(None, store, batch_size=3)))
    assert np.asarray(rows.mask).sum(1).tolist() == LENGTHS[:3]
    rows = next(iter(side.output_dataloader(None, store, batch_size=3, layout="flat")))
    assert np.diff(rows.offsets).tolist() == LENGTHS[:3]


def test_lines_have_the_length_that_is_asked_for(side: Any, store: fostore.Store) -> None:
    for inputs, rows in side.output_dataloader(SAMPLES, store, batch_size=4, pad_length=16):
        assert inputs["input_ids"].shape[1] == rows.mask.shape[1] == 16
        assert_beside(store, inputs, rows)
    with pytest.raises(ArgumentError, match="sample 1 of the dataset has 9 tokens, and pad_length"):
        next(iter(side.output_dataloader(SAMPLES, store, batch_size=4, pad_length=8)))


def test_a_dataset_travels_as_its_path(side: Any, store: fostore.Store) -> None:
    dataset = pickle.loads(pickle.dumps(side.FirstOrderDataset(SAMPLES, store)))
    np.testing.assert_array_equal(np.asarray(dataset[5][1].tokens), TOKENS[OF[5]])


def test_dense_rows_are_padded_too(side: Any, tmp_path: Path) -> None:
    store = made(tmp_path / "dense.zarr", topk=False)
    for inputs, rows in side.output_dataloader(SAMPLES, store, batch_size=4, as_kind="log_probs"):
        numbers, mask = sequences_in(inputs), np.asarray(rows.mask)
        own = np.concatenate([np.arange(N)[OF[i]] for i in numbers])
        expected = store.take(own, as_kind="log_probs")
        np.testing.assert_array_equal(np.asarray(rows.distributions)[mask], expected)
        assert rows.distributions.shape == (*mask.shape, V)


@given(
    st.integers(0, 20_000), st.integers(1, 40), st.integers(0, (1 << 64) - 1), st.integers(1, 9999)
)
def test_the_order_by_lengths_has_every_sample_once_wherever_it_is_cut(
    count: int, most: int, seed: int, step: int
) -> None:
    lengths = np.arange(count) * 7919 % most
    order = Order(count, 16, shuffle="lengths", seed=seed, lengths=lengths)
    cuts = [order.samples(5, at, min(at + step, count)) for at in range(0, count, step)]
    whole = np.concatenate([np.zeros(0, np.int64), *cuts])
    np.testing.assert_array_equal(whole, order.samples(5, 0, count))
    assert np.array_equal(np.sort(whole), np.arange(count))


def test_batches_by_length_have_little_padding_and_are_declared(
    side: Any, store: fostore.Store
) -> None:
    """Frozen: a checkpoint goes on with every release."""
    lengths = np.arange(20_000) * 7919 % 1000
    order = Order(20_000, 16, shuffle="lengths", seed=7, lengths=lengths)
    assert order.samples(0, 0, 4).tolist() == [19314, 5314, 14993, 6993]
    assert order.samples(3, 8190, 8194).tolist() == [13207, 16207, 3450, 12450]
    apart = [np.ptp(lengths[batch]) for batch in order.batches(0)]
    assert np.mean(apart) < 20
    means = [lengths[batch].mean() for batch in order.batches(0)]
    assert abs(np.corrcoef(np.arange(len(means)), means)[0, 1]) < 0.2
    seen = []
    for inputs, rows in side.output_dataloader(SAMPLES, store, 4, "lengths", seed=1):
        assert_beside(store, inputs, rows)
        seen.append(sequences_in(inputs))
    assert sorted(i for batch in seen for i in batch) == list(range(11))
    assert [LENGTHS[i] for batch in seen for i in batch] == sorted(LENGTHS)
    with pytest.raises(ArgumentError, match="shuffle='lengths' is for sequences"):
        side.output_dataloader([(1.0, 0)], {0: [0.5, 0.5]}, 4, "lengths", seed=1)


@pytest.mark.parametrize("shuffle", [True, "lengths"])
def test_a_run_goes_on_in_the_middle_of_an_epoch_on_other_ranks(
    side: Any, store: fostore.Store, shuffle: Any
) -> None:
    def loader(**options: Any) -> Any:
        return side.output_dataloader(SAMPLES, store, shuffle=shuffle, seed=3, **options)

    whole = [i for inputs, _ in loader(batch_size=4) for i in sequences_in(inputs)]
    first, batches = loader(batch_size=4), []
    reading = iter(first)
    batches += sequences_in(next(reading)[0])
    state = first.state_dict()
    for rank in range(2):
        own = loader(batch_size=2, rank=rank, num_ranks=2)
        own.load_state_dict(state)
        batches += [i for inputs, _ in own for i in sequences_in(inputs)]
    assert sorted(batches) == sorted(whole) == list(range(11))


# ------------------------------------------------------------------ torch


def left(samples: list[Any]) -> dict[str, torch.Tensor]:
    """A collator that fills lines up before their tokens."""
    longest = max(len(one["input_ids"]) for one in samples)
    fill = [longest - len(one["input_ids"]) for one in samples]
    return {
        "input_ids": torch.tensor(
            [[0] * n + one["input_ids"] for n, one in zip(fill, samples, strict=True)]
        ),
        "attention_mask": torch.tensor([[0] * n + [1] * (longest - n) for n in fill]),
    }


@pytest.mark.parametrize("key", [None, "teacher"])
def test_rows_follow_the_batch_that_a_users_collator_makes(
    store: fostore.Store, key: str | None
) -> None:
    loader = fostore.torch.output_dataloader(
        SAMPLES, store, batch_size=4, collate_fn=left, target_key=key
    )
    for batch in loader:
        inputs, rows = (batch, batch["teacher"]) if key else batch
        assert inputs["attention_mask"][0, -1] == 1
        assert_beside(store, inputs, rows)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            lambda one: {k: v[:, :3] for k, v in one.items()},
            ArgumentError,
            r"sequence 1 has 3 tokens in the student's batch, and the store has 9 rows .*truncation",
        ),
        (
            lambda one: {**one, "input_ids": one["input_ids"].clamp(max=100)},
            IdentityError,
            r"has token 100 at position \d+ of the student's batch",
        ),
        (
            lambda one: {"input_ids": one["input_ids"][:, :3]},
            ArgumentError,
            r"sequence 1 has 3 tokens in the student's batch, and the store has a row behind",
        ),
        (
            lambda one: {"input_ids": one["input_ids"].reshape(-1)},
            ArgumentError,
            r"tokens of shape \(36,\), expected \(4, length\)",
        ),
    ],
)
def test_a_batch_of_other_tokens_is_refused(
    store: fostore.Store, change: Any, error: Any, message: str
) -> None:
    dataset = fostore.torch.FirstOrderDataset(SAMPLES, store)

    def right(samples: list[Any]) -> Any:
        padded = torch.nn.utils.rnn.pad_sequence(
            [torch.tensor(one["input_ids"]) for one in samples], batch_first=True
        )
        lengths = torch.tensor([len(one["input_ids"]) for one in samples])
        mask = (torch.arange(padded.shape[1]) < lengths[:, None]).long()
        return change({"input_ids": padded, "attention_mask": mask})

    loader = DataLoader(dataset, batch_size=4, collate_fn=dataset.collator(right))
    with pytest.raises(error, match=message):
        list(loader)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("key", [None, "teacher"])
def test_stock_loaders_and_workers_make_the_same_batches(
    store: fostore.Store, workers: int, key: str | None
) -> None:
    dataset = fostore.torch.FirstOrderDataset(SAMPLES, store, target_key=key)
    options: Any = {
        "num_workers": workers,
        "multiprocessing_context": "fork" if workers else None,
    }
    for subset in (dataset, Subset(dataset, [4, 2, 9])):
        for batch in DataLoader(subset, batch_size=4, **options):
            inputs, rows = (batch, batch["teacher"]) if key else batch
            assert_beside(store, inputs, rows)
    one_by_one = default_collate([dataset[i] for i in (3, 1)])
    assert_beside(store, *((one_by_one, one_by_one["teacher"]) if key else one_by_one))
    assert_beside(store, *_pair(default_collate([pickle.loads(pickle.dumps(dataset[3]))]), key))
    alone = fostore.torch.FirstOrderDataset(None, store)
    for rows in DataLoader(alone, batch_size=11, **options):
        assert rows.mask.sum(1).tolist() == LENGTHS
    assert default_collate([alone[3], alone[0]]).mask.sum(1).tolist() == [1, 3]


def _pair(batch: Any, key: str | None) -> Any:
    return (batch, batch[key]) if key else batch


def test_batches_move_as_tensors_do(store: fostore.Store) -> None:
    batch = next(iter(fostore.torch.output_dataloader(SAMPLES, store, batch_size=4)))
    moved = fostore.torch.to_device(batch, "meta")[1]
    assert {moved.mask.device.type, moved.distributions.ids.device.type} == {"meta"}
    assert batch[1].to("meta", non_blocking=True).tokens.device.type == "meta"
    with pytest.raises(ArgumentError, match="of samples, not of tokens"):
        fostore.torch.FirstOrderDataset([(1.0, 0)], {0: [0.5, 0.5]}).collator()


def test_batches_go_through_jit(store: fostore.Store) -> None:
    loader = fostore.jax.output_dataloader(SAMPLES, store, batch_size=4, pad_length=12)
    count = jax.jit(lambda rows: rows.mask.sum() + 0 * rows.distributions.ids.sum())
    counts = [int(count(rows)) for _, rows in loader]
    assert counts == [sum(LENGTHS[at : at + 4]) for at in (0, 4, 8)]


# ------------------------------------------------------------------ other people's loops, a whole story


@pytest.fixture
def quiet(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing is fetched, nothing is written beside the test, and no library logs to the console."""
    monkeypatch.chdir(tmp_path)
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.setenv(name, "1")
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)


def gpt2(seed: int) -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(seed)
    config = GPT2Config(vocab_size=V, n_positions=16, n_embd=16, n_layer=1, n_head=2)
    return GPT2LMHeadModel(config)


def teachers(path: Path) -> tuple[Any, fostore.Store]:
    """A teacher with opinions, and what it says at every token."""
    teacher = gpt2(0).eval()
    with torch.no_grad():
        teacher.lm_head.weight.mul_(20)
    options: dict[str, Any] = {"num_samples": N, "num_sequences": 11, "kind": "logits"}
    options |= {"num_classes": V, "rows": "tokens", "encoding": "topk", "k": 40}
    with fostore.create(path, **options) as writer, torch.no_grad():
        for number, one in enumerate(SAMPLES):
            ids = torch.tensor([one["input_ids"]])
            rows = teacher(input_ids=ids).logits[0]
            numbers = [number] * len(rows)
            writer.append(rows.numpy(), sequences=numbers, tokens=one["input_ids"])
    return teacher, fostore.open(path)


def step(student: Any, inputs: Any, rows: PaddedBatch) -> torch.Tensor:
    logits = student(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits
    return fostore.torch.topk_distillation_loss(logits, rows.distributions, mask=rows.mask)


@pytest.mark.usefixtures("quiet")
def test_lightning_trains_on_sequences(tmp_path: Path) -> None:
    import lightning

    _, store = teachers(tmp_path / "rows.zarr")
    loader = fostore.torch.output_dataloader(SAMPLES, store, batch_size=4, shuffle=True, seed=0)

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.student = gpt2(1)
            self.seen: list[int] = []
            self.losses: list[float] = []

        def training_step(self, batch: Any, _: int) -> torch.Tensor:
            inputs, rows = batch
            assert_beside(store, inputs, rows)
            self.seen += sequences_in(inputs)
            loss = step(self.student, inputs, rows)
            self.losses.append(loss.item())
            return loss

        def configure_optimizers(self) -> Any:
            return torch.optim.Adam(self.student.parameters(), 1e-2)

    module = Module()
    silent: dict[str, Any] = {"enable_progress_bar": False, "enable_model_summary": False}
    lightning.Trainer(
        accelerator="cpu",
        devices=1,
        logger=False,
        max_epochs=8,
        enable_checkpointing=False,
        **silent,
    ).fit(module, loader)
    assert sorted(module.seen) == sorted(list(range(11)) * 8)
    assert np.mean(module.losses[-3:]) < np.mean(module.losses[:3]) / 2


@pytest.mark.usefixtures("quiet")
def test_the_trainer_of_hugging_face_trains_on_sequences(tmp_path: Path) -> None:
    from transformers import Trainer, TrainingArguments

    _, store = teachers(tmp_path / "rows.zarr")
    dataset = fostore.torch.FirstOrderDataset(SAMPLES, store, target_key="teacher")
    seen: list[int] = []
    losses: list[float] = []

    class Distilling(Trainer):
        def compute_loss(self, model: Any, inputs: Any, **_: Any) -> torch.Tensor:
            rows = inputs.pop("teacher")
            assert_beside(store, inputs, rows)
            seen.extend(sequences_in(inputs))
            loss = step(model, inputs, rows)
            losses.append(loss.item())
            return loss

    arguments = TrainingArguments(
        "out", per_device_train_batch_size=4, num_train_epochs=12, learning_rate=1e-2, report_to="none",
        use_cpu=True, save_strategy="no", disable_tqdm=True, logging_strategy="no", lr_scheduler_type="constant",
    )  # fmt: skip
    Distilling(
        gpt2(1), arguments, train_dataset=dataset, data_collator=dataset.collator(left)
    ).train()
    assert sorted(seen) == sorted(list(range(11)) * 12)
    assert np.mean(losses[-3:]) < np.mean(losses[:3]) / 2


# ------------------------------------------------------------------ another vocabulary


class Words:
    """A tokenizer as Hugging Face's tell of themselves."""

    def __init__(self, name: str, words: list[str]) -> None:
        self.name_or_path, self._words = name, words

    def __call__(self, text: str) -> list[int]:
        return [self._words.index(word) for word in text.split()]

    def get_vocab(self) -> dict[str, int]:
        return {word: at for at, word in enumerate(self._words)}


def test_rows_and_tokens_come_in_the_students_vocabulary(store: fostore.Store, side: Any) -> None:
    order = np.random.default_rng(3).permutation(V)
    own = [{"input_ids": order[one["input_ids"]].tolist()} for one in SAMPLES]
    with pytest.raises(IdentityError, match="token"):
        side.FirstOrderDataset(own, store)
    dataset = side.FirstOrderDataset(own, store, class_map=order)
    _, rows = dataset[1]
    theirs = store.sequences[1]
    np.testing.assert_array_equal(np.asarray(rows.tokens), order[theirs.tokens])
    np.testing.assert_array_equal(
        np.asarray(rows.distributions.ids), order[theirs.distributions.ids]
    )
    np.testing.assert_array_equal(
        np.asarray(rows.distributions.residual), theirs.distributions.residual
    )
    for inputs, padded in side.output_dataloader(own, store, 4, class_map=order):
        mask = np.asarray(inputs["attention_mask"]) != 0
        np.testing.assert_array_equal(
            np.asarray(padded.tokens)[mask], np.asarray(inputs["input_ids"])[mask]
        )


def test_a_student_with_another_vocabulary_is_refused_by_name(tmp_path: Path) -> None:
    words = [f"w{i}" for i in range(V)]
    teacher = Words("teacher/words", words)

    def model(batch: Any) -> Any:
        ids = np.asarray(batch["input_ids"] if isinstance(batch, dict) else batch)
        return np.broadcast_to(LOGITS[0], (*ids.shape, V))

    texts = [" ".join(words[token] for token in one["input_ids"]) for one in SAMPLES]
    generator = fostore.FirstOrderDataGenerator(model, batch_size=4)
    store = generator.generate_distributions(
        texts,
        False,
        store=tmp_path / "t.zarr",
        rows="tokens",
        tokenizer=teacher,
        encoding="topk",
        k=K,
    )
    fostore.FirstOrderDataset(SAMPLES, store, tokenizer=teacher)
    student = Words("student/words", words[::-1])
    with pytest.raises(
        IdentityError,
        match=r"\(student/words\) has another vocabulary than the teacher's \(teacher",
    ):
        fostore.FirstOrderDataset(SAMPLES, store, tokenizer=student)
    backwards = [{"input_ids": [V - 1 - token for token in one["input_ids"]]} for one in SAMPLES]
    mapped = fostore.ClassMap(np.arange(V)[::-1])
    fostore.FirstOrderDataset(backwards, store, tokenizer=student, class_map=mapped)


def test_classes_that_share_one_add_up_in_dense_rows(tmp_path: Path, side: Any) -> None:
    probs = np.random.default_rng(1).dirichlet(np.ones(6), size=5).astype(np.float32)
    with fostore.create(tmp_path / "d.zarr", num_samples=5, num_classes=6) as writer:
        writer.append(probs)
    halves = side.FirstOrderDataset(None, tmp_path / "d.zarr", class_map=np.arange(6) // 2)
    expected = probs.reshape(5, 3, 2).sum(-1)
    np.testing.assert_allclose(
        np.stack([np.asarray(halves[i]) for i in range(5)]), expected, rtol=1e-6
    )
    with pytest.raises(ArgumentError, match="tokenizer= is of rows of tokens"):
        side.FirstOrderDataset(None, tmp_path / "d.zarr", tokenizer=str)
    with pytest.raises(ArgumentError, match="as_kind"):
        side.FirstOrderDataset(
            None, tmp_path / "d.zarr", class_map=np.arange(6), as_kind="log_probs"
        )
