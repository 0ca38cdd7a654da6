"""The CSV format: a line that names the columns, then an id or index and the numbers of one row a line (RFC 4180)."""

from __future__ import annotations

import csv
import io
import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from fostore.conversion.files import Hints, Holds, refuse_inside
from fostore.conversion.files._flat import open_source
from fostore.conversion.files._sink import Sink
from fostore.conversion.files._text import cells
from fostore.conversion.files.guess import Found, plain_table
from fostore.conversion.table import Batch, Table
from fostore.encodings.rows import round_to
from fostore.errors import ArgumentError, FormatError, RowError, UnsafeError
from fostore.header import Header
from fostore.sample_ids import MAX_WIDTH, encode_ids, id_column
from fostore.schema import COUNTS, FLOATS, Array, Column

_INDEX = ("index", "", "unnamed: 0")  # pandas names its index with nothing
_IDS = ("id", "sample_id")
_MISSING = ("", "na", "n/a", "nan", "null", "none")
_DTYPES = ("float16", "float32", "float64", "uint8", "uint16", "uint32", "uint64", "int64")
_FIRST_LINES = 64
_FIRST_FIELDS = 1 << 16
_SCANNED = 4096
Kept = TypeVar("Kept")


class Csv:
    """See `fostore.conversion.files.FileFormat`; keeps ids and class names beside the numbers."""

    name = "csv"
    holds = Holds(header=False, dtypes=_DTYPES, members=False, names=True, ids=True)

    def read(self, path: Path, hints: Hints) -> Table:
        """The rows of a file with or without a line of names; numbers are doubles if no hint says otherwise."""
        refuse_inside(path, hints)
        text = _Text(path)
        layout = _layout(text, hints)
        num_rows, keys = _scan(text, layout, hints)
        where = str(path)

        def numbers(number: int, line: list[str]) -> Array:
            return _numbers(line, layout, number, where)

        def batches(start: int, rows: int) -> Iterator[Array]:
            for _, part in text.batches(layout.skip, start, rows, numbers):
                yield np.stack(part)

        table = plain_table(
            where,
            self.name,
            Found(layout.dtype, (num_rows, layout.num_classes)),
            batches,
            replace(hints, dtype=None),
            num_rows=num_rows,
            class_names=layout.class_names,
        )
        return table if keys is None else _keyed(table, keys, text, layout)

    def write(self, path: Path, header: Header, batches: Iterator[Batch], start: int) -> None:
        """Write or go on, a line a row, each number in its shortest exact form."""
        schema = header.schema
        at = next((i for i, c in enumerate(schema.columns) if c.role == "id"), None)
        with Sink(path, path.stat().st_size if start else 0) as sink:
            if not start:
                sink.write(_first_line(header))
            for batch in batches:
                numbers = cells(schema.columns[0], batch[0])
                if at is None:
                    keys = [b"%d" % row for row in range(start, start + len(numbers))]
                else:
                    keys = [_quoted(cell) for cell in cells(schema.columns[at], batch[at])]
                lines = [
                    key + b"," + row[1:-1].replace(b"null", b"-inf") + b"\n"
                    for key, row in zip(keys, numbers, strict=True)
                ]
                sink.write(b"".join(lines))
                start += len(batch[0])
            if header.num_samples not in (None, start):
                raise FormatError(f"{start} rows came and {header.num_samples} were announced")

    def resume_at(self, path: Path, header: Header) -> int:
        """Whole lines behind the names, cutting off what is behind; ids may hold line ends, so they start anew."""
        if header.schema.role("id") is not None:
            return 0
        first, lines, size, at = _first_line(header), 0, 0, 0
        fd, _ = open_source(path)
        with os.fdopen(fd, "rb") as file:
            if file.read(len(first)) != first:
                return 0
            at = size = len(first)
            while part := file.read(1 << 20):
                lines += part.count(b"\n")
                if b"\n" in part:
                    size = at + part.rindex(b"\n") + 1
                at += len(part)
        with Sink(path, size):
            return lines


@dataclass(frozen=True, slots=True)
class _Layout:
    """Which fields of a line are what."""

    skip: int
    """Lines of names: 0 or 1."""
    first: int
    """Fields before the numbers: 0 or 1."""
    key: str | None
    num_classes: int
    class_names: tuple[str, ...] | None
    dtype: str
    kind: str | None


def _first_line(header: Header) -> bytes:
    schema = header.schema
    names = schema.class_names or _nameless(schema.num_classes)
    text = io.StringIO()
    key = "index" if schema.role("id") is None else "id"
    csv.writer(text, lineterminator="\n").writerow([key, *names])
    return text.getvalue().encode()


def _nameless(num_classes: int) -> list[str]:
    """What stands over the numbers where classes have no names; "0" and "1" may be names."""
    return [f"class_{i}" for i in range(num_classes)]


def _quoted(cell: bytes) -> bytes:
    """A JSON cell, a number or a string, as a field."""
    if cell[:1] != b'"':
        return cell
    import orjson

    text: str = orjson.loads(cell)
    return b'"' + text.replace('"', '""').encode() + b'"'


