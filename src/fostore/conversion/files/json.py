"""The guide's JSON: written from rows that pass once; what is read is a store (spec/json.md)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fostore.conversion.files import Hints, Holds, refuse_inside
from fostore.conversion.files._header import KEY, Passing
from fostore.conversion.files._spool import Spooled, counted
from fostore.conversion.stores import store_table
from fostore.conversion.table import Batch, Table
from fostore.errors import ArgumentError
from fostore.formats.jsonwrite import export
from fostore.header import Header
from fostore.ranges import Ranges
from fostore.schema import Array
from fostore.store import open as open_store

_DTYPES = ("float16", "float32", "float64", "uint8", "uint16", "uint32", "uint64", "int64")


class Json:
    """See `fostore.conversion.files.FileFormat`."""

    name = "json"
    holds = Holds(header=True, dtypes=_DTYPES)

    def read(self, path: Path, hints: Hints) -> Table:
        """All rows of the document, which is checked whole first."""
        refuse_inside(path, hints)
        return store_table(open_store(path))

    def write(self, path: Path, header: Header, batches: Iterator[Batch], start: int) -> None:
        """Write anew; the first column goes straight into the document, the others wait in temporary files."""
        if KEY in header.meta:
            raise ArgumentError(f"the metadata has the key {KEY!r}, which JSON needs; rename it")
        with counted(header, batches) as (counted_header, _, rows):
            passing = Passing(counted_header, rows)
            reader = _Once(passing)
            try:
                export(path, reader)
                reader.end()
            finally:
                reader.close()
        passing.fill_file(path)

    def resume_at(self, path: Path, header: Header) -> int:
        """0: a document is none before its end."""
        return 0


class _Once:
    """Rows that pass once, as the reader of a store whose first column is read from front to back, then the others."""

    def __init__(self, passing: Passing) -> None:
        self.header = passing.header
        rows = self.header.num_samples or 0
        self.committed = Ranges(((0, rows),) if rows else ())
        self._others = [Spooled(column) for column in self.header.schema.columns[1:]]
        self._first = _First(passing, self._others)

    def column(self, index: int) -> Any:
        """The first column, or one of those that were kept."""
        return self._others[index - 1] if index else self._first

    def end(self) -> None:
        """All rows were read; one that is left is an error."""
        self._first.end()

    def close(self) -> None:
        """Give the temporary files back."""
        for other in self._others:
            other.close()


class _First:
    """The first column, which can be read once, in order."""

    def __init__(self, passing: Passing, others: Sequence[Spooled]) -> None:
        self._batches = iter(passing)
        self._others = others
        self._held: list[Array] = []
        self._begin = self._end = 0

    def read(self, start: int, stop: int) -> Array:
        """The rows `[start, stop)`, behind all that were read before."""
        while self._end < stop:
            batch = next(self._batches)
            self._held.append(batch[0])
            self._end += len(batch[0])
            for spool, column in zip(self._others, batch[1:], strict=True):
                spool.append(np.ascontiguousarray(column))
        rows = self._held[0] if len(self._held) == 1 else np.concatenate(self._held)
        cut = stop - self._begin
        wanted = rows[start - self._begin : cut]
        self._held, self._begin = [rows[cut:]], stop
        return wanted

    def end(self) -> None:
        """No row may be left."""
        for _ in self._batches:
            pass


FORMAT = Json()
