"""What was fetched from behind a url, kept on this machine: a sparse file for each file, as far as it was read.

Nothing is given out that does not have the checksum with which it was kept, so that a cache that a power cut tore
costs requests, never rows. Several processes may share a folder.
"""

from __future__ import annotations

import hashlib
import os
import struct
import time
from bisect import bisect_right
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any
from zlib import crc32

from fostore import disk
from fostore.errors import ArgumentError, FostoreError
from fostore.places.place import Place, Version, VersionedFile

MAX_BYTES = 10 << 30
"""Of what a cache keeps, unless FOSTORE_CACHE_BYTES says otherwise."""
_REQUESTS = 32
_SLICE = 64 << 10
"""Bytes that have one checksum: one row of a large range is read without the rest of it."""
_MAX_LIST = 1 << 30
_RECORD = struct.Struct("<QQII")
"""start, stop, CRC-32 of those bytes, CRC-32 of the record until here."""
_DATA, _LIST = "data", "kept"


class Cached:
    """A `Place` whose ranges are kept in a folder; metadata is read anew, so that a store that changed is noticed.

    Files that have an ETag are kept. What was kept of a file is given out while the place has it with the same one: it
    is asked once, before the first range is given out, so a store that was opened stays the one that was opened.

    Args:
        place: where what is not kept is fetched from.
        folder: made when the first bytes are kept.
        max_bytes: about as much is kept, by default what FOSTORE_CACHE_BYTES says, else 10 GiB; the files that no
            process has opened for longest go first.
    """

    is_local = False

    def __init__(self, place: Place, folder: Path, max_bytes: int | None = None) -> None:
        self.place, self.folder = place, folder.absolute()
        self.max_bytes = _bound() if max_bytes is None else max_bytes
        self.url = place.url
        self._files: dict[tuple[str, Version], _Kept] = {}
        self._versions: dict[str, Version] = {}
        self._since = self.max_bytes

    def read(self, name: str, limit: int) -> bytes:
        """A small file as a whole, from its place; see `Place.read`."""
        return self.place.read(name, limit)

    def read_many(self, ranges: Sequence[tuple[str, int, int]]) -> list[tuple[bytes, Version]]:
        """Bytes of files with their versions: those that are kept, and the others fetched at once and kept."""
        asked = list(dict.fromkeys(ranges))
        self._look_up(dict.fromkeys(name for name, _, _ in asked))
        pieces: dict[tuple[str, int, int], tuple[bytes, Version]] = {}
        for one in asked:
            version = self._versions.get(one[0])
            data = None if version is None else self._kept(one[0], version).get(one[1], one[2])
            if data is not None:
                pieces[one] = data, version
        lacking = [one for one in asked if one not in pieces]
        if lacking:
            for one, (data, version) in zip(lacking, self.place.read_many(lacking), strict=True):
                pieces[one] = data, version
                self._versions[one[0]] = version
                self._keep(one[0], version, one[1], data)
        return [pieces[one] for one in ranges]

    def _look_up(self, names: dict[str, None]) -> None:
        """Ask for the versions of those files of which something is kept: of the others nothing can be given out."""
        unknown = [n for n in names if n not in self._versions and self._folder_of(n).is_dir()]
        if len(unknown) == 1:
            self._versions[unknown[0]] = self.place.version(unknown[0])
        elif unknown:
            with ThreadPoolExecutor(min(len(unknown), _REQUESTS), "fostore-cache") as pool:
                versions = list(pool.map(self.place.version, unknown))
            self._versions.update(zip(unknown, versions, strict=True))

    def open(self, name: str = "") -> VersionedFile:
        """A file that will be read more than once; see `Place.open`."""
        return VersionedFile(self, name)

    def size(self, name: str) -> int | None:
        """The bytes of a file; see `Place.size`."""
        return self.place.size(name)

    def names(self, folder: str = "") -> dict[str, str]:
        """What lies in a folder; see `Place.names`."""
        return self.place.names(folder)

    def sizes(self) -> dict[str, int]:
        """The bytes of each file; see `Place.sizes`."""
        return self.place.sizes()

    def version(self, name: str = "") -> Version:
        """What changes with a file; see `Place.version`."""
        version = self._versions[name] = self.place.version(name)
        return version

    def below(self, name: str) -> Cached:
        """The place that a name in this one is, in the same cache; see `Place.below`."""
        return Cached(self.place.below(name), self.folder, self.max_bytes)

    def _folder_of(self, name: str) -> Path:
        # Two object stores may have buckets of one name.
        where = f"{self.url}\0{os.environ.get('AWS_ENDPOINT_URL', '')}\0{name}"
        return self.folder / hashlib.sha256(where.encode()).hexdigest()[:40]

    def _kept(self, name: str, version: Version) -> _Kept:
        key = name, version
        kept = self._files.get(key)
        if kept is None:
            tag = hashlib.sha256(str(version).encode()).hexdigest()[:24]
            kept = self._files[key] = _Kept(self._folder_of(name) / tag)
        return kept

    def _keep(self, name: str, version: Version, start: int, data: bytes) -> None:
        # A time alone is no version for longer than a process: a file may change twice in a second.
        if not isinstance(version, str) or not data:
            return
        # A cache that cannot be written, or that another process makes room in, costs requests, nothing else.
        with suppress(FostoreError, OSError):
            self._kept(name, version).add(start, data)
            self._make_room(len(data))

    def _make_room(self, more: int) -> None:
        """Remove the files that were not opened for longest; looked at once in a while."""
        self._since += more
        if self._since < self.max_bytes // 20:
            return
        self._since = 0
        held = []
        for file in self.folder.glob(f"*/*/{_DATA}"):
            stat = file.stat()
            held.append((stat.st_mtime_ns, stat.st_blocks * 512, file.parent))
        total = sum(size for _, size, _ in held)
        for _, size, path in sorted(held):
            if total <= self.max_bytes:
                break
            self._files = {key: file for key, file in self._files.items() if file.path != path}
            disk.remove(path)
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
    """The ranges of one version of one file that are kept in a folder, each slice with its checksum.

    What is in memory is replaced, never changed, so that several threads need no lock: one that loses what another
    adds at the same time costs a request.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._ranges: list[tuple[int, int, int]] = []
        """Increasing (start, stop, CRC-32)."""
        with suppress(OSError):
            now = time.time()
            os.utime(path / _DATA, (now, now))  # who was opened last is removed last
        try:
            text = disk.read_named(path / _LIST, _MAX_LIST, "the list of a cache")
        except (FostoreError, OSError):
            return
        ranges = set()
        for at in range(0, len(text) - _RECORD.size + 1, _RECORD.size):
            record = text[at : at + _RECORD.size]
            start, stop, crc, own = _RECORD.unpack(record)
            if crc32(record[:-4]) == own and start < stop <= start + _SLICE:  # else torn
                ranges.add((start, stop, crc))
        self._ranges = sorted(ranges)

    def get(self, start: int, stop: int) -> bytes | None:
        """The bytes `[start, stop)` where slices that are kept hold them all, and still do."""
        ranges, pieces, at = self._ranges, [], start
        while at < stop:
            held = self._held(ranges, at)
            if held is None:
                return None
            first, last, crc = held
            data = self._read(first, last)
            if len(data) != last - first or crc32(data) != crc:
                self._ranges = [one for one in ranges if one != held]
                return None
            pieces.append(data[at - first : stop - first])
            at = last
        return b"".join(pieces)

    @staticmethod
    def _held(ranges: list[tuple[int, int, int]], at: int) -> tuple[int, int, int] | None:
        """The slice with the most bytes from `at` on, of those that hold it."""
        # None that begins a slice or more before can hold it.
        first = bisect_right(ranges, (at - _SLICE + 1, 0, 0))
        last = bisect_right(ranges, (at + 1, 0, 0))
        holding = [one for one in ranges[first:last] if one[1] > at]
        return max(holding, key=lambda one: one[1], default=None)

    def _read(self, start: int, stop: int) -> bytes:
        try:
            fd = disk.open_file(self.path / _DATA)
        except (FostoreError, OSError):
            return b""
        try:
            return disk.read_at(fd, start, stop - start)
        finally:
            os.close(fd)

    def add(self, start: int, data: bytes) -> None:
        """Keep bytes: first themselves, then the records that name them."""
        disk.make_folders(self.path)
        ranges = []
        for at in range(0, len(data), _SLICE):
            piece = data[at : at + _SLICE]
            ranges.append((start + at, start + at + len(piece), crc32(piece)))
        records = b""
        for one in ranges:
            record = _RECORD.pack(*one, 0)[:-4]
            records += record + struct.pack("<I", crc32(record))
        fd = disk.open_file(self.path / _DATA, write=True, create=True)
        try:
            disk.write_at(fd, data, start)
        finally:
            os.close(fd)
        fd = disk.open_file(self.path / _LIST, write=True, create=True)
        try:
            # Two processes that append at the same moment lose the records of one, which costs requests.
            size = os.fstat(fd).st_size
            disk.write_at(fd, records, size - size % _RECORD.size)
        finally:
            os.close(fd)
        self._ranges = sorted({*self._ranges, *ranges})


def _bound() -> int:
    """What FOSTORE_CACHE_BYTES says."""
    text = os.environ.get("FOSTORE_CACHE_BYTES", str(MAX_BYTES))
    if not text.isdecimal():
        raise ArgumentError(f"FOSTORE_CACHE_BYTES is {text!r}, expected a number of bytes")
    return int(text)
