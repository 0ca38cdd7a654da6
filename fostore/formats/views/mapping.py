"""Files mapped for reading: one after another into one range of addresses, or one alone.

A reservation without access is made first, and every file is mapped into its place: the column then is
one contiguous array, and a batch is one gather. Rows that no file holds stay without access.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import sys
import weakref
from collections.abc import Sequence

import numpy as np

from fostore import disk
from fostore.errors import DamageError
from fostore.formats import Segment
from fostore.formats.views.libc import libc
from fostore.schema.ranges import describe
from fostore.schema.row import Array, Column

MAX_SEGMENTS = 30_000
"""Files that are mapped at once in all columns of all stores: the kernel allows a process about 65,000 mappings."""
_mapped: dict[int, int] = {}
"""How many files each address range maps, by where it begins."""

_MAX_SIZE = 1 << 60
_HUGE_PAGE = 2 << 20
_PROT_NONE, _MAP_FIXED = 0, 0x10
_FAILED = ctypes.c_void_p(-1).value
_MAP_NORESERVE = {"linux": 0x4000, "darwin": 0x40}


def map_files(segments: Sequence[Segment], column: Column, num_rows: int) -> Array:
    """The rows of `segments` as one read-only array (num_rows, *shape), each file checked before it is mapped.

    The mapping lives as long as any array that was made from it. Reading rows outside the segments
    ends the process, so that no silent zero is ever taken for one: callers check what is committed.

    Raises:
        OSError: the system has no room for it.
        DamageError, UnsafeError: as `open_segment` does.
    """
    row_bytes = column.row_bytes
    first = segments[0].offset - segments[0].start * row_bytes if segments else 0
    shape = (num_rows, *column.shape)
    dtype = column.numpy_dtype.str
    mapping = _Mapping(num_rows * row_bytes, shape, dtype, first, len(segments))
    for segment in segments:
        fd = open_segment(segment, row_bytes)
        try:
            mapping.place(fd, segment, row_bytes)
        finally:
            os.close(fd)
    return np.asarray(mapping)


def map_file(fd: int, segment: Segment, column: Column) -> Array:
    """The rows of one segment, wherever in its file they begin; `fd` may be closed afterwards."""
    size = (segment.stop - segment.start) * column.row_bytes
    skip = segment.offset % mmap.ALLOCATIONGRANULARITY
    mapped = mmap.mmap(fd, skip + size, access=mmap.ACCESS_READ, offset=segment.offset - skip)
    flat = np.frombuffer(mapped, column.numpy_dtype, size // column.numpy_dtype.itemsize, skip)
    return flat.reshape(-1, *column.shape)


def open_segment(segment: Segment, row_bytes: int) -> int:
    """A descriptor of the file, which is there, is a plain file, and holds all the rows.

    Raises:
        DamageError: the file is missing or too short; names its rows.
        UnsafeError: a link, or no regular file.
    """
    path, rows = segment.path, (segment.start, segment.stop)
    try:
        fd, size = disk.open_regular(path)
    except FileNotFoundError as error:
        message = f"{path} is missing, and with it the {describe([rows])}"
        raise DamageError(message, (rows,)) from error
    needed = segment.offset + (segment.stop - segment.start) * row_bytes
    if size < needed:  # mapped all the same, it would end the process at its first missing row
        os.close(fd)
        raise DamageError(
            f"{path} has {size:,} bytes, and the {describe([rows])} need {needed:,}: it was cut",
            (rows,),
        )
    return fd


def is_mappable(segments: Sequence[Segment], row_bytes: int) -> bool:
    """Whether every file falls on whole pages of one address range, and no page belongs to two."""
    # A list, not a tuple: the collector may run while a tuple is made, and give mappings back within.
    if len(segments) + sum(list(_mapped.values())) > MAX_SEGMENTS or libc() is None:
        return False
    page = mmap.PAGESIZE
    last_end, last_shift, last_path = 0, 0, segments[0].path if segments else ""
    for segment in segments:
        position = segment.start * row_bytes
        shift = position - segment.offset
        if shift % page:
            return False
        if position // page * page < last_end and (shift, segment.path) != (last_shift, last_path):
            return False
        last_end = -(-segment.stop * row_bytes // page) * page
        last_shift, last_path = shift, segment.path
    return True


class _Mapping:
    """An address range of this process, given back when the last array over it is gone."""

    def __init__(
        self, size: int, shape: tuple[int, ...], typestr: str, file_offset: int, files: int
    ) -> None:
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE[sys.platform]
        size = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE + _HUGE_PAGE
        start = _map(None, size, _PROT_NONE, flags, -1, 0)
        # Huge pages of the page cache can be mapped as such only where address and offset in the
        # file agree modulo their size: measured 1.3 times faster gathers of 2,000-byte rows.
        phase = file_offset // mmap.PAGESIZE * mmap.PAGESIZE
        self._base = start + (phase - start) % _HUGE_PAGE
        self.__array_interface__ = {
            "data": (self._base, True),
            "shape": shape,
            "typestr": typestr,
            "version": 3,
        }
        # Not at exit: another thread may still read, and the kernel takes everything back anyway.
        weakref.finalize(self, _unmap, start, size).atexit = False
        _mapped[start] = files

    def place(self, fd: int, segment: Segment, row_bytes: int) -> None:
        """Map a file's rows into their place."""
        skip = segment.offset % mmap.PAGESIZE
        address = self._base + segment.start * row_bytes - skip
        size = (segment.stop - segment.start) * row_bytes + skip
        # Shared, not private: what a writer adds behind the rows stays one copy in the page cache.
        flags = mmap.MAP_SHARED | _MAP_FIXED
        _map(address, size, mmap.PROT_READ, flags, fd, segment.offset - skip)


def _unmap(start: int, size: int) -> None:
    del _mapped[start]  # first: another thread may be given the same addresses at once
    libc().munmap(start, size)


def _map(address: int | None, size: int, protection: int, flags: int, fd: int, offset: int) -> int:
    if size >= _MAX_SIZE:  # ctypes would cut the number silently
        raise OSError(errno.ENOMEM, f"mmap of {size:,} bytes")
    result = libc().map_memory(address, size, protection, flags, fd, offset)
    if result is None or result == _FAILED:
        code = ctypes.get_errno()
        raise OSError(code, f"mmap of {size:,} bytes: {os.strerror(code)}")
    return int(result)
