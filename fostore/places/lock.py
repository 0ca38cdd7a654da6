"""The writer's lock: who may write which units of a store.

POSIX byte-range locks on a side file that nothing else opens: the kernel frees them when their process
dies, so a killed writer is taken over without any guess about process ids. A registry adds what POSIX
leaves out: two writers in one process. On NFS such locks are advisory at best.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import struct
import sys
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from fostore import disk
from fostore.errors import (
    LockedError,
    PlaceError,
    StoreNotFoundError,
    UnsafeError,
    UnsupportedError,
)

if sys.platform != "win32":
    import fcntl

METADATA = (-1, 0)
"""The `units` of the one owner of a store's metadata, beside owners of units."""

_END = 1 << 62
_ATTEMPTS = 4
_PAUSE_SECONDS = 0.02
_TEXT_BYTES = 4096


@dataclass(slots=True)
class _File:
    """A side file that this process has open, once: closing any descriptor of it would drop every lock."""

    fd: int
    spans: list[tuple[int, int]] = field(default_factory=list)


_files: dict[Path, _File] = {}
_guard = threading.Lock()
_leaving: deque[tuple[Path, tuple[int, int]]] = deque()
"""What was released and is not given back yet. Nobody waits for the guard to release: the collector may close a writer
that was left in a suspended generator while its own thread holds it, which would then wait for itself."""


class Lock:
    """The right to write units of one store, held by this process until `release` or its death.

    Works in `with`. After a fork only the parent holds it. Made by `Lock.acquire`.
    """

    def __init__(self, path: Path, span: tuple[int, int]) -> None:
        self.path = path
        """The side file."""
        self._span = span
        self._pid = os.getpid()
        self._held = True

    @classmethod
    def acquire(cls, store_path: Path, units: tuple[int, int] | None = None) -> Lock:
        """Take the lock at once or not at all.

        Args:
            store_path: the store, which need not exist; its folder must.
            units: the range `(start, stop)` of units; None: all units and the metadata. `METADATA`
                is the metadata alone.

        Raises:
            LockedError: somebody, in this process or another, holds some of these units.
            StoreNotFoundError: the folder that would hold the store does not exist.
            UnsafeError: the side file is a link or no file.
            UnsupportedError: the system has no such locks (Windows).
            PlaceError: the file system has none, is read-only, not the user's, or takes no such name.
            SpaceError: not even an empty file has room there.
        """
        if sys.platform == "win32":
            raise UnsupportedError(
                "writing a store needs POSIX locks, which Windows does not have; fostore runs on Linux, on macOS "
                "and in WSL"
            )
        real = Path(os.path.realpath(store_path))
        path = real.with_name(f".{real.name}.lock")
        span = (0, _END) if units is None else (1 + units[0], 1 + units[1])
        for attempt in range(_ATTEMPTS):
            last = attempt == _ATTEMPTS - 1
            try:
                with _guard:
                    _give_back_all()
                    if _take(path, span, real, complain=last):
                        return cls(path, span)
            finally:
                _settle()
            # Whoever is releasing its units holds the whole file for a moment, to remove it.
            time.sleep(_PAUSE_SECONDS)
        raise LockedError(f"{real} was taken and released by others meanwhile; try again")

    @property
    def held(self) -> bool:
        """Whether this process holds the lock: false after `release` and in a forked child."""
        return self._held and self._pid == os.getpid()

    def release(self) -> None:
        """Give the units back; the side file goes with its last lock. Again is no error."""
        if not self.held:
            return
        self._held = False
        _leaving.append((self.path, self._span))
        _settle()

    def __enter__(self) -> Lock:
        return self

    def __exit__(self, *exception: object) -> None:
        self.release()


def _take(path: Path, span: tuple[int, int], store: Path, *, complain: bool) -> bool:
    """Lock `span` of the side file; false, or LockedError where `complain`, if somebody has some of it."""
    file = _files.get(path)
    if file is not None:
        if any(span[0] < stop and start < span[1] for start, stop in file.spans):
            if complain:
                raise LockedError(
                    f"{store} is open for writing in this process (pid {os.getpid()}) already; "
                    "close that writer first",
                )
            return False
        if not _lock(file.fd, span, store):
            return _refuse(file.fd, span, store) if complain else False
        file.spans.append(span)
        return True
    while True:
        is_new = not os.path.lexists(path)
        fd = _open(path, store)
        try:
            if not _lock(fd, span, store):
                refused = _refuse(fd, span, store) if complain else False
                os.close(fd)
                return refused
            if _is_at(fd, path):
                break
        except BaseException as error:
            os.close(fd)
            if is_new and isinstance(error, PlaceError):  # nobody can hold a lock on it either
                with contextlib.suppress(OSError):
                    disk.remove(path)
            raise
        os.close(fd)  # it was removed between our opening and our locking
    _files[path] = _File(fd, [span])
    try:
        with contextlib.suppress(
            OSError
        ):  # the text is for messages only: a full disk must not matter
            _sign(fd)
    except BaseException:  # Ctrl-C: nobody has this lock to give it back
        _give_back(path, span)
        raise
    return True


