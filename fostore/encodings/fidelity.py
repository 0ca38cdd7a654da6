"""How far stored rows are from the distributions that they were made from: a row at a time, and over many.

KL is KL(given || stored) in nats, infinite where a class lost all its probability; TV half the sum of absolute
differences; the missing mass what the classes weigh that were not kept. Under the rule `coarse` those count as one
outcome. Source: Cover and Thomas, Elements of Information Theory, chapter 2.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from fostore.encodings import encoding_of
from fostore.encodings.rows import log
from fostore.encodings.topk_rows import Selected, TopK
from fostore.errors import FormatError
from fostore.schema.row import Array, Schema

COMPARED, COLUMNS = "compared", "columns"
"""The keys of a header's `fidelity`: against the rows that came, of some of them; from the columns, of all rows."""
_FOUND = {COMPARED: "compared with what came", COLUMNS: "read from the columns"}
_PIECE_VALUES = 1 << 17
"""Numbers that are measured at once: a handful of copies in float64 are made of them."""


@dataclass(frozen=True, slots=True)
class Errors:
    """Of each distribution, float64 (n,) or (n, num_members); None where it is not known."""

    kl: Array | None = None
    tv: Array | None = None
    missing_mass: Array | None = None
    flips: Array | None = None
    """Whether the most probable class is another one."""


@dataclass(frozen=True, slots=True)
class Figures:
    """Errors of many rows, added up; what is not known of them is None."""

    num_rows: int = 0
    weight: float = 0.0
    """What the means are weighted by: how many rows each of them stands for, where few were looked at."""
    kl_mean: float | None = None
    kl_max: float | None = None
    tv_mean: float | None = None
    tv_max: float | None = None
    missing_mass_mean: float | None = None
    missing_mass_max: float | None = None
    argmax_flips: int | None = None
    """Distributions whose most probable class is another one."""
    worst_row: int | None = None
    """The first row of `kl_max`; of `missing_mass_max` where no KL is known."""

    def add(self, rows: Array, errors: Errors, weights: Array | None = None) -> Figures:
        """These and the errors of `rows` (n,), each of which stands for as many as its weight says."""
        if not len(rows):
            return self
        weights = np.ones(len(rows)) if weights is None else weights
        before, total = self.weight, self.weight + float(weights.sum())

        def mean(old: float | None, values: Array | None) -> float | None:
            if values is None:
                return old
            per_row = values.reshape(len(rows), -1).mean(axis=-1)
            return ((old or 0.0) * before + float(per_row @ weights)) / total

        def most(old: float | None, values: Array | None) -> float | None:
            return old if values is None else max(old or 0.0, float(values.max()))

        kl_max = most(self.kl_max, errors.kl)
        missing_max = most(self.missing_mass_max, errors.missing_mass)
        ranked, known = (
            (errors.missing_mass, self.missing_mass_max)
            if kl_max is None
            else (errors.kl, self.kl_max)
        )
        worst = self.worst_row
        if ranked is not None:
            per_row = ranked.reshape(len(rows), -1).max(axis=-1)
            if known is None or per_row.max() > known:
                worst = int(rows[per_row.argmax()])
        flips = None if errors.flips is None else int(errors.flips.sum())
        return Figures(
            num_rows=self.num_rows + len(rows),
            weight=total,
            kl_mean=mean(self.kl_mean, errors.kl),
            kl_max=kl_max,
            tv_mean=mean(self.tv_mean, errors.tv),
            tv_max=most(self.tv_max, errors.tv),
            missing_mass_mean=mean(self.missing_mass_mean, errors.missing_mass),
            missing_mass_max=missing_max,
            argmax_flips=self.argmax_flips if flips is None else (self.argmax_flips or 0) + flips,
            worst_row=worst,
        )

    def joined(self, other: Figures) -> Figures:
        """These and those of other rows."""
        if not other.num_rows or not self.num_rows:
            return self if self.num_rows else other
        total = self.weight + other.weight

        def mean(one: float | None, two: float | None) -> float | None:
            if one is None or two is None:
                return one if two is None else two
            return (one * self.weight + two * other.weight) / total

        def most(one: Any, two: Any) -> Any:
            return max((x for x in (one, two) if x is not None), default=None)

        by = "kl_max" if self.kl_max is not None else "missing_mass_max"
        ranked = [x for x in (self, other) if getattr(x, by) is not None]
        worst = max(ranked, key=lambda x: getattr(x, by), default=self).worst_row
        flips = [x.argmax_flips for x in (self, other) if x.argmax_flips is not None]
        return Figures(
            num_rows=self.num_rows + other.num_rows,
            weight=total,
            kl_mean=mean(self.kl_mean, other.kl_mean),
            kl_max=most(self.kl_max, other.kl_max),
            tv_mean=mean(self.tv_mean, other.tv_mean),
            tv_max=most(self.tv_max, other.tv_max),
            missing_mass_mean=mean(self.missing_mass_mean, other.missing_mass_mean),
            missing_mass_max=most(self.missing_mass_max, other.missing_mass_max),
            argmax_flips=sum(flips) if flips else None,
            worst_row=worst,
        )

    def to_json(self) -> dict[str, Any]:
        """What is known, as the attributes hold it: "inf" where a number is infinite, which JSON does not have."""
        values = {name: getattr(self, name) for name in self.__slots__}
        return {
            name: "inf" if value == math.inf else value
            for name, value in values.items()
            if value is not None
        }

    @classmethod
    def from_json(cls, value: Any, where: str) -> Figures:
        """Parse and check what a stranger wrote; keys of a newer version are left out."""
        if not isinstance(value, Mapping):
            raise FormatError(f"{where} is {type(value).__name__}, expected an object")
        known: dict[str, Any] = {}
        for name in cls.__slots__:
            if (item := value.get(name)) is None:
                continue
            is_whole = name in ("num_rows", "argmax_flips", "worst_row")
            item = math.inf if item == "inf" and not is_whole else item
            if type(item) not in ((int,) if is_whole else (int, float)) or item < 0:
                raise FormatError(
                    f"{where}: {name!r} is {item!r:.80}, expected a number of at least 0"
                )
            known[name] = item
        return cls(**known)


