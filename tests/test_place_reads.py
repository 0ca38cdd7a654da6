"""A store opened from any Place shows the same rows; what a place does wrong is said, and no row is wrong.

The oracle is the store on this machine. Faults of a place: short reads, errors, files that change under the reader.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path

import numpy as np
import pytest

import fostore
from fostore.errors import (
    DamageError,
    FormatError,
    FostoreError,
    StoreNotFoundError,
    UncommittedError,
    UnsafeError,
)
from fostore.evaluate import entropy, split
from fostore.formats import is_store
from fostore.formats.views.fetched import FetchedView
from fostore.places.local import Local
from fostore.places.memory import Memory
from fostore.places.names import place_of
from fostore.places.place import Place, Version
from fostore.schema.row import Array

N, K = 20_000, 10
SUFFIXES = [".zarr", ".h5", ".json"]


def rows_of(seed: int = 0, n: int = N) -> Array:
    drawn = np.random.default_rng(seed).random((n, K), np.float32) + 1e-3
    return drawn / drawn.sum(axis=1, keepdims=True)


def store_at(path: Path, rows: Array, *, sealed: bool = True) -> Path:
    source = path.with_suffix(".zarr")
    with fostore.create(
        source, num_samples=len(rows), num_classes=K, unit_rows=4096, meta={"a": [1]}
    ) as writer:
        writer.append(rows)
    if path != source:
        fostore.convert(source, path, **({} if path.suffix == ".json" else {"unit_rows": 4096}))
    return path


class Faulty(Memory):
    """A place in memory that goes wrong: `before` is called with the names that are about to be read."""

    before: Callable[[list[str]], None] = staticmethod(lambda names: None)
    cut = 0

    def read(self, name: str, limit: int) -> bytes:
        self.before([name])
        return super().read(name, limit)

    def read_many(self, ranges: Sequence[tuple[str, int, int]]) -> list[tuple[bytes, Version]]:
        self.before([name for name, _, _ in ranges])
        pieces = super().read_many(ranges)
        return [(data[: len(data) - self.cut], version) for data, version in pieces]


@pytest.fixture(params=SUFFIXES)
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    n = 500 if request.param == ".json" else N
    return store_at(tmp_path / f"s{request.param}", rows_of(n=n))


def place_in(path: Path, kind: str) -> Place:
    return Local(path) if kind == "local" else Memory.of(f"memory://{kind}{path.suffix}", path)


@pytest.mark.parametrize("kind", ["local", "memory"])
def test_a_sealed_store_is_the_same_in_every_place(path: Path, kind: str) -> None:
    place = place_in(path, kind)
    assert is_store(place)
    store, oracle = fostore.open(place), fostore.open(path)
    assert store.header == oracle.header
    assert (store.digest(), store.meta, len(store)) == (oracle.digest(), {"a": [1]}, len(oracle))
    rng = np.random.default_rng(1)
    for rows in (
        rng.integers(0, len(oracle), 300),
        np.arange(len(oracle)),
        np.array([5, 5, 0, len(oracle) - 1]),
        np.empty(0, np.int64),
    ):
        np.testing.assert_array_equal(store.take(rows), oracle.take(rows))
    out = np.empty((2, K), np.float32)
    assert store.take([7, 3], out) is out
    np.testing.assert_array_equal(out, oracle.take([7, 3]))
    np.testing.assert_array_equal(store[17], oracle[17])
    np.testing.assert_array_equal(store.array, oracle.array)
    np.testing.assert_array_equal(store.reader.block_hashes(), oracle.reader.block_hashes())
    assert store.verify() == []
    store.refresh()
    with pytest.raises(UncommittedError):
        store.take([len(oracle)])
    again = pickle.loads(pickle.dumps(store))
    assert again == store
    np.testing.assert_array_equal(again[3], oracle[3])
    store.close()


@pytest.mark.parametrize("kind", ["local", "memory"])
def test_a_store_in_progress_shows_what_is_committed_in_every_place(
    tmp_path: Path, kind: str
) -> None:
    rows = rows_of()
    path = tmp_path / "s.zarr"
    with fostore.create(path, num_samples=N, num_classes=K, unit_rows=4096) as writer:
        writer.append(rows[:9000])
        writer.commit()
        store = fostore.open(place_in(path, kind))
        np.testing.assert_array_equal(store[:], rows[:9000])
        assert not store.is_sealed
        assert store.verify() == []
        writer.append(rows[9000:])


def test_a_place_that_cannot_be_mapped_is_asked_for_what_was_asked_for(tmp_path: Path) -> None:
    path = store_at(tmp_path / "s.zarr", rows_of())
    asked: list[tuple[str, int, int]] = []

    class Noting(Memory):
        def read_many(self, ranges: Sequence[tuple[str, int, int]]) -> list[tuple[bytes, Version]]:
            asked.extend(ranges)
            return super().read_many(ranges)

    store = fostore.open(Noting.of("memory://noting.zarr", path))
    assert isinstance(store.reader.column(0), FetchedView)
    assert asked == []
    store.take([1, 3, 5000, 19_999])
    # Two rows near each other are one range; what lies in other units, or far away, is another.
    assert [(name, stop - start) for name, start, stop in asked] == [
        ("probs/c/0/0", 3 * K * 4),
        ("probs/c/1/0", K * 4),
        ("probs/c/4/0", K * 4),
    ]


@pytest.mark.parametrize("suffix", [".zarr", ".h5"])
def test_a_short_read_is_damage_and_no_row(tmp_path: Path, suffix: str) -> None:
    place = Faulty.of(f"memory://short{suffix}", store_at(tmp_path / f"s{suffix}", rows_of()))
    assert isinstance(place, Faulty)
    store = fostore.open(place)
    store.take([1])
    place.cut = 1
    with pytest.raises(DamageError, match="was cut, and with it the row") as caught:
        store.take([4, 2])
    assert caught.value.rows == ((2, 5),)
    place.cut = 0
    np.testing.assert_array_equal(store.take([4, 2]), rows_of()[[4, 2]])


@pytest.mark.parametrize("suffix", [".zarr", ".h5"])
def test_every_read_may_fail_and_the_next_attempt_is_right(tmp_path: Path, suffix: str) -> None:
    place = Faulty.of(f"memory://errors{suffix}", store_at(tmp_path / f"s{suffix}", rows_of()))
    assert isinstance(place, Faulty)
    reads, at = 0, -1

    def fail(names: list[str]) -> None:
        nonlocal reads
        reads += 1
        if reads == at:
            raise OSError(5, "Input/output error")

    place.before = fail  # type: ignore[method-assign]
    total, said = None, set()
    while total is None or at < total:
        at, reads = at + 1, 0
        try:
            store = fostore.open(place)
            found = store.take([3, 9000, 4])
            assert store.verify("checksums") == []
        except OSError as error:
            said.add(str(error))
        else:
            np.testing.assert_array_equal(found, rows_of()[[3, 9000, 4]])
            total = total or reads
    assert total is not None
    assert total > 5
    assert said == {"[Errno 5] Input/output error"}


@pytest.mark.parametrize("suffix", [".zarr", ".h5"])
def test_a_store_that_changes_under_the_reader_gives_no_row_of_the_other(
    tmp_path: Path, suffix: str
) -> None:
    rows, other = rows_of(), rows_of(1)
    name = f"s{suffix}"
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    ours = Memory.of("memory://x", store_at(tmp_path / "a" / name, rows)).files
    theirs = Memory.of("memory://x", store_at(tmp_path / "b" / name, other)).files
    for number in count():  # the whole store is replaced before the read of every number
        place, reads = Faulty(f"memory://changing{suffix}", ours), 0

        def change(names: list[str], place: Faulty = place, last: int = number) -> None:
            nonlocal reads
            reads += 1
            if reads == last + 1:
                place.files = dict(theirs)

        place.before = change  # type: ignore[method-assign]
        wanted = np.array([3, 19_000, 4])
        try:
            store = fostore.open(place)
            taken = store.take(wanted), store.take(wanted[::-1])
        except FostoreError:
            pass
        else:
            for truth in (rows, other):
                if (
                    store.header.id
                    == fostore.open(tmp_path / ("ab"[truth is other]) / name).header.id
                ):
                    np.testing.assert_array_equal(taken[0], truth[wanted])
                    np.testing.assert_array_equal(taken[1], truth[wanted[::-1]])
        if reads <= number:
            break
    assert number > 5


def test_a_file_that_changes_alone_is_refused(tmp_path: Path) -> None:
    place = Memory.of("memory://one.zarr", store_at(tmp_path / "s.zarr", rows_of()))
    store = fostore.open(place)
    store.take([1])
    place.files["probs/c/0/0"] = bytes(len(place.files["probs/c/0/0"]))
    with pytest.raises(DamageError, match="is not the file any more that it was"):
        store.take([1])
    del place.files["probs/c/0/0"]
    with pytest.raises(DamageError, match="row"):
        store.take([1])
    store.take([5000])


def test_a_file_that_changes_between_two_ranges_is_refused(tmp_path: Path) -> None:
    place = Faulty.of("memory://two.zarr", store_at(tmp_path / "s.zarr", rows_of()))
    store = fostore.open(place)
    read_many = place.read_many

    def change(ranges: Sequence[tuple[str, int, int]]) -> list[tuple[bytes, Version]]:
        first = read_many(ranges[:1])
        place.files["probs/c/0/0"] = bytes(len(place.files["probs/c/0/0"]))
        return [*first, *read_many(ranges[1:])]

    place.read_many = change  # type: ignore[method-assign]
    with pytest.raises(DamageError, match="is not the file any more that it was"):
        store.take([1, 4000])


def test_rows_are_converted_and_evaluated_from_a_place_that_is_not_local(tmp_path: Path) -> None:
    oracle = fostore.open(store_at(tmp_path / "s.zarr", rows_of()))
    store = fostore.open(Memory.of("memory://source.zarr", oracle.path))
    fostore.convert(store, tmp_path / "again.h5", progress=False)
    assert fostore.open(tmp_path / "again.h5").digest() == oracle.digest()
    fostore.convert(store, tmp_path / "again.h5", exists="resume", progress=False)
    assert entropy(store).tolist() == entropy(oracle).tolist()
    place = place_of(store.path)
    fostore.convert(place, tmp_path / "other.npy", allow_lossy=True, progress=False)
    np.testing.assert_array_equal(np.load(tmp_path / "other.npy"), rows_of())


def test_what_is_no_store_is_said_of_every_place() -> None:
    with pytest.raises(StoreNotFoundError, match="no store"):
        fostore.open(Memory("memory://empty.zarr", {}))
    with pytest.raises(FormatError, match=r"has no zarr\.json"):
        fostore.open(Memory("memory://other.zarr", {"a": b""}))
    with pytest.raises(StoreNotFoundError):
        fostore.open(Memory("memory://empty.h5", {}))
    with pytest.raises(FormatError):
        fostore.open(Memory("memory://other.h5", {"": b"abc"}))
    with pytest.raises(StoreNotFoundError, match="suffix"):
        fostore.open(Memory("memory://empty.txt", {}))
    with pytest.raises(UnsafeError, match="expected at most"):
        fostore.open(Memory("memory://large.zarr", {"zarr.json": bytes(17 << 20)}))


def test_a_store_is_split_by_its_url(tmp_path: Path) -> None:
    place = Memory.of("memory://split.zarr", store_at(tmp_path / "s.zarr", rows_of()))
    calibrate, test = split(place.url, [5, 7])
    assert (len(calibrate), len(test)) == (5, 7)
    np.testing.assert_array_equal(calibrate[0], rows_of()[calibrate.rows[0]])
