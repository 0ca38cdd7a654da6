"""A folder, or a file, of this machine: the one `Place` whose files can be mapped."""

from __future__ import annotations

import os
import stat
import uuid
import weakref
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from fostore import disk
from fostore.errors import ArgumentError, FormatError, LockedError, StoreNotFoundError, UnsafeError
from fostore.places.place import ByUrl, Listed, Version

_ATTEMPTS = 4


class Local(ByUrl):
    """See `Place`. `path` is its root as it was named, which may be a link; `url` is absolute."""

    is_local = True

    def __init__(self, path: str | Path) -> None:
        self.path = path if isinstance(path, Path) else Path(path)
        # Not normalised: what `..` behind a link means is the system's business.
        self.url = os.path.join(os.getcwd(), str(path))

    def read(self, name: str, limit: int) -> bytes:
        path, fd = self._open(name)
        try:
            size = os.fstat(fd).st_size
            if size > limit:
                raise UnsafeError(f"{path} has {size:,} bytes, expected at most {limit:,}")
            return disk.read_at(fd, 0, size)
        finally:
            os.close(fd)

    def read_many(self, ranges: Sequence[tuple[str, int, int]]) -> list[tuple[bytes, Version]]:
        pieces: list[tuple[bytes, Version]] = []
        for name, start, stop in ranges:
            _, fd = self._open(name)
            try:
                data = disk.read_at(fd, start, stop - start)
                pieces.append((data, _stamp(os.fstat(fd))))
            finally:
                os.close(fd)
        return pieces

    def open(self, name: str = "") -> LocalFile:
        return LocalFile(*self._open(name))

    def size(self, name: str) -> int | None:
        try:
            path, status = self._look(name)
        except FileNotFoundError:
            return None
        if not stat.S_ISREG(status.st_mode):
            raise disk.stranger(path, "file")
        return status.st_size

    def names(self, folder: str = "") -> dict[str, str]:
        # The kind of each comes with its name: a look at each would cost more than to map its file.
        path, status = self._look(folder)
        if not stat.S_ISDIR(status.st_mode):
            raise disk.stranger(path, "folder")
        with os.scandir(path) as entries:
            return {
                entry.name: "folder"
                if entry.is_dir(follow_symlinks=False)
                else "file" * entry.is_file(follow_symlinks=False)
                for entry in entries
            }

    def below(self, name: str) -> Local:
        return Local(self.path / name)

    def version(self, name: str = "") -> Version:
        try:
            status = self._look(name)[1]
        except (FileNotFoundError, NotADirectoryError):
            return None
        # What is in a folder changes while a writer is at work, and its time with it.
        is_file = stat.S_ISREG(status.st_mode)
        return _stamp(status) if is_file else (status.st_dev, status.st_ino)

    def put(self, name: str, data: Any, replaces: Version = None) -> Version:
        path = self._inside(name)
        for attempt in range(_ATTEMPTS):
            try:
                return self._put(name, path, data, replaces)
            except FileNotFoundError:
                # Who finishes the store removes what is unfinished, folders too: also what is being written now.
                if attempt == _ATTEMPTS - 1:
                    raise
        raise AssertionError("the last attempt returns or raises")  # pragma: no cover

    def _put(self, name: str, path: Path, data: Any, replaces: Version) -> Version:
        disk.make_folders(path.parent)
        temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.tmp")
        try:
            disk.write_file(temporary, data)
            # Before it has its name, which another may take.
            version = _stamp(os.stat(temporary))
            if replaces is None:
                is_ours = disk.link(temporary, path)
            else:
                is_ours = self._replace(name, temporary, path, replaces)
        finally:
            disk.remove(temporary)
        with suppress(
            FileNotFoundError
        ):  # removed already, by who finishes: it was written all the same
            disk.sync_directory(path.parent)
        return version if is_ours else None

    def _inside(self, name: str) -> Path:
        """Where a file of that name lies, or would; raises UnsafeError for a link on the way."""
        with suppress(FileNotFoundError):
            self._look(name)
        return Path(self.url, name)

    def _replace(self, name: str, temporary: Path, path: Path, replaces: Version) -> bool:
        # Imported here: readers take no lock, and opening a store costs what it imports.
        from fostore.places.lock import Lock

        try:
            # No call compares and renames at once. Who is stopped between the two keeps the lock meanwhile.
            with Lock.acquire(path):
                # Opened, not looked at: a file server is asked anew, where a look may be a minute old.
                try:
                    fd = self._open(name)[1]
                except FileNotFoundError:
                    return False
                is_ours = _stamp(os.fstat(fd)) == replaces
                os.close(fd)
                if is_ours:
                    disk.rename(temporary, path)
                return is_ours
        except LockedError:
            return False  # whoever has it changes the file

    def delete(self, names: Iterable[str]) -> None:
        folders: dict[Path, None] = {}
        for name in names:
            path = self._inside(name)
            if os.path.lexists(path):
                disk.remove(path)
                folders[path.parent] = None
        for path in folders:
            # A folder without files is none, as behind a url; the next `put` makes it again.
            while path != Path(self.url) and disk.remove_empty(path):
                path = path.parent
            disk.sync_directory(path)

    def listed(self, folder: str = "") -> Iterator[Listed]:
        try:
            kinds = self.names(folder)
        except FileNotFoundError:
            return
        begin = f"{folder}/" if folder else ""
        for last, kind in kinds.items():
            name = begin + last
            if kind == "folder":
                yield from self.listed(name)
            elif kind == "file":
                try:
                    status = os.lstat(f"{self.url}/{name}")
                except FileNotFoundError:
                    continue  # a temporary name, which was renamed or removed meanwhile
                yield Listed(name, status.st_size, _stamp(status))

    def _look(self, name: str) -> tuple[str, os.stat_result]:
        """The path of a name and what lies there, itself and not what a link leads to.

        Every part is looked at anew, so that no link on the way is followed. Text, not paths: this runs
        once a unit before a first batch.

        Raises:
            UnsafeError: a part that is to hold others is no folder, or leads out.
        """
        path = self.url
        if not name:  # what the user named may be a link; nothing inside may
            return path, os.stat(path)
        *folders, last = name.split("/")
        if last == ".." or ".." in folders:
            raise UnsafeError(f"{name!r} leads out of {self}")
        for folder in folders:
            path = f"{path}/{folder}"
            if not stat.S_ISDIR(os.lstat(path).st_mode):
                raise disk.stranger(path, "folder")
        path = f"{path}/{last}"
        return path, os.lstat(path)

    def _open(self, name: str) -> tuple[str, int]:
        """The path and a descriptor of a regular file: looked at before, since opening a device may do something."""
        path, status = self._look(name)
        if not stat.S_ISREG(status.st_mode):
            raise disk.stranger(path, "file")
        path = path if name else os.path.realpath(path)
        return path, disk.open_regular(path)[0]

    def __reduce__(self) -> tuple[Any, ...]:
        return Local, (self.url,)


