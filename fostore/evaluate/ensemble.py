"""What the members of an ensemble know and what they disagree about: total, aleatoric and epistemic uncertainty."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from fostore.errors import ArgumentError
from fostore.evaluate.rows import Rows, holds_sources, pieces, rows_of
from fostore.evaluate.same import check_same
from fostore.evaluate.scores import aleatoric_of, entropy_of
from fostore.schema.row import Array


class Uncertainty(NamedTuple):
    """Three numbers a sample, in nats, float64 (num_samples,); total = aleatoric + epistemic."""

    total: Array
    aleatoric: Array
    epistemic: Array


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
    >>> found = ensemble_uncertainty(np.array([agree, differ]))
    >>> found.total.round(3).tolist(), found.epistemic.round(3).tolist()
    ([0.693, 0.693], [0.0, 0.693])
    """
    rows = members_of(store, check=check)
    total, aleatoric = np.empty(rows.count), np.empty(rows.count)
    for (piece,) in pieces(rows):
        total[piece.start : piece.stop] = entropy_of(piece)
        aleatoric[piece.start : piece.stop] = aleatoric_of(piece)
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

    >>> found = compute_prediction_entropy([{0: [1.0, 0.0]}, {0: [0.0, 1.0]}])
    >>> round(found[0], 4)
    0.6931
    """
    rows = members_of(ensemble_dists)
    found: dict[int, float] = {}
    indices = rows.indices
    for (piece,) in pieces(rows):
        keys = indices[piece.start : piece.stop].tolist()
        found.update(zip(keys, entropy_of(piece).tolist(), strict=True))
    return found


def members_of(sources: Any, *, check: str = "auto") -> Rows:
    """One source with a member axis; of a list of sources, member i is the i-th.

    Raises:
        ArgumentError: the list is empty, or one of several has members already.
        IdentityError: they are of other samples.
    """
    if isinstance(sources, (list, tuple)) and not sources:
        raise ArgumentError("no member was given, expected a list of at least one store")
    if not holds_sources(sources):
        return rows_of(sources)
    members = [rows_of(source, f"member {i}") for i, source in enumerate(sources)]
    for one in members:
        if len(one.row_shape) != 1:
            raise ArgumentError(
                f"{one.where} has members of its own, expected one distribution a sample; pass "
                "a store of ensembles by itself, not in a list"
            )
    first = members[0]
    check_same(first, *members[1:], check=check)
    in_logs = all(one.in_logs for one in members)

    def read(start: int, stop: int) -> Array:
        parts = [one.piece(start, stop) for one in members]
        return np.stack([part.logs if in_logs else part.probs for part in parts], axis=1)

    return replace(
        first,
        where=" + ".join(one.where for one in members),
        row_shape=(len(members), *first.row_shape),
        read=read,
        in_logs=in_logs,
        tol=1e-6,  # each was checked and renormalised as it was read
        roundoff=max(one.roundoff for one in members),
    )
