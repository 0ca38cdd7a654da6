"""JSON Lines: one object a row behind a line that holds the header; also on the standard streams."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import numpy as np

from fostore.encodings.rows import round_to
from fostore.errors import ArgumentError, FormatError, RowError, UnsafeError
from fostore.files import Hints, Holds
from fostore.files._flat import open_source
from fostore.files._header import KEY, headed_table, parse, text_of
from fostore.files._keys import Beside, keyed
from fostore.files._sink import STREAM, Sink
from fostore.files._text import cells
from fostore.files.guess import Found, choose, plain_table
from fostore.files.json.scan import BOM
from fostore.files.table import Batch, Table
from fostore.schema import jsontext
from fostore.schema.header import MAX_TEXT, Header
from fostore.schema.row import FLOATS, Array, Column
from fostore.schema.sides.ids import encode_ids

INDEX = "index"
_WANTED = (
    "numbers; leave out the samples of which there are none (null is minus infinity of log_probs and logits, "
    "where source_kind= says that)",
    "whole numbers, as the first row has them; if they are no votes, say what they are: "
    'source_kind="probs" (--source-kind probs)',
)
_MINUS_INFINITY = (None, "-Infinity")
"""What stands for log 0: as fostore writes it, and as Python does."""
_MAX_LINE = 1 << 28
_SPACE = b" \t\r\n"
_KEY_END = re.compile(rb'"\s*:')
_DTYPES = ("float16", "float32", "float64", "uint8", "uint16", "uint32", "uint64", "int64")


class JsonLines:
    """See `fostore.files.FileFormat`."""

    name = "jsonl"
    holds = Holds(header=True, dtypes=_DTYPES)

    def read(self, path: Path, hints: Hints) -> Table:
        """The rows of a file, or of the standard input, which can be read once."""
        lines = _Lines(path)
        first = lines.first()
        where = lines.where
        if isinstance(first, dict) and KEY in first:
            if hints.inside is not None:
                raise ArgumentError(
                    f"{where} has a header that says what its rows are; give the path alone"
                )
            header = parse(lines.first_text(), where)
            num_rows = header.num_samples
            if not lines.is_stream:
                num_rows = lines.count() - 1

            def batches(start: int, rows: int) -> Iterator[Batch]:
                columns = header.schema.columns
                for number, objects in lines.batches(1, start, rows, num_rows):
                    yield [_column(column, objects, number, where) for column in columns]

            return headed_table(where, self.name, header, num_rows, batches)
        return self._plain(lines, first, hints)

    def write(self, path: Path, header: Header, batches: Iterator[Batch], start: int) -> None:
        """Write or go on, a line a row."""
        columns = header.schema.columns
        keys = [b', "%s": ' % _key(column).encode() for column in columns]
        with Sink(path, path.stat().st_size if start else 0) as sink:
            if not start:
                sink.write(text_of(header) + b"\n")
            for batch in batches:
                texts = [cells(column, rows) for column, rows in zip(columns, batch, strict=True)]
                lines = []
                for row, values in enumerate(zip(*texts, strict=True), start):
                    parts = [b'{"index": %d' % row]
                    for key, value in zip(keys, values, strict=True):
                        parts += (key, value)
                    lines.append(b"".join(parts))
                if lines:
                    sink.write(b"}\n".join(lines) + b"}\n")
                start += len(batch[0])
            if header.num_samples is not None and start != header.num_samples:
                raise FormatError(f"{start} rows came and {header.num_samples} were announced")

    def resume_at(self, path: Path, header: Header) -> int:
        """Whole lines behind a header of the same rows; what comes behind the last is cut off."""
        lines = _Lines(path)
        try:
            there = parse(lines.first_text(), lines.where)
        except FormatError:
            return 0
        if (there.schema, there.num_samples, there.meta) != (
            header.schema,
            header.num_samples,
            header.meta,
        ):
            return 0
        size, whole = lines.whole()
        with Sink(path, size):
            return max(whole - 1, 0)

    def _plain(self, lines: _Lines, first: Any, hints: Hints) -> Table:
        where = lines.where
        lines.counts = INDEX not in (hints.id_column, *hints.drop)
        if not isinstance(first, dict):
            raise FormatError(f'{where}, line 1: expected an object, such as {{"probs": [...]}}')
        arrays = {name: found for name, value in first.items() if (found := _found(value, hints))}
        if not arrays:
            raise ArgumentError(
                f"{where}, line 1 holds no list of numbers under its keys {list(first)[:12]}; write the "
                'numbers of a row as one list, such as {"probs": [0.1, 0.9]}, or save a table with a column '
                "a class as .csv or .parquet"
            )
        name = choose(arrays, where, hints.inside)
        num_rows = None if lines.is_stream else lines.count()
        found = arrays[name]
        column = Column(
            "rows", found.dtype, FLOATS.get(found.dtype, found.dtype), (), found.shape[1:]
        )
        nulls = hints.kind in ("logits", "log_probs")

        def batches(start: int, rows: int) -> Iterator[Array]:
            for number, objects in lines.batches(0, start, rows, num_rows):
                yield _numbers([_get(o, name, number + i, where) for i, o in enumerate(objects)],
                               column, number, where, nulls=nulls)  # fmt: skip

        shown = [first[name]] if lines.is_stream else []
        table = plain_table(
            where,
            self.name,
            found,
            batches,
            replace(hints, dtype=None),
            num_rows=num_rows,
            first=_numbers(shown, column, 1, where, nulls=nulls) if shown else None,
        )

        def beside(key: str) -> Beside:
            def read(start: int, rows: int) -> Iterator[list[Any]]:
                for number, objects in lines.batches(0, start, rows, num_rows):
                    yield [_get(o, key, number + i, where) for i, o in enumerate(objects)]

            return Beside(_called(first[key]), None if lines.is_stream else read)

        return keyed(
            table,
            {
                key: beside(key)
                for key in first
                if key != name and (key != INDEX or not lines.counts)
            },
            hints,
        )


def _called(value: Any) -> str:
    """What stands under a key, in a message's words."""
    names = {str: "text", int: "int64", float: "float64", list: "a list", dict: "an object"}
    return names.get(type(value), "nothing" if value is None else type(value).__name__)


