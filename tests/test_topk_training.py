"""Training on a store of top-k rows: samples and batches with a `TopK` each, in NumPy, torch and JAX."""

from __future__ import annotations

import pickle
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Subset

import fostore
import fostore.jax
import fostore.torch
from fostore import nested
from fostore.encodings.topk_rows import TopK
from fostore.errors import ArgumentError
from support import SUFFIXES

NUM_SAMPLES, NUM_CLASSES, K = 50, 300, 8
RNG = np.random.default_rng(0)
LOGITS = (RNG.normal(size=(NUM_SAMPLES, NUM_CLASSES)) * 3).astype(np.float32)
SAMPLES = [(np.full(4, i, np.float32), i % 7) for i in range(NUM_SAMPLES)]


def made(path: Path, **options: Any) -> fostore.Store:
    given: dict[str, Any] = {"dtype": "float16", "kind": "logits", "encoding": "topk", "k": K}
    given |= {"num_samples": NUM_SAMPLES, "num_classes": NUM_CLASSES, "temperatures": (2.0,)}
    with fostore.create(path, **given | options) as writer:
        writer.append(LOGITS)
    return fostore.open(path)


@pytest.fixture(params=SUFFIXES)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> fostore.Store:
    return made(tmp_path / f"rows{request.param}")


@pytest.fixture(params=[fostore, fostore.torch, fostore.jax], ids=lambda m: m.__name__)
def side(request: pytest.FixtureRequest) -> Any:
    return request.param


ARRAYS = {"fostore": np.ndarray, "fostore.torch": torch.Tensor, "fostore.jax": jax.Array}


def assert_rows(side: ModuleType, topk: Any, store: fostore.Store, rows: Any) -> None:
    """That a batch's top-k rows are those of the store, as arrays of the side, values in float32."""
    assert isinstance(topk, TopK)
    expected = store.take_topk(rows)
    for name in ("values", "ids", "residual", "residual_t"):
        array = getattr(topk, name)
        assert isinstance(array, ARRAYS[side.__name__])
        np.testing.assert_array_equal(np.asarray(array), getattr(expected, name))
    assert str(topk.values.dtype).endswith("float32")
    assert (topk.num_classes, topk.rule, topk.temperatures) == (NUM_CLASSES, "coarse", (2.0,))


def test_a_sample_comes_with_its_row(side: Any, store: fostore.Store) -> None:
    dataset = side.FirstOrderDataset(SAMPLES, store)
    inputs, label, topk = dataset[7]
    assert (float(inputs[0]), int(label)) == (7, 0)
    np.testing.assert_array_equal(np.asarray(topk.ids), store.take_topk([7]).ids[0])
    assert topk.values.shape == (K,)
    assert topk.residual.shape == ()


@pytest.mark.parametrize("shuffle", [False, True])
def test_batches_come_with_their_rows(side: Any, store: fostore.Store, shuffle: bool) -> None:
    loader = side.output_dataloader(SAMPLES, store, batch_size=8, shuffle=shuffle, seed=1)
    seen = []
    for inputs, _, topk in loader:
        rows = [int(number) for number in inputs[:, 0]]
        assert_rows(side, topk, store, rows)
        seen += rows
    assert sorted(seen) == list(range(NUM_SAMPLES))
    assert (seen == sorted(seen)) is not shuffle


def test_rows_alone_come_in_batches(side: Any, store: fostore.Store) -> None:
    """Several batches share one gather."""
    batches = list(side.output_dataloader(None, store, batch_size=8))
    assert [len(topk) for topk in batches] == [8] * 6 + [2]
    for at, topk in enumerate(batches):
        assert_rows(side, topk, store, range(8 * at, min(8 * at + 8, NUM_SAMPLES)))


def test_rows_stand_under_the_key_that_is_asked_for(side: Any, store: fostore.Store) -> None:
    samples = [{"x": one, "y": label} for one, label in SAMPLES]
    loader = side.output_dataloader(samples, store, batch_size=8, target_key="teacher")
    batch = next(iter(loader))
    assert_rows(side, batch["teacher"], store, range(8))
    assert batch["x"].shape == (8, 4)


def test_a_rule_makes_dense_rows(side: Any, store: fostore.Store) -> None:
    loader = side.output_dataloader(SAMPLES, store, batch_size=8, rule="uniform", temperature=2.0)
    rows = next(iter(loader))[-1]
    expected = store.take(range(8), rule="uniform", temperature=2.0)
    np.testing.assert_allclose(np.asarray(rows), expected, rtol=1e-6)


