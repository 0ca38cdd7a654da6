"""A table of a JSON document, read in slices of whole rows: indices, and rows as one array (spec/json.md).

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

from fostore.errors import FormatError, UnsafeError
from fostore.formats.jsonsource import SHOWN, SPACE, Source
from fostore.schema import jsontext
from fostore.schema.row import Array

MAX_INDEX = 1 << 53
MAX_ROW = 256 << 20

# A row's value holds no string and no object, so it ends where the next key or the table's brace begins.
_ROW = re.compile(rb'[ \t\r\n]*("[^"\\]*+(?:\\.[^"\\]*+)*+")[ \t\r\n]*:([^"{}]*)', re.DOTALL)
_TEXT_ROW = re.compile(
    rb'[ \t\r\n]*("[^"\\]*+(?:\\.[^"\\]*+)*+")[ \t\r\n]*:[ \t\r\n]*("[^"\\]*+(?:\\.[^"\\]*+)*+")'
    rb"[ \t\r\n]*([,}])",
    re.DOTALL,
)
_NO_TEXT = re.compile(
    rb'[ \t\r\n]*("[^"\\]*+(?:\\.[^"\\]*+)*+")[ \t\r\n]*:[ \t\r\n]*([^ \t\r\n"][^,}]*)', re.DOTALL
)
_COLON = re.compile(rb"[ \t\r\n]*:")
_INDEX = re.compile(r"(?:0|[1-9][0-9]{0,15})\Z", re.ASCII)
_QUOTE = ord('"')
_POWERS = 10 ** np.arange(1, 16, dtype=np.int64)

Place = Callable[[Array, Array], int | None]
"""Takes indices and rows; gives an index that was there before, where there is one."""


@dataclass(frozen=True, slots=True)
class Table:
    """What a table must hold.

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


def read_table(source: Source, table: Table, place: Place) -> None:
    """Hand every row of the table at the cursor to `place`, a slice at a time, in the file's order.

    Raises:
        FormatError: names the file, the line, and the key or what was expected.
    """
    if source.peek() != b"{":
        begin = source.offset
        source.fill()
        shown = source.data[:SHOWN].decode("utf-8", "replace")
        source.skip()
        shown = shown[: max(source.offset - begin, 1)]
        source.fail(f"{table.name!r} is {shown}, expected an object of rows", begin)
    source.at += 1
    if source.peek() == b"}":
        source.at += 1
        return
    cut, parse = (_cut_strings, _strings) if table.dtype is None else (_cut_rows, _numbers)
    shape, is_last = table.shape, False
    while not is_last:
        source.peek()
        begin = source.offset
        text, is_last = cut(source, table)
        if shape is None:
            shape = _first_shape(source, table, text, begin, is_last)
        end = len(text) if is_last else _comma(text)
        found = None
        if end is not None:
            found = parse(b"".join((b"{", memoryview(text)[:end], b"}")), table, shape)
        if found is None:
            _blame(source, table, shape, text, begin, is_last)
        twice = place(*found)
        if twice is not None:
            _refuse_twice(source, table, text, begin, twice)


def _comma(text: bytes) -> int | None:
    """Where the comma stands that ends a text; None where it ends otherwise."""
    at = text.rfind(b",")
    return at if at >= 0 and not text[at + 1 :].strip(SPACE) else None


# ------------------------------------------------------------------ where a slice ends


def _cut_rows(source: Source, table: Table) -> tuple[bytes, bool]:
    """The text of whole rows of numbers, and whether they are the last; the cursor stands behind it."""
    scanned = 0
    while True:
        data, at = source.data, source.at
        end = data.find(b"}", at + scanned)
        if end >= 0:
            source.at = end + 1
            return data[at:end], True
        # The only quotes are those of keys, and a colon follows each second one.
        last = data.rfind(b'"', at)
        before = data.rfind(b'"', at, last)
        is_opening = before < 0 or _COLON.match(data, before + 1)
        cut = last if is_opening else before
        if cut > at:
            source.at = cut
            return data[at:cut], False
        scanned = len(data) - at
        if scanned > MAX_ROW:
            raise UnsafeError(
                f"{source.where}{source.line(source.offset)}: a row of {table.name!r} goes on for "
                f"more than {MAX_ROW:,} bytes"
            )
        if not source.fill():
            source.fail(f"expected the end of {table.name!r}", source.size)


