"""A column of a place whose files cannot be mapped: the rows that are asked for, fetched by ranges of bytes."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from fostore.errors import DamageError
from fostore.formats import ColumnView, Segment
from fostore.formats.views.pieces import ArrayCache, EvenPieces, PieceView, SegmentIndex
from fostore.places.place import Place, Version
from fostore.schema.halves import aligned_empty
from fostore.schema.ranges import Range, describe
from fostore.schema.row import Array, Column

_GAP_BYTES = 64 << 10
"""Rows nearer to each other than this come in one range: to fetch what lies between costs less than a request."""

_RANGE_BYTES = 8 << 20
_BATCH_BYTES = 64 << 20
"""Bytes that are asked for at once, so that a take of everything does not lie in memory twice."""


_ANNOUNCED = 3
"""Announcements that are kept: of a window of rows in use, the next, and one more."""
_ANNOUNCED_BYTES = 256 << 20
"""Of one announcement; a larger one is not worth its memory, and does nothing."""


@dataclass(frozen=True, slots=True)
class _Announced:
    """Rows, increasing, that are on their way."""

    rows: Array
    fetched: Future[Array]


class FetchedView(ColumnView):
    """A `ColumnView` over `segments`, whose paths are names in `place`; nothing is kept of what was fetched.

    What was announced is fetched by a thread of its own, and kept until three more announcements were made.

    Args:
        recheck: raises where another store has taken the place; called when a file is seen for the first time,
            before its rows are given out.
    """

    def __init__(
        self,
        place: Place,
        segments: Sequence[Segment],
        column: Column,
        num_rows: int,
        recheck: Callable[[], None],
    ) -> None:
        self._place, self._column, self._num_rows = place, column, num_rows
        self._segments = tuple(segments)
        self._number_of = SegmentIndex(segments, column).number_of
        self._starts = np.array([segment.start for segment in segments], np.int64)
        self._recheck = recheck
        self._versions: dict[str, Version] = {}
        self._announced: deque[_Announced] = deque(maxlen=_ANNOUNCED)
        self._thread: ThreadPoolExecutor | None = None
        self._process = os.getpid()
        step = max(_RANGE_BYTES // column.row_bytes, 1)
        pieces = EvenPieces(self.read, step, num_rows)
        self._pieces = PieceView(column, num_rows, pieces, ArrayCache(0))

    @property
    def array(self) -> Array:
        """The column as one read-only array; the first time all rows are fetched into a file without a name."""
        return self._pieces.array

    def take(self, rows: Array, out: Array | None = None) -> Array:
        """A fresh, 64-byte-aligned array of the rows, or `out`, filled in the order asked for.

        Raises:
            DamageError: a file is missing or cut, or another store has taken the place.
        """
        rows = np.asarray(rows, dtype=np.int64)
        if out is None:
            out = aligned_empty((len(rows), *self._column.shape), self._column.numpy_dtype)
        left = self._take_announced(rows, out)
        if left is None:
            return self._gather(rows, out)
        if len(left):
            out[left] = self._gather(rows[left], np.empty_like(out[: len(left)]))
        return out

    @property
    def is_cold(self) -> bool:
        """Every row is a request away."""
        return True

    def announce(self, rows: Array) -> None:
        """Begin to fetch rows in a thread; the `take` that asks for them waits for what is on its way."""
        rows = np.unique(rows)
        if not 0 < len(rows) * self._column.row_bytes <= _ANNOUNCED_BYTES:
            return
        if self._process != os.getpid():  # a forked child has none of the threads
            self._announced.clear()
            self._thread, self._process = None, os.getpid()
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, "fostore-announced")
        out = np.empty((len(rows), *self._column.shape), self._column.numpy_dtype)
        self._announced.append(_Announced(rows, self._thread.submit(self._gather, rows, out)))

    def _take_announced(self, rows: Array, out: Array) -> Array | None:
        """Fill in what was announced; the positions of the other rows, or None where that is all of them."""
        if not self._announced or self._process != os.getpid():
            return None
        left = np.arange(len(rows))
        # A list, as in mapping.py: while a tuple is made the collector may let another thread announce.
        for one in reversed(list(self._announced)):
            at = np.searchsorted(one.rows, rows[left])
            is_held = one.rows[np.minimum(at, len(one.rows) - 1)] == rows[left]
            if not is_held.any():
                continue
            try:
                array = one.fetched.result()
            except Exception:  # whoever asks for the rows again is told why they do not come
                continue
            out[left[is_held]] = array[at[is_held]]
            left = left[~is_held]
            if not len(left):
                break
        return left

    def _gather(self, rows: Array, out: Array) -> Array:
        """Fetch rows into `out`."""
        order = np.argsort(rows, kind="stable")
        ordered = rows[order]
        numbers = self._number_of(ordered)
        row_bytes = self._column.row_bytes
        step = max(_RANGE_BYTES // row_bytes, 1)
        cut = (numbers[1:] != numbers[:-1]) | ((np.diff(ordered) - 1) * row_bytes > _GAP_BYTES)
        pieces = (
            ordered - self._starts[numbers]
        ) // step  # of its unit: one that is small is never cut
        cut |= pieces[1:] != pieces[:-1]
        groups = np.split(np.arange(len(rows)), np.flatnonzero(cut) + 1) if len(rows) else []
        spans = [int(ordered[g[-1]] - ordered[g[0]] + 1) * row_bytes for g in groups]
        batches = np.cumsum([0, *spans]) // _BATCH_BYTES
        for batch in range(int(batches[-1]) + 1 if groups else 0):
            some = groups[
                np.searchsorted(batches[:-1], batch) : np.searchsorted(batches[:-1], batch, "right")
            ]
            ranges = [(int(ordered[g[0]]), int(ordered[g[-1]]) + 1) for g in some]
            segments = [self._segments[numbers[group[0]]] for group in some]
            fetched = self._fetch(segments, ranges)
            for group, (start, _), array in zip(some, ranges, fetched, strict=True):
                out[order[group]] = array[ordered[group] - start]
        return out

    def read(self, start: int, stop: int) -> Array:
        """The rows `[start, stop)`, a copy."""
        return self.take(np.arange(start, stop))

    def _fetch(self, segments: Sequence[Segment], ranges: Sequence[Range]) -> list[Array]:
        """The rows of each range, which lie in the segment beside it."""
        row_bytes = self._column.row_bytes
        names = [str(segment.path) for segment in segments]
        asked = []
        for name, segment, (start, stop) in zip(names, segments, ranges, strict=True):
            offset = segment.offset + (start - segment.start) * row_bytes
            asked.append((name, offset, offset + (stop - start) * row_bytes))
        try:
            pieces = self._place.read_many(asked)
        except FileNotFoundError as error:
            self._recheck()
            raise DamageError(
                f"{error}, and with it the {describe(ranges)}", tuple(ranges)
            ) from error
        for name, rows, (_, first, last), (data, _) in zip(
            names, ranges, asked, pieces, strict=True
        ):
            if len(data) != last - first:
                self._recheck()
                message = f"{self._place}/{name} was cut, and with it the {describe([rows])}"
                raise DamageError(message, (rows,))
        # Pairs: a file may be replaced between two ranges of it.
        seen = {(name, version) for name, (_, version) in zip(names, pieces, strict=True)}
        if not seen <= self._versions.items():
            # After the rows were read: if the store is still the one that was opened, so are they.
            self._recheck()
            for name, version in seen:
                if self._versions.setdefault(name, version) != version:
                    raise DamageError(
                        f"{self._place}/{name} is not the file any more that it was: a writer has gone on "
                        "(refresh the store), or another store has taken its place (open it again)",
                        tuple(ranges),
                    )
        dtype, shape = self._column.numpy_dtype, self._column.shape
        return [np.frombuffer(data, dtype).reshape(-1, *shape) for data, _ in pieces]
