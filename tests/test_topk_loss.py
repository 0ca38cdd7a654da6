"""The loss of top-k rows, on both sides: its value and gradient against dense autograd, and what it refuses."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

import fostore.jax
import fostore.torch
from fostore.encodings.topk_rows import RULES, TopK
from fostore.errors import ArgumentError
from fostore.schema.row import Array
from fostore.torch import stretches

NUM_ROWS, NUM_CLASSES, K = 6, 40, 7
TEMPERATURES = (1.0, 2.0, 0.5)
RNG = np.random.default_rng(0)
TEACHER = RNG.normal(size=(NUM_ROWS, NUM_CLASSES)) * 3
LOGITS = TEACHER + RNG.normal(size=TEACHER.shape) * 2
ASKED = [
    (rule, temperature, reverse)
    for rule, temperature, reverse in itertools.product(RULES, TEMPERATURES, (False, True))
    if not (reverse and rule in ("renorm", "zero"))
]

Outcome = Callable[..., tuple[float, Array]]


def rows_of(logits: Array, k: int, **more: Any) -> TopK:
    """The k largest of logits in float64, and the weight of the others, also at the temperatures."""
    ids = np.argsort(-logits, axis=-1, kind="stable")[..., :k]
    values = np.take_along_axis(logits, ids, -1)
    rest = logits - values[..., :1]
    np.put_along_axis(rest, ids, -np.inf, -1)
    softened = TEMPERATURES[1:]
    with np.errstate(divide="ignore"):
        sums = [np.log(np.exp(rest / t).sum(-1)) for t in (1.0, *softened)]
    return TopK(
        values - values[..., :1],
        ids.astype(np.uint16),
        sums[0],
        logits.shape[-1],
        temperatures=softened,
        residual_t=np.stack(sums[1:], -1),
        **more,
    )


def tensors(topk: TopK) -> TopK:
    return topk.map(lambda a: torch.tensor(a.astype(np.int64) if a.dtype.kind in "iu" else a))


def dense(
    logits: Array, topk: TopK, temperature: float, rule: str, reverse: bool = False
) -> tuple[float, Array]:
    """The same by torch's own autograd, over every class, in float64."""
    s = torch.tensor(logits, dtype=torch.float64, requires_grad=True)
    known = tensors(topk)
    others = topk.num_classes - known.ids.shape[-1]
    log_q = torch.log_softmax(s / temperature, -1)
    weights = known.values.double() / temperature
    at = topk.temperatures.index(temperature) if temperature != 1 else None
    rest = known.residual.double() if at is None else known.residual_t[..., at].double()
    if rule == "renorm":
        rest = torch.full_like(rest, -math.inf)
    if rule == "uniform":
        rest = others * (known.residual.double().exp() / others) ** (1 / temperature)
        rest = rest.log()
    total = weights.exp().sum(-1) + rest.exp()
    p = weights.exp() / total[..., None]
    kept_q = log_q.gather(-1, known.ids)
    is_kept = torch.zeros(log_q.shape, dtype=torch.bool).scatter(-1, known.ids, True)
    if rule == "uniform":
        every = (rest.exp() / total / others)[..., None].expand(log_q.shape)
        p = every.scatter(-1, known.ids, p)
        q = log_q
    elif rule == "coarse":
        p = torch.cat([p, (rest.exp() / total)[..., None]], -1)
        others_q = log_q.masked_fill(is_kept, -math.inf).logsumexp(-1)
        q = torch.cat([kept_q, others_q[..., None]], -1)
    else:
        q = kept_q
    if reverse:
        rows = (q.exp() * (q - p.log())).sum(-1)
    else:
        rows = (torch.xlogy(p, p) - torch.where(p == 0, 0, p * q)).sum(-1)
    loss = rows.mean() * temperature**2
    loss.backward()
    assert s.grad is not None
    return loss.item(), s.grad.numpy()


