"""A process that writes its share of a store in whole units, and is killed or stopped at one of its storage operations.

test_units.py starts it by a fork server, so that a case costs milliseconds; `rows_of` is what every share is of.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

import fostore
from fostore.places.local import Local
from fostore.places.names import is_url, place_of
from fostore.places.place import Listed, Storage, Version
from support import probs

N, K, UNIT = 4500, 3, 1024
UNITS = -(-N // UNIT)


@dataclass(frozen=True)
class Fault:
    """Send this process a signal, before or after its storage operation of this number; 0 is the first."""

    at: int = -1
    after: bool = False
    signal: int = signal.SIGKILL


class Faulty:
    """A `Storage` that wraps another, and whose process is killed or stopped at one operation."""

    def __init__(self, inner: Storage, fault: Fault) -> None:
        self._inner, self._fault, self.calls = inner, fault, 0

    def __str__(self) -> str:
        return str(self._inner)

    def put(self, name: str, data: Any, replaces: Version = None) -> Version:
        return self._call(self._inner.put, name, data, replaces)

    def delete(self, names: Iterable[str]) -> None:
        self._call(self._inner.delete, names)

    def listed(self, folder: str = "") -> Iterator[Listed]:
        return self._inner.listed(folder)

    def _call(self, function: Any, *arguments: Any) -> Any:
        is_now, self.calls = self.calls == self._fault.at, self.calls + 1
        if is_now and not self._fault.after:
            self._strike()
        result = function(*arguments)
        if is_now and self._fault.after:
            self._strike()
        return result

    def _strike(self) -> None:
        os.kill(os.getpid(), self._fault.signal)
        # A signal is for the process: this thread may go on for a moment, and must not reach its next operation.
        time.sleep(0.3)


# Everything else is the other's; `isinstance` looks for it in the class, not in a `__getattr__`.
for _name in dir(Storage):
    if not (_name.startswith("_") or hasattr(Faulty, _name)):
        setattr(Faulty, _name, property(lambda self, name=_name: getattr(self._inner, name)))


def place_at(path: str) -> Storage:
    place = place_of(path) if is_url(path) else Local(path)
    assert isinstance(place, Storage)
    return place


def fill(where: Any, shard: tuple[int, int] | None = None, seed: int = 0) -> None:
    """Plan or join, and write what is missing of a share."""
    fostore.plan(where, num_samples=N, num_classes=K, unit_rows=UNIT, ids="int64")
    for unit in fostore.open_units(where, shard=shard):
        unit.write(probs(len(unit), K, seed=seed, start=unit.start), ids=np.array(unit.rows))


def work(
    environment: dict[str, str],
    path: str,
    shard: tuple[int, int] | None,
    fault: Fault,
    finishes: bool = False,
    seed: int = 0,
) -> None:
    """One process of several; `environment` holds credentials, which the fork server does not know."""
    os.environ.update(environment)
    place = Faulty(place_at(path), fault)
    fill(place, shard, seed)
    if finishes:
        fostore.finish(place)  # type: ignore[arg-type]  # what it lacks is put into its class
