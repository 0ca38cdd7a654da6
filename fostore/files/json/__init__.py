"""The guide's JSON: one file for exchange, and for data that people read; it opens as a store (spec/json.md).

A file is written whole or not at all, and checked whole when it is opened, in memory that does not
depend on its size: stores that grow or stream are Zarr or HDF5.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from fostore import disk
from fostore.encodings import encoding_of
from fostore.errors import ArgumentError, FormatError
from fostore.files import DTYPES, FileFormat, Hints, Holds, refuse_inside
from fostore.files._header import KEY, Sealing
from fostore.files._spool import counted, keep, spools_of
from fostore.files.array import FileArray
from fostore.files.guess import plain_table
from fostore.files.json.kept import Gathered, Placed
from fostore.files.json.read import Document, read_document
from fostore.files.json.write import Rows, export, save, write_document
from fostore.files.stores import reader_table
from fostore.files.table import Batch, Table
from fostore.formats import ColumnView, Reader
from fostore.formats.views.view import ArrayView
from fostore.places.local import LocalFile
from fostore.places.names import place_of
from fostore.places.place import File, Place
from fostore.schema import digest
from fostore.schema.header import Header
from fostore.schema.ranges import describe
from fostore.schema.row import FLOATS, Array, Column

__all__ = ["FORMAT", "export", "load", "save"]

_BATCH_BYTES = 1 << 20


def opened(path: Path | Place) -> File:
    """The file that a user named; a link is followed, and nothing but a regular file is opened.

    Raises:
        StoreNotFoundError: there is no such file.
        FormatError: it is a folder, or no regular file.
    """
    place = place_of(path)
    if not place.is_local:
        return place.open()
    return LocalFile(str(path), disk.open_named(str(path), "a JSON file")[0])


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
    document = read_document(opened(Path(path)), Gathered)
    if document.header is None or not len(document.ranges):
        return {}, dict(document.meta)
    schema = document.header.schema
    index = document.columns[0].in_order()[0].tolist()
    rows = [column.in_order()[1] for column in document.columns[: len(schema.content)]]
    decoded = encoding_of(schema).decode(rows, schema)
    return dict(zip(index, decoded, strict=True)), dict(document.meta)


class JsonReader(Reader):
    """A document as a store: all its rows were checked and placed when it was read, and it cannot grow."""

    def __init__(self, file: File, document: Document[Placed]) -> None:
        if document.header is None:
            raise FormatError(f"{file} holds no distributions, so its number of classes is unknown")
        self.header = document.header
        self.committed = document.ranges
        self._views = [
            ArrayView(
                kept.array()
                if len(self.committed)
                else np.empty((0, *column.shape), column.numpy_dtype)
            )
            for kept, column in zip(document.columns, self.header.schema.columns, strict=True)
        ]
        self._file = file
        file.close()  # of which only the name is looked at from now on

    def refresh(self) -> None:
        """A file does not grow; raises where another one lies at the path now. The rows can still be read."""
        self._file.check()

    def column(self, index: int) -> ColumnView:
        """The view of a column; see `Reader`."""
        return self._views[index]

    def block_hashes(self) -> Array:
        """All unknown: the file keeps the digest alone."""
        blocks = -(-(self.header.num_samples or 0) // self.header.block_rows)
        return np.zeros(
            (blocks, len(digest.hashed_columns(self.header)), digest.HASH_BYTES), np.uint8
        )


class _Json(FileFormat):
    """See `fostore.files.FileFormat` and `fostore.formats.Opens`."""

    name = "json"
    holds = Holds(header=True, dtypes=DTYPES)

    def open(self, path: Path | Place) -> Reader:
        """Read and check the whole file; raises what `load` raises, and UnsafeError for a huge index."""
        file = opened(path)
        return JsonReader(file, read_document(file, Placed))

    def is_store(self, place: Place) -> bool:
        """Always: what is no document is told when it is opened."""
        return True

    def read(self, path: Path, hints: Hints) -> Table:
        """The rows of a document, checked: a store where it has a header, else numbers that `hints` explain.

        Raises:
            FormatError: the document is not what it must be; names the line.
            ArgumentError: rows are missing, or nothing says what they are.
        """
        refuse_inside(path, hints)
        dtype = hints.dtype or ("uint64" if hints.kind == "counts" else "float64")
        plain = Column(hints.kind or "probs", dtype, FLOATS.get(dtype, dtype), (), ())
        file = opened(path)
        document = read_document(file, Placed, plain)
        if document.header is not None:
            reader = JsonReader(file, document)
            return reader_table(reader, str(path), self.name, hints.rows)
        file.close()
        if not len(document.ranges):
            raise FormatError(f"{path} holds no distributions, so its number of classes is unknown")
        array = document.columns[0].array()
        count, rows = document.ranges.prefix, hints.rows
        if count < len(array) and (
            rows is None or rows.stop is None or not 0 <= rows.stop <= count
        ):
            raise ArgumentError(
                f"{describe(document.ranges.missing(len(array)))} of {path} are missing; convert what is "
                f"there: rows=slice(0, {count}), or --rows 0:{count}"
            )

        def batches(start: int, size: int) -> Iterator[Array]:
            for first in range(start, count, size):
                yield np.array(array[first : min(first + size, count)])

        return plain_table(
            str(path),
            self.name,
            FileArray(dtype, (count, *array.shape[1:]), batches),
            replace(hints, dtype=None),
            meta=document.meta,
            notes=document.notes,
        )

    def write(self, path: Path, header: Header, batches: Iterator[Batch], start: int) -> None:
        """Write anew; the first column goes straight into the document, the others wait in temporary files.

        Half of a document is none: it has its name once it is whole.
        """
        if KEY in header.meta:
            raise ArgumentError(f"the metadata has the key {KEY!r}, which JSON needs; rename it")
        header, _, batches = counted(header, batches)
        spools, passing = spools_of(header.schema.columns[1:]), Sealing(header, batches)

        def passed() -> Iterator[Array]:
            for first, *others in passing:
                keep(spools, others)
                yield first

        waiting = (spool.batches(max(1, _BATCH_BYTES // spool.row_bytes)) for spool in spools)
        columns = map(_numbered, chain([passed()], waiting))
        write_document(disk.unfinished(path), passing.header, columns)
        passing.fill_file(disk.unfinished(path))
        disk.rename(disk.unfinished(path), path)


def _numbered(batches: Iterator[Array]) -> Rows:
    """Rows from 0 on with the index of the first of each batch."""
    start = 0
    for rows in batches:
        yield start, rows
        start += len(rows)


FORMAT = _Json()
