"""What a conversion will do, worked out before a byte is written: the rows, the losses, the bytes, the memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fostore import files
from fostore.conversion import changes as change
from fostore.conversion.changes import Encoded
from fostore.conversion.destination import target_of
from fostore.conversion.options import HINTS, Options
from fostore.conversion.sources import Source, open_table
from fostore.conversion.unwritten import Watch, watched
from fostore.encodings import default_encoding, default_tolerance, encoding_of
from fostore.encodings.bound import check_max_kl
from fostore.errors import ArgumentError
from fostore.files import FileFormat, Hints, Home
from fostore.files.hashing import HashedTable
from fostore.files.stores import guarded
from fostore.files.table import Table
from fostore.formats import FORMATS, format_of
from fostore.formats import SUFFIXES as STORES
from fostore.places import spool
from fostore.places.names import STREAM
from fostore.schema import geometry
from fostore.schema.header import Header
from fostore.schema.jsontext import check_object
from fostore.schema.row import TOKEN, Schema
from fostore.schema.shown import tabled
from fostore.writing.request import software

_BATCH_BYTES = 4 << 20
_BASE_BYTES = 80 << 20
"""What the interpreter and the libraries take without any rows."""
_STORE = Home("")
"""What a store costs."""


@dataclass(frozen=True, slots=True)
class Plan:
    """A conversion before it runs."""

    options: Options
    """What the user says, without what changes nothing."""
    source: Table
    selected: Table
    """The rows as they are stored in the source, of which some are chosen."""
    passing: HashedTable | None
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
    def is_text(self) -> bool:
        """Whether a row in the middle of the destination is found by reading those before."""
        return files.FILES.get(self.format, _STORE).is_text

    @property
    def hints_back(self) -> Hints:
        """What reading the destination back needs to be told: what its format does not keep."""
        if self.format in FORMATS or files.file_format(self.format).holds.header:
            return Hints()
        schema, column = self.header.schema, self.header.schema.role("id")
        ids = None if column is None else f"S{column.shape[0]}" if column.shape else "int64"
        return Hints(
            format=self.format,
            kind=schema.kind,
            dtype=schema.dtype,
            class_names=schema.class_names,
            tol=schema.sum_tolerance,
            ids=ids,
        )

    @property
    def num_bytes(self) -> int | None:
        """Bytes of the rows as they will be stored; text takes more. None for a stream."""
        rows = self.header.num_samples
        return None if rows is None else rows * sum(self.header.schema.row_bytes)

    @property
    def peak_bytes(self) -> int:
        """About what memory will be taken, whatever the number of rows."""
        widest = _widest(self.source.schema, self.header.schema)
        base, copies = _takes(self.source.format, self.format)
        return base + copies * self.rows_at_once * widest

    def to_json(self) -> dict[str, Any]:
        """The plan as JSON; what a stream does not say is null."""
        schema = self.header.schema
        return {
            "source": {"path": self.source.where, "format": self.source.format},
            "destination": {"path": self.destination, "format": self.format},
            "rows": self.header.num_samples,
            "row_shape": list(schema.row_shape),
            "kind": schema.kind,
            "dtype": schema.dtype,
            "bytes": self.num_bytes,
            "peak_bytes": self.peak_bytes,
            "rows_at_once": self.rows_at_once,
            "left_out": list(self.left_out),
            "lossy": list(self.lossy),
            "notes": list(self.source.notes),
        }

    def text(self, needs: Sequence[str] = ()) -> str:
        """The lines that `--dry-run` prints; `needs` are the options without which nothing would be written."""
        schema, rows = self.header.schema, self.header.num_samples
        size = "unknown" if self.num_bytes is None else f"{self.num_bytes:,}"
        if self.is_text:
            size += " as numbers; text takes two to five times as much"
        number = "unknown" if rows is None else f"{rows:,}"
        at_once = f"{self.rows_at_once:,} rows at a time"
        return tabled(
            f"{self.source.where} ({self.source.format}) -> {self.destination} ({self.format})",
            [
                ("rows", f"{number} of {schema.row_shape}, {schema.kind} {schema.dtype}"),
                ("bytes", size),
                ("peak memory", f"about {self.peak_bytes >> 20} MiB, {at_once}"),
                *(("left out", what) for what in self.left_out),
                *(("lossy", what) for what in self.lossy),
                *(("note", note) for note in self.source.notes),
                *(("needs", need) for need in needs),
            ],
        )


def prepare(source: Source, destination: str, options: Options) -> Plan:
    """What `convert` would do; nothing is written.

    Raises:
        ArgumentError: the destination has no format, or cannot hold such rows; says what can be done.
    """
    check_max_kl(options.max_kl)
    # Opening a file may read all of it, as of JSON, whose rows wait in a spool.
    with spool.beside(target_of(destination)):
        table = open_table(source, _hints(options), options.rows)
    if options.class_names is not None and tuple(options.class_names) == table.schema.class_names:
        options = replace(options, class_names=None)  # which changes nothing
    return _plan(table, destination, options)


def refuse_loss(plan: Plan) -> None:
    """Raise ArgumentError where a conversion would lose something that nobody has agreed to."""
    lost = [*plan.lossy, *(f"left out: {what}" for what in plan.left_out)]
    if lost and not plan.options.allow_lossy:
        raise ArgumentError(
            f"{plan.format} at {plan.destination!r} would lose something: {'; '.join(lost)}. Choose a format or "
            "dtype that holds it, or say allow_lossy=True (--allow-lossy); the receipt states the error"
        )


def _hints(options: Options) -> Hints:
    hints = {hint: getattr(options, name) for hint, name in HINTS.items()}
    return Hints(**{**hints, "drop": tuple(options.drop)}, is_keyed=options.ids is not None)


def _plan(source: Table, destination: str, options: Options) -> Plan:
    name = _format_of(destination)
    if options.selects or source.digest is None:
        source = guarded(source, options.rows)  # nobody will compare the digest of all
    watch = None
    if source.took:  # a file without a header, which is not of ours
        source, watch = watched(source, options.rows, is_allowed=options.allow_constant)
    passing = HashedTable(source)
    # Chosen of rows that were hashed as they passed, so that the source is read once.
    selected = change.select(replace(source, batches=passing.batches), options)
    # A plain file holds dense rows, which a rule is asked for, where the encoding is not.
    is_plain_file = name not in FORMATS and not files.file_format(name).holds.header
    dense_by = options.rule if is_plain_file and options.encoding is None else None
    encode = change.encode(
        selected.schema,
        options.kind,
        options.dtype,
        options.encoding,
        None if dense_by else options.rule,
        k=options.k,
        temperatures=options.temperatures,
    )
    steps = [encode]
    left_out: tuple[str, ...] = ()
    meta = {**selected.meta, **check_object(options.meta)}
    identity, extra = selected.identity, selected.extra
    if name not in FORMATS:
        holds = files.file_format(name).holds
        if is_plain_file:
            schema = encode.schema
            left_out = _left_out(schema, meta, identity, extra, holds)
            meta, identity, extra = {}, {}, {}
            names, ids = holds.names, holds.ids
            steps.append(change.without_header(schema, names=names, ids=ids, rule=dense_by))
        _check_holds(name, holds, steps[-1].schema)
    elif selected.num_rows is None and not format_of(Path(destination)).streams:
        raise ArgumentError(
            f"{destination} needs the number of rows from the start, and a stream has none; convert "
            "to .zarr first"
        )
    schema = steps[-1].schema.readable
    is_plain = not options.selects and all(step.schema == source.schema for step in steps)
    header = Header(
        schema=schema,
        num_samples=selected.num_rows,
        unit_rows=geometry.unit_rows(schema.row_bytes, selected.num_rows, options.unit_rows),
        block_rows=geometry.block_rows(schema.row_bytes),
        identity=identity,
        software=software(),
        fidelity=source.header.fidelity if is_plain and source.header else None,
        meta=meta,
        extra=extra,
        num_sequences=selected.num_sequences if schema.row_axis == TOKEN else None,
    )
    if is_plain and name not in FORMATS and source.digest and source.header:
        # The same rows in another wrapping: made again, the file is the same, bit by bit.
        origin = source.header
        header = replace(
            header,
            id=origin.id,
            software=origin.software,
            created=origin.created,
            updated=origin.updated,
        )
    return Plan(
        options=options,
        source=source,
        selected=source if is_plain else selected,
        passing=None if is_plain or options.rows is not None else passing,
        steps=tuple(steps),
        header=header,
        destination=destination,
        format=name,
        rows_at_once=_rows_at_once(source, name, header, options.max_memory),
        left_out=left_out,
        lossy=tuple(what for step in steps for what in step.lost),
        watch=watch,
    )


def _rows_at_once(source: Table, name: str, header: Header, max_memory: int) -> int:
    """Rows of a batch: whole blocks where that many fit, so that each is hashed at once."""
    widest = _widest(source.schema, header.schema)
    base, copies = _takes(source.format, name)
    least = base + copies * widest
    if max_memory < least:
        raise ArgumentError(
            f"max_memory is {max_memory:,} bytes, and {least:,} are needed for one row at a time and "
            "the libraries; allow more with max_memory= (--max-memory)"
        )
    fitting = (max_memory - base) // (copies * widest)
    rows = min(max(_BATCH_BYTES // widest, 1), fitting)
    return rows // header.block_rows * header.block_rows or rows


def _widest(before: Schema, after: Schema) -> int:
    """What a row takes in memory on its way, stored or decoded."""
    encodings = [encoding_of(schema) for schema in (before, after)]
    decoded = [e.decoded_bytes(s) for e, s in zip(encodings, (before, after), strict=True)]
    if encodings[0] is encodings[1] and not encodings[0].is_whole(before):
        decoded = []  # rows that keep some classes stay as narrow as they are
    return max(sum(before.row_bytes), sum(after.row_bytes), *decoded)


def _takes(*formats: str) -> tuple[int, int]:
    """The bytes that are taken without any rows, and the copies of a batch."""
    homes = {name: files.FILES.get(name, _STORE) for name in formats}
    libraries = sum(home.library_bytes for home in homes.values())
    return _BASE_BYTES + libraries, max(home.copies for home in homes.values())


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
    dropped = [column.name for column in sides if column.role != "id" or not holds.ids]
    has = {
        "class_names": schema.class_names is not None and not holds.names,
        "encoding": schema.encoding != default_encoding(schema.kind),
        "temperature": schema.temperature != 1.0,
        "sum tolerance": schema.sum_tolerance
        > default_tolerance(schema.kind, schema.dtype, schema.num_classes),
        "metadata": bool(meta),
        "identity": bool(identity),
        "keys of a newer version": bool(extra),
    }
    return (*(name for name, is_set in has.items() if is_set), *(f"column {n}" for n in dropped))
