"""The samples to label next: the most uncertain ones, found in one pass."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Any

import numpy as np

from fostore.errors import ArgumentError
from fostore.evaluate.rows import Piece, pieces
from fostore.evaluate.sources import members_of
from fostore.evaluate.uncertainty import SCORES, Score
from fostore.schema.integers import integer
from fostore.schema.row import Array


class Top:
    """Accumulates the indices of the `n` highest scores; of equal scores the lower index comes first.

    Keeps n numbers. Ranks `merge` theirs, if their indices are those of the whole.

    >>> top = Top(2)
    >>> top.update([0, 1, 2], np.array([0.3, 0.9, 0.3]))
    >>> top.result()
    [(1, 0.9), (0, 0.3)]
    """

    def __init__(self, n: Any) -> None:
        self.n = integer(n, "n", 0)
        self._heap: list[tuple[float, int]] = []  # (score, -index): the first is the worst kept

    def update(self, indices: Any, scores: Array) -> None:
        """Add the scores (n,) of some samples; none may be NaN."""
        if np.isnan(scores).any():
            index = np.asarray(indices)[np.isnan(scores)][0]
            raise ArgumentError(f"the score of sample {index} is NaN")
        if len(self._heap) >= self.n > 0:
            # Most rows end here, without Python; an equal score may have the lower index.
            good = scores >= self._heap[0][0]
            indices, scores = np.asarray(indices)[good], scores[good]
        for index, score in zip(np.asarray(indices).tolist(), scores.tolist(), strict=True):
            self._add((score, -index))

    def merge(self, other: Top) -> None:
        """Add what another rank has found."""
        for entry in other._heap:
            self._add(entry)

    def result(self) -> list[tuple[int, float]]:
        """(index, score), the highest score first."""
        return [(-index, score) for score, index in sorted(self._heap, reverse=True)]

    def _add(self, entry: tuple[float, int]) -> None:
        if len(self._heap) < self.n:
            heapq.heappush(self._heap, entry)
        elif self.n:
            heapq.heappushpop(self._heap, entry)


def select_uncertain_samples(
    store: Any, n: int = 100, score: str | Callable[[Array], Array] = "entropy"
) -> list[int]:
    """The indices of the `n` most uncertain samples, the most uncertain first; all if there are fewer.

    One pass; a heap of n numbers. Of equally uncertain samples the lower index comes first, so that
    the choice is the same on every machine and for any number of ranks.

    Args:
        store: distributions, or a list of one store a member.
        n: how many.
        score: "entropy", "least_confidence", "margin"; of an ensemble also "epistemic" (where members
            disagree) and "aleatoric"; or a function of (n, K) float64 probabilities that gives n
            numbers, higher for more uncertain.

    Raises:
        ArgumentError: another score, or n below 0.
        RowError: a row is no distribution.

    Source: Lewis and Gale, "A Sequential Algorithm for Training Text Classifiers" (1994); Settles,
    "Active Learning Literature Survey" (2009), section 3.1.

    >>> select_uncertain_samples({0: [1.0, 0.0], 1: [0.5, 0.5], 2: [0.5, 0.5]}, n=2)
    [1, 2]
    """
    rows = members_of(store)
    function = _score_of(score)
    top = Top(n)
    indices = rows.indices
    for (piece,) in pieces(rows):
        top.update(indices[piece.start : piece.stop], function(piece))
    return [index for index, _ in top.result()]


def _score_of(score: str | Callable[[Array], Array]) -> Score:
    if isinstance(score, str):
        if score not in SCORES:
            raise ArgumentError(f"score is {score!r}, expected one of {list(SCORES)} or a function")
        return SCORES[score]

    def own(piece: Piece) -> Array:
        scores = np.asarray(score(piece.mean), np.float64)
        if scores.shape != (len(piece),):
            raise ArgumentError(
                f"score gave the shape {scores.shape} for {len(piece)} rows, expected one number a row"
            )
        return scores

    return own
