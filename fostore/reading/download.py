"""Stores from behind a url to this machine: rows into a cache, or all files, whole and checked or not at all."""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fostore import disk
from fostore.errors import ArgumentError, DamageError, FostoreError, StoreExistsError
from fostore.places.cache import Cached
from fostore.places.lock import Lock
from fostore.places.names import destination
from fostore.places.place import Place, Version
from fostore.progress import Progress
from fostore.schema.row import Array

if TYPE_CHECKING:
    from fostore.reading.store import Store

_PIECE = 4 << 20
_BATCH_BYTES = 64 << 20
_THREADS = 32
_DIGEST, _PARTS = "digest", "parts"


def prefetch(store: Store, rows: Array) -> None:
    """Fetch rows (int64, committed) into the cache; see `Stored.prefetch`."""
    asked, place = np.unique(rows), store.place
    if place.is_local:
        return
    if not isinstance(place, Cached):
        raise ArgumentError(
            f"{place} was opened without a cache, where rows could be kept; give fostore.open cache_dir=, "
            "or set FOSTORE_CACHE"
        )
    for index, column in enumerate(store.schema.columns):
        view = store.reader.column(index)
        step = max(_BATCH_BYTES // column.row_bytes, 1)
        for start in range(0, len(asked), step):
            view.take(asked[start : start + step])


def download(store: Store, path: str | os.PathLike[str], progress: bool) -> Path:
    """Fetch all files of a store; see `Committed.download`."""
    digest, target, place = store.digest(), destination(path), store.place
    if isinstance(place, Cached):
        place = place.place  # nobody needs the rows twice on one machine
    suffix = Path(place.url).suffix.lower()
    if target.suffix.lower() != suffix:
        raise ArgumentError(
            f"{str(path)!r} has the suffix {target.suffix!r}, and the store has {suffix!r}: its files are "
            "fetched as they are; fostore.convert makes others of them"
        )
    if not os.path.lexists(target):
        disk.make_folders(target.parent)
        with Lock.acquire(target):  # two at once would write the same files
            if not os.path.lexists(target):  # else another call has just brought it
                _download(store, place, target, digest, progress)
                return target
    _expect_same(store, target)
    return target


def _download(store: Store, place: Place, target: Path, digest: str, shown: bool) -> None:
    staging = disk.unfinished(target)
    disk.make_folders(staging)
    if _digest_of(staging) != digest:  # of another store, or of none
        disk.remove(staging)
        disk.make_folders(staging)
        disk.write_whole(staging / _DIGEST, digest.encode())
    copy = staging / target.name
    _fetch(place, store, copy, shown)
    _check(store, copy, staging)
    disk.rename(copy, target)
    disk.sync_directory(target.parent)
    disk.remove(staging)


def _expect_same(store: Store, target: Path) -> None:
    """Refuse what is at the target, unless it is the store."""
    try:
        is_same = type(store)(target).digest() == store.digest()
    except (FostoreError, OSError):
        is_same = False
    if not is_same:
        raise StoreExistsError(
            f"{str(target)!r} is there and is another store, or none; choose another path"
        )


def _digest_of(staging: Path) -> str | None:
    try:
        return disk.read_named(staging / _DIGEST, 1 << 10, "a digest").decode("utf-8", "replace")
    except (FostoreError, OSError):
        return None


def _fetch(place: Place, store: Store, copy: Path, shown: bool) -> None:
    """All files of a store that `copy` lacks: each under its name when it is whole."""
    files = {name: copy / name if name else copy for name in store.reader.files()}
    lacking = [name for name, to in files.items() if not to.exists()]
    with ThreadPoolExecutor(_THREADS, "fostore-download") as pool:
        sizes = dict(zip(lacking, pool.map(place.size, lacking), strict=True))
    gone = [name for name, size in sizes.items() if size is None]
    if gone:
        raise DamageError(f"{place}/{gone[0]} is missing: the store changed, or was damaged")
    folder = copy.parent / _PARTS
    begun = {name: _begun(place, name, size or 0, folder) for name, size in sizes.items()}
    disk.make_folders(folder, *(to.parent for to in files.values()))
    for path in set(folder.iterdir()) - {file.path for file in begun.values()}:
        disk.remove(path)  # of a version that is gone
    done = sum(file.start for file in begun.values())
    total = sum(size or 0 for size in sizes.values())
    disk.require_free(copy.parent, total - done)
    with Progress(shown, total, done, name="downloading", unit="bytes") as bar:
        pieces = [
            (name, start, min(start + _PIECE, size or 0))
            for name, size in sizes.items()
            for start in range(begun[name].start, size or 0, _PIECE)
        ]
        versions = {n: file.version for n, file in begun.items() if file.version is not None}
        for at in range(0, len(pieces), _BATCH_BYTES // _PIECE):
            some = pieces[at : at + _BATCH_BYTES // _PIECE]
            for (name, start, stop), (data, version) in zip(
                some, place.read_many(some), strict=True
            ):
                if len(data) != stop - start or versions.setdefault(name, version) != version:
                    raise DamageError(
                        f"{place}/{name} changed while it was downloaded; open the store again"
                    )
                _write(begun[name].path, start, data)
                bar.add(len(data))
                if stop == sizes[name]:
                    _name(begun[name].path, files[name])
    for name, size in sizes.items():
        if size == 0:
            disk.write_whole(files[name], b"")
    for folder in {to.parent for to in files.values()}:
        disk.sync_directory(folder)


@dataclass(frozen=True, slots=True)
class _Begun:
    """A file that has come as far as `start`, of the version that has come so far."""

    path: Path
    start: int = 0
    version: Version = None


def _begun(place: Place, name: str, size: int, folder: Path) -> _Begun:
    """How far a file has come. Only what is large goes on in the middle, and only where its version is a text."""
    version = place.version(name) if size > _BATCH_BYTES else None
    if not isinstance(version, str):  # a time alone: it may have changed twice in a second
        return _Begun(folder / hashlib.sha256(name.encode()).hexdigest())
    path = folder / hashlib.sha256(f"{name}\0{version}".encode()).hexdigest()
    # Pieces are written one after the other; the last of them, which tells that the file is whole, comes again.
    whole = min(path.stat().st_size, size - 1) // _PIECE if path.exists() else 0
    return _Begun(path, whole * _PIECE, version)


def _write(path: Path, start: int, data: bytes) -> None:
    fd = disk.open_file(path, write=True, create=True)
    try:
        if start == 0:
            disk.truncate(fd, 0)  # what an interrupted call left may be of another version
        disk.write_at(fd, data, start)
    finally:
        os.close(fd)


def _name(unnamed: Path, path: Path) -> None:
    disk.sync_file(unnamed)
    disk.rename(unnamed, path)


def _check(store: Store, copy: Path, staging: Path) -> None:
    """Hash every row of a copy; remove one that is not what it should be.

    Raises:
        DamageError: names what is wrong with it.
    """
    try:
        with type(store)(copy) as copied:  # by name it would be a circle of imports
            findings = copied.verify("checksums")
            wrong = [f"{one.where}: {one.message}" for one in findings if one.severity == "damage"]
            if copied.header.digest != store.digest():
                wrong.append(f"it has the digest {copied.header.digest}, not {store.digest()}")
    except FostoreError as error:
        wrong = [str(error)]
    if wrong:
        disk.remove(staging)
        raise DamageError(
            f"what was downloaded is not the store, and was removed: {'; '.join(wrong[:3])}"
        )
