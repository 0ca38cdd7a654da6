"""How far something is, on stderr: a bar where that is a terminal, else a line now and then; and what is logged."""

from __future__ import annotations

import logging
import sys
import time
from contextlib import suppress
from typing import Any

LOG = logging.getLogger("fostore")
"""Says where a generation, a conversion or a publication begins and ends, at the level INFO. Warnings are warnings."""

LINE_SECONDS = 10.0
"""Between two lines; what takes less says nothing, since its end says it."""


class Progress:
    """Counts samples or rows, and shows it unless `shown` is false.

    A log file, a pipe or a batch system gets whole lines, never the carriage returns of a bar.
    """

    def __init__(
        self,
        shown: bool,
        total: int | None,
        done: int = 0,
        name: str | None = None,
        unit: str = "samples",
    ) -> None:
        self._shown: Any = None
        if not shown or sys.stderr is None:  # a program without a console has none
            return
        name = name or "generating"
        if sys.stderr.isatty():
            from tqdm import tqdm  # import cost: only where a bar is drawn

            self._shown = tqdm(
                total=total,
                initial=done,
                unit=f" {unit}",
                desc=name,
                file=sys.stderr,
                dynamic_ncols=True,
            )
        else:
            self._shown = _Lines(total, done, " ".join(name.split()), unit)

    def add(self, count: int) -> None:
        """That many more are done."""
        if self._shown is not None:
            self._shown.update(count)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._shown is not None:
            self._shown.close()


class _Lines:
    """The same as whole lines, with the two calls of a bar of tqdm."""

    def __init__(self, total: int | None, done: int, name: str, unit: str) -> None:
        self._total, self._first, self._done = total, done, done
        self._name, self._unit = name, unit
        self._began = self._said = time.monotonic()

    def update(self, count: int) -> None:
        self._done += count
        if time.monotonic() - self._said >= LINE_SECONDS:
            self._say()

    def close(self) -> None:
        if self._said != self._began:
            self._say()

    def _say(self) -> None:
        self._said = now = time.monotonic()
        seconds = now - self._began
        rate = (self._done - self._first) / seconds
        of = "" if self._total is None else f" of {self._total:,}"
        percent = f" ({self._done / self._total:.0%})" if self._total else ""
        with suppress(OSError, ValueError):  # who reads them may be gone, and the work goes on
            print(
                f"{self._name}: {self._done:,}{of} {self._unit}{percent}, {seconds:,.0f} s, {rate:,.0f} {self._unit}/s",
                file=sys.stderr,
                flush=True,
            )
