"""Evaluation of rows: scores, divergences, ensembles and selection, held against SciPy and hand-computed cases."""

from __future__ import annotations

import math
import pickle
import subprocess
import sys
from decimal import Decimal, localcontext
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.spatial.distance
import scipy.special
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

import fostore
from fostore import evaluate
from fostore.errors import ArgumentError, IdentityError, RowError, UncommittedError
from fostore.evaluate import rows as rows_module
from fostore.evaluate.sums import Sums
from support import probs

N, K, M = 40, 5, 3
CERTAIN = [[1.0, 0.0], [0.0, 1.0]]

pytestmark = pytest.mark.usefixtures("fast_disk")


def store_of(path: Path, rows: Any, **options: Any) -> fostore.Store:
    rows = np.asarray(rows)
    members = rows.shape[1] if rows.ndim == 3 else None
    with fostore.create(
        path, num_samples=len(rows), num_classes=rows.shape[-1], num_members=members, **options
    ) as writer:
        writer.append(rows)
    return fostore.open(path)


def ensemble(seed: int = 0, count: int = N) -> np.ndarray:
    return np.stack([probs(count, K, seed=seed + m) for m in range(M)], axis=1)


def rows_of_any_shape(draw: Any) -> np.ndarray:
    count, classes = draw(st.integers(1, 12)), draw(st.integers(1, 6))
    weights = np.random.default_rng(draw(st.integers(0, 2**32))).dirichlet(
        np.full(classes, 0.3), count
    )
    weights[weights < 1e-3] = 0.0  # zeros are rows like any other
    return weights / weights.sum(axis=1, keepdims=True)


some_rows = st.composite(rows_of_any_shape)()


# ------------------------------------------------------------------ one row


@given(some_rows)
def test_entropy_is_that_of_scipy(rows: np.ndarray) -> None:
    expected = scipy.stats.entropy(rows, axis=1)
    np.testing.assert_allclose(evaluate.entropy(rows), expected, atol=1e-12)
    np.testing.assert_allclose(evaluate.entropy(rows, base=2), expected / np.log(2), atol=1e-12)


def test_normalised_entropy_is_0_for_a_certain_and_1_for_a_uniform_row() -> None:
    for classes in (2, 3, 1000):
        rows = np.stack([np.eye(classes)[0], np.full(classes, 1 / classes)]).astype(np.float32)
        certain, uniform = evaluate.entropy(rows, base="normalize").tolist()
        assert certain == 0.0
        assert 1 - 1e-12 < uniform <= 1.0


def test_one_class_alone_is_certain_by_every_score() -> None:
    rows = np.ones((2, 1))
    assert evaluate.entropy(rows).tolist() == [0.0, 0.0]
    assert evaluate.entropy(rows, base="normalize").tolist() == [0.0, 0.0]
    assert evaluate.least_confidence(rows).tolist() == [0.0, 0.0]
    assert evaluate.margin(rows).tolist() == [0.0, 0.0]


def test_scores_of_a_row_by_hand_and_higher_is_more_uncertain() -> None:
    rows = [[0.7, 0.2, 0.1], [0.4, 0.4, 0.2], [1.0, 0.0, 0.0]]
    np.testing.assert_allclose(evaluate.least_confidence(rows), [0.3, 0.6, 0.0], atol=1e-15)
    np.testing.assert_allclose(evaluate.margin(rows), [0.5, 1.0, 0.0], atol=1e-15)
    assert evaluate.entropy(rows).argsort().tolist() == [2, 0, 1]


@given(some_rows, st.randoms(use_true_random=False))
def test_the_order_of_the_classes_changes_no_score(rows: np.ndarray, random: Any) -> None:
    order = list(range(rows.shape[1]))
    random.shuffle(order)
    for score in (evaluate.entropy, evaluate.least_confidence, evaluate.margin):
        np.testing.assert_allclose(score(rows[:, order]), score(rows), atol=1e-12)


def test_a_base_that_is_none_is_refused() -> None:
    for base in ("nats", 1, 0):
        with pytest.raises(ArgumentError, match="expected None, 'normalize' or a number above 1"):
            evaluate.entropy(CERTAIN, base=base)


