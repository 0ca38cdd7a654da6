"""The k largest numbers of each row, and what the others weigh: one choice for any row, whatever selects it.

Of equal numbers the smaller class comes first. The largest number of every block of a row is found before anything is
sorted: the k-th largest of these is a bound that at least k numbers reach, so a second pass leaves all but a few out.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fostore.encodings.threads import by_threads
from fostore.encodings.topk_rows import Selected
from fostore.schema.row import Array

CHUNK = 1 << 18
"""Numbers that a thread works on at once: what is made of them stays within some 10 to 20 MiB."""
_FEW, _LARGE = 256, 12
"""Numbers a row up to which they are simply sorted, and the part of a row from which k is so large that they are."""
_MAGNITUDE = np.int32(0x7FFFFFFF)
_NO_CLASS = 0xFFFFFFFF
_LEAST = 1e-25
"""A sum of float32 exponentials under this may have lost some of them to underflow."""


def select(x: Array, k: int) -> Array:
    """The classes of the k largest numbers of each row: larger first, of equal ones the smaller class first.

    Args:
        x: (n, K) floats, C-contiguous, without NaN; minus infinity may be there.
        k: 1 to K.

    Returns:
        (n, k), int64.

    >>> select(np.float32([[1, 3, 2, 3], [0, 0, 0, 0]]), 3).tolist()
    [[1, 3, 2], [0, 1, 2]]
    """
    n, num_classes = x.shape
    # Where blocks would leave few numbers out, all are sorted.
    some = _sorted if num_classes <= _FEW or k * _LARGE > num_classes else _by_blocks
    ids = np.empty((n, k), np.int64)
    # Alone it goes over wide rows twice, not six times: more of them at once pay for the calls.
    step = max(2 * CHUNK // num_classes, 1)
    for start in range(0, n, step):
        ids[start : start + step] = some(x[start : start + step], k)
    return ids


def _sorted(x: Array, k: int) -> Array:
    return sort(x, np.broadcast_to(np.arange(x.shape[-1]), x.shape))[1][:, :k]


def _by_blocks(x: Array, k: int) -> Array:
    n, num_classes = x.shape
    # A block is every `stride`-th number, so that the maxima are those of whole vectors. So many blocks that the k
    # largest numbers rarely share one; where a row is no multiple of them, its end is in none.
    stride = min(max(16 * k, 512), num_classes // 2)
    blocks = x[:, : num_classes // stride * stride].reshape(n, -1, stride)
    maxima = np.fmax.reduce(blocks, axis=1)  # half the time of maximum, which looks for NaN
    maxima.partition(stride - k, axis=-1)
    at = np.flatnonzero(x >= maxima[:, stride - k, None])
    counts = np.diff(np.searchsorted(at, np.arange(n + 1) * num_classes))
    filled = np.arange(counts.max()) < counts[:, None]
    # What a shorter row is filled up with comes last: no class is so large, and no number smaller.
    classes, numbers = np.full(filled.shape, _NO_CLASS), np.full(filled.shape, -np.inf, x.dtype)
    classes[filled], numbers[filled] = at % num_classes, x.reshape(-1)[at]
    return sort(numbers, classes)[1][:, :k]


def sort(values: Array, ids: Array) -> tuple[Array, Array]:
    """Values (..., k), larger first, and of equal ones that of the smaller class first; with their classes, int64.

    Minus zero becomes zero, which it equals.

    >>> values, ids = sort(np.float32([[-1, -0.0, 0, -1]]), np.array([[7, 2, 1, 3]]))
    >>> values.tolist(), ids.tolist()
    ([[0.0, 0.0, -1.0, -1.0]], [[1, 2, 3, 7]])
    """
    if values.dtype.itemsize > 4:
        order = np.lexsort((ids, -values), axis=-1)
        return np.take_along_axis(values, order, -1) + 0.0, np.take_along_axis(ids, order, -1)
    # Value and class as one integer, of which NumPy sorts a hundred million a second: without its sign a float is
    # ordered as its bits are, and backwards with it.
    bits = (0.0 - values.astype(np.float32)).view(np.int32)
    keys = (bits ^ (bits >> 31 & _MAGNITUDE)).astype(np.int64) << 32 | ids
    keys.sort(axis=-1)
    bits = (keys >> 32).astype(np.int32)
    return 0.0 - (bits ^ (bits >> 31 & _MAGNITUDE)).view(np.float32), keys & _NO_CLASS


def selected(
    x: Array,
    kind: str,
    k: int,
    temperatures: Sequence[float] = (),
    *,
    tail_entropy: bool = False,
) -> Selected:
    """The k largest of each row and what the others weigh, as `fostore.encodings.topk_rows.Selected` says.

    Args:
        x: (n, K) float32 or float64, C-contiguous; distributions of `kind`.
        kind: "probs", "log_probs" or "logits".
        k: 1 to K.
        temperatures: of `residual_t`.
        tail_entropy: whether to work it out.

    Returns:
        `values` of the dtype of `x`, `ids` in int64, sums in float64. A row has one result, whatever batch it comes in.
    """
    parts = by_threads(lambda rows: _selected(rows, kind, k, temperatures, tail_entropy), x)
    columns = zip(*parts, strict=True)
    return Selected(*(None if of[0] is None else np.concatenate(of) for of in columns))


def _selected(
    x: Array, kind: str, k: int, temperatures: Sequence[float], tail_entropy: bool
) -> Selected:
    n, num_classes = x.shape
    values, ids = np.empty((n, k), x.dtype), np.empty((n, k), np.int64)
    top = np.empty(n, x.dtype)
    logs = np.empty((1 + len(temperatures), n))
    entropy = np.zeros(n)
    step = max(CHUNK // num_classes, 1)
    # Taken once: fresh memory of this size costs more than what is done in it.
    shape = (min(step, n), num_classes)
    buffers = np.empty(shape, x.dtype), np.empty(shape, x.dtype), np.empty(shape)
    for start in range(0, n, step):
        at = slice(start, start + step)
        piece = x[at]
        rest, scratch, wide = (buffer[: len(piece)] for buffer in buffers)
        ids[at] = chosen = select(piece, k)
        values[at] = numbers = np.take_along_axis(piece, chosen, -1)
        top[at] = numbers[:, 0]
        with np.errstate(over="ignore", divide="ignore"):
            if kind == "logits":
                np.subtract(piece, numbers[:, :1], out=rest)
                # A difference beyond the range is a logit still: minus infinity is a class that was masked.
                shifted = np.maximum(numbers - numbers[:, :1], np.finfo(x.dtype).min)
                values[at] = np.where(np.isneginf(numbers), -np.inf, shifted)
            elif kind == "probs":
                np.log(piece, out=rest)
            else:
                rest[...] = piece
        np.put_along_axis(rest, chosen, -np.inf, -1)
        if kind == "probs":  # no logarithm rounds what is there already
            wide[...] = piece
            np.put_along_axis(wide, chosen, 0, -1)
            with np.errstate(divide="ignore"):
                logs[0, at] = np.log(np.add.reduce(wide, axis=-1))
        else:
            logs[0, at] = _log_total(rest, 1, scratch, wide)
        for i, temperature in enumerate(temperatures):
            logs[i + 1, at] = _log_total(rest, temperature, scratch, wide)
        if tail_entropy:
            entropy[at] = _entropy(rest, scratch, wide)
    level = None
    if kind == "logits":
        level = np.logaddexp(log_total(values), logs[0]) + top
    return Selected(
        values,
        ids,
        logs[0],
        level,
        np.ascontiguousarray(logs[1:].T) if temperatures else None,
        entropy if tail_entropy else None,
    )


def log_total(logs: Array) -> Array:
    """The log of the sum of exponentials along the last axis, in float64; minus infinity where all are."""
    wide = logs.astype(np.float64)
    if not wide.shape[-1]:
        return np.full(wide.shape[:-1], -np.inf)
    top = wide.max(axis=-1, keepdims=True)
    top[np.isneginf(top)] = 0
    with np.errstate(divide="ignore", under="ignore"):
        total: Array = np.log(np.add.reduce(np.exp(wide - top), axis=-1)) + top[..., 0]
    return total


def _log_total(logs: Array, temperature: float, scratch: Array, wide: Array) -> Array:
    """The same of (n, K) numbers divided by a temperature, none much above 0; faster: as narrow as they come.

    `scratch` and `wide` are overwritten.
    """
    softened = logs
    if temperature != 1:
        softened = np.divide(logs, logs.dtype.type(temperature), out=scratch)
    with np.errstate(divide="ignore", under="ignore"):
        # As its own array: NumPy's sum of narrow numbers into a wide one depends on where a row begins in its buffer.
        wide[...] = np.exp(softened, out=scratch)
        total = np.add.reduce(wide, axis=-1)
        result: Array = np.log(total)
    low = np.flatnonzero(total < _LEAST)
    if len(low):
        result[low] = log_total(logs[low].astype(np.float64) / temperature)
    return result


def _entropy(logs: Array, scratch: Array, wide: Array) -> Array:
    """The entropy of each row of weights exp(logs); 0 of a row without any. All three are overwritten."""
    top = logs.max(axis=-1, keepdims=True)
    none = np.isneginf(top)
    # Around their own largest: far below 0 a float32 has no digits left for what lies between two logarithms.
    logs -= np.where(none, 0, top)
    np.maximum(logs, np.finfo(logs.dtype).min, out=logs)
    with np.errstate(under="ignore", divide="ignore", invalid="ignore"):
        wide[...] = np.exp(logs, out=scratch)
        total = np.add.reduce(wide, axis=-1)
        wide *= logs
        entropy: Array = np.log(total) - np.add.reduce(wide, axis=-1) / total
    entropy[none[:, 0]] = 0
    return entropy


def joined_entropy(residual: Array, entropy: Array, dropped: Array, total: Array) -> Array:
    """The entropy of the rest when classes join it: of each part its share of -sum w log w."""
    with np.errstate(invalid="ignore", under="ignore"):
        parts = np.where(np.isneginf(residual), 0, np.exp(residual - total) * (residual - entropy))
        share = np.exp(dropped - total[..., None])
        parts = parts + np.add.reduce(np.where(share > 0, share * dropped, 0), axis=-1)
        joined: Array = np.where(np.isneginf(total), 0, total - parts)
    return joined
