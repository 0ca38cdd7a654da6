"""The generation loop: the only one. It reads, computes and delivers, and keeps the order.

On an accelerator, copying to the host, checking and writing of a batch go on in one other thread
while the next batch is computed; on a CPU everything runs in the caller's thread, where a second
one would compete with the model for cores.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, TypeVar

from fostore.generate.source import Indices

Token = TypeVar("Token")

DEPTH = 2
"""Batches that may wait to be delivered: one being copied, one being written."""


def run(
    steps: Iterator[tuple[Indices, Any]],
    compute: Callable[[Indices, Any], Token],
    deliver: Callable[[Token], None],
    *,
    overlap: bool,
) -> None:
    """Compute every step and deliver what came of it, in order.

    `compute` runs in this thread; so does the first `deliver`, which may have to set things up.
    When this returns or raises, everything that was computed has been delivered, unless `deliver`
    itself failed: nothing is delivered after the batch on which it did, and its error is raised.
    """
    for indices, inputs in steps:
        deliver(compute(indices, inputs))
        break
    else:
        return
    if not overlap:
        for indices, inputs in steps:
            deliver(compute(indices, inputs))
        return
    with Relay(deliver) as relay:
        for indices, inputs in steps:
            relay.put(compute(indices, inputs))


class Relay:
    """One thread that delivers what it is given, in order, through a bounded queue.

    An error in the thread is raised by the next `put`, or on leaving the block.
    """

    def __init__(self, deliver: Callable[[Any], None], depth: int = DEPTH) -> None:
        self._deliver = deliver
        self._queue: queue.Queue[Any] = queue.Queue(depth)
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name="fostore-deliver", daemon=True)

    def put(self, token: Any) -> None:
        """Hand one result over; waits while the queue is full."""
        if self._error is not None:
            raise self._error
        self._queue.put(token)

    def _work(self) -> None:
        while (token := self._queue.get()) is not _END:
            # After an error the queue is only emptied, so that put never hangs.
            if self._error is None:
                try:
                    self._deliver(token)
                except BaseException as error:
                    self._error = error

    def __enter__(self) -> Relay:
        self._thread.start()
        return self

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
        if self._error is not None and error is not self._error and error is not None:
            error.add_note(f"writing failed as well: {self._error}")


_END = object()
