"""One bad sample among many is named, on every side; what gives batches instead of samples is refused."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset, default_collate

import fostore
from fostore.errors import ArgumentError, GenerationError
from fostore.generate.assembly import is_batch
from fostore.torch import FirstOrderDataGenerator, FirstOrderDataset, output_dataloader
from sides import SIDES, Side

N, BAD = 64, 37
X = np.random.default_rng(0).normal(size=(N, 5)).astype(np.float32)
ROWS = {i: [0.5, 0.5] for i in range(N)}


class Broken(Dataset[Any]):
    """Sample 37 is None, lacks a number, or cannot be read."""

    def __init__(self, how: str) -> None:
        self.how = how

    def __len__(self) -> int:
        return N

    def __getitem__(self, index: int) -> Any:
        x = torch.from_numpy(X[index])
        if index != BAD:
            return x, 0
        if self.how == "raises":
            raise OSError("image file is truncated")
        return {"None": None, "input None": (None, 0), "short": (x[:3], 0), "text": ("x", 0)}[
            self.how
        ]


def model_of(side: Side) -> Any:
    return side.model(lambda batch: batch.astype(np.float32))


def generate(side: Side, data: Any, **options: Any) -> Any:
    generator = side.generator(model_of(side), batch_size=32, output_mode="logits")
    return generator.generate_distributions(data, False, **options)


@pytest.mark.parametrize("how", ["raises", "None", "input None", "short", "text"])
@pytest.mark.parametrize("stored", [False, True])
def test_the_one_bad_sample_of_a_batch_is_named(
    side: Side, how: str, stored: bool, tmp_path: Path
) -> None:
    options = {"store": tmp_path / "a.zarr"} if stored else {}
    kind = GenerationError if how == "raises" else ArgumentError
    with pytest.raises(kind, match=rf"sample {BAD} ") as caught:
        generate(side, Broken(how), **options)
    if how == "raises":
        assert isinstance(caught.value.__cause__, OSError)
        assert "image file is truncated" in str(caught.value)
    if stored:  # the batch before it is kept
        assert len(fostore.open(tmp_path / "a.zarr")) == 32


@pytest.mark.parametrize("how", ["raises", "None", "short"])
def test_a_bad_sample_that_a_worker_reads_is_named(how: str) -> None:
    loader = DataLoader(Broken(how), 32, num_workers=2)
    with pytest.raises(fostore.FostoreError, match=f"sample {BAD} "):
        generate(SIDES["torch"], loader)


def drop(samples: Any) -> Any:
    return default_collate([one for one in samples if one is not None])


@pytest.mark.parametrize("data", [Broken("None"), DataLoader(Broken("None"), 32, num_workers=2)])
def test_a_sample_that_the_collate_fn_leaves_out_is_named_and_the_cure_holds(data: Any) -> None:
    side = SIDES["torch"]
    words = rf"sample {BAD} of the dataset is None.*31 rows for the 32 samples of a batch"
    with pytest.raises(ArgumentError, match=words):
        generate(side, data, collate_fn=drop)
    kept = torch.utils.data.Subset(Broken("None"), [i for i in range(N) if i != BAD])
    assert len(generate(side, kept, collate_fn=drop)) == N - 1


def test_a_sample_that_is_left_out_for_another_reason_is_named() -> None:
    def no_zeros(samples: Any) -> Any:
        return default_collate([(x, y) for x, y in samples if y != 3])

    data = TensorDataset(torch.from_numpy(X), torch.arange(N))
    words = "sample 3 of the dataset was left out by the collate_fn"
    with pytest.raises(ArgumentError, match=words):
        generate(SIDES["torch"], data, collate_fn=no_zeros)


@pytest.mark.parametrize("how", ["short", "text"])
def test_the_one_list_of_another_length_is_named(side: Side, how: str) -> None:
    """Lists that differ in length stay a list of samples, which most models refuse."""
    rows: list[Any] = [(x.tolist(), 0) for x in X]
    rows[BAD] = (rows[BAD][0][:3], 0) if how == "short" else ("x", 0)
    with pytest.raises(fostore.FostoreError, match=rf"sample {BAD} ") as caught:
        generate(side, rows)
    if how == "short":
        assert "has the shape (3,), and most of the batch (5,)" in str(caught.value)
        padded = [([*x, 0, 0][:5], y) for x, y in rows]
        assert len(generate(side, padded)) == N


def test_the_sample_on_which_the_input_getter_fails_is_named(side: Side) -> None:
    def first(sample: Any) -> Any:
        return {"x": sample[0]}["y" if sample[1] == BAD else "x"]

    pairs = [(x, i) for i, x in enumerate(X)]
    generator = side.generator(model_of(side), batch_size=32, input_getter=first)
    with pytest.raises(
        ArgumentError, match=rf"sample {BAD} .* the input_getter failed: KeyError: 'y'"
    ):
        generator.generate_distributions(pairs, False)


def test_a_few_arrays_that_are_samples_are_given_in_tuples(side: Side) -> None:
    generator = side.generator(model_of(side), output_mode="logits")
    with pytest.raises(ArgumentError, match=r"\[\(array,\) for array in arrays\]"):
        generator.generate_distributions([X[0], X[1]], False)
    assert len(generator.generate_distributions([(x,) for x in (X[0], X[1])], False)) == 2


class BrokenStream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return (Broken("None")[i] for i in range(N))


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_bad_sample_of_a_stream_is_named_where_a_worker_reads_it(num_workers: int) -> None:
    loader = DataLoader(BrokenStream(), 32, num_workers=num_workers)
    with pytest.raises(ArgumentError, match=f"sample {BAD} of the stream is None; leave it out"):
        generate(SIDES["torch"], loader)


@pytest.mark.parametrize("collate_fn", [None, drop])
def test_a_bad_sample_of_a_stream_is_named_by_its_place(collate_fn: Any) -> None:
    class Stream(IterableDataset[Any]):
        def __iter__(self) -> Iterator[Any]:
            return (Broken("None")[i] for i in range(N))

    with pytest.raises(ArgumentError, match=f"sample {BAD} of the stream is None"):
        generate(SIDES["torch"], Stream(), collate_fn=collate_fn)


@pytest.mark.parametrize("how", ["None", "short"])
def test_a_bad_sample_is_named_where_a_student_reads_it(side: Side, how: str) -> None:
    if (side.name, how) == ("jax", "short"):
        return  # inputs of several shapes are a list there
    with pytest.raises(ArgumentError, match=f"sample {BAD} of the dataset"):
        list(side.module.output_dataloader(Broken(how), ROWS, 32))
    if side.name == "torch":
        with pytest.raises(ArgumentError, match=f"sample {BAD} of the dataset"):
            list(DataLoader(FirstOrderDataset(Broken(how), ROWS), 32))
    with pytest.raises(ArgumentError, match=f"sample {BAD} of the dataset"):
        list(fostore.SimpleDataLoader(Broken(how), 32))


def test_what_a_dataset_raises_carries_a_note_of_the_sample(side: Side) -> None:
    for loader in (
        side.module.output_dataloader(Broken("raises"), ROWS, 32),
        fostore.SimpleDataLoader(Broken("raises"), 32),
    ):
        with pytest.raises(OSError, match="truncated") as caught:
            list(loader)
        assert f"sample {BAD} of the dataset" in caught.value.__notes__


def test_workers_that_cannot_be_sent_a_lambda_say_what_to_do() -> None:
    options: Any = {"num_workers": 1, "multiprocessing_context": "spawn"}
    data = TensorDataset(torch.from_numpy(X), torch.arange(N))
    words = "workers cannot be started.*num_workers=0.*top of a module"
    loader = DataLoader(data, 32, collate_fn=lambda samples: default_collate(samples), **options)
    with pytest.raises(ArgumentError, match=words):
        generate(SIDES["torch"], loader)
    with pytest.raises(ArgumentError, match=words):
        list(output_dataloader(data, ROWS, 32, input_getter=lambda sample: sample[0], **options))
    assert len(generate(SIDES["torch"], DataLoader(data, 32, num_workers=0))) == N


def test_spawned_workers_collate_as_the_user_says(tmp_path: Path) -> None:
    options: Any = {"num_workers": 1, "multiprocessing_context": "spawn"}
    loader = DataLoader(list(torch.from_numpy(X)), 32, collate_fn=torch.stack, **options)
    generator = FirstOrderDataGenerator(torch.nn.Linear(X.shape[1], 3), output_mode="logits")
    store = tmp_path / "a.zarr"
    assert len(generator.generate_distributions(loader, progress=False, store=store)) == N


# ------------------------------------------------------------------ batches are no samples


def batches() -> Iterator[Any]:
    for start in range(0, N, 16):
        yield torch.from_numpy(X[start : start + 16]), torch.arange(start, start + 16) % 2


class Iterated(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return batches()


class OfBatches(Dataset[Any]):
    """A map-style dataset of batches, as Keras's and Grain's may be."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Any:
        return list(batches())[index]


