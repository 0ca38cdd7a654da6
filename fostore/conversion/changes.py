"""What a conversion may change: which rows, classes and member, the kind and the dtype. Pure, piece by piece."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from fostore.conversion.options import Options
from fostore.encodings import default_encoding, encoding_of, remade
from fostore.errors import ArgumentError
from fostore.files.table import Batch, Table, changed
from fostore.schema.row import Array, Schema
from fostore.schema.sides import Bounds
from fostore.schema.sides.classes import check_labels
from fostore.schema.sides.ids import encode_ids, id_column

_BITS = {"float16": (10, 5), "bfloat16": (7, 8), "float32": (23, 8), "float64": (52, 11)}
"""Digits and exponent of each dtype."""

Step = Callable[[Batch, int], Batch]
"""(columns, number of their first row) to the columns after a change."""


def select(table: Table, options: Options) -> Table:
    """The table with the rows, classes and member that are asked for, and with names and ids given to it.

    Raises:
        ArgumentError: a class, member or row that is not there.
    """
    if options.rows is not None:
        table = _rows(table, options.rows)
    if options.class_names is not None:
        table = _renamed(table, options.class_names)
    if options.ids is not None:
        table = _keyed(table, options.ids)
    if options.member is not None:
        table = _member(table, options.member)
    if options.classes is not None:
        table = _classes(table, options.classes)
    return table


@dataclass(frozen=True, slots=True)
class Encoded:
    """Rows in other numbers: the schema they have then, how they get there, and what cannot be undone."""

    schema: Schema
    step: Step
    lost: tuple[str, ...] = ()


# ------------------------------------------------------------------ rows


def _rows(table: Table, asked: slice) -> Table:
    if table.num_rows is None:
        raise ArgumentError("rows= needs a source of known length, and a stream has none")
    start, stop, step = asked.indices(table.num_rows)
    count = len(range(start, stop, step))
    if not count:
        shown = ":".join("" if n is None else str(n) for n in (asked.start, asked.stop))
        raise ArgumentError(
            f"rows is {shown}, which is none of the {table.num_rows} rows of {table.where}; the stop is not "
            f"included: rows=slice(0, {table.num_rows}), or --rows 0:{table.num_rows}, is all of them"
        )

    def batches(first: int, rows: int) -> Iterator[Batch]:
        position, end = start + first * step, start + (count - 1) * step + 1
        # No batch larger than what was asked for: what lies behind may be damaged, or not there.
        at_once = min(rows, end - position)
        for columns in table.batches(position, at_once) if first < count else ():
            size = len(columns[0])
            kept = slice((start - position) % step, min(size, end - position), step)
            if (kept.stop - kept.start) > 0:
                yield [np.ascontiguousarray(column[kept]) for column in columns]
            position += size
            if position >= end:
                return

    whole = (start, stop, step) == (0, table.num_rows, 1)
    identity = table.identity if whole else _of_a_part(table.identity)
    return table.remade(table.schema, batches, num_rows=count, identity=identity)


def _of_a_part(identity: Any) -> dict[str, Any]:
    """An identity without what holds for the whole dataset alone."""
    dataset = dict(identity.get("dataset", {}))
    for key in ("length", "labels", "ids", "fingerprint"):
        dataset.pop(key, None)
    return {**identity, "dataset": dataset} if identity else {}


def _keyed(table: Table, ids: Any) -> Table:
    if table.num_rows is None:
        raise ArgumentError("ids= needs a source of known length, and a stream has none")
    if len(ids) != table.num_rows:
        raise ArgumentError(f"{len(ids)} ids for {table.num_rows} rows")
    if table.schema.role("id") is not None:
        raise ArgumentError(f"{table.where} has ids already")
    column = id_column(ids)
    keys = encode_ids(ids, column, 0)  # all at once: a bad one is refused before a row is read
    content = len(table.schema.content)
    columns = (*table.schema.columns[:content], column, *table.schema.columns[content:])

    def step(batch: Batch, start: int) -> Batch:
        return [*batch[:content], keys[start : start + len(batch[0])], *batch[content:]]

    return _stepped(table, replace(table.schema, columns=columns), step)


# ------------------------------------------------------------------ classes and members


def _renamed(table: Table, names: Sequence[str]) -> Table:
    known = table.schema.class_names
    if known is not None and tuple(names) != known:
        raise ArgumentError(
            f"{table.where} has the class names {list(known)[:5]}, others were given; their order is "
            "what the numbers mean, so they cannot be renamed here"
        )
    schema = replace(table.schema, class_names=tuple(names))
    schema.check("class_names", ArgumentError)
    return table.remade(schema, table.batches)


def _member(table: Table, member: int) -> Table:
    schema = table.schema
    if schema.num_members is None:
        raise ArgumentError(f"{table.where} has no members, and member {member} was asked for")
    if not 0 <= member < schema.num_members:
        raise ArgumentError(f"member is {member}, expected 0 to {schema.num_members - 1}")
    single = remade(schema, num_members=None)
    content = len(schema.content)

    def step(batch: Batch, start: int) -> Batch:
        # A copy, or the other members would stay in memory for as long as the batch does.
        chosen = [np.ascontiguousarray(column[:, member]) for column in batch[:content]]
        return [*chosen, *batch[content:]]

    models = table.identity.get("model", {}).get("members")
    identity = table.identity
    if isinstance(models, list) and len(models) == schema.num_members:
        identity = {**identity, "model": models[member]}
    return replace(_stepped(table, single, step), identity=identity)


def _classes(table: Table, names_or_numbers: Sequence[int | str]) -> Table:
    schema = table.schema
    numbers = [_class_number(schema, one) for one in names_or_numbers]
    if not numbers or len(set(numbers)) != len(numbers):
        raise ArgumentError(
            f"classes is {list(names_or_numbers)}, expected at least one class, none twice"
        )
    names = schema.class_names
    chosen = None if names is None else tuple(names[i] for i in numbers)
    fewer = remade(schema, num_classes=len(numbers), class_names=chosen)
    before, after, content = encoding_of(schema), encoding_of(fewer), len(schema.content)
    at = np.array(numbers)
    moved = np.full(schema.num_classes, -1, np.int64)
    moved[at] = np.arange(len(at))

    def beside(batch: Batch, start: int) -> Iterator[Array]:
        for column, rows in zip(schema.columns[content:], batch[content:], strict=True):
            if column.role != "class_label":
                yield rows
                continue
            check_labels(rows, Bounds(schema.num_classes), start)
            labels = moved[rows]
            if (labels < 0).any():
                row = int(np.argmax(labels < 0))
                raise ArgumentError(
                    f"the label of row {start + row} is class {rows[row]}, which is none of the classes "
                    f"{list(names_or_numbers)}: choose rows that have these alone (rows=, --rows)"
                )
            yield labels

    def step(batch: Batch, start: int) -> Batch:
        if schema.kind == "counts":
            rows = before.rows(batch[:content], schema)[..., at]
        elif schema.kind == "logits":  # as the model gave them: a softmax of them renormalises
            rows = before.rows(batch[:content], schema)[..., at]
            excluded = np.isneginf(rows).all(axis=-1)
            if excluded.any():
                raise _without(start + int(np.argwhere(excluded)[0][0]), names_or_numbers)
        else:  # what is left of each row, renormalised
            # In logarithms, around the largest: what is left of a row may be under the least float.
            logs = before.decode(batch[:content], schema, "log_probs")[..., at].astype(np.float64)
            top = logs.max(axis=-1, keepdims=True)
            if not np.isfinite(top).all():
                row = start + int(np.argwhere(~np.isfinite(top))[0][0])
                raise _without(row, names_or_numbers)
            logs -= top + np.log(np.exp(logs - top).sum(axis=-1, keepdims=True))
            rows = np.exp(logs) if schema.kind == "probs" else logs
        return [*after.encode(np.ascontiguousarray(rows), fewer, start), *beside(batch, start)]

    return _stepped(table, fewer, step)


def _without(row: int, names_or_numbers: Sequence[int | str]) -> ArgumentError:
    return ArgumentError(f"row {row} has no probability in the classes {list(names_or_numbers)}")


def _class_number(schema: Schema, one: int | str) -> int:
    names = schema.class_names
    if isinstance(one, str):
        if names is None or one not in names:
            has = "no class names" if names is None else f"the classes {list(names)[:10]}"
            raise ArgumentError(f"there is no class {one!r}; the source has {has}")
        return names.index(one)
    if not 0 <= one < schema.num_classes:
        raise ArgumentError(f"class {one} was asked for, expected 0 to {schema.num_classes - 1}")
    return int(one)


# ------------------------------------------------------------------ numbers


def encode(schema: Schema, kind: str | None, dtype: str | None) -> Encoded:
    """Rows of `schema` as another kind or dtype; None keeps what they have.

    Raises:
        ArgumentError: counts of something else, or a dtype that the kind does not have.
    """
    kind = kind or schema.kind
    dtype = dtype or (schema.dtype if kind == schema.kind else None)
    if (kind, dtype) == (schema.kind, schema.dtype):
        return Encoded(schema, lambda batch, start: batch)
    if kind == "counts" != schema.kind:
        raise ArgumentError(
            f"counts cannot be made of {schema.kind}: nobody knows how many votes. kind= (--kind) is what "
            "the rows become; if they are votes in the source, say source_kind='counts' (--source-kind "
            "counts)"
        )
    made = remade(schema, kind=kind, dtype=dtype)
    before, after, content = encoding_of(schema), encoding_of(made), len(schema.content)

    def step(batch: Batch, start: int) -> Batch:
        if kind == schema.kind:
            stored = after.recast(batch[:content], schema, made, start)
        else:
            stored = after.encode(before.decode(batch[:content], schema, kind), made, start)
        return [*stored, *batch[content:]]

    lost = []
    if kind != schema.kind:
        lost.append(f"kind: {schema.kind} became {kind}")
    if _narrows(schema.dtype, made.dtype):
        lost.append(f"dtype: {schema.dtype} became {made.dtype}")
    return Encoded(made, step, tuple(lost))


def without_header(schema: Schema, *, names: bool = False, ids: bool = False) -> Encoded:
    """The rows without what a plain file cannot hold: temperature, encoding and side columns, class names and ids.

    `names`, `ids`: the format keeps them nevertheless.
    """
    kept = [i for i, column in enumerate(schema.columns) if column.role == "id" and ids]
    made = remade(
        schema,
        encoding=default_encoding(schema.kind),
        class_names=schema.class_names if names else None,
        temperature=1.0,
        tol=schema.sum_tolerance,
        side_columns=[schema.columns[i] for i in kept],
    )
    before, after, content = encoding_of(schema), encoding_of(made), len(schema.content)

    def step(batch: Batch, start: int) -> Batch:
        rows = batch[:content]
        if before is not after:
            rows = after.encode(before.rows(rows, schema), made, start)
        return [*rows, *(batch[i] for i in kept)]

    return Encoded(made, step)


def _narrows(old: str, new: str) -> bool:
    """Whether numbers may change; votes never do, since those that do not fit are refused."""
    if old in _BITS and new in _BITS:
        return any(a > b for a, b in zip(_BITS[old], _BITS[new], strict=True))
    return False


# ------------------------------------------------------------------ tables


def _stepped(table: Table, schema: Schema, step: Step) -> Table:
    return table.remade(schema, changed(table.batches, step))
