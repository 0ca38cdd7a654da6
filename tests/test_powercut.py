"""Power cuts: whatever a disk forgets, what fostore promised is there, nothing is wrong, and the work goes on.

Each test records one run, cuts it at some of its calls, and looks at what the disk then holds: with the library,
with plain readers, and by going on to the end, which must give what an undisturbed run gives.
`FOSTORE_POWER_CUTS` says how many states each test looks at.
"""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import fostore
from powercut import Cut, Promise, Recorder, Write, applied, cut
from support import SUFFIXES, probs
from work import (
    SEALED,
    WORK,
    First,
    K,
    N,
    Told,
    Work,
    assert_nothing_is_left,
    assert_promises_hold,
    begin,
    undisturbed,
)

STATES = int(os.environ.get("FOSTORE_POWER_CUTS", "30"))
CUTS = [
    Cut(names, lost)
    for names in ("ordered", "apart")
    for lost in ("all", "nothing", "some", "some")
]


@pytest.mark.parametrize("work", WORK, ids=lambda work: work.__name__)
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_power_cut_takes_nothing_that_was_promised(
    tmp_path: Path, suffix: str, work: type[Work], fast_disk_after: Callable[[], None]
) -> None:
    if suffix not in work.suffixes:
        pytest.skip("the format has one writer")
    chance = random.Random(f"{work.__name__}{suffix}")
    name = f"a/b/s{suffix}" if work is First else f"s{suffix}"
    run, first = recorded(tmp_path / "run", name, work())
    expected = undisturbed(tmp_path / f"whole{suffix}")
    fast_disk_after()
    for number, (at, told, how) in enumerate(some_cuts(run, first, chance)):
        place = tmp_path / f"cut{number}"
        cut(run, at, how, chance).lay(place)
        try:
            assert_promises_hold(place / name, told)
            if number % 3 == 0:  # and the power fails again while the work is taken up
                place = cut_again(place, name, work(), told, chance)
            work().again(place / name)
            assert_promises_hold(place / name, replace(SEALED, noted=told.noted))
            assert fostore.open(place / name).verify() == []
            assert fostore.open(place / name).digest() == expected
            assert_nothing_is_left(place / name)
        except Exception as error:
            error.add_note(f"cut after {at} of {len(run.log)} calls, {how}, {told}")
            raise
        shutil.rmtree(place)


