"""An array in chunks of any shape, decoded as its rows are read, by one path: locate, bytes, unpack, rows.

A container (Zarr of version 3 and 2, HDF5) says where a chunk lies and how it was packed; all the rest is here,
once. Nothing guesses: a chunk that is not there is damage and never a fill value.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from fostore.errors import DamageError, FormatError, UnsafeError
from fostore.formats.chunks.codecs import CodecError, Decoder, packed_limit, unpack
from fostore.schema.ranges import Range, Ranges
from fostore.schema.row import Array

_MAX_CHUNK_BYTES = 1 << 30
"""Decoded bytes of one chunk, and of the whole rows that a row of chunks makes."""

Index = tuple[int, ...]
"""Where a chunk stands in the grid of its array."""


Survey = tuple[Array, Sequence[tuple[Range, str]]]
"""What a look at the chunks of an array found, without decoding any: int64 (n, axes), where those stand that are
there, each once; and problems as `(rows, message)`."""


@dataclass(frozen=True, slots=True)
class Packed:
    """Where the bytes of a chunk lie: `size` of them from `start` on in the file `name`; None: all of it.

    `mask` has bit n set where the n-th packer left the chunk as it was. `rows` says how many lie
    there where they may be fewer than a chunk has.
    """

    name: str = ""
    start: int = 0
    size: int | None = None
    mask: int = 0
    rows: int | None = None


class Container(Protocol):
    """What one layout knows of an array and no other does. Safe for several threads and across forks."""

    def where(self, index: Index) -> str:
        """What holds a chunk, for messages."""
        ...

    def locate(self, index: Index) -> Packed:
        """Where a chunk lies; raises CodecError where it does not, or nobody can tell."""
        ...

    def survey(self, rows_of: Callable[[Index], Range]) -> Survey:
        """Which chunks are there, where `rows_of` gives the rows of one."""
        ...


@dataclass(frozen=True, slots=True)
class Packing:
    """How a chunk became bytes: axes in `order`, numbers as `stored`, then what `decoders` undo, in turn."""

    order: tuple[int, ...]
    stored: np.dtype[Any]
    decoders: tuple[Decoder, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class ForeignArray:
    """An array in chunks of any shape: rows first, decoded on demand. Safe for several threads.

    `read_bytes(name, start, stop)` gives bytes of a file, fewer only where it ends, and raises
    FileNotFoundError where there is none.
    """

    where: str
    shape: tuple[int, ...]
    chunk_shape: tuple[int, ...]
    packing: Packing
    container: Container
    read_bytes: Callable[[str, int, int], bytes]

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the rows that are read: little-endian."""
        return self.packing.stored.newbyteorder("<")

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

    def survey(self) -> Survey:
        """Which chunks are there."""
        return self.container.survey(self.rows_of)

    def load(self, index: Index) -> Array:
        """One chunk, decoded: its rows may end with the array, other axes have their full size.

        Raises:
            DamageError: it is missing or damaged; names its rows.
        """
        rows = self.rows_of(index)
        try:
            extent = self.container.locate(index)
            height = self.chunk_shape[0] if extent.rows is None else extent.rows
            shape = (height, *self.chunk_shape[1:])
            size = math.prod(shape) * self.packing.stored.itemsize
            packers = enumerate(self.packing.decoders)
            decoders = [decoder for bit, decoder in packers if not extent.mask >> bit & 1]
            data = self._read(extent, packed_limit(size) if decoders else size)
            return self._laid_out(unpack(data, decoders, size), shape)
        except CodecError as error:
            raise damage(self.container.where(index), rows, error) from error
        except FileNotFoundError as error:
            raise DamageError(
                f"{self.container.where(index)} is missing, and with it rows {rows[0]} to {rows[1] - 1}; "
                "a tool that leaves out chunks of its fill value must be told to write them",
                (rows,),
            ) from error

    def _read(self, extent: Packed, limit: int) -> bytes:
        """The bytes of a chunk, which may be `limit`: one more is read at most, whatever is claimed."""
        most = limit + 1 if extent.size is None else min(extent.size, limit + 1)
        data = self.read_bytes(extent.name, extent.start, extent.start + most)
        if len(data) > limit:
            raise CodecError(f"it has more than {limit:,} bytes")
        if len(data) < (extent.size or 0):
            raise CodecError("it was cut")
        return data

    def _laid_out(self, data: Any, shape: tuple[int, ...]) -> Array:
        order = self.packing.order
        stored = np.frombuffer(data, self.packing.stored).reshape([shape[n] for n in order])
        rows = np.ascontiguousarray(stored.transpose(np.argsort(order)))
        return rows.astype(self.dtype, copy=False)

    def read(self, start: int, stop: int) -> Array:
        """The rows `[start, stop)`, decoded: (rows, *shape[1:]), C-contiguous.

        Raises:
            DamageError: names the rows of a chunk that is missing or damaged.
        """
        out = np.empty((max(stop - start, 0), *self.shape[1:]), self.dtype)
        spans = [(start, stop), *((0, size) for size in self.shape[1:])]
        numbers = range(start // self.chunk_shape[0], -(-stop // self.chunk_shape[0]))
        for index in itertools.product(numbers, *map(range, self.across)):
            chunk = self.load(index)
            into, of = zip(*map(_overlap, index, self.chunk_shape, spans), strict=True)
            if len(numbers) == math.prod(self.across) == 1:
                return np.ascontiguousarray(
                    chunk[of]
                )  # most chunks are whole rows, and read as such
            out[into] = chunk[of]
        return out

    def missing(self, present: Array) -> tuple[Range, ...]:
        """The rows of which a chunk is not there, where `present` are those that are."""
        size = self.chunk_shape[0]
        grid = np.array([-(-self.shape[0] // size), *self.across])
        inside = ((present >= 0) & (present < grid)).all(axis=1)
        numbers, counts = np.unique(present[inside, 0], return_counts=True)
        full = numbers[counts == math.prod(self.across)]
        ends = np.flatnonzero(np.diff(full) != 1) + 1
        runs = [(int(run[0]), int(run[-1]) + 1) for run in np.split(full, ends) if len(run)]
        # In ranges, never in chunks: a stranger may claim 2^52 rows.
        gaps = Ranges.of(*runs).missing(int(grid[0]))
        return tuple((first * size, min(last * size, self.shape[0])) for first, last in gaps)


def _overlap(number: int, size: int, span: Range) -> tuple[slice, slice]:
    """What a chunk has of a span of an axis: where in the span, and where in the chunk."""
    begin = number * size
    low, high = max(begin, span[0]), min(begin + size, span[1])
    return slice(low - span[0], high - span[0]), slice(low - begin, high - begin)


def damage(where: str, rows: Range, error: Exception) -> DamageError:
    """What is said of bytes that are no chunk."""
    return DamageError(f"{where} is damaged: {error} (rows {rows[0]} to {rows[1] - 1})", (rows,))


def check_chunks(
    shape: Sequence[int], chunk_shape: Sequence[Any], itemsize: int, where: str
) -> None:
    """Refuse chunks that make no sense, or whose decoding would take more memory than any store needs.

    Raises:
        FormatError: no sizes, or not one for each axis.
        UnsafeError: larger than `_MAX_CHUNK_BYTES`, one chunk or the rows of it as a whole.
    """
    sizes = all(type(n) is int and n > 0 for n in chunk_shape)
    if not shape or len(shape) != len(chunk_shape) or not sizes:
        raise FormatError(
            f"{where}: the chunks {list(chunk_shape)!r:.80} do not fit the shape {list(shape)!r:.80}"
        )
    chunk = math.prod(chunk_shape) * itemsize
    rows = min(chunk_shape[0], max(shape[0], 1)) * math.prod(shape[1:]) * itemsize
    if max(chunk, rows) > _MAX_CHUNK_BYTES:
        raise UnsafeError(
            f"{where}: a chunk of {list(chunk_shape)} takes {max(chunk, rows):,} bytes when it is read, "
            f"expected at most {_MAX_CHUNK_BYTES:,}; copy the store with smaller chunks"
        )