def torch_outcome(logits: Array, topk: TopK, *args: Any, **options: Any) -> Any:
    student = torch.tensor(logits, requires_grad=True)
    known = tensors(topk)
    known.values.requires_grad_()
    if options.get("mask") is not None:
        options["mask"] = torch.tensor(options["mask"])
    loss = fostore.torch.topk_distillation_loss(student, known, *args, **options)
    loss.backward()
    assert known.values.grad is None
    assert student.grad is not None
    assert student.grad.dtype == student.dtype
    return loss.item(), student.grad.numpy()


def jax_outcome(logits: Array, topk: TopK, *args: Any, **options: Any) -> Any:
    def loss(student: Any, known: Any) -> Any:
        return fostore.jax.topk_distillation_loss(student, known, *args, **options)

    with jax.enable_x64(True):
        known = topk.map(jnp.asarray)
        value, gradient = jax.jit(jax.value_and_grad(loss))(jnp.asarray(logits), known)
    assert gradient.dtype == logits.dtype
    return float(value), np.asarray(gradient)


@pytest.fixture(params=["torch", "jax"])
def outcome(request: pytest.FixtureRequest) -> Outcome:
    """(loss, gradient for the student's logits) of a side."""
    return {"torch": torch_outcome, "jax": jax_outcome}[request.param]


