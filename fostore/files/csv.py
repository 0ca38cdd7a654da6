"""The CSV format: a line that names the columns, then an id or index and the numbers of one row a line (RFC 4180)."""

from __future__ import annotations

import csv
import io
import math
import os
import re
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from fostore.encodings.rows import round_to
from fostore.errors import FormatError
from fostore.files import DTYPES, FileFormat, Hints, Holds, refuse_inside
from fostore.files._flat import open_source
from fostore.files._keys import Beside, keyed
from fostore.files._layout import MISSING, Layout, layout_of
from fostore.files._sink import Sink
from fostore.files._text import COMMA, Text, bare_cells, cells, indices, is_whole, woven
from fostore.files._wide import nameless
from fostore.files.array import FileArray
from fostore.files.guess import plain_table
from fostore.files.table import Batch, Table, check_count
from fostore.schema.header import Header
from fostore.schema.row import COUNTS, FLOATS, Array

_FLOAT = re.compile(r"-?\d+\.\d+(?:e[+-]\d{2})?\Z")
_SCANNED = 4096


class _Csv(FileFormat):
    """See `fostore.files.FileFormat`; keeps ids and class names beside the numbers."""

    name = "csv"
    holds = Holds(header=False, dtypes=DTYPES, members=False, names=True, ids=True)

    def read(self, path: Path, hints: Hints) -> Table:
        """The rows of a file with or without a line of names; numbers are doubles if no hint says otherwise."""
        refuse_inside(path, hints)
        text = Text(path, hints.delimiter or _delimiter(path), hints.decimal or ".")
        layout = layout_of(text, hints)
        num_rows = _scan(text, layout)
        where = str(path)

        def numbers(number: int, line: list[str]) -> Array:
            return _numbers(line, layout, number, text)

        def batches(start: int, rows: int) -> Iterator[Array]:
            for _, lines in text.batches(layout.skip, start, rows, numbers):
                yield np.stack(lines)

        table = plain_table(
            where,
            self.name,
            FileArray(layout.dtype, (num_rows, layout.num_classes), batches),
            replace(hints, dtype=None, kind=layout.kind),  # the dtype was followed by the layout
            class_names=layout.class_names,
            notes=layout.notes,
        )
        table = replace(table, took=table.took | {"columns", "delimiter", "decimal"})
        columns = {name: _beside(text, layout, at, hints.ids) for name, at in layout.beside.items()}
        table = keyed(table, columns, replace(hints, drop=()))
        if layout.own_ids is not None and table.schema.role("id") is None and not hints.is_keyed:
            _refuse_ids(text, layout, table)
        return table

    def write(self, path: Path, header: Header, batches: Iterator[Batch], start: int) -> None:
        """Write or go on, a line a row, each number in its shortest exact form."""
        schema = header.schema
        at = next((i for i, c in enumerate(schema.columns) if c.role == "id"), None)
        separator = _delimiter(path).encode()
        with Sink(path, path.stat().st_size if start else 0) as sink:
            if not start:
                sink.write(_first_line(header, path))
            for batch in batches:
                stop = start + len(batch[0])
                if at is None:
                    keys = indices(start, stop)
                else:
                    keys = [_quoted(cell) for cell in cells(schema.columns[at], batch[at])]
                _, rows, _ = bare_cells(schema.columns[0], batch[0])
                sink.write(woven(keys, separator, _fields(rows, separator), b"\n"))
                start = stop
            check_count(start, header.num_samples)

    def resume_at(self, path: Path, header: Header) -> int:
        """Whole lines behind the names, cutting off what is behind; ids may hold line ends, so they start anew."""
        if header.schema.role("id") is not None:
            return 0
        first, lines, size, at = _first_line(header, path), 0, 0, 0
        fd, _ = open_source(path)
        with os.fdopen(fd, "rb") as file:
            if file.read(len(first)) != first:
                return 0
            at = size = len(first)
            while piece := file.read(1 << 20):
                lines += piece.count(b"\n")
                if b"\n" in piece:
                    size = at + piece.rindex(b"\n") + 1
                at += len(piece)
        with Sink(path, size):
            return lines


def _delimiter(path: Path) -> str:
    return "\t" if path.suffix.lower() == ".tsv" else ","


def _first_line(header: Header, path: Path) -> bytes:
    schema = header.schema
    names = schema.class_names or nameless(schema.num_classes)
    text = io.StringIO()
    # Which makes the line one of names for who reads it, also where classes are called 0, 1, 2.
    key = "index" if schema.role("id") is None else "id"
    csv.writer(text, delimiter=_delimiter(path), lineterminator="\n").writerow([key, *names])
    return text.getvalue().encode()


