"""Rows as text, each number in the shortest form that reads back exactly in its dtype."""

from __future__ import annotations

import numpy as np

from fostore.schema.halves import widen
from fostore.schema.jsontext import dumps
from fostore.schema.row import Array, Column


def cells(column: Column, rows: Array) -> list[bytes]:
    """One JSON text a row: a number, a (nested) list of numbers or a string; minus infinity is null."""
    import orjson

    if not len(rows):
        return []
    if column.dtype == "utf8":
        return [dumps(row.tobytes().rstrip(b"\0").decode("utf-8")) for row in rows]
    numbers = widen(rows, column.dtype) if column.dtype == "bfloat16" else rows
    numbers = np.ascontiguousarray(numbers, numbers.dtype.newbyteorder("="))
    # One call for many rows; their text is cut where a row ends.
    text = orjson.dumps(numbers, option=orjson.OPT_SERIALIZE_NUMPY)
    depth = len(column.shape)
    opening, closing = b"[" * depth, b"]" * depth
    inner = text[1 + depth : -1 - depth]
    return [opening + row + closing for row in inner.split(closing + b"," + opening)]
