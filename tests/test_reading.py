"""Rows out of a store: gathers, single rows and temperatures, whatever process or thread asks."""

from __future__ import annotations

import multiprocessing
import os
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fostore
from fostore.encodings import encoding_of, make_schema
from fostore.errors import ArgumentError, DamageError, UncommittedError
from fostore.files.json import save
from fostore.reading.store import Store
from fostore.schema.row import COUNTS, FLOATS
from support import SUFFIXES, probs

N, K = 2500, 4
KINDS = [(kind, dtype) for kind in ("probs", "log_probs", "logits") for dtype in FLOATS]
KINDS += [("counts", dtype) for dtype in COUNTS]
every_format = pytest.mark.parametrize("suffix", [*SUFFIXES, ".json"])
forks = pytest.mark.filterwarnings("ignore:.*fork")  # newer Pythons warn where threads were started


def rows_of(members: int | None = None) -> np.ndarray:
    if members is None:
        return probs(N, K)
    return np.stack([probs(N, K, seed=seed) for seed in range(members)], axis=1)


def stored(path: Path, rows: np.ndarray, **options: Any) -> Store:
    """An opened store of `rows`, in two units or more where the format has units."""
    if path.suffix == ".json":
        save(path, dict(enumerate(rows)))
        return fostore.open(path)
    members = rows.shape[1] if rows.ndim == 3 else None
    with fostore.create(
        path,
        num_samples=len(rows),
        num_classes=rows.shape[-1],
        num_members=members,
        unit_rows=1024 if rows[0].nbytes % 4 == 0 else None,
        **options,
    ) as writer:
        writer.append(rows)
    return fostore.open(path)


# ------------------------------------------------------------------ batches


@every_format
@pytest.mark.parametrize("members", [None, 3])
def test_a_batch_is_numpy_fancy_indexing(tmp_path: Path, suffix: str, members: int | None) -> None:
    rows = rows_of(members)
    store = stored(tmp_path / f"store{suffix}", rows)
    rng = np.random.default_rng(0)
    for wanted in (
        rng.integers(0, N, 700),
        np.arange(N)[::-1],
        rng.permutation(N).astype(np.int16),
        rng.integers(0, N, 9).astype(np.uint64),
        np.arange(N, dtype=">i8")[::7],
        [N - 1, 0, 0, 0],
        range(3, 90, 4),
        np.empty(0, np.int64),
        [],
    ):
        batch = store.take(wanted)
        expected = rows[np.asarray(wanted, np.int64)]
        np.testing.assert_array_equal(batch, expected)
        assert batch.dtype == np.float32
        assert batch.ctypes.data % 64 == 0
        assert batch.flags.writeable
        assert batch.flags.c_contiguous
        out = np.zeros_like(expected)
        assert store.take(wanted, out) is out
        np.testing.assert_array_equal(out, expected)
    np.testing.assert_array_equal(store.take([5])[0], store[5])
    np.testing.assert_array_equal(store.array, rows)
    batch[...] = 7
    np.testing.assert_array_equal(store.take([5]), rows[[5]])


@every_format
def test_rows_that_are_not_there_are_refused_by_name(tmp_path: Path, suffix: str) -> None:
    store = stored(tmp_path / f"store{suffix}", rows_of())
    for bad in (-1, N, 2**62, -(2**63)):
        for wanted in ([bad], np.array([0, bad, 1]), np.array([bad] * 3)[::-1]):
            with pytest.raises(UncommittedError, match=rf"row {bad}\b.*rows 0 to {N - 1}"):
                store.take(wanted)
        with pytest.raises(UncommittedError, match=rf"row {bad}\b"):
            _ = store[bad]
    with pytest.raises(UncommittedError):
        store.take(np.array([2**63 + 1], np.uint64))


