"""The promises of generation that hold on every side: NumPy, torch and JAX."""

from __future__ import annotations

import functools
import random
import warnings
from collections import namedtuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fostore
from fostore.errors import (
    ArgumentError,
    GenerationError,
    IdentityError,
    RowError,
    StoreExistsError,
)
from sides import NUM_CLASSES, SIDES, Linear, Pairs, Side, Stream, make_pairs, softmax

Point = namedtuple("Point", "x y")


def assert_rows(result: Any, expected: np.ndarray, rows: Any = None) -> None:
    rows = range(len(expected)) if rows is None else rows
    assert list(result.keys()) == list(rows)
    for row in rows:
        np.testing.assert_allclose(result[row], expected[row], rtol=1e-5, atol=1e-6)


# ------------------------------------------------------------------ what comes out


def test_every_row_is_the_softmax_of_the_model_called_directly(side: Side) -> None:
    pairs, linear = make_pairs(), Linear()
    generator = side.generator(side.model(linear), batch_size=16, output_mode="logits")
    result = generator.generate_distributions(pairs, progress=False)
    assert type(result) is dict
    assert result[0].dtype == np.float32
    assert_rows(result, softmax(pairs.inputs @ linear.weight))
    assert linear.batches == [16] * 6 + [4]


def test_parameters_may_be_given_by_position_in_the_order_of_the_guide(side: Side) -> None:
    pairs, linear = make_pairs(), Linear()
    generator = side.generator(
        side.model(linear), "cpu", 7, "probs", side.softmax, lambda sample: sample[0], "name"
    )
    assert (generator.device, generator.batch_size, generator.output_mode) == ("cpu", 7, "probs")
    assert generator.model_name == "name"
    result = generator.generate_distributions(pairs, False)
    assert_rows(result, softmax(pairs.inputs @ linear.weight))


def test_the_transform_comes_before_the_softmax(side: Side) -> None:
    pairs, linear = make_pairs(), Linear()
    generator = side.generator(
        side.model(linear), output_mode="logits", output_transform=lambda out: out * 3
    )
    result = generator.generate_distributions(pairs, False)
    assert_rows(result, softmax(3 * (pairs.inputs @ linear.weight)))


def test_probabilities_are_used_as_they_are(side: Side) -> None:
    pairs, linear = make_pairs(), Linear()
    expected = softmax(pairs.inputs @ linear.weight)
    for mode in ("probs", "auto"):
        generator = side.generator(side.model(lambda x: softmax(linear(x))), output_mode=mode)
        assert_rows(generator.generate_distributions(pairs, False), expected)


def test_rows_do_not_share_the_buffer_that_a_model_reuses(side: Side) -> None:
    buffer = np.zeros((2, 2), np.float32)

    def model(x: np.ndarray) -> np.ndarray:
        buffer[:] = np.stack([x[:, 0], 1 - x[:, 0]], axis=1)
        return buffer

    inputs = np.float32([[0.1], [0.2], [0.3], [0.4]])
    generator = side.generator(side.model(model), batch_size=2, output_mode="probs")
    if side.name == "torch":
        import torch

        generator = side.generator(
            lambda x: torch.from_numpy(model(x.numpy())), batch_size=2, output_mode="probs"
        )
    result = generator.generate_distributions(Pairs(inputs), False)
    np.testing.assert_allclose([result[i][0] for i in range(4)], inputs[:, 0])


def test_half_precision_logits_are_softmaxed_in_float32(side: Side) -> None:
    logits = np.random.default_rng(0).normal(size=(8, 1000)).astype(np.float16)
    generator = side.generator(side.model(lambda x: x), output_mode="logits")
    result = generator.generate_distributions(Pairs(logits), False)
    assert_rows(result, softmax(logits.astype(np.float32)))


def test_a_temperature_divides_logits(side: Side, tmp_path: Path) -> None:
    pairs, linear = make_pairs(), Linear()
    generator = side.generator(side.model(linear))
    options = {"store": tmp_path / "a.zarr", "temperature": 2.0}
    store = generator.generate_distributions(pairs, False, **options)
    assert store.schema.temperature == 2.0
    assert_rows(store, softmax(pairs.inputs @ linear.weight / 2))


def test_integer_inputs_stay_integers(side: Side) -> None:
    tokens = np.random.default_rng(0).integers(0, 50, (20, 6)).astype(np.int32)
    seen = []

    def model(x: np.ndarray) -> np.ndarray:
        seen.append(x.dtype)
        return np.eye(NUM_CLASSES, dtype=np.float32)[x[:, 0] % NUM_CLASSES] * 3

    side.generator(side.model(model)).generate_distributions(Pairs(tokens), False)
    assert set(seen) == {np.dtype(np.int32)}


# ------------------------------------------------------------------ what is read


def test_the_input_getter_gets_one_sample(side: Side) -> None:
    rows = make_pairs().inputs
    samples = [{"image": x, "meta": {"id": str(i)}} for i, x in enumerate(rows)]
    seen = []

    def getter(sample: Any) -> Any:
        seen.append(sample["meta"]["id"])
        return sample["image"]

    linear = Linear()
    generator = side.generator(side.model(linear), input_getter=getter)
    assert_rows(generator.generate_distributions(samples, False), softmax(rows @ linear.weight))
    assert seen == [str(i) for i in range(len(rows))]


