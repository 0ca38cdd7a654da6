"""What may be asked of `take`: rows, temperatures and where they go, checked, and refused by name."""

from __future__ import annotations

import operator
from pathlib import Path
from typing import Any

import numpy as np

from fostore.errors import ArgumentError, UncommittedError
from fostore.schema.ranges import Ranges, describe
from fostore.schema.row import Array

_INT64 = np.dtype(np.int64)
_LEAST_TEMPERATURE = float(np.finfo(np.float32).tiny)
_MOST_TEMPERATURE = float(np.finfo(np.float32).max)


def as_rows(rows: Any) -> Array:
    """Rows as int64, one axis; raises ArgumentError where they are no integers."""
    try:
        wanted = np.asarray(rows)
    except ValueError as error:
        raise ArgumentError(f"rows must be a sequence of integers ({error})") from error
    if wanted.ndim != 1 or (wanted.dtype.kind not in "iu" and wanted.size):
        raise ArgumentError(
            f"rows must be a sequence of integers, {wanted.dtype} of shape {wanted.shape} came"
        )
    return wanted.astype(_INT64, copy=False)


def as_row(row: Any) -> int:
    """One row as an int; raises ArgumentError where it is none."""
    try:
        return operator.index(row)
    except TypeError as error:
        raise ArgumentError(
            f"a row is an integer, an id that is text, or a slice, {row!r} came; take() gathers"
        ) from error


def refuse_uncommitted(wanted: Array, committed: Ranges, path: Path, *, is_sealed: bool) -> None:
    """Raise UncommittedError, naming the rows (int64), unless all of them are committed."""
    starts = np.array([start for start, _ in committed], dtype=np.int64)
    stops = np.array([stop for _, stop in committed], dtype=np.int64)
    at = np.searchsorted(starts, wanted, side="right") - 1
    bad = (at < 0) | (wanted >= stops[at]) if len(stops) else np.ones(len(wanted), bool)
    if bad.any():
        named = ", ".join(str(row) for row in wanted[bad][:4])
        has = f"the {describe(committed)}" if committed else "no rows"
        raise UncommittedError(
            f"row {named} was asked for; {path} has {has}"
            + ("" if is_sealed else " committed so far")
        )


def check_out(out: Any, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    """Raise ArgumentError unless `out` is a writable array of that shape and dtype."""
    is_array = isinstance(out, np.ndarray)
    if not (is_array and (out.shape, out.dtype) == (shape, dtype) and out.flags.writeable):
        came = f"{out.dtype} {out.shape}" if is_array else type(out).__name__
        raise ArgumentError(f"out is {came}, expected a writable array of {dtype} {shape}")


def is_softened(temperature: Any) -> bool:
    """Whether a temperature changes anything; raises ArgumentError where it is none."""
    number = isinstance(temperature, (int, float, np.integer, np.floating))
    number &= not isinstance(temperature, bool)
    # Beyond these, float32 knows no quotient: 0 / T would be no number.
    if number and _LEAST_TEMPERATURE <= temperature <= _MOST_TEMPERATURE:
        return bool(temperature != 1)
    raise ArgumentError(
        f"temperature is {temperature!r}, expected a number above 0: above 1 softens, below 1 sharpens"
    )
