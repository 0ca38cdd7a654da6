"""The loss that trains a student on top-k rows, for torch: nothing of the teacher's is as wide as its classes.

It works on the logits a stretch of rows at a time, forward and back, so that it needs little more
than the gradient. What the student gives to the classes that are not kept is a sum over those alone:
1 minus the others is wrong by more than a percent in every third row of float32.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fostore.encodings.topk_rows import TopK
from fostore.errors import ArgumentError
from fostore.pairing.distilling import check_topk
from fostore.torch.distillation import check_tensor
from fostore.torch.stretches import stretches


def topk_distillation_loss(
    student_logits: Tensor,
    topk: TopK,
    temperature: float = 1.0,
    *,
    rule: str | None = None,
    mask: Tensor | None = None,
    reverse: bool = False,
) -> Tensor:
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
    gradient reaches the teacher. Computed in float32 whatever halves come in (float64 where either
    is float64); memory beyond the gradient is about a quarter of the logits.

    Args:
        student_logits: (..., num_classes), floating, flat (n, V) or padded (B, L, V); minus infinity
            is a class that is masked.
        topk: the teacher's rows, of tensors (see `as_topk`) on the same device, (..., k).
        temperature: above 0.
        rule: one of `fostore.encodings.topk_rows.RULES`; None: what the rows came with.
        mask: (...), bool or integers, 0 for rows that do not count, whatever they hold: padding.
            The mean is over the others, and 0 where none is left.
        reverse: KL(q ‖ p) instead, under `coarse` or `uniform`.

    Returns:
        A scalar, 0 where both agree; infinite where the student masks a class that the teacher has.

    Raises:
        ArgumentError: shapes, numbers of classes, devices, an empty batch, a parameter, or a rule
            that these rows do not have at this temperature; rows with a derived residual that have
            nothing left for it, under `coarse` (looking for them waits for the device). Other
            values are not looked at.

    Source: Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network" (2015), section
    2, over k + 1 outcomes.

    >>> logits = torch.tensor([[2.0, 0.0, -2.0, -2.0]])
    >>> teacher = TopK(logits[:, :2], torch.tensor([[0, 1]]), logits[:, 2:].logsumexp(-1), num_classes=4)
    >>> topk_distillation_loss(logits, teacher).abs() < 1e-6
    tensor(True)
    """
    check_tensor("student_logits", student_logits)
    _check_rows(topk, student_logits)
    _check_mask(mask)
    shape = None if mask is None else mask.shape
    rule, at = check_topk(
        student_logits.shape, topk, temperature, rule=rule, mask=shape, reverse=reverse
    )
    if rule == "coarse" and topk.derived:
        _refuse_none_left(topk, mask)
    kept, rest = _softened(topk, float(temperature), rule, at, student_logits.dtype)
    num_classes, k = student_logits.shape[-1], kept.shape[-1]
    rows: Tensor = _Divergence.apply(  # type: ignore[no-untyped-call]
        student_logits.reshape(-1, num_classes),
        topk.ids.reshape(-1, k).long(),
        kept.reshape(-1, k),
        rest.reshape(-1),
        float(temperature),
        rule,
        reverse,
    )
    if mask is None:
        return rows.mean() * temperature**2
    counts = mask.reshape(-1) != 0
    total = torch.where(counts, rows, 0).sum()
    return total / counts.sum().clamp(min=1) * temperature**2


def _check_rows(topk: Any, student: Tensor) -> None:
    if not isinstance(topk, TopK):
        raise ArgumentError(
            f"topk is {type(topk).__name__}, expected a TopK of tensors; dense rows go into "
            "distillation_loss"
        )
    if not isinstance(topk.values, Tensor):
        raise ArgumentError(
            f"topk holds {type(topk.values).__name__}, expected tensors: as_topk(topk) makes them"
        )
    if topk.values.device != student.device:
        raise ArgumentError(
            f"topk lies on {topk.values.device} and student_logits on {student.device}; "
            "topk.to(device) moves it"
        )


def _check_mask(mask: Any) -> None:
    if mask is not None and (not isinstance(mask, Tensor) or mask.is_floating_point()):
        came = f"a tensor of {mask.dtype}" if isinstance(mask, Tensor) else type(mask).__name__
        raise ArgumentError(
            f"mask is {came}, expected a tensor of bool or integers, 0 for rows that do not count; weights "
            "are not taken"
        )


def _refuse_none_left(topk: TopK, mask: Tensor | None) -> None:
    is_bad = ~torch.isfinite(topk.residual)
    none = torch.nonzero(is_bad if mask is None else is_bad & (mask != 0))
    if len(none):
        raise ArgumentError(
            f"row {tuple(none[0].tolist())} of the batch has kept classes that weigh 1 or more, so that its "
            "residual, which an importer derived from them, is none: rule='coarse' would take rounding for "
            "the teacher's word; use rule='renorm'"
        )


def _softened(
    topk: TopK, temperature: float, rule: str, at: int | None, student: torch.dtype
) -> tuple[Tensor, Tensor]:
    """(log p of the kept classes, log of what all others have together); the second counts as `rule` says."""
    wide = torch.float64 in (student, topk.values.dtype)
    dtype = torch.float64 if wide else torch.float32
    weights = topk.values.detach().to(dtype) / temperature
    residual = topk.residual if at is None else topk.residual_t[..., at]
    rest = residual.detach().to(dtype)
    if rule == "renorm":
        rest = torch.full_like(rest, -math.inf)
    elif rule == "uniform":
        others = topk.num_classes - weights.shape[-1]
        rest = rest / temperature + (1 - 1 / temperature) * math.log(others)
    level = torch.logaddexp(torch.logsumexp(weights, -1), rest)
    if rule == "zero":
        rest = torch.full_like(rest, -math.inf)
    return weights - level[..., None], rest - level


