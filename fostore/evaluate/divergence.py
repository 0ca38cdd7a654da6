"""How far two distributions of each sample are apart: Kullback-Leibler, total variation, Jensen-Shannon."""

from __future__ import annotations

from typing import Any

import numpy as np

from fostore.encodings.rows import log
from fostore.evaluate.rows import Piece, over_classes, per_row
from fostore.evaluate.same import check_same
from fostore.evaluate.sources import rows_of
from fostore.evaluate.uncertainty import shannon
from fostore.schema.row import Array

_NEAR = 1e-4
"""Below it a divergence is worked out term by term: what rounding leaves of the plain sum is 1e-15."""

_CLOSE = 2.0**-6
_SERIES = [(-1.0) ** k / k for k in range(2, 11)]
"""Of (t - ln(1 + t)) / t^2; what is left out is below 2^-56 of it where |t| < 2^-6."""


def kl(p: Any, q: Any, *, check: str = "auto") -> Array:
    """KL(p || q) of each row, float64 (num_samples,): sum_k p_k ln(p_k / q_k), in nats, 0 and more.

    Infinite where q is 0 and p is not. Stored logits and log-probabilities are used as they are, so
    that a tiny probability is no 0. One pass; ensembles are averaged over members first.

    Args:
        p, q: distributions of the same samples; two stores are compared first.
        check: see `fostore.evaluate.same.check_same`; "length" compares no identities.

    Raises:
        IdentityError: other samples or classes; says which.
        ArgumentError, RowError: no distributions, or not as many.

    Source: Kullback and Leibler, "On Information and Sufficiency" (1951).

    >>> kl([[0.5, 0.5], [0.5, 0.5]], [[0.25, 0.75], [1.0, 0.0]]).round(4).tolist()
    [0.1438, inf]
    """
    return _of_two(kl_of, p, q, check)


def tv(p: Any, q: Any, *, check: str = "auto") -> Array:
    """The total variation distance of each row, float64 (num_samples,): sum_k |p_k - q_k| / 2, 0 to 1.

    The largest difference of the probabilities that p and q give to any set of classes. Parameters,
    cost and errors are those of `kl`.

    Source: Levin and Peres, "Markov Chains and Mixing Times" (2017), section 4.1.

    >>> tv([[0.5, 0.5]], [[0.25, 0.75]]).tolist()
    [0.25]
    """
    return _of_two(tv_of, p, q, check)


def js(p: Any, q: Any, *, check: str = "auto") -> Array:
    """The Jensen-Shannon divergence of each row, float64 (num_samples,), in nats, 0 to ln 2.

    H((p + q) / 2) - (H(p) + H(q)) / 2; always finite. SciPy's `jensenshannon` is its square root.
    Parameters, cost and errors are those of `kl`.

    Source: Lin, "Divergence Measures Based on the Shannon Entropy" (1991).

    >>> js([[1.0, 0.0]], [[0.0, 1.0]]).round(4).tolist()
    [0.6931]
    """
    return _of_two(js_of, p, q, check)


def _of_two(function: Any, p: Any, q: Any, check: str) -> Array:
    first, other = rows_of(p, "p"), rows_of(q, "q")
    check_same(first, other, check=check)
    return per_row(function, first, other)


# ------------------------------------------------------------------ of two pieces


def kl_of(p: Piece, q: Piece) -> Array:
    """See `kl`."""
    probs = p.mean
    ratio = np.zeros_like(probs)  # where p is 0 its term is 0, and the logarithms are infinite
    np.subtract(p.mean_logs, q.mean_logs, out=ratio, where=probs > 0)
    divergence = over_classes(probs * ratio)
    near = divergence < _NEAR
    if near.any():
        difference = probs[near] - q.mean[near]
        divergence[near] = _of_near(probs[near], ratio[near], difference)
    return divergence


def tv_of(p: Piece, q: Piece) -> Array:
    """See `tv`."""
    return np.minimum(over_classes(np.abs(p.mean - q.mean)) / 2, 1.0)  # rounding goes beyond


def js_of(p: Piece, q: Piece) -> Array:
    """See `js`."""
    middle = (p.mean + q.mean) / 2
    logs = log(middle)
    entropies = shannon(p.mean, p.mean_logs) + shannon(q.mean, q.mean_logs)
    divergence: Array = np.minimum(shannon(middle, logs) - entropies / 2, np.log(2.0))
    near = divergence < _NEAR
    if near.any():  # the mean of KL(p || m) and KL(q || m)
        half = (p.mean[near] - q.mean[near]) / 2
        divergence[near] = 0.0
        for one, difference in ((p, half), (q, -half)):
            probs, ratio = one.mean[near], np.zeros_like(half)
            np.subtract(one.mean_logs[near], logs[near], out=ratio, where=probs > 0)
            divergence[near] += _of_near(probs, ratio, difference) / 2
    return divergence


def _of_near(p: Array, ratio: Array, difference: Array) -> Array:
    """sum_k p ln(p / q) - (p - q): the last part sums to 0, and with it no term is below 0.

    So terms do not take each other away, as they do where p and q hardly differ. Nor do the parts of
    one: with t = (q - p) / p it is p (t - ln(1 + t)), whose series is summed where t is small.
    """
    terms = p * ratio - difference
    close = np.abs(difference) < _CLOSE * p
    t = -difference[close] / p[close]
    terms[close] = p[close] * t * t * np.polynomial.polynomial.polyval(t, _SERIES)
    return np.maximum(over_classes(terms), 0.0)
