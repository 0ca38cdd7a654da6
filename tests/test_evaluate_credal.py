"""Credal sets: who is covered, how wide sets are, how conformal radii keep their promise."""

from __future__ import annotations

import builtins
import math
import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

import fostore
from fostore import evaluate
from fostore.errors import ArgumentError, IdentityError, RowError
from fostore.evaluate import credal
from fostore.evaluate import rows as rows_module
from fostore.evaluate.credal import distance
from support import SUFFIXES, probs

N, K, M = 30, 4, 3

pytestmark = pytest.mark.usefixtures("fast_disk")


def members(seed: int = 0, count: int = N, classes: int = K) -> np.ndarray:
    return np.stack([probs(count, classes, seed=seed + m) for m in range(M)], axis=1)


def kept(path: Path, rows: np.ndarray, **options: Any) -> fostore.Store:
    number = rows.shape[1] if rows.ndim == 3 else None
    with fostore.create(
        path, num_samples=len(rows), num_classes=rows.shape[-1], num_members=number, **options
    ) as writer:
        writer.append(rows)
    return fostore.open(path)


# ------------------------------------------------------------------ intervals


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_bounds_are_the_smallest_and_the_largest_of_the_members(
    suffix: str, tmp_path: Path
) -> None:
    rows = members()
    lower, upper = evaluate.interval(kept(tmp_path / f"a{suffix}", rows))
    assert lower.shape == upper.shape == (N, K)
    np.testing.assert_allclose(np.asarray(lower), rows.min(axis=1), atol=1e-7)
    np.testing.assert_allclose(np.asarray(upper), rows.max(axis=1), atol=1e-7)
    np.testing.assert_array_equal(lower[3:7], np.asarray(lower)[3:7])
    np.testing.assert_array_equal(lower[7:3:-2], np.asarray(lower)[7:3:-2])
    np.testing.assert_array_equal(upper[[5, 1]], np.asarray(upper)[[5, 1]])
    np.testing.assert_array_equal(upper[-1], np.asarray(upper)[-1])
    assert (lower <= upper).all()
    np.testing.assert_allclose((upper - lower).mean(), evaluate.interval_width(lower, upper).mean())


def test_both_bounds_read_each_member_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows_module, "BUDGET", 5 * K * (2 * M + 1))
    read = []

    class Counting:
        shape, dtype = (N, M, K), np.dtype(np.float32)

        def __getitem__(self, rows: slice) -> np.ndarray:
            read.append((rows.start, rows.stop))
            return members()[rows]

    lower, upper = evaluate.interval(Counting())
    assert read == []
    assert evaluate.interval_covered(lower, upper, members().mean(axis=1)).all()
    assert read == [(start, start + 5) for start in range(0, N, 5)]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_an_ensemble_of_any_dtype_covers_its_members_and_their_mean(
    dtype: str, tmp_path: Path
) -> None:
    rows = members(count=200, classes=10).astype(np.float64)
    rows /= rows.sum(axis=-1, keepdims=True)
    rows[:100, 1:] = rows[:100, :1]  # where all agree, the set is one point
    store = kept(tmp_path / "a.zarr", rows, dtype=dtype)
    lower, upper = evaluate.interval(store)
    for target in (rows[:, 0], rows.mean(axis=1)):
        assert evaluate.interval_covered(lower, upper, target).all()
        if dtype != "bfloat16":  # coarser than the default tolerance of a hull
            assert evaluate.hull_covered(store, target).all()


def test_members_and_targets_in_dicts_are_paired_by_index() -> None:
    ensemble = {5: members(count=1)[0], 9: members(count=1)[0]}
    lower, upper = evaluate.interval(ensemble)
    target = {index: rows.mean(axis=0) for index, rows in ensemble.items()}
    assert evaluate.interval_covered(lower, upper, target).all()
    with pytest.raises(
        ArgumentError, match="row 1 of lower has the index 9, of target the index 8"
    ):
        evaluate.interval_covered(lower, upper, {5: target[5], 8: target[9]})


def test_a_target_outside_of_one_class_is_not_covered_and_tol_says_how_far_out_it_may_be() -> None:
    lower, upper = np.array([[0.1, 0.4]]), np.array([[0.5, 0.8]])
    target = [[0.51, 0.49]]
    assert not evaluate.interval_covered(lower, upper, target).any()
    assert evaluate.interval_covered(lower, upper, target, 0.011).all()
    with pytest.raises(ArgumentError, match="row 0 has a lower bound above"):
        evaluate.interval_covered(upper, lower, target)
    with pytest.raises(ArgumentError, match="tol is -1"):
        evaluate.interval_covered(lower, upper, target, tol=-1)
    with pytest.raises(RowError, match="lower: row 0 holds a number that is not finite"):
        evaluate.interval_covered(lower * np.nan, upper, target)


