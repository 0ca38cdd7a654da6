"""The guide's JSON: one file for exchange, and for data that people read; it opens as a store (spec/json.md).

A file is written whole or not at all, and checked whole when it is opened, in memory that does not
depend on its size: stores that grow or stream are Zarr or HDF5.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from fostore import disk
from fostore.encodings.rows import as_counts, round_to
from fostore.errors import ArgumentError, FormatError
from fostore.files import TEXT_DTYPES, Hints, Holds, refuse_inside
from fostore.files._header import KEY, Passing
from fostore.files._spool import counted
from fostore.files.guess import Found, plain_table
from fostore.files.json.read import read_document
from fostore.files.json.rows import LOGS, Section
from fostore.files.json.store import JsonReader, Placed, load, opened
from fostore.files.json.write import DISTRIBUTIONS, export, save, write_document
from fostore.files.stores import reader_table
from fostore.files.table import Batch, Table
from fostore.formats import Reader
from fostore.places.place import Place
from fostore.places.spool import Spool
from fostore.schema import geometry
from fostore.schema.header import Header
from fostore.schema.ranges import describe
from fostore.schema.row import FLOATS, Array

__all__ = ["FORMAT", "export", "load", "save"]

_BATCH_BYTES = 1 << 20


class Json:
    """See `fostore.files.FileFormat` and `fostore.formats.Opens`."""

    name = "json"
    holds = Holds(header=True, dtypes=TEXT_DTYPES)

    def open(self, path: Path | Place) -> Reader:
        """Read and check the whole file; raises what `load` raises, and UnsafeError for a huge index."""
        file = opened(path)
        return JsonReader(file, read_document(file, Placed))

    def read(self, path: Path, hints: Hints) -> Table:
        """The rows of a document, checked: a store where it has a header, else numbers that `hints` explain.

        Raises:
            FormatError: the document is not what it must be; names the line.
            ArgumentError: rows are missing, or nothing says what they are.
        """
        refuse_inside(path, hints)
        dtype = np.dtype("u8" if hints.kind == "counts" else "f8")
        plain = Section(DISTRIBUTIONS, dtype, nulls=hints.kind in LOGS)
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
            Found(hints.dtype or dtype.name, (count, *array.shape[1:])),
            _rounded(batches, hints.dtype),
            replace(hints, dtype=None),
            num_rows=count,
            meta=document.meta,
            notes=document.notes,
        )

    def write(self, path: Path, header: Header, batches: Iterator[Batch], start: int) -> None:
        """Write anew; the first column goes straight into the document, the others wait in temporary files.

        Half of a document is none: it has its name once it is whole.
        """
        if KEY in header.meta:
            raise ArgumentError(f"the metadata has the key {KEY!r}, which JSON needs; rename it")
        columns = header.schema.columns
        waiting = [Spool(f"column {column.name!r}") for column in columns[1:]]
        with counted(header, batches) as (counted_header, _, rows):
            passing = Passing(counted_header, rows)

            def rows_of(column: int) -> Iterator[tuple[int, Array]]:
                if column:
                    spool = waiting[column - 1]
                    step = max(1, _BATCH_BYTES // columns[column].row_bytes)
                    for _, first, last in geometry.split_at_units(0, spool.num_rows, step):
                        yield first, spool.read(first, last)
                    return
                index = 0
                for first_column, *others in passing:
                    for spool, rows in zip(waiting, others, strict=True):
                        spool.append(rows)
                    yield index, first_column
                    index += len(first_column)

            write_document(disk.unfinished(path), passing.header, rows_of)
        passing.fill_file(disk.unfinished(path))
        disk.rename(disk.unfinished(path), path)

    def resume_at(self, path: Path, header: Header) -> int:
        """0: a document is none before its end."""
        return 0


def _rounded(
    batches: Callable[[int, int], Iterator[Array]], dtype: str | None
) -> Callable[[int, int], Iterator[Array]]:
    """The numbers of the text in the dtype that they had."""
    if dtype is None:
        return batches
    if dtype not in FLOATS:
        return lambda start, rows: (as_counts(b, dtype, start) for b in batches(start, rows))
    return lambda start, rows: (round_to(b, dtype) for b in batches(start, rows))


FORMAT = Json()
