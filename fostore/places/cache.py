"""What was fetched from behind a url, kept on this machine: a sparse file for each file, as far as it was read.

Nothing is given out that does not have the checksum with which it was kept, so that a cache that a power cut tore
costs requests, never rows. Several processes may share a folder.
"""

from __future__ import annotations

import hashlib
import os
import struct
from bisect import bisect_right
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from zlib import crc32

from fostore import disk
from fostore.errors import SpaceError
from fostore.places.place import Place, Version, VersionedFile

MAX_BYTES = 10 << 30
"""Of the rows that a cache keeps, unless `FOSTORE_CACHE_BYTES` says otherwise."""
_RECORD = struct.Struct(
    "<QQII"
)  # start, stop, CRC-32 of those bytes, CRC-32 of the record until here
_DATA, _LIST = "data", "kept"


class Cached:
    """A `Place` whose ranges are kept in a folder; metadata is read anew, so that a store that changed is noticed.

    Args:
        place: where what is not kept is fetched from.
        folder: made when the first bytes are kept.
        max_bytes: files that were not used for longest go first when more is kept.
    """

    is_local = False

    def __init__(self, place: Place, folder: Path, max_bytes: int = MAX_BYTES) -> None:
        self.place, self.folder, self.max_bytes = place, folder, max_bytes
        self.url = place.url
        self._files: dict[tuple[str, Version], _Kept] = {}
        self._versions: dict[str, Version] = {}

    def read(self, name: str, limit: int) -> bytes:
        """A small file as a whole, from its place; see `Place.read`."""
        return self.place.read(name, limit)

    def read_many(self, ranges: Sequence[tuple[str, int, int]]) -> list[tuple[bytes, Version]]:
        """Bytes of files with their versions: those that are kept, and the others fetched at once and kept."""
        for name in dict.fromkeys(name for name, _, _ in ranges):
            if name not in self._versions:
                self._versions[name] = self.place.version(name)
        pieces: dict[tuple[str, int, int], tuple[bytes, Version]] = {}
        for one in dict.fromkeys(ranges):
            version = self._versions[one[0]]
            data = None if version is None else self._kept(one[0], version).get(one[1], one[2])
            if data is not None:
                pieces[one] = data, version
        lacking = [one for one in dict.fromkeys(ranges) if one not in pieces]
        if lacking:
            for one, (data, version) in zip(lacking, self.place.read_many(lacking), strict=True):
                pieces[one] = data, version
                self._versions[one[0]] = version
                self._keep(one[0], version, one[1], data)
        return [pieces[one] for one in ranges]

    def open(self, name: str = "") -> VersionedFile:
        """A file that will be read more than once; see `Place.open`."""
        return VersionedFile(self, name)

    def size(self, name: str) -> int | None:
        """The bytes of a file; see `Place.size`."""
        return self.place.size(name)

    def names(self, folder: str = "") -> dict[str, str]:
        """What lies in a folder; see `Place.names`."""
        return self.place.names(folder)

    def version(self, name: str = "") -> Version:
        """What changes with a file; see `Place.version`."""
        version = self._versions[name] = self.place.version(name)
        return version

    def _kept(self, name: str, version: Version) -> _Kept:
        key = name, version
        if key not in self._files:
            text = f"{self.url}\0{name}\0{version}".encode()
            self._files[key] = _Kept(self.folder / hashlib.sha256(text).hexdigest()[:40])
        return self._files[key]

    def _keep(self, name: str, version: Version, start: int, data: bytes) -> None:
        if version is None or not data:
            return
        try:
            self._kept(name, version).add(start, data)
            self._make_room(len(data))
        except (SpaceError, OSError):
            return  # a cache that cannot be written costs requests, nothing else

    def _make_room(self, more: int) -> None:
        """Remove the files that were not used for longest; looked at once in a while."""
        self._since = getattr(self, "_since", self.max_bytes) + more
        if self._since < self.max_bytes // 20:
            return
        self._since = 0
        held = []
        with os.scandir(self.folder) as entries:
            for entry in entries:
                file = Path(entry.path, _DATA)
                if file.exists():
                    stat = file.stat()
                    held.append((stat.st_mtime_ns, stat.st_blocks * 512, entry.path))
        total = sum(size for _, size, _ in held)
        for _, size, path in sorted(held):
            if total <= self.max_bytes:
                break
            self._files = {key: file for key, file in self._files.items() if str(file.path) != path}
            disk.remove(Path(path))
            total -= size

    def __str__(self) -> str:
        return str(self.place)

    def __repr__(self) -> str:
        return f"Cached({self.place!r}, {str(self.folder)!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Cached) and (self.place, self.folder) == (
            other.place,
            other.folder,
        )

    def __hash__(self) -> int:
        return hash((self.place, self.folder))

    def __reduce__(self) -> tuple[Any, ...]:
        return Cached, (self.place, self.folder, self.max_bytes)


class _Kept:
    """The ranges of one version of one file that are kept in a folder, each with its checksum."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._starts: list[int] = []
        self._ranges: list[tuple[int, int, int]] = []
        try:
            text = disk.read_named(path / _LIST, 1 << 30, "the list of a cache")
        except OSError:
            text = b""
        for at in range(0, len(text) - _RECORD.size + 1, _RECORD.size):
            record = text[at : at + _RECORD.size]
            start, stop, crc, own = _RECORD.unpack(record)
            if crc32(record[:-4]) == own and start < stop:  # else torn
                self._insert(start, stop, crc)

    def _insert(self, start: int, stop: int, crc: int) -> None:
        at = bisect_right(self._starts, start)
        self._starts.insert(at, start)
        self._ranges.insert(at, (start, stop, crc))

    def get(self, start: int, stop: int) -> bytes | None:
        """The bytes `[start, stop)` where one kept range holds them whole, and still does."""
        at = bisect_right(self._starts, start) - 1
        while at >= 0:
            first, last, crc = self._ranges[at]
            if last >= stop:
                data = self._read(first, last)
                if len(data) == last - first and crc32(data) == crc:
                    return data[start - first : stop - first]
                del self._ranges[at], self._starts[at]
            if first + _FAR < start:
                break
            at -= 1
        return None

    def _read(self, start: int, stop: int) -> bytes:
        try:
            fd = disk.open_file(self.path / _DATA)
        except OSError:
            return b""
        try:
            return disk.read_at(fd, start, stop - start)
        finally:
            os.close(fd)

    def add(self, start: int, data: bytes) -> None:
        """Keep bytes: first themselves, then the record that names them."""
        disk.make_folders(self.path)
        crc = crc32(data)
        record = _RECORD.pack(start, start + len(data), crc, 0)
        record = record[:-4] + struct.pack("<I", crc32(record[:-4]))
        fd = disk.open_file(self.path / _DATA, write=True, create=True)
        try:
            disk.write_at(fd, data, start)
        finally:
            os.close(fd)
        fd = disk.open_file(self.path / _LIST, write=True, create=True)
        try:
            size = os.fstat(fd).st_size
            disk.write_at(fd, record, size - size % _RECORD.size)
        finally:
            os.close(fd)
        self._insert(start, start + len(data), crc)


_FAR = 8 << 20
"""The most bytes of a range: none that begins further before can hold what is looked for."""
