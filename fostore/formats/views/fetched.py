"""A column of a place whose files cannot be mapped: the rows that are asked for, fetched by ranges of bytes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from fostore.errors import DamageError, UncommittedError
from fostore.formats import Segment
from fostore.formats.views.pieces import ArrayCache, EvenPieces, PieceView
from fostore.places.place import Place, Version
from fostore.schema.aligned import aligned_empty
from fostore.schema.ranges import Range, describe
from fostore.schema.row import Array, Column

_GAP_BYTES = 64 << 10
"""Rows nearer to each other than this come in one range: to fetch what lies between costs less than a request."""

_RANGE_BYTES = 8 << 20
_BATCH_BYTES = 64 << 20
"""Bytes that are asked for at once, so that a take of everything does not lie in memory twice."""


class FetchedView:
    """A `ColumnView` over `segments`, whose paths are names in `place`; nothing is kept of what was fetched.

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
        self._starts = np.array([segment.start for segment in segments], np.int64)
        self._recheck = recheck
        self._versions: dict[str, Version] = {}
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
        order = np.argsort(rows, kind="stable")
        ordered = rows[order]
        numbers = np.searchsorted(self._starts, ordered, side="right") - 1
        row_bytes = self._column.row_bytes
        step = max(_RANGE_BYTES // row_bytes, 1)
        cut = (numbers[1:] != numbers[:-1]) | ((np.diff(ordered) - 1) * row_bytes > _GAP_BYTES)
        cut |= ordered[1:] // step != ordered[:-1] // step
        groups = np.split(np.arange(len(rows)), np.flatnonzero(cut) + 1) if len(rows) else []
        at_once = max(_BATCH_BYTES // (step * row_bytes), 1)
        for first in range(0, len(groups), at_once):
            some = groups[first : first + at_once]
            ranges = [(int(ordered[g[0]]), int(ordered[g[-1]]) + 1) for g in some]
            segments = [
                self._segment(int(numbers[g[0]]), r) for g, r in zip(some, ranges, strict=True)
            ]
            fetched = self._fetch(segments, ranges)
            for group, (start, _), array in zip(some, ranges, fetched, strict=True):
                out[order[group]] = array[ordered[group] - start]
        return out

    @property
    def is_cold(self) -> bool:
        """False: nothing is announced here."""
        return False

    def announce(self, rows: Array) -> None:
        """Nothing."""

    def read(self, start: int, stop: int) -> Array:
        """The rows `[start, stop)`, a copy."""
        return self.take(np.arange(start, stop))

    def _segment(self, number: int, rows: Range) -> Segment:
        if number >= 0:
            segment = self._segments[number]
            if segment.start <= rows[0] and rows[1] <= segment.stop:
                return segment
        raise UncommittedError(
            f"column {self._column.name!r} does not hold all of the {describe([rows])}"
        )

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
        seen = {name: version for name, (_, version) in zip(names, pieces, strict=True)}
        if not seen.items() <= self._versions.items():
            # After the rows were read: if the store is still the one that was opened, so are they.
            self._recheck()
            for name, version in seen.items():
                if self._versions.setdefault(name, version) != version:
                    raise DamageError(
                        f"{self._place}/{name} is not the file any more that it was: a writer has gone on "
                        "(refresh the store), or another store has taken its place (open it again)",
                        tuple(ranges),
                    )
        dtype, shape = self._column.numpy_dtype, self._column.shape
        return [np.frombuffer(data, dtype).reshape(-1, *shape) for data, _ in pieces]
