"""What floats are when the file does not say: a look at the first rows, and an error that says what to say."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np

from fostore.errors import ArgumentError, DamageError
from fostore.files import Hints
from fostore.files._numbers import numbers
from fostore.files.array import FileArray
from fostore.schema.row import Array, sum_tolerance
from fostore.schema.simplex import is_probs

_FIRST_ROWS = 64
_FIRST_BYTES = 4 << 20
_ITEM_BYTES = {"bfloat16": 2}


def _first_rows(batches: Callable[[int, int], Iterator[Array]], count: int) -> Array | None:
    """Up to `count` of the first rows; fewer where those behind them are damaged, which nobody may want."""
    while True:
        try:
            return next(batches(0, count), None)
        except DamageError:
            if count == 1:
                raise
            count = max(count // 4, 1)


def kind_of(
    where: str,
    array: FileArray,
    first: Array | None,
    kind: str | None,
    hints: Hints,
    *,
    is_stream: bool,
) -> tuple[str, str]:
    """The kind of floats after a look at the first rows: probabilities, or what the user says that they are.

    Beside it stands what is to be said of that, if anything.

    Raises:
        ArgumentError: nothing says what they are, or the axes are swapped; names the way out.
    """
    size = math.prod(array.shape[1:]) * _ITEM_BYTES.get(array.dtype, 8)
    if first is None:
        first = _first_rows(array.batches, max(1, min(_FIRST_ROWS, _FIRST_BYTES // size)))
    if first is None or not len(first):
        if kind is not None:
            return kind, ""
        raise ArgumentError(f"{where} has no rows that would say what they are; {_ADVICE}")
    values = numbers(first, array.dtype)
    tol = sum_tolerance(array.dtype, array.shape[-1]) if hints.tol is None else hints.tol
    if kind != "percent" and is_probs(values, tol):
        return kind or "probs", _OF_PROBS if kind == "logits" else ""
    if hints.transpose is None or (hints.transpose and kind is None):
        _refuse_swapped(where, array, values, hints, is_stream=is_stream)
    if kind is not None:
        return kind, ""
    with np.errstate(invalid="ignore"):
        sums = values.sum(axis=-1, dtype=np.float64)
        if bool((values >= 0).all() and (abs(sums - 100) <= 1).all()):
            raise ArgumentError(
                f"the rows of {where} sum to 100: if they are percentages, say source_kind='percent' "
                "(--source-kind percent), and they are divided by 100; for sums that are off by more "
                "than rounding say source_tol= (--source-tol) as well"
            )
        is_rounded = bool((values >= 0).all() and (abs(sums - 1) <= 0.1).all())
        is_log = bool((values <= 0).all()) and is_probs(np.exp(values), max(tol, 1e-2))
        is_whole = bool(((values >= 0) & (values == np.rint(values))).all())
    hint = ""
    if is_rounded:
        off = float(abs(sums - 1).max())
        hint = (
            f"; their sums are off by up to {off:.3g}: if they were rounded, say source_tol={_up(off)} "
            f"(--source-tol {_up(off)})"
        )
    elif is_log:
        hint = '; their exponentials sum to 1: they look like "log_probs"'
    elif is_whole:
        hint = '; they are whole numbers: if they are votes, say source_kind="counts" (--source-kind counts)'
    at = next(i for i in range(len(values)) if not is_probs(values[i : i + 1], tol))
    raise ArgumentError(
        f"the first rows of {where} are no probabilities (not negative, with the sum 1), and nothing "
        f"says what they are: row {at} is {_few(values[at])}{hint}; {_ADVICE}"
        + (
            ""
            if is_rounded
            else "; where sums are off by more than rounding, source_tol= (--source-tol)"
        )
    )


_OF_PROBS = (
    "the first rows are probabilities (not negative, with the sum 1), and were said to be logits, whose "
    'softmax evens them out; source_kind="probs" (--source-kind probs) takes them as they are, and kind= '
    "(--kind) is what they become"
)


def _few(row: Array) -> str:
    """The first numbers of a row, and how many there are."""
    numbers = row.reshape(-1)
    shown = ", ".join(f"{number:.6g}" for number in numbers[:4].tolist())
    return f"[{shown}, ...] ({row.size} numbers)" if row.size > 4 else f"[{shown}]"


_ADVICE = (
    'say source_kind="logits" (--source-kind logits), "log_probs" or "probs": what the rows of the source '
    "are; kind= (--kind) is what they become"
)


def _up(off: float) -> float:
    """A round tolerance above an error."""
    power = 10.0 ** math.floor(math.log10(off)) if off > 0 else 1e-3
    return float(f"{(math.floor(off / power) + 1) * power:.1g}")


def _refuse_swapped(
    where: str,
    array: FileArray,
    first: Array,
    hints: Hints,
    *,
    is_stream: bool,
) -> None:
    """Refuse an array whose columns sum to 1, or to 100, and its rows do not: its axes are swapped.

    Reading stops at the first column whose sum goes beyond, which of rows that are none is soon.
    """
    if is_stream or len(array.shape) < 2 or not bool((first >= 0).all()):
        return
    whole = 1.0 if bool((first <= 1.001).all()) else 100.0
    off = 1e-2 * whole
    sums = np.zeros(array.shape[1:])
    for batch in array.batches(0, max(1, _FIRST_BYTES // (math.prod(array.shape[1:]) * 8))):
        values = numbers(batch, array.dtype)
        with np.errstate(invalid="ignore"):
            sums += values.sum(axis=0, dtype=np.float64)
        if not bool((sums <= whole + off).all()):
            return
    if bool((abs(sums - whole) <= off).all()):
        swapped = array.shape[::-1]
        how = (
            "transpose=False (--no-transpose)"
            if hints.transpose
            else "transpose=True (--transpose)"
        )
        raise ArgumentError(
            f"{where} has the shape {array.shape}, expected (sample, class): its rows do not sum to "
            f"{whole:g}, and every column does, so its axes are swapped. Say {how}, and they are read as "
            f"{swapped}"
            + (
                "; if they lie as they should, say transpose=False (--no-transpose)"
                if not hints.transpose
                else ""
            )
        )