def test_a_simple_loader_brings_its_batch_size(side: Side) -> None:
    pairs, linear = make_pairs(), Linear()
    loader = fostore.SimpleDataLoader(pairs, batch_size=32, shuffle=False)
    result = side.generator(side.model(linear)).generate_distributions(loader, False)
    assert_rows(result, softmax(pairs.inputs @ linear.weight))
    assert linear.batches == [32, 32, 32, 4]


def test_a_loader_that_shuffles_is_refused(side: Side) -> None:
    loader = fostore.SimpleDataLoader(make_pairs(), shuffle=True)
    with pytest.raises(ArgumentError, match="shuffle=False"):
        side.generator(side.model(Linear())).generate_distributions(loader, False)


def test_a_stream_is_numbered_as_it_comes(side: Side) -> None:
    pairs, linear = make_pairs(), Linear()
    generator = side.generator(side.model(linear), batch_size=16)
    result = generator.generate_distributions(Stream(pairs.inputs), False)
    assert_rows(result, softmax(pairs.inputs @ linear.weight))
    result = generator.generate_distributions((p for p in pairs), False)
    assert_rows(result, softmax(pairs.inputs @ linear.weight))


@pytest.mark.parametrize("kind", ["list", "tuple", "mapping"])
def test_a_single_batch_is_no_dataset(side: Side, kind: str) -> None:
    images, labels = side.array(np.zeros((8, 4), np.float32)), side.array(np.zeros(8, np.int32))
    batch: Any = {"list": [images, labels], "tuple": (images, labels), "mapping": {"x": images}}
    with pytest.raises(ArgumentError, match=r"Dataset.*DataLoader"):
        side.generator(side.model(Linear())).generate_distributions(batch[kind], False)


@pytest.mark.parametrize("name", ["numpy", "jax"])
def test_batches_given_one_after_another_are_warned_of(name: str) -> None:
    side, rows = SIDES[name], make_pairs().inputs
    generator = side.generator(side.model(Linear()), output_mode="logits")
    generator.generate_distributions(side.array(rows[:8]), False)
    with pytest.warns(UserWarning, match="numbered from 0"):
        generator.generate_distributions(side.array(rows[8:16]), False)


def test_a_dict_batch_becomes_keywords_where_the_model_takes_them(side: Side) -> None:
    pairs, linear = make_pairs(), Linear()
    samples = [{"a": x, "b": 2 * x} for x in pairs.inputs]
    model = side.model(linear)
    expected = softmax(3 * pairs.inputs @ linear.weight)
    by_keyword = side.generator(lambda a, b, unused=None: model(a + b))
    assert_rows(by_keyword.generate_distributions(samples, False), expected)
    whole = side.generator(lambda batch: model(batch["a"] + batch["b"]))
    assert_rows(whole.generate_distributions(samples, False), expected)
    with pytest.raises(ArgumentError, match=r"\['b'\].*input_getter"):
        side.generator(lambda a: model(a)).generate_distributions(samples, False)


def test_a_collate_fn_makes_the_batch(side: Side) -> None:
    ragged = [np.ones(1 + i % 4, np.float32) for i in range(20)]

    def pad(samples: list[Any]) -> Any:
        return side.array(np.stack([np.pad(np.asarray(s), (0, 4 - len(s))) for s in samples]))

    linear = Linear()
    generator = side.generator(side.model(linear), batch_size=8)
    result = generator.generate_distributions(Pairs(ragged), False, collate_fn=pad)  # type: ignore[arg-type]
    padded = np.stack([np.pad(s, (0, 4 - len(s))) for s in ragged])
    assert_rows(result, softmax(padded @ linear.weight))


def test_a_short_batch_is_refused(side: Side) -> None:
    linear = Linear()
    model = side.model(lambda x: linear(x)[:-1])
    with pytest.raises(ArgumentError, match="15 rows for the 16 samples of a batch"):
        side.generator(model, batch_size=16).generate_distributions(make_pairs(), False)


# ------------------------------------------------------------------ what the numbers are


def test_auto_refuses_outputs_of_both_kinds(side: Side) -> None:
    rows = np.float32([[1, 0, 0], [2, 0, 0]])
    with pytest.raises(RowError, match=r"sample 0 is a distribution, that for sample 1 is not"):
        side.generator(side.model(lambda x: x)).generate_distributions(Pairs(rows), False)


@pytest.mark.parametrize("stored", [False, True])
def test_auto_checks_later_probabilities(side: Side, stored: bool, tmp_path: Path) -> None:
    rows = np.full((10, 4), 0.25, np.float32)
    rows[7] = [3, 1, 0, 0]
    generator = side.generator(side.model(lambda x: x), batch_size=4)
    options = {"store": tmp_path / "a.zarr"} if stored else {}
    with pytest.raises(RowError, match=r"row 7 .*say output_mode='logits'"):
        generator.generate_distributions(Pairs(rows), False, **options)


