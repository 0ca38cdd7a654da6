"""What a conversion may change: which rows, classes and member, the kind and the dtype. Pure, piece by piece."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from fostore.conversion.options import Options
from fostore.encodings import another, default_encoding, encoding_of, remade
from fostore.errors import ArgumentError
from fostore.files.table import Batch, Table, changed
from fostore.schema.integers import check_below
from fostore.schema.row import SAMPLE, TOKEN, Array, Schema
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
    rule: str | None = None
    """By which rows became whole that do not keep every class."""


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
    fewer = table.remade(table.schema, batches, num_rows=count, identity=identity)
    return (
        fewer if whole or table.schema.row_axis != TOKEN else _sequences(table, fewer, start, step)
    )


def _sequences(table: Table, fewer: Table, start: int, step: int) -> Table:
    """A part of token rows, if it is of whole sequences; they are numbered from 0 on.

    Raises:
        ArgumentError: it cuts a sequence; says where that begins or ends.
    """
    stop, index = start + (fewer.num_rows or 0) * step, table.schema.index("sequence")
    sequence = {
        row: int(next(iter(table.batches(row, 1)))[index][0])
        for row in (start - 1, start, stop - 1, stop)
        if 0 <= row < (table.num_rows or 0)
    }
    for inside, outside in ((start, start - 1), (stop - 1, stop)):
        if step != 1 or sequence.get(outside) == sequence[inside]:
            raise ArgumentError(
                f"rows {start} to {stop - 1} of {table.where} cut sequence {sequence[inside]}: rows= takes whole "
                "sequences of token rows, one after another; store.offsets says where they begin"
            )
    first = sequence[start]

    def renumber(batch: Batch, row: int) -> Batch:
        return [*batch[:index], batch[index] - first, *batch[index + 1 :]]

    fewer = _stepped(fewer, fewer.schema, renumber)
    return replace(fewer, num_sequences=sequence[stop - 1] - first + 1)


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
    if not encoding_of(schema).is_whole(schema):
        raise ArgumentError(
            f"{table.where} keeps some of {schema.num_classes:,} classes of each row, and what the chosen ones have "
            "where they are not among these is not known; make all classes first, by a rule that you choose: "
            "encoding='dense', rule='uniform' (--encoding dense --rule uniform)"
        )
    if encoding_of(schema).is_drawn:
        raise ArgumentError(
            f"{table.where} keeps draws, and fewer classes would be drawn from these, not from the distributions; "
            "choose the classes of the store that they were made of"
        )
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
            check_below(rows, schema.num_classes, start, "label")
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


def encode(
    schema: Schema,
    kind: str | None,
    dtype: str | None,
    encoding: Any = None,
    rule: str | None = None,
    **parameters: Any,
) -> Encoded:
    """Rows of `schema` as another kind, dtype or encoding; None keeps what they have.

    Args:
        rule: of an encoding that has one; else what becomes of classes that the rows do not keep.
        parameters: of the encoding, see `fostore.encodings.another`.

    Raises:
        ArgumentError: counts of something else, a dtype that the kind does not have, or what cannot be made of
            the rows.
    """
    kind = kind or schema.kind
    if kind == "counts" != schema.kind:
        raise ArgumentError(
            f"counts cannot be made of {schema.kind}: nobody knows how many votes. kind= (--kind) is what "
            "the rows become; if they are votes in the source, say source_kind='counts' (--source-kind "
            "counts)"
        )
    changed: dict[str, Any] = {"kind": kind}
    if dtype is not None or kind != schema.kind:
        changed["dtype"] = dtype
    if encoding is not None or rule is not None or any(v is not None for v in parameters.values()):
        changed["encoding"], rule = another(schema, encoding, rule, **parameters)
    made = remade(schema, **changed)
    if made == schema:
        return Encoded(schema, lambda batch, start: batch)
    before, after, content = encoding_of(schema), encoding_of(made), len(schema.content)

    def step(batch: Batch, start: int) -> Batch:
        rows = batch[:content]
        if before is after:
            stored = after.recast(rows, schema, made, start)
        elif kind == schema.kind:
            stored = after.encode(before.rows(rows, schema, rule), made, start)
        else:
            stored = after.encode(before.decode(rows, schema, kind, rule=rule), made, start)
        return [*stored, *batch[content:]]

    # Of no rows: what cannot be made of any is refused before something is written.
    step([np.empty((0, *c.shape), c.numpy_dtype) for c in schema.columns], 0)
    lost = []
    if kind != schema.kind:
        lost.append(f"kind: {schema.kind} became {kind}")
    if _narrows(schema.dtype, made.dtype):
        lost.append(f"dtype: {schema.dtype} became {made.dtype}")
    return Encoded(made, step, (*lost, *_lost(schema.encoding, made.encoding, changed)), rule)


def _lost(old: Mapping[str, Any], new: Mapping[str, Any], changed: Mapping[str, Any]) -> list[str]:
    """What a change of encoding that was asked for cannot undo: all but what a reader makes of the rows."""
    if "encoding" not in changed:
        return []
    if old["name"] != new["name"]:
        return [f"encoding: {old['name']} became {new['name']}"]
    keys = sorted((old.keys() | new.keys()) - {"rule"})
    return [
        f"{key}: {old.get(key)} became {new.get(key)}"
        for key in keys
        if old.get(key) != new.get(key)
    ]


def without_header(
    schema: Schema, *, names: bool = False, ids: bool = False, rule: str | None = None
) -> Encoded:
    """The rows without what a plain file cannot hold: temperature, encoding and side columns, class names and ids.

    `names`, `ids`: the format keeps them nevertheless. `rule`: what becomes of classes that the rows do not keep.
    """
    kept = [i for i, column in enumerate(schema.columns) if column.role == "id" and ids]
    made = remade(
        schema,
        encoding=default_encoding(schema.kind),
        class_names=schema.class_names if names else None,
        temperature=1.0,
        tol=schema.sum_tolerance,
        side_columns=[schema.columns[i] for i in kept],
        row_axis=SAMPLE,
    )
    before, after, content = encoding_of(schema), encoding_of(made), len(schema.content)

    def step(batch: Batch, start: int) -> Batch:
        rows = batch[:content]
        if before is not after:
            rows = after.encode(before.rows(rows, schema, rule), made, start)
        return [*rows, *(batch[i] for i in kept)]

    return Encoded(made, step, rule=rule)


def _narrows(old: str, new: str) -> bool:
    """Whether numbers may change; votes never do, since those that do not fit are refused."""
    if old in _BITS and new in _BITS:
        return any(a > b for a, b in zip(_BITS[old], _BITS[new], strict=True))
    return False


# ------------------------------------------------------------------ tables


def _stepped(table: Table, schema: Schema, step: Step) -> Table:
    return table.remade(schema, changed(table.batches, step))
