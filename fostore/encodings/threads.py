"""Rows that are worked on by several threads, where there are so many numbers that it pays.

A row has the same result in any part of the rows, so the result does not tell how many threads there were. They end
with the call: nothing is left behind that a fork could break. It pays where the wide rows are gone through in many
passes, not for the selection alone: finding what reaches a bound holds the interpreter's lock.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np

from fostore.schema.row import Array

_Result = TypeVar("_Result")

_MOST = 4
"""Threads: each has working memory of its own, and a few reach the speed of the memory."""
_LEAST = 1 << 20
"""Numbers of a thread: it takes 0.1 ms to start, and these take 0.5 ms at least."""


def num_threads() -> int:
    """How many threads work on numbers here: the CPUs that this process may use, at most 4."""
    # Looked up each time: a launcher pins its processes after they have imported.
    with_affinity = hasattr(os, "sched_getaffinity")
    return min(len(os.sched_getaffinity(0)) if with_affinity else os.cpu_count() or 1, _MOST)


def by_threads(work: Callable[[Array], _Result], x: Array) -> list[_Result]:
    """What `work` makes of the parts of `x` (n, ...), in their order: of all rows at once where they are few."""
    count = min(x.size // _LEAST, len(x), num_threads())
    if count < 2:
        return [work(x)]
    with ThreadPoolExecutor(count, "fostore-rows") as pool:
        return list(pool.map(work, np.array_split(x, count)))
