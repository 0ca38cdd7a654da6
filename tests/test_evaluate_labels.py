"""Metrics of labels, held against scikit-learn, torchmetrics and tables worked out by hand."""

from __future__ import annotations

import math
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sklearn.metrics
from hypothesis import given
from hypothesis import strategies as st

import fostore
from fostore import evaluate
from fostore.errors import ArgumentError
from fostore.evaluate import rows as rows_module
from support import SUFFIXES

N, K = 500, 4


def model(seed: int = 0, count: int = N, classes: int = K) -> tuple[np.ndarray, np.ndarray]:
    """Distributions that are overconfident about labels drawn from flatter ones."""
    rng = np.random.default_rng(seed)
    truth = rng.dirichlet(np.ones(classes), count)
    labels = np.array([rng.choice(classes, p=row) for row in truth])
    sharp = truth**2
    return (sharp / sharp.sum(axis=1, keepdims=True)).astype(np.float32), labels


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_accuracy_nll_and_brier_are_those_of_scikit_learn(
    suffix: str, tmp_path: Path, fast_disk: None
) -> None:
    rows, labels = model()
    with fostore.create(tmp_path / f"a{suffix}", num_samples=N, num_classes=K) as writer:
        writer.append(rows)
    store = fostore.open(tmp_path / f"a{suffix}")
    exact = rows / rows.sum(axis=1, keepdims=True, dtype=np.float64)
    accuracy = sklearn.metrics.accuracy_score(labels, rows.argmax(axis=1))
    assert evaluate.accuracy(store, labels) == pytest.approx(accuracy, abs=1e-12)
    log_loss = sklearn.metrics.log_loss(labels, exact)
    assert evaluate.nll(store, labels) == pytest.approx(log_loss, abs=1e-9)
    brier = sklearn.metrics.brier_score_loss(labels, exact, scale_by_half=False)
    assert evaluate.brier(store, labels) == pytest.approx(brier, abs=1e-9)


@pytest.mark.parametrize("bins", [15, 10, 1])
def test_the_calibration_error_is_that_of_torchmetrics(bins: int) -> None:
    import torch
    from torchmetrics.functional.classification import multiclass_calibration_error

    rows, labels = model()
    expected = multiclass_calibration_error(
        torch.from_numpy(rows), torch.from_numpy(labels), K, n_bins=bins
    )
    assert evaluate.ece(rows, labels, bins) == pytest.approx(float(expected), abs=1e-6)
    worst = multiclass_calibration_error(
        torch.from_numpy(rows), torch.from_numpy(labels), K, n_bins=bins, norm="max"
    )
    assert evaluate.reliability(rows, labels, bins).mce == pytest.approx(float(worst), abs=1e-6)


def classwise_by_hand(rows: np.ndarray, labels: np.ndarray, bins: int) -> float:
    """One class at a time, one bin at a time."""
    errors = []
    for k in range(rows.shape[1]):
        error = 0.0
        for b in range(bins):
            inside = (rows[:, k] > b / bins) & (rows[:, k] <= (b + 1) / bins)
            inside |= (rows[:, k] == 0) & (b == 0)
            if inside.any():
                gap = abs((labels[inside] == k).mean() - rows[inside, k].mean())
                error += inside.mean() * gap
        errors.append(error)
    return float(np.mean(errors))


def test_the_classwise_calibration_error_is_that_of_the_definition() -> None:
    rows, labels = model()
    exact = rows / rows.sum(axis=1, keepdims=True, dtype=np.float64)
    for bins in (15, 7):
        expected = classwise_by_hand(exact, labels, bins)
        assert evaluate.classwise_ece(rows, labels, bins) == pytest.approx(expected, abs=1e-10)


def test_a_reliability_table_by_hand() -> None:
    rows = [[0.9, 0.1], [0.8, 0.2], [0.75, 0.25], [0.5, 0.5]]
    table = evaluate.reliability(rows, [0, 1, 0, 0], bins=4)
    assert table.lower.tolist() == [0.0, 0.25, 0.5, 0.75]
    assert table.count.tolist() == [0, 1, 1, 2]  # a bound belongs to the bin below it
    np.testing.assert_allclose(table.confidence, [np.nan, 0.5, 0.75, 0.85])
    np.testing.assert_allclose(table.accuracy, [np.nan, 1.0, 1.0, 0.5])
    assert table.ece == pytest.approx((0.5 + 0.25 + 2 * 0.35) / 4)
    assert table.mce == pytest.approx(0.5)
    assert table.to_json()["bins"][0]["accuracy"] is None


