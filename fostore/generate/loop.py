"""The generation loop: the only one. It reads, computes and delivers, and keeps the order.

On an accelerator, copying to the host, checking and writing of a batch go on in one other thread
while the next batch is computed; on a CPU everything runs in the caller's thread, where a second
one would compete with the model for cores.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from types import TracebackType
from typing import Any, TypeVar

Step = TypeVar("Step")
Token = TypeVar("Token")

DEPTH = 2
"""Batches that may wait to be delivered: one being copied, one being written."""


def run(
    steps: Iterable[Step],
    compute: Callable[[Step], Token],
    deliver: Callable[[Token], None],
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
    beside: AbstractContextManager[Callable[[Any], None]]
    beside = _Relay(deliver) if overlap else nullcontext(deliver)
    with beside as hand_on:
        for step in remaining:
            hand_on(compute(step))


class _Relay:
    """One thread that delivers what it is given, in order, through a bounded queue.

    An error in the thread is raised by the next hand-over, or on leaving the block.
    """

    def __init__(self, deliver: Callable[[Any], None]) -> None:
        self._deliver = deliver
        self._queue: queue.Queue[Any] = queue.Queue(DEPTH)
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name="fostore-deliver", daemon=True)

    def _put(self, token: Any) -> None:
        """Hand one result over; waits while the queue is full."""
        if self._error is not None:
            raise self._error
        self._queue.put(token)

    def _work(self) -> None:
        while (token := self._queue.get()) is not _END:
            # After an error the queue is only emptied, so that a hand-over never hangs.
            if self._error is None:
                try:
                    self._deliver(token)
                except BaseException as error:
                    self._error = error

    def __enter__(self) -> Callable[[Any], None]:
        self._thread.start()
        return self._put

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._queue.put(_END)
        self._thread.join()
        if self._error is not None and error is None:
            raise self._error
        if self._error is not None and error is not None and error is not self._error:
            error.add_note(f"writing failed as well: {self._error}")


_END = object()
