"""A stream of unknown length kept until it is counted, for formats that must know the length first."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from fostore.files.table import Batch
from fostore.places.spool import Spool
from fostore.schema.header import Header


@contextmanager
def counted(
    header: Header, batches: Iterator[Batch]
) -> Iterator[tuple[Header, int, Iterator[Batch]]]:
    """The header, its number of rows and its rows; a stream is spooled first to be counted."""
    if header.num_samples is not None:
        yield header, header.num_samples, batches
        return
    spools = [Spool(f"column {column.name!r}") for column in header.schema.columns]
    rows = 1
    for batch in batches:
        rows = max(rows, len(batch[0]))
        for spool, column in zip(spools, batch, strict=True):
            spool.append(column)
    total = spools[0].num_rows
    again = (
        [spool.read(first, min(first + rows, total)) for spool in spools]
        for first in range(0, total, rows)
    )
    yield replace(header, num_samples=total), total, again
