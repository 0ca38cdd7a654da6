"""What the generator saw: a 64-bit hash of every input, and whether a dataset still shows the same.

Every reading here leaves the global random states as they were.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from fostore.containers.columns import hashed_parts
from fostore.errors import ArgumentError
from fostore.generate import mixing
from fostore.generate.framework import Framework
from fostore.generate.source import Indices, MapSource, Source
from fostore.nested import PerSample, leaves
from fostore.schema import identity
from fostore.schema.ranges import Ranges
from fostore.schema.row import Array

HASHED, UNSTABLE, OPAQUE = "hashed", "unstable", "opaque"

REREADS = mixing.TIMES
"""A coin flip (a random mirror image) shows the same side eight times in 1 of 128 cases."""
_FEW = 8
"""Samples that are read twice where nothing but a stack is made of them."""
_MANY_LABELS = 10_000_000


def hash_inputs(framework: Framework, inputs: Any, rows: int) -> Array | None:
    """One hash a row (uint64) of a collated batch; None where something in it has no bytes."""

    def host(leaf: Any) -> Any:
        found = framework.host(leaf)
        return leaf if found is None else found

    def entries() -> Any:
        for path, leaf in leaves(inputs):
            for inner, part in hashed_parts(path, leaf if isinstance(leaf, str) else host(leaf)):
                if isinstance(part, PerSample):
                    part = PerSample(one if type(one) is str else host(one) for one in part)
                yield inner, part

    return identity.row_hashes(entries(), rows)


def content_of(framework: Framework, source: Source, first: int) -> str:
    """Whether inputs can be compared later: "hashed", "unstable" (random augmentation) or "opaque".

    Reads the batch of sample `first` of a map dataset twice, as it will be collated (at most eight
    samples of it where they are only stacked); of a stream, which may be read once only, nothing.

    Raises:
        ArgumentError: batches are mixed; see `mixing`.
        GenerationError: the dataset failed; names the samples.
    """
    if not isinstance(source, MapSource):
        return HASHED
    if source.draws_views:
        return UNSTABLE
    batch = source.batches.holding(first)
    if source.assemble.collate is None:
        batch = batch[:_FEW]
    with framework.kept_random_states():
        # in one go, so that workers with a seed of their own draw on
        first_read, second_read = source.few(batch, batch)
        one, other = (
            hash_inputs(framework, read, len(batch)) for read in (first_read, second_read)
        )
        if one is None or other is None:
            return OPAQUE
        if np.array_equal(one, other):
            return HASHED
        sample = int(batch[int(np.flatnonzero(one != other)[0])])
        rows = len(batch)
        if mixing.varies(framework, [first_read, second_read], rows).any():
            place = int(np.flatnonzero(np.asarray(batch) == sample)[0])
            copies = source.few(*[np.full(rows, sample)] * mixing.COPIES)
            if mixing.is_mixed(framework, copies, source.few(*[batch] * REREADS), rows, place):
                raise mixing.refusal(sample)
    warnings.warn(
        f"sample {sample} reads differently each time (random augmentation?); on resume, length, "
        "labels and ids decide whether the dataset is the same, not its content",
        stacklevel=2,
    )
    return UNSTABLE


def check_content(
    framework: Framework,
    source: MapSource,
    committed: Ranges,
    stored: Callable[[int, int], Array],
    path: object,
) -> None:
    """Compare up to three committed samples, the first, the middle and the last, with what was seen.

    Args:
        stored: the hashes of the rows `[start, stop)` that the store keeps.

    Raises:
        IdentityError: names the first of them that reads differently now.
    """
    chosen = picked(committed)
    with framework.kept_random_states():
        for index, now in zip(chosen, read_alone(framework, source, chosen), strict=True):
            then = int(stored(index, index + 1)[0])
            if now == then or seen_in_batch(framework, source, index) == then:
                continue
            if len(set(read_alone(framework, source, [index] * REREADS))) > 1:
                warnings.warn(
                    f"sample {index} reads differently each time (random augmentation?); length, "
                    "labels and ids decide whether the dataset is the same",
                    stacklevel=2,
                )
                return
            identity.refuse(path, [f"sample {index} of the dataset has another content"])


def check_seen(hashes: Array | None, stored: Array, indices: range, path: object) -> None:
    """Compare a batch that a stream passes by with what the store saw.

    Raises:
        IdentityError: names the first sample that differs.
    """
    if hashes is not None and not np.array_equal(hashes, stored):
        first = indices[int(np.flatnonzero(hashes != stored)[0])]
        identity.refuse(path, [f"sample {first} of the stream has another content"])


def picked(committed: Ranges) -> list[int]:
    """The first, the middle and the last committed row."""
    rows = len(committed)
    places = sorted({0, rows // 2, rows - 1})
    found = []
    for start, stop in committed:
        while places and places[0] < stop - start:
            found.append(start + places.pop(0))
        places = [place - (stop - start) for place in places]
    return found


def read_alone(framework: Framework, source: MapSource, indices: Sequence[int]) -> list[int | None]:
    """The hash of each sample, read by itself; None where it has no bytes.

    Raises:
        GenerationError: the dataset failed; names the sample.
    """
    hashes: list[int | None] = []
    for _, inputs in source.inputs([range(i, i + 1) for i in indices], few=True):
        one = hash_inputs(framework, inputs, 1)
        hashes.append(None if one is None else int(one[0]))
    return hashes


def hash_batch(framework: Framework, source: MapSource, batch: Indices) -> Array | None:
    """The hashes of the samples of a batch (uint64), read together; None where they have no bytes.

    Raises:
        GenerationError: the dataset failed; names the samples.
    """
    (inputs,) = source.few(batch)
    return hash_inputs(framework, inputs, len(batch))


def seen_in_batch(framework: Framework, source: MapSource, index: int) -> int | None:
    """The hash of a sample among its batch: collation may pad it to its neighbours' length."""
    batch: Indices = source.batches.holding(index)
    hashes = None if len(batch) == 1 else hash_batch(framework, source, batch)
    if hashes is None:
        return None
    place = int(np.flatnonzero(np.asarray(batch) == index)[0])
    return int(hashes[place])


