"""A JSON file read through a window: what it holds in hand is bounded, and what is wrong has a line (spec/json.md)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, NoReturn

import numpy as np

from fostore.errors import FormatError, UnsafeError
from fostore.places.place import File
from fostore.schema import jsontext
from fostore.schema.header import MAX_TEXT

_CHUNK = 128 << 10
"""Bytes read at once: their numbers as Python objects still fit the processor's cache."""

_MAX_VALUE = MAX_TEXT
"""Bytes of a value that is parsed as a whole: `meta`, and what holds no rows."""

BOM = b"\xef\xbb\xbf"
"""What some editors and spreadsheets write before UTF-8; it says nothing."""

SPACE = b" \t\r\n"
_SPACES = re.compile(rb"[ \t\r\n]*")
# Strings are possessive: each escape that a match could give back would take memory.
STRING = rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"'
_STRING = re.compile(STRING, re.DOTALL)
_SCALAR = re.compile(rb'[^ \t\r\n,:"{}\[\]]+')
_TOKEN = re.compile(STRING + rb'|[{}\[\]]|[^"{}\[\]]{1,4096}', re.DOTALL)
_NO_MARKS = bytes(set(range(256)) - set(b'"{}[]'))
_DEPTH = np.zeros(256, np.int8)
_DEPTH[list(b"{[")], _DEPTH[list(b"}]")] = 1, -1


