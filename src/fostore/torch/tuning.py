"""Which batch size a model runs best with on a device, found by trying."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fostore.generate.tuning import MAX_BATCH, search
from fostore.torch.generator import FirstOrderDataGenerator


def find_optimal_batch_size(
    model: Any,
    dataset: Any,
    device: str = "cpu",
    max_batch: int = MAX_BATCH,
    *,
    input_getter: Callable[[Any], Any] | None = None,
    output_transform: Callable[[Any], Any] | None = None,
    collate_fn: Callable[[Any], Any] | None = None,
) -> int:
    """The batch size to generate with, from batches of the dataset that were really run.

    On an accelerator the largest that fits its memory; on a CPU, where memory is no limit, the
    smallest within 5 % of the best throughput. Training flags and random states are as before.

    Args:
        model, device, input_getter, output_transform: see `FirstOrderDataGenerator`.
        dataset: a dataset with `__len__` and `__getitem__`; also the upper bound of the answer.
        max_batch: the largest size to try.
        collate_fn: makes a batch of a list of samples.

    Raises:
        ArgumentError: max_batch is no positive integer, or the dataset is empty or a stream.
        GenerationError: the model failed for another reason than memory, or a single sample does
            not fit.
    """
    generator = FirstOrderDataGenerator(
        model, device, output_transform=output_transform, input_getter=input_getter
    )
    return search(generator, dataset, max_batch, collate_fn, generator.device != "cpu")