@pytest.fixture(params=["torch", "jax"])
def loss(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """A side's loss of NumPy arrays."""
    if request.param == "jax":
        return fostore.jax.topk_distillation_loss

    def of_tensors(student: Array, topk: TopK, *args: Any, mask: Any = None, **options: Any) -> Any:
        given = None if mask is None else torch.tensor(mask)
        return fostore.torch.topk_distillation_loss(
            torch.tensor(student), tensors(topk), *args, mask=given, **options
        )

    return of_tensors


@pytest.mark.parametrize(("rule", "temperature", "reverse"), ASKED)
def test_value_and_gradient_are_those_of_dense_autograd(
    outcome: Outcome, rule: str, temperature: float, reverse: bool
) -> None:
    topk = rows_of(TEACHER, K)
    value, gradient = outcome(LOGITS, topk, temperature, rule=rule, reverse=reverse)
    expected, slope = dense(LOGITS, topk, temperature, rule, reverse)
    assert value == pytest.approx(expected, rel=1e-12, abs=1e-13)
    np.testing.assert_allclose(gradient, slope, atol=1e-12)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("rule", RULES)
def test_where_every_class_is_kept_all_rules_are_the_dense_loss(
    outcome: Outcome, rule: str, reverse: bool
) -> None:
    topk = rows_of(TEACHER, NUM_CLASSES)
    value, gradient = outcome(LOGITS, topk, 3.0, rule=rule, reverse=reverse)
    student, known = torch.tensor(LOGITS, requires_grad=True), torch.tensor(TEACHER)
    if reverse:
        p, q = torch.log_softmax(known / 3, -1), torch.log_softmax(student / 3, -1)
        expected = (q.exp() * (q - p)).sum(-1).mean() * 9
    else:
        expected = fostore.torch.distillation_loss(student, known, 3.0, teacher_kind="logits")
    expected.backward()  # type: ignore[no-untyped-call]
    assert value == pytest.approx(expected.item(), rel=1e-12)
    np.testing.assert_allclose(gradient, student.grad, atol=1e-12)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("rule", ["coarse", "uniform"])
def test_torch_agrees_with_its_own_numerical_check(rule: str, reverse: bool) -> None:
    topk, student = tensors(rows_of(TEACHER, K)), torch.tensor(LOGITS, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda s: fostore.torch.topk_distillation_loss(s, topk, 2.0, rule=rule, reverse=reverse),
        (student,),
    )


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("reverse", [False, True])
def test_a_student_that_agrees_with_its_teacher_is_left_alone(
    outcome: Outcome, temperature: float, reverse: bool
) -> None:
    value, gradient = outcome(TEACHER + 5, rows_of(TEACHER, K), temperature, reverse=reverse)
    assert abs(value) < 1e-12
    assert np.abs(gradient).max() < 1e-12


def test_the_coarse_divergence_is_at_most_that_of_all_classes(loss: Callable[..., Any]) -> None:
    """Outcomes that are put together cannot be told apart better than before."""
    known = torch.tensor(TEACHER)
    whole = float(
        fostore.torch.distillation_loss(torch.tensor(LOGITS), known, teacher_kind="logits")
    )
    values = [
        float(loss(LOGITS, rows_of(TEACHER, k), rule="coarse")) for k in (1, 5, 20, NUM_CLASSES)
    ]
    assert values == sorted(values)
    assert values[-1] == pytest.approx(whole)


def test_padded_rows_with_a_mask_are_the_flat_rows_that_count(outcome: Outcome) -> None:
    mask = np.array([[True, True, False], [True, False, False]])
    shape = (2, 3)
    logits = LOGITS.reshape(*shape, -1).copy()
    logits[1, 2] = np.nan  # attention over padding alone
    topk = rows_of(TEACHER, K).map(lambda a: a.reshape(*shape, *a.shape[1:]).copy())
    topk.values[1, 1:] = -np.inf
    topk.residual[0, 2] = np.nan
    topk.ids[1] = 0
    topk.ids[1, 0] = rows_of(TEACHER, K).ids[3]
    value, gradient = outcome(logits, topk, 2.0, rule="uniform", mask=mask)
    flat, slope = outcome(LOGITS[[0, 1, 3]], rows_of(TEACHER[[0, 1, 3]], K), 2.0, rule="uniform")
    assert value == pytest.approx(flat, rel=1e-12)
    np.testing.assert_allclose(gradient[mask], slope, atol=1e-14)
    assert (gradient[~mask] == 0).all()
    again, _ = outcome(logits, topk, 2.0, rule="uniform", mask=mask.astype(np.int64))
    assert again == value


def test_a_batch_in_which_nothing_counts_is_left_alone(outcome: Outcome) -> None:
    value, gradient = outcome(LOGITS, rows_of(TEACHER, K), mask=np.zeros(NUM_ROWS, bool))
    assert value == 0
    assert (gradient == 0).all()


@pytest.mark.parametrize(("rule", "temperature", "reverse"), ASKED)
def test_classes_that_the_student_masks_give_numbers_and_no_nan(
    outcome: Outcome, rule: str, temperature: float, reverse: bool
) -> None:
    """Classes that are not kept: nothing is asked of them one by one, but under `uniform`."""
    topk, logits = rows_of(TEACHER, K), LOGITS.copy()
    for row in range(NUM_ROWS):
        free = np.setdiff1d(np.arange(NUM_CLASSES), topk.ids[row])
        logits[row, free[: 3 + row]] = -np.inf
    value, gradient = outcome(logits, topk, temperature, rule=rule, reverse=reverse)
    if rule == "uniform" and not reverse:
        assert value == np.inf
        return
    least = np.where(np.isneginf(logits), -1e6, logits)  # as good as masked, and differentiable
    expected, slope = dense(least, topk, temperature, rule, reverse)
    assert value == pytest.approx(expected, rel=1e-12)
    np.testing.assert_allclose(gradient, slope, atol=1e-12)


def test_a_student_without_what_the_teacher_has_loses_everything(outcome: Outcome) -> None:
    topk = rows_of(TEACHER, K)
    kept, free = LOGITS.copy(), LOGITS.copy()
    kept[0, topk.ids[0, 0]] = -np.inf
    assert outcome(kept, topk)[0] == np.inf
    free[0, np.setdiff1d(np.arange(NUM_CLASSES), topk.ids[0])] = -np.inf
    assert outcome(free, topk)[0] == np.inf
    assert np.isfinite(outcome(free, topk, rule="renorm")[0])


@pytest.mark.parametrize("reverse", [False, True])
def test_the_rest_of_a_confident_student_keeps_its_digits(outcome: Outcome, reverse: bool) -> None:
    """What it gives to the others, down to 1e-60, is no 1 minus a sum of float32."""
    logits = np.full((8, NUM_CLASSES), 0.0)
    logits += RNG.normal(size=logits.shape)
    logits[:, 3] += np.linspace(5, 140, 8)
    topk = rows_of(logits * 0.7 + RNG.normal(size=logits.shape), K)
    narrow = TopK(
        topk.values.astype(np.float32), topk.ids, topk.residual.astype(np.float32), NUM_CLASSES
    )
    value, gradient = outcome(logits.astype(np.float32), narrow, reverse=reverse)
    expected, slope = dense(logits.astype(np.float32), narrow, 1.0, "coarse", reverse)
    assert value == pytest.approx(expected, rel=1e-5)
    np.testing.assert_allclose(gradient, slope, atol=1e-6 * max(np.abs(slope).max(), 1))
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("rule", RULES)
def test_narrow_numbers_are_computed_in_float32(outcome: Outcome, rule: str, dtype: str) -> None:
    wide = RNG.normal(size=(4, 3000)) * 3
    student = (wide + RNG.normal(size=wide.shape)).astype(dtype)
    topk = rows_of(wide, 16)
    stored = TopK(topk.values.astype(np.float16), topk.ids, topk.residual.astype(np.float32), 3000)
    value, gradient = outcome(student, stored, rule=rule)
    expected, slope = dense(student.astype(np.float64), stored, 1.0, rule)
    assert value == pytest.approx(expected, rel=1e-5)
    # Where two shares nearly cancel, what is left has the rounding of both.
    step, least = (1e-3, 1e-6) if dtype == "float16" else (1e-5, 1e-7)
    np.testing.assert_allclose(gradient, slope, rtol=step, atol=least)


def test_bfloat16_students_have_a_float32_loss() -> None:
    topk = rows_of(TEACHER, K)
    student = torch.tensor(LOGITS, dtype=torch.bfloat16, requires_grad=True)
    narrow = tensors(topk).map(lambda a: a.float() if a.is_floating_point() else a)
    value = fostore.torch.topk_distillation_loss(student, narrow, 2.0)
    value.backward()
    assert value.dtype == torch.float32
    assert student.grad is not None
    assert student.grad.dtype == torch.bfloat16
    traced = fostore.jax.topk_distillation_loss(
        jnp.asarray(LOGITS, jnp.bfloat16),
        narrow.map(lambda a: jnp.asarray(a.numpy())),
        2.0,
    )
    assert traced.dtype == jnp.float32
    assert float(traced) == pytest.approx(value.item(), rel=1e-5)


@pytest.mark.parametrize(("rule", "temperature", "reverse"), ASKED)
def test_nothing_but_the_gradient_is_as_wide_as_the_logits(
    monkeypatch: pytest.MonkeyPatch, rule: str, temperature: float, reverse: bool
) -> None:
    monkeypatch.setattr(stretches, "LEAST", 0)
    wide = RNG.normal(size=(64, 500))
    topk, logits = tensors(rows_of(wide, K)), torch.tensor(wide + 1, requires_grad=True)
    sizes: list[int] = []

    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            came = {a.untyped_storage().data_ptr() for a in args if isinstance(a, torch.Tensor)}
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor) and out.untyped_storage().data_ptr() not in came:
                sizes.append(out.numel())
            return out

    with Sizes():
        value = fostore.torch.topk_distillation_loss(
            logits, topk, temperature, rule=rule, reverse=reverse
        )
        value.backward()
    assert sizes.count(logits.numel()) == 1
    assert sorted(sizes)[-2] <= logits.numel() // 16
    expected, slope = dense(wide + 1, rows_of(wide, K), temperature, rule, reverse)
    assert value.item() == pytest.approx(expected)
    np.testing.assert_allclose(logits.grad, slope, atol=1e-12)


