"""The dense encoding: every class of every row, as probabilities, log-probabilities or logits.

Logits are stored minus their row's maximum, so that half precision keeps its digits where the
probability is; the logsumexp of the row as it came stands beside them, so that nothing is lost.
The subtraction is done in float32 (float64 where either side is float64).

Functions import `simplex` when they are called: opening a store and taking stored rows needs none of it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fostore.encodings.alike import by_row, far, far_sums, least_log, level_of
from fostore.encodings.encoding import Encoding, refuse_rule
from fostore.encodings.rows import (
    LOWEST,
    as_floats,
    check_as_kind,
    check_columns,
    converted,
    refuse_shape,
    round_to,
)
from fostore.errors import ArgumentError, RowError
from fostore.schema.halves import widen
from fostore.schema.row import FLOATS, ROUNDOFF, Array, Column, Schema


class Dense(Encoding):
    """See `fostore.encodings.Encoding`; every method is a pure function."""

    name = "dense"

    def columns(
        self,
        kind: str,
        dtype: str,
        axes: tuple[str, ...],
        shape: tuple[int, ...],
        encoding: Mapping[str, Any],
    ) -> tuple[Column, ...]:
        """One column, and for logits their `logsumexp` in float32 (float64 beside float64)."""
        if kind not in ("probs", "log_probs", "logits") or dtype not in FLOATS:
            raise ArgumentError(
                f"the dense encoding keeps probs, log_probs and logits as {list(FLOATS)}, "
                f"not {kind} as {dtype}"
            )
        extra = {"shift": "row_max"} if kind == "logits" else {}
        numbers = Column(kind, dtype, FLOATS[dtype], axes, shape, extra=extra)
        if kind != "logits":
            return (numbers,)
        wide = "float64" if dtype == "float64" else "float32"
        return numbers, Column("logsumexp", wide, wide, axes[:-1], shape[:-1])

    def encode(self, rows: Any, schema: Schema, start: int) -> list[Array]:
        """Rows of any float dtype, checked as they came and again as they are stored.

        Finite logits stay finite: a difference beyond the dtype's range is kept as its lowest
        finite number, so that minus infinity always means a class that the model excluded. Either
        way the probability is zero in every dtype.
        """
        from fostore.schema import simplex  # see the first lines

        numbers = schema.columns[0]  # of the shape of a row
        if rows.shape[1:] != numbers.shape:
            refuse_shape(rows, schema, start)
        rows = as_floats(rows, start)
        if schema.kind == "logits":
            return _encode_logits(rows, schema, start)
        kind, tol = schema.kind, schema.sum_tolerance
        stored = round_to(rows, numbers.dtype)
        if stored.dtype != rows.dtype:  # first the numbers that the caller knows
            simplex.check(rows, kind, tol, start)
        try:
            simplex.check(stored, kind, tol, start, bfloat16=numbers.dtype == "bfloat16")
        except RowError as error:
            if stored.dtype == rows.dtype:
                raise
            raise RowError(
                f"rounded to {numbers.dtype}, {error}; use a wider dtype or kind='logits'"
            ) from None
        return [stored]

    def check(self, columns: Sequence[Array], schema: Schema, start: int) -> None:
        """Raise RowError where the stored numbers break the schema's promises."""
        from fostore.schema import simplex  # see the first lines

        check_columns(columns, schema, start)
        halves, tol = schema.dtype == "bfloat16", schema.sum_tolerance
        simplex.check(columns[0], schema.kind, tol, start, bfloat16=halves)
        if schema.kind == "logits" and len(columns[0]):
            _check_shifted(columns, schema, start)

    def decode(
        self,
        columns: Sequence[Array],
        schema: Schema,
        as_kind: str = "probs",
        temperature: float = 1.0,
        rule: str | None = None,
    ) -> Array:
        """Probabilities, log-probabilities or logits; `schema.temperature` is not applied.

        Aliases the column where nothing changes. Logits come back with their row's level, so their
        logsumexp is what the model gave; from probabilities they are the logarithms.
        """
        if rule is not None:
            refuse_rule(rule, self.name)
        stored = columns[0]
        if as_kind == schema.kind == "probs" and temperature == 1 and schema.dtype != "bfloat16":
            return stored
        x = widen(stored, schema.dtype)
        if schema.kind != "logits":
            return converted(x, schema.kind, as_kind, temperature)
        check_as_kind(as_kind)
        from fostore.schema import simplex  # see the first lines

        if as_kind == "probs":
            return simplex.softmax(x, temperature)
        if as_kind == "log_probs":
            return simplex.log_softmax(x, temperature)
        logits = simplex.log_softmax(x)
        logits += columns[1][..., None]
        return logits if temperature == 1 else simplex.scale(logits, temperature)

    def rows(self, columns: Sequence[Array], schema: Schema, rule: str | None = None) -> Array:
        """Logits come with the level of their row, in float64: a softmax of some of them renormalises."""
        refuse_rule(rule, self.name)
        wide = widen(columns[0], schema.dtype)
        if schema.kind != "logits":
            return wide
        shifted = wide.astype(np.float64)
        level: Array = columns[1] - np.log(np.exp(shifted).sum(axis=-1))
        return shifted + level[..., None]

    def recast(
        self, columns: Sequence[Array], schema: Schema, made: Schema, start: int
    ) -> list[Array]:
        """Rounded anew; a row's level stays beside it, since adding it and taking it off would cost digits."""
        if made.kind != schema.kind:
            return super().recast(columns, schema, made, start)
        stored = self.encode(widen(columns[0], schema.dtype), made, start)
        if (
            schema.kind == "logits"
        ):  # shifted already: their maximum is 0, so they were shifted by nothing
            stored[1] = columns[1].astype(made.content[1].numpy_dtype)
        return stored

    def is_plain(self, schema: Schema, as_kind: str) -> bool:
        """What is asked for is what is kept."""
        return schema.kind == as_kind

    def decoded_bytes(self, schema: Schema) -> int:
        """Halves are widened to float32."""
        return max(4, schema.columns[0].numpy_dtype.itemsize) * math.prod(schema.row_shape)

    def disagrees(
        self, stored: Sequence[Array], now: Sequence[Array], schema: Schema, noise: float
    ) -> Array:
        """Numbers may be apart by their rounding on both sides, beside the noise."""
        then, again = (widen(side[0], schema.dtype).astype(np.float64) for side in (stored, now))
        unit = ROUNDOFF[schema.dtype]
        if schema.kind == "logits":
            less = np.minimum(np.abs(then), np.abs(again))
            bad = far(then, again, noise, 2 * unit * np.where(np.isfinite(less), less, 0))
            sums = far_sums(stored[1], now[1], noise, level_of(less))
            return by_row(np.concatenate([bad, sums[..., None]], axis=-1))
        least = least_log(schema.dtype)
        if schema.kind == "probs":
            then, again = (np.log(np.maximum(side, np.exp(least))) for side in (then, again))
        then, again = (np.maximum(side, least) for side in (then, again))
        size = 1.0 if schema.kind == "probs" else np.minimum(np.abs(then), np.abs(again))
        return by_row(far(then, again, noise, 2 * unit * size))


