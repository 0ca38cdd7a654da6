"""Top-k rows as JAX arrays: a pytree, and selected on the device where the logits lie."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fostore.encodings.selection import selected
from fostore.encodings.topk_rows import Selected, TopK
from fostore.jax.distillation import floating
from fostore.pairing.distilling import check_selection
from fostore.schema import simplex

_RUN = 512
"""Numbers that are added up one after another, where there is no float64: a sum of sums keeps its digits."""

jax.tree_util.register_dataclass(
    TopK,
    data_fields=["values", "ids", "residual", "residual_t"],
    meta_fields=["num_classes", "rule", "temperatures", "derived"],
)


def select_topk(
    logits: Any, k: int, temperatures: Sequence[float] = (), *, tail_entropy: bool = False
) -> Selected:
    """The k largest logits of each row and what the others weigh, on their device: what `Writer.append` takes.

    The same classes and values, bit for bit, as a store of top-k rows selects from the logits
    themselves: larger first, of equal ones the smaller class first, as they are in the dtype in
    which they come; numbers under 1.2e-38 are 0 to XLA. Sums are taken over the others alone, in
    float64 in JAX's x64 mode, else in float32, a run of numbers at a time. On a CPU NumPy selects,
    in float64, but under `jax.jit`.

    Args:
        logits: (n, num_classes), or with members between, floating.
        k: 1 to num_classes.
        temperatures: of `residual_t`, each above 0.
        tail_entropy: whether to work it out.

    Returns:
        Arrays: values float32 (float64 of float64), ids, and sums; on a CPU NumPy's.

    Raises:
        ArgumentError: no such k, temperature or shape.
        RowError: a row that is no distribution (NaN, plus infinity, minus infinity everywhere); names
            it. On an accelerator its sums are no numbers, which the writer refuses.

    >>> select_topk(jnp.array([[1.0, 3.0, 1.0, 2.0]]), 3).ids.tolist()
    [[1, 3, 0]]
    """
    numbers = floating("logits", logits)
    check_selection(numbers.shape, k, temperatures)
    rows = numbers.reshape(-1, numbers.shape[-1])
    asked = (k, tuple(map(float, temperatures)), tail_entropy)
    if isinstance(rows, jax.core.Tracer) or not _is_on_host(rows):
        chosen = _on_device(rows, *asked)
    else:
        chosen = _on_host(rows, *asked)
    lead = numbers.shape[:-1]
    return Selected(*(a if a is None else a.reshape(*lead, *a.shape[1:]) for a in chosen))


def _is_on_host(rows: jax.Array) -> bool:
    return rows.is_fully_addressable and all(d.platform == "cpu" for d in rows.devices())


def _on_host(rows: jax.Array, k: int, temperatures: tuple[float, ...], entropy: bool) -> Selected:
    numbers = np.asarray(rows.astype(jnp.promote_types(rows.dtype, jnp.float32)))
    simplex.check(numbers, "logits")
    return selected(np.ascontiguousarray(numbers), "logits", k, temperatures, tail_entropy=entropy)


@partial(jax.jit, static_argnums=(1, 2, 3))
def _on_device(rows: jax.Array, k: int, temperatures: tuple[float, ...], entropy: bool) -> Selected:
    num_classes = rows.shape[-1]
    dtype = jnp.promote_types(rows.dtype, jnp.float32)
    # One more than is kept: the largest of the others, on whose scale these are summed.
    ids = _largest(rows, min(k + 1, num_classes))
    numbers = jnp.take_along_axis(rows, ids, axis=-1).astype(dtype)
    kept, top = numbers[:, :k], numbers[:, :1]
    bottom = numbers[:, k] if k < num_classes else jnp.full_like(top[:, 0], -jnp.inf)
    scale = jnp.where(bottom == -jnp.inf, 0, bottom)
    others = placed(rows, ids[:, :k], -jnp.inf).astype(dtype) - scale[:, None]
    sums = jnp.stack([_total(jnp.exp(others / t)) for t in (1.0, *temperatures)])
    tail = None
    if entropy:
        parts = _total(jnp.exp(others) * jnp.where(others == -jnp.inf, 0, others))
        none = sums[0] == 0
        total = jnp.where(none, 1, sums[0])
        tail = jnp.where(none, 0, jnp.log(total) - parts / total)
    powers = jnp.array((1.0, *temperatures), sums.dtype)
    apart = scale.astype(sums.dtype) - top[:, 0].astype(sums.dtype)
    logs = jnp.log(sums) + apart / powers[:, None]
    # A difference beyond the range is a logit still: minus infinity is a class that was masked.
    values = jnp.where(kept == -jnp.inf, kept, jnp.maximum(kept - top, np.finfo(dtype).min))
    within = jax.nn.logsumexp(values.astype(sums.dtype), axis=-1)
    level = jnp.logaddexp(within, logs[0]) + top[:, 0].astype(sums.dtype)
    return Selected(values, ids[:, :k], logs[0], level, logs[1:].T if temperatures else None, tail)


def _total(weights: jax.Array) -> jax.Array:
    config: Any = jax.config
    if config.jax_enable_x64:
        return jnp.sum(weights, axis=-1, dtype=jnp.float64)
    whole = weights.shape[-1] // _RUN * _RUN
    runs = weights[:, :whole].reshape(len(weights), -1, _RUN).sum(-1)
    return runs.sum(-1) + weights[:, whole:].sum(-1)


def _largest(rows: jax.Array, k: int) -> jax.Array:
    """The classes of the k largest numbers of each row, in order.

    They lie in the k blocks of classes with the largest maxima: whatever lies in another one comes
    after each of these.
    """
    n, num_classes = rows.shape
    height = 1 << max(round(math.log2(num_classes / k) / 2), 0)
    whole = num_classes // height
    blocks = whole + (whole * height < num_classes)
    if height == 1 or 2 * k > blocks:
        return _first(rows, k)
    maxima = rows[:, : whole * height].reshape(n, whole, height).max(-1)
    if blocks > whole:
        rest = rows[:, whole * height :].max(-1, keepdims=True)
        maxima = jnp.concatenate([maxima, rest], axis=1)
    at = jnp.sort(_first(maxima, k), axis=-1)
    classes = (at[:, :, None] * height + jnp.arange(height)).reshape(n, -1)
    # The last block may reach beyond the row: what is there comes after all else.
    numbers = jnp.take_along_axis(rows, jnp.minimum(classes, num_classes - 1), axis=-1)
    numbers = jnp.where(classes < num_classes, numbers, -jnp.inf)
    return jnp.take_along_axis(classes, _first(numbers, k), axis=-1)


def _first(rows: jax.Array, k: int) -> jax.Array:
    """The places of the k largest numbers of each row, in order: of equal ones, JAX takes the first."""
    return jax.lax.top_k(jnp.where(rows == 0, 0, rows), k)[1]  # minus 0 is no other number


def placed(rows: jax.Array, ids: jax.Array, values: Any) -> jax.Array:
    """The rows with `values`, one each or one for all, at the classes `ids`; one that is none is left out."""
    each = jnp.broadcast_to(jnp.asarray(values, rows.dtype), ids.shape)
    made: jax.Array = jax.vmap(lambda row, at, new: row.at[at].set(new, mode="drop"))(
        rows, ids, each
    )
    return made
