"""Inputs that are not those of their samples: mixed (mixup, cutmix), reordered (sorted by length), or augmented.

The distribution of a mixed input belongs to no sample, and rows in another order to other samples.
Mixing at random is told from augmentation by collating the same samples several times, and copies of one
of them: what mixes gives another input each time among others, and always the same among copies. What
always does the same is given two of the samples in each other's place: they change places, and no other
input changes.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np

from fostore.errors import ArgumentError
from fostore.generate.assembly import input_of
from fostore.generate.framework import Framework
from fostore.generate.probe import HASHED, OPAQUE, REREADS, UNSTABLE, hash_inputs
from fostore.generate.samples import Batch, Indexed, Indices, Samples, holding
from fostore.nested import leaves
from fostore.schema.ranges import Ranges
from fostore.schema.row import Array

COPIES = 16
"""How often a batch of copies is collated: there augmentation that is rare is to be seen."""
MIXED, MOVED = 1, 2
_LOOKED_AT = 16
"""Samples of the batch among which two are chosen to change places."""
_FEW = 8
"""Samples that are read twice where nothing but a stack is made of them."""
_ROUNDING = 2
"""Alone, a mixed sample is itself but for rounding: so many units of integers, or of a float's last place."""


def refuse_mixing(framework: Framework, samples: Samples, wanted: Ranges) -> None:
    """Raise where the user's collate_fn makes inputs of several samples each.

    The samples of the first batch with wanted rows are read once and collated several times, in the
    place where they are always collated (a worker). It costs nothing where batches are only stacked.
    Not for what can be read once only.
    """
    if samples.assemble.collate is None:
        return
    assemble = replace(
        samples.assemble,
        collate=MixingTest(framework, samples.assemble.collate),
        sequences=None,
    )
    probing = replace(samples, assemble=assemble)
    with framework.kept_random_states():
        first: list[Batch] = []
        if isinstance(probing, Indexed):
            batches: Iterator[Indices] = iter(probing.batches.touching(wanted))
            first = list(probing.inputs(islice(batches, 1), few=True))
        else:
            first = [Batch(range(len(one)), one) for one in islice(probing.read(assemble), 1)]
    for indices, answer, *_ in first:
        for place in np.flatnonzero(answer)[:1].tolist():
            raise refusal(int(indices[place]), moved=answer[place] == MOVED)


class MixingTest:
    """A collate_fn that tells what another one does to a sample of a batch: int8, one a sample, mostly 0.

    `MIXED`: the first whose input differs from time to time among others, where it never does among
    copies of it. `MOVED`: the first that does not stay in its place, or changes with another sample.
    """

    def __init__(self, framework: Framework, collate: Callable[[Any], Any]) -> None:
        self._framework = framework
        self._collate = collate

    def __call__(self, samples: Any) -> Array:
        answer = np.zeros(len(samples), np.int8)
        together = varies(self._framework, self._collated(samples), len(samples))
        for place in np.flatnonzero(together)[:1].tolist():
            copies = self._collated([samples[place]] * len(samples), COPIES)
            again = self._collated(samples)
            if _is_mixed(self._framework, copies, again, len(samples), place):
                answer[place] = MIXED
        if not together.any():
            with suppress(Exception):  # it takes no sample alone, or gives what cannot be compared
                answer[self._moved(list(samples))] = MOVED
        return answer

    def _collated(self, samples: Any, times: int = REREADS) -> Iterator[Any]:
        for _ in range(times):
            given = samples
            with suppress(TypeError, RuntimeError):  # what cannot be copied is collated as it is
                given = copy.deepcopy(samples)
            yield input_of(self._collate(given))

    def _parts(self, samples: Any) -> list[Any]:
        """The arrays and lists of what is made of samples, once, in memory of their own."""
        (inputs,) = self._collated(samples, 1)
        return copy.deepcopy([self._framework.held(leaf) for _, leaf in leaves(inputs)])

    def _moved(self, samples: list[Any]) -> list[int]:
        """The first sample that a collate_fn, which always does the same, puts elsewhere or mixes.

        Two samples change places, of two lengths if there are such: those are what is sorted.
        """
        alone = [self._parts([one]) for one in samples[:_LOOKED_AT]]
        others = [at for at, parts in enumerate(alone) if not _alike(parts, alone[0])]
        if not others:
            return []
        at = next((at for at in others if _shapes(alone[at]) != _shapes(alone[0])), others[0])
        before = self._parts(samples)
        samples[0], samples[at] = samples[at], samples[0]
        after = self._parts(samples)
        if _alike(before, after):  # whatever their order, it makes one and the same batch
            return [0]
        if _shapes(before) != _shapes(after) or any(_rows(part) != len(samples) for part in before):
            return []  # a graph batch, a packed sequence: what belongs to a sample is not known
        rest = [place for place in range(len(samples)) if place not in (0, at)]
        pairs = [(_take(b, rest), _take(a, rest)) for b, a in zip(before, after, strict=True)]
        return rest[:1] if not all(_same(one, other) for one, other in pairs) else []


