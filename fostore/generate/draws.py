"""Draws on purpose: one model run several times, each time from random states of its own.

The randomness of a draw is a function of (seed, draw, row): for the model, `row` is the first sample of
the batch; for the dataset, the sample that is read. So a run that resumes ends with the same bits.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import chain, islice, repeat
from typing import Any

import numpy as np

from fostore.errors import ArgumentError, GenerationError
from fostore.generate.assembly import Assembly
from fostore.generate.framework import Framework
from fostore.generate.labels import Labelled
from fostore.generate.probe import Probe
from fostore.generate.randomness import Draw
from fostore.generate.samples import Indexed, Indices, Samples
from fostore.schema.integers import integer
from fostore.schema.row import Array

Call = Callable[[Any, dict[str, Any]], Any]
_PROBED, _PROBES = 8, 3
"""Samples, and draws of each, that tell whether a dataset draws: a coin flip hides in 1 of 65,536."""


class Drawing:
    """The draws of one run: the model called once for each, and the first batch looked at."""

    def __init__(self, framework: Framework, model: Any, num_draws: int, seed: int) -> None:
        self.num_draws = num_draws
        self._framework = framework
        self._seed = seed
        self._parameter = _parameter(framework, model)
        self._drew: bool | None = None  # not known before the first call

    def outputs(
        self, call: Call, inputs: Any, indices: Indices, draws: int | None = None
    ) -> list[Any]:
        """What `call(inputs, keywords)` gives in each draw, or in the first `draws` of them."""
        framework, row, given = self._framework, int(indices[0]), []
        watches = self._drew is None
        views = inputs if isinstance(inputs, Views) else repeat(inputs)
        for number, view in zip(range(draws or self.num_draws), views, strict=False):
            draw = Draw(self._seed, number, row)
            framework.begin_draw(draw)
            keywords = {name: give(draw) for name, give in self._parameter.items()}
            before = framework.random_state() if watches else None
            given.append(call(view, keywords))
            if watches:
                self._drew = self._drew or framework.random_state() != before
        if isinstance(inputs, Views) or self._parameter:
            self._drew = True
        return given

    def check_first(self, rows: Array, again: Array) -> list[str]:
        """Refuse draws (n, num_draws, ...) that do not repeat, or for which nothing was drawn.

        Returns what is to be said of the others.

        Args:
            again: the first draw a second time (n, ...).
        """
        wide = rows.astype(np.float64)
        scale, spread = float(np.abs(wide).max()), float(np.ptp(wide, axis=1).max())
        off = float(np.abs(again - wide[:, 0]).max())
        # A draw need not repeat bit by bit: kernels of an accelerator may sum in another order each time.
        if off > max(1e-5 * scale, 0.1 * spread if self.num_draws > 1 else 1e-3 * scale):
            raise ArgumentError(
                "a draw does not repeat: the model draws from a generator of its own, which no seed "
                f"reaches, so that a run could not be resumed; {self._framework.how_to_draw}"
            )
        if not self._drew:
            raise ArgumentError(
                f"num_draws is {self.num_draws}, and the model draws no random numbers, so that all "
                f"draws are the same; leave num_draws= out, or: {self._framework.how_to_draw}"
            )
        if self.num_draws > 1 and spread == 0:
            return [
                f"all {self.num_draws} draws of the first batch are the same, although random numbers "
                "are drawn (is the rate of dropout 0?)"
            ]
        return []

    def out_of_memory(self, samples: int) -> GenerationError:
        """The error where a batch does not fit: half a batch would be other draws."""
        return GenerationError(
            f"out of memory with {samples} samples at once; draws are a function of their batch, so "
            "it is not halved: give a smaller batch_size (with exists='overwrite' where a store was "
            "begun)"
        )


def repeats(rows: Array, again: Array | None) -> list[str]:
    """What to say of members (n, M, K) that are the same, and of a model whose calls differ by chance.

    Args:
        again: the batch a second time, where random numbers were drawn.
    """
    sayings = []
    if again is not None and not np.array_equal(rows, again, equal_nan=True):
        sayings.append(
            "the model draws random numbers while it runs (dropout that is always on?): a row is one "
            "draw, and another call begins from the same random state and repeats it; "
            "num_draws=10, seed=0 keeps several draws of each row"
        )
    members: dict[bytes, int] = {}
    for i in range(rows.shape[1] if rows.ndim == 3 else 0):
        same = members.setdefault(rows[:, i].tobytes(), i)
        if same != i:
            sayings.append(
                f"members {same} and {i} gave the same numbers for the first batch, bit by bit: models "
                "run in evaluation mode, where dropout is off; for several draws of one model give it "
                f"alone, with num_draws={rows.shape[1]}"
            )
            break
    return sayings


def _parameter(framework: Framework, model: Any) -> dict[str, Callable[[Draw], Any]]:
    """The parameter by which a model takes its randomness, if any, and what it gets in a draw."""
    signature, known = framework.signature(model), framework.random_parameters
    for name, parameter in ({} if signature is None else signature.parameters).items():
        by_name = parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        if by_name and name in known:
            return {name: known[name]}
    return {}


# ------------------------------------------------------------------ views: a dataset that draws


class Views:
    """The inputs of one batch, once for each draw; they are read when they are asked for."""

    def __init__(self, first: Any, others: Iterator[Any]) -> None:
        self.first = first
        self._others = others

    def __iter__(self) -> Iterator[Any]:
        return chain([self.first], self._others)


def drawn_samples(framework: Framework, samples: Samples, num_draws: int) -> Samples:
    """The samples with a view for each draw, where their dataset draws; else as they are.

    Reads a few samples several times.
    """
    if not isinstance(samples, Indexed) or not samples.seeded or not samples.num_samples:
        return samples
    count = samples.num_samples
    picked = sorted({round(k * (count - 1) / (_PROBED - 1)) for k in range(_PROBED)})
    draws = min(num_draws, _PROBES)
    asked = [[draw * count + index for index in picked] for draw in (*range(draws), 0)]
    with framework.kept_random_states():
        hashes = Probe(framework, samples).alone([*chain(*asked)])
    shown = [hashes[k * len(picked) : (k + 1) * len(picked)] for k in range(len(asked))]
    for index, before, after in zip(picked, shown[0], shown[-1], strict=True):
        if before != after:
            raise ArgumentError(
                f"sample {index} reads differently each time, although the random states of NumPy, "
                "Python and torch are the same: its transform draws from a generator of its own, so a "
                "draw could not be repeated; draw from np.random, random or torch there"
            )
    if num_draws == 1 or (None not in hashes and all(view == shown[0] for view in shown)):
        return samples

    def read(batches: Iterable[Indices], assemble: Assembly, few: bool) -> Iterator[Any]:
        flat = (
            draw * count + np.asarray(batch, np.int64)
            for batch in batches
            for draw in range(num_draws)
        )
        views = replace(samples, assemble=assemble).inputs(flat, few=few)
        for first in views:
            others = islice(views, num_draws - 1)
            inputs = Views(first.inputs, (view.inputs for view in others))
            yield Labelled(inputs, first.labels, first.exact)
            deque(others, maxlen=0)  # whoever stopped early must not shift the next batch

    return replace(samples, read=read, draws_views=True)


def check_draws(num_draws: Any, seed: Any, many: bool) -> None:
    """Raise ArgumentError for numbers that cannot be used, and for a member axis that is taken."""
    integer(seed, "seed", 0, (1 << 32) - 1)
    if num_draws is None:
        if seed:
            raise ArgumentError("seed= is the seed of draws; say how many with num_draws=")
        return
    integer(num_draws, "num_draws", 1)
    if many:
        raise ArgumentError(
            "num_draws= and a list of models (or members=True) would both fill the member axis; give "
            "one model with num_draws= (a store for each), or leave num_draws= out"
        )