def test_auto_checks_later_logits(side: Side) -> None:
    rows = np.random.default_rng(0).normal(size=(12, 4)).astype(np.float32)
    rows[5] = 0.25  # one row alone may look like a distribution
    rows[8:] = 0.25
    generator = side.generator(side.model(lambda x: x), batch_size=4)
    with pytest.raises(RowError, match=r"samples 8 to 11 is a distribution; say output_mode"):
        generator.generate_distributions(Pairs(rows), False)
    said = side.generator(side.model(lambda x: x), batch_size=4, output_mode="logits")
    assert_rows(said.generate_distributions(Pairs(rows), False), softmax(rows))


@pytest.mark.parametrize("mode", ["auto", "logits"])
def test_outputs_that_are_not_finite_are_refused(side: Side, mode: str) -> None:
    rows = np.full((10, 4), -1, np.float32)
    rows[6, 1] = np.nan
    generator = side.generator(side.model(lambda x: x), batch_size=4, output_mode=mode)
    with pytest.raises(RowError, match="row 6"):
        generator.generate_distributions(Pairs(rows), False)


def test_outputs_that_are_no_rows_of_numbers_are_refused(side: Side) -> None:
    pairs = make_pairs()
    for function, words in [
        (lambda x: x[:, 0].astype(np.int32)[:, None] + np.zeros(3, np.int32), "floating point"),
        (lambda x: x[:, 0], r"shape \(64,\)"),
        (lambda x: x[:, :1], "softmax is always 1"),
        (lambda x: x[:, :, None, None], r"shape \(64, 4, 1, 1\)"),
    ]:
        with pytest.raises(ArgumentError, match=words):
            side.generator(side.model(function)).generate_distributions(pairs, False)
    with pytest.raises(ArgumentError, match=r"must return .*, not dict with the keys.*transform"):
        side.generator(lambda x: {"other": x}).generate_distributions(pairs, False)


def test_an_output_with_logits_is_understood(side: Side) -> None:
    pairs, linear = make_pairs(), Linear()
    model = side.model(linear)
    expected = softmax(pairs.inputs @ linear.weight)

    class Output:
        def __init__(self, logits: Any) -> None:
            self.logits = logits

    for wrap in (lambda y: {"logits": y, "features": y}, Output):
        generator = side.generator(lambda x, wrap=wrap: wrap(model(x)))
        assert_rows(generator.generate_distributions(pairs, False), expected)


def test_a_list_of_models_fills_a_member_axis(side: Side, path: Path) -> None:
    pairs, members = make_pairs(), [Linear(seed) for seed in range(3)]
    expected = np.stack([softmax(pairs.inputs @ m.weight) for m in members], axis=1)
    generator = side.generator([side.model(m) for m in members])
    assert_rows(generator.generate_distributions(pairs, False), expected)
    store = generator.generate_distributions(pairs, False, store=path)
    assert store.num_members == 3
    assert_rows(store, expected)


def test_the_transform_of_several_models_gets_the_list(side: Side) -> None:
    pairs, members = make_pairs(), [Linear(seed) for seed in range(3)]
    expected = np.mean([softmax(pairs.inputs @ m.weight) for m in members], axis=0)
    generator = side.generator(
        [side.model(m) for m in members],
        output_transform=lambda outputs: sum(side.softmax(out) for out in outputs) / len(outputs),
    )
    assert_rows(generator.generate_distributions(pairs, False), expected)


def test_a_model_that_is_declared_to_may_return_members(side: Side) -> None:
    pairs, linear = make_pairs(), Linear()
    model = side.model(lambda x: np.stack([linear(x), linear(-x)], axis=1))
    logits = pairs.inputs @ linear.weight
    result = side.generator(model, members=True).generate_distributions(pairs, False)
    assert_rows(result, softmax(np.stack([logits, -logits], axis=1)))


# ------------------------------------------------------------------ into a store


@pytest.mark.parametrize("kind", ["probs", "log_probs", "logits"])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float64"])
def test_a_store_holds_what_memory_holds(side: Side, kind: str, dtype: str, tmp_path: Path) -> None:
    pairs, linear = make_pairs(), Linear()
    generator = side.generator(side.model(linear), batch_size=16, model_name="linear")
    store = generator.generate_distributions(
        pairs, False, store=tmp_path / "a.zarr", store_as=kind, dtype=dtype, meta={"note": "n"}
    )
    assert store.is_sealed
    assert (store.schema.kind, store.schema.dtype) == (kind, dtype)
    tol = {"float16": 4e-3, "bfloat16": 3e-2}.get(dtype, 1e-5)
    expected = softmax(pairs.inputs @ linear.weight)
    np.testing.assert_allclose(store.take(range(len(pairs))), expected, rtol=tol, atol=tol)
    assert store.meta["model_name"] == "linear"
    assert store.meta["output_mode"] == "logits"
    assert store.meta["note"] == "n"
    if kind == "logits":
        logits = store.take(range(len(pairs)), as_kind="logits")
        np.testing.assert_allclose(logits, pairs.inputs @ linear.weight, rtol=4 * tol, atol=4 * tol)


def interrupted(side: Side, path: Path, pairs: Pairs, batches: int, **options: Any) -> None:
    """Begin a store and fail after that many batches."""
    linear = Linear()
    linear.fail_at = batches
    generator = side.generator(side.model(linear), batch_size=16, output_mode="logits")
    with pytest.raises(GenerationError):
        generator.generate_distributions(pairs, False, store=path, commit_seconds=0, **options)