def pooled(batch: Any) -> Any:
    """A model that takes away an axis too many, so that nothing but the input tells."""
    return batch.mean(1) if batch.ndim > 2 else batch


@pytest.mark.parametrize(
    "make",
    [
        batches,
        Iterated,
        OfBatches,
        lambda: ({"x": x, "label": y} for x, y in batches()),
        lambda: ((x.tolist(), y.tolist()) for x, y in batches()),
        lambda: ((x, torch.nn.functional.one_hot(y, 3)) for x, y in batches()),
        lambda: DataLoader(Iterated(), batch_size=2),
    ],
    ids=["generator", "stream", "map", "dicts", "lists", "one-hot", "loader"],
)
def test_batches_are_no_samples(make: Any) -> None:
    generator = FirstOrderDataGenerator(pooled, output_mode="logits")
    with pytest.raises(ArgumentError, match=r"sample 0 of the .* is a whole batch"):
        generator.generate_distributions(make(), False)


def test_the_cures_for_a_generator_of_batches_hold() -> None:
    generator = FirstOrderDataGenerator(pooled, output_mode="logits")
    unbatched = (pair for batch in batches() for pair in zip(*batch, strict=True))
    rows = generator.generate_distributions(unbatched, False)
    expected = torch.from_numpy(X).softmax(-1).numpy()
    np.testing.assert_allclose(np.stack(list(rows.values())), expected, rtol=1e-5)
    whole = DataLoader(Iterated(), batch_size=None)  # says that the dataset makes the batches
    again = generator.generate_distributions(whole, False)
    np.testing.assert_array_equal(np.stack(list(again.values())), np.stack(list(rows.values())))


