"""Looking for damage: every row of a store against its hashes, its digest and its schema."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from fostore.encodings import encoding_of
from fostore.errors import ArgumentError, DamageError, RowError
from fostore.formats import ColumnView, Finding, Reader
from fostore.reading.proof import RunCheck
from fostore.schema import digest
from fostore.schema.ranges import Range, Ranges, describe
from fostore.schema.row import Array
from fostore.schema.sequences import RowOrder, offsets_of
from fostore.schema.sides import side_of

_PIECE = 1 << 20
LEVELS = ("structure", "checksums", "full")


def audit(reader: Reader, level: str = "full") -> list[Finding]:
    """Everything wrong with an open store; see `Store.verify` for the levels.

    Damage in one place does not hide damage in another: each finding names its rows.
    """
    if level not in LEVELS:
        raise ArgumentError(f"level is {level!r}, expected one of {list(LEVELS)}")
    findings = list(reader.findings())
    if not reader.header.meta_is_sound:
        message = (
            "the metadata is not what was written: the disk or another program has changed it; no row is "
            "touched. What is there stays, and counts from the next time that fostore writes it"
        )
        findings.append(Finding("meta", None, message))
    if level == "structure":
        return findings
    lost = [finding.rows for finding in findings if finding.rows is not None]
    try:
        findings += _check_rows(reader, level, lost)
    except DamageError as error:
        known = {finding.message for finding in findings}
        if error.message not in known:
            rows = error.rows or (None,)
            findings += [Finding("files", r, error.message) for r in rows]
    return findings


def _check_rows(reader: Reader, level: str, lost: list[Range]) -> list[Finding]:
    header = reader.header
    schema = header.schema
    encoding = encoding_of(schema)
    hashed = [i for i, column in enumerate(schema.columns) if column.hashed]
    stored = reader.block_hashes()
    fresh = np.zeros_like(stored)
    findings: list[Finding] = []
    unread: dict[str, DamageError] = {}
    views: list[ColumnView] = []

    def read(start: int, stop: int) -> list[Array]:
        return [view.read(start, stop) for view in views]

    order = None if schema.role("sequence") is None else RowOrder(schema)
    for start, stop in _blocks(reader, lost):
        block = start // header.block_rows
        views = views or [reader.column(i) for i in range(len(schema.columns))]
        try:
            columns = read(start, stop)
        except DamageError as error:  # of a chunk that cannot be decoded; others can
            unread.setdefault(error.message, error)
            continue
        whole = start % header.block_rows == 0 and (
            stop % header.block_rows == 0 or stop == header.num_samples
        )
        if whole and block < len(stored):
            for at, i in enumerate(hashed):
                fresh[block, at] = digest.block_hash(columns[i])
                # All zero is unknown: those of a unit in progress, or that damage took.
                if stored[block, at].any() and (fresh[block, at] != stored[block, at]).any():
                    where = f"column {schema.columns[i].name}"
                    message = f"rows {start} to {stop - 1} do not have the bytes that were sealed"
                    findings.append(Finding(where, (start, stop), message))
        if level == "full":
            try:
                encoding.check(columns[: len(schema.content)], schema, start)
                for column, stored_rows in zip(schema.columns, columns, strict=True):
                    check = None if column.role == "content" else side_of(column.role).check
                    if check is not None:
                        check(stored_rows, header.bounds, start)
                if order is not None:
                    order.follow(start, columns)
            except RowError as error:
                findings.append(Finding("values", (start, stop), str(error)))
    for run in reader.runs():
        if run.crc is None or any(a < run.stop and run.start < b for a, b in lost):
            continue
        views = views or [reader.column(i) for i in range(len(schema.columns))]
        for start, stop in RunCheck(run, schema.columns, read).damage():
            message = f"{describe([(start, stop)])} do not have the bytes that were committed"
            findings.append(Finding("journal", (start, stop), message))
    for message, damage in unread.items():
        findings += [Finding("files", rows, message) for rows in damage.rows or (None,)]
    is_whole = header.sealed and not (lost or unread)
    if is_whole and header.digest != digest.store_digest(header, fresh):
        message = f"the content does not have the digest {header.digest}"
        findings.append(Finding("digest", None, message))
    elif is_whole and not _has_its_offsets(reader):
        message = (
            "they are not those of the column 'sequence': the disk or another program has changed them; no "
            "row is touched"
        )
        findings.append(Finding("offsets", None, message))
    return findings


def _has_its_offsets(reader: Reader) -> bool:
    """Whether the array of where sequences begin, where there is one, is that of their column, which is sound."""
    stored, header = reader.offsets(), reader.header
    if stored is None or header.num_sequences is None:
        return True
    rows, view = header.num_samples or 0, reader.column(header.schema.index("sequence"))
    pieces = (view.read(start, min(start + _PIECE, rows)) for start in range(0, rows, _PIECE))
    try:
        return np.array_equal(stored, offsets_of(pieces, header.num_sequences))
    except RowError:  # sealed so: of the rows the level "full" says which
        return False


def _blocks(reader: Reader, lost: list[Range]) -> Iterator[Range]:
    """The committed rows, cut at block boundaries, less the blocks that touch lost rows."""
    size = reader.header.block_rows
    gone = Ranges.of(*((a - a % size, b + -b % size) for a, b in lost))
    for first, last in reader.committed:
        for start, stop in gone.missing(last, first):  # not row by row: a claim may be huge
            row = start
            while row < stop:
                end = min(stop, row - row % size + size)
                yield row, end
                row = end
