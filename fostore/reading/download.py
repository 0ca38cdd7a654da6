"""Stores from behind a url to this machine: rows into a cache, or all files, whole and checked or not at all."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fostore import disk
from fostore.errors import ArgumentError, DamageError, FostoreError, StoreExistsError
from fostore.places.cache import Cached
from fostore.places.names import destination
from fostore.places.place import Place, Version
from fostore.progress import Progress
from fostore.schema.row import Array

if TYPE_CHECKING:
    from fostore.reading.store import Store

_PIECE = 4 << 20
_BATCH_BYTES = 64 << 20
_THREADS = 32
_DIGEST = "digest"


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
    if os.path.lexists(target):
        _expect_same(store, target)
        return target
    staging = disk.unfinished(target)
    disk.make_folders(staging)
    if _digest_of(staging) != digest:  # of another store, or of none
        disk.remove(staging)
        disk.make_folders(staging)
        disk.write_whole(staging / _DIGEST, digest.encode())
    copy = staging / target.name
    _fetch(place, store, copy, progress)
    _check(store, copy, staging)
    disk.rename(copy, target)
    disk.sync_directory(target.parent)
    disk.remove(staging)
    return target


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
    total = sum(size or 0 for size in sizes.values())
    disk.require_free(copy.parent, total)
    with Progress(shown, total, name="downloading", unit="bytes") as bar:
        pieces = [
            (name, start, min(start + _PIECE, size or 0))
            for name, size in sizes.items()
            for start in range(0, size or 0, _PIECE)
        ]
        versions: dict[str, Version] = {}
        begun: str | None = None
        for at in range(0, len(pieces), _BATCH_BYTES // _PIECE):
            some = pieces[at : at + _BATCH_BYTES // _PIECE]
            for (name, start, stop), (data, version) in zip(
                some, place.read_many(some), strict=True
            ):
                if len(data) != stop - start or versions.setdefault(name, version) != version:
                    raise DamageError(
                        f"{place}/{name} changed while it was downloaded; open the store again"
                    )
                if begun is not None and begun != name:
                    _name(files[begun])
                begun = name
                _write(files[name], start, data)
                bar.add(len(data))
        if begun is not None:
            _name(files[begun])
    for name, size in sizes.items():
        if size == 0:
            disk.write_whole(files[name], b"")
    for folder in {to.parent for to in files.values()}:
        disk.sync_directory(folder)


def _write(path: Path, start: int, data: bytes) -> None:
    """Put a piece into the file that gets the name `path` when it is whole."""
    disk.make_folders(path.parent)
    fd = disk.open_file(disk.unfinished(path), write=True, create=True)
    try:
        if start == 0:
            disk.truncate(fd, 0)  # what an interrupted call left may be of another version
        disk.write_at(fd, data, start)
    finally:
        os.close(fd)


def _name(path: Path) -> None:
    disk.sync_file(disk.unfinished(path))
    disk.rename(disk.unfinished(path), path)


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