def test_rows_that_are_no_distributions_are_refused_by_number() -> None:
    with pytest.raises(RowError, match="store: row 1 sums to 3"):
        evaluate.entropy(np.array([[0.5, 0.5], [1.0, 2.0]]))
    with pytest.raises(RowError, match="row 0 holds nan"):
        evaluate.entropy(np.array([[np.nan, 1.0]]))
    with pytest.raises(RowError, match="target: row 1 holds nan"):
        evaluate.interval_covered(
            np.zeros((2, 2)), np.ones((2, 2)), np.array([[0.5, 0.5], [np.nan, 1.0]])
        )


def test_one_row_alone_is_refused_with_what_to_do() -> None:
    with pytest.raises(ArgumentError, match=r"row\[None\]"):
        evaluate.entropy(np.array([0.5, 0.5]))


def test_no_rows_have_no_scores_and_no_mean() -> None:
    assert evaluate.entropy(np.empty((0, 3))).shape == (0,)
    assert evaluate.entropy({}).shape == (0,)
    assert evaluate.select_uncertain_samples({}) == []
    with pytest.raises(ArgumentError, match="no rows"):
        evaluate.accuracy(np.empty((0, 3)), [])
    with pytest.raises(ArgumentError, match="no rows"):
        evaluate.summarize(np.empty((0, 3)))


# ------------------------------------------------------------------ where rows come from


@pytest.mark.parametrize("suffix", [".zarr", ".h5", ".json"])
def test_a_store_a_path_a_selection_a_dict_and_an_array_give_the_same(
    suffix: str, tmp_path: Path
) -> None:
    rows = probs(N, K)
    store = store_of(tmp_path / "first.zarr", rows)
    if suffix != ".zarr":
        fostore.convert(store, tmp_path / f"a{suffix}")
        store = fostore.open(tmp_path / f"a{suffix}")
    expected = evaluate.entropy(rows)
    chosen = np.arange(N)[::-3]
    for source in (store, store.path, str(store.path), dict(store), rows.tolist(), np.array(store)):
        np.testing.assert_allclose(evaluate.entropy(source), expected, atol=1e-7)
    assert np.array_equal(evaluate.entropy(store), expected)
    assert np.array_equal(evaluate.entropy(store.select(chosen)), expected[chosen])


