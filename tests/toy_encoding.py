"""An encoding that no release has: probabilities times a factor, which is its parameter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from fostore.encodings import Encoding
from fostore.encodings.dense import ENCODING as DENSE
from fostore.errors import ArgumentError
from fostore.schema.row import FLOATS, Array, Column, Schema


class Scaled(Encoding):
    """See `fostore.encodings.Encoding`."""

    name = "scaled"
    parameters = ("factor",)

    def columns(
        self,
        kind: str,
        dtype: str,
        axes: tuple[str, ...],
        shape: tuple[int, ...],
        encoding: Mapping[str, Any],
    ) -> tuple[Column, ...]:
        if kind != "probs" or not encoding.get("factor", 0) > 0:
            raise ArgumentError(f"scaled keeps probs, with a factor above 0, not {kind}")
        return (Column("scaled", dtype, FLOATS[dtype], axes, shape),)

    def encode(self, rows: Array, schema: Schema, start: int) -> list[Array]:
        dense = DENSE.encode(rows, schema, start)[0]
        return [dense * dense.dtype.type(schema.encoding["factor"])]

    def check(self, columns: Sequence[Array], schema: Schema, start: int) -> None:
        DENSE.check([self.rows(columns, schema)], _dense(schema), start)

    def decode(
        self,
        columns: Sequence[Array],
        schema: Schema,
        as_kind: str = "probs",
        temperature: float = 1.0,
        rule: str | None = None,
    ) -> Array:
        return DENSE.decode([self.rows(columns, schema)], _dense(schema), as_kind, temperature)

    def rows(self, columns: Sequence[Array], schema: Schema, rule: str | None = None) -> Array:
        return columns[0] / columns[0].dtype.type(schema.encoding["factor"])


def _dense(schema: Schema) -> Schema:
    column = replace(schema.columns[0], name="probs")
    return replace(schema, columns=(column,), encoding={"name": "dense"})


ENCODING = Scaled()
