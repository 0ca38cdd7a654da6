"""Columns as arrays for reading: the files of a column mapped one after another into one address range.

A reservation without access is made first, and every file is mapped into its place: the store then is
one contiguous array, and a batch is one gather. Rows that no file holds stay without access.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import stat
import sys
import weakref
from collections import OrderedDict
from collections.abc import Sequence
from time import perf_counter
from typing import Any

import numpy as np

from fostore import disk
from fostore.errors import ArgumentError, DamageError, UncommittedError, UnsafeError
from fostore.formats import ColumnView, Segment, stranger
from fostore.formats.views.gather import gather_of
from fostore.formats.views.guard import Guard
from fostore.formats.views.paging import SLOW_GATHER, Paging, paging_of
from fostore.schema.halves import aligned_empty
from fostore.schema.ranges import describe
from fostore.schema.row import Array, Column

MAX_SEGMENTS = 30_000
"""Files in one mapping: the kernel allows a process about 65,000 in all."""

_OPEN_MAPS = 64
_COPIED_BYTES = 4 << 20
_MAX_SIZE = 1 << 60
_HUGE_PAGE = 2 << 20
_PROT_NONE, _MAP_FIXED = 0, 0x10
_FAILED = ctypes.c_void_p(-1).value
_MAP_NORESERVE = {"linux": 0x4000, "darwin": 0x40}


def view_of(segments: Sequence[Segment], column: Column, num_rows: int) -> ColumnView:
    """The rows of a column that lie in `segments` (in order), as an array of `num_rows` rows.

    No file is mapped before it is known to hold its rows. One address range where the system can,
    else one map a file: the same results, slower gathers.

    Raises:
        ArgumentError: segments out of order, or beyond `num_rows`.
        DamageError: a file is missing or too short; names its rows.
        UnsafeError: a link, or no regular file.
    """
    end = 0
    for segment in segments:
        if not end <= segment.start < segment.stop <= num_rows:
            raise ArgumentError(
                f"{segment} follows row {end} of {num_rows} in column {column.name!r}"
            )
        end = segment.stop
    if _mappable(segments, column.row_bytes):
        try:
            return MappedView(segments, column, num_rows)
        except OSError as error:
            if error.errno not in (errno.ENOMEM, errno.EINVAL):
                raise
    return SegmentView(segments, column, num_rows)


class MappedView:
    """A column as one read-only array over its mapped files.

    The mapping lives as long as any array that was made from it. Asking for rows outside the
    segments ends the process: callers check what is committed.
    """

    def __init__(self, segments: Sequence[Segment], column: Column, num_rows: int) -> None:
        dtype = column.numpy_dtype
        if num_rows == 0:
            self._array = _read_only(np.empty((0, *column.shape), dtype))
            self._gather = gather_of(self._array)
            self._paging: Paging | None = None
            return
        first = segments[0].offset - segments[0].start * column.row_bytes if segments else 0
        shape = (num_rows, *column.shape)
        mapping = _Mapping(num_rows * column.row_bytes, shape, dtype.str, first)
        row_bytes = column.row_bytes
        for segment in segments:
            fd = _open_checked(segment, row_bytes)
            try:
                mapping.place(fd, segment, row_bytes)
            finally:
                os.close(fd)
        self._array = np.asarray(mapping)
        self._gather = gather_of(self._array)
        self._paging = paging_of(self._array)

    @property
    def array(self) -> Array:
        """The column (rows, *shape), read-only; nothing is read by asking for it."""
        self._expect_order()
        return self._array

    def take(self, rows: Array, out: Array | None = None) -> Array:
        """A fresh, 64-byte-aligned array of the rows, or `out`, filled in the order asked for."""
        paging = self._paging
        if paging is None:
            return self._gather(rows, out)
        begin = perf_counter()
        if paging.residency.is_cold:
            if out is None:
                out = aligned_empty((len(rows), *self._array.shape[1:]), self._array.dtype)
            for piece in paging.announced(rows):
                self._gather(rows[piece], out[piece])
        else:
            out = self._gather(rows, out)
        seconds = perf_counter() - begin
        if seconds > SLOW_GATHER:
            paging.gathered(len(rows), seconds)
        return out

    @property
    def is_cold(self) -> bool:
        """Whether `announce` does something: rows were not resident of late, or nothing is known yet."""
        return self._paging is not None and self._paging.residency.is_cold

    def announce(self, rows: Array) -> None:
        """Ask the system to begin reading rows of a batch to come, where they are not resident."""
        if self._paging is not None:
            self._paging.announce(rows)

    def read(self, start: int, stop: int) -> Array:
        """The rows `[start, stop)`, without a copy."""
        self._expect_order()
        return self._array[start:stop]

    def _expect_order(self) -> None:
        if self._paging is not None:
            self._paging.expect_random(False)


class SegmentView:
    """A column as one map a file, for systems and layouts where one address range cannot be had."""

    def __init__(self, segments: Sequence[Segment], column: Column, num_rows: int) -> None:
        self._segments = tuple(segments)
        self._column = column
        self._num_rows = num_rows
        self._starts = np.array([segment.start for segment in segments], dtype=np.int64)
        self._maps: OrderedDict[int, Array] = OrderedDict()
        self._whole: Array | None = None
        self._guard = Guard()
        self._files: list[tuple[int, int]] = []  # what the paths named, since others may take them
        for segment in segments:
            fd = _open_checked(segment, column.row_bytes)
            self._files.append(_identity(fd))
            os.close(fd)

    @property
    def array(self) -> Array:
        """The column as one read-only array; of several files it is copied to a temporary one first."""
        if self._num_rows == 0:
            return _read_only(np.empty((0, *self._column.shape), self._column.numpy_dtype))
        if len(self._segments) == 1 and self._segments[0].start == 0:
            return self._map(0)[: self._num_rows]
        if self._whole is None:
            from fostore.formats.views.spooled import spooled  # rare

            step = max(_COPIED_BYTES // self._column.row_bytes, 1)
            self._whole = spooled(self.read, self._num_rows, self._column, step)
        return self._whole

    def take(self, rows: Array, out: Array | None = None) -> Array:
        """A fresh, 64-byte-aligned array of the rows, or `out`, filled in the order asked for."""
        rows = np.asarray(rows, dtype=np.int64)
        if out is None:
            out = aligned_empty((len(rows), *self._column.shape), self._column.numpy_dtype)
        if len(rows) == 0:
            return out
        if len(self._segments) == 1:
            self._check_in(0, int(rows.min()), int(rows.max()) + 1)
            return gather_of(self._map(0))(rows - self._segments[0].start, out)
        order = np.argsort(rows, kind="stable")
        ordered = rows[order]
        places = np.searchsorted(self._starts, ordered, side="right") - 1
        cuts = np.flatnonzero(np.diff(places)) + 1
        for group in np.split(np.arange(len(rows)), cuts):
            place = int(places[group[0]])
            self._check_in(place, int(ordered[group[0]]), int(ordered[group[-1]]) + 1)
            local = ordered[group] - self._segments[place].start
            out[order[group]] = self._map(place)[local]
        return out

    @property
    def is_cold(self) -> bool:
        """False: nothing is announced here."""
        return False

    def announce(self, rows: Array) -> None:
        """Nothing."""

    def read(self, start: int, stop: int) -> Array:
        """The rows `[start, stop)`: a view where one file holds them, else a copy."""
        if start >= stop:
            return np.empty((0, *self._column.shape), self._column.numpy_dtype)
        place = int(np.searchsorted(self._starts, start, side="right")) - 1
        if place >= 0 and stop <= self._segments[place].stop:
            first = self._segments[place].start
            return self._map(place)[start - first : stop - first]
        return self.take(np.arange(start, stop, dtype=np.int64))

    def _check_in(self, place: int, start: int, stop: int) -> None:
        if place < 0 or start < self._segments[place].start or stop > self._segments[place].stop:
            raise UncommittedError(
                f"column {self._column.name!r} does not hold all of the {describe([(start, stop)])}"
            )

    def _map(self, place: int) -> Array:
        """One file's rows, from a bounded number of maps that stay open."""
        with self._guard:
            rows = self._maps.get(place)
            if rows is not None:
                self._maps.move_to_end(place)
                return rows
        rows = _map_segment(self._segments[place], self._column, self._files[place])
        with self._guard:
            self._maps[place] = rows
            while len(self._maps) > _OPEN_MAPS:
                self._maps.popitem(last=False)
        return rows


