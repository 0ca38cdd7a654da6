"""Collating that mixes samples (mixup, cutmix): the distribution of a mixed input belongs to no sample.

It is told from augmentation by collating the same samples several times, together and alone: what
mixes gives another input each time in its batch, and always the same alone.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from itertools import islice
from typing import Any

import numpy as np

from fostore.errors import ArgumentError
from fostore.generate.assembly import input_of
from fostore.generate.framework import Framework
from fostore.generate.source import Indices, MapSource, Source
from fostore.nested import leaves
from fostore.ranges import Ranges
from fostore.schema import Array

TIMES = 8
_ENDLESS = 1 << 62
_ROUNDING = 2
"""Alone, a mixed sample is itself but for rounding: so many units of integers, or of a float's last place."""


def refuse_mixing(
    framework: Framework,
    source: Source,
    wanted: Ranges,
    probed: Callable[[Callable[[Any], Any]], Source | None],
) -> None:
    """Raise where the user's collate_fn makes inputs of several samples each.

    The samples of the first batch are read once and collated eight times, in the place where they
    are always collated (a worker). It costs nothing where batches are only stacked.

    Args:
        wanted: the rows that will be computed.
        probed: the same data with another collate_fn; None where it can be read once only.

    Raises:
        ArgumentError: says what to do.
    """
    if source.assemble.collate is None:
        return
    with framework.kept_random_states():
        probe = probed(Probe(framework, source.assemble.collate))
        batch: Indices = range(_ENDLESS)
        if isinstance(probe, MapSource):
            found = []
            batches: Iterator[Indices] = iter(probe.batches.touching(wanted))
            for batch in islice(batches, 1):
                found = list(probe.few(batch))
        else:
            found = [] if probe is None else list(islice(probe.read(), 1))
    for place in (int(place) for answer in found for place in np.flatnonzero(answer)):
        raise refusal(int(batch[place]))


class Probe:
    """A collate_fn that tells which sample of a batch another collate_fn mixes: bool, one a sample.

    True is the first whose input differs from time to time in its batch, where it never does alone.
    """

    def __init__(self, framework: Framework, collate: Callable[[Any], Any]) -> None:
        self._framework = framework
        self._collate = collate

    def __call__(self, samples: Any) -> Array:
        together = varies(self._framework, self._collated(samples), len(samples))
        mixed = np.zeros(len(samples), bool)
        for place in np.flatnonzero(together)[:1].tolist():
            alone = varies(self._framework, self._collated(samples[place : place + 1]), 1)
            mixed[place] = not alone.any()
        return mixed

    def _collated(self, samples: Any) -> Iterator[Any]:
        for _ in range(TIMES):
            with suppress(TypeError, RuntimeError):  # what cannot be copied is collated as it is
                samples = copy.deepcopy(samples)
            yield input_of(self._collate(samples))


def varies(framework: Framework, times: Iterable[Any], rows: int) -> Array:
    """For each row of a batch, whether its input is another one (beyond rounding) from time to time."""
    first: list[Any] = []
    found = np.zeros(rows, bool)
    for inputs in times:
        parts = [_numbers(framework, leaf) for _, leaf in leaves(inputs)]
        first = first or copy.deepcopy(parts)  # a worker's memory may be used again
        for one, other in zip(first, parts, strict=False):
            if isinstance(one, np.ndarray) and isinstance(other, np.ndarray):
                found |= _far(one, other, rows)
            elif (
                isinstance(one, list) and isinstance(other, list) and len(one) == len(other) == rows
            ):
                found |= np.array([a != b for a, b in zip(one, other, strict=True)])
    return found


def _numbers(framework: Framework, leaf: Any) -> Any:
    host = framework.host(leaf)
    return leaf if host is None else host


def _far(one: Array, other: Array, rows: int) -> Array:
    if one.shape != other.shape or one.dtype != other.dtype:
        return np.ones(rows, bool)
    if one.dtype.kind not in "iufb":
        far = one != other
    else:
        wide = one.astype(np.float64), other.astype(np.float64)
        unit: Any = 1.0
        if one.dtype.kind == "f":
            unit = np.finfo(one.dtype).eps * np.maximum(*map(np.abs, wide))
        with np.errstate(invalid="ignore"):
            far = (one != other) & ~(np.abs(wide[0] - wide[1]) <= _ROUNDING * unit)
    if far.ndim and far.shape[0] == rows:
        by_row: Array = far.reshape(rows, -1).any(-1)
        return by_row
    return np.full(rows, bool(far.any()))


def refusal(sample: int) -> ArgumentError:
    """The error for samples that are mixed; names the first of them."""
    return ArgumentError(
        f"the input of sample {sample} is another one each time its batch is collated, and always the "
        "same alone: the collate_fn mixes samples (mixup, cutmix) or changes their order, and the "
        "distribution of a mixed input belongs to no sample. Generate without it (the dataset itself, "
        "or collate_fn= one that only stacks), and mix when you train"
    )
