"""Columns as arrays for reading: a column is one array wherever it can be, and pieces where it cannot."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from time import perf_counter
from typing import Any

import numpy as np

from fostore.errors import ArgumentError, DamageError
from fostore.formats import ColumnView, Segment
from fostore.formats.views.gather import gather_of
from fostore.formats.views.mapping import is_mappable, map_file, map_files, open_segment
from fostore.formats.views.paging import SLOW_GATHER, Paging, paging_of
from fostore.formats.views.pieces import ArrayCache, PieceView
from fostore.schema.aligned import aligned_empty
from fostore.schema.row import Array, Column

_OPEN_MAPS = 64


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
        # Mapped anyway, such a file would overwrite whatever lies behind the address range.
        if not end <= segment.start < segment.stop <= num_rows:
            raise ArgumentError(
                f"{segment} follows row {end} of {num_rows} in column {column.name!r}"
            )
        end = segment.stop
    if is_mappable(segments, column.row_bytes):
        try:
            return mapped_view(segments, column, num_rows)
        except OSError as error:
            if error.errno not in (errno.ENOMEM, errno.EINVAL):
                raise
    return segment_view(segments, column, num_rows)


def mapped_view(segments: Sequence[Segment], column: Column, num_rows: int) -> ArrayView:
    """A column as one array over its mapped files; see `map_files`."""
    if num_rows == 0:
        return ArrayView(np.empty((0, *column.shape), column.numpy_dtype))
    array = map_files(segments, column, num_rows)
    return ArrayView(array, paging_of(array))


def segment_view(segments: Sequence[Segment], column: Column, num_rows: int) -> ColumnView:
    """A column as one map a file, for systems and layouts where one address range cannot be had."""
    if num_rows == 0:
        return ArrayView(np.empty((0, *column.shape), column.numpy_dtype))
    files = _Files(segments, column)
    if len(segments) == 1 and (segments[0].start, segments[0].stop) == (0, num_rows):
        array = files.load(0)  # a file whose rows begin inside a page is one array all the same
        return ArrayView(array, paging_of(array))
    # A few maps stay open, whatever they hold: each takes one of the process's descriptors.
    return PieceView(column, num_rows, files, ArrayCache(1 << 62, _OPEN_MAPS))


class ArrayView:
    """A column that is one array, in memory or over mapped files, whose `paging` announces cold rows."""

    def __init__(self, array: Array, paging: Paging | None = None) -> None:
        self._array = array.view()
        self._array.flags.writeable = False
        self._gather = gather_of(self._array)
        self._paging = paging

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


class _Files:
    """The files of a column as pieces (see `Pieces`), each mapped when its rows are asked for."""

    def __init__(self, segments: Sequence[Segment], column: Column) -> None:
        self._segments, self._column = tuple(segments), column
        self._starts = np.array([segment.start for segment in segments], dtype=np.int64)
        self._files: list[tuple[int, int]] = []  # what the paths named, since others may take them
        for segment in segments:
            fd = open_segment(segment, column.row_bytes)
            self._files.append(_identity(fd))
            os.close(fd)

    def number_of(self, rows: Any) -> Any:
        return np.maximum(np.searchsorted(self._starts, rows, side="right") - 1, 0)

    def start_of(self, number: int) -> int:
        return self._segments[number].start

    def load(self, number: int) -> Array:
        segment = self._segments[number]
        rows = ((segment.start, segment.stop),)
        message = (
            f"{segment.path} is not the file any more that it was: a writer has gone on (refresh the store), "
            "or another store has taken its place (open it again)"
        )
        try:
            fd = open_segment(segment, self._column.row_bytes)
        except DamageError as error:
            raise DamageError(message, rows) from error
        try:
            if _identity(fd) != self._files[number]:
                raise DamageError(message, rows)
            return map_file(fd, segment, self._column)
        finally:
            os.close(fd)


def _identity(fd: int) -> tuple[int, int]:
    status = os.fstat(fd)
    return status.st_dev, status.st_ino