class InSequences(Work):
    """Sequences of 7 tokens, the last ones without any; grows to these from a sealed store of fewer."""

    SEALED_AT, SEQUENCES = 700, 340

    def begin(self, path: Path, num_samples: int, num_sequences: int) -> fostore.Writer:
        return begin(
            path,
            num_samples,
            rows="tokens",
            num_sequences=num_sequences,
            unit_rows=2048,
            exists="resume",
        )

    def fill(self, writer: fostore.Writer, stops: list[int]) -> Iterator[int]:
        for stop in stops:
            rows = np.arange(len(writer), stop)
            new = probs(len(rows), K, start=len(writer))
            writer.append(new, sequences=rows // 7, tokens=rows % K)
            writer.commit()
            yield stop

    def before(self, path: Path) -> Told:
        with self.begin(path, self.SEALED_AT, 120) as writer:
            list(self.fill(writer, [self.SEALED_AT]))
        return Told(((0, self.SEALED_AT),))

    def run(self, path: Path, tell: Callable[[Told], None]) -> None:
        with self.begin(path, N, self.SEQUENCES) as writer:
            for stop in self.fill(writer, [1400, N]):
                tell(Told(((0, stop),)))
        tell(SEALED)

    def again(self, path: Path) -> None:
        with self.begin(path, N, self.SEQUENCES) as writer:
            if writer.missing():
                list(self.fill(writer, [N]))


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_power_cut_leaves_sequences_where_they_begin(
    tmp_path: Path, suffix: str, fast_disk_after: Callable[[], None]
) -> None:
    """Whatever is sealed has its offsets, in the file and of the rows that are there."""
    chance, work, name = random.Random(suffix), InSequences(), f"s{suffix}"
    run, first = recorded(tmp_path / "run", name, work)
    work.again(tmp_path / f"whole{suffix}")
    expected = fostore.open(tmp_path / f"whole{suffix}").digest()
    fast_disk_after()
    for number, (at, told, how) in enumerate(some_cuts(run, first, chance)):
        place = tmp_path / f"cut{number}"
        cut(run, at, how, chance).lay(place)
        try:
            assert_promises_hold(place / name, told)
            with fostore.open(place / name) as store:
                rows = np.arange(len(store))
                numbers = np.repeat(np.arange(len(store.sequences)), store.sequences.lengths)
                np.testing.assert_array_equal(numbers, rows // 7)
                assert not store.is_sealed or store.reader.offsets() is not None
            work.again(place / name)
            with fostore.open(place / name) as store:
                assert (store.verify(), store.digest()) == ([], expected)
                assert store.reader.offsets() is not None
            assert_nothing_is_left(place / name)
        except Exception as error:
            error.add_note(f"cut after {at} of {len(run.log)} calls, {how}, {told}")
            raise
        shutil.rmtree(place)


@pytest.mark.parametrize(
    "suffix", [".json", ".jsonl", ".npy", ".npz", ".csv", ".safetensors", ".parquet"]
)
def test_a_file_is_whole_or_not_there_and_stays_once_it_was_promised(
    tmp_path: Path, suffix: str, fast_disk_after: Callable[[], None]
) -> None:
    with begin(tmp_path / "source.zarr") as writer:
        writer.append(probs(N, K))
    (tmp_path / "run").mkdir()
    with Recorder(tmp_path / "run") as run:
        path = tmp_path / "run" / "a" / f"out{suffix}"
        fostore.convert(tmp_path / "source.zarr", path, progress=False, allow_lossy=True)
        run.promise("written")
    run.check()
    fast_disk_after()
    whole = path.read_bytes()
    chance = random.Random(suffix)
    ends = [*(chance.randrange(len(run.log)) for _ in range(STATES)), *[len(run.log)] * len(CUTS)]
    for end, how in zip(ends, CUTS * len(ends), strict=False):
        left = dict(cut(run, end, how, chance).paths())
        found = left.get(f"a/out{suffix}")
        assert found == whole or (found is None and end < len(run.log)), f"{end}, {how}"


def test_the_recorder_sees_what_is_lost_where_nothing_is_synced(tmp_path: Path) -> None:
    """The net itself: data that was renamed into place and never synced is lost, or torn."""
    (tmp_path / "run").mkdir()
    with Recorder(tmp_path / "run") as run:
        (tmp_path / "run" / "d").mkdir()
        fd = os.open(tmp_path / "run" / "t", os.O_RDWR | os.O_CREAT)
        os.pwrite(fd, b"x" * 2000, 0)
        os.close(fd)
        os.replace(tmp_path / "run" / "t", tmp_path / "run" / "d" / "f")
    run.check()
    chance = random.Random(0)

    def left(names: str, lost: str) -> dict[str, bytes | None]:
        return dict(cut(run, len(run.log), Cut(names, lost), chance).paths())

    assert left("ordered", "all") == {}
    assert left("ordered", "nothing") == {"d": None, "d/f": b"x" * 2000}
    found = {state.get("d/f") for state in (left("apart", "some") for _ in range(200))}
    assert {None, b"", b"x" * 2000} <= found
    assert len(found) > 5  # torn in several ways


def test_a_name_is_no_more_durable_than_its_folder(tmp_path: Path) -> None:
    """A file in a folder whose own name was not synced is lost with it, where each folder is apart."""
    (tmp_path / "run").mkdir()
    with Recorder(tmp_path / "run") as run:
        (tmp_path / "run" / "d").mkdir()
        fd = os.open(tmp_path / "run" / "d" / "f", os.O_RDWR | os.O_CREAT)
        os.fsync(fd)
        os.close(fd)
        fd = os.open(tmp_path / "run" / "d", os.O_RDONLY)
        os.fsync(fd)
        os.close(fd)
    chance = random.Random(0)
    assert dict(cut(run, len(run.log), Cut("apart", "all"), chance).paths()) == {}
    assert dict(cut(run, len(run.log), Cut("ordered", "all"), chance).paths()) == {
        "d": None,
        "d/f": b"",
    }


def test_writes_extend_and_cut_a_file() -> None:
    assert applied(b"abc", Write(1, 5, b"xy")) == b"abc\0\0xy"
    assert applied(b"abcdef", Write(1, 2, b"xy")) == b"abxyef"
    assert applied(b"abcdef", Write(1, 2, None)) == b"ab"


@pytest.fixture
def fast_disk_after(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Call it when recording is done: what syncs do is then known, and waiting for them is waste."""

    def quicken() -> None:
        for name in ("fsync", "fdatasync"):
            monkeypatch.setattr(os, name, lambda _: None)

    return quicken


def recorded(root: Path, name: str, work: Work) -> tuple[Recorder, Told]:
    """The work, done once and recorded; and what was promised before it."""
    root.mkdir()
    first = work.before(root / name)
    with Recorder(root) as run:
        work.run(root / name, run.promise)
    run.check()
    return run, first


def some_cuts(run: Recorder, first: Told, chance: random.Random) -> Iterator[tuple[int, Told, Cut]]:
    """Instants of a run, what was promised by then, and how the disk forgets: all of them, or `STATES`."""
    every = [(at, how) for at in range(len(run.log) + 1) for how in CUTS]
    for at, how in sorted(chance.sample(every, min(STATES, len(every))), key=lambda one: one[0]):
        told = [event.said for event in run.log[:at] if isinstance(event, Promise)]
        yield at, told[-1] if told else first, how


def cut_again(place: Path, name: str, work: Work, told: Told, chance: random.Random) -> Path:
    """The work is taken up where `place` was left, and cut once more."""
    with Recorder(place) as run:
        work.again(place / name)
    second = place.with_name(f"{place.name}-again")
    at = chance.randrange(len(run.log) + 1)
    cut(run, at, chance.choice(CUTS), chance).lay(second)
    shutil.rmtree(place)
    now = fostore.open(second / name) if (second / name).exists() else None
    replaced = told.old is not None and now is not None and now.num_samples != told.old
    assert_promises_hold(second / name, Told() if replaced else told)
    return second
