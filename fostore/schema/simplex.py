"""Whether rows are distributions: fast checks on arrays, and the softmax family.

Every check has a cheap path that touches each number twice (once as bits, once in a matrix-vector
product) and says yes for good rows, and an exact one, in float64, that decides where the cheap one
does not and names the rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from typing import Any, NoReturn

import numpy as np

from fostore.errors import RowError
from fostore.schema.halves import (
    SCALE,
    bfloat16_to_float32,
    float16_to_float32,
    float32_to_bfloat16,
)
from fostore.schema.ranges import Ranges, describe
from fostore.schema.row import Array

# Numbers that are looked at together: their float32 form fits the second-level cache, and OpenBLAS
# starts no second thread for products of this size.
CHUNK = 1 << 16
_LISTED_ROWS = 1000
_LEAST_TOL = 1e-5  # under this the rounding of a float32 sum decides, so only the exact path may


def check(
    rows: Array, kind: str, tol: float = 0.0, start: int = 0, *, bfloat16: bool = False
) -> None:
    """Raise unless every row is a distribution, as its kind has it.

    Probabilities are finite, nowhere negative, and sum to 1; so do the exponentials of log_probs,
    of which minus infinity is log 0; logits hold at least one finite number, and beside those only
    minus infinity, which is a class that a mask excludes.

    Args:
        rows: (n, ..., K) float16, float32 or float64, or uint16 bits with `bfloat16`.
        kind: "probs", "log_probs" or "logits".
        tol: how far a sum may be from 1.
        start: the number of the first row, for the message.
        bfloat16: whether `rows` are the bits of bfloat16 numbers.

    Raises:
        RowError: names the first bad rows, what they hold, and what to do.

    >>> check(np.float32([[0.25, 0.75]]), "probs", 1e-3)
    >>> check(np.float32([[0.5, 0.5], [140.0, 5.5]]), "probs", 1e-3, 512)
    Traceback (most recent call last):
    ...
    fostore.errors.RowError: row 513 sums to 145.5, expected 1 within 0.001 (1 of 2 rows): ...
    """
    for chunk in _chunks(rows):
        if not _is_good(chunk, kind, tol, bfloat16):
            _refuse(rows, start, bfloat16, tol, kind)


def is_probs(rows: Array, tol: float) -> bool:
    """Whether `check` would accept the rows; reads no further than the first bad chunk."""
    return all(_is_good(chunk, "probs", tol, False) for chunk in _chunks(rows))


def _is_good(chunk: Array, kind: str, tol: float, bfloat16: bool) -> bool:
    quick, bad = _TESTS[kind]
    return quick(chunk, tol, bfloat16) or not bad(_exact(chunk, bfloat16), tol).any()


# ------------------------------------------------------------------ the softmax family


def softmax(x: Array, temperature: float = 1.0) -> Array:
    """Probabilities from logits along the last axis, in float32 (float64 where `x` is float64).

    A fresh array; minus infinity gives 0. Every row must hold a finite number. `temperature`
    divides the logits, minus their maximum; the logits may be logarithms of probabilities.

    >>> softmax(np.float32([[0.0, 0.0, -np.inf]])).tolist()
    [[0.5, 0.5, 0.0]]
    """
    out = _scaled(x, temperature)
    with np.errstate(under="ignore"):
        np.exp(out, out=out)
    out /= np.add.reduce(out, axis=-1, keepdims=True)
    return out


def log_softmax(x: Array, temperature: float = 1.0) -> Array:
    """Log-probabilities from logits along the last axis; parameters and dtypes are those of `softmax`."""
    out = _scaled(x, temperature)
    with np.errstate(under="ignore"):
        out -= np.log(np.add.reduce(np.exp(out), axis=-1, keepdims=True))
    return out


def logsumexp(x: Array) -> Array:
    """The log of the sum of exponentials, in float32 (float64 where `x` is float64); drops the last axis.

    The sum is NumPy's, not that of a linear algebra library, so that a row has one result
    whatever batch it comes in.
    """
    shifted, top = _shifted(x)
    return _level(shifted, top)


def shift(x: Array) -> tuple[Array, Array]:
    """Logits minus their row's maximum, and their logsumexp; of the dtypes that `logsumexp` has."""
    shifted, top = _shifted(x)
    return shifted, _level(shifted, top)


def scale(x: Array, temperature: float) -> Array:
    """Logits divided by a temperature: those that a model of this temperature hands to its softmax."""
    with np.errstate(over="ignore", under="ignore"):
        scaled: Array = x / temperature
    return scaled


def _scaled(x: Array, temperature: float) -> Array:
    """Fresh logits minus their row's maximum, divided by a temperature."""
    out, _ = _shifted(x)
    if temperature != 1:
        with np.errstate(over="ignore", under="ignore"):
            out /= temperature
    return out


