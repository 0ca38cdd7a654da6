"""The top-k encoding: the k largest classes of each row, and what all others weigh together (spec/encodings.md).

Kept are numbers of the store's kind, logits minus their row's maximum. The weight of the others is the log of their own
sum, never one minus the kept ones, which would lose it to rounding.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fostore.encodings.alike import by_row, far_kept
from fostore.encodings.encoding import Encoding
from fostore.encodings.fidelity import Errors, of_columns
from fostore.encodings.rows import (
    LOWEST,
    as_floats,
    check_as_kind,
    check_columns,
    log,
    refuse_shape,
    round_to,
)
from fostore.encodings.selection import joined_entropy, log_total, selected, sort
from fostore.encodings.topk_check import check_rows, check_selected
from fostore.encodings.topk_rows import RULES, Selected, TopK
from fostore.errors import ArgumentError
from fostore.schema import simplex
from fostore.schema.halves import widen
from fostore.schema.integers import integer
from fostore.schema.row import FLOATS, Array, Column, Schema

_DENSE_CLASSES = 4096
"""Classes up to which `take` makes rows dense where nobody names a rule: 16 KiB a row."""
_UINT16_CLASSES = 1 << 16


class _TopKRows(Encoding):
    """See `fostore.encodings.Encoding`; every method is a pure function."""

    name = "topk"
    parameters = ("k", "rule", "temperatures", "tail_entropy", "derived")
    kinds = ("logits", "probs", "log_probs")
    is_lossy = True

    def spec(self, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """`k`, `rule` ("coarse" by default), and `temperatures`, `tail_entropy`, `derived` where they are set."""
        given = dict(parameters)
        k, rule = given.pop("k", None), given.pop("rule", "coarse")
        k = integer(k, "k", 1)
        check_rule(rule)
        temperatures = _temperatures(given.pop("temperatures", ()))
        flags = {}
        for flag in ("tail_entropy", "derived"):
            value = given.pop(flag, False)
            if not isinstance(value, bool):
                raise ArgumentError(f"{flag} is {value!r}, expected True or False")
            if value:
                flags[flag] = True
        softened = {"temperatures": temperatures} if temperatures else {}
        return {"k": k, "rule": rule, **softened, **flags, **given}

    def columns(
        self,
        kind: str,
        dtype: str,
        axes: tuple[str, ...],
        shape: tuple[int, ...],
        encoding: Mapping[str, Any],
    ) -> tuple[Column, ...]:
        """`values`, `ids`, `residual`; for logits `logsumexp`; `residual_t` and `tail_entropy` where asked for."""
        if kind not in ("probs", "log_probs", "logits") or dtype not in FLOATS:
            raise ArgumentError(
                f"the topk encoding keeps probs, log_probs and logits as {list(FLOATS)}, not {kind} as {dtype}"
            )
        given = {key: value for key, value in encoding.items() if key != "name"}
        spec = self.spec(given)
        # Of a store: what its columns mean may not depend on who reads the parameters.
        if spec != given:
            raise ArgumentError(f"the parameters {given} of topk are not written as {spec}")
        k, num_classes = spec["k"], shape[-1]
        if k > num_classes:
            raise ArgumentError(f"k is {k}, expected at most {num_classes}, the number of classes")
        ranked, rank = (*axes[:-1], "rank"), (*shape[:-1], k)
        ids = "uint16" if num_classes <= _UINT16_CLASSES else "uint32"
        wide = "float64" if dtype == "float64" else "float32"
        extra = {"shift": "row_max"} if kind == "logits" else {}
        sums = ["residual", *(["logsumexp"] if kind == "logits" else [])]
        columns = [
            Column("values", dtype, FLOATS[dtype], ranked, rank, extra=extra),
            Column("ids", ids, ids, ranked, rank),
            *(Column(name, wide, wide, axes[:-1], shape[:-1]) for name in sums),
        ]
        if "temperatures" in spec:
            size = len(spec["temperatures"])
            softened, sizes = (*axes[:-1], "temperature"), (*shape[:-1], size)
            columns.append(Column("residual_t", wide, wide, softened, sizes))
        if "tail_entropy" in spec:
            columns.append(Column("tail_entropy", wide, wide, axes[:-1], shape[:-1]))
        return tuple(columns)

    def encode(self, rows: Any, schema: Schema, start: int) -> list[Array]:
        """Rows of all classes, checked as they came, or `Selected`; what is stored is checked in either case."""
        if not isinstance(rows, Selected):
            if rows.shape[1:] != schema.row_shape:
                refuse_shape(rows, schema, start)
            rows = as_floats(rows, start)
            simplex.check(rows, schema.kind, schema.sum_tolerance, start)
            rows = self._selected(rows, schema)
        else:
            rows = check_selected(rows, schema, start)
        stored = _rounded(rows, schema)
        self.check(stored, schema, start)
        return stored

    def _selected(self, rows: Array, schema: Schema) -> Selected:
        wide = rows.dtype.itemsize == 8 or schema.dtype == "float64"
        x = np.ascontiguousarray(rows, np.float64 if wide else np.float32)
        chosen = selected(
            x.reshape(-1, schema.num_classes),
            schema.kind,
            schema.encoding["k"],
            temperatures_of(schema),
            tail_entropy="tail_entropy" in schema.encoding,
        )
        shape = rows.shape[:-1]
        return Selected(*(a if a is None else a.reshape(*shape, *a.shape[1:]) for a in chosen))

    def check(self, columns: Sequence[Array], schema: Schema, start: int) -> None:
        """Raise RowError where a row is out of order, names a class twice, or where its rest cannot weigh so much."""
        check_columns(columns, schema, start)
        if len(columns[0]):
            check_rows(named(columns, schema), schema, start)

    def decode(
        self,
        columns: Sequence[Array],
        schema: Schema,
        as_kind: str = "probs",
        temperature: float = 1.0,
        rule: str | None = None,
    ) -> Array:
        """Every class by the rule that is named, or by that of the store; in float32 (float64 where that is stored)."""
        dtype = np.dtype(np.float64 if schema.dtype == "float64" else np.float32)
        return _dense(columns, schema, as_kind, temperature, rule, dtype)

    def rows(self, columns: Sequence[Array], schema: Schema, rule: str | None = None) -> Array:
        """Every class by a rule, in float64."""
        return _dense(columns, schema, schema.kind, 1.0, rule, np.dtype(np.float64))

    def recast(
        self, columns: Sequence[Array], schema: Schema, made: Schema, start: int
    ) -> list[Array]:
        """Fewer of the kept classes and temperatures, another rule, kind or dtype; what is not kept joins the rest."""
        k, kept = made.encoding["k"], schema.encoding["k"]
        fewer, known = temperatures_of(made), temperatures_of(schema)
        if k > kept or not set(fewer) <= set(known):
            raise ArgumentError(
                f"the rows keep {kept} classes and the temperatures {list(known)}, {k} and {list(fewer)} were "
                "asked for: what was left out cannot be had again, only from the model"
            )
        if "tail_entropy" in made.encoding and "tail_entropy" not in schema.encoding:
            raise ArgumentError(
                "the rows keep no tail_entropy, and it cannot be worked out of them"
            )
        rows = named(columns, schema)
        logs, residual = log_weights(rows["values"], schema), rows["residual"].astype(np.float64)
        dropped = logs[..., k:]
        total = np.logaddexp(residual, log_total(dropped))
        entropy = None
        if "tail_entropy" in made.encoding:
            # The residual is rounded, and the sums of its parts with it.
            most = math.log(max(schema.num_classes - k, 1))
            joined = joined_entropy(residual, rows["tail_entropy"], dropped, total)
            entropy = np.clip(joined, 0, most)
        softened = [
            np.logaddexp(_softened(rows, schema, t), log_total(dropped / t))[..., None]
            for t in fewer
        ]
        values, level = widen(rows["values"], schema.dtype)[..., :k], rows.get("logsumexp")
        if (
            made.kind != schema.kind
        ):  # another scale: of logits the largest is 0, of the others all sum to 1
            scale = (
                logs[..., 0] if made.kind == "logits" else np.logaddexp(log_total(logs), residual)
            )
            values = logs[..., :k] - scale[..., None]
            values = np.exp(values) if made.kind == "probs" else values
            level, total = -scale, total - scale
            softened = [s - scale[..., None] / t for s, t in zip(softened, fewer, strict=True)]
        softened_all = np.concatenate(softened, axis=-1) if softened else None
        ids = rows["ids"][..., :k]
        stored = _rounded(Selected(values, ids, total, level, softened_all, entropy), made)
        self.check(stored, made, start)
        return stored

    def is_whole(self, schema: Schema) -> bool:
        """Whether k is the number of classes."""
        return bool(schema.encoding["k"] == schema.num_classes)

    def check_dense(self, schema: Schema, rule: str | None) -> None:
        """A rule must be named where rows are wide: each of 128,000 classes takes half a megabyte."""
        if rule is None and schema.num_classes > _DENSE_CLASSES and not self.is_whole(schema):
            raise ArgumentError(
                f"the store keeps {schema.encoding['k']} of {schema.num_classes:,} classes; take_topk(rows) gives "
                f"these, and take(rows, rule={_dense_rule(schema)!r}) all classes: where there are over "
                f"{_DENSE_CLASSES:,}, the rule is to be named"
            )
        _rule(schema, rule)

    def selects(self, schema: Schema) -> tuple[int, tuple[float, ...]] | None:
        """k, and the temperatures at which the rest is summed."""
        return schema.encoding["k"], temperatures_of(schema)

    def sparse(self, columns: Sequence[Array], schema: Schema) -> TopK:
        """The columns as they are stored, halves of bfloat16 as float32; of probs their logarithms."""
        rows = named(columns, schema)
        values = (
            widen(rows["values"], schema.dtype) if schema.dtype == "bfloat16" else rows["values"]
        )
        if schema.kind == "probs":
            values = log_weights(rows["values"], schema).astype(rows["residual"].dtype)
        return TopK(
            values,
            rows["ids"],
            rows["residual"],
            schema.num_classes,
            schema.encoding["rule"],
            temperatures_of(schema),
            rows.get("residual_t"),
            schema.encoding.get("derived", False),
        )

    def fidelity(self, columns: Sequence[Array], schema: Schema) -> Errors:
        """What the classes weigh that are not kept; what that costs under a rule that says it."""
        return of_columns(self.sparse(columns, schema), named(columns, schema).get("tail_entropy"))

    def disagrees(
        self, stored: Sequence[Array], now: Sequence[Array], schema: Schema, noise: float
    ) -> Array:
        """Of the kept classes, and of what all others weigh; classes that are nearly equal may change places."""
        sides = [(self.sparse(s, schema), named(s, schema).get("logsumexp")) for s in (stored, now)]
        return by_row(far_kept(sides, schema, noise))


def named(columns: Sequence[Array], schema: Schema) -> dict[str, Array]:
    """The content columns by name."""
    return {c.name: array for c, array in zip(schema.content, columns, strict=True)}


def temperatures_of(schema: Schema) -> tuple[float, ...]:
    """The temperatures at which the weight of the rest is kept, beside 1."""
    return tuple(schema.encoding.get("temperatures", ()))


def check_rule(rule: Any) -> None:
    """Raise ArgumentError for what is no rule."""
    if rule not in RULES:
        raise ArgumentError(f"rule is {rule!r}, expected one of {list(RULES)}")


def log_weights(values: Array, schema: Schema) -> Array:
    """The logarithms of stored numbers' weights, in float64."""
    wide = widen(values, schema.dtype).astype(np.float64)
    return log(wide) if schema.kind == "probs" else wide


