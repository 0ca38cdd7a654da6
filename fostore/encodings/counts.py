"""The counts encoding: votes of annotators (or draws), whole and exact; P = c / sum c."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fostore.encodings.encoding import Encoding, refuse_rule
from fostore.encodings.rows import as_counts, check_columns, converted, refuse_shape
from fostore.errors import ArgumentError, RowError
from fostore.schema.row import COUNTS, Array, Column, Schema


class Counts(Encoding):
    """See `fostore.encodings.Encoding`; every method is a pure function."""

    name = "counts"

    def columns(
        self,
        kind: str,
        dtype: str,
        axes: tuple[str, ...],
        shape: tuple[int, ...],
        encoding: Mapping[str, Any],
    ) -> tuple[Column, ...]:
        """One column of unsigned integers."""
        if kind != "counts" or dtype not in COUNTS:
            raise ArgumentError(
                f"the counts encoding keeps counts as {list(COUNTS)}, not {kind} as {dtype}"
            )
        return (Column("counts", dtype, COUNTS[dtype], axes, shape),)

    def encode(self, rows: Any, schema: Schema, start: int) -> list[Array]:
        """Rows of any integer dtype whose numbers fit, with at least one vote each."""
        votes = schema.columns[0]  # of the shape of a row
        if rows.shape[1:] != votes.shape:
            refuse_shape(rows, schema, start)
        stored = as_counts(rows, votes.dtype, start)
        _check_votes(stored, start)
        return [stored]

    def check(self, columns: Sequence[Array], schema: Schema, start: int) -> None:
        """Raise RowError where a row has no vote."""
        check_columns(columns, schema, start)
        _check_votes(columns[0], start)

    def decode(
        self,
        columns: Sequence[Array],
        schema: Schema,
        as_kind: str = "probs",
        temperature: float = 1.0,
        rule: str | None = None,
    ) -> Array:
        """Relative frequencies in float32, worked out in float64; a class without votes has log minus infinity."""
        refuse_rule(rule, self.name)
        # Votes are whole numbers: in float32 their sum would round from 2^24 on.
        votes = columns[0].astype(np.float64)
        votes /= np.add.reduce(votes, axis=-1, keepdims=True)
        with np.errstate(over="ignore", under="ignore"):
            return converted(votes, "probs", as_kind, temperature).astype(np.float32)

    def rows(self, columns: Sequence[Array], schema: Schema, rule: str | None = None) -> Array:
        """The votes."""
        refuse_rule(rule, self.name)
        return columns[0]


def _check_votes(stored: Array, start: int) -> None:
    voted = stored.any(axis=-1)
    if voted.all():
        return
    at = np.argwhere(~voted)
    member = f", member {at[0][1]}" if stored.ndim > 2 else ""
    raise RowError(
        f"row {start + at[0][0]}{member} has no votes ({len(np.unique(at[:, 0]))} of {len(stored)} "
        "rows), expected at least one: leave such samples out, or say what to assume for them"
    )


ENCODING = Counts()