def _key(column: Column) -> str:
    return "id" if column.role == "id" else column.name


def _found(value: Any, hints: Hints) -> Found | None:
    """What the numbers of a first row say: integers are votes, all else doubles, if no hint says otherwise."""
    if not isinstance(value, list) or not value:
        return None
    try:
        array = np.array(value, None)
    except ValueError:
        return None
    if array.dtype.kind in "iu" and hints.kind in (None, "counts"):
        return Found(hints.dtype or "uint64", (0, *array.shape))
    is_number = array.dtype.kind in "fiu" or (
        hints.kind not in (None, "counts") and _only_nulls(value)
    )
    return Found(hints.dtype or "float64", (0, *array.shape)) if is_number else None


def _only_nulls(value: list[Any]) -> bool:
    items = np.array(value, object).reshape(-1).tolist()
    return all(item in _MINUS_INFINITY or type(item) in (float, int) for item in items)


def _get(item: dict[str, Any], key: str, number: int, where: str) -> Any:
    if key not in item:
        raise FormatError(
            f"{where}, line {number}: the key {key!r} is missing; it has {list(item)[:8]}"
        )
    return item[key]


def _column(column: Column, objects: list[dict[str, Any]], number: int, where: str) -> Array:
    """A column of some lines, the first of which is line `number`."""
    key = _key(column)
    values = [_get(item, key, number + i, where) for i, item in enumerate(objects)]
    if column.role == "id":
        try:
            return encode_ids(values, column, number - 2)
        except (RowError, ArgumentError) as error:
            raise FormatError(f"{where}, from line {number} on: {error}") from error
    return _numbers(values, column, number, where, nulls=column.name in ("logits", "log_probs"))


def _numbers(
    values: list[Any], column: Column, number: int, where: str, *, nulls: bool = False
) -> Array:
    """Rows of numbers in stored form; what is wrong is looked for line by line."""
    is_float = column.dtype in FLOATS
    try:
        array = np.array(values, None)
    except ValueError:
        array = np.empty(0, object)
    if nulls and array.dtype.kind in "OU":
        array = _without_nulls(values)
    if not is_float and array.dtype.kind == "f":
        array = _unrounded(values, array)
    wanted = "fiu" if is_float else "iu"
    if array.shape != (len(values), *column.shape) or array.dtype.kind not in wanted:
        _refuse(values, column, number, where, nulls)
    if is_float:
        return round_to(np.ascontiguousarray(array, np.float64), column.dtype)
    info = np.iinfo(column.numpy_dtype)
    if array.size and (int(array.min()) < info.min or int(array.max()) > info.max):
        bad = int(np.argwhere((array < info.min) | (array > info.max))[0][0])
        raise FormatError(
            f"{where}, line {number + bad}: a number does not fit {column.dtype} ({info.min} to {info.max})"
        )
    return np.ascontiguousarray(array, column.numpy_dtype)


def _unrounded(values: list[Any], rounded: Array) -> Array:
    """Whole numbers under and over 2**63, of which NumPy makes doubles together."""
    numbers = np.array(values, object)
    is_whole = all(type(number) is int and 0 <= number < 1 << 64 for number in numbers.flat)
    return numbers.astype(np.uint64) if is_whole else rounded


