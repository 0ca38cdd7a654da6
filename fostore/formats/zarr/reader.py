"""Reading a Zarr store: mapped columns over its shards and tails, as a stranger's."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

import numpy as np

from fostore.errors import DamageError, FormatError, UnsafeError
from fostore.formats import ColumnView, Commit, Finding, Run, Segment
from fostore.formats.views.fetched import FetchedView
from fostore.formats.views.guard import Guard
from fostore.formats.views.view import view_of
from fostore.formats.zarr.findings import findings
from fostore.formats.zarr.folder import (
    METADATA,
    locate,
    parse_hashes,
    read_hashes,
    read_offsets,
    units_in,
)
from fostore.formats.zarr.layout import OFFSETS
from fostore.formats.zarr.state import State, load, parse_header, read_header
from fostore.places.place import Place
from fostore.schema.header import Header
from fostore.schema.ranges import Range, Ranges
from fostore.schema.row import Array

_ATTEMPTS = 4
_CHUNKS = 256
"""Files of hashes that are asked for at once."""


class ZarrReader:
    """A `Reader` of a Zarr store; opening reads a few small files, however many rows there are."""

    header: Header
    committed: Ranges

    def __init__(self, place: Place) -> None:
        self.place = place
        self._guard = Guard()
        self._views: dict[int, ColumnView] = {}
        self._take(load(place, strict=False))

    def _take(self, state: State) -> None:
        self._state = state
        self._open = state.open_units()
        self.header = state.header
        self.committed = state.committed

    def refresh(self) -> None:
        """See what has been committed since; what was seen once stays, also where a journal was damaged since.

        Raises:
            StoreNotFoundError, FormatError: nothing, or another store, lies at the path now; open it
                anew. The rows that were there can still be read.
        """
        with self._guard:  # all of it: the thread that looked last must have its way
            state = load(self.place, strict=False)
            old, new = self.header, state.header
            if (old.id, old.schema, old.unit_rows) != (new.id, new.schema, new.unit_rows):
                raise FormatError(f"{self.place} is another store than before; open it again")
            if not all(state.committed.covers(*rows) for rows in self.committed):
                return
            if state.committed != self.committed or state.open_units().keys() != self._open.keys():
                self._views = {}  # more rows, or tails that have other names now
            self._take(state)

    def column(self, index: int) -> ColumnView:
        """The view of a column, mapped at first use.

        Raises:
            DamageError: a file is missing or cut, or another store lies at the path now.
        """
        with self._guard:
            view = self._views.get(index)
            if view is None:
                view = self._views[index] = self._map(index)
            return view

    def _map(self, index: int) -> ColumnView:
        column = self.header.schema.columns[index]
        num_rows = self.committed.items[-1][1] if self.committed else 0
        for attempt in range(_ATTEMPTS):
            try:
                if not self.place.is_local:
                    segments = self.segments(index)
                    return FetchedView(self.place, segments, column, num_rows, self._recheck)
                view = view_of(self.segments(index), column, num_rows)
            except DamageError as error:
                if not self._is_current():
                    raise self._replaced() from error
                # A writer that is at work may have sealed a unit, which renames its file.
                if self.header.sealed or attempt == _ATTEMPTS - 1:
                    raise
                continue
            self._recheck()
            return view
        raise AssertionError("the last attempt returns or raises")  # pragma: no cover

    def _recheck(self) -> None:
        """Refuse rows that may be another store's, after they were mapped or read and before they are given out."""
        if not self._is_current():
            raise self._replaced()

    def _is_current(self) -> bool:
        """Whether the place still has the store that was opened: an overwrite puts another one there."""
        try:
            text = read_header(self.place)
            if (
                text == self._state.text
            ):  # to parse it again costs more than all the rest of a first batch
                return True
            return parse_header(text, f"{self.place}/{METADATA}").id == self.header.id
        except (FormatError, FileNotFoundError):
            return False

    def _replaced(self) -> DamageError:
        if self.place.version() is None:
            return DamageError(f"there is no store at {self.place} any more")
        return DamageError(f"another store has taken the place of {self.place}; open it again")

    def segments(self, index: int) -> Sequence[Segment]:
        """Where the committed rows of a column lie, in order.

        Raises:
            DamageError: a unit's file is missing; names the rows of the first.
            UnsafeError: a link.
        """
        folder, unit_rows = self._state.folder, self.header.unit_rows
        layout = folder.shards[index]
        row_bytes, depth = layout.column.row_bytes, len(layout.column.lying.shape)
        chunks, end = f"{layout.name}/c", "/0" * depth
        begin = f"{self.place.url}/" if self.place.is_local else ""
        # One list for all units. Of deeper shards it tells too little: each is looked up. Behind a url nothing is:
        # that a file is missing is seen when its rows are asked for, and a request a unit would take seconds.
        is_listed = depth < 2 and self.committed and self.place.is_local
        kinds = _kinds(self.place, chunks) if is_listed else {}
        expected = "folder" if depth else "file"
        segments = []
        for start, stop in _pieces(self.committed, unit_rows):
            unit = start // unit_rows
            name: str | None = f"{chunks}/{unit}{end}"
            # What is checked on the way here is checked again at the file itself, which is opened.
            is_looked_up = self.place.is_local and kinds.get(str(unit)) != expected
            if unit in self._open or is_looked_up:
                name = locate(folder, index, unit, unit in self._open)
            if name is None:
                raise DamageError(
                    f"{self.place}/{layout.key(unit)} is missing, and with it rows {start} to {stop - 1}",
                    ((start, stop),),
                )
            offset = (start - unit * unit_rows) * row_bytes
            segments.append(Segment(begin + name, offset, start, stop))
        return segments

    def files(self) -> Sequence[str]:
        """All files of a sealed store; worked out, for not every place lists what it has."""
        folder, unit_rows = self._state.folder, self.header.unit_rows
        units = range(-(-self._state.published // unit_rows))
        names = [layout.key(unit) for layout in folder.layouts for unit in units]
        names += [f"{layout.name}/{METADATA}" for layout in folder.layouts]
        if folder.offsets is not None:
            names += [*folder.offsets.keys(), f"{OFFSETS}/{METADATA}"]
        return [*names, METADATA]

    def runs(self) -> Sequence[Run]:
        """Committed runs of units that are not sealed yet."""
        return [run for runs in self._open.values() for run in runs]

    def commits(self, limit: int) -> Sequence[Commit]:
        """Who committed which units of a store that many write, of at most `limit` of them, evenly chosen."""
        from fostore.formats.zarr.records import read_records  # a sealed store has none

        unit_rows = self.header.unit_rows
        units = [
            start // unit_rows for start, _ in _pieces(self._state.whole or Ranges(), unit_rows)
        ]
        some = units[:: -(-len(units) // limit) or 1]
        records = zip(some, read_records(self._state.folder, some), strict=True)
        return [Commit(unit, one.by, one.written) for unit, one in records if one is not None]

    def block_hashes(self) -> Array:
        """Block hashes as they lie: uint8 (blocks, hashed columns, 32); zero for units in progress.

        All zero, unknown, where another store lies at the path now: its hashes say nothing of these rows.

        Raises:
            UnsafeError: the metadata claims more than memory holds.
            DamageError: the hashes of a unit were cut.
        """
        folder = self._state.folder
        layout = folder.hashes
        rows = self.committed.items[-1][1] if self.committed else 0
        num_blocks = -(-rows // self.header.block_rows)
        try:
            hashes = np.zeros((num_blocks, *layout.chunk_shape[1:]), np.uint8)
        except (MemoryError, ValueError) as error:
            raise UnsafeError(f"{self.place} claims {rows:,} rows, too many to hash") from error
        if self.place.is_local:
            units, _ = units_in(self.place, layout.name)  # what is there, not what is claimed
            chunks: Iterator[tuple[int, Array]] = (
                (unit, read_hashes(folder, unit)) for unit in units if unit not in self._open
            )
        else:
            chunks = self._fetched_hashes(-(-num_blocks // layout.blocks))
        for unit, chunk in chunks:
            if unit * layout.blocks < num_blocks:
                held = hashes[unit * layout.blocks : (unit + 1) * layout.blocks]
                held[:] = chunk[: len(held)]
        return hashes if self._is_current() else np.zeros_like(hashes)

    def _fetched_hashes(self, num_units: int) -> Iterator[tuple[int, Array]]:
        """The block hashes of units by their numbers, many requests at a time: not every place lists what it has."""
        folder = self._state.folder
        units = [unit for unit in range(num_units) if unit not in self._open]
        for at in range(0, len(units), _CHUNKS):
            some = units[at : at + _CHUNKS]
            asked = [(folder.hashes.key(unit), 0, folder.hashes.chunk_bytes) for unit in some]
            try:
                pieces = [data for data, _ in self.place.read_many(asked)]
            except FileNotFoundError:  # of one of them: then none is known of that one alone
                yield from ((unit, read_hashes(folder, unit)) for unit in some)
                continue
            yield from (
                (unit, parse_hashes(folder, unit, data))
                for unit, data in zip(some, pieces, strict=True)
            )

    def offsets(self) -> Array | None:
        """Where the sequences of a sealed store begin, as it lies."""
        offsets = read_offsets(self._state.folder)
        return offsets if self._is_current() else None

    def findings(self) -> Iterator[Finding]:
        """Structural damage; reads no rows. Of a store that was replaced there are no files to look at."""
        listed = []
        try:
            listed = list(findings(self._state))
        except FileNotFoundError:
            if self._is_current():
                raise
        if not self._is_current():
            message = f"{self._replaced()}; of the old one the rows are checked that are mapped"
            listed = [Finding(os.path.basename(self.place.url), None, message, "warning")]
        yield from listed

    def close(self) -> None:
        """Drop the views; arrays that were handed out stay valid."""
        with self._guard:
            self._views = {}


def _kinds(place: Place, folder: str) -> dict[str, str]:
    try:
        return place.names(folder)
    except FileNotFoundError:
        return {}


def _pieces(rows: Ranges, unit_rows: int) -> Iterator[Range]:
    """The ranges, cut at units, one after another: as many as a stranger claims, but never all at once."""
    for start, stop in rows:
        while start < stop:
            end = min(stop, (start // unit_rows + 1) * unit_rows)
            yield start, end
            start = end
