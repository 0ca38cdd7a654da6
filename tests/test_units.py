"""One store from many processes: whole units, each committed by one record, in a folder, in memory and on S3."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import random
import signal
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fostore
from fostore.errors import (
    ArgumentError,
    FormatError,
    IdentityError,
    RowError,
    StoreExistsError,
    StoreNotFoundError,
    UnsupportedError,
)
from fostore.formats.zarr.units import ZarrUnits
from fostore.places.local import Local
from fostore.places.memory import Memory
from fostore.places.place import Storage
from fostore.schema.ranges import Ranges
from fostore.writing.fidelity import sampled
from fostore.writing.units import create_shared
from support import plain_rows, probs
from test_publishing_targets import bucket, moto
from units_target import UNIT, UNITS, Fault, Faulty, K, N, fill, place_at, work

__all__ = ["bucket", "moto"]  # fixtures of another file
PLACES = ("folder", "memory", "s3")
DEEP = int(os.environ.get("FOSTORE_KILLS", "0"))
"""Kills of the long form (`make torture`); 0 is the short one."""


@pytest.fixture(params=PLACES)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    if request.param == "s3":
        pytest.importorskip("obstore")
        request.getfixturevalue("bucket")
        return place_at("s3://data/many.zarr")
    request.getfixturevalue("fast_disk")
    if request.param == "memory":
        return Memory("memory://many.zarr", {})
    return Local(tmp_path / "many.zarr")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same rows, written by one process with a journal."""
    path = tmp_path_factory.mktemp("whole") / "whole.zarr"
    with fostore.create(path, num_samples=N, num_classes=K, unit_rows=UNIT, ids="int64") as writer:
        writer.append(probs(N, K), ids=np.arange(N))
    return path


def files_of(place: Any) -> dict[str, bytes]:
    """Every file, headers left out, which hold times."""
    place = place_at(str(place)) if isinstance(place, str | Path) else place
    names = sorted(one.name for one in place.listed() if one.name != "zarr.json")
    return {name: place.read(name, 1 << 30) for name in names}


def assert_is(place: Any, whole: Path) -> None:
    """The store is sealed, and is to the byte what one process writes; nothing else lies about."""
    with fostore.open(place) as store:
        assert store.is_sealed
        assert store.digest() == fostore.open(whole).digest()
        np.testing.assert_array_equal(store[:], probs(N, K))
        np.testing.assert_array_equal(store.ids, np.arange(N))
        assert store.verify() == []
    assert files_of(place) == files_of(whole)


# Rows in, by shares


@pytest.mark.parametrize("shares", [1, 2, 5, 7])
def test_shares_of_any_number_make_the_store_that_one_process_makes(
    place: Storage, whole: Path, shares: int
) -> None:
    for i in reversed(range(shares)):
        fill(place, (i, shares))
    store = fostore.finish(place)
    assert store.is_sealed
    assert_is(place, whole)
    assert fostore.finish(place).digest() == store.digest()
    assert fostore.missing(place) == []
    assert list(fostore.open_units(place)) == []


def test_what_is_committed_is_read_before_the_end_and_what_is_not_is_refused(
    place: Storage,
) -> None:
    fill(place, (1, 3))
    with fostore.open(place) as store:
        assert not store.is_sealed
        assert store.missing() == [(0, UNIT), (3 * UNIT, N)] == fostore.missing(place)
        np.testing.assert_array_equal(store.take([2 * UNIT, UNIT]), probs(N, K)[[2 * UNIT, UNIT]])
        with pytest.raises(fostore.errors.UncommittedError, match="row 5 was asked for"):
            store.take([5])
        assert store.verify() == []
        fill(place, (0, 3))
        store.refresh()
        assert store.missing() == [(3 * UNIT, N)]
        assert store.verify() == []
    with pytest.raises(RowError, match=r"rows 3072 to 4499 of .* are missing: run once more"):
        fostore.finish(place)
    fill(place)
    assert fostore.finish(place).is_sealed


