"""The sampled encoding: classes drawn from each distribution, with replacement; P = count / S, or weights / S.

Unbiased where a top-k row is not: the mean over many rows is that of the distributions, however few draws a row has.
A draw is a function of the seed, the row and its number in the row, so that a run that resumes ends with the same
bytes. Source: Anshumann et al., "Sparse Logit Sampling" (2025), sections 3 and 4.

Functions import `simplex` when they are called: opening a store needs none of it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fostore.encodings.encoding import Encoding, refuse_rule
from fostore.encodings.rows import as_floats, check_as_kind, check_columns, log, refuse_shape
from fostore.encodings.topk_rows import TopK
from fostore.encodings.uniform import uniform
from fostore.errors import ArgumentError, DamageError, RowError
from fostore.schema.row import Array, Column, Schema

_FEW = 8
"""Draws of which a few are moved by noise."""


class _Sampled(Encoding):
    """See `fostore.encodings.Encoding`; every method is a pure function.

    Parameters: `num_draws` a distribution; `seed`, 0 by default; `proposal_temperature`: draws come from the
    distribution softened by it, and have weights that make up for that.
    """

    name = "sampled"
    parameters = ("num_draws", "seed", "proposal_temperature")
    kinds = ("probs",)
    is_lossy = True
    is_drawn = True

    def spec(self, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """`num_draws`, `seed`, 0 where none is given, and `proposal_temperature`, where one is."""
        given = dict(parameters)
        num_draws, seed = given.pop("num_draws", None), given.pop("seed", 0)
        if type(num_draws) is not int or not 1 <= num_draws < 1 << 31:
            raise ArgumentError(
                f"num_draws is {num_draws!r}, expected how many classes to draw from each distribution, such as 50"
            )
        if type(seed) is not int or not 0 <= seed < 1 << 63:
            raise ArgumentError(f"seed is {seed!r}, expected an integer of 0 to 2^63 - 1")
        proposal = given.get("proposal_temperature", 1.0)
        if type(proposal) not in (int, float) or not 0.1 <= proposal <= 10:
            raise ArgumentError(
                f"proposal_temperature is {proposal!r}, expected a number of 0.1 to 10; leave it out to draw from the "
                "distributions as they are"
            )
        return {"num_draws": num_draws, "seed": seed, **given}

    def dtypes(self, kind: str, num_classes: int) -> tuple[str, ...]:
        """Of class indices: 16 bits as long as they hold them all."""
        return ("uint16" if num_classes <= 1 << 16 else "uint32",)

    def usual_dtype(self, kind: str, num_classes: int) -> str:
        return self.dtypes(kind, num_classes)[0]

    def columns(
        self,
        kind: str,
        dtype: str,
        axes: tuple[str, ...],
        shape: tuple[int, ...],
        encoding: Mapping[str, Any],
    ) -> tuple[Column, ...]:
        """The draws, and their weights where they come from a softened distribution."""
        if kind != "probs":
            raise ArgumentError(f"the sampled encoding draws from probs, not {kind}; kind='probs'")
        (ids,) = self.dtypes(kind, shape[-1])
        if dtype != ids:
            raise ArgumentError(
                f"the sampled encoding keeps {shape[-1]} classes as {ids}, not as {dtype}; leave dtype out"
            )
        spec = self.spec({key: value for key, value in encoding.items() if key != "name"})
        last, size = (*axes[:-1], "draw"), (*shape[:-1], spec["num_draws"])
        draws = Column("draws", ids, ids, last, size)
        if "proposal_temperature" not in spec:
            return (draws,)
        return draws, Column("weights", "float32", "float32", last, size)

    def encode(self, rows: Any, schema: Schema, start: int) -> list[Array]:
        """Draws from rows of any float dtype, checked as they came; the sums are float64."""
        from fostore.schema import simplex  # see the first lines

        if rows.shape[1:] != schema.row_shape:
            refuse_shape(rows, schema, start)
        rows = as_floats(rows, start)
        simplex.check(rows, "probs", schema.sum_tolerance, start)
        stored = [np.empty((len(rows), *c.shape), c.numpy_dtype) for c in schema.content]
        members = schema.num_members or 1
        flat = [column.reshape(-1, column.shape[-1]) for column in stored]
        proposal = schema.encoding.get("proposal_temperature")
        seed, num_draws = schema.encoding.get("seed", 0), flat[0].shape[-1]
        for i, p in enumerate(rows.reshape(-1, rows.shape[-1])):
            p = p.astype(np.float64)
            q = p if proposal is None else simplex.softmax(log(p), float(proposal))
            total = np.cumsum(q)
            first = (start * members + i) * num_draws  # among all draws of the store
            height = uniform(seed, first, first + num_draws) * total[-1]
            # Of a class whose probability is 0 the sum is that of the class before, which wins.
            draws = np.searchsorted(total, height, side="right")
            draws = np.minimum(draws, np.flatnonzero(q)[-1])
            draws.sort()
            flat[0][i] = draws
            if proposal is not None:
                weights = (p[draws] / p.sum()) / (q[draws] / total[-1])
                flat[1][i] = np.maximum(weights, np.finfo(np.float32).tiny)
        return stored

    def check(self, columns: Sequence[Array], schema: Schema, start: int) -> None:
        """Raise RowError where draws are no classes in order, or a weight is not positive."""
        check_columns(columns, schema, start)
        draws = columns[0]
        bad = (draws >= schema.num_classes).any(axis=-1)
        bad |= (draws[..., 1:] < draws[..., :-1]).any(axis=-1)
        if bad.any():
            at = start + int(np.argwhere(bad)[0][0])
            raise RowError(
                f"row {at} has draws that do not grow, or lie beyond class {schema.num_classes - 1}"
            )
        if len(columns) > 1:
            bad = ~((columns[1] > 0) & (columns[1] < np.inf)).all(axis=-1)
            if bad.any():
                at = start + int(np.argwhere(bad)[0][0])
                raise RowError(f"row {at} has a weight that is not positive and finite")

    def decode(
        self,
        columns: Sequence[Array],
        schema: Schema,
        as_kind: str = "probs",
        temperature: float = 1.0,
        rule: str | None = None,
    ) -> Array:
        """Relative frequencies in float32, worked out in float64; a class that was not drawn has 0.

        With weights they sum to 1 in the mean over rows alone. Raises ArgumentError for another temperature: what was
        drawn at 1 does not say it.
        """
        check_as_kind(as_kind)
        refuse_rule(rule, self.name)
        if temperature != 1:
            raise ArgumentError(
                f"temperature is {temperature:g}, and draws say what a distribution is at 1 alone; divide the logits "
                "before they are drawn from (the generator's temperature), or keep another encoding"
            )
        frequencies = self.rows(columns, schema)
        values = frequencies if as_kind == "probs" else log(frequencies)
        return values.astype(np.float32)

    def rows(self, columns: Sequence[Array], schema: Schema, rule: str | None = None) -> Array:
        """Frequencies in float64."""
        refuse_rule(rule, self.name)
        draws = _known(columns[0], schema)
        out = np.zeros((len(draws), schema.num_classes))
        weights = 1.0 if len(columns) == 1 else columns[1].reshape(draws.shape).astype(np.float64)
        np.add.at(out, (np.arange(len(draws))[:, None], draws), weights)
        out /= draws.shape[-1]
        return out.reshape(len(columns[0]), *schema.row_shape)

    def sparse(self, columns: Sequence[Array], schema: Schema) -> TopK | None:
        """The drawn classes, the most frequent first, as top-k rows that leave nothing out; None with weights.

        Those do not sum to 1, and rows of top-k do. A row of fewer classes than draws has others at no weight.
        """
        if len(columns) > 1:
            return None
        num_draws, num_classes = columns[0].shape[-1], schema.num_classes
        draws = _known(columns[0], schema).astype(np.int64)
        is_first = np.ones(draws.shape, bool)
        is_first[:, 1:] = draws[:, 1:] != draws[:, :-1]
        starts = np.flatnonzero(is_first)
        counts: Array = np.zeros(draws.size)
        counts[starts] = np.diff(starts, append=draws.size)
        counts = counts.reshape(draws.shape)
        order = np.argsort(-counts, axis=-1, kind="stable")[
            :, :num_classes
        ]  # of equal ones the smaller class
        ids, counts = (np.take_along_axis(x, order, axis=-1) for x in (draws, counts))
        # Of twice as many classes as draws, as many are free; those that were drawn go behind them.
        is_drawn = np.zeros((len(draws), min(2 * num_draws, num_classes) + 1), bool)
        np.put_along_axis(is_drawn, np.minimum(draws, is_drawn.shape[-1] - 1), True, axis=-1)
        free = np.argsort(is_drawn[:, :-1], axis=-1, kind="stable")
        beyond = np.cumsum(counts == 0, axis=-1) - 1
        ids = np.where(counts > 0, ids, np.take_along_axis(free, np.maximum(beyond, 0), axis=-1))
        shape = (*columns[0].shape[:-1], ids.shape[-1])
        return TopK(
            values=log(counts / num_draws).astype(np.float32).reshape(shape),
            ids=ids.astype(columns[0].dtype).reshape(shape),
            residual=np.full(shape[:-1], -np.inf, np.float32),
            num_classes=num_classes,
            rule="zero",
        )

    def recast(
        self, columns: Sequence[Array], schema: Schema, made: Schema, start: int
    ) -> list[Array]:
        """Never with other parameters: draws from draws are not draws from the distributions."""
        if made.encoding != schema.encoding:
            raise ArgumentError(
                f"the rows were drawn as {dict(schema.encoding)}, and {dict(made.encoding)} was asked for: only the "
                "distributions that they were drawn from can be drawn from again"
            )
        return list(columns)

    def disagrees(
        self, stored: Sequence[Array], now: Sequence[Array], schema: Schema, noise: float
    ) -> Array:
        """Draws tell little: a row is another one where more than half of them are others, of `_FEW` or more."""
        bad = np.zeros(len(stored[0]), bool)
        if stored[0].shape[-1] >= _FEW:
            for i in range(len(bad)):
                for one, other in zip(
                    *(np.atleast_2d(side[0][i]) for side in (stored, now)), strict=True
                ):
                    shared = Counter(one.tolist()) & Counter(other.tolist())
                    bad[i] |= 2 * shared.total() < len(one)
        return bad


def _known(draws: Array, schema: Schema) -> Array:
    """Draws (distributions, num_draws) of classes that there are: a stranger's may be any number."""
    if draws.size and int(draws.max()) >= schema.num_classes:
        raise DamageError(
            f"a draw is class {int(draws.max())}, and there are {schema.num_classes:,}: the store is damaged; "
            "verify() names the rows"
        )
    return draws.reshape(-1, draws.shape[-1])


ENCODING = _Sampled()
