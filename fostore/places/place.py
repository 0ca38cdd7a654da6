"""Where the bytes of a store lie, as a reader sees it: names to bytes, on this machine or behind a url.

Everything that a store is read from comes through here, as a stranger's: no link is followed, nothing but
regular files is read, and no more memory is taken than there are bytes. An object store is one more file in this
folder, and one line in `names.SCHEMES`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

from fostore.errors import ArgumentError, FormatError, StoreNotFoundError, UnsafeError

Version = Hashable
"""What tells that a file is still the one that was read before; None where there is none."""


class File(Protocol):
    """A file of a place, open: it stays the file that was opened, whatever takes its name.

    Safe for several threads and across forks. `str` of it names it in messages.
    """

    @property
    def size(self) -> int:
        """Its bytes, now: a writer may be at work."""
        ...

    def read(self, offset: int, size: int) -> bytes:
        """`size` bytes at `offset`; fewer, and no more memory taken, only where the file ends.

        Raises:
            ArgumentError: it is closed.
        """
        ...

    def is_current(self) -> bool:
        """Whether its name still leads to it; what is in it may have changed.

        Raises:
            ArgumentError: it is closed.
        """
        ...

    def check(self) -> None:
        """Refuse to go on with a file that nobody changes in place as if nothing had happened.

        Raises:
            StoreNotFoundError, FormatError: nothing, or another file, lies under its name now.
        """
        ...

    def close(self) -> None:
        """Release it; again is no error."""
        ...


@runtime_checkable
class Place(Protocol):
    """A folder of files or, under the name "", one file.

    Names are relative and their parts joined by "/". A place is a value: equal to another of the same
    url, it pickles as that, and holds nothing open. `str` of it names it in messages, so that f"{place}/{name}"
    names a file. Safe for several threads.

    Every method raises UnsafeError, naming it, for a link, a pipe or a device (of the root a link is followed: the
    user named it).
    """

    @property
    def url(self) -> str:
        """What opens it again; of a local place its absolute path."""
        ...

    @property
    def is_local(self) -> bool:
        """Whether its files can be mapped: `Local.path` leads to them."""
        ...

    def read(self, name: str, limit: int) -> bytes:
        """A small file as a whole.

        Raises:
            FileNotFoundError: there is none.
            UnsafeError: it has more than `limit` bytes.
        """
        ...

    def read_many(self, ranges: Sequence[tuple[str, int, int]]) -> list[tuple[bytes, Version]]:
        """The bytes `[start, stop)` of files, in the order asked for, each with the version that it is of.

        Fewer bytes where a file ends. Raises FileNotFoundError where one is missing.
        """
        ...

    def open(self, name: str = "") -> File:
        """A file that will be read more than once; the caller closes it.

        Raises:
            FileNotFoundError: there is none.
        """
        ...

    def size(self, name: str) -> int | None:
        """The bytes of a file; None where there is none."""
        ...

    def names(self, folder: str = "") -> dict[str, str]:
        """What lies in a folder: each name with "file" or "folder", or "" for a link, a pipe, a device.

        Raises:
            FileNotFoundError: there is no such folder.
        """
        ...

    def sizes(self) -> dict[str, int]:
        """The bytes of each file, however deep, by its name.

        Raises:
            FileNotFoundError: there is nothing.
            UnsupportedError: the place lists nothing, as a plain web server.
        """
        ...

    def version(self, name: str = "") -> Version:
        """What changes when another file, or folder, takes the name; None where there is nothing."""
        ...

    def below(self, name: str) -> Place:
        """The place that a folder, or file, in this one is. Nothing is looked at."""
        ...


class Listed(NamedTuple):
    """A file as a list has it: its name in the place, its bytes, and the version that it is of."""

    name: str
    size: int
    version: Version


@runtime_checkable
class Storage(Place, Protocol):
    """A place that several processes write at once, on any machines, without a lock: every file appears whole.

    Nothing is promised of two calls together: what must change at once is one file.
    """

    def put(self, name: str, data: Any, replaces: Version = None) -> Version:
        """Make a file of bytes (whatever `memoryview` takes), durable when this returns.

        Args:
            replaces: None makes a new file; else the file must still be of this version.

        Returns:
            Its version, which `version` and `listed` give as well; None where nothing was written: the name
            is taken, or leads to another version by now.

        Raises:
            SpaceError, PlaceError: it could not be written; whether it is there is not known, it is never half there.
        """
        ...

    def delete(self, names: Iterable[str]) -> None:
        """Remove files; one that is not there is no error."""
        ...

    def listed(self, folder: str = "") -> Iterator[Listed]:
        """Every file below a folder, however deep, unfinished ones too; nothing where there is no such folder."""
        ...


class ByUrl(ABC):
    """What every place is: equal to another of its kind, and shown, by its url."""

    url: str

    @abstractmethod
    def names(self, folder: str = "") -> dict[str, str]:
        """See `Place.names`."""

    @abstractmethod
    def size(self, name: str) -> int | None:
        """See `Place.size`."""

    def sizes(self) -> dict[str, int]:
        """The bytes of each file, folder by folder; see `Place.sizes`."""
        sizes, pending = {}, [""]
        while pending:
            folder = pending.pop()
            for leaf, kind in self.names(folder).items():
                name = f"{folder}/{leaf}".lstrip("/")
                if kind == "folder":
                    pending.append(name)
                elif kind != "file":
                    raise UnsafeError(
                        f"{self}/{name} is no regular file, nor a folder; no bundle has anything else"
                    )
                else:
                    sizes[name] = self.size(name) or 0
        return sizes

    def __str__(self) -> str:
        return self.url

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.url!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, type(self)) and self.url == other.url

    def __hash__(self) -> int:
        return hash(self.url)


class VersionedFile:
    """A `File` of a place that keeps none open: whatever is read has a version, and another one is refused."""

    def __init__(self, place: Place, name: str) -> None:
        self._place, self._name = place, name
        self._version = place.version(name)
        if self._version is None:
            raise FileNotFoundError(f"there is no {self}")
        self._closed = False

    @property
    def size(self) -> int:
        return self._place.size(self._name) or 0

    def read(self, offset: int, size: int) -> bytes:
        self._check_open()
        try:
            # With the bytes comes their version: a look before or after could be at another file.
            ((data, version),) = self._place.read_many([(self._name, offset, offset + size)])
        except FileNotFoundError as error:
            raise StoreNotFoundError(f"there is no store at {str(self)!r} any more") from error
        self._expect(version)
        return data

    def is_current(self) -> bool:
        self._check_open()
        return self._place.version(self._name) == self._version

    def check(self) -> None:
        self._expect(self._place.version(self._name))

    def _check_open(self) -> None:
        if self._closed:
            raise ArgumentError(f"the reader of {self} is closed; open it again")

    def _expect(self, version: Version) -> None:
        if version is None:
            raise StoreNotFoundError(f"there is no store at {str(self)!r} any more")
        if version != self._version:
            raise FormatError(f"{self} is another store than before; open it again")

    def close(self) -> None:
        self._closed = True

    def __str__(self) -> str:
        return f"{self._place}/{self._name}" if self._name else str(self._place)