@pytest.mark.parametrize("suffix", [".npy", ".csv", ".parquet"])
def test_a_file_that_convert_reads_is_read_in_pieces_once(
    suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = store_of(tmp_path / "a.zarr", probs(N, K))
    fostore.convert(store, tmp_path / f"a{suffix}")
    monkeypatch.setattr(rows_module, "BUDGET", 7 * K)
    found = evaluate.entropy(tmp_path / f"a{suffix}")
    np.testing.assert_allclose(found, evaluate.entropy(store), atol=1e-12)


def test_shards_whose_ends_cut_pieces_are_read_row_by_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = probs(N, K)
    (tmp_path / "shards").mkdir()
    for i, part in enumerate(np.split(rows, [10, 13, 31])):
        np.save(tmp_path / "shards" / f"{i}.npy", part)
    monkeypatch.setattr(rows_module, "BUDGET", 7 * K)
    assert np.array_equal(evaluate.entropy(tmp_path / "shards"), evaluate.entropy(rows))


def test_lists_are_rows_or_members_and_never_mistaken_for_each_other(tmp_path: Path) -> None:
    rows = probs(4)
    stores = [store_of(tmp_path / f"{i}.zarr", rows) for i in range(2)]
    for sources in (
        stores,
        [store.path for store in stores],
        [dict(s) for s in stores],
        [rows] * 2,
    ):
        with pytest.raises(ArgumentError, match="store is a list of stores"):
            evaluate.entropy(sources)
        assert evaluate.ensemble_uncertainty(sources).total.shape == (4,)
    for one in (rows.tolist(), list(rows)):
        assert evaluate.select_uncertain_samples(one) == evaluate.select_uncertain_samples(rows)
    nested = ensemble().tolist()
    assert evaluate.ensemble_uncertainty(nested).total.shape == (N,)


def test_torch_zarr_and_h5py_arrays_are_read_by_slices(tmp_path: Path) -> None:
    import h5py
    import torch
    import zarr

    rows = probs(N, K)
    kept: Any = zarr.create_array(tmp_path / "plain.zarr", data=rows)
    expected = evaluate.entropy(rows)
    assert np.array_equal(evaluate.entropy(kept), expected)
    assert np.array_equal(evaluate.entropy(torch.from_numpy(rows).requires_grad_()), expected)
    with h5py.File(tmp_path / "plain.h5", "w") as file:
        assert np.array_equal(evaluate.entropy(file.create_dataset("p", data=rows)), expected)


@pytest.mark.parametrize("kind", ["probs", "log_probs", "logits", "counts"])
def test_rows_of_every_kind_are_distributions(kind: str, tmp_path: Path) -> None:
    votes = np.random.default_rng(0).integers(0, 9, (N, K)) + np.eye(K, dtype=int)[0]
    p = votes / votes.sum(axis=1, keepdims=True)
    with np.errstate(divide="ignore"):
        given = {"probs": p, "log_probs": np.log(p), "logits": np.log(p) + 3, "counts": votes}
    dtype = "uint16" if kind == "counts" else "float64"
    store = store_of(tmp_path / "a.zarr", given[kind], kind=kind, dtype=dtype)
    expected = scipy.stats.entropy(p, axis=1)
    np.testing.assert_allclose(evaluate.entropy(store), expected, atol=1e-6)


def test_a_probability_that_float32_knows_as_0_still_has_its_logarithm(tmp_path: Path) -> None:
    store = store_of(tmp_path / "a.zarr", np.float32([[0.0, -200.0]]), kind="logits")
    assert store.take([0])[0, 1] == 0.0
    assert evaluate.nll(store, [1]) == 200.0
    assert evaluate.kl([[0.5, 0.5]], store)[0] == pytest.approx(100 - math.log(2))


def test_rows_off_by_rounding_are_renormalised(tmp_path: Path) -> None:
    store = store_of(tmp_path / "a.zarr", probs(N, 100).astype(np.float16), dtype="float16")
    rows = np.array(store).astype(np.float64)
    assert abs(rows.sum(axis=1) - 1).max() > 1e-5
    np.testing.assert_allclose(evaluate.entropy(store), scipy.stats.entropy(rows, axis=1))


def test_a_mapping_is_read_in_the_order_of_its_indices_and_paired_by_them() -> None:
    p = {7: [1.0, 0.0], 2: [0.5, 0.5]}
    assert evaluate.entropy(p).round(3).tolist() == [0.693, 0.0]
    assert evaluate.tv(p, {2: [0.5, 0.5], 7: [1.0, 0.0]}).tolist() == [0.0, 0.0]
    with pytest.raises(ArgumentError, match="row 0 of p has the index 2, of q the index 0"):
        evaluate.tv(p, {0: [0.5, 0.5], 7: [1.0, 0.0]})
    with pytest.raises(ArgumentError, match="keys are dataset indices"):
        evaluate.entropy({"a": [0.5, 0.5]})
    with pytest.raises(ArgumentError, match=r"store\[1\] has the shape"):
        evaluate.entropy({0: [0.5, 0.5], 1: [1.0]})


def test_a_store_with_gaps_is_refused_and_its_beginning_is_not(tmp_path: Path) -> None:
    rows = probs(8)
    with fostore.create(tmp_path / "a.zarr", num_samples=8, num_classes=3) as writer:
        writer.write(0, rows[:2])
        writer.write(6, rows[6:])
        writer.commit()
        store = fostore.open(tmp_path / "a.zarr")
        with pytest.raises(UncommittedError, match=r"rows 2 to 5 of .*select"):
            evaluate.entropy(store)
        assert len(evaluate.entropy(store.select([0, 1, 6]))) == 3
        writer.write(2, rows[2:6])


@given(some_rows, st.integers(1, 40))
def test_cutting_into_pieces_changes_no_bit(rows: np.ndarray, budget: int) -> None:
    other = np.roll(rows, 1, axis=0)
    labels = rows.argmax(axis=1)

    def everything() -> list[Any]:
        return [
            evaluate.entropy(rows).tobytes(),
            evaluate.kl(rows, other).tobytes(),
            evaluate.js(rows, other).tobytes(),
            evaluate.label_metrics(other, labels).to_json(),
            evaluate.compare(rows, other).to_json(),
            evaluate.summarize(rows, labels).to_json(),
            evaluate.select_uncertain_samples(rows, 3),
        ]

    whole = everything()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rows_module, "BUDGET", budget)
        assert everything() == whole


def test_memory_does_not_grow_with_the_number_of_samples() -> None:
    class Endless:
        """Rows made as they are read; remembers the most that were asked for at once."""

        shape, dtype, most = (400_000, 10), np.dtype(np.float32), 0

        def __getitem__(self, rows: slice) -> np.ndarray:
            self.most = max(self.most, rows.stop - rows.start)
            return np.full((rows.stop - rows.start, 10), 0.1, np.float32)

    rows = Endless()
    assert evaluate.select_uncertain_samples(rows, 2) == [0, 1]
    assert 0 < rows.most * 10 <= rows_module.BUDGET