class ArrayView:
    """A column that is in memory already."""

    def __init__(self, array: Array) -> None:
        self._array = _read_only(array)
        self._gather = gather_of(self._array)

    @property
    def array(self) -> Array:
        """The column, read-only."""
        return self._array

    def take(self, rows: Array, out: Array | None = None) -> Array:
        """A fresh, 64-byte-aligned array of the rows, or `out`, filled in the order asked for."""
        return self._gather(rows, out)

    @property
    def is_cold(self) -> bool:
        """False: nothing is announced here."""
        return False

    def announce(self, rows: Array) -> None:
        """Nothing."""

    def read(self, start: int, stop: int) -> Array:
        """The rows `[start, stop)`, without a copy."""
        return self._array[start:stop]


def _read_only(array: Array) -> Array:
    view = array.view()
    view.flags.writeable = False
    return view


def _open_checked(segment: Segment, row_bytes: int) -> int:
    """A descriptor of the file, which is there, is a plain file, and holds all the rows."""
    path, start, stop = segment.path, segment.start, segment.stop
    try:
        fd = disk.open_file(path)
    except FileNotFoundError as error:
        message = f"{path} is missing, and with it the {describe([(start, stop)])}"
        raise DamageError(message, ((start, stop),)) from error
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise stranger(path, "file") from error
        if error.errno == errno.ENXIO:  # a socket, or a device that is not there
            raise UnsafeError(f"{path} is not a regular file") from error
        raise
    try:
        found = os.fstat(fd)
        needed = segment.offset + (stop - start) * row_bytes
        if not stat.S_ISREG(found.st_mode):
            raise UnsafeError(f"{path} is not a regular file")
        if found.st_size < needed:
            raise DamageError(
                f"{path} has {found.st_size:,} bytes, and the {describe([(start, stop)])} need "
                f"{needed:,}: it was cut",
                ((start, stop),),
            )
    except BaseException:
        os.close(fd)
        raise
    return fd