def _is_mixed(
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
    varied = np.zeros(rows, bool)
    for inputs in times:
        parts = [framework.held(leaf) for _, leaf in leaves(inputs)]
        first = first or copy.deepcopy(parts)  # a worker's memory may be used again
        # not strict: a transform may leave a part out at random
        for one, other in zip(first, parts, strict=False):
            if isinstance(one, np.ndarray) and isinstance(other, np.ndarray):
                varied |= _far(one, other, rows)
            elif (
                isinstance(one, list) and isinstance(other, list) and len(one) == len(other) == rows
            ):
                varied |= np.array([a != b for a, b in zip(one, other, strict=True)])
    return varied


def _shapes(parts: list[Any]) -> list[Any]:
    return [getattr(part, "shape", None) for part in parts]


def _rows(part: Any) -> int | None:
    if isinstance(part, np.ndarray):
        return len(part) if part.ndim else None
    return len(part) if isinstance(part, list) else None


def _take(part: Any, places: list[int]) -> Any:
    return part[places] if isinstance(part, np.ndarray) else [part[place] for place in places]


def _alike(one: list[Any], other: list[Any]) -> bool:
    return len(one) == len(other) and all(map(_same, one, other))


def _same(one: Any, other: Any) -> bool:
    """Whether two parts are the same but for the rounding of sums in another order."""
    if not isinstance(one, np.ndarray) or not isinstance(other, np.ndarray):
        if not isinstance(one, (list, str, int, float, type(None))):
            raise TypeError(f"nobody knows when two {type(one).__name__} are the same")
        return bool(one == other)
    if one.shape != other.shape or one.dtype.kind not in "iufb":
        return np.array_equal(one, other)
    wide = one.astype(np.float64), other.astype(np.float64)
    rounding = 1e-2 if one.dtype.itemsize == 2 else 1e-5
    scale = float(np.nanmax(np.abs(wide[0]), initial=0)) if one.dtype.kind == "f" else 0.0
    return bool(np.allclose(*wide, rtol=0, atol=rounding * scale, equal_nan=True))


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


def refusal(sample: int, *, moved: bool = False) -> ArgumentError:
    """The error for samples that are mixed or moved; names the first of them."""
    how = "another one each time its batch is collated, and always the same among copies of itself"
    if moved:
        how = "not in its place: with two samples of a batch exchanged, the collated inputs do not follow"
    return ArgumentError(
        f"the input of sample {sample} is {how}: the collate_fn mixes samples (mixup, cutmix) or changes "
        "their order (by length), and the distribution would belong to no sample, or to another one. "
        "Generate without it (the dataset itself, or collate_fn= one that only stacks or pads, in "
        "order: pack with enforce_sorted=False), and mix when you train"
    )


def content_of(framework: Framework, samples: Samples, first: int) -> str:
    """Whether inputs can be compared later: "hashed", "unstable" (random augmentation) or "opaque".

    Reads the batch of sample `first` of a dataset twice, as it will be collated (at most eight samples of
    it where they are only stacked); of a stream, which may be read once only, nothing.
    """
    if not isinstance(samples, Indexed):
        return HASHED
    if samples.draws_views:
        return UNSTABLE
    batch = holding(samples.batches, first)
    if samples.assemble.collate is None:
        batch = batch[:_FEW]
    rows = len(batch)
    with framework.kept_random_states():
        # in one go, so that workers with a seed of their own draw on
        first_read, second_read = samples.few(batch, batch)
        one, other = (hash_inputs(framework, read, rows) for read in (first_read, second_read))
        if one is None or other is None:
            return OPAQUE
        if np.array_equal(one, other):
            return HASHED
        place = int(np.flatnonzero(one != other)[0])
        sample = int(batch[place])
        if varies(framework, [first_read, second_read], rows).any():
            copies = samples.few(*[np.full(rows, sample)] * COPIES)
            if _is_mixed(framework, copies, samples.few(*[batch] * REREADS), rows, place):
                raise refusal(sample)
    warnings.warn(
        f"sample {sample} reads differently each time (random augmentation?); on resume, length, "
        "labels and ids decide whether the dataset is the same, not its content",
        stacklevel=2,
    )
    return UNSTABLE
