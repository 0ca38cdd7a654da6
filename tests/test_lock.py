"""The writer's lock: one holder a unit, over processes, threads and forks, and none after a death."""

from __future__ import annotations

import errno
import gc
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fostore import disk
from fostore.errors import LockedError, StoreNotFoundError, UnsafeError
from fostore.places import lock
from fostore.places.lock import METADATA, Lock

HOLD = """\
import sys
from pathlib import Path
from fostore.places.lock import Lock
units = eval(sys.argv[2])
lock = Lock.acquire(Path(sys.argv[1]), units)
print("held", flush=True)
sys.stdin.read()
lock.release()
"""


@contextmanager
def holder(path: Path, units: tuple[int, int] | None = None) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lock."""
    command = [sys.executable, "-c", HOLD, str(path), repr(units)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        try:
            yield process
        finally:
            process.kill()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "x.zarr"


def side_file(path: Path) -> Path:
    return path.with_name(".x.zarr.lock")


def test_a_second_writer_is_refused_and_told_who_holds_the_lock(path: Path) -> None:
    with holder(path) as process, pytest.raises(LockedError) as caught:
        Lock.acquire(path)
    message = str(caught.value)
    assert f"process {process.pid} on {os.uname().nodename} since 20" in message
    assert str(path) in message


def test_the_lock_of_a_killed_writer_is_taken_over_silently(path: Path) -> None:
    with holder(path) as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert side_file(path).exists()
        with Lock.acquire(path) as lock:
            assert lock.held
    assert not side_file(path).exists()


def test_a_second_writer_in_the_same_process_is_refused(path: Path) -> None:
    with Lock.acquire(path):
        with pytest.raises(LockedError, match="in this process"):
            Lock.acquire(path)
        with pytest.raises(LockedError, match="in this process"):
            Lock.acquire(path, (3, 4))
    Lock.acquire(path).release()


def test_release_gives_back_and_removes_the_side_file(path: Path) -> None:
    lock = Lock.acquire(path)
    assert side_file(path).exists()
    lock.release()
    lock.release()
    assert not lock.held
    assert list(path.parent.iterdir()) == []
    with holder(path):
        pass


def test_owners_of_other_units_do_not_meet(path: Path) -> None:
    with Lock.acquire(path, (0, 4)), Lock.acquire(path, METADATA), holder(path, (4, 8)):
        for units in ((3, 5), (7, 9), (0, 100), None, METADATA, (2, 3)):
            with pytest.raises(LockedError):
                Lock.acquire(path, units)
        Lock.acquire(path, (8, 9)).release()
        with pytest.raises(LockedError):
            Lock.acquire(path, (3, 4))
    assert not side_file(path).exists()


def test_releasing_some_units_keeps_the_others(path: Path) -> None:
    first, second = Lock.acquire(path, (0, 2)), Lock.acquire(path, (2, 4))
    first.release()
    assert second.held
    command = [sys.executable, "-c", HOLD, str(path)]
    for units, free in (((2, 3), False), ((0, 2), True)):
        done = subprocess.run(
            [*command, repr(units)], stdin=subprocess.DEVNULL, capture_output=True, text=True
        )
        assert ("held" in done.stdout) == free, done.stderr
    second.release()
    assert not side_file(path).exists()


def test_the_side_file_stays_while_another_process_holds_units(path: Path) -> None:
    with holder(path, (4, 8)):
        Lock.acquire(path, (0, 4)).release()
        assert side_file(path).exists()
        with pytest.raises(LockedError):
            Lock.acquire(path)


def test_a_forked_child_does_not_hold_the_lock(path: Path) -> None:
    with Lock.acquire(path) as lock:
        child = os.fork()
        if child == 0:
            code = 0
            if lock.held:
                code = 1
            lock.release()
            if not side_file(path).exists():
                code = 2
            try:
                Lock.acquire(path)
                code = 3
            except LockedError as error:
                if str(os.getppid()) not in str(error):
                    code = 4
            os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert lock.held
        with pytest.raises(LockedError):
            Lock.acquire(path)


def test_two_names_of_one_store_have_one_lock(path: Path, tmp_path: Path) -> None:
    path.mkdir()
    (tmp_path / "alias").mkdir()
    link = tmp_path / "alias" / "y.zarr"
    link.symlink_to(path)
    with Lock.acquire(link):
        with pytest.raises(LockedError):
            Lock.acquire(path)
        with pytest.raises(LockedError):
            Lock.acquire(tmp_path / "alias" / ".." / "x.zarr")
    assert list((tmp_path / "alias").iterdir()) == [link]


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(StoreNotFoundError, match=r"nowhere', which is to hold 'x\.zarr'"):
        Lock.acquire(tmp_path / "nowhere" / "x.zarr")


def test_a_link_at_the_side_file_is_not_followed(path: Path, tmp_path: Path) -> None:
    target = tmp_path / "precious"
    target.write_text("text")
    side_file(path).symlink_to(target)
    with pytest.raises(UnsafeError, match=r"\.x\.zarr\.lock"):
        Lock.acquire(path)
    assert target.read_text() == "text"


def test_a_side_file_that_is_removed_meanwhile_is_not_the_lock(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its last holder removes it between our opening and our locking: a lock on it would exclude nobody."""
    open_file = disk.open_file
    removals = [1, 1]

    def open_and_lose(file: Path, **kwargs: bool) -> int:
        fd = open_file(file, **kwargs)
        if removals:
            removals.pop()
            file.unlink()
        return fd

    monkeypatch.setattr(disk, "open_file", open_and_lose)
    with Lock.acquire(path):
        assert side_file(path).exists()
        command = [sys.executable, "-c", HOLD, str(path), "None"]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
        assert "LockedError" in done.stderr


