"""The .npz format: an archive of NumPy arrays, one a column, and the header beside them as UTF-8 bytes."""

from __future__ import annotations

import os
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fostore import disk
from fostore.errors import ArgumentError, DamageError, FormatError, UnsafeError
from fostore.files import Hints, Holds
from fostore.files._arrays import Lying, arrays_table
from fostore.files._flat import Flat, fill, open_source
from fostore.files._header import KEY, Passing, headed_table, header_of, text_of
from fostore.files._spool import counted
from fostore.files._zip import ZipBuilder, data_offset, open_zip
from fostore.files.guess import Found, name_of
from fostore.files.npy import DTYPES, array_bytes, header_text, read_header
from fostore.files.table import Batch, Table
from fostore.schema.digest import buffer
from fostore.schema.header import MAX_TEXT, Header
from fostore.schema.row import Array, Column

_ZIP_ERRORS = (zipfile.BadZipFile, zlib.error, EOFError, struct.error, NotImplementedError)


class Npz:
    """See `fostore.files.FileFormat`; written uncompressed, read either way."""

    name = "npz"
    holds = Holds(header=True, dtypes=(*DTYPES, "int64"))

    def read(self, path: Path, hints: Hints) -> Table:
        """The rows of an archive; members are read piece by piece, compressed ones from their beginning."""
        members = _members(path)
        where = str(path)
        if hints.inside is not None and hints.inside.endswith(".npy"):
            raise ArgumentError(f"arrays of {where} are named without '.npy': {sorted(members)}")
        text = members[KEY].text() if KEY in members else None
        header = None if text is None else header_of(text, where, hints.inside)
        if header is not None:
            return self._headed(path, members, header)
        arrays = {
            name: Lying(member.found, member.batches)
            for name, member in members.items()
            if name != KEY
        }
        wanted = members.get(hints.inside or "", None)
        if wanted is None and not any(member.error is None for member in members.values()):
            wanted = next(iter(members.values()))
        if wanted is not None:
            wanted.refuse_objects()
        return arrays_table(where, self.name, arrays, hints)

    def write(self, path: Path, header: Header, batches: Iterator[Batch], start: int) -> None:
        """Write anew; members grow side by side."""
        with counted(header, batches) as (counted_header, num_rows, rows):
            passing = Passing(counted_header, rows)
            text = text_of(passing.header)
            arrays = [_array_type(column, num_rows) for column in header.schema.columns]
            arrays.append((np.dtype("u1"), (len(text),)))
            names = [*(column.name for column in header.schema.columns), KEY]
            sizes = [
                (f"{name}.npy", array_bytes(*a)) for name, a in zip(names, arrays, strict=True)
            ]
            with closing(ZipBuilder(path, sizes)) as archive:
                for i, array in enumerate(arrays):
                    archive.write(i, header_text(*array))
                for batch in passing:
                    for i, column in enumerate(batch):
                        archive.write(i, column)
                archive.write(len(arrays) - 1, passing.fill(text))
                archive.end()

    def resume_at(self, path: Path, header: Header) -> int:
        """0: an archive is none before its end."""
        return 0

    def _headed(self, path: Path, members: dict[str, _Member], header: Header) -> Table:
        where = str(path)
        num_rows: int | None = None
        for column in header.schema.columns:
            if column.name not in members:
                raise FormatError(f"{where} has no array {column.name!r}, which its header names")
            member = members[column.name]
            num_rows = member.shape[0] if member.shape and num_rows is None else num_rows
            expected = _array_type(column, num_rows or 0)
            if (member.dtype, member.shape) != expected:
                raise FormatError(
                    f"{where}: array {column.name!r} is {member.dtype} {member.shape}, expected "
                    f"{expected[0]} {expected[1]} by the header"
                )

        def batches(start: int, rows: int) -> Iterator[Batch]:
            columns = header.schema.columns
            pieces = [members[column.name].batches(start, rows) for column in columns]
            for arrays in zip(*pieces, strict=True):
                yield [_stored(a, column) for a, column in zip(arrays, columns, strict=True)]

        return headed_table(where, self.name, header, num_rows, batches)


def _array_type(column: Column, num_rows: int) -> tuple[np.dtype[np.generic], tuple[int, ...]]:
    """How a column lies in the archive: text as NumPy's bytes, all else as it is stored."""
    if column.dtype == "utf8":
        return np.dtype(f"S{column.shape[0]}"), (num_rows,)
    return column.numpy_dtype, (num_rows, *column.shape)


def _stored(array: Array, column: Column) -> Array:
    if column.dtype == "utf8":
        return array.view(np.uint8).reshape(len(array), column.shape[0])
    return array


