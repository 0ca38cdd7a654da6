"""What a peer is: how a library keeps rows, and how it gives a batch of them back at its best."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

INSTALL = "pip install -e '.[bench]'"
INSTALL_BARE = "pip install --no-deps -r benchmarks/requirements.txt"

Gather = Callable[[np.ndarray], np.ndarray]
"""Row numbers (n,) int64 to rows (n, num_classes) in the dtype that was written, in that order."""


def no_preparation() -> None:
    """Nothing has to be set up before the import."""


@dataclass(frozen=True, slots=True)
class Peer:
    """One library at the setting that an expert would choose for random batches of short rows.

    `write(path, rows)` keeps all rows under `path` (a name that is free; a file or a folder).
    `open(path)` gives the gather. `stream(path, batch_size)`, where the library has a shuffling
    loader of its own, begins one epoch of batches (tensors or arrays).
    `fresh` is the code of a new process that imports, opens argv[1] and binds `rows` to every
    argv[2]-th row (`wanted` holds their numbers as a range).
    """

    name: str
    setting: str
    module: str
    package: str
    write: Callable[[Path, np.ndarray], Any]
    open: Callable[[Path], Gather]
    stream: Callable[[Path, int], Iterable[Any]] | None = None
    stream_name: str = ""
    fresh: str = ""
    prepare: Callable[[], None] = no_preparation
    install: str = INSTALL

    def missing(self) -> str:
        """Why this library cannot be measured here; empty where it can."""
        try:
            self.prepare()
            importlib.import_module(self.module)
        except ModuleNotFoundError as error:
            name = (error.name or "").split(".")[0]
            if name == self.module.split(".")[0]:
                return f"not installed: {self.install}"
            return f"{name} is missing: {INSTALL}"
        except Exception as error:  # whatever a broken installation raises becomes its row
            return f"does not import: {type(error).__name__}: {error}"[:120]
        return ""
