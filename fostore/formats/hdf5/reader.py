"""Reading an HDF5 store: slots say what is committed, and rows are mapped from where the datasets lie."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from fostore.errors import DamageError, FormatError
from fostore.formats import ColumnView, Commit, Finding, Run, Segment
from fostore.formats.hdf5 import slots
from fostore.formats.hdf5.file import Layout, inspect, open_store
from fostore.formats.hdf5.records import (
    HASHES,
    HEADER,
    HEADER_MAGIC,
    OFFSETS,
    PROGRESS,
    RUNS_MAGIC,
    read_hashes,
    read_record,
    read_runs,
    read_slots,
)
from fostore.formats.views.fetched import FetchedView
from fostore.formats.views.guard import Guard
from fostore.formats.views.view import view_of
from fostore.places.place import File, Place
from fostore.schema import jsontext
from fostore.schema.header import CHECKSUM, MAX_TEXT, Header
from fostore.schema.ranges import Ranges
from fostore.schema.row import Array

_CHANGING = {"sealed", "digest", "updated", "software", "identity", CHECKSUM}
"""Keys of the header that a writer changes on its way."""


class HDF5Reader:
    """A store in an HDF5 file, opened for reading; see `fostore.formats.Reader`.

    It keeps the file that it opened: where another store has taken the path since, it goes on
    showing the old one. Where a writer has put a larger copy of the same store there, `refresh` moves to it.
    """

    header: Header
    committed: Ranges

    def __init__(self, place: Place) -> None:
        self._place = place
        self._guard = Guard()
        file = open_store(place)
        try:
            self._begin(file, inspect(file))
        except BaseException:
            file.close()
            raise

    def _begin(self, file: File, layout: Layout) -> None:
        """Take `file` as the store from now on."""
        committed = read_runs(file, layout.extents[PROGRESS], layout.header.num_samples or 0)
        self._file, self._layout, self.header = file, layout, layout.header
        self._views: dict[int, ColumnView] = {}
        self._show(*committed)

    def _show(self, sequence: int, entries: list[Run]) -> None:
        self._sequence, self._entries = sequence, entries
        self.committed = Ranges.of(*((run.start, run.stop) for run in entries))

    def refresh(self) -> None:
        """See what has been committed since, in the file that is open or in the larger copy that replaced it.

        What was seen once stays: where the newest slot was damaged since, the one before shows fewer rows.

        Raises:
            StoreNotFoundError, FormatError: nothing, or another store, lies at the path now; open it
                anew. The rows that were there can still be read.
        """
        with self._guard:
            if not self._file.is_current():
                self._follow()
                return
            where = f"{self._file}, dataset {HEADER!r}"
            extents = self._layout.extents
            record = read_record(self._file, extents[HEADER], HEADER_MAGIC, where)
            header = Header.from_json(jsontext.loads(record.payload, where), where)
            self._expect_same(header)
            if record.sequence > self._layout.header_sequence:
                self.header = header
                self._layout = replace(self._layout, header=header, header_sequence=record.sequence)
            sequence, entries = read_runs(self._file, extents[PROGRESS], header.num_samples or 0)
            if sequence > self._sequence:
                self._show(sequence, entries)

    def _expect_same(self, header: Header) -> None:
        old = self.header
        if (old.id, old.schema, old.unit_rows) != (header.id, header.schema, header.unit_rows):
            raise FormatError(f"{self._file} is another store than before; open it again")

    def _follow(self) -> None:
        """Move to the file that has taken the path, which must be the same store."""
        file, old = open_store(self._place), self._file
        try:
            layout = inspect(file)
            self._expect_same(layout.header)
            self._begin(file, layout)
        except BaseException:
            file.close()
            raise
        old.close()

    def column(self, index: int) -> ColumnView:
        """The view of a column; one map serves all rows, also those that are committed later."""
        with self._guard:
            view = self._views.get(index)
            if view is None:
                view = self._views[index] = self._view(index)
            return view

    def _view(self, index: int) -> ColumnView:
        # A writer may put a larger copy of the store there between our look and our map.
        for _ in range(3):
            column = self.header.schema.columns[index]
            num_samples = self.header.num_samples or 0
            offset = self._layout.extents[column.name].offset
            if not self._place.is_local:
                segments = [Segment("", offset, 0, num_samples)] if num_samples else []
                return FetchedView(self._place, segments, column, num_samples, self._recheck)
            segments = [Segment(str(self._file), offset, 0, num_samples)] if num_samples else []
            view = view_of(segments, column, num_samples)
            _ = view.array  # maps now, while it is known which file the path names
            if self._file.is_current():
                return view
            try:
                self._follow()
            except (FormatError, FileNotFoundError) as error:
                raise self._replaced() from error
        raise self._replaced()

    def _recheck(self) -> None:
        if not self._file.is_current():
            raise self._replaced()

    def _replaced(self) -> DamageError:
        return DamageError(f"another store has taken the place of {self._file}; open it again")

    def segments(self, index: int) -> Sequence[Segment]:
        """Where the committed rows of a column lie, in order."""
        column = self.header.schema.columns[index]
        offset = self._layout.extents[column.name].offset
        path = str(self._file) if self._place.is_local else ""
        return [
            Segment(path, offset + start * column.row_bytes, start, stop)
            for start, stop in self.committed
        ]

    def files(self) -> Sequence[str]:
        """The one file."""
        return ("",)

    def commits(self, limit: int) -> Sequence[Commit]:
        """None: there is one writer."""
        return ()

    def runs(self) -> Sequence[Run]:
        """Committed runs of units that are not sealed yet."""
        return self._sealed_and_open()[1]

    def _sealed_and_open(self) -> tuple[Ranges, list[Run]]:
        unit_rows, num_samples = self.header.unit_rows, self.header.num_samples or 0
        return slots.sealed_and_open(self._entries, unit_rows, num_samples, short_unit=True)

    def block_hashes(self) -> Array:
        """Block hashes, uint8 (blocks, hashed columns, 32); zero where a unit goes on."""
        size, num_samples = self.header.block_rows, self.header.num_samples or 0
        stored = read_hashes(self._file, self._layout.extents[HASHES], size, 0, num_samples)
        sealed, open_runs = self._sealed_and_open()
        known = np.zeros_like(stored)
        for start, stop in [
            *sealed,
            *((run.start, run.stop) for run in open_runs if run.crc is None),
        ]:
            # The hash of a block that is cut by the end of such a run is of the rows up to there.
            last = -(-stop // size) if stop == num_samples else stop // size
            known[start // size : last] = stored[start // size : last]
        return known

    def offsets(self) -> Array | None:
        """Where the sequences of a sealed store begin, as it lies."""
        extent = self._layout.extents.get(OFFSETS)
        if extent is None or not self.header.sealed:
            return None
        return np.frombuffer(self._file.read(extent.offset, extent.nbytes), "<i8")

    def findings(self) -> Iterator[Finding]:
        """Damage that can be seen without reading rows; looks at the file anew."""
        where = str(self._file)
        try:
            layout = inspect(self._file)
        except DamageError as error:
            for rows in error.rows or (None,):
                yield Finding(where, rows, str(error))
            return
        except FormatError as error:
            yield Finding(where, None, str(error))
            return
        size = self._file.size
        # 0: a superblock of a version that does not say.
        if size > layout.end > 0:
            extra = f"{size - layout.end:,} bytes follow the end of the HDF5 file"
            yield Finding(where, None, extra)
        for name, magic in ((HEADER, HEADER_MAGIC), (PROGRESS, RUNS_MAGIC)):
            yield from self._slot_findings(name, magic)
        yield from self._run_findings()
        for name, value in layout.header.to_json().items():
            mirror = layout.mirrors.get(name)
            if mirror is None:
                yield Finding(name, None, f"plain readers find no {name!r}")
            elif not _says(mirror.text, value):
                is_older = _says_of_before(mirror.text, value)
                what = (
                    "what the header said before" if is_older else "something else than the header"
                )
                message = f"{name!r} says {what}, to plain readers; resuming the store mends it"
                yield Finding(name, None, message, "warning" if is_older else "damage")
        for name in layout.foreign:
            yield Finding(name, None, "not written by fostore")

    def _slot_findings(self, name: str, magic: bytes) -> Iterator[Finding]:
        data = read_slots(self._file, self._layout.extents[name])
        records = [slots.unpack(magic, slot, bytes_) for slot, bytes_ in enumerate(data)]
        for slot, record in enumerate(records):
            if record is None and any(data[slot]):
                message = f"slot {slot} is torn or damaged; the other one holds"
                yield Finding(f"dataset {name}", None, message)
        first, second = records
        if first is not None and second is not None and abs(first.sequence - second.sequence) != 1:
            message = f"the slots have the sequences {first.sequence} and {second.sequence}"
            yield Finding(f"dataset {name}", None, message)

    def _run_findings(self) -> Iterator[Finding]:
        position, unit_rows = 0, self.header.unit_rows
        for run in sorted(self._entries, key=lambda r: (r.start, r.stop)):
            if run.start < position:
                yield Finding("dataset progress", (run.start, run.stop), "runs lie on each other")
            if run.crc is not None and run.start // unit_rows != (run.stop - 1) // unit_rows:
                yield Finding(
                    "dataset progress", (run.start, run.stop), "a run straddles two units"
                )
            position = max(position, run.stop)
        if self.header.sealed:
            for gap in self.committed.missing(self.header.num_samples or 0):
                message = "the header says sealed, and these rows are not committed"
                yield Finding("dataset progress", gap, message)

    def close(self) -> None:
        """Close the file; arrays that were handed out stay valid."""
        with self._guard:
            self._views = {}
            self._file.close()


def _says_of_before(text: bytes, value: Mapping[str, Any]) -> bool:
    """Whether a mirror is of the same store and of the same rows, as a kill before it was brought up leaves it."""
    try:
        mirror = jsontext.loads(text.rstrip(b"\0"), "")
    except FormatError:
        return False
    if not isinstance(mirror, dict):
        return False
    names = (mirror.keys() | value.keys()) - _CHANGING if "id" in value else ()
    return all(_plain(mirror.get(name)) == _plain(value.get(name)) for name in names)


def _plain(value: object) -> object:
    return jsontext.loads(jsontext.dumps(value), "")


def _says(text: bytes, value: object) -> bool:
    text = text.strip(b"\0 ")
    if len(text) > MAX_TEXT:
        return False
    try:
        return bool(jsontext.loads(text, "") == _plain(value))
    except FormatError:
        return False