def _temperatures(given: Any) -> list[float]:
    """Temperatures other than 1 as a spec keeps them: floats, increasing, none twice."""
    try:
        numbers = sorted(
            {float(t) for t in ([given] if isinstance(given, (int, float)) else given)}
        )
    except (TypeError, ValueError) as error:
        raise ArgumentError(f"temperatures is {given!r:.80}, expected numbers above 0") from error
    if not all(0 < t < math.inf for t in numbers):
        raise ArgumentError(f"temperatures is {given!r:.80}, expected numbers above 0")
    return [t for t in numbers if t != 1]


def _rounded(rows: Selected, schema: Schema) -> list[Array]:
    """Selected rows in stored form: rounded, and sorted again, since rounding makes numbers equal."""
    values = rows.values.astype(np.float64) if schema.dtype == "float64" else rows.values
    # A finite number stays one: minus infinity is a class that was masked.
    if schema.kind != "probs":
        values = np.where(np.isneginf(values), -np.inf, np.maximum(values, LOWEST[schema.dtype]))
    wide, ids = sort(widen(round_to(values, schema.dtype), schema.dtype), rows.ids)
    stored = round_to(wide, schema.dtype)
    sums = {name: array for name, array in rows._asdict().items() if name not in ("values", "ids")}
    return [
        stored,
        np.ascontiguousarray(ids, schema.content[1].numpy_dtype),
        *(round_to(sums[column.name], column.dtype) for column in schema.content[2:]),
    ]