# ------------------------------------------------------------------ two rows


@given(some_rows)
def test_divergences_are_those_of_scipy(p: np.ndarray) -> None:
    q = np.roll(p, 1, axis=0)
    kl = scipy.special.rel_entr(p, q).sum(axis=1)
    np.testing.assert_allclose(evaluate.kl(p, q), kl, atol=1e-12)
    js = scipy.spatial.distance.jensenshannon(p, q, axis=1) ** 2
    np.testing.assert_allclose(evaluate.js(p, q), np.nan_to_num(js), atol=1e-7)
    np.testing.assert_allclose(evaluate.tv(p, q), abs(p - q).sum(axis=1) / 2, atol=1e-12)
    assert np.array_equal(evaluate.tv(p, q), evaluate.tv(q, p))


def test_divergences_at_their_ends() -> None:
    p, q = CERTAIN, CERTAIN[::-1]
    assert evaluate.kl(p, q).tolist() == [math.inf, math.inf]
    assert evaluate.kl(p, p).tolist() == [0.0, 0.0]
    assert evaluate.tv(p, q).tolist() == [1.0, 1.0]
    assert evaluate.js(p, q).tolist() == [math.log(2), math.log(2)]


def test_sources_of_other_lengths_or_classes_are_refused() -> None:
    with pytest.raises(ArgumentError, match=r"p has 4 rows and q has 3; .*select"):
        evaluate.kl(probs(4), probs(3))
    with pytest.raises(ArgumentError, match="p has 3 classes and q has 4"):
        evaluate.kl(probs(4, 3), probs(4, 4))


def test_stores_of_other_classes_are_refused_by_the_first_that_differs(tmp_path: Path) -> None:
    a = store_of(tmp_path / "a.zarr", probs(4), class_names=["cat", "dog", "owl"])
    b = store_of(tmp_path / "b.zarr", probs(4), class_names=["cat", "owl", "dog"])
    with pytest.raises(
        IdentityError, match=r"class 1 is 'dog' in the one and 'owl'.* order"
    ) as error:
        evaluate.tv(a, b)
    assert len(error.value.differences) == 1
    with pytest.raises(IdentityError):
        evaluate.tv(a, b, check="length")
    assert evaluate.tv(a, store_of(tmp_path / "c.zarr", probs(4))).tolist() == [0.0] * 4


@pytest.mark.parametrize("keys", [[1, 2, 3, 4], ["a", "b", "c", "d"]])
def test_stores_of_other_ids_are_refused_by_the_first_row_that_differs(
    keys: list[Any], tmp_path: Path
) -> None:
    a = store_of(tmp_path / "a.zarr", probs(4), ids=keys)
    swapped = [keys[0], keys[1], keys[3], keys[2]]
    b = store_of(tmp_path / "b.zarr", probs(4), ids=swapped)
    with pytest.raises(IdentityError, match=f"row 2 has the id {keys[2]!r} in the one and"):
        evaluate.kl(a, b)
    assert len(evaluate.kl(a, b, check="length")) == 4
    assert evaluate.kl(a, b.select([0, 1, 3, 2])).shape == (4,)


class Data:
    """Samples with labels, as a generator reads them."""

    def __init__(self, inputs: np.ndarray, labels: np.ndarray) -> None:
        self.inputs, self.targets = inputs, labels

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int) -> Any:
        return self.inputs[index], self.targets[index]


def generated(path: Path, inputs: np.ndarray, labels: np.ndarray, **options: Any) -> fostore.Store:
    generator = fostore.FirstOrderDataGenerator(lambda x: np.asarray(x), output_mode="logits")
    store: fostore.Store = generator.generate_distributions(
        Data(inputs, labels), progress=False, store=path, **options
    )
    return store


