"""Rows as text: lines taken apart into fields (RFC 4180), and numbers in their shortest exact form."""

from __future__ import annotations

import csv
import io
import math
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import orjson

from fostore.errors import ArgumentError, FormatError, UnsafeError
from fostore.files._flat import MAX_LINE, open_source
from fostore.schema.halves import widen
from fostore.schema.jsontext import dumps
from fostore.schema.row import Array, Column

COMMA = re.compile(r"\s*[+-]?\d*,\d+(?:[eE][+-]?\d+)?\s*\Z")
"""A number with a decimal comma."""
_DELIMITERS = {";": "semicolon", "\t": "tabulator", "|": "bar", " ": "space", ",": "comma"}
_FIRST_FIELDS = 1 << 16
_DIGITS = 20  # of 2**64 - 1; `int` of a stranger's thousands raises ValueError, so it is not asked
Kept = TypeVar("Kept")


def is_whole(field: str) -> bool:
    """Whether a field is a whole number without a sign, of digits that 64 bits may hold."""
    digits = field.strip()
    return len(digits) <= _DIGITS and digits.isdecimal()


class Text:
    """The lines of a file, taken apart at `delimiter`; `decimal` stands in its numbers for a point."""

    def __init__(self, path: Path, delimiter: str, decimal: str) -> None:
        self.where = str(path)
        self.delimiter, self.decimal = delimiter, decimal
        self._path = path
        if len(delimiter) != 1 or delimiter in '"\r\n' or len(decimal) != 1 or decimal.isalnum():
            raise ArgumentError(
                f"delimiter is {delimiter!r} and decimal {decimal!r}, expected one character each"
            )

    def point(self, field: str) -> str:
        """A number with a decimal point."""
        return field if self.decimal == "." else field.replace(self.decimal, ".")

    def number(self, field: str) -> float | None:
        """The number in a field; None where it is none, or missing."""
        try:
            value = float(self.point(field))
        except ValueError:
            return None
        return None if math.isnan(value) else value

    def first(self, count: int) -> list[list[str]]:
        """The first two lines, and more up to so many while they are short."""
        lines: list[list[str]] = []
        for _, line in self.batches(0, 0, 1, lambda number, fields: fields):
            lines += line
            if len(lines) == count or (len(lines) > 1 and sum(map(len, lines)) > _FIRST_FIELDS):
                break
        return lines

    def refuse_delimiter(self, lines: list[list[str]]) -> None:
        """Refuse lines that another separator takes apart evenly, and this one does not.

        Raises:
            ArgumentError: names the other one, and a decimal comma where there is one.
        """
        widths = {len(line) for line in lines}
        is_even = len(widths) == 1 and widths != {1}
        for other, name in _DELIMITERS.items():
            if other == self.delimiter or (other == " " and widths - {1}):
                continue
            if is_even and not all(any(other in field for field in line) for line in lines):
                continue
            try:
                again = Text(self._path, other, self.decimal).first(len(lines) or 2)
            except FormatError:
                continue
            others = {len(line) for line in again[1:]}
            # R's write.table leaves the name of its row names out.
            if again and len(again[0]) > 1 and others in ({len(again[0])}, {len(again[0]) + 1}):
                shown = repr(other) if other != "\t" else "'\\t'"
                comma = any(COMMA.match(field) for line in again[1:] for field in line)
                also = "; its numbers have a decimal comma: say decimal=',' (--decimal ,) as well"
                lie = " and ".join(map(str, sorted(widths))) or "no even number of"
                raise ArgumentError(
                    f"{self.where} has lines of {lie} fields between {self.delimiter!r}, and of "
                    f"{len(again[0])} between {shown}: if the {name} is its "
                    f"delimiter, say delimiter={shown} (--delimiter {shown}){also if comma else ''}"
                )

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
                blank = 0
                for line in reader:
                    if not line or (len(line) == 1 and not line[0].strip()):
                        blank = blank or reader.line_num
                        continue
                    if blank:  # and behind the last row nobody minds
                        raise FormatError(f"{self.where}, line {blank} is empty; remove it")
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
                    f"{self.where}, after line {reader.line_num}: this is not UTF-8; save it as UTF-8"
                ) from error
            if kept:
                yield numbers, kept

    @contextmanager
    def _reader(self) -> Iterator[Any]:
        fd, _ = open_source(self._path)
        with os.fdopen(fd, encoding="utf-8-sig", newline="") as file:
            yield csv.reader(_limited(file, self.where), delimiter=self.delimiter, strict=True)


def _limited(file: io.TextIOWrapper, where: str) -> Iterator[str]:
    while line := file.readline(MAX_LINE):
        if len(line) == MAX_LINE:
            raise UnsafeError(f"{where} has a line of over {MAX_LINE:,} characters")
        if "\0" in line:
            raise FormatError(
                f"{where} holds NUL, as UTF-16 does: it is not UTF-8; save it as UTF-8"
            )
        yield line


def cells(column: Column, rows: Array) -> list[bytes]:
    """One JSON text a row: a number, a (nested) list of numbers or a string; minus infinity is null."""
    opening, texts, closing = bare_cells(column, rows)
    return [opening + text + closing for text in texts] if opening else texts


def bare_cells(column: Column, rows: Array) -> tuple[bytes, list[bytes], bytes]:
    """The same without the brackets around each, which stand before and behind."""
    depth = len(column.shape)
    opening, closing = b"[" * depth, b"]" * depth
    if not len(rows):
        return opening, [], closing
    if column.dtype == "utf8":
        return b"", [dumps(row.tobytes().rstrip(b"\0").decode("utf-8")) for row in rows], b""
    numbers = widen(rows, column.dtype) if column.dtype == "bfloat16" else rows
    numbers = np.ascontiguousarray(numbers, numbers.dtype.newbyteorder("="))
    # One call for many rows. Their text is cut where a row begins, by a single character where it can be:
    # Python looks for longer ones several times slower.
    text = orjson.dumps(numbers, option=orjson.OPT_SERIALIZE_NUMPY)
    if not depth:
        return b"", text[1:-1].split(b","), b""
    return opening, [row[: -1 - depth] for row in text[1:].split(opening)[1:]], closing


def woven(*parts: bytes | list[bytes]) -> bytes:
    """Rows one after the other; a part of a row is a text that stands in each of them, or one of a list.

    Several times faster than to put each row together.
    """
    count = next(len(texts) for texts in parts if isinstance(texts, list))
    pieces = [b""] * (count * len(parts))
    for i, text in enumerate(parts):
        pieces[i :: len(parts)] = text if isinstance(text, list) else [text] * count
    return b"".join(pieces)


def indices(start: int, stop: int) -> list[bytes]:
    """The text of each index of `[start, stop)`."""
    return orjson.dumps(np.arange(start, stop), option=orjson.OPT_SERIALIZE_NUMPY)[1:-1].split(b",")