def _layout(text: _Text, hints: Hints) -> _Layout:
    """What the first lines say."""
    lines = text.first(_FIRST_LINES)
    if not lines:
        raise FormatError(f"{text.where} is empty, expected a line of names")
    names = lines[0]
    head = names[0].strip().lower()
    has_names = head in (*_INDEX, *_IDS) or _is_named(lines, text.where)
    if not has_names:
        kind, dtype = _kind(lines, 0, hints)
        return _Layout(0, 0, None, len(names), None, dtype, kind)
    key = head if head in (*_INDEX, *_IDS) else None
    classes = tuple(names[1:] if key is not None else names)
    if not classes:
        raise FormatError(f"{text.where} names no class")
    # Whoever gives names means them instead of numbers, which is what pandas writes without names.
    is_numbered = list(classes) == [str(i) for i in range(len(classes))]
    is_nameless = list(classes) == _nameless(len(classes)) or (
        is_numbered and hints.class_names is not None
    )
    first = 0 if key is None else 1
    kind, dtype = _kind(lines[1:], first, hints)
    return _Layout(1, first, key, len(classes), None if is_nameless else classes, dtype, kind)


def _is_named(lines: list[list[str]], where: str) -> bool:
    """Whether the first line, which begins with no key, holds names; a row must not be taken for them.

    pandas writes 0, 1, 2 ... over columns without names, which may be a row of votes as well.
    """
    first = [field.strip() for field in lines[0]]
    if all(map(_is_number, first)):
        if first != [str(i) for i in range(len(first))] or len(lines) == 1:
            return False
        if len(first) > 2 and not _are_whole(lines[1:]):
            return True
        raise ArgumentError(
            f"line 1 of {where} is {','.join(first[:5])}, which may be a row or the numbers of the "
            "classes; if it is a row, put a line of names before it, else names in its place"
        )
    bad = next(field for field in first if not _is_number(field))
    has_numbers = any(map(_is_number, first))
    if any(_is_number(field) and not field.isdecimal() for field in first) or (
        has_numbers and bad.lower() in _MISSING
    ):
        raise FormatError(
            f"{where}, line 1, class {first.index(bad)}: {bad!r:.40} is no number, and others of the "
            "line are; if the line holds names, let the first column be the rows' 'index' or 'id'"
        )
    return True


def _are_whole(lines: list[list[str]]) -> bool:
    return all(field.strip().isdecimal() for line in lines for field in line)


def _kind(lines: list[list[str]], first: int, hints: Hints) -> tuple[str | None, str]:
    """Whole numbers whose rows do not all have the sum 1 are votes."""
    kind = hints.kind
    fields = [line[first:] for line in lines]
    whole = bool(fields) and all(field.strip().isdecimal() for line in fields for field in line)
    if kind is None and whole and any(sum(map(int, line)) != 1 for line in fields):
        kind = "counts"
    default = "uint64" if kind == "counts" else "float64"
    return kind, hints.dtype or default


def _scan(text: _Text, layout: _Layout, hints: Hints) -> tuple[int, Column | None]:
    """The number of rows and the column of their ids, in one pass that looks at the keys alone."""
    num_rows, longest, are_numbers = 0, 1, True
    hashes: list[Array] = []
    has_ids, width = layout.key in _IDS, layout.num_classes + layout.first

    def key(number: int, line: list[str]) -> str:
        if len(line) != width:
            raise FormatError(f"{text.where}, line {number}: {len(line)} fields, expected {width}")
        return line[0]

    for numbers, keys in text.batches(layout.skip, 0, _SCANNED, key):
        if has_ids:
            hashes.append(np.fromiter(map(hash, keys), np.int64, len(keys)))
            longest = max(longest, *(len(key.encode()) for key in keys))
            are_numbers = are_numbers and all(map(_is_integer, keys))
        elif layout.key is not None:
            for i, index in enumerate(keys):
                if index.strip() != str(num_rows + i):
                    raise FormatError(
                        f"{text.where}, line {numbers[i]}: the index is {index!r:.40}, expected "
                        f"{num_rows + i}: rows must come in order, without gaps or repetitions"
                    )
        num_rows += len(keys)
    if not has_ids:
        return num_rows, None
    _refuse_twice(text, layout, hashes)
    if hints.ids is not None:
        return num_rows, id_column(hints.ids)
    if are_numbers:
        return num_rows, id_column("int64")
    if longest > MAX_WIDTH:
        raise FormatError(f"{text.where} has an id of {longest} bytes; the limit is {MAX_WIDTH}")
    return num_rows, id_column(f"S{longest + -longest % 8}")


def _key(number: int, line: list[str]) -> str:
    return line[0]