def _cut_strings(source: Source, table: Table) -> tuple[bytes, bool]:
    """The same for rows of strings, which may hold any character."""
    while True:
        data, begin, end, is_last = source.data, source.at, source.at, False
        while not is_last and end - begin < source.chunk and (match := _TEXT_ROW.match(data, end)):
            end, is_last = match.end(), match.group(3) == b"}"
        if end > begin:
            source.at = end
            return data[begin : end - is_last], is_last
        bad = _NO_TEXT.match(data, begin)
        if bad is not None:
            name = bad.group(1).decode("utf-8", "replace").strip('"')
            shown = bad.group(2)[:SHOWN].decode("utf-8", "replace").strip()
            _refuse_row(source, table, name, source.offset, f"is {shown}, expected a string")
        if len(data) - begin > MAX_ROW or not source.fill():
            source.fail(f'expected a row of {table.name!r}, such as "7": "name"')


# ------------------------------------------------------------------ a slice as an array


def _numbers(text: bytes, table: Table, shape: tuple[int, ...]) -> tuple[Array, Array] | None:
    """Indices and rows (n, *shape) of a slice in braces, or None where a row of it is something else."""
    import orjson

    if b"t" in text or b"f" in text:  # true, false; NumPy takes them for numbers
        return None
    assert table.dtype is not None
    is_float = table.dtype.kind == "f"
    if not is_float and (b"." in text or b"e" in text or b"E" in text):
        return None
    try:
        # orjson makes floats of integers from 2^64 on
        rows: dict[str, Any] = (orjson.loads if is_float else json.loads)(text)
    except (ValueError, RecursionError):
        return None
    index = _indices(rows)
    # A key that came twice, or a string among the values, leaves quotes over.
    if index is None or np.count_nonzero(np.frombuffer(text, np.uint8) == _QUOTE) != 2 * len(rows):
        return None
    values = list(rows.values())
    try:
        if b"n" in text:  # null
            return (index, _with_nulls(values, shape)) if table.nulls else None
        found = _packed(values, shape) if is_float else np.array(values, table.dtype)
    except (ValueError, TypeError, OverflowError, StructError):
        return None
    return (index, found) if found.shape == (len(values), *shape) else None


def _packed(values: list[Any], shape: tuple[int, ...]) -> Array:
    """Rows as float64; several times faster than NumPy, since the lengths are known."""
    if not shape:
        return np.frombuffer(Struct(f"{len(values)}d").pack(*values))
    lists = values
    if len(shape) == 2:
        if set(map(len, values)) != {shape[0]}:
            raise ValueError("not all rows have the same number of members")
        lists = list(chain.from_iterable(values))
    pack = Struct(f"{shape[-1]}d").pack
    return np.frombuffer(b"".join([pack(*row) for row in lists])).reshape(-1, *shape)


def _with_nulls(values: list[Any], shape: tuple[int, ...]) -> Array:
    found = np.array(values, np.float64)  # null becomes NaN, which JSON does not have
    found[np.isnan(found)] = -np.inf
    return found if found.shape[1:] == shape else np.zeros(0)


def _strings(text: bytes, table: Table, shape: tuple[int, ...]) -> tuple[Array, Array] | None:
    try:
        rows = jsontext.loads(text, "")  # which refuses a key that comes twice
        index = _indices(rows)
        if index is None:
            return None
        texts = [item.encode("utf-8") for item in rows.values()]
    except (FormatError, UnicodeEncodeError):
        return None
    if max(map(len, texts)) > shape[0]:
        return None
    padded = np.array([item.ljust(shape[0], b"\0") for item in texts], f"S{shape[0]}")
    return index, padded.view(np.uint8).reshape(-1, shape[0])


def _indices(rows: dict[str, Any]) -> Array | None:
    """The keys as int64, where each is an index."""
    in_order = _in_order(rows)
    if in_order is not None:
        return in_order
    keys = "".join(rows)
    if not keys.isascii():
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


def _in_order(rows: dict[str, Any]) -> Array | None:
    """The keys of rows that follow each other, as most do; several times faster than to parse them."""
    import orjson

    first = next(iter(rows), "")
    if not _INDEX.match(first) or int(first) >= MAX_INDEX:
        return None
    index = np.arange(int(first), int(first) + len(rows))
    expected = orjson.dumps(index, option=orjson.OPT_SERIALIZE_NUMPY)[1:-1]
    return index if ",".join(rows) == expected.decode() else None


