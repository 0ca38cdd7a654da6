"""The CSV format: a line that names the columns, then an id or index and the numbers of one row a line (RFC 4180)."""

from __future__ import annotations

import csv
import io
import math
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from fostore.encodings.rows import round_to
from fostore.errors import ArgumentError, FormatError
from fostore.files import FileFormat, Hints, Holds, refuse_inside
from fostore.files._flat import open_source
from fostore.files._keys import IDS, INDEX, Beside, keyed, plain_name
from fostore.files._sink import Sink
from fostore.files._text import COMMA, Text, cells
from fostore.files._wide import layout, nameless, numbered
from fostore.files.guess import Found, plain_table
from fostore.files.table import Batch, Table
from fostore.schema.header import Header
from fostore.schema.row import COUNTS, FLOATS, Array

_MISSING = ("", "na", "n/a", "nan", "null", "none")
_DTYPES = ("float16", "float32", "float64", "uint8", "uint16", "uint32", "uint64", "int64")
_FLOAT = re.compile(r"-?\d+\.\d+(?:e[+-]\d{2})?\Z")
_FIRST_LINES = 64
_SCANNED = 4096


class Csv(FileFormat):
    """See `fostore.files.FileFormat`; keeps ids and class names beside the numbers."""

    name = "csv"
    holds = Holds(header=False, dtypes=_DTYPES, members=False, names=True, ids=True)

    def read(self, path: Path, hints: Hints) -> Table:
        """The rows of a file with or without a line of names; numbers are doubles if no hint says otherwise."""
        refuse_inside(path, hints)
        text = Text(path, hints.delimiter or _delimiter(path), hints.decimal or ".")
        layout = _layout(text, hints)
        num_rows = _scan(text, layout)
        where = str(path)

        def numbers(number: int, line: list[str]) -> Array:
            return _numbers(line, layout, number, text)

        def batches(start: int, rows: int) -> Iterator[Array]:
            for _, part in text.batches(layout.skip, start, rows, numbers):
                yield np.stack(part)

        table = plain_table(
            where,
            self.name,
            Found(layout.dtype, (num_rows, layout.num_classes)),
            batches,
            replace(hints, dtype=None, kind=layout.kind),
            num_rows=num_rows,
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
                numbers = cells(schema.columns[0], batch[0])
                if at is None:
                    keys = [b"%d" % row for row in range(start, start + len(numbers))]
                else:
                    keys = [_quoted(cell) for cell in cells(schema.columns[at], batch[at])]
                lines = [
                    key + separator + _fields(row, separator) + b"\n"
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
        first, lines, size, at = _first_line(header, path), 0, 0, 0
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
    width: int
    """Fields of a line."""
    classes: tuple[int, ...]
    """The fields of the classes, in the order of the classes."""
    beside: dict[str, int]
    """The other fields that may be keys, by name."""
    index: int | None
    """The field that counts the rows, as fostore writes it: its numbers must be 0, 1, 2, ..."""
    class_names: tuple[str, ...] | None
    dtype: str
    kind: str | None
    notes: tuple[str, ...] = ()

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    @property
    def own_ids(self) -> int | None:
        """The field of ids as fostore writes them: first, and called id."""
        return next((i for name, i in self.beside.items() if i == 0 and name == "id"), None)


def _delimiter(path: Path) -> str:
    return "\t" if path.suffix.lower() == ".tsv" else ","


def _first_line(header: Header, path: Path) -> bytes:
    schema = header.schema
    names = schema.class_names or nameless(schema.num_classes)
    text = io.StringIO()
    key = "index" if schema.role("id") is None else "id"
    csv.writer(text, delimiter=_delimiter(path), lineterminator="\n").writerow([key, *names])
    return text.getvalue().encode()


def _fields(row: bytes, separator: bytes) -> bytes:
    """The numbers of a JSON list as fields."""
    return row[1:-1].replace(b"null", b"-inf").replace(b",", separator)


def _quoted(cell: bytes) -> bytes:
    """A JSON cell, a number or a string, as a field."""
    if cell[:1] != b'"':
        return cell
    import orjson

    text: str = orjson.loads(cell)
    return b'"' + text.replace('"', '""').encode() + b'"'


def _layout(text: Text, hints: Hints) -> _Layout:
    """What the first lines say."""
    try:
        lines = text.first(_FIRST_LINES)
    except FormatError:
        if hints.delimiter is None:
            text.refuse_delimiter([])
        raise
    if not lines:
        raise FormatError(f"{text.where} is empty, expected a line of names")
    if lines[0][0][:4].lower() == "sep=":
        raise FormatError(
            f"{text.where}, line 1 is for Excel alone: remove it, and say delimiter={lines[0][0][4:5]!r} "
            "(--delimiter) where that is no comma"
        )
    if hints.delimiter is None:
        text.refuse_delimiter(lines)
    comma = next((f for line in lines[1:] for f in line if COMMA.match(f)), None)
    if comma is not None and text.decimal == ".":
        raise ArgumentError(
            f"{text.where} holds {comma!r}: if that is a number with a decimal comma, say decimal=',' "
            "(--decimal ,)"
        )
    is_named = _is_named(lines, text, hints)
    rows = lines[is_named:]
    # What a line without names is called in messages, and in what they advise.
    names = lines[0] if is_named else [f"column {i}" for i in range(len(lines[0]))]
    if is_named:
        _check_widths(lines, text)
    plain = [plain_name(name) for name in names]
    dropped = {name.strip() for name in hints.drop}
    said = {*dropped, hints.id_column}
    index = 0 if plain[0] == "index" and not said & {names[0], "index"} else None
    asked_of = hints
    if index is not None and hints.columns is None:
        asked_of = replace(hints, drop=(*hints.drop, names[0]))
    votes = _kind(rows, range(len(names)), hints)[0]
    known = hints.kind or ("counts" if votes == "counts" else None)
    wide = layout(text.where, names, _first_numbers(rows, len(names), text), asked_of, known)
    beside = {n: i for n, i in wide.beside.items() if i != index and not {n, names[i]} & dropped}
    kind, dtype = _kind(rows, wide.classes, hints)
    class_names = wide.class_names if is_named else None
    return _Layout(
        int(is_named), len(names), wide.classes, beside, index, class_names, dtype, kind, wide.notes
    )


def _first_numbers(lines: list[list[str]], width: int, text: Text) -> list[Array | None]:
    """The numbers of the first rows by column; None for a column that holds something else in all of them.

    One cell that is no number among numbers is an error of its line, and is left for it to say.
    """
    columns: list[Array | None] = []
    for i in range(width):
        values = [text.number(line[i]) if i < len(line) else None for line in lines]
        is_text = bool(values) and all(value is None for value in values)
        columns.append(None if is_text else np.array(values, np.float64))
    return columns


def _check_widths(lines: list[list[str]], text: Text) -> None:
    """R's write.table leaves the name of its row names out, so that names and rows do not match; NumPy comments."""
    rows = {len(line) for line in lines[1:]}
    if rows and lines[0][0].lstrip()[:1] == "#" and rows != {len(lines[0])}:
        raise FormatError(f"{text.where}, line 1 is a comment, {lines[0][0]!r:.40}; remove it")
    if rows == {len(lines[0]) + 1}:
        raise FormatError(
            f"{text.where} names {len(lines[0])} columns, and its rows have {len(lines[0]) + 1} fields: R "
            "leaves out the name of its row names. Write it with col.names=NA, or put a name such as "
            f"'id' and a {text.delimiter!r} before the first line"
        )


def _is_named(lines: list[list[str]], text: Text, hints: Hints) -> bool:
    """Whether the first line holds names; a row must not be taken for them, nor they for a row.

    pandas writes 0, 1, 2 ... over columns without names, and a classifier's `classes_` may be numbers.
    """
    where, first = text.where, [field.strip() for field in lines[0]]
    if plain_name(first[0]) in (*INDEX, *IDS):
        return True
    if all(text.number(field) is not None for field in first):
        return _are_labels(lines, text, hints)
    bad = next(field for field in first if text.number(field) is None)
    has_numbers = any(text.number(field) is not None for field in first)
    if any(text.number(f) is not None and not f.isdecimal() for f in first) or (
        has_numbers and bad.lower() in _MISSING
    ):
        raise FormatError(
            f"{where}, line 1, class {first.index(bad)}: {bad!r:.40} is no number, and others of the "
            "line are; if the line holds names, let the first column be the rows' 'index' or 'id'"
        )
    return True


def _are_labels(lines: list[list[str]], text: Text, hints: Hints) -> bool:
    """Whether a first line of numbers alone holds the numbers of classes: whole ones, none twice.

    Raises:
        ArgumentError: it may be a row as well.
    """
    first = [field.strip() for field in lines[0]]
    values = [text.number(field) for field in first]
    whole = [int(value) for value in values if value is not None and value.is_integer()]
    if len(lines) == 1 or len(set(whole)) < len(first):
        return False
    is_counted = whole == list(range(len(first)))
    decimals = {i for line in lines[1:] for i, f in enumerate(line) if (text.number(f) or 0.0) % 1}
    if decimals:
        # Distributions have no such row but 0,1 and 1,0; logits may, and not from 0 or 1 up. A column of
        # whole numbers may be keys.
        is_row = sum(whole) == 1 and min(whole) == 0
        is_known = len(first) > 2 and numbered([str(n) for n in whole]) is not None
        is_sure = is_known or not (is_row or hints.kind in ("logits", "log_probs"))
        if is_sure and (len(decimals) == len(first) or (is_counted and is_known)):
            return True
    elif not is_counted:
        return False
    raise ArgumentError(
        f"line 1 of {text.where} is {','.join(first[:5])}, which may be a row or the numbers of the "
        "classes; if it is a row, put a line of names before it, else names in its place"
    )


def _are_whole(lines: list[list[str]]) -> bool:
    return all(field.strip().isdecimal() for line in lines for field in line)


def _kind(lines: list[list[str]], classes: Sequence[int], hints: Hints) -> tuple[str | None, str]:
    """Whole numbers whose rows do not all have the sum 1 are votes."""
    kind = hints.kind
    fields = [[line[i] for i in classes if i < len(line)] for line in lines]
    whole = bool(fields) and _are_whole(fields)
    if kind is None and whole and any(sum(map(int, line)) != 1 for line in fields):
        kind = "counts"
    default = "uint64" if kind == "counts" else "float64"
    return kind, hints.dtype or default


def _scan(text: Text, layout: _Layout) -> int:
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


def _beside(text: Text, layout: _Layout, at: int, ids: str | None) -> Beside:
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


def _refuse_ids(text: Text, layout: _Layout, table: Table) -> None:
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


def _numbers(line: list[str], layout: _Layout, number: int, text: Text) -> Array:
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
    elif field.strip().lower() in _MISSING:
        hint = "; leave such samples out, or give their numbers"
    raise FormatError(
        f"{text.where}, line {number}, class {at}: {field!r:.40} is no number of {layout.dtype}{hint}"
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


def _whole(key: str) -> int | None:
    """The whole number that a key is, as integers are written or as NumPy's savetxt writes all numbers."""
    if _is_integer(key):
        return int(key)
    value = float(key) if _FLOAT.match(key) else 0.5
    return int(value) if value == round(value) and abs(value) < 2.0**53 else None


FORMAT = Csv()
