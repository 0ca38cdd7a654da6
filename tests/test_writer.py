"""The promises of `create`, `Writer` and `Store`, over every format that keeps units."""

from __future__ import annotations

import errno
import json
import os
import pickle
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fostore
from fostore import disk
from fostore.errors import (
    ArgumentError,
    DamageError,
    IdentityError,
    LockedError,
    RowError,
    SpaceError,
    StoreExistsError,
    StoreNotFoundError,
    UncommittedError,
    UnsupportedError,
)
from fostore.writing.ledger import Ledger
from support import data_files, plain_rows, probs

N, K = 2500, 3  # with unit_rows=1024: two full units and a short one


def new(path: Path, **options: object) -> fostore.Writer:
    return fostore.create(
        path, **({"num_samples": N, "num_classes": K, "unit_rows": 1024} | options)
    )


def written(path: Path, rows: np.ndarray | None = None, **options: object) -> fostore.Store:
    with new(path, **options) as writer:
        writer.append(probs(N, K) if rows is None else rows)
    return fostore.open(path)


def test_what_is_written_is_what_is_read(path: Path) -> None:
    store = written(path, meta={"note": "ĥ(x) 日本", "big": 2**80, "nested": [{"a": None}]})
    expected = probs(N, K)
    assert np.array_equal(store.take(np.arange(N)), expected)
    assert np.array_equal(store.array, expected)
    assert not store.array.flags.writeable
    assert np.array_equal(plain_rows(path), expected)
    assert dict(store.meta) == {"note": "ĥ(x) 日本", "big": 2**80, "nested": [{"a": None}]}
    assert (len(store), store.num_samples, store.num_classes, store.is_sealed) == (N, N, K, True)
    assert store.missing() == []
    assert store.verify() == []


def test_both_formats_and_every_chunking_have_one_digest(tmp_path: Path) -> None:
    digests = set()
    for name, options in {
        "a.zarr": {"unit_rows": 1024},
        "b.zarr": {"unit_rows": 4096},
        "c.h5": {"unit_rows": 1024},
        "d.h5": {"unit_rows": 2048},
    }.items():
        digests.add(written(tmp_path / name, **options).digest())
    other = written(tmp_path / "e.zarr", probs(N, K, seed=1)).digest()
    assert len(digests) == 1
    assert other not in digests


@pytest.mark.parametrize("batch", [1, 7, 100, 1024, 2500])
def test_batches_of_any_size_make_the_same_store(path: Path, batch: int, tmp_path: Path) -> None:
    rows = probs(N, K)
    with new(path) as writer:
        for start in range(0, N, batch):
            writer.append(rows[start : start + batch])
    whole = tmp_path / f"whole{path.suffix}"
    written(whole)
    assert data_files(path) == data_files(whole)
    assert fostore.open(path).digest() == fostore.open(whole).digest()


def test_the_caller_may_reuse_its_buffer(path: Path) -> None:
    rows = probs(N, K)
    buffer = np.empty((100, K), np.float32)
    with new(path, commit_seconds=0) as writer:
        for start in range(0, N, 100):
            buffer[:] = rows[start : start + 100]
            writer.append(buffer)
            buffer[:] = np.nan
    assert np.array_equal(fostore.open(path).array, rows)


def test_committed_rows_are_readable_before_the_store_is_sealed(path: Path) -> None:
    rows = probs(N, K)
    with new(path, commit_seconds=1e9) as writer:
        writer.append(rows[:100])
        store = fostore.open(path)
        assert len(store) == 0
        writer.commit()
        assert len(store) == 0
        store.refresh()
        assert len(store) == 100
        assert store.missing() == [(100, N)]
        assert not store.is_sealed
        assert np.array_equal(store.take([99, 0]), rows[[99, 0]])
        with pytest.raises(UncommittedError, match=r"row 100 .*rows 0 to 99 committed so far"):
            store.take([5, 100])
        writer.append(rows[100:2000])
        writer.commit()
        store.refresh()
        assert np.array_equal(store.array, rows[:2000])
        assert np.array_equal(store[0], rows[0])
        writer.append(rows[2000:])
    store.refresh()
    assert store.is_sealed
    assert np.array_equal(store.array, rows)