# In bfloat16 the gradient is there twice: a CPU writes what is kept into a copy of integers.
@pytest.mark.parametrize(("dtype", "most"), [("float32", 1.3), ("float16", 1.5), ("bfloat16", 2.1)])
@pytest.mark.parametrize(
    ("rule", "temperature", "reverse"), [one for one in ASKED if one[1] != 0.5]
)
def test_jax_needs_little_more_than_the_gradient(
    rule: str, temperature: float, reverse: bool, dtype: str, most: float
) -> None:
    n, num_classes, k = 64, 65_536, 8
    softened = {"temperatures": TEMPERATURES[1:], "residual_t": jnp.zeros((n, 2))}
    ids = jnp.tile(jnp.arange(k), (n, 1))
    topk = TopK(jnp.zeros((n, k)), ids, jnp.zeros(n), num_classes, rule, **softened)
    logits = jnp.zeros((n, num_classes), dtype)

    def loss(student: Any, known: Any) -> Any:
        return fostore.jax.topk_distillation_loss(student, known, temperature, reverse=reverse)

    made = jax.jit(jax.value_and_grad(loss)).lower(logits, topk).compile()
    memory: Any = made.memory_analysis()
    assert memory.temp_size_in_bytes + memory.output_size_in_bytes < most * logits.nbytes