def test_members_and_targets_of_other_samples_are_refused(tmp_path: Path) -> None:
    rows = members(count=3)
    ensemble = kept(tmp_path / "a.zarr", rows, ids=["a", "b", "c"])
    target = kept(tmp_path / "b.zarr", rows[:, 0], ids=["a", "c", "b"])
    with pytest.raises(IdentityError, match="row 1 has the id 'b' in the one and 'c'"):
        evaluate.interval_covered(*evaluate.interval(ensemble), target)
    with pytest.raises(IdentityError):
        evaluate.hull_covered(ensemble, target)
    with pytest.raises(IdentityError):
        evaluate.tv_ball_covered(ensemble, 0.1, target)


# ------------------------------------------------------------------ balls and hulls


def test_a_ball_covers_up_to_its_radius_of_one_number_or_one_a_sample() -> None:
    center, target = np.full((3, 2), 0.5), [[0.5, 0.5], [0.6, 0.4], [1.0, 0.0]]
    assert evaluate.tv_ball_covered(center, 0.1, target).tolist() == [True, True, False]
    radii = np.array([0.0, 0.05, 0.5])
    assert evaluate.tv_ball_covered(center, radii, target).tolist() == [True, False, True]
    assert evaluate.tv_ball_covered(center, math.inf, target).all()
    for radius, message in ((-0.1, "negative or NaN"), (np.nan, "NaN"), ([0.1], r"\(3,\)")):
        with pytest.raises(ArgumentError, match=message):
            evaluate.tv_ball_covered(center, radius, target)


def in_hull_by_weights(vertices: np.ndarray, target: np.ndarray) -> bool:
    """Barycentric coordinates, an oracle for as many vertices as classes in general position."""
    weights = np.linalg.solve(vertices.T, target)
    return bool((weights >= 0).all())


def test_a_hull_covers_what_barycentric_coordinates_say() -> None:
    rng = np.random.default_rng(0)
    vertices = rng.dirichlet(np.ones(3), (80, 3))
    targets = rng.dirichlet(np.ones(3), 80)
    found = evaluate.hull_covered(vertices, targets, tol=1e-7)
    expected = [in_hull_by_weights(*pair) for pair in zip(vertices, targets, strict=True)]
    assert found.tolist() == expected
    assert 0 < found.sum() < 80


@given(st.integers(0, 2**32), st.integers(2, 5), st.integers(1, 5))
def test_mixtures_of_vertices_are_covered_and_the_order_of_vertices_changes_nothing(
    seed: int, classes: int, number: int
) -> None:
    rng = np.random.default_rng(seed)
    vertices = rng.dirichlet(np.full(classes, 0.5), (4, number))
    weights = rng.dirichlet(np.ones(number), 4)
    inside = np.einsum("nm,nmk->nk", weights, vertices)
    assert evaluate.hull_covered(vertices, inside).all()
    others = rng.dirichlet(np.ones(classes), 4)
    found = evaluate.hull_covered(vertices, others)
    assert (found == evaluate.hull_covered(vertices[:, ::-1], others)).all()
    lower, upper = evaluate.interval(vertices)
    assert (found <= evaluate.interval_covered(lower, upper, others, 5e-4)).all()


def test_what_is_decided_without_a_program_is_what_the_program_says() -> None:
    rng = np.random.default_rng(1)
    for classes in (1, 2, 3):
        vertices = rng.dirichlet(np.ones(classes), (20, 3))
        targets = rng.dirichlet(np.ones(classes), 20)
        targets[:5] = vertices[:5, 1]
        found = evaluate.hull_covered(vertices, targets)
        exact = [distance(v, t) <= 5e-4 for v, t in zip(vertices, targets, strict=True)]
        assert found.tolist() == exact


def test_a_mixture_has_weights_that_sum_to_1() -> None:
    far = distance(np.array([[1.0, 0.0, 0.0]]), np.array([0.6, 0.2, 0.2]))
    assert far == pytest.approx(0.4)  # with a weight of 0.8 it would be 0.2