def test_a_plan_is_made_once_and_another_one_is_refused_by_what_differs(place: Storage) -> None:
    asked: dict[str, Any] = {"num_samples": N, "num_classes": K, "identity": {"model": {"a": 1}}}
    first = fostore.plan(place, **asked)
    assert fostore.plan(place, **asked).header.id == first.header.id
    assert (first.num_units, first.header.unit_rows) == (1, 8192)
    others = {"num_samples": N + 1, "num_classes": 4, "dtype": "float16", "unit_rows": UNIT}
    for name, value in others.items():
        with pytest.raises(IdentityError, match=f"{name}.*every share"):
            fostore.plan(place, **{**asked, name: value})
    with pytest.raises(IdentityError, match="model"):
        fostore.plan(place, **{**asked, "identity": {"model": {"a": 2}}})
    of_logits = Memory("memory://logits.zarr", {})
    fostore.plan(of_logits, num_samples=N, num_classes=K, kind="logits")
    fostore.plan(of_logits, num_samples=N)  # whatever is there
    with pytest.raises(IdentityError, match="kind"):
        fostore.plan(of_logits, num_samples=N, num_classes=K)
    with pytest.raises(StoreNotFoundError, match=r"no store .*fostore\.plan begins one"):
        fostore.open_units(
            place.below("other.zarr") if place.is_local else Memory("memory://o.zarr", {})
        )


def test_a_unit_pickles_and_is_written_as_a_whole(place: Storage, whole: Path) -> None:
    fostore.plan(place, num_samples=N, num_classes=K, unit_rows=UNIT, ids="int64")
    units = [pickle.loads(pickle.dumps(unit)) for unit in fostore.open_units(place)]
    assert [(unit.index, unit.start, unit.stop) for unit in units][-1] == (4, 4 * UNIT, N)
    with pytest.raises(RowError, match="a unit is written as a whole"):
        units[0].write(probs(5, K), ids=range(5))
    with pytest.raises(RowError, match="give ids="):
        units[0].write(probs(UNIT, K))
    for unit in units:
        unit.write(probs(len(unit), K, start=unit.start), ids=np.array(unit.rows))
    units[1].write(probs(UNIT, K, seed=9), ids=np.arange(UNIT))  # a row never changes
    fostore.finish(place)
    assert_is(place, whole)


@pytest.mark.parametrize("shard", [(3, 3), (-1, 2), (0,), "3", (0, 0), (0.5, 2)])
def test_a_share_that_is_none_is_refused(tmp_path: Path, shard: Any) -> None:
    fostore.plan(tmp_path / "x.zarr", num_samples=5, num_classes=2)
    with pytest.raises(ArgumentError, match="shard is"):
        fostore.open_units(tmp_path / "x.zarr", shard=shard)


def test_a_format_with_one_writer_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match=r"one writer.*fostore\.convert"):
        fostore.plan(tmp_path / "x.h5", num_samples=5, num_classes=2)
    with pytest.raises(UnsupportedError, match="cannot be written to"):
        fostore.plan("gs://bucket/x.zarr", num_samples=5, num_classes=2)
    with fostore.create(tmp_path / "x.zarr", num_samples=5, num_classes=2) as writer:
        writer.append(probs(3, 2))
        writer.commit()
        with pytest.raises(ArgumentError, match="begun by one writer"):
            fostore.open_units(tmp_path / "x.zarr")
        writer.append(probs(2, 2, start=3))
    assert fostore.finish(tmp_path / "x.zarr").is_sealed


def test_ids_that_two_units_share_are_refused_at_the_end(place: Storage) -> None:
    fostore.plan(place, num_samples=N, num_classes=K, unit_rows=UNIT, ids="int64")
    for i in range(2):  # each of which has seen its own ids alone
        for unit in fostore.open_units(place, shard=(i, 2)):
            ids = np.arange(unit.start, unit.stop)
            ids[7] = 11 if unit.index == 3 else ids[7]
            unit.write(probs(len(unit), K, start=unit.start), ids=ids)
    with pytest.raises(RowError, match="row 3079 has the id 11, which row 11 has already"):
        fostore.finish(place)
    assert not fostore.open(place).is_sealed


