"""Faults: any call of the disk fails, writes half, or is interrupted; what was promised is there, and the work goes on.

Each test does one piece of work once for every chosen call and kind of fault, looks at what is left, and takes the
work up again: in this process, and on a copy in a new one, which must give what an undisturbed run gives.
`FOSTORE_FAULTS` says how many faults each test has.
"""

from __future__ import annotations

import errno
import os
import pickle
import random
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import fostore
from fostore import disk
from fostore.errors import FostoreError, SpaceError
from support import SUFFIXES
from work import (
    SEALED,
    WORK,
    First,
    Told,
    Work,
    assert_nothing_is_left,
    assert_promises_hold,
    undisturbed,
)

FAULTS = int(os.environ.get("FOSTORE_FAULTS", "16"))
WRITES = (
    "write_at sync_data sync_file sync_directory truncate allocate make_directory rename exchange remove "
    "write_whole link write_file"
).split()
READS = ["open_file", "open_named", "read_at", "read_into"]
KINDS = ("EIO", "ENOSPC", "half", "interrupt", "interrupt after")


class Fault:
    """Every call of `fostore.disk` while the block lasts; the one with the number `at` fails."""

    def __init__(self, at: int = -1, kind: str = "EIO") -> None:
        self.at, self.kind, self.count = at, kind, 0
        self.calls: list[str] = []
        self._guard = threading.Lock()
        self._real: dict[str, Callable[..., Any]] = {}

    def __enter__(self) -> Fault:
        for name in (*WRITES, *READS):
            self._real[name] = getattr(disk, name)
            setattr(disk, name, self._stand_in(name))
        return self

    def __exit__(self, *_: object) -> None:
        for name, call in self._real.items():
            setattr(disk, name, call)

    def _stand_in(self, name: str) -> Callable[..., Any]:
        def call(*given: Any, **named: Any) -> Any:
            with self._guard:
                number, self.count = self.count, self.count + 1
                self.calls.append(name)
            if number == self.at:
                self._fail(name, given, named)
            return self._real[name](*given, **named)

        return call

    def _fail(self, name: str, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        if self.kind == "interrupt":
            raise KeyboardInterrupt
        if self.kind == "interrupt after":
            self._real[name](*given, **named)
            raise KeyboardInterrupt
        if self.kind == "ENOSPC" and name in WRITES:
            raise SpaceError("the disk is full")
        if self.kind == "half" and name == "write_at":
            fd, data, offset = given
            view = memoryview(data).cast("B")
            os.pwrite(fd, view[: len(view) // 2], offset)
        raise OSError(errno.EIO, os.strerror(errno.EIO))


@pytest.mark.usefixtures("fast_disk")
@pytest.mark.parametrize("work", WORK, ids=lambda work: work.__name__)
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_fault_takes_nothing_that_was_promised(
    tmp_path: Path, suffix: str, work: type[Work]
) -> None:
    if suffix not in work.suffixes:
        pytest.skip("the format has one writer")
    name = f"a/b/s{suffix}" if work is First else f"s{suffix}"
    base = tmp_path / "base"
    base.mkdir()
    first = work().before(base / name)
    expected = undisturbed(tmp_path / f"whole{suffix}")
    copies: list[tuple[Path, Told]] = []
    for number, (at, kind) in enumerate(faults_of(base, name, work())):
        place = tmp_path / f"fault{number}"
        shutil.copytree(base, place)
        threads = threading.active_count()
        told, fault = [first], Fault(at, kind)
        try:
            with fault:
                work().run(place / name, told.append)
        except (FostoreError, OSError, KeyboardInterrupt):
            pass
        try:
            assert threading.active_count() == threads, "a thread was left"
            assert_promises_hold(place / name, told[-1])
            copy = tmp_path / f"copy{number}"
            shutil.copytree(place, copy, ignore=shutil.ignore_patterns("*.lock"))
            copies.append((copy / name, told[-1]))
            take_up(work(), place / name, told[-1], expected)
        except Exception as error:
            called = fault.calls[at] if at < len(fault.calls) else "nothing"
            error.add_note(f"{kind} at call {at} ({called}), {told[-1]}")
            raise
        shutil.rmtree(place)
    in_a_new_process(work, copies, expected)


def faults_of(base: Path, name: str, work: Work) -> list[tuple[int, str]]:
    """Calls and kinds of faults: all of them, or `FAULTS`."""
    place = base.with_name("counted")
    shutil.copytree(base, place)
    with Fault() as counted:
        work.run(place / name, lambda _: None)
    shutil.rmtree(place)
    every = [(at, kind) for at in range(counted.count) for kind in KINDS]
    chance = random.Random(f"{type(work).__name__}{name}")
    return chance.sample(every, min(FAULTS, len(every)))


def take_up(work: Work, path: Path, told: Told, expected: str) -> None:
    """Go on after a fault, to the end that an undisturbed run has."""
    work.again(path)
    assert_promises_hold(path, replace(SEALED, noted=told.noted))
    assert fostore.open(path).verify() == []
    assert fostore.open(path).digest() == expected
    assert_nothing_is_left(path)


def in_a_new_process(work: type[Work], copies: list[tuple[Path, Told]], expected: str) -> None:
    """The same for copies, in one process that knows nothing of what went before."""
    script = (
        "import pickle, sys; sys.path.insert(0, sys.argv[1]); from test_faults import *; from fostore import disk\n"
        "disk.sync_data = disk.sync_directory = lambda _: None\n"
        "work, copies, expected = pickle.load(sys.stdin.buffer)\n"
        "for path, told in copies:\n"
        "    print(path); assert_promises_hold(path, told); take_up(work(), path, told, expected)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(Path(__file__).parent)],
        input=pickle.dumps((work, copies, expected)),
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout[-300:]!r} {done.stderr.decode()[-3000:]}"


@pytest.mark.usefixtures("fast_disk")
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_system_calls_that_do_less_than_they_were_asked_for_change_nothing(
    tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Network file systems read and write a part at a time: that is neither damage nor an end."""
    real = {name: getattr(os, name) for name in ("pread", "preadv", "read", "pwrite", "write")}
    monkeypatch.setattr(os, "pread", lambda fd, size, at: real["pread"](fd, -(-size // 2), at))
    monkeypatch.setattr(os, "read", lambda fd, size: real["read"](fd, -(-size // 2)))
    monkeypatch.setattr(
        os,
        "preadv",
        lambda fd, views, at: real["preadv"](fd, [views[0][: -(-len(views[0]) // 2)]], at),
    )
    for name in ("pwrite", "write"):
        monkeypatch.setattr(
            os,
            name,
            lambda fd, data, *at, n=name: real[n](
                fd, memoryview(data).cast("B")[: -(-len(data) // 2)], *at
            ),
        )
    for work in (work for work in WORK if suffix in work.suffixes):
        place = tmp_path / work.__name__
        place.mkdir()
        first = work().before(place / f"s{suffix}")
        assert_promises_hold(place / f"s{suffix}", first)
        work().run(place / f"s{suffix}", lambda _: None)
        assert fostore.open(place / f"s{suffix}").verify() == []
        assert_promises_hold(place / f"s{suffix}", SEALED)
