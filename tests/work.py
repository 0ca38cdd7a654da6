"""Pieces of work that are cut or fail in the middle: what was there before, how one goes on, and what must hold."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

import fostore
from fostore.errors import FormatError, StoreNotFoundError
from support import SUFFIXES, plain_rows, probs

N, K, UNIT = 2300, 3, 1024


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

    suffixes: tuple[str, ...] = SUFFIXES

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


class Shared(Work):
    """A store of whole units, by two shares one after the other."""

    suffixes = (".zarr",)

    def run(self, path: Path, tell: Tell) -> None:
        self.again(path, tell)
        tell(SEALED)

    def again(self, path: Path, tell: Tell = lambda _: None) -> None:
        fostore.plan(path, num_samples=N, num_classes=K, unit_rows=UNIT)
        for share in (1, 0):
            for unit in fostore.open_units(path, shard=(share, 2)):
                unit.write(probs(len(unit), K, start=unit.start))
                with fostore.open(path) as store:
                    tell(Told(tuple(store.committed)))
        fostore.finish(path)


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
    Shared,
)


def assert_promises_hold(path: Path, told: Told) -> None:
    """What was promised is there, and whatever is there is right, for fostore and for plain readers."""
    try:
        store = fostore.open(path)
    except (StoreNotFoundError, FormatError):  # a folder that is to be a store, and has no file yet
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
    if store.header.commits is not None:
        return  # plain readers see it when it is whole
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