def test_stores_generated_from_other_samples_are_refused_and_from_other_views_are_not(
    tmp_path: Path,
) -> None:
    inputs = np.random.default_rng(0).normal(size=(20, K)).astype(np.float32)
    labels = np.arange(20) % 2
    store = generated(tmp_path / "a.zarr", inputs, labels)
    permuted = inputs.copy()
    permuted[[4, 6]] = inputs[[6, 4]]  # of one label: nothing but the content tells
    other = generated(tmp_path / "b.zarr", permuted, labels)
    with pytest.raises(IdentityError, match="saw for row 4 of the one is row 6 of the other"):
        evaluate.tv(store, other)
    changed = inputs.copy()
    changed[9] += 1
    with pytest.raises(IdentityError, match="other inputs for 1 rows, first for row 9"):
        evaluate.tv(store, generated(tmp_path / "c.zarr", changed, labels))
    with pytest.raises(IdentityError, match="hashes of their labels differ"):
        evaluate.tv(store, generated(tmp_path / "d.zarr", inputs, 1 - labels))
    scaled = generated(tmp_path / "e.zarr", inputs * 2, labels)
    with pytest.warns(UserWarning, match="other inputs for every row: .* labels alone say which"):
        assert evaluate.tv(store, scaled).max() > 0
    assert evaluate.tv(store, scaled, check="length").max() > 0


@pytest.mark.parametrize("suffix", [".zarr", ".h5"])
@pytest.mark.parametrize("compared", [evaluate.compare, evaluate.kl, evaluate.tv, evaluate.js])
def test_where_ids_agree_inputs_are_compared_too_and_named_by_id(
    compared: Any, suffix: str, tmp_path: Path
) -> None:
    inputs = np.random.default_rng(0).normal(size=(20, K)).astype(np.float32)
    labels = np.zeros(20, int)
    ids = [f"img{i}" for i in range(20)]
    permuted, changed = inputs.copy(), inputs.copy()
    permuted[[4, 6]] = inputs[[6, 4]]
    changed[9] += 1
    stores = [
        generated(tmp_path / f"{name}{suffix}", x, labels, ids=ids)
        for name, x in (("a", inputs), ("b", permuted), ("c", changed), ("d", inputs * 2))
    ]
    store, permuted_store, changed_store, scaled = stores
    told = r"row 4 \(id 'img4'\) of the one is row 6 \(id 'img6'\) of the other"
    with pytest.raises(IdentityError, match=told):
        compared(store, permuted_store)
    with pytest.raises(IdentityError, match=r"for 1 rows, first for row 9 \(id 'img9'\)"):
        compared(store, changed_store)
    with pytest.warns(UserWarning, match="ids alone say which"):
        compared(store, scaled)
    order = np.arange(20)
    order[[4, 6]] = [6, 4]
    with pytest.raises(IdentityError, match="row 4 has the id 'img4' in the one and 'img6'"):
        compared(store, permuted_store.select(order))  # the advice, where ids are wrong
    compared(store, permuted_store, check="length")


def test_other_orders_of_classes_are_compared_as_the_advice_says(tmp_path: Path) -> None:
    rows = probs(4)
    a = store_of(tmp_path / "a.zarr", rows, class_names=["x", "y", "z"])
    b = store_of(tmp_path / "b.zarr", rows[:, [2, 0, 1]], class_names=["z", "x", "y"])
    with pytest.raises(IdentityError, match=r"class 0 is 'x' .* store\[:\]\[:, order\]"):
        evaluate.compare(a, b)
    assert evaluate.compare(a[:], b[:][:, [1, 2, 0]]).tv.most == 0


@pytest.mark.parametrize("e", [2.0**-4, 2.0**-10, 2.0**-20, 2.0**-26])
def test_divergences_of_near_distributions_keep_their_digits(e: float) -> None:
    p, q = np.array([[0.5, 0.5]]), np.array([[0.5 + e, 0.5 - e]])
    with localcontext() as context:
        context.prec = 60
        x = Decimal(e)
        half, one = Decimal("0.5"), Decimal(1)
        forward = -half * (one - 4 * x * x).ln()  # of p to q, and of q to p below
        reverse = (half + x) * (one + 2 * x).ln() + (half - x) * (one - 2 * x).ln()
        to_middle = -half * (one - x * x).ln()
        from_middle = (half + x) * ((one + 2 * x) / (one + x)).ln()
        from_middle += (half - x) * ((one - 2 * x) / (one - x)).ln()
    assert evaluate.kl(p, q)[0] == pytest.approx(float(forward), rel=1e-11, abs=0)
    assert evaluate.kl(q, p)[0] == pytest.approx(float(reverse), rel=1e-11, abs=0)
    middle = float((to_middle + from_middle) / 2)
    assert evaluate.js(p, q)[0] == pytest.approx(middle, rel=1e-11, abs=0)


