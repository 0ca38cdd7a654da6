"""Frames, tables, columns, sparse matrices and arrays on disk as datasets: rows, never columns, a batch at a time."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import scipy.sparse as sp
import torch
import zarr
from sklearn.linear_model import LogisticRegression  # type: ignore[import-untyped]
from torch.utils.data import (
    ConcatDataset,
    DataLoader,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
)

import fostore
import fostore.schema.ranges
from fostore.errors import ArgumentError
from fostore.torch import FirstOrderDataGenerator
from sides import SIDES, Linear, Side, softmax

N, FEATURES = 30, 6
X = np.random.default_rng(0).normal(size=(N, FEATURES))
X[np.abs(X) < 0.5] = 0
WEIGHT = np.random.default_rng(1).normal(size=(FEATURES, 4)).astype(np.float32)
EXPECTED = softmax(X @ WEIGHT)
NAMES = list("abcdef")


def on_disk(folder: Path, kind: str) -> Any:
    if kind == "h5py":
        file = h5py.File(folder / "x.h5", "w")
        return file.create_dataset("x", data=X.astype(">f8"), chunks=(4, FEATURES))
    if kind == "zarr":
        array = zarr.create_array(folder / "x.zarr", shape=X.shape, chunks=(7, 6), dtype="f8")
        array[:] = X
        return array
    np.save(folder / "x.npy", X)
    return np.load(folder / "x.npy", mmap_mode="r")


MAKE: dict[str, Callable[[Path], Any]] = {
    "pandas": lambda _: pd.DataFrame(X, columns=NAMES),
    "pandas, numbered columns": lambda _: pd.DataFrame(X),
    "pandas, odd index": lambda _: pd.DataFrame(X, index=np.arange(N)[::-1] * 1.5),
    "polars": lambda _: pl.DataFrame(X, schema=NAMES),
    "arrow table": lambda _: pa.table({name: X[:, i] for i, name in enumerate(NAMES)}),
    "arrow batch": lambda _: pa.RecordBatch.from_arrays([pa.array(c) for c in X.T], names=NAMES),
    "arrow column of lists": lambda _: pa.chunked_array([X[:7].tolist(), X[7:].tolist()]),
    "csr": lambda _: sp.csr_matrix(X),
    "csr array": lambda _: sp.csr_array(X),
    "csc": lambda _: sp.csc_matrix(X),
    "coo": lambda _: sp.coo_array(X),
    "h5py": lambda folder: on_disk(folder, "h5py"),
    "zarr": lambda folder: on_disk(folder, "zarr"),
    "memmap": lambda folder: on_disk(folder, "memmap"),
}


@pytest.fixture(params=list(MAKE))
def data(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    return MAKE[request.param](tmp_path)


def dense(batch: Any) -> np.ndarray:
    if sp.issparse(batch):
        return np.asarray(batch.toarray())
    return np.asarray(batch.to_dense() if isinstance(batch, torch.Tensor) else batch, np.float64)


def model_of(side: Side) -> Any:
    if side.name == "torch":
        return lambda batch: batch.to(torch.float32) @ torch.from_numpy(WEIGHT)
    if side.name == "jax":
        return lambda batch: batch @ side.array(WEIGHT)
    return lambda batch: batch @ WEIGHT if sp.issparse(batch) else dense(batch) @ WEIGHT


def generate(side: Side, data: Any, path: Path, batch_size: int = 7) -> Any:
    generator = side.generator(model_of(side), batch_size=batch_size, output_mode="logits")
    return generator.generate_distributions(data, False, store=path)


def test_row_i_is_sample_i_on_every_side_and_in_every_batch(
    side: Side, data: Any, tmp_path: Path
) -> None:
    store = generate(side, data, tmp_path / "a.zarr")
    np.testing.assert_allclose(store.array, EXPECTED, atol=1e-5)
    hashes = [store.column("input_hash")]
    hashes += [generate(side, data, tmp_path / f"{n}.zarr", n).column("input_hash") for n in (1, N)]
    for other in hashes[1:]:  # an input has one hash, whatever it was batched with
        np.testing.assert_array_equal(hashes[0], other)
    assert len(set(hashes[0].tolist())) == N
    for name, other in SIDES.items():
        if name == "jax" and sp.issparse(data):
            with pytest.raises(ArgumentError, match="no JAX arrays"):
                other.module.FirstOrderDataset(data, store)
            continue
        paired = other.module.FirstOrderDataset(data, store)
        assert "content" in paired.pairing.checked
        assert len(paired) == N
        np.testing.assert_allclose(np.asarray(paired[5][1]), EXPECTED[5], atol=1e-5)
        one = paired[5][0]
        values = list(one.values()) if isinstance(one, dict) else dense(one).reshape(-1)
        np.testing.assert_allclose(values, X[5], rtol=1e-6)
        seen = 0
        for inputs, rows in other.module.output_dataloader(data, store, 8, shuffle=True, seed=1):
            np.testing.assert_allclose(softmax(dense(inputs) @ WEIGHT), np.asarray(rows), atol=1e-5)
            seen += len(rows)
        assert seen == N


def test_a_run_goes_on_over_a_container(side: Side, data: Any, tmp_path: Path) -> None:
    generator = side.generator(model_of(side), batch_size=7, output_mode="logits")
    path = tmp_path / "a.zarr"
    generator.generate_distributions(data, False, store=path, rows=(0, 10))
    store = generator.generate_distributions(data, False, store=path)
    np.testing.assert_allclose(store.array, EXPECTED, atol=1e-5)


def test_a_simple_loader_hands_out_rows(data: Any) -> None:
    batches = [dense(batch) for batch in fostore.SimpleDataLoader(data, 8)]
    np.testing.assert_allclose(np.concatenate(batches), X)


@pytest.mark.filterwarnings("ignore:.*generated 20 distributions")
@pytest.mark.parametrize("kind", ["pandas", "pandas, numbered columns", "polars", "arrow table"])
def test_a_torch_loader_over_a_frame_reads_rows_in_its_samplers_order(
    kind: str, tmp_path: Path
) -> None:
    data, side = MAKE[kind](tmp_path), SIDES["torch"]
    generator = side.generator(model_of(side), output_mode="logits")
    rows = generator.generate_distributions(DataLoader(data, batch_size=8), False)
    np.testing.assert_allclose(np.stack([rows[i] for i in range(N)]), EXPECTED, atol=1e-5)
    backwards = DataLoader(data, batch_size=8, sampler=range(N - 1, 9, -1))
    some = generator.generate_distributions(backwards, False)
    assert sorted(some) == list(range(10, N))
    np.testing.assert_allclose(some[12], EXPECTED[12], atol=1e-5)
    with pytest.raises(ArgumentError, match="shuffles"):
        shuffled = DataLoader(data, batch_size=8, sampler=SubsetRandomSampler(range(N)))
        generator.generate_distributions(shuffled, False)


def test_frames_keep_their_column_names_for_scikit_learn() -> None:
    frame = pd.DataFrame(X, columns=NAMES)
    model = LogisticRegression().fit(frame, np.arange(N) % 3)  # warns where names are missing
    rows = fostore.FirstOrderDataGenerator(model, batch_size=7).generate_distributions(frame, False)
    np.testing.assert_allclose(rows[11], model.predict_proba(frame)[11], rtol=1e-5)


@pytest.mark.parametrize("library", ["pandas", "polars", "arrow"])
def test_frames_of_several_kinds_go_to_numpys_side_and_are_refused_by_column_elsewhere(
    library: str, tmp_path: Path
) -> None:
    frame: Any = pd.DataFrame({"x": X[:, 0], "word": [f"w{i % 4}" for i in range(N)]})
    frame["day"] = pd.date_range("2020-01-01", periods=N)
    data = frame
    if library != "pandas":
        data = pl.from_pandas(frame) if library == "polars" else pa.Table.from_pandas(frame)

    def model(batch: Any) -> np.ndarray:
        share = np.array([(int(str(word)[1:]) + 1) / 5 for word in batch["word"]])
        return np.stack([share, 1 - share], axis=1)

    generator = fostore.FirstOrderDataGenerator(model, batch_size=7, output_mode="probs")
    store = generator.generate_distributions(data, False, store=tmp_path / "a.zarr")
    assert store[6][0] == pytest.approx(3 / 5)
    assert "content" in fostore.FirstOrderDataset(data, store).pairing.checked
    changed = frame.assign(word="w0")
    with pytest.raises(fostore.FostoreError, match="sample 1 of the dataset has another content"):
        fostore.FirstOrderDataset(changed, store)
    for name in ("torch", "jax"):
        side = SIDES[name]
        with pytest.raises(ArgumentError, match="column 'word' of the"):
            side.generator(model_of(side)).generate_distributions(data, False)
        with pytest.raises(ArgumentError, match="column 'word' of the"):
            side.module.FirstOrderDataset(data, store)
    # The cure that is named: the input out of each row.
    side = SIDES["torch"]
    generator = side.generator(
        lambda x: x @ torch.ones(1, 2),
        output_mode="logits",
        input_getter=lambda row: torch.tensor([row["x"]], dtype=torch.float32),
    )
    assert len(generator.generate_distributions(data, False)) == N


@pytest.mark.parametrize(
    "data",
    [
        pd.DataFrame({"a": pd.array([None, *range(1, N)], dtype="Int64"), "b": X[:, 0]}),
        pd.DataFrame({"a": [True, False] * (N // 2), "b": X[:, 0]}),
        pd.DataFrame({"a": range(N), "b": range(N)}),
        pl.DataFrame({"a": [*range(N - 1), None], "b": [True] * N}),
        pa.table({"a": [*range(N - 1), None], "b": X[:, 0]}),
    ],
    ids=["nullable", "booleans", "integers", "polars nulls", "arrow nulls"],
)
def test_missing_and_mixed_numbers_have_one_hash_in_batches_of_any_size(
    data: Any, tmp_path: Path
) -> None:
    found = []
    for name, side in SIDES.items():

        def model(batch: Any, side: Side = side) -> Any:
            return side.array(np.full((len(batch), 2), 0.5, np.float32))

        for size in (N, 4):
            generator = side.generator(model, batch_size=size)
            path = tmp_path / f"{name}{size}.zarr"
            store = generator.generate_distributions(data, False, store=path)
            found.append(store.column("input_hash").tolist())
    assert all(one == found[0] for one in found)


@pytest.mark.parametrize("name", SIDES)
@pytest.mark.parametrize("kind", ["pandas", "polars", "arrow", "series", "csr"])
def test_a_subset_of_a_container_is_of_its_rows(name: str, kind: str, tmp_path: Path) -> None:
    side, square, picked = SIDES[name], X[:FEATURES], [4, 0, 3]
    data: Any = {
        "pandas": lambda: pd.DataFrame(square),  # square, and numbered: column i for row i
        "polars": lambda: pl.DataFrame(square),
        "arrow": lambda: pa.table({name: square[:, i] for i, name in enumerate(NAMES)}),
        "series": lambda: pd.Series(square.tolist(), index=range(FEATURES)[::-1]),
        "csr": lambda: sp.csr_matrix(square),
    }[kind]()
    expected = softmax(square @ WEIGHT)[picked]
    part = Subset(data, picked)
    store = generate(side, part, tmp_path / "a.zarr", 2)
    np.testing.assert_allclose(store.array, expected, atol=1e-5)
    nested = generate(side, Subset(Subset(data, [5, 0, 4]), [2, 0]), tmp_path / "b.zarr")
    np.testing.assert_allclose(nested.array, softmax(square @ WEIGHT)[[4, 5]], atol=1e-5)
    if name == "torch":
        loaded = generate(side, DataLoader(part, 2), tmp_path / "c.zarr")
        np.testing.assert_allclose(loaded.array, expected, atol=1e-5)
    if not (name == "jax" and kind == "csr"):
        paired = side.module.FirstOrderDataset(part, store)
        assert "content" in paired.pairing.checked
        for inputs, rows in side.module.output_dataloader(part, store, 2, shuffle=True):
            want = softmax(dense(inputs) @ WEIGHT)
            np.testing.assert_allclose(np.asarray(rows), want, atol=1e-5)


def test_frames_one_after_the_other_are_put_together_by_pandas(side: Side, tmp_path: Path) -> None:
    frames = [pd.DataFrame(X[:7]), pd.DataFrame(X[7:])]
    with pytest.raises(ArgumentError, match=r"pandas\.concat"):
        generate(side, ConcatDataset(frames), tmp_path / "a.zarr")
    store = generate(side, pd.concat(frames), tmp_path / "a.zarr")
    np.testing.assert_allclose(store.array, EXPECTED, atol=1e-5)


def objects(values: list[Any]) -> Any:
    made = np.empty(len(values), object)
    made[:] = values
    return made


ROWS = [row.tolist() for row in X]


@pytest.mark.parametrize(
    "data",
    [objects(ROWS), objects([*X]), pd.Series([*X], index=range(N, 0, -1)), pd.Series(ROWS), ROWS],
    ids=["objects: lists", "objects: arrays", "Series: arrays", "Series: lists", "list"],
)
@pytest.mark.parametrize("name", SIDES)
def test_a_column_of_arrays_is_one_array_a_batch(name: str, data: Any, tmp_path: Path) -> None:
    side = SIDES[name]
    features = X.shape[1]  # batches as long as a sample: columns would be taken for rows
    linear = Linear(features=features)
    generator = side.generator(side.model(linear), batch_size=features, output_mode="logits")
    store = generator.generate_distributions(data, False, store=tmp_path / "a.zarr")
    np.testing.assert_allclose(store.array[:], softmax(X @ linear.weight), atol=1e-5)
    for other in SIDES.values():
        loader = other.module.output_dataloader(data, store, features, shuffle=True)
        for inputs, rows in loader:
            want = softmax(np.asarray(inputs) @ linear.weight)
            np.testing.assert_allclose(np.asarray(rows), want, atol=1e-5)


@pytest.mark.parametrize("name", ["torch", "jax"])
def test_a_table_of_objects_is_refused_with_what_to_do(name: str) -> None:
    side = SIDES[name]
    generator = side.generator(side.model(Linear(features=X.shape[1])), output_mode="logits")
    with pytest.raises(ArgumentError, match=r"array.astype\(np.float32\)"):
        generator.generate_distributions(X.astype(object), False)
    numbers: Any = X.astype(object).astype(np.float32)
    numbers = TensorDataset(torch.from_numpy(numbers)) if name == "torch" else numbers
    assert len(generator.generate_distributions(numbers, False)) == N


def test_dropout_draws_the_same_whatever_the_container() -> None:
    network = torch.nn.Sequential(torch.nn.Dropout(0.5), torch.nn.Linear(X.shape[1], 3))
    found = [
        FirstOrderDataGenerator(network, output_mode="logits").generate_distributions(
            data, False, num_draws=2
        )[5]
        for data in (pd.DataFrame(X), pl.DataFrame(X), ROWS)
    ]
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[0], found[2])


TEXTS = [f"text {'x' * (i % 5)}{i}" for i in range(N)]


@pytest.mark.parametrize(
    "data",
    [
        np.array(TEXTS, object),
        np.array(TEXTS),
        pd.Series(TEXTS, index=range(N, 0, -1)),
        pd.Series(TEXTS).astype("category"),
        pl.Series(TEXTS),
        pa.chunked_array([TEXTS[:7], TEXTS[7:]]),
        TEXTS,
    ],
    ids=["object array", "text array", "Series", "categories", "polars", "arrow", "list"],
)
@pytest.mark.parametrize("name", ["numpy", "torch"])
def test_text_is_a_list_with_an_entry_a_sample(name: str, data: Any, tmp_path: Path) -> None:
    side = SIDES[name]

    def model(batch: Any) -> Any:
        share = np.array([len(text) / 20 for text in batch], np.float32)
        return side.array(np.stack([share, 1 - share], axis=1))

    generator = side.generator(model, batch_size=8, output_mode="probs")
    store = generator.generate_distributions(data, False, store=tmp_path / "a.zarr")
    np.testing.assert_allclose(store.array[:, 0], [len(text) / 20 for text in TEXTS], rtol=1e-6)
    for other in SIDES.values():  # the same text has the same hash in whatever it comes
        paired = other.module.FirstOrderDataset(TEXTS, store)
        assert "content" in paired.pairing.checked
    texts, rows = next(iter(side.module.output_dataloader(data, store, 8, shuffle=True, seed=1)))
    for text, row in zip(texts, rows, strict=True):
        assert float(row[0]) == pytest.approx(len(text) / 20)


def test_a_dataset_on_disk_is_read_a_batch_at_a_time(tmp_path: Path) -> None:
    reads: list[Any] = []

    class Counted:
        """What tensorstore and dask look like: an array that reads where it is sliced."""

        shape, dtype, ndim = X.shape, X.dtype, 2

        def __len__(self) -> int:
            return N

        def __getitem__(self, part: Any) -> Any:
            reads.append(part)
            return X[part]

        def __array__(self, *args: Any, **kwargs: Any) -> Any:
            raise AssertionError("read whole")

    generator = fostore.FirstOrderDataGenerator(lambda x: x @ WEIGHT, batch_size=8)
    generator.generate_distributions(Counted(), False, rows=(0, 16), store=tmp_path / "a.zarr")
    assert all(part.stop - part.start <= 8 and part.stop <= 16 for part in reads)


def test_an_array_in_memory_is_sliced_without_a_copy() -> None:
    array = X.astype(np.float32)
    batches = [batch.inputs for batch in _inputs(array)]
    assert all(np.shares_memory(batch, array) for batch in batches)


def _inputs(array: Any) -> Any:
    from fostore.generate.datasets import numpy_samples
    from fostore.generate.samples import Reading

    samples = numpy_samples(array, Reading(8))
    return samples.inputs(samples.batches.touching(fostore.schema.ranges.Ranges.of((0, N))))


def test_sparse_rows_reach_the_model_sparse() -> None:
    seen: dict[str, Any] = {}
    for name, side in SIDES.items():

        def model(batch: Any, name: str = name, side: Side = side) -> Any:
            seen[name] = batch
            return model_of(side)(batch)

        side.generator(model).generate_distributions(sp.csc_matrix(X), False)
    assert sp.issparse(seen["numpy"])
    assert seen["torch"].layout == torch.sparse_coo
    assert type(seen["jax"]).__name__ == "BCOO"


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda _: pd.DataFrame({"a": [1, 2]}).groupby("a"), "DataFrameGroupBy is no dataset"),
        (lambda _: pl.DataFrame({"a": [1]}).lazy(), r"give frame\.collect\(\)"),
        (lambda _: {"a": [1, 2], "b": [3, 4]}, r"a mapping \('a', 'b'\).*pandas\.DataFrame"),
        (lambda folder: h5py.File(folder / "f.h5", "w"), r"h5py File .* is no array"),
        (lambda _: zarr.group(), "zarr Group .* is no array"),
        (lambda _: pd.DataFrame(np.zeros((2, 2)), columns=["a", "a"]), "two columns 'a'"),
        (lambda _: np.ma.masked_array(X, X > 0), r"give array\.filled\(value\)"),
        (lambda folder: _closed(folder), "the file of this h5py Dataset is closed"),
    ],
    ids=["groupby", "lazy", "dict", "file", "group", "two names", "masked", "closed"],
)
def test_a_container_that_cannot_be_taken_is_named_with_what_to_do(
    make: Callable[[Path], Any], words: str, tmp_path: Path
) -> None:
    data = make(tmp_path)
    with pytest.raises(ArgumentError, match=words):
        fostore.FirstOrderDataGenerator(lambda x: x).generate_distributions(data, False)
    with pytest.raises(ArgumentError, match=words):
        fostore.FirstOrderDataset(data, {0: [0.5, 0.5], 1: [0.5, 0.5]})


def _closed(folder: Path) -> Any:
    with h5py.File(folder / "c.h5", "w") as file:
        return file.create_dataset("x", data=X)


@pytest.mark.parametrize("data", ["x.csv", b"x", Path("x.csv")])
@pytest.mark.parametrize("name", list(SIDES))
def test_a_path_is_no_dataset_of_its_letters(name: str, data: Any) -> None:
    side = SIDES[name]
    with pytest.raises(ArgumentError, match="text or a path"):
        side.generator(model_of(side)).generate_distributions(data, False)


def test_a_list_of_frames_is_no_dataset() -> None:
    frame = pd.DataFrame(X)
    with pytest.raises(ArgumentError, match="give one DataFrame, whose rows are the samples"):
        fostore.FirstOrderDataGenerator(lambda x: x).generate_distributions([frame, frame], False)


def test_rows_of_a_frame_become_dicts_with_their_distributions() -> None:
    rows = {i: [0.5, 0.5] for i in range(N)}
    for frame in (pd.DataFrame(X, columns=NAMES), pl.DataFrame(X, schema=NAMES)):
        from fostore.torch import output_dataloader

        batch = next(iter(output_dataloader(frame, rows, 8, target_key="teacher")))
        assert batch["a"].shape == (8,)
        assert batch["teacher"].shape == (8, 2)


@pytest.mark.parametrize("kind", ["pandas, odd index", "polars", "csr", "arrow column of lists"])
def test_a_batch_that_does_not_fit_memory_is_halved_by_rows(
    side: Side, kind: str, tmp_path: Path
) -> None:
    data = MAKE[kind](tmp_path)

    def model(batch: Any) -> Any:
        if batch.shape[0] > 4:
            raise MemoryError
        return model_of(side)(batch)

    generator = side.generator(model, batch_size=16, output_mode="logits")
    with pytest.warns(UserWarning, match="out of memory with 16 samples"):
        rows = generator.generate_distributions(data, False)
    np.testing.assert_allclose(np.stack(list(rows.values())), EXPECTED, atol=1e-5)


def test_a_sparse_row_has_one_hash_however_the_matrix_was_built(tmp_path: Path) -> None:
    plain = sp.csr_matrix(X)
    parts = plain.tocoo()
    twice = [np.concatenate([one, one])[::-1] for one in (parts.row, parts.col, parts.data / 2)]
    built = sp.csr_matrix((twice[2], (twice[0], twice[1])), shape=X.shape)
    places = np.concatenate([np.arange(a, b)[::-1] for a, b in pairwise(plain.indptr)])
    loose = sp.csr_matrix((plain.data[places], plain.indices[places], plain.indptr), shape=X.shape)
    before = loose.indices.copy()
    stores = [
        generate(SIDES["numpy"], data, tmp_path / f"{i}.zarr")
        for i, data in enumerate((plain, built, loose))
    ]
    for store in stores[1:]:
        np.testing.assert_array_equal(store.column("input_hash"), stores[0].column("input_hash"))
    np.testing.assert_array_equal(loose.indices, before)  # the user's stays as it is
