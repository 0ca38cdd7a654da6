"""A disk that forgets: what a run asks of the operating system, and the states that a power cut may leave of it.

The calls of `os` are recorded, not those of fostore, so that a new way to write cannot pass by unseen:
`Recorder.check` compares what was recorded with what really lies on the disk.
"""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fostore import disk

ROOT = 0
"""The number of the folder that is watched. Files and folders keep their numbers when they are renamed."""

SECTOR, PAGE = 512, 4096
"""A disk writes sectors whole; the page cache goes to it a page at a time."""


@dataclass(frozen=True, slots=True)
class Write:
    """Bytes that were written into a file, or a new size (`data` None) that it was given."""

    file: int
    offset: int
    data: bytes | None


@dataclass(frozen=True, slots=True)
class Names:
    """Entries of folders that change at once: (folder, name, what it leads to; None: it is gone)."""

    entries: tuple[tuple[int, str, int | None], ...]

    @property
    def folders(self) -> set[int]:
        """The folders whose entries these are."""
        return {folder for folder, _, _ in self.entries}


@dataclass(frozen=True, slots=True)
class Sync:
    """A file whose data, or a folder whose names are durable from here on."""

    number: int


@dataclass(frozen=True, slots=True)
class Promise:
    """What fostore has said to its caller by now."""

    said: Any


@dataclass
class Disk:
    """Folders (their entries) and files (their bytes), by number."""

    folders: dict[int, dict[str, int]] = field(default_factory=lambda: {ROOT: {}})
    files: dict[int, bytes] = field(default_factory=dict)

    def copy(self) -> Disk:
        """The same, to be changed."""
        return Disk({n: dict(names) for n, names in self.folders.items()}, dict(self.files))

    def paths(self, folder: int = ROOT, prefix: str = "") -> Iterator[tuple[str, bytes | None]]:
        """Whatever has a name, as (path, bytes), folders before what is in them; None for a folder."""
        for name, number in sorted(self.folders[folder].items()):
            if number in self.files:
                yield prefix + name, self.files[number]
            else:
                yield prefix + name, None
                yield from self.paths(number, f"{prefix}{name}/")

    def lay(self, root: Path) -> None:
        """Make it real below a folder that is not there yet."""
        root.mkdir()
        for name, data in self.paths():
            if data is None:
                (root / name).mkdir()
            else:
                (root / name).write_bytes(data)