@every_format
def test_one_row_is_fresh_and_the_callers_own(tmp_path: Path, suffix: str) -> None:
    rows = rows_of()
    store = stored(tmp_path / f"store{suffix}", rows)
    for _ in range(2):  # the first maps, the second is the short way
        for index in (7, np.int64(7), np.uint8(7), True):
            row = store[index]
            np.testing.assert_array_equal(row, rows[int(index)])
            row[:] = 0.5
        assert type(store[0]) is np.ndarray
        for bad in (-1, N):
            with pytest.raises(UncommittedError):
                _ = store[bad]
        for wrong in (1.0, "1", None):
            with pytest.raises(ArgumentError):
                _ = store[wrong]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_store_that_is_written_is_read_up_to_its_last_commit(tmp_path: Path, suffix: str) -> None:
    path, rows = tmp_path / f"store{suffix}", rows_of()
    with fostore.create(path, num_samples=N, num_classes=K, unit_rows=1024) as writer:
        writer.append(rows[:600])
        writer.commit()
        store = fostore.open(path)
        writer.append(rows[600:])
        for stop in (600, N):
            assert len(store) == stop
            np.testing.assert_array_equal(store.take(np.arange(stop)), rows[:stop])
            np.testing.assert_array_equal(store[stop - 1], rows[stop - 1])
            for wrong in (lambda row: store[row], lambda row: store.take([row])):
                with pytest.raises(UncommittedError, match=f"row {stop} was asked for"):
                    wrong(stop)
            writer.commit()
            store.refresh()


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_rows_behind_a_gap_are_read_and_those_inside_refused(tmp_path: Path, suffix: str) -> None:
    path, rows = tmp_path / f"store{suffix}", rows_of()
    with fostore.create(path, num_samples=N, num_classes=K, unit_rows=1024) as writer:
        writer.write(0, rows[:1024])
        writer.write(2048, rows[2048:])
        writer.commit()
        store = fostore.open(path)
        for _ in range(2):
            for row in (0, 1023, 2048, N - 1):
                np.testing.assert_array_equal(store[row], rows[row])
            for row in (1024, 2047):
                with pytest.raises(UncommittedError, match=f"row {row} was asked for"):
                    _ = store[row]
        np.testing.assert_array_equal(store.take([2048, 3]), rows[[2048, 3]])
        with pytest.raises(UncommittedError, match="row 1500"):
            store.take([2048, 1500])


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_closing_forgets_the_mapping_and_leaves_arrays_alone(tmp_path: Path, suffix: str) -> None:
    path, rows = tmp_path / f"store{suffix}", rows_of()
    store = stored(path, rows)
    array = store.array
    np.testing.assert_array_equal(store[1], rows[1])
    store.close()
    if suffix == ".h5":
        with pytest.raises(ArgumentError, match="closed"):
            _ = store[1]
    else:
        os.rename(path, tmp_path / "elsewhere.zarr")
        with pytest.raises(DamageError, match="there is no store at"):
            _ = store[1]
    np.testing.assert_array_equal(array, rows)


# ------------------------------------------------------------------ temperature


def tempered(logits: np.ndarray, temperature: float) -> np.ndarray:
    """The float64 oracle: log-probabilities at a temperature."""
    with np.errstate(over="ignore"):
        x = (logits - logits.max(-1, keepdims=True)) / temperature
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


@given(
    kind=st.sampled_from(KINDS),
    members=st.sampled_from([None, 2]),
    temperature=st.floats(0.05, 100).filter(lambda value: value != 1),
    seed=st.integers(0, 2**32 - 1),
)
def test_a_temperature_is_the_softmax_of_what_is_stored(
    kind: tuple[str, str], members: int | None, temperature: float, seed: int
) -> None:
    name, dtype = kind
    schema = make_schema(5, kind=name, dtype=dtype, num_members=members)
    encoding, rng = encoding_of(schema), np.random.default_rng(seed)
    logits = rng.normal(size=(6, *schema.row_shape)) * 3 + 20
    logits[0, ..., 2] = -np.inf
    level = np.log(np.exp(logits).sum(-1, keepdims=True))
    given_rows: np.ndarray = {"logits": logits, "log_probs": logits - level}.get(
        name, np.exp(logits - level)
    )
    if name == "counts":
        given_rows = rng.integers(0, 90, logits.shape).astype(dtype)
        given_rows[..., 0] += 1
        given_rows[0, ..., 2] = 0
    columns = encoding.encode(given_rows, schema, 0)
    wide = schema if dtype == "float64" else None
    with np.errstate(divide="ignore"):
        found = encoding.decode(columns, schema, "logits").astype(np.float64)
        if name in ("probs", "counts"):
            found = np.log(encoding.decode(columns, schema).astype(np.float64))
    oracle = tempered(found, temperature)
    error = (1e-13 if wide else 4e-6) * max(1, 1 / temperature) * 20
    for as_kind in ("probs", "log_probs", "logits"):
        got = encoding.decode(columns, schema, as_kind, temperature)
        assert got.dtype == (np.float64 if wide else np.float32)
        expected = {"probs": np.exp(oracle), "log_probs": oracle}.get(as_kind, found / temperature)
        np.testing.assert_allclose(got, expected, rtol=error, atol=error)
        absent = got[0, ..., 2]
        assert (absent == (0 if as_kind == "probs" else -np.inf)).all()


def test_cold_logits_do_not_pass_through_rounded_probabilities() -> None:
    """At temperature 10, logits that lie 200 apart still differ; their float32 probabilities do not."""
    for kind, columns in (("logits", [[0.0, -200.0]]), ("log_probs", [[0.0, -200.0]])):
        schema = make_schema(2, kind=kind)
        stored_columns = [np.float32(columns), np.float32([0.0])][: len(schema.content)]
        found = encoding_of(schema).decode(stored_columns, schema, "probs", 10.0)
        assert found[0, 1] == pytest.approx(np.exp(-20), rel=1e-5)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize(("kind", "dtype"), [("probs", "float16"), ("logits", "float32")])
