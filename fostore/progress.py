"""A progress bar on stderr, where one is wanted."""

from __future__ import annotations

import sys
from typing import Any


class Progress:
    """Counts samples or rows; shows a bar (tqdm, loaded only then) unless `shown` is false."""

    def __init__(
        self,
        shown: bool,
        total: int | None,
        done: int = 0,
        name: str | None = None,
        unit: str = "samples",
    ) -> None:
        self._bar: Any = None
        if shown:
            from tqdm import tqdm

            self._bar = tqdm(
                total=total,
                initial=done,
                unit=f" {unit}",
                desc=name or "generating",
                file=sys.stderr,
                dynamic_ncols=True,
            )

    def add(self, count: int) -> None:
        """That many more are done."""
        if self._bar is not None:
            self._bar.update(count)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()
