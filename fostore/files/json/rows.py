"""The rows of a JSON document, read in slices of whole rows: indices, and rows as one array (spec/json.md).

A slice is cut from the text where a row ends and parsed at once; what is wrong in it is then looked
for row by row, so that the error has a key and a line.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain
from struct import Struct
from struct import error as StructError
from typing import Any, NoReturn

import numpy as np
import orjson

from fostore.errors import FormatError, UnsafeError
from fostore.files.json.scan import SPACE, STRING, Scanner
from fostore.schema.row import Array

MAX_INDEX = 1 << 53
_MAX_ROW = 256 << 20
LOGS = ("log_probs", "logits")
"""The kinds in which null is minus infinity: the logarithm of 0."""
LOG_COLUMNS = frozenset({*LOGS, "values", "residual", "residual_t"})
"""The columns in which it is."""

_KEY = rb"[ \t\r\n]*(" + STRING + rb")[ \t\r\n]*:"
# A row's value holds no string and no object, so it ends where the next key or the closing brace begins.
_ROW = re.compile(_KEY + rb'([^"{}]*)', re.DOTALL)
_TEXT_ROW = re.compile(_KEY + rb"[ \t\r\n]*(" + STRING + rb")[ \t\r\n]*([,}])", re.DOTALL)
_NO_TEXT = re.compile(_KEY + rb'[ \t\r\n]*([^ \t\r\n"][^,}]*)', re.DOTALL)
_COLON = re.compile(rb"[ \t\r\n]*:")
_INDEX = re.compile(r"(?:0|[1-9][0-9]{0,15})\Z", re.ASCII)
_QUOTE = ord('"')
_POWERS = 10 ** np.arange(1, 16, dtype=np.int64)
_SHOWN = 60

Put = Callable[[Array, Array], int | None]
"""Takes indices and rows; gives an index that was there before, where there is one."""


@dataclass(frozen=True, slots=True)
class Section:
    """An object of rows in a document, and what they must be.

    Args:
        name: its key at the top level.
        dtype: float64, or an integer dtype that must hold every number exactly; None for strings
            (a slice's rows are then an array of bytes, UTF-8).
        shape: of a row; None takes the first row's.
        nulls: whether null stands for minus infinity, which JSON does not have.
    """

    name: str
    dtype: np.dtype[Any] | None
    shape: tuple[int, ...] | None = None
    nulls: bool = False

    def array(self, text: bytes, shape: tuple[int, ...]) -> tuple[Array, Array] | None:
        """Indices and rows (n, *shape) of a slice in braces, or None where a row of it is something else."""
        if self.dtype is not None and (b"t" in text or b"f" in text):  # true and false, as numbers
            return None
        try:
            # It refuses NaN, and gives integers beyond 64 bits as floats, which no integer column takes.
            rows: dict[str, Any] = orjson.loads(text)
        except (ValueError, RecursionError):
            return None
        index = _indices(rows)
        if index is None:
            return None
        values = list(rows.values())
        # A key that came twice leaves a row over; so does a string among numbers, which need no other quotes.
        if self.dtype is None:
            is_whole = len(_TEXT_ROW.findall(text, 1)) == len(rows)
            array = _padded(values, shape[0])
        else:
            quotes = np.count_nonzero(np.frombuffer(text, np.uint8) == _QUOTE)
            is_whole = quotes == 2 * len(rows)
            array = packed(values, self.dtype, shape, (None,) if self.nulls else ())
        return (index, array) if array is not None and is_whole else None


def read_rows(scanner: Scanner, section: Section, put: Put) -> None:
    """Hand every row of the section at the cursor to `put`, a slice at a time, in the file's order.

    Raises:
        FormatError: names the file, the line, and the key or what was expected.
    """
    if scanner.peek() != b"{":
        begin = scanner.offset
        scanner.fill()
        shown = scanner.data[:_SHOWN].decode("utf-8", "replace")
        scanner.skip()
        shown = shown[: max(scanner.offset - begin, 1)]
        scanner.fail(f"{section.name!r} is {shown}, expected an object of rows", begin)
    scanner.at += 1
    if scanner.peek() == b"}":
        scanner.at += 1
        return
    cut = _cut_texts if section.dtype is None else _cut_numbers
    shape, is_last = section.shape, False
    while not is_last:
        scanner.peek()
        begin = scanner.offset
        text, is_last = cut(scanner, section)
        piece = _Slice(scanner, section, text, begin, is_last)
        if shape is None:
            shape = piece.first_shape()
        end = len(text) if is_last else _comma(text)
        rows = None
        if end is not None:
            # One copy of the slice, not one for each brace
            rows = section.array(b"".join((b"{", memoryview(text)[:end], b"}")), shape)
        if rows is None:
            piece.blame(shape)
        twice = put(*rows)
        if twice is not None:
            piece.refuse_twice(twice)


def _comma(text: bytes) -> int | None:
    """Where the comma stands that ends a text; None where it ends otherwise."""
    at = text.rfind(b",")
    return at if at >= 0 and not text[at + 1 :].strip(SPACE) else None


# ------------------------------------------------------------------ where a slice ends


def _cut_numbers(scanner: Scanner, section: Section) -> tuple[bytes, bool]:
    """The text of whole rows of numbers, and whether they are the last; the cursor stands behind it."""
    scanned = 0
    while True:
        data, at = scanner.data, scanner.at
        end = data.find(b"}", at + scanned)
        if end >= 0:
            scanner.at = end + 1
            return data[at:end], True
        # The only quotes are those of keys, and a colon follows each second one.
        last = data.rfind(b'"', at)
        before = data.rfind(b'"', at, last)
        is_opening = before < 0 or _COLON.match(data, before + 1)
        cut = last if is_opening else before
        if cut > at:
            scanner.at = cut
            return data[at:cut], False
        scanned = len(data) - at  # in which there is no brace: a long row is looked through once
        if scanned > _MAX_ROW:
            raise UnsafeError(
                f"{scanner.where}{scanner.line(scanner.offset)}: a row of {section.name!r} goes on for "
                f"more than {_MAX_ROW:,} bytes"
            )
        if not scanner.fill():
            scanner.fail(f"expected the end of {section.name!r}", scanner.size)


def _cut_texts(scanner: Scanner, section: Section) -> tuple[bytes, bool]:
    """The same for rows of strings, which may hold any character."""
    while True:
        data, begin, end, is_last = scanner.data, scanner.at, scanner.at, False
        while not is_last and end - begin < scanner.chunk and (match := _TEXT_ROW.match(data, end)):
            end, is_last = match.end(), match.group(3) == b"}"
        if end > begin:
            scanner.at = end
            return data[begin : end - is_last], is_last
        bad = _NO_TEXT.match(data, begin)
        if bad is not None:
            name = bad.group(1).decode("utf-8", "replace").strip('"')
            shown = bad.group(2)[:_SHOWN].decode("utf-8", "replace").strip()
            here = _Slice(scanner, section, b"", scanner.offset, False)
            here.refuse(name, scanner.offset, f"is {shown}, expected a string")
        if len(data) - begin > _MAX_ROW or not scanner.fill():
            scanner.fail(f'expected a row of {section.name!r}, such as "7": "name"')


# ------------------------------------------------------------------ a slice as an array


def packed(
    values: list[Any], dtype: np.dtype[Any], shape: tuple[int, ...], nulls: tuple[Any, ...] = ()
) -> Array | None:
    """Parsed rows as an array (n, *shape); None where one holds something else than such numbers.

    Several times faster than NumPy, since the lengths are known, and no number is rounded or cut on
    the way. True and false pass for numbers; `nulls` stand for minus infinity.
    """
    lists = values
    native = dtype.newbyteorder("=")  # as Struct packs, whose letters are those of NumPy
    try:
        if not shape:
            return np.frombuffer(Struct(f"{len(values)}{native.char}").pack(*values), native)
        if (
            len(shape) == 2
        ):  # of the right number of numbers in all, one row may have a list of another
            if set(map(len, values)) != {shape[0]}:
                return None
            lists = list(chain.from_iterable(values))
        pack = Struct(f"{shape[-1]}{native.char}").pack
        return np.frombuffer(b"".join([pack(*row) for row in lists]), native).reshape(-1, *shape)
    except (TypeError, OverflowError, StructError):
        return packed(_filled(values, nulls), dtype, shape) if nulls else None


def _filled(value: Any, nulls: tuple[Any, ...]) -> Any:
    if isinstance(value, list):
        return [_filled(item, nulls) for item in value]
    return -np.inf if value in nulls else value


def _padded(values: list[Any], width: int) -> Array | None:
    texts = [item.encode() for item in values]
    if max(map(len, texts)) > width:
        return None
    padded = np.array([text.ljust(width, b"\0") for text in texts], f"S{width}")
    return padded.view(np.uint8).reshape(-1, width)


def _indices(rows: dict[str, Any]) -> Array | None:
    """The keys as int64, where each is an index, and there is one."""
    first = next(iter(rows), "")
    if _INDEX.match(first) and int(first) < MAX_INDEX:
        # Rows that follow each other, as most do: several times faster than to parse their keys.
        index = np.arange(int(first), int(first) + len(rows))
        expected = orjson.dumps(index, option=orjson.OPT_SERIALIZE_NUMPY)[1:-1]
        if ",".join(rows) == expected.decode():
            return index
    keys = "".join(rows)
    if not keys or not keys.isascii():
        return None
    try:
        index = np.array(list(map(int, rows)), np.int64)
    except (ValueError, OverflowError):
        return None
    # int() also takes "01", "+1", " 1" and "1_0", all of which are longer than the number.
    digits = len(rows) + int(np.searchsorted(_POWERS, index, side="right").sum())
    if digits != len(keys) or int(index.min()) < 0 or int(index.max()) >= MAX_INDEX:
        return None
    return index


# ------------------------------------------------------------------ what is wrong with a slice


@dataclass(frozen=True, slots=True)
class _Slice:
    """The text of some rows of a section, which begins at byte `begin` of the file."""

    scanner: Scanner
    section: Section
    text: bytes
    begin: int
    is_last: bool

    def first_shape(self) -> tuple[int, ...]:
        """The shape of the first row, which all rows have."""
        match = _ROW.match(self.text)
        # By json, which takes NaN: then the number is blamed, and not the shape.
        shape = None if match is None else _shape(match.group(2).strip(SPACE).removesuffix(b","))
        if shape is None or len(shape) not in (1, 2) or 0 in shape:
            self.blame(None)
        return shape

    def blame(self, shape: tuple[int, ...] | None) -> NoReturn:
        """Raise for the first row that is not what it must be."""
        section, text = self.section, self.text
        at = 0
        seen: set[str] = set()
        is_text = section.dtype is None
        whole = text + b"}" if self.is_last else text
        while text[at:].strip(SPACE):
            at = len(text) - len(text[at:].lstrip(SPACE))
            offset = self.begin + at
            match = (_TEXT_ROW if is_text else _ROW).match(whole, at)
            if match is None:
                break
            name = self._checked_key(match.group(1), offset)
            value = match.group(2).strip(SPACE)
            if name in seen:
                self.refuse(name, offset, "comes twice")
            seen.add(name)
            at = match.end()
            if not is_text and (at < len(text) or not self.is_last):
                if not value.endswith(b",") or text[at : at + 1] not in (b'"', b""):
                    self._refuse_value(name, offset, value or text[at : at + _SHOWN], None)
                value = value[:-1].rstrip(SPACE)
            if shape is None or section.array(b'{"0":' + value + b"}", shape) is None:
                self._refuse_value(name, offset, value, shape)
        else:
            at = len(text)
        self.scanner.fail(
            f'expected a row of {section.name!r}, such as "7": [...]', self.begin + at
        )

    def refuse_twice(self, index: int) -> NoReturn:
        """Raise for a row that an earlier slice held."""
        # It was not told by the parser, whose dict ends with the slice.
        key = re.search(rb'"%d"[ \t\r\n]*:' % index, self.text)
        self.refuse(str(index), self.begin + (key.start() if key else 0), "comes twice")

    def refuse(self, name: str, offset: int, message: str) -> NoReturn:
        """Raise FormatError for a row."""
        line = self.scanner.line(offset)
        where = f"{self.scanner.where}{line}: row {name!r} of {self.section.name!r}"
        raise FormatError(f"{where} {message}")

    def _checked_key(self, key: bytes, offset: int) -> str:
        try:
            name = json.loads(key)
            if _INDEX.match(name) and int(name) < MAX_INDEX:
                return str(name)
        except ValueError:
            pass
        shown = key.decode("utf-8", "replace")[:_SHOWN]
        raise FormatError(
            f"{self.scanner.where}{self.scanner.line(offset)}: {self.section.name!r} holds the key "
            f'{shown}, expected the index of a sample: digits without a sign or leading zeros, such as "7", '
            "below 2^53"
        )

    def _refuse_value(
        self, name: str, offset: int, value: bytes, shape: tuple[int, ...] | None
    ) -> NoReturn:
        dtype = self.section.dtype
        shown = value[:_SHOWN].decode("utf-8", "replace") + ("..." if len(value) > _SHOWN else "")
        expected = "a list of numbers"
        if dtype is None:
            expected = f"a string of no more than {shape[0]} bytes" if shape else "a string"
        elif shape is not None:
            expected = f"{dtype} numbers of shape {list(shape)}" if shape else f"a {dtype} number"
            actual = _shape(value)
            if actual is not None and actual != shape:
                shown += f" of shape {list(actual)}"
        if dtype is not None and b"null" in value:
            expected += (
                "; null is minus infinity of log_probs and logits: say source_kind= (--source-kind)"
            )
        elif dtype is not None and (b"NaN" in value or b"Infinity" in value):
            expected += (
                "; JSON has no NaN and no infinity: leave such samples out, or write their numbers"
            )
        self.refuse(name, offset, f"is {shown}, expected {expected}")


def _shape(value: bytes) -> tuple[int, ...] | None:
    """The shape of a row's text; None where it has none."""
    try:
        shape: tuple[int, ...] = np.shape(json.loads(value))
    except (ValueError, RecursionError):
        return None
    return shape
