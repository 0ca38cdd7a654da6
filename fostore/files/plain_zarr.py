"""Any plain Zarr array, of version 2 or 3, as a source; read only."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from fostore.errors import ArgumentError, FormatError
from fostore.files import Hints, Holds
from fostore.files._arrays import Lying, arrays_table, unread
from fostore.files._foreign import chunk_notes, lying, refuse_writing
from fostore.files.guess import Found, plain_table
from fostore.files.table import Batch, Table
from fostore.formats.chunks.foreign import ForeignArray
from fostore.formats.chunks.zarr import open_foreign_array
from fostore.formats.chunks.zarr_v2 import METADATA as V2
from fostore.formats.chunks.zarr_v2 import open_v2_array
from fostore.formats.zarr.folder import MAX_METADATA, check_directory, read_file
from fostore.schema.header import Header
from fostore.schema.jsontext import loads

_V3 = "zarr.json"
_DEPTH, _MOST = 6, 1000
"""How far arrays are looked for in groups."""


class PlainZarr:
    """See `fostore.files.FileFormat`."""

    name = "plain-zarr"
    holds = Holds(header=False, dtypes=())

    def read(self, path: Path, hints: Hints) -> Table:
        """The array at `path`, or inside the group there; links in it are never followed."""
        path = Path(os.path.realpath(path))  # what the user named may be a link; nothing inside may
        if not path.is_dir():
            raise FormatError(f"{path} is no folder, and a Zarr array or group is one")
        if _is_array(path):
            if hints.inside is not None:
                _inside(path, hints.inside)
            array = _open(path)
            one = lying(array)
            return plain_table(
                str(path), self.name, one.found, one.batches, hints,
                num_rows=one.num_rows, notes=chunk_notes(array),
            )  # fmt: skip
        if hints.inside is not None:
            hints = replace(hints, inside=_inside(path, hints.inside))
        opened: dict[str, ForeignArray] = {}
        arrays: dict[str, Lying] = {}
        why: FormatError | None = None
        for name in _arrays(path, "", _DEPTH):
            try:
                opened[name] = _open(path / name)
                arrays[name] = lying(opened[name])
            except FormatError as error:  # texts, dates: not rows
                if name == hints.inside:
                    raise
                why = why or error
                arrays[name] = Lying(Found("something that cannot be read", ()), unread)
        if why is not None and not opened:
            raise why
        if not opened:
            raise FormatError(f"{path} is not a store, and holds no array of numbers")
        large = [note for array in opened.values() for note in chunk_notes(array)]
        return arrays_table(str(path), self.name, arrays, hints, notes=large[:1])

    def write(self, path: Path, header: Header, batches: Iterator[Batch], start: int) -> None:
        """Refused."""
        refuse_writing(path, ".zarr")

    def resume_at(self, path: Path, header: Header) -> int:
        """Nothing is ever written."""
        return 0


def _inside(path: Path, name: str) -> str:
    parts = name.strip("/").split("/")
    if any(part in ("", ".", "..") or "\\" in part for part in parts):
        raise ArgumentError(f"{name!r} is no path inside {path}, such as group/probs")
    folder = path
    for part in parts:
        folder = folder / part
        try:
            check_directory(folder)
        except FileNotFoundError as error:
            has = sorted(_arrays(path, "", _DEPTH))
            raise ArgumentError(f"{path} has no array {name!r}; it has {has[:12]}") from error
    if not _is_array(folder):
        raise ArgumentError(f"{name!r} in {path} is no array, expected one of a group's arrays")
    return "/".join(parts)


def _is_array(folder: Path) -> bool:
    if (folder / V2).exists():
        return True
    try:
        value = loads(read_file(folder / _V3, MAX_METADATA), str(folder / _V3))
    except FileNotFoundError:
        return False
    return isinstance(value, dict) and value.get("node_type") == "array"


def _open(folder: Path) -> ForeignArray:
    if not (folder / _V3).exists():
        return open_v2_array(folder, texts=True)
    return open_foreign_array(folder, texts=True)


def _arrays(folder: Path, prefix: str, depth: int) -> Iterator[str]:
    """The arrays below a group, by their names inside it."""
    with os.scandir(folder) as entries:
        children = sorted(e.name for e in entries if e.is_dir(follow_symlinks=False))
    for name in children[:_MOST]:
        child = folder / name
        if _is_array(child):
            yield prefix + name
        elif depth and any((child / file).exists() for file in (_V3, ".zgroup")):
            yield from _arrays(child, f"{prefix}{name}/", depth - 1)


FORMAT = PlainZarr()
