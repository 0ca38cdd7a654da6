"""CIFAR-10H: some fifty people's labels of each of the 10,000 test images of CIFAR-10, as published.

Source: Peterson, Battleday, Griffiths and Russakovsky, "Human uncertainty makes classification more robust"
(ICCV 2019), and the repository of the data: `cifar10h-counts.npy`, the votes (10000, 10), and
`cifar10h-probs.npy`, their relative frequencies; rows in the order of CIFAR-10's test set, columns in that of
its `batches.meta`.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from fostore.errors import ArgumentError, FormatError
from fostore.files import FileFormat, Hints, Holds, refuse_inside
from fostore.files.array import FileArray
from fostore.files.guess import plain_table
from fostore.files.npy import FORMAT as NPY
from fostore.files.npy import flat_of
from fostore.files.table import Table
from fostore.schema.row import Array

_CLASSES = tuple("airplane automobile bird cat deer dog frog horse ship truck".split())
_MOST_BYTES = 256 << 20
_KNOWN = frozenset({"kind", "dtype"})
"""What the published file says itself."""


class _Cifar10h(FileFormat):
    """See `fostore.files.FileFormat`."""

    name = "cifar10h"
    holds = Holds(header=False, dtypes=())

    def read(self, path: Path, hints: Hints) -> Table:
        """The counts, as integers also where they lie as floats, or the probabilities."""
        refuse_inside(path, hints)
        names = tuple(hints.class_names or _CLASSES)
        if names != _CLASSES:
            raise ArgumentError(f"the classes of {path} are those of CIFAR-10: {list(_CLASSES)}")
        hints = replace(hints, class_names=names, format=None)
        rows = _read(path)
        if rows.dtype.kind == "f" and not _are_votes(rows):
            table = NPY.read(path, replace(hints, kind="probs"))
            return replace(table, format=self.name, took=table.took - _KNOWN)
        votes = _as_votes(rows, str(path))
        note = [] if rows.dtype == votes.dtype else [f"{rows.dtype} votes became {votes.dtype}"]
        table = plain_table(
            str(path),
            self.name,
            FileArray(
                votes.dtype.name,
                votes.shape,
                lambda start, rows: (votes[i : i + rows] for i in range(start, len(votes), rows)),
            ),
            replace(hints, kind="counts", dtype=None),
            notes=note,
        )
        return replace(table, took=table.took - _KNOWN)


def _read(path: Path) -> Array:
    """All of the array: the published ones have 800 kB."""
    flat = flat_of(path, _MOST_BYTES)
    dtype, shape = flat.dtype, flat.shape
    if len(shape) != 2 or shape[1] != len(_CLASSES) or dtype.kind not in "iuf":
        raise FormatError(
            f"{path} is {dtype} {shape}, expected numbers of (images, {len(_CLASSES)})"
        )
    parts = list(flat.batches(0, max(shape[0], 1)))
    return np.concatenate(parts) if parts else np.empty(shape, dtype)


def _are_votes(rows: Array) -> bool:
    """Whether floats are numbers of votes: whole, and more than one a row."""
    whole = bool(np.isfinite(rows).all() and (rows == np.rint(rows)).all())
    return whole and bool((rows.sum(axis=1) > 1).any())


def _as_votes(rows: Array, where: str) -> Array:
    """Votes in the narrowest of uint8 and wider that holds every row's number of votes."""
    if len(rows) and rows.min() < 0:
        raise FormatError(f"{where} holds {rows.min()}, expected votes, 0 or more")
    most = int(rows.sum(axis=1).max()) if len(rows) else 0
    return rows.astype(np.min_scalar_type(most))


FORMAT = _Cifar10h()
