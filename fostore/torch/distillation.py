"""The loss that trains a student on a teacher's distributions, for torch.

Why not the loop that the guide prints? It divides the student's logits by the temperature and not
the teacher's, so that a student which agrees with its teacher is pulled away from it; it leaves out
the factor T², so that the soft term fades against other terms as T grows; and it never calls
`optimizer.zero_grad()`, so that every step follows the sum of all gradients so far.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fostore.errors import ArgumentError
from fostore.pairing.distilling import check_distillation


def distillation_loss(
    student_logits: Tensor,
    teacher: Tensor,
    temperature: float = 1.0,
    *,
    teacher_kind: str = "probs",
) -> Tensor:
    """The mean over rows of T² KL(p ‖ q), p and q being teacher and student at temperature T.

    With teacher logits z (or log-probabilities) and student logits s, p = softmax(z / T) and
    q = softmax(s / T). The gradient for s is T (q - p) / rows, and keeps its size as T grows; at
    T = 1 it is that of the cross-entropy with p. No gradient reaches the teacher. Computed in
    log-space, in float32 whatever halves come in (float64 where either is float64).

    Give the teacher as it is stored, not softened already: its temperature is applied here. Where
    T is not 1, `FirstOrderDataset(..., as_kind="log_probs")` with `teacher_kind="log_probs"` keeps
    what probabilities round to zero. A class to which the teacher gives 0 adds nothing.

    Args:
        student_logits: (..., num_classes), floating; minus infinity is a class that is masked.
        teacher: the same shape, floating, on the same device. Rows need no exact normalisation.
        temperature: above 0; 1 to 10 is usual.
        teacher_kind: what the teacher's numbers are, "probs", "log_probs" or "logits".

    Returns:
        A scalar, 0 where both agree; infinite where the student masks a class that the teacher has.

    Raises:
        ArgumentError: shapes, numbers of classes, dtypes, an empty batch, or a parameter. Values
            are not looked at, which would wait for the device: a teacher row without any
            probability gives NaN.

    Source: Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network" (2015), section
    2; its cross-entropy, minus the teacher's entropy, which no student changes.

    >>> logits = torch.tensor([[2.0, 0.0, -2.0]])
    >>> distillation_loss(logits, logits.softmax(-1), 4.0).abs() < 1e-6
    tensor(True)
    >>> distillation_loss(logits, torch.tensor([[0.5, 0.5, 0.0]]))
    tensor(0.4498)
    """
    check_tensor("student_logits", student_logits)
    check_tensor("teacher", teacher)
    check_distillation(student_logits.shape, teacher.shape, teacher_kind, temperature)
    wide = torch.float64 in (student_logits.dtype, teacher.dtype)
    dtype = torch.float64 if wide else torch.float32
    known = teacher.detach().to(dtype)
    if teacher_kind == "probs":
        known = known.log()
    log_p = torch.log_softmax(known / temperature, dim=-1)
    log_q = torch.log_softmax(student_logits.to(dtype) / temperature, dim=-1)
    p = log_p.exp()
    # Where p is 0, log_p is minus infinity: 0 times that is no number, and its limit is 0. What is no
    # number itself is no 0, and stays.
    apart = torch.where(p == 0, 0, log_p) - torch.where(p == 0, 0, log_q)
    terms = p * apart
    return terms.sum(dim=-1).mean() * temperature**2


def check_tensor(name: str, tensor: object) -> None:
    """Raise ArgumentError unless a loss can be taken of it."""
    if not isinstance(tensor, Tensor):
        raise ArgumentError(f"{name} is {type(tensor).__name__}, expected a torch.Tensor")
    if not tensor.is_floating_point():
        raise ArgumentError(
            f"{name} has the dtype {tensor.dtype} and the shape {tuple(tensor.shape)}, expected "
            "floating point numbers; class numbers go into torch's cross_entropy"
        )
