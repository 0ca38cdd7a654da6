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
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

import fostore
from fostore.errors import StoreNotFoundError
from powercut import Cut, Promise, Recorder, Write, applied, cut
from support import SUFFIXES, plain_rows, probs

N, K, UNIT = 2300, 3, 1024
STATES = int(os.environ.get("FOSTORE_POWER_CUTS", "30"))
CUTS = [
    Cut(names, lost)
    for names in ("ordered", "apart")
    for lost in ("all", "nothing", "some", "some")
]


@dataclass(frozen=True)
class Told:
    """What the caller knows: rows that are committed, of which seed; whether the store is sealed."""

    rows: tuple[tuple[int, int], ...] = ()
    sealed: bool = False
    seed: int = 0
    old: int | None = None
    """Rows of an older store (of seed 7) that stays until the new one takes its place."""
    noted: bool = False


Tell = Callable[[Told], None]


def begin(path: Path, num_samples: int | None = N, **options: object) -> fostore.Writer:
    given = {"num_samples": num_samples, "num_classes": K, "unit_rows": UNIT, "commit_seconds": 1e9}
    return fostore.create(path, **{**given, **options})  # type: ignore[arg-type]


def fill(writer: fostore.Writer, stops: list[int], tell: Tell) -> None:
    """Append up to each of `stops`, commit, and say so."""
    for stop in stops:
        start = len(writer)
        writer.append(probs(stop - start, K, start=start))
        writer.commit()
        tell(Told(tuple(writer.committed)))


SEALED = Told(((0, N),), sealed=True)


class Work:
    """A piece of work that is cut: what was there before, the work itself, and how one goes on with it."""

    def before(self, path: Path) -> Told:
        return Told()

    def run(self, path: Path, tell: Tell) -> None:
        raise NotImplementedError

    def again(self, path: Path) -> None:
        with begin(path, exists="resume") as writer:
            for start, stop in writer.missing():
                writer.write(start, probs(stop - start, K, start=start))


class First(Work):
    """A store in folders that do not exist yet."""

    def run(self, path: Path, tell: Tell) -> None:
        with begin(path) as writer:
            fill(writer, [300, 1000, 1024, 1900, N], tell)
        tell(SEALED)


class InBackground(Work):
    """Commits that go on in the other thread while rows come."""

    def run(self, path: Path, tell: Tell) -> None:
        with begin(path, commit_seconds=0) as writer:
            for stop in (100, 700, 1300, 2100, N):
                start = len(writer)
                writer.append(probs(stop - start, K, start=start))
                tell(Told(tuple(writer.committed)))
        tell(SEALED)


class Scattered(Work):
    """Rows in any order, units that fill up from several sides."""

    def run(self, path: Path, tell: Tell) -> None:
        with begin(path) as writer:
            for start, stop in [
                (1024, 1500),
                (0, 200),
                (2048, N),
                (1500, 2048),
                (600, 1024),
                (200, 600),
            ]:
                writer.write(start, probs(stop - start, K, start=start))
                writer.commit()
                tell(Told(tuple(writer.committed)))
        tell(SEALED)


class Resumed(Work):
    """A store that goes on."""

    def before(self, path: Path) -> Told:
        with begin(path) as writer:
            fill(writer, [300, 1500], lambda _: None)
        return Told(((0, 1500),))

    def run(self, path: Path, tell: Tell) -> None:
        with begin(path, exists="resume") as writer:
            fill(writer, [1800, N], tell)
        tell(SEALED)


class Extended(Work):
    """A sealed store whose plan grows, in the middle of a unit."""

    def before(self, path: Path) -> Told:
        with begin(path, 1300) as writer:
            fill(writer, [1300], lambda _: None)
        return Told(((0, 1300),))

    def run(self, path: Path, tell: Tell) -> None:
        with begin(path, exists="resume") as writer:
            fill(writer, [1400, 2100, N], tell)
        tell(SEALED)