def test_disjoint_units_are_filled_in_any_order(path: Path) -> None:
    rows = probs(N, K)
    with new(path) as writer:
        writer.write(2048, rows[2048:])
        writer.write(1500, rows[1500:2048])
        writer.commit()
        assert writer.missing() == [(0, 1500)]
        store = fostore.open(path)
        assert len(store) == N - 1500
        assert 1499 not in store
        assert 1500 in store
        assert np.array_equal(store.take([2499, 1500]), rows[[2499, 1500]])
        with pytest.raises(UncommittedError, match="rows 0 to 1499"):
            _ = store.array
        writer.write(1024, rows[1024:1500])
        writer.write(0, rows[:1024])
    assert np.array_equal(fostore.open(path).array, rows)
    assert fostore.open(path).digest() == written(path.with_name("in_order.zarr")).digest()


def test_a_written_row_never_changes(path: Path) -> None:
    rows = probs(N, K)
    with new(path) as writer:
        writer.append(rows[:10])
        with pytest.raises(RowError, match="rows 5 to 9 are written already"):
            writer.write(5, rows[:10])
        with pytest.raises(RowError, match="plans 2500 rows, this batch would end at row 2509"):
            writer.write(2490, rows[:20])
        writer.append(rows[10:])
    assert np.array_equal(fostore.open(path).array, rows)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (probs(4, 5), "3 classes"),
        (np.full((4, K), np.nan), "row"),
        (np.full((4, K), 7.0), "sum"),
        (np.array([[1.5, -0.5, 0.0]]), "row"),
        (probs(4, K).astype(complex), "complex"),
        ([["a", "b", "c"]], "row"),
        (probs(3, K)[0], "row"),
    ],
)
def test_bad_rows_are_refused_and_nothing_of_them_stays(
    path: Path, bad: object, message: str
) -> None:
    rows = probs(N, K)
    with new(path) as writer:
        writer.append(rows[:100])
        with pytest.raises(RowError, match=message):
            writer.append(bad)
        writer.append(rows[100:])
    assert np.array_equal(fostore.open(path).array, rows)


def test_a_store_with_rows_missing_is_not_sealed(path: Path) -> None:
    rows = probs(N)
    with new(path) as writer:
        writer.write(0, rows[:1000])
        with pytest.raises(
            RowError, match=r"rows 1000 to 2499 of .* are missing; write them, or close"
        ):
            writer.seal()
        assert not fostore.open(path).is_sealed
        writer.write(1000, rows[1000:])
        writer.seal()
    np.testing.assert_array_equal(plain_rows(path), rows)


def test_errors_name_the_row(path: Path) -> None:
    rows = probs(N, K)
    rows[321] *= 3
    with pytest.raises(RowError, match="321"), new(path) as writer:
        writer.append(rows[:200])
        writer.append(rows[200:])
    assert fostore.open(path).missing() == [(200, N)]


def test_a_store_goes_on_where_it_stopped(path: Path) -> None:
    rows = probs(N, K)
    with pytest.raises(KeyError) as error, new(path) as writer:
        writer.append(rows[:1300])
        raise KeyError("the caller failed")
    assert "1300 rows" in error.value.__notes__[0]
    with fostore.create(path, exists="resume") as writer:
        assert writer.missing() == [(1300, N)]
        writer.append(rows[1300:])
    whole = path.with_name(f"whole{path.suffix}")
    written(whole)
    assert data_files(path) == data_files(whole)
    with fostore.create(path, num_samples=N, exists="resume") as writer:
        assert writer.missing() == []
        assert writer.header.sealed