def figures_of(fidelity: Mapping[str, Any] | None) -> dict[str, Figures]:
    """What a header's `fidelity` holds, by how it was found, in words.

    Raises:
        FormatError: it is not what a writer puts there.
    """
    given = fidelity or {}
    return {
        what: Figures.from_json(given[source], f"fidelity {source!r}")
        for source, what in _FOUND.items()
        if given.get(source) is not None
    }


def fidelity_lines(fidelity: Mapping[str, Any] | None) -> list[str]:
    """The same for people: a line for each way; raises as `figures_of` does."""
    return [_line(figures, what) for what, figures in figures_of(fidelity).items()]


def _line(figures: Figures, what: str) -> str:
    """One source of figures: `KL 2.9e-05, at most 7.7e-05 (row 2168)`, and so on."""
    shown = []
    at = "" if figures.worst_row is None else f" (row {figures.worst_row})"
    for label, mean, most in (
        ("KL", figures.kl_mean, figures.kl_max),
        ("TV", figures.tv_mean, figures.tv_max),
        ("missing mass", figures.missing_mass_mean, figures.missing_mass_max),
    ):
        if mean is None or most is None:
            continue
        many = f"{mean:.2g}, at most {most:.2g}" if math.isfinite(most) else "infinite"
        shown.append(f"{label} {many}{at}" if most else f"no {label}")
        at = ""  # of the first one that is known
    if figures.argmax_flips is not None:
        flips = figures.argmax_flips
        shown.append(f"another argmax in {flips:,}" if flips else "no other argmax")
    return f"{figures.num_rows:,} rows {what}: {'; '.join(shown)}"


# ------------------------------------------------------------------ against the rows that came


