"""A JSON document read into columns and checked: its header, and whether its rows are what that says (spec/json.md)."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

import numpy as np

from fostore.encodings import encoding_of, make_schema
from fostore.encodings.rows import round_to
from fostore.errors import DamageError, FormatError, RowError
from fostore.formats.jsondoc import Wanted, read_document
from fostore.formats.jsonsource import Source
from fostore.formats.jsontable import Table
from fostore.formats.jsonwrite import KEY, pieces, ranges_of, table_name
from fostore.schema import digest, geometry
from fostore.schema.header import Header
from fostore.schema.ranges import Ranges
from fostore.schema.row import Array, Column

_CHECKED_BYTES = 1 << 20


class Kept(Protocol):
    """Where the rows of a column are put while a document is read."""

    @property
    def ranges(self) -> Ranges:
        """The indices that are there."""
        ...

    def put(self, index: Array, rows: Array) -> int | None:
        """Keep rows under different indices; gives an index that was there before, if any."""
        ...

    def read(self, start: int, stop: int) -> Array:
        """The rows `[start, stop)`, all of which are there."""
        ...


class Gathered:
    """A column's rows in memory, whatever their indices."""

    def __init__(self) -> None:
        self._seen: set[int] = set()
        self._parts: list[tuple[Array, Array]] = []

    def put(self, index: Array, rows: Array) -> int | None:
        """See `Kept`."""
        numbers = index.tolist()
        twice = next((i for i in numbers if i in self._seen), None)
        self._seen.update(numbers)
        self._parts.append((index, rows))
        return twice

    @property
    def ranges(self) -> Ranges:
        """See `Kept`."""
        return ranges_of(self.in_order()[0]) if self._parts else Ranges()

    def read(self, start: int, stop: int) -> Array:
        """See `Kept`."""
        index, rows = self.in_order()
        begin = int(np.searchsorted(index, start))
        return rows[begin : begin + stop - start]

    def in_order(self) -> tuple[Array, Array]:
        """The indices, increasing, and their rows; there is at least one."""
        if len(self._parts) > 1:
            index = np.concatenate([index for index, _ in self._parts])
            rows = np.concatenate([rows for _, rows in self._parts])
            self._parts = [(index, rows)]
        index, rows = self._parts[0]
        if np.any(np.diff(index) < 0):
            order = np.argsort(index)
            self._parts = [(index[order], rows[order])]
        return self._parts[0]


@dataclass(frozen=True, slots=True)
class Contents:
    """What a document holds; the header is None where it has none, and no row to tell it from."""

    header: Header | None
    meta: Mapping[str, Any]
    ranges: Ranges
    notes: Sequence[str] = ()
    """What was read otherwise than it stands."""
    is_plain: bool = False
    """Whether the document says nothing of its rows, which have not been checked then."""


@dataclass(frozen=True, slots=True)
class Plain:
    """How the rows of a document are read that has no header; they are not checked, and nothing is guessed."""

    dtype: str = "f8"
    nulls: bool = False


def read_checked(
    source: Source,
    columns: Sequence[Kept],
    add: Callable[[], Kept],
    plain: Plain | None = None,
) -> Contents:
    """Read a document whole and check every row.

    Args:
        source: the file, with its cursor at its beginning.
        columns: grows by what `add` gives; afterwards one a column of the schema.
        add: makes room for a column, and appends it to `columns`.
        plain: for a caller who knows, or will ask, what the rows of a document without a header are.
            None: they must be probabilities.

    Raises:
        FormatError: the document, its header or a row is not what it must be.
        UnsupportedError: it was made by a newer release.
        DamageError: its header does not have its checksum, or stands under a key that is not its own.
    """
    where = source.where
    known: list[Header] = []
    metas: list[dict[str, Any]] = []

    def wanted_of(meta: dict[str, Any]) -> Wanted:
        metas.append(meta)
        if KEY not in meta:
            said = plain or Plain()
            return [(Table("distributions", np.dtype(said.dtype), nulls=said.nulls), add().put)]
        described = meta.pop(KEY)
        header = Header.from_json({KEY: described, "meta": meta}, where)
        known.append(header)
        schema = header.schema
        return [
            (_table(table_name(schema, i), column), partial(_place, add(), column))
            for i, column in enumerate(schema.columns)
        ]

    notes: list[str] = []
    places = read_document(source, wanted_of, notes)
    if not known:
        _refuse_stray_header(source, metas[0], places)
    meta, ranges = metas[0], columns[0].ranges
    if known:
        header = known[0]
        for i, kept in enumerate(columns):
            if kept.ranges != ranges:
                names = [table_name(header.schema, n) for n in (i, 0)]
                raise FormatError(
                    f"{where}: {names[0]!r} and {names[1]!r} do not hold the same rows"
                )
        _check_plan(header, ranges, where)
        _check_rows(header, ranges, columns, where)
        return Contents(header, meta, ranges)
    if plain is not None or not len(ranges):
        return Contents(None, meta, ranges, notes, is_plain=True)
    return Contents(_guess_header(meta, ranges, columns, where), meta, ranges, notes, is_plain=True)


