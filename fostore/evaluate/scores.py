"""How uncertain each distribution is: entropy, least confidence, margin. Higher is more uncertain."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from fostore.errors import ArgumentError
from fostore.evaluate.rows import Piece, per_row, rows_of
from fostore.schema.row import Array

Score = Callable[[Piece], Array]


def entropy(store: Any, base: float | str | None = None) -> Array:
    """The Shannon entropy of each row, float64 (num_samples,): - sum_k p_k ln p_k, in nats.

    One pass; memory for a piece, and 8 bytes a row for the result. Rows of an ensemble are averaged
    over members first, so that this is their total uncertainty (`ensemble_uncertainty` parts it).
    A class of probability 0 adds nothing.

    Args:
        store: what `fostore.evaluate` takes for distributions; see there.
        base: None for nats, 0 to ln K; a number above 1 for that base (2 gives bits); "normalize"
            divides by ln K, so that 0 is certain and 1 uniform, whatever the number of classes.

    Raises:
        RowError: a row is no distribution; names it.
        ArgumentError: another base, or no distributions at all.

    Source: Shannon, "A Mathematical Theory of Communication" (1948), section 6.

    >>> entropy(np.array([[0.5, 0.5], [1.0, 0.0]])).round(4).tolist()
    [0.6931, 0.0]
    >>> entropy(np.array([[0.5, 0.5], [1.0, 0.0]]), base="normalize").tolist()
    [1.0, 0.0]
    """
    rows = rows_of(store)
    if isinstance(base, str):
        if base != "normalize":
            raise ArgumentError(f"base is {base!r}, expected None, 'normalize' or a number above 1")
        unit = math.log(max(rows.num_classes, 1))
    elif base is None:
        unit = 1.0
    elif base > 1:
        unit = math.log(base)
    else:
        raise ArgumentError(f"base is {base!r}, expected None, 'normalize' or a number above 1")
    found = per_row(entropy_of, rows)
    if unit:  # of one class alone, the entropy is 0 in any unit
        found /= unit
    return np.minimum(found, 1.0) if isinstance(base, str) else found


def least_confidence(store: Any) -> Array:
    """1 - max_k p_k of each row, float64 (num_samples,), 0 to 1 - 1/K.

    Cost, ensembles and errors are those of `entropy`.

    Source: Settles, "Active Learning Literature Survey" (2009), section 3.1.

    >>> least_confidence([[0.25, 0.75], [1.0, 0.0]]).tolist()
    [0.25, 0.0]
    """
    return per_row(least_confidence_of, rows_of(store))


def margin(store: Any) -> Array:
    """1 - (p_(1) - p_(2)) of each row's two largest probabilities, float64 (num_samples,), 0 to 1.

    The literature's margin is p_(1) - p_(2), small where a model wavers; it is turned round here, so
    that higher is more uncertain as everywhere else. One class alone has the margin 0.

    Cost, ensembles and errors are those of `entropy`.

    Source: Scheffer, Decomain and Wrobel, "Active Hidden Markov Models for Information Extraction"
    (2001); Settles (2009), section 3.1.

    >>> margin([[0.25, 0.75], [0.5, 0.5]]).tolist()
    [0.5, 1.0]
    """
    return per_row(margin_of, rows_of(store))


# ------------------------------------------------------------------ of a piece


def shannon(probs: Array, logs: Array) -> Array:
    """Entropy in nats along the last axis; 0 ln 0 is 0."""
    terms = np.zeros_like(probs)
    np.multiply(probs, logs, out=terms, where=probs > 0)
    found: Array = np.maximum(-np.add.reduce(terms, axis=-1), 0.0)
    return found


def entropy_of(piece: Piece) -> Array:
    """See `entropy`."""
    return shannon(piece.mean, piece.mean_logs)


def least_confidence_of(piece: Piece) -> Array:
    """See `least_confidence`."""
    found: Array = 1.0 - piece.mean.max(axis=-1)
    return found


def margin_of(piece: Piece) -> Array:
    """See `margin`."""
    probs = piece.mean
    if probs.shape[-1] == 1:
        return np.zeros(len(probs))
    two = np.partition(probs, -2, axis=-1)[:, -2:]
    found: Array = 1.0 - (two[:, 1] - two[:, 0])
    return found


def aleatoric_of(piece: Piece) -> Array:
    """The mean entropy of the members."""
    members = piece.members
    total = np.add.reduce(shannon(members.probs, members.logs), axis=1)
    found: Array = total / members.probs.shape[1]
    return found


def epistemic_of(piece: Piece) -> Array:
    """The mutual information of prediction and member: total minus aleatoric."""
    found: Array = np.maximum(entropy_of(piece) - aleatoric_of(piece), 0.0)
    return found


SCORES: dict[str, Score] = {
    "entropy": entropy_of,
    "least_confidence": least_confidence_of,
    "margin": margin_of,
    "epistemic": epistemic_of,
    "aleatoric": aleatoric_of,
}