def test_stored_dtypes_are_kept_where_none_is_asked_for(side: Any, store: fostore.Store) -> None:
    _, _, topk = side.FirstOrderDataset(SAMPLES, store, dtype=None)[3]
    assert str(topk.values.dtype).endswith("float16")
    assert str(topk.residual.dtype).endswith("float32")


def test_plain_pairs_have_a_row_each(side: Any, store: fostore.Store) -> None:
    pairs = side.FirstOrderDataset(SAMPLES, store).as_pairs()
    inputs, topk = pairs[9]
    assert float(inputs[0]) == 9
    np.testing.assert_array_equal(np.asarray(topk.ids), store.take_topk([9]).ids[0])
    assert len(pairs.targets) == NUM_SAMPLES
    with pytest.raises(ValueError, match="read-only"):
        pairs.targets.values[0] = 0


def test_rows_are_cut_with_the_batch_that_they_are_in(store: fostore.Store) -> None:
    topk = store.take_topk(range(4))
    batch = {"teacher": topk, "x": [np.arange(4), "text"]}
    some = nested.slice_rows(batch, 1, 3, 4)
    np.testing.assert_array_equal(some["teacher"].ids, topk.ids[1:3])
    assert nested.common_rows(batch) == 4
    assert nested.pad_rows(some, 2, 5)["teacher"].residual_t.shape == (5, 1)
    np.testing.assert_array_equal(topk[2].values, topk.values[2])


def test_what_says_nothing_of_kept_classes_is_refused(side: Any, store: fostore.Store) -> None:
    with pytest.raises(ArgumentError, match=r"leave them to the loss, or name a rule"):
        side.FirstOrderDataset(SAMPLES, store, temperature=2.0)
    with pytest.raises(ArgumentError, match=r"as_kind='log_probs' .* name a rule"):
        side.FirstOrderDataset(SAMPLES, store, as_kind="log_probs")
    with pytest.raises(ArgumentError, match="coarse"):
        side.FirstOrderDataset(SAMPLES, store, rule="coarse")
    with pytest.raises(ArgumentError, match=r"rule='uniform' are for a store"):
        side.FirstOrderDataset(SAMPLES[:1], {0: [0.5, 0.5]}, rule="uniform")


def test_members_keep_their_axis(side: Any, tmp_path: Path) -> None:
    path = tmp_path / "members.zarr"
    with fostore.create(
        path,
        num_samples=5,
        num_classes=NUM_CLASSES,
        num_members=2,
        kind="logits",
        encoding="topk",
        k=K,
    ) as writer:
        writer.append(LOGITS[:10].reshape(5, 2, -1))
    topk = next(iter(side.output_dataloader(None, path, batch_size=5)))
    assert topk.values.shape == (5, 2, K)
    with pytest.raises(ArgumentError, match="take one member"):
        fostore.jax.topk_distillation_loss(LOGITS[:5], topk.map(np.asarray))
    first = topk.map(lambda array: array[:, 0])
    assert np.isfinite(fostore.jax.topk_distillation_loss(LOGITS[:5], first.map(np.asarray)))


# torch's own loaders, workers and movers


@pytest.mark.parametrize("workers", [0, 2])
def test_stock_loaders_and_workers_make_the_same_batches(
    store: fostore.Store, workers: int
) -> None:
    dataset = fostore.torch.FirstOrderDataset(SAMPLES, store)
    options: Any = {"num_workers": workers, "multiprocessing_context": "fork" if workers else None}
    for subset in (dataset, Subset(dataset, range(NUM_SAMPLES))):
        for at, (_, _, topk) in enumerate(DataLoader(subset, batch_size=10, **options)):
            assert_rows(fostore.torch, topk, store, range(10 * at, 10 * at + 10))
    one_by_one = torch.utils.data.default_collate([dataset[i] for i in (3, 1)])[2]
    assert_rows(fostore.torch, one_by_one, store, [3, 1])
    alone = fostore.torch.FirstOrderDataset(None, store)
    for topk in DataLoader(alone, batch_size=25, **options):
        assert len(topk) == 25
    assert_rows(
        fostore.torch, torch.utils.data.default_collate([alone[i] for i in (3, 1)]), store, [3, 1]
    )


def test_rows_of_several_kinds_make_no_batch(store: fostore.Store, tmp_path: Path) -> None:
    other = made(tmp_path / "other.zarr", k=4)
    rows = [fostore.torch.FirstOrderDataset(None, one)[0] for one in (store, other)]
    with pytest.raises(
        ArgumentError, match=r"row 1 of the batch has .*\(4,\).* the first .*\(8,\)"
    ):
        torch.utils.data.default_collate(rows)