@pytest.mark.parametrize(
    "items",
    [
        lambda: ((torch.from_numpy(x), 0) for x in X),
        lambda: (torch.from_numpy(x) for x in X.reshape(4, 16, 5)),
    ],
    ids=["samples", "no labels"],
)
def test_without_a_batch_size_what_may_be_a_sample_is_refused(items: Any) -> None:
    class Plain(IterableDataset[Any]):
        def __iter__(self) -> Iterator[Any]:
            return iter(items())

    generator = FirstOrderDataGenerator(pooled, output_mode="logits")
    with pytest.raises(ArgumentError, match="whether it is a batch or one sample"):
        generator.generate_distributions(DataLoader(Plain(), batch_size=None), False)


class Wrapper:
    """A loader of one's own around another one, as timm's and DALI's are."""

    def __init__(self, name: str) -> None:
        data = TensorDataset(torch.from_numpy(X), torch.arange(N))
        setattr(self, name, DataLoader(data, 16, shuffle=True))
        self.name = name

    def __iter__(self) -> Iterator[Any]:
        return iter(getattr(self, self.name))


@pytest.mark.parametrize("name", ["loader", "dataset", "_hidden"])
def test_a_wrapper_around_a_loader_is_refused(side: Side, name: str) -> None:
    with pytest.raises(ArgumentError, match=f"Wrapper is a loader .it has '{name}'"):
        generate(side, Wrapper(name))


def test_nodes_of_torchdata_are_refused() -> None:
    nodes = pytest.importorskip("torchdata.nodes")
    batcher = nodes.Batcher(nodes.SamplerWrapper(range(N)), 16)
    node = nodes.Mapper(batcher, lambda indices: torch.from_numpy(X[indices]))
    for data in (nodes.Loader(node), node):
        with pytest.raises(ArgumentError, match="is a loader"):
            FirstOrderDataGenerator(pooled).generate_distributions(data, False)


class Spec:
    """What TensorFlow says of one part of a dataset's elements."""

    def __init__(self, *shape: int | None) -> None:
        self.shape = shape


def test_a_dataset_of_tensorflow_says_itself_that_it_is_batched(side: Side) -> None:
    class Elements:
        def __init__(self, *spec: Spec) -> None:
            self.element_spec = spec

        def __iter__(self) -> Iterator[Any]:
            return iter([(x, 0) for x in X])

    with pytest.raises(ArgumentError, match=r"dataset\.unbatch\(\)"):
        generate(side, Elements(Spec(None, 5), Spec(None)))
    assert len(generate(side, Elements(Spec(5), Spec()))) == N


@pytest.mark.parametrize(
    ("sample", "expected"),
    [
        ((np.zeros((16, 8)), np.zeros(16)), True),
        ((np.zeros((16, 8)), np.zeros((16, 3))), True),
        ((["a", "b"], [0, 1]), True),
        ({"input_ids": [[1, 2], [3, 4]], "label": [0, 1]}, True),
        ((np.zeros((3, 8, 8)), 7), False),
        ((np.zeros((1, 28, 28)), np.zeros(1, int)), False),  # MedMNIST
        ((np.zeros((3, 8, 8)), np.zeros((3, 8, 8))), False),  # an autoencoder's
        ((np.zeros(10), np.zeros(10)), False),  # soft labels
        ((np.ones(12, int), np.ones(12, int)), False),  # token ids and their mask
        ((np.zeros((8, 8)), np.zeros((8, 8))), False),  # an image and its mask
        ({"input_ids": [1, 2], "attention_mask": [1, 1]}, False),
        ({"input_ids": [1, 2], "attention_mask": [1, 1], "label": 1}, False),
        (np.zeros((16, 8)), False),
        ("text", False),
    ],
)
def test_a_sample_is_told_from_a_batch_by_the_axis_that_all_its_parts_share(
    sample: Any, expected: bool
) -> None:
    assert is_batch(sample) is expected