class Scanner:
    """The text of a file from a cursor on, of which `data[at:]` is in hand.

    Every method that reads raises FormatError naming the file, the line and the byte where the
    text is not what it must be, or ends.
    """

    def __init__(self, file: File) -> None:
        self.where = str(file)
        self.chunk = _CHUNK
        self.size = file.size
        self._file = file
        self.data = b""
        self.at = 0
        begin = file.read(0, len(BOM))
        self._start = len(BOM) if begin == BOM else 0
        # Editors on Windows save UTF-16, in which every second byte of JSON is NUL.
        is_wide = begin[:2] in (b"\xff\xfe", b"\xfe\xff") or b"\0" in begin
        self._hint = "; this is not UTF-8: save it as UTF-8" if is_wide else ""

    @property
    def offset(self) -> int:
        """Where the cursor stands in the file."""
        return self._start + self.at

    def seek(self, offset: int) -> None:
        self.data, self.at, self._start = b"", 0, offset

    def fill(self) -> bool:
        """Take more of the file in hand, at least as much again; False where it ends."""
        self.data, self.at, self._start = self.data[self.at :], 0, self.offset
        # Twice as much each time: what is long is looked through a few times, and not once a chunk.
        more = self._file.read(self._start + len(self.data), max(self.chunk, len(self.data)))
        self.data += more
        return bool(more)

    def peek(self) -> bytes:
        """The next character that is no white space, where the cursor then stands; empty at the end."""
        while True:
            match = _SPACES.match(self.data, self.at)
            self.at = self.at if match is None else match.end()
            if self.at < len(self.data):
                return self.data[self.at : self.at + 1]
            if not self.fill():
                return b""

    def expect(self, character: bytes, words: str) -> None:
        """Step over one character after white space."""
        if self.peek() != character:
            self.fail(f"expected {words}")
        self.at += 1

    def entries(self) -> Iterator[tuple[str, int]]:
        """The keys of the document, each with its offset, the cursor at its value; what is not read is stepped over.

        An object or a list is stepped over by its brackets alone, anything else is parsed.
        """
        seen = set()
        self.expect(b"{", "an object: {")
        more = self.peek() != b"}"
        while more:
            self.peek()
            offset = self.offset
            name: str = self._loads(self._token(_STRING, "a key in double quotes"), "a key", offset)
            self.expect(b":", "a colon")
            if name in seen:
                self.fail(f"the key {name!r} comes twice", offset)
            seen.add(name)
            first, begin = self.peek(), self.offset
            yield name, offset
            if self.offset == begin:
                self.skip() if first in (b"{", b"[") else self.value(name, [])
            more = self.peek() == b","
            self.at += more
        self.expect(b"}", "a comma or a closing brace")
        if self.peek():
            self.fail("more text after the document's end")

    def value(self, name: str, strange: list[str] | None = None) -> Any:
        """The value at the cursor, parsed strictly; `strange` as `jsontext.loads` has it.

        Raises:
            UnsafeError: it takes more bytes than metadata may.
        """
        self.peek()
        begin = self.offset
        return self._loads(self.text(name), repr(name), begin, strange)

    def text(self, name: str) -> bytes:
        """The text of the value at the cursor; raises as `value` does."""
        self.peek()
        begin = self.offset
        self.skip()
        size = self.offset - begin
        if size > _MAX_VALUE:
            raise UnsafeError(
                f"{self.where}{self.line(begin)}: {name!r} takes {size:,} bytes and may take "
                f"{_MAX_VALUE:,}: keep what is large in a file of its own"
            )
        text = self._file.read(begin, size)
        if len(text) < size:
            self.fail(f"the text ends inside {name!r}", begin + len(text))
        return text

    def skip(self) -> None:
        """Step over a value; of an object or a list the brackets are counted, the inside is not parsed."""
        first = self.peek()
        if first not in (b"{", b"["):
            self._token(_STRING if first == b'"' else _SCALAR, "a value")
            return
        self.at += 1
        depth, size = 1, self.chunk
        while depth:
            if self.at == len(self.data) and not self.fill():
                self.fail("the text ends inside a value: the file was cut")
            piece = self.data[self.at : self.at + size]
            if piece.count(b'"') % 2:
                piece = piece[: piece.rfind(b'"')]
            after = _depth_after(piece, depth)
            if after is not None:
                depth, size = after, min(2 * size, self.chunk)
                self.at += len(piece)
            elif len(piece) > 2048:  # the value ends in it: all up to there can still go at once
                size = len(piece) // 2
            else:  # near the end, or where a closer look is needed
                for _ in range(256):
                    if depth:
                        text = self._token(_TOKEN, "a value")
                        depth += int(_DEPTH[text[0]]) if len(text) == 1 else 0
                size = self.chunk

    def line(self, offset: int) -> str:
        """`, line 7` of an offset; reads the file up to there."""
        # Counted for a message alone: to count on the way would cost every document for one that is wrong.
        lines, step = 1, 1 << 20
        for begin in range(0, offset, step):
            lines += self._file.read(begin, min(step, offset - begin)).count(b"\n")
        return f", line {lines}"

    def fail(self, message: str, offset: int | None = None) -> NoReturn:
        """Raise FormatError for an offset, by default the cursor's."""
        offset = self.offset if offset is None else offset
        if offset >= self.size:
            message += "; the text ends here: the file is empty or was cut"
        raise FormatError(f"{self.where}{self.line(offset)}, byte {offset}: {message}{self._hint}")

    def _token(self, pattern: re.Pattern[bytes], words: str) -> bytes:
        """The text that matches at the cursor, however long, and the cursor behind it."""
        while True:
            match = pattern.match(self.data, self.at)
            # What goes up to the end of what is in hand may go on behind it.
            if match is not None and match.end() < len(self.data):
                break
            if len(self.data) - self.at > _MAX_VALUE and match is None:
                raise UnsafeError(
                    f"{self.where}{self.line(self.offset)}, byte {self.offset}: this goes on for more "
                    f"than {_MAX_VALUE:,} bytes"
                )
            if not self.fill():
                match = pattern.match(self.data, self.at)
                break
        if match is None:
            self.fail(f"expected {words}")
        self.at = match.end()
        return match.group()

    def _loads(self, text: bytes, name: str, offset: int, strange: list[str] | None = None) -> Any:
        try:
            decoded = text.decode("utf-8")
        except UnicodeDecodeError as error:
            self.fail("this is not UTF-8", offset + error.start)
        try:
            return jsontext.loads(decoded, "", strange=strange)
        except FormatError:  # the line costs a look at all that comes before
            where = f"{self.where}{self.line(offset)}: {name}"
            return jsontext.loads(decoded, where, strange=strange)


def _depth_after(piece: bytes, depth: int) -> int | None:
    """The depth behind a piece that begins outside strings; None where that takes a closer look.

    That is where the value ends in it, a string begins that is longer, or a backslash may hide a quote.
    """
    if not piece or b"\\" in piece:
        return None
    marks = piece.translate(None, _NO_MARKS)
    if b'"' in marks:
        marks = b"".join(marks.split(b'"')[::2])
    if not marks:
        return depth
    # int8 would wrap at 128 brackets
    depths = np.cumsum(_DEPTH[np.frombuffer(marks, np.uint8)], dtype=np.int64)
    return None if depth + int(depths.min()) <= 0 else depth + int(depths[-1])
