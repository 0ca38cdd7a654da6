"""What a conversion will do, worked out before a byte is written: the rows, the losses, the bytes, the memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fostore import files
from fostore.conversion import changes as change
from fostore.conversion.changes import Changes, Encoded
from fostore.conversion.sources import STREAM
from fostore.conversion.unwritten import Watch, watched
from fostore.encodings import default_tolerance
from fostore.errors import ArgumentError
from fostore.files import FileFormat
from fostore.files.hashing import Passing
from fostore.files.stores import guarded
from fostore.files.table import Table
from fostore.formats import FORMATS, format_of
from fostore.formats import SUFFIXES as STORES
from fostore.schema import geometry
from fostore.schema.header import Header
from fostore.schema.row import Schema
from fostore.writing.create import software

_BATCH_BYTES = 4 << 20
_COPIES = 8  # of a batch in memory at once, decoded and encoded: measured under 6
TEXT = ("json", "jsonl", "csv")
"""Formats in which a row in the middle is found by reading those before: a sample costs as much as all."""
_BASE_BYTES = 80 << 20
"""What the interpreter and the libraries take without any rows."""
_LIBRARY_BYTES = {"pt": 170 << 20, "parquet": 110 << 20, "arrow": 60 << 20}
"""What else the libraries of a format take, measured."""
_TEXT_COPIES = {"json": 16, "csv": 24, "jsonl": 36}
"""Of a batch, where its numbers become objects or text: measured."""


@dataclass(frozen=True, slots=True)
class Plan:
    """A conversion before it runs."""

    source: Table
    selected: Table
    """The rows as they are stored in the source, of which some are chosen."""
    passing: Passing | None
    """Takes the digest of the source while its rows pass; None where they stay as they are, or some are left out."""
    steps: tuple[Encoded, ...]
    header: Header
    destination: str
    format: str
    rows_at_once: int
    left_out: tuple[str, ...]
    lossy: tuple[str, ...]
    watch: Watch | None
    """Who looks for rows that nobody wrote, where the source may have some."""

    @property
    def is_plain(self) -> bool:
        """Whether the rows stay as they are, all of them."""
        return self.selected is self.source

    @property
    def file_format(self) -> FileFormat | None:
        """The format of a single file; None where the destination is a store."""
        return None if self.format in FORMATS else files.file_format(self.format)

    @property
    def num_bytes(self) -> int | None:
        """Bytes of the rows as they will be stored; text takes more. None for a stream."""
        rows = self.header.num_samples
        return None if rows is None else rows * sum(self.header.schema.row_bytes)

    @property
    def peak_bytes(self) -> int:
        """About what memory will be taken, whatever the number of rows."""
        widest = max(sum(self.source.schema.row_bytes), sum(self.header.schema.row_bytes))
        base, copies = _takes(self.source.format, self.format)
        return base + copies * self.rows_at_once * widest

    def text(self) -> str:
        """The lines that `--dry-run` prints."""
        schema, rows = self.header.schema, self.header.num_samples
        size = "unknown" if self.num_bytes is None else f"{self.num_bytes:,}"
        if self.format in TEXT:
            size += " as numbers; text takes two to five times as much"
        lines = [
            f"{self.source.where} ({self.source.format}) -> {self.destination} ({self.format})",
            f"rows        {'unknown' if rows is None else f'{rows:,}'} of {schema.row_shape}, "
            f"{schema.kind} {schema.dtype}",
            f"bytes       {size}",
            f"peak memory about {self.peak_bytes >> 20} MiB, {self.rows_at_once:,} rows at a time",
        ]
        lines += [f"left out    {what}" for what in self.left_out]
        lines += [f"lossy       {what}" for what in self.lossy]
        lines += [f"note        {note}" for note in self.source.notes]
        return "\n".join(lines)


def make_plan(
    source: Table,
    destination: str,
    changes: Changes,
    *,
    format: str | None = None,
    meta: Mapping[str, Any] | None = None,
    max_memory: int = 512 << 20,
    unit_rows: int | None = None,
    allow_constant: bool = False,
) -> Plan:
    """Work a conversion out.

    Raises:
        ArgumentError: the destination has no format, or cannot hold such rows; says what can be done.
    """
    name = format or _format_of(destination)
    if changes.selects or source.digest is None:
        source = guarded(source, changes.rows)  # nobody will compare the digest of all
    watch = None
    if source.took:  # a file without a header, which is not of ours
        source, watch = watched(source, changes.rows, is_allowed=allow_constant)
    passing = Passing(source)
    selected = change.select(replace(source, batches=passing.batches), changes)
    steps = [change.encode(selected.schema, changes.kind, changes.dtype)]
    left_out: tuple[str, ...] = ()
    merged = {**selected.meta, **(meta or {})}
    identity, extra = selected.identity, selected.extra
    if name not in FORMATS:
        holds = files.file_format(name).holds
        _check_holds(name, holds, steps[-1].schema)
        if not holds.header:
            schema = steps[-1].schema
            left_out = _left_out(schema, merged, identity, extra, holds)
            merged, identity, extra = {}, {}, {}
            steps.append(change.without_header(schema, names=holds.names, ids=holds.ids))
    elif selected.num_rows is None and not format_of(Path(destination)).streams:
        raise ArgumentError(
            f"{destination} needs the number of rows from the start, and a stream has none; convert "
            "to .zarr first"
        )
    schema = steps[-1].schema
    is_plain = not changes.selects and all(step.schema == source.schema for step in steps)
    header = Header(
        schema=schema,
        num_samples=selected.num_rows,
        unit_rows=geometry.unit_rows(schema.row_bytes, selected.num_rows, unit_rows),
        block_rows=geometry.block_rows(schema.row_bytes),
        identity=identity,
        software=software(),
        meta=merged,
        extra=extra,
    )
    widest = max(sum(source.schema.row_bytes), sum(schema.row_bytes))
    base, copies = _takes(source.format, name)
    least = base + copies * widest
    if max_memory < least:
        raise ArgumentError(
            f"max_memory is {max_memory:,} bytes, and {least:,} are needed for one row at a time and "
            "the libraries; allow more with max_memory= (--max-memory)"
        )
    fitting = (max_memory - base) // (copies * widest)
    rows = min(max(_BATCH_BYTES // widest, 1), fitting)
    whole = rows // header.block_rows * header.block_rows
    return Plan(
        source,
        source if is_plain else selected,
        None if is_plain or changes.rows is not None else passing,
        tuple(steps),
        header,
        destination,
        name,
        whole or rows,
        left_out,
        tuple(what for step in steps for what in step.lost),
        watch,
    )


def _takes(*formats: str) -> tuple[int, int]:
    """The bytes that are taken without any rows, and the copies of a batch."""
    libraries = sum(_LIBRARY_BYTES.get(name, 0) for name in set(formats))
    return _BASE_BYTES + libraries, max(_TEXT_COPIES.get(name, _COPIES) for name in formats)


def _format_of(destination: str) -> str:
    if destination == STREAM:
        return "jsonl"
    suffix = Path(destination).suffix.lower()
    name = STORES.get(suffix) or files.SUFFIXES.get(suffix)
    if name is None:
        raise ArgumentError(
            f"the destination {destination!r} has the suffix {suffix!r}, expected one of "
            f"{sorted({*STORES, *files.SUFFIXES})}"
        )
    return name


def _check_holds(name: str, holds: files.Holds, schema: Schema) -> None:
    if schema.num_members is not None and not holds.members:
        raise ArgumentError(
            f"{name} cannot hold members; choose one with member= (--member), or another format"
        )
    if not holds.header and len(schema.content) > 1:
        raise ArgumentError(
            f"{name} holds one array, and {schema.kind} have {len(schema.content)} columns; convert "
            "them with kind='log_probs' (--kind log_probs), or choose a format with a header"
        )
    if not holds.header and schema.dtype == "bfloat16":
        raise ArgumentError(
            f"{name} cannot say that its numbers are bfloat16; widen them with dtype='float32' "
            "(--dtype float32), which loses nothing"
        )
    for column in schema.columns if holds.header else schema.content:
        if column.stored not in holds.dtypes:
            raise ArgumentError(
                f"{name} cannot hold {column.stored} (column {column.name!r}), only "
                f"{list(holds.dtypes)}; say dtype= (--dtype), or choose another format"
            )


def _left_out(
    schema: Schema,
    meta: Mapping[str, Any],
    identity: Mapping[str, Any],
    extra: Mapping[str, Any],
    holds: files.Holds,
) -> tuple[str, ...]:
    """What a format without a header would drop, in a user's words."""
    sides = schema.columns[len(schema.content) :]
    found = [column.name for column in sides if column.role != "id" or not holds.ids]
    parts = {
        "class_names": schema.class_names is not None and not holds.names,
        "temperature": schema.temperature != 1.0,
        "sum tolerance": schema.sum_tolerance
        > default_tolerance(schema.kind, schema.dtype, schema.num_classes),
        "metadata": bool(meta),
        "identity": bool(identity),
        "keys of a newer version": bool(extra),
    }
    return (*(name for name, there in parts.items() if there), *(f"column {n}" for n in found))