def _identity(fd: int) -> tuple[int, int]:
    found = os.fstat(fd)
    return found.st_dev, found.st_ino


def _map_segment(segment: Segment, column: Column, file: tuple[int, int]) -> Array:
    message = (
        f"{segment.path} is not the file any more that it was: a writer has gone on (refresh the store), "
        "or another store has taken its place (open it again)"
    )
    rows = ((segment.start, segment.stop),)
    try:
        fd = _open_checked(segment, column.row_bytes)
    except DamageError as error:
        raise DamageError(message, rows) from error
    try:
        if _identity(fd) != file:
            raise DamageError(message, rows)
        size = (segment.stop - segment.start) * column.row_bytes
        skip = segment.offset % mmap.ALLOCATIONGRANULARITY
        mapped = mmap.mmap(fd, skip + size, access=mmap.ACCESS_READ, offset=segment.offset - skip)
    finally:
        os.close(fd)
    flat = np.frombuffer(mapped, column.numpy_dtype, size // column.numpy_dtype.itemsize, skip)
    return flat.reshape(-1, *column.shape)


def _mappable(segments: Sequence[Segment], row_bytes: int) -> bool:
    """Whether every file falls on whole pages of one address range, and no page belongs to two."""
    if sys.platform not in _MAP_NORESERVE or len(segments) > MAX_SEGMENTS or _libc() is None:
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
        self, size: int, shape: tuple[int, ...], typestr: str, file_offset: int = 0
    ) -> None:
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE[sys.platform]
        size = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE + _HUGE_PAGE
        start = _call_mmap(None, size, _PROT_NONE, flags, -1, 0)
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
        weakref.finalize(self, _call_munmap, start, size).atexit = False

    def place(self, fd: int, segment: Segment, row_bytes: int) -> None:
        """Map a file's rows into their place."""
        skip = segment.offset % mmap.PAGESIZE
        address = self._base + segment.start * row_bytes - skip
        size = (segment.stop - segment.start) * row_bytes + skip
        flags = mmap.MAP_SHARED | _MAP_FIXED
        _call_mmap(address, size, mmap.PROT_READ, flags, fd, segment.offset - skip)


def _libc() -> Any:
    """The C library with `mmap` and `munmap`, or None."""
    global _loaded
    if _loaded is None:
        try:
            libc: Any = ctypes.CDLL(None, use_errno=True)
            # off_t has 64 bits here: 32-bit systems have a second call for that.
            name = "mmap64" if hasattr(libc, "mmap64") else "mmap"
            libc.fostore_mmap = getattr(libc, name)
            libc.fostore_mmap.restype = ctypes.c_void_p
            libc.fostore_mmap.argtypes = [
                ctypes.c_void_p,
                ctypes.c_size_t,
                ctypes.c_int,
                ctypes.c_int,
                ctypes.c_int,
                ctypes.c_int64,
            ]
            libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
            _loaded = libc
        except (OSError, AttributeError, TypeError):
            _loaded = False
    return _loaded or None


_loaded: Any = None


def _call_mmap(
    address: int | None, size: int, protection: int, flags: int, fd: int, offset: int
) -> int:
    if size >= _MAX_SIZE:  # ctypes would cut the number silently
        raise OSError(errno.ENOMEM, f"mmap of {size:,} bytes")
    result = _libc().fostore_mmap(address, size, protection, flags, fd, offset)
    if result is None or result == _FAILED:
        code = ctypes.get_errno()
        raise OSError(code, f"mmap of {size:,} bytes: {os.strerror(code)}")
    return int(result)


def _call_munmap(address: int, size: int) -> None:
    _libc().munmap(address, size)
