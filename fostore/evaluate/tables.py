"""A file that `convert` reads as a source of distributions, read once, from front to back."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from fostore.encodings import encoding_of
from fostore.errors import ArgumentError
from fostore.evaluate.rows import Rows
from fostore.files.table import Batch, Table
from fostore.schema.row import Array
from fostore.schema.sides.ids import decode_ids


def rows_of_table(table: Table) -> Rows:
    """The rows of a table.

    Raises:
        ArgumentError: a stream, whose length nobody knows.
    """
    if table.num_rows is None:
        raise ArgumentError(
            f"{table.where} does not say how many rows it has; convert it to a store first"
        )
    schema = table.schema
    in_logs = schema.kind in ("log_probs", "logits")
    kind = "log_probs" if in_logs else "probs"
    encoding, content, reader = encoding_of(schema), len(schema.content), _Reader(table)

    def read(start: int, stop: int) -> Array:
        columns = reader.read(start, stop)[:content]
        encoding.check(columns, schema, start)
        return encoding.decode(columns, schema, kind)

    named, id_reader = schema.role("id"), _Reader(table)  # a reader of its own: ids are read first

    def ids(start: int, stop: int) -> Array:
        assert named is not None, "handed out only where there is such a column"
        return decode_ids(id_reader.read(start, stop)[schema.index(named.name)], named)

    return Rows(
        where=table.where,
        count=table.num_rows,
        row_shape=schema.row_shape,
        read=read,
        in_logs=in_logs,
        tol=max(schema.sum_tolerance, 1e-3),
        roundoff=2.0**-11 if schema.dtype == "float16" else 2.0**-24,
        class_names=schema.class_names,
        ids=None if named is None else ids,
    )


class _Reader:
    """Batches cut to the rows asked for; asking in order reads the file once."""

    def __init__(self, table: Table) -> None:
        self._table = table
        self._batches: Iterator[Batch] = iter(())
        self._left: Batch | None = None
        self._next = -1

    def read(self, start: int, stop: int) -> Batch:
        """The rows from `start` to `stop`."""
        if start != self._next:
            self._batches, self._left = self._table.batches(start, max(stop - start, 1)), None
        self._next = stop
        found: list[Batch] = []
        wanted = stop - start
        while wanted:
            batch = self._left if self._left is not None else next(self._batches)
            found.append([column[:wanted] for column in batch])
            rest = [column[wanted:] for column in batch]
            self._left = rest if len(rest[0]) else None
            wanted -= len(found[-1][0])
        if len(found) == 1:
            return found[0]
        return [np.concatenate(columns) for columns in zip(*found, strict=True)]
