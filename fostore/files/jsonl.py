"""JSON Lines: one object a row behind a line that holds the header; also on the standard streams."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from fostore.encodings.rows import round_to
from fostore.errors import ArgumentError, FormatError, RowError
from fostore.files import DTYPES, FileFormat, Hints, Holds
from fostore.files._header import KEY, headed_table, parse, text_of
from fostore.files._keys import Beside, keyed
from fostore.files._sink import Sink
from fostore.files._text import bare_cells, indices, woven
from fostore.files.array import FileArray
from fostore.files.guess import choose, plain_table
from fostore.files.json.lines import INDEX, Lines
from fostore.files.json.rows import LOG_COLUMNS, LOGS, packed
from fostore.files.table import Batch, Table, check_count
from fostore.schema.header import Header
from fostore.schema.row import FLOATS, Array, Column
from fostore.schema.sides.ids import encode_ids

_MINUS_INFINITY = (None, "-Infinity")
"""What stands for log 0: as fostore writes it, and as Python does."""
_EXPECTED = (
    "numbers; leave out the samples of which there are none (null is minus infinity of log_probs and logits, "
    "where source_kind= says that)",
    "whole numbers, as the first row has them; if they are no votes, say what they are: "
    'source_kind="probs" (--source-kind probs)',
)
_TYPES = {str: "text", int: "int64", float: "float64", list: "a list", dict: "an object"}


class _JsonLines(FileFormat):
    """See `fostore.files.FileFormat`."""

    name = "jsonl"
    holds = Holds(header=True, dtypes=DTYPES)

    def read(self, path: Path, hints: Hints) -> Table:
        """The rows of a file, or of the standard input, which can be read once."""
        lines = Lines(path)
        first = lines.first()
        if not (isinstance(first, dict) and KEY in first):
            return self._plain(lines, first, hints)
        where = str(lines)
        if hints.inside is not None:
            raise ArgumentError(
                f"{where} has a header that says what its rows are; give the path alone"
            )
        header = parse(lines.first_text(), where)
        num_rows = header.num_samples if lines.is_stream else lines.measure()[0] - 1

        def batches(start: int, rows: int) -> Iterator[Batch]:
            for number, objects in lines.batches(1, start, rows, num_rows):
                yield [_column(column, objects, number, where) for column in header.schema.columns]

        return headed_table(where, self.name, header, num_rows, batches)

    def write(self, path: Path, header: Header, batches: Iterator[Batch], start: int) -> None:
        """Write or go on, a line a row."""
        columns = header.schema.columns
        keys = [b', "%s": ' % _key(column).encode() for column in columns]
        with Sink(path, path.stat().st_size if start else 0) as sink:
            if not start:
                sink.write(text_of(header) + b"\n")
            for batch in batches:
                stop = start + len(batch[0])
                line: list[bytes | list[bytes]] = [b'{"index": ', indices(start, stop)]
                for key, column, rows in zip(keys, columns, batch, strict=True):
                    opening, texts, closing = bare_cells(column, rows)
                    line += [key + opening, texts, closing]
                if start < stop:
                    sink.write(woven(*line, b"}\n"))
                start = stop
            check_count(start, header.num_samples)

    def resume_at(self, path: Path, header: Header) -> int:
        """Whole lines behind a header of the same rows; what comes behind the last is cut off."""
        lines = Lines(path)
        try:
            old = parse(lines.first_text(), str(lines))
        except FormatError:
            return 0
        # Not the whole header: its id and times are another conversion's.
        if any(getattr(old, n) != getattr(header, n) for n in ("schema", "num_samples", "meta")):
            return 0
        _, ended, size = lines.measure()
        with Sink(path, size):
            return max(ended - 1, 0)

    def _plain(self, lines: Lines, first: Any, hints: Hints) -> Table:
        """The rows of objects that no header explains."""
        where = str(lines)
        lines.counts = INDEX not in (hints.id_column, *hints.drop)
        if not isinstance(first, dict):
            raise FormatError(f'{where}, line 1: expected an object, such as {{"probs": [...]}}')
        arrays = {name: array for name, value in first.items() if (array := _array(value, hints))}
        if not arrays:
            raise ArgumentError(
                f"{where}, line 1 holds no list of numbers under its keys {list(first)[:12]}; write the "
                'numbers of a row as one list, such as {"probs": [0.1, 0.9]}, or save a table with a column '
                "a class as .csv or .parquet"
            )
        name = choose(arrays, where, hints.inside)
        num_rows = None if lines.is_stream else lines.measure()[0]
        dtype, shape = arrays[name].dtype, arrays[name].shape[1:]
        column = Column("rows", dtype, FLOATS.get(dtype, dtype), (), shape)
        nulls = hints.kind in LOGS

        def batches(start: int, rows: int) -> Iterator[Array]:
            for number, objects in lines.batches(0, start, rows, num_rows):
                values = _values(objects, name, number, where)
                yield _numbers(values, column, number, where, nulls=nulls)

        table = plain_table(
            where,
            self.name,
            FileArray(dtype, (num_rows or 0, *shape), batches),
            replace(hints, dtype=None),
            is_stream=lines.is_stream,
            first=_numbers([first[name]], column, 1, where, nulls=nulls)
            if lines.is_stream
            else None,
        )

        def beside(key: str) -> Beside:
            def read(start: int, rows: int) -> Iterator[list[Any]]:
                for number, objects in lines.batches(0, start, rows, num_rows):
                    yield _values(objects, key, number, where)

            value = first[key]
            what = "nothing" if value is None else _TYPES.get(type(value), type(value).__name__)
            return Beside(what, None if lines.is_stream else read)

        counting = [INDEX] if lines.counts else []
        return keyed(table, {k: beside(k) for k in first if k not in (name, *counting)}, hints)


def _key(column: Column) -> str:
    return "id" if column.role == "id" else column.name


def _array(value: Any, hints: Hints) -> FileArray | None:
    """What the numbers of a first row say: integers are votes, all else doubles, if no hint says otherwise."""
    if not isinstance(value, list) or not value:
        return None
    try:
        array = np.array(value, None)
    except ValueError:
        return None
    if array.dtype.kind in "iu" and hints.kind in (None, "counts"):
        return FileArray(hints.dtype or "uint64", (0, *array.shape))
    if array.dtype.kind not in "fiu":
        items = np.array(value, object).reshape(-1).tolist()
        is_number = all(item in _MINUS_INFINITY or type(item) in (float, int) for item in items)
        if hints.kind in (None, "counts") or not is_number:
            return None
    return FileArray(hints.dtype or "float64", (0, *array.shape))


# ------------------------------------------------------------------ the rows of some lines


def _values(objects: list[dict[str, Any]], key: str, number: int, where: str) -> list[Any]:
    """What stands under a key on some lines, the first of which is line `number`."""
    try:
        return [item[key] for item in objects]
    except KeyError:
        at = next(i for i, item in enumerate(objects) if key not in item)
        raise FormatError(
            f"{where}, line {number + at}: the key {key!r} is missing; it has {list(objects[at])[:8]}"
        ) from None


def _column(column: Column, objects: list[dict[str, Any]], number: int, where: str) -> Array:
    values = _values(objects, _key(column), number, where)
    if column.role != "id":
        return _numbers(values, column, number, where, nulls=column.name in LOG_COLUMNS)
    try:
        return encode_ids(values, column, number - 2)
    except (RowError, ArgumentError) as error:
        raise FormatError(f"{where}, from line {number} on: {error}") from error


def _numbers(
    values: list[Any], column: Column, number: int, where: str, *, nulls: bool = False
) -> Array:
    """Rows of numbers in stored form; what is wrong is looked for line by line."""
    is_float = column.dtype in FLOATS
    dtype = np.dtype("f8") if is_float else column.numpy_dtype
    array = None
    if column.shape or bool not in map(type, values):  # which no parser took for a number
        array = packed(values, dtype, column.shape, _MINUS_INFINITY if nulls else ())
    if array is None:
        _refuse(values, column, number, where, nulls)
    return round_to(array, column.dtype) if is_float else array


def _refuse(values: list[Any], column: Column, number: int, where: str, nulls: bool) -> NoReturn:
    """Raise FormatError for the first line that holds something else than the column does."""
    is_float = column.dtype in FLOATS
    for line, value in enumerate(values, number):
        at = f"{where}, line {line}"
        try:
            shape = np.shape(np.array(value, None))
        except ValueError:
            raise FormatError(f"{at}: the row's lists differ in length") from None
        if shape != column.shape:
            raise FormatError(f"{at}: the row has the shape {shape}, expected {column.shape}")
        for item in np.array(value, object).reshape(-1):
            is_number = type(item) is int or (type(item) is float and is_float)
            if not is_number and not (nulls and item in _MINUS_INFINITY):
                expected = _EXPECTED[type(item) is float]
                raise FormatError(f"{at}: the row holds {item!r:.40}, expected {expected}")
            if not is_float and not (info := np.iinfo(column.numpy_dtype)).min <= item <= info.max:
                raise FormatError(
                    f"{at}: a number does not fit {column.dtype} ({info.min} to {info.max})"
                )
    raise FormatError(f"{where}, from line {number} on: the rows hold something else than numbers")


FORMAT = _JsonLines()
