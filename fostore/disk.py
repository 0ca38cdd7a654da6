"""Every system call that changes the disk, and every first look at a file that a user names: the one choke point
that fault injection replaces. What a file system refuses comes as an error that names the place and the cure.

Callers use `disk.name(...)`, never `from fostore.disk import name`, so that a test can stand in for one call.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from fostore.errors import FormatError, FostoreError, SpaceError, StoreNotFoundError, UnsafeError
from fostore.errors import refusal as refusal  # called as `disk.refusal`, as the rest here is

Buffer = Any
"""Whatever `memoryview` takes."""

_PLAIN = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)
_READ = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)
_RENAME_EXCHANGE = 2
_READ_BYTES = 1 << 30  # Linux takes at most 2 GiB in one call
_AT_FDCWD = -100


def refuse(error: OSError, place: str, needed: int | None = None) -> NoReturn:
    """Raise what `refusal` makes of the error, or else the error itself."""
    refused = refusal(error, place, needed)
    if refused is None:
        raise error
    raise refused from error


class refusing:
    """Let what the file system refuses in the block out as a SpaceError or PlaceError that names `place`.

    Both are OSErrors with the code of the system's, so who looks at that sees what was there before.
    A class, since a generator takes twice the calls, and there is one of these around every other call.
    """

    def __init__(self, place: str | Path | int) -> None:
        self._place = place

    def __enter__(self) -> None:
        pass

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if isinstance(error, OSError) and not isinstance(error, FostoreError):
            place = self._place
            refuse(error, name_of(place) if isinstance(place, int) else str(place))


def name_of(fd: int) -> str:
    """The path of an open file, or the folder of one without a name; "" where the system does not say."""
    try:
        if sys.platform == "darwin":
            # Windows has none.
            import fcntl

            name = os.fsdecode(fcntl.fcntl(fd, fcntl.F_GETPATH, bytes(1024)).rstrip(b"\0"))
        else:
            name = os.readlink(f"/proc/self/fd/{fd}")
    except OSError:
        return ""
    return os.path.dirname(name) if name.endswith(" (deleted)") else name


def open_file(path: str | Path, *, write: bool = False, create: bool = False) -> int:
    """A descriptor of a regular file; a symbolic link at `path` is an error (ELOOP).

    A pipe does not make a reader wait: whoever has not looked what lies there sees it then.
    """
    flags = os.O_RDWR if write else _READ
    flags |= os.O_CREAT if create else 0
    try:
        return os.open(path, flags | _PLAIN, 0o666)
    except OSError as error:  # what `refusing` does, without its calls: a store opens many files
        refuse(error, str(path))


def open_regular(path: str | Path) -> tuple[int, int]:
    """A descriptor of a file of a store, for reading, and its bytes.

    Raises:
        FileNotFoundError: there is none.
        UnsafeError: it is a link, or no regular file.
    """
    try:
        fd = open_file(path)
    except OSError as error:
        # A link; a socket, or a device that is not there.
        if error.errno in (errno.ELOOP, errno.ENXIO):
            raise stranger(path, "file") from error
        raise
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        os.close(fd)
        raise stranger(path, "file")
    return fd, status.st_size


def stranger(path: str | Path, expected: str) -> UnsafeError:
    """The refusal of what lies at `path` where a store has `expected` ("file" or "folder") and nothing else."""
    if not os.path.islink(path):
        return UnsafeError(f"{path} is no regular {expected}; no store has anything else")
    return UnsafeError(
        f"{path} is a symbolic link, and no link in a store is followed. Caches of hubs, git-annex and "
        "DVC keep files as links: copy the folder with what they lead to (cp -rL STORE COPY) and open "
        "the copy, or fetch it as plain files (huggingface_hub: snapshot_download(..., local_dir=...))"
    )


def open_named(path: str | Path, expected: str) -> tuple[int, int]:
    """A descriptor of a regular file that a user named, for reading, and its bytes; links are followed.

    Nothing else is opened: a pipe would be waited for, and a device has no end.

    Args:
        path: the file.
        expected: what it is to be, for messages, such as "a file of rows".

    Raises:
        StoreNotFoundError: there is none.
        FormatError: it is a folder, a pipe or a device.
        PlaceError: it may not be read.
    """
    with refusing(path):
        try:
            if stat.S_ISREG(os.stat(path).st_mode):
                fd = os.open(path, _READ | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0))
                status = os.fstat(fd)
                if stat.S_ISREG(status.st_mode):
                    return fd, status.st_size
                os.close(fd)
            what = "a folder" if os.path.isdir(path) else "no regular file"
        except FileNotFoundError as error:
            raise StoreNotFoundError(f"there is no file {str(path)!r}") from error
    raise FormatError(f"{str(path)!r} is {what}, expected {expected}")


def read_named(path: str | Path, limit: int, expected: str) -> bytes:
    """A small file that a user named, as a whole; see `open_named`.

    Raises:
        UnsafeError: it has more than `limit` bytes.
    """
    fd, size = open_named(path, expected)
    with os.fdopen(fd, "rb") as file:
        if size > limit:
            raise UnsafeError(
                f"{str(path)!r} has {size:,} bytes, expected {expected} of at most {limit:,}"
            )
        return file.read(limit)


def open_unnamed(folder: Path) -> int:
    """A descriptor of an empty file on the disk of `folder` that no name leads to; gone when it is closed."""
    import tempfile  # few need it

    with refusing(folder), tempfile.TemporaryFile(dir=folder) as file:
        return os.dup(file.fileno())


def read_at(fd: int, offset: int, size: int) -> bytes:
    """Up to `size` bytes at `offset`; fewer, and no more memory taken, only where the file ends.

    A file server may give less at a time than was asked for: that is no damage.
    """
    stop = min(offset + size, os.fstat(fd).st_size)
    pieces: list[bytes] = []
    # Not `read_into` a buffer of ours, which would be zeroed before and copied to bytes after.
    while offset < stop and (piece := os.pread(fd, min(stop - offset, _READ_BYTES), offset)):
        pieces.append(piece)
        offset += len(piece)
    return b"".join(pieces)  # one piece, as nearly all are, is not copied


def read_into(fd: int, out: Buffer, offset: int) -> int:
    """Fill `out` from `offset` on; the number of bytes, fewer than it has only where the file ends."""
    done = 0
    with memoryview(out).cast("B") as view:
        while done < len(view):
            count = os.preadv(fd, [view[done : done + _READ_BYTES]], offset + done)
            if not count:
                break
            done += count
    return done


def write_at(fd: int, data: Buffer, offset: int) -> None:
    """Write all of `data` at `offset`; a full disk is a SpaceError."""
    view = memoryview(data).cast("B")
    try:
        while view:
            written = os.pwrite(fd, view, offset)
            view = view[written:]
            offset += written
    except OSError as error:
        refuse(error, name_of(fd), len(view))


def sync_data(fd: int) -> None:
    """Make a file's data durable (macOS: its full sync, since fsync stops at the drive's cache)."""
    if sys.platform == "darwin":
        # Windows has none.
        import fcntl

        fcntl.fcntl(fd, fcntl.F_FULLFSYNC)
    else:
        with refusing(fd):  # a file server may say only now that its disk is full
            getattr(os, "fdatasync", os.fsync)(fd)


def sync_file(path: Path) -> None:
    """Make the data of a file durable, by its name."""
    with os.fdopen(open_file(path), "rb") as file:
        sync_data(file.fileno())


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable."""
    if os.name == "nt":
        return  # Windows has no such call; NTFS journals names
    with refusing(path):
        fd = os.open(path, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def truncate(fd: int, size: int) -> None:
    """Set a file's size."""
    with refusing(fd):
        os.ftruncate(fd, size)


def allocate(fd: int, offset: int, size: int) -> None:
    """Reserve bytes, so that writing them later cannot find the disk full."""
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(fd, offset, size)
            return
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT):
                raise SpaceError(
                    f"{name_of(fd)!r} needs {size:,} bytes, and its disk cannot hold them "
                    f"({error.strerror}); free some space, or choose another disk"
                ) from error
            # No such call on this file system.
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
                raise
    os.ftruncate(fd, max(os.fstat(fd).st_size, offset + size))