def test_in_float16_a_strict_test_rejects_the_mean_that_the_default_accepts() -> None:
    rng = np.random.default_rng(2)
    exact = rng.dirichlet(np.ones(10), (20, 5))
    mean = exact.mean(axis=1)
    assert not evaluate.hull_covered(exact.astype(np.float16), mean, tol=1e-9).any()
    assert evaluate.hull_covered(exact.astype(np.float16), mean).all()


def test_a_hull_without_scipy_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    corners = np.eye(3)[None]
    assert evaluate.hull_covered(corners, [[1.0, 0.0, 0.0]]).all()  # a vertex takes no program
    with pytest.raises(ArgumentError, match=r"pip install 'fostore\[evaluate\]'"):
        evaluate.hull_covered(corners, [[0.2, 0.3, 0.5]])


# ------------------------------------------------------------------ coverage


def test_the_interval_of_a_coverage_is_that_of_scipy() -> None:
    for covered, count, level in ((0, 7, 0.95), (7, 7, 0.95), (90, 100, 0.9), (1, 3, 0.5)):
        found = evaluate.Coverage(covered, count, level)
        exact = scipy.stats.binomtest(covered, count).proportion_ci(level, method="wilson")
        assert (found.low, found.high) == pytest.approx((exact.low, exact.high), abs=1e-12)
        assert found == covered / count


def test_a_coverage_is_a_float_that_pickles_and_merges_across_ranks() -> None:
    one = evaluate.coverage(np.array([True, False]))
    other = evaluate.coverage(np.array([True, True]))
    assert one.merge(other) == 0.75
    assert one.merge(other).num_samples == 4
    copy = pickle.loads(pickle.dumps(one))
    assert (copy, copy.low, copy.high) == (one, one.low, one.high)
    assert f"{one:.2%}" == "50.00%"
    with pytest.raises(ArgumentError, match="no samples"):
        evaluate.coverage(np.array([], bool))
    with pytest.raises(ArgumentError, match="one bool a sample"):
        evaluate.coverage([0.3, 0.7])
    with pytest.raises(ArgumentError, match="confidence_level is 95"):
        evaluate.coverage([True], confidence_level=95)


def test_compute_coverage_takes_anything_with_contains_as_in_the_guide() -> None:
    class Mine:
        def contains(self, distribution: Any) -> bool:
            return bool(distribution[0] > 0.5)

    truth = {3: [0.9, 0.1], 5: [0.2, 0.8], 8: [0.5, 0.5], 9: [0.5, 0.5]}
    sets = {
        5: evaluate.Interval([0.0, 0.5], [0.5, 1.0]),
        3: Mine(),
        8: evaluate.Hull([[1.0, 0.0], [0.0, 1.0]]),
        9: evaluate.Ball([0.9, 0.1], 0.3),
    }
    found = evaluate.compute_coverage(sets, truth)
    assert (found, found.num_covered) == (0.75, 3)
    assert evaluate.compute_coverage([Mine()] * 4, [truth[k] for k in sets]) == 0.25
    with pytest.raises(ArgumentError, match="sample 9 has no credal set"):
        evaluate.compute_coverage({k: sets[k] for k in (3, 5, 8)}, truth)
    with pytest.raises(ArgumentError, match=r"a ndarray, which has no contains\(\)"):
        evaluate.compute_coverage({**sets, 3: np.eye(2)}, truth)
    with pytest.raises(ArgumentError, match="1 credal sets for 4 samples"):
        evaluate.compute_coverage([Mine()], list(truth.values()))
    with pytest.raises(ArgumentError, match="no samples"):
        evaluate.compute_coverage({}, {})


def test_a_set_of_one_sample_says_what_the_vectorised_functions_say() -> None:
    rows, target = members(), probs(N, K, seed=9)
    lower, upper = map(np.asarray, evaluate.interval(rows))
    sets = [evaluate.Interval(*bounds) for bounds in zip(lower, upper, strict=True)]
    found = evaluate.compute_coverage(sets, target)
    assert found == evaluate.interval_covered(lower, upper, target).mean()
    hulls = [evaluate.Hull(row) for row in rows]
    assert evaluate.compute_coverage(hulls, target) == evaluate.hull_covered(rows, target).mean()


def test_no_probability_is_rounded_to_three_decimals_as_probly_does() -> None:
    lower, upper = np.array([[0.1234, 0.1]]), np.array([[0.9, 0.8766]])
    target = [[0.1231, 0.8769]]  # to three decimals, a target on the bound
    assert not evaluate.interval_covered(lower, upper, target).any()
    assert "three decimals" in (credal.__doc__ or "")


# ------------------------------------------------------------------ conformal