def test_rows_of_tokens_come_from_many_and_their_order_is_held_over_all(
    place: Storage, tmp_path: Path
) -> None:
    asked: dict[str, Any] = {
        "num_samples": N,
        "num_classes": K,
        "unit_rows": 2048,
        "rows": "tokens",
    }
    sequences, tokens = np.arange(N) // 10, np.arange(N) % K
    path = tmp_path / "whole.zarr"
    with fostore.create(path, **asked) as writer:
        writer.append(probs(N, K), sequences=sequences, tokens=tokens)
    fostore.plan(place, **asked, num_sequences=N // 10)
    for i in range(3):
        for unit in fostore.open_units(place, shard=(i, 3)):
            rows = slice(unit.start, unit.stop)
            unit.write(probs(N, K)[rows], sequences=sequences[rows], tokens=tokens[rows])
    store = fostore.finish(place)
    assert store.digest() == fostore.open(path).digest()
    assert files_of(place) == files_of(path)
    np.testing.assert_array_equal(store.offsets, np.arange(0, N + 1, 10))
    wrong = Memory("memory://wrong.zarr", {})
    fostore.plan(wrong, **asked)
    for i in range(2):  # within each share they never decrease
        for unit in fostore.open_units(wrong, shard=(i, 2)):
            rows = slice(unit.start, unit.stop)
            own = sequences[rows] if i else sequences[rows] + 300
            unit.write(probs(N, K)[rows], sequences=own, tokens=tokens[rows])
    with pytest.raises(RowError, match="sequences never decrease"):
        fostore.finish(wrong)


def test_what_rows_lose_is_known_at_the_end_though_the_finisher_reads_none(
    place: Storage, tmp_path: Path
) -> None:
    asked: dict[str, Any] = {
        "num_samples": N, "num_classes": 12, "unit_rows": 2048, "kind": "logits", "encoding": "topk", "k": 3,
    }  # fmt: skip
    logits = np.log(probs(N, 12))
    fostore.plan(place, **asked)
    for i in range(3):
        for unit in fostore.open_units(place, shard=(i, 3)):
            unit.write(logits[unit.start : unit.stop])
    store = fostore.finish(place)
    whole = tmp_path / "whole.zarr"
    with fostore.create(whole, **asked) as writer:
        writer.append(logits)
    fidelity = fostore.open(whole).header.fidelity
    assert store.digest() == fostore.open(whole).digest()
    assert fidelity is not None
    assert store.header.fidelity is not None
    for source, figures in fidelity.items():
        assert store.header.fidelity[source] == pytest.approx(figures)
        assert store.header.fidelity[source]["num_rows"] > 100


def test_no_unit_is_committed_of_which_a_row_loses_more_than_it_may(place: Storage) -> None:
    logits = np.zeros((N, 12))
    logits[:, 0] = 9
    asked: dict[str, Any] = {
        "num_samples": N, "num_classes": 12, "unit_rows": 2048, "kind": "logits",
        "encoding": {"name": "topk", "k": 3, "rule": "uniform", "tail_entropy": True}, "exists": "resume",
    }  # fmt: skip
    looked_at = set(sampled(0, N, N, (12,))[0].tolist())
    odd = next(row for row in range(2048, N) if row not in looked_at)
    logits[odd, 3:] = [8.0, *[-9.0] * 8]  # which only the columns say
    logits[odd, 1:3] = 8.5
    with (
        pytest.raises(RowError, match=rf"row {odd} loses .* max_kl is 0\.01"),
        create_shared(place, (0, 1), max_kl=0.01, **asked) as writer,
    ):
        writer.append(logits[:2048])
        writer.commit()
        writer.append(logits[2048:])
    assert len(fostore.open(place)) == 2048
    with create_shared(place, (0, 1), **asked) as writer:
        writer.append(logits[len(writer) :])
    assert fostore.finish(place).verify() == []


def test_a_finisher_reads_no_row_where_ids_only_grow(place: Storage, whole: Path) -> None:
    for i in range(3):
        fill(place, (i, 3))
    read: list[str] = []

    class Reading(Faulty):
        def read_many(self, ranges: Any) -> Any:
            read.extend(name for name, _, _ in ranges)
            return self._inner.read_many(ranges)

    fostore.finish(Reading(place, Fault()))  # type: ignore[arg-type]
    assert any(".fostore.units" in name for name in read)
    assert not [name for name in read if "/c/" in name]
    assert_is(place, whole)


# What others did meanwhile


def test_files_that_are_not_those_of_their_record_are_given_up_and_written_again(
    place: Storage, whole: Path
) -> None:
    fill(place)
    name = "probs/c/2/0"
    data = bytearray(place.read(name, 1 << 30))
    data[100] ^= 1
    assert place.put(name, bytes(data), place.version(name)) is not None
    (finding,) = fostore.open(place).verify("structure")
    assert finding.rows == (2 * UNIT, 3 * UNIT)
    with pytest.raises(RowError, match=r"rows 2048 to 3071 .* given up"):
        fostore.finish(place)
    assert fostore.missing(place) == [(2 * UNIT, 3 * UNIT)]
    fill(place)
    fostore.finish(place)
    assert_is(place, whole)


def test_hashes_that_another_attempt_left_are_mended(place: Storage, whole: Path) -> None:
    fill(place)
    name = "block_hashes/c/1/0/0"
    data = bytes(len(place.read(name, 1 << 20)))
    assert place.put(name, data, place.version(name)) is not None
    (finding,) = fostore.open(place).verify("structure")
    assert finding.severity == "warning"
    fostore.finish(place)
    assert_is(place, whole)


def test_a_copy_has_other_versions_and_loses_nothing(tmp_path: Path, whole: Path) -> None:
    import shutil

    fill(tmp_path / "a.zarr")
    shutil.copytree(tmp_path / "a.zarr", tmp_path / "b.zarr", copy_function=shutil.copyfile)
    fostore.finish(tmp_path / "b.zarr")
    assert_is(tmp_path / "b.zarr", whole)


class Stopped(Exception):
    """What stands for a kill in one process."""


class Dying(Faulty):
    """A storage that does so many operations, and no more."""

    def __init__(self, inner: Storage, operations: int) -> None:
        super().__init__(inner, Fault())
        self.left = operations

    def _call(self, function: Any, *arguments: Any) -> Any:
        self.left -= 1
        if self.left < 0:
            raise Stopped
        return function(*arguments)


@pytest.mark.parametrize("operations", range(4))
def test_what_an_attempt_left_that_did_not_commit_is_replaced(
    place: Storage, whole: Path, operations: int
) -> None:
    """With other bytes: a second run of a model on another device may differ in the last bit."""
    fostore.plan(place, num_samples=N, num_classes=K, unit_rows=UNIT, ids="int64")
    # The second one finds files of the first, and has more to do: marks, and what replaces them.
    for seed, left in ((1, operations), (2, 2 * operations)):
        with pytest.raises(Stopped):
            fill(Dying(place, left), (0, UNITS), seed)
    assert fostore.missing(place) == [(0, N)]
    fill(place)
    fostore.finish(place)
    assert_is(place, whole)


def test_a_record_that_was_copied_to_another_unit_commits_nothing(tmp_path: Path) -> None:
    path = tmp_path / "x.zarr"
    fostore.plan(path, num_samples=3 * UNIT, num_classes=K, unit_rows=UNIT)
    for unit in fostore.open_units(path, shard=(0, 3)):
        unit.write(probs(UNIT, K))
    (record,) = path.glob("probs/.fostore.units/*/0")
    copies = {record: record.with_name("2")}
    for name, copy in (
        ("probs/c/0/0", "probs/c/2/0"),
        ("block_hashes/c/0/0/0", "block_hashes/c/2/0/0"),
    ):
        copies[path / name] = path / copy
    for file, copy in copies.items():
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(file.read_bytes())
    for unit in fostore.open_units(path, shard=(1, 3)):
        unit.write(probs(UNIT, K, start=unit.start))
    with pytest.raises(RowError, match="rows 2048 to 3071"):
        fostore.finish(path)
    with fostore.open(path) as store:
        assert not store.is_sealed


class Interrupted(Faulty):
    """A storage that lets others go first, once, before its operation of a number: so long is this process asleep."""

    def __init__(self, inner: Storage, at: int, others: Any) -> None:
        super().__init__(inner, Fault())
        self.at, self.others = at, others

    def _call(self, function: Any, *arguments: Any) -> Any:
        is_now, self.calls = self.calls == self.at, self.calls + 1
        if is_now:
            self.others()
        return function(*arguments)


@pytest.mark.parametrize("at", range(8))
def test_who_replaced_what_another_left_and_wakes_up_after_the_seal_changes_nothing(
    place: Storage, whole: Path, at: int
) -> None:
    """Three runs with other bytes: one was killed, the next fell asleep on its files, the third has all to the end."""

    def others() -> None:
        fill(place)
        fostore.finish(place)

    with pytest.raises(Stopped):
        fill(Dying(place, 4), (0, UNITS), 1)
    late = Interrupted(place, at, others)
    fill(late, (0, UNITS), 2)
    assert late.calls > at
    fostore.finish(place)
    assert_is(place, whole)


def test_a_finisher_that_is_overtaken_finds_the_store_finished(place: Storage, whole: Path) -> None:
    fill(place)

    class Overtaken(Faulty):
        def size(self, name: str) -> int | None:
            if not self.calls and ".fostore.units" in name:
                self.calls = 1
                fostore.finish(place)  # whose records go while this one looks for them
            return self._inner.size(name)

    late = Overtaken(place, Fault())
    assert fostore.finish(late).is_sealed  # type: ignore[arg-type]
    assert late.calls
    assert_is(place, whole)


def test_a_file_without_a_name_that_a_finisher_removed_was_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fostore import disk

    link = disk.link
    monkeypatch.setattr(disk, "link", lambda a, b: (a.unlink(), link(a, b))[1])
    assert Local(tmp_path / "x.zarr").put("zarr.json", b"{}") is None


class Overtaken(Faulty):
    """A storage whose store is finished by others once its header was read, and before its records are looked up."""

    def size(self, name: str) -> int | None:
        if ".fostore.units" in name:
            fostore.finish(self._inner)
        return self._inner.size(name)

    def listed(self, folder: str = "") -> Any:
        if ".fostore.units" in folder:
            fostore.finish(self._inner)
        return self._inner.listed(folder)


@pytest.mark.parametrize("listed_units", [0, 1000])
def test_who_finishes_while_another_does_finds_no_row_missing(
    place: Storage, whole: Path, monkeypatch: pytest.MonkeyPatch, listed_units: int
) -> None:
    """The records are removed at the end: who has seen the store before, and looks for them then, finds none."""
    monkeypatch.setattr("fostore.formats.zarr.records._LISTED_UNITS", listed_units)
    fill(place)
    with closing(ZarrUnits(Overtaken(place, Fault()))) as units:
        assert units.header.sealed
        assert units.sealed == Ranges.of((0, N))
    assert_is(place, whole)


def test_an_older_store_of_the_path_commits_nothing_to_the_new_one(
    place: Storage, whole: Path
) -> None:
    fostore.plan(place, num_samples=N, num_classes=K, unit_rows=UNIT, ids="int64")
    units = fostore.open_units(place)
    late = next(units)
    place.delete([one.name for one in list(place.listed())])
    fill(place, (1, 2))
    with pytest.raises(FormatError, match="another store has taken the place"):
        place.put("probs/c/0/0", b"left by somebody")
        late.write(probs(UNIT, K, seed=5), ids=np.arange(UNIT))
    units.close()
    fill(place)
    fostore.finish(place)
    assert_is(place, whole)


# One process, as `create` has it


@pytest.fixture
def behind(request: pytest.FixtureRequest) -> str:
    """The url of a store that is not there yet."""
    pytest.importorskip("obstore")
    request.getfixturevalue("bucket")
    return "s3://data/one.zarr"


def test_one_process_writes_to_s3_as_to_a_folder(behind: str, whole: Path) -> None:
    asked: dict[str, Any] = {"num_samples": N, "num_classes": K, "unit_rows": UNIT, "ids": "int64"}
    rows = probs(N, K)
    with pytest.raises(RuntimeError, match="stop"), fostore.create(behind, **asked) as writer:
        for start in range(0, 3000, 100):
            writer.append(rows[start : start + 100], ids=np.arange(start, start + 100))
        np.testing.assert_array_equal(writer.read(2900, 3000), rows[2900:3000])
        writer.commit()
        assert len(writer.committed) == 2 * UNIT, "what is committed is whole units"
        raise RuntimeError("stop")
    assert fostore.open(behind).missing() == [(2 * UNIT, N)]
    with pytest.raises(StoreExistsError, match="exists='resume' goes on with it"):
        fostore.create(behind, **asked)
    with pytest.raises(IdentityError, match="dtype"):
        fostore.create(behind, **{**asked, "dtype": "float16"}, exists="resume")
    with pytest.raises(ArgumentError, match="cannot be replaced at one moment"):
        fostore.create(behind, **asked, exists="overwrite")
    with fostore.create(behind, **asked, meta={"a": 1}, exists="resume") as writer:
        assert writer.missing() == [(2 * UNIT, N)]
        writer.append(rows[2 * UNIT :], ids=np.arange(2 * UNIT, N))
        writer.update_meta({"b": 2})
    assert_is(behind, whole)
    assert dict(fostore.open(behind).meta) == {"a": 1, "b": 2}
    with fostore.create(behind, exists="resume") as writer:  # whole already
        writer.update_meta({"c": 3})
    assert_is(behind, whole)
    with pytest.raises(IdentityError, match="num_samples"):
        fostore.create(behind, num_samples=N + 5, exists="resume")


def test_a_stream_of_unknown_length_does_not_go_to_s3(behind: str) -> None:
    with pytest.raises(ArgumentError, match="needs num_samples"):
        fostore.create(behind, num_classes=K)


def test_rows_out_of_order_wait_in_memory_and_too_many_are_refused(
    behind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fostore.formats.zarr.units._OPEN_BYTES", 40_000)
    refused = pytest.raises(ArgumentError, match="begun and none is whole")
    with refused, fostore.create(behind, num_samples=N, num_classes=K, unit_rows=UNIT) as writer:
        for start in (500, 2 * UNIT, UNIT, 0):
            writer.write(start, probs(100, K, start=start))
        np.testing.assert_array_equal(writer.read(500, 600), probs(100, K, start=500))
        for unit in (3, 4, 3):
            writer.write(unit * UNIT + writer.committed.prefix, probs(100, K))
            writer.commit()
    assert fostore.missing(behind) == [(0, N)]


# Processes that are killed, and that wake up late


@pytest.fixture(scope="module")
def start() -> Any:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["units_target", "fostore.writing.units", "fostore.formats.zarr.units"]
    )

    def start(*arguments: Any) -> Any:
        environment = {key: value for key, value in os.environ.items() if key.startswith("AWS_")}
        process = context.Process(target=work, args=(environment, *arguments))
        process.start()
        return process

    return start


@pytest.fixture(params=["folder", "s3"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "folder":
        return str(tmp_path / "many.zarr")
    pytest.importorskip("obstore")
    request.getfixturevalue("bucket")
    return "s3://data/many.zarr"


def ended(*processes: Any) -> list[int]:
    for process in processes:
        process.join(60)
    return [process.exitcode for process in processes]


OPERATIONS = 1 + 4 * UNITS + 5
"""Of one process that does all: plan, shards of two columns, hashes and record of each unit, finish."""


def test_a_kill_at_any_operation_costs_one_unit_and_nothing_else(
    url: str, whole: Path, start: Any
) -> None:
    # A kill after one operation leaves what a kill before the next one does.
    cases = [*((at, False) for at in range(OPERATIONS)), (OPERATIONS - 1, True)]
    if not DEEP:  # the first unit, the last, and all of the end
        cases = [case for case in cases if not 6 <= case[0] < 1 + 4 * (UNITS - 1)]
    for number, (at, after) in enumerate(cases):
        path = url.replace("many", f"many{number}")
        assert ended(start(path, None, Fault(at, after), True)) == [-signal.SIGKILL], (at, after)
        if at >= 1:
            left = sum(b - a for a, b in fostore.missing(path))
            assert left <= N - UNIT * max(min((at - 1) // 4, UNITS - 1), 0)
        fill(path)
        fostore.finish(path)
        assert_is(path, whole)


@pytest.mark.parametrize("seed", range(4 + DEEP))
def test_several_are_killed_and_others_go_on_with_another_number(
    url: str, whole: Path, start: Any, seed: int
) -> None:
    chance = random.Random(seed)
    for _ in range(2):
        n = chance.randint(2, 5)
        faults = [
            Fault(chance.randrange(6 + 4 * UNITS // n), chance.random() < 0.5)
            if chance.random() < 0.6
            else Fault()
            for _ in range(n)
        ]
        shared = chance.random() < 0.3  # all of them write all units: lost races
        processes = [
            start(url, None if shared else (i, n), fault) for i, fault in enumerate(faults)
        ]
        assert all(code in (0, 1, -signal.SIGKILL) for code in ended(*processes))
    fill(url)
    finishers = [start(url, None, Fault(), True) for _ in range(2)]
    assert ended(*finishers) == [0, 0]
    assert_is(url, whole)


@pytest.mark.parametrize("at", [1, 2, 3, 4, 21, 22, 23, 24])
def test_who_wakes_up_after_the_seal_changes_nothing(
    url: str, whole: Path, start: Any, at: int
) -> None:
    """It stops before it writes the shards, the hashes, the record of the first unit; or while it finishes."""
    late = start(url, None, Fault(at, False, signal.SIGSTOP), True, 0 if at > 20 else 7)
    deadline = time.monotonic() + 30
    while not _is_stopped(late.pid):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    fill(url)
    fostore.finish(url)
    os.kill(late.pid, signal.SIGCONT)
    assert ended(late)[0] in (0, 1)
    fostore.finish(url)  # what it left of a record of its own goes
    assert_is(url, whole)
    if "://" not in url:
        np.testing.assert_array_equal(plain_rows(Path(url)), probs(N, K))


def _is_stopped(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


# Conversion, behind a url


def test_a_store_is_converted_to_s3_and_an_interrupted_conversion_goes_on(
    behind: str, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fostore.places.remote import Remote

    put, left = Remote.put, [9]

    def dying(self: Remote, *arguments: Any) -> Any:
        left[0] -= 1
        if left[0] < 0:
            raise Stopped
        return put(self, *arguments)

    options: dict[str, Any] = {"unit_rows": UNIT, "progress": False}
    with monkeypatch.context() as patch:
        patch.setattr(Remote, "put", dying)
        with pytest.raises(Stopped):
            fostore.convert(whole, behind, **options)
    assert fostore.missing(behind) == [(2 * UNIT, N)]
    other = tmp_path / "other.zarr"
    with fostore.create(other, num_samples=N, num_classes=K, ids="int64") as writer:
        writer.append(probs(N, K, seed=1), ids=np.arange(N))
    with pytest.raises(StoreExistsError, match="was begun with other rows"):
        fostore.convert(other, behind, **options)
    receipt = fostore.convert(whole, behind, **options)
    assert receipt.destination_digest == fostore.open(whole).digest()
    assert_is(behind, whole)
    assert fostore.convert(whole, behind, exists="resume", **options).verified == "full"
    for exists in ("fail", "overwrite"):
        with pytest.raises((StoreExistsError, ArgumentError), match="nothing is replaced"):
            fostore.convert(other, behind, exists=exists, **options)
    with pytest.raises(UnsupportedError, match=r"only \.zarr stores"):
        fostore.convert(whole, "s3://data/x.csv", allow_lossy=True, progress=False)
    fostore.convert(behind, tmp_path / "back.h5", progress=False)
    assert fostore.open(tmp_path / "back.h5").digest() == receipt.destination_digest