def compare(rows: Array | Selected, columns: Sequence[Array], schema: Schema) -> Errors:
    """The errors of stored `columns`, made of `rows` (n, *schema.row_shape) of the schema's kind.

    In float64; a piece at a time, whatever the number of classes. Of rows that a device has selected from, what
    rounding has lost, and the rule as far as the entropy of the others is known.
    """
    if isinstance(rows, Selected):
        topk = encoding_of(schema).sparse(columns, schema)
        assert topk is not None, "rows are selected for encodings that keep some classes alone"
        return _selected(rows, topk, schema.kind)
    step = max(_PIECE_VALUES // math.prod(schema.row_shape), 1)
    pieces = [slice(start, start + step) for start in range(0, len(rows), step)]
    errors = [_compare(rows[p], [column[p] for column in columns], schema) for p in pieces]
    if not errors:
        return Errors()
    joined = {
        name: np.concatenate([getattr(one, name) for one in errors]) for name in Errors.__slots__
    }
    return Errors(**joined)


def _compare(rows: Array, columns: Sequence[Array], schema: Schema) -> Errors:
    logs = log_probs(rows, schema.kind)
    encoding = encoding_of(schema)
    topk = encoding.sparse(columns, schema)
    if topk is not None:
        return against(logs, topk)
    stored = log_probs(encoding.rows(columns, schema), schema.kind)
    p, q = np.exp(logs), np.exp(stored)
    return Errors(
        kl=np.maximum(_divergence(p, logs, stored), 0.0),
        tv=np.abs(p - q).sum(axis=-1) / 2,
        missing_mass=np.where(q > 0, 0.0, p).sum(axis=-1),
        flips=_flips(logs, stored.argmax(axis=-1)),
    )


def against(logs: Array, topk: TopK) -> Errors:
    """The errors of top-k rows by their rule, against log-probabilities (..., K) float64 that sum to 1."""
    ids = topk.ids.astype(np.int64)
    is_kept = np.isfinite(topk.values)  # a class without weight fills a row up
    at = np.where(is_kept, ids, ids[..., :1])
    logs_kept = np.where(is_kept, np.take_along_axis(logs, ids, axis=-1), -np.inf)
    rest = np.exp(logs)
    # Masked, not subtracted from 1, which would lose it to rounding.
    np.put_along_axis(rest, at, 0.0, axis=-1)
    errors = _by_rule(logs_kept, rest.sum(axis=-1), _divergence(rest, log(rest), 0.0), topk)
    flips = _flips(logs, ids[..., 0])
    if topk.rule != "uniform":
        return replace(errors, flips=flips)
    each = _others(topk)[1]
    is_other = np.ones(logs.shape, bool)
    np.put_along_axis(is_other, at, False, axis=-1)
    tv = errors.tv + (np.abs(rest - np.exp(each)[..., None]) * is_other).sum(axis=-1) / 2
    return replace(errors, flips=flips, tv=tv)


def _selected(given: Selected, topk: TopK, kind: str) -> Errors:
    """The errors of top-k rows against what was selected, before it was rounded and put into its final order."""
    values = np.asarray(given.values, np.float64)
    logs = log(values) if kind == "probs" else values
    order, stored = (
        np.argsort(np.asarray(x).astype(np.int64), axis=-1) for x in (given.ids, topk.ids)
    )
    back = np.argsort(stored, axis=-1)
    logs = np.take_along_axis(np.take_along_axis(logs, order, axis=-1), back, axis=-1)
    beside = np.asarray(given.residual, np.float64)
    total = np.logaddexp(_log_sum(logs), beside)
    logs, beside = logs - total[..., None], beside - total
    missing = np.exp(beside)
    entropy = None
    if given.tail_entropy is not None:
        entropy = np.where(missing > 0, missing * (beside - np.asarray(given.tail_entropy)), 0.0)
    errors = _by_rule(logs, missing, entropy, topk)
    return replace(
        errors,
        flips=logs[..., 0] < logs.max(axis=-1),
        tv=None if topk.rule == "uniform" else errors.tv,
    )


def of_columns(topk: TopK, tail_entropy: Array | None) -> Errors:
    """What top-k rows say of their own errors: the missing mass, and by their rule KL and TV, rounding apart."""
    kept = topk.values.astype(np.float64)
    total = np.logaddexp(_log_sum(kept), topk.residual.astype(np.float64))
    missing = np.exp(topk.residual - total)
    if topk.rule == "coarse":
        return Errors(missing_mass=missing)
    if topk.rule != "uniform":
        kl = np.where(missing > 0, np.inf, 0.0)
        return Errors(kl=kl, missing_mass=missing)
    if tail_entropy is None:
        return Errors(missing_mass=missing)
    num_others = np.maximum(topk.num_classes - np.isfinite(kept).sum(axis=-1), 1)
    kl = np.where(missing > 0, missing * (np.log(num_others) - tail_entropy), 0.0)
    return Errors(kl=np.maximum(kl, 0.0), missing_mass=missing)


def _by_rule(logs: Array, missing: Array, entropy: Array | None, topk: TopK) -> Errors:
    """KL, and the TV of kept classes (coarse: of all outcomes; renorm and zero: of all classes).

    `logs`: of the kept classes, in the order of `topk`; `missing`: what the others weigh; `entropy`: the sum of p log p
    over them, where that is known.
    """
    together, each, log_total = _others(topk)
    stored = topk.values.astype(np.float64) - log_total[..., None]
    p, log_missing = np.exp(logs), log(missing)
    kl = _divergence(p, logs, stored)
    tv = np.abs(p - np.exp(stored)).sum(axis=-1)
    if topk.rule == "uniform":
        if entropy is None:
            return Errors(tv=tv / 2, missing_mass=missing)
        with np.errstate(invalid="ignore"):
            kl = kl + entropy - np.where(missing > 0, missing * each, 0.0)
    elif topk.rule == "coarse":
        kl = kl + _divergence(missing[..., None], log_missing[..., None], together[..., None])
        tv = tv + np.abs(missing - np.exp(together))
    else:
        kl, tv = np.where(missing > 0, np.inf, kl), tv + missing
    return Errors(kl=np.maximum(kl, 0.0), tv=tv / 2, missing_mass=missing)


def _others(topk: TopK) -> tuple[Array, Array, Array]:
    """By the rule: log of what the other classes have together, of what each of them has, and of the total weight."""
    kept = topk.values.astype(np.float64)
    beside = topk.residual.astype(np.float64)
    if topk.rule == "renorm":
        beside = np.full_like(beside, -np.inf)
    total = np.logaddexp(_log_sum(kept), beside)
    num_others = np.maximum(topk.num_classes - np.isfinite(kept).sum(axis=-1), 1)
    return beside - total, beside - total - np.log(num_others), total


def log_probs(rows: Array, kind: str) -> Array:
    """Rows of a kind as log-probabilities that sum to 1, float64."""
    x = rows.astype(np.float64)
    if kind in ("probs", "counts"):
        x = log(x)
    x -= x.max(axis=-1, keepdims=True)
    x -= np.log(np.exp(x).sum(axis=-1, keepdims=True))
    return x


def _divergence(p: Array, logs: Array, stored: Any) -> Array:
    """Sum of p (logs - stored), where p is 0 nothing; rounding may leave less than nothing."""
    with np.errstate(invalid="ignore"):
        terms: Array = np.where(p > 0, p * (logs - stored), 0.0)
    total: Array = terms.sum(axis=-1)
    return total


def _flips(logs: Array, top: Array) -> Array:
    """Whether the class at the top is less probable than another; of equal ones any will do."""
    flips: Array = np.take_along_axis(logs, top[..., None], axis=-1)[..., 0] < logs.max(axis=-1)
    return flips


def _log_sum(logs: Array) -> Array:
    """The log of the sum of exponentials of log-weights, of which the largest is near 0: none is lost to underflow."""
    return log(np.exp(logs).sum(axis=-1))
