"""FKD's soft labels: a file an image, with the coordinates of its crops, which were flipped, and their likely classes.

Layout: a tree of `<class>/<image>.tar`, each what torch.save makes of a list of three arrays: coordinates (crops, 4),
flips (crops,) and labels: (crops, 2, k) with k classes and their probabilities (`marginal_*`), or (crops, 2) with the
first alone (`smoothing`). Probabilities are a softmax over all classes at a temperature that stands nowhere, as little
as how many classes there are.
Source: szq0214/FKD, `FKD/FKD_SLG/generate_soft_label.py` (generate_soft_labels, label_quantization) and
`FKD/utils_FKD.py` (Recover_soft_label); Shen and Xing, "A Fast Knowledge Distillation Framework for Visual Recognition"
(ECCV 2022), section 3.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fostore.errors import FormatError, UnsafeError
from fostore.files import FileFormat, Hints, Holds, refuse_inside
from fostore.files._flat import open_source
from fostore.files._ranked import (
    NUM_CLASSES,
    Ranked,
    answers,
    ranked_schema,
    skipping,
    temperature_of,
)
from fostore.files.npz import open_zip
from fostore.files.table import Table
from fostore.schema.row import Array, Column
from fostore.schema.sides.ids import MAX_WIDTH, encode_ids, id_column
from fostore.torch.files import load_checked

_SUFFIX = ".tar"
_MOST_BYTES = 64 << 20
_EXACT = {"float16": 1 << 11, "float32": 1 << 24}
"""Whole numbers up to here are exact in floats, in which FKD keeps classes."""


class _Fkd(FileFormat):
    """See `fostore.files.FileFormat`."""

    name = "fkd"
    holds = Holds(header=False, dtypes=())

    def read(self, path: Path, hints: Hints) -> Table:
        """A tree of files in the order of their names: a row a crop, `<class>/<image>/<crop>` its id.

        Raises:
            ArgumentError: the number of classes, or the temperature, is not given.
            FormatError: another layout; names the file.
            UnsafeError: a file holds more than arrays.
        """
        refuse_inside(path, hints)
        where = str(path)
        answered = answers(hints, where, (NUM_CLASSES,))
        temperature = temperature_of(hints, where)
        names = _names(path)
        first = _labels(path / names[0])
        longest = max(len(name.encode()) for name in names) - len(_SUFFIX) + len("/") + 6
        column = id_column(f"S{-(-longest // 8) * 8}")
        schema = ranked_schema(
            where,
            answered,
            num_classes=answered["num_classes"],
            k=first.values.shape[-1],
            kind="probs",
            dtype=hints.dtype or first.values.dtype.name,
            is_whole=True,
            temperature=temperature,
            hints=hints,
            side_columns=(column,),
        )
        return Table(
            where=where,
            format=self.name,
            schema=schema,
            num_rows=None,
            batches=skipping(lambda: _pieces(path, names, column), schema, where, is_whole=True),
            notes=(
                f"{len(names):,} images, a row a crop; where crops lie and which are flipped was left out",
            ),
            took=frozenset({"layout", "dtype", "class_names", "temperature", "tol"}),
        )


def _names(path: Path) -> list[str]:
    """The files under a folder, by their relative names, in order."""
    if not path.is_dir():
        raise FormatError(f"{path} is no folder; FKD keeps a file an image in one")
    names = sorted(
        os.path.relpath(os.path.join(folder, file), path).replace(os.sep, "/")
        for folder, _, files in os.walk(path)
        for file in files
        if file.endswith(_SUFFIX)
    )
    if not names:
        raise FormatError(
            f"{path} holds no {_SUFFIX} file, as FKD's generate_soft_label.py writes them"
        )
    longest = max(names, key=len)
    if len(longest.encode()) > MAX_WIDTH - 8:
        raise FormatError(f"{path} holds the name {longest!r:.80}, which is too long for an id")
    return names


def _pieces(path: Path, names: list[str], column: Column) -> Iterator[Ranked]:
    row = 0
    for name in names:
        labels = _labels(path / name)
        crops = [f"{name.removesuffix(_SUFFIX)}/{crop}" for crop in range(len(labels.values))]
        yield labels._replace(sides=(encode_ids(crops, column, row),))
        row += len(crops)


def _labels(path: Path) -> Ranked:
    """The classes and probabilities of the crops of one image."""
    content = _load(path)
    if not isinstance(content, list) or len(content) != 3 or not isinstance(content[2], np.ndarray):
        raise FormatError(
            f"{path} holds no list of coordinates, flips and labels, as FKD writes it"
        )
    labels: Array = content[2]
    if labels.ndim == 2 and labels.shape[-1] == 2:
        labels = labels[:, :, None]
    if labels.ndim != 3 or labels.shape[1] != 2 or not labels.shape[2]:
        raise FormatError(
            f"{path} has labels of shape {labels.shape}, expected (crops, 2, k) or (crops, 2); hard labels are no "
            "distributions, and full ones go into a .npy"
        )
    if labels.dtype.name not in ("float16", "float32", "float64"):
        raise FormatError(f"{path} has labels of {labels.dtype}, expected floats")
    ids, values = labels[:, 0].astype(np.float64), labels[:, 1]
    exact = _EXACT.get(labels.dtype.name, 1 << 53)
    if (ids != np.rint(ids)).any() or (ids.size and np.abs(ids).max() > exact):
        raise FormatError(
            f"{path} has classes that are no whole numbers up to {exact:,}, which {labels.dtype} keeps exactly: "
            "which class is meant cannot be told"
        )
    return Ranked(values, ids.astype(np.int64))


def _load(path: Path) -> object:
    fd, size = open_source(path)
    os.close(fd)
    if size > _MOST_BYTES:
        raise UnsafeError(f"{path} has {size:,} bytes, expected at most {_MOST_BYTES:,}")
    with open_zip(path, size):  # each entry is held against the bytes that are there
        pass
    # What a pickled array names, and nothing that runs more.
    reconstruct = np.empty(0).__reduce__()[0]
    arrays: list[Any] = [np.ndarray, np.dtype, reconstruct]
    arrays += [type(np.dtype(kind)) for kind in "? b h i l f d e".split()]
    try:
        with torch.serialization.safe_globals(arrays):
            return load_checked(path)
    except pickle.UnpicklingError as error:
        raise UnsafeError(
            f"{path} holds more than arrays: to load it could run any code"
        ) from error


FORMAT = _Fkd()