class Overwritten(Work):
    """A store that takes the place of another one."""

    def before(self, path: Path) -> Told:
        with begin(path, 1300) as writer:
            writer.append(probs(1300, K, seed=7))
        return Told(old=1300)

    def run(self, path: Path, tell: Tell) -> None:
        with begin(path, exists="overwrite") as writer:
            writer.append(probs(1100, K))
            writer.commit()
            writer.append(probs(N - 1100, K, start=1100))
        tell(SEALED)

    def again(self, path: Path) -> None:
        with begin(path, exists="overwrite") as writer:
            writer.append(probs(N, K))


class Noted(Work):
    """Metadata of a sealed store that changes."""

    def before(self, path: Path) -> Told:
        with begin(path) as writer:
            fill(writer, [N], lambda _: None)
        return SEALED

    def run(self, path: Path, tell: Tell) -> None:
        self.again(path)
        tell(replace(SEALED, noted=True))

    def again(self, path: Path) -> None:
        with begin(path, exists="resume") as writer:
            writer.update_meta({"note": "y" * 500})


class Converted(Work):
    """A conversion to a destination that is not there."""

    def before(self, path: Path) -> Told:
        with begin(path.with_name(f"source{path.suffix}")) as writer:
            writer.append(probs(N, K))
        return Told()

    def run(self, path: Path, tell: Tell) -> None:
        self.again(path)
        tell(SEALED)

    def again(self, path: Path) -> None:
        source = path.with_name(f"source{path.suffix}")
        fostore.convert(source, path, unit_rows=UNIT, exists="overwrite", progress=False)


class ConvertedOver(Converted):
    """A conversion to a destination that holds something else."""

    def before(self, path: Path) -> Told:
        super().before(path)
        return Overwritten().before(path)


WORK = (
    First,
    InBackground,
    Scattered,
    Resumed,
    Extended,
    Overwritten,
    Noted,
    Converted,
    ConvertedOver,
)


@pytest.mark.parametrize("work", WORK, ids=lambda work: work.__name__)
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_power_cut_takes_nothing_that_was_promised(
    tmp_path: Path, suffix: str, work: type[Work], fast_disk_after: Callable[[], None]
) -> None:
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


def assert_promises_hold(path: Path, told: Told) -> None:
    """What was promised is there, and whatever is there is right, for fostore and for plain readers."""
    try:
        store = fostore.open(path)
    except StoreNotFoundError:
        assert told == Told(), "the store is gone"
        return
    is_old = told.old is not None and store.num_samples == told.old
    seed = 7 if is_old else told.seed
    for start, stop in ((0, told.old),) if is_old else told.rows:  # type: ignore[assignment]
        assert store.committed.covers(start, stop), f"rows are lost: {store.committed}"
    for start, stop in store.committed:
        rows = store.take(np.arange(start, stop))
        assert np.array_equal(rows, probs(stop - start, K, seed=seed, start=start))
    assert not told.sealed or store.is_sealed
    assert not told.noted or "note" in store.meta
    # A torn slot or a name too many may be told; no row is accused.
    assert [finding for finding in store.verify() if finding.rows is not None] == []
    plain = plain_rows(path)
    if path.suffix == ".zarr":  # its shape says what is sealed
        assert np.array_equal(plain, probs(len(plain), K, seed=seed))
    else:
        for start, stop in store.committed:
            assert np.array_equal(plain[start:stop], probs(stop - start, K, seed=seed, start=start))


def assert_nothing_is_left(path: Path) -> None:
    """Beside the store lies nothing but what a test put there."""
    names = {entry.name for entry in path.parent.iterdir()} - {f"source{path.suffix}"}
    assert names == {path.name}


def undisturbed(path: Path) -> str:
    with begin(path) as writer:
        writer.append(probs(N, K))
    found = fostore.open(path).digest()
    assert found is not None
    return found