@dataclass(frozen=True, slots=True)
class _Member:
    """One array in an archive."""

    path: Path
    info: zipfile.ZipInfo
    dtype: np.dtype[np.generic]
    shape: tuple[int, ...]
    fortran: bool
    offset: int
    """Where the data begins: in the file where the member is not compressed, else in the member."""
    error: UnsafeError | None = None

    @property
    def where(self) -> str:
        return f"{self.path}::{self.info.filename.removesuffix('.npy')}"

    @property
    def found(self) -> Found:
        return Found(name_of(self.dtype), self.shape)

    @property
    def is_stored(self) -> bool:
        return self.info.compress_type == zipfile.ZIP_STORED

    def refuse_objects(self) -> None:
        if self.error is not None:
            raise self.error

    def text(self) -> bytes:
        """The bytes of a small array."""
        if self.dtype != np.uint8 or len(self.shape) != 1 or self.shape[0] > MAX_TEXT:
            raise FormatError(f"{self.where} is no header: {self.dtype} {self.shape}")
        return b"".join(part.tobytes() for part in self.batches(0, MAX_TEXT))

    def batches(self, start: int, rows: int) -> Iterator[Array]:
        """Rows from `start` on; reading all of them holds them against the archive's checksum."""
        if self.is_stored:
            flat = Flat(self.path, self.offset, self.dtype, self.shape, self.fortran)
            return (
                self._summed(flat, rows)
                if start == 0 and not self.fortran
                else flat.batches(start, rows)
            )
        if self.fortran:
            raise FormatError(
                f"{self.where} lies in Fortran order and compressed, which cannot be read row by row; "
                "save it anew: np.savez(path, probs=np.ascontiguousarray(rows))"
            )
        return self._inflated(start, rows)

    def _summed(self, flat: Flat, rows: int) -> Iterator[Array]:
        fd, _ = open_source(self.path)
        try:
            begin = data_offset(fd, self.info, self.where)
            crc = zlib.crc32(disk.read_at(fd, begin, self.offset - begin))
        finally:
            os.close(fd)
        for batch in flat.batches(0, rows):
            crc = zlib.crc32(buffer(batch).data, crc)
            yield batch
        if crc != self.info.CRC:
            raise DamageError(
                f"{self.where} contradicts the archive's checksum: the file is damaged"
            )

    def _inflated(self, start: int, rows: int) -> Iterator[Array]:
        row_bytes = self.dtype.itemsize * int(np.prod(self.shape[1:], dtype=np.int64))
        try:
            with zipfile.ZipFile(self.path) as archive, archive.open(self.info) as file:
                self._skip(file, self.offset + start * row_bytes)
                for first in range(start, self.shape[0], rows):
                    count = min(rows, self.shape[0] - first)
                    batch = np.empty((count, *self.shape[1:]), self.dtype)
                    fill(file, buffer(batch).data, self.where)
                    yield batch
                if file.read(1):
                    raise FormatError(f"{self.where} goes on behind its last row")
        except _ZIP_ERRORS as error:
            raise DamageError(f"{self.where} is damaged: {error}") from error

    @staticmethod
    def _skip(file: object, size: int) -> None:
        while size > 0:
            part = file.read(min(size, 1 << 20))  # type: ignore[attr-defined]
            if not part:
                return
            size -= len(part)


def _members(path: Path) -> dict[str, _Member]:
    fd, size = open_source(path)
    found: dict[str, _Member] = {}
    try:
        with open_zip(path, size) as archive:
            for info in archive.infolist():
                if info.filename.endswith(".npy"):
                    found[info.filename.removesuffix(".npy")] = _member(path, fd, archive, info)
    except _ZIP_ERRORS as error:
        raise FormatError(f"{path} is no archive of arrays, or damaged: {error}") from error
    finally:
        os.close(fd)
    if not found:
        raise FormatError(f"{path} holds no array: members of an .npz end in .npy")
    return found


def _member(path: Path, fd: int, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> _Member:
    where = f"{path}::{info.filename.removesuffix('.npy')}"
    stored = info.compress_type == zipfile.ZIP_STORED
    with archive.open(info) as file:
        try:
            dtype, shape, fortran = read_header(file, where)
        except UnsafeError as error:  # refused when it is the one that is wanted
            return _Member(path, info, np.dtype(object), (), False, 0, error)
        inner = file.tell()
    flat = Flat(path, inner, dtype, shape, fortran)
    flat.check(info.file_size - inner, where)
    if flat.num_bytes != info.file_size - inner:
        raise FormatError(f"{where} has {info.file_size - inner:,} bytes for {flat.num_bytes:,}")
    offset = inner + (data_offset(fd, info, where) if stored else 0)
    return _Member(path, info, dtype, shape, fortran, offset)


FORMAT = Npz()