def test_a_resumed_store_is_the_same_and_runs_no_finished_batch(side: Side, path: Path) -> None:
    pairs, linear = make_pairs(), Linear()
    interrupted(side, path, pairs, 3, model_fingerprint="v1")
    assert len(fostore.open(path)) == 48
    generator = side.generator(side.model(linear), batch_size=16, output_mode="logits")
    pairs.read.clear()
    store = generator.generate_distributions(pairs, False, store=path, model_fingerprint="v1")
    # Three committed samples are read to see that the dataset is the same, and one batch is
    # computed again to see that the model is; no other finished batch is touched.
    assert linear.batches == [16, 16, 16, 16, 4]
    assert [i for i in pairs.read if i < 48] == [0, 24, 47, *range(16)]
    whole = generator.generate_distributions(pairs, False, store=path.with_stem("whole"))
    assert store.digest() == whole.digest()
    assert store.verify() == []


def test_a_finished_store_returns_after_one_batch(side: Side, path: Path) -> None:
    pairs, linear = make_pairs(), Linear()
    generator = side.generator(side.model(linear), batch_size=16)
    first = generator.generate_distributions(pairs, False, store=path, model_fingerprint="v1")
    linear.batches.clear()
    again = generator.generate_distributions(pairs, False, store=path, model_fingerprint="v1")
    assert linear.batches == [16]
    assert again.digest() == first.digest()
    linear.batches.clear()
    generator.generate_distributions(
        pairs, False, store=path, model_fingerprint="v1", recheck=False
    )
    assert linear.batches == []


def test_a_model_is_asked_for_one_batch_again(side: Side, path: Path) -> None:
    pairs, linear = make_pairs(), Linear()
    whole = side.generator(side.model(Linear()), batch_size=16)
    whole.generate_distributions(pairs, False, store=path, rows=(0, 48))
    with pytest.raises(IdentityError, match="another distribution for sample 0"):
        side.generator(side.model(Linear(9)), batch_size=16).generate_distributions(
            pairs, False, store=path
        )
    generator = side.generator(side.model(linear), batch_size=16)
    store = generator.generate_distributions(pairs, False, store=path)
    assert linear.batches == [16, 16, 16, 16, 4]
    assert_rows(store, softmax(pairs.inputs @ linear.weight))


def test_a_run_may_be_split_by_rows(side: Side, path: Path) -> None:
    pairs, linear = make_pairs(), Linear()
    generator = side.generator(side.model(linear), batch_size=16)
    options: dict[str, Any] = {"store": path, "model_fingerprint": "v1"}
    part = generator.generate_distributions(pairs, False, rows=(0, 40), **options)
    assert not part.is_sealed
    assert part.missing() == [(40, 100)]
    last = generator.generate_distributions(pairs, False, rows=(70, 100), **options)
    assert last.missing() == [(40, 70)]
    store = generator.generate_distributions(pairs, False, **options)
    assert store.is_sealed
    whole = generator.generate_distributions(pairs, False, store=path.with_stem("whole"))
    assert store.digest() == whole.digest()
    in_memory = generator.generate_distributions(pairs, False, rows=(20, 30))
    assert_rows(in_memory, softmax(pairs.inputs @ linear.weight), range(20, 30))


def test_exists_says_what_to_do_with_a_store(side: Side, path: Path) -> None:
    pairs = make_pairs()
    side.generator(side.model(Linear())).generate_distributions(pairs, False, store=path)
    other = Linear(3)
    generator = side.generator(side.model(other))
    with pytest.raises(StoreExistsError):
        generator.generate_distributions(pairs, False, store=path, exists="fail")
    with pytest.raises(ArgumentError, match="exists is 'never'"):
        generator.generate_distributions(pairs, False, store=path, exists="never")
    assert other.batches == []
    before = fostore.open(path).digest()
    broken = Linear(3)
    broken.fail_at = 1
    with pytest.raises(GenerationError):
        side.generator(side.model(broken)).generate_distributions(
            pairs, False, store=path, exists="overwrite"
        )
    assert fostore.open(path).digest() == before
    store = generator.generate_distributions(pairs, False, store=path, exists="overwrite")
    assert_rows(store, softmax(pairs.inputs @ other.weight))


def test_a_stream_of_unknown_length_goes_to_zarr_alone(side: Side, tmp_path: Path) -> None:
    pairs, linear = make_pairs(), Linear()
    generator = side.generator(side.model(linear), batch_size=16)
    with pytest.raises(ArgumentError, match=r"use a \.zarr path"):
        generator.generate_distributions(Stream(pairs.inputs), False, store=tmp_path / "a.h5")
    assert linear.batches == []
    store = generator.generate_distributions(Stream(pairs.inputs), False, store=tmp_path / "a.zarr")
    assert store.is_sealed
    assert_rows(store, softmax(pairs.inputs @ linear.weight))


