"""Every system call that changes the disk: the one choke point that fault injection replaces.

Callers use `disk.name(...)`, never `from fostore.disk import name`, so that a test can stand in for one call.
"""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path
from typing import Any

from fostore.errors import SpaceError

Buffer = Any
"""Whatever `memoryview` takes."""

_PLAIN = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)
_READ = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)
_RENAME_EXCHANGE = 2
_AT_FDCWD = -100


def open_file(path: str | Path, *, write: bool = False, create: bool = False) -> int:
    """A descriptor of a regular file; a symbolic link at `path` is an error (ELOOP).

    A pipe does not make a reader wait: whoever has not looked what lies there sees it then.
    """
    flags = os.O_RDWR if write else _READ
    flags |= os.O_CREAT if create else 0
    return os.open(path, flags | _PLAIN, 0o666)


def open_unnamed() -> int:
    """A descriptor of an empty file in the temporary folder that no name leads to; gone when it is closed."""
    import tempfile  # few need it

    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def write_at(fd: int, data: Buffer, offset: int) -> None:
    """Write all of `data` at `offset`; a full disk is a SpaceError."""
    view = memoryview(data).cast("B")
    try:
        while view:
            written = os.pwrite(fd, view, offset)
            view = view[written:]
            offset += written
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise SpaceError(
                f"the disk is full: {len(view):,} bytes were left to write; "
                "free some space and resume, what was committed is safe"
            ) from error
        raise


def sync_data(fd: int) -> None:
    """Make a file's data durable (macOS: its full sync, since fsync stops at the drive's cache)."""
    if sys.platform == "darwin":
        import fcntl

        fcntl.fcntl(fd, fcntl.F_FULLFSYNC)
    else:
        getattr(os, "fdatasync", os.fsync)(fd)


def sync_file(path: Path) -> None:
    """Make the data of a file durable, by its name."""
    fd = open_file(path)
    try:
        sync_data(fd)
    finally:
        os.close(fd)


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable."""
    if os.name == "nt":
        return  # Windows has no such call; NTFS journals names
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def truncate(fd: int, size: int) -> None:
    """Set a file's size."""
    os.ftruncate(fd, size)


def allocate(fd: int, offset: int, size: int) -> None:
    """Reserve bytes, so that writing them later cannot find the disk full."""
    if not hasattr(os, "posix_fallocate"):
        os.ftruncate(fd, max(os.fstat(fd).st_size, offset + size))
        return
    try:
        os.posix_fallocate(fd, offset, size)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT):
            raise SpaceError(
                f"the store needs {size:,} bytes and the disk cannot hold them: {error.strerror}"
            ) from error
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
            raise
        os.ftruncate(fd, max(os.fstat(fd).st_size, offset + size))


def make_directory(*paths: Path) -> None:
    """Make directories and their parents, durably: whoever got a new name in it is synced, once."""
    named: dict[Path, None] = {}
    for path in paths:
        missing = []
        while not path.is_dir() and path != path.parent:
            missing.append(path)
            path = path.parent
        for folder in reversed(missing):
            folder.mkdir(exist_ok=True)  # another process may have been faster
            named[folder.parent] = None
    for folder in named:
        sync_directory(folder)


def rename(source: Path, target: Path) -> None:
    """Move `source` over `target` at once; durable once the directory is synced."""
    os.replace(source, target)


def exchange(one: Path, other: Path) -> None:
    """Swap two paths, at once where the kernel can (renameat2); else by renames over `aside`."""
    if sys.platform == "linux":
        import ctypes

        libc = ctypes.CDLL(None, use_errno=True)
        if hasattr(libc, "renameat2"):
            names = os.fsencode(one), os.fsencode(other)
            if libc.renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE) == 0:
                return
            code = ctypes.get_errno()
            if code not in (errno.EINVAL, errno.ENOSYS):
                raise OSError(code, os.strerror(code), str(one), None, str(other))
    away = aside(other)
    os.rename(other, away)
    os.rename(one, other)
    os.rename(away, one)


def aside(path: Path) -> Path:
    """Where an exchange by renames keeps what was at `path` for a moment."""
    return path.with_name(f".{path.name}.old")


def remove(path: Path) -> None:
    """Remove a file or a whole directory; nothing there is no error."""
    if path.is_dir() and not path.is_symlink():
        import shutil  # the reader, which imports this module, needs none of it

        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_whole(path: Path, data: Buffer) -> None:
    """Put `data` under `path` at once and durably: temporary name, sync, rename, sync of the directory."""
    temporary = path.with_name(f".{path.name}.tmp")
    fd = os.open(
        temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | getattr(os, "O_NOFOLLOW", 0), 0o666
    )
    try:
        try:
            write_at(fd, data, 0)
            sync_data(fd)
        finally:
            os.close(fd)
        rename(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def free_bytes(path: Path) -> int:
    """Bytes that can be written below `path`, or below its nearest parent that exists."""
    import shutil

    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


def require_free(path: Path, needed: int) -> None:
    """Refuse a run that cannot fit.

    Raises:
        SpaceError: fewer than `needed` bytes are free.
    """
    free = free_bytes(path)
    if needed > free:
        raise SpaceError(
            f"{path} needs {needed:,} bytes and {free:,} are free; free some space, use a smaller "
            "dtype, or choose another disk"
        )
