"""What a model's numbers are: decided once, on evidence, and checked for every row after that.

Pure functions on NumPy arrays; the caller brings the numbers from the device.
"""

from __future__ import annotations

import numpy as np

from fostore.errors import ArgumentError, RowError
from fostore.generate.source import Indices, name_samples
from fostore.schema import FLOATS, Array, sum_tolerance
from fostore.simplex import check_log_probs, check_logits, check_probs

MODES = ("auto", "logits", "probs")
KINDS = ("probs", "log_probs", "logits")


def check_modes(output_mode: str, store_as: str = "probs", temperature: float = 1.0) -> None:
    """Raise ArgumentError for values that are unknown or contradict each other."""
    if output_mode not in MODES:
        raise ArgumentError(f"output_mode is {output_mode!r}, expected one of {list(MODES)}")
    if store_as not in KINDS:
        raise ArgumentError(f"store_as is {store_as!r}, expected one of {list(KINDS)}")
    if not 0 < temperature < np.inf:
        raise ArgumentError(f"temperature is {temperature!r}, expected a positive number")
    if output_mode == "probs":
        check_resolved("probs", store_as, temperature)


def check_resolved(mode: str, store_as: str, temperature: float) -> None:
    """Raise ArgumentError for what cannot be made of probabilities."""
    if mode == "probs" and store_as == "logits":
        raise ArgumentError(
            "store_as='logits' needs a model that gives logits, and this one gives probabilities; "
            "use store_as='log_probs', which loses nothing"
        )
    if mode == "probs" and temperature != 1.0:
        raise ArgumentError(
            f"temperature={temperature} divides logits, and this model gives probabilities; "
            "apply it in output_transform, or return logits"
        )


def tolerance(dtype: str, num_classes: int, tol: float | None = None) -> float:
    """How far the sum of a row may be from 1 for numbers of `dtype`."""
    if tol is not None:
        return tol
    return sum_tolerance(dtype if dtype in FLOATS else "bfloat16", num_classes)


def are_distributions(rows: Array, tol: float) -> Array:
    """For each row (n, ..., K): whether every number is in [0, 1] and the sum is 1 within `tol`.

    >>> are_distributions(np.float32([[1, 0, 0], [2, 0, 0]]), 1e-3)
    array([ True, False])
    """
    with np.errstate(invalid="ignore", over="ignore"):
        wide = rows.astype(np.float64)
        good: Array = (wide >= 0).all(-1) & (np.abs(wide.sum(-1) - 1) <= tol)
    whole: Array = np.all(good.reshape(len(rows), -1), axis=-1)
    return whole


def may_be_distribution(row: Array, tol: float) -> bool:
    """Whether a row (1, ..., K) is a distribution; cheap for logits, of which one is mostly negative."""
    return bool(np.minimum.reduce(row, axis=None) >= 0) and bool(are_distributions(row, tol)[0])


def decide(rows: Array, indices: Indices, tol: float) -> str:
    """The mode that "auto" stands for, from the outputs (n, ..., K) of the first batch.

    Every row a distribution: "probs". None: "logits". Meaning is never guessed row by row.

    Raises:
        RowError: some rows are distributions and some are not, or numbers are not finite.
    """
    if np.isnan(rows).any() or (rows == np.inf).any():
        bad = np.isnan(rows) | (rows == np.inf)
        at = int(np.flatnonzero(bad.reshape(len(rows), -1).any(-1))[0])
        raise RowError(
            f"the model's output for {name_samples(_at(indices, at))} is not finite; "
            "look at this sample"
        )
    good = are_distributions(rows, tol)
    if good.all():
        return "probs"
    if not good.any():
        return "logits"
    like, unlike = int(np.flatnonzero(good)[0]), int(np.flatnonzero(~good)[0])
    raise RowError(
        f"output_mode='auto' cannot tell what the model gives: the output for "
        f"{name_samples(_at(indices, like))} is a distribution, that for "
        f"{name_samples(_at(indices, unlike))} is not ({int(good.sum())} of {len(rows)} rows are); "
        "say output_mode='logits' or output_mode='probs'"
    )


def check_still_logits(rows: Array, indices: Indices, tol: float) -> None:
    """Raise where "auto" took the first batch for logits and all of these outputs are distributions.

    Raises:
        RowError: names the samples, and says what to say instead of "auto".
    """
    if are_distributions(rows, tol).all():
        raise RowError(
            f"output_mode='auto' took the first batch for logits, but every output for "
            f"{name_samples(indices)} is a distribution; say output_mode='logits' if they are "
            "logits all the same, or output_mode='probs' if the model gives probabilities"
        )


def check_kept(rows: Array, indices: Indices, kind: str, tol: float) -> None:
    """Raise unless rows of `kind` are what they should be; the message names the dataset index.

    Raises:
        RowError: not finite, negative, or a sum off by more than `tol`.
    """
    try:
        _check(rows, kind, tol, int(indices[0]) if len(indices) else 0)
    except RowError:
        if isinstance(indices, np.ndarray):  # count rows by their samples, not by their places
            for i in range(len(rows)):
                _check(rows[i : i + 1], kind, tol, int(indices[i]))
        raise


def _check(rows: Array, kind: str, tol: float, start: int) -> None:
    if kind == "probs":
        check_probs(rows, tol, start)
    elif kind == "log_probs":
        check_log_probs(rows, tol, start)
    else:
        check_logits(rows, start)


def advice(was_auto: bool) -> str:
    """What to do about outputs that were taken for distributions and are none."""
    if was_auto:
        return (
            "output_mode='auto' took the first batch for probabilities; say output_mode='logits' if "
            "the model gives logits, or output_mode='probs' and a larger tol if it does not"
        )
    return "output_mode='probs' uses outputs as they are; say output_mode='logits' for a softmax"


def _at(indices: Indices, position: int) -> Indices:
    return indices[position : position + 1]
