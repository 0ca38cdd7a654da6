"""Top-k rows of tensors: selected on the device where the logits lie, and brought together in batches."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fostore.encodings.selection import selected
from fostore.encodings.topk_rows import Selected, TopK
from fostore.errors import ArgumentError
from fostore.pairing.distilling import check_selection
from fostore.schema import simplex
from fostore.torch.distillation import check_tensor
from fostore.torch.stretches import stretches

_ORDERED = (torch.float16, torch.bfloat16, torch.float32)
"""Dtypes whose numbers are integers of 32 bits in the same order."""


def as_topk(topk: TopK) -> TopK:
    """Top-k rows of NumPy, as `Store.take_topk` gives them, as tensors: classes in int64, which torch gathers by.

    >>> import fostore, tempfile
    >>> path = tempfile.mkdtemp() + "/words.zarr"
    >>> options = {"num_samples": 1, "num_classes": 4, "kind": "logits", "encoding": "topk", "k": 2}
    >>> with fostore.create(path, **options) as writer:
    ...     writer.append(np.array([[1.0, 3.0, 1.0, 2.0]]))
    >>> as_topk(fostore.open(path).take_topk([0])).ids
    tensor([[1, 3]])
    """
    return topk.map(_as_tensor)


def _as_tensor(array: Any) -> Tensor:
    if isinstance(array, Tensor):
        return array if array.is_floating_point() else array.long()
    given = np.asarray(array)
    return torch.from_numpy(given.astype(np.int64) if given.dtype.kind in "iu" else given)


def stacked(rows: Sequence[TopK]) -> TopK:
    """Rows of tensors as one batch, in memory of its own.

    Raises:
        ArgumentError: they are not of one kind of rows; names the first that differs.
    """
    first = rows[0]
    for at, row in enumerate(rows):
        kinds = [
            (tuple(one.values.shape), one.num_classes, one.rule, one.temperatures)
            for one in (row, first)
        ]
        if kinds[0] != kinds[1]:
            raise ArgumentError(
                f"top-k row {at} of the batch has the shape, number of classes, rule and temperatures "
                f"{kinds[0]}, and the first {kinds[1]}: only rows of the same kind make a batch"
            )
    arrays: list[list[Tensor]] = []
    for row in rows:
        arrays.append([])
        row.map(arrays[-1].append)
    columns = iter(map(torch.stack, zip(*arrays, strict=True)))
    derived = any(row.derived for row in rows)
    return replace(first.map(lambda _: next(columns)), derived=derived)


def select_topk(
    logits: Tensor, k: int, temperatures: Sequence[float] = (), *, tail_entropy: bool = False
) -> Selected:
    """The k largest logits of each row and what the others weigh, on their device: what `Writer.append` takes.

    The same classes and values, bit for bit, as a store of top-k rows selects from the logits
    themselves: larger first, of equal ones the smaller class first, as they are in the dtype in
    which they come. Sums are taken in float64 over the others alone. On CUDA nothing waits for the
    device and nothing but a stretch of rows is copied; on a CPU, and on devices without float64,
    NumPy selects, on up to four threads.

    Args:
        logits: (n, num_classes), or with members between, floating.
        k: 1 to num_classes.
        temperatures: of `residual_t`, each above 0.
        tail_entropy: whether to work it out.

    Returns:
        Tensors: values float32 (float64 of float64), ids, and float64 sums.

    Raises:
        ArgumentError: no such k, temperature or shape.
        RowError: a row that is no distribution (NaN, plus infinity, minus infinity everywhere); names
            it. On CUDA its sums are no numbers, which the writer refuses.

    >>> select_topk(torch.tensor([[1.0, 3.0, 1.0, 2.0]]), 3).ids
    tensor([[1, 3, 0]])
    """
    check_tensor("logits", logits)
    check_selection(logits.shape, k, temperatures)
    rows = logits.detach().reshape(-1, logits.shape[-1])
    asked = (k, tuple(temperatures), tail_entropy)
    chosen = _on_device(rows, *asked) if rows.is_cuda else _on_host(rows, *asked)
    lead = logits.shape[:-1]
    return Selected(*(a if a is None else a.reshape(*lead, *a.shape[1:]) for a in chosen))


def _on_host(rows: Tensor, k: int, temperatures: tuple[float, ...], entropy: bool) -> Selected:
    wide = torch.float64 if rows.dtype == torch.float64 else torch.float32
    numbers = rows.cpu().to(wide).contiguous().numpy()
    simplex.check(numbers, "logits")
    chosen = selected(numbers, "logits", k, temperatures, tail_entropy=entropy)
    return Selected(*(a if a is None else torch.from_numpy(a) for a in chosen))


def _on_device(rows: Tensor, k: int, temperatures: tuple[float, ...], entropy: bool) -> Selected:
    """The same by torch alone, without a step that waits for the device."""
    num_classes = rows.shape[-1]
    wide = torch.float64 if rows.dtype == torch.float64 else torch.float32
    # One more than is kept: the largest of the others, on whose scale these are summed.
    ids = _largest(rows, min(k + 1, num_classes))
    numbers = rows.gather(1, ids).to(wide)
    ids, kept = ids[:, :k].contiguous(), numbers[:, :k]
    top = kept[:, :1]
    bottom = numbers[:, k] if k < num_classes else torch.full_like(top[:, 0], -math.inf)
    scale = torch.where(bottom == -math.inf, 0, bottom)
    sums = torch.empty(1 + len(temperatures), len(rows), dtype=torch.float64, device=rows.device)
    tails = torch.empty(len(rows), dtype=torch.float64, device=rows.device) if entropy else None
    for some in stretches(rows):
        x = rows[some].to(wide, copy=True)
        x.scatter_(1, ids[some], -math.inf).sub_(scale[some, None])
        for i, temperature in enumerate((1.0, *temperatures)):
            weights = (x / temperature).exp_()
            sums[i, some] = weights.sum(-1, dtype=torch.float64)
        if tails is not None:
            weights = x.exp()
            parts = torch.where(weights == 0, 0, weights.mul_(x)).sum(-1, dtype=torch.float64)
            tails[some] = torch.where(
                sums[0, some] == 0, 0, sums[0, some].log() - parts / sums[0, some]
            )
    apart = scale.double() - top[:, 0].double()
    powers = torch.tensor((1.0, *temperatures), dtype=torch.float64, device=rows.device)
    logs = sums.log() + apart / powers[:, None]
    # A difference beyond the range is a logit still: minus infinity is a class that was masked.
    values = torch.where(kept == -math.inf, kept, (kept - top).clamp(min=torch.finfo(wide).min))
    level = torch.logaddexp(values.double().logsumexp(-1), logs[0]) + top[:, 0].double()
    return Selected(
        values, ids, logs[0], level, logs[1:].T.contiguous() if temperatures else None, tails
    )


def _largest(rows: Tensor, k: int) -> Tensor:
    """The classes of the k largest numbers of each row, in order.

    They lie in the k blocks of classes with the largest maxima: whatever lies in another one comes
    after each of these.
    """
    num_classes = rows.shape[-1]
    height = 1 << max(round(math.log2(num_classes / k) / 2), 0)
    whole = num_classes // height
    blocks = whole + (whole * height < num_classes)
    if height == 1 or 2 * k > blocks:
        return _first(rows, k)
    maxima = rows[:, : whole * height].reshape(-1, whole, height).amax(-1)
    if blocks > whole:
        maxima = torch.cat([maxima, rows[:, whole * height :].amax(-1, keepdim=True)], 1)
    at = _first(maxima, k).sort(-1).values
    offsets = torch.arange(height, device=rows.device)
    classes = (at[:, :, None] * height + offsets).flatten(1)
    # The last block may reach beyond the row: what is there comes after all else.
    numbers = rows.gather(1, classes.clamp(max=num_classes - 1))
    numbers = numbers.masked_fill_(classes >= num_classes, -math.inf)
    return classes.gather(1, _first(numbers, k))


def _first(rows: Tensor, k: int) -> Tensor:
    """The places of the k largest numbers of each row, in order; `topk` alone takes any of equal ones."""
    if rows.dtype not in _ORDERED:
        return torch.sort(rows + 0.0, dim=-1, descending=True, stable=True).indices[:, :k]
    bits = (rows.float() + 0.0).view(torch.int32)  # plus 0: minus 0 is no other number
    last = rows.shape[-1] - 1
    # Numbers as integers in their order, and below them the places from the end: no two are equal.
    order = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).long() << 32
    places = last - torch.arange(last + 1, device=rows.device)
    return last - ((order | places).topk(k, dim=-1).values & 0xFFFFFFFF)
