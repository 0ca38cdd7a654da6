"""stack: the members of an ensemble, kept in stores of their own, as one store."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from fostore.conversion.converting import convert
from fostore.conversion.destination import target_of
from fostore.conversion.receipt import Receipt
from fostore.conversion.sources import open_table
from fostore.encodings import remade
from fostore.errors import ArgumentError, IdentityError
from fostore.files.stores import guarded
from fostore.files.table import Batch, Cut, Table, several
from fostore.places import spool

_DATASET = ("length", "labels", "ids", "fingerprint")


def stack(
    sources: Sequence[str | os.PathLike[str]], destination: str | os.PathLike[str], **options: Any
) -> Receipt:
    """One store of ensembles from stores of single distributions: member i comes from `sources[i]`.

    All must be of the same samples in the same order: lengths, class names, ids, labels and what the
    generator saw are compared, rows by rows where the stores keep it.

    Args:
        sources: at least one store, or any file that `convert` reads.
        destination: as `convert` has it.
        options: `exists`, `meta`, `receipt`, `verify`, `progress` ... of `convert`.

    Raises:
        IdentityError: the sources are of different samples; says which differs, and where.
        ArgumentError: they hold different kinds or dtypes, or members already.
    """
    with spool.beside(target_of(destination)):
        tables = [_opened(source) for source in sources]
    return convert(stacked(tables), destination, **options)


def _opened(source: str | os.PathLike[str]) -> Table:
    try:
        return open_table(source)
    except ArgumentError as error:
        raise ArgumentError(
            f"{error}; stack takes no such options: convert each source to a store with them first"
        ) from error


def stacked(tables: Sequence[Table]) -> Table:
    """The tables side by side as members; errors are those of `stack`."""
    if not tables:
        raise ArgumentError("no source was given")
    tables = [guarded(table) for table in tables]
    first = tables[0]
    for other in tables:
        _check(first, other)
    schema = remade(first.schema, num_members=len(tables), tol=first.schema.sum_tolerance)
    content = len(first.schema.content)

    def batches(start: int, rows: int) -> Iterator[Batch]:
        assert first.num_rows is not None
        # Each source cuts its batches where its units or blocks end.
        cuts = [Cut(table.batches(start, rows)) for table in tables]
        for begin in range(start, first.num_rows, rows):
            count = min(rows, first.num_rows - begin)
            members = [cut.take(count) for cut in cuts]
            for table, member in zip(tables, members, strict=True):
                _check_side(first, members[0], table, member, begin)
            stacked = [np.stack([member[i] for member in members], axis=1) for i in range(content)]
            yield [*stacked, *members[0][content:]]

    identity = dict(first.identity)
    if all("model" in table.identity for table in tables):
        identity["model"] = {"members": [table.identity["model"] for table in tables]}
    return several(
        tables,
        schema,
        batches,
        where=" + ".join(table.where for table in tables),
        meta={**first.meta, "members": [dict(table.meta) for table in tables]},
        identity=identity,
        notes=(
            *(f"member {i} is {table.where}" for i, table in enumerate(tables)),
            *(note for table in tables for note in table.notes),
        ),
    )


def _check(first: Table, other: Table) -> None:
    if other.num_rows is None:
        raise ArgumentError(f"{other.where} is a stream of unknown length and cannot be a member")
    if other.schema.num_members is not None:
        raise ArgumentError(f"{other.where} has members already; choose one with convert(member=)")
    different = []
    for name in ("num_classes", "class_names"):
        a, b = getattr(first.schema, name), getattr(other.schema, name)
        if a != b:
            different.append(f"{name} is {b!r:.200}, {first.where} has {a!r:.200}")
    if first.num_sequences != other.num_sequences:
        ours, theirs = first.num_sequences, other.num_sequences
        different.append(f"it has {theirs} sequences, {first.where} has {ours}")
    if first.num_rows != other.num_rows:
        different.append(f"it has {other.num_rows} rows, {first.where} has {first.num_rows}")
    ours, theirs = first.identity.get("dataset", {}), other.identity.get("dataset", {})
    for name in _DATASET:
        a, b = ours.get(name), theirs.get(name)
        if a is not None and b is not None and a != b:
            different.append(f"the {name} of its dataset is {b!r}, {first.where} has {a!r}")
    if different:
        raise IdentityError(
            f"{other.where} is of other samples: {'; '.join(different)}", tuple(different)
        )
    for name in ("kind", "dtype", "temperature", "encoding", "columns"):
        a, b = getattr(first.schema, name), getattr(other.schema, name)
        if a != b:
            shown = [c.name for c in b] if name == "columns" else b
            raise ArgumentError(
                f"{other.where} has the {name} {shown!r}, {first.where} has another; convert it first"
            )


def _check_side(first: Table, ours: Batch, other: Table, theirs: Batch, start: int) -> None:
    """Ids and what the generator saw are the same, row by row."""
    for i, column in enumerate(first.schema.columns):
        if column.role == "content" or ours[i] is theirs[i]:
            continue  # no question of samples, or the first beside itself
        same = ours[i] == theirs[i]
        same = same.reshape(len(same), -1).all(axis=1)
        if not same.all():
            row = start + int(np.flatnonzero(~same)[0])
            raise IdentityError(
                f"row {row} of {other.where} is of another sample than that of {first.where}: "
                f"their {column.name!r} differ",
                (f"row {row}",),
            )
