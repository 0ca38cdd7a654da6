"""A lock inside a reader that a fork cannot leave held.

A child that is forked while another thread holds a lock has that lock held for ever, by nobody: the
first row that it asked for would never come.
"""

from __future__ import annotations

import os
import threading
import weakref


class Guard:
    """A reentrant lock, as a context; free in a forked child, whoever held it in the parent."""

    __slots__ = ("__weakref__", "_lock")

    def __init__(self) -> None:
        self._lock = threading.RLock()
        _guards.add(self)

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *exception: object) -> None:
        self._lock.release()


_guards: weakref.WeakSet[Guard] = weakref.WeakSet()


def _free() -> None:
    for guard in list(_guards):
        guard._lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_free)