def test_a_temperature_of_one_changes_no_bit(
    tmp_path: Path, suffix: str, kind: str, dtype: str
) -> None:
    store = stored(tmp_path / f"store{suffix}", rows_of(), kind=kind, dtype=dtype)
    for as_kind in ("probs", "log_probs", "logits"):
        plain = store.take([3, 1], as_kind=as_kind)
        for one in (None, 1, 1.0, np.float32(1)):
            same = store.take([3, 1], as_kind=as_kind, temperature=one)
            assert same.tobytes() == plain.tobytes()
            assert same.dtype == plain.dtype
    soft = store.take([3, 1], temperature=2)
    assert soft.dtype == np.float32
    assert not np.allclose(soft, store.take([3, 1]), atol=1e-3)
    np.testing.assert_allclose(soft.sum(-1), 1, rtol=1e-6)


def test_a_temperature_reaches_out_and_selections(tmp_path: Path) -> None:
    store = stored(tmp_path / "store.zarr", rows_of(2))
    soft = store.take([4, 9], temperature=3.0)
    np.testing.assert_allclose(soft, np.exp(tempered(np.log(rows_of(2)[[4, 9]]), 3.0)), rtol=1e-5)
    out = np.empty_like(soft)
    assert store.take([4, 9], out, temperature=3.0) is out
    np.testing.assert_array_equal(out, soft)
    np.testing.assert_array_equal(store.select([9, 4]).take([1, 0], temperature=3.0), soft)
    with pytest.raises(ArgumentError, match="out is"):
        store.take([4], out, temperature=3.0)


@pytest.mark.parametrize(
    "temperature", [0, -1.0, np.nan, np.inf, -np.inf, 1e-39, "2", True, [2.0], np.ones(2)]
)
def test_a_temperature_that_is_none_is_refused(tmp_path: Path, temperature: Any) -> None:
    store = stored(tmp_path / "store.zarr", rows_of())
    with pytest.raises(ArgumentError, match="temperature is"):
        store.take([0], temperature=temperature)


@pytest.mark.parametrize("temperature", [1.2e-38, 3e38])
def test_an_extreme_temperature_gives_its_limit(tmp_path: Path, temperature: float) -> None:
    rows = np.float32([[0.5, 0.3, 0.2, 0.0]])
    found = stored(tmp_path / "store.zarr", rows).take([0], temperature=temperature)
    limit = [1, 0, 0, 0] if temperature < 1 else [1 / 3, 1 / 3, 1 / 3, 0]
    np.testing.assert_allclose(found[0], limit, rtol=1e-6)


# ------------------------------------------------------------------ threads and processes


@pytest.mark.parametrize("num_classes", [4, 300])  # narrow rows, and rows that are touched first
def test_eight_threads_take_the_right_rows(tmp_path: Path, num_classes: int) -> None:
    rows = probs(3000, num_classes)
    store = stored(tmp_path / "store.zarr", rows)

    def work(seed: int) -> int:
        rng = np.random.default_rng(seed)
        out = np.empty((900, num_classes), np.float32)
        for turn in range(40):
            wanted = rng.integers(0, len(rows), 900)
            got = store.take(wanted, out if turn % 2 else None)
            np.testing.assert_array_equal(got, rows[wanted])
            np.testing.assert_array_equal(store[int(wanted[0])], rows[wanted[0]])
        return seed

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(work, range(8))) == list(range(8))


def _sums(store: Store, answers: Any) -> None:
    wanted = np.arange(len(store))[::-1]
    answers.put((store.take(wanted).tolist()[:3], store[3].tolist()))


@forks
@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_child_processes_read_the_right_rows(tmp_path: Path, method: str, suffix: str) -> None:
    if method not in multiprocessing.get_all_start_methods():
        return
    rows = rows_of()
    store = stored(tmp_path / f"store{suffix}", rows)
    np.testing.assert_array_equal(store.take(np.arange(N)), rows)  # mapped here
    assert len(pickle.dumps(store)) < 1000
    context: Any = multiprocessing.get_context(method)
    answers = context.Queue()
    child = context.Process(target=_sums, args=(store, answers))
    child.start()
    last, third = answers.get(timeout=60)
    child.join(60)
    assert child.exitcode == 0
    np.testing.assert_array_equal(np.float32(last), rows[[N - 1, N - 2, N - 3]])
    np.testing.assert_array_equal(np.float32(third), rows[3])
