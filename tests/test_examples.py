"""Every example runs as its first lines say, learns something, and runs in one folder with all others in any order."""

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
MAKES = {
    **{name: {f"{name}.zarr"} for name in DISTILLING},
    "simple_usage": set(),
    "active_learning": {"votes.zarr", "pool.zarr"},
    "every_format": set(),
    "real_teacher": {"kinds.zarr", "languages.zarr", "published"},
}
"""What each example writes into the folder; no name stands twice, so their order does not matter."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The one folder in which all of them run."""
    return tmp_path_factory.mktemp("examples")


def touched(folder: Path) -> dict[str, list[tuple[str, int, int]]]:
    """What lies in a folder by its first name: every file with its size and the time of its last change."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    by_name: dict[str, list[tuple[str, int, int]]] = {}
    for path in files:
        name, stat = path.relative_to(folder), path.stat()
        by_name.setdefault(name.parts[0], []).append((str(name), stat.st_size, stat.st_mtime_ns))
    return by_name


def run(name: str, folder: Path, *arguments: str) -> str:
    """What an example prints; it touches nothing but what it makes."""
    before = touched(folder)
    result = subprocess.run(
        [sys.executable, EXAMPLES / f"{name}.py", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=170,
        env={
            "OMP_NUM_THREADS": "1",
            **os.environ,
            "HF_HUB_OFFLINE": "1",
            "HF_HOME": str(folder.parent),
        },
    )
    assert result.returncode == 0, result.stderr
    after = touched(folder)
    assert {n for n in before | after if before.get(n) != after.get(n)} <= MAKES[name]
    return result.stdout


def test_no_example_is_left_out() -> None:
    assert {path.stem for path in EXAMPLES.glob("*.py")} == set(MAKES)


def test_no_example_writes_what_another_does() -> None:
    names = [name for made in MAKES.values() for name in made]
    assert len(names) == len(set(names)) == 9


@pytest.mark.parametrize("name", DISTILLING)
def test_a_distilled_student_comes_close_to_its_teacher(name: str, folder: Path) -> None:
    out = run(name, folder, "--epochs", str(DISTILLING[name]))
    found = re.search(r"KL\(teacher \|\| student\): (\S+) before, (\S+) after", out)
    assert found is not None, out
    before, after = map(float, found.groups())
    assert after < before / 3
    with fostore.open(folder / f"{name}.zarr") as store:
        assert (store.schema.kind, store.is_sealed) == ("log_probs", True)


def test_simple_usage_teaches_its_students_and_leaves_nothing_behind(folder: Path) -> None:
    out = run("simple_usage", folder, "--epochs", "5")
    accuracies = re.findall(r"^  student, .* accuracy (\S+), NLL", out, re.MULTILINE)
    assert len(accuracies) == 2, out
    assert all(float(word) > 0.6 for word in accuracies)


def test_the_table_of_every_format_is_printed(folder: Path) -> None:
    out = run("every_format", folder)
    assert "parquet" in out
    assert "csv" in out


def test_a_real_teacher_survives_a_kill_and_is_published(folder: Path) -> None:
    pytest.importorskip("magika", reason="needs magika, which brings a model with its weights")
    pytest.importorskip(
        "py3langid", reason="needs py3langid, which brings a model with its weights"
    )
    (folder / "kinds.zarr").mkdir()  # of an earlier run
    out = run("real_teacher", folder, "--pieces", "600", "--epochs", "3")
    committed, rows = re.findall(r"killed: True, (\d+) of (\d+) rows", out)[0]
    assert 0 < int(committed) < int(rows)
    before, after = map(float, re.findall(r"KL.*: (\S+) before, (\S+) after", out)[0])
    assert after < before / 3
    for name, classes in (("kinds", 214), ("languages", 140)):
        assert list(verification.verify(folder / "published" / name)) == []
        with fostore.open(folder / "published" / name / "data" / f"{name}.zarr") as store:
            assert store.schema.num_classes == classes


def test_active_learning_extends_its_store_round_by_round_and_run_by_run(folder: Path) -> None:
    def sizes(out: str) -> list[int]:
        return [int(n) for n in re.findall(r"^(\d+) labelled scans", out, re.MULTILINE)]

    out = run("active_learning", folder, "--rounds", "6")
    assert sizes(out) == [40, 60, 80, 100, 120, 140, 160]
    accuracies = [float(word) for word in re.findall(r"accuracy (\S+)", out)]
    assert accuracies[-2] > accuracies[-1] > accuracies[0]  # chosen, drawn at random, at first
    first = fostore.open(folder / "votes.zarr")
    kept = first.take(range(160))
    assert sizes(run("active_learning", folder, "--rounds", "1")) == [160, 180]
    votes = fostore.open(folder / "votes.zarr")
    assert votes.ids is not None
    assert len(set(votes.ids.tolist())) == len(votes) == 180
    assert (votes.take(range(160)) == kept).all()
    assert len(fostore.open(folder / "pool.zarr")) == 1200
