"""Rows by id: `store["img-3"]` and `index_of`, of stores and of selections."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fostore
from fostore.errors import ArgumentError, DamageError, UncommittedError
from fostore.reading import ids as ids_module

N = 300
PROBS = np.random.default_rng(3).dirichlet(np.ones(3), N).astype("f4")
TEXTS = [f"ü{i * 7 % N}" for i in range(N)]
NUMBERS = [(i * 7 % N) - 100 for i in range(N)]
GROWING = [2 * i for i in range(N)]

pytestmark = pytest.mark.usefixtures("fast_disk")


@pytest.fixture(params=["zarr", "h5", "json"])
def suffix(request: Any) -> str:
    return str(request.param)


def store_of(path: Path, ids: Any = TEXTS) -> fostore.Store:
    beside = path.with_suffix(".zarr")
    with fostore.create(beside, num_samples=N, num_classes=3, ids=ids) as writer:
        writer.append(PROBS)
    if path != beside:
        fostore.convert(beside, path, progress=False)
    return fostore.open(path)


@pytest.mark.parametrize("ids", [TEXTS, NUMBERS, GROWING], ids=["texts", "numbers", "growing"])
def test_index_of_is_the_inverse_of_ids(tmp_path: Path, suffix: str, ids: list[Any]) -> None:
    store = store_of(tmp_path / f"a.{suffix}", ids)
    rows = np.random.default_rng(1).integers(0, N, 1000)
    assert store.ids is not None
    for keys in (store.ids[rows], store.ids[rows].tolist()):
        found = store.index_of(keys)
        assert found.dtype == np.int64
        assert np.array_equal(found, rows)
    assert store.index_of([]).shape == (0,)


def test_a_row_is_taken_by_its_id(tmp_path: Path, suffix: str) -> None:
    store = store_of(tmp_path / f"a.{suffix}")
    assert np.array_equal(store[TEXTS[5]], store[5])
    assert TEXTS[5] in store
    assert np.array_equal(store.get(TEXTS[5]), store[5])
    assert "x" not in store
    assert store.get("x", 7) == 7


def test_an_integer_is_a_row_also_where_ids_are_integers(tmp_path: Path) -> None:
    store = store_of(tmp_path / "a.zarr", NUMBERS)
    assert np.array_equal(store[5], PROBS[5])
    assert store.index_of([NUMBERS[5]]).tolist() == [5]
    with pytest.raises(ArgumentError, match="keeps integers as ids"):
        store["5"]
    assert "5" not in store


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (["x"], r"the id 'x' was asked for; .*a\.zarr has no row of it$"),
        ([TEXTS[0], "x", "", "y" * 99], r"the id 'x', '', 'y+' .*\(3 of 4 ids are not there\)"),
        (np.array(["x"]), "the id 'x' was asked for"),
    ],
)
def test_an_id_that_is_not_there_is_named(tmp_path: Path, asked: Any, message: str) -> None:
    store = store_of(tmp_path / "a.zarr")
    with pytest.raises(UncommittedError, match=message) as caught:
        store.index_of(asked)
    assert isinstance(caught.value, KeyError)
    assert not str(caught.value).startswith('"')


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ("img", "expected a sequence of ids"),
        (b"img", "expected a sequence of ids"),
        ([3], "keeps text as ids, 3 came"),
        ([b"img"], "keeps text as ids, b'img' came"),
        ([TEXTS[0] + "\0"], "holds no NUL"),
    ],
)
def test_what_is_no_id_is_refused(tmp_path: Path, asked: Any, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        store_of(tmp_path / "a.zarr").index_of(asked)


def test_a_store_without_ids_says_so(tmp_path: Path) -> None:
    store = store_of(tmp_path / "a.zarr", None)
    for ask in (lambda: store["x"], lambda: store.index_of(["x"]), lambda: store.index_of([1])):
        with pytest.raises(
            ArgumentError, match="keeps no ids; its rows are known by their numbers"
        ):
            ask()
    assert "x" not in store


def test_a_selection_counts_in_itself(tmp_path: Path) -> None:
    store = store_of(tmp_path / "a.zarr")
    chosen = store.select([9, 4, 4, 200])
    for one in (chosen, pickle.loads(pickle.dumps(chosen))):
        assert one.index_of([TEXTS[200], TEXTS[4], TEXTS[9]]).tolist() == [3, 1, 0]
        assert np.array_equal(one[TEXTS[200]], PROBS[200])
        with pytest.raises(KeyError, match=r"the selection of .* has no row of it"):
            one.index_of([TEXTS[5]])
    assert chosen.select([3]).index_of([TEXTS[200]]).tolist() == [0]


def test_rows_that_come_later_are_found_after_a_refresh(tmp_path: Path) -> None:
    path = tmp_path / "a.zarr"
    with fostore.create(path, num_samples=N, num_classes=3, ids="S8") as writer:
        writer.write(10, PROBS[10:20], ids=TEXTS[10:20])
        writer.commit()
        store = fostore.open(path)
        assert store.index_of([TEXTS[12]]).tolist() == [12]  # rows, also where there are gaps
        writer.write(0, PROBS[:10], ids=TEXTS[:10])
        writer.commit()
        with pytest.raises(UncommittedError, match="committed so far"):
            store[TEXTS[3]]
        store.refresh()
        assert np.array_equal(store[TEXTS[3]], PROBS[3])


def test_ids_of_one_hash_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def few(keys: np.ndarray) -> np.ndarray:
        return np.array([len(key) % 2 for key in keys.tolist()], np.uint64)

    monkeypatch.setattr(ids_module, "codes", few)
    store = store_of(tmp_path / "a.zarr")
    assert store.index_of(TEXTS).tolist() == list(range(N))
    assert "ü999" not in store


def test_two_rows_with_one_id_are_refused(tmp_path: Path) -> None:
    store_of(tmp_path / "a.zarr").close()
    shard = tmp_path / "a.zarr" / "sample_id" / "c" / "0"
    data = bytearray(shard.read_bytes())
    data[8:16] = data[0:8]
    shard.write_bytes(data)
    with pytest.raises(DamageError, match=f"rows 0 and 1 of .* have one id, '{TEXTS[0]}'"):
        fostore.open(tmp_path / "a.zarr").index_of([TEXTS[7]])
