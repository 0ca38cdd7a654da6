"""Axes are declared, and outputs mean what they are: what a model may give, and what is refused."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import fostore
from fostore.errors import ArgumentError, IdentityError, RowError
from fostore.generate import axes
from sides import Linear, Pairs, Side, make_pairs, softmax

WEIGHTS = np.random.default_rng(0).normal(size=(8, 4, 3)).astype(np.float32)


def members(x: np.ndarray) -> np.ndarray:
    """Logits (samples, 8 members, 3 classes)."""
    return np.einsum("bf,mfk->bmk", x, WEIGHTS)


def refusal(call: Any, kind: type[Exception] = ArgumentError) -> str:
    with pytest.raises(kind) as info:
        call()
    return str(info.value)


# ------------------------------------------------------------------ axes


def test_three_axes_are_no_members_unless_that_is_said(side: Side, tmp_path: Path) -> None:
    pairs = make_pairs(20)
    model = side.model(members)
    said = refusal(
        lambda: side.generator(model).generate_distributions(
            pairs, False, store=tmp_path / "a.zarr"
        )
    )
    assert "three axes, (20, 8, 3)" in said
    assert "members=True" in said
    assert "output[:, -1]" in said
    assert not (tmp_path / "a.zarr").exists()
    store = side.generator(model, members=True).generate_distributions(
        pairs, False, store=tmp_path / "a.zarr"
    )
    np.testing.assert_allclose(store.take(range(20)), softmax(members(pairs.inputs)), atol=1e-5)


@pytest.mark.parametrize("mode", ["auto", "logits", "probs"])
def test_one_number_a_sample_is_refused_with_both_classes(side: Side, mode: str) -> None:
    def sigmoid(x: np.ndarray) -> np.ndarray:
        return 1 / (1 + np.exp(-x[:, :1]))

    pairs = make_pairs(8)
    generator = side.generator(side.model(sigmoid), output_mode=mode)
    assert "[1 - p, p]" in refusal(lambda: generator.generate_distributions(pairs, False))


def test_the_transform_that_is_advised_takes_the_output_there_is(side: Side) -> None:
    pairs, linear = make_pairs(8), side.model(Linear())
    for model, advised, take in (
        (lambda x: {"pred": linear(x)}, "output['pred']", lambda output: output["pred"]),
        (
            lambda x: SimpleNamespace(scores=linear(x)),
            "output.scores",
            lambda output: output.scores,
        ),
    ):
        generator = side.generator(model, output_mode="logits")
        assert advised in refusal(lambda g=generator: g.generate_distributions(pairs, False))
        cured = side.generator(model, output_mode="logits", output_transform=take)
        assert len(cured.generate_distributions(pairs, False)) == 8


def test_members_that_are_declared_have_to_come(side: Side) -> None:
    generator = side.generator(side.model(Linear()), members=True)
    assert "members=True says (64, members, classes)" in refusal(
        lambda: generator.generate_distributions(make_pairs(), False)
    )


@pytest.mark.parametrize("how", ["as an object", "as a dict", "as an array"])
def test_a_language_models_words_are_one_row_by_the_transform_that_the_message_names(
    side: Side, how: str
) -> None:
    words = np.random.default_rng(0).normal(size=(4, 6, 50)).astype(np.float32)

    def model(x: Any) -> Any:  # (samples, 6 tokens, 50 words)
        logits = side.array(np.einsum("bf,ftw->btw", np.asarray(x), words))
        if how == "as an array":
            return logits
        return {"logits": logits} if how == "as a dict" else SimpleNamespace(logits=logits)

    pairs = make_pairs(9)
    said = refusal(lambda: side.generator(model).generate_distributions(pairs, False))
    (place,) = re.findall(r"(lambda output: \S+\[:, -1\])", said)
    generator = side.generator(model, output_transform=eval(place))
    result = generator.generate_distributions(pairs, False)
    np.testing.assert_allclose(result[5], softmax(pairs.inputs[5] @ words[:, -1]), atol=1e-5)


def test_each_model_of_a_list_is_one_member(side: Side) -> None:
    generator = side.generator([side.model(Linear()), side.model(members)])
    assert "outputs of different shapes" in refusal(
        lambda: generator.generate_distributions(make_pairs(), False)
    )
    generator = side.generator([side.model(members)] * 2)
    assert "model 0 of the list gives the shape (64, 8, 3)" in refusal(
        lambda: generator.generate_distributions(make_pairs(), False)
    )


def test_a_transform_of_several_models_may_give_a_list_but_no_third_axis(side: Side) -> None:
    pairs, models = make_pairs(20), [Linear(0), Linear(1)]
    given = [side.model(model) for model in models]
    scaled = side.generator(given, output_transform=lambda outs: [out * 2 for out in outs])
    result = scaled.generate_distributions(pairs, False)
    want = np.stack([softmax(2 * pairs.inputs @ m.weight) for m in models], axis=1)
    np.testing.assert_allclose(result[7], want[7], atol=1e-5)
    stacked = side.generator(given, output_transform=lambda outs: outs[0][:, None] + outs[1][None])
    assert "three axes" in refusal(lambda: stacked.generate_distributions(pairs, False))


@pytest.mark.parametrize("batch_size", [8, 64])
def test_members_before_samples_are_refused_whatever_the_batch(side: Side, batch_size: int) -> None:
    pairs = make_pairs(40)
    vmapped = side.model(lambda x: members(x).swapaxes(0, 1))
    said = refusal(
        lambda: side.generator(vmapped, members=True, batch_size=batch_size).generate_distributions(
            pairs, False
        )
    )
    assert "output.swapaxes(0, 1)" in said
    cured = side.generator(
        vmapped,
        members=True,
        batch_size=batch_size,
        output_transform=lambda output: output.swapaxes(0, 1),
    )
    result = cured.generate_distributions(pairs, False)
    np.testing.assert_allclose(result[33], softmax(members(pairs.inputs))[33], atol=1e-5)


@pytest.mark.parametrize("batch_size", [5, 16])
def test_classes_before_samples_are_refused_whatever_the_batch(side: Side, batch_size: int) -> None:
    pairs, linear = make_pairs(40), Linear()
    turned = side.model(lambda x: linear(x).T)
    generator = side.generator(turned, batch_size=batch_size)
    assert "output.swapaxes(0, 1)" in refusal(
        lambda: generator.generate_distributions(pairs, False)
    )
    ensemble = side.generator([turned, turned], batch_size=batch_size)
    refusal(lambda: ensemble.generate_distributions(pairs, False))


@pytest.mark.parametrize("samples", [3, 20])
def test_members_before_samples_are_refused_where_the_batch_is_fixed(
    side: Side, samples: int
) -> None:
    pairs = make_pairs(samples)

    def of_eight(x: np.ndarray) -> np.ndarray:
        assert len(x) == 8, "the shape is fixed"
        return members(x).swapaxes(0, 1)  # eight members

    model = side.model(of_eight)
    generator = side.generator(model, members=True, batch_size=8)
    assert "output.swapaxes(0, 1)" in refusal(
        lambda: generator.generate_distributions(pairs, False, pad_last=True)
    )
    cured = side.generator(
        model, members=True, batch_size=8, output_transform=lambda output: output.swapaxes(0, 1)
    )
    result = cured.generate_distributions(pairs, False, pad_last=True)
    np.testing.assert_allclose(result[2], softmax(members(pairs.inputs))[2], atol=1e-5)


def test_as_many_classes_as_samples_cost_one_more_call_once_a_run(side: Side) -> None:
    pairs, linear = make_pairs(20), Linear()  # five classes
    generator = side.generator(side.model(linear), batch_size=5)
    result = generator.generate_distributions(pairs, False)
    assert linear.batches == [5, 4, 5, 5, 5]
    np.testing.assert_allclose(result[13], softmax(pairs.inputs @ linear.weight)[13], atol=1e-5)


def test_a_model_that_takes_one_batch_size_alone_is_believed(side: Side) -> None:
    pairs, linear = make_pairs(20), Linear()

    def model(x: np.ndarray) -> np.ndarray:
        assert len(x) == 5
        return linear(x)

    result = side.generator(side.model(model), batch_size=5).generate_distributions(pairs, False)
    np.testing.assert_allclose(result[13], softmax(pairs.inputs @ linear.weight)[13], atol=1e-5)


def test_several_outputs_of_one_model_are_refused_and_never_stacked(side: Side) -> None:
    pairs, linear = make_pairs(20), Linear()

    def both(x: Any) -> Any:
        return side.model(linear)(x), side.model(lambda b: -linear(b))(x)

    for pack in (tuple, list):
        for size in (2, 16):
            generator = side.generator(lambda x, pack=pack: pack(both(x)), batch_size=size)
            said = refusal(lambda g=generator: g.generate_distributions(pairs, False))
            assert "output_transform such as lambda output: output[0]" in said
            assert f"{pack.__name__} of 2: " in said
    cured = side.generator(both, output_transform=lambda output: output[0])
    result = cured.generate_distributions(pairs, False)
    np.testing.assert_allclose(result[7], softmax(pairs.inputs @ linear.weight)[7], atol=1e-5)


def test_the_advice_for_several_outputs_takes_the_one_with_a_row_a_sample(side: Side) -> None:
    pairs, linear = make_pairs(20), Linear()

    def with_loss(x: Any) -> Any:
        return side.array(np.float32(3)), side.model(linear)(x)

    said = refusal(lambda: side.generator(with_loss).generate_distributions(pairs, False))
    assert "lambda output: output[1]" in said
    one = side.generator(lambda x: (side.model(linear)(x),))
    assert "output[0]" in refusal(lambda: one.generate_distributions(pairs, False))


def test_outputs_of_a_multi_output_forest_become_members_as_the_message_says() -> None:
    ensemble = pytest.importorskip("sklearn.ensemble")
    rng = np.random.default_rng(0)
    x = rng.normal(size=(48, 6)).astype(np.float32)
    forest = ensemble.RandomForestClassifier(5, random_state=0)
    forest.fit(x, rng.integers(3, size=(48, 4)))
    for size in (4, 64):
        generator = fostore.FirstOrderDataGenerator(forest, batch_size=size)
        said = refusal(lambda g=generator: g.generate_distributions(x, False))
        assert "members=True and lambda output: np.stack(output, axis=1)" in said
    cured = fostore.FirstOrderDataGenerator(
        forest, members=True, output_transform=lambda output: np.stack(output, axis=1)
    )
    result = cured.generate_distributions(x, False)
    np.testing.assert_allclose(result[9], np.stack(forest.predict_proba(x), 1)[9], atol=1e-6)


def test_nested_lists_of_numbers_are_one_array_and_lists_of_arrays_are_not() -> None:
    x = make_pairs(6).inputs
    of_numbers = fostore.FirstOrderDataGenerator(lambda b: (b @ WEIGHTS[0]).tolist())
    np.testing.assert_allclose(
        of_numbers.generate_distributions(x, False)[2], softmax(x @ WEIGHTS[0])[2], atol=1e-5
    )
    of_tuples = fostore.FirstOrderDataGenerator(lambda b: [tuple(r) for r in b @ WEIGHTS[0]])
    assert len(of_tuples.generate_distributions(x, False)) == 6
    of_rows = fostore.FirstOrderDataGenerator(lambda b: list(b @ WEIGHTS[0]))
    assert "np.stack" in refusal(lambda: of_rows.generate_distributions(x, False))
    mixed = fostore.FirstOrderDataGenerator(lambda b: [list(b), b.tolist()])
    refusal(lambda: mixed.generate_distributions(x, False))
    cured = fostore.FirstOrderDataGenerator(
        lambda b: list(b @ WEIGHTS[0]), output_transform=np.stack
    )
    assert len(cured.generate_distributions(x, False)) == 6


def test_sequences_padded_by_batch_are_told_that_their_length_differs(side: Side) -> None:
    lengths = [3, 3, 5, 5]
    inputs = [np.full(n, 0.5, np.float32) for n in lengths]

    def pad(samples: list[Any]) -> Any:
        return side.array(np.stack([np.asarray(s) for s in samples]))

    positions = side.generator(side.model(lambda x: -x), batch_size=2)  # (samples, T)
    said = refusal(
        lambda: positions.generate_distributions(
            Pairs(inputs),  # type: ignore[arg-type]
            False,
            collate_fn=pad,
        )
    )
    assert "T is 5 here and was 3" in said
    assert "samples 2 to 3" in said
    assert "collate_fn" in said


def test_shapes_are_judged_without_a_model() -> None:
    def judge(shape: tuple[int, ...], rows: int, is_members: bool = False) -> str:
        return refusal(
            lambda: axes.check_axes(
                shape, rows, range(rows), members=is_members, name="output", usual=16
            )
        )

    assert "[1 - p, p]" in judge((4,), 4)
    assert "pad_last=True" in judge((16, 3), 4)
    assert "every sample needs one row" in judge((3, 3), 4)
    assert "axis 2 counts the 4 samples" in judge((7, 3, 4), 4, True)
    assert "expected (4, classes)" in judge((4, 3, 8, 8), 4)
    axes.check_axes((4, 3), 4, range(4), members=False, name="output", usual=None)
    axes.check_axes((4, 2, 3), 4, range(4), members=True, name="output", usual=None)


# ------------------------------------------------------------------ meaning


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def test_a_sigmoid_is_refused_by_auto_with_three_ways_out_that_work(side: Side) -> None:
    pairs, linear = make_pairs(30), Linear()
    labels = sigmoid(pairs.inputs @ linear.weight)
    model = side.model(lambda x: sigmoid(linear(x)))
    for size in (64, 2):  # ten numbers are evidence enough where none is outside
        generator = side.generator(model, batch_size=size)
        said = refusal(lambda g=generator: g.generate_distributions(pairs, False), RowError)
        assert "all lie in [0, 1]" in said
    assert f"sample 0 sums to {labels[0].sum():.3f}"[:-1] in said
    for way in ("output_mode='logits'", "output_mode='probs'", "np.stack([1 - p, p], axis=-1)"):
        assert way in said
    stack = {"numpy": np.stack}
    if side.name == "torch":
        import torch

        stack["torch"] = torch.stack
    elif side.name == "jax":
        import jax.numpy

        stack["jax"] = jax.numpy.stack
    each = side.generator(
        model, members=True, output_transform=lambda p: stack[side.name]([1 - p, p], axis=-1)
    )
    result = each.generate_distributions(pairs, False)
    np.testing.assert_allclose(result[7], np.stack([1 - labels[7], labels[7]], -1), atol=1e-5)
    meant = side.generator(model, output_mode="logits").generate_distributions(pairs, False)
    np.testing.assert_allclose(meant[7], softmax(labels)[7], atol=1e-5)
    normal = side.generator(
        model,
        output_mode="probs",
        output_transform=lambda p: p / side.array(np.asarray(p).sum(-1, keepdims=True)),
    )
    result = normal.generate_distributions(pairs, False)
    np.testing.assert_allclose(result[7], labels[7] / labels[7].sum(), atol=1e-5)
    rounded = side.model(lambda x: softmax(linear(x)).round(2))
    probs = side.generator(rounded, output_mode="probs")
    with pytest.raises(RowError, match="larger tol"):
        probs.generate_distributions(pairs, False)
    assert len(probs.generate_distributions(pairs, False, tol=0.03)) == 30


def test_probabilities_that_come_later_than_logits_are_refused_too(side: Side) -> None:
    rows = np.random.default_rng(0).normal(size=(64, 4)).astype(np.float32)
    rows[32:] = sigmoid(rows[32:])
    generator = side.generator(side.model(lambda x: x), batch_size=32)
    said = refusal(lambda: generator.generate_distributions(Pairs(rows), False), RowError)
    assert "samples 32 to 63 all lie in [0, 1]" in said
    few = rows[28:34]  # two rows of four numbers in [0, 1] happen by chance
    result = side.generator(side.model(lambda x: x), batch_size=2).generate_distributions(
        Pairs(few), False
    )
    np.testing.assert_allclose(result[5], softmax(few)[5], atol=1e-5)


@pytest.mark.parametrize("stored", [False, True])
def test_a_softmax_of_a_softmax_is_warned_of_once(side: Side, stored: bool, tmp_path: Path) -> None:
    pairs, linear = make_pairs(40), Linear()
    model = side.model(lambda x: softmax(linear(x)))
    generator = side.generator(model, output_mode="logits", batch_size=8)
    options = {"store": tmp_path / "a.zarr"} if stored else {}
    with pytest.warns(UserWarning, match="is a distribution already") as said:
        result = generator.generate_distributions(pairs, False, **options)
    assert len(said) == 1
    first = softmax(pairs.inputs @ linear.weight)[0]
    assert f"{first.max():.2f} is kept as {softmax(first).max():.2f}" in str(said[0].message)
    np.testing.assert_allclose(result[0], softmax(first), atol=1e-5)


@pytest.mark.parametrize("mode", ["auto", "logits"])
def test_log_probabilities_are_logits_without_a_word(side: Side, mode: str) -> None:
    pairs, linear = make_pairs(40), Linear()
    model = side.model(lambda x: np.log(softmax(linear(x))))
    result = side.generator(model, output_mode=mode).generate_distributions(pairs, False)
    np.testing.assert_allclose(result[7], softmax(pairs.inputs @ linear.weight)[7], atol=1e-5)


# ------------------------------------------------------------------ members that differ


def mixed(side: Side) -> tuple[Any, Pairs, np.ndarray]:
    """An ensemble of one model that gives logits and one that gives probabilities."""
    pairs, one, other = make_pairs(60), Linear(0), Linear(1)
    models = [side.model(one), side.model(lambda x: softmax(other(x)))]
    want = np.stack([softmax(pairs.inputs @ m.weight) for m in (one, other)], axis=1)
    return models, pairs, want


def test_each_member_of_an_ensemble_is_decided_by_itself(side: Side, tmp_path: Path) -> None:
    models, pairs, want = mixed(side)
    generator = side.generator(models, batch_size=16)
    result = generator.generate_distributions(pairs, False)
    np.testing.assert_allclose([result[i] for i in range(60)], want, atol=1e-5)
    options: dict[str, Any] = {"store": tmp_path / "a.zarr", "model_fingerprint": "v1"}
    generator.generate_distributions(pairs, False, rows=(0, 32), **options)
    store = generator.generate_distributions(pairs, False, **options)
    assert store.is_sealed
    np.testing.assert_allclose(store.take(range(60)), want, atol=1e-5)
    assert store.header.identity["output"]["mode"] == ["logits", "probs"]
    assert store.meta["output_mode"] == ["logits", "probs"]
    for mode in ("logits", "probs"):
        said = side.generator(models, batch_size=16, output_mode=mode)
        with pytest.raises(IdentityError, match="the output mode is"):
            said.generate_distributions(pairs, False, **options)
    with pytest.raises(ArgumentError, match="store_as='log_probs'"):
        generator.generate_distributions(pairs, False, store=tmp_path / "b.zarr", store_as="logits")
    with pytest.raises(ArgumentError, match="temperature"):
        generator.generate_distributions(pairs, False, store=tmp_path / "b.zarr", temperature=2.0)


def test_members_that_agree_are_recorded_as_one_mode(side: Side, tmp_path: Path) -> None:
    models = [side.model(Linear(0)), side.model(Linear(1))]
    store = side.generator(models).generate_distributions(
        make_pairs(20), False, store=tmp_path / "a.zarr"
    )
    assert store.header.identity["output"]["mode"] == "logits"


def test_a_member_that_becomes_another_kind_is_named(side: Side) -> None:
    pairs = make_pairs(64)
    pairs.inputs[32:] = softmax(pairs.inputs[32:])
    models = [side.model(lambda x: -abs(x)), side.model(lambda x: x), side.model(softmax)]
    generator = side.generator(models, batch_size=32)
    said = refusal(lambda: generator.generate_distributions(pairs, False), RowError)
    assert "every output of member 1 for samples 32 to 63 is a distribution" in said


def test_members_of_one_model_are_decided_one_by_one_too(side: Side) -> None:
    pairs, linear = make_pairs(20), Linear()
    model = side.model(lambda x: np.stack([linear(x), softmax(linear(x))], axis=1))
    result = side.generator(model, members=True).generate_distributions(pairs, False)
    np.testing.assert_allclose(result[3][0], result[3][1], atol=1e-5)