class Recorder:
    """Notes every call of `os` that changes something below `root`, while the block lasts.

    What lies there when the block begins is durable. Syncs are noted and not waited for.
    """

    def __init__(self, root: Path) -> None:
        self.root = os.path.realpath(root)
        self.log: list[Write | Names | Sync | Promise] = []
        self.now = Disk()
        self._numbers: dict[tuple[int, int], int] = {}
        self._next = ROOT
        self._guard = threading.RLock()
        self._real: dict[str, Any] = {}
        self._number(os.stat(self.root), ROOT)
        self._load(self.root, ROOT)
        self.before = self.now.copy()

    def promise(self, said: Any) -> None:
        """Note what the caller was told, at this point of the run."""
        with self._guard:
            self.log.append(Promise(said))

    def check(self) -> None:
        """Raise unless what was recorded is what lies on the disk: else something wrote past the recorder."""
        found = Recorder(Path(self.root)).now
        assert dict(found.paths()) == dict(self.now.paths())

    # ------------------------------------------------------------ numbers

    def _number(self, info: os.stat_result, number: int | None = None) -> int:
        if number is None:
            self._next += 1
            number = self._next
        self._numbers[info.st_dev, info.st_ino] = number
        return number

    def _load(self, path: str, number: int) -> None:
        for entry in sorted(os.scandir(path), key=lambda entry: entry.name):
            child = self._number(entry.stat(follow_symlinks=False))
            self.now.folders[number][entry.name] = child
            if entry.is_dir(follow_symlinks=False):
                self.now.folders[child] = {}
                self._load(entry.path, child)
            else:
                self.now.files[child] = Path(entry.path).read_bytes()

    def _where(self, path: Any, dir_fd: int | None = None) -> tuple[int, str] | None:
        """The folder and the name that a path means; None outside of what is watched, or of what is there."""
        text = os.fsdecode(path)
        if dir_fd is not None:
            text = os.path.join(os.readlink(f"/proc/self/fd/{dir_fd}"), text)
        text = os.path.join(
            os.path.realpath(os.path.dirname(os.path.abspath(text))), os.path.basename(text)
        )
        if not text.startswith(self.root + os.sep):
            return None
        *parents, name = text[len(self.root) + 1 :].split(os.sep)
        number = ROOT
        for parent in parents:
            if parent not in self.now.folders.get(number, {}):
                return None
            number = self.now.folders[number][parent]
        return number, name

    def _of(self, fd: int) -> int | None:
        """The number of an open file or folder below `root`."""
        info = os.fstat(fd)
        return self._numbers.get((info.st_dev, info.st_ino))

    def _names(self, *entries: tuple[int, str, int | None]) -> None:
        for folder, name, number in entries:
            self.now.folders[folder].pop(name, None)
            if number is not None:
                self.now.folders[folder][name] = number
        self.log.append(Names(entries))

    def _wrote(self, number: int, offset: int, data: bytes | None) -> None:
        event = Write(number, offset, data)
        self.now.files[number] = applied(self.now.files[number], event)
        self.log.append(event)

    # ------------------------------------------------------------ stand-ins for calls

    def __enter__(self) -> Recorder:
        stand_ins = {
            name.removeprefix("_os_"): getattr(self, name)
            for name in dir(self)
            if name.startswith("_os_")
        }
        for name, call in stand_ins.items():
            self._real[name] = getattr(os, name)
            setattr(os, name, call)
        self._real["exchange"] = disk.exchange
        disk.exchange = self._exchange
        return self

    def __exit__(self, *_: object) -> None:
        disk.exchange = self._real.pop("exchange")
        for name, call in self._real.items():
            setattr(os, name, call)

    def _os_open(
        self, path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None
    ) -> int:
        with self._guard:
            where = self._where(path, dir_fd)
            fd: int = self._real["open"](path, flags, mode, dir_fd=dir_fd)
            if where is not None and where[1] not in self.now.folders[where[0]]:
                number = self._number(os.fstat(fd))
                self.now.files[number] = b""
                self._names((*where, number))
            elif where is not None and flags & os.O_TRUNC:
                self._wrote(self.now.folders[where[0]][where[1]], 0, None)
            return fd

    def _os_pwrite(self, fd: int, data: Any, offset: int) -> int:
        with self._guard:
            written: int = self._real["pwrite"](fd, data, offset)
            number = self._of(fd)
            if number is not None:
                self._wrote(number, offset, bytes(memoryview(data).cast("B")[:written]))
            return written

    def _os_write(self, fd: int, data: Any) -> int:
        with self._guard:
            number = self._of(fd)
            offset = 0 if number is None else os.lseek(fd, 0, os.SEEK_CUR)
            written: int = self._real["write"](fd, data)
            if number is not None:
                self._wrote(number, offset, bytes(memoryview(data).cast("B")[:written]))
            return written

    def _os_ftruncate(self, fd: int, size: int) -> None:
        with self._guard:
            self._real["ftruncate"](fd, size)
            number = self._of(fd)
            if number is not None:
                self._wrote(number, size, None)

    def _os_posix_fallocate(self, fd: int, offset: int, size: int) -> None:
        with self._guard:
            self._real["posix_fallocate"](fd, offset, size)
            number = self._of(fd)
            if number is not None and offset + size > len(self.now.files[number]):
                self._wrote(number, offset + size, None)

    def _os_mkdir(self, path: Any, mode: int = 0o777, *, dir_fd: int | None = None) -> None:
        with self._guard:
            where = self._where(path, dir_fd)
            self._real["mkdir"](path, mode, dir_fd=dir_fd)
            if where is not None:
                number = self._number(os.stat(path, dir_fd=dir_fd))
                self.now.folders[number] = {}
                self._names((*where, number))

    def _os_link(self, source: Any, target: Any) -> None:
        with self._guard:
            here, there = self._where(source), self._where(target)
            self._real["link"](source, target)
            if here is not None and there is not None:
                self._names((*there, self.now.folders[here[0]][here[1]]))

    def _os_unlink(self, path: Any, *, dir_fd: int | None = None) -> None:
        with self._guard:
            where = self._where(path, dir_fd)
            self._real["unlink"](path, dir_fd=dir_fd)
            if where is not None:
                self._names((*where, None))

    _os_remove = _os_unlink

    def _os_rmdir(self, path: Any, *, dir_fd: int | None = None) -> None:
        with self._guard:
            where = self._where(path, dir_fd)
            self._real["rmdir"](path, dir_fd=dir_fd)
            if where is not None:
                self._names((*where, None))

    def _os_rename(self, source: Any, target: Any) -> None:
        with self._guard:
            one, two = self._where(source), self._where(target)
            self._real["rename"](source, target)
            if one is None or two is None:
                raise AssertionError("a rename into what is watched, or out of it")
            self._names((*one, None), (*two, self.now.folders[one[0]][one[1]]))

    _os_replace = _os_rename

    def _exchange(self, one: Path, other: Path) -> None:
        with self._guard:
            first, second = self._where(one), self._where(other)
            if first is None or second is None:
                raise AssertionError("an exchange with what is not watched")
            self._real["exchange"](one, other)
            numbers = [self.now.folders[folder][name] for folder, name in (first, second)]
            self._names((*first, numbers[1]), (*second, numbers[0]))

    def _os_fsync(self, fd: int) -> None:
        with self._guard:
            number = self._of(fd)
            if number is not None:
                self.log.append(Sync(number))

    _os_fdatasync = _os_fsync