def test_a_sealed_store_is_extended(path: Path) -> None:
    rows = probs(5000, K)
    written(path)
    with fostore.create(path, num_samples=5000, exists="resume") as writer:
        assert writer.missing() == [(N, 5000)]
        writer.append(rows[N:3000])
        writer.commit()
        store = fostore.open(path)
        assert len(store) == 3000
        assert not store.is_sealed
    with fostore.create(path, exists="resume") as writer:
        writer.append(rows[3000:])
    store = fostore.open(path)
    assert np.array_equal(store.array, rows)
    assert store.verify() == []
    assert store.is_sealed
    with fostore.create(path.with_name("whole.h5"), num_samples=5000, num_classes=K) as writer:
        writer.append(rows)
    assert store.digest() == fostore.open(path.with_name("whole.h5")).digest()


def test_a_stream_of_unknown_length(tmp_path: Path) -> None:
    path = tmp_path / "stream.zarr"
    rows = probs(N, K)
    with new(path, num_samples=None) as writer:
        for start in range(0, 2000, 100):
            writer.append(rows[start : start + 100])
        assert writer.missing() == []
    assert fostore.open(path).num_samples == 2000
    with fostore.create(path, exists="resume") as writer:
        writer.append(rows[2000:])
    store = fostore.open(path)
    assert np.array_equal(store.array, rows)
    assert store.digest() == written(tmp_path / "b.zarr").digest()
    with pytest.raises(ArgumentError, match=r"\.zarr"):
        new(tmp_path / "stream.h5", num_samples=None)


def test_columns_as_they_are_stored_make_a_lossless_copy(path: Path) -> None:
    ids = [f"k{i}" for i in range(N)]
    kept = {"kind": "logits", "dtype": "float16", "ids": ids, "unit_rows": 2048}
    store = written(path, np.log(probs(N, K)), **kept)
    names = [column.name for column in store.schema.columns]
    columns = [np.array(store.column(name)) for name in names]
    copy = path.with_name(f"copy{path.suffix}")
    with new(copy, **kept) as writer:
        writer.write_columns(0, [column[:1500] for column in columns])
        with pytest.raises(RowError, match="'logits' stores float16"):
            writer.write_columns(1500, [columns[0][1500:].astype("f4"), *columns[1:]])
        with pytest.raises(RowError, match="2 arrays for 3 columns"):
            writer.write_columns(1500, [column[1500:] for column in columns[:2]])
        with pytest.raises(RowError, match="row 1500 has the largest logit"):
            writer.write_columns(1500, [columns[0][1500:] - 1, *(c[1500:] for c in columns[1:])])
        writer.write_columns(1500, [column[1500:] for column in columns])
    assert fostore.open(copy).digest() == store.digest()
    assert data_files(copy) == data_files(path)


@pytest.mark.parametrize("num_samples", [0, 1])
def test_tiny_stores(path: Path, num_samples: int) -> None:
    with fostore.create(path, num_samples=num_samples, num_classes=1) as writer:
        writer.append(np.ones((num_samples, 1)))
    store = fostore.open(path)
    assert store.is_sealed
    assert len(store) == num_samples
    assert store.verify() == []
    assert store.take(np.empty(0, int)).shape == (0, 1)
    assert store.array.shape == (num_samples, 1)


@pytest.mark.parametrize(
    "ids", [list(range(10_000, 10_000 + N)), [f"bild-{i}-ü" for i in range(N)]]
)
def test_ids_stay_with_their_rows(path: Path, ids: list[object]) -> None:
    store = written(path, ids=ids)
    assert store.ids is not None
    assert store.ids.tolist() == ids
    assert store.verify() == []
    without = written(path.with_name(f"without{path.suffix}"))
    assert without.ids is None
    assert without.digest() != store.digest()


def test_ids_may_come_with_each_batch(path: Path) -> None:
    rows = probs(N, K)
    with new(path, ids="S8") as writer:
        writer.append(rows[:2000], ids=[f"a{i}" for i in range(2000)])
        with pytest.raises(RowError, match="ids="):
            writer.append(rows[2000:])
        with pytest.raises(RowError, match="9 bytes"):
            writer.append(rows[2000:], ids=["123456789"] * 500)
        writer.append(rows[2000:], ids=[f"b{i}" for i in range(500)])
    ids = fostore.open(path).ids
    assert ids is not None
    assert ids[1999] == "a1999"
    assert ids[2000] == "b0"


