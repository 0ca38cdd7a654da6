"""The guide's JSON: written from rows that pass once; what is read is a store (spec/json.md)."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from fostore import disk
from fostore.encodings.rows import as_counts, round_to
from fostore.errors import ArgumentError, FormatError
from fostore.files import Hints, Holds, refuse_inside
from fostore.files._flat import open_source
from fostore.files._header import KEY, Sealing
from fostore.files._spool import Spooled, counted
from fostore.files.guess import Found, plain_table
from fostore.files.stores import store_table
from fostore.files.table import Batch, Table
from fostore.formats.json import JsonReader
from fostore.formats.jsonread import Plain, read_checked
from fostore.formats.jsonsource import Source
from fostore.formats.jsonspool import Spool
from fostore.formats.jsonwrite import export
from fostore.reading.store import open as open_store
from fostore.schema.header import Header
from fostore.schema.ranges import Ranges, describe
from fostore.schema.row import FLOATS, Array

_DTYPES = ("float16", "float32", "float64", "uint8", "uint16", "uint32", "uint64", "int64")


def json_table(path: Path, hints: Hints, rows: slice | None = None) -> Table:
    """The rows of a document: a store where it has a header, else numbers of which `hints` say what they are.

    Args:
        path: the file.
        hints: what the user says.
        rows: those that will be wanted; rows that are missing behind them are then no error.

    Raises:
        FormatError: the document is not what it must be; names the line.
        ArgumentError: rows are missing, or nothing says what they are.
    """
    refuse_inside(path, hints)
    if _names_a_header(path):
        with suppress(FormatError):  # which may be one of rows that a hint explains
            store = open_store(path)
            if not (isinstance(store.reader, JsonReader) and store.reader.is_plain):
                return store_table(store, rows)
    is_log = hints.kind in ("logits", "log_probs")
    plain = Plain("u8" if hints.kind == "counts" else "f8", nulls=is_log)
    spools: list[Spool] = []

    def add() -> Spool:
        spools.append(Spool(str(path), source.size))
        return spools[-1]

    try:
        with Source(path) as source:
            contents = read_checked(source, spools, add, plain)
        if contents.header is not None:
            return store_table(open_store(path), rows)
        if not len(contents.ranges):
            raise FormatError(f"{path} holds no distributions, so its number of classes is unknown")
        found = spools[0].read(contents.ranges.items[0][0], contents.ranges.items[0][0] + 1)
        array = spools[0].array(found.shape[1:], found.dtype)
    finally:
        for each in spools:
            each.close()
    there, stop = contents.ranges.prefix, contents.ranges.items[-1][1]
    if there < stop and (rows is None or rows.stop is None or not 0 <= rows.stop <= there):
        raise ArgumentError(
            f"{describe(contents.ranges.missing(stop))} of {path} are missing; convert what is there: "
            f"rows=slice(0, {there}), or --rows 0:{there}"
        )

    def batches(start: int, count: int) -> Iterator[Array]:
        for first in range(start, there, count):
            yield np.array(array[first : min(first + count, there)])

    return plain_table(
        str(path),
        "json",
        Found(hints.dtype or found.dtype.name, (there, *found.shape[1:])),
        _rounded(batches, hints.dtype),
        replace(hints, dtype=None),
        num_rows=there,
        meta=contents.meta,
        notes=contents.notes,
    )


def _rounded(
    batches: Callable[[int, int], Iterator[Array]], dtype: str | None
) -> Callable[[int, int], Iterator[Array]]:
    """The numbers of the text in the dtype that they had."""
    if dtype is None:
        return batches
    if dtype not in FLOATS:
        return lambda start, rows: (as_counts(b, dtype, start) for b in batches(start, rows))
    return lambda start, rows: (round_to(b, dtype) for b in batches(start, rows))


def _names_a_header(path: Path) -> bool:
    """Whether the key of a header stands anywhere in a file; one that is escaped is found when it is parsed."""
    fd, _ = open_source(path)
    mark = f'"{KEY}"'.encode()
    with os.fdopen(fd, "rb", buffering=0) as file:
        tail = b""
        while part := file.read(1 << 20):
            if mark in tail + part:
                return True
            tail = part[-len(mark) :]
    return False


class Json:
    """See `fostore.files.FileFormat`."""

    name = "json"
    holds = Holds(header=True, dtypes=_DTYPES)

    def read(self, path: Path, hints: Hints) -> Table:
        """All rows of the document, which is checked whole first."""
        return json_table(path, hints)

    def write(self, path: Path, header: Header, batches: Iterator[Batch], start: int) -> None:
        """Write anew; the first column goes straight into the document, the others wait in temporary files.

        Half of a document is none: it has its name once it is whole.
        """
        if KEY in header.meta:
            raise ArgumentError(f"the metadata has the key {KEY!r}, which JSON needs; rename it")
        with counted(header, batches) as (counted_header, _, rows):
            passing = Sealing(counted_header, rows)
            reader = _Once(passing)
            try:
                export(disk.unfinished(path), reader, in_place=True)
                reader.end()
            finally:
                reader.close()
        passing.fill_file(disk.unfinished(path))
        disk.rename(disk.unfinished(path), path)

    def resume_at(self, path: Path, header: Header) -> int:
        """0: a document is none before its end."""
        return 0


class _Once:
    """Rows that pass once, as the reader of a store whose first column is read from front to back, then the others."""

    def __init__(self, passing: Sealing) -> None:
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

    def __init__(self, passing: Sealing, others: Sequence[Spooled]) -> None:
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