def test_a_stream_resumes_past_its_finished_samples(side: Side, tmp_path: Path) -> None:
    pairs, linear = make_pairs(), Linear()
    path = tmp_path / "a.zarr"
    linear.fail_at = 3
    generator = side.generator(side.model(linear), batch_size=16)
    options: dict[str, Any] = {"store": path, "model_fingerprint": "v1", "commit_seconds": 0}
    with pytest.raises(GenerationError):
        generator.generate_distributions(Stream(pairs.inputs), False, **options)
    linear.fail_at = None
    changed = pairs.inputs.copy()
    changed[20] += 1
    with pytest.raises(IdentityError, match="sample 20 of the stream"):
        generator.generate_distributions(Stream(changed), False, **options)
    linear.batches.clear()
    store = generator.generate_distributions(Stream(pairs.inputs), False, **options)
    assert linear.batches == [16, 16, 16, 16, 4]
    assert_rows(store, softmax(pairs.inputs @ linear.weight))


def test_a_finished_store_returns_where_nothing_can_be_written(
    side: Side, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs, linear = make_pairs(), Linear()
    generator = side.generator(side.model(linear), batch_size=16)
    options: dict[str, Any] = {"store": tmp_path / "a.h5", "model_fingerprint": "v1"}
    digest = generator.generate_distributions(pairs, False, **options).digest()
    linear.batches.clear()

    def refuse(*arguments: Any, **keywords: Any) -> None:
        raise PermissionError("read-only")

    monkeypatch.setattr("fostore.places.lock.Lock.acquire", refuse)
    assert generator.generate_distributions(pairs, False, **options).digest() == digest
    assert linear.batches == [16]
    with pytest.raises(IdentityError, match="class_names"):
        generator.generate_distributions(pairs, False, class_names=list("abcde"), **options)
    changed = make_pairs()
    changed.inputs[0] += 1
    with pytest.raises(IdentityError, match="sample 0"):
        generator.generate_distributions(changed, False, **options)


def test_a_kill_at_the_very_end_is_tidied_up_by_the_next_run(
    side: Side, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs, linear = make_pairs(), Linear()
    generator = side.generator(side.model(linear), batch_size=16)
    options: dict[str, Any] = {"store": tmp_path / "a.zarr", "model_fingerprint": "v1"}
    with monkeypatch.context() as patch:
        patch.setattr("fostore.formats.zarr.writer.clean", lambda *_, **__: None)
        store = generator.generate_distributions(pairs, False, **options)
    assert store.is_sealed
    assert store.verify() != []
    assert generator.generate_distributions(pairs, False, **options).verify() == []


def test_accepted_differences_are_recorded(side: Side, tmp_path: Path) -> None:
    pairs, linear = make_pairs(), Linear()
    options: dict[str, Any] = {"store": tmp_path / "a.zarr", "commit_seconds": 0}
    linear.fail_at = 1
    with pytest.raises(GenerationError):
        side.generator(side.model(linear), batch_size=16).generate_distributions(
            pairs, False, model_fingerprint="v1", **options
        )
    linear.fail_at = None
    other = side.generator(side.model(linear), batch_size=16)
    with pytest.raises(IdentityError, match="accept_differences"):
        other.generate_distributions(pairs, False, model_fingerprint="v2", **options)
    with pytest.warns(UserWarning, match="goes on although"):
        store = other.generate_distributions(
            pairs, False, model_fingerprint="v2", accept_differences=True, **options
        )
    assert any("v2" in text for text in store.meta["accepted_differences"])
    assert_rows(store, softmax(pairs.inputs @ linear.weight))


def test_a_stream_resumed_in_other_batches_is_compared_as_well(side: Side, tmp_path: Path) -> None:
    pairs, linear = make_pairs(), Linear()
    options: dict[str, Any] = {"store": tmp_path / "a.zarr", "model_fingerprint": "v1"}
    linear.fail_at = 1
    with pytest.raises(GenerationError):
        side.generator(
            side.model(linear), batch_size=10, output_mode="logits"
        ).generate_distributions(Stream(pairs.inputs), False, commit_seconds=0, **options)
    changed = pairs.inputs.copy()
    changed[7] += 1
    whole = side.generator(side.model(Linear()), batch_size=64)
    with pytest.raises(IdentityError, match="sample 7 of the stream"):
        whole.generate_distributions(Stream(changed), False, **options)
    store = whole.generate_distributions(Stream(pairs.inputs), False, **options)
    assert_rows(store, softmax(pairs.inputs @ linear.weight))


def test_ids_and_class_names_are_kept(side: Side, path: Path) -> None:
    pairs = make_pairs(20)
    ids, names = [f"scan-{i}" for i in range(20)], list("abcde")
    generator = side.generator(side.model(Linear()))
    options: dict[str, Any] = {"store": path, "class_names": names}
    store = generator.generate_distributions(pairs, False, ids=ids, **options)
    assert store.ids.tolist() == ids
    assert store.schema.class_names == tuple(names)
    with pytest.raises(IdentityError, match="ids"):
        generator.generate_distributions(pairs, False, ids=ids[::-1], **options)
    with pytest.raises(ArgumentError, match="19 ids for 20 samples"):
        generator.generate_distributions(pairs, False, ids=ids[1:], **options)


def test_what_only_a_store_can_keep_is_refused_without_one(side: Side) -> None:
    generator = side.generator(side.model(Linear()))
    with pytest.raises(ArgumentError, match=r"store_as, meta: without store="):
        generator.generate_distributions(make_pairs(), False, store_as="logits", meta={"a": 1})


@pytest.mark.parametrize("meta", [3, "text", [("key", 1)]])
def test_metadata_that_are_no_dict_are_refused_before_anything_runs(
    side: Side, tmp_path: Path, meta: Any
) -> None:
    linear = Linear()
    generator = side.generator(side.model(linear))
    with pytest.raises(ArgumentError, match=r"meta is .*, expected a dict"):
        generator.generate_distributions(make_pairs(), False, store=tmp_path / "a.zarr", meta=meta)
    with pytest.raises(ArgumentError, match=r"meta is .*, expected a dict"):
        generator.save_distributions(tmp_path / "a.json", {0: [0.5, 0.5]}, meta)
    assert list(tmp_path.iterdir()) == []


def test_probabilities_have_no_logits_to_store(side: Side, tmp_path: Path) -> None:
    model = side.model(lambda x: softmax(Linear()(x)))
    options = {"store": tmp_path / "a.zarr", "store_as": "logits"}
    for mode in ("auto", "probs"):
        generator = side.generator(model, output_mode=mode)
        with pytest.raises(ArgumentError, match="log_probs"):
            generator.generate_distributions(make_pairs(), False, **options)
    assert not (tmp_path / "a.zarr").exists()


# ------------------------------------------------------------------ what goes wrong


def test_a_failing_model_names_the_samples_and_keeps_what_is_done(side: Side, path: Path) -> None:
    pairs, linear = make_pairs(), Linear()
    linear.fail_at = 2
    generator = side.generator(side.model(linear), batch_size=16)
    with pytest.raises(
        GenerationError, match=r"model failed on samples 32 to 47: .*no luck"
    ) as info:
        generator.generate_distributions(pairs, False, store=path)
    assert isinstance(info.value.__cause__, ValueError)
    assert "32 rows" in "".join(info.value.__notes__)
    assert len(fostore.open(path)) == 32


def test_a_failing_dataset_names_the_samples(side: Side, path: Path) -> None:
    class Broken(Pairs):
        def __getitem__(self, index: int) -> Any:
            if index == 40:
                raise OSError("a bad sector")
            return super().__getitem__(index)

    pairs = Broken(make_pairs().inputs)
    generator = side.generator(side.model(Linear()), batch_size=16)
    with pytest.raises(
        GenerationError, match=r"dataset failed on sample 40 \(of samples 32 to 47\).*a bad sector"
    ):
        generator.generate_distributions(pairs, False, store=path)
    assert len(fostore.open(path)) == 32


def test_an_interrupt_commits_and_says_how_to_go_on(side: Side, path: Path) -> None:
    pairs, linear = make_pairs(), Linear()
    linear.fail_at, linear.error = 2, KeyboardInterrupt()
    generator = side.generator(side.model(linear), batch_size=16)
    with pytest.raises(KeyboardInterrupt) as info:
        generator.generate_distributions(pairs, False, store=path)
    assert "resume" in "".join(info.value.__notes__)
    assert len(fostore.open(path)) == 32


def out_of_memory_over(limit: int, linear: Linear) -> Any:
    def model(x: np.ndarray) -> np.ndarray:
        if len(x) > limit:
            raise RuntimeError("CUDA out of memory. Tried to allocate 20 GiB")
        return linear(x)

    return model


def test_out_of_memory_halves_the_batch_and_is_said_once(side: Side, path: Path) -> None:
    pairs, linear = make_pairs(), Linear()
    generator = side.generator(side.model(out_of_memory_over(5, linear)), batch_size=16)
    with pytest.warns(UserWarning, match="out of memory with 16 samples") as said:
        store = generator.generate_distributions(pairs, False, store=path)
    assert len(said) == 1
    assert_rows(store, softmax(pairs.inputs @ linear.weight))
    assert max(linear.batches) == 4
    assert store.meta["batch_size_on_device"] == 4


def test_out_of_memory_with_one_sample_is_an_error_that_says_so(side: Side) -> None:
    generator = side.generator(side.model(out_of_memory_over(0, Linear())), batch_size=4)
    with (
        pytest.warns(UserWarning, match="out of memory"),
        pytest.raises(RuntimeError, match="out of memory"),
    ):
        generator.generate_distributions(make_pairs(), False)


def test_random_states_are_left_alone(side: Side, path: Path) -> None:
    pairs, linear = make_pairs(), Linear()

    def model(x: np.ndarray) -> np.ndarray:
        np.random.random()
        random.random()
        return linear(x)

    generator = side.generator(side.model(model))  # libraries that it imports may draw
    before = (np.random.get_state()[1].tolist(), random.getstate())  # type: ignore[index,union-attr]
    generator.generate_distributions(pairs, False)
    generator.generate_distributions(pairs, False, store=path)
    generator.generate_distributions(pairs, False, store=path)
    assert before == (np.random.get_state()[1].tolist(), random.getstate())  # type: ignore[index,union-attr]


def test_progress_goes_to_stderr_and_silence_is_silence(
    side: Side, capsys: pytest.CaptureFixture[str], path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fostore.progress.LINE_SECONDS", 0.0)
    generator = side.generator(side.model(Linear()), model_name="linear")
    generator.generate_distributions(make_pairs(), progress=False)
    assert capsys.readouterr() == ("", "")
    generator.generate_distributions(make_pairs(), store=path)
    out, err = capsys.readouterr()
    assert out == ""
    assert "linear: 100 of 100 samples (100%)" in err  # no terminal: whole lines
    assert "\r" not in err


def test_wrong_parameters_are_refused(side: Side) -> None:
    model = side.model(Linear())
    for options, words in [
        ({"output_mode": "logit"}, "output_mode is 'logit'"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"device": "abacus"}, "device is 'abacus'"),
        ({"input_getter": 3}, "input_getter is int"),
    ]:
        with pytest.raises(ArgumentError, match=words):
            side.generator(model, **options)
    with pytest.raises(ArgumentError, match="cannot be called"):
        side.generator(3)
    with pytest.raises(ArgumentError, match="list of models is empty"):
        side.generator([])


def test_what_cannot_be_whole_is_refused_before_the_first_batch(side: Side, tmp_path: Path) -> None:
    linear = Linear()
    generator = side.generator(side.model(linear))
    loader = fostore.SimpleDataLoader(make_pairs(), batch_size=64, drop_last=True)
    with pytest.raises(ArgumentError, match="drop_last=False"):
        generator.generate_distributions(loader, False, store=tmp_path / "a.zarr")
    with pytest.raises(ArgumentError, match="JSON"):
        generator.generate_distributions(make_pairs(), False, store=tmp_path / "a.json")
    with pytest.raises(ArgumentError, match="empty"):
        generator.generate_distributions(make_pairs(0), False, store=tmp_path / "a.zarr")
    with pytest.raises(ArgumentError, match=r"0 <= start < stop <= 100"):
        generator.generate_distributions(make_pairs(), False, rows=(50, 101))
    assert linear.batches == []
    assert generator.generate_distributions(make_pairs(0), False) == {}


def test_a_loader_that_drops_samples_warns_in_memory(side: Side) -> None:
    loader = fostore.SimpleDataLoader(make_pairs(1000), batch_size=64, drop_last=True)
    generator = side.generator(side.model(Linear()))
    with pytest.warns(UserWarning, match="generated 960") as said:
        result = generator.generate_distributions(loader, False)
    assert str(said[0].message) == (
        "[FirstOrderDataGenerator] generated 960 distributions, but dataset length is 1000."
    )
    assert list(result) == list(range(960))


# ------------------------------------------------------------------ JSON, datasets and loaders


def test_distributions_are_saved_and_loaded_with_the_model_name(side: Side, tmp_path: Path) -> None:
    pairs = make_pairs(20)
    generator = side.generator(side.model(Linear()), model_name="my_model_v1")
    result = generator.generate_distributions(pairs, False)
    generator.save_distributions(tmp_path / "out" / "dists.json", result, meta={"dataset": "d"})
    loaded, meta = generator.load_distributions(tmp_path / "out" / "dists.json")
    assert meta["model_name"] == "my_model_v1"
    assert meta["dataset"] == "d"
    assert list(loaded) == list(range(20))
    for i in range(20):
        np.testing.assert_array_equal(np.float32(loaded[i]), result[i])


@pytest.mark.parametrize("given", ["dict", "store", "path"])
def test_samples_come_with_their_distributions(side: Side, given: str, path: Path) -> None:
    pairs = make_pairs(20)
    generator = side.generator(side.model(Linear()))
    result = generator.generate_distributions(pairs, False)
    store = generator.generate_distributions(pairs, False, store=path)
    distributions = {"dict": result, "store": store, "path": path}[given]
    dataset = side.module.FirstOrderDataset(pairs, distributions)
    assert len(dataset) == 20
    x, label, row = dataset[7]
    assert type(row) is type(side.array(np.zeros(1, np.float32)))
    np.testing.assert_array_equal(x, pairs.inputs[7])
    assert label == pairs.labels[7]
    np.testing.assert_array_equal(np.asarray(row), result[7])
    np.testing.assert_array_equal(np.asarray(dataset[-1][2]), result[19])
    with pytest.raises(IndexError):
        dataset[20]
    unlabelled = side.module.FirstOrderDataset(Pairs(pairs.inputs), distributions)
    assert len(unlabelled[0]) == 2


def test_a_loader_pairs_every_sample_with_its_distribution(side: Side) -> None:
    pairs = make_pairs(50)
    result = side.generator(side.model(Linear())).generate_distributions(pairs, False)
    for name in ("output_dataloader", "output_fo_dataloader"):
        make = getattr(side.module, name)
        loader = make(pairs, result, batch_size=8, shuffle=True, num_workers=0, pin_memory=True)
        assert len(loader) == 7
        seen = []
        for inputs, labels, rows in loader:
            for x, label, row in zip(*map(np.asarray, (inputs, labels, rows)), strict=True):
                (i,) = np.flatnonzero((pairs.inputs == x).all(1))
                seen.append(i)
                assert label == pairs.labels[i]
                np.testing.assert_array_equal(row, result[i])
        assert sorted(seen) == list(range(50))
        assert seen != sorted(seen)


def test_an_input_getter_of_a_loader_takes_the_input_out(side: Side) -> None:
    pairs = make_pairs(10)
    samples = [{"image": x, "label": 3} for x in pairs.inputs]
    rows = {i: [0.5, 0.5] for i in range(10)}
    loader = side.module.output_dataloader(
        samples, rows, 4, input_getter=lambda sample: sample["image"]
    )
    inputs, labels, _ = next(iter(loader))
    np.testing.assert_array_equal(inputs, pairs.inputs[:4])
    assert np.asarray(labels).tolist() == [3] * 4


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        (range(9), "10 samples and there are 9 distributions: sample 9 has none"),
        (range(11), "10 samples, but there are 11 distributions"),
        ([0, 1, 2, 3, 5, 6, 7, 8, 9, 11], "sample 4 has none"),
        (list(map(str, range(10))), r"key '0'; keys are dataset indices"),
    ],
)
def test_a_dataset_and_distributions_that_do_not_match_are_refused(
    side: Side, keys: Any, words: str
) -> None:
    rows = {key: [0.5, 0.5] for key in keys}
    with pytest.raises(ArgumentError, match=words):
        side.module.FirstOrderDataset(make_pairs(10), rows)


