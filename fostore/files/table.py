"""Table: rows on their way from one format to another, with everything that is known about them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fostore.reading.proof import Proof
from fostore.schema.row import Array, Schema

Batch = list[Array]
"""Some consecutive rows: one C-contiguous array of the stored dtype a column, in schema order."""


@dataclass(frozen=True, slots=True)
class Table:
    """Rows that can be read piece by piece, in order, and what goes with them.

    `batches(start, rows)` reads from row `start` to the end, at most `rows` at a time; a stream
    (`num_rows` None) can be read once, from 0. A batch stays as it is when the next one is asked
    for: other threads may still be hashing it. Values were checked by whoever made the table, or
    are checked by `Encoding.check` as they pass: `trusted` says which.
    """

    where: str
    """Names the source in messages and receipts."""
    format: str
    schema: Schema
    num_rows: int | None
    batches: Callable[[int, int], Iterator[Batch]]
    meta: Mapping[str, Any] = field(default_factory=dict)
    identity: Mapping[str, Any] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Keys of a header that a newer minor version wrote."""
    digest: str | None = None
    """The digest that the source claims, where it is a sealed store."""
    trusted: bool = False
    """Whether rows need no check of their values as long as their digest comes out as `digest`."""
    proof: Proof | None = None
    """Of a store: what it keeps of its rows, which `conversion.stores.guarded` holds them against."""
    checked: str = "none"
    """What of the rows is held against their source as they are read: "full", "part" (`notes` names
    the rest) or "none", as where a source keeps no checksum."""
    files: Sequence[str] = ()
    """The paths that the rows come from, where `where` is not the only one."""
    notes: Sequence[str] = ()
    """What the importer decided, for the receipt: a class order, a dtype that was widened."""
    took: frozenset[str] = frozenset()
    """The hints that the importer follows; any other has no effect, and must say what the file says."""
    adopted: str | None = None
    """The column beside the rows whose keys became the ids without being asked for."""


def least_checked(tables: Sequence[Table]) -> str:
    """What `Table.checked` says of several tables together."""
    found = {table.checked for table in tables}
    return found.pop() if len(found) == 1 else "part"
