"""A sealed store that another tool laid out anew: the same rows in other chunks, decoded as they are read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np

from fostore.errors import DamageError, FormatError, UnsafeError, UnsupportedError
from fostore.formats import ColumnView, Finding, Reader
from fostore.formats.chunks.array import ForeignArray
from fostore.formats.views.guard import Guard
from fostore.formats.views.pieces import CACHE_BYTES, ArrayCache, EvenPieces, PieceView
from fostore.schema.header import Header
from fostore.schema.ranges import Ranges, describe
from fostore.schema.row import Array


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


class Opened(Protocol):
    """What the arrays of a store are read from; `check` raises where another store has taken the path."""

    def check(self) -> None: ...
    def close(self) -> None: ...


class ForeignReader(Reader):
    """A `Reader` of a sealed store over its `ForeignArray`s; nothing of it can be written."""

    def __init__(
        self,
        header: Header,
        columns: Sequence[ForeignArray],
        hashes: ForeignArray,
        opened: Opened,
    ) -> None:
        num_samples = header.num_samples or 0
        rows = [column.lying for column in header.schema.columns]
        expected = [((num_samples, *row.shape), row.dtype) for row in rows]
        hashed = sum(column.hashed for column in header.schema.columns)
        expected.append(((-(-num_samples // header.block_rows), hashed, 32), np.dtype("u1")))
        for array, (shape, dtype) in zip([*columns, hashes], expected, strict=True):
            if (array.shape, array.dtype) != (shape, dtype):
                raise FormatError(
                    f"{array.where} is {array.dtype} {array.shape}, the header asks for {dtype} {shape}"
                )
        self.header = header
        self.committed = Ranges.of((0, num_samples))
        self._columns = tuple(columns)
        self._hashes = hashes
        self._opened = opened
        self._guard = Guard()
        self._views: dict[int, ColumnView] = {}

    def refresh(self) -> None:
        """A sealed store does not change; raises where another one lies at the path now."""
        self._opened.check()

    def column(self, index: int) -> ColumnView:
        """The view of a column, which decodes what is asked for."""
        with self._guard:
            view = self._views.get(index)
            if view is None:
                array, column = self._columns[index], self.header.schema.columns[index]

                def read(start: int, stop: int) -> Array:
                    rows = array.read(start, stop)  # texts lie without the axis of their bytes
                    return rows.view(column.numpy_dtype).reshape(len(rows), *column.shape)

                view = self._views[index] = PieceView(
                    column,
                    array.shape[0],
                    EvenPieces(read, array.chunk_rows, array.shape[0]),
                    ArrayCache(CACHE_BYTES // len(self._columns)),
                )
            return view

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
        for number in np.unique(array.survey()[0][:, 0]):  # what is there, not what is claimed
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
            present, problems = array.survey()
            named = Ranges.of(*(rows for rows, _ in problems))
            for rows, message in problems:
                yield Finding(where, rows, message)
            for start, stop in array.missing(present):
                for gap in named.missing(stop, start):
                    yield Finding(where, gap, f"{where}: chunks of {describe([gap])} are missing")
        for _, message in self._hashes.survey()[1]:
            yield Finding("block hashes", None, message)

    def close(self) -> None:
        """Drop handles; arrays that were handed out stay valid."""
        with self._guard:
            self._views = {}
            self._opened.close()
