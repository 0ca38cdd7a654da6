"""Which share of a store one process of several writes: as it was told, or as a launcher says in the environment."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fostore.errors import ArgumentError

if TYPE_CHECKING:
    from fostore.formats.claim import Claim

_AUTO = "auto"
"""The launcher says which."""


@dataclass(frozen=True, slots=True)
class Share:
    """The share `index`, counted from 0, of `count`; `source` says where that was read, if nobody gave it."""

    index: int
    count: int
    source: str = ""

    def claim(self, num_units: int) -> Claim:
        """Its units: one after another, as many as the other shares have, or one more.

        >>> [Share(i, 3).claim(7).units for i in range(3)]
        [(0, 2), (2, 4), (4, 7)]
        """
        from fostore.formats.claim import Claim  # NumPy: the command line reads shares without

        first, last = (at * num_units // self.count for at in (self.index, self.index + 1))
        return Claim(f"shard {self.index} of {self.count}", (first, last))

    def __str__(self) -> str:
        return f"shard {self.index} of {self.count}" + (f" ({self.source})" if self.source else "")


def share_of(asked: Any, environment: Mapping[str, str] = os.environ) -> Share | None:
    """The share of `(i, n)`, of a text such as "3/64", or of "auto": what the launcher has set; None for all.

    "auto" reads RANK and WORLD_SIZE, as torchrun sets them, else SLURM_PROCID and SLURM_NTASKS, as srun does; and
    with either, or alone, SLURM_ARRAY_TASK_ID of an array of jobs.

    Raises:
        ArgumentError: it is no share, or "auto" and there is no launcher.

    >>> share_of("3/64")
    Share(index=3, count=64, source='')
    >>> print(share_of("auto", {"RANK": "1", "WORLD_SIZE": "4"}))
    shard 1 of 4 (RANK and WORLD_SIZE)
    """
    if asked is None or isinstance(asked, Share):
        return asked
    if asked == _AUTO:
        return _launched(environment)
    pair = asked
    if isinstance(asked, str):
        i, slash, n = asked.partition("/")
        pair = (int(i), int(n)) if slash and i.isdecimal() and n.isdecimal() else None
    try:
        index, count = (number.__index__() for number in pair)
    except (TypeError, ValueError, AttributeError):
        raise ArgumentError(
            f"shard is {asked!r}, expected i/n: (3, 64), '3/64', or 'auto' under a launcher"
        ) from None
    if not 0 <= index < count:
        raise ArgumentError(f"shard is {asked!r}, expected i/n with 0 <= i < n: counted from 0")
    return Share(index, count)


def _launched(environment: Mapping[str, str]) -> Share:
    def number(name: str, default: int | None = None) -> int | None:
        text = environment.get(name, "")
        return int(text) if text.isdecimal() else default

    index, count, sources = 0, 1, []
    task = number("SLURM_ARRAY_TASK_ID")
    if task is not None:
        step, first = number("SLURM_ARRAY_TASK_STEP", 1) or 1, number("SLURM_ARRAY_TASK_MIN", 0)
        last, tasks = number("SLURM_ARRAY_TASK_MAX"), number("SLURM_ARRAY_TASK_COUNT")
        assert first is not None
        if last is None and not tasks:
            raise ArgumentError(
                f"SLURM_ARRAY_TASK_ID says task {task}, and neither SLURM_ARRAY_TASK_COUNT nor SLURM_ARRAY_TASK_MAX "
                f"says of how many. Give the share as i/n, such as {task}/{task + 1}"
            )
        tasks = tasks or ((last or 0) - first) // step + 1
        index, count = (task - first) // step, tasks
        sources.append("SLURM_ARRAY_TASK_ID and SLURM_ARRAY_TASK_COUNT")
    for rank, size in (("RANK", "WORLD_SIZE"), ("SLURM_PROCID", "SLURM_NTASKS")):
        i, n = number(rank), number(size)
        if i is not None and n is not None:
            index, count = index * n + i, count * n
            sources.append(f"{rank} and {size}")
            break
    if not sources:
        raise ArgumentError(
            "shard is 'auto', and no launcher says which share this process has: set are neither RANK and "
            "WORLD_SIZE (torchrun), nor SLURM_ARRAY_TASK_ID, nor SLURM_PROCID and SLURM_NTASKS (srun). Give it as "
            "i/n, such as 0/8"
        )
    if not 0 <= index < count:
        raise ArgumentError(f"{' and '.join(sources)} say shard {index} of {count}, which is none")
    return Share(index, count, "; ".join(sources))
