"""The JSON format: the guide's one-file layout, for exchange and for data that people read (spec/json.md).

A file is written whole or not at all, and checked whole when it is opened, in memory that does not
depend on its size: stores that grow or stream are Zarr or HDF5.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from fostore.encodings import encoding_of
from fostore.errors import ArgumentError, FormatError
from fostore.formats import ColumnView, Finding, Reader, Run, Segment, UnitWriter
from fostore.formats.jsonread import Gathered, read_checked
from fostore.formats.jsonsource import Source
from fostore.formats.jsonspool import Spool
from fostore.formats.jsonwrite import export, save
from fostore.formats.views.view import ArrayView
from fostore.schema import digest
from fostore.schema.header import Header
from fostore.schema.row import Array

__all__ = ["FORMAT", "export", "load", "save"]


def load(path: str | Path) -> tuple[dict[int, Array], dict[str, Any]]:
    """Distributions by sample index, and metadata: what `save` was given, or what the guide's code wrote.

    All rows are in memory; `fostore.open` needs no more memory for many rows than for few.

    Returns:
        A dict in increasing order of rows (num_classes,) or (num_members, num_classes), as
        probabilities of the dtype that was saved (float64 where the file does not say), and the
        metadata.

    Raises:
        StoreNotFoundError: there is no such file.
        FormatError: the file is not strictly of this layout, or a row is no distribution; names the
            file and the key or line. Nothing is loaded by halves.
    """
    columns: list[Gathered] = []

    def add() -> Gathered:
        columns.append(Gathered())
        return columns[-1]

    with Source(Path(path)) as source:
        contents = read_checked(source, columns, add)
    if contents.header is None or not len(contents.ranges):
        return {}, dict(contents.meta)
    schema = contents.header.schema
    index = columns[0].in_order()[0].tolist()
    rows = [column.in_order()[1] for column in columns[: len(schema.content)]]
    decoded = encoding_of(schema).decode(rows, schema)
    return dict(zip(index, decoded, strict=True)), dict(contents.meta)


class JsonReader:
    """See `fostore.formats.Reader`; all rows were checked and placed when it was opened."""

    def __init__(self, path: Path) -> None:
        spools: list[Spool] = []

        def add() -> Spool:
            spools.append(Spool(source.where, source.size))
            return spools[-1]

        try:
            with Source(path) as source:
                self._same = source.same
                contents = read_checked(source, spools, add)
            if contents.header is None:
                raise FormatError(
                    f"{path} holds no distributions, so its number of classes is unknown"
                )
            self.header = contents.header
            self.is_plain = contents.is_plain
            """Whether the document says nothing of its rows, so that they were taken for probabilities."""
            self.committed = contents.ranges
            self._views = [
                ArrayView(spool.array(column.shape, column.numpy_dtype))
                for spool, column in zip(spools, self.header.schema.columns, strict=True)
            ]
        finally:
            for each in spools:
                each.close()

    def refresh(self) -> None:
        """A file does not grow; raises where another one lies at the path now. The rows can still be read."""
        self._same.check()

    def column(self, index: int) -> ColumnView:
        """The view of a column; see `Reader`."""
        return self._views[index]

    def segments(self, index: int) -> Sequence[Segment]:
        """None: rows lie as text."""
        return ()

    def runs(self) -> Sequence[Run]:
        """None: a file has no run in progress."""
        return ()

    def block_hashes(self) -> Array:
        """All unknown: the file keeps the digest alone."""
        blocks = -(-(self.header.num_samples or 0) // self.header.block_rows)
        return np.zeros(
            (blocks, len(digest.hashed_columns(self.header)), digest.HASH_BYTES), np.uint8
        )

    def findings(self) -> Iterator[Finding]:
        """None: what is wrong with a file is an error when it is opened."""
        return iter(())

    def close(self) -> None:
        """Nothing is open."""


class JsonFormat:
    """See `fostore.formats.Format`; for reading only, since text cannot be committed row by row."""

    name = "json"
    streams = False

    def open(self, path: Path) -> Reader:
        """Read and check the whole file; raises what `load` raises, and UnsafeError for a huge index."""
        return JsonReader(path)

    def create(self, path: Path, header: Header) -> UnitWriter:
        """Refused; see `save` and `export`."""
        _refuse_writing(path)

    def resume(self, path: Path) -> UnitWriter:
        """Refused; see `save` and `export`."""
        _refuse_writing(path)


FORMAT = JsonFormat()


def _refuse_writing(path: Path) -> NoReturn:
    raise ArgumentError(
        f"{str(path)!r}: a JSON file cannot grow row by row. Write to a .zarr or .h5 store and then "
        "fostore.convert(store, path), or keep the rows in a dict and call save_distributions"
    )
