"""The loading benchmarks: they run, compare what they time, and lose no library without a word."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder of the scripts as their own import path."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def test_every_part_runs_and_records_nothing_when_quick() -> None:
    before = (BENCHMARKS / "RESULTS.md").read_bytes()
    command = [sys.executable, str(BENCHMARKS / "loading.py"), "--quick", "--rounds=1", "--only="]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    for line in (
        "Store.take",
        "output_dataloader",
        "us a sample",
        "JAX arrays",
        "fresh process",
        "handed out as float32",
        "million tokens a second",
    ):
        assert line in done.stdout
    assert (BENCHMARKS / "RESULTS.md").read_bytes() == before


@pytest.mark.usefixtures("benchmarks")
def test_a_library_that_is_not_installed_says_how_to_get_it() -> None:
    from dataclasses import replace

    from peers import FLAT

    absent = replace(FLAT, module="a_library_that_nobody_wrote")
    assert absent.missing() == "not installed: pip install -e '.[bench]'"
    assert FLAT.missing() == ""


@pytest.mark.usefixtures("benchmarks")
def test_a_library_that_gives_other_rows_is_not_timed(tmp_path: Path) -> None:
    from dataclasses import replace

    from _rows import Width, copies
    from peers import FLAT

    wrong = replace(FLAT, open=lambda path: lambda wanted: np.load(f"{path}.npy")[wanted - 1])
    kept, lost = copies(tmp_path, Width(600, 3, "float32").distributions(), [wrong])
    assert not kept
    assert "gives other rows than were written" in lost[FLAT.name]


@pytest.mark.usefixtures("benchmarks")
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_an_epoch_with_a_row_twice_missing_or_made_up_is_refused(dtype: str) -> None:
    from _rows import Seen, Width

    rows = Width(500, 20, dtype).distributions()
    seen = Seen(rows)
    shuffled = rows[np.random.default_rng(0).permutation(500)]
    seen.assert_epoch([shuffled[:256], shuffled[256:]], "right", 60)
    with pytest.raises(AssertionError, match="repeats rows"):
        seen.assert_epoch([shuffled, shuffled[:1]], "twice", 60)
    with pytest.raises(AssertionError, match="leaves rows out"):
        seen.assert_epoch([shuffled[1:]], "short", 60)
    changed = shuffled.copy()
    changed[7, 3] += 1e-2
    with pytest.raises(AssertionError, match="never written"):
        seen.assert_epoch([changed], "changed", 60)
