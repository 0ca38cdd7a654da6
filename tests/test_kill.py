"""SIGKILL at random instants: no committed row is lost, no reader ever fails, and the end is bit-identical."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import fostore
from support import SUFFIXES, data_files, plain_rows, probs

KILLS = 8
TOTAL, K = 60_000, 50
TARGET = Path(__file__).with_name("kill_target.py")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_kill_at_any_instant_loses_no_committed_row(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"killed{suffix}"
    expected = probs(TOTAL, K)
    chance = random.Random(suffix)
    acknowledged = kills = 0
    for attempt in range(40):
        command = [sys.executable, str(TARGET), str(path), str(TOTAL), str(K), str(attempt)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            # The store is open once a line came: killing the start of Python proves little.
            lines = [process.stdout.readline().strip()]
            if kills < KILLS:
                time.sleep(chance.uniform(0, 0.06))
                check_readers(path, expected, acknowledged)
                process.kill()
            lines += process.stdout.read().split()
        code = process.returncode
        assert code in (0, -9), lines
        kills += code == -9
        assert int(lines[0]) >= acknowledged, "a committed row was lost"
        finished = lines[-1] == "done"
        acknowledged = max(int(line) for line in lines if line != "done" and line)
        check_readers(path, expected, TOTAL if finished else acknowledged)
        if finished:
            break
    assert kills >= KILLS // 2
    assert finished
    whole = tmp_path / f"whole{suffix}"
    with fostore.create(
        whole, num_samples=TOTAL, num_classes=K, unit_rows=1024, ids=range(TOTAL)
    ) as writer:
        writer.append(expected)
    assert data_files(path) == data_files(whole)
    assert fostore.open(path).digest() == fostore.open(whole).digest()
    assert fostore.open(path).verify() == []
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([path.name, whole.name])


def check_readers(path: Path, expected: np.ndarray, acknowledged: int) -> None:
    """Plain readers open the store, and fostore gives every row that was acknowledged."""
    rows = plain_rows(path)
    if path.suffix == ".zarr":
        assert np.array_equal(rows, expected[: len(rows)])
    else:
        assert np.array_equal(rows[:acknowledged], expected[:acknowledged])
    store = fostore.open(path)
    assert len(store) >= acknowledged
    assert np.array_equal(store[: len(store)], expected[: len(store)])
