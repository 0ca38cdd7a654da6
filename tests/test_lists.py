"""A list of numbers is a value: one array, on every side; any other list is structure, as a tuple is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits  # type: ignore[import-untyped]
from torch.utils.data import DataLoader

import fostore
from fostore import nested
from fostore.containers.collate import collate
from fostore.errors import ArgumentError
from sides import SIDES, Side, softmax

DIGITS, TARGETS = load_digits(return_X_y=True)
DIGITS = DIGITS[:200] / 16
WEIGHT = np.random.default_rng(0).normal(size=(64, 10)).astype(np.float32)
EXPECTED = softmax(DIGITS @ WEIGHT)

SAMPLES: dict[str, Any] = {
    "pairs": [(row.tolist(), int(y)) for row, y in zip(DIGITS, TARGETS, strict=False)],
    "lists of two": [[row.tolist(), int(y)] for row, y in zip(DIGITS, TARGETS, strict=False)],
    "bare": [row.tolist() for row in DIGITS],
    "numpy's numbers": [list(row.astype(np.float32)) for row in DIGITS],
}


def model_of(side: Side) -> Any:
    """A linear model that takes the arrays of its side as they come; on torch a float32 network."""
    if side.name == "torch":
        network = torch.nn.Linear(64, 10, bias=False)
        network.weight.data = torch.from_numpy(WEIGHT.T.copy())
        return network
    return lambda batch: batch @ side.array(WEIGHT)


@pytest.mark.parametrize("kind", list(SAMPLES))
@pytest.mark.parametrize("batch_size", [64, 50])
def test_rows_of_digits_are_rows_also_where_a_batch_is_square(
    side: Side, kind: str, batch_size: int, tmp_path: Path
) -> None:
    samples = SAMPLES[kind]
    generator = side.generator(model_of(side), batch_size=batch_size, output_mode="logits")
    store = generator.generate_distributions(samples, False, store=tmp_path / "a.zarr")
    np.testing.assert_allclose(store.array, EXPECTED, atol=1e-5)
    for other in SIDES.values():  # also where one side generated and another one trains
        paired = other.module.FirstOrderDataset(samples, store)
        assert "content" in paired.pairing.checked
        assert len(paired[3]) == (3 if kind in ("pairs", "lists of two") else 2)
        np.testing.assert_allclose(paired[3][0], DIGITS[3], rtol=1e-6)
        batch = next(iter(other.module.output_dataloader(samples, store, 64)))
        np.testing.assert_allclose(np.asarray(batch[0]), DIGITS[:64], rtol=1e-6)
        np.testing.assert_allclose(np.asarray(batch[-1]), EXPECTED[:64], atol=1e-5)


@pytest.mark.parametrize("loader", ["torch", "simple", "workers"])
def test_a_loader_of_the_user_reads_lists_by_the_same_rule(loader: str) -> None:
    samples = SAMPLES["pairs"]
    data: Any = fostore.SimpleDataLoader(samples, 64)
    if loader != "simple":
        data = DataLoader(samples, 64, num_workers=2 if loader == "workers" else 0)
    side = SIDES["torch"]
    generator = side.generator(model_of(side), output_mode="logits")
    rows = generator.generate_distributions(data, False)
    np.testing.assert_allclose(np.stack(list(rows.values())), EXPECTED, atol=1e-5)


def test_a_stock_loader_over_a_paired_dataset_stacks_lists_in_the_default_dtype() -> None:
    from fostore.torch import FirstOrderDataset

    rows = {i: [0.5, 0.5] for i in range(200)}
    paired = FirstOrderDataset(SAMPLES["pairs"], rows)
    inputs, labels, _ = next(iter(DataLoader(paired, 64)))
    assert (inputs.shape, inputs.dtype) == ((64, 64), torch.float32)
    assert labels.tolist() == TARGETS[:64].tolist()
    alone = torch.utils.data.default_collate([paired[0], paired[1]])
    assert alone[1].tolist() == TARGETS[:2].tolist()


def test_lists_in_dicts_and_tuples_are_values_and_images_may_be_lists_too(side: Side) -> None:
    seen: list[Any] = []
    samples = [{"x": ([1.0, 2.0], [[i, 1], [2, 3]]), "name": "a"} for i in range(3)]

    def model(batch: Any) -> Any:
        seen.append(batch)
        return side.array(np.full((3, 2), 0.5, np.float32))

    side.generator(model).generate_distributions(samples, False)
    first, second = seen[0]["x"]
    assert tuple(first.shape) == (3, 2)
    assert tuple(second.shape) == (3, 2, 2)
    assert np.asarray(second)[:, 0, 0].tolist() == [0, 1, 2]
    assert str(np.asarray(first).dtype) == ("float64" if side.name == "numpy" else "float32")
    assert np.asarray(second).dtype.kind == "i"


@pytest.mark.parametrize("batch_size", [1, 2, 4])
def test_lists_that_differ_in_length_stay_a_list_of_samples(
    side: Side, batch_size: int, tmp_path: Path
) -> None:
    samples = [([1] * (1 + i % 3), 0) for i in range(12)]
    seen: list[Any] = []

    def model(batch: Any) -> Any:
        seen.append(batch)
        return side.array(np.array([[len(one) / 4, 1 - len(one) / 4] for one in batch], np.float32))

    generator = side.generator(model, batch_size=batch_size, output_mode="probs")
    store = generator.generate_distributions(samples, False, store=tmp_path / "a.zarr")
    assert store.array[:, 0].tolist() == [(1 + i % 3) / 4 for i in range(12)]
    assert batch_size == 1 or isinstance(seen[0], list)
    # An input has one hash, whatever it was batched with.
    again = side.generator(model, batch_size=3, output_mode="probs")
    other = again.generate_distributions(samples, False, store=tmp_path / "b.zarr")
    np.testing.assert_array_equal(store.column("input_hash"), other.column("input_hash"))
    assert "content" in side.module.FirstOrderDataset(samples, store).pairing.checked


@pytest.mark.parametrize(
    ("sample", "expected"),
    [
        ([0.1, 0.2, 0.3], ([0.1, 0.2, 0.3],)),
        ([[0.1, 0.2], 1], ([0.1, 0.2], 1)),
        ([[1, 2], [3]], ([[1, 2], [3]],)),
        ([[1, 2], "cat"], ([1, 2], "cat")),
        ((0.1, 0.2), (0.1, 0.2)),
        ([True, False], ([True, False],)),
        ([np.float32(1), 2], ([np.float32(1), 2],)),
        ([[(1, 2)], 0], ([(1, 2)], 0)),
        ([], ([],)),
        (["a photo", "cat"], ("a photo", "cat")),
    ],
)
def test_a_list_of_numbers_is_an_input_and_any_other_list_a_pair(
    sample: Any, expected: tuple[Any, ...]
) -> None:
    assert nested.split(sample) == expected


def test_what_is_no_list_of_numbers_beside_lists_of_numbers_is_named() -> None:
    for odd in (None, "text", [[1.0], 2]):
        with pytest.raises(ArgumentError, match="sample 2 of the batch is"):
            collate([[1.0, 2.0], [3.0, 4.0], odd])


def test_numpys_float64_stay_float64_on_torch() -> None:
    """As `torch.as_tensor` has it: Python's floats have no dtype, NumPy's have."""
    from fostore.torch.arrays import together

    assert together([[1.0, 2.0], [3.0, 4.0]]).dtype == torch.float32
    assert together([list(np.ones(2)), list(np.ones(2))]).dtype == torch.float64
    assert together([[1, 2], [3, 4]]).dtype == torch.int64
    assert together([[1, 2], [3, 4.5]]).dtype == torch.float32
    ragged = together([([1, 2], 0), ([3], 1)])
    assert [one.tolist() for one in ragged[0]] == [[1, 2], [3]]


def test_a_collate_fn_of_the_users_gets_lists_as_they_are(side: Side) -> None:
    seen: list[Any] = []

    def collate(samples: Any) -> Any:
        seen.append(samples[0])
        return side.array(np.array([one[0] for one in samples], np.float32))

    generator = side.generator(model_of(side), batch_size=64, output_mode="logits")
    rows = generator.generate_distributions(SAMPLES["pairs"], False, collate_fn=collate)
    np.testing.assert_allclose(np.stack(list(rows.values())), EXPECTED, atol=1e-5)
    assert seen[0] == SAMPLES["pairs"][0]


def test_a_simple_loader_yields_what_its_docs_say() -> None:
    def first(samples: Any) -> Any:
        return next(iter(fostore.SimpleDataLoader(samples, 2)))

    assert first([[1.0, 2.0], [3.0, 4.0]]).shape == (2, 2)
    inputs, labels = first([([1.0, 2.0], 0), ([3.0, 4.0], 1)])
    assert inputs.shape == (2, 2)
    assert labels.tolist() == [0, 1]
    assert first([[1], [2, 3]]) == [[1], [2, 3]]
    assert first(["a", "b"]) == ["a", "b"]
    assert first([{"x": [1, 2], "name": "a"}, {"x": [3, 4], "name": "b"}])["name"] == ["a", "b"]
