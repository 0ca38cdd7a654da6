"""The attributes of a store: its schema, geometry, identity, history and the user's metadata."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from fostore.errors import ArgumentError, DamageError, FormatError, UnsupportedError
from fostore.schema import geometry, jsontext
from fostore.schema.columns import expect, expect_all
from fostore.schema.row import TOKEN, Schema
from fostore.schema.sequences import check_count
from fostore.schema.shown import Grid, Shown, flat
from fostore.schema.sides import Bounds

VERSION = "1.0"
_MAX_BYTES = 8 << 20
"""Bytes of canonical JSON that a header and its metadata may take: parsed in a second, in memory that all have."""
MAX_TEXT = 2 * _MAX_BYTES
"""Bytes of the text in which they lie: JSON may be spelled longer, with spaces and escapes."""

CHECKSUM, _META_CHECKSUM = "checksum", "meta_checksum"
UNITS = "units"
"""Units are written whole, by any number of processes, each committed by a record of its own."""
_KEYS = frozenset("version num_samples digest fidelity commits meta_checksum checksum".split())
_KINDS = {
    "unit_rows": int,
    "block_rows": int,
    "id": str,
    "identity": dict,
    "software": dict,
    "created": str,
    "updated": str,
    "sealed": bool,
}
"""What is there in every header, under the name that it has here."""
_SCHEMA_KEYS = frozenset(
    "requires row_axis num_classes num_members axes kind encoding columns sum_tolerance temperature "
    "class_names".split()
)
_SHOWN = 8
"""Entries of identity, and of metadata, that are shown."""
_MAX_ROWS = 1 << 53  # beyond, JSON readers in other languages lose integers


def _planned(count: int | None) -> str:
    return "open end" if count is None else f"{count:,}"


def now() -> str:
    """The time as the attributes hold it: UTC, ISO 8601, whole seconds."""
    return datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


@dataclass(frozen=True, slots=True, repr=False)
class Header(Shown):
    """Everything that a store says of itself.

    `num_samples` is the plan (None while a stream runs), and `num_sequences` that of token rows.
    `unit_rows` and `block_rows` are rows. `identity` says what the rows were made from and decides
    resume; `software`, `created` and `updated` are recorded, never checked. `digest` is set when the store is sealed.
    `fidelity` says what an encoding has lost (`fostore.encodings.fidelity.Figures` by how they were found), and is no
    part of the digest.
    `checked` is whether its text carries checksums, which older ones do not; `meta_checksum` is that of
    the metadata as it was written.
    `extra` keeps the keys that a newer minor version wrote.
    """

    schema: Schema
    num_samples: int | None
    unit_rows: int
    block_rows: int
    id: str = field(default_factory=lambda: str(uuid.uuid4()))
    identity: Mapping[str, Any] = field(default_factory=dict)
    software: Mapping[str, Any] = field(default_factory=dict)
    created: str = field(default_factory=now)
    updated: str = field(default_factory=now)
    sealed: bool = False
    digest: str | None = None
    fidelity: Mapping[str, Any] | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)
    commits: str | None = None
    """What commits rows while the store is not sealed: None for journals and their kind, `UNITS` for records."""
    version: str = VERSION
    checked: bool = field(default=True, compare=False)
    meta_checksum: str | None = field(default=None, compare=False)
    extra: Mapping[str, Any] = field(default_factory=dict)
    num_sequences: int | None = None

    @property
    def bounds(self) -> Bounds:
        """What the values of side columns are under."""
        return Bounds(self.schema.num_classes, self.num_sequences, self.schema.vocab_size)

    @property
    def counts(self) -> dict[str, Any]:
        """How many rows, and where they are tokens of how many sequences."""
        counts = {"num_samples": self.num_samples}
        if self.schema.row_axis == TOKEN:
            counts["num_sequences"] = self.num_sequences
        return counts

    def grid(self) -> Grid:
        """What a store says of itself, in some lines: what is long is named by its beginning."""
        planned = _planned(self.num_samples)
        state = "sealed" if self.sealed else "not finished"
        identity = [
            (f"{key}", value) for key, value in flat(self.identity) if value not in (None, "")
        ]
        return Grid(
            f"Header of a store, version {self.version}",
            [
                (f"{self.schema.row_axis}s", f"{planned}, {state}"),
                *(
                    [("sequences", _planned(self.num_sequences))]
                    if "num_sequences" in self.counts
                    else []
                ),
                *self.schema.grid().rows,
                ("units", f"{self.unit_rows:,} rows, blocks of {self.block_rows:,}"),
                ("digest", self.digest or "none until the store is sealed"),
                *identity[:_SHOWN],
                *((f"meta.{key}", value) for key, value in list(flat(self.meta))[:_SHOWN]),
                ("created", self.created),
                ("updated", self.updated),
            ],
        )

    def to_json(self) -> dict[str, Any]:
        """The attributes of the store, with their checksums: {"fostore": {...}, "meta": {...}}.

        Raises:
            ArgumentError: they take more bytes than readers accept.
        """
        meta = jsontext.canonical(dict(self.meta))
        fostore = {
            "version": self.version,
            "id": self.id,
            **self.counts,
            **self.schema.to_json(),
            "unit_rows": self.unit_rows,
            "block_rows": self.block_rows,
            "identity": dict(self.identity),
            "software": dict(self.software),
            "created": self.created,
            "updated": self.updated,
            "sealed": self.sealed,
            "digest": self.digest,
            **({} if self.fidelity is None else {"fidelity": dict(self.fidelity)}),
            **({} if self.commits is None else {"commits": self.commits}),
            **self.extra,
        }
        if self.checked:
            fostore[_META_CHECKSUM] = jsontext.checksum(meta)
        described = jsontext.canonical(fostore)
        if len(meta) + len(described) > _MAX_BYTES:
            raise ArgumentError(
                f"metadata and identity take {len(meta):,} and {len(described):,} bytes as JSON, and a "
                f"store keeps at most {_MAX_BYTES:,}: keep what is large in a file of its own, and its "
                "name and hash here"
            )
        if self.checked:
            fostore[CHECKSUM] = jsontext.checksum(described)
        return {"fostore": fostore, "meta": dict(self.meta)}

    @classmethod
    def from_json(cls, attributes: Any, where: str) -> Header:
        """Parse and check what a stranger wrote; `where` names the file in messages.

        Raises:
            FormatError: a key is missing, has the wrong type, or contradicts another.
            UnsupportedError: a newer major version, an unknown feature, encoding or dtype.
            DamageError: it does not have its checksum.
        """
        value = expect(attributes, "fostore", dict, f"{where}: the attributes")
        where = f"{where}: attribute 'fostore'"
        version = expect(value, "version", str, where)
        if version.split(".")[0] != VERSION.split(".")[0]:
            raise UnsupportedError(
                f"{where} has version {version}; this release reads {VERSION.split('.')[0]}.x"
            )
        schema = Schema.from_json(value, where)
        keys = ["num_samples"] + ["num_sequences"] * (schema.row_axis == TOKEN)
        counts: dict[str, Any] = {
            key: None if value.get(key) is None else expect(value, key, int, where) for key in keys
        }
        digest = value.get("digest")
        header = cls(
            schema=schema,
            num_samples=counts.pop("num_samples"),
            **counts,
            **dict(zip(_KINDS, expect_all(value, _KINDS, where), strict=True)),
            digest=None if digest is None else expect(value, "digest", str, where),
            fidelity=expect(value, "fidelity", dict, where) if "fidelity" in value else None,
            meta=expect(attributes, "meta", dict, where) if "meta" in attributes else {},
            commits=value.get("commits"),
            version=version,
            checked=CHECKSUM in value,
            meta_checksum=value.get(_META_CHECKSUM),
            extra={
                k: v
                for k, v in value.items()
                if k not in _KEYS | _SCHEMA_KEYS | _KINDS.keys() | counts.keys()
            },
        )
        header._check(where)
        # Behind the rest, whose errors say what is wrong; this one says only that something is.
        written = value.get(CHECKSUM)
        if written is not None:
            rest = {key: item for key, item in value.items() if key != CHECKSUM}
            if written != jsontext.checksum(jsontext.canonical(rest)):
                raise DamageError(
                    f"{where} does not have its checksum {written!r:.40}: the disk or another program "
                    "has changed it, so what the rows are is not known. Restore that file from a copy "
                    "of the store; a program that edits attributes may change 'meta' alone"
                )
        return header

    @property
    def meta_is_sound(self) -> bool:
        """Whether the metadata is as it was written, as far as that is known; costs a look at all of it."""
        return self.meta_checksum in (None, jsontext.checksum(jsontext.canonical(dict(self.meta))))

    def _check(self, where: str) -> None:
        try:
            uuid.UUID(self.id)
        except ValueError as error:
            raise FormatError(f"{where}: the id {self.id!r:.60} is no UUID") from error
        for name, count in self.counts.items():
            if count is not None and not 0 <= count <= _MAX_ROWS:
                raise FormatError(f"{where}: {name} is {count}")
            if self.sealed and count is None:
                raise FormatError(f"{where}: the store is sealed and has no {name}")
        if self.sealed and self.num_sequences is not None:
            check_count(self.num_sequences, self.num_samples or 0, where)
        if (
            self.unit_rows < 1
            or self.unit_rows & (self.unit_rows - 1)
            or self.unit_rows > _MAX_ROWS
        ):
            raise FormatError(f"{where}: unit_rows is {self.unit_rows}, expected a power of two")
        sizes = self.schema.row_bytes
        # The digest depends on blocks, and memory maps on whole pages: neither is a free choice.
        if self.block_rows != geometry.block_rows(sizes):
            raise FormatError(
                f"{where}: block_rows is {self.block_rows}, but rows of these sizes make blocks "
                f"of {geometry.block_rows(sizes)}"
            )
        if self.unit_rows < geometry.smallest_unit_rows(sizes):
            raise FormatError(f"{where}: unit_rows is {self.unit_rows}, too few for whole pages")
        if self.commits not in (None, UNITS):
            raise UnsupportedError(
                f"{where}: rows are committed by {self.commits!r:.40}, which this release does not know"
            )
        if self.commits is not None and (self.sealed or self.num_samples is None):
            raise FormatError(
                f"{where}: 'commits' stands in a store that is sealed, or has no plan"
            )
        if self.sealed and self.digest is None:
            raise FormatError(f"{where}: the store is sealed and has no digest")
