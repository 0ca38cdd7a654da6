"""The .npz format: an archive of NumPy arrays, one a column, and the header beside them as UTF-8 bytes."""

from __future__ import annotations

import math
import os
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from fostore import disk
from fostore.errors import ArgumentError, DamageError, FormatError, UnsafeError
from fostore.files import FileFormat, Hints, Holds
from fostore.files._arrays import Lying, arrays_table
from fostore.files._flat import Flat, fill, open_source
from fostore.files._header import KEY, Sealing, text_of
from fostore.files._sink import Sink
from fostore.files._spool import counted, keep, spools_of
from fostore.files.guess import Found, name_of
from fostore.files.npy import DTYPES, header_text, read_header
from fostore.files.table import Batch, Table
from fostore.schema.digest import buffer
from fostore.schema.header import MAX_TEXT, Header
from fostore.schema.row import Array, Column

_ZIP_ERRORS = (zipfile.BadZipFile, zlib.error, EOFError, struct.error, NotImplementedError)
_LOCAL = struct.Struct("<4s5H3L2H")
_MOST_INFLATED = 1100
"""Deflate makes at most 1,032 bytes of one."""
_PIECE_BYTES = 4 << 20


class Npz(FileFormat):
    """See `fostore.files.FileFormat`; written uncompressed, read either way."""

    name = "npz"
    holds = Holds(header=True, dtypes=(*DTYPES, "int64"))

    def read(self, path: Path, hints: Hints) -> Table:
        """The rows of an archive; members are read piece by piece, compressed ones from their beginning."""
        members = _members(path)
        where = str(path)
        if hints.inside is not None and hints.inside.endswith(".npy"):
            raise ArgumentError(f"arrays of {where} are named without '.npy': {sorted(members)}")
        header = members.pop(KEY, None)
        _refuse_objects(members, hints.inside)
        return arrays_table(
            where,
            self.name,
            {name: member.lying for name, member in members.items()},
            hints,
            header_text=None if header is None else header.text(),
        )

    def write(self, path: Path, header: Header, batches: Iterator[Batch], start: int) -> None:
        """Write anew; an archive takes one member at a time, so columns behind the first wait in temporary files."""
        first, *others = header.schema.columns
        header, num_rows, batches = counted(header, batches)
        spools, passing = spools_of(others), Sealing(header, batches)
        with Sink(path) as sink, _new_archive(sink) as archive:
            with _new_member(archive, *_as_array(first, num_rows)) as member:
                for batch in passing:
                    member.write(buffer(batch[0]).data)
                    keep(spools, batch[1:])
            for column, spool in zip(others, spools, strict=True):
                with _new_member(archive, *_as_array(column, num_rows)) as member:
                    for array in spool.batches(max(_PIECE_BYTES // column.row_bytes, 1)):
                        member.write(buffer(array).data)
            text = text_of(passing.sealed())
            with _new_member(archive, KEY, np.dtype("u1"), (len(text),)) as member:
                member.write(text)


def _as_array(column: Column, num_rows: int) -> tuple[str, np.dtype[Any], tuple[int, ...]]:
    """How a column lies in the archive: text as NumPy's bytes, all else as it is stored."""
    if column.dtype == "utf8":
        return column.name, np.dtype(f"S{column.shape[0]}"), (num_rows,)
    return column.name, column.numpy_dtype, (num_rows, *column.shape)


@contextmanager
def _new_archive(sink: Sink) -> Iterator[zipfile.ZipFile]:
    """An archive that gets its end if all went well; zipfile would write it after an error too, and when collected."""
    archive = zipfile.ZipFile(sink, "w")
    try:
        yield archive
        archive.close()
    finally:
        archive.fp = None


@contextmanager
def _new_member(
    archive: zipfile.ZipFile, name: str, dtype: np.dtype[Any], shape: tuple[int, ...]
) -> Iterator[IO[bytes]]:
    """A member that begins with NumPy's header; of no time, so that the same rows make the same file."""
    info, text = zipfile.ZipInfo(f"{name}.npy"), header_text(dtype, shape)
    # Known from the start, so that zipfile makes room for 64 bits where they are needed, and only there.
    info.file_size = len(text) + dtype.itemsize * math.prod(shape)
    with archive.open(info, "w") as member:
        member.write(text)
        yield member


# ------------------------------------------------------------------ reading


@dataclass(frozen=True, slots=True)
class _Member:
    """One array in an archive."""

    path: Path
    info: zipfile.ZipInfo
    flat: Flat
    """Where its numbers lie: in the file where it is not compressed, else in the member."""
    refusal: UnsafeError | None = None
    """Why it is not read, if it is the one that is wanted."""

    @property
    def where(self) -> str:
        return f"{self.path}::{self.info.filename.removesuffix('.npy')}"

    @property
    def lying(self) -> Lying:
        return Lying(Found(name_of(self.flat.dtype), self.flat.shape), self.batches)

    def text(self) -> bytes:
        """The bytes of a small array."""
        dtype, shape = self.flat.dtype, self.flat.shape
        if dtype != np.uint8 or len(shape) != 1 or shape[0] > MAX_TEXT:
            raise FormatError(f"{self.where} is no header: {dtype} {shape}")
        return b"".join(rows.tobytes() for rows in self.batches(0, MAX_TEXT))

    def batches(self, start: int, rows: int) -> Iterator[Array]:
        """Rows from `start` on; reading all of them holds them against the archive's checksum."""
        if self.info.compress_type == zipfile.ZIP_STORED:
            # By its place in the file: zipfile reads what lies before, and reads 4 KiB at a time.
            is_summed = start == 0 and not self.flat.fortran
            return self._summed(rows) if is_summed else self.flat.batches(start, rows)
        if self.flat.fortran:
            raise FormatError(
                f"{self.where} lies in Fortran order and compressed, which cannot be read row by row; "
                "save it anew: np.savez(path, probs=np.ascontiguousarray(rows))"
            )
        return self._inflated(start, rows)

    def _summed(self, rows: int) -> Iterator[Array]:
        fd, _ = open_source(self.path)
        try:
            begin = _data_offset(fd, self.info, self.where)
            crc = zlib.crc32(disk.read_at(fd, begin, self.flat.offset - begin))
        finally:
            os.close(fd)
        for batch in self.flat.batches(0, rows):
            crc = zlib.crc32(buffer(batch).data, crc)
            yield batch
        if crc != self.info.CRC:
            raise DamageError(
                f"{self.where} contradicts the archive's checksum: the file is damaged"
            )

    def _inflated(self, start: int, rows: int) -> Iterator[Array]:
        shape, dtype = self.flat.shape, self.flat.dtype
        skipped = self.flat.offset + start * dtype.itemsize * int(
            np.prod(shape[1:], dtype=np.int64)
        )
        try:
            with zipfile.ZipFile(self.path) as archive, archive.open(self.info) as file:
                file.seek(skipped)  # which inflates what lies before, a piece at a time
                for first in range(start, shape[0], rows):
                    batch = np.empty((min(rows, shape[0] - first), *shape[1:]), dtype)
                    fill(file, buffer(batch).data, self.where)
                    yield batch
                if file.read(1):
                    raise FormatError(f"{self.where} goes on behind its last row")
        except _ZIP_ERRORS as error:
            raise DamageError(f"{self.where} is damaged: {error}") from error


def _members(path: Path) -> dict[str, _Member]:
    fd, size = open_source(path)
    members: dict[str, _Member] = {}
    try:
        with open_zip(path, size) as archive:
            for info in archive.infolist():
                if info.filename.endswith(".npy"):
                    members[info.filename.removesuffix(".npy")] = _member(path, fd, archive, info)
    except _ZIP_ERRORS as error:
        raise FormatError(f"{path} is no archive of arrays, or damaged: {error}") from error
    finally:
        os.close(fd)
    if not members:
        raise FormatError(f"{path} holds no array: members of an .npz end in .npy")
    return members


def _member(path: Path, fd: int, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> _Member:
    where = f"{path}::{info.filename.removesuffix('.npy')}"
    with archive.open(info) as file:
        try:
            dtype, shape, fortran = read_header(file, where)
        except UnsafeError as error:  # refused when it is the one that is wanted
            return _Member(path, info, Flat(path, 0, np.dtype(object), ()), error)
        inner = file.tell()
    is_stored = info.compress_type == zipfile.ZIP_STORED
    begin = _data_offset(fd, info, where) if is_stored else 0
    flat = Flat(path, begin + inner, dtype, shape, fortran)
    flat.check(info.file_size - inner, where)
    if flat.num_bytes != info.file_size - inner:
        raise FormatError(f"{where} has {info.file_size - inner:,} bytes for {flat.num_bytes:,}")
    return _Member(path, info, flat)


def _refuse_objects(members: Mapping[str, _Member], inside: str | None) -> None:
    """Refuse an array of objects that is named, or where there is nothing else."""
    if inside is not None and inside in members:
        refusal = members[inside].refusal
    else:
        refusals = [member.refusal for member in members.values()]
        refusal = refusals[0] if refusals and all(refusals) else None
    if refusal is not None:
        raise refusal


def open_zip(path: Path, size: int) -> zipfile.ZipFile:
    """The directory of an archive, each entry held against the bytes that are there: zipfile believes them.

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
        names: set[str] = set()
        for info in archive.infolist():
            where = f"{path}: member {info.filename!r:.80}"
            if info.filename in names:
                raise FormatError(f"{where} is there twice")
            names.add(info.filename)
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


def _data_offset(fd: int, info: zipfile.ZipInfo, where: str) -> int:
    """Where the data of an uncompressed member begins, which zipfile keeps to itself: behind its own header."""
    raw = disk.read_at(fd, info.header_offset, _LOCAL.size)
    if len(raw) < _LOCAL.size or raw[:4] != b"PK\x03\x04":
        raise FormatError(f"{where} is not where the archive's directory says")
    *_, name, extra = _LOCAL.unpack(raw)
    return int(info.header_offset + _LOCAL.size + name + extra)


FORMAT = Npz()
