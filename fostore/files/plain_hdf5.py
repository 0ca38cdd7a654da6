"""Any plain HDF5 dataset of numbers, by its path inside the file, as a source; read only."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import h5py

from fostore.errors import ArgumentError, FormatError, UnsafeError
from fostore.files import FileFormat, Hints, Holds
from fostore.files._arrays import arrays_table
from fostore.files._foreign import DEPTH, MOST, chunked, inside_of
from fostore.files.array import FileArray, name_of
from fostore.files.table import Table
from fostore.formats.chunks.array import ForeignArray
from fostore.formats.chunks.hdf5 import open_foreign_dataset, read_texts
from fostore.formats.hdf5.file import open_whole, opened
from fostore.places.local import Local
from fostore.places.place import File
from fostore.schema.row import Array


class _PlainHdf5(FileFormat):
    """See `fostore.files.FileFormat`."""

    name = "plain-hdf5"
    holds = Holds(header=False, dtypes=())

    def read(self, path: Path, hints: Hints) -> Table:
        """A dataset of the file; links, storage elsewhere, virtual datasets and objects are refused."""
        file = open_whole(Local(path))  # what the user named may be a link; nothing inside may
        try:
            inside = None if hints.inside is None else inside_of(file, hints.inside)
            hints = replace(hints, inside=inside)
            with opened(file, file.size) as root:
                if inside is not None:
                    _open(root, inside, file)  # says why, where it cannot be read
                arrays = {
                    name: _file_array(file, name, dataset) for name, dataset in _datasets(root)
                }
            if not arrays:
                raise FormatError(f"{file} is not a store, and holds no dataset of numbers")
            return arrays_table(str(file), self.name, arrays, hints)
        except BaseException:
            file.close()
            raise


def _file_array(file: File, name: str, dataset: Any) -> FileArray:
    """A dataset as one of a file's arrays; it is opened when its rows are asked for."""
    shape = tuple(int(n) for n in dataset.shape)
    kind = dataset.get_type().get_class()
    if kind == h5py.h5t.STRING:
        return FileArray("text", shape, partial(_texts, file, name))
    if kind not in (h5py.h5t.INTEGER, h5py.h5t.FLOAT):
        return FileArray(_OTHERS.get(kind, "something else than numbers"), shape)
    held: list[FileArray] = []

    def batches(start: int, rows: int) -> Iterator[Array]:
        if not held:
            with opened(file, file.size) as root:
                held.append(chunked(_open(root, name, file)))
        return held[0].batches(start, rows)

    is_matlab = h5py.h5a.exists(dataset, b"MATLAB_class")
    return FileArray(name_of(dataset.dtype), shape, batches, is_reversed=is_matlab)


_OTHERS = {h5py.h5t.COMPOUND: "records"}


def _texts(file: File, name: str, start: int, rows: int) -> Iterator[list[bytes]]:
    while True:
        with opened(file, file.size) as root:
            texts = read_texts(*_parent(root, name, file), file, start, start + rows)
        if not texts:
            return
        yield texts
        start += rows


def _open(root: Any, name: str, file: File) -> ForeignArray:
    return open_foreign_dataset(*_parent(root, name, file), file)


def _parent(root: Any, name: str, file: File) -> tuple[Any, str]:
    """The group that a dataset lies in, and its name there; no link is followed."""
    *groups, last = name.split("/")
    group = root
    for step in groups:
        key = step.encode()
        if not group.links.exists(key):
            _missing(root, name, file)
        if group.links.get_info(key).type != h5py.h5l.TYPE_HARD:
            raise UnsafeError(
                f"{file}: {step!r} is a soft or external link, which is never followed"
            )
        if h5py.h5o.get_info(group, key).type != h5py.h5o.TYPE_GROUP:
            raise FormatError(f"{file}: {step!r} is no group")
        group = h5py.h5g.open(group, key)
    if not group.links.exists(last.encode()):
        _missing(root, name, file)
    return group, last


def _missing(root: Any, name: str, file: File) -> None:
    has = [one for one, _ in _datasets(root)]
    raise ArgumentError(f"{file} has no dataset {name!r}; it has {has[:12]}")


def _datasets(group: Any, prefix: str = "", depth: int = DEPTH) -> Iterator[tuple[str, Any]]:
    """The datasets below a group that hard links lead to."""
    for count, key in enumerate(group):
        if count >= MOST:
            return
        if group.links.get_info(key).type != h5py.h5l.TYPE_HARD:
            continue
        kind, name = h5py.h5o.get_info(group, key).type, prefix + key.decode(errors="replace")
        if kind == h5py.h5o.TYPE_DATASET:
            yield name, h5py.h5d.open(group, key)
        elif kind == h5py.h5o.TYPE_GROUP and depth:
            yield from _datasets(h5py.h5g.open(group, key), f"{name}/", depth - 1)


FORMAT = _PlainHdf5()
