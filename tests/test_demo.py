"""The demo, run as a user runs it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import fostore
from fostore import demo
from fostore.errors import ArgumentError, FostoreError
from fostore.publishing import verification


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of one finished demo, and what it printed."""
    folder = tmp_path_factory.mktemp("demo")
    result = subprocess.run(
        [sys.executable, "-m", "fostore.cli", "demo", "--folder", "made"],
        cwd=folder,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    return folder, result.stdout


def test_the_demo_is_killed_resumes_and_computes_one_batch_twice(outcome: tuple[Path, str]) -> None:
    _, out = outcome
    ran, finished, rows = re.findall(r"after (\d+) batches; (\d+) of them \(([\d,]+) rows", out)[0]
    committed = int(rows.replace(",", ""))
    resumed, first = re.findall(r"Resumed: (\d+) batches, from row ([\d,]+) on; 1 of", out)[0]
    assert 0 < committed < 1297
    assert int(finished) <= int(ran) < 41
    assert committed == int(finished) * demo.BATCH_SIZE
    assert int(first.replace(",", "")) == committed
    assert int(resumed) == -(-(1297 - committed) // demo.BATCH_SIZE)
    assert "digests equal" in out


def test_what_it_publishes_is_whole(outcome: tuple[Path, str]) -> None:
    folder, out = outcome
    assert list(verification.verify(folder / "made" / demo.PUBLISHED)) == []
    store = fostore.open(folder / "made" / demo.PUBLISHED / "data" / demo.STORE)
    assert store.digest() == fostore.open(folder / "made" / demo.STORE).digest()
    assert fostore.cite(folder / "made" / demo.PUBLISHED)["line"] in out


def test_the_three_stores_hold_the_same_distributions(outcome: tuple[Path, str]) -> None:
    folder, out = outcome
    stores = [fostore.open(folder / "made" / name) for name in (demo.STORE, demo.HDF5, demo.JSON)]
    first = stores[0].take(range(1297))
    for store in stores:
        assert store.shape == (1297, 10)
        assert store.verify() == []
        np.testing.assert_array_equal(store.take(range(1297)), first)
    digests = {store.digest() for store in stores}
    assert len(digests) == 1
    assert out.count(digests.pop()[:23]) == 4  # once each, and in the citation


def test_distilled_students_are_closer_to_their_teacher_in_every_seed(
    outcome: tuple[Path, str],
) -> None:
    folder, out = outcome
    _, _, table = out.partition("What a student learns from a store: 5 seeds")
    figures = dict(
        re.findall(r"^  +(\S.*?)  +(\d\.\d{3}  +\d\.\d{3}.*|\d\.\d{3})$", table, re.MULTILINE)
    )
    assert float(figures["teacher's accuracy"]) > 0.97
    distilled, by_class = (
        float(word) for word in figures["KL(teacher || student), nats"].split()[:2]
    )
    assert 0 < distilled < 0.8 * by_class
    assert figures["KL(teacher || student), nats"].endswith("better in 5 of 5 seeds")
    assert all(0.9 < float(word) < 1 for word in figures["accuracy"].split()[:2])
    for word in figures["covered by 90% TV balls"].split():  # 5 x 299 scans, radii of 5 x 298
        assert 0.84 < float(word) < 0.96
    for seed, name in enumerate(demo.LEARNED):
        with fostore.open(folder / "made" / name) as store:
            assert (store.shape, store.is_sealed, seed) == ((700, 10), True, seed)


def test_what_the_demo_says_to_try_next_works(outcome: tuple[Path, str]) -> None:
    folder, out = outcome
    lines = [line.strip() for line in out.partition("Try next:")[2].splitlines()]
    commands = [line for line in lines if re.match(r"\S*(fostore|python\S*) ", line)]
    assert len(commands) == 8
    for command in commands:
        result = subprocess.run(
            command, shell=True, cwd=folder, capture_output=True, text=True, timeout=100
        )
        assert result.returncode == 0, f"{command}\n{result.stderr}"
        assert result.stdout
    members = fostore.open(folder / "made" / "members.zarr")
    assert members.shape == (1297, 3, 10)
    mean = members.take(range(1297)).mean(axis=1)
    teacher = fostore.open(folder / "made" / demo.STORE)
    np.testing.assert_allclose(mean, teacher.take(range(1297)), atol=1e-6)


def test_a_folder_with_other_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(ArgumentError, match="holds files that no demo made"):
        demo.run(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


def test_an_earlier_demo_is_replaced_and_what_the_user_added_stays(tmp_path: Path) -> None:
    for name in (*demo.MADE, demo.MARK, "members.zarr"):
        (tmp_path / name).write_text("old")
    demo._prepare(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {demo.MARK, "members.zarr"}


@pytest.mark.parametrize("mine", [[], ["notes.txt"]])
def test_without_keep_only_what_the_demo_made_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mine: list[str]
) -> None:
    folder = tmp_path / "made"

    def show(folder: Path) -> None:
        for name in (*demo.MADE, f".{demo.STORE}.lock", *mine):
            (folder / name).write_text("new")

    monkeypatch.setattr(demo, "_show", show)
    demo.run(folder, keep=False)
    assert (folder.exists(), [p.name for p in folder.glob("*")]) == (bool(mine), mine)


@pytest.mark.parametrize(
    ("missing", "named"),
    [
        (("torch",), "torch"),
        (("sklearn",), "scikit-learn"),
        (("torch", "sklearn"), "torch and scikit-learn"),
    ],
)
def test_libraries_that_are_missing_are_named_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: tuple[str, ...], named: str
) -> None:
    find = demo.importlib.util.find_spec
    monkeypatch.setattr(
        demo.importlib.util, "find_spec", lambda name: None if name in missing else find(name)
    )
    with pytest.raises(FostoreError, match=f"needs {named} beside fostore: pip install"):
        demo.run(tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_the_comparison_sees_a_flipped_bit_and_a_file_too_many(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    for folder in (one, other):
        (folder / "c").mkdir(parents=True)
        (folder / "c" / "0").write_bytes(b"\x00\x01")
        (folder / "zarr.json").write_text(folder.name)
    assert demo._compare(one, other) == (1, [])
    (other / "c" / "0").write_bytes(b"\x00\x03")
    (one / "tail").write_bytes(b"")
    assert demo._compare(one, other) == (2, ["c/0", "tail"])
