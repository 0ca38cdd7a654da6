"""Sequences of lists of the most likely tokens, as token rows: what the layouts of language models have in common."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from fostore.errors import FormatError
from fostore.files._ranked import NEXT, Open, Ranked, skipping
from fostore.files.table import Table
from fostore.schema.row import Array, Column, Schema
from fostore.schema.sides import side_of

ALL, LABELLED = "all", "labelled"


def _rows(given: Any) -> str:
    if given not in (ALL, LABELLED):
        raise ValueError
    return str(given)


ROWS = Open(
    "rows",
    f"which positions to take: {ALL}, padding too, which the file does not tell apart; or those that its mask marks, "
    f"{LABELLED}",
    _rows,
)


class Listed(NamedTuple):
    """One sequence as a file has it, lists at their positions."""

    tokens: Array
    """(T,), integers."""
    values: Array
    """(t, k) of positions 0 to t - 1, t at most T."""
    ids: Array
    level: Array | None = None
    mask: Array | None = None
    """(t,), bool: the positions to take; None: all."""


def token_columns(num_classes: int, *, skips: bool) -> tuple[Column, ...]:
    """The columns beside the rows: sequence, token and, where positions are left out, position."""
    values = {"sequence": True, "token": str(num_classes), "position": True}
    roles = ("sequence", "token", "position") if skips else ("sequence", "token")
    return tuple(side_of(role).column(values[role]) for role in roles)


def token_table(
    where: str,
    format: str,
    schema: Schema,
    sequences: Callable[[], Iterator[Listed]],
    *,
    is_whole: bool,
    predicts: str = NEXT,
    **others: Any,
) -> Table:
    """Rows of all sequences, one after another; nobody knows how many there are before they are read.

    Args:
        predicts: as `_ranked.PREDICTS`; a list about its own token belongs to the row of the token before.
    """
    columns = [column for column in schema.columns if column.role != "content"]

    def pieces() -> Iterator[Ranked]:
        row = 0
        for number, listed in enumerate(sequences()):
            place = f"{where}, sequence {number}"
            at = _positions(listed, predicts, place)
            if not len(at):  # of an empty sequence nobody knows how long lists are
                continue
            lists = at if predicts == NEXT else at + 1
            values = {
                "sequence": np.full(len(at), number),
                "token": listed.tokens[at],
                "position": at,
            }
            sides = []
            for column in columns:
                sides.append(side_of(column.role).encode(values[column.role], column, row))
            level = None if listed.level is None else listed.level[lists]
            yield Ranked(listed.values[lists], listed.ids[lists], level, tuple(sides))
            row += len(at)

    return Table(
        where=where,
        format=format,
        schema=schema,
        num_rows=None,
        batches=skipping(pieces, schema, where, is_whole=is_whole),
        **others,
    )


def _positions(listed: Listed, predicts: str, place: str) -> Array:
    """The positions whose rows are there: that of a list, or the one before it."""
    count = len(listed.values)
    for name, array in (("classes", listed.ids), ("log-sum-exp", listed.level)):
        if array is not None and len(array) != count:
            raise FormatError(f"{place} has {count} lists, and {name} of {len(array)}")
    if count > len(listed.tokens):
        raise FormatError(f"{place} has {count} lists for {len(listed.tokens)} tokens")
    mask = np.ones(count, bool) if listed.mask is None else listed.mask
    if len(mask) != count:
        raise FormatError(f"{place} has {count} lists and a mask of {len(mask)}")
    at = np.flatnonzero(mask)
    if predicts == NEXT:
        return at
    if len(at) and at[0] == 0:
        if listed.mask is not None:
            raise FormatError(
                f"{place} lists what its first token may be, which no token comes before: the lists are about the "
                f"token after theirs, --layout predicts={NEXT}"
            )
        at = at[1:]
    return at - 1
