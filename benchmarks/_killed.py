"""A store of token rows that is written, a commit every few rows, by a process that kills itself at one of them."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
from _language import zipf_logits

import fostore

K = 64
TOPK: dict[str, Any] = {"kind": "logits", "dtype": "float16", "encoding": "topk", "k": K}
COMMITS = 10
_ROWS, _SEQUENCES = 4, 5
"""Rows of a commit; sequences of the store."""


def write_tokens(path: Path, die_at: int) -> None:
    """Write the store, or go on with it; this process dies before the commit `die_at` of its own."""
    count = COMMITS * _ROWS
    logits = zipf_logits(count, 300)
    sequences = np.arange(count) * _SEQUENCES // count
    options = {"rows": "tokens", "num_sequences": _SEQUENCES, "num_samples": count, **TOPK}
    options |= {"commit_seconds": 0, "exists": "resume", "temperatures": (2.0,)}
    with fostore.create(path, num_classes=300, **options) as writer:
        for commit, start in enumerate(range(len(writer), count, _ROWS)):
            if commit == die_at:
                os.kill(os.getpid(), signal.SIGKILL)
            at = slice(start, start + _ROWS)
            writer.append(logits[at], sequences=sequences[at], tokens=np.arange(count)[at])


if __name__ == "__main__":
    write_tokens(Path(sys.argv[1]), int(sys.argv[2]))
