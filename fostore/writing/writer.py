"""Writing a store: rows go in, commits make them durable, and a sealed store never changes.

Order is the law: data on disk, then the commit that names it, then the seal that publishes it
(spec/integrity.md). A kill at any instant loses only what was not committed yet.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from fostore.encodings import encoding_of
from fostore.encodings.rows import as_given
from fostore.errors import ArgumentError, FostoreError, RowError
from fostore.formats import UnitWriter
from fostore.formats.claim import WHOLE, Claim
from fostore.places.lock import Lock
from fostore.schema.header import Header, now
from fostore.schema.jsontext import check_object
from fostore.schema.ranges import Range, Ranges, describe
from fostore.schema.row import Array, Schema
from fostore.writing.fidelity import Watch
from fostore.writing.ledger import rows_in
from fostore.writing.pipeline import Pipeline
from fostore.writing.sides import Sides, SideValues
from fostore.writing.target import Target


class Writer:
    """What writes a store; made by `fostore.create`.

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
        target: Target,
        units: UnitWriter,
        lock: Lock | None,
        *,
        commit_seconds: float,
        sides: Sides,
        claim: Claim = WHOLE,
        grows: bool = False,
        max_kl: float | None = None,
    ) -> None:
        self._target = target
        self._units = units
        self._lock = lock
        self.claim = claim  # what may be written
        self._grows = grows
        self._pid = os.getpid()
        self._thread: threading.Thread | None = None
        self._closed = False
        self._is_promised = False
        self._header = units.header
        self.schema: Schema = units.header.schema
        """What a row is."""
        self._encoding = encoding_of(self.schema)
        self.watch = Watch(units.header, max_kl)
        self._tells = claim.is_whole and units.commits_runs  # else records of units tell
        self._num_content = len(self.schema.content)
        written = rows_in(units)
        self._rows = Pipeline(units, written, commit_seconds=commit_seconds)
        self._position = written.prefix
        self._sides = SideValues(self._header, sides, self.read_side, grows=grows)
        # Check what a kill left behind, and seal the units that it left whole.
        ledger = self._rows.ledger
        ledger.witnesses = (self.watch, self._sides)
        ledger.adopt()
        ledger.seal(ledger.whole_units(self.num_samples))
        self._sides.check_planned(self.committed, self.path)

    # What it is

    @property
    def path(self) -> Path:
        """Where the files of the store lie now; a store that replaces another lies beside it until it is sealed."""
        return self._target.lies_at

    @property
    def header(self) -> Header:
        """The attributes of the store, as they will be written at the next occasion."""
        return self._header

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
        gaps = self._rows.accepted.missing(stop)
        return list(self.claim.rows(self._header.unit_rows, Ranges(gaps)).items)

    def __len__(self) -> int:
        """Rows written, committed or not."""
        return len(self._rows.accepted)

    def append(
        self,
        rows: Any,
        *,
        ids: Sequence[Any] | None = None,
        fingerprints: Array | None = None,
        views: Any = None,
        labels: Array | None = None,
        class_labels: Any = None,
        sequences: Any = None,
        tokens: Any = None,
        positions: Any = None,
    ) -> None:
        """Write rows after those that are there; durable at the next commit, a second away at most.

        Args:
            rows: (n, num_classes) or (n, num_members, num_classes), of the store's kind, as anything
                that NumPy takes; for a store of top-k rows also `Selected`, what was selected of n rows already.
                May be reused by the caller afterwards.
            ids: n keys, for a store that was promised them one batch at a time. To find one that comes
                again, integers that only grow take no memory, all others 8 bytes a row.
            fingerprints: n 64-bit hashes (uint64), for a store that keeps them.
            views: n seeds, or (n, 2) of seed and view, for a store that was promised them so.
            labels: n 64-bit hashes (uint64) of the samples' labels, for a store that keeps them.
            class_labels: n class numbers, for a store that keeps them.
            sequences: n numbers, for token rows: the sequence of each row, from 0 on, which never decreases.
            tokens: n numbers under `vocab_size`: the input token at each row, for a store that keeps them.
            positions: n numbers: where in its sequence each row stands, for a store that keeps them.

        Raises:
            RowError: rows that do not fit or are no distributions, rows beyond the plan or over
                rows that are there, or an id that another row has (names both). Nothing of the batch
                was written.
            SpaceError: the disk is full; the last commit stands.
        """
        sides = {"ids": ids, "fingerprints": fingerprints, "views": views, "labels": labels}
        sides |= {"class_labels": class_labels, "sequences": sequences, "tokens": tokens}
        self._write(self._position, rows, {**sides, "positions": positions})

    def write(
        self,
        start: int,
        rows: Any,
        *,
        ids: Sequence[Any] | None = None,
        fingerprints: Array | None = None,
        views: Any = None,
        labels: Array | None = None,
        class_labels: Any = None,
        sequences: Any = None,
        tokens: Any = None,
        positions: Any = None,
    ) -> None:
        """Write rows at `start`; like `append`, in any order. A row that is there never changes."""
        sides = {"ids": ids, "fingerprints": fingerprints, "views": views, "labels": labels}
        sides |= {"class_labels": class_labels, "sequences": sequences, "tokens": tokens}
        self._write(start, rows, {**sides, "positions": positions})

    def _write(self, start: int, rows: Any, sides: Sides) -> None:
        self._check_turn()
        values, count = as_given(rows, self._encoding, self.schema)
        stop = start + count
        self._check_free(start, stop)
        columns = self._encoding.encode(values, self.schema, start)
        if self._num_content < len(self.schema.columns):
            columns = columns + self._sides.encode(start, stop, sides)
        self.watch.look(start, values, columns)
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
            column.check(array, stop - start)
        self._check_free(start, stop)
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

    def _check_free(self, start: int, stop: int) -> None:
        planned = self._header.num_samples
        if self.claim.units is not None:
            self.claim.check_rows(self._header.unit_rows, start, stop)
        if start == self._rows.end and (planned is None or stop <= planned):
            return  # the ordinary case: behind every row that is there
        self._rows.check_free(start, stop, None if self._grows else planned)

    def _put(self, start: int, stop: int, columns: list[Array]) -> None:
        if self._sides.compares and not self._is_promised:
            self._sides.add(start, columns, self._rows.accepted)
        if self._header.sealed:  # the first row after the last one: the store goes on as a stream
            self._change(
                num_samples=None, num_sequences=None, sealed=False, digest=None, updated=now()
            )
        self._rows.put(start, columns)
        self._position = stop
        self._keep_fidelity()

    # Durable

    def commit(self) -> None:
        """Make every row so far durable; when it returns, no kill can lose them."""
        self._check_turn()
        self._rows.commit()
        self._keep_fidelity()

    def _keep_fidelity(self) -> None:
        """Record what was learned of rows that are committed by now: a kill loses no more of it than of the rows."""
        is_time = self.watch.has_news and self._tells and self._rows.is_idle()
        if is_time and (fidelity := self.watch.of_committed(self.committed)):
            self._change(fidelity=fidelity)

    def seal(self, num_sequences: int | None = None) -> None:
        """All rows are there: publish the store with its digest. Sealing twice does nothing more.

        `num_sequences`: of token rows of which nobody planned it; by default the last one has a row.

        Raises:
            RowError: rows are missing, two rows of an earlier run have one id, or a row loses more than `max_kl`;
                nothing was published, the last commit stands.
        """
        self._check_turn()
        self.claim.check_whole("sealing a store")
        missing = self.missing()
        if missing:
            raise RowError(
                f"{describe(missing)} of {self.path} are missing; write them, or close() and go on "
                "later with exists='resume'"
            )
        self.commit()
        if self._header.sealed:
            return
        end = self._rows.end if self.num_samples is None else self.num_samples
        counts: dict[str, Any] = {"num_samples": end}
        offsets = self._sides.offsets(self._header.num_sequences or num_sequences, self._rows.end)
        counts["num_sequences"] = None if offsets is None else len(offsets) - 1
        digest = self._rows.ledger.finish(replace(self._header, **counts))
        self._sides.load(self._rows.accepted)
        counts["fidelity"] = self.watch.of_all(end, self._content)
        self._change(offsets, **counts, sealed=True, digest=digest, updated=now())
        if self._target.is_beside:
            self._units.close()
            self._target.publish()

    def _change(self, offsets: Array | None = None, **fields: Any) -> None:
        """Replace what the store says of itself; durable when it returns."""
        self._header = replace(self._header, **fields)
        if self._header.sealed:
            self._units.finish(self._header, offsets)
        else:
            self._units.replan(self._header)

    # What goes with the rows

    def set_identity(self, identity: Mapping[str, Any]) -> None:
        """Record what the rows are made from; before the first row, durable when it returns."""
        self._check_open()
        if self._header.sealed:
            raise ArgumentError(f"{self.path} is sealed, and its identity stays as it is")
        self._change(identity=check_object(identity, "identity"))

    def update_meta(self, meta: Mapping[str, Any]) -> None:
        """Add or replace keys of the metadata; durable when it returns.

        No digest changes: it covers the rows and what they are.
        """
        self._check_open()
        checked = check_object(meta)
        self._change(meta={**self._header.meta, **checked}, updated=now())

    def read(self, start: int, stop: int) -> Array:
        """Rows `[start, stop)` that were written, as probabilities (float32, or float64 where stored so)."""
        self._check_open()
        return self._encoding.decode(self._content(start, stop), self.schema)

    def read_side(self, name: str, start: int, stop: int) -> Array:
        """Rows of one column as stored."""
        self._check_open()
        return self._rows.read(self.schema.index(name), start, stop)

    def _content(self, start: int, stop: int) -> list[Array]:
        return [self._rows.read(index, start, stop) for index in range(self._num_content)]

    # End

    def close(self) -> None:
        """Commit what was appended and release the store; what is missing can be written later."""
        if self._closed:
            return
        try:
            if self._pid == os.getpid():  # a forked child has the rows, and no right to write them
                self._rows.commit()
                self._keep_fidelity()
        finally:
            self.release()

    def release(self) -> None:
        """Release the store, and give up what was not committed."""
        self._closed = True
        try:
            self._rows.close()
            self._units.close()
            if self._pid == os.getpid():
                self._target.discard()
        finally:
            if self._lock is not None:
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
                if self.claim.is_whole and not (self._closed or self.missing()):
                    self.seal()
            finally:
                self.close()
            return
        try:
            self.close()
        except (FostoreError, OSError) as second:
            error.add_note(f"while closing {self.path}: {second}")
        else:
            if self._target.is_beside:
                error.add_note(f"{self._target.path} is as it was; the new store was not whole")
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
        self._thread = own  # one that has ended may be followed by another

    def _check_open(self) -> None:
        if self._closed:
            raise ArgumentError(f"the writer of {self.path} is closed")
        if self._pid != os.getpid():
            raise ArgumentError(f"{self.path} belongs to process {self._pid}, which opened it")
        self._rows.check()