def _first_shape(
    source: Source, table: Table, text: bytes, begin: int, is_last: bool
) -> tuple[int, ...]:
    match = _ROW.match(text)
    shape = None if match is None else _shape(match.group(2).strip(SPACE).removesuffix(b","))
    if shape is None or len(shape) not in (1, 2) or 0 in shape:
        _blame(source, table, None, text, begin, is_last)
    return shape


def _shape(value: bytes) -> tuple[int, ...] | None:
    """The shape of a row's text; None where it has none."""
    try:
        shape: tuple[int, ...] = np.shape(json.loads(value))
    except (ValueError, RecursionError):
        return None
    return shape


# ------------------------------------------------------------------ what is wrong with a slice


def _blame(
    source: Source,
    table: Table,
    shape: tuple[int, ...] | None,
    text: bytes,
    begin: int,
    is_last: bool,
) -> NoReturn:
    """Raise for the first row of a slice that is not what it must be."""
    at = 0
    seen: set[str] = set()
    is_text = table.dtype is None
    whole = text + b"}" if is_last else text
    while text[at:].strip(SPACE):
        at = len(text) - len(text[at:].lstrip(SPACE))
        offset = begin + at
        match = (_TEXT_ROW if is_text else _ROW).match(whole, at)
        if match is None:
            source.fail(f'expected a row of {table.name!r}, such as "7": [...]', offset)
        key, value = match.group(1), match.group(2).strip(SPACE)
        name = _check_key(source, table, key, offset)
        if name in seen:
            _refuse_row(source, table, name, offset, "comes twice")
        seen.add(name)
        at = match.end()
        if not is_text and (at < len(text) or not is_last):
            if not value.endswith(b",") or text[at : at + 1] not in (b'"', b""):
                _refuse_value(source, table, name, offset, value or text[at : at + SHOWN], None)
            value = value[:-1].rstrip(SPACE)
        one = _strings if is_text else _numbers
        if shape is None or one(b'{"0":' + value + b"}", table, shape) is None:
            _refuse_value(source, table, name, offset, value, shape)
    source.fail(f'expected a row of {table.name!r}, such as "7": [...]', begin + len(text))


def _check_key(source: Source, table: Table, key: bytes, offset: int) -> str:
    try:
        name = json.loads(key)
        if _INDEX.match(name) and int(name) < MAX_INDEX:
            return str(name)
    except ValueError:
        pass
    shown = key.decode("utf-8", "replace")[:SHOWN]
    raise FormatError(
        f"{source.where}{source.line(offset)}: {table.name!r} holds the key {shown}, expected the "
        'index of a sample: digits without a sign or leading zeros, such as "7", below 2^53'
    )


def _refuse_value(
    source: Source,
    table: Table,
    name: str,
    offset: int,
    value: bytes,
    shape: tuple[int, ...] | None,
) -> NoReturn:
    shown = value[:SHOWN].decode("utf-8", "replace") + ("..." if len(value) > SHOWN else "")
    wanted = "a list of numbers"
    if table.dtype is None:
        wanted = f"a string of no more than {shape[0]} bytes" if shape else "a string"
    elif shape is not None:
        wanted = (
            f"{table.dtype} numbers of shape {list(shape)}" if shape else f"a {table.dtype} number"
        )
        found = _shape(value)
        if found is not None and found != shape:
            shown += f" of shape {list(found)}"
    if table.dtype is not None and b"null" in value:
        wanted += (
            "; null is minus infinity of log_probs and logits: say source_kind= (--source-kind)"
        )
    elif table.dtype is not None and (b"NaN" in value or b"Infinity" in value):
        wanted += (
            "; JSON has no NaN and no infinity: leave such samples out, or write their numbers"
        )
    _refuse_row(source, table, name, offset, f"is {shown}, expected {wanted}")


def _refuse_twice(source: Source, table: Table, text: bytes, begin: int, index: int) -> NoReturn:
    """Raise for a row that an earlier slice held."""
    key = re.search(rb'"%d"[ \t\r\n]*:' % index, text)
    offset = begin + (key.start() if key else 0)
    _refuse_row(source, table, str(index), offset, "comes twice")


def _refuse_row(source: Source, table: Table, name: str, offset: int, message: str) -> NoReturn:
    raise FormatError(
        f"{source.where}{source.line(offset)}: row {name!r} of {table.name!r} {message}"
    )
