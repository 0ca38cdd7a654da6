"""A conversion that was killed goes on where it stopped, and ends as one that was not."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fostore
from fostore.conversion import conversion, convert
from fostore.errors import DamageError
from support import SUFFIXES, probs

N, K = 40_000, 100
MEMORY = (80 << 20) + (4 << 20)  # small batches: about 1,024 rows
TARGET = Path(__file__).with_name("convert_target.py")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return sealed(tmp_path / "a.zarr", probs(N, K))


def sealed(path: Path, rows: np.ndarray) -> Path:
    with fostore.create(path, num_samples=len(rows), num_classes=K, unit_rows=2048) as writer:
        writer.append(rows)
    return path


def child(source: Path, out: Path, pause: float, **options: Any) -> subprocess.Popen[str]:
    options = {"max_memory": MEMORY, "unit_rows": 2048, **options}
    command = [sys.executable, str(TARGET), str(source), str(out), json.dumps(options), str(pause)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def killed(source: Path, out: Path, batches: int, **options: Any) -> int:
    """Begin, and kill after so many batches; the rows that were committed by then."""
    with child(source, out, 0.05, **options) as process:
        assert process.stdout is not None
        line = ""
        for _ in range(batches):
            line = process.stdout.readline()
        process.kill()
    assert process.returncode == -9
    return int(line.split()[1])


def finished(source: Path, out: Path, **options: Any) -> tuple[int, str]:
    """Run to the end: the first row that was written, and the digest."""
    with child(source, out, 0, **options) as process:
        assert process.stdout is not None
        lines = process.stdout.read().splitlines()
    assert process.returncode == 0
    assert lines[-1].startswith("done ")
    first = int(lines[0].split()[0]) if len(lines) > 1 else N
    return first, lines[-1].split()[1]


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("options", [{}, {"dtype": "float16", "allow_lossy": True}])
def test_a_killed_conversion_goes_on_and_ends_with_the_same_digest(
    tmp_path: Path, source: Path, suffix: str, options: dict[str, Any]
) -> None:
    out, whole = tmp_path / f"b{suffix}", tmp_path / f"whole{suffix}"
    committed = killed(source, out, 9, **options)
    assert committed > 2048
    assert not out.exists()
    assert [n for n in names_in(tmp_path) if ".part" in n]
    again = killed(source, out, 5, **options)
    assert again > committed
    first, digest = finished(source, out, **options)
    assert first >= again, "committed rows were written once more"
    expected = convert(source, whole, progress=False, **options)
    assert digest == expected.destination_digest == fostore.open(out).digest()
    assert fostore.open(out).verify() == []
    assert names_in(tmp_path) == sorted(["a.zarr", out.name, whole.name])


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_part_of_another_source_or_of_other_wishes_is_not_gone_on_with(
    tmp_path: Path, source: Path, suffix: str
) -> None:
    out = tmp_path / f"b{suffix}"
    other = sealed(tmp_path / "o.zarr", probs(N, K, seed=1))
    for start, before, wish in (
        (other, {}, {}),
        (source, {}, {"meta": {"x": 1}}),
        (source, {"ids": [0, N]}, {"ids": [1, N]}),
    ):
        killed(source, out, 5, **before)
        first, _ = finished(start, out, **wish)
        assert first == 0
        there = fostore.open(out)
        assert np.array_equal(there.array, fostore.open(start).array)
        assert there.ids is None or there.ids[0] == 1
        assert names_in(tmp_path) == sorted(["a.zarr", "o.zarr", out.name])
        fostore.disk.remove(out)


def test_a_source_that_changed_under_its_name_is_converted_anew(tmp_path: Path) -> None:
    source, out = tmp_path / "a.h5", tmp_path / "b.zarr"
    import h5py

    for seed in (0, 1):
        with h5py.File(source, "w") as file:
            file["probs"] = probs(N, K, seed=seed)
        if seed == 0:
            killed(source, out, 5)
    first, _ = finished(source, out)
    assert first == 0
    assert np.array_equal(fostore.open(out).array, probs(N, K, seed=1))


def test_rows_of_an_earlier_run_are_held_against_the_source_whatever_was_asked_for(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A part whose record lies: its rows are of another store, and nobody but the digest can see it."""
    out = tmp_path / "b.zarr"
    other = sealed(tmp_path / "o.zarr", probs(N, K, seed=1))
    killed(other, out, 9, verify="none")
    monkeypatch.setattr(conversion.Part, "begin", lambda self: True)
    with pytest.raises(DamageError, match="nothing was"):
        convert(source, out, verify="none", progress=False, unit_rows=2048)
    assert names_in(tmp_path) == ["a.zarr", "o.zarr"]


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("step", ["_verify", "receipt"])
def test_a_kill_after_the_last_row_or_after_publishing_leaves_nothing_wrong(
    tmp_path: Path, source: Path, suffix: str, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / f"b{suffix}"

    class Killed(BaseException):
        pass

    def die(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(conversion.Conversion, step, die)
        with pytest.raises(Killed):
            convert(source, out, progress=False)
    assert out.exists() == (step == "receipt")
    receipt = convert(source, out, progress=False, exists="resume")
    assert receipt.destination_digest == fostore.open(source).digest()
    assert names_in(tmp_path) == sorted(["a.zarr", out.name])


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_kill_while_publishing_over_an_old_store_never_mixes_the_two(
    tmp_path: Path, source: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the exchange the old store lies under the part's name: it is no part to go on with."""
    out = sealed(tmp_path / f"b{suffix}", probs(N, K, seed=1))

    class Killed(BaseException):
        pass

    true_rename = {name: getattr(fostore.disk, name) for name in ("rename", "exchange")}
    for after in (False, True):
        for name, call in true_rename.items():

            def cut(one: Path, other: Path, call: Any = call, after: bool = after) -> None:
                if other != out:
                    return call(one, other)
                if after:
                    call(one, other)
                raise Killed

            monkeypatch.setattr(fostore.disk, name, cut)
        with pytest.raises(Killed):
            convert(source, out, progress=False, exists="overwrite")
        assert fostore.open(out).verify() == []
        for name, call in true_rename.items():
            monkeypatch.setattr(fostore.disk, name, call)
        receipt = convert(source, out, progress=False, exists="overwrite", verify="none")
        assert receipt.destination_digest == fostore.open(source).digest()
        assert np.array_equal(fostore.open(out).array, probs(N, K))
        assert names_in(tmp_path) == sorted(["a.zarr", out.name])


def test_an_interrupt_leaves_a_part_that_the_same_command_goes_on_with(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "b.zarr"
    seen = 0
    true_write = fostore.writing.writer.Writer.write_columns

    def interrupt(self: Any, start: int, columns: Any, **options: Any) -> None:
        nonlocal seen
        seen += 1
        if seen == 6:
            raise KeyboardInterrupt
        true_write(self, start, columns, **options)

    with monkeypatch.context() as patch:
        patch.setattr(fostore.writing.writer.Writer, "write_columns", interrupt)
        with pytest.raises(KeyboardInterrupt):
            convert(source, out, progress=False, max_memory=MEMORY)
    starts: list[int] = []

    def note(self: Any, start: int, columns: Any, **options: Any) -> None:
        starts.append(start)
        true_write(self, start, columns, **options)

    monkeypatch.setattr(fostore.writing.writer.Writer, "write_columns", note)
    convert(source, out, progress=False, max_memory=MEMORY)
    assert starts[0] > 0
    assert np.array_equal(fostore.open(out).array, probs(N, K))
    assert names_in(tmp_path) == ["a.zarr", "b.zarr"]