def test_a_store_with_gaps_is_not_paired(side: Side, path: Path) -> None:
    pairs = make_pairs(20)
    generator = side.generator(side.model(Linear()))
    part = generator.generate_distributions(pairs, False, store=path, rows=(4, 20))
    with pytest.raises(ArgumentError, match="sample 0 has none"):
        side.module.FirstOrderDataset(pairs, part)


def test_nested_data_goes_to_the_device_with_its_containers_and_dtypes(side: Side) -> None:
    generator = side.generator(side.model(Linear()))
    data = {
        "images": side.array(np.ones((2, 3), np.float32)),
        "point": Point(side.array(np.int32([1, 2])), [side.array(np.float32([3]))]),
        "text": "as it is",
        "none": None,
    }
    placed = generator.to_device(data)
    assert type(placed["point"]) is Point
    assert placed["text"] == "as it is"
    assert placed["none"] is None
    assert "int32" in str(placed["point"].x.dtype)
    assert type(placed["images"]) is type(data["images"])
    np.testing.assert_array_equal(np.asarray(placed["point"].y[0]), [3])


def test_a_partial_is_identified_by_its_arguments(side: Side, path: Path) -> None:
    pairs = make_pairs()

    def apply(weight: Any, x: Any) -> Any:
        return x @ weight

    def generator(seed: int) -> Any:
        return side.generator(functools.partial(apply, side.array(Linear(seed).weight)))

    store = generator(0).generate_distributions(pairs, False, store=path)
    assert_rows(store, softmax(pairs.inputs @ Linear(0).weight))
    with pytest.raises(IdentityError, match=r"tensor .* has other values"):
        generator(1).generate_distributions(pairs, False, store=path)


