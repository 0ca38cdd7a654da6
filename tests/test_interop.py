"""Other people's models and types, with the real libraries: each called directly is the oracle."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fostore
from fostore.errors import ArgumentError, FostoreError, IdentityError, UncommittedError
from fostore.interop import as_first_order_dataset
from fostore.interop.probly import to_categorical, to_credal_set, to_sample
from fostore.schema.row import Array
from support import probs

SAMPLES = 40
RNG = np.random.default_rng(0)
INPUTS = RNG.normal(size=(SAMPLES, 4)).astype(np.float32)
LABELS = np.arange(SAMPLES) % 3


def rows_of(found: Any) -> Array:
    """Distributions in memory, in dataset order."""
    return np.stack([found[index] for index in range(len(found))])


def generated(model: Any, data: Any = INPUTS, **options: Any) -> Array:
    """What a generator makes of a model, in dataset order."""
    generator = fostore.FirstOrderDataGenerator(model, batch_size=16, **options)
    return rows_of(generator.generate_distributions(data, progress=False))


# ------------------------------------------------------------------ scikit-learn


@pytest.fixture(scope="module")
def forest() -> Any:
    from sklearn.ensemble import RandomForestClassifier

    return RandomForestClassifier(5, random_state=0).fit(INPUTS, LABELS)


@pytest.fixture(scope="module")
def regression() -> Any:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(StandardScaler(), LogisticRegression()).fit(INPUTS, LABELS)


def test_an_estimator_is_a_model_as_it_is(forest: Any, regression: Any) -> None:
    for model in (forest, regression, regression.predict_proba):
        call = getattr(model, "predict_proba", model)
        np.testing.assert_allclose(generated(model), call(INPUTS), atol=1e-7)
    both = generated([forest, regression])
    assert both.shape == (SAMPLES, 2, 3)
    np.testing.assert_allclose(both[:, 1], regression.predict_proba(INPUTS), atol=1e-7)


def test_a_store_knows_the_estimator_that_made_it(tmp_path: Path, fast_disk: None) -> None:
    from sklearn.linear_model import LogisticRegression

    def generate(regularised: float) -> fostore.Store:
        model = LogisticRegression(C=regularised).fit(INPUTS, LABELS)
        generator = fostore.FirstOrderDataGenerator(model)
        return generator.generate_distributions(
            INPUTS, progress=False, store=tmp_path / "rows.zarr"
        )

    assert generate(1.0).digest() == generate(1.0).digest()
    with pytest.raises(IdentityError, match=r"tensor '\w+_' of the model has other values"):
        generate(0.1)


def test_an_estimator_without_probabilities_is_refused() -> None:
    from sklearn.svm import LinearSVC

    with pytest.raises(
        ArgumentError, match=r"the model is LinearSVC, which cannot be called; expected"
    ):
        fostore.FirstOrderDataGenerator(LinearSVC())


def test_the_torch_side_says_where_estimators_go(forest: Any) -> None:
    from fostore.torch import FirstOrderDataGenerator

    with pytest.raises(ArgumentError, match=r"fostore\.FirstOrderDataGenerator runs it as it is"):
        FirstOrderDataGenerator(forest)


# ------------------------------------------------------------------ ONNX Runtime


def session_of(model: Any) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def onnx_model(inputs: dict[str, int], outputs: list[str]) -> Any:
    """The sum of its inputs, as each of its outputs."""
    from onnx import TensorProto, helper

    total = "total" if len(inputs) > 1 else next(iter(inputs))
    nodes = [helper.make_node("Sum", list(inputs), [total])] if len(inputs) > 1 else []
    nodes += [helper.make_node("Identity", [total], [name]) for name in outputs]
    graph = helper.make_graph(
        nodes,
        "sum",
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, [None, k]) for n, k in inputs.items()],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, [None, None]) for n in outputs],
    )
    return helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 17)])


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("zipmap", [True, False])
def test_a_converted_estimator_gives_its_probabilities(regression: Any, zipmap: bool) -> None:
    from skl2onnx import to_onnx

    options = {"zipmap": zipmap}
    session = session_of(to_onnx(regression, INPUTS[:1], options={id(regression): options}))
    assert len(session.get_outputs()) == 2  # class numbers and probabilities
    wide = INPUTS.astype(np.float64)  # a session is exact about dtypes
    np.testing.assert_allclose(
        generated(session, wide), regression.predict_proba(INPUTS), atol=1e-5
    )


def test_a_session_of_logits_gives_their_softmax() -> None:
    session = session_of(onnx_model({"x": 4}, ["logits"]))
    weights = np.exp(INPUTS)
    found = generated(session, output_mode="logits")
    np.testing.assert_allclose(found, weights / weights.sum(1, keepdims=True), rtol=1e-5)


def test_dicts_and_tuples_are_the_inputs_of_a_session() -> None:
    session = session_of(onnx_model({"a": 4, "b": 4}, ["logits"]))
    weights = np.exp(2 * INPUTS)
    expected = weights / weights.sum(1, keepdims=True)
    dicts = [{"a": row, "b": row} for row in INPUTS]
    found = generated(session, dicts, output_mode="logits")
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    pairs = [(row, row) for row in INPUTS]
    found = generated(session, pairs, output_mode="logits", input_getter=tuple)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    with pytest.raises(ArgumentError, match=r"also holds \['c'\]"):
        generated(session, [{"a": row, "b": row, "c": row} for row in INPUTS])
    with pytest.raises(ArgumentError, match=r"has the inputs \['a', 'b'\]"):
        generated(session)


def test_a_session_of_several_outputs_asks_which() -> None:
    session = session_of(onnx_model({"x": 4}, ["logits", "features"]))
    with pytest.raises(ArgumentError, match=r"2 outputs .*logits tensor\(float\), features"):
        fostore.FirstOrderDataGenerator(session)
    chosen = generated(lambda x: session.run(["logits"], {"x": x})[0], output_mode="logits")
    assert chosen.shape == (SAMPLES, 4)


# ------------------------------------------------------------------ Keras and TensorFlow

KERAS = """
import warnings
import numpy as np, keras, fostore
assert keras.backend.backend() == {backend!r}
keras.utils.set_random_seed(0)
inputs = np.load("inputs.npy")

