"""Part: the result of a conversion under a temporary name, until it is whole and takes its place."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from fostore import disk
from fostore.conversion.plan import Plan
from fostore.conversion.sources import STREAM
from fostore.errors import ArgumentError, FormatError
from fostore.files.table import Table
from fostore.formats import is_store
from fostore.places.litter import is_litter
from fostore.places.names import destination, inside
from fostore.schema.digest import hasher
from fostore.schema.header import CHECKSUM
from fostore.schema.jsontext import dumps, loads

_ZARR_FILES = ("zarr.json", ".zarray", ".zgroup")
_MAX_RECORD = 256 << 20
_TIMES = ("id", "software", "created", "updated", CHECKSUM)


class Part:
    """`.NAME.part.SUFFIX` beside the destination, and a record of what it is to become.

    An interrupted conversion goes on with a part whose record says the very same. The caller holds
    the destination's lock.
    """

    def __init__(self, target: Path, plan: Plan, changes: Mapping[str, Any], keys: Any) -> None:
        self.target = target
        self.path = target.with_name(f".{target.stem}.part{target.suffix}")
        self._record = target.with_name(f".{target.name}.part.plan")
        said = _described(plan, changes, keys)
        self._is_repeatable = plan.source.digest is not None or all(said["sources"].values())
        self._said = dumps(said)

    def begin(self) -> bool:
        """Whether an earlier part goes on; else a fresh one may be written."""
        if self._is_repeatable and self.path.exists():
            with suppress(FileNotFoundError, FormatError):
                record = disk.read_named(self._record, _MAX_RECORD, "a record of ours")
                there = loads(record, str(self._record))
                if there == loads(self._said, "the record"):
                    return True
        self.remove()
        disk.write_whole(self._record, self._said)
        return False

    def publish(self) -> None:
        """Put the whole part in the destination's place, at once."""
        # First the record: after the exchange what was replaced lies under the part's name.
        disk.remove(self._record)
        disk.sync_directory(self.target.parent)
        if self.target.exists() and (self.target.is_dir() or self.path.is_dir()):
            disk.exchange(self.path, self.target)
            disk.sync_directory(self.target.parent)
            disk.remove(self.path)
        else:
            disk.rename(self.path, self.target)
        disk.sync_directory(self.target.parent)

    def remove(self) -> None:
        """Give the part up; the record first, so that no half of it is ever gone on with."""
        disk.remove(self._record)
        disk.remove(disk.unfinished(self.path))
        disk.remove(self.path)


def refuse_target(path: Path, table: Table) -> None:
    """Refuse a destination whose replacement would take the source away, or a folder that is no store.

    Raises:
        ArgumentError: says which.
    """
    real = path.resolve()
    for source in paths_of(table):
        if source == real or real in source.parents:
            raise ArgumentError(
                f"{str(path)!r} is the source as well ({source}); choose another destination"
            )
    is_zarr = any((path / name).exists() for name in _ZARR_FILES)
    if path.is_dir() and not is_zarr and not all(is_litter(p.name) for p in path.iterdir()):
        raise ArgumentError(
            f"{str(path)!r} is a folder of other things and is not replaced; choose another "
            "destination, or remove it yourself"
        )


def target_of(place: str | os.PathLike[str]) -> Path | None:
    """Where a conversion to `place` goes, links followed; None for the standard output."""
    return None if os.fspath(place) == STREAM else destination(place)


def refuse_receipt(receipt: Path, target: Path | None, source: Table) -> None:
    """A receipt that cannot be written, or would take the place of rows, is refused before the work."""
    if receipt.is_dir() or not receipt.absolute().parent.is_dir():
        raise ArgumentError(f"the receipt {str(receipt)!r} is a folder or has none to lie in")
    real = receipt.resolve()
    if target in (real, *real.parents):
        raise ArgumentError(
            f"the receipt {str(receipt)!r} would lie in the place of the destination {str(target)!r}"
        )
    if real in paths_of(source) or in_store(real):
        raise ArgumentError(
            f"the receipt {str(receipt)!r} would lie inside a store or in the place of the source"
        )


def paths_of(table: Table) -> list[Path]:
    """Where the rows of a table lie, every link followed."""
    return [inside(name)[0].resolve() for name in table.files or (table.where,)]


def in_store(path: Path) -> bool:
    """Whether a path lies in the folder of a store, where nothing else belongs."""
    return any(folder.suffix.lower() == ".zarr" and is_store(folder) for folder in path.parents)


def _described(plan: Plan, changes: Mapping[str, Any], keys: Any) -> dict[str, Any]:
    """All that decides what the destination will hold, and whether a source has changed since."""
    table = plan.source
    header = plan.header.to_json()
    for key in _TIMES:
        del header["fostore"][key]
    given = None if keys is None else hasher()
    if given is not None:
        for key in keys:
            given.update(f"{key!r}\n".encode())
    return {
        "sources": {name: _stamp(name) for name in table.files or (table.where,)},
        "digest": table.digest,
        "rows": table.num_rows,
        "changes": dict(changes),
        "ids": None if given is None else given.hexdigest(),
        "format": plan.format,
        "header": header,
    }


def _stamp(name: str) -> list[int] | None:
    """What tells whether a file has changed since; None where there is none to look at."""
    try:
        found = os.stat(inside(name)[0])
    except OSError:
        return None
    return [found.st_size, found.st_mtime_ns, found.st_ino]
