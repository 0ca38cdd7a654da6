"""The loss that trains a student on a teacher's distributions, for JAX.

`fostore.torch.distillation` says what the guide's own loop gets wrong.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from fostore.errors import ArgumentError
from fostore.pairing.distilling import check_distillation


def distillation_loss(
    student_logits: Any, teacher: Any, temperature: Any = 1.0, *, teacher_kind: str = "probs"
) -> jax.Array:
    """The mean over rows of T² KL(p ‖ q), p and q being teacher and student at temperature T.

    With teacher logits z (or log-probabilities) and student logits s, p = softmax(z / T) and
    q = softmax(s / T). The gradient for s is T (q - p) / rows, and keeps its size as T grows; at
    T = 1 it is that of the cross-entropy with p. No gradient reaches the teacher. Computed in
    log-space, in float32 whatever halves come in (float64 where either is float64). Runs under
    `jax.jit`, `jax.grad` and `jax.vmap`.

    Give the teacher as it is stored, not softened already: its temperature is applied here. Where
    T is not 1, `FirstOrderDataset(..., as_kind="log_probs")` with `teacher_kind="log_probs"` keeps
    what probabilities round to zero. A class to which the teacher gives 0 adds nothing.

    Args:
        student_logits: (..., num_classes), floating; minus infinity is a class that is masked.
        teacher: the same shape, floating, NumPy or JAX. Rows need no exact normalisation.
        temperature: above 0 (unchecked where it is traced); 1 to 10 is usual.
        teacher_kind: what the teacher's numbers are, "probs", "log_probs" or "logits".

    Returns:
        A scalar, 0 where both agree; infinite where the student masks a class that the teacher has.

    Raises:
        ArgumentError: shapes, numbers of classes, dtypes, an empty batch, or a parameter. Values
            are not looked at: a teacher row without any probability gives NaN.

    Source: Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network" (2015), section
    2; its cross-entropy, minus the teacher's entropy, which no student changes.

    >>> logits = jnp.array([[2.0, 0.0, -2.0]])
    >>> round(float(distillation_loss(logits, jnp.array([[0.5, 0.5, 0.0]]))), 4)
    0.4498
    """
    student, known = floating("student_logits", student_logits), floating("teacher", teacher)
    concrete = None if isinstance(temperature, jax.core.Tracer) else temperature
    check_distillation(
        student.shape,
        known.shape,
        teacher_kind,
        concrete.item() if isinstance(concrete, jax.Array) else concrete,
    )
    dtype = jnp.promote_types(jnp.promote_types(student.dtype, known.dtype), jnp.float32)
    known = jax.lax.stop_gradient(known.astype(dtype))
    if teacher_kind == "probs":
        known = jnp.log(known)
    log_p = jax.nn.log_softmax(known / temperature, axis=-1)
    log_q = jax.nn.log_softmax(student.astype(dtype) / temperature, axis=-1)
    p = jnp.exp(log_p)
    # Where p is 0, log_p is minus infinity: 0 times that is no number, and its limit is 0. What is no
    # number itself is no 0, and stays.
    apart = jnp.where(p == 0, 0, log_p) - jnp.where(p == 0, 0, log_q)
    terms = p * apart
    mean: jax.Array = jnp.mean(jnp.sum(terms, axis=-1)) * temperature**2
    return mean


def floating(name: str, array: Any) -> jax.Array:
    """An array of a loss; ArgumentError unless it holds floating point numbers."""
    numbers = jnp.asarray(array)
    if not jnp.issubdtype(numbers.dtype, jnp.floating):
        raise ArgumentError(
            f"{name} has the dtype {numbers.dtype} and the shape {numbers.shape}, expected floating "
            "point numbers; class numbers go into a cross-entropy"
        )
    return numbers