def _rule(schema: Schema, rule: str | None) -> str:
    """The rule that makes rows dense: the one that is named, else that of the store."""
    if rule is not None:
        check_rule(rule)
    if schema.encoding["k"] == schema.num_classes:  # nothing is left out, and all rules agree
        return "renorm"
    chosen: str = rule or schema.encoding["rule"]
    if chosen == "coarse":
        raise ArgumentError(
            f"the store keeps {schema.encoding['k']} of {schema.num_classes:,} classes, and by the rule 'coarse' "
            "all others are one outcome: take_topk(rows) gives what is kept; rule='uniform' spreads the others' "
            "probability over them, 'renorm' and 'zero' leave it out"
        )
    return chosen


def _dense_rule(schema: Schema) -> str:
    own: str = schema.encoding["rule"]
    return "uniform" if own == "coarse" else own


def log_probs(
    columns: Sequence[Array], schema: Schema, temperature: float, rule: str
) -> tuple[Array, Array]:
    """Log-probabilities in float64: those of the kept classes (..., k), and that of each other class (...).

    Raises:
        ArgumentError: the rule needs the weight of the rest at a temperature at which it is not kept.
    """
    rows = named(columns, schema)
    logs = log_weights(rows["values"], schema)
    residual = rows["residual"].astype(np.float64)
    others = schema.num_classes - schema.encoding["k"]
    none = np.full(residual.shape, -np.inf)
    each, rest = none, none
    if rule == "uniform":
        each = (residual - math.log(others)) / temperature if others else none
        rest = each + math.log(max(others, 1))
    elif rule == "zero":
        rest = residual if temperature == 1 else _softened(rows, schema, temperature)
    logs = logs / temperature
    total = np.logaddexp(log_total(logs), rest)
    return logs - total[..., None], each - total


