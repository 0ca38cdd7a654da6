"""What a distillation loss accepts, on every side: shapes, what the teacher's numbers are, a temperature."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fostore.encodings.topk_rows import RULES, TopK
from fostore.errors import ArgumentError
from fostore.reading.request import is_softened

_TEACHER_KINDS = ("probs", "log_probs", "logits")


def check_distillation(
    student: Sequence[int], teacher: Sequence[int], teacher_kind: str, temperature: float | None
) -> None:
    """Raise ArgumentError unless a student's logits and a teacher's rows fit each other.

    Args:
        student, teacher: their shapes.
        temperature: None where its value is not known yet (while a function is traced).

    >>> check_distillation((32, 10), (32, 10), "probs", 4.0)
    >>> check_distillation((32, 10), (32, 12), "probs", 4.0)
    Traceback (most recent call last):
    ...
    fostore.errors.ArgumentError: the student has 10 classes and the teacher 12: student_logits (32, 10), ...
    """
    if teacher_kind not in _TEACHER_KINDS:
        raise ArgumentError(
            f"teacher_kind is {teacher_kind!r}, expected one of {list(_TEACHER_KINDS)}"
        )
    if temperature is not None:
        is_softened(temperature)
    student, teacher = tuple(student), tuple(teacher)
    shapes = f"student_logits {student}, teacher {teacher}"
    if len(student) < 2:
        raise ArgumentError(f"expected a batch of rows, (..., num_classes): {shapes}")
    if len(teacher) == len(student) - 1:
        raise ArgumentError(
            f"the teacher's rows have no axis of classes: {shapes}; a distribution a row is "
            "expected, and class numbers go into a cross-entropy"
        )
    if len(teacher) == len(student) + 1:
        raise ArgumentError(
            f"the teacher has one axis more: {shapes}; of an ensemble (rows, members, classes) "
            "take the mean of the members' probabilities first"
        )
    if student[-1] != teacher[-1]:
        raise ArgumentError(
            f"the student has {student[-1]} classes and the teacher {teacher[-1]}: {shapes}; "
            "both have to have the same classes in the same order"
        )
    if student != teacher:
        raise ArgumentError(f"student and teacher are batches of other rows: {shapes}")
    if 0 in student:
        raise ArgumentError(f"the batch is empty, and has no mean: {shapes}")


def check_topk(
    student: Sequence[int],
    topk: TopK,
    temperature: float | None,
    *,
    rule: str | None,
    mask: Sequence[int] | None,
    reverse: bool,
) -> tuple[str, int | None]:
    """The rule to apply, and which of `residual_t` holds the weight of the others (None: `residual`).

    Where every class is kept, all rules are `renorm`: there are no others.

    Args:
        student, mask: shapes.
        temperature: None where its value is not known yet (while a function is traced).

    Raises:
        ArgumentError: shapes, numbers of classes, a rule that cannot be had at this temperature, or
            a parameter.
    """
    chosen = topk.rule if rule is None else rule
    if chosen not in RULES:
        raise ArgumentError(f"rule is {rule!r}, expected one of {list(RULES)}")
    softened = temperature is None or is_softened(temperature)
    student, teacher = tuple(student), tuple(topk.values.shape)
    shapes = f"student_logits {student}, topk.values {teacher}"
    if len(student) < 2:
        raise ArgumentError(f"expected a batch of rows, (..., num_classes): {shapes}")
    if len(teacher) == len(student) + 1:
        raise ArgumentError(
            f"the teacher has one axis more: {shapes}; of an ensemble (rows, members, k) take one member, "
            "topk.map(lambda array: array[:, 0]), or the mean of the losses of all of them"
        )
    if student[-1] != topk.num_classes:
        more = student[-1] > topk.num_classes
        cut = f"; if the student's vocabulary is padded, give logits[..., :{topk.num_classes}]"
        raise ArgumentError(
            f"the student has {student[-1]} classes and the teacher {topk.num_classes}: {shapes}; both have "
            f"to have the same classes in the same order{cut if more else ''}"
        )
    if student[:-1] != teacher[:-1]:
        raise ArgumentError(f"student and teacher are batches of other rows: {shapes}")
    if mask is not None and tuple(mask) != student[:-1]:
        raise ArgumentError(f"mask has the shape {tuple(mask)}, expected {student[:-1]}, one a row")
    if 0 in student:
        raise ArgumentError(f"the batch is empty, and has no mean: {shapes}")
    if teacher[-1] == topk.num_classes:
        return "renorm", None
    if reverse and chosen in ("renorm", "zero"):
        raise ArgumentError(
            f"reverse=True under rule={chosen!r} is infinite for every student: the teacher gives 0 to "
            f"{topk.num_classes - teacher[-1]} classes; use rule='coarse' or rule='uniform'"
        )
    if not softened or chosen in ("renorm", "uniform"):
        return chosen, None
    if temperature in topk.temperatures and topk.residual_t is not None:
        return chosen, topk.temperatures.index(temperature)
    if temperature is None:
        raise ArgumentError(
            f"rule={chosen!r} needs a temperature whose value is known, which says what the classes weigh "
            "that are not kept; this one is traced: make it static (jax.jit(..., static_argnames=...))"
        )
    has = f"of {list(topk.temperatures)}" if topk.temperatures else "of no other than 1"
    raise ArgumentError(
        f"rule={chosen!r} at temperature {temperature} needs the weight of the classes that are not kept at "
        f"that temperature, and these rows have it {has}: generate them with temperatures=({temperature},), "
        "or use rule='renorm' or rule='uniform', which are exact at any"
    )


def check_selection(shape: Sequence[int], k: Any, temperatures: Sequence[Any]) -> None:
    """Raise ArgumentError unless k classes can be selected of logits of this shape, at these temperatures."""
    if len(shape) < 2:
        raise ArgumentError(f"logits have the shape {tuple(shape)}, expected (n, num_classes)")
    if isinstance(k, bool) or not hasattr(k, "__index__") or not 1 <= k <= shape[-1]:
        raise ArgumentError(f"k is {k!r}, expected 1 to {shape[-1]}, the number of classes")
    for temperature in temperatures:
        is_softened(temperature)