# ------------------------------------------------------------------ members


@pytest.mark.parametrize("suffix", [".jsonl", ".npz", ".csv"])
def test_files_of_other_ids_are_refused_as_stores_are(
    suffix: str, tmp_path: Path, fast_disk: None
) -> None:
    rows = np.float32([[0.875, 0.125], [0.25, 0.75], [0.5, 0.5]])
    for name, ids in (("a", ["x", "y", "z"]), ("b", ["x", "z", "y"])):
        with fostore.create(
            tmp_path / f"{name}.zarr", num_samples=3, num_classes=2, ids=ids
        ) as writer:
            writer.append(rows)
        fostore.convert(
            tmp_path / f"{name}.zarr",
            tmp_path / f"{name}{suffix}",
            allow_lossy=True,
            progress=False,
        )
    for one, other in ((suffix, suffix), (suffix, ".zarr"), (".zarr", suffix)):
        first, second = tmp_path / f"a{one}", tmp_path / f"b{other}"
        with pytest.raises(IdentityError, match="row 1 has the id 'y' in the one and 'z'"):
            evaluate.tv(first, second)
        assert not evaluate.tv(first, second, check="length").any()
        assert not evaluate.tv(first, tmp_path / f"a{other}").any()


def test_the_uncertainty_of_an_ensemble_is_parted_as_by_hand(tmp_path: Path) -> None:
    members = ensemble()
    found = evaluate.ensemble_uncertainty(store_of(tmp_path / "a.zarr", members))
    p = members.astype(np.float64)
    p /= p.sum(axis=-1, keepdims=True)
    total = scipy.stats.entropy(p.mean(axis=1), axis=1)
    aleatoric = scipy.stats.entropy(p, axis=2).mean(axis=1)
    np.testing.assert_allclose(found.total, total)
    np.testing.assert_allclose(found.aleatoric, aleatoric)
    information = [scipy.special.rel_entr(row, row.mean(axis=0)).sum(axis=1).mean() for row in p]
    np.testing.assert_allclose(found.epistemic, information, atol=1e-12)


def test_an_ensemble_of_stores_is_that_of_one_store(tmp_path: Path) -> None:
    members = ensemble()
    stores = [store_of(tmp_path / f"{m}.zarr", members[:, m]) for m in range(M)]
    one, many = evaluate.ensemble_uncertainty(members), evaluate.ensemble_uncertainty(stores)
    for a, b in zip(one, many, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-12)
    with pytest.raises(ArgumentError, match="member 1 has members of its own"):
        evaluate.ensemble_uncertainty([stores[0], members])
    with pytest.raises(ArgumentError, match="no member"):
        evaluate.ensemble_uncertainty([])


def test_members_kept_as_logits_are_averaged_as_probabilities(tmp_path: Path) -> None:
    logits = np.random.default_rng(0).normal(size=(N, M, K)) * 9
    logits[0, :, 0] = -np.inf  # a class that every member excludes
    store = store_of(tmp_path / "a.zarr", logits, kind="logits", dtype="float64")
    mean = scipy.special.softmax(logits, axis=-1).mean(axis=1)
    expected = scipy.stats.entropy(mean, axis=1)
    np.testing.assert_allclose(evaluate.entropy(store), expected, rtol=1e-9)
    labels = mean.argmin(axis=1)
    labels[0] = 1
    nll = -np.log(mean[np.arange(N), labels]).mean()
    assert evaluate.nll(store, labels) == pytest.approx(nll, rel=1e-9)


def test_members_that_agree_are_not_epistemic_and_one_member_has_nothing_to_disagree_with() -> None:
    rows = probs(N, K)
    found = evaluate.ensemble_uncertainty(np.repeat(rows[:, None], 4, axis=1))
    np.testing.assert_allclose(found.epistemic, 0, atol=1e-12)
    assert (evaluate.ensemble_uncertainty(rows).epistemic == 0).all()


def test_prediction_entropy_is_that_of_the_guide() -> None:
    dists = [{i: row.tolist() for i, row in enumerate(probs(N, K, seed=m))} for m in range(M)]
    found = evaluate.compute_prediction_entropy(dists)
    expected = {}
    for idx in range(N):  # the guide's loop, with NumPy for torch
        average = np.stack([np.array(d[idx]) for d in dists]).mean(axis=0)
        expected[idx] = float(-(average * np.log(average + 1e-10)).sum())
    assert list(found) == list(expected)
    assert found == pytest.approx(expected, abs=1e-7)  # float32 rows are renormalised
    assert all(type(value) is float for value in found.values())


