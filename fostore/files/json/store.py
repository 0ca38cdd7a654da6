"""A JSON document as a store to read, or as a dict: checked whole when it is opened, its rows placed by index."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fostore import disk
from fostore.encodings import encoding_of
from fostore.errors import FormatError, UnsafeError
from fostore.files.json.read import Document, read_document
from fostore.files.json.write import ranges_of
from fostore.formats import ColumnView, Finding, Run, Segment
from fostore.formats.views.view import ArrayView
from fostore.places.local import LocalFile
from fostore.places.names import place_of
from fostore.places.place import File, Place
from fostore.places.spool import Spool
from fostore.schema import digest
from fostore.schema.ranges import Range, Ranges
from fostore.schema.row import Array

_LEAST_LIMIT = 64 << 20
_FILLED_BYTES = 1 << 20
_BITS_AT_ONCE = 1 << 20


def opened(path: Path | Place) -> File:
    """The file that a user named; a link is followed, and nothing but a regular file is opened.

    Raises:
        StoreNotFoundError: there is no such file.
        FormatError: it is a folder, or no regular file.
    """
    place = place_of(path)
    if not place.is_local:
        return place.open()
    return LocalFile(str(path), disk.open_named(str(path), "a JSON file")[0])


def load(path: str | Path) -> tuple[dict[int, Array], dict[str, Any]]:
    """Distributions by sample index, and metadata: what `save` was given, or what the guide's code wrote.

    All rows are in memory; `fostore.open` needs no more memory for many rows than for few.

    Returns:
        A dict in increasing order of rows (num_classes,) or (num_members, num_classes), as
        probabilities of the dtype that was saved (float64 where the file does not say), and the
        metadata.

    Raises:
        StoreNotFoundError: there is no such file.
        FormatError: the file is not strictly of this layout, or a row is no distribution; names the
            file and the key or line. Nothing is loaded by halves.
    """
    document = read_document(opened(Path(path)), Gathered)
    if document.header is None or not len(document.ranges):
        return {}, dict(document.meta)
    schema = document.header.schema
    index = document.columns[0].in_order()[0].tolist()
    rows = [column.in_order()[1] for column in document.columns[: len(schema.content)]]
    decoded = encoding_of(schema).decode(rows, schema)
    return dict(zip(index, decoded, strict=True)), dict(document.meta)


class JsonReader:
    """See `fostore.formats.Reader`; all rows of the document were checked and placed when it was read."""

    def __init__(self, file: File, document: Document[Placed]) -> None:
        if document.header is None:
            raise FormatError(f"{file} holds no distributions, so its number of classes is unknown")
        self.header = document.header
        self.committed = document.ranges
        self._views = [
            ArrayView(
                kept.array()
                if len(self.committed)
                else np.empty((0, *column.shape), column.numpy_dtype)
            )
            for kept, column in zip(document.columns, self.header.schema.columns, strict=True)
        ]
        self._file = file
        file.close()  # of which only the name is looked at from now on

    def refresh(self) -> None:
        """A file does not grow; raises where another one lies at the path now. The rows can still be read."""
        self._file.check()

    def column(self, index: int) -> ColumnView:
        """The view of a column; see `Reader`."""
        return self._views[index]

    def segments(self, index: int) -> Sequence[Segment]:
        """None: rows lie as text."""
        return ()

    def runs(self) -> Sequence[Run]:
        """None: a file has no run in progress."""
        return ()

    def block_hashes(self) -> Array:
        """All unknown: the file keeps the digest alone."""
        blocks = -(-(self.header.num_samples or 0) // self.header.block_rows)
        return np.zeros(
            (blocks, len(digest.hashed_columns(self.header)), digest.HASH_BYTES), np.uint8
        )

    def findings(self) -> Iterator[Finding]:
        """None: what is wrong with a file is an error when it is opened."""
        return iter(())

    def close(self) -> None:
        """Nothing is open."""


# ------------------------------------------------------------------ where rows are put


class Gathered:
    """A column's rows in memory, whatever their indices; see `Kept`."""

    def __init__(self, where: str, size: int) -> None:
        self._seen: set[int] = set()
        self._slices: list[tuple[Array, Array]] = []

    def put(self, index: Array, rows: Array) -> int | None:
        """See `Kept`."""
        numbers = index.tolist()
        twice = next((i for i in numbers if i in self._seen), None)
        self._seen.update(numbers)
        self._slices.append((index, rows))
        return twice

    @property
    def ranges(self) -> Ranges:
        """See `Kept`."""
        return ranges_of(self.in_order()[0]) if self._slices else Ranges()

    def read(self, start: int, stop: int) -> Array:
        """See `Kept`."""
        index, rows = self.in_order()
        begin = int(np.searchsorted(index, start))
        return rows[begin : begin + stop - start]

    def in_order(self) -> tuple[Array, Array]:
        """The indices, increasing, and their rows; there is at least one."""
        if len(self._slices) > 1:
            index = np.concatenate([index for index, _ in self._slices])
            rows = np.concatenate([rows for _, rows in self._slices])
            self._slices = [(index, rows)]
        self._slices = [_sorted(*self._slices[0])]
        return self._slices[0]


