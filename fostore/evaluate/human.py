"""How near distributions are to what people said: counts of answers, or shares of them, sample by sample."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from fostore.evaluate.divergence import kl_of, tv_of
from fostore.evaluate.figures import figures
from fostore.evaluate.rows import over_classes, pieces, refuse_empty
from fostore.evaluate.same import check_same
from fostore.evaluate.sources import rows_of
from fostore.evaluate.sums import Mean, Moments
from fostore.evaluate.uncertainty import entropy_of
from fostore.schema.row import Array
from fostore.schema.shown import Grid, Tabled, counted

_NAMED = 20
"""Samples without a majority that are named; all are counted."""


@dataclass(frozen=True, slots=True, repr=False)
class HumanMetrics(Tabled):
    """What `human_metrics` found, in nats."""

    num_samples: int
    cross_entropy: Moments
    """-sum_k h_k ln p_k: what p pays for answers drawn from people's distribution h."""
    kl: Moments
    """KL(h || p): the part of it that a better p would not pay."""
    tv: Moments
    entropy_correlation: float
    """Pearson's, of the entropies of people and model; NaN where one of them is the same for all samples."""
    accuracy: float
    """The share of samples with a majority whose most probable class it is; NaN where none has one."""
    num_ties: int
    """Samples whose most frequent answers are equally frequent: they have no majority, and do not count."""
    ties: tuple[int, ...]
    """The indices of the first 20 of them."""

    def grid(self) -> Grid:
        """A line a metric."""
        rows: list[tuple[str, Any]] = [
            ("cross-entropy, nats", self.cross_entropy.mean),
            ("KL(people || model), nats", self.kl.mean),
            ("TV", self.tv.mean),
            ("entropy correlation", self.entropy_correlation),
            ("accuracy against the majority", self.accuracy),
            ("samples without a majority", self.num_ties),
        ]
        return Grid(
            f"{counted(self.num_samples, 'sample')} against people", rows, ("metric", "value")
        )

    def to_json(self) -> dict[str, Any]:
        """The metrics as JSON; what is infinite or NaN is null."""
        return {field.name: figures(getattr(self, field.name)) for field in fields(self)}


def human_metrics(store: Any, people: Any, *, check: str = "auto") -> HumanMetrics:
    """How near distributions are to those of people's answers; one pass over both.

    Args:
        store: distributions; members are averaged.
        people: what people said of the same samples: a store of counts or of shares, a file such as
            CIFAR-10H's, or (num_samples, num_classes) counts or shares. Each row is divided by its sum.
        check: how the two are compared before; see `fostore.evaluate.same.check_same`.

    Raises:
        IdentityError: other samples or classes; says what differs.
        ArgumentError, RowError: no samples, not as many, a sample that nobody judged, or no distributions.

    Source: Peterson, Battleday, Griffiths and Russakovsky, "Human Uncertainty Makes Classification More
    Robust" (2019), cross-entropy and accuracy; Baan, Aziz, Plank and Fernandez, "Stop Measuring
    Calibration When Humans Disagree" (2022), TV and entropies, and why labels with ties are none.

    >>> found = human_metrics([[0.5, 0.5], [0.2, 0.8], [0.9, 0.1]], [[5, 5], [2, 8], [4, 6]])
    >>> found.accuracy, found.ties, round(found.kl.most, 3)
    (0.5, (0,), 0.751)
    """
    model, human = rows_of(store), rows_of(_shares(people), "people")
    check_same(model, human, check=check)
    refuse_empty(model, "metrics")
    costs, kls, tvs, right = Mean(), Mean(), Mean(), Mean()
    # Covariance is what the variance of a sum has beyond those of its terms: exact sums, in any cut.
    entropies = {"model": Mean(), "people": Mean(), "sum": Mean(), "difference": Mean()}
    num_ties, ties = 0, list[int]()
    indices = model.indices
    for p, h in pieces(model, human):
        answers, logs = h.mean, p.mean_logs
        terms = np.zeros_like(answers)
        np.multiply(
            answers, -logs, out=terms, where=answers > 0
        )  # of an answer that nobody gave, none
        costs.update(np.maximum(over_classes(terms), 0.0))
        kls.update(kl_of(h, p))
        tvs.update(tv_of(h, p))
        a, b = entropy_of(p), entropy_of(h)
        for mean, values in zip(entropies.values(), (a, b, a + b, a - b), strict=True):
            mean.update(values)
        tied = _is_tied(answers)
        right.update(np.asarray((p.mean.argmax(-1) == answers.argmax(-1))[~tied], np.float64))
        num_ties += int(tied.sum())
        ties += indices[p.start + np.flatnonzero(tied)[: _NAMED - len(ties)]].tolist()
    return HumanMetrics(
        num_samples=model.count,
        cross_entropy=costs.result(),
        kl=kls.result(),
        tv=tvs.result(),
        entropy_correlation=_correlation(*(mean.result().std for mean in entropies.values())),
        accuracy=right.result().mean,
        num_ties=num_ties,
        ties=tuple(ties),
    )


def _shares(people: Any) -> Any:
    """Plain counts as shares; whatever is no array of counts says itself what it is."""
    array = np.asarray(people) if isinstance(people, (list, tuple)) else people
    if not (isinstance(array, np.ndarray) and array.ndim == 2 and array.dtype.kind in "iu"):
        return people
    # A row of zeros stays one, and is refused as no distribution; so is one of negative numbers.
    return array / np.maximum(array.sum(axis=1, keepdims=True), 1)


def _is_tied(shares: Array) -> Array:
    """Where the two largest shares are equal but for the rounding of their division, bool (n,)."""
    if shares.shape[1] == 1:
        return np.zeros(len(shares), bool)
    two = np.partition(shares, -2, axis=-1)[:, -2:]
    tied: Array = two[:, 1] - two[:, 0] <= 1e-6 * two[:, 1]
    return tied


def _correlation(model: float, people: float, both: float, between: float) -> float:
    """Pearson's, of the standard deviations of two numbers, of their sum and of their difference."""
    scale = 4 * model * people
    # What rounding leaves of a spread is none.
    if min(model, people) <= 1e-12 * max(model, people, 1e-300):
        return float("nan")
    return float(np.clip((both**2 - between**2) / scale, -1.0, 1.0))