def _refuse_twice(text: _Text, layout: _Layout, hashes: list[Array]) -> None:
    values, counts = np.unique(
        np.concatenate(hashes or [np.empty(0, np.int64)]), return_counts=True
    )
    if not (counts > 1).any():
        return
    twice = int(values[counts > 1][0])
    seen: dict[str, int] = {}
    for numbers, keys in text.batches(layout.skip, 0, _SCANNED, _key):
        for number, key in zip(numbers, keys, strict=True):
            if hash(key) == twice and key in seen:
                raise FormatError(
                    f"{text.where}, line {number}: the id {key!r:.60} was there on line {seen[key]}; "
                    "an id names one sample"
                )
            if hash(key) == twice:
                seen[key] = number


def _keyed(table: Table, column: Column, text: _Text, layout: _Layout) -> Table:
    """The table with its ids beside the rows."""

    def batches(start: int, rows: int) -> Iterator[Batch]:
        keys = text.batches(layout.skip, start, rows, _key)
        row = start
        for batch, (numbers, values) in zip(table.batches(start, rows), keys, strict=True):
            try:
                integers = column.dtype == "int64"
                encoded = encode_ids([int(v) for v in values] if integers else values, column, row)
            except (RowError, ValueError) as error:
                raise FormatError(f"{text.where}, from line {numbers[0]} on: {error}") from error
            yield [*batch, encoded]
            row += len(values)

    schema = replace(table.schema, columns=(*table.schema.columns, column))
    return replace(table, schema=schema, batches=batches)


def _numbers(line: list[str], layout: _Layout, number: int, where: str) -> Array:
    """The numbers of a line, in the dtype that they have."""
    fields = line[layout.first :]
    try:
        if layout.dtype not in FLOATS:
            return np.array([int(field) for field in fields], COUNTS[layout.dtype])
        row = np.array([float(field) for field in fields], np.float64)
        # Only logarithms may be infinite, and then minus: the check of the kind says so by row.
        if not np.isnan(row).any():
            return round_to(row, layout.dtype)
    except (ValueError, OverflowError):
        pass
    fits = _is_number if layout.dtype in FLOATS else partial(_fits, dtype=layout.dtype)
    at = next((i for i, field in enumerate(fields) if not fits(field)), 0)
    raise FormatError(
        f"{where}, line {number}, class {at}: {fields[at]!r:.40} is no number of {layout.dtype}"
    )


def _fits(field: str, dtype: str) -> bool:
    return field.strip().isdecimal() and int(field) <= np.iinfo(COUNTS[dtype]).max


def _is_number(field: str) -> bool:
    try:
        return not math.isnan(float(field))
    except ValueError:
        return False


def _is_integer(key: str) -> bool:
    digits = key.removeprefix("-")
    plain = digits.isascii() and digits.isdecimal() and str(int(digits)) == digits
    return plain and len(digits) < 20 and -(1 << 63) <= int(key) < 1 << 63 and key != "-0"


class _Text:
    """The lines of a file, taken apart."""

    def __init__(self, path: Path) -> None:
        self.where = str(path)
        self._path = path

    def first(self, count: int) -> list[list[str]]:
        """The first two lines, and more up to so many while they are short."""
        lines: list[list[str]] = []
        for _, part in self.batches(0, 0, 1, lambda number, line: line):
            lines += part
            if len(lines) == count or (len(lines) > 1 and sum(map(len, lines)) > _FIRST_FIELDS):
                break
        return lines

    def batches(
        self, skip: int, start: int, rows: int, keep: Callable[[int, list[str]], Kept]
    ) -> Iterator[tuple[list[int], list[Kept]]]:
        """Rows from `start` on behind `skip` lines of names: the numbers of their lines, and what is kept of each.

        Fields take much memory, so what is kept of a line is made as soon as it is read.
        """
        with self._reader() as reader:
            numbers: list[int] = []
            kept: list[Kept] = []
            row = -skip
            try:
                for line in reader:
                    if not line:
                        raise FormatError(f"{self.where}, line {reader.line_num} is empty")
                    if row >= start:
                        numbers.append(reader.line_num)
                        kept.append(keep(reader.line_num, line))
                    row += 1
                    if len(kept) == rows:
                        yield numbers, kept
                        numbers, kept = [], []
            except csv.Error as error:
                raise FormatError(f"{self.where}, line {reader.line_num}: {error}") from error
            except UnicodeDecodeError as error:
                raise FormatError(
                    f"{self.where}, after line {reader.line_num}: this is not UTF-8"
                ) from error
            if kept:
                yield numbers, kept

    @contextmanager
    def _reader(self) -> Iterator[Any]:
        fd, _ = open_source(self._path)
        with os.fdopen(fd, encoding="utf-8-sig", newline="") as file:
            yield csv.reader(_limited(file, self.where), strict=True)


_MAX_LINE = 1 << 28


def _limited(file: io.TextIOWrapper, where: str) -> Iterator[str]:
    while line := file.readline(_MAX_LINE):
        if len(line) == _MAX_LINE:
            raise UnsafeError(f"{where} has a line of over {_MAX_LINE:,} characters")
        yield line


FORMAT = Csv()