def _softened(rows: Mapping[str, Array], schema: Schema, temperature: float) -> Array:
    known = temperatures_of(schema)
    if temperature not in known:
        raise ArgumentError(
            f"what the classes that are not kept weigh is known at the temperatures {[1.0, *known]}, not at "
            f"{temperature:g}: the rules 'uniform' and 'renorm' do without; else generate the store with "
            f"temperatures=({temperature:g},)"
        )
    return rows["residual_t"][..., known.index(temperature)].astype(np.float64)


def _dense(
    columns: Sequence[Array],
    schema: Schema,
    as_kind: str,
    temperature: float,
    rule: str | None,
    dtype: np.dtype[Any],
) -> Array:
    check_as_kind(as_kind)
    rule = _rule(schema, rule)
    if as_kind == "logits" and rule == "zero":
        raise ArgumentError(
            "rows of the rule 'zero' sum to less than 1, which logits cannot say: take them as 'probs' or "
            "'log_probs', or by the rule 'renorm'"
        )
    kept, each = log_probs(columns, schema, 1.0 if as_kind == "logits" else temperature, rule)
    if as_kind == "logits":
        rows = named(columns, schema)
        level = rows["logsumexp"].astype(np.float64) if "logsumexp" in rows else 0.0
        kept, each = (kept + np.expand_dims(level, -1)) / temperature, (each + level) / temperature
    elif as_kind == "probs":
        with np.errstate(under="ignore"):
            kept, each = np.exp(kept), np.exp(each)
    # The one array as wide as the classes; everything else has k numbers a row.
    dense = np.empty((*each.shape, schema.num_classes), dtype)
    with np.errstate(over="ignore", under="ignore"):
        dense[...] = each[..., None]
        np.put_along_axis(dense, columns[1].astype(np.int64), kept.astype(dtype), -1)
    return dense


ENCODING = _TopKRows()
