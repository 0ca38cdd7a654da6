"""A user's data is never changed, every model sees the same input, and no output is overwritten."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from fostore.generate.memory import copied
from fostore.generate.numpy_framework import NumpyFramework
from sides import SIDES, Pairs, Side, softmax

# One model several times is what shows whether they see the same input.
pytestmark = pytest.mark.filterwarnings("ignore:members 0 and 1 gave the same:UserWarning")

WEIGHT = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)


@pytest.fixture(params=["numpy", "torch"])
def side(request: pytest.FixtureRequest) -> Side:
    """The sides whose arrays can be changed in place."""
    return SIDES[request.param]


def raw(samples: int = 10) -> np.ndarray:
    return (np.random.default_rng(1).random((samples, 6)) * 255).astype(np.float32)


def normalise(batch: np.ndarray) -> np.ndarray:
    """Logits of a model that normalises its input in place."""
    batch /= 127.5
    batch -= 1
    return batch @ WEIGHT


def expected(inputs: np.ndarray) -> np.ndarray:
    return softmax((inputs / 127.5 - 1) @ WEIGHT)


class Same:
    """A dataset that keeps its samples and gives the same objects each time."""

    def __init__(self, samples: list[Any]) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Any:
        return self.samples[index]


def first_alone(samples: list[Any]) -> Any:
    """A collate_fn for batches of one that stacks nothing: the batch is the sample's own memory."""
    return samples[0][None]


CASES: dict[str, tuple[Callable[[Side, np.ndarray], Any], dict[str, Any], int]] = {
    "pairs of views": (lambda side, rows: [(row, 0) for row in rows], {}, 4),
    "samples that are kept": (lambda side, rows: Same([side.array(row) for row in rows]), {}, 1),
    "a collate_fn that gives a view": (
        lambda side, rows: Same(list(rows) if side.name == "numpy" else list(tensors(rows))),
        {"collate_fn": first_alone},
        1,
    ),
    "an array": (lambda side, rows: rows if side.name == "numpy" else from_numpy(rows), {}, 4),
    "a slice": (lambda side, rows: rows[:] if side.name == "numpy" else from_numpy(rows), {}, 64),
    "a stream": (lambda side, rows: iter(list(rows)), {}, 4),
}


def tensors(rows: np.ndarray) -> Any:
    import torch

    return torch.from_numpy(rows)


def from_numpy(rows: np.ndarray) -> Any:
    import torch

    return torch.utils.data.TensorDataset(torch.from_numpy(rows))


@pytest.mark.parametrize("case", list(CASES))
@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("stored", [False, True])
def test_a_model_that_changes_its_input_changes_nobody_elses(
    side: Side, case: str, count: int, stored: bool, tmp_path: Path
) -> None:
    make, options, batch_size = CASES[case]
    inputs = raw()
    before, want = inputs.copy(), expected(inputs)
    model: Any = side.model(normalise)
    model = model if count == 1 else [model] * count
    if stored:
        options = {**options, "store": tmp_path / "a.zarr", "model_fingerprint": "v1"}
    for _ in range(2):
        generator = side.generator(model, batch_size=batch_size, output_mode="logits")
        result = generator.generate_distributions(make(side, inputs), False, **options)
        np.testing.assert_array_equal(inputs, before)
        for i, row in enumerate(want):
            np.testing.assert_allclose(result[i], [row] * count if count > 1 else row, atol=1e-5)


def test_every_part_of_a_nested_batch_is_a_models_own(side: Side) -> None:
    inputs = raw()
    kept = [{"a": side.array(row), "b": (side.array(row), "text")} for row in inputs]
    before, want = inputs.copy(), expected(inputs)

    def collate(samples: list[Any]) -> Any:
        (sample,) = samples
        return {"a": sample["a"][None], "b": (sample["b"][0][None], [sample["b"][1]])}

    def model(batch: Any) -> Any:
        assert batch["b"][1] == ["text"]
        normalise(np.asarray(batch["b"][0]))
        return side.array(normalise(np.asarray(batch["a"])))

    generator = side.generator([model, model], batch_size=1, output_mode="logits")
    result = generator.generate_distributions(Same(kept), False, collate_fn=collate)
    for i, row in enumerate(want):
        np.testing.assert_allclose(result[i], [row, row], atol=1e-5)
        np.testing.assert_array_equal(np.asarray(kept[i]["a"]), before[i])
        np.testing.assert_array_equal(np.asarray(kept[i]["b"][0]), before[i])


def test_halves_are_computed_from_an_intact_input(side: Side, tmp_path: Path) -> None:
    inputs = raw(20)

    def model(batch: np.ndarray) -> np.ndarray:
        logits = normalise(batch)
        if len(batch) > 3:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate")
        return logits

    for data in (Pairs(inputs), iter(inputs.copy())):
        generator = side.generator(side.model(model), batch_size=8, output_mode="logits")
        with pytest.warns(UserWarning, match="out of memory with 8 samples"):
            result = generator.generate_distributions(data, False)
        for i, row in enumerate(expected(inputs)):
            np.testing.assert_allclose(result[i], row, atol=1e-5)