def test_bins_are_15_and_not_the_10_of_probly() -> None:
    rows, labels = model()
    assert len(evaluate.reliability(rows, labels).count) == 15
    assert "probly" in (evaluate.reliability.__doc__ or "")
    with pytest.raises(ArgumentError, match="bins is 0"):
        evaluate.ece(rows, labels, bins=0)


def test_of_equal_probabilities_the_first_class_is_predicted() -> None:
    assert evaluate.accuracy([[0.5, 0.5], [0.5, 0.5]], [0, 1]) == 0.5


def test_a_label_of_probability_0_makes_the_nll_infinite_and_is_counted() -> None:
    rows = [[1.0, 0.0], [0.5, 0.5]]
    assert evaluate.nll(rows, [1, 0]) == math.inf
    found = evaluate.label_metrics(rows, [1, 0])
    assert (found.nll, found.num_impossible) == (math.inf, 1)
    assert found.to_json()["nll"] is None
    assert evaluate.brier(rows, [1, 0]) == pytest.approx((2 + 0.5) / 2)


def test_a_certain_and_right_model_has_no_error_at_all() -> None:
    for rows in (np.eye(3), np.ones((3, 1))):
        found = evaluate.label_metrics(
            rows, np.arange(3) if rows.shape[1] == 3 else np.zeros(3, int)
        )
        errors = (found.nll, found.brier, found.ece, found.classwise_ece)
        assert (found.accuracy, errors) == (1.0, (0.0,) * 4)


@given(st.integers(0, 2**32), st.integers(1, 39), st.randoms())
def test_metrics_of_ranks_are_those_of_one_pass_bit_by_bit_in_any_order(
    seed: int, cut: int, random: Any
) -> None:
    rows, labels = model(seed, 40)
    order = list(range(40))
    random.shuffle(order)
    whole, one, other = (evaluate.Labelled(K) for _ in range(3))
    whole.update(rows, labels)
    one.update(rows[order[:cut]], labels[order[:cut]])
    other.update(rows[order[cut:]], labels[order[cut:]])
    other.merge(pickle.loads(pickle.dumps(one)))
    assert other.result().to_json() == whole.result().to_json()
    assert whole.result().to_json() == evaluate.label_metrics(rows, labels).to_json()


def test_accumulators_that_count_other_things_are_not_merged() -> None:
    for one, other in (
        (evaluate.Labelled(3), evaluate.Labelled(4)),
        (evaluate.Labelled(3, bins=10), evaluate.Labelled(3)),
    ):
        with pytest.raises(ArgumentError, match="cannot be merged"):
            one.merge(other)


# ------------------------------------------------------------------ labels


def test_labels_come_as_numbers_names_mappings_tensors_and_files(
    tmp_path: Path, fast_disk: None
) -> None:
    import torch

    rows, labels = model(count=6)
    names = ["owl", "cat", "sea lion", "dog"]
    with fostore.create(
        tmp_path / "a.zarr", num_samples=6, num_classes=K, class_names=names
    ) as writer:
        writer.append(rows)
    store = fostore.open(tmp_path / "a.zarr")
    named = [names[k] for k in labels]
    np.save(tmp_path / "y.npy", labels.astype(np.uint8))
    (tmp_path / "y.txt").write_text("\n".join(map(str, labels)) + "\n")
    (tmp_path / "names.txt").write_text("\n".join(named) + "\n")
    expected = evaluate.nll(store, labels)
    for given_labels in (
        labels.tolist(),
        named,
        {i: int(k) for i, k in enumerate(labels)},
        torch.from_numpy(labels),
        tmp_path / "y.npy",
        str(tmp_path / "y.txt"),
        tmp_path / "names.txt",
    ):
        assert evaluate.nll(store, given_labels) == expected


def test_digits_in_a_file_are_numbers_or_names_and_refused_where_they_may_be_both(
    tmp_path: Path, fast_disk: None
) -> None:
    with fostore.create(
        tmp_path / "a.zarr", num_samples=2, num_classes=3, class_names=["1", "2", "3"]
    ) as writer:
        writer.append(np.float32([[0.8, 0.1, 0.1], [0.1, 0.1, 0.8]]))
    file = tmp_path / "y.txt"
    for text, expected in (("1\n3\n", 1.0), ("0\n2\n", 1.0), ("0\n1\n", 0.5)):
        file.write_text(text)
        assert evaluate.accuracy(tmp_path / "a.zarr", file) == expected
    file.write_text("1\n2\n")
    with pytest.raises(ArgumentError, match=r"label '1' of .* may be class number 1 or the class"):
        evaluate.accuracy(tmp_path / "a.zarr", file)


