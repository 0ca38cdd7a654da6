"""The lines of JSON Lines, an object each: of a file, or of the standard input, which can be read once."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import orjson

from fostore.errors import ArgumentError, FormatError, UnsafeError
from fostore.files._flat import MAX_LINE, open_source
from fostore.files._header import KEY
from fostore.files.json.scan import BOM, SPACE
from fostore.places.names import STREAM
from fostore.schema import jsontext
from fostore.schema.header import MAX_TEXT

INDEX = "index"
"""The key of a row's number."""
_READ_BYTES = 1 << 20
_KEY_END = re.compile(rb'"\s*:')


class Lines:
    """The lines of a file; `str` of it names it in messages."""

    def __init__(self, path: Path) -> None:
        self.is_stream = str(path) == STREAM
        self.counts = True
        """Whether an index must be the number of its row."""
        self._path = path
        self._first: bytes | None = None
        self._is_read = False

    def __str__(self) -> str:
        return "the standard input" if self.is_stream else str(self._path)

    def first_text(self) -> bytes:
        if self._first is None:
            with self._opened() as file:
                self._first = self._line(file, 1)
        return self._first

    def first(self) -> Any:
        """The first line, parsed."""
        text = self.first_text()
        if not text.strip():
            raise FormatError(f"{self} is empty, expected JSON Lines")
        where = f"{self}, line 1"
        # A header is strict JSON.
        return (
            jsontext.loads(text, where, strange=[])
            if len(text) <= MAX_TEXT
            else parsed(text, where)
        )

    def measure(self) -> tuple[int, int, int]:
        """Of a file: the lines up to the last that holds something, those that end, and the bytes of these."""
        filled = ended = size = at = 0
        with self._opened() as file:
            while text := file.read(_READ_BYTES):
                if content := text.rstrip(SPACE):
                    filled = ended + content.count(b"\n") + 1
                if b"\n" in text:
                    ended, size = ended + text.count(b"\n"), at + text.rindex(b"\n") + 1
                at += len(text)
        return filled, ended, size

    def batches(
        self, skip: int, start: int, rows: int, num_rows: int | None
    ) -> Iterator[tuple[int, list[dict[str, Any]]]]:
        """The objects of rows from `start` on behind `skip` lines, with the number of their first line.

        Raises:
            FormatError: a line is no object, is out of order, or rows are missing; names the line.
        """
        if self.is_stream and self._is_read:
            raise ArgumentError("the standard input can be read once; save it to a file first")
        self._is_read = True
        objects: list[dict[str, Any]] = []
        number = blank = 0
        with self._opened() as file:
            held = [self.first_text()] if self.is_stream else []  # it cannot be read again
            while line := (held.pop() if held else self._line(file, number + 1)):
                number += 1
                if not line.strip(SPACE):
                    blank = blank or number
                    continue
                if blank:  # and behind the last row nobody minds
                    raise FormatError(f"{self}, line {blank} is empty; remove it")
                row = number - 1 - skip
                if row < start:
                    continue
                objects.append(self._object(line, number, row))
                if len(objects) == rows:
                    yield number - rows + 1, objects
                    objects = []
        last = blank - 1 if blank else number
        if objects:
            yield last - len(objects) + 1, objects
        if num_rows is not None and last - skip != num_rows:
            raise FormatError(
                f"{self} ends after {max(last - skip, 0)} rows of {num_rows}: it was cut"
            )

    def _object(self, line: bytes, number: int, row: int) -> dict[str, Any]:
        where = f"{self}, line {number}"
        item = parsed(line, where)
        if not isinstance(item, dict):
            raise FormatError(f"{where}: expected an object, {type(item).__name__} came")
        if KEY in item:
            raise FormatError(
                f"{where}: a second header; give files that follow each other as shards"
            )
        index = item.get(INDEX, row)
        if self.counts and (type(index) is not int or index != row):
            raise FormatError(
                f"{where}: the index is {index!r:.40}, expected {row}: rows must come in order, without "
                "gaps or repetitions; if they are keys of samples, say id_column='index' (--id-column index)"
            )
        return item

    def _line(self, file: IO[bytes], number: int) -> bytes:
        line = file.readline(MAX_LINE)
        if len(line) == MAX_LINE:
            raise UnsafeError(f"{self}, line {number} has over {MAX_LINE:,} bytes")
        return line.removeprefix(BOM) if number == 1 else line

    @contextmanager
    def _opened(self) -> Iterator[IO[bytes]]:
        if self.is_stream:
            yield sys.stdin.buffer
            return
        with os.fdopen(open_source(self._path)[0], "rb", buffering=_READ_BYTES) as file:
            yield file


def parsed(line: bytes, where: str) -> Any:
    """The value on a line; true and false are refused in lists, where they would pass for numbers."""
    try:
        item = orjson.loads(line)
    except orjson.JSONDecodeError:
        # Python writes NaN and Infinity, which are texts then: no numbers of a row, but nothing lost.
        return jsontext.loads(line.strip(SPACE), where, strange=[])
    # The fast parser keeps the last of two equal keys.
    if isinstance(item, dict) and len(_KEY_END.findall(line)) != len(item):
        item = jsontext.loads(line, where)
    if b"true" in line or b"false" in line:
        for key, value in item.items() if isinstance(item, dict) else ():
            if isinstance(value, list) and _has_bool(value):
                raise FormatError(f"{where}: {key!r} holds true or false, expected numbers")
    return item


def _has_bool(value: Any) -> bool:
    if isinstance(value, list):
        return any(map(_has_bool, value))
    return isinstance(value, bool)