def test_rows_move_and_are_pinned_as_tensors_are(store: fostore.Store) -> None:
    topk = fostore.torch.as_topk(store.take_topk([0, 1]))
    batch = {"inputs": [torch.zeros(2), topk]}
    moved = fostore.torch.to_device(batch, "meta")["inputs"][1]
    assert {one.device.type for one in (moved.values, moved.ids, moved.residual_t)} == {"meta"}
    assert topk.to("meta", non_blocking=True).residual.device.type == "meta"
    for ready in fostore.torch.prefetch_to_device([batch], "cpu"):
        assert_rows_equal(ready["inputs"][1], topk)
    assert_rows_equal(pickle.loads(pickle.dumps(topk)), topk)
    numbers = store.take_topk([0])  # of NumPy: nothing to move
    assert numbers.to("meta").values is numbers.values


def test_rows_are_no_sequence_that_others_would_walk(store: fostore.Store) -> None:
    topk = store.take_topk([0, 1])
    assert len(topk) == 2
    with pytest.raises(TypeError):
        iter(topk)


def assert_rows_equal(one: TopK, other: TopK) -> None:
    for name in ("values", "ids", "residual", "residual_t"):
        assert torch.equal(getattr(one, name), getattr(other, name))


def test_as_topk_takes_any_classes_and_halves(tmp_path: Path) -> None:
    wide = made(tmp_path / "wide.zarr", num_classes=NUM_CLASSES, dtype="bfloat16")
    topk = fostore.torch.as_topk(wide.take_topk(range(3)))
    assert (topk.ids.dtype, topk.values.dtype) == (torch.int64, torch.float32)
    rows = TopK(np.zeros((2, 1)), np.full((2, 1), 100_000, np.uint32), np.zeros(2), 128_256)
    assert fostore.torch.as_topk(rows).ids.tolist() == [[100_000]] * 2
    assert fostore.torch.as_topk(fostore.torch.as_topk(rows)).ids.dtype == torch.int64


# JAX's devices, masks and splits


def test_the_last_batch_is_filled_and_masked(store: fostore.Store) -> None:
    loader = fostore.jax.output_dataloader(SAMPLES, store, batch_size=16, mask_last=True)
    *_, (inputs, _, topk, mask) = loader
    assert len(topk) == len(inputs) == 16
    assert int(mask.sum()) == NUM_SAMPLES % 16
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    loader = fostore.jax.output_dataloader(SAMPLES, store, batch_size=10, device=sharding)
    assert_rows(fostore.jax, next(iter(loader))[-1], store, range(10))


def test_rows_go_through_jit(store: fostore.Store) -> None:
    topk = next(iter(fostore.jax.output_dataloader(None, store, batch_size=4)))
    doubled = jax.jit(lambda rows: jax.tree.map(lambda a: a + a, rows))(topk)
    assert isinstance(doubled, TopK)
    np.testing.assert_array_equal(doubled.values, 2 * topk.values)
    assert doubled.temperatures == (2.0,)


# A whole story


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_students_learn_from_stored_rows_what_they_learn_from_the_teacher(
    tmp_path: Path, suffix: str
) -> None:
    """One step of gradient descent from the store is one from the teacher's logits, over k + 1 outcomes."""
    torch.manual_seed(0)
    inputs = torch.randn(40, 12)
    teacher, student = torch.nn.Linear(12, NUM_CLASSES), torch.nn.Linear(12, NUM_CLASSES)
    with torch.no_grad():
        teacher.weight.mul_(8)
        logits = teacher(inputs)
    path = tmp_path / f"teacher{suffix}"
    with fostore.create(
        path, num_samples=40, num_classes=NUM_CLASSES, kind="logits", encoding="topk", k=60
    ) as writer:
        for some in logits.split(15):
            writer.append(fostore.torch.select_topk(some, 60))
    samples = [(x, 0) for x in inputs]
    optimizer = torch.optim.Adam(student.parameters(), lr=0.05)

    def apart() -> float:
        with torch.no_grad():
            return float(
                fostore.torch.distillation_loss(student(inputs), logits, teacher_kind="logits")
            )

    before = apart()
    for _ in range(15):
        for some, _, topk in fostore.torch.output_dataloader(samples, path, batch_size=8, seed=0):
            optimizer.zero_grad()
            fostore.torch.topk_distillation_loss(student(some), topk).backward()
            optimizer.step()
    assert apart() < before / 20