def _fields(rows: list[bytes], separator: bytes) -> list[bytes]:
    """The numbers of JSON lists without their brackets as fields; all rows at once, since a call a row is dear."""
    text = b"\n".join(rows).replace(b"null", b"-inf").replace(b",", separator)
    return text.split(b"\n")


def _quoted(cell: bytes) -> bytes:
    """A JSON cell, a number or a string, as a field."""
    if cell[:1] != b'"':
        return cell
    text: str = orjson.loads(cell)
    return b'"' + text.replace('"', '""').encode() + b'"'


def _scan(text: Text, layout: Layout) -> int:
    """The number of rows, in one pass that looks at the width of the lines and at the index alone."""
    num_rows = 0

    def index(number: int, line: list[str]) -> str:
        if len(line) != layout.width:
            raise FormatError(
                f"{text.where}, line {number}: {len(line)} fields, expected {layout.width}"
            )
        return "" if layout.index is None else line[layout.index]

    for numbers, keys in text.batches(layout.skip, 0, _SCANNED, index):
        for i, key in enumerate(keys) if layout.index is not None else ():
            if key.strip() != str(num_rows + i) and _whole(key) != num_rows + i:
                raise FormatError(
                    f"{text.where}, line {numbers[i]}: the index is {key!r:.40}, expected "
                    f"{num_rows + i}: rows must come in order, without gaps or repetitions; if they are "
                    "keys of samples, say id_column='index' (--id-column index)"
                )
        num_rows += len(keys)
    return num_rows


def _beside(text: Text, layout: Layout, at: int, ids: str | None) -> Beside:
    """A column beside the numbers: whole numbers where all are plain ones (or `ids` says so), else texts."""

    def key(number: int, line: list[str]) -> str:
        return line[at]

    def read(start: int, rows: int) -> Iterator[list[str]]:
        for _, keys in text.batches(layout.skip, start, rows, key):
            yield keys

    def are_plain() -> bool:
        return all(all(_whole(key) is not None for key in keys) for keys in read(0, _SCANNED))

    plain = [] if ids is None else [ids == "int64"]

    def typed(start: int, rows: int) -> Iterator[Any]:
        if not plain:
            plain.append(are_plain())
        for keys in read(start, rows):
            yield np.array([_whole(k) for k in keys], np.int64) if plain[0] else keys

    return Beside("text", typed)


def _refuse_ids(text: Text, layout: Layout, table: Table) -> None:
    """Raise for ids that cannot be ids, in a file that is laid out as fostore's: it was edited, or badly joined."""
    seen: dict[str, int] = {}
    for numbers, keys in text.batches(layout.skip, 0, _SCANNED, lambda number, line: line[0]):
        for number, key in zip(numbers, keys, strict=True):
            if key in seen:
                raise FormatError(
                    f"{text.where}, line {number}: the id {key!r:.60} was there on line {seen[key]}; "
                    "an id names one sample; drop=['id'] (--drop id) leaves the ids out"
                )
            seen[key] = number
    raise FormatError(f"{text.where}: {next(n for n in table.notes if 'not taken for ids' in n)}")


def _numbers(line: list[str], layout: Layout, number: int, text: Text) -> Array:
    """The numbers of a line, in the dtype that they have."""
    fields = [line[i] for i in layout.classes]
    if text.decimal != ".":
        fields = [text.point(field) for field in fields]
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
    field = line[layout.classes[at]]
    hint = ""
    if COMMA.match(field) and text.decimal == ".":
        hint = "; if its comma is a decimal comma, say decimal=',' (--decimal ,)"
    elif field.strip().lower() in MISSING:
        hint = "; leave such samples out, or give their numbers"
    raise FormatError(
        f"{text.where}, line {number}, class {at}: {field!r:.40} is no number of {layout.dtype}{hint}"
    )


def _fits(field: str, dtype: str) -> bool:
    return is_whole(field) and int(field) <= np.iinfo(COUNTS[dtype]).max


def _is_number(field: str) -> bool:
    try:
        return not math.isnan(float(field))
    except ValueError:
        return False


def _is_integer(key: str) -> bool:
    digits = key.removeprefix("-")
    plain = is_whole(digits) and digits.isascii() and str(int(digits)) == digits
    return plain and -(1 << 63) <= int(key) < 1 << 63 and key != "-0"


def _whole(key: str) -> int | None:
    """The whole number that a key is, as integers are written or as NumPy's savetxt writes all numbers."""
    if _is_integer(key):
        return int(key)
    value = float(key) if _FLOAT.match(key) else 0.5
    return int(value) if abs(value) < 2.0**53 and value == round(value) else None


FORMAT = _Csv()