def make_directory(path: Path) -> None:
    """Make one directory; durable once its parent is synced (see `make_folders`)."""
    with refusing(path):
        try:
            path.mkdir(exist_ok=True)  # another process may have been faster
        except FileExistsError as error:
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR)) from error


def make_folders(*paths: Path) -> None:
    """Make directories and their parents, durably: whichever got a new name in it is synced, once."""
    named: dict[Path, None] = {}
    for path in paths:
        missing = []
        with refusing(path):
            while not path.is_dir():
                missing.append(path)
                path = path.parent
        for folder in reversed(missing):
            make_directory(folder)
            named[folder.parent] = None
    for folder in named:
        sync_directory(folder)


def rename(source: Path, target: Path) -> None:
    """Move `source` over `target` at once; durable once the directory is synced."""
    with refusing(target):
        os.replace(source, target)


def link(source: Path, target: Path) -> bool:
    """Give a file the name `target` as well, at once; false where something has it."""
    try:
        with refusing(target):
            os.link(source, target)
    except FileExistsError:
        # A file server that was asked twice, since its answer was lost, has done it the first time.
        return os.path.samefile(source, target)
    return True


def exchange(one: Path, other: Path) -> None:
    """Swap two paths, at once where the kernel can (renameat2); else by renames over `_aside`."""
    with refusing(other):
        import ctypes  # only who overwrites a store needs it

        libc: Any = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None
        if hasattr(libc, "renameat2"):
            names = os.fsencode(one), os.fsencode(other)
            if libc.renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE) == 0:
                return
            code = ctypes.get_errno()
            if code not in (errno.EINVAL, errno.ENOSYS):  # else the file system cannot
                raise OSError(code, os.strerror(code), str(one), None, str(other))
        away = _aside(other)
        os.rename(other, away)
        os.rename(one, other)
        os.rename(away, one)


