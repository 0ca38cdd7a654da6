"""The keys of samples: one unique integer or string a row, kept as a column of fixed width."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from fostore.errors import ArgumentError, DamageError, RowError
from fostore.schema.columns import TEXT, Array, Column
from fostore.schema.sides import Known, Read, Side

MAX_WIDTH = 4096
_NUMBERS = Column("sample_id", "int64", "int64", (), (), "id")
_HALF_PAIR = re.compile("[\ud800-\udfff]")


def id_column(ids: Any) -> Column:
    """The column that keeps `ids`: a sequence of keys, or the promise "int64" or "S<bytes>".

    Raises:
        ArgumentError: keys of mixed or other types, empty or repeated ones, or an unknown promise.
    """
    if isinstance(ids, str):
        if ids == "int64":
            return _NUMBERS
        if ids[:1] == "S" and ids[1:].isdigit() and 1 <= int(ids[1:]) <= MAX_WIDTH:
            return _text_column(int(ids[1:]))
        raise ArgumentError(
            f'ids is {ids!r}; give the keys themselves, or promise them with "int64" or '
            f'"S32" (text of at most 32 bytes, up to S{MAX_WIDTH})'
        )
    keys = _keys(ids, ArgumentError)
    if len(set(keys)) != len(keys):
        seen: dict[Any, int] = {}
        for row, key in enumerate(keys):
            if key in seen:
                raise ArgumentError(
                    f"ids holds {key!r} twice, at rows {seen[key]} and {row}; a key names one sample"
                )
            seen[key] = row
    if not keys or isinstance(keys[0], int):
        return _NUMBERS
    width = max(len(key.encode("utf-8")) for key in keys)
    if width > MAX_WIDTH:
        raise ArgumentError(f"a key of {width} bytes is too long; the limit is {MAX_WIDTH}")
    return _text_column(width + -width % 8)  # odd widths would make units large: whole pages


def _text_column(width: int) -> Column:
    return Column("sample_id", "utf8", "uint8", ("byte",), (width,), "id", layout=TEXT)


def encode_ids(ids: Any, column: Column, start: int) -> Array:
    """Keys of the rows from `start` on, as the column stores them.

    Raises:
        RowError: a key of the wrong type, or longer than the column is wide.
    """
    keys = _keys(ids, RowError)
    if column.dtype == "int64":
        if keys and not isinstance(keys[0], int):
            raise RowError(f"the store keeps integer ids, {keys[0]!r} came for row {start}")
        try:
            return np.array(keys, dtype="<i8")
        except OverflowError as error:
            raise RowError(f"an id of the rows from {start} on does not fit 64 bits") from error
    if keys and not isinstance(keys[0], str):
        raise RowError(f"the store keeps ids as text, {keys[0]!r} came for row {start}")
    width = column.shape[0]
    encoded = [key.encode("utf-8") for key in keys]
    for row, text in enumerate(encoded, start):
        if len(text) > width:
            raise RowError(
                f"the id {text.decode()!r} of row {row} has {len(text)} bytes, the store keeps {width}"
            )
    return np.array(encoded, dtype=f"S{width}").view(np.uint8).reshape(len(keys), width)


def decode_ids(stored: Array, column: Column) -> Array:
    """The keys (n,) of stored rows: int64, or NumPy text.

    Raises:
        DamageError: bytes that are no UTF-8.
    """
    if column.dtype == "int64":
        return np.asarray(stored)
    if not len(stored):
        return np.empty(0, "<U1")
    texts = np.ascontiguousarray(stored).view(f"S{column.shape[0]}").ravel()
    try:
        return np.char.decode(texts, "utf-8")
    except UnicodeDecodeError as error:
        raise DamageError(
            f"column {column.name!r} holds the bytes {error.object!r:.80}, which are no text: the "
            "store is damaged; verify() names the rows"
        ) from error


def _keys(ids: Any, error: type[ArgumentError] | type[RowError]) -> list[Any]:
    if isinstance(ids, (bytes, dict)) or not isinstance(ids, (Sequence, np.ndarray)):
        raise error(f"ids must be a sequence of integers or strings, {type(ids).__name__} came")
    keys = ids.tolist() if isinstance(ids, np.ndarray) else list(ids)
    keys = [key.item() if isinstance(key, np.generic) else key for key in keys]
    kinds = {type(key) for key in keys}
    if kinds - {int} and kinds - {str}:
        names = sorted(kind.__name__ for kind in kinds)
        raise error(f"ids must be all integers or all strings, {names} came")
    for row, key in enumerate(keys):
        if isinstance(key, str) and (not key or "\0" in key):
            raise error(f"id {row} is {key!r}; a key is not empty and holds no NUL")
        if isinstance(key, str) and _HALF_PAIR.search(key):
            raise error(f"id {row} is {key!r}; half a surrogate pair is no text")
    return keys


def _fits(column: Column) -> bool:
    return (column.dtype, len(column.shape)) in (("int64", 0), ("utf8", 1))


def _known(column: Column, read: Read) -> Known:
    from fostore.schema.sides.known import KnownIds  # opening a store needs no hashes of text

    return KnownIds(column, read)


SIDE = Side("id", "ids", id_column, _fits, encode_ids, decode_ids, _known)