@pytest.mark.parametrize(
    "ids", [[1, 1], ["a", 2], [None, None], ["", "b"], [1.5, 2.5], ["a"], ["\ud800", "b"], "S0"]
)
def test_bad_ids_are_refused_before_anything_is_written(path: Path, ids: object) -> None:
    with pytest.raises(ArgumentError):
        fostore.create(path, num_samples=2, num_classes=2, ids=ids)
    assert list(path.parent.iterdir()) == []


def test_what_lies_under_a_mask_is_no_row(path: Path) -> None:
    rows = np.ma.array(probs(3))
    with fostore.create(path, num_samples=3, num_classes=3) as writer:
        rows[1] = np.ma.masked
        with pytest.raises(RowError, match="masked numbers"):
            writer.append(rows)
        writer.append(np.ma.array(probs(3)))
    np.testing.assert_array_equal(fostore.open(path).array, probs(3))


@pytest.mark.parametrize("keyword", ["fingerprints", "labels"])
@pytest.mark.parametrize(
    "values",
    [
        np.array([1.5, 2.0, 3.0]),
        [1.7, 2, 3],
        np.array([-1, 2, 3]),
        [-1, 2, 3],
        ["a", "b", "c"],
        np.zeros((3, 2), np.uint64),
        np.zeros((3, 1), np.uint64),
        np.zeros(2, np.uint64),
        [1 << 64, 2, 3],
    ],
    ids=str,
)
def test_hashes_that_are_none_are_refused_and_the_writer_goes_on(
    path: Path, keyword: str, values: object
) -> None:
    kept = [(1 << 63) + 5, 3, 4]  # of which NumPy alone would make floats
    with fostore.create(path, num_samples=3, num_classes=3, **{keyword: True}) as writer:
        with pytest.raises(
            RowError, match=r"expected a 64-bit hash a row|3 values of '\w+' were expected"
        ):
            writer.append(probs(3), **{keyword: values})
        assert len(writer) == 0
        writer.append(probs(3), **{keyword: kept})
    assert fostore.open(path).reader.column(1).read(0, 3).tolist() == kept


def test_other_ids_are_refused_on_resume(path: Path) -> None:
    written(path, ids=[f"s{i}" for i in range(N)])
    other = [f"s{i}" for i in range(N)]
    other[7] = "intruder"
    with pytest.raises(IdentityError, match="from row 7 on"):
        fostore.create(path, exists="resume", num_samples=N, ids=other)


