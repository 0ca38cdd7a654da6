"""Radii that cover with a promised probability: split conformal prediction, and the split itself."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from fostore.errors import ArgumentError
from fostore.evaluate.covered import check_level
from fostore.evaluate.divergence import tv
from fostore.loading.order import Order
from fostore.reading.selection import Stored
from fostore.reading.store import open as open_store
from fostore.schema.row import Array


def conformal_radius(
    center: Any,
    target: Any,
    *,
    confidence_level: float = 0.9,
    score: Callable[[Any, Any], Any] = tv,
) -> float:
    """The radius around `center` that covers a new sample's target with `confidence_level`.

    The k-th smallest of the n calibration scores, k = ceil((n + 1) confidence_level): with this
    correction the promise holds for any finite n, on average over calibration sets, as long as
    calibration and new samples are exchangeable. Never calibrate on what you evaluate: see `split`.

    Args:
        center: what a model predicts for the calibration samples.
        target: their true distributions.
        confidence_level: between 0 and 1.
        score: (center, target) to one number a sample, 0 and more: `tv`, `kl`, `js` or yours.
            `tv_ball_covered` takes the radius of `tv`.

    Returns:
        The radius; inf, which covers everything, where k is above n: there are too few samples.

    Warns:
        UserWarning: too few samples; says how many it takes.

    Raises:
        ArgumentError: no confidence level, or a score that is NaN or not one number a sample.
        IdentityError, RowError: as for `kl`.

    Source: Vovk, Gammerman and Shafer, "Algorithmic Learning in a Random World" (2005); Angelopoulos
    and Bates, "A Gentle Introduction to Conformal Prediction" (2021), section 1; for credal sets,
    Javanmardi, Stutz and Hullermeier, "Conformalized Credal Set Predictors" (2024).

    >>> center = np.full((9, 2), 0.5)
    >>> target = np.stack([0.5 + np.arange(9) / 20, 0.5 - np.arange(9) / 20], axis=1)
    >>> round(conformal_radius(center, target, confidence_level=0.8), 3)
    0.35
    """
    scores = np.asarray(score(center, target), np.float64)
    if scores.ndim != 1 or np.isnan(scores).any():
        raise ArgumentError(
            f"score gave {'NaN' if scores.ndim == 1 else f'the shape {scores.shape}'}, expected one "
            "number a sample"
        )
    num_samples, rank = len(scores), rank_of(confidence_level, len(scores))
    if rank > num_samples:
        needed = math.ceil(confidence_level / (1 - confidence_level) - 1e-9)
        warnings.warn(
            f"{num_samples} calibration samples are too few for a confidence level of "
            f"{confidence_level}: it takes {needed}, so the radius is inf and covers everything",
            stacklevel=2,
        )
        return math.inf
    return float(np.partition(scores, rank - 1)[rank - 1])


def rank_of(confidence_level: float, num_samples: int) -> int:
    """Which of so many calibration scores, the smallest being 1, is the radius; above their number, none is."""
    check_level(confidence_level)
    return math.ceil((num_samples + 1) * confidence_level - 1e-9)


def split(store: Any, sizes: Sequence[int | float], seed: int = 0) -> tuple[Any, ...]:
    """Parts of a store that share no sample, drawn at random: to calibrate on one, to test on another.

    Which rows come into which part depends on the number of rows, `sizes` and `seed` alone: a
    teacher's and a student's store, and an array of labels, are split alike. Rows keep their order.

    Args:
        store: a `Store`, its path or a `Selection` gives selections, nothing is read; a mapping gives
            dicts; an array or list gives its rows.
        sizes: numbers of samples, or shares of 1 (floats), together at most all of them.
        seed: 0 to 2**64 - 1.

    Raises:
        ArgumentError: sizes are negative, mixed, or more than there is.

    >>> calibrate, test = split(np.arange(10), [0.3, 0.7], seed=1)
    >>> calibrate.tolist(), test.tolist()
    ([0, 2, 7], [1, 3, 4, 5, 6, 8, 9])
    """
    if isinstance(store, (str, os.PathLike)):
        store = open_store(store)
    num_samples = len(store)
    counts = _counts(sizes, num_samples)
    order = Order(num_samples, 1, shuffle=True, seed=seed).samples(0, 0, sum(counts))
    ends = np.cumsum(counts).tolist()
    return tuple(
        _part(store, np.sort(order[end - count : end]))
        for count, end in zip(counts, ends, strict=True)
    )


def _counts(sizes: Sequence[int | float], num_samples: int) -> list[int]:
    shares = [isinstance(size, (float, np.floating)) for size in sizes]
    if not len(sizes) or any(shares) != all(shares) or any(not size >= 0 for size in sizes):
        raise ArgumentError(
            f"sizes are {list(sizes)}, expected numbers of samples, or shares such as [0.5, 0.5]"
        )
    total = sum(sizes)
    if total > (1 + 1e-9 if shares[0] else num_samples):
        raise ArgumentError(
            f"sizes {list(sizes)} sum to {total}, and there are {num_samples} samples"
        )
    if not shares[0]:
        return [int(size) for size in sizes]
    # Ends are rounded, and not sizes, so that shares which sum to 1 use every sample.
    ends = [round(num_samples * min(float(end), 1.0)) for end in np.cumsum(sizes)]
    return [end - start for start, end in zip([0, *ends], ends, strict=False)]


def _part(store: Any, rows: Array) -> Any:
    if isinstance(store, Stored):
        return store.select(rows)
    if isinstance(store, Mapping):
        keys = sorted(store)
        return {keys[row]: store[keys[row]] for row in rows.tolist()}
    if isinstance(store, (list, tuple)):
        return [store[row] for row in rows.tolist()]
    return store[rows]