def _sign(fd: int) -> None:
    """Write who holds the lock into its file."""
    text = {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "since": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    data = json.dumps(text).encode() + b"\n"
    disk.write_at(fd, data, 0)
    disk.truncate(fd, len(data))


def _settle() -> None:
    """Give back what was released, unless somebody holds the guard, who does it then."""
    while _leaving and _guard.acquire(blocking=False):
        try:
            _give_back_all()
        finally:
            _guard.release()


def _give_back_all() -> None:
    while _leaving:
        _give_back(*_leaving.popleft())


def _give_back(path: Path, span: tuple[int, int]) -> None:
    """Let units go; the side file goes with the last of them."""
    file = _files.get(path)
    if file is None:
        return
    file.spans.remove(span)
    if file.spans:
        fcntl.lockf(file.fd, fcntl.LOCK_UN, _length(span), span[0])
        return
    del _files[path]
    try:
        # Removed only while every byte is ours: nobody else can hold a lock on a file that is gone.
        if _lock(file.fd, (0, _END), path) and _is_at(file.fd, path):
            with contextlib.suppress(OSError):
                disk.remove(path)
    finally:
        os.close(file.fd)


def _open(path: Path, store: Path) -> int:
    try:
        return disk.open_file(path, write=True, create=True)
    except FileNotFoundError as error:
        raise StoreNotFoundError(
            f"the folder {str(path.parent)!r}, which is to hold {store.name!r}, does not exist; "
            "make it first",
        ) from error
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
            raise UnsafeError(
                f"the lock file {str(path)!r} is a link or no file; remove it"
            ) from error
        cause = error.__cause__ if isinstance(error, PlaceError) else error
        if isinstance(cause, OSError):
            disk.refuse(cause, str(store))  # the user knows the store, not the file beside it
        raise


def _lock(fd: int, span: tuple[int, int], store: Path) -> bool:
    """Take the bytes if nobody else has them.

    Raises:
        PlaceError: the file system has no locks.
    """
    with disk.refusing(store):
        try:
            fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB, _length(span), span[0])
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                return False
            raise
    return True


def _length(span: tuple[int, int]) -> int:
    return 0 if span[1] == _END else span[1] - span[0]  # 0: to the end of any file


def _is_at(fd: int, path: Path) -> bool:
    """Whether the open file is still the one that `path` names."""
    try:
        return os.path.samestat(os.fstat(fd), os.lstat(path))
    except FileNotFoundError:
        return False


def _refuse(fd: int, span: tuple[int, int], store: Path) -> bool:
    """Raise LockedError with the holder's name; false where it let go in the meantime."""
    pid = _holder(fd, span)
    if pid == 0:
        return False
    holder: dict[str, object] = {}
    with contextlib.suppress(OSError, ValueError):
        value = json.loads(os.pread(fd, _TEXT_BYTES, 0))
        holder = value if isinstance(value, dict) else {}
    if pid is None or holder.get("pid") != pid:
        # Several writers share the file: its text names the one who came last.
        who = "another process" if pid is None else f"process {pid}"
    else:
        who = f"process {pid} on {holder.get('host')} since {holder.get('since')}"
    raise LockedError(
        f"{store} is being written by {who}; wait until it ends, or end it: "
        "what it committed is safe and is taken over",
    )


def _holder(fd: int, span: tuple[int, int]) -> int | None:
    """The process that holds some of the bytes; 0: nobody now; None: the system does not say."""
    shape = "hhqqi4x" if sys.platform == "linux" else "qqihh"
    lock, whence, start, length = fcntl.F_WRLCK, os.SEEK_SET, span[0], _length(span)
    linux = sys.platform == "linux"
    fields = (lock, whence, start, length, 0) if linux else (start, length, 0, lock, whence)
    try:
        answer = struct.unpack(shape, fcntl.fcntl(fd, fcntl.F_GETLK, struct.pack(shape, *fields)))
    except (OSError, struct.error):
        return None
    kind, pid = (answer[0], answer[4]) if linux else (answer[3], answer[2])
    if kind == fcntl.F_UNLCK:
        return 0
    return int(pid) if pid > 0 else None


def _forget() -> None:
    """In a forked child: the parent's locks are not ours."""
    global _guard
    _guard = threading.Lock()
    _leaving.clear()
    for file in _files.values():
        with contextlib.suppress(OSError):
            os.close(file.fd)
    _files.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
