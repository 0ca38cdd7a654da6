"""A JSON document of the guide's layout, taken apart strictly: its metadata, and tables of rows by key (spec/json.md).

The text is held whole; its numbers become arrays a few thousand rows at a time, never lists of them all.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any, NoReturn

import numpy as np

from fostore import jsontext
from fostore.errors import FormatError
from fostore.schema import Array

_SPACE = re.compile(rb"[ \t\r\n]*")
_STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)
_TOKEN = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|[{}\[\]]|[^"{}\[\]]+', re.DOTALL)
_SCALAR = re.compile(rb'[^ \t\r\n,:"{}\[\]]+')
# A row's value holds no string and no object, so it ends where the next key or the table's brace begins.
_ROW = re.compile(rb'[ \t\r\n]*("[^"\\]*(?:\\.[^"\\]*)*")[ \t\r\n]*:([^"{}]*)', re.DOTALL)
_INDEX = re.compile(rb'"(?:0|[1-9][0-9]{0,15})"\Z')
_BATCH_BYTES = 1 << 20
_MAX_INDEX = 1 << 53
_SHOWN = 60


class Document:
    """The top level of a document; `meta` is parsed, tables are parsed when they are asked for.

    Raises FormatError, from every method, that names the file, and the key or the line.
    """

    def __init__(self, data: bytes, where: str) -> None:
        self._data = data
        self._where = where
        self.spans = self._top_level()
        self.meta: dict[str, Any] = {}
        for name, (begin, end) in self.spans.items():
            if data[begin : begin + 1] == b"{" and name != "meta":
                continue  # a table, or something that nobody will ask for
            value = self._loads(begin, end, name)
            if name == "meta":
                if not isinstance(value, dict):
                    raise FormatError(f"{where}: 'meta' is {value!r:.60}, expected an object")
                self.meta = value

    def is_empty(self, name: str) -> bool:
        """Whether a table has no rows."""
        begin, end = self._table(name)
        return _end_of(_SPACE, self._data, begin + 1) == end - 1

    def strings(self, name: str) -> tuple[Array, list[str]]:
        """A table of one string a row: the indices (int64, increasing) and the strings."""
        begin, end = self._table(name)
        value = self._loads(begin, end, name)
        keys = [self._index(json.dumps(key).encode(), name) for key in value]
        for key, item in value.items():
            if not isinstance(item, str):
                raise self._row_error(name, key, f"is {item!r:.60}, expected a string")
        index, order = self._ordered(keys, name)
        items = list(value.values())
        return index, [items[i] for i in order]

    def rows(
        self, name: str, dtype: np.dtype[Any], shape: tuple[int, ...] | None, *, nulls: bool = False
    ) -> tuple[Array, Array]:
        """A table of rows of numbers: the indices (int64, increasing) and the rows (n, *shape).

        Args:
            name: the key of the table at the top level.
            dtype: float64, or an integer dtype that must hold every number exactly.
            shape: of a row; None takes the first row's.
            nulls: whether null stands for minus infinity, which JSON does not have.
        """
        begin, table_end = self._table(name)
        data, position = self._data, begin + 1
        keys: list[int] = []
        pending: list[bytes] = []
        parts: list[Array] = []
        pending_bytes = 0
        if self.is_empty(name):
            return np.zeros(0, np.int64), np.zeros((0, *(shape or ())), dtype)
        while True:
            match = _ROW.match(data, position, table_end)
            if match is None:
                if pending and pending[-1].count(b"[") != pending[-1].count(b"]"):
                    self._bad_row(name, b"%d" % keys[-1], pending[-1])
                self._fail(position, f'expected a row of {name!r}, such as "7": [...]')
            key, value = match.groups()
            keys.append(self._index(key, name, position))
            position = match.end()
            value, last = value.strip(b" \t\r\n"), data[position : position + 1] == b"}"
            if not last:
                if data[position : position + 1] != b'"' or not value.endswith(b","):
                    self._bad_row(name, key, value)
                value = value[:-1].rstrip(b" \t\r\n")
            pending.append(value)
            pending_bytes += len(value)
            if last or pending_bytes >= _BATCH_BYTES:
                if shape is None:
                    shape = self._first_shape(pending[0], name, keys[0])
                parts.append(self._numbers(pending, keys, name, dtype, shape, nulls))
                pending, pending_bytes = [], 0
            if last:
                break
        index, order = self._ordered(keys, name)
        values = np.concatenate(parts) if len(parts) > 1 else parts[0]
        return index, values if np.array_equal(order, np.arange(len(order))) else values[order]

    # -------------------------------------------------------------- rows

    def _numbers(
        self,
        values: list[bytes],
        keys: list[int],
        name: str,
        dtype: np.dtype[Any],
        shape: tuple[int, ...],
        nulls: bool,
    ) -> Array:
        """Many rows at once; where that fails, one by one, so that the error has a key."""
        found = _parse(values, dtype, shape, nulls)
        if found is not None:
            return found
        for key, value in zip(keys[-len(values) :], values, strict=True):
            if _parse([value], dtype, shape, nulls) is None:
                self._bad_row(name, b"%d" % key, value, dtype, shape)
        raise AssertionError("rows that are good one by one are good together")

    def _first_shape(self, value: bytes, name: str, key: int) -> tuple[int, ...]:
        try:
            shape: tuple[int, ...] = np.shape(json.loads(value))
        except ValueError:
            shape = ()
        if len(shape) not in (1, 2) or 0 in shape:
            self._bad_row(name, b"%d" % key, value)
        return shape

    def _bad_row(
        self,
        name: str,
        key: bytes,
        value: bytes,
        dtype: np.dtype[Any] | None = None,
        shape: tuple[int, ...] | None = None,
    ) -> NoReturn:
        shown = value[:_SHOWN].decode("utf-8", "replace") + ("..." if len(value) > _SHOWN else "")
        wanted = "a list of numbers"
        if shape is not None:
            wanted = f"{dtype} numbers of shape {list(shape)}" if shape else f"a {dtype} number"
            try:
                found = np.shape(json.loads(value))
            except ValueError:
                found = shape
            if found != shape:
                shown += f" of shape {list(found)}"
        raise self._row_error(
            name, key.decode("ascii", "replace").strip('"'), f"is {shown}, expected {wanted}"
        )

    def _row_error(self, name: str, key: str, message: str) -> FormatError:
        text = json.dumps(key).encode()
        found = re.search(re.escape(text) + rb"[ \t\r\n]*:", self._data[self.spans[name][0] :])
        line = self._line(self.spans[name][0] + found.start()) if found else ""
        return FormatError(f"{self._where}{line}: row {key!r} of {name!r} {message}")

    def _index(self, key: bytes, name: str, position: int | None = None) -> int:
        if _INDEX.match(key) and int(key[1:-1]) < _MAX_INDEX:
            return int(key[1:-1])
        line = "" if position is None else self._line(_end_of(_SPACE, self._data, position))
        shown = key.decode("utf-8", "replace")[:_SHOWN]
        raise FormatError(
            f"{self._where}{line}: {name!r} holds the key {shown}, expected the index of a sample: "
            'digits without a sign or leading zeros, such as "7", below 2^53'
        )

    def _ordered(self, keys: Sequence[int], name: str) -> tuple[Array, Array]:
        index = np.array(keys, np.int64)
        order = np.argsort(index, kind="stable")
        index = index[order]
        twice = np.flatnonzero(index[1:] == index[:-1])
        if len(twice):
            key = str(index[twice[0]])
            raise self._row_error(name, key, "comes twice")
        return index, order

    # -------------------------------------------------------------- the top level

    def _top_level(self) -> dict[str, tuple[int, int]]:
        """Where the value of every key begins and ends."""
        data, spans = self._data, dict[str, tuple[int, int]]()
        position = self._expect(b"{", _end_of(_SPACE, data, 0), "an object: {")
        position = _end_of(_SPACE, data, position)
        more = data[position : position + 1] != b"}"
        while more:
            match = _STRING.match(data, position)
            if match is None:
                self._fail(position, "expected a key in double quotes")
            name = self._loads(position, match.end(), "a key")
            if name in spans:
                self._fail(position, f"the key {name!r} comes twice")
            position = self._expect(b":", _end_of(_SPACE, data, match.end()), "a colon")
            begin = _end_of(_SPACE, data, position)
            end = self._skip(begin)
            spans[name] = begin, end
            position = _end_of(_SPACE, data, end)
            more = data[position : position + 1] == b","
            if more:
                position = _end_of(_SPACE, data, position + 1)
        position = self._expect(b"}", position, "a comma or a closing brace")
        position = _end_of(_SPACE, data, position)
        if position != len(data):
            self._fail(position, "more text after the document's end")
        return spans

    def _skip(self, position: int) -> int:
        """Where the value that begins here ends; brackets are counted, the inside is not parsed."""
        data, depth = self._data, 0
        if data[position : position + 1] not in (b"{", b"["):
            match = _STRING.match(data, position) or _SCALAR.match(data, position)
            if match is None:
                self._fail(position, "expected a value")
            return match.end()
        while True:
            match = _TOKEN.match(data, position)
            if match is None:
                self._fail(position, "the text ends inside a value: the file was cut")
            position = match.end()
            if position == match.start() + 1:
                character = data[match.start()]
                depth += (character in b"{[") - (character in b"}]")
                if depth == 0:
                    return position

    def _table(self, name: str) -> tuple[int, int]:
        if name not in self.spans:
            raise FormatError(f"{self._where} has no {name!r}; its keys are {list(self.spans)[:8]}")
        begin, end = self.spans[name]
        if self._data[begin : begin + 1] != b"{":
            shown = self._data[begin : min(end, begin + _SHOWN)].decode("utf-8", "replace")
            raise FormatError(
                f"{self._where}{self._line(begin)}: {name!r} is {shown}, expected an object of rows"
            )
        return begin, end

    def _loads(self, begin: int, end: int, name: str) -> Any:
        try:
            text = self._data[begin:end].decode("utf-8")
        except UnicodeDecodeError as error:
            self._fail(begin + error.start, "this is not UTF-8")
        return jsontext.loads(text, f"{self._where}{self._line(begin)}: {name!r}")

    def _expect(self, wanted: bytes, position: int, words: str) -> int:
        if self._data[position : position + 1] != wanted:
            self._fail(position, f"expected {words}")
        return position + 1

    def _fail(self, position: int, message: str) -> NoReturn:
        if position >= len(self._data):
            message += "; the text ends here: the file is empty or was cut"
        raise FormatError(f"{self._where}{self._line(position)}, byte {position}: {message}")

    def _line(self, position: int) -> str:
        lines_before = self._data.count(b"\n", 0, position)
        return f", line {lines_before + 1}"


def _end_of(pattern: re.Pattern[bytes], data: bytes, position: int) -> int:
    match = pattern.match(data, position)
    return position if match is None else match.end()


def _parse(
    values: list[bytes], dtype: np.dtype[Any], shape: tuple[int, ...], nulls: bool
) -> Array | None:
    """Texts of rows as one array (n, *shape), or None where one of them is something else."""
    import orjson

    # Every value opens the brackets of one row, so a value such as `[1], [2]` cannot pass for two.
    brackets = 0 if not shape else 1 if len(shape) == 1 else 1 + shape[0]
    if any(value.count(b"[") != brackets for value in values):
        return None
    text = b"[" + b",".join(values) + b"]"
    if b"true" in text or b"false" in text or (b"null" in text and not nulls):
        return None
    if dtype.kind in "iu" and any(mark in text for mark in (b".", b"e", b"E")):
        return None
    try:
        # orjson makes floats of integers from 2^64 on
        parsed = orjson.loads(text) if dtype.kind == "f" else json.loads(text)
        found = np.array(parsed, dtype)
    except (ValueError, TypeError, OverflowError):
        return None
    if found.shape != (len(values), *shape):
        return None
    if nulls:
        found[np.isnan(found)] = -np.inf
    return found
