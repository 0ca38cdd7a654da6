"""Any plain HDF5 dataset of numbers, by its path inside the file, as a source; read only."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import h5py

from fostore.errors import ArgumentError, FormatError, UnsafeError
from fostore.files import Hints, Holds
from fostore.files._arrays import Lying, arrays_table, unread
from fostore.files._foreign import lying, refuse_writing
from fostore.files.guess import Found, name_of
from fostore.files.table import Batch, Table
from fostore.formats.chunks.foreign import ForeignArray
from fostore.formats.chunks.hdf5 import File, open_foreign_dataset, read_foreign_texts
from fostore.schema.header import Header
from fostore.schema.row import Array

_DEPTH, _MOST = 6, 1000
"""How far datasets are looked for in groups."""


class PlainHdf5:
    """See `fostore.files.FileFormat`."""

    name = "plain-hdf5"
    holds = Holds(header=False, dtypes=())

    def read(self, path: Path, hints: Hints) -> Table:
        """A dataset of the file; links, storage elsewhere, virtual datasets and objects are refused."""
        path = path.resolve()  # what the user named may be a link; nothing inside may
        file = File(path)
        try:
            inside = None if hints.inside is None else _inside(path, hints.inside)
            hints = replace(hints, inside=inside)
            with file.root() as root:
                if inside is not None:
                    _open(root, inside, file)  # says why, where it cannot be read
                arrays = {name: _lying(file, name, dataset) for name, dataset in _all(root)}
            if not arrays:
                raise FormatError(f"{path} is not a store, and holds no dataset of numbers")
            return arrays_table(str(path), self.name, arrays, hints)
        except BaseException:
            file.close()
            raise

    def write(self, path: Path, header: Header, batches: Iterator[Batch], start: int) -> None:
        """Refused."""
        refuse_writing(path, ".h5")

    def resume_at(self, path: Path, header: Header) -> int:
        """Nothing is ever written."""
        return 0


def _inside(path: Path, inside: str) -> str:
    parts = inside.strip("/").split("/")
    if any(part in ("", ".", "..") for part in parts):
        raise ArgumentError(f"{inside!r} is no path inside {path}, such as group/probs")
    return "/".join(parts)


def _all(root: Any) -> Iterator[tuple[str, Any]]:
    return _datasets(root, "", _DEPTH)


def _lying(file: File, name: str, dataset: Any) -> Lying:
    """A dataset as one of a file's arrays; it is opened when its rows are asked for."""
    shape = tuple(int(n) for n in dataset.shape)
    kind = dataset.get_type().get_class()
    if kind == h5py.h5t.STRING:
        return Lying(Found("text", shape), partial(_texts, file, name))
    if kind not in (h5py.h5t.INTEGER, h5py.h5t.FLOAT):
        return Lying(Found(_OTHERS.get(kind, "something else than numbers"), shape), unread)
    held: list[Lying] = []

    def batches(start: int, rows: int) -> Iterator[Array]:
        if not held:
            with file.root() as root:
                held.append(lying(_open(root, name, file)))
        return held[0].batches(start, rows)

    is_matlab = h5py.h5a.exists(dataset, b"MATLAB_class")
    return Lying(Found(name_of(dataset.dtype), shape), batches, is_reversed=is_matlab)


_OTHERS = {h5py.h5t.COMPOUND: "records"}


def _texts(file: File, name: str, start: int, rows: int) -> Iterator[list[Any]]:
    total = None
    while total is None or start < total:
        with file.root() as root:
            group, last = _parent(root, name, file)
            total, texts = read_foreign_texts(group, last, file, start, start + rows)
        yield texts
        start += rows


def _open(root: Any, name: str, file: File) -> ForeignArray:
    return open_foreign_dataset(*_parent(root, name, file), file)


def _parent(root: Any, name: str, file: File) -> tuple[Any, str]:
    """The group that a dataset lies in, and its name there; no link is followed."""
    *groups, last = name.split("/")
    group = root
    for part in groups:
        key = part.encode()
        if not group.links.exists(key):
            _missing(root, name, file.path)
        if group.links.get_info(key).type != h5py.h5l.TYPE_HARD:
            raise UnsafeError(
                f"{file.path}: {part!r} is a soft or external link, which is never followed"
            )
        if h5py.h5o.get_info(group, key).type != h5py.h5o.TYPE_GROUP:
            raise FormatError(f"{file.path}: {part!r} is no group")
        group = h5py.h5g.open(group, key)
    if not group.links.exists(last.encode()):
        _missing(root, name, file.path)
    return group, last


def _missing(root: Any, name: str, path: str) -> None:
    has = [one for one, _ in _datasets(root, "", _DEPTH)]
    raise ArgumentError(f"{path} has no dataset {name!r}; it has {has[:12]}")


def _datasets(group: Any, prefix: str, depth: int) -> Iterator[tuple[str, Any]]:
    """The datasets below a group that hard links lead to."""
    for count, key in enumerate(group):
        if count >= _MOST:
            return
        if group.links.get_info(key).type != h5py.h5l.TYPE_HARD:
            continue
        kind, name = h5py.h5o.get_info(group, key).type, prefix + key.decode(errors="replace")
        if kind == h5py.h5o.TYPE_DATASET:
            yield name, h5py.h5d.open(group, key)
        elif kind == h5py.h5o.TYPE_GROUP and depth:
            yield from _datasets(h5py.h5g.open(group, key), f"{name}/", depth - 1)


FORMAT = PlainHdf5()
