"""Zip archives of arrays: written with several members growing at once, read without believing what they claim."""

from __future__ import annotations

import os
import struct
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fostore import disk
from fostore.errors import FormatError, UnsafeError

_ALIGN = 64
_LOCAL = struct.Struct("<4s5H3L2H")
_CENTRAL = struct.Struct("<4s6H3L5H2L")
_END = struct.Struct("<4s4H2LH")
_END64 = struct.Struct("<4sQ2H2L4Q")
_LOCATOR = struct.Struct("<4sLQL")
_BIG = 0xFFFFFFFF
"""Stands in a field of 32 bits whose number is among the extra fields."""
_LARGE = _BIG
"""Sizes and offsets from here on do not fit 32 bits."""
_MANY = 0xFFFF
_DATE = (1 << 5) | 1  # the first of January 1980: the same rows make the same file
_PADDING = 0x4246
_MOST_INFLATED = 1100
"""Deflate makes at most 1,032 bytes of one."""


class ZipBuilder:
    """An archive of uncompressed members whose sizes are known, each written front to back, in any mixture.

    Data is aligned to 64 bytes. `end` makes it durable; the archive is none before.
    """

    def __init__(self, path: Path, members: Sequence[tuple[str, int]]) -> None:
        self._members = [(name.encode("ascii"), size) for name, size in members]
        self._crcs = [0] * len(members)
        self._written = [0] * len(members)
        self._headers: list[int] = []
        self._data: list[int] = []
        self._fd = disk.open_file(path, write=True, create=True)
        try:
            disk.truncate(self._fd, 0)
            offset = 0
            for i, (_, size) in enumerate(self._members):
                self._headers.append(offset)
                text = self._local(i)
                disk.write_at(self._fd, text, offset)
                self._data.append(offset + len(text))
                offset += len(text) + size
            self._end = offset
        except BaseException:
            os.close(self._fd)
            raise

    def write(self, index: int, data: Any) -> None:
        """Append `data` to a member."""
        view = memoryview(data).cast("B") if memoryview(data).nbytes else memoryview(b"")
        size = self._members[index][1]
        if self._written[index] + len(view) > size:
            raise FormatError(f"more rows came than the {size} bytes that were announced")
        disk.write_at(self._fd, view, self._data[index] + self._written[index])
        self._crcs[index] = zlib.crc32(view, self._crcs[index])
        self._written[index] += len(view)

    def end(self) -> None:
        """Write the checksums and the directory; every member is whole."""
        if self._written != [size for _, size in self._members]:
            raise FormatError("fewer rows came than were announced")
        directory = b""
        for i, offset in enumerate(self._headers):
            disk.write_at(self._fd, self._local(i), offset)
            directory += self._central(i)
        disk.write_at(self._fd, directory + self._tail(len(directory)), self._end)
        disk.sync_data(self._fd)

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)

    def _local(self, i: int) -> bytes:
        name, size = self._members[i]
        large = size >= _LARGE
        extra = struct.pack("<2H2Q", 1, 16, size, size) if large else b""
        begin = self._headers[i] + _LOCAL.size + len(name) + len(extra) + 4
        padding = -begin % _ALIGN
        extra += struct.pack("<2H", _PADDING, padding) + bytes(padding)
        shown = _BIG if large else size
        version = 45 if large else 20
        return (
            _LOCAL.pack(
                b"PK\x03\x04",
                version,
                0,
                0,
                0,
                _DATE,
                self._crcs[i],
                shown,
                shown,
                len(name),
                len(extra),
            )
            + name
            + extra
        )

    def _central(self, i: int) -> bytes:
        name, size = self._members[i]
        offset = self._headers[i]
        large, far = size >= _LARGE, offset >= _LARGE
        fields = ([size, size] if large else []) + ([offset] if far else [])
        extra = struct.pack(f"<2H{len(fields)}Q", 1, 8 * len(fields), *fields) if fields else b""
        shown = _BIG if large else size
        version = 45 if fields else 20
        return (
            _CENTRAL.pack(
                b"PK\x01\x02", version, version, 0, 0, 0, _DATE, self._crcs[i], shown, shown,
                len(name), len(extra), 0, 0, 0, 0, _BIG if far else offset,
            )
            + name
            + extra
        )  # fmt: skip

    def _tail(self, size: int) -> bytes:
        count, offset = len(self._members), self._end
        large = offset + size >= _LARGE
        tail = b""
        if large:
            tail = _END64.pack(b"PK\x06\x06", 44, 45, 45, 0, 0, count, count, size, offset)
            tail += _LOCATOR.pack(b"PK\x06\x07", 0, offset + size, 1)
        assert count < _MANY
        return tail + _END.pack(
            b"PK\x05\x06", 0, 0, count, count, _BIG if large else size, _BIG if large else offset, 0
        )


def open_zip(path: Path, size: int) -> zipfile.ZipFile:
    """The directory of an archive, each entry held against the bytes that are there.

    Args:
        path: the archive.
        size: its bytes.

    Raises:
        FormatError: this is no archive, it is cut, or two members have one name.
        UnsafeError: a member claims more than its bytes can make, or is encrypted.
    """
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, ValueError, struct.error, NotImplementedError, EOFError) as error:
        raise FormatError(f"{path} is no archive, or was cut: {error}") from error
    try:
        seen: set[str] = set()
        for info in archive.infolist():
            where = f"{path}: member {info.filename!r:.80}"
            if info.filename in seen:
                raise FormatError(f"{where} is there twice")
            seen.add(info.filename)
            if info.flag_bits & 1:
                raise UnsafeError(f"{where} is encrypted")
            if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise UnsafeError(f"{where} is compressed otherwise than NumPy and torch do")
            ratio = 1 if info.compress_type == zipfile.ZIP_STORED else _MOST_INFLATED
            lies = info.file_size > info.compress_size * ratio + 64
            ends = info.header_offset + info.compress_size
            if lies or info.header_offset < 0 or ends > size:
                raise UnsafeError(
                    f"{where} claims {info.file_size:,} bytes from {info.compress_size:,}, in a file of "
                    f"{size:,}: it was cut, or lies"
                )
    except BaseException:
        archive.close()
        raise
    return archive


def data_offset(fd: int, info: zipfile.ZipInfo, where: str) -> int:
    """Where the data of an uncompressed member begins."""
    raw = disk.read_at(fd, info.header_offset, _LOCAL.size)
    if len(raw) < _LOCAL.size or raw[:4] != b"PK\x03\x04":
        raise FormatError(f"{where} is not where the archive's directory says")
    *_, name, extra = _LOCAL.unpack(raw)
    return int(info.header_offset + _LOCAL.size + name + extra)