def _encode_logits(rows: Array, schema: Schema, start: int) -> list[Array]:
    from fostore.schema import simplex  # see the first lines

    x = widen(rows, rows.dtype.name)
    if schema.dtype == "float64":
        x = x.astype(np.float64)
    if len(x) == 0:
        return [round_to(x, schema.dtype), round_to(x[..., 0], schema.content[1].dtype)]
    simplex.check(rows, "logits", start=start)
    shifted, lse = simplex.shift(x)
    side = round_to(lse, schema.content[1].dtype)
    if not np.isfinite(side).all():
        at = start + int(np.argwhere(~np.isfinite(side))[0][0])
        raise RowError(
            f"row {at} has logits beyond the range of {side.dtype}: use dtype='float64', or look at "
            "this sample"
        )
    lowest = LOWEST[schema.dtype]
    if float(shifted.min()) < lowest:  # kept finite: minus infinity is a class that was masked
        masked = x == -np.inf
        np.maximum(shifted, lowest, out=shifted)
        shifted[masked] = -np.inf
    return [round_to(shifted, schema.dtype), side]


def _check_shifted(columns: Sequence[Array], schema: Schema, start: int) -> None:
    stored, lse = columns
    top = np.max(widen(stored, schema.dtype), axis=-1)
    if top.any():
        at = int(np.argwhere(top)[0][0])
        raise RowError(
            f"row {start + at} has the largest logit {top[at]!r}, expected 0: logits are stored minus "
            "their row's maximum"
        )
    if not np.isfinite(lse).all():
        at = int(np.argwhere(~np.isfinite(lse))[0][0])
        raise RowError(f"row {start + at} has the logsumexp {lse[at]!r}, expected a finite number")


ENCODING = Dense()