# ---------------------------------------------------------------- what a power cut leaves


def applied(data: bytes, write: Write) -> bytes:
    """The bytes of a file after a write."""
    if write.data is None:
        return data[: write.offset].ljust(write.offset, b"\0")
    data = data.ljust(write.offset, b"\0")
    return data[: write.offset] + write.data + data[write.offset + len(write.data) :]


@dataclass(frozen=True, slots=True)
class Cut:
    """How much of what nobody synced a power cut leaves.

    `names`: "ordered", one journal keeps all changes of names in order (ext4, xfs); "apart", each folder
    keeps its own. `lost`: "all" of what was not synced, "nothing", or "some".
    """

    names: str
    lost: str


def cut(run: Recorder, end: int, how: Cut, chance: random.Random) -> Disk:
    """A state that a power cut after the first `end` entries of a run's log may leave."""
    log, left = run.log[:end], run.before.copy()
    synced = {event.number: at for at, event in enumerate(log) if isinstance(event, Sync)}
    for event in _kept_names(log, synced, how, chance):
        for folder, name, number in event.entries:
            entries = left.folders.setdefault(folder, {})
            entries.pop(name, None)
            if number is None:
                continue
            entries[name] = number
            if number in run.now.folders:
                left.folders.setdefault(number, {})
            else:
                left.files.setdefault(number, b"")
    for at, write in enumerate(log):
        if not isinstance(write, Write):
            continue
        held = left.files.get(write.file, b"")
        if synced.get(write.file, -1) > at or how.lost == "nothing":
            left.files[write.file] = applied(held, write)
        elif how.lost == "some":
            left.files[write.file] = _torn(held, write, chance)
    return left


def _kept_names(
    log: Sequence[Write | Names | Sync | Promise],
    synced: dict[int, int],
    how: Cut,
    chance: random.Random,
) -> list[Names]:
    changes = [(at, event) for at, event in enumerate(log) if isinstance(event, Names)]
    durable = {at for at, event in changes if any(synced.get(f, -1) > at for f in event.folders)}
    if how.names == "ordered":
        last = max(durable, default=-1)
        ends = [last, *(at for at, _ in changes if at > last)]
        end = chance.choice({"all": ends[:1], "nothing": ends[-1:]}.get(how.lost, ends))
        return [event for at, event in changes if at <= end]
    # What is durable takes with it all that came before it in any of its folders, and so on.
    for at, event in reversed(changes):
        if at not in durable:
            later = (f.folders for b, f in changes if b in durable and b > at)
            if any(event.folders & folders for folders in later):
                durable.add(at)
    kept, stopped = [], set()
    for at, event in changes:
        stays = how.lost == "nothing" or (how.lost == "some" and chance.random() < 0.7)
        if at in durable or (stays and not event.folders & stopped):
            kept.append(event)
        else:
            stopped |= event.folders
    return kept


def _torn(held: bytes, write: Write, chance: random.Random) -> bytes:
    """What may be left of a write that nobody synced: all, nothing, a head, single sectors or pages, zeros."""
    way = chance.choice(("whole", "lost", "head", "sectors", "pages", "zeros"))
    if way == "lost" or (write.data is None and way != "whole"):
        return held
    if way == "whole" or write.data is None:
        return applied(held, write)
    new, start, stop = write.data, write.offset, write.offset + len(write.data)
    old = held[start:stop].ljust(len(new), b"\0")
    if way == "zeros":  # the size is there and the bytes are not
        return applied(held, Write(write.file, start, old))
    if way == "head":
        end = chance.randrange(len(new) + 1)
        end = max(end - (start + end) % SECTOR, 0) if end < len(new) else end
        return applied(held, Write(write.file, start, new[:end])) if end else held
    size = SECTOR if way == "sectors" else PAGE
    mixed, at = bytearray(old), 0
    while at < len(new):
        end = min(len(new), at + size - (start + at) % size)
        if chance.random() < 0.5:
            mixed[at:end] = new[at:end]
        at = end
    return applied(held, Write(write.file, start, bytes(mixed)))
