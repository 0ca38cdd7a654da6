"""Any plain HDF5 dataset of numbers, by its path inside the file, as a source; read only."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py

from fostore.conversion.files import Hints, Holds
from fostore.conversion.files._foreign import foreign_table, refuse_writing
from fostore.conversion.files.guess import Found, choose, name_of
from fostore.conversion.table import Batch, Table
from fostore.errors import ArgumentError, FormatError, UnsafeError
from fostore.formats.foreign import ForeignArray
from fostore.formats.hdf5_foreign import File, open_foreign_dataset
from fostore.header import Header

_DEPTH, _MOST = 6, 1000
"""How far datasets are looked for in groups."""


class PlainHdf5:
    """See `fostore.conversion.files.FileFormat`."""

    name = "plain-hdf5"
    holds = Holds(header=False, dtypes=())

    def read(self, path: Path, hints: Hints) -> Table:
        """A dataset of the file; links, storage elsewhere, virtual datasets and objects are refused."""
        path = path.resolve()  # what the user named may be a link; nothing inside may
        file = File(path)
        try:
            with file.root() as root:
                name = _chosen(root, path, hints.inside)
                array = _open(root, name, file)
            return foreign_table(f"{path}::{name}", self.name, array, hints)
        except BaseException:
            file.close()
            raise

    def write(self, path: Path, header: Header, batches: Iterator[Batch], start: int) -> None:
        """Refused."""
        refuse_writing(path, ".h5")

    def resume_at(self, path: Path, header: Header) -> int:
        """Nothing is ever written."""
        return 0


def _chosen(root: Any, path: Path, inside: str | None) -> str:
    if inside is not None:
        parts = inside.strip("/").split("/")
        if any(part in ("", ".", "..") for part in parts):
            raise ArgumentError(f"{inside!r} is no path inside {path}, such as group/probs")
        return "/".join(parts)
    found = {}
    for name, dataset in _datasets(root, "", _DEPTH):
        if dataset.get_type().get_class() in (h5py.h5t.INTEGER, h5py.h5t.FLOAT):
            shape = tuple(int(n) for n in dataset.shape)
            found[name] = Found(name_of(dataset.dtype), shape)
    if not found:
        raise FormatError(f"{path} is not a store, and holds no dataset of numbers")
    return choose(found, str(path), None)


def _open(root: Any, name: str, file: File) -> ForeignArray:
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
    return open_foreign_dataset(group, last, file)


def _missing(root: Any, name: str, path: Path) -> None:
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
