"""Rows split over threads: the same bytes on any number of them, none for few rows, none that stays."""

from __future__ import annotations

import subprocess
import sys
import threading
from typing import Any

import numpy as np
import pytest

from fostore.encodings import threads
from fostore.encodings.selection import selected
from fostore.encodings.threads import by_threads

SIZES = {"logits": 21_841, "log_probs": 700, "probs": 40}


def given_rows(kind: str) -> np.ndarray:
    """Rows that come apart anywhere: normal ones, ties, minus zero, and rows that only a few classes share."""
    rows = np.random.default_rng(3).normal(size=(23, SIZES[kind])).astype(np.float32) * 4
    rows[::2] = np.round(rows[::2]) * -1.0
    rows[5, 3:], rows[6] = -np.inf, -0.0
    logs = rows - np.log(np.exp(rows, dtype=np.float64).sum(-1, keepdims=True))
    return {"logits": rows, "log_probs": logs, "probs": np.exp(logs)}[kind]


@pytest.mark.parametrize("kind", list(SIZES))
def test_rows_have_the_same_bytes_on_any_number_of_threads(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = given_rows(kind)
    monkeypatch.setattr(threads, "_LEAST", 1)
    seen = []
    for count in (1, 2, 3, 4, 64):
        monkeypatch.setattr(threads, "num_threads", lambda count=count: count)
        chosen = selected(rows, kind, 3, (0.5, 2.0), tail_entropy=True)
        arrays = [a for a in chosen if a is not None]
        seen.append([(a.dtype, a.shape, a.tobytes()) for a in arrays])
    assert seen[1:] == seen[:1] * 4


def test_threads_end_with_the_call_also_where_one_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "_LEAST", 1)
    monkeypatch.setattr(threads, "num_threads", lambda: 4)
    before, at_work = threading.active_count(), set()

    def work(rows: np.ndarray) -> int:
        at_work.add(threading.current_thread())
        return 1 // (len(rows) - 3)

    assert by_threads(work, np.zeros((16, 2))) == [1] * 4
    assert at_work.isdisjoint({threading.main_thread()})
    with pytest.raises(ZeroDivisionError):
        by_threads(work, np.zeros((13, 2)))
    assert threading.active_count() == before


def test_few_rows_start_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("a thread for few rows")

    monkeypatch.setattr(threads, "num_threads", lambda: 4)
    monkeypatch.setattr(threads, "ThreadPoolExecutor", refuse)
    for shape in ((0, 1000), (64, 1000), (1, 3_000_000)):
        chosen = selected(np.zeros(shape, np.float32), "logits", 2)
        assert chosen.ids.tolist() == [[0, 1]] * shape[0]


@pytest.mark.skipif(sys.platform == "win32", reason="no fork")
def test_a_process_that_was_forked_selects_as_its_parent() -> None:
    code = """
import os
import numpy as np
from fostore.encodings import threads
from fostore.encodings.selection import selected
threads.num_threads = lambda: 2
rows = np.zeros((24, 100_000), np.float32)
rows[:, 9] = 1
def selects():
    return selected(rows, "logits", 2).ids.tolist() == [[9, 0]] * 24
assert selects()
child = os.fork()
if child == 0:
    os._exit(0 if selects() else 1)
assert os.waitpid(child, 0)[1] == 0
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
