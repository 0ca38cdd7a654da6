"""Any plain Zarr array, of version 2 or 3, as a source; read only."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from fostore.errors import ArgumentError, FormatError
from fostore.files import FileFormat, Hints, Holds
from fostore.files._arrays import arrays_table
from fostore.files._foreign import DEPTH, MOST, chunk_notes, chunked, inside_of
from fostore.files.array import FileArray
from fostore.files.guess import plain_table
from fostore.files.table import Table
from fostore.formats.chunks.array import ForeignArray
from fostore.formats.chunks.zarr import open_array, read_metadata
from fostore.formats.chunks.zarr_files import Root
from fostore.formats.chunks.zarr_v2 import METADATA as V2
from fostore.formats.chunks.zarr_v2 import open_v2_array
from fostore.formats.zarr.folder import METADATA as V3
from fostore.places.local import Local


class _PlainZarr(FileFormat):
    """See `fostore.files.FileFormat`."""

    name = "plain-zarr"
    holds = Holds(header=False, dtypes=())

    def read(self, path: Path, hints: Hints) -> Table:
        """The array at `path`, or inside the group there; links in it are never followed."""
        path = Path(os.path.realpath(path))  # what the user named may be a link; nothing inside may
        if not path.is_dir():
            raise FormatError(f"{path} is no folder, and a Zarr array or group is one")
        root = Root(Local(path))
        if _is_array(root, ""):
            if hints.inside is not None:
                _inside(root, hints.inside)
            array = _open(root, "")
            return plain_table(
                str(path), self.name, chunked(array), hints, notes=chunk_notes(array)
            )
        if hints.inside is not None:
            hints = replace(hints, inside=_inside(root, hints.inside))
        opened: dict[str, ForeignArray] = {}
        arrays: dict[str, FileArray] = {}
        why: FormatError | None = None
        for name in _arrays(root, "", DEPTH):
            try:
                opened[name] = _open(root, name)
                arrays[name] = chunked(opened[name])
            except FormatError as error:  # texts, dates: not rows
                if name == hints.inside:
                    raise
                why = why or error
                arrays[name] = FileArray("something that cannot be read", ())
        if why is not None and not opened:
            raise why
        if not opened:
            raise FormatError(f"{path} is not a store, and holds no array of numbers")
        large = [note for array in opened.values() for note in chunk_notes(array)]
        return arrays_table(str(path), self.name, arrays, hints, notes=large[:1])


def _inside(root: Root, name: str) -> str:
    path = root.place
    inside = inside_of(path, name, "\\")  # on Windows it parts names
    if path.version(inside) is None:
        has = sorted(_arrays(root, "", DEPTH))
        raise ArgumentError(f"{path} has no array {name!r}; it has {has[:12]}")
    if not _is_array(root, inside):
        raise ArgumentError(f"{name!r} in {path} is no array, expected one of a group's arrays")
    return inside


def _has(root: Root, folder: str, name: str) -> bool:
    # Not by listing the folder: a million chunks may lie in it.
    return root.place.size(f"{folder}/{name}" if folder else name) is not None


def _is_array(root: Root, folder: str) -> bool:
    if _has(root, folder, V2) or not _has(root, folder, V3):
        return _has(root, folder, V2)
    value, _ = read_metadata(root, folder, V3)
    return isinstance(value, dict) and value.get("node_type") == "array"


def _open(root: Root, name: str) -> ForeignArray:
    return open_array(root, name) if _has(root, name, V3) else open_v2_array(root, name)


def _arrays(root: Root, folder: str, depth: int) -> Iterator[str]:
    """The arrays below a group, by their names inside it."""
    names = root.place.names(folder)
    children = sorted(name for name, kind in names.items() if kind == "folder")
    for child in children[:MOST]:
        name = f"{folder}/{child}" if folder else child
        if _is_array(root, name):
            yield name
        elif depth and (_has(root, name, V3) or _has(root, name, ".zgroup")):
            yield from _arrays(root, name, depth - 1)


FORMAT = _PlainZarr()
