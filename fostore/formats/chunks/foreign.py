"""A sealed store that another tool laid out anew: the same rows in other chunks, decoded as they are read.

What differs between formats is where the chunks lie and how they are packed, which `ForeignArray` hides.
Nothing here guesses: a chunk that is not there is damage and never a fill value.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fostore.errors import DamageError, FormatError, UnsafeError, UnsupportedError
from fostore.formats import ColumnView, Finding, Run, Segment
from fostore.formats.views.guard import Guard
from fostore.formats.views.pieces import CACHE_BYTES, ArrayCache, EvenPieces, PieceView
from fostore.schema.header import Header
from fostore.schema.ranges import Range, Ranges, describe
from fostore.schema.row import Array

MAX_CHUNK_BYTES = 1 << 30
"""Decoded bytes of one chunk, and of the whole rows that a row of chunks makes."""

Index = tuple[int, ...]
"""Where a chunk stands in the grid of its array."""


@dataclass(frozen=True, slots=True)
class Survey:
    """What a look at the chunks of an array found, without decoding any.

    `present` is int64 (n, axes): where the chunks stand that are there, each once. `problems` are
    `(rows or None, message)`.
    """

    present: Array
    problems: tuple[tuple[Range | None, str], ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class ForeignArray:
    """An array in chunks of any shape: rows first, decoded on demand.

    `dtype` is little-endian. `load` gives one decoded chunk (its rows may end with the array; other
    axes have their full size) and raises DamageError where it is missing or damaged. `survey` says
    which chunks are there. Both are safe for several threads.
    """

    where: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    chunk_shape: tuple[int, ...]
    load: Callable[[Index], Array]
    survey: Callable[[], Survey]

    @property
    def chunk_rows(self) -> int:
        """Rows that are decoded together: those of one chunk, at most all."""
        return max(min(self.chunk_shape[0], self.shape[0]), 1)

    @property
    def across(self) -> tuple[int, ...]:
        """How many chunks stand along each axis but the first."""
        pairs = zip(self.shape[1:], self.chunk_shape[1:], strict=True)
        return tuple(-(-size // chunk) for size, chunk in pairs)

    def rows_of(self, index: Index) -> Range:
        """The rows that a chunk holds."""
        start = index[0] * self.chunk_shape[0]
        return start, min(start + self.chunk_shape[0], self.shape[0])

    def read(self, start: int, stop: int) -> Array:
        """The rows `[start, stop)`, decoded: (rows, *shape[1:]), C-contiguous.

        Raises:
            DamageError: names the rows of a chunk that is missing or damaged.
        """
        size = self.chunk_shape[0]
        first = start // size
        whole = self.chunk_shape[1:] == self.shape[1:]
        if whole and start == first * size and start < stop <= start + size:
            return np.ascontiguousarray(
                self.load((first, *(0 for _ in self.shape[1:])))[: stop - start]
            )
        out = np.empty((max(stop - start, 0), *self.shape[1:]), self.dtype)
        for number in range(first, -(-stop // size)):
            low, high = max(start, number * size), min(stop, (number + 1) * size)
            for others in itertools.product(*map(range, self.across)):
                chunk = self.load((number, *others))
                places, parts = (
                    [slice(low - start, high - start)],
                    [slice(low - number * size, high - number * size)],
                )
                for at, length, total in zip(
                    others, self.chunk_shape[1:], self.shape[1:], strict=True
                ):
                    places.append(slice(at * length, min((at + 1) * length, total)))
                    parts.append(slice(0, min(length, total - at * length)))
                out[tuple(places)] = chunk[tuple(parts)]
        return out

    def missing(self, present: Array) -> tuple[Range, ...]:
        """The rows of which a chunk is not there, where `present` are those that are."""
        chunks = -(-self.shape[0] // self.chunk_shape[0])
        inside = (present >= 0).all(axis=1) & (present < np.array([chunks, *self.across])).all(
            axis=1
        )
        numbers, counts = np.unique(present[inside, 0], return_counts=True)
        full = numbers[counts == math.prod(self.across)]
        ends = np.flatnonzero(np.diff(full) != 1) + 1
        runs = [(int(run[0]), int(run[-1]) + 1) for run in np.split(full, ends) if len(run)]
        size = self.chunk_shape[0]
        gaps = Ranges.of(*runs).missing(chunks)
        return tuple((first * size, min(last * size, self.shape[0])) for first, last in gaps)


def check_chunks(
    shape: Sequence[int], chunk_shape: Sequence[Any], itemsize: int, where: str
) -> None:
    """Refuse chunks that make no sense, or whose decoding would take more memory than any store needs.

    Raises:
        FormatError: no sizes, or not one for each axis.
        UnsafeError: larger than `MAX_CHUNK_BYTES`, one chunk or the rows of it as a whole.
    """
    sizes = all(type(n) is int and n > 0 for n in chunk_shape)
    if not shape or len(shape) != len(chunk_shape) or not sizes:
        raise FormatError(
            f"{where}: the chunks {list(chunk_shape)!r:.80} do not fit the shape {list(shape)!r:.80}"
        )
    chunk = math.prod(chunk_shape) * itemsize
    rows = min(chunk_shape[0], max(shape[0], 1)) * math.prod(shape[1:]) * itemsize
    if max(chunk, rows) > MAX_CHUNK_BYTES:
        raise UnsafeError(
            f"{where}: a chunk of {list(chunk_shape)} takes {max(chunk, rows):,} bytes when it is read, "
            f"expected at most {MAX_CHUNK_BYTES:,}; copy the store with smaller chunks"
        )


def require_sealed(header: Header, where: str, why: Exception) -> None:
    """Refuse a store in progress whose layout is not fostore's.

    Raises:
        UnsupportedError: the store is not sealed.
    """
    if not header.sealed:
        raise UnsupportedError(
            f"{where} is not sealed, and its layout is not fostore's, so that nobody knows which rows are "
            f"committed ({why}); finish the original, then copy it"
        ) from why


def require_shape(array: ForeignArray, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    """Refuse an array that contradicts the header.

    Raises:
        FormatError: another shape or dtype.
    """
    if (array.shape, array.dtype) != (shape, dtype):
        raise FormatError(
            f"{array.where} is {array.dtype} {array.shape}, the header asks for {dtype} {shape}"
        )


class ForeignReader:
    """A `Reader` of a sealed store over its `ForeignArray`s; nothing of it can be written.

    `recheck` raises where another store has taken the path, `release` drops handles.
    """

    header: Header
    committed: Ranges

    def __init__(
        self,
        header: Header,
        columns: Sequence[ForeignArray],
        hashes: ForeignArray,
        *,
        recheck: Callable[[], None],
        release: Callable[[], None],
    ) -> None:
        num_samples = header.num_samples or 0
        for array, column in zip(columns, header.schema.columns, strict=True):
            require_shape(array, (num_samples, *column.shape), column.numpy_dtype)
        hashed = sum(column.hashed for column in header.schema.columns)
        blocks = -(-num_samples // header.block_rows)
        require_shape(hashes, (blocks, hashed, 32), np.dtype("u1"))
        self.header = header
        self.committed = Ranges.of((0, num_samples))
        self._columns = tuple(columns)
        self._hashes = hashes
        self._recheck = recheck
        self._release = release
        self._guard = Guard()
        self._views: dict[int, ColumnView] = {}

    def refresh(self) -> None:
        """A sealed store does not change; raises where another one lies at the path now."""
        self._recheck()

    def column(self, index: int) -> ColumnView:
        """The view of a column, which decodes what is asked for."""
        with self._guard:
            view = self._views.get(index)
            if view is None:
                array = self._columns[index]
                view = self._views[index] = PieceView(
                    self.header.schema.columns[index],
                    array.shape[0],
                    EvenPieces(array.read, array.chunk_rows, array.shape[0]),
                    ArrayCache(CACHE_BYTES // len(self._columns)),
                )
            return view

    def segments(self, index: int) -> Sequence[Segment]:
        """None: no raw rows lie anywhere."""
        return []

    def runs(self) -> Sequence[Run]:
        """None: all units are sealed."""
        return []

    def block_hashes(self) -> Array:
        """Block hashes, uint8 (blocks, hashed columns, 32); zero where their chunk is missing or damaged.

        Raises:
            UnsafeError: the metadata claims more than memory holds.
        """
        array = self._hashes
        try:
            hashes = np.zeros(array.shape, np.uint8)
        except (MemoryError, ValueError) as error:
            raise UnsafeError(
                f"{array.where} claims {array.shape[0]:,} blocks, too many"
            ) from error
        for number in np.unique(array.survey().present[:, 0]):  # what is there, not what is claimed
            start, stop = array.rows_of((int(number),))
            if 0 <= start < stop:
                try:
                    hashes[start:stop] = array.read(start, stop)
                except DamageError:
                    continue  # unknown, then; `findings` says so where it matters
        return hashes

    def findings(self) -> Iterator[Finding]:
        """Chunks that are missing or cut; decodes none."""
        for array, column in zip(self._columns, self.header.schema.columns, strict=True):
            where = f"column {column.name}"
            survey = array.survey()
            told = Ranges.of(*(rows for rows, _ in survey.problems if rows is not None))
            for rows, message in survey.problems:
                yield Finding(where, rows, message)
            for start, stop in array.missing(survey.present):
                for gap in told.missing(stop, start):
                    yield Finding(
                        where, gap, f"column {column.name}: chunks of {describe([gap])} are missing"
                    )
        for _, message in self._hashes.survey().problems:
            yield Finding("block hashes", None, message)

    def close(self) -> None:
        """Drop handles; arrays that were handed out stay valid."""
        with self._guard:
            self._views = {}
            self._release()
