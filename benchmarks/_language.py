"""Distributions of language models: of one that every machine has, trigrams of Python's library; and drawn ones.

Interpolated absolute discounting: real text has the tails that drawn logits have not. Which text it is depends on the
version of Python. Source: Ney, Essen and Kneser (1994).
"""

from __future__ import annotations

import re
import sysconfig
from collections import Counter
from functools import cache
from pathlib import Path

import numpy as np

_DISCOUNT = 0.75
_HELD_OUT = 0.1
_PIECES = re.compile(r"[A-Za-z]+|\d|[^\sA-Za-z\d]")


@cache
def _text(num_classes: int) -> np.ndarray:
    """The library as token numbers, the most frequent first; the last one stands for all that are rarer."""
    folder = Path(sysconfig.get_path("stdlib"))
    files = [f for f in sorted(folder.rglob("*.py")) if "site-packages" not in f.parts]
    words = [word for file in files for word in _PIECES.findall(file.read_text("utf-8", "ignore"))]
    common = Counter(words).most_common(num_classes - 1)
    numbers = {word: number for number, (word, _) in enumerate(common)}
    return np.array([numbers.get(word, num_classes - 1) for word in words])


def language_logits(num_rows: int, num_classes: int = 32_000, *, seed: int = 0) -> np.ndarray:
    """The log of P(next token | two tokens before) at held-out places, (num_rows, num_classes) float32."""
    tokens = _text(num_classes)
    known = tokens[: int(len(tokens) * (1 - _HELD_OUT))]
    places = np.random.default_rng(seed).integers(len(known) + 2, len(tokens), num_rows)
    counts = np.bincount(known, minlength=num_classes) + 1.0
    alone = counts / counts.sum()
    rows = np.empty((num_rows, num_classes), np.float32)
    for row, place in enumerate(places):
        before, last = tokens[place - 2], tokens[place - 1]
        after_last = np.flatnonzero(known[1:-1] == last) + 1
        after_both = after_last[known[after_last - 1] == before]
        probs = alone
        for followed in (after_last, after_both):
            if len(followed):
                seen = np.bincount(known[followed + 1], minlength=num_classes)
                left = _DISCOUNT * np.count_nonzero(seen) / len(followed)
                probs = np.maximum(seen - _DISCOUNT, 0) / len(followed) + left * probs
        rows[row] = np.log(probs)
    return rows


def zipf_logits(num_rows: int, num_classes: int, seed: int = 1) -> np.ndarray:
    """Logits with a power-law tail of a random exponent and a few strong heads, (num_rows, num_classes) float32."""
    rng = np.random.default_rng(seed)
    rank, rows = np.log(np.arange(1, num_classes + 1)), []
    for _ in range(num_rows):
        row = rng.normal(0, 0.6, num_classes) - rng.uniform(1.05, 2.2) * rank
        row[: rng.integers(1, 4)] += rng.gamma(1.2, 1.6)
        rows.append(rng.permutation(row) + rng.uniform(5, 25))
    return np.array(rows, np.float32)