@pytest.mark.parametrize(("rule", "temperature", "reverse"), ASKED)
def test_jax_gives_the_same_a_stretch_at_a_time(
    monkeypatch: pytest.MonkeyPatch, rule: str, temperature: float, reverse: bool
) -> None:
    monkeypatch.setattr(fostore.jax.topk_loss, "_LEAST", 1)
    topk = rows_of(TEACHER, K)
    value, gradient = jax_outcome(LOGITS, topk, temperature, rule=rule, reverse=reverse)
    expected, slope = dense(LOGITS, topk, temperature, rule, reverse)
    assert value == pytest.approx(expected, rel=1e-12, abs=1e-13)
    np.testing.assert_allclose(gradient, slope, atol=1e-12)


@pytest.mark.parametrize("least", [1, 1 << 18])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_second_derivatives_of_jax_are_differences_of_the_first(
    monkeypatch: pytest.MonkeyPatch, dtype: str, least: int
) -> None:
    monkeypatch.setattr(fostore.jax.topk_loss, "_LEAST", least)
    topk = rows_of(TEACHER, K).map(lambda a: jnp.asarray(a.astype(np.float32)))
    student = jnp.asarray(LOGITS, dtype)
    way = jnp.asarray(np.random.default_rng(1).normal(size=LOGITS.shape), dtype)

    def slope(logits: Any) -> Any:
        return jax.grad(fostore.jax.topk_distillation_loss)(logits, topk, 2.0)

    forward = jax.jvp(slope, (student,), (way,))[1]
    back = jax.vjp(slope, student)[1](way)[0]
    one, other = (slope(student.astype(jnp.float32) + by * way) for by in (1e-2, -1e-2))
    expected = (one - other) / 2e-2
    least_of_it = 1e-2 if dtype == "bfloat16" else 1e-3
    for made in (forward, back):
        assert made.dtype == student.dtype
        np.testing.assert_allclose(
            made.astype(jnp.float32), expected, atol=least_of_it * float(abs(expected).max())
        )


# torch's own, where it follows any function of autograd
@pytest.mark.filterwarnings("ignore:.*Function.* should not be instantiated:DeprecationWarning")
def test_torch_compile_gives_the_same() -> None:
    topk = tensors(rows_of(TEACHER, K))
    compiled = torch.compile(fostore.torch.topk_distillation_loss, backend="aot_eager")
    one, other = (torch.tensor(LOGITS, requires_grad=True) for _ in range(2))
    compiled(one, topk, 2.0).backward()
    fostore.torch.topk_distillation_loss(other, topk, 2.0).backward()
    assert one.grad is not None
    assert other.grad is not None
    np.testing.assert_allclose(one.grad, other.grad, atol=1e-15)