def test_the_radius_is_the_score_of_the_corrected_rank() -> None:
    center = np.full((19, 2), 0.5)
    far = np.random.default_rng(0).permutation(19) / 40
    target = np.stack([0.5 + far, 0.5 - far], axis=1)
    for level, rank in ((0.9, 18), (0.95, 19), (0.5, 10), (0.01, 1)):
        radius = evaluate.conformal_radius(center, target, confidence_level=level)
        assert radius == pytest.approx((rank - 1) / 40, abs=1e-12)


def test_too_few_samples_cover_everything_and_say_so() -> None:
    rows = probs(8, K)
    with pytest.warns(UserWarning, match="8 calibration samples are too few .*: it takes 9"):
        assert evaluate.conformal_radius(rows, rows) == math.inf
    nine = probs(9, K)
    assert evaluate.conformal_radius(nine, nine) == 0.0
    with pytest.warns(UserWarning, match="0 calibration samples"):
        assert evaluate.conformal_radius(rows[:0], rows[:0]) == math.inf


def test_the_promise_holds_on_average_over_calibration_sets() -> None:
    rng = np.random.default_rng(0)
    center, target = rng.dirichlet(np.ones(3), 4000), rng.dirichlet(np.ones(3), 4000)
    found = []
    for seed in range(40):
        (a, rest), (b, truth) = (
            evaluate.split(rows, [19, 3000], seed) for rows in (center, target)
        )
        radius = evaluate.conformal_radius(a, b, confidence_level=0.8)
        found.append(evaluate.tv_ball_covered(rest, radius, truth).mean())
    assert np.mean(found) == pytest.approx(0.8, abs=0.04)


def test_a_radius_takes_any_score_and_refuses_what_is_none() -> None:
    p, q = probs(20, K), probs(20, K, seed=3)
    radius = evaluate.conformal_radius(p, q, score=evaluate.kl)
    assert radius == np.sort(evaluate.kl(p, q))[18]
    with pytest.raises(ArgumentError, match="score gave NaN"):
        evaluate.conformal_radius(p, q, score=lambda a, b: np.full(20, np.nan))
    with pytest.raises(ArgumentError, match="confidence_level is 90"):
        evaluate.conformal_radius(p, q, confidence_level=90)


# ------------------------------------------------------------------ split


def test_parts_share_no_sample_and_are_the_same_for_every_kind_of_source(tmp_path: Path) -> None:
    rows = probs(N, K)
    store = kept(tmp_path / "a.zarr", rows)
    mapping, labels = dict(store), np.arange(N)
    parts = [evaluate.split(x, [10, 15], seed=4) for x in (store, rows, mapping, labels)]
    numbers = parts[3]
    assert len(set(np.concatenate(numbers).tolist())) == 25
    for i, chosen in enumerate(numbers):
        assert parts[0][i].rows.tolist() == chosen.tolist() == list(parts[2][i])
        np.testing.assert_array_equal(parts[0][i].take(range(len(chosen))), rows[chosen])
        np.testing.assert_array_equal(parts[1][i], rows[chosen])
    again = evaluate.split(store.select(np.arange(N)), [10, 15], seed=4)
    assert again[0].rows.tolist() == numbers[0].tolist()
    assert evaluate.split(labels, [10, 15], seed=5)[0].tolist() != numbers[0].tolist()
    assert evaluate.split(labels.tolist(), [10, 15], seed=4)[1] == numbers[1].tolist()


@given(st.integers(0, 60), st.lists(st.floats(0.001, 1), min_size=1, max_size=4))
def test_shares_of_one_leave_nobody_out(count: int, weights: list[float]) -> None:
    shares = [weight / builtins.sum(weights) for weight in weights]
    parts = evaluate.split(np.arange(count), shares)
    assert sorted(np.concatenate(parts).tolist()) == list(range(count))


@pytest.mark.parametrize("sizes", [[5, 6], [-1, 2], [0.5, 3], [0.7, 0.7], [], [float("nan")]])
def test_sizes_that_cannot_be_are_refused(sizes: list[Any]) -> None:
    with pytest.raises(ArgumentError, match="sizes"):
        evaluate.split(np.arange(10), sizes)


def test_a_path_is_split_as_its_store_is(tmp_path: Path) -> None:
    store = kept(tmp_path / "a.zarr", members()[:, 0])
    for one, other in zip(
        evaluate.split(store, [0.3, 0.7]),
        evaluate.split(tmp_path / "a.zarr", [0.3, 0.7]),
        strict=True,
    ):
        np.testing.assert_array_equal(one.rows, other.rows)