def build():
    return keras.Sequential([
        keras.layers.Input((4,)), keras.layers.Dropout(0.5), keras.layers.Dense(5),
        keras.layers.BatchNormalization(), keras.layers.Dense(3, activation="softmax"),
    ])

model = build()
one, other = keras.layers.Input((4,), name="one"), keras.layers.Input((4,), name="other")
two = keras.Model([one, other], keras.layers.Dense(3)(keras.layers.Concatenate()([one, other])))

def generate(model, data, **options):
    generator = fostore.FirstOrderDataGenerator(model, batch_size=16)
    return generator.generate_distributions(data, progress=False, **options)

def check(found, expected):
    np.testing.assert_allclose(np.stack([found[i] for i in range(len(inputs))]), expected, atol=1e-6)

check(generate(model, inputs), model.predict(inputs, verbose=0))
logits = two.predict([inputs, inputs], verbose=0)
weights = np.exp(logits)
dicts = [dict(one=row, other=row) for row in inputs]
check(generate(two, dicts), weights / weights.sum(1, keepdims=True))
store = generate(model, inputs, store="rows.zarr")
assert generate(model, inputs, store="rows.zarr").digest() == store.digest()
again = build()  # a cell that is run again: Keras counts the names of layers on
again.set_weights(model.get_weights())
with warnings.catch_warnings():
    warnings.simplefilter("error", UserWarning)
    assert generate(again, inputs, store="rows.zarr").digest() == store.digest()
model.set_weights([weight + 1 for weight in model.get_weights()])
try:
    generate(model, inputs, store="rows.zarr")
