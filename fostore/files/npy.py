"""The .npy format: one NumPy array, rows alone (NumPy Enhancement Proposal 1)."""

from __future__ import annotations

import io
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy_format

from fostore.errors import FormatError, UnsafeError, UnsupportedError
from fostore.files import FileFormat, Hints, Holds, refuse_inside
from fostore.files._flat import Flat, open_source
from fostore.files._sink import Sink
from fostore.files.array import FileArray, name_of
from fostore.files.guess import plain_table
from fostore.files.table import Batch, Table, check_count
from fostore.schema.header import Header

_MAX_HEADER = 1 << 16
_PREFIX = 8  # the magic and the version
_ALIGN = 64
_ROW_DIGITS = 20
DTYPES = ("float16", "float32", "float64", "uint8", "uint16", "uint32", "uint64")


class _Npy(FileFormat):
    """See `fostore.files.FileFormat`."""

    name = "npy"
    holds = Holds(header=False, dtypes=DTYPES)

    def read(self, path: Path, hints: Hints) -> Table:
        """The rows of an array in either order of axes and of bytes; an array of objects is refused."""
        refuse_inside(path, hints)
        flat = flat_of(path)
        array = FileArray(name_of(flat.dtype), flat.shape, flat.batches)
        return plain_table(str(path), self.name, array, hints)

    def write(self, path: Path, header: Header, batches: Iterator[Batch], start: int) -> None:
        """Write or go on; where the number of rows is not known, the header gets it at the end."""
        (column,) = header.schema.content
        first = header_text(column.numpy_dtype, (header.num_samples or 0, *column.shape))
        kept = len(first) + start * column.row_bytes if start else 0
        with Sink(path, kept) as sink:
            if not start:
                sink.write(first)
            count = start
            for batch in batches:
                sink.write(batch[0])
                count += len(batch[0])
            check_count(count, header.num_samples)
            # The same bytes once more, but of a stream, whose rows are counted only now.
            sink.fill(header_text(column.numpy_dtype, (count, *column.shape)), 0)

    def resume_at(self, path: Path, header: Header) -> int:
        """Whole rows behind the header, if it is the one that would be written."""
        (column,) = header.schema.content
        first = header_text(column.numpy_dtype, (header.num_samples or 0, *column.shape))
        fd, size = open_source(path)
        with os.fdopen(fd, "rb") as file:
            if file.read(len(first)) != first:
                return 0
        rows = (size - len(first)) // column.row_bytes
        return rows if header.num_samples is None else min(rows, header.num_samples)


def flat_of(path: Path, most: int | None = None) -> Flat:
    """Where the array of a file lies.

    Raises:
        UnsafeError: fewer bytes are there than its header claims, or the file has more than `most`.
        FormatError: no array, or one of objects.
    """
    fd, size = open_source(path)
    with os.fdopen(fd, "rb") as file:
        if most is not None and size > most:
            raise UnsafeError(f"{path} has {size:,} bytes, expected at most {most:,}")
        dtype, shape, fortran = read_header(file, str(path))
        flat = Flat(path, file.tell(), dtype, shape, fortran)
    flat.check(size - flat.offset, str(path))
    return flat


def read_header(file: IO[bytes], where: str) -> tuple[np.dtype[Any], tuple[int, ...], bool]:
    """The dtype, shape and order of an array, whose data then begins at the file's position.

    Raises:
        FormatError: this is no .npy, or its header is not what NumPy writes.
        UnsafeError: objects, which only a pickle could restore, or a huge header.
        UnsupportedError: records, text, or numbers that no store has.
    """
    prefix = file.read(_PREFIX)
    if prefix[:6] != npy_format.MAGIC_PREFIX or len(prefix) < _PREFIX:
        hint = ""
        if prefix[:1] == b"\x80":
            hint = "; it is a pickle, which may run code: load it where you trust it and np.save the array"
        raise FormatError(f"{where} is no .npy file: it begins with {prefix[:6]!r}{hint}")
    version = prefix[6], prefix[7]
    if version not in ((1, 0), (2, 0), (3, 0)):
        raise UnsupportedError(f"{where} has version {version} of .npy, expected 1.0 to 3.0")
    width, code = (2, "<H") if version == (1, 0) else (4, "<I")
    length = file.read(width)
    size = struct.unpack(code, length)[0] if len(length) == width else _MAX_HEADER + 1
    if size > _MAX_HEADER:
        raise UnsafeError(f"{where} is cut, or claims a header of more than {_MAX_HEADER:,} bytes")
    text = io.BytesIO(length + file.read(size))
    read = npy_format.read_array_header_1_0 if width == 2 else npy_format.read_array_header_2_0
    try:
        shape, fortran, dtype = read(text, max_header_size=_MAX_HEADER)
    except Exception as error:  # a stranger's text makes the parsers fail in many ways
        raise FormatError(f"{where} has a header that is none: {error}") from error
    if dtype.hasobject:
        raise UnsafeError(
            f"{where} holds Python objects, that is a pickle, which may run code. Load it where you "
            "trust it, with np.load(path, allow_pickle=True), and save numbers: np.save(path, "
            "np.stack(list(rows)).astype('float32'))"
        )
    if dtype.names is not None or dtype.subdtype is not None:
        raise UnsupportedError(f"{where} holds records ({dtype}), expected one number an entry")
    if any(type(size) is not int or size < 0 for size in shape):
        raise FormatError(f"{where} has the shape {shape}")
    return dtype, shape, bool(fortran)


def header_text(dtype: np.dtype[Any], shape: tuple[int, ...]) -> bytes:
    """A header of version 1.0, of one length whatever the number of rows."""
    rows = str(shape[0]) + ("," if len(shape) == 1 else "")
    others = "".join(f", {size}" for size in shape[1:])
    text = f"{{'descr': {dtype.str!r}, 'fortran_order': False, 'shape': ({rows}{others}), }}"
    # Room for the largest number of rows, as NumPy leaves it: a stream's is written over what stands here.
    longest = len(text) - len(str(shape[0])) + _ROW_DIGITS
    size = _PREFIX + 2 + longest + 1
    padded = text.ljust(longest + -size % _ALIGN) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(padded)) + padded.encode("latin-1")


FORMAT = _Npy()
