"""Whether rows of the k largest classes are what their schema promises: as a device selected them, and as they lie."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NoReturn

import numpy as np

from fostore.encodings.rows import as_array, log, where
from fostore.encodings.selection import log_total
from fostore.encodings.topk_rows import Selected
from fostore.errors import RowError
from fostore.schema.halves import widen
from fostore.schema.row import ROUNDOFF, Array, Schema

_SMALLEST = {"float16": 2.0**-24, "bfloat16": 2.0**-133, "float32": 2.0**-149, "float64": 0.0}
_SLACK = 1e-3
"""What a sum of many weights may be off, in nats: far more than rounding, far less than one class too many."""


def check_selected(rows: Selected, schema: Schema, start: int) -> Selected:
    """The same as NumPy arrays of floats and int64, of the shapes that the schema has.

    Raises:
        RowError: an array is missing or has another shape or dtype, or a class is none of the schema's.
    """
    shape = np.shape(rows.ids)
    lead = shape[:-1]
    members = () if schema.num_members is None else (schema.num_members,)
    if len(shape) != 2 + len(members) or shape[1:] != (*members, schema.encoding["k"]):
        raise RowError(
            f"selected ids have the shape {shape}, expected (n, "
            f"{', '.join(map(str, (*members, schema.encoding['k'])))}), at row {start}"
        )
    shapes = {column.name: (lead[0], *column.shape) for column in schema.content}
    arrays: dict[str, Any] = {}
    for name, given in rows._asdict().items():
        if name not in shapes:
            arrays[name] = None  # what this store does not keep
            continue
        array = None if given is None else as_array(given)
        if array is None or array.shape != shapes[name]:
            raise RowError(
                f"selected {name} have {'none' if array is None else array.shape}, expected the shape "
                f"{shapes[name]} ({where(start, lead[0])})"
            )
        expected = "iu" if name == "ids" else "f"
        if array.dtype.kind not in expected:
            raise RowError(
                f"selected {name} have dtype {array.dtype}, expected "
                f"{'integers' if name == 'ids' else 'float16, float32 or float64'}"
            )
        arrays[name] = array
    ids = arrays["ids"] = arrays["ids"].astype(np.int64)
    outside = (ids < 0) | (ids >= schema.num_classes)
    if outside.any():
        _refuse(
            outside.any(axis=-1), start, f"names a class that is not among {schema.num_classes:,}"
        )
    if arrays["values"].dtype == np.float16:
        arrays["values"] = arrays["values"].astype(np.float32)
    return Selected(**arrays)


def check_rows(rows: Mapping[str, Array], schema: Schema, start: int) -> None:
    """Raise RowError where rows (columns by name, at least one row) break what spec/encodings.md promises of them."""
    values, ids = widen(rows["values"], schema.dtype), rows["ids"]
    residual = rows["residual"].astype(np.float64)
    _check_order(values, ids, schema, start)
    logs = values.astype(np.float64)
    highest = logs[..., -1] * (1 - 2 * ROUNDOFF[schema.dtype])  # what rounds down to the last one
    if schema.kind == "probs":
        last = logs[..., -1] * (1 + 2 * ROUNDOFF[schema.dtype]) + _SMALLEST[schema.dtype]
        logs, highest = log(logs), log(last)
    others = schema.num_classes - ids.shape[-1]
    bound = np.full(residual.shape, -np.inf)
    if others:
        with np.errstate(invalid="ignore"):
            bound = highest + math.log(others) + _SLACK
    odd = np.isnan(residual) | (residual == np.inf)
    _check(~odd, start, "has a residual that is no number")
    # A residual that an importer worked out carries the rounding of all that is kept.
    if not schema.encoding.get("derived"):
        _check(
            residual <= bound,
            start,
            f"has a residual that {others:,} classes, none above the last one kept, cannot weigh",
        )
    if schema.kind == "logits":
        _check(
            values[..., 0] == 0,
            start,
            "has a largest logit other than 0: logits are stored minus it",
        )
        _check(np.isfinite(rows["logsumexp"]), start, "has a logsumexp that is not finite")
    else:
        with np.errstate(under="ignore", over="ignore"):
            sums = np.exp(np.logaddexp(log_total(logs), residual))
        tol = schema.sum_tolerance
        _check(np.abs(sums - 1) <= tol, start, f"and its rest do not sum to 1 within {tol:.3g}")
    for i, temperature in enumerate(schema.encoding.get("temperatures", ())):
        softened = rows["residual_t"][..., i].astype(np.float64)
        limit = np.full(residual.shape, -np.inf)
        if others:
            with np.errstate(invalid="ignore"):
                limit = highest / temperature + math.log(others) + _SLACK
        good = (softened <= limit) & (np.isneginf(softened) == np.isneginf(residual))
        _check(good, start, f"has a residual_t at {temperature:g} that its rest cannot weigh")
    if "tail_entropy" in rows:
        entropy = rows["tail_entropy"]
        good = (entropy >= -_SLACK) & (entropy <= math.log(max(others, 1)) + _SLACK)
        _check(good, start, f"has a tail_entropy that no distribution over {others:,} classes has")


def _check_order(values: Array, ids: Array, schema: Schema, start: int) -> None:
    odd = np.isnan(values) | (values == np.inf)
    if schema.kind == "probs":
        odd |= values < 0
    _check(~odd.any(axis=-1), start, f"holds a value that is none of {schema.kind}")
    after, before = values[..., 1:], values[..., :-1]
    falls = (after < before) | ((after == before) & (ids[..., 1:] > ids[..., :-1]))
    _check(
        falls.all(axis=-1),
        start,
        "is out of order: values fall along a row, and the classes of equal ones rise",
    )
    in_order = np.sort(ids, axis=-1)
    once = (in_order[..., 1:] != in_order[..., :-1]).all(axis=-1)
    _check(once, start, "names a class twice")
    inside = in_order[..., -1] < schema.num_classes
    _check(inside, start, f"names a class that is not among {schema.num_classes:,}")


def _check(good: Array, start: int, what: str) -> None:
    if not good.all():
        _refuse(~good, start, what)


def _refuse(bad: Array, start: int, what: str) -> NoReturn:
    at = np.argwhere(bad)
    member = f", member {at[0][1]}" if bad.ndim > 1 else ""
    count = len(np.unique(at[:, 0]))
    raise RowError(
        f"row {start + at[0][0]}{member} {what} ({count} of {len(bad)} rows): it is no row of the largest classes"
    )
