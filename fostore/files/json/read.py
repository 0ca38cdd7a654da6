"""A JSON document read into columns and checked: its header, and whether its rows are what that says (spec/json.md).

What stands before `meta` is stepped over and read afterwards, since `meta` says what it is.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Generic, TypeVar

import numpy as np

from fostore.encodings import encoding_of
from fostore.encodings.rows import round_to
from fostore.errors import DamageError, FormatError, RowError, UnsafeError
from fostore.files._header import KEY
from fostore.files.json.kept import Gathered, Placed
from fostore.files.json.rows import LOG_COLUMNS, Put, Section, read_rows
from fostore.files.json.scan import Scanner
from fostore.files.json.write import (
    DISTRIBUTIONS,
    header_of_probs,
    pieces,
    sealed_if_whole,
    table_name,
)
from fostore.places.place import File
from fostore.schema import digest
from fostore.schema.header import Header
from fostore.schema.ranges import Ranges
from fostore.schema.row import FLOATS, Array, Column

_CHECKED_BYTES = 1 << 20
_PROBS = Column("probs", "float64", "float64", (), ())


Kept = Placed | Gathered
K = TypeVar("K", Placed, Gathered)


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
    file: File, keep: Callable[[str, int], K], plain: Column | None = None
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

    def expect(section: Section, column: Column) -> None:
        columns.append(keep(where, scanner.size))
        sections[section.name] = (section, partial(_put, columns[-1], column))

    def expect_sections() -> None:
        """Take from `meta` what the document must hold."""
        nonlocal header
        if KEY not in meta:
            expect(replace(_section(DISTRIBUTIONS, plain or _PROBS), shape=None), plain or _PROBS)
            return
        header = Header.from_json({KEY: meta.pop(KEY), "meta": meta}, where)
        for i, column in enumerate(header.schema.columns):
            expect(_section(table_name(header.schema, i), column), column)

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
            read_rows(scanner, Section(DISTRIBUTIONS, np.dtype("f8")), lambda index, rows: None)
        raise
    if "meta" not in offsets:
        expect_sections()
    for name, section in sections.items():
        if name not in offsets:
            raise FormatError(f"{where} has no {name!r}; its keys are {list(offsets)[:8]}")
        scanner.seek(offsets[name])  # it stood before `meta`
        read_rows(scanner, *section)
    ranges = columns[0].ranges
    if header is not None:
        _check_plan(header, columns, where)
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
        return Section(name, np.dtype("f8"), column.shape, column.name in LOG_COLUMNS)
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
        with suppress(UnsafeError):  # too large for a header
            if scanner.peek() == b"{" and b'"fostore"' in scanner.text(name):
                scanner.seek(offset)
                stray += [name] * _is_header(scanner.value(name).get(KEY))
    if stray:
        raise DamageError(
            f"{scanner.where} keeps the header of a store under the key {stray[0]!r}, and a store keeps it "
            f"under meta.{KEY}: the file was damaged or edited; restore it from a copy"
        )


def _is_header(value: object) -> bool:
    return isinstance(value, dict) and value.keys() >= {"num_classes", "columns", "unit_rows"}


def _check_plan(header: Header, columns: Sequence[Kept], where: str) -> None:
    """Refuse columns of different rows, and rows that the header does not plan."""
    ranges, planned = columns[0].ranges, header.num_samples
    for i, kept in enumerate(columns):
        if kept.ranges != ranges:
            names = [table_name(header.schema, n) for n in (i, 0)]
            raise FormatError(f"{where}: {names[0]!r} and {names[1]!r} do not hold the same rows")
    stop = ranges.items[-1][1] if ranges else 0
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
    # Few enough to stay in the processor's cache from the check to the hash
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
    shape = columns[0].read(first, first + 1).shape[1:]
    # Without times: whoever opens the file, and when, it is the same store.
    header = header_of_probs(shape, "float64", stop, created="", updated="", meta=meta)
    hashes = _check_rows(header, ranges, columns, where, hashed=True)
    # The same rows and metadata are the same store, however the text is laid out.
    content = digest.hasher()
    content.update(json.dumps([meta, ranges.items], sort_keys=True).encode())
    content.update(hashes.tobytes())
    header = replace(header, id=str(uuid.UUID(bytes=content.digest()[:16])))
    return sealed_if_whole(header, ranges, hashes)