except fostore.errors.IdentityError as error:
    assert "has other values" in str(error), error
else:
    raise AssertionError("another model went on with the store")
"""

TENSORFLOW = """
import numpy as np, tensorflow as tf, fostore
inputs = np.load("inputs.npy")
weights = tf.constant(np.eye(4, 3, dtype=np.float32))
model = tf.function(lambda x: tf.nn.softmax(x @ weights))
found = fostore.FirstOrderDataGenerator(model, batch_size=16).generate_distributions(
    inputs, progress=False)
expected = model(inputs).numpy()
np.testing.assert_allclose(np.stack([found[i] for i in range(len(inputs))]), expected, atol=1e-6)
"""

needs_tensorflow = pytest.mark.skipif(
    importlib.util.find_spec("tensorflow") is None,
    reason="TensorFlow is not installed (1.3 GB; pip install tensorflow-cpu)",
)


def run_apart(code: str, folder: Path, **environment: str) -> None:
    """In a process of its own, since a Keras backend is chosen once a process."""
    np.save(folder / "inputs.npy", INPUTS)
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=150,
        env={**os.environ, "KERAS_HOME": str(folder), **environment},
    )
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
    "backend", ["torch", "jax", pytest.param("tensorflow", marks=needs_tensorflow)]
)
def test_a_keras_model_is_a_model_as_it_is(backend: str, tmp_path: Path) -> None:
    run_apart(KERAS.format(backend=backend), tmp_path, KERAS_BACKEND=backend)


@needs_tensorflow
def test_a_tensorflow_function_is_a_model_as_it_is(tmp_path: Path) -> None:
    run_apart(TENSORFLOW, tmp_path)


# ------------------------------------------------------------------ Hugging Face


@pytest.fixture
def bert() -> Any:
    import torch
    import transformers

    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=20,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
        num_labels=3,
        initializer_range=1.0,
    )
    return transformers.BertForSequenceClassification(config).eval()


def test_a_transformer_over_a_dataset_of_tokens_needs_no_transform(bert: Any) -> None:
    import datasets
    import torch

    from fostore.torch import FirstOrderDataGenerator, FirstOrderDataset, output_dataloader

    tokens = RNG.integers(0, 20, (SAMPLES, 6))
    mask = np.ones_like(tokens)
    mask[:, 4:] = RNG.integers(0, 2, (SAMPLES, 1))
    base = datasets.Dataset.from_dict(
        {"input_ids": tokens.tolist(), "attention_mask": mask.tolist()}
    ).with_format("torch")
    with torch.no_grad():
        output = bert(torch.tensor(tokens), attention_mask=torch.tensor(mask))
    expected = output.logits.softmax(-1).numpy()
    generator = FirstOrderDataGenerator(bert, batch_size=16)
    found = generator.generate_distributions(base, progress=False)
    np.testing.assert_allclose(rows_of(found), expected, atol=1e-6)
    without = bert(torch.tensor(tokens)).logits.softmax(-1).detach().numpy()
    assert np.abs(without - expected).max() > 1e-5  # the mask counts, and has arrived
    pairs = FirstOrderDataset(base, found, target_key="teacher")
    assert set(pairs[3]) == {"input_ids", "attention_mask", "teacher"}
    batches = list(output_dataloader(base, found, 16, target_key="teacher"))
    given = torch.cat([batch["teacher"] for batch in batches]).numpy()
    np.testing.assert_array_equal(given, rows_of(found))
    assert batches[0]["input_ids"].tolist() == tokens[:16].tolist()


# ------------------------------------------------------------------ (input, distribution)


def test_pairs_are_exactly_input_and_distribution(tmp_path: Path, fast_disk: None) -> None:
    path = tmp_path / "rows.zarr"
    with fostore.create(
        path, num_samples=SAMPLES, num_classes=3, class_names=["a", "b", "c"]
    ) as writer:
        writer.append(probs(SAMPLES))
    store = fostore.open(path)
    labelled = [(row, int(label)) for row, label in zip(INPUTS, LABELS, strict=True)]
    for base, given in ((labelled, path), (labelled, store), (list(INPUTS), store)):
        pairs = as_first_order_dataset(base, given, check="length")
        assert len(pairs) == SAMPLES
        assert pairs.classes == ["a", "b", "c"]
        np.testing.assert_array_equal(pairs.targets, probs(SAMPLES))
        x, distribution = pairs[7]
        np.testing.assert_array_equal(x, INPUTS[7])
        np.testing.assert_array_equal(distribution, probs(SAMPLES)[7])
    assert np.shares_memory(as_first_order_dataset(labelled, store).targets, store.array)


def test_of_a_torch_dataset_distributions_are_tensors(tmp_path: Path) -> None:
    import torch
    from torch.utils.data import DataLoader, TensorDataset

    base: Any = TensorDataset(torch.tensor(INPUTS), torch.tensor(LABELS))
    pairs: Any = as_first_order_dataset(base, dict(enumerate(probs(SAMPLES))))
    assert isinstance(pairs[0][1], torch.Tensor)
    inputs, rows = next(iter(DataLoader(pairs, batch_size=8)))
    assert torch.equal(inputs, torch.tensor(INPUTS[:8]))
    np.testing.assert_array_equal(rows.numpy(), probs(SAMPLES)[:8])


# ------------------------------------------------------------------ probly

needs_probly = pytest.mark.skipif(
    importlib.util.find_spec("probly") is None,
    reason="probly is not installed (it needs Python 3.12 or newer)",
)


@pytest.fixture
def members(tmp_path: Path, fast_disk: None) -> fostore.Store:
    """Three members of two classes more than one: rows (3, 4)."""
    path = tmp_path / "members.zarr"
    with fostore.create(path, num_samples=SAMPLES, num_classes=4, num_members=3) as writer:
        writer.append(probs(SAMPLES * 3, 4).reshape(SAMPLES, 3, 4))
    return fostore.open(path)


def written(path: Path, rows: Array, **options: Any) -> fostore.Store:
    with fostore.create(
        path, num_samples=len(rows), num_classes=rows.shape[-1], **options
    ) as writer:
        writer.append(rows)
    return fostore.open(path)


@needs_probly
@pytest.mark.parametrize("suffix", [".zarr", ".h5"])
@pytest.mark.parametrize("kind", ["probs", "log_probs", "logits"])
def test_a_store_becomes_a_distribution_without_a_copy(
    tmp_path: Path, fast_disk: None, suffix: str, kind: str
) -> None:
    rows = probs(SAMPLES, 4) if kind == "probs" else np.log(probs(SAMPLES, 4))
    store = written(tmp_path / f"rows{suffix}", rows, kind=kind)
    found = to_categorical(store)
    assert found.shape == (SAMPLES,)
    assert found.num_classes == 4
    assert np.shares_memory(found.array, store.column(store.schema.content[0].name))
    assert not found.array.flags.writeable
    np.testing.assert_allclose(found.probabilities, probs(SAMPLES, 4), rtol=1e-5)


@needs_probly
@pytest.mark.parametrize("options", [{"dtype": "bfloat16"}, {"kind": "counts"}])
def test_what_has_to_be_decoded_becomes_probabilities(
    tmp_path: Path, fast_disk: None, options: Any
) -> None:
    counted = "kind" in options
    rows = RNG.integers(1, 9, (SAMPLES, 4)) if counted else probs(SAMPLES, 4)
    options = {**options, "dtype": "uint8"} if counted else options
    store = written(tmp_path / "rows.zarr", rows, **options)
    expected = store.take(range(SAMPLES))
    np.testing.assert_array_equal(to_categorical(store).unnormalized_probabilities, expected)
    few = to_categorical(store.select([3, 1]))
    np.testing.assert_array_equal(few.unnormalized_probabilities, expected[[3, 1]])


@needs_probly
def test_members_are_the_axis_of_a_sample(members: fostore.Store) -> None:
    from probly.quantification import decompose  # noqa: F401  (what a sample is for)

    sample = to_sample(members)
    assert (sample.sample_axis, sample.sample_size) == (1, 3)
    assert np.shares_memory(sample.array.array, members.array)
    mean = members.array.mean(axis=1)
    np.testing.assert_allclose(sample.sample_mean().probabilities, mean, rtol=1e-5)


@needs_probly
@pytest.mark.parametrize("kind", ["discrete", "convex", "intervals", "distance", "singleton"])
def test_members_become_a_credal_set(members: fostore.Store, kind: str) -> None:
    found = to_credal_set(members, kind)
    rows = members.array
    mean = rows.mean(axis=1, keepdims=True)
    radius = np.abs(rows - mean).sum(-1).max(1)[:, None] / 2
    lower, upper = {
        "distance": ((mean[:, 0] - radius).clip(0, 1), (mean[:, 0] + radius).clip(0, 1)),
        "singleton": (mean[:, 0], mean[:, 0]),
    }.get(kind, (rows.min(axis=1), rows.max(axis=1)))
    np.testing.assert_allclose(found.lower(), lower, atol=1e-6)
    np.testing.assert_allclose(found.upper(), upper, atol=1e-6)


@needs_probly
def test_single_distributions_and_a_radius_become_balls(tmp_path: Path, fast_disk: None) -> None:
    store = written(tmp_path / "rows.zarr", probs(SAMPLES, 4))
    for radius in (0.1, np.linspace(0, 0.2, SAMPLES)):
        found = to_credal_set(store, "distance", radius=radius)
        wide = np.broadcast_to(np.asarray(radius), (SAMPLES,))[:, None]
        np.testing.assert_allclose(found.upper(), (store.array + wide).clip(0, 1), atol=1e-6)
        assert np.shares_memory(found.nominal.array, store.array)


@needs_probly
def test_the_guides_coverage_takes_what_probly_makes(members: fostore.Store) -> None:
    from fostore.evaluate import compute_coverage

    sets = to_credal_set(members, "intervals")
    inside, outside = members.array.mean(axis=1), np.tile(np.float32([1, 0, 0, 0]), (SAMPLES, 1))
    assert compute_coverage(sets, dict(enumerate(inside))) == 1.0
    assert compute_coverage(sets, dict(enumerate(outside))) == 0.0


@needs_probly
def test_what_makes_no_credal_set_is_refused(tmp_path: Path, members: fostore.Store) -> None:
    single = written(tmp_path / "rows.zarr", probs(SAMPLES, 4))
    with pytest.raises(ArgumentError, match="a sample needs a member axis"):
        to_credal_set(single)
    with pytest.raises(ArgumentError, match="kind is 'hull', expected one of"):
        to_credal_set(members, "hull")
    with pytest.raises(ArgumentError, match="makes balls"):
        to_credal_set(single, "convex", radius=0.1)
    with pytest.raises(ArgumentError, match="these have members"):
        to_credal_set(members, "distance", radius=0.1)
    with pytest.raises(ArgumentError, match=r"radius has the shape \(3,\)"):
        to_credal_set(single, "distance", radius=np.zeros(3))
    with pytest.raises(ArgumentError, match="store is dict"):
        to_categorical({})  # type: ignore[arg-type]
    gap = tmp_path / "gap.zarr"
    with fostore.create(gap, num_samples=2048, num_classes=4, unit_rows=1024) as writer:
        writer.write(1024, probs(1024, 4))
    with pytest.raises(UncommittedError):
        to_categorical(gap)


@pytest.mark.skipif(
    importlib.util.find_spec("probly") is not None, reason="probly is installed here"
)
def test_without_probly_its_name_and_python_are_said(members: fostore.Store) -> None:
    with pytest.raises(FostoreError, match=r"pip install 'probly>=0\.9' \(Python 3\.12"):
        to_sample(members)
