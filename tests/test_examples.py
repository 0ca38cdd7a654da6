"""Every example runs as its first lines say, in a folder of its own, and learns something."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import fostore
from fostore.publishing import verification

EXAMPLES = Path(__file__).parents[1] / "examples"
DISTILLING = {
    "distil_torch": 5,
    "distil_lightning": 5,
    "distil_flax": 5,
    "distil_hf_trainer": 5,
}
"""Epochs that are enough to come three times as close to the teacher."""


def run(name: str, folder: Path, *arguments: str) -> str:
    """What an example prints."""
    result = subprocess.run(
        [sys.executable, EXAMPLES / f"{name}.py", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=170,
        env={"OMP_NUM_THREADS": "1", **os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(folder)},
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_no_example_is_left_out() -> None:
    found = {path.stem for path in EXAMPLES.glob("*.py")}
    assert found == {*DISTILLING, "simple_usage", "active_learning", "every_format", "real_teacher"}


@pytest.mark.parametrize("name", DISTILLING)
def test_a_distilled_student_comes_close_to_its_teacher(name: str, tmp_path: Path) -> None:
    out = run(name, tmp_path, "--epochs", str(DISTILLING[name]))
    found = re.search(r"KL\(teacher \|\| student\): (\S+) before, (\S+) after", out)
    assert found is not None, out
    before, after = map(float, found.groups())
    assert after < before / 3
    with fostore.open(tmp_path / "teacher.zarr") as store:
        assert (store.schema.kind, store.is_sealed) == ("log_probs", True)


def test_simple_usage_teaches_its_students_and_leaves_nothing_behind(tmp_path: Path) -> None:
    out = run("simple_usage", tmp_path, "--epochs", "5")
    accuracies = re.findall(r"^  student, .* accuracy (\S+), NLL", out, re.MULTILINE)
    assert len(accuracies) == 2, out
    assert all(float(word) > 0.6 for word in accuracies)
    assert list(tmp_path.iterdir()) == []


def test_the_table_of_every_format_is_printed(tmp_path: Path) -> None:
    out = run("every_format", tmp_path)
    assert "parquet" in out
    assert "csv" in out


def test_a_real_teacher_survives_a_kill_and_is_published(tmp_path: Path) -> None:
    pytest.importorskip("magika", reason="needs magika, which brings a model with its weights")
    pytest.importorskip(
        "py3langid", reason="needs py3langid, which brings a model with its weights"
    )
    out = run("real_teacher", tmp_path, "--pieces", "600", "--epochs", "3")
    committed, rows = re.findall(r"killed: True, (\d+) of (\d+) rows", out)[0]
    assert 0 < int(committed) < int(rows)
    before, after = map(float, re.findall(r"KL.*: (\S+) before, (\S+) after", out)[0])
    assert after < before / 3
    for name, classes in (("kinds", 214), ("languages", 140)):
        assert list(verification.verify(tmp_path / "published" / name)) == []
        with fostore.open(tmp_path / "published" / name / "data" / f"{name}.zarr") as store:
            assert store.schema.num_classes == classes


def test_active_learning_extends_its_store_round_by_round_and_run_by_run(tmp_path: Path) -> None:
    def sizes(out: str) -> list[int]:
        return [int(n) for n in re.findall(r"^(\d+) labelled scans", out, re.MULTILINE)]

    out = run("active_learning", tmp_path, "--rounds", "6")
    assert sizes(out) == [40, 60, 80, 100, 120, 140, 160]
    accuracies = [float(word) for word in re.findall(r"accuracy (\S+)", out)]
    assert accuracies[-2] > accuracies[-1] > accuracies[0]  # chosen, drawn at random, at first
    first = fostore.open(tmp_path / "votes.zarr")
    kept = first.take(range(160))
    assert sizes(run("active_learning", tmp_path, "--rounds", "1")) == [160, 180]
    votes = fostore.open(tmp_path / "votes.zarr")
    assert votes.ids is not None
    assert len(set(votes.ids.tolist())) == len(votes) == 180
    assert (votes.take(range(160)) == kept).all()
    assert len(fostore.open(tmp_path / "pool.zarr")) == 1200
