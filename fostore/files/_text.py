"""Rows as text, each number in the shortest form that reads back exactly in its dtype."""

from __future__ import annotations

import numpy as np
import orjson

from fostore.schema.halves import widen
from fostore.schema.jsontext import dumps
from fostore.schema.row import Array, Column

_NUMPY = orjson.OPT_SERIALIZE_NUMPY


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
    text = orjson.dumps(numbers, option=_NUMPY)
    if not depth:
        return b"", text[1:-1].split(b","), b""
    return opening, [row[: -1 - depth] for row in text[1:].split(opening)[1:]], closing


def indices(start: int, stop: int) -> list[bytes]:
    """The text of each index of `[start, stop)`."""
    return orjson.dumps(np.arange(start, stop), option=_NUMPY)[1:-1].split(b",")


def woven(*parts: bytes | list[bytes]) -> bytes:
    """Rows one after the other; a part of a row is a text that stands in each of them, or one of a list.

    Several times faster than to put each row together: strings of NumPy's numbers are never copied alone.
    """
    count = next(len(part) for part in parts if isinstance(part, list))
    texts = [b""] * (count * len(parts))
    for i, part in enumerate(parts):
        texts[i :: len(parts)] = part if isinstance(part, list) else [part] * count
    return b"".join(texts)