class LocalFile:
    """See `File`; it is read through the descriptor `fd`.

    Where it is `owned`, it is closed with this, at the latest when nobody has this any more; else by who opened it.
    """

    def __init__(self, path: str | Path, fd: int, *, owned: bool = True) -> None:
        self._path = os.fspath(path)
        self._fd = fd
        self._was = _stamp(os.fstat(fd))
        self._closed = False
        self._closing = weakref.finalize(self, os.close, fd) if owned else None
        if self._closing is not None:
            self._closing.atexit = False  # another thread may still read then

    @property
    def fd(self) -> int:
        """The descriptor; once closed its number may be another file's."""
        if self._closed:
            raise ArgumentError(f"the reader of {self} is closed; open it again")
        return self._fd

    @property
    def size(self) -> int:
        return os.fstat(self.fd).st_size

    def read(self, offset: int, size: int) -> bytes:
        return disk.read_at(self.fd, offset, size)

    def is_current(self) -> bool:
        try:
            return os.path.samestat(os.stat(self._path), os.fstat(self.fd))
        except FileNotFoundError:
            return False

    def check(self) -> None:
        try:
            is_same = _stamp(os.stat(self._path)) == self._was
        except FileNotFoundError as error:
            raise StoreNotFoundError(f"there is no store at {str(self)!r} any more") from error
        if not is_same:
            raise FormatError(f"{self} is another store than before; open it again")

    def close(self) -> None:
        self._closed = True
        if self._closing is not None:
            self._closing()

    def __str__(self) -> str:
        return self._path


def _stamp(status: os.stat_result) -> tuple[int, int, int]:
    # Without the device, whose number each machine has its own of: writers on several compare these.
    return status.st_ino, status.st_size, status.st_mtime_ns
