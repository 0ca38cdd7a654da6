"""A cache of what came from behind a url: it saves requests, is shared and bounded, and never gives out wrong bytes."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

import fostore
from fostore.errors import ArgumentError
from fostore.places.cache import _SLICE, Cached
from fostore.places.memory import Memory
from fostore.places.place import Version
from test_place_reads import rows_of, store_at

DATA = np.random.default_rng(0).integers(0, 256, 1 << 20, np.uint8).tobytes()


def assert_bytes(cached: Cached, name: str, start: int, stop: int, expected: bytes) -> None:
    """Not by `assert ==`, which takes minutes to show where a million bytes differ."""
    ((data, _),) = cached.read_many([(name, start, stop)])
    is_same = data == expected[start:stop]
    assert is_same, f"{name} [{start}, {stop})"


class Counting(Memory):
    """Its versions are texts, as ETags are."""

    asked = 0
    looked = 0

    def read_many(self, ranges: Sequence[tuple[str, int, int]]) -> list[tuple[bytes, Version]]:
        self.asked += len(ranges)
        return [(data, str(version)) for data, version in super().read_many(ranges)]

    def version(self, name: str = "") -> Version:
        self.looked += 1
        version = super().version(name)
        return None if version is None else str(version)


@pytest.fixture
def place() -> Counting:
    return Counting("memory://cached", {"a": DATA, "b": b"bytes"})


def test_what_was_fetched_once_is_not_fetched_again(place: Counting, tmp_path: Path) -> None:
    ranges = [("a", 5, 200_000), ("b", 0, 5), ("a", 300_000, 300_040)]
    expected = [DATA[5:200_000], b"bytes", DATA[300_000:300_040]]
    for _ in range(2):
        cached = Cached(place, tmp_path / "c")
        assert [data for data, _ in cached.read_many(ranges)] == expected
        assert place.asked == 3
    # Any range in what is kept, across slices; what is not all there is fetched.
    for start, stop in ((5, 6), (65_000, 140_000), (199_999, 200_000), (70, 70)):
        assert_bytes(cached, "a", start, stop, DATA)
    assert place.asked == 3
    assert_bytes(cached, "a", 199_999, 200_001, DATA)
    assert place.asked == 4


def test_a_file_that_changed_is_fetched_anew(place: Counting, tmp_path: Path) -> None:
    Cached(place, tmp_path).read_many([("a", 0, 10)])
    place.files["a"] = b"x" * 100
    assert Cached(place, tmp_path).read_many([("a", 0, 10)])[0][0] == b"x" * 10
    assert place.asked == 2


@pytest.mark.parametrize(
    "harm", ["flip", "cut", "zeros", "gone", "list torn", "list garbage", "list flip", "list gone"]
)
def test_wrong_bytes_are_never_given_out(place: Counting, tmp_path: Path, harm: str) -> None:
    Cached(place, tmp_path).read_many([("a", 0, 300_000)])
    (folder,) = tmp_path.glob("*/*")
    path = folder / ("kept" if "list" in harm else "data")
    data = bytearray(path.read_bytes())
    if harm in ("flip", "list flip"):
        for at in range(0, len(data), 7):
            data[at] ^= 1
    data = {
        "cut": data[: len(data) // 2], "zeros": bytearray(len(data)), "list torn": data[:-5],
        "list garbage": bytearray(os.urandom(len(data))),
    }.get(harm, data)  # fmt: skip
    path.write_bytes(data)
    if "gone" in harm:
        path.unlink()
    for _ in range(2):  # it heals
        cached = Cached(place, tmp_path)
        for start, stop in ((0, 300_000), (1, 5), (299_000, 300_000), (_SLICE - 1, _SLICE + 1)):
            assert_bytes(cached, "a", start, stop, DATA)
    assert place.asked > 1
    asked = place.asked
    Cached(place, tmp_path).read_many([("a", 0, 300_000)])
    assert place.asked == asked


def test_a_time_alone_is_no_version_for_the_next_process(tmp_path: Path) -> None:
    place = Memory("memory://timed", {"a": DATA})  # whose versions are no text
    Cached(place, tmp_path / "c").read_many([("a", 0, 10)])
    assert not (tmp_path / "c").exists()


def test_a_cache_is_bounded(place: Counting, tmp_path: Path) -> None:
    place.files = {str(i): os.urandom(1 << 18) for i in range(40)}
    cached = Cached(place, tmp_path, max_bytes=2 << 20)
    for i in range(40):
        assert_bytes(cached, str(i), 0, 1 << 18, place.files[str(i)])
        held = sum(p.stat().st_blocks * 512 for p in tmp_path.rglob("data"))
        assert held <= 2.4 * (1 << 20)
    assert held > 1 << 20
    asked = place.asked
    cached.read_many([("39", 0, 1 << 18)])
    assert place.asked == asked
    cached.read_many([("0", 0, 1 << 18)])
    assert place.asked == asked + 1


def test_a_folder_that_cannot_be_written_costs_requests_alone(
    place: Counting, tmp_path: Path
) -> None:
    (tmp_path / "file").write_bytes(b"")
    cached = Cached(place, tmp_path / "file")
    for _ in range(2):
        assert cached.read_many([("a", 0, 10)])[0][0] == DATA[:10]


def _read(folder: Path, seed: int) -> None:
    place = Counting("memory://shared", {"a": DATA, "b": DATA[::-1]})
    place.version = lambda name="": f"v-{name}"  # type: ignore[method-assign]
    rng = np.random.default_rng(seed)
    for _ in range(300):
        cached = Cached(
            place, folder, max_bytes=1 << 20
        )  # so small that they make room under each other
        name, start = "ab"[rng.integers(2)], int(rng.integers(0, len(DATA)))
        stop = start + int(rng.integers(0, 200_000))
        assert_bytes(cached, name, start, stop, place.files[name])


def test_processes_and_threads_share_a_folder(tmp_path: Path) -> None:
    spawn = multiprocessing.get_context("spawn")
    processes = [spawn.Process(target=_read, args=(tmp_path, seed)) for seed in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    errors: list[BaseException] = []
    cached = Cached(Counting("memory://threads", {"a": DATA}), tmp_path / "t", max_bytes=1 << 20)

    def work(seed: int) -> None:
        rng = np.random.default_rng(seed)
        try:
            for _ in range(200):
                start = int(rng.integers(0, len(DATA)))
                stop = start + int(rng.integers(0, 100_000))
                assert_bytes(cached, "a", start, stop, DATA)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


def test_a_store_is_opened_through_a_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = store_at(tmp_path / "s.zarr", rows_of())
    place = Counting.of("memory://through.zarr", path)
    oracle = fostore.open(path)
    store = fostore.open(place, tmp_path / "cache")
    rows = np.random.default_rng(1).integers(0, len(oracle), 100)
    store.prefetch(rows)
    asked = place.asked
    np.testing.assert_array_equal(store.take(rows), oracle.take(rows))
    np.testing.assert_array_equal(store.take(rows[:1]), oracle.take(rows[:1]))
    again = pickle.loads(pickle.dumps(store))
    np.testing.assert_array_equal(again.take(rows), oracle.take(rows))
    assert place.asked == asked
    assert again == store
    oracle.prefetch(rows)  # on this machine there is nothing to do
    with pytest.raises(ArgumentError, match="cache_dir="):
        fostore.open(place).prefetch(rows)
    monkeypatch.setenv("FOSTORE_CACHE", str(tmp_path / "other"))
    monkeypatch.setenv("FOSTORE_CACHE_BYTES", "1000000")
    by_name = fostore.open("memory://through.zarr")
    assert isinstance(by_name.place, Cached)
    assert by_name.place.max_bytes == 1_000_000
    by_name.take([3])
    assert list((tmp_path / "other").glob("*/*/data"))
    monkeypatch.setenv("FOSTORE_CACHE_BYTES", "10G")
    with pytest.raises(ArgumentError, match="FOSTORE_CACHE_BYTES"):
        fostore.open("memory://through.zarr")