@pytest.mark.parametrize("given", ["arrays", "objects with logits", "arrays to a transform"])
def test_models_may_share_the_memory_of_their_outputs(side: Side, given: str) -> None:
    buffer = side.array(np.zeros((4, 3), np.float32))

    def member(scale: float) -> Any:
        def run(batch: Any) -> Any:
            rows = softmax(np.asarray(batch) @ WEIGHT * scale)
            buffer[: len(rows)] = side.array(rows)
            part = buffer[: len(rows)]
            return SimpleNamespace(logits=part) if given == "objects with logits" else part

        return run

    inputs = raw() / 255
    each = [softmax(inputs @ WEIGHT * scale) for scale in (1, 2)]
    is_mean = given == "arrays to a transform"
    generator = side.generator(
        [member(1), member(2)],
        batch_size=4,
        output_mode="probs",
        output_transform=(lambda outs: (outs[0] + outs[1]) / 2) if is_mean else None,
    )
    result = generator.generate_distributions(Pairs(inputs), False)
    want = (each[0] + each[1]) / 2 if is_mean else np.stack(each, axis=1)
    for i, row in enumerate(want):
        np.testing.assert_allclose(result[i], row, atol=1e-6)


def test_a_fresh_batch_of_one_model_is_not_copied(
    side: Side, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    generator = side.generator([side.model(normalise)] * 2, batch_size=4, output_mode="logits")
    copies: list[bool] = []
    to_device = generator._framework.to_device

    def spy(data: Any, *, copy: bool = False) -> Any:
        copies.append(copy)
        return to_device(data, copy=copy)

    monkeypatch.setattr(generator._framework, "to_device", spy)
    generator.generate_distributions(Pairs(raw(4)), False)
    assert copies == [False, True]  # the batch as it was gathered is the last model's
    copies.clear()
    generator.generate_distributions(
        Pairs(raw(4)), False, collate_fn=lambda s: side.array(np.stack(s))
    )
    assert copies == [True, True]


def test_a_jax_model_may_donate_its_input() -> None:
    import jax

    inputs = raw()
    kept = [jax.numpy.asarray(row[None]) for row in inputs]
    model = jax.jit(lambda batch: (batch / 127.5 - 1) @ WEIGHT, donate_argnums=0)
    generator = SIDES["jax"].generator([model, model], batch_size=1, output_mode="logits")
    for data, options in ((Pairs(inputs), {}), (Same(kept), {"collate_fn": lambda s: s[0]})):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Some donated buffers were not usable")
            result = generator.generate_distributions(data, False, **options)
        np.testing.assert_allclose(result[3], [expected(inputs)[3]] * 2, atol=1e-5)
    assert not any(array.is_deleted() for array in kept)


def test_copies_keep_what_they_are_and_share_nothing() -> None:
    sparse = pytest.importorskip("scipy.sparse")
    torch = pytest.importorskip("torch")
    matrix = sparse.csr_matrix(np.eye(3))
    ordered = np.asfortranarray(np.arange(6.0).reshape(2, 3))
    texts = np.array([["a"], ["b"]], dtype=object)
    data = {"m": matrix, "f": ordered, "t": torch.ones(2), "o": texts, "s": "text", "n": None}
    twin = copied(data)
    assert twin["f"].strides == ordered.strides
    assert (twin["s"], twin["n"]) == ("text", None)
    for array, copy in ((matrix.data, twin["m"].data), (ordered, twin["f"])):
        assert not np.shares_memory(array, copy)
    twin["t"][0] = 5
    assert data["t"][0] == 1
    assert np.array_equal(twin["o"], texts)


def test_the_numpy_side_hands_over_what_it_is_given_where_nothing_is_to_be_copied() -> None:
    rows = raw()
    assert NumpyFramework("cpu", ()).to_device(rows) is rows


def test_parts_of_a_batch_that_did_not_fit_may_share_the_memory_of_their_outputs(
    side: Side,
) -> None:
    buffer = np.zeros((2, 3), np.float32)

    def model(batch: np.ndarray) -> np.ndarray:
        if len(batch) > 2:
            raise MemoryError
        buffer[: len(batch)] = softmax(batch @ WEIGHT)
        return buffer[: len(batch)]

    def run(batch: Any) -> Any:
        rows = model(np.asarray(batch))
        return rows if side.name == "numpy" else tensors(rows)

    inputs = raw() / 255
    generator = side.generator(run, batch_size=8, output_mode="probs")
    with pytest.warns(UserWarning, match="out of memory"):
        result = generator.generate_distributions(Pairs(inputs), False)
    for i, row in enumerate(softmax(inputs @ WEIGHT)):
        np.testing.assert_allclose(result[i], row, atol=1e-6)