class Placed:
    """A column's rows at their indices, in a spool; see `Kept`.

    Args:
        where: names the document in errors.
        size: bytes of the document. An index that would make the column more than 64 times as
            large (and more than 64 MiB) is refused.
    """

    def __init__(self, where: str, size: int) -> None:
        self._where = where
        self._limit = max(_LEAST_LIMIT, 64 * size)
        self._present = Present()
        self._spool = Spool(where)

    def put(self, index: Array, rows: Array) -> int | None:
        """See `Kept`.

        Raises:
            UnsafeError: an index far beyond what the document can hold.
            SpaceError: the disk of temporary files is full; names its folder.
        """
        index, rows = _sorted(index, rows)
        last = int(index[-1])
        size = (last + 1) * rows[0].nbytes
        if size > self._limit:
            raise UnsafeError(
                f"{self._where}: row {last} lies far beyond the {self._present.count + len(index)} rows "
                f"that are there; an array up to it would take {size:,} bytes"
            )
        twice = self._present.add(index)
        if twice is None:
            self._spool.scatter(rows, index)
        return twice

    @property
    def ranges(self) -> Ranges:
        """See `Kept`."""
        return self._present.ranges()

    def read(self, start: int, stop: int) -> Array:
        """See `Kept`."""
        return self._spool.read(start, stop)

    def array(self) -> Array:
        """All rows up to the last, of which there is one, as an array; what is not there is NaN, or zero bytes."""
        spool = self._spool
        if spool.dtype.kind == "f":
            nothing = np.full(
                (max(1, _FILLED_BYTES // spool.row_bytes), *spool.shape), np.nan, spool.dtype
            )
            for first, last in self.ranges.missing(spool.num_rows):
                for start in range(first, last, len(nothing)):
                    spool.write(nothing[: last - start], start)
        return spool.array()


def _sorted(index: Array, rows: Array) -> tuple[Array, Array]:
    if np.all(index[1:] > index[:-1]):
        return index, rows
    order = np.argsort(index)
    return index[order], rows[order]


class Present:
    """Which indices have come: ranges while they increase, one bit each from the first that does not."""

    def __init__(self) -> None:
        self.count = 0
        self._items: list[Range] = []
        self._bits: Array | None = None

    def add(self, index: Array) -> int | None:
        """Add increasing indices; gives one that was there before, and then adds none."""
        if self._bits is None:
            items = self._items
            if not items or items[-1][1] <= index[0]:
                first, *others = ranges_of(index)
                if items and items[-1][1] == first[0]:
                    first = (items.pop()[0], first[1])
                self._items += [first, *others]
                self.count += len(index)
                return None
            flags = np.zeros(items[-1][1], bool)
            for start, stop in items:
                flags[start:stop] = True
            self._bits = np.packbits(flags, bitorder="little")
        bits, places = self._bits, index >> 3
        if places[-1] >= len(bits):
            bits = np.zeros(max(int(places[-1]) + 1, 2 * len(bits)), np.uint8)
            bits[: len(self._bits)] = self._bits
            self._bits = bits
        masks = np.left_shift(np.uint8(1), (index & 7).astype(np.uint8))
        again = np.flatnonzero(bits[places] & masks)
        if len(again):
            return int(index[again[0]])
        np.bitwise_or.at(bits, places, masks)
        self.count += len(index)
        return None

    def ranges(self) -> Ranges:
        """All indices."""
        if self._bits is None:
            return Ranges(tuple(self._items))
        pairs: list[Range] = []
        step = _BITS_AT_ONCE // 8
        for begin in range(0, len(self._bits), step):
            flags = np.unpackbits(self._bits[begin : begin + step], bitorder="little")
            edges = np.flatnonzero(np.diff(flags, prepend=np.uint8(0), append=np.uint8(0)))
            pairs += [(start, stop) for start, stop in (edges.reshape(-1, 2) + begin * 8).tolist()]
        return Ranges.of(*pairs)  # which puts together what was cut
