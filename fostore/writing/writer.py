"""Writing a store: rows go in, commits make them durable, and a sealed store never changes.

Order is the law: data on disk, then the commit that names it, then the seal that publishes it
(spec/integrity.md). A kill at any instant loses only what was not committed yet.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from fostore import disk
from fostore.encodings import encoding_of
from fostore.errors import ArgumentError, FostoreError, RowError
from fostore.formats import UnitWriter
from fostore.places.lock import Lock
from fostore.schema import geometry
from fostore.schema.header import Header, now
from fostore.schema.jsontext import check_json
from fostore.schema.ranges import Range, Ranges, describe
from fostore.schema.row import Array, Column, Schema
from fostore.schema.sides.ids import encode_ids
from fostore.schema.sides.known import KnownIds
from fostore.schema.sides.views import encode_views
from fostore.writing.pipeline import Pipeline


class Writer:
    """The one process that writes a store; made by `fostore.create`.

    Use it in a `with` block: leaving it without an error seals the store if nothing is missing;
    leaving it by an exception commits what was appended and releases the lock. Rows come from one
    thread: a second one is refused while the first is alive, since what it appends would lie at
    places that depend on which was faster.

    >>> import fostore, numpy, tempfile
    >>> path = tempfile.mkdtemp() + "/coin.zarr"
    >>> with fostore.create(path, num_samples=2, num_classes=2) as writer:
    ...     writer.append(numpy.array([[0.5, 0.5], [0.9, 0.1]]))
    >>> fostore.open(path)[1]
    array([0.9, 0.1], dtype=float32)
    """

    def __init__(
        self,
        path: Path,
        units: UnitWriter,
        lock: Lock,
        *,
        commit_seconds: float,
        ids: Array | None = None,
        views: Array | None = None,
        replaces: Path | None = None,
        grows: bool = False,
    ) -> None:
        self.path = path
        self._units = units
        self._lock = lock
        self._ids, self._views = ids, views
        self._replaces = replaces
        self._grows = grows
        self._pid = os.getpid()
        self._thread: threading.Thread | None = None
        self._closed = False
        self._is_promised = False
        self._header = units.header
        self._encoding = encoding_of(self.schema)
        self._num_content = len(self.schema.content)
        there = Ranges.of(*units.sealed, *((run.start, run.stop) for run in units.runs))
        self._rows = Pipeline(units, there, commit_seconds=commit_seconds)
        self._position = there.prefix
        column = self.schema.role("id")
        self._known_ids: KnownIds | None = (
            None  # those that come in batches; of others create knows
        )
        if column is not None and ids is None:
            self._known_ids = KnownIds(column, partial(self.read_side, column.name))
            self._id_index = self.schema.index(column.name)
        # Check what a kill left behind, and seal the units that it left whole.
        ledger = self._rows.ledger
        ledger.adopt()
        ledger.seal(ledger.whole_units(self.num_samples))

    # What it is

    @property
    def header(self) -> Header:
        """The attributes of the store, as they will be written at the next occasion."""
        return self._header

    @property
    def schema(self) -> Schema:
        """What a row is."""
        return self._header.schema

    @property
    def num_samples(self) -> int | None:
        """Rows planned; None for a stream."""
        return self._header.num_samples

    @property
    def committed(self) -> Ranges:
        """The rows that no kill can lose."""
        return self._rows.committed

    def missing(self) -> list[Range]:
        """Rows that nobody has written yet, as `(start, stop)`; a stream misses nothing up to its end."""
        stop = self._rows.end if self.num_samples is None else self.num_samples
        return list(self._rows.accepted.missing(stop))

    def __len__(self) -> int:
        """Rows written, committed or not."""
        return len(self._rows.accepted)

    # Rows in

    def append(
        self,
        rows: Any,
        *,
        ids: Sequence[Any] | None = None,
        fingerprints: Array | None = None,
        views: Any = None,
        labels: Array | None = None,
    ) -> None:
        """Write rows after those that are there; durable at the next commit, a second away at most.

        Args:
            rows: (n, num_classes) or (n, num_members, num_classes), of the store's kind, as anything
                that NumPy takes. May be reused by the caller afterwards.
            ids: n keys, for a store that was promised them one batch at a time. To find one that comes
                again, integers that only grow take no memory, all others 8 bytes a row.
            fingerprints: n 64-bit hashes (uint64), for a store that keeps them.
            views: n seeds, or (n, 2) of seed and view, for a store that was promised them so.
            labels: n 64-bit hashes (uint64) of the samples' labels, for a store that keeps them.

        Raises:
            RowError: rows that do not fit or are no distributions, rows beyond the plan or over
                rows that are there, or an id that another row has (names both). Nothing of the batch
                was written.
            SpaceError: the disk is full; the last commit stands.
        """
        self.write(
            self._position, rows, ids=ids, fingerprints=fingerprints, views=views, labels=labels
        )

    def write(
        self,
        start: int,
        rows: Any,
        *,
        ids: Sequence[Any] | None = None,
        fingerprints: Array | None = None,
        views: Any = None,
        labels: Array | None = None,
    ) -> None:
        """Write rows at `start`; like `append`, in any order. A row that is there never changes."""
        self._check_turn()
        values = _as_array(rows)
        if not values.ndim:
            raise RowError(f"rows come in batches, {rows!r:.80} came")
        stop = start + len(values)
        self._check_place(start, stop)
        content = self._encoding.encode(values, self.schema, start)
        columns = content + self._side_columns(start, stop, ids, fingerprints, views, labels)
        self._put(start, stop, columns)

    def write_columns(self, start: int, columns: Sequence[Array], *, checked: bool = False) -> None:
        """Write rows as they are stored, one array a column: what a lossless copy uses.

        Args:
            checked: the values were checked already, or their digest will be.

        Raises:
            RowError: an array of another shape or dtype than its column, or values that break the schema.
        """
        self._check_turn()
        if len(columns) != len(self.schema.columns):
            raise RowError(f"{len(columns)} arrays for {len(self.schema.columns)} columns")
        stop = start + len(columns[0])
        for column, array in zip(self.schema.columns, columns, strict=True):
            if array.shape != (stop - start, *column.shape) or array.dtype != column.numpy_dtype:
                raise RowError(
                    f"column {column.name!r} stores {column.stored} of shape {column.shape} a row, "
                    f"{array.dtype} of shape {array.shape} came for {stop - start} rows"
                )
        self._check_place(start, stop)
        if not checked:
            self._encoding.check(columns[: self._num_content], self.schema, start)
        self._put(start, stop, [np.ascontiguousarray(array) for array in columns])

    def promise_hashes(self, hashes: Array) -> None:
        """Seal the rows to come with these block hashes, uint8 (blocks, hashed columns, 32): they are not hashed here.

        For the copy of a sealed store, by a caller who reads it back and removes it where a hash is
        not that of its rows.
        """
        self._check_open()
        self._is_promised = True
        self._rows.ledger.promise(hashes)

    def _check_place(self, start: int, stop: int) -> None:
        if start == self._rows.end and (self.num_samples is None or stop <= self.num_samples):
            return  # the ordinary case: behind every row that is there
        if start < 0:
            raise RowError(f"rows start at 0, {start} came")
        if self.num_samples is not None and stop > self.num_samples and not self._grows:
            raise RowError(
                f"the store plans {self.num_samples} rows, this batch would end at row {stop - 1}; "
                "to extend it, resume it with exists='resume' and a larger num_samples"
            )
        taken = self._rows.accepted.overlap(start, stop)
        if taken:
            raise RowError(f"{describe(taken)} are written already, and a row never changes")

    def _side_columns(
        self,
        start: int,
        stop: int,
        ids: Sequence[Any] | None,
        fingerprints: Array | None,
        views: Any,
        labels: Array | None,
    ) -> list[Array]:
        columns: list[Array] = []
        array: Array | None
        for column in self.schema.columns[self._num_content :]:
            if column.role == "id":
                array = self._ids_of(column, start, stop, ids)
            elif column.role in ("fingerprint", "label"):
                hashes = fingerprints if column.role == "fingerprint" else labels
                array = None if hashes is None else np.asarray(hashes, dtype="<u8")
            else:
                array = self._views_of(start, stop, views)
            if array is None or len(array) != stop - start:
                came = "none" if array is None else str(len(array))
                raise RowError(
                    f"{stop - start} values of {column.name!r} were expected, {came} came"
                )
            columns.append(np.ascontiguousarray(array))
        return columns

    def _ids_of(self, column: Column, start: int, stop: int, ids: Sequence[Any] | None) -> Array:
        planned = None if self._ids is None else self._ids[start:stop]
        if ids is None:
            if planned is None:
                raise RowError(
                    f"the store keeps an id a row; give ids= for rows {start} to {stop - 1}"
                )
            return planned
        given = encode_ids(ids, column, start)
        if planned is not None and not np.array_equal(given, planned):
            raise RowError(f"ids for rows {start} to {stop - 1} differ from those of create")
        return given

    def _views_of(self, start: int, stop: int, views: Any) -> Array | None:
        planned = None if self._views is None else self._views[start:stop]
        if views is None:
            return planned
        given = encode_views(views, RowError)
        if planned is not None and not np.array_equal(given, planned):
            raise RowError(f"views for rows {start} to {stop - 1} differ from those of create")
        return given

    def _put(self, start: int, stop: int, columns: list[Array]) -> None:
        if self._known_ids is not None and not self._is_promised:
            self._known_ids.add(start, columns[self._id_index], self._rows.accepted)
        if self._header.sealed:
            self._unseal()
        self._rows.put(start, columns)
        self._position = stop

    # Durable

    def commit(self) -> None:
        """Make every row so far durable; when it returns, no kill can lose them."""
        self._check_turn()
        self._rows.commit()

    def seal(self) -> None:
        """All rows are there: publish the store with its digest. Sealing twice does nothing more.

        Raises:
            RowError: rows are missing, or two rows of an earlier run have one id; nothing was
                published, the last commit stands.
        """
        self._check_turn()
        missing = self.missing()
        if missing:
            raise RowError(
                f"{describe(missing)} of {self.path} are missing; write them, or close() and go on "
                "later with exists='resume'"
            )
        self.commit()
        if self._header.sealed:
            return
        if self._known_ids is not None:
            self._known_ids.load(self._rows.accepted)
        num_samples = self._rows.end if self.num_samples is None else self.num_samples
        digest = self._rows.ledger.finish(replace(self._header, num_samples=num_samples))
        self._header = replace(
            self._header, num_samples=num_samples, sealed=True, digest=digest, updated=now()
        )
        self._units.finish(self._header)
        if self._replaces is not None:
            self._publish(self._replaces)

    def _publish(self, target: Path) -> None:
        """Put the whole new store in the place of the old one."""
        self._units.close()
        if target.exists():
            disk.exchange(self.path, target)
            disk.sync_directory(target.parent)
            disk.remove(self.path)
        else:
            disk.rename(self.path, target)
        disk.sync_directory(target.parent)
        self.path, self._replaces = target, None

    def _unseal(self) -> None:
        """The first row after the last one of a sealed store: it goes on as a stream."""
        self._header = replace(
            self._header, num_samples=None, sealed=False, digest=None, updated=now()
        )
        self._units.replan(self._header)

    # What goes with the rows

    def set_identity(self, identity: Mapping[str, Any]) -> None:
        """Record what the rows are made from; before the first row, durable when it returns."""
        self._check_open()
        if self._header.sealed:
            raise ArgumentError(f"{self.path} is sealed, and its identity stays as it is")
        self._header = replace(self._header, identity=check_json(dict(identity), "identity"))
        self._units.replan(self._header)

    def update_meta(self, meta: Mapping[str, Any]) -> None:
        """Add or replace keys of the metadata; durable when it returns.

        No digest changes: it covers the rows and what they are.
        """
        self._check_open()
        checked = check_json(dict(meta))
        self._header = replace(self._header, meta={**self._header.meta, **checked}, updated=now())
        if self._header.sealed:
            self._units.finish(self._header)
        else:
            self._units.replan(self._header)

    def read(self, start: int, stop: int) -> Array:
        """Rows `[start, stop)` that were written, as probabilities (float32, or float64 where stored so)."""
        content = [self.read_side(c.name, start, stop) for c in self.schema.content]
        return self._encoding.decode(content, self.schema)

    def read_side(self, name: str, start: int, stop: int) -> Array:
        """Rows of one column as stored."""
        self._check_open()
        gaps = self._rows.accepted.missing(stop, start)
        if gaps:
            raise RowError(f"{describe(gaps)} are not written")
        self._rows.drain()
        index = self.schema.index(name)
        parts = geometry.split_at_units(start, stop, self._header.unit_rows)
        arrays = [self._units.read(index, first, last) for _, first, last in parts]
        column = self.schema.columns[index]
        empty = np.empty((0, *column.shape), column.numpy_dtype)
        return np.concatenate([empty, *arrays])

    # End

    def close(self) -> None:
        """Commit what was appended and release the store; what is missing can be written later."""
        if self._closed:
            return
        try:
            if self._pid == os.getpid():
                self._rows.commit()
        finally:
            self._release()

    def _release(self) -> None:
        self._closed = True
        try:
            self._rows.close()
            self._units.close()
            if self._replaces is not None and self._pid == os.getpid():
                with suppress(OSError):  # an overwrite that was not whole: nobody can go on with it
                    disk.remove(self.path)
        finally:
            self._lock.release()

    def __enter__(self) -> Writer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            try:
                if not self._closed and not self.missing():
                    self.seal()
            finally:
                self.close()
            return
        try:
            self.close()
        except (FostoreError, OSError) as second:
            error.add_note(f"while closing {self.path}: {second}")
        else:
            if self._replaces is not None:
                error.add_note(f"{self._replaces} is as it was; the new store was not whole")
                return
            error.add_note(
                f"{len(self.committed)} rows of {self.path} are committed; "
                "go on with exists='resume'"
            )

    def hand_over(self) -> None:
        """Let another thread write from here on; for who sees to it that only one does at a time."""
        self._thread = None

    def _check_turn(self) -> None:
        """Refuse a call from another thread than the one that writes."""
        self._check_open()
        own, writing = threading.current_thread(), self._thread
        if own is not writing and writing is not None and writing.is_alive():
            raise ArgumentError(
                f"the writer of {self.path} takes rows from one thread, which is {writing.name!r}, and "
                f"{own.name!r} called; hand rows to that thread (queue.Queue), or end it first"
            )
        self._thread = own

    def _check_open(self) -> None:
        if self._closed:
            raise ArgumentError(f"the writer of {self.path} is closed")
        if self._pid != os.getpid():
            raise ArgumentError(f"{self.path} belongs to process {self._pid}, which opened it")
        self._rows.check()


def _as_array(rows: Any) -> Array:
    """Rows as NumPy: arrays as they are, lists by NumPy, tensors through their own conversion."""
    if isinstance(rows, np.ndarray):
        return rows
    if hasattr(rows, "detach") and hasattr(rows, "cpu"):
        rows = rows.detach().cpu()
    try:
        return np.asarray(rows)
    except (ValueError, TypeError) as error:
        raise RowError(
            f"rows of type {type(rows).__name__} do not make an array: {error}"
        ) from error