def test_exists_decides_what_happens_to_a_taken_path(path: Path) -> None:
    first = written(path)
    with pytest.raises(StoreExistsError, match=r"resume.*overwrite"):
        new(path)
    before = data_files(path)
    other = probs(N, K, seed=9)
    with pytest.raises(KeyError), new(path, exists="overwrite") as writer:
        writer.append(other[:2000])
        writer.commit()
        raise KeyError
    assert data_files(path) == before
    assert fostore.open(path).digest() == first.digest()
    with new(path, exists="overwrite") as writer:
        writer.append(other)
        assert fostore.open(path).digest() == first.digest()
    assert np.array_equal(fostore.open(path).array, other)
    assert [p.name for p in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize(
    ("asked", "named"),
    [
        ({"num_classes": 4}, "num_classes is 3"),
        ({"dtype": "float16"}, "dtype is 'float32'"),
        ({"kind": "logits"}, "kind is 'probs'"),
        ({"class_names": ["x", "y", "z"]}, "class_names"),
        ({"unit_rows": 2048}, "unit_rows is 1024"),
        ({"num_samples": 100}, "never shrinks"),
        ({"temperature": 2.0}, "temperature is 1.0"),
        ({"num_members": 2}, "num_members"),
    ],
)
def test_resume_refuses_another_schema(path: Path, asked: dict[str, object], named: str) -> None:
    written(path)
    with pytest.raises(IdentityError, match=named):
        fostore.create(path, exists="resume", **asked)
    with fostore.create(path, exists="resume"):
        pass  # the lock was released


@pytest.mark.parametrize(
    "options",
    [
        {"dtype": "int8"},
        {"dtype": "float8"},
        {"unit_rows": 1 << 70},
        {"unit_rows": "many"},
        {"temperature": "hot"},
        {"tol": "any"},
        {"commit_seconds": "soon"},
        {"meta": [1]},
        {"identity": "x"},
        {"kind": "odds"},
        {"num_classes": 0},
        {"num_classes": None},
        {"num_samples": -1},
        {"class_names": ["a", "b"]},
        {"class_names": ["a", "a", "b"]},
        {"temperature": 0.0},
        {"unit_rows": 1000},
        {"unit_rows": 16},
        {"meta": {"x": float("nan")}},
        {"meta": {1: "x"}},
        {"meta": {"x": object()}},
        {"exists": "append"},
        {"commit_seconds": -1},
        {"tol": 2.0},
        {"num_members": 0},
    ],
)
def test_bad_arguments_leave_nothing_behind(path: Path, options: dict[str, object]) -> None:
    with pytest.raises(ArgumentError):
        new(path, **options)
    assert list(path.parent.iterdir()) == []


def test_a_path_without_a_known_suffix_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match=r"\.zarr"):
        fostore.create(tmp_path / "x.npz", num_samples=1, num_classes=2)
    with pytest.raises(StoreNotFoundError, match=r"\.zarr"):
        fostore.open(tmp_path / "x.npz")
    with pytest.raises(ArgumentError):
        fostore.create(tmp_path / "x.json", num_samples=1, num_classes=2)


def test_nothing_at_the_path(path: Path) -> None:
    with pytest.raises(StoreNotFoundError, match="no store at"):
        fostore.open(path)
    with pytest.raises(FileNotFoundError):
        fostore.open(path)


def test_a_second_writer_is_refused_and_told_who_holds_the_lock(path: Path) -> None:
    with new(path) as writer:
        with pytest.raises(LockedError, match=str(os.getpid())):
            fostore.create(path, exists="resume")
        code = f"import fostore; fostore.create({str(path)!r}, exists='resume')"
        result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert "LockedError" in result.stderr
        assert str(os.getpid()) in result.stderr
        writer.append(probs(N, K))
    fostore.create(path, exists="resume").close()


