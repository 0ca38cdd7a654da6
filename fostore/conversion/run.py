"""convert: any format to any other, under a temporary name, checked, then published, with a receipt."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from fostore import disk
from fostore.conversion.changes import Changes
from fostore.conversion.losses import Losses
from fostore.conversion.part import Part, in_store, refuse_receipt, refuse_target, target_of
from fostore.conversion.plan import TEXT, Plan, make_plan
from fostore.conversion.receipt import Receipt
from fostore.conversion.sources import STREAM, Source, open_table
from fostore.encodings import encoding_of
from fostore.errors import (
    ArgumentError,
    DamageError,
    FormatError,
    FostoreError,
    LockedError,
    PlaceError,
    SpaceError,
    StoreExistsError,
)
from fostore.files import Hints
from fostore.files.hashing import Digester
from fostore.files.stores import guarded
from fostore.files.table import Batch, Table
from fostore.places import spool
from fostore.places.lock import Lock
from fostore.places.names import destination as resolved
from fostore.progress import Progress
from fostore.schema.digest import store_digest
from fostore.schema.header import now
from fostore.schema.jsontext import check_json
from fostore.schema.ranges import Ranges
from fostore.schema.row import Array
from fostore.schema.sides.known import KnownIds
from fostore.writing.create import create_like, software

VERIFY = ("none", "sample", "full")
_SAMPLED = 64
"""Rows that `verify="sample"` compares, beside the first and the last."""
_COPIED_BYTES = (
    1 << 20
)  # written and summed while they are in the cache: measured faster than 4 MiB
_COMMIT_SECONDS = 3.0  # what a kill may cost; each commit waits for the disk


def convert(
    source: Source,
    destination: str | os.PathLike[str],
    *,
    exists: str = "fail",
    kind: str | None = None,
    dtype: str | None = None,
    rows: slice | None = None,
    classes: Sequence[int | str] | None = None,
    member: int | None = None,
    class_names: Sequence[str] | None = None,
    ids: Any = None,
    meta: Mapping[str, Any] | None = None,
    source_format: str | None = None,
    source_kind: str | None = None,
    source_dtype: str | None = None,
    temperature: float | None = None,
    source_tol: float | None = None,
    id_column: str | None = None,
    columns: Sequence[str] | None = None,
    drop: Sequence[str] = (),
    delimiter: str | None = None,
    decimal: str | None = None,
    transpose: bool | None = None,
    allow_lossy: bool = False,
    allow_constant: bool = False,
    receipt: str | os.PathLike[str] | None = None,
    verify: str = "full",
    max_memory: int = 512 << 20,
    unit_rows: int | None = None,
    progress: bool = True,
) -> Receipt:
    """Convert `source` to `destination`; nothing appears under that name before it is whole and checked.

    Every row is held against what its source keeps of it (a digest, hashes of blocks, checksums of
    commits), also where only some are taken or the source is not finished: of a file that keeps one digest
    alone the others are read for it. `Receipt.source_checked` says what could be told.

    An interrupted conversion goes on where it stopped when it is asked for again: what is there is
    kept beside the destination under `.NAME.part`.

    Args:
        source: a path (`file.h5::group/probs` for an array inside), a folder or pattern of shards, a
            list of those, a `Store`, or "-" for JSON Lines on the standard input.
        destination: a path whose suffix says the format, or "-" for JSON Lines on the standard output.
            A link is followed: what it leads to is replaced, and the link stays. Temporary files lie
            beside it.
        exists: "fail" refuses a destination that is there, "overwrite" replaces it when the new one
            is whole, "resume" accepts it if it holds the same rows.
        kind, dtype: what the rows become; as they are by default.
        rows, classes, member: which rows (a slice), classes (names or numbers, in that order;
            probabilities are renormalised) and member.
        class_names, ids: given to rows that have none.
        meta: added to the metadata.
        source_format, source_kind, source_dtype, temperature, source_tol: what a plain file does not say
            itself; the last is how far from 1 its rows may sum. `source_kind` is also "percent".
        id_column: the column or array beside the rows that says which sample a row is. By default one
            with a known name (`id`, `filename`, a frame's index ...) whose keys are unique becomes the
            ids; what is not taken stands in the receipt's notes.
        columns: the columns that are the classes, in that order, of a table with a column a class.
        drop: columns or arrays that are not looked at.
        delimiter, decimal: in a text file, "," and "." by default, a tabulator in `.tsv`.
        transpose: whether the axes of the array come last first, as MATLAB, Julia and R write them.
        allow_lossy: whether what cannot be undone bit by bit is done: narrower numbers, another kind,
            metadata left out. The receipt then states the error.
        allow_constant: whether logits that are equal for all classes, and rows at the end that are all
            the same, are taken from a source that fostore did not write: they look as if nobody had
            written them. The receipt's notes then name them.
        receipt: where the receipt goes, as JSON.
        verify: "full" reads the result back and compares its digest, "sample" some rows, "none" nothing.
        max_memory: bytes that may be used, about.
        unit_rows: see `fostore.create`.
        progress: whether a bar is shown.

    Returns:
        The receipt.

    Raises:
        ArgumentError: something would be lost, a hint is missing, or a value cannot be used.
        UncommittedError: the source is not finished; says which rows can be taken.
        StoreExistsError, LockedError: nothing was changed.
        SpaceError, PlaceError: the destination is as it was. What was written beside it stays, and the
            same call goes on with it.
        FormatError, RowError, DamageError: the source is not what it should be; names where. The
            destination is as it was, and nothing is left beside it.
    """
    began = time.monotonic()
    place = os.fspath(destination)
    path = target_of(place)
    if receipt is not None:
        receipt = resolved(receipt)
    if exists not in ("fail", "overwrite", "resume"):
        raise ArgumentError(f"exists is {exists!r}, expected 'fail', 'overwrite' or 'resume'")
    if verify not in VERIFY:
        raise ArgumentError(f"verify is {verify!r}, expected one of {list(VERIFY)}")
    plan, changes = prepare(
        source,
        place,
        kind=kind,
        dtype=dtype,
        rows=rows,
        classes=classes,
        member=member,
        class_names=class_names,
        ids=ids,
        meta=meta,
        source_format=source_format,
        source_kind=source_kind,
        source_dtype=source_dtype,
        temperature=temperature,
        source_tol=source_tol,
        id_column=id_column,
        columns=columns,
        drop=drop,
        delimiter=delimiter,
        decimal=decimal,
        transpose=transpose,
        max_memory=max_memory,
        unit_rows=unit_rows,
        allow_constant=allow_constant,
    )
    lost = [*plan.lossy, *(f"left out: {what}" for what in plan.left_out)]
    if lost and not allow_lossy:
        raise ArgumentError(
            f"{plan.format} at {place!r} would lose something: {'; '.join(lost)}. Choose a format or "
            "dtype that holds it, or say allow_lossy=True (--allow-lossy); the receipt states the error"
        )
    if receipt is not None:
        refuse_receipt(Path(receipt), path, plan.source)
    described = _described(changes)
    with spool.beside(path), _Run(plan, verify, progress) as run:
        if path is None:
            run.stream()
        else:
            run.to_path(path, exists, Part(path, plan, described, changes.ids))
        done = replace(run.receipt(), seconds=round(time.monotonic() - began, 3), changes=described)
    if receipt is not None:
        disk.write_whole(Path(receipt), done.dumps())
    return done


def prepare(
    source: Source,
    destination: str,
    *,
    kind: str | None = None,
    dtype: str | None = None,
    rows: slice | None = None,
    classes: Sequence[int | str] | None = None,
    member: int | None = None,
    class_names: Sequence[str] | None = None,
    ids: Any = None,
    meta: Mapping[str, Any] | None = None,
    source_format: str | None = None,
    source_kind: str | None = None,
    source_dtype: str | None = None,
    temperature: float | None = None,
    source_tol: float | None = None,
    id_column: str | None = None,
    columns: Sequence[str] | None = None,
    drop: Sequence[str] = (),
    delimiter: str | None = None,
    decimal: str | None = None,
    transpose: bool | None = None,
    max_memory: int = 512 << 20,
    unit_rows: int | None = None,
    allow_constant: bool = False,
) -> tuple[Plan, Changes]:
    """What `convert` would do with these parameters; nothing is written."""
    hints = Hints(
        format=source_format,
        kind=source_kind,
        dtype=source_dtype,
        class_names=class_names,
        temperature=temperature,
        tol=source_tol,
        id_column=id_column,
        columns=columns,
        drop=tuple(drop),
        delimiter=delimiter,
        decimal=decimal,
        transpose=transpose,
        is_keyed=ids is not None,
    )
    with spool.beside(target_of(destination)):
        table = open_table(source, hints, rows)
    known = class_names is not None and tuple(class_names) == table.schema.class_names
    named = None if known else class_names
    changes = Changes(rows, classes, member, kind, dtype, named, ids)
    plan = make_plan(
        table,
        destination,
        changes,
        meta=check_json(dict(meta or {})),
        max_memory=max_memory,
        unit_rows=unit_rows,
        allow_constant=allow_constant,
    )
    return plan, changes


def _described(changes: Changes) -> dict[str, Any]:
    """The changes as JSON, for the receipt and for going on."""
    said: dict[str, Any] = {}
    if changes.rows is not None:
        said["rows"] = [changes.rows.start, changes.rows.stop, changes.rows.step]
    for name in ("classes", "member", "kind", "dtype", "class_names"):
        value = getattr(changes, name)
        if value is not None:
            said[name] = list(value) if name in ("classes", "class_names") else value
    if changes.ids is not None:
        said["ids"] = len(changes.ids)
    return said


class _Run:
    """One conversion on its way."""

    def __init__(self, plan: Plan, verify: str, shown: bool) -> None:
        self.plan = plan
        self._level = verify
        self._shown = shown
        self._measures = Losses(plan.selected.schema, plan.header.schema) if plan.lossy else None
        self._hashed = Digester(plan.header.schema, plan.header.num_samples)
        self._is_hashed = True
        key = plan.header.schema.role("id")
        self._key = 0 if key is None else plan.header.schema.index(key.name)
        # The writer of a store looks itself, and of a source with a digest its writer has looked.
        looks = plan.file_format is not None and plan.source.digest is None
        looks = looks and plan.source.num_rows is not None  # what went by cannot be read again
        self._known = KnownIds(key, self._ids) if looks and key is not None else None
        self._sample: dict[int, list[bytes]] = {}
        rows = plan.header.num_samples
        if verify == "sample" and rows:
            picked = np.random.default_rng(0).integers(0, rows, _SAMPLED).tolist()
            self._sample = {row: [] for row in sorted({0, rows - 1, *picked})}
        self._num_rows = rows or 0
        self._digest = ""

    def __enter__(self) -> _Run:
        return self

    def __exit__(self, *_: object) -> None:
        self._hashed.close()
        if self.plan.passing is not None:
            self.plan.passing.close()

    # Where it goes

    def stream(self) -> None:
        """To the standard output: what came through cannot be taken back."""
        file_format = self.plan.file_format
        assert file_format is not None
        with self._progress("converting", 0) as bar:
            file_format.write(Path(STREAM), self.plan.header, self._rows(0, bar), 0)
        self._end(self._hashed.digest())
        self._level = "none"

    def to_path(self, path: Path, exists: str, part: Part) -> None:
        """To a path, by way of a part beside it."""
        if in_store(path):
            raise ArgumentError(
                f"{str(path)!r} would lie inside a store; choose another destination"
            )
        disk.make_folders(path.parent)
        with Lock.acquire(path):
            disk.mend_exchange(path)
            if path.exists() and exists == "fail":
                raise StoreExistsError(
                    f"{str(path)!r} exists; exists='overwrite' replaces it, exists='resume' accepts "
                    "it if it holds the same rows (--exists)"
                )
            if path.exists() and exists == "resume":
                self._accept(path)
                part.remove()
                return
            refuse_target(path, self.plan.source)
            goes_on = part.begin()
            try:
                self._write(part.path, goes_on)
                self._verify(part.path)
            except (SpaceError, LockedError, PlaceError):
                raise
            except FostoreError as error:
                part.remove()  # going on with it would only fail again
                error.__dict__.pop("__notes__", None)  # which say how to go on with the part
                raise
            part.publish()

    # Rows

    def _rows(self, start: int, bar: Progress) -> Iterator[Batch]:
        """The rows from `start` on as they are written; those before only pass by the digest."""
        plan = self.plan
        encoding = encoding_of(plan.selected.schema)
        content = len(plan.selected.schema.content)
        position = 0
        for before in plan.selected.batches(0, plan.rows_at_once):
            stop = position + len(before[0])
            if not plan.selected.trusted:
                encoding.check(before[:content], plan.selected.schema, position)
            batch = self._changed(before, position)
            if self._known is not None:
                self._known.add(position, batch[self._key], Ranges.of((0, position)))
            if self._measures is not None:
                self._measures.update(before, batch)
            if self._is_hashed:
                self._hashed.update(batch)
            self._pick(batch, position, stop)
            if stop > start:
                skip = max(start - position, 0)
                yield [column[skip:] for column in batch] if skip else batch
                bar.add(stop - position - skip)
            position = stop
        self._num_rows = position

    def _changed(self, batch: Batch, position: int) -> Batch:
        for step in self.plan.steps:
            batch = step.step(batch, position)
        return batch

    def _ids(self, start: int, stop: int) -> Array:
        """The ids of rows that have passed, read once more."""
        parts = []
        for batch in self.plan.selected.batches(start, stop - start):
            parts.append(self._changed(batch, start)[self._key][: stop - start])
            start += len(parts[-1])
            if start == stop:
                break
        return np.concatenate(parts)

    def _pick(self, batch: Batch, start: int, stop: int) -> None:
        for row in self._sample:
            if start <= row < stop:
                self._sample[row] = [column[row - start].tobytes() for column in batch]

    def _write(self, part: Path, goes_on: bool) -> None:
        file_format = self.plan.file_format
        if file_format is None:
            self._end(self._write_store(part))
            return
        start = file_format.resume_at(part, self.plan.header) if goes_on else 0
        self._distrust(start)
        with self._progress("converting", start) as bar:
            file_format.write(part, self.plan.header, self._rows(start, bar), start)
        self._end(self._hashed.digest())

    def _write_store(self, part: Path) -> str:
        plan = self.plan
        with create_like(part, plan.header, commit_seconds=_COMMIT_SECONDS) as writer:
            start = len(writer)
            self._distrust(start)
            promised = self._promised()
            # Rows that all go through the writer are hashed there.
            self._is_hashed = start > 0 and promised is None
            if promised is not None:
                # Reading it back will take the one hash of every row that shows both: that the source
                # has the rows that were sealed, and that the destination has them now.
                writer.promise_hashes(promised)
            with self._progress("converting", start) as bar:
                row = start
                for batch in (
                    self._raw(start, bar) if promised is not None else self._rows(start, bar)
                ):
                    writer.write_columns(row, batch, checked=True)
                    row += len(batch[0])
            writer.seal()
            found = writer.header.digest
        assert found is not None
        if self._is_hashed:
            return self._hashed.digest()
        if promised is not None and found != plan.source.digest:
            raise self._otherwise(part, found, str(plan.source.digest))
        return found

    def _raw(self, start: int, bar: Progress) -> Iterator[Batch]:
        """The rows from `start` on as they lie, checked by nobody yet."""
        rows = max(_COPIED_BYTES // sum(self.plan.header.schema.row_bytes), 1)
        for batch in self.plan.source.batches(start, min(rows, self.plan.rows_at_once)):
            yield batch
            bar.add(len(batch[0]))

    def _promised(self) -> Array | None:
        """The hashes of a sealed source that is copied as it is and read back in full; else None."""
        proof = self.plan.source.proof
        if not self.plan.is_plain or self._level != "full" or proof is None:
            return None
        hashes = proof.hashes
        known = hashes is not None and store_digest(self.plan.header, hashes)
        return hashes if known == self.plan.source.digest else None

    def _distrust(self, start: int) -> None:
        """Rows of an earlier run are held against the source, whatever was asked for."""
        if start:
            self._level = "full"

    def _end(self, found: str) -> None:
        """All rows are written: does the source hold what it says?"""
        self._digest = found
        table = self.plan.source
        read = self._source_digest()
        if table.digest is not None and read is not None and read != table.digest:
            self._read_guarded()
            raise DamageError(
                f"{table.where} says that its digest is {table.digest}, and its rows have {read}: "
                "they are damaged; restore it from a copy"
            )

    def _read_guarded(self) -> None:
        """Read the source once more; raises, and names the rows, where it is the source that is damaged."""
        for _ in guarded(self.plan.source).batches(0, self.plan.rows_at_once):
            pass

    def _source_digest(self) -> str | None:
        if self.plan.is_plain:
            return self._digest
        return None if self.plan.passing is None else self.plan.passing.digest()

    # Checks

    def _accept(self, path: Path) -> None:
        """The destination is there already: hold it against the source."""
        with self._progress("comparing", 0) as bar:
            for _ in self._rows(0, bar):
                pass
        self._end(self._hashed.digest())
        try:
            there = _digest_of(open_table(str(path), self._back()), self.plan.rows_at_once)
        except (FormatError, ArgumentError) as error:
            raise StoreExistsError(f"{str(path)!r} exists and cannot be read: {error}") from error
        if there != self._digest:
            raise StoreExistsError(
                f"{str(path)!r} exists and holds other rows: its digest is {there}, these rows have "
                f"{self._digest}; choose another path, or exists='overwrite' (--exists overwrite)"
            )
        self._level = "full"

    def _verify(self, part: Path) -> None:
        if self._level == "none":
            return
        table = open_table(str(part), self._back())
        if self._level == "sample" and self._sample and self.plan.format not in TEXT:
            self._compare_sample(table)
            return
        with self._progress("verifying", 0) as bar:
            found = _digest_of(table, self.plan.rows_at_once, bar)
        self._level = "full"
        if found == self._digest and table.digest in (None, found):
            return
        self._read_guarded()
        raise self._otherwise(part, found, self._digest)

    def _otherwise(self, part: Path, found: str, expected: str) -> DamageError:
        return DamageError(
            f"what was written to {part} has the digest {found}, not {expected}: the disk failed, or "
            "rows of an earlier run were of another source; nothing was published, run it again"
        )

    def _compare_sample(self, table: Table) -> None:
        for row, expected in self._sample.items():
            there = next(iter(table.batches(row, 1)))
            if [column[0].tobytes() for column in there] != expected:
                raise DamageError(
                    f"row {row} reads back otherwise than it was written; nothing was published",
                    ((row, row + 1),),
                )

    def _back(self) -> Hints:
        """What reading the destination back needs to be told: what its format does not keep."""
        schema = self.plan.header.schema
        file_format = self.plan.file_format
        if file_format is None or file_format.holds.header:
            return Hints()
        column = schema.role("id")
        ids = None if column is None else f"S{column.shape[0]}" if column.shape else "int64"
        return Hints(
            format=self.plan.format,
            kind=schema.kind,
            dtype=schema.dtype,
            class_names=schema.class_names,
            tol=schema.sum_tolerance,
            ids=ids,
        )

    def _progress(self, name: str, done: int) -> Progress:
        shown = self._shown and sys.stderr is not None
        return Progress(shown, self.plan.header.num_samples, done, name, unit="rows")

    def receipt(self) -> Receipt:
        """What was done."""
        plan, table = self.plan, self.plan.source
        checked = "none" if table.digest is None else "full"
        checked = checked if table.checked == "none" else table.checked
        return Receipt(
            source=table.where,
            source_format=table.format,
            source_digest=table.digest or self._source_digest(),
            destination=plan.destination,
            destination_format=plan.format,
            destination_digest=self._digest,
            num_rows=self._num_rows,
            schema=plan.header.schema.to_json(),
            left_out=plan.left_out,
            lossy=plan.lossy,
            measured=None if self._measures is None else self._measures.report(),
            notes=(*table.notes, *(plan.watch.notes if plan.watch is not None else ())),
            source_checked=checked,
            verified="destination" if checked == "part" and self._level == "full" else self._level,
            created=now(),
            software=software(),
        )


def _digest_of(table: Table, rows: int, bar: Progress | None = None) -> str:
    """The digest of all rows of a table, read anew."""
    with Digester(table.schema, table.num_rows) as digester:
        for batch in table.batches(0, rows):
            digester.update(batch)
            if bar is not None:
                bar.add(len(batch[0]))
        return digester.digest()