def _refuse_stray_header(
    source: Source, meta: Mapping[str, Any], places: Mapping[str, int]
) -> None:
    """Refuse a store whose key "meta" or "fostore" was damaged: its numbers would pass for a plain file's."""
    stray = [f"meta.{name}" for name, value in meta.items() if _is_header(value)]
    for name in places.keys() - {"meta", "distributions"}:
        source.seek(places[name])
        if source.peek() == b"{" and b'"fostore"' in source.text(name):
            source.seek(places[name])
            value = source.value(name)
            stray += [name] * (isinstance(value, dict) and _is_header(value.get(KEY)))
    if stray:
        raise DamageError(
            f"{source.where} keeps the header of a store under the key {stray[0]!r}, and a store keeps it "
            f"under meta.{KEY}: the file was damaged or edited; restore it from a copy"
        )


def _is_header(value: object) -> bool:
    return isinstance(value, dict) and value.keys() >= {"num_classes", "columns", "unit_rows"}


# ------------------------------------------------------------------ columns


def _table(name: str, column: Column) -> Table:
    if column.dtype == "utf8":
        return Table(name, None, column.shape)
    if column.numpy_dtype.kind in "iu" and column.dtype != "bfloat16":
        return Table(name, column.numpy_dtype, column.shape)
    nulls = column.name in ("log_probs", "logits")
    return Table(name, np.dtype("f8"), column.shape, nulls)


def _place(kept: Kept, column: Column, index: Array, rows: Array) -> int | None:
    is_float = rows.dtype.kind == "f"
    return kept.put(index, round_to(rows, column.dtype) if is_float else rows)


def _check_plan(header: Header, ranges: Ranges, where: str) -> None:
    planned, stop = header.num_samples, ranges.items[-1][1] if ranges.items else 0
    if planned is not None and stop > planned:
        raise FormatError(f"{where} holds row {stop - 1}, but its num_samples is {planned}")
    if header.sealed and len(ranges) != planned:
        raise FormatError(
            f"{where} says that it is whole, with {planned} rows, and holds {len(ranges)}: "
            "the file was cut or edited"
        )


def _check_rows(
    header: Header, ranges: Ranges, columns: Sequence[Kept], where: str, *, hashed: bool = False
) -> Array:
    """Check all rows, some blocks at a time; gives the hash of every block and column where it is asked for."""
    schema, block = header.schema, header.block_rows
    together = max(1, _CHECKED_BYTES // (block * max(schema.row_bytes))) * block
    hashes = []
    try:
        encoding = encoding_of(schema)
        for start, stop in pieces(ranges, together):
            rows = [kept.read(start, stop) for kept in columns]
            encoding.check(rows[: len(schema.content)], schema, start)
            for first, last in pieces(Ranges.of((start, stop)), block) if hashed else ():
                part = slice(first - start, last - start)
                hashes.append([digest.block_hash(column[part]) for column in rows])
    except RowError as error:
        raise FormatError(f"{where}: {error}") from error
    except FormatError as error:
        raise type(error)(f"{where}: {error}") from error
    return np.array(hashes, np.uint8)


def _guess_header(
    meta: dict[str, Any], ranges: Ranges, columns: Sequence[Kept], where: str
) -> Header:
    """What a file without a header is: probabilities; its numbers are doubles, as Python wrote them."""
    first, stop = ranges.items[0][0], ranges.items[-1][1]
    row = columns[0].read(first, first + 1)
    members = row.shape[1] if row.ndim == 3 else None
    schema = make_schema(row.shape[-1], num_members=members, dtype="float64")
    header = Header(
        schema,
        stop,
        geometry.unit_rows(schema.row_bytes, stop),
        geometry.block_rows(schema.row_bytes),
        created="",
        updated="",
        meta=meta,
    )
    hashes = _check_rows(header, ranges, columns, where, hashed=True)
    # The same rows and metadata are the same store, however the text is laid out.
    content = digest.hasher()
    content.update(json.dumps([meta, ranges.items], sort_keys=True).encode())
    content.update(hashes.tobytes())
    header = replace(header, id=str(uuid.UUID(bytes=content.digest()[:16])))
    if len(ranges) < stop:
        return header
    return replace(header, sealed=True, digest=digest.store_digest(header, hashes))
