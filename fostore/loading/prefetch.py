"""The one thread that reads ahead of a training loop."""

from __future__ import annotations

import contextlib
import pickle
import queue
import random
import sys
import threading
from collections.abc import Callable, Generator, Iterator
from typing import Any, TypeVar

import numpy as np

_T = TypeVar("_T")
_END = object()
_PATIENCE_SECONDS = 10.0
"""How long closing waits for the item that is being read."""
_LEFT = "the thread that began this iteration has ended, and reading ahead with it; begin a new iteration"


def ahead(
    items: Iterator[_T], depth: int, states: Callable[[], Any] | None = None
) -> Generator[_T, None, None]:
    """The same items in the same order, of which up to `depth` are read in a thread beforehand.

    The first item is read in the caller's thread. If the global random states were changed by that,
    so are all: augmentation that draws from them would give other numbers in every run if it took
    turns with the caller's own draws. Errors are raised where their item would have come.

    `close()` stops the thread, and waits for the item that it reads, ten seconds at most. A generator that loops over
    this calls it (`contextlib.closing`): since Python 3.12.3 closing a generator that has no `finally` leaves what it
    holds alive until it is collected.

    Args:
        depth: items ready beyond the one in use; 0 reads all in the caller's thread.
        states: gives what stands for the random states; by default those of Python and NumPy.
    """
    if depth < 1:
        yield from items
        return
    look = states or random_states
    before = look()
    try:  # a StopIteration that leaves a generator is a RuntimeError
        first = next(items)
    except StopIteration:
        return
    draws = look() != before
    yield first
    del first  # else the first batch would stay in memory, or on a device, for the whole epoch
    if draws:
        yield from items
    else:
        yield from _threaded(items, depth)


def random_states() -> Any:
    """What tells whether Python's or NumPy's global random numbers were drawn."""
    numbers = np.random.get_state(legacy=False)
    return random.getstate(), pickle.dumps(numbers)


def _threaded(items: Iterator[_T], depth: int) -> Iterator[_T]:
    # The collector may close this generator anywhere, also in its own thread and in the middle of a hand-over: a Queue
    # and an Event hold locks then, for which the `finally` below would wait for ever. A SimpleQueue holds none.
    ready: queue.SimpleQueue[Any] = queue.SimpleQueue()
    room: queue.SimpleQueue[None] = queue.SimpleQueue()  # one entry for each item that may be put
    for _ in range(depth):
        room.put(None)
    is_stopped, patience = False, _PATIENCE_SECONDS
    current_thread, get_ident, going_down = (
        threading.current_thread,
        threading.get_ident,
        sys.is_finalizing,
    )
    caller = [current_thread()]

    def put(entry: Any) -> bool:
        nonlocal is_stopped
        while not is_stopped and caller[0].is_alive():
            # Not without a timeout: nobody wakes this thread when the caller's ends.
            with contextlib.suppress(queue.Empty):
                room.get(timeout=0.1)
                ready.put(entry)
                return not is_stopped
        if not is_stopped:
            is_stopped = True
            ready.put((_END, RuntimeError(_LEFT)))  # wakes whoever goes on with this all the same
        return False

    def work() -> None:
        try:
            for item in items:
                if not put((item, None)):
                    return
            put((_END, None))
        except BaseException as error:
            put((_END, error))

    # A daemon would still run while the interpreter is taken down, where torch and JAX abort. This
    # one ends with the thread that it reads for, so that an iterator left alive delays no exit.
    thread = threading.Thread(target=work, name="fostore-prefetch", daemon=False)
    thread.start()
    try:
        while True:
            if is_stopped:
                raise RuntimeError(_LEFT)
            item, error = ready.get()
            room.put(None)
            if error is not None:
                raise error
            if item is _END:
                return
            yield item
            caller[0] = current_thread()  # an iterator may be handed to another thread
    finally:
        # This may run while the interpreter goes down: no name of a module is certain any more.
        is_stopped = True
        room.put(None)  # wakes the thread
        while not ready.empty():
            ready.get_nowait()
        if not going_down() and thread.ident != get_ident():  # garbage may be collected there
            # Not for ever: where it is collected, this thread may hold what the item being read needs.
            thread.join(patience)