def test_a_lock_left_by_a_dead_process_is_taken_over(path: Path) -> None:
    code = (
        f"import fostore, os, signal; w = fostore.create({str(path)!r}, num_samples=9, num_classes=2);"
        "w.append([[0.5, 0.5]] * 4); w.commit(); os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == -9
    with fostore.create(path, exists="resume") as writer:
        assert writer.missing() == [(4, 9)]
        writer.append([[0.25, 0.75]] * 5)
    assert fostore.open(path).take([3, 4]).tolist() == [[0.5, 0.5], [0.25, 0.75]]


def test_a_full_disk_is_a_clear_error_and_the_last_commit_stands(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = probs(N, K)
    real = os.pwrite

    def full(fd: int, data: object, offset: int) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(SpaceError, match="full"), new(path) as writer:
        writer.append(rows[:1000])
        writer.commit()
        monkeypatch.setattr(os, "pwrite", full)
        writer.append(rows[1000:2000])
        writer.commit()
    monkeypatch.setattr(os, "pwrite", real)
    assert fostore.open(path).missing() == [(1000, N)]
    with fostore.create(path, exists="resume") as writer:
        writer.append(rows[1000:])
    assert np.array_equal(fostore.open(path).array, rows)


def test_a_run_that_cannot_fit_is_refused_at_once(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk, "free_bytes", lambda path: 1000)
    with pytest.raises(SpaceError, match="30,000 bytes and 1,000 are free"):
        new(path)
    assert list(path.parent.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_a_clear_error(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocked = path.parent / "file" / path.name
    (path.parent / "file").write_text("not a folder")
    with pytest.raises(OSError, match="file"):
        new(blocked)


@pytest.mark.parametrize("where", [0, 17_000])
def test_a_flipped_bit_is_found_and_its_rows_are_named(path: Path, where: int) -> None:
    written(path)
    offset, target = _data(path, where)
    with target.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)
        file.seek(offset)
        file.write(bytes([byte[0] ^ 1]))
    row = where // 12
    findings = fostore.open(path).verify("checksums")
    assert any(f.rows and f.rows[0] <= row < f.rows[1] for f in findings), findings
    assert fostore.open(path).verify("structure") == []


def test_committed_rows_that_changed_are_damage_on_resume(path: Path) -> None:
    with new(path) as writer:
        writer.append(probs(N, K)[:500])
        writer.commit()
        writer.close()
    offset, target = _data(path, 100 * 12)
    with target.open("r+b") as file:
        file.seek(offset)
        file.write(b"\xff")
    with pytest.raises(DamageError, match="rows 0 to 499") as error:
        fostore.create(path, exists="resume")
    assert error.value.rows == ((0, 500),)
    assert any(f.rows == (0, 500) for f in fostore.open(path).verify("checksums"))


def test_a_cut_file_is_found(path: Path) -> None:
    written(path)
    _, target = _data(path, 0)
    os.truncate(target, target.stat().st_size // 2)
    with pytest.raises(DamageError, match="cut") as error:
        fostore.open(path).take([1000, 2400])  # HDF5 is refused as soon as it is opened
    assert error.value.rows
    if path.suffix == ".zarr":
        findings = fostore.open(path).verify("structure")
        assert any(finding.rows == (0, 1024) for finding in findings)


def test_a_missing_unit_is_found_and_never_read_as_zeros(tmp_path: Path) -> None:
    path = tmp_path / "store.zarr"
    written(path)
    (path / "probs" / "c" / "1" / "0").unlink()
    store = fostore.open(path)
    assert any(f.rows == (1024, 2048) for f in store.verify("structure"))
    assert any(f.rows == (1024, 2048) for f in store.verify("full"))
    with pytest.raises(DamageError, match="1024"):
        store.take([1500])


def test_take_is_numpy_fancy_indexing(path: Path) -> None:
    store = written(path)
    rows = probs(N, K)
    order = np.random.default_rng(0).integers(0, N, 5000)
    batch = store.take(order)
    assert np.array_equal(batch, rows[order])
    assert batch.flags.writeable
    assert batch.ctypes.data % 64 == 0
    out = np.empty_like(batch)
    assert store.take(order, out) is out
    assert np.array_equal(out, rows[order])
    for bad in ([-1], [N], [0, 2**62]):
        with pytest.raises(UncommittedError):
            store.take(bad)
    for wrong in ([0.5], [[1]], ["a"], [True]):
        with pytest.raises(ArgumentError):
            store.take(wrong)


def test_a_store_is_the_dict_that_it_replaces(path: Path) -> None:
    store = written(path)
    rows = probs(N, K)
    assert list(store) == list(range(N))
    assert list(store.keys()) == list(range(N))
    assert [i for i, _ in store.items()] == list(range(N))
    assert all(np.array_equal(a, b) for a, b in zip(store.values(), rows, strict=True))
    assert 0 in store
    assert N not in store
    assert -1 not in store
    assert "0" not in store
    assert np.array_equal(store[np.int64(3)], rows[3])
    assert np.array_equal(store[10:20:3], rows[10:20:3])
    assert np.array_equal(np.asarray(store), rows)
    view = store.select([5, 3])
    assert len(view) == 2
    assert np.array_equal(view[1], rows[3])
    assert np.array_equal(view.take([1, 0]), rows[[3, 5]])


def test_a_store_pickles_as_its_path(path: Path) -> None:
    store = written(path)
    data = pickle.dumps(store)
    assert len(data) < 1000
    assert np.array_equal(pickle.loads(data)[7], store[7])
    assert pickle.loads(data) == store


@pytest.mark.parametrize("kind", ["log_probs", "logits"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("num_members", [None, 2])
def test_every_kind_and_dtype_reads_as_probabilities(
    path: Path, kind: str, dtype: str, num_members: int | None
) -> None:
    shape = (N, K) if num_members is None else (N, num_members, K)
    logits = np.random.default_rng(0).normal(5, 3, shape)
    expected = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    rows = logits if kind == "logits" else np.log(expected)
    store = written(path, rows, kind=kind, dtype=dtype, num_members=num_members, unit_rows=2048)
    assert store.verify() == []
    tolerance = {"float16": 5e-3, "bfloat16": 5e-2, "float32": 1e-5, "float64": 1e-12}[dtype]
    assert np.abs(store.take(np.arange(N)) - expected).max() < tolerance
    with pytest.raises(ArgumentError, match="column"):
        _ = store.array


def test_counts_stay_counts(path: Path) -> None:
    votes = np.random.default_rng(0).integers(0, 50, (N, K)) + np.eye(K, dtype=int)[0]
    store = written(path, votes, kind="counts", dtype="uint16", unit_rows=2048)
    assert np.array_equal(store.column("counts"), votes)
    assert np.allclose(store.take(np.arange(N)), votes / votes.sum(1, keepdims=True))
    assert store.verify() == []


def _data(path: Path, offset: int) -> tuple[int, Path]:
    """Where byte `offset` of the column `probs` lies: (offset, file)."""
    if path.suffix == ".h5":
        import h5py

        with h5py.File(path, "r") as file:
            return file["probs"].id.get_offset() + offset, path
    unit, inside = divmod(offset, 1024 * 12)
    shard = path / "probs" / "c" / str(unit) / "0"
    return inside, shard if shard.exists() else path / "probs" / f".tail.{unit}"


def test_a_store_of_a_newer_minor_version_is_read_and_not_resumed(tmp_path: Path) -> None:
    path = tmp_path / "store.zarr"
    written(path)
    metadata = path / "zarr.json"
    group = json.loads(metadata.read_text())
    group["attributes"]["fostore"] |= {"version": "1.7", "new": 1}
    del group["attributes"]["fostore"]["checksum"]
    metadata.write_text(json.dumps(group))
    assert np.array_equal(fostore.open(path).array, probs(N, K))
    with pytest.raises(UnsupportedError, match=r"1\.7"):
        fostore.create(path, exists="resume")


def test_a_reader_never_shows_rows_of_the_store_that_took_its_place(path: Path) -> None:
    early, mapped = written(path), fostore.open(path)
    rows = mapped[:]
    with new(path, exists="overwrite", num_classes=2 * K) as writer:
        writer.append(probs(N, 2 * K, seed=1))
    with pytest.raises(DamageError, match="taken the place"):
        early.take([0])
    assert [finding.rows for finding in early.verify("checksums")] != []
    assert np.array_equal(mapped[:], rows)


def test_a_relative_path_stays_where_it_was(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(path.parent)
    store = written(Path(path.name))
    elsewhere = path.parent / "elsewhere"
    elsewhere.mkdir()
    written(elsewhere / path.name, probs(N, K, seed=1))
    half = new(Path(f"half{path.suffix}"))
    half.append(probs(1100, K))
    monkeypatch.chdir(elsewhere)
    assert np.array_equal(store[:], probs(N, K))
    assert np.array_equal(pickle.loads(pickle.dumps(store))[:], probs(N, K))
    with half:
        half.append(probs(N - 1100, K, start=1100))
    assert fostore.open(path.with_name(half.path.name)).verify() == []


def test_an_extension_that_cannot_fit_leaves_the_store_sealed(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = written(path).digest()
    monkeypatch.setattr(disk, "free_bytes", lambda _: 1000)
    with pytest.raises(SpaceError):
        fostore.create(path, exists="resume", num_samples=2 * N)
    assert fostore.open(path).digest() == digest


def test_a_file_that_has_its_room_is_resumed_on_a_full_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "empty.h5"
    new(path).close()
    monkeypatch.setattr(disk, "free_bytes", lambda _: 0)
    with fostore.create(path, exists="resume") as writer:
        writer.append(probs(N, K))
    assert fostore.open(path).is_sealed


def test_an_overwrite_that_is_given_up_leaves_nothing_of_itself(path: Path) -> None:
    digest = written(path).digest()
    writer = new(path, exists="overwrite")
    writer.append(probs(10, K))
    writer.close()
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    assert fostore.open(path).digest() == digest


@pytest.mark.parametrize("moment", ["account", "uncommitted", "whole_units"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_an_interrupted_commit_loses_no_row_that_was_taken(
    path: Path, monkeypatch: pytest.MonkeyPatch, moment: str, when: str
) -> None:
    writer = new(path, commit_seconds=1e9)
    writer.append(probs(512, K))  # counted twice, they would make a whole unit
    real = getattr(Ledger, moment)

    def interrupted(*arguments: object) -> object:
        monkeypatch.setattr(Ledger, moment, real)
        if when == "after":
            real(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(Ledger, moment, interrupted)
    with pytest.raises(KeyboardInterrupt):
        writer.commit()
    writer.close()
    assert fostore.open(path).verify() == []
    assert np.array_equal(fostore.open(path)[:], probs(512, K))
    with fostore.create(path, exists="resume") as writer:
        assert writer.missing() == [(512, N)]
        writer.append(probs(N - 512, K, start=512))
    assert fostore.open(path).verify() == []


def test_a_commit_that_is_interrupted_while_its_job_starts_runs_once(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = new(path, commit_seconds=1e9)
    writer.append(probs(1200, K))
    writer.read(0, 1)  # writes what was gathered
    real, seal = ThreadPoolExecutor.submit, Ledger.seal

    def slow(ledger: Ledger, whole: Any) -> None:
        time.sleep(0.05)
        seal(ledger, whole)

    def interrupted(*arguments: Any) -> None:
        monkeypatch.setattr(ThreadPoolExecutor, "submit", real)
        real(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(Ledger, "seal", slow)
    monkeypatch.setattr(ThreadPoolExecutor, "submit", interrupted)
    with pytest.raises(KeyboardInterrupt):
        writer.commit()
    writer.close()
    assert np.array_equal(fostore.open(path)[:], probs(1200, K))
    assert fostore.open(path).verify() == []


@pytest.mark.parametrize(
    "out",
    [
        np.empty((2, K), np.float64),
        np.empty((3, K), np.float32),
        np.empty((2, 1), np.float32),
        np.frombuffer(bytes(8 * K), np.float32).reshape(2, K),
        [0.0],
    ],
)
@pytest.mark.parametrize("kind", ["probs", "log_probs"])
def test_an_out_that_does_not_fit_is_refused(path: Path, out: Any, kind: str) -> None:
    with pytest.raises(ArgumentError, match="out is"):
        written(path).take([0, 1], out, as_kind=kind)


@pytest.mark.parametrize("rows", [0.5, None, "rows"])
def test_a_scalar_is_no_batch(path: Path, rows: object) -> None:
    with new(path) as writer:
        with pytest.raises(RowError):
            writer.append(rows)
        writer.append(probs(N, K))


def test_damaged_ids_are_damage(path: Path) -> None:
    written(path, ids=[f"key-{i:04}" for i in range(N)])
    file = path / "sample_id" / "c" / "0" if path.suffix == ".zarr" else path
    data = file.read_bytes()
    file.write_bytes(data.replace(b"key-0007", b"key-\xff007"))
    with pytest.raises(DamageError, match="no text"):
        _ = fostore.open(path).ids
    assert any(finding.rows == (0, 1024) for finding in fostore.open(path).verify())


def test_a_closed_store_never_reads_another_file(tmp_path: Path) -> None:
    path = tmp_path / "closed.h5"
    store = written(path)
    store.close()
    for call in (lambda: store.take([0]), store.refresh, store.verify):
        with pytest.raises(ArgumentError, match="closed"):
            call()


def test_a_creation_that_fails_leaves_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(SpaceError):
        new(path)
    assert list(path.parent.iterdir()) == []
