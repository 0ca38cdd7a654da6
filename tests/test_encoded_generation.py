"""Generation with an encoding: what is kept of a row is the same wherever it is chosen, on every side."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fostore
from fostore.encodings import encoding_of, make_schema, preferred_kind
from fostore.errors import ArgumentError, GenerationError, IdentityError, RowError
from fostore.generate.recheck import disagrees
from sides import NUM_CLASSES, SIDES, Linear, Pairs, Side, make_pairs, softmax
from test_token_generation import Causal, sequences

K = 3
TOPK: dict[str, Any] = {"encoding": "topk", "k": K, "temperatures": (2.0,)}


def written(path: Path, rows: np.ndarray, **options: Any) -> fostore.Store:
    """The oracle: the same rows, given to a writer as they are."""
    options = {"kind": "logits", "encoding": "topk", "k": K, "temperatures": [2.0], **options}
    with fostore.create(
        path,
        num_samples=len(rows),
        num_classes=rows.shape[-1],
        num_members=rows.shape[1] if rows.ndim == 3 else None,
        **options,
    ) as writer:
        writer.append(rows)
    return fostore.open(path)


def assert_same_rows(store: fostore.Store, other: fostore.Store) -> None:
    assert store.is_sealed
    assert store.schema.content == other.schema.content
    assert dict(store.schema.encoding) == dict(other.schema.encoding)
    for column in store.schema.content:
        np.testing.assert_array_equal(store.column(column.name), other.column(column.name))
    assert store.verify() == []


@pytest.mark.parametrize("on_device", [False, True])
def test_a_store_holds_what_a_writer_makes_of_the_same_logits(
    side: Side, path: Path, on_device: bool
) -> None:
    pairs, linear = make_pairs(), Linear()
    generator = side.generator(side.model(linear), batch_size=16)
    generator._framework.overlaps = on_device
    store = generator.generate_distributions(pairs, False, store=path, dtype="float16", **TOPK)
    assert store.meta["output_mode"] == "logits"
    assert_same_rows(store, written(path.with_stem("own"), linear(pairs.inputs), dtype="float16"))


@pytest.mark.parametrize("name", ["torch", "jax"])
def test_an_accelerator_hands_over_what_is_kept(name: str, tmp_path: Path) -> None:
    """A spy in the place where rows go to the host: k numbers each where the device selects."""
    widths = []
    for on_device in (False, True):
        side = SIDES[name]
        generator = side.generator(side.model(Linear()), batch_size=16, output_mode="logits")
        framework = generator._framework
        framework.overlaps = on_device
        copied, finish = [], framework.finish_copy
        framework.finish_copy = lambda copy, to=copied, do=finish: (to.append(do(copy)), to[-1])[1]
        path = tmp_path / f"{on_device}.zarr"
        generator.generate_distributions(make_pairs(), False, store=path, **TOPK)
        widths.append({array.shape[1:] for array in copied if len(array) == 4})
    assert widths == [
        {(NUM_CLASSES,)},
        {(K,), (), (1,)},
    ]  # of the last batch, which nobody looks at


@pytest.mark.parametrize("on_device", [False, True])
def test_members_are_selected_each(side: Side, path: Path, on_device: bool) -> None:
    pairs, models = make_pairs(40), [Linear(0), Linear(1)]
    generator = side.generator([side.model(one) for one in models], batch_size=16)
    generator._framework.overlaps = on_device
    store = generator.generate_distributions(pairs, False, store=path, **TOPK)
    rows = np.stack([one(pairs.inputs) for one in models], axis=1)
    assert_same_rows(store, written(path.with_stem("own"), rows))


def test_what_is_kept_is_what_the_encoding_keeps_best(side: Side, tmp_path: Path) -> None:
    pairs, linear = make_pairs(40), Linear()

    def probs(x: np.ndarray) -> np.ndarray:
        return softmax(linear(x))

    for name, model, kind in (("a", linear, "logits"), ("b", probs, "probs")):
        for mode in ("auto", kind):
            generator = side.generator(side.model(model), batch_size=16, output_mode=mode)
            store = generator.generate_distributions(
                pairs, False, store=tmp_path / f"{name}{mode}.zarr", encoding="topk", k=K
            )
            assert (store.schema.kind, store.schema.dtype) == (kind, "float32")
    asked = {"store_as": "log_probs", "dtype": "float64", "encoding": "topk", "k": K}
    generator = side.generator(side.model(linear), batch_size=16)
    store = generator.generate_distributions(pairs, False, store=tmp_path / "c.zarr", **asked)
    assert (store.schema.kind, store.schema.dtype) == ("log_probs", "float64")
    with pytest.raises(ArgumentError, match="needs a model that gives logits"):
        side.generator(side.model(probs)).generate_distributions(
            pairs, False, store=tmp_path / "d.zarr", store_as="logits", encoding="topk", k=K
        )
    assert preferred_kind(None, gives_logits=True) == "probs"


@pytest.mark.parametrize("on_device", [False, True])
def test_out_of_memory_halves_an_encoded_batch(side: Side, path: Path, on_device: bool) -> None:
    pairs, linear = make_pairs(40), Linear()

    def small(x: np.ndarray) -> np.ndarray:
        if len(x) > 5:
            raise MemoryError
        return linear(x)

    generator = side.generator(side.model(small), batch_size=16)
    generator._framework.overlaps = on_device
    with pytest.warns(UserWarning, match="out of memory with 16 samples at once"):
        store = generator.generate_distributions(pairs, False, store=path, **TOPK)
    assert_same_rows(store, written(path.with_stem("own"), linear(pairs.inputs)))


@pytest.mark.parametrize("on_device", [False, True])
def test_a_run_that_failed_goes_on(side: Side, path: Path, on_device: bool) -> None:
    pairs = make_pairs()

    def generate(linear: Linear, at: Path, **options: Any) -> fostore.Store:
        generator = side.generator(side.model(linear), batch_size=16, output_mode="logits")
        generator._framework.overlaps = on_device
        store: fostore.Store = generator.generate_distributions(
            pairs, False, store=at, model_fingerprint="v1", **{**TOPK, **options}
        )
        return store

    linear = Linear()
    linear.fail_at = 3
    with pytest.raises(GenerationError):
        generate(linear, path, commit_seconds=0)
    store = generate(Linear(), path)
    assert store.digest() == generate(Linear(), path.with_stem("whole")).digest()
    assert generate(Linear(), path).digest() == store.digest()
    with pytest.raises(IdentityError, match="another distribution for sample 0 than the store"):
        generate(Linear(9), path)
    for other in ({"k": 4}, {"rule": "uniform"}, {"temperatures": None}):
        with pytest.raises(IdentityError, match="encoding is"):
            generate(Linear(), path, **other)
    with pytest.raises(IdentityError, match=r"encoding is|store_as is"):
        generate(Linear(), path, encoding=None, k=None, temperatures=None)


def test_rows_of_tokens_are_selected_as_rows_are(side: Side, path: Path) -> None:
    data, causal = sequences(), Causal()
    stores = []
    for on_device in (False, True):
        generator = side.generator(side.model(causal), batch_size=3)
        generator._framework.overlaps = on_device
        stores.append(
            generator.generate_distributions(
                data, False, store=path.with_stem(f"{on_device}"), rows="tokens", **TOPK
            )
        )
    assert stores[0].digest() == stores[1].digest()
    ids = stores[0].column("ids")
    rows = np.concatenate([causal.of(one) for one in data])
    np.testing.assert_array_equal(ids, np.argsort(-rows, axis=-1, kind="stable")[:, :K])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"k": K}, r"\['k'\] are parameters of an encoding"),
        ({"encoding": "topk"}, "k is None"),
        ({"encoding": "topk", "k": 0}, "k is 0"),
        ({"encoding": "topk", "k": K, "rule": "most"}, "rule is 'most'"),
        ({"encoding": "topk", "k": NUM_CLASSES + 1}, "k is 6, expected at most 5"),
        ({"encoding": {"name": "topk", "k": K, "size": 1}}, "no parameter 'size'"),
    ],
)
def test_what_an_encoding_does_not_take_is_refused(
    options: dict[str, Any], said: str, tmp_path: Path
) -> None:
    generator = SIDES["numpy"].generator(SIDES["numpy"].model(Linear()))
    with pytest.raises(ArgumentError, match=said):
        generator.generate_distributions(make_pairs(), False, store=tmp_path / "a.zarr", **options)
    assert not list(tmp_path.iterdir())


def test_an_encoding_needs_a_store(side: Side) -> None:
    generator = side.generator(side.model(Linear()))
    with pytest.raises(ArgumentError, match="encoding, k: without store="):
        generator.generate_distributions(make_pairs(), False, encoding="topk", k=K)
    # as before there was an encoding
    explicit = {"store_as": "probs", "dtype": "float32"}
    assert len(generator.generate_distributions(make_pairs(), False, **explicit)) == 100


def test_a_row_that_is_no_distribution_is_named(side: Side, path: Path) -> None:
    pairs = make_pairs(40)
    pairs.inputs[20] = np.nan
    generator = side.generator(side.model(Linear()), batch_size=16, output_mode="logits")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        with pytest.raises(RowError, match="row 20"):
            generator.generate_distributions(pairs, False, store=path, **TOPK)


def test_pairs_of_a_store_are_the_samples(tmp_path: Path) -> None:
    pairs = Pairs(make_pairs(20).inputs)
    generator = fostore.FirstOrderDataGenerator(Linear(), batch_size=8)
    store = generator.generate_distributions(pairs, False, store=tmp_path / "a.zarr", **TOPK)
    rows = store.take_topk([3, 1])
    expected = np.argsort(-Linear()(pairs.inputs[[3, 1]]), axis=-1)[:, :K]
    np.testing.assert_array_equal(rows.ids, expected)


# ------------------------------------------------------------------ computed again


@given(
    seed=st.integers(0, 99),
    kind=st.sampled_from(["probs", "log_probs", "logits"]),
    dtype=st.sampled_from(["float32", "float16", "bfloat16", "float64"]),
    members=st.sampled_from([None, 2]),
)
def test_other_kernels_give_the_same_top_k_rows_and_other_models_do_not(
    seed: int, kind: str, dtype: str, members: int | None
) -> None:
    rng = np.random.default_rng(seed)
    shape = (6, 200) if members is None else (6, members, 200)
    logits = rng.normal(size=shape) * 4
    schema = make_schema(
        200,
        num_members=members,
        kind=kind,
        dtype=dtype,
        encoding={"name": "topk", "k": 20, "temperatures": [2.0]},
    )

    def columns(x: np.ndarray) -> list[np.ndarray]:
        rows = x - x.max(-1, keepdims=True)
        rows = rows - np.log(np.exp(rows).sum(-1, keepdims=True))
        given_rows = {"probs": np.exp(rows), "log_probs": rows, "logits": x}[kind]
        return encoding_of(schema).encode(given_rows, schema, 0)

    stored = columns(logits)
    assert not disagrees(schema, stored, stored, "float32").any()
    noisy = logits + rng.normal(size=shape) * 2.0**-13
    assert not disagrees(schema, stored, columns(noisy), "float32").any()
    other = logits.copy()
    other[2] = np.roll(other[2], 1, axis=-1)
    assert np.flatnonzero(disagrees(schema, stored, columns(other), "float32")).tolist() == [2]
    assert disagrees(schema, stored, columns(logits / 1.1), "float32").all()