# ------------------------------------------------------------------ selection


def test_the_most_uncertain_samples_come_first_and_ties_by_index() -> None:
    rows = np.array([[1.0, 0.0], [0.5, 0.5], [0.9, 0.1], [0.5, 0.5], [0.5, 0.5]])
    assert evaluate.select_uncertain_samples(rows, n=2) == [1, 3]
    assert evaluate.select_uncertain_samples(rows) == [1, 3, 4, 2, 0]
    assert evaluate.select_uncertain_samples(rows, n=0) == []
    assert evaluate.select_uncertain_samples({9: [0.5, 0.5], 4: [0.5, 0.5]}, n=1) == [4]
    with pytest.raises(ArgumentError, match="n is -1"):
        evaluate.select_uncertain_samples(rows, n=-1)


@given(some_rows, st.integers(0, 14), st.integers(1, 20))
def test_a_selection_is_the_head_of_a_stable_sort(rows: np.ndarray, n: int, budget: int) -> None:
    rows = np.concatenate([rows, rows[::-1]])  # ties
    expected = np.argsort(-evaluate.margin(rows), kind="stable")[:n].tolist()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rows_module, "BUDGET", budget)
        assert evaluate.select_uncertain_samples(rows, n, score="margin") == expected


def test_samples_are_selected_by_disagreement_or_by_ones_own_score(tmp_path: Path) -> None:
    agree, differ = [[0.5, 0.5], [0.5, 0.5]], [[0.9, 0.1], [0.1, 0.9]]
    rows = np.array([agree, differ])
    assert evaluate.select_uncertain_samples(rows, 1, score="entropy") == [0]
    assert evaluate.select_uncertain_samples(rows, 1, score="epistemic") == [1]
    assert evaluate.select_uncertain_samples(rows, 1, score="aleatoric") == [0]
    own = evaluate.select_uncertain_samples([rows[:, 0], rows[:, 1]], 1, score=lambda p: -p[:, 0])
    assert own == [0]
    with pytest.raises(ArgumentError, match="'least_confidence', 'margin'"):
        evaluate.select_uncertain_samples(rows, score="variance")
    with pytest.raises(ArgumentError, match="the score of sample 0 is NaN"):
        evaluate.select_uncertain_samples(rows, score=lambda p: p[:, 0] * np.nan)


# ------------------------------------------------------------------ ranks


def moments_of(numbers: list[float]) -> tuple[float, float]:
    """Mean and standard deviation by fractions; the root by 60 decimal digits."""
    exact = [Fraction(number) for number in numbers]
    mean = sum(exact, Fraction()) / len(exact)
    variance = sum(((x - mean) ** 2 for x in exact), Fraction()) / len(exact)
    with localcontext() as context:
        context.prec, context.Emax, context.Emin = 60, 99999, -99999
        root = (Decimal(variance.numerator) / Decimal(variance.denominator)).sqrt()
    return float(mean), float(root)


@st.composite
def numbers_of_any_scale(draw: Any) -> list[float]:
    """Numbers about a common level, which may be far larger than what they differ by."""
    scale, level = draw(st.integers(-1060, 1000)), draw(st.floats(-1e12, 1e12))
    units = draw(st.lists(st.floats(-8, 8), min_size=1, max_size=30))
    return [math.ldexp(level + unit, scale - 45) for unit in units]


any_float = st.floats(allow_nan=False, allow_infinity=False)


@given(
    st.one_of(numbers_of_any_scale(), st.lists(any_float, min_size=1)),
    st.integers(0, 9),
    st.randoms(),
)
def test_moments_are_right_at_any_scale_and_the_same_for_ranks_in_any_order(
    numbers: list[float], cut: int, random: Any
) -> None:
    whole, one, other = evaluate.Mean(), evaluate.Mean(), evaluate.Mean()
    whole.update(np.array(numbers))
    shuffled = list(numbers)
    random.shuffle(shuffled)
    one.update(np.array(shuffled[:cut]))
    other.update(np.array(shuffled[cut:]))
    other.merge(pickle.loads(pickle.dumps(one)))
    found = whole.result()
    assert other.result() == found
    mean, std = moments_of(numbers)
    assert found.mean == mean  # rounded once
    assert found.std == pytest.approx(std, rel=1e-15, abs=5e-324)
    assert found.least <= found.mean <= found.most