def _shifted(x: Array) -> tuple[Array, Array]:
    if x.dtype == np.float16:
        x = float16_to_float32(x)
    x = np.asarray(x, np.float64 if x.dtype.itemsize >= 8 else np.float32)
    top: Array = np.max(x, axis=-1, keepdims=True)
    with np.errstate(over="ignore", invalid="ignore"):
        return x - top, top


def _level(shifted: Array, top: Array) -> Array:
    with np.errstate(under="ignore", over="ignore"):
        result: Array = np.log(np.add.reduce(np.exp(shifted), axis=-1)) + top[..., 0]
    return result


# ------------------------------------------------------------------ the cheap path


def _chunks(rows: Array) -> Iterable[Array]:
    """Runs of rows of about `CHUNK` numbers, each C-contiguous, native and of two axes."""
    if rows.size == 0:
        return ()
    if not rows.dtype.isnative:
        rows = rows.astype(rows.dtype.newbyteorder("="))
    if rows.size <= CHUNK:
        return (np.ascontiguousarray(rows).reshape(-1, rows.shape[-1]),)
    return _cut(rows, max(CHUNK * len(rows) // rows.size, 1))


def _cut(rows: Array, step: int) -> Iterator[Array]:
    for begin in range(0, len(rows), step):
        yield np.ascontiguousarray(rows[begin : begin + step]).reshape(-1, rows.shape[-1])


@lru_cache(maxsize=8)
def _probs_plan(char: str, num_classes: int, tol: float) -> tuple[int, Array, float, float]:
    """The bits of 1 + tol, the vector that sums, and the bounds inside which a cheap sum is good.

    Non-negative numbers are ordered like their bits, negative and non-finite ones lie above: so one
    unsigned maximum checks range and finiteness. A quarter of the tolerance is left for rounding.
    """
    slack = 0.75 * tol
    if char == "bfloat16":
        limit = int(float32_to_bfloat16(np.full(1, 1 + tol, np.float32))[0])
        ones = np.ones(num_classes, np.float32)
    elif char == "e":
        limit = int(np.float16(1 + tol).view(np.uint16))
        ones = np.full(num_classes, SCALE, np.float32)
    elif char == "f":
        limit = int(np.float32(1 + tol).view(np.uint32))
        ones = np.ones(num_classes, np.float32)
    else:
        limit = int(np.float64(1 + tol).view(np.uint64))
        ones = np.ones(num_classes, np.float64)
    return limit, ones, 1 - slack, 1 + slack


def _quick_probs(chunk: Array, tol: float, bfloat16: bool) -> bool:
    """True where the rows are good for sure; False where the exact path must decide."""
    if tol < _LEAST_TOL:  # the rounding of a float32 sum would decide
        return False
    char = "bfloat16" if bfloat16 else chunk.dtype.char
    limit, ones, least, most = _probs_plan(char, chunk.shape[1], tol)
    bits = chunk.view(_BITS[chunk.dtype.itemsize])
    if np.maximum.reduce(bits, axis=None) > limit:
        return False
    if bits.dtype == np.uint16:
        wide = bits.astype(np.uint32)
        np.left_shift(wide, 16 if bfloat16 else 13, out=wide)
        chunk = wide.view(np.float32)
    sums = chunk.dot(ones)
    return bool(np.maximum.reduce(sums) <= most and np.minimum.reduce(sums) >= least)


def _quick_log_probs(chunk: Array, tol: float, bfloat16: bool) -> bool:
    if tol < _LEAST_TOL:
        return False
    x = _widen(chunk, bfloat16)
    with np.errstate(under="ignore", over="ignore"):
        sums = np.exp(x).dot(np.ones(x.shape[1], x.dtype))
    slack = 0.75 * tol
    return bool(np.maximum.reduce(sums) <= 1 + slack and np.minimum.reduce(sums) >= 1 - slack)


def _quick_logits(chunk: Array, tol: float, bfloat16: bool) -> bool:
    """Whether every number is finite: one signed maximum for the positive, one unsigned for the rest."""
    size = chunk.dtype.itemsize
    infinity = 0x7F80 if bfloat16 else int(np.array(np.inf, chunk.dtype).view(_BITS[size]))
    sign = 1 << (8 * size - 1)
    return bool(
        np.maximum.reduce(chunk.view(_SIGNED[size]), axis=None) < infinity
        and np.maximum.reduce(chunk.view(_BITS[size]), axis=None) < infinity + sign
    )


_BITS: dict[int, Any] = {2: np.uint16, 4: np.uint32, 8: np.uint64}
_SIGNED: dict[int, Any] = {2: np.int16, 4: np.int32, 8: np.int64}


def _widen(chunk: Array, bfloat16: bool) -> Array:
    if bfloat16:
        return bfloat16_to_float32(chunk)
    return chunk if chunk.dtype.itemsize >= 4 else float16_to_float32(chunk)


# ------------------------------------------------------------------ the exact path


def _exact(chunk: Array, bfloat16: bool) -> Array:
    return (bfloat16_to_float32(chunk) if bfloat16 else chunk).astype(np.float64)


def _bad_probs(x: Array, tol: float) -> Array:
    with np.errstate(invalid="ignore", over="ignore"):
        off: Array = np.abs(np.add.reduce(x, axis=-1) - 1)
    bad: Array = ~((x >= 0).all(-1) & (off <= tol))
    return bad


def _bad_log_probs(x: Array, tol: float) -> Array:
    with np.errstate(invalid="ignore", over="ignore", under="ignore"):
        off: Array = np.abs(np.add.reduce(np.exp(x), axis=-1) - 1)
    bad: Array = ~(off <= tol)
    return bad


def _bad_logits(x: Array, tol: float) -> Array:
    top: Array = np.max(x, axis=-1)  # a maximum hands on NaN and plus infinity
    bad: Array = ~np.isfinite(top)
    return bad


_TESTS: dict[str, tuple[Callable[[Array, float, bool], bool], Callable[[Array, float], Array]]] = {
    "probs": (_quick_probs, _bad_probs),
    "log_probs": (_quick_log_probs, _bad_log_probs),
    "logits": (_quick_logits, _bad_logits),
}
"""By kind: what says yes of good rows cheaply, and what finds the bad ones in float64."""


# ------------------------------------------------------------------ messages


def _refuse(
    rows: Array,
    start: int,
    bfloat16: bool,
    tol: float,
    kind: str,
) -> NoReturn:
    """Find all bad rows, chunk by chunk, and raise an error that names the first few."""
    num_classes = rows.shape[-1]
    per_row = rows[0].size // num_classes
    bad = _TESTS[kind][1]
    listed: list[int] = []
    first: Array | None = None
    count = position = 0
    for chunk in _chunks(rows):
        x = _exact(chunk, bfloat16)
        hits = np.flatnonzero(bad(x, tol))
        if len(hits):
            if first is None:
                first = x[hits[0]]
                member = int(position + hits[0]) % per_row
            numbers = np.unique((position + hits) // per_row)
            count += len(numbers)
            listed += (start + numbers[:_LISTED_ROWS]).tolist()
        position += len(x)
    assert first is not None, "the cheap path refused what the exact path accepts"
    at = f"row {listed[0]}" + (f", member {member}" if per_row > 1 else "")
    what, hint = _describe(first, tol, kind)
    bad_rows = f"{count} of {len(rows)} rows"
    if count > 1:
        ranges = Ranges.of(*((row, row + 1) for row in listed[:_LISTED_ROWS]))
        bad_rows += f" are bad: {describe(ranges, 3)}"
    raise RowError(f"{at} {what} ({bad_rows}): {hint}")


def _describe(row: Array, tol: float, kind: str) -> tuple[str, str]:
    """What is wrong with one row, and what its numbers look like."""
    minus_inf_is_fine = kind in ("log_probs", "logits")
    odd = np.isnan(row) | (row == np.inf) | ((row == -np.inf) & (not minus_inf_is_fine))
    if odd.any():
        at = int(np.flatnonzero(odd)[0])
        what = f"holds {row[at]} at class {at}, expected finite numbers"
        return what, "the model overflowed or met a bad input; look at this sample"
    if kind == "logits":
        return (
            "is minus infinity for every class, expected one finite logit",
            "a mask excludes all classes of this sample",
        )
    if kind == "probs" and (row < 0).any():
        at = int(np.argmax(row < 0))
        what = f"holds {row[at]:.6g} at class {at}, expected probabilities, 0 or more"
    elif kind == "probs":
        what = f"sums to {row.sum():.6g}, expected 1 within {tol:.3g}"
    else:
        with np.errstate(over="ignore"):
            what = (
                f"has exponentials that sum to {np.exp(row).sum():.6g}, expected 1 within {tol:.3g}"
            )
    return what, _guess(row, kind)


def _guess(row: Array, kind: str) -> str:
    """What to do about a finite row that is no distribution of its kind."""
    with np.errstate(over="ignore"):
        log_sum = float(np.exp(row).sum())
    total = float(row.sum())
    if kind == "probs" and (row <= 0).all() and abs(log_sum - 1) < 0.05:
        return "these look like log-probabilities; pass kind='log_probs'"
    if kind == "log_probs" and (row >= 0).all() and abs(total - 1) < 0.05:
        return "these look like probabilities; pass kind='probs'"
    if (row >= 0).all() and (row == np.floor(row)).all() and total >= 2:
        return "these look like votes; pass kind='counts' with an integer dtype"
    if (row < 0).any() or (row > 1).any():
        least = float(row.min())
        if kind == "probs" and least > -1e-3 and abs(total - 1) < 0.05:
            return "rounding made these negative; clip them at 0 and divide by the sum"
        return "these look like logits; pass kind='logits' or output_mode='logits'"
    if abs(total - 1) < 0.05:
        return (
            "close, but off by more than rounding explains; divide by the sum, or pass a larger tol"
        )
    return "probabilities that do not cover all classes, or a wrong axis; divide by the sum if that is meant"