def test_jax_maps_over_batches_and_takes_a_traced_temperature() -> None:
    topk = rows_of(TEACHER, K)
    whole = float(fostore.jax.topk_distillation_loss(LOGITS, topk, 3.0, rule="uniform"))
    traced = jax.jit(lambda t: fostore.jax.topk_distillation_loss(LOGITS, topk, t, rule="uniform"))
    assert float(traced(3.0)) == pytest.approx(whole)
    parts = topk.map(lambda a: jnp.asarray(a).reshape(2, 3, *a.shape[1:]))
    mapped = jax.vmap(lambda s, t: fostore.jax.topk_distillation_loss(s, t, 3.0, rule="uniform"))
    each = mapped(LOGITS.reshape(2, 3, -1), parts)
    assert float(each.mean()) == pytest.approx(whole)
    with pytest.raises(ArgumentError, match="this one is traced: make it static"):
        jax.jit(lambda t: fostore.jax.topk_distillation_loss(LOGITS, topk, t))(2.0)


@pytest.mark.parametrize(("rule", "temperature", "reverse"), ASKED)
def test_zeros_pass_the_search_for_nan_of_jax(rule: str, temperature: float, reverse: bool) -> None:
    topk, logits = rows_of(TEACHER, K), LOGITS.copy()
    if reverse or rule != "uniform":  # under which a class that the student masks costs everything
        logits[0, np.setdiff1d(np.arange(NUM_CLASSES), topk.ids[0])[:3]] = -np.inf
    if not reverse:  # where one of the teacher's does
        topk.values[0, -1] = -np.inf
    with jax.debug_nans(True):
        value, gradient = jax_outcome(logits, topk, temperature, rule=rule, reverse=reverse)
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()


def of(**changed: Any) -> TopK:
    made = dict(zip(("values", "ids", "residual"), _few(NUM_ROWS, K), strict=True))
    return TopK(**{**made, "num_classes": NUM_CLASSES, **changed})


def _few(*shape: int) -> tuple[Array, Array, Array]:
    ids = np.broadcast_to(np.arange(shape[-1], dtype=np.uint16), shape)
    return np.zeros(shape, np.float32), ids.copy(), np.zeros(shape[:-1], np.float32)


def shaped(*shape: int) -> TopK:
    return TopK(*_few(*shape), NUM_CLASSES)


