"""How uncertain each sample is: entropy, least confidence, margin, and what an ensemble's members disagree about.

Higher is more uncertain.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from fostore.errors import ArgumentError
from fostore.evaluate.rows import Piece, over_classes, per_row
from fostore.evaluate.sources import members_of, rows_of
from fostore.schema.row import Array
from fostore.schema.shown import Grid, counted

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
    entropies = per_row(entropy_of, rows)
    if unit:  # of one class alone, the entropy is 0 in any unit
        entropies /= unit
    return np.minimum(entropies, 1.0) if isinstance(base, str) else entropies


def least_confidence(store: Any) -> Array:
    """1 - max_k p_k of each row, float64 (num_samples,), 0 to 1 - 1/K.

    Cost, ensembles and errors are those of `entropy`.

    Source: Settles, "Active Learning Literature Survey" (2009), section 3.1.

    >>> least_confidence([[0.25, 0.75], [1.0, 0.0]]).tolist()
    [0.25, 0.0]
    """
    return per_row(_least_confidence_of, rows_of(store))


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
    return per_row(_margin_of, rows_of(store))


class Uncertainty(NamedTuple):
    """Three numbers a sample, in nats, float64 (num_samples,); total = aleatoric + epistemic."""

    total: Array
    aleatoric: Array
    epistemic: Array

    def grid(self) -> Grid:
        """Mean and range of each; the numbers of samples are in the arrays."""
        size = len(self.total)
        return Grid(
            f"Uncertainty of {counted(size, 'sample')}, in nats",
            [
                (name, *((float(f(x)) for f in (np.mean, np.std, np.min, np.max)) if size else ()))
                for name, x in self._asdict().items()
            ],
            ("", "mean", "std", "least", "most") if size else (),
        )

    # Written out: a named tuple has no other base.
    def __repr__(self) -> str:
        return self.grid().text()

    def _repr_html_(self) -> str:
        return self.grid().html()

    def to_csv(self) -> str:
        """Mean and range of each, as CSV."""
        return self.grid().to_csv()

    def to_latex(self) -> str:
        """Mean and range of each, as a LaTeX tabular (package booktabs)."""
        return self.grid().to_latex()


def ensemble_uncertainty(store: Any, *, check: str = "auto") -> Uncertainty:
    """The uncertainty of each sample, and what part of it the members disagree about.

    Total is the entropy of the averaged distribution, H(mean_m p_m); aleatoric the average of the
    members' entropies, mean_m H(p_m); epistemic their difference, the mutual information of
    prediction and member (also known as BALD), 0 to ln M. One pass; 24 bytes a row for the result.

    Args:
        store: distributions with a member axis, or a list of one store (path, mapping, array) a
            member, of the same samples. A single distribution is an ensemble of one.
        check: how stores are compared before; see `fostore.evaluate.same.check_same`.

    Raises:
        IdentityError, ArgumentError, RowError: as for `kl`.

    Source: Depeweg, Hernandez-Lobato, Doshi-Velez and Udluft, "Decomposition of Uncertainty in
    Bayesian Deep Learning for Efficient and Risk-sensitive Learning" (2018), section 3; Houlsby,
    Huszar, Ghahramani and Lengyel, "Bayesian Active Learning for Classification and Preference
    Learning" (2011).

    >>> agree, differ = [[0.5, 0.5], [0.5, 0.5]], [[1.0, 0.0], [0.0, 1.0]]
    >>> parts = ensemble_uncertainty(np.array([agree, differ]))
    >>> parts.total.round(3).tolist(), parts.epistemic.round(3).tolist()
    ([0.693, 0.693], [0.0, 0.693])
    """

    def both(piece: Piece) -> Array:
        return np.stack([entropy_of(piece), aleatoric_of(piece)], axis=1)

    # One pass, since reading costs more than both.
    total, aleatoric = per_row(both, members_of(store, check=check), shape=(2,)).T.copy()
    return Uncertainty(total, aleatoric, np.maximum(total - aleatoric, 0.0))


def compute_prediction_entropy(ensemble_dists: Sequence[Any]) -> dict[int, float]:
    """The entropy of the averaged prediction of each sample, by its index, in nats.

    This is the guide's function, and it gives *total* uncertainty: what the members agree to be
    uncertain about is in it as well. (The guide's comment calls it epistemic; that is
    `ensemble_uncertainty(...).epistemic`.) The guide adds 1e-10 inside the logarithm; nothing is
    added here, since 0 ln 0 is 0.

    Args:
        ensemble_dists: one dict (store, path, array) a member, of the same samples; or a store of
            ensembles.

    Raises:
        IdentityError, ArgumentError, RowError: as for `kl`.

    Source: Depeweg et al. (2018), section 3: the first term of equation 8.

    >>> entropies = compute_prediction_entropy([{0: [1.0, 0.0]}, {0: [0.0, 1.0]}])
    >>> round(entropies[0], 4)
    0.6931
    """
    rows = members_of(ensemble_dists)
    entropies = per_row(entropy_of, rows)
    return dict(zip(rows.indices.tolist(), entropies.tolist(), strict=True))


# ------------------------------------------------------------------ of a piece


def shannon(probs: Array, logs: Array) -> Array:
    """Entropy in nats along the last axis; 0 ln 0 is 0."""
    terms = np.zeros_like(probs)
    np.multiply(probs, logs, out=terms, where=probs > 0)
    return np.maximum(-over_classes(terms), 0.0)  # certain is 0, not -0 or what rounding leaves


def entropy_of(piece: Piece) -> Array:
    """See `entropy`."""
    return shannon(piece.mean, piece.mean_logs)


def _least_confidence_of(piece: Piece) -> Array:
    """See `least_confidence`."""
    least: Array = 1.0 - piece.mean.max(axis=-1)
    return least


def _margin_of(piece: Piece) -> Array:
    """See `margin`."""
    probs = piece.mean
    if probs.shape[-1] == 1:
        return np.zeros(len(probs))
    two = np.partition(probs, -2, axis=-1)[:, -2:]
    gap: Array = 1.0 - (two[:, 1] - two[:, 0])
    return gap


def aleatoric_of(piece: Piece) -> Array:
    """The mean entropy of the members."""
    members = piece.members
    mean: Array = over_classes(shannon(members.probs, members.logs)) / members.probs.shape[1]
    return mean


def epistemic_of(piece: Piece) -> Array:
    """The mutual information of prediction and member: total minus aleatoric."""
    shared: Array = np.maximum(entropy_of(piece) - aleatoric_of(piece), 0.0)
    return shared


SCORES: dict[str, Score] = {
    "entropy": entropy_of,
    "least_confidence": _least_confidence_of,
    "margin": _margin_of,
    "epistemic": epistemic_of,
    "aleatoric": aleatoric_of,
}
