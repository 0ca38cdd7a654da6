"""DCIC: the labels that several people gave to each image of a data set, as published in `annotations.json`.

Source: Schmarje et al., "Is one annotation enough? A data-centric image classification benchmark for noisy and
ambiguous label estimation" (NeurIPS 2022), whose data sets hold a list of annotators, each with
`{"annotations": [{"image_path": ..., "class_label": ...}, ...]}`. Loaders of it number the classes by going
through a Python set, so that their order differs from run to run: here it is given, or sorted and recorded.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from fostore import disk
from fostore.encodings import make_schema
from fostore.errors import ArgumentError, FormatError
from fostore.files import FileFormat, Hints, Holds, refuse_inside
from fostore.files.table import Batch, Table
from fostore.schema.jsontext import loads
from fostore.schema.sides.ids import encode_ids, id_column

_FILE = "annotations.json"
_MOST_BYTES = 1 << 30


class _Dcic(FileFormat):
    """See `fostore.files.FileFormat`."""

    name = "dcic"
    holds = Holds(header=False, dtypes=())

    def read(self, path: Path, hints: Hints) -> Table:
        """Votes of each image, in the order in which images first appear; their paths are the ids.

        Raises:
            FormatError: another layout; says which entry.
            ArgumentError: an annotation of a class that `class_names` does not have.
        """
        refuse_inside(path, hints)
        path = path / _FILE if path.is_dir() else path
        if hints.kind not in (None, "counts"):
            raise ArgumentError(
                f"{path} holds votes; make {hints.kind} of them with kind= (--kind)"
            )
        votes = _votes(path)
        # Sorted: published loaders go through a set of texts, whose order Python changes from run to run.
        seen = sorted({label for labels in votes.values() for label in labels})
        names = list(hints.class_names or seen)
        unknown = [label for label in seen if label not in set(names)]
        if unknown:
            raise ArgumentError(
                f"{path} has labels of the classes {unknown[:10]}, which class_names does not have"
            )
        numbers = {name: i for i, name in enumerate(names)}
        counts = np.zeros((len(votes), len(names)), np.uint32)
        for row, labels in enumerate(votes.values()):
            for label in labels:
                counts[row, numbers[label]] += 1
        most = int(counts.sum(axis=1).max()) if len(counts) else 0
        counts = counts.astype(np.min_scalar_type(most))
        column = id_column(list(votes))
        ids = encode_ids(list(votes), column, 0)
        schema = make_schema(
            len(names),
            kind="counts",
            dtype=counts.dtype.name,
            class_names=names,
            side_columns=[column],
        )

        def batches(start: int, rows: int) -> Iterator[Batch]:
            for first in range(start, len(counts), rows):
                yield [counts[first : first + rows], ids[first : first + rows]]

        order = "as given" if hints.class_names else "sorted by name"
        return Table(
            where=str(path),
            format=self.name,
            schema=schema,
            num_rows=len(counts),
            batches=batches,
            notes=(f"class order {order}: {', '.join(names)}",),
        )


def _votes(path: Path) -> dict[str, list[str]]:
    """The labels of every image, by its path."""
    value = loads(disk.read_named(path, _MOST_BYTES, "annotations"), str(path))
    votes: dict[str, list[str]] = {}
    for where, one in _annotations(value, str(path)):
        image, label = (one.get("image_path"), one.get("class_label", one.get("class")))
        if not isinstance(image, str) or not isinstance(label, str):
            raise FormatError(
                f"{where} has the image_path {image!r:.80} and the class_label {label!r:.80}, "
                "expected two texts"
            )
        votes.setdefault(image, []).append(label)
    if not votes:
        raise FormatError(f"{path} holds no annotation")
    return votes


def _annotations(value: Any, where: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each annotation with its place; a list of annotators, or of annotations alone."""
    if not isinstance(value, list):
        raise FormatError(f"{where} is a {type(value).__name__}, expected a list of annotators")
    for i, entry in enumerate(value):
        place = f"{where}, entry {i}"
        if not isinstance(entry, dict):
            raise FormatError(f"{place} is a {type(entry).__name__}, expected an object")
        inner = entry.get("annotations", [entry] if "image_path" in entry else None)
        if not isinstance(inner, list):
            raise FormatError(f"{place} has no list of annotations")
        for k, one in enumerate(inner):
            if not isinstance(one, dict):
                raise FormatError(f"{place}, annotation {k} is a {type(one).__name__}")
            yield f"{place}, annotation {k}", one


FORMAT = _Dcic()