def test_nothing_warns(side: Side, path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        generator = side.generator(side.model(Linear()))
        generator.generate_distributions(make_pairs(), False, store=path)


# ------------------------------------------------------------------ what contradicts itself


class Sized(Stream):
    """A stream that says how long it is, and is longer."""

    def __len__(self) -> int:
        return len(self.inputs) - 10


def test_a_stream_longer_than_its_length_is_refused(side: Side, tmp_path: Path) -> None:
    stream = Sized(make_pairs().inputs)
    generator = side.generator(side.model(Linear()), batch_size=16, output_mode="logits")
    with pytest.raises(GenerationError, match="goes on after 90 samples"):
        generator.generate_distributions(stream, False)
    with pytest.raises(GenerationError, match="goes on after 90 samples"):
        generator.generate_distributions(stream, False, store=tmp_path / "a.zarr")
    assert not fostore.open(tmp_path / "a.zarr").is_sealed


def test_a_model_that_changes_its_classes_is_refused(side: Side) -> None:
    linear, calls = Linear(), []

    def narrowing(x: Any) -> Any:
        calls.append(len(x))
        return side.model(linear)(x)[:, : NUM_CLASSES - (len(calls) > 1)]

    generator = side.generator(narrowing, batch_size=16, output_mode="logits")
    with pytest.raises(ArgumentError, match=r"samples 16 to 31, and gave \(5,\) before"):
        generator.generate_distributions(make_pairs(), False)


class Lengthless(Pairs):
    """A dataset whose length fails."""

    def __len__(self) -> int:
        raise ValueError("no index file")


def test_a_length_that_fails_is_said_in_one_line() -> None:
    generator = SIDES["numpy"].generator(Linear(), output_mode="logits")
    with pytest.raises(GenerationError, match="dataset failed: ValueError: no index"):
        generator.generate_distributions(Lengthless(make_pairs().inputs), False)


@pytest.mark.parametrize("suffix", [".zarr", ".h5"])
def test_a_name_of_a_store_is_refused_for_json_and_the_cure_works(
    tmp_path: Path, suffix: str
) -> None:
    generator = fostore.FirstOrderDataGenerator(lambda x: x, output_mode="logits")
    store = generator.generate_distributions(
        4 * np.eye(3), progress=False, store=tmp_path / "a.zarr"
    )
    with pytest.raises(ArgumentError, match=r"ends in \.json.*fostore\.convert"):
        generator.save_distributions(tmp_path / f"b{suffix}", store)
    assert not (tmp_path / f"b{suffix}").exists()
    fostore.convert(store, tmp_path / f"b{suffix}", progress=False)
    assert fostore.open(tmp_path / f"b{suffix}").digest() == store.digest()
