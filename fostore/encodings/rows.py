"""Rows as callers give them, brought to the shape and the numbers that a schema asks for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from fostore.encodings.topk_rows import Selected
from fostore.errors import ArgumentError, RowError
from fostore.schema.halves import bfloat16_to_float32, float32_to_bfloat16
from fostore.schema.ranges import describe
from fostore.schema.row import COUNTS, FLOATS, Array, Schema

if TYPE_CHECKING:
    from fostore.encodings.encoding import Encoding

LOWEST = {
    "float16": -65504.0,
    "bfloat16": -float.fromhex("0x1.fep127"),
    "float32": float(np.finfo(np.float32).min),
    "float64": float(np.finfo(np.float64).min),
}
"""The lowest finite number of each dtype."""
_LITTLE_ENDIAN = {name: np.dtype(name).newbyteorder("<") for name in FLOATS if name != "bfloat16"}


def where(start: int, count: int) -> str:
    """The rows of a batch in a message's words."""
    return describe([(start, start + count)]) if count else f"no rows, at row {start}"


def as_given(rows: Any, encoding: Encoding, schema: Schema) -> tuple[Any, int]:
    """A batch as `encoding.encode` takes it, NumPy or `Selected`, and how many rows it has."""
    if isinstance(rows, Selected):
        if encoding.selects(schema) is None:
            raise RowError(
                "selected rows came, and the store keeps every class of every row: give whole rows"
            )
        return rows, len(rows.ids) if np.ndim(rows.ids) else 0
    values = rows if type(rows) is np.ndarray else as_array(rows)
    if not values.ndim:
        raise RowError(f"rows come in batches, {rows!r:.80} came")
    return values, len(values)


def as_array(rows: Any) -> Array:
    """Rows as NumPy: lists by NumPy, tensors through their own conversion."""
    if hasattr(rows, "detach") and hasattr(rows, "cpu"):
        rows = rows.detach().cpu()
    if np.ma.is_masked(rows):  # NumPy would hand out whatever lies under the mask
        raise RowError("rows have masked numbers; leave those rows out, or fill them (rows.filled)")
    try:
        return np.asarray(rows)
    except (ValueError, TypeError) as error:
        message = f"rows of type {type(rows).__name__} do not make an array: {error}"
        raise RowError(message) from error


def refuse_shape(rows: Array, schema: Schema, start: int) -> NoReturn:
    """Raise the RowError of rows that are not (n, *schema.row_shape)."""
    expected = ", ".join(map(str, schema.row_shape))
    if rows.ndim == len(schema.row_shape) + 1:
        at = where(start, len(rows))
        if rows.shape[-1] != schema.num_classes:
            raise RowError(
                f"store keeps {schema.num_classes} classes per sample, this batch has "
                f"{rows.shape[-1]} ({at})"
            )
        raise RowError(
            f"store keeps {schema.num_members} members per sample, this batch has "
            f"{rows.shape[1]} ({at})"
        )
    hint = " (one row alone is a batch as row[None])" if rows.shape == schema.row_shape else ""
    if schema.num_members is not None and rows.ndim == 2:
        hint = "; an ensemble's members go along the second axis"
    raise RowError(
        f"rows come in batches of shape (n, {expected}), this batch has shape {rows.shape}{hint}, "
        f"at row {start}"
    )


def as_floats(rows: Array, start: int) -> Array:
    """Rows of any float dtype as float16, float32 or float64; aliases where nothing changes.

    bfloat16 arrays (as `ml_dtypes` and JAX have them) become float32, which is exact.

    Raises:
        RowError: integers, booleans, complex numbers or objects.
    """
    if rows.dtype.kind == "f" and rows.dtype.itemsize <= 8:
        return rows
    if rows.dtype.name == "bfloat16":
        return bfloat16_to_float32(np.ascontiguousarray(rows).view(np.uint16))
    if rows.dtype.kind != "f":
        hint = "convert them with .astype('float32')"
        if rows.dtype.kind in "iub":
            hint = "votes go to kind='counts'; one-hot labels convert with .astype('float32')"
        raise RowError(
            f"{where(start, len(rows))} have dtype {rows.dtype}, expected floating-point numbers: {hint}"
        )
    # NumPy's long double, whose bytes depend on the machine.
    return rows.astype(np.float64) if rows.dtype.itemsize > 8 else rows


