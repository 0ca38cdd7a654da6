"""The search for a batch size: really tried, on an accelerator for memory, on a CPU for throughput."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from fostore.errors import ArgumentError, GenerationError
from fostore.generate.adapters import fixed_of
from fostore.generate.framework import Kept
from fostore.generate.generator import Generator
from fostore.generate.samples import Batch, Indexed, Reading
from fostore.schema.integers import integer

MAX_BATCH = 512
_CLOSE = 1.05  # a smaller batch within 5 % of the best is preferred: it needs less memory
_SECONDS = 0.2  # long enough to time a batch, short enough to try ten sizes


class BatchSizeFinder:
    """`find_optimal_batch_size` of the framework that a generator belongs to: call it."""

    def __init__(self, generator_type: type[Generator]) -> None:
        self._generator_type = generator_type

    def __call__(
        self,
        model: Any,
        dataset: Any,
        device: str = "cpu",
        max_batch: int = MAX_BATCH,
        *,
        input_getter: Callable[[Any], Any] | None = None,
        output_transform: Callable[[Any], Any] | None = None,
        collate_fn: Callable[[Any], Any] | None = None,
        members: bool = False,
    ) -> int:
        """The batch size to generate with, from batches of the dataset that were really run.

        On an accelerator the largest that fits its memory; on a CPU the smallest within 5 % of the best
        throughput of those that fit. Training flags and random states are as before.

        Args:
            model, device, input_getter, output_transform, members: see `FirstOrderDataGenerator`.
            dataset: a dataset with `__len__` and `__getitem__`; also the upper bound of the answer.
            max_batch: the largest size to try.
            collate_fn: makes a batch of a list of samples.

        Raises:
            ArgumentError: max_batch is no positive integer, or the dataset is empty or a stream.
            GenerationError: the model failed for another reason than memory, or a single sample does
                not fit.
        """
        generator = self._generator_type(
            model,
            device,
            output_transform=output_transform,
            input_getter=input_getter,
            members=members,
        )
        return search(generator, dataset, max_batch, collate_fn, generator.device != "cpu")


def search(
    generator: Generator,
    dataset: Any,
    max_batch: int,
    collate_fn: Callable[[Any], Any] | None,
    memory_is_limit: bool,
) -> int:
    """The batch size for a generator; see `fostore.torch.find_optimal_batch_size`."""
    most = integer(max_batch, "max_batch", 1)
    framework = generator._framework
    samples = framework.samples(dataset, Reading(1, generator.input_getter, collate_fn))
    if not isinstance(samples, Indexed) or samples.num_samples == 0:
        raise ArgumentError("trying batch sizes needs a dataset with __getitem__ that is not empty")
    most = min(most, samples.num_samples)
    engine = generator._engine(Kept("logits"), fixed_of(generator._models, None), trying=True)

    def seconds(size: int) -> float:
        """What a batch of `size` samples takes, reading left out; the best of a few."""
        (inputs,) = samples.few(range(size))
        best, begun, tries = float("inf"), time.perf_counter(), 0
        while tries < 2 or (not memory_is_limit and time.perf_counter() - begun < _SECONDS):
            start = time.perf_counter()
            engine.collect(engine.compute(Batch(range(size), inputs)))
            best = min(best, time.perf_counter() - start)
            tries += 1
        return best

    def taken(size: int) -> float | None:
        """The same, or None where memory does not suffice, for reading it or for running it."""
        try:
            return seconds(size)
        except Exception as error:  # any other error is raised
            cause = error.__cause__ if isinstance(error, GenerationError) else error
            if cause is None or not framework.out_of_memory(cause):
                raise
        framework.free_memory()  # out here, where the error and its tensors are gone
        return None

    with framework.running(generator._models):
        return (largest if memory_is_limit else fastest)(taken, most)


def largest(taken: Callable[[int], float | None], most: int) -> int:
    """The largest size up to `most` that fits: doubling, then halving the gap."""
    good, bad, size = 0, most + 1, 1
    while bad - good > 1:
        if taken(size) is None:
            bad = size
        else:
            good = size
        doubled = min(2 * size, most)
        # nothing has failed yet: twice as many; else what lies between
        size = doubled if bad > most else (good + bad) // 2
    if good == 0:
        raise _nothing_fits()
    return good


def fastest(taken: Callable[[int], float | None], most: int) -> int:
    """The smallest power of two (or `most`) whose throughput is within 5 % of the best that fits."""
    sizes = [1 << k for k in range(most.bit_length()) if 1 << k < most] + [most]
    per_sample = {}
    for size in sizes:
        seconds = taken(size)
        if seconds is None:
            break
        per_sample[size] = seconds / size
    if not per_sample:
        raise _nothing_fits()
    best = min(per_sample.values())
    return min(size for size, seconds in per_sample.items() if seconds <= _CLOSE * best)


def _nothing_fits() -> GenerationError:
    return GenerationError(
        "out of memory with a single sample; use a smaller model, or a machine with more memory"
    )