class _Divergence(torch.autograd.Function):
    """KL of each row: (n, V) logits, (n, k) ids and log p, (n,) log of the others' probability."""

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        ids: Tensor,
        log_p: Tensor,
        log_rest: Tensor,
        temperature: float,
        rule: str,
        reverse: bool,
    ) -> Tensor:
        others = logits.shape[-1] - ids.shape[-1]
        loss, level = torch.empty_like(log_rest), torch.empty_like(log_rest)
        left = torch.empty_like(log_rest)
        for rows in stretches(logits):
            x = _divided(logits[rows], log_p.dtype, temperature)
            is_kept = _kept(log_p[rows], rule)
            own = x.gather(1, ids[rows]).masked_fill_(~is_kept, -math.inf)
            x = _placed(x, ids[rows], is_kept, torch.full_like(own, -math.inf))
            left[rows] = torch.logsumexp(x, -1)
            level[rows] = torch.logaddexp(torch.logsumexp(own, -1), left[rows])
            z, lp, lr = level[rows], log_p[rows], log_rest[rows]
            log_q, log_left = own - z[:, None], left[rows] - z
            if reverse:
                value = _times(log_q.exp(), log_q - lp).sum(-1)
                if rule == "coarse":
                    value += _times(log_left.exp(), log_left - lr)
                elif rule == "uniform":
                    x -= z[:, None]
                    each = (lr - math.log(others))[:, None]
                    value += _times(x.exp(), x - each).sum(-1)
            else:
                value = _times(lp.exp(), lp - log_q).sum(-1)
                if rule == "coarse":
                    value += _times(lr.exp(), lr - log_left)
                elif rule == "uniform":
                    mean = x.scatter_(1, ids[rows], 0).sum(-1) / others
                    value += _times(lr.exp(), lr - math.log(others) - (mean - z))
            loss[rows] = value
        ctx.save_for_backward(logits, ids, log_p, log_rest, level, left, loss)
        ctx.asked = (temperature, rule, reverse)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> Any:
        logits, ids, log_p, log_rest, level, left, loss = ctx.saved_tensors
        temperature, rule, reverse = ctx.asked
        others = logits.shape[-1] - ids.shape[-1]
        gradient = torch.empty_like(logits)
        for rows in stretches(logits):
            x = _divided(logits[rows], log_p.dtype, temperature)
            z, lp, lr = level[rows], log_p[rows], log_rest[rows]
            is_kept = _kept(lp, rule)
            log_q = (x.gather(1, ids[rows]) - z[:, None]).masked_fill_(~is_kept, -math.inf)
            q, p, rest = log_q.exp(), lp.exp(), lr.exp()
            if reverse:
                own = _times(q, log_q - lp - loss[rows, None])
            else:
                total = p.sum(-1) + rest
                own = q * total[:, None] - p
            if reverse and rule == "uniform":
                x -= z[:, None]
                each = lr - math.log(others) + loss[rows]
                x = _times(x.exp(), x - each[:, None])
            else:
                # Shares of the sum over the others, which fit their numbers however small that sum is.
                bottom = torch.where(left[rows] == -math.inf, 0, left[rows])
                log_left = left[rows] - z
                x.sub_(bottom[:, None]).exp_()
                if reverse:
                    x *= _times(log_left.exp(), log_left - lr - loss[rows])[:, None]
                elif rule == "coarse":
                    x *= (log_left.exp() * total - rest)[:, None]
                else:
                    x *= (log_left.exp() * total)[:, None]
                    if rule == "uniform":
                        x -= (rest / others)[:, None]
            x = _placed(x, ids[rows], is_kept, own)
            scale = (slope[rows] / temperature)[:, None]
            # A row that does not count has no slope, whatever stands in it.
            gradient[rows] = x.mul_(scale).masked_fill_(scale == 0, 0)
        return gradient, None, None, None, None, None, None


def _kept(log_p: Tensor, rule: str) -> Tensor:
    """Which places of rows name a class: one without weight only fills its row up."""
    # `uniform` counts all others, of which there are as many in each row.
    return torch.ones_like(log_p, dtype=torch.bool) if rule == "uniform" else log_p != -math.inf


def _placed(x: Tensor, ids: Tensor, is_kept: Tensor, values: Tensor) -> Tensor:
    """Rows with `values` at the classes that are kept, and as they are at all others."""
    # What fills a row up says the same of its first class once more: of writes to one place any may be the last.
    first = torch.where(is_kept[:, :1], values[:, :1], x.gather(1, ids[:, :1]))
    return x.scatter_(1, torch.where(is_kept, ids, ids[:, :1]), torch.where(is_kept, values, first))


def _divided(logits: Tensor, dtype: torch.dtype, temperature: float) -> Tensor:
    """Logits by temperature, in memory of their own."""
    own = logits.to(dtype, copy=True)
    return own if temperature == 1 else own.div_(temperature)


def _times(p: Tensor, apart: Tensor) -> Tensor:
    """A difference of logarithms times p, with its limit 0 where p is 0; what is no number stays none."""
    return torch.where(p == 0, 0, p * apart)
