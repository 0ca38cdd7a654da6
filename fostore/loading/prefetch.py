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
_LEFT = "the thread that began this iteration has ended, and reading ahead with it; begin a new iteration"


def ahead(
    items: Iterator[_T], depth: int, states: Callable[[], Any] | None = None
) -> Generator[_T, None, None]:
    """The same items in the same order, of which up to `depth` are read in a thread beforehand.

    The first item is read in the caller's thread. If the global random states were changed by that,
    so are all: augmentation that draws from them would give other numbers in every run if it took
    turns with the caller's own draws. Errors are raised where their item would have come.

    `close()` stops the thread. A generator that loops over this calls it (`contextlib.closing`): since Python 3.12.3
    closing a generator that has no `finally` leaves what it holds alive until it is collected.

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
    ready: queue.Queue[Any] = queue.Queue(depth)
    stop = threading.Event()
    current_thread, get_ident, going_down = (
        threading.current_thread,
        threading.get_ident,
        sys.is_finalizing,
    )
    caller = [current_thread()]

    def put(entry: Any) -> bool:
        while not stop.is_set() and caller[0].is_alive():
            # Not without a timeout: nobody wakes this thread when the caller's ends.
            with contextlib.suppress(queue.Full):
                ready.put(entry, timeout=0.1)
                return not stop.is_set()
        if not stop.is_set():
            stop.set()
            with contextlib.suppress(queue.Full):  # wakes whoever goes on with this all the same
                ready.put_nowait((_END, RuntimeError(_LEFT)))
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
            if stop.is_set():
                raise RuntimeError(_LEFT)
            item, error = ready.get()
            if error is not None:
                raise error
            if item is _END:
                return
            yield item
            caller[0] = current_thread()  # an iterator may be handed to another thread
    finally:
        # This may run while the interpreter goes down: no name of a module is certain any more.
        stop.set()
        while ready.qsize():
            ready.get_nowait()
        if not going_down() and thread.ident != get_ident():  # garbage may be collected there
            thread.join()