def test_a_full_disk_does_not_prevent_the_lock(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(disk, "write_at", full)
    with Lock.acquire(path) as lock:
        assert lock.held


def test_many_threads_and_removals_leave_one_holder_at_a_time(path: Path) -> None:
    inside: list[int] = []
    seen: list[int] = []
    failures: list[BaseException] = []

    def work() -> None:
        try:
            for _ in range(30):
                try:
                    lock = Lock.acquire(path)
                except LockedError:
                    continue
                inside.append(1)
                seen.append(len(inside))
                inside.pop()
                lock.release()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert set(seen) == {1}
    assert not side_file(path).exists()


def test_processes_that_take_and_remove_the_side_file_never_share_it(path: Path) -> None:
    script = """\
import os, sys, time
from pathlib import Path
from fostore.errors import LockedError
from fostore.places.lock import Lock
path = Path(sys.argv[1])
mark = path.with_name("mark")
taken = 0
end = time.monotonic() + 10
while taken < 40 and time.monotonic() < end:
    try:
        lock = Lock.acquire(path)
    except LockedError:
        continue
    fd = os.open(mark, os.O_CREAT | os.O_EXCL)
    os.close(fd)
    os.unlink(mark)
    lock.release()
    taken += 1
assert taken == 40, taken
"""
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(path)], stderr=subprocess.PIPE, text=True
        )
        for _ in range(3)
    ]
    for worker in workers:
        _, errors = worker.communicate()
        assert worker.returncode == 0, errors
    assert not side_file(path).exists()


def test_a_lock_that_the_collector_gives_back_while_another_is_taken_is_free(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def suspended() -> Iterator[None]:
        with Lock.acquire(path):
            yield

    gc.collect()
    held = [suspended()]
    held.append(held)  # type: ignore[arg-type]
    next(held[0])
    del held
    look = lock._is_at
    monkeypatch.setattr(lock, "_is_at", lambda *given: (gc.collect(), look(*given))[1])
    with Lock.acquire(path.with_name("y.zarr")):
        assert not side_file(path).exists()
        Lock.acquire(path).release()
