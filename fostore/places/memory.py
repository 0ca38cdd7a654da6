"""A place in the memory of this process: the oracle of the tests, and the smallest example of one behind a url."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

from fostore.errors import ArgumentError, UnsafeError
from fostore.places.place import ByUrl, Listed, Version, VersionedFile

# Weak: a test that ends leaves nothing behind, and its url can be given again.
_places: WeakValueDictionary[str, Memory] = WeakValueDictionary()


class Memory(ByUrl):
    """A `Place` of bytes by their names; `files` may be changed while a reader is at work.

    A file is another one where its bytes are other ones. The place is found by its url while somebody holds it.
    """

    is_local = False

    def __init__(self, url: str, files: Mapping[str, bytes]) -> None:
        self.url = url
        self.files = dict(files)
        self._guard = threading.Lock()
        _places[url] = self

    @classmethod
    def of(cls, url: str, path: Path) -> Memory:
        """A copy of a folder, or of a file, of this machine."""
        files = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]
        named = {p.relative_to(path).as_posix(): p.read_bytes() for p in files}
        return cls(url, {"" if name == "." else name: data for name, data in named.items()})

    def read(self, name: str, limit: int) -> bytes:
        data = self._file(name)
        if len(data) > limit:
            raise UnsafeError(f"{self}/{name} has {len(data):,} bytes, expected at most {limit:,}")
        return data

    def read_many(self, ranges: Sequence[tuple[str, int, int]]) -> list[tuple[bytes, Version]]:
        files = [(self._file(name), start, stop) for name, start, stop in ranges]
        # The hash stands for the etag of an object store: other bytes, another version.
        return [(data[start:stop], hash(data)) for data, start, stop in files]

    def open(self, name: str = "") -> VersionedFile:
        return VersionedFile(self, name)

    def size(self, name: str) -> int | None:
        return len(self.files[name]) if name in self.files else None

    def names(self, folder: str = "") -> dict[str, str]:
        begin = f"{folder}/" if folder else ""
        inside = [name.removeprefix(begin) for name in self.files if name.startswith(begin)]
        if not inside:
            raise FileNotFoundError(f"there is no {self}/{folder}")
        return {name.split("/")[0]: "folder" if "/" in name else "file" for name in inside}

    def version(self, name: str = "") -> Version:
        """A hash of the bytes of a file; of a folder its name. None where there is nothing."""
        if name in self.files:
            return hash(self.files[name])
        return name if any(n.startswith(f"{name}/" if name else "") for n in self.files) else None

    def below(self, name: str) -> Memory:
        """A copy of what lies below a name."""
        begin = f"{name}/"
        files = {n.removeprefix(begin): d for n, d in self.files.items() if n.startswith(begin)}
        return Memory(f"{self.url}/{name}", files or {"": self._file(name)})

    def put(self, name: str, data: Any, replaces: Version = None) -> Version:
        with self._guard:
            if self.version(name) != replaces:
                return None
            self.files[name] = bytes(memoryview(data))
            return self.version(name)

    def delete(self, names: Iterable[str]) -> None:
        for name in names:
            self.files.pop(name, None)

    def listed(self, folder: str = "") -> Iterator[Listed]:
        begin = f"{folder}/" if folder else ""
        for name, data in list(self.files.items()):
            if name.startswith(begin):
                yield Listed(name, len(data), hash(data))

    def _file(self, name: str) -> bytes:
        if name not in self.files:
            raise FileNotFoundError(f"there is no {self}/{name}")
        return self.files[name]

    def __reduce__(self) -> tuple[Any, ...]:
        return place_of_url, (self.url,)


def place_of_url(url: str) -> Memory:
    """The place that has this url in this process.

    Raises:
        ArgumentError: none has.
    """
    place = _places.get(url)
    if place is None:
        raise ArgumentError(f"{url!r} is in the memory of another process, or of none any more")
    return place