@pytest.mark.parametrize("digits", [25, 5000])
def test_a_label_that_no_integer_holds_is_refused(digits: int, tmp_path: Path) -> None:
    (tmp_path / "y.txt").write_text("9" * digits + "\n1\n")
    with pytest.raises(ArgumentError, match=r"has the label 999.*, expected class numbers"):
        evaluate.accuracy(np.full((2, 2), 0.5), tmp_path / "y.txt")


def test_labels_that_do_not_fit_are_refused_by_row() -> None:
    rows, labels = model(count=6)
    wrong: list[tuple[Any, str]] = [
        (labels[:5], r"\(5,\), expected one label for each of the 6"),
        (labels.astype(np.float64), "labels are float64"),
        (np.where(np.arange(6) == 2, np.nan, 1.0), "label 2 is NaN"),
        (np.array([0, 1, K, 0, 0, 0]), r"the label of row 2 is 4, expected 0 to 3"),
        (np.array([0, -1, 0, 0, 0, 0]), "the label of row 1 is -1"),
        (["cat"] * 6, "has no class names"),
        ({0: 1}, "sample 1 of store has no label"),
        ("nowhere.npy", "cannot be read from 'nowhere.npy'"),
    ]
    for given_labels, message in wrong:
        with pytest.raises(ArgumentError, match=message):
            evaluate.accuracy(rows, given_labels)


def test_a_label_that_is_no_class_of_the_store_is_refused(tmp_path: Path, fast_disk: None) -> None:
    with fostore.create(
        tmp_path / "a.zarr", num_samples=1, num_classes=2, class_names=["cat", "dog"]
    ) as writer:
        writer.append(np.float32([[0.5, 0.5]]))
    with pytest.raises(ArgumentError, match=r"label 'cow' is no class of .*, which has cat, dog"):
        evaluate.accuracy(tmp_path / "a.zarr", ["cow"])


def test_a_summary_says_what_the_parts_say() -> None:
    rows, labels = model()
    both = np.stack([rows, rows[:, ::-1]], axis=1)
    found = evaluate.summarize(both, labels)
    parts = evaluate.ensemble_uncertainty(both)
    for moments, values in (
        (found.entropy, parts.total),
        (found.aleatoric, parts.aleatoric),
        (found.epistemic, parts.epistemic),
    ):
        assert moments is not None
        assert moments.mean == pytest.approx(values.mean(), abs=1e-12)
        assert moments.std == pytest.approx(values.std(), abs=1e-9)
        assert (moments.least, moments.most) == (values.min(), values.max())
    mean = both.mean(axis=1)
    np.testing.assert_allclose(found.mean_probs, mean.mean(axis=0), atol=1e-7)
    assert found.predicted.sum() == found.histogram.count.sum() == N
    assert found.metrics is not None
    assert found.metrics.accuracy == evaluate.accuracy(both, labels)


def test_the_points_of_a_ternary_plot_are_spread_evenly_over_the_rows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows, labels = model(count=9000, classes=3)
    monkeypatch.setattr(rows_module, "BUDGET", 3 * 100)
    found = evaluate.summarize(rows, labels)
    np.testing.assert_allclose(found.points, rows[::3], atol=1e-6)
    assert found.point_labels is not None
    assert found.point_labels.tolist() == labels[::3].tolist()
    assert evaluate.summarize(*model()).points.shape == (0, K)


def test_a_comparison_says_what_the_divergences_say() -> None:
    (p, _), (q, _) = model(0), model(1)
    found = evaluate.compare(p, q)
    for moments, values in (
        (found.kl, evaluate.kl(p, q)),
        (found.kl_reverse, evaluate.kl(q, p)),
        (found.js, evaluate.js(p, q)),
        (found.tv, evaluate.tv(p, q)),
    ):
        assert moments.mean == pytest.approx(values.mean(), abs=1e-12)
        assert moments.most == values.max()
    far = evaluate.tv(p, q)
    assert [index for index, _ in found.furthest] == np.argsort(-far, kind="stable")[:5].tolist()
    assert found.agreement == (p.argmax(axis=1) == q.argmax(axis=1)).mean()
