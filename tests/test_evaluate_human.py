"""Metrics against what people said, beside SciPy's and NumPy's; ties, infinities, samples that nobody judged."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import entropy, pearsonr

import fostore
from fostore import evaluate
from fostore.errors import ArgumentError, FostoreError, RowError
from support import probs

N = 200
COUNTS = np.random.default_rng(0).multinomial(51, [0.5, 0.3, 0.2], size=N)
MODEL = probs(N).astype(np.float64)
HUMAN = COUNTS / COUNTS.sum(1, keepdims=True)


@pytest.mark.parametrize("form", ["counts", "shares", "store", "list"])
def test_metrics_are_those_of_their_definitions(tmp_path: Path, form: str) -> None:
    people: Any = {"counts": COUNTS, "shares": HUMAN, "list": COUNTS.tolist()}.get(form)
    if form == "store":
        people = tmp_path / "people.zarr"
        with fostore.create(
            people, num_samples=N, num_classes=3, kind="counts", dtype="uint16"
        ) as writer:
            writer.append(COUNTS.astype(np.uint16))
    found = evaluate.human_metrics(MODEL, people)
    rows = MODEL / MODEL.sum(1, keepdims=True)
    assert found.cross_entropy.mean == pytest.approx(
        -(HUMAN * np.log(rows)).sum(1).mean(), rel=1e-6
    )
    assert found.kl.mean == pytest.approx(entropy(HUMAN, rows, axis=1).mean(), rel=1e-6)
    assert found.tv.mean == pytest.approx(np.abs(HUMAN - rows).sum(1).mean() / 2, rel=1e-6)
    expected = pearsonr(entropy(rows, axis=1), entropy(HUMAN, axis=1)).statistic
    assert found.entropy_correlation == pytest.approx(expected, rel=1e-5)
    two = np.sort(COUNTS, axis=1)[:, -2:]
    tied = two[:, 0] == two[:, 1]
    assert 0 < tied.sum() < 20
    assert found.num_ties == tied.sum()
    assert found.ties == tuple(np.flatnonzero(tied).tolist())
    right = (rows.argmax(1) == COUNTS.argmax(1))[~tied].mean()
    assert found.accuracy == pytest.approx(right)


def test_pieces_change_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = evaluate.human_metrics(MODEL, COUNTS)
    monkeypatch.setattr("fostore.evaluate.rows.BUDGET", 42)
    assert evaluate.human_metrics(MODEL, COUNTS) == whole


def test_an_answer_that_the_model_excludes_costs_infinitely_much() -> None:
    found = evaluate.human_metrics([[1.0, 0.0], [0.5, 0.5]], [[3, 1], [1, 3]])
    assert math.isinf(found.cross_entropy.mean)
    assert found.cross_entropy.num_infinite == 1
    assert found.to_json()["kl"]["mean"] is None


def test_ties_are_counted_and_the_first_are_named() -> None:
    found = evaluate.human_metrics(np.full((50, 2), 0.5), np.full((50, 2), 7))
    assert (found.num_ties, found.ties) == (50, tuple(range(20)))
    assert math.isnan(found.accuracy)
    assert math.isnan(found.entropy_correlation)
    assert "samples without a majority" in repr(found)


@pytest.mark.parametrize(
    ("people", "error"),
    [
        (np.array([[0, 0], [1, 1]]), RowError),
        (np.array([[-1, 2], [1, 1]]), RowError),
        (np.array([[1, 1]]), ArgumentError),
        (np.array([[1, 1, 1], [1, 1, 1]]), FostoreError),
    ],
)
def test_what_is_no_answer_of_people_is_refused(people: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        evaluate.human_metrics(np.full((2, 2), 0.5), people)