def unfinished(path: Path) -> Path:
    """Where a file or folder lies until it is whole and gets its name."""
    return path.with_name(f".{path.name}.tmp")


def _aside(path: Path) -> Path:
    """Where an exchange by renames keeps what was at `path` for a moment."""
    return path.with_name(f".{path.name}.old")


def mend_exchange(path: Path) -> None:
    """Undo an exchange by renames that a kill cut in two, or end it; nobody else may be at work on `path`."""
    away = _aside(path)
    if not path.exists() and away.exists():
        rename(away, path)
        sync_directory(path.parent)
    remove(away)


def remove(path: Path) -> None:
    """Remove a file or a whole directory; nothing there is no error."""
    with refusing(path):
        if path.is_dir() and not path.is_symlink():
            import shutil  # the reader, which imports this module, needs none of it

            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def remove_empty(path: Path) -> bool:
    """Remove a directory if nothing is in it; false where something is."""
    with suppress(OSError):
        path.rmdir()
    return not path.exists()


def write_file(path: Path, data: Buffer) -> None:
    """Write a file, whose data is durable then; its name is once the directory is synced."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | getattr(os, "O_NOFOLLOW", 0)
    with refusing(path):
        fd = os.open(path, flags, 0o666)
    with os.fdopen(fd, "wb"):
        write_at(fd, data, 0)
        sync_data(fd)


def write_whole(path: Path, data: Buffer) -> None:
    """Put `data` under `path` at once and durably: temporary name, sync, rename, sync of the directory."""
    temporary = unfinished(path)
    try:
        write_file(temporary, data)
        rename(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def free_bytes(path: Path) -> int:
    """Bytes that can be written below `path`, or below its nearest parent that exists."""
    import shutil  # as in `remove`

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
