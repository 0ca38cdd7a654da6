"""A JSON document read into columns and checked: its header, and whether its rows are what that says (spec/json.md).

What stands before `meta` is stepped over and read afterwards, since `meta` says what it is.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Generic, Protocol, TypeVar

import numpy as np

from fostore.encodings import encoding_of, make_schema
from fostore.encodings.rows import round_to
from fostore.errors import DamageError, FormatError, RowError
from fostore.files._header import KEY
from fostore.files.json.rows import LOGS, Put, Section, read_rows
from fostore.files.json.scan import Scanner
from fostore.files.json.write import DISTRIBUTIONS, pieces, table_name
from fostore.places.place import File
from fostore.schema import digest, geometry
from fostore.schema.header import Header
from fostore.schema.ranges import Ranges
from fostore.schema.row import FLOATS, Array, Column

_CHECKED_BYTES = 1 << 20
_PROBS = Section(DISTRIBUTIONS, np.dtype("f8"))


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


K = TypeVar("K", bound=Kept)


@dataclass(frozen=True, slots=True)
class Document(Generic[K]):
    """What a document holds."""

    header: Header | None
    """None where it has none, and no row to tell it from."""
    meta: Mapping[str, Any]
    ranges: Ranges
    columns: Sequence[K]
    """One a column of the schema."""
    notes: Sequence[str] = ()
    """What was read otherwise than it stands."""


def read_document(
    file: File, keep: Callable[[str, int], K], plain: Section | None = None
) -> Document[K]:
    """Read a document whole, from its beginning to its end, and check every row.

    Args:
        file: the document.
        keep: makes room for a column of the document of this name and of so many bytes.
        plain: for a caller who knows, or will ask, what the rows of a document without a header are;
            they are not checked then, and nothing is guessed. None: they must be probabilities.

    Raises:
        FormatError: the document, its header or a row is not what it must be; names the file, and
            the key or the line.
        UnsupportedError: it was made by a newer release.
        DamageError: its header does not have its checksum, or stands under a key that is not its own.
    """
    scanner = Scanner(file)
    where = scanner.where
    header: Header | None = None
    meta: dict[str, Any] = {}
    columns: list[K] = []
    sections: dict[str, tuple[Section, Put]] = {}
    offsets: dict[str, int] = {}
    notes: list[str] = []

    def expect_sections() -> None:
        """Take from `meta` what the document must hold."""
        nonlocal header
        if KEY not in meta:
            columns.append(keep(where, scanner.size))
            sections[DISTRIBUTIONS] = (plain or _PROBS, columns[0].put)
            return
        header = Header.from_json({KEY: meta.pop(KEY), "meta": meta}, where)
        for i, column in enumerate(header.schema.columns):
            columns.append(keep(where, scanner.size))
            section = _section(table_name(header.schema, i), column)
            sections[section.name] = (section, partial(_put, columns[i], column))

    try:
        for name, offset in scanner.entries():
            offsets[name] = scanner.offset
            if name == "meta":
                meta = _read_meta(scanner, offset, notes)
                expect_sections()
            elif name in sections:
                read_rows(scanner, *sections.pop(name))
    except FormatError:
        if DISTRIBUTIONS in offsets and "meta" not in offsets:
            # Something open in a row that was stepped over hides where they end: name that row.
            scanner.seek(offsets[DISTRIBUTIONS])
            read_rows(scanner, _PROBS, lambda index, rows: None)
        raise
    if "meta" not in offsets:
        expect_sections()
    for name, section in sections.items():
        if name not in offsets:
            raise FormatError(f"{where} has no {name!r}; its keys are {list(offsets)[:8]}")
        scanner.seek(offsets[name])
        read_rows(scanner, *section)
    ranges = columns[0].ranges
    if header is not None:
        _check_rows_alike(header, columns, where)
        _check_plan(header, ranges, where)
        _check_rows(header, ranges, columns, where)
        return Document(header, meta, ranges, columns)
    beside = [name for name in offsets if name not in ("meta", DISTRIBUTIONS)]
    _refuse_stray_header(scanner, meta, {name: offsets[name] for name in beside})
    if beside:
        notes.append(f"left out beside the rows: the keys {beside[:12]}")
    if plain is None and len(ranges):
        header = _guess_header(meta, ranges, columns, where)
    return Document(header, meta, ranges, columns, notes)


def _read_meta(scanner: Scanner, offset: int, notes: list[str]) -> dict[str, Any]:
    """The metadata at the cursor, whose key stands at `offset`; NaN and infinities, which Python writes, as texts."""
    strange: list[str] = []
    meta = scanner.value("meta", strange)
    if not isinstance(meta, dict):
        raise FormatError(
            f"{scanner.where}{scanner.line(offset)}: 'meta' is {meta!r:.60}, expected an object"
        )
    if strange and KEY in meta:  # no store has them
        scanner.fail(f"'meta' holds {strange[0]}, which is not a JSON number", offset)
    if strange:
        notes.append(
            f"the metadata holds {', '.join(sorted(set(strange)))}, which JSON does not have: kept as text"
        )
    return meta


def _section(name: str, column: Column) -> Section:
    if column.dtype == "utf8":
        return Section(name, None, column.shape)
    if column.dtype in FLOATS:
        return Section(name, np.dtype("f8"), column.shape, column.name in LOGS)
    return Section(name, column.numpy_dtype, column.shape)


def _put(kept: Kept, column: Column, index: Array, rows: Array) -> int | None:
    return kept.put(index, round_to(rows, column.dtype) if column.dtype in FLOATS else rows)


# ------------------------------------------------------------------ what a document must be


def _refuse_stray_header(
    scanner: Scanner, meta: Mapping[str, Any], beside: Mapping[str, int]
) -> None:
    """Refuse a store whose key "meta" or "fostore" was damaged: its numbers would pass for a plain file's.

    `beside` says where the values of the keys lie that nobody reads.
    """
    stray = [f"meta.{name}" for name, value in meta.items() if _is_header(value)]
    for name, offset in beside.items():
        scanner.seek(offset)
        if scanner.peek() == b"{" and scanner.holds(b'"fostore"'):
            scanner.seek(offset)
            stray += [name] * _is_header(scanner.value(name).get(KEY))
    if stray:
        raise DamageError(
            f"{scanner.where} keeps the header of a store under the key {stray[0]!r}, and a store keeps it "
            f"under meta.{KEY}: the file was damaged or edited; restore it from a copy"
        )


def _is_header(value: object) -> bool:
    return isinstance(value, dict) and value.keys() >= {"num_classes", "columns", "unit_rows"}


def _check_rows_alike(header: Header, columns: Sequence[Kept], where: str) -> None:
    for i, kept in enumerate(columns):
        if kept.ranges != columns[0].ranges:
            names = [table_name(header.schema, n) for n in (i, 0)]
            raise FormatError(f"{where}: {names[0]!r} and {names[1]!r} do not hold the same rows")


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
                inside = slice(first - start, last - start)
                hashes.append([digest.block_hash(column[inside]) for column in rows])
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
