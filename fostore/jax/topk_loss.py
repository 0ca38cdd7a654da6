"""The loss that trains a student on top-k rows, for JAX; `fostore.torch.topk_loss` says more of its rules."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from fostore.encodings.topk_rows import TopK
from fostore.errors import ArgumentError
from fostore.jax.distillation import floating
from fostore.jax.topk import placed
from fostore.pairing.distilling import check_topk

_LEAST, _STRETCHES = 1 << 18, 16
"""Numbers that a stretch has at least, and how many there are at most."""


def topk_distillation_loss(
    student_logits: Any,
    topk: TopK,
    temperature: Any = 1.0,
    *,
    rule: str | None = None,
    mask: Any = None,
    reverse: bool = False,
) -> jax.Array:
    """The mean over rows of T² KL(p ‖ q), where of p the k largest classes are known, and the rest's weight.

    With the teacher's log-weights v of the kept classes and R of all others together, and T = 1, a kept
    class has p = exp(v) / Z. The rule says what the others are:

    - `coarse`: one outcome, for the student too: its probability is the sum over those classes.
      Nothing is made up, and nothing is asked of the student there but the sum.
    - `uniform`: every class of them has the same share of exp(R).
    - `renorm`: they have nothing, and Z counts the kept alone: the student is pushed to forget them.
    - `zero`: they add nothing to the divergence, and Z counts them all the same.

    At another T, weights are exp(v / T); `renorm` and `uniform` can be had at any, `coarse` and
    `zero` at the temperatures of `topk.residual_t`. The factor T² keeps the gradient's size. No
    gradient reaches the teacher or the temperature. Computed in float32 whatever halves come in
    (float64 where either is float64). Compiled for a CPU, it needs 1.0 to 1.3 times the memory of
    the logits, gradient included, and 2.0 times that of bfloat16; where 2 to 16 divide the number of
    rows badly or not at all, up to 7 times. Runs under `jax.jit`, `jax.grad` and `jax.vmap`: a
    `TopK` is a pytree once `fostore.jax` is imported.

    Args:
        student_logits: (..., num_classes), floating, flat (n, V) or padded (B, L, V); minus infinity
            is a class that is masked.
        topk: the teacher's rows, NumPy or JAX, (..., k).
        temperature: above 0. Where it is traced, it is not checked, and `coarse` and `zero` are
            refused.
        rule: one of `fostore.encodings.topk_rows.RULES`; None: what the rows came with.
        mask: (...), bool or integers, 0 for rows that do not count, whatever they hold: padding.
            The mean is over the others, and 0 where none is left.
        reverse: KL(q ‖ p) instead, under `coarse` or `uniform`.

    Returns:
        A scalar, 0 where both agree; infinite where the student masks a class that the teacher has.

    Raises:
        ArgumentError: shapes, numbers of classes, an empty batch, a parameter, or a rule that these
            rows do not have at this temperature. Values are not looked at: rows with a derived
            residual that have nothing left for it give NaN under `coarse`.

    Source: Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network" (2015), section
    2, over k + 1 outcomes.

    >>> logits = jnp.array([[2.0, 0.0, -2.0, -2.0]])
    >>> rest = jax.nn.logsumexp(logits[:, 2:], axis=-1)
    >>> teacher = TopK(logits[:, :2], jnp.array([[0, 1]]), rest, num_classes=4)
    >>> bool(abs(topk_distillation_loss(logits, teacher)) < 1e-6)
    True
    """
    if not isinstance(topk, TopK):
        raise ArgumentError(
            f"topk is {type(topk).__name__}, expected a TopK; dense rows go into distillation_loss"
        )
    student = floating("student_logits", student_logits)
    topk = jax.lax.stop_gradient(topk.map(jnp.asarray))
    counts = None if mask is None else _counted(mask)
    known = None if isinstance(temperature, jax.core.Tracer) else temperature
    rule, at = check_topk(
        student.shape,
        topk,
        known.item() if isinstance(known, jax.Array) else known,
        rule=rule,
        mask=None if counts is None else counts.shape,
        reverse=reverse,
    )
    dtype = jnp.promote_types(jnp.promote_types(student.dtype, topk.values.dtype), jnp.float32)
    scale = jax.lax.stop_gradient(jnp.asarray(temperature, dtype))
    kept, rest = _softened(topk, scale, rule, at, dtype)
    num_classes, k = student.shape[-1], kept.shape[-1]
    rows = _divergence(
        rule,
        reverse,
        student.reshape(-1, num_classes),
        topk.ids.astype(jnp.int32).reshape(-1, k),
        kept.reshape(-1, k),
        rest.reshape(-1),
        scale,
    )
    if counts is None:
        return jnp.mean(rows) * scale**2
    total = jnp.sum(jnp.where(counts.reshape(-1), rows, 0))
    return total / jnp.maximum(jnp.sum(counts), 1) * scale**2


def _counted(mask: Any) -> jax.Array:
    given = jnp.asarray(mask)
    if jnp.issubdtype(given.dtype, jnp.floating):
        raise ArgumentError(
            f"mask is an array of {given.dtype}, expected bool or integers, 0 for rows that do not count; "
            "weights are not taken"
        )
    return given != 0


def _softened(
    topk: TopK, temperature: Any, rule: str, at: int | None, dtype: Any
) -> tuple[jax.Array, jax.Array]:
    """(log p of the kept classes, log of what all others have together); the second counts as `rule` says."""
    weights = topk.values.astype(dtype) / temperature
    rest = (topk.residual if at is None else topk.residual_t[..., at]).astype(dtype)
    if rule == "renorm":
        rest = jnp.full_like(rest, -jnp.inf)
    elif rule == "uniform":
        others = topk.num_classes - weights.shape[-1]
        rest = rest / temperature + (1 - 1 / temperature) * math.log(others)
    elif rule == "coarse" and topk.derived:
        rest = jnp.where(jnp.isfinite(topk.residual), rest, jnp.nan)
    level = jnp.logaddexp(jax.nn.logsumexp(weights, axis=-1), rest)
    if rule == "zero":
        rest = jnp.full_like(rest, -jnp.inf)
    return weights - level[..., None], rest - level


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _divergence(
    rule: str, reverse: bool, logits: Any, ids: Any, log_p: Any, log_rest: Any, temperature: Any
) -> jax.Array:
    """KL of each row: (n, V) logits, (n, k) ids and log p, (n,) log of the others' probability."""
    return _forward(rule, reverse, logits, ids, log_p, log_rest, temperature)[0]