def _without_nulls(values: list[Any]) -> Array:
    def plain(value: Any) -> Any:
        if isinstance(value, list):
            return [plain(item) for item in value]
        return -np.inf if value in _MINUS_INFINITY else value

    try:
        return np.array(plain(values), None)
    except ValueError:
        return np.empty(0, object)


def _refuse(values: list[Any], column: Column, number: int, where: str, nulls: bool) -> None:
    """Raise FormatError for the first line that holds something else than the column does."""
    allowed = (float, int) if column.dtype in FLOATS else (int,)
    for i, value in enumerate(values):
        at = f"{where}, line {number + i}"
        try:
            shape = np.shape(np.array(value, None))
        except ValueError:
            raise FormatError(f"{at}: the row's lists differ in length") from None
        if shape != column.shape:
            raise FormatError(f"{at}: the row has the shape {shape}, expected {column.shape}")
        for item in np.array(value, object).reshape(-1):
            if type(item) not in allowed and not (nulls and item in _MINUS_INFINITY):
                raise FormatError(
                    f"{at}: the row holds {item!r:.40}, expected {_WANTED[type(item) is float]}"
                )
    raise FormatError(f"{where}, from line {number} on: the rows hold something else than numbers")


class _Lines:
    """The lines of a file, or of the standard input."""

    def __init__(self, path: Path) -> None:
        self.is_stream = str(path) == STREAM
        self.counts = True
        """Whether an index must be the number of its row."""
        self.where = "the standard input" if self.is_stream else str(path)
        self._path = path
        self._first: bytes | None = None
        self._is_read = False

    def first_text(self) -> bytes:
        """The first line."""
        if self._first is None:
            with ExitStack() as stack:
                self._first = self._line(self._open(stack), 1)
        return self._first

    def first(self) -> Any:
        """The first line, parsed."""
        text = self.first_text()
        if not text.strip():
            raise FormatError(f"{self.where} is empty, expected JSON Lines")
        limit = f"{self.where}, line 1"
        return (
            jsontext.loads(text, limit, strange=[])
            if len(text) <= MAX_TEXT
            else _parse(text, limit)
        )

    def count(self) -> int:
        """Lines of a file up to the last that holds something; it need not end."""
        lines = whole = 0
        with ExitStack() as stack:
            file = self._open(stack)
            while part := file.read(1 << 20):
                filled = part.rstrip(_SPACE)
                if filled:
                    whole = lines + filled.count(b"\n") + 1
                lines += part.count(b"\n")
        return whole

    def whole(self) -> tuple[int, int]:
        """The bytes of the lines that end, and their number."""
        lines = size = at = 0
        with ExitStack() as stack:
            file = self._open(stack)
            while part := file.read(1 << 20):
                lines += part.count(b"\n")
                if b"\n" in part:
                    size = at + part.rindex(b"\n") + 1
                at += len(part)
        return size, lines

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
        with ExitStack() as stack:
            file = self._open(stack)
            held = [self.first_text()] if self.is_stream else []
            objects: list[dict[str, Any]] = []
            number = at = blank = 0
            while line := (held.pop() if held else self._line(file, at + 1)):
                at += 1
                if not line.strip(_SPACE):
                    blank = blank or at
                    continue
                if blank:  # and behind the last row nobody minds
                    raise FormatError(f"{self.where}, line {blank} is empty; remove it")
                number += 1
                row = number - 1 - skip
                if row < start:
                    continue
                objects.append(self._object(line, number, row))
                if len(objects) == rows:
                    yield number - rows + 1, objects
                    objects = []
            if objects:
                yield number - len(objects) + 1, objects
            if num_rows is not None and number - skip != num_rows:
                raise FormatError(
                    f"{self.where} ends after {max(number - skip, 0)} rows of {num_rows}: it was cut"
                )

    def _object(self, line: bytes, number: int, row: int) -> dict[str, Any]:
        where = f"{self.where}, line {number}"
        item = _parse(line, where)
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
        line = file.readline(_MAX_LINE)
        if number == 1:
            line = line.removeprefix(BOM)
        if len(line) == _MAX_LINE:
            raise UnsafeError(f"{self.where}, line {number} has over {_MAX_LINE:,} bytes")
        return line

    def _open(self, stack: ExitStack) -> IO[bytes]:
        if not self.is_stream:
            fd, _ = open_source(self._path)
            return stack.enter_context(os.fdopen(fd, "rb", buffering=1 << 20))
        return sys.stdin.buffer


def _parse(line: bytes, where: str) -> Any:
    import orjson

    try:
        item = orjson.loads(line)
    except orjson.JSONDecodeError:
        # Python writes NaN and Infinity, which are texts then: no numbers of a row, but nothing lost.
        return jsontext.loads(line.strip(_SPACE), where, strange=[])
    # The fast parser keeps the last of two equal keys and takes true for a number's place.
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


FORMAT = JsonLines()
