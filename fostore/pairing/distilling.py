"""What a distillation loss accepts, on every side: shapes, what the teacher's numbers are, a temperature."""

from __future__ import annotations

from collections.abc import Sequence

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