def _forward(
    rule: str, reverse: bool, logits: Any, ids: Any, log_p: Any, log_rest: Any, temperature: Any
) -> tuple[jax.Array, Any]:
    given = (logits, ids, log_p, log_rest)
    made = _by_stretches(partial(_losses, rule, reverse, temperature), *given)
    return made[0], (*given, temperature, *made)


def _by_stretches(work: Callable[..., Any], logits: jax.Array, *beside: jax.Array) -> Any:
    """What `work` makes of rows; on a CPU, where it keeps all that it adds up in float32, of some at a time."""
    num_rows, num_classes = logits.shape
    most = min(num_rows * num_classes // _LEAST, _STRETCHES)
    parts = max((d for d in range(1, most + 1) if num_rows % d == 0), default=1)
    given = (logits, *beside)
    if parts == 1:
        return work(*given)
    return jax.lax.platform_dependent(*given, cpu=partial(_looped, work, parts), default=work)


def _looped(work: Callable[..., Any], parts: int, *given: jax.Array) -> Any:
    # A stretch is every so many rows: of rows that are split over devices each has its own.
    split = tuple(a.reshape(-1, parts, *a.shape[1:]) for a in given)

    def some(at: Any) -> Any:
        # Without the barrier what is done to a stretch first would be done to all rows before the loop.
        whole, at = jax.lax.optimization_barrier((split, at))  # type: ignore[no-untyped-call]  # of JAX
        return work(*(jax.lax.dynamic_index_in_dim(a, at, 1, keepdims=False) for a in whole))

    made = jax.lax.map(some, jnp.arange(parts))
    return jax.tree.map(lambda a: a.T.reshape(-1), made)


def _losses(
    rule: str, reverse: bool, temperature: Any, logits: Any, ids: Any, log_p: Any, log_rest: Any
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Of each row the divergence, the level of its logits, and that of those that are not kept."""
    others = logits.shape[-1] - ids.shape[-1]

    def softened(numbers: Any) -> Any:
        return numbers.astype(log_p.dtype) / temperature

    # What is wide keeps the student's dtype: the rest is fused into the sums.
    is_kept = _kept(log_p, rule)
    own = jnp.where(is_kept, softened(jnp.take_along_axis(logits, ids, axis=-1)), -jnp.inf)
    x = softened(_placed(logits, ids, is_kept, jnp.full(ids.shape, -jnp.inf, logits.dtype)))
    left = jax.nn.logsumexp(x, axis=-1)
    level = jnp.logaddexp(jax.nn.logsumexp(own, axis=-1), left)
    log_q, log_left = own - level[:, None], left - level
    if reverse:
        loss = _times(jnp.exp(log_q), log_q, log_p).sum(-1)
        if rule == "coarse":
            loss += _times(jnp.exp(log_left), log_left, log_rest)
        elif rule == "uniform":
            each = (log_rest - math.log(others))[:, None]
            loss += _times(jnp.exp(x - level[:, None]), x - level[:, None], each).sum(-1)
    else:
        loss = _times(jnp.exp(log_p), log_p, log_q).sum(-1)
        if rule == "coarse":
            loss += _times(jnp.exp(log_rest), log_rest, log_left)
        elif rule == "uniform":
            mean = softened(placed(logits, ids, 0)).sum(-1) / others
            loss += _times(jnp.exp(log_rest), log_rest - math.log(others), mean - level)
    return loss, level, left


def _backward(rule: str, reverse: bool, kept: Any, slope: jax.Array) -> Any:
    logits, ids, log_p, log_rest, temperature, loss, level, left = kept
    others = logits.shape[-1] - ids.shape[-1]

    def softened(numbers: Any) -> Any:
        return numbers.astype(log_p.dtype) / temperature

    # Nothing but the gradient is wide: what two read, as a quotient, XLA would keep.
    x = softened(logits)
    is_kept = _kept(log_p, rule)
    own = softened(jnp.take_along_axis(logits, ids, axis=-1))
    log_q = jnp.where(is_kept, own - level[:, None], -jnp.inf)
    q, p, rest, log_left = jnp.exp(log_q), jnp.exp(log_p), jnp.exp(log_rest), left - level
    if reverse:
        own = _times(q, log_q, log_p + loss[:, None])
    else:
        total = p.sum(-1) + rest
        own = q * total[:, None] - p
    if reverse and rule == "uniform":
        log_x = x - level[:, None]
        each = log_rest - math.log(others) + loss
        wide = _times(jnp.exp(log_x), log_x, each[:, None])
    else:
        # Shares of the sum over the others, which fit their numbers however small that sum is; those
        # of kept classes, which have no share, are put in their place after it.
        bottom = jnp.where(left == -jnp.inf, 0, left)
        wide = jnp.exp(jnp.minimum(x - bottom[:, None], 0))
        if reverse:
            wide *= _times(jnp.exp(log_left), log_left, log_rest + loss)[:, None]
        elif rule == "coarse":
            wide *= (jnp.exp(log_left) * total - rest)[:, None]
        else:
            wide *= (jnp.exp(log_left) * total)[:, None]
            if rule == "uniform":
                wide -= (rest / others)[:, None]
    scale = (slope / temperature)[:, None]

    def scaled(numbers: jax.Array) -> jax.Array:
        # A row that does not count has no slope, whatever stands in it.
        return jnp.where(scale == 0, 0, numbers * scale).astype(logits.dtype)

    return _placed(scaled(wide), ids, is_kept, scaled(own)), None, None, None, None


_divergence.defvjp(_forward, _backward)


def _kept(log_p: jax.Array, rule: str) -> jax.Array:
    """Which places of rows name a class: one without weight only fills its row up."""
    # `uniform` counts all others, of which there are as many in each row.
    return jnp.ones_like(log_p, dtype=bool) if rule == "uniform" else log_p != -jnp.inf


def _placed(x: jax.Array, ids: jax.Array, is_kept: jax.Array, values: jax.Array) -> jax.Array:
    """Rows with `values` at the classes that are kept, and as they are at all others."""
    # A place outside of the row is left alone.
    ids = jnp.where(is_kept, ids, x.shape[-1])
    if x.dtype != jnp.bfloat16:
        return placed(x, ids, values)
    # To write into bfloat16 a CPU makes all of it float32 first.
    made: jax.Array = jax.lax.platform_dependent(x, ids, values, cpu=_as_integers, default=placed)
    return made


@jax.custom_jvp
def _as_integers(x: jax.Array, ids: jax.Array, values: jax.Array) -> jax.Array:
    return placed(x.view(jnp.uint16), ids, values.view(jnp.uint16)).view(x.dtype)


@_as_integers.defjvp
def _as_integers_jvp(primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
    # Integers have no slope: second derivatives would be 0.
    (x, ids, values), (by_x, _, by_values) = primals, tangents
    slope = jax.jvp(lambda x, values: placed(x, ids, values), (x, values), (by_x, by_values))[1]
    return _as_integers(x, ids, values), slope


def _times(p: jax.Array, one: jax.Array, other: jax.Array) -> jax.Array:
    """A difference of logarithms times p, with its limit 0 where p is 0; what is no number stays none."""
    none = p == 0
    return p * (jnp.where(none, 0, one) - jnp.where(none, 0, other))
