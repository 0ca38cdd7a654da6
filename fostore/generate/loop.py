"""The generation loop: the only one. It reads, computes and delivers, and keeps the order.

On an accelerator, copying to the host, checking and writing of a batch go on in one other thread
while the next batch is computed; on a CPU everything runs in the caller's thread, where a second
one would compete with the model for cores.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, TypeVar

_Step = TypeVar("_Step")
_Token = TypeVar("_Token")

DEPTH = 2
"""Batches that may wait to be delivered: one being copied, one being written."""


def run(
    steps: Iterable[_Step],
    compute: Callable[[_Step], _Token],
    deliver: Callable[[_Token], None],
    *,
    overlap: bool,
) -> None:
    """Compute every step and deliver what came of it, in order.

    `compute` runs in this thread; so does the first `deliver`, which may have to set things up.
    When this returns or raises, everything that was computed has been delivered, unless `deliver`
    itself failed: nothing is delivered after the batch on which it did, and its error is raised.
    """
    remaining = iter(steps)
    for step in remaining:
        deliver(compute(step))
        break
    with _relay(deliver) if overlap else nullcontext(deliver) as hand_on:
        for step in remaining:
            hand_on(compute(step))


@contextmanager
def _relay(deliver: Callable[[Any], None]) -> Iterator[Callable[[Any], None]]:
    """One thread that delivers what it is handed, in order, through a bounded queue.

    An error in the thread is raised by the next hand-over, or on leaving the block.
    """
    tokens: queue.Queue[Any] = queue.Queue(DEPTH)
    failures: list[BaseException] = []

    def work() -> None:
        while (token := tokens.get()) is not _END:
            if failures:
                continue  # the queue is only emptied, so that a hand-over never hangs
            try:
                deliver(token)
            except BaseException as error:  # the caller's thread raises whatever it is
                failures.append(error)

    def hand_on(token: Any) -> None:
        if failures:
            raise failures[0]
        tokens.put(token)

    # a daemon: a write that hangs must not keep a process alive that is told to end
    thread = threading.Thread(target=work, name="fostore-deliver", daemon=True)
    thread.start()
    try:
        yield hand_on
    except BaseException as error:
        tokens.put(_END)
        thread.join()
        if failures and error is not failures[0]:
            error.add_note(f"writing failed as well: {failures[0]}")
        raise
    tokens.put(_END)
    thread.join()
    if failures:
        raise failures[0]


_END = object()
