"""Converts as it is told, slowly enough to be killed; test_conversion_resume.py kills it.

Tells after each batch that was written where it stood: `START STOP` a line.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Sequence
from typing import Any

from fostore.conversion import convert
from fostore.writing import create as creation
from fostore.writing.writer import Writer


class Telling(Writer):
    """A writer that says what it wrote, and commits every batch."""

    def write_columns(self, start: int, columns: Sequence[Any], *, checked: bool = False) -> None:
        super().write_columns(start, columns, checked=checked)
        self.commit()
        os.write(1, f"{start} {start + len(columns[0])}\n".encode())
        time.sleep(float(sys.argv[4]))


if __name__ == "__main__":
    creation.Writer = Telling  # type: ignore[misc]
    options = json.loads(sys.argv[3])
    if "ids" in options:  # too many for a command line
        first, count = options["ids"]
        options["ids"] = range(first, first + count)
    receipt = convert(sys.argv[1], sys.argv[2], progress=False, **options)
    os.write(1, f"done {receipt.destination_digest}\n".encode())
