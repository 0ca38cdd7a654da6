"""The files of a bundle and their hashes, and whether a folder still holds them.

The two lists are those of BagIt (RFC 8493): one for `data/`, one for all that describes it. `sha256sum -c`
takes both. The tree digest is that of the OpenSSF model signature (sigstore model-signing 1.1, method "files"):
SHA-256 over the files' SHA-256, in the order of their names, folder by folder.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from fostore import disk
from fostore.errors import ArgumentError, FormatError, PlaceError, UnsafeError
from fostore.places.names import is_outside
from fostore.places.place import Place
from fostore.progress import Progress

PAYLOAD, TAGS = "manifest-sha256.txt", "tagmanifest-sha256.txt"
_LINE = re.compile(r"([0-9a-f]{64})  (.+)\Z")
_READ_BYTES = 4 << 20
MAX_LIST = 64 << 20
_THREADS = 16
"""Files that are hashed at a time."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A file of a bundle: its name from the bundle's root (with /), its bytes and their SHA-256."""

    name: str
    size: int
    sha256: str


def files_below(folder: Path) -> Iterator[tuple[str, Path]]:
    """The regular files below a folder, by their names from it, in the order of the tree digest.

    Raises:
        UnsafeError: a link, a pipe or a device lies among them.
    """
    pending = [folder]
    names: list[tuple[PurePosixPath, Path]] = []
    while pending:
        with os.scandir(pending.pop()) as entries:
            for entry in entries:
                mode = entry.stat(follow_symlinks=False).st_mode
                path = Path(entry.path)
                if stat.S_ISDIR(mode):
                    pending.append(path)
                elif stat.S_ISREG(mode):
                    names.append((PurePosixPath(path.relative_to(folder).as_posix()), path))
                else:
                    raise UnsafeError(
                        f"{path} is no regular file; a bundle holds files and folders alone"
                    )
    # By the parts of their names, as PurePosixPath compares: "a/b" comes before "a-b".
    return ((str(name), path) for name, path in sorted(names, key=lambda one: one[0].parts))


def hash_file(path: Path) -> tuple[int, str]:
    """The bytes of a file and their SHA-256; a link is an error."""
    fd = disk.open_file(path)
    try:
        total, at = hashlib.sha256(), 0
        while piece := disk.read_at(fd, at, _READ_BYTES):
            total.update(piece)
            at += len(piece)
        return at, total.hexdigest()
    finally:
        os.close(fd)


def tree_digest(files: Iterable[Entry], below: str) -> str:
    """SHA-256 over the hashes of the files below `below` ("data/"), in the order of their names."""
    inside = sorted(
        (PurePosixPath(file.name.removeprefix(below)).parts, file.sha256)
        for file in files
        if file.name.startswith(below)
    )
    return hashlib.sha256(b"".join(bytes.fromhex(one) for _, one in inside)).hexdigest()


def listed(files: Iterable[Entry]) -> bytes:
    """The list that `sha256sum -c` takes: a hash, two spaces, a name; a line each."""
    return "".join(f"{file.sha256}  {file.name}\n" for file in files).encode("utf-8")


def read_list(folder: Path, name: str) -> dict[str, str]:
    """The SHA-256 of each file that a list of a bundle names; see `parse_list`."""
    text = disk.read_named(folder / name, MAX_LIST, "a list of files and their SHA-256")
    return parse_list(text, str(folder / name))


def parse_list(text: bytes, where: str) -> dict[str, str]:
    """The SHA-256 of each file that a list names.

    Raises:
        FormatError: a line is no hash and name, or a file stands there twice.
        UnsafeError: a name leads out of the bundle.
    """
    if text[-1:] not in (b"\n", b""):
        raise FormatError(f"{where} is cut: its last line has no end")
    hashes: dict[str, str] = {}
    for number, line in enumerate(text.decode("utf-8", "replace").splitlines(), 1):
        parsed = _LINE.match(line)
        if parsed is None:
            raise FormatError(f"{where}: line {number} is no SHA-256, two spaces and a name")
        if is_outside(parsed[2]):
            raise UnsafeError(f"{where}: line {number} names {parsed[2]!r}, outside the bundle")
        if parsed[2] in hashes:
            raise FormatError(f"{where}: line {number} names {parsed[2]!r} once more")
        hashes[parsed[2]] = parsed[1]
    return hashes


def refuse_unlistable(names: Iterable[str]) -> None:
    """Refuse names that the lists cannot hold as they are: BagIt escapes them one way, `sha256sum` another.

    Raises:
        ArgumentError: names the file, and what to do.
    """
    for name in names:
        if is_outside(name) or "%" in name or not name.isprintable():
            raise ArgumentError(
                f"a bundle cannot hold a file called {name!r}: rename the store, without % and \\ and "
                "without characters that cannot be printed"
            )


def hashed(
    place: Place, names: Iterable[str], bar: Progress
) -> Iterator[tuple[str, tuple[int, str] | OSError]]:
    """The bytes of files of a place and their SHA-256, some files at a time; an error where one cannot be read.

    Raises:
        PlaceError: a service is not reached, which says nothing of a file.
    """

    def look(name: str) -> tuple[str, tuple[int, str] | OSError]:
        try:
            return name, _hashed(place, name, bar)
        except OSError as error:
            if isinstance(error, PlaceError) and not place.is_local:
                raise
            return name, error

    pool = ThreadPoolExecutor(_THREADS, "fostore-hash")
    try:
        yield from pool.map(look, names)
    finally:
        pool.shutdown(cancel_futures=True)  # who stops in the middle does not wait for the rest


def _hashed(place: Place, name: str, bar: Progress) -> tuple[int, str]:
    total, at, versions = hashlib.sha256(), 0, set()
    while True:
        ((data, version),) = place.read_many([(name, at, at + _READ_BYTES)])
        total.update(data)
        at += len(data)
        bar.add(len(data))
        versions.add(version)
        if len(versions) > 1:
            raise OSError("it was changed meanwhile")
        if len(data) < _READ_BYTES:
            return at, total.hexdigest()
