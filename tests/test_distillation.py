"""The distillation loss of both sides: its value, its gradient, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import fostore.jax
import fostore.torch
from fostore.errors import ArgumentError
from fostore.schema.row import Array

KINDS = ("probs", "log_probs", "logits")
TEMPERATURES = (0.5, 1.0, 4.0)
RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(6, 5)) * 3
TEACHER = RNG.normal(size=(6, 5)) * 3

Outcome = Callable[..., tuple[float, Array]]


def log_softmax(x: Array) -> Array:
    y: Array = x - x.max(-1, keepdims=True)
    with np.errstate(divide="ignore"):
        return np.asarray(y - np.log(np.exp(y).sum(-1, keepdims=True)))


def softmax(x: Array) -> Array:
    return np.asarray(np.exp(log_softmax(x)))


def expected(logits: Array, log_teacher: Array, temperature: float) -> tuple[float, Array]:
    """The definition, in float64: T² KL a row, and T (q - p) / rows."""
    p, q = softmax(log_teacher / temperature), softmax(logits / temperature)
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(p > 0, p * (np.log(p) - np.log(q)), 0)
    return float(terms.sum(-1).mean() * temperature**2), temperature * (q - p) / len(p)


def given_as(kind: str, logits: Array) -> Array:
    return {"probs": softmax, "log_probs": log_softmax, "logits": lambda x: x + 7}[kind](logits)


def torch_outcome(logits: Array, teacher: Array, *args: Any, **options: Any) -> Any:
    student = torch.tensor(logits, requires_grad=True)
    known = torch.tensor(teacher, requires_grad=teacher.dtype.kind == "f")
    loss = fostore.torch.distillation_loss(student, known, *args, **options)
    loss.backward()
    assert known.grad is None
    assert student.grad is not None
    return loss.item(), student.grad.numpy()


def jax_outcome(logits: Array, teacher: Array, *args: Any, **options: Any) -> Any:
    def loss(student: Any, known: Any) -> Any:
        return fostore.jax.distillation_loss(student, known, *args, **options)

    with jax.enable_x64(True):
        value, (gradient, none) = jax.value_and_grad(loss, argnums=(0, 1))(
            jnp.asarray(logits), jnp.asarray(teacher)
        )
    assert not np.any(none)
    return float(value), np.asarray(gradient)


@pytest.fixture(params=["torch", "jax"])
def outcome(request: pytest.FixtureRequest) -> Outcome:
    """(loss, gradient for the student's logits) of a side."""
    return {"torch": torch_outcome, "jax": jax_outcome}[request.param]


@pytest.fixture(params=["torch", "jax"])
def loss(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """A side's loss of NumPy arrays."""
    if request.param == "jax":
        return fostore.jax.distillation_loss
    return lambda s, t, *args, **options: fostore.torch.distillation_loss(
        torch.as_tensor(s), torch.as_tensor(t), *args, **options
    )


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("kind", KINDS)
def test_loss_and_gradient_are_those_of_the_definition(
    outcome: Outcome, kind: str, temperature: float
) -> None:
    teacher = given_as(kind, TEACHER)
    value, gradient = outcome(LOGITS, teacher, temperature, teacher_kind=kind)
    wanted, slope = expected(LOGITS, TEACHER, temperature)
    assert value == pytest.approx(wanted, rel=1e-12)
    np.testing.assert_allclose(gradient, slope, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_is_the_slope_by_finite_differences(outcome: Outcome, kind: str) -> None:
    teacher = given_as(kind, TEACHER)
    teacher[0, 0] = 0 if kind == "probs" else -np.inf
    _, gradient = outcome(LOGITS, teacher, 3.0, teacher_kind=kind)
    for row, column in ((0, 0), (0, 1), (5, 4)):
        step = np.zeros_like(LOGITS)
        step[row, column] = 1e-5
        above, below = (
            outcome(LOGITS + by, teacher, 3.0, teacher_kind=kind)[0] for by in (step, -step)
        )
        assert gradient[row, column] == pytest.approx((above - below) / 2e-5, rel=1e-6)


def test_torch_agrees_with_its_own_numerical_check() -> None:
    student = torch.tensor(LOGITS, requires_grad=True)
    teacher = torch.tensor(softmax(TEACHER))
    assert torch.autograd.gradcheck(
        lambda s: fostore.torch.distillation_loss(s, teacher, 2.0), (student,)
    )


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_a_student_that_agrees_with_its_teacher_is_left_alone(
    outcome: Outcome, temperature: float
) -> None:
    value, gradient = outcome(TEACHER, softmax(TEACHER), temperature)
    assert abs(value) < 1e-12
    assert np.abs(gradient).max() < 1e-12


def test_the_gradient_keeps_its_size_as_the_temperature_grows(outcome: Outcome) -> None:
    """In the limit it is that of half the squared distance of the centred logits, over classes."""
    _, gradient = outcome(LOGITS, TEACHER, 1e4, teacher_kind="logits")
    difference = LOGITS - TEACHER
    limit = (difference - difference.mean(-1, keepdims=True)) / LOGITS.size
    np.testing.assert_allclose(gradient, limit, atol=1e-3 * np.abs(limit).max())


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("kind", ["probs", "log_probs"])
def test_zeros_of_the_teacher_and_masks_of_the_student_give_numbers(
    outcome: Outcome, kind: str, temperature: float
) -> None:
    teacher, logits = softmax(TEACHER), LOGITS.copy()
    teacher[0] = [1, 0, 0, 0, 0]
    logits[0, 2] = -np.inf  # a class that neither of them has
    with np.errstate(divide="ignore"):
        given = teacher if kind == "probs" else np.log(teacher)
        wanted, slope = expected(logits, np.log(teacher), temperature)
    value, gradient = outcome(logits, given, temperature, teacher_kind=kind)
    assert value == pytest.approx(wanted, rel=1e-12)
    np.testing.assert_allclose(gradient, slope, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_a_teacher_row_that_is_none_is_no_number_and_not_silence(
    outcome: Outcome, kind: str
) -> None:
    teacher = given_as(kind, TEACHER)
    teacher[0] = 0 if kind == "probs" else -np.inf
    assert np.isnan(outcome(LOGITS, teacher, teacher_kind=kind)[0])
    teacher = given_as(kind, TEACHER)
    teacher[0, 1] = np.nan
    assert np.isnan(outcome(LOGITS, teacher, teacher_kind=kind)[0])


def test_zeros_of_the_teacher_pass_the_search_for_nan_of_jax() -> None:
    logits, teacher = LOGITS.copy(), softmax(TEACHER)
    teacher[0] = [1, 0, 0, 0, 0]
    logits[0, 2] = -np.inf
    with jax.debug_nans(True):
        value, gradient = jax_outcome(logits, teacher, 2.0)
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()


def test_a_student_without_a_class_that_the_teacher_has_loses_everything(outcome: Outcome) -> None:
    logits = LOGITS.copy()
    logits[0, 0] = -np.inf
    assert outcome(logits, softmax(TEACHER))[0] == np.inf


@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_is_computed_in_float32(outcome: Outcome, kind: str) -> None:
    """1,000 classes: sums of halves would be off by percents, and tiny probabilities would be 0."""
    wide = RNG.normal(size=(4, 1000)) * 4
    teacher = given_as(kind, wide).astype(np.float16)
    student = (wide + RNG.normal(size=wide.shape)).astype(np.float16)
    with np.errstate(divide="ignore"):
        known = np.log(teacher, dtype=np.float64) if kind == "probs" else teacher.astype(np.float64)
    wanted, _ = expected(student.astype(np.float64), known, 2.0)
    value, gradient = outcome(student, teacher, 2.0, teacher_kind=kind)
    assert value == pytest.approx(wanted, rel=1e-5)
    assert gradient.dtype == np.float16


def test_bfloat16_students_train_on_float32_teachers() -> None:
    student = torch.tensor(LOGITS, dtype=torch.bfloat16, requires_grad=True)
    loss = fostore.torch.distillation_loss(student, torch.tensor(softmax(TEACHER)).float(), 2.0)
    loss.backward()
    assert loss.dtype == torch.float32
    traced = fostore.jax.distillation_loss(
        jnp.asarray(LOGITS, jnp.bfloat16), softmax(TEACHER).astype(np.float32), 2.0
    )
    assert traced.dtype == jnp.float32
    assert float(traced) == pytest.approx(loss.item(), rel=1e-5)


def test_rows_of_tokens_count_as_rows(outcome: Outcome) -> None:
    shape = (2, 3, 5)
    value, gradient = outcome(LOGITS.reshape(shape), softmax(TEACHER).reshape(shape), 2.0)
    flat, slope = outcome(LOGITS, softmax(TEACHER), 2.0)
    assert value == pytest.approx(flat)
    np.testing.assert_allclose(gradient.reshape(6, 5), slope)


def test_jax_takes_a_temperature_that_is_traced() -> None:
    known = softmax(TEACHER)
    traced = jax.jit(fostore.jax.distillation_loss)(LOGITS, known, 3.0)
    given = fostore.jax.distillation_loss(LOGITS, known, jnp.asarray(3.0))
    assert float(traced) == pytest.approx(float(given))
    with pytest.raises(ArgumentError, match="temperature"):
        fostore.jax.distillation_loss(LOGITS, known, jnp.asarray(-1.0))


@pytest.mark.parametrize(
    ("student", "teacher", "options", "message"),
    [
        ((6, 5), (6, 4), {}, "the student has 5 classes and the teacher 4"),
        ((6, 5), (5, 5), {}, "batches of other rows"),
        ((6, 5), (6, 3, 5), {}, "take the mean of the members"),
        ((6, 5), (6,), {}, "no axis of classes"),
        ((5,), (5,), {}, "expected a batch of rows"),
        ((0, 5), (0, 5), {}, "the batch is empty"),
        ((6, 5), (6, 5), {"teacher_kind": "softmax"}, "teacher_kind is 'softmax', expected one of"),
        ((6, 5), (6, 5), {"temperature": 0.0}, "temperature is 0.0, expected a number above 0"),
        ((6, 5), (6, 5), {"temperature": float("nan")}, "temperature is nan"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(
    loss: Callable[..., Any], student: Any, teacher: Any, options: Any, message: str
) -> None:
    with pytest.raises(ArgumentError, match=message):
        loss(np.zeros(student, np.float32), np.zeros(teacher, np.float32), **options)


def test_class_numbers_are_sent_to_the_cross_entropy(loss: Callable[..., Any]) -> None:
    with pytest.raises(ArgumentError, match=r"teacher has the dtype .*int.*cross.entropy"):
        loss(np.zeros((6, 5), np.float32), np.zeros(6, np.int32))


def test_torch_asks_for_tensors() -> None:
    with pytest.raises(ArgumentError, match=r"teacher is ndarray, expected a torch\.Tensor"):
        fostore.torch.distillation_loss(torch.zeros(2, 3), np.zeros((2, 3)))  # type: ignore[arg-type]


def test_the_loss_that_the_guide_prints_pulls_an_agreeing_student_away() -> None:
    """What the docstring of `fostore.torch.distillation` says is wrong with it."""
    student = torch.tensor(TEACHER, requires_grad=True)
    log_q = torch.log_softmax(student / 2.0, dim=-1)
    known = torch.tensor(softmax(TEACHER))
    torch.nn.functional.kl_div(log_q, known, reduction="batchmean").backward()
    assert student.grad is not None
    assert student.grad.abs().max() > 0.01
