"""Stores as sources, and every row that is copied held against what its source keeps of it.

Whatever is read into a new store is checked, also where it is a part, and where the source is not sealed: a digest
that nobody compares, or a checksum that nobody looks at, would let damage be sealed anew.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from fostore.errors import ArgumentError, DamageError, UncommittedError
from fostore.files.hashing import Digester
from fostore.files.table import Batch, Table
from fostore.formats import Reader
from fostore.reading.proof import Proof
from fostore.reading.selection import Selection
from fostore.reading.store import Store
from fostore.schema.ranges import describe
from fostore.schema.row import TOKEN

_UNKNOWN = "not checked against the source: {rows} of {where} have no checksum there"


def store_table(store: Store, rows: slice | None = None) -> Table:
    """All rows of a store, as they are stored; with `rows` those from 0 on that are committed.

    Raises:
        UncommittedError: rows that are wanted are not committed yet; says which.
    """
    return reader_table(store.reader, str(store.path), store.format, rows)


def reader_table(reader: Reader, where: str, format: str, rows: slice | None = None) -> Table:
    """The same of an open format; `where` names the store."""
    header, committed = reader.header, reader.committed
    planned = header.num_samples
    if planned is None:
        planned = committed.items[-1][1] if committed else 0
    missing = committed.missing(planned)
    stop = None if rows is None else rows.stop
    # A slice up to the end, or counted from it, is of rows that nobody has yet.
    if missing and (stop is None or not 0 <= stop <= committed.prefix):
        first = committed.prefix
        some = f", or convert what is there: rows=slice(0, {first}), or --rows 0:{first}"
        raise UncommittedError(
            f"{describe(missing)} of {where} are missing; finish the store{some if first else ''}"
        )
    num_rows = committed.prefix if missing else len(committed)
    # The guide's file has no header and keeps no checksum: its digest was made as it was read.
    keeps = format != "json" or bool(header.created)
    digest = None if missing or not keeps else header.digest

    def batches(start: int, rows: int) -> Iterator[Batch]:
        views = [reader.column(i) for i in range(len(header.schema.columns))]
        for first in range(start, num_rows, rows):
            stop = min(first + rows, num_rows)
            yield [view.read(first, stop) for view in views]

    return Table(
        where=where,
        format=format,
        schema=header.schema,
        num_rows=num_rows,
        batches=batches,
        num_sequences=_num_sequences(reader, num_rows),
        meta=header.meta,
        identity=header.identity,
        extra=header.extra,
        digest=digest,
        header=header,
        trusted=digest is not None,
        proof=Proof(reader, where) if keeps else None,
    )


def _num_sequences(reader: Reader, num_rows: int) -> int | None:
    """Those planned, or up to that of the last row, which is the last of a stream so far."""
    header = reader.header
    if header.schema.row_axis != TOKEN or header.num_sequences is not None:
        return header.num_sequences
    view = reader.column(header.schema.index("sequence"))
    return int(view.read(num_rows - 1, num_rows)[0]) + 1 if num_rows else 0


def selection_table(selection: Selection) -> Table:
    """The rows of a selection, renumbered from 0; each is checked with what is hashed with it."""
    store = selection.store
    reader, schema = store.reader, store.schema
    if schema.row_axis == TOKEN:
        raise ArgumentError(
            f"some rows of {store.path} are tokens without their sequences; convert(store, rows=slice(a, b)) "
            "takes whole sequences, store.sequences.take([...]) gives them in memory"
        )
    proof = Proof(reader, str(store.path))

    def batches(start: int, rows: int) -> Iterator[Batch]:
        views = [reader.column(i) for i in range(len(schema.columns))]
        for first in range(start, len(selection), rows):
            positions = np.asarray(selection.rows[first : first + rows], np.int64)
            proof.check_rows(positions)
            yield [view.take(positions) for view in views]

    reach = (int(selection.rows.min()), int(selection.rows.max()) + 1) if len(selection) else (0, 0)
    unknown = proof.unknown(*reach)
    return Table(
        where=f"{store.path} ({len(selection)} rows)",
        format=store.format,
        schema=schema,
        num_rows=len(selection),
        batches=batches,
        files=(str(store.path),),
        meta=store.meta,
        extra=store.header.extra,
        checked="part" if unknown else "full",
        notes=_notes(store.path, unknown),
    )


def guarded(table: Table, rows: slice | None = None) -> Table:
    """The table, whose every row is held against what its source keeps of it as it is read.

    Blocks with hashes and committed runs with checksums are compared one by one, so that damage names
    its rows, and only what is read is checked. A file that keeps one digest of all its rows is read as a whole: as
    its rows pass, or once before where only some are wanted.
    Whoever reads all rows of a sealed store and compares their digest does not need it.

    Args:
        rows: those that will be read; all of them by default.
    """
    if table.num_rows is not None and not table.num_rows:
        return table  # which has nothing to hold against anything
    if table.proof is not None:
        return _by_proof(table, table.proof, rows)
    return table if table.digest is None else _by_digest(table, is_part=rows is not None)


def _by_proof(table: Table, proof: Proof, rows_read: slice | None) -> Table:
    first, last, _ = (rows_read or slice(None)).indices(table.num_rows or 0)

    def batches(start: int, rows: int) -> Iterator[Batch]:
        for batch in table.batches(start, rows):
            stop = start + len(batch[0])
            # Rows behind the last that is wanted come with it, and are left out later.
            proof.check(start, min(stop, last), batch)
            yield batch
            start = stop

    unknown = proof.unknown(first, last)
    return replace(
        table,
        batches=batches,
        proof=None,
        checked="part" if unknown else "full",
        notes=(*table.notes, *_notes(table.where, unknown)),
    )


def _notes(where: object, unknown: tuple[tuple[int, int], ...]) -> tuple[str, ...]:
    return (_UNKNOWN.format(rows=describe(unknown), where=where),) if unknown else ()


def _by_digest(table: Table, *, is_part: bool) -> Table:
    is_known = False  # that all rows have the digest

    def passing(rows: int) -> Iterator[Batch]:
        """All rows; the last of them only once they are known to be right."""
        nonlocal is_known
        held: Batch | None = None
        with Digester(table.schema, table.num_rows, table.num_sequences) as digester:
            for batch in table.batches(0, rows):
                if held is not None:
                    yield held
                digester.update(batch)
                held = batch
            if digester.digest() != table.digest:
                raise DamageError(
                    f"{table.where} is damaged: its rows do not have the digest {table.digest}; restore "
                    "it from a copy"
                )
        is_known = True
        if held is not None:
            yield held

    def batches(start: int, rows: int) -> Iterator[Batch]:
        if not is_known and not (start or is_part):
            yield from passing(rows)
            return
        if not is_known:
            for _ in passing(rows):
                pass
        yield from table.batches(start, rows)

    return replace(table, batches=batches, checked="full")
