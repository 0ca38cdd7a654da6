"""Readers under what goes wrong around them: forks, other threads, other writers, texts made to hurt."""

from __future__ import annotations

import gzip
import json
import os
import signal
import threading
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

import fostore
from fostore.errors import ArgumentError, DamageError, UncommittedError
from fostore.files.json.scan import Scanner
from fostore.formats.chunks import codecs
from fostore.formats.views import view
from fostore.formats.zarr import reader as zarr_reader


def one_hot(count: int, at: int) -> np.ndarray:
    rows = np.zeros((count, 4), np.float32)
    rows[:, at] = 1
    return rows


def make(path: Path, rows: np.ndarray, **how: object) -> Path:
    with fostore.create(path, num_samples=len(rows), num_classes=4, **how) as writer:
        writer.append(rows)
    return path


@pytest.mark.parametrize("suffix", [".zarr", ".h5"])
def test_a_child_forked_while_a_thread_maps_can_read(tmp_path: Path, suffix: str) -> None:
    store = fostore.open(make(tmp_path / f"s{suffix}", one_hot(9, 1)))
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with store.reader._guard:  # type: ignore[attr-defined]
            held.set()
            done.wait(20)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait(20)
    child = os.fork()
    if child == 0:
        signal.alarm(10)
        os._exit(0 if store.take([3])[0, 1] == 1 else 1)
    status = os.waitpid(child, 0)[1]
    done.set()
    thread.join()
    assert status == 0


def test_a_refresh_that_another_thread_overtook_takes_no_rows_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, load = tmp_path / "s.zarr", zarr_reader.load
    with fostore.create(path, num_samples=100, num_classes=4) as writer:
        writer.append(one_hot(10, 0))
        writer.commit()
        store = fostore.open(path)
        looked, overtaken = threading.Event(), threading.Event()

        def slow(*given: object, **named: object) -> object:
            state = load(*given, **named)  # type: ignore[arg-type]
            if threading.current_thread() is thread:
                looked.set()
                overtaken.wait(0.5)
            return state

        monkeypatch.setattr(zarr_reader, "load", slow)
        thread = threading.Thread(target=store.refresh)
        thread.start()
        looked.wait(20)
        writer.append(one_hot(20, 1))
        writer.commit()
        store.refresh()
        overtaken.set()
        thread.join()
        assert len(store) == 30
        assert store.take([29])[0, 1] == 1


def test_without_one_address_range_no_row_comes_from_a_store_that_took_the_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(view, "is_mappable", lambda *_: False)
    path = make(tmp_path / "s.zarr", one_hot(5000, 0), unit_rows=1024)
    store = fostore.open(path)
    assert store.take([0])[0, 0] == 1
    make(path, one_hot(5000, 1), unit_rows=1024, exists="overwrite")
    with pytest.raises(DamageError, match="another store has taken its place"):
        store.take([0, 1500, 4999])


def test_without_one_address_range_a_refresh_finds_units_that_were_sealed_since(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(view, "is_mappable", lambda *_: False)
    path = tmp_path / "s.zarr"
    with fostore.create(path, num_samples=2048, num_classes=4, unit_rows=1024) as writer:
        writer.append(one_hot(1500, 2))
        writer.commit()
        store = fostore.open(path)
        store.reader.column(0)  # looks at what there is, and maps no file
        writer.append(one_hot(548, 2))
    with pytest.raises(DamageError, match="refresh"):
        store.take([1200])
    store.refresh()
    assert store.take([1200])[0, 2] == 1


@pytest.mark.parametrize("kind", ["probs", "logits", "log_probs"])
def test_rows_that_are_decoded_are_aligned_too(tmp_path: Path, kind: str) -> None:
    rows = np.log(np.full((50, 4), 0.25)) if kind != "probs" else np.full((50, 4), 0.25)
    dtype = "bfloat16" if kind == "probs" else "float32"
    store = fostore.open(make(tmp_path / "s.zarr", rows, kind=kind, dtype=dtype))
    for count in range(1, 40):
        taken = store.take(np.arange(count), temperature=1 + count % 2)
        assert taken.ctypes.data % 64 == 0


def test_get_of_a_store_gives_the_default_as_a_dict_does(tmp_path: Path) -> None:
    store = fostore.open(make(tmp_path / "s.zarr", one_hot(3, 1)))
    assert store.get(3) is None
    assert store.get(-1, "no") == "no"
    assert store.get(2)[1] == 1


def test_odd_rows_are_refused_in_fostores_words(tmp_path: Path) -> None:
    store = fostore.open(make(tmp_path / "s.zarr", one_hot(3, 1)))
    with pytest.raises(ArgumentError, match="sequence of integers"):
        store.take([[0], [0, 1]])
    selection = store.select([0, 1])
    with pytest.raises(
        UncommittedError, match="row 2 was asked for; the selection has the rows 0 to 1"
    ):
        selection.announce([0, 2])
    with pytest.raises(UncommittedError, match="row -1 was asked for; the selection has no rows"):
        selection.select([]).take([-1])
    for rows in (store, selection):
        for row in ("a", None, 1.0, [0]):
            with pytest.raises(ArgumentError, match=r"a row is an integer|keeps no ids"):
                _ = rows[row]


def test_a_million_gzip_members_take_no_longer_than_one() -> None:
    sound = gzip.compress(b"abc") * 20_000
    assert codecs.gzip(sound + b"\0" * 100_000, 60_000) == b"abc" * 20_000
    begin = time.perf_counter()
    assert codecs.gzip(gzip.compress(b"") * 150_000, 10) == b""
    assert time.perf_counter() - begin < 5  # 20 seconds where each member copies all that follow
    with pytest.raises(codecs.CodecError, match="cut"):
        codecs.gzip(sound[:-1], 60_000)


def test_json_keys_cost_no_look_at_all_that_comes_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "s.json"
    path.write_text(json.dumps({"distributions": {"0": [0.5, 0.5]}, "note": [1], "meta": {"a": 1}}))
    asked: list[int] = []
    monkeypatch.setattr(Scanner, "line", lambda self, offset: asked.append(offset) or "")
    assert len(fostore.open(path)) == 1
    assert asked == []


def test_escapes_in_a_json_string_take_no_memory_each(tmp_path: Path) -> None:
    path = tmp_path / "s.json"
    size = 4_000_000
    path.write_text('{"note": "' + "\\\\" * (size // 2) + '", "distributions": {"0": [0.5, 0.5]}}')
    fostore.open(path)
    tracemalloc.start()
    fostore.open(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 * size
