"""Rows of wide tensors, a stretch at a time: what is made of one at once stays small beside them."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

LEAST, MOST, STRETCHES = 1 << 18, 1 << 24, 16
"""Numbers of a stretch: a 16th of all, within what fills a device and its memory."""


def stretches(rows: Tensor) -> Iterator[slice]:
    """The rows of a tensor (n, num_classes), some at a time."""
    size = min(max(rows.numel() // STRETCHES, LEAST), MOST)
    step = max(size // rows.shape[-1], 1)
    for start in range(0, len(rows), step):
        yield slice(start, start + step)
