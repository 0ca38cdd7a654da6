"""Versions follow the digest: what changed since the last publication decides which number grows."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from fostore.reading.store import Store
from fostore.schema import digest
from fostore.schema.row import Array

FIRST = "1.0.0"


def next_version(version: str, store: Store, before: str, rows_before: int) -> str:
    """The version after `version`, whose store had the digest `before` and `rows_before` rows.

    The same digest is a patch (documents changed), rows appended a minor, anything else a major version.
    """
    major, minor, patch = (int(number) for number in version.split("."))
    if store.digest() == before:
        return f"{major}.{minor}.{patch + 1}"
    if _begins_with(store, before, rows_before):
        return f"{major}.{minor + 1}.0"
    return f"{major + 1}.0.0"


def _begins_with(store: Store, before: str, rows: int) -> bool:
    """Whether the first `rows` rows of a store are those that have the digest `before`.

    Block hashes are the store's own; only the block in which the old rows end is hashed again.
    """
    header = store.header
    if not 0 < rows <= len(store):
        return False
    old = replace(header, num_samples=rows)
    if (
        header.num_sequences is not None
    ):  # up to that of the last row: those without rows behind it are not known
        sequence = store.reader.column(store.schema.index("sequence")).read(rows - 1, rows)
        old = replace(old, num_sequences=int(sequence[0]) + 1)
    hashes: Array = np.array(store.reader.block_hashes()[: digest.num_blocks(old)])
    first = rows - rows % header.block_rows
    if first < rows:
        for i, column in enumerate(digest.hashed_columns(header)):
            cut = store.reader.column(store.schema.index(column.name)).read(first, rows)
            hashes[-1, i] = digest.block_hash(cut)
    return digest.store_digest(old, hashes) == before