@given(st.lists(st.lists(any_float, min_size=2, max_size=2), min_size=1), st.integers(0, 5))
def test_sums_are_rounded_once_whatever_the_order(rows: list[list[float]], cut: int) -> None:
    values = np.ldexp(np.array(rows), -200)  # a sum has room above
    one, other, indexed = Sums((2,)), Sums((2,)), Sums((2,))
    one.add(values[cut:])
    one.add(values[:cut])
    for row in values[::-1]:
        other.add(row[None])
    indexed.add_at(np.tile([0, 1], len(values)), values.ravel())
    expected = [float(sum(map(Fraction, column), Fraction())) for column in values.T.tolist()]
    for sums in (one, other, indexed):
        assert sums.total().tolist() == expected


def test_two_stores_that_hardly_differ_have_the_deviation_that_they_have() -> None:
    random = np.random.default_rng(0)
    p = random.dirichlet(np.ones(10), 500)
    q = p + 1e-8 * (p - 0.1) * random.random((500, 1))
    found = evaluate.compare(p, q)
    for moments, rows in ((found.tv, evaluate.tv(p, q)), (found.kl, evaluate.kl(p, q))):
        mean, std = moments_of(rows.tolist())
        assert (moments.mean, moments.std) == (mean, pytest.approx(std, rel=1e-15))
        assert 0 < std < moments.most
        assert moments.least <= moments.mean <= moments.most


def test_a_class_of_tiny_probability_keeps_its_mean() -> None:
    rows = np.array([[1.0, 1e-30], [1.0, 3e-30]])
    assert evaluate.summarize(rows).mean_probs[1] == pytest.approx(2e-30, rel=1e-12)


def test_a_mean_knows_infinities_refuses_nan_and_is_exact_over_many_samples() -> None:
    found = evaluate.Mean()
    found.update(np.full(3_000_000, 0.1))
    assert found.result().mean == pytest.approx(0.1, abs=1e-13)
    assert found.result().std < 1e-6
    found.update(np.array([np.inf]))
    other = evaluate.Mean()
    other.merge(found)
    for mean in (found, other):
        assert (mean.result().mean, mean.result().num_infinite) == (math.inf, 1)
    with pytest.raises(ArgumentError, match="number 1 is NaN"):
        found.update(np.array([1.0, np.nan]))
    assert math.isnan(evaluate.Mean().result().mean)


@pytest.mark.parametrize("score", [lambda rows: rows[:, :1], lambda rows: 1.0])
def test_a_score_that_is_not_one_number_a_row_is_refused(score: Any) -> None:
    with pytest.raises(ArgumentError, match=r"score gave the shape .* expected one number a row"):
        evaluate.select_uncertain_samples([[0.5, 0.5], [0.1, 0.9]], score=score)


def test_sums_at_an_index_are_carried_beyond_what_an_integer_holds() -> None:
    sums = Sums((2,))
    for _ in range(8):
        sums.add_at(np.ones(1 << 19, np.int64), np.full(1 << 19, 0.999))
    assert sums.total().tolist() == [0.0, pytest.approx(8 * (1 << 19) * 0.999, rel=1e-12)]


@given(some_rows, st.integers(0, 12), st.integers(0, 5))
def test_the_top_of_ranks_is_that_of_one_pass(rows: np.ndarray, cut: int, n: int) -> None:
    scores = evaluate.entropy(np.concatenate([rows, rows]))
    indices = np.arange(len(scores))
    whole, one, other = evaluate.Top(n), evaluate.Top(n), evaluate.Top(n)
    whole.update(indices, scores)
    other.update(indices[cut:], scores[cut:])
    one.update(indices[:cut], scores[:cut])
    one.merge(other)
    other.update(indices[:cut], scores[:cut])  # lower indices may come later
    assert one.result() == other.result() == whole.result()


# ------------------------------------------------------------------ what it costs to import


def test_evaluate_loads_no_framework_no_scipy_and_no_matplotlib(tmp_path: Path) -> None:
    code = "import sys, fostore.evaluate; print(*{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path
    )
    loaded = set(done.stdout.split())
    assert "fostore" in loaded, done.stderr
    assert not loaded & {"torch", "jax", "scipy", "matplotlib", "zarr", "h5py", "sklearn"}
    code = "import sys, fostore; print('fostore.evaluate' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.stdout == "False\n"
