"""Coverage against width: what one pass counts of sets that hold labels, beside what each sample's set says."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fostore
from fostore import evaluate
from fostore.errors import ArgumentError
from fostore.evaluate import plot
from fostore.evaluate.label_sets import LabelSets
from support import SUFFIXES


def ensemble(seed: int, num_samples: int, num_members: int, num_classes: int) -> Any:
    rng = np.random.default_rng(seed)
    return rng.dirichlet(np.ones(num_classes), (num_samples, num_members))


def labels_for(rows: Any, seed: int = 0) -> Any:
    return np.random.default_rng(seed).integers(0, rows.shape[-1], len(rows))


def sets_of(rows: Any, labels: Any) -> LabelSets:
    counted = evaluate.summarize(rows, labels).label_sets
    assert counted is not None
    return counted


@given(st.integers(0, 2**32 - 1), st.integers(1, 300), st.integers(2, 9), st.floats(0.05, 0.95))
def test_a_ball_is_that_of_the_calibrated_radius_of_the_same_samples(
    seed: int, num_samples: int, num_classes: int, level: float
) -> None:
    rows = ensemble(seed, num_samples, 1, num_classes)[:, 0]
    labels = labels_for(rows, seed)
    ball = sets_of(rows, labels).ball(level)
    if level > num_samples / (num_samples + 1):
        assert ball is None
        return
    assert ball is not None
    radius, held = ball
    exact = evaluate.conformal_radius(rows, np.eye(num_classes)[labels], confidence_level=level)
    assert exact <= radius + 1e-9
    assert radius <= exact + 1 / 5040 + 1e-9
    # Classes at the edge of a bin fall to either side by rounding.
    assert np.sum(rows >= 1 - radius + 1e-9) / num_samples <= held
    assert held <= np.sum(rows >= 1 - radius - 1e-9) / num_samples


@given(st.integers(0, 2**32 - 1), st.integers(1, 100), st.integers(1, 4), st.integers(1, 7))
def test_what_members_leave_open_is_what_no_class_dominates(
    seed: int, num_samples: int, num_members: int, num_classes: int
) -> None:
    rows = ensemble(seed, num_samples, num_members, num_classes)
    labels = labels_for(rows, seed)
    counted = sets_of(rows, labels)
    expected = np.zeros((num_classes + 1, 2), int)
    lower, upper = map(np.asarray, evaluate.interval(rows))
    for low, high, label in zip(lower, upper, labels, strict=True):
        kept = {
            k for k in range(num_classes) if not any(low[j] > high[k] for j in range(num_classes))
        }
        expected[len(kept), int(label in kept)] += 1
    assert counted.left_open is not None
    assert (counted.left_open == expected).all()
    assert (counted.covered.num_covered, counted.covered.num_samples) == (
        expected[:, 1].sum(),
        num_samples,
    )
    groups = list(counted.by_width())
    assert sum(covered.num_samples for *_, covered in groups) == num_samples
    for least, most, covered in groups:
        assert covered.num_covered == expected[least : most + 1, 1].sum()
        assert covered.num_samples == expected[least : most + 1].sum()
    assert counted.mean_open == pytest.approx(
        expected.sum(1) @ np.arange(num_classes + 1) / num_samples
    )


def test_the_counts_are_the_same_in_any_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = ensemble(0, 200, 3, 5)
    labels = labels_for(rows)
    whole = pickle.dumps(sets_of(rows, labels))
    monkeypatch.setattr("fostore.evaluate.rows.BUDGET", 7 * 15)
    assert pickle.dumps(sets_of(rows, labels)) == whole


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("num_members", [None, 3])
def test_a_report_of_kept_labels_has_its_section(
    suffix: str, num_members: int | None, tmp_path: Path
) -> None:
    rows = ensemble(0, 120, num_members or 1, 4).astype(np.float32)
    rows = rows if num_members else rows[:, 0]
    labels = labels_for(rows)
    with fostore.create(
        tmp_path / f"a{suffix}",
        num_samples=120,
        num_classes=4,
        num_members=num_members,
        class_labels=labels,
    ) as writer:
        writer.append(rows)
    page = evaluate.report(tmp_path / f"a{suffix}")
    section = page.partition('id="coverage-against-width"')[2].partition("</section>")[0]
    ball = sets_of(rows, labels).ball(0.9)
    assert ball is not None
    assert f"<bdi>{ball[0]:.4g}</bdi>" in section
    assert ("What the members leave open" in section) is (num_members is not None)
    if num_members:
        assert f"{sets_of(rows, labels).covered:.1%} of the samples" in section
    assert "Coverage against width" not in evaluate.report(rows)


def test_of_too_few_samples_nothing_is_promised() -> None:
    page = evaluate.report([[0.5, 0.5]] * 5, [0] * 5)
    assert "5 samples promise no more" in page
    assert "label is held" in page
    assert "label is held" not in evaluate.report([[0.5, 0.5]] * 3, [0] * 3)
    assert evaluate.summarize([[0.5, 0.5]] * 5).label_sets is None
    with pytest.raises(ArgumentError, match="without labels"):
        plot.label_sets([[0.5, 0.5]])


def test_sets_that_hold_no_label_are_shown_as_well() -> None:
    rows = np.tile([[0.9, 0.1], [0.8, 0.2]], (40, 1, 1))
    section = evaluate.report(rows, [1] * 40).partition('id="coverage-against-width"')[2]
    assert "<bdi>40</bdi></td><td><bdi>0.0%</bdi>" in section
    assert "for 0.0% of the samples" in section
    assert "0.0% of labels" in section


def test_the_curve_ends_where_the_samples_do_and_the_members_stand_beside_it() -> None:
    rows = ensemble(0, 60, 3, 5)
    summary = evaluate.summarize(rows, labels_for(rows))
    axes = plot.label_sets(summary)
    sizes, levels = axes.lines[0].get_data()
    assert levels.max() <= 60 / 61
    assert (np.diff(sizes) >= 0).all()
    assert summary.label_sets is not None
    point = axes.collections[-1].get_offsets()[0]
    assert point.tolist() == [
        summary.label_sets.mean_open,
        float(summary.label_sets.covered),
    ]
