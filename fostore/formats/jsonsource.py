"""A JSON file read through a window: what it holds in hand is bounded, and every place has a line (spec/json.md)."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any, NoReturn, Self

import numpy as np

from fostore import disk
from fostore.errors import FormatError, UnsafeError
from fostore.places.samefile import SameFile
from fostore.schema import jsontext
from fostore.schema.header import MAX_TEXT

CHUNK = 128 << 10
"""Bytes read at once: their numbers as Python objects still fit the processor's cache."""

MAX_VALUE = MAX_TEXT
"""Bytes of a value that is parsed as a whole: `meta`, and what is no table."""

BOM = b"\xef\xbb\xbf"
"""What some editors and spreadsheets write before UTF-8; it says nothing."""

SHOWN = 60
SPACE = b" \t\r\n"
_SPACES = re.compile(rb"[ \t\r\n]*")
# Strings are possessive: each escape that a match could give back would take memory.
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)
_SCALAR = re.compile(rb'[^ \t\r\n,:"{}\[\]]+')
_TOKEN = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"|[{}\[\]]|[^"{}\[\]]{1,4096}', re.DOTALL)
_OTHER = bytes(set(range(256)) - set(b'"{}[]'))
_DEPTH = np.zeros(256, np.int8)
_DEPTH[list(b"{[")], _DEPTH[list(b"}]")] = 1, -1


class Source:
    """The text of a file from a cursor on, of which `data[at:]` is in hand.

    Every method that reads raises FormatError naming the file, the line and the byte where the
    text is not what it must be, or ends.

    Raises:
        StoreNotFoundError: there is no such file.
        FormatError: it is a folder, or no regular file.
    """

    def __init__(self, path: Path) -> None:
        self.where = str(path)
        self.chunk = CHUNK
        fd, self.size = disk.open_named(path, "a JSON file")
        self._file = os.fdopen(fd, "rb", buffering=0)
        self.same = SameFile(path, fd)
        self.data = b""
        self.at = 0
        begin = self._read(0, len(BOM))
        self._start = len(BOM) if begin == BOM else 0
        is_wide = begin[:2] in (b"\xff\xfe", b"\xfe\xff") or b"\0" in begin
        self._hint = "; this is not UTF-8: save it as UTF-8" if is_wide else ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()

    @property
    def offset(self) -> int:
        """The cursor's place in the file."""
        return self._start + self.at

    def seek(self, offset: int) -> None:
        """Move the cursor."""
        self.data, self.at, self._start = b"", 0, offset

    def fill(self) -> bool:
        """Take more of the file in hand, at least as much again; False where it ends."""
        self.data, self.at, self._start = self.data[self.at :], 0, self.offset
        more = self._read(self._start + len(self.data), max(self.chunk, len(self.data)))
        self.data += more
        return bool(more)

    def peek(self) -> bytes:
        """The next character that is no white space, where the cursor then stands; empty at the end."""
        while True:
            self.at = _end_of(_SPACES, self.data, self.at)
            if self.at < len(self.data):
                return self.data[self.at : self.at + 1]
            if not self.fill():
                return b""

    def expect(self, wanted: bytes, words: str) -> None:
        """Step over one character after white space."""
        if self.peek() != wanted:
            self.fail(f"expected {words}")
        self.at += 1

    def key(self) -> tuple[str, int]:
        """A key and its place; the cursor then stands behind its colon."""
        self.peek()
        offset = self.offset
        name: str = self._loads(self._token(_STRING, "a key in double quotes"), "a key", offset)
        self.expect(b":", "a colon")
        return name, offset

    def value(self, name: str, strange: list[str] | None = None) -> Any:
        """The value of a key, parsed strictly; `strange` as `jsontext.loads` has it.

        Raises:
            UnsafeError: it takes more bytes than metadata may.
        """
        self.peek()
        begin = self.offset
        self.skip()
        return self._loads(self._text(begin, self.offset, name), repr(name), begin, strange)

    def text(self, name: str) -> bytes:
        """The text of a value; empty where it takes more bytes than one that is parsed may."""
        self.peek()
        begin = self.offset
        self.skip()
        return b"" if self.offset - begin > MAX_VALUE else self._text(begin, self.offset, name)

    def skip(self) -> None:
        """Step over a value; of an object or a list the brackets are counted, the inside is not parsed."""
        if self.peek() not in (b"{", b"["):
            is_string = self.peek() == b'"'
            self._token(_STRING if is_string else _SCALAR, "a value")
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
            elif len(piece) > 2048:
                size = len(piece) // 2
            else:  # near the end, or where a closer look is needed
                for _ in range(256):
                    depth = self._step(depth) if depth else 0
                size = self.chunk

    def line(self, offset: int) -> str:
        """`, line 7` of a place; reads the file up to there."""
        lines, at = 1, 0
        while at < offset:
            text = self._read(at, min(1 << 20, offset - at))
            if not text:
                break
            lines += text.count(b"\n")
            at += len(text)
        return f", line {lines}"

    def fail(self, message: str, offset: int | None = None) -> NoReturn:
        """Raise FormatError for a place, by default the cursor's."""
        offset = self.offset if offset is None else offset
        if offset >= self.size:
            message += "; the text ends here: the file is empty or was cut"
        raise FormatError(f"{self.where}{self.line(offset)}, byte {offset}: {message}{self._hint}")

    def _read(self, offset: int, size: int) -> bytes:
        self._file.seek(offset)
        return self._file.read(size)

    def _step(self, depth: int) -> int:
        """Step over one token inside a value; gives the depth behind it."""
        text = self._token(_TOKEN, "a value")
        return depth + int(_DEPTH[text[0]]) if len(text) == 1 else depth

    def _token(self, pattern: re.Pattern[bytes], words: str) -> bytes:
        """The text that matches at the cursor, however long, and the cursor behind it."""
        while True:
            match = pattern.match(self.data, self.at)
            # What goes up to the end of what is in hand may go on behind it.
            if match is not None and match.end() < len(self.data):
                break
            if len(self.data) - self.at > MAX_VALUE and match is None:
                raise UnsafeError(
                    f"{self.where}{self.line(self.offset)}, byte {self.offset}: this goes on for more "
                    f"than {MAX_VALUE:,} bytes"
                )
            if not self.fill():
                match = pattern.match(self.data, self.at)
                break
        if match is None:
            self.fail(f"expected {words}")
        self.at = match.end()
        return match.group()

    def _text(self, begin: int, end: int, name: str) -> bytes:
        if end - begin > MAX_VALUE:
            raise UnsafeError(
                f"{self.where}{self.line(begin)}: {name!r} takes {end - begin:,} bytes and may take "
                f"{MAX_VALUE:,}: keep what is large in a file of its own"
            )
        parts = []
        while begin < end:
            parts.append(self._read(begin, end - begin))
            begin += len(parts[-1])
            if not parts[-1]:
                self.fail(f"the text ends inside {name!r}", begin)
        return b"".join(parts)

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
    marks = piece.translate(None, _OTHER)
    if b'"' in marks:
        marks = b"".join(marks.split(b'"')[::2])
    if not marks:
        return depth
    depths = np.cumsum(_DEPTH[np.frombuffer(marks, np.uint8)], dtype=np.int64)
    return None if depth + int(depths.min()) <= 0 else depth + int(depths[-1])


def _end_of(pattern: re.Pattern[bytes], data: bytes, position: int) -> int:
    match = pattern.match(data, position)
    return position if match is None else match.end()
