"""Collating that mixes samples (mixup, cutmix): the distribution of a mixed input belongs to no sample.

It is told from augmentation by collating the same samples several times, and copies of one of them:
what mixes gives another input each time among others, and always the same among copies. And one that
sorts its samples is found by giving them in another order: the inputs stay where they were.
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

TIMES, COPIES = 8, 16
"""How often a batch is collated, and one of copies: there augmentation that is rare is to be seen."""
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
    for answer in found:
        for place in np.flatnonzero(answer).tolist():
            sample = int(batch[place])
            raise refusal(sample) if answer[place] == MIXED else _out_of_order(sample)


MIXED, MOVED = 1, 2


class Probe:
    """A collate_fn that tells what another one does to a sample of a batch: int8, one a sample, mostly 0.

    `MIXED`: the first whose input differs from time to time among others, where it never does among
    copies of it. `MOVED`: the first that comes out where another sample went in.
    """

    def __init__(self, framework: Framework, collate: Callable[[Any], Any]) -> None:
        self._framework = framework
        self._collate = collate

    def __call__(self, samples: Any) -> Array:
        found = np.zeros(len(samples), np.int8)
        together = self._varies(samples)
        if not together.any():
            moved = self._moved(samples)
            if moved is not None:
                found[moved] = MOVED
        for place in np.flatnonzero(together)[:1].tolist():
            copies = self._collated([samples[place]] * len(samples), COPIES)
            again = self._collated(samples, TIMES)
            if is_mixed(self._framework, copies, again, len(samples), place):
                found[place] = MIXED
        return found

    def _varies(self, samples: Any) -> Array:
        return varies(self._framework, self._collated(samples, TIMES), len(samples))

    def _moved(self, samples: Any) -> int | None:
        """The first sample that does not stand where it was put; None where all do, or nothing tells."""
        order = np.random.default_rng(0).permutation(len(samples))
        if len(order) == 2:
            order = order[::-1] if order[0] == 0 else order
        given = [samples, [samples[place] for place in order]]
        first, second = (
            _rows(self._framework, next(self._collated(one, 1)), len(order)) for one in given
        )
        if first is None or second is None or sorted(first) != sorted(second):
            return None
        wrong = (int(at) for at, row in zip(order, second, strict=True) if first[at] != row)
        return next(wrong, None)

    def _collated(self, samples: Any, times: int) -> Iterator[Any]:
        for _ in range(times):
            given = samples
            with suppress(TypeError, RuntimeError):  # what cannot be copied is collated as it is
                given = copy.deepcopy(samples)
            yield input_of(self._collate(given))


def is_mixed(
    framework: Framework, copies: Iterator[Any], again: Iterator[Any], rows: int, place: int
) -> bool:
    """Whether a sample whose input varied is mixed: copies of it never vary, and among others it does again.

    Augmentation that is rare hides from a few copies, and comes seldom twice to one sample.
    """
    first = copy.deepcopy(next(copies))
    if any(varies(framework, [first, other], rows).any() for other in copies):
        return False
    return bool(varies(framework, again, rows)[place])


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


def _rows(framework: Framework, inputs: Any, rows: int) -> list[bytes] | None:
    """What the input of each row is; None where something in it is not one entry a row."""
    columns: list[Any] = []
    for _, leaf in leaves(inputs):
        part = _numbers(framework, leaf)
        if isinstance(part, np.ndarray) and part.ndim and not part.dtype.hasobject:
            columns.append([row.tobytes() for row in part])
        elif isinstance(part, list):
            columns.append([repr(entry).encode() for entry in part])
    if not columns or any(len(column) != rows for column in columns):
        return None
    return [b"|".join(parts) for parts in zip(*columns, strict=True)]


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
        "same among copies of itself: the collate_fn mixes samples (mixup, cutmix) or changes their order, and the "
        "distribution of a mixed input belongs to no sample. Generate without it (the dataset itself, "
        "or collate_fn= one that only stacks), and mix when you train"
    )


def _out_of_order(sample: int) -> ArgumentError:
    return ArgumentError(
        f"the collate_fn hands out sample {sample} in the place of another one: it changes the order of the "
        "samples (sorts them by length?), and the distribution of each would be kept as that of another. "
        "Generate with a collate_fn that keeps the order, as pad_sequence does (and pack_padded_sequence "
        "with enforce_sorted=False)"
    )