def round_to(rows: Array, dtype: str) -> Array:
    """Float rows rounded to nearest in the stored form of `dtype`; C-contiguous, aliases where it can."""
    if dtype == "bfloat16":
        with np.errstate(over="ignore", under="ignore"):
            return float32_to_bfloat16(rows)
    # What overflows becomes infinite, which the check of the stored rows refuses.
    stored = _LITTLE_ENDIAN[dtype]
    if rows.dtype == stored:
        return np.ascontiguousarray(rows)
    with np.errstate(over="ignore", under="ignore"):
        return np.ascontiguousarray(rows, stored)


def converted(x: Array, kind: str, as_kind: str, temperature: float) -> Array:
    """Probabilities or their logarithms as another kind, softened; aliases where nothing changes.

    Args:
        x: (n, ..., K) floats.
        kind: "probs" or "log_probs": what `x` holds.
        as_kind, temperature: see `fostore.encodings.Encoding.decode`.
    """
    check_as_kind(as_kind)
    if temperature == 1 and as_kind == kind:
        return x
    if temperature == 1 and as_kind == "probs":
        return np.exp(x)
    if kind == "probs":
        x = log(x)
    if temperature == 1:
        return x
    from fostore.schema import (
        simplex,
    )  # most rows are taken as they are stored, and need none of it

    change = {"probs": simplex.softmax, "log_probs": simplex.log_softmax, "logits": simplex.scale}
    return change[as_kind](x, temperature)


def log(x: Array) -> Array:
    """Logarithms; a class without probability has minus infinity."""
    with np.errstate(divide="ignore"):
        logs: Array = np.log(x)
    return logs


def check_as_kind(as_kind: str) -> None:
    """Raise ArgumentError for what distributions cannot be asked for as."""
    if as_kind not in ("probs", "log_probs", "logits"):
        raise ArgumentError(f"kind is {as_kind!r}, expected 'probs', 'log_probs' or 'logits'")


def as_counts(rows: Array, dtype: str, start: int) -> Array:
    """Integer rows in an unsigned dtype that holds them all; C-contiguous, aliases where it can.

    Raises:
        RowError: no integers, a negative number, or one that the dtype cannot hold.
    """
    if rows.dtype.kind not in "iu":
        raise RowError(
            f"{where(start, len(rows))} have dtype {rows.dtype}, expected integers: "
            "counts are numbers of votes; distributions go to kind='probs'"
        )
    most = int(np.iinfo(COUNTS[dtype]).max)
    if rows.size and (int(rows.min()) < 0 or int(rows.max()) > most):
        bad = np.logical_or(rows < 0, rows > most) if rows.dtype.kind == "i" else rows > most
        at = np.argwhere(bad)[0]
        what = rows[tuple(at)]
        hint = (
            "votes are 0 or more"
            if what < 0
            else f"create the store with a wider dtype than {dtype}"
        )
        raise RowError(
            f"row {start + at[0]} holds {what} at class {at[-1]}, "
            f"expected 0 to {most} ({dtype}): {hint}"
        )
    return np.ascontiguousarray(rows, np.dtype(dtype).newbyteorder("<"))


def check_columns(columns: Sequence[Array], schema: Schema, start: int) -> None:
    """Raise RowError unless there is one array a content column, of its stored dtype and shape."""
    expected = schema.content
    if len(columns) != len(expected):
        raise RowError(f"{len(columns)} columns for a schema that has {len(expected)}")
    for array, column in zip(columns, expected, strict=True):
        same = array.dtype == column.numpy_dtype and array.shape[1:] == column.shape
        if not same or len(array) != len(columns[0]):
            raise RowError(
                f"column {column.name!r} has dtype {array.dtype} and shape {array.shape}, expected "
                f"{column.stored} and ({len(columns[0])}, "
                f"{', '.join(map(str, column.shape))}), at row {start}"
            )