@pytest.mark.parametrize(
    ("student", "topk", "options", "message"),
    [
        ((6, 39), of(), {}, "the student has 39 classes and the teacher 40"),
        ((6, 64), of(), {}, r"vocabulary is padded, give logits\[\.\.\., :40\]"),
        ((5, 40), of(), {}, "batches of other rows"),
        ((6, 40), shaped(6, 3, 7), {}, "take one member"),
        ((40,), shaped(7), {}, "expected a batch of rows"),
        ((0, 40), shaped(0, 7), {}, "the batch is empty"),
        ((6, 40), of(), {"rule": "bucket"}, "rule is 'bucket', expected one of"),
        ((6, 40), of(), {"temperature": 0.0}, "temperature is 0.0, expected a number above 0"),
        (
            (6, 40),
            of(),
            {"temperature": 2.0},
            r"have it of no other than 1: .*temperatures=\(2\.0,\)",
        ),
        (
            (6, 40),
            of(temperatures=(4.0,), residual_t=np.zeros((6, 1), np.float32), rule="zero"),
            {"temperature": 2.0},
            r"rule='zero' at temperature 2\.0 .* have it of \[4\.0\]",
        ),
        ((6, 40), of(), {"rule": "renorm", "reverse": True}, "infinite for every student"),
        ((6, 40), of(), {"rule": "zero", "reverse": True}, "gives 0 to 33 classes"),
        ((6, 40), of(), {"mask": np.ones(5, bool)}, r"mask has the shape \(5,\), expected \(6,\)"),
        ((6, 40), of(), {"mask": np.ones(6, np.float32)}, "weights are not taken"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(
    loss: Callable[..., Any], student: Any, topk: TopK, options: Any, message: str
) -> None:
    with pytest.raises(ArgumentError, match=message):
        loss(np.zeros(student, np.float32), topk, **options)


def test_dense_rows_are_sent_to_the_dense_loss(loss: Callable[..., Any]) -> None:
    with pytest.raises(ArgumentError, match=r"topk is .*dense rows go into distillation_loss"):
        fostore.torch.topk_distillation_loss(torch.zeros(2, 3), torch.zeros(2, 3))  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match=r"topk is .*dense rows go into distillation_loss"):
        fostore.jax.topk_distillation_loss(np.zeros((2, 3)), np.zeros((2, 3)))  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match=r"topk holds ndarray, expected tensors: as_topk"):
        fostore.torch.topk_distillation_loss(torch.zeros(6, 40), of())
    with pytest.raises(ArgumentError, match="student_logits has the dtype"):
        loss(np.zeros((6, 40), np.int32), of())


def test_a_derived_residual_that_rounding_has_used_up_is_no_coarse_row() -> None:
    residual = np.zeros(NUM_ROWS, np.float32)
    topk = of(residual=residual, derived=True)
    assert np.isfinite(fostore.jax.topk_distillation_loss(LOGITS, topk))
    assert torch.isfinite(fostore.torch.topk_distillation_loss(torch.tensor(LOGITS), tensors(topk)))
    residual[4] = -np.inf
    with pytest.raises(ArgumentError, match=r"row \(4,\) of the batch .*use rule='renorm'"):
        fostore.torch.topk_distillation_loss(torch.tensor(LOGITS), tensors(topk))
    assert np.isnan(fostore.jax.topk_distillation_loss(LOGITS, topk))
    mask = np.arange(NUM_ROWS) != 4
    assert np.isfinite(jax_outcome(LOGITS, topk, mask=mask)[0])
    assert np.isfinite(torch_outcome(LOGITS, topk, mask=mask)[0])
    assert np.isfinite(fostore.jax.topk_distillation_loss(LOGITS, topk, rule="renorm"))


@st.composite
def batches(draw: st.DrawFn) -> tuple[Array, Array, int]:
    """Student, teacher and k: few numbers, so that they are equal often; some masked, the first never."""
    rows, num_classes = draw(st.integers(1, 4)), draw(st.integers(2, 9))
    number = st.sampled_from([-np.inf, -30.0, -1.5, 0.0, 0.0, 2.0, 30.0])
    numbers = st.lists(number, min_size=rows * num_classes, max_size=rows * num_classes)
    teacher = np.array(draw(numbers)).reshape(rows, num_classes)
    teacher[:, 0] = np.maximum(teacher[:, 0], -1.5)
    student = np.array(draw(numbers)).reshape(rows, num_classes)
    student = np.maximum(student, -30.0)
    return student, teacher, draw(st.integers(1, num_classes - 1))


@given(batch=batches(), asked=st.sampled_from(ASKED))
def test_any_row_has_the_loss_and_the_gradient_of_dense_autograd(
    batch: tuple[Array, Array, int], asked: tuple[str, float, bool]
) -> None:
    student, teacher, k = batch
    topk = rows_of(teacher, k)
    rule, temperature, reverse = asked
    value, gradient = torch_outcome(student, topk, temperature, rule=rule, reverse=reverse)
    expected, slope = dense(student, topk, temperature, rule, reverse)
    if not np.isfinite(expected):  # a teacher without a class that the student has, in reverse
        assert reverse
        assert value == expected
        return
    assert value == pytest.approx(expected, rel=1e-9, abs=1e-12)
    if np.isfinite(slope).all():  # autograd's own differences of infinities are none of ours
        np.testing.assert_allclose(gradient, slope, atol=1e-11)
    assert np.isfinite(gradient).all()


@pytest.fixture(autouse=True)
def _compiled_anew() -> Iterator[None]:
    yield
    torch.compiler.reset()