def describe_dataset(
    source: Source,
    *,
    ids: Any,
    input_getter: Callable[[Any], Any] | None,
    fingerprint: Any,
    views: Array | None = None,
) -> dict[str, Any]:
    """What identifies a dataset beside the content of its samples."""
    described: dict[str, Any] = {
        "length": source.num_samples,
        "ids": None if ids is None else identity.hash_values(list(ids)),
    }
    if views is not None:
        described["views"] = identity.hash_values(views)
    if fingerprint is not None:
        return {**described, "fingerprint": str(fingerprint)}
    labels = labels_of(source.dataset, source.num_samples)
    return {
        **described,
        "labels": None if labels is None else identity.hash_values(labels),
        "input_getter": identity.describe_function(input_getter),
        "collate": identity.describe_function(source.assemble.collate),
    }


def labels_of(dataset: Any, samples: int | None) -> Any | None:
    """The labels of a dataset where they are at hand: one a sample, without reading samples."""
    if samples is None or samples > _MANY_LABELS or isinstance(dataset, Mapping):
        return None
    return one_a_sample(dataset, samples, ("targets", "labels", "y"), tensors=True)


def one_a_sample(
    dataset: Any, samples: int, names: Sequence[str], *, tensors: bool = False
) -> Any | None:
    """What an attribute of a dataset says of each sample, also through a Subset; None without one.

    Args:
        names: attributes, the first that has as many entries as there are samples counts.
        tensors: whether the last tensor of a TensorDataset is meant as well.
    """
    inner, indices = getattr(dataset, "dataset", None), getattr(dataset, "indices", None)
    if inner is not None and indices is not None and hasattr(inner, "__len__"):
        whole = one_a_sample(inner, len(inner), names, tensors=tensors)
        try:
            return None if whole is None else np.asarray(whole)[np.asarray(indices)]
        except (TypeError, ValueError, IndexError, RuntimeError):
            return None
    parts = getattr(dataset, "tensors", None)
    if tensors and isinstance(parts, tuple) and len(parts) > 1:
        return parts[-1] if getattr(parts[-1], "ndim", 0) == 1 else None
    for name in names:
        values = getattr(dataset, name, None)
        if values is None or callable(values) or isinstance(values, (str, bytes, Mapping)):
            continue
        try:
            if len(values) == samples:
                return values
        except TypeError:
            continue
    return None


def require_hashes(hashes: Array | None, indices: Indices) -> Array:
    """`hashes`, or an error where inputs that had bytes until now have none.

    Raises:
        ArgumentError: says to give dataset_fingerprint.
    """
    if hashes is None:
        raise ArgumentError(
            f"the inputs from sample {int(indices[0])} on cannot be hashed as those before; "
            "give dataset_fingerprint= to identify the dataset by a name of yours"
        )
    return hashes
