"""What counts as a dataset: how a list, an array, a stream or a SimpleDataLoader becomes a source.

Frameworks share these rules; what a torch DataLoader is, the torch folder knows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from fostore.errors import ArgumentError, GenerationError
from fostore.generate.randomness import Seeded
from fostore.generate.source import (
    Collate,
    Getter,
    Indices,
    MapSource,
    Sequential,
    Source,
    StreamSource,
    collate_inputs,
    read_samples,
    read_stream,
)
from fostore.loading.loader import SimpleDataLoader

_FEW = 4
"""A list of so few arrays is taken for a collated batch, not for a dataset."""


def numpy_source(
    data: Any,
    batch_size: int,
    getter: Getter | None,
    collate: Collate | None,
    seed: int | None = None,
) -> Source:
    """A source over anything that is no torch DataLoader; batches are NumPy arrays.

    With a `seed`, that of draws, a sample is read from random states that are a function of it.

    Raises:
        ArgumentError: `data` is a batch, or no dataset at all.
    """
    if isinstance(data, SimpleDataLoader):
        loader = data
        refuse_shuffling(loader)
        inner = numpy_source(
            loader.dataset, loader.batch_size, getter, collate or loader.collate_fn, seed
        )
        if isinstance(inner, MapSource):
            batches = Sequential(inner.num_samples, loader.batch_size, loader.drop_last)
            return replace(inner, batches=batches)
        return inner
    if is_array(data) and (seed is None or (getter is None and collate is None)):
        return _array_source(data, batch_size, getter, collate)
    if not is_array(data):
        refuse_batches(data)
    if is_map(data):
        samples = len(data)
        samples_of = data if seed is None else Seeded(data, seed)

        def read(batches: Iterable[Indices], few: bool) -> Iterator[Any]:
            return read_samples(samples_of, batches, getter, collate)

        batches = Sequential(samples, batch_size)
        is_seeded = seed is not None
        fresh = collate is None
        return MapSource(data, samples, batches, read, collate, fresh=fresh, seeded=is_seeded)
    refuse_unknown(data)
    return StreamSource(
        data,
        length_of(data),
        lambda: read_stream(iter(data), batch_size, getter, collate),
        collate=collate,
    )


def _array_source(
    data: Any, batch_size: int, getter: Getter | None, collate: Collate | None
) -> MapSource:
    rows = np.asarray(data)

    def read(batches: Iterable[Indices], few: bool) -> Iterator[Any]:
        for indices in batches:
            if isinstance(indices, range):
                part = rows[indices.start : indices.stop]
            else:
                part = rows[indices]
            plain = getter is None and collate is None
            yield part if plain else collate_inputs(list(part), getter, collate)

    return MapSource(data, len(rows), Sequential(len(rows), batch_size), read, collate)


def is_array(data: Any) -> bool:
    """Whether `data` is itself an array with rows."""
    has_shape = hasattr(data, "shape") and hasattr(data, "dtype") and hasattr(data, "ndim")
    return has_shape and hasattr(data, "__array__") and data.ndim > 0


def is_map(data: Any) -> bool:
    """Whether samples can be asked for by index and counted."""
    return hasattr(data, "__getitem__") and length_of(data) is not None


def length_of(data: Any) -> int | None:
    """`len(data)`, or None where it has none.

    Raises:
        GenerationError: it failed for another reason.
    """
    try:
        return len(data)
    except (TypeError, NotImplementedError):
        return None
    except Exception as error:
        raise GenerationError(
            f"len() of the dataset failed: {type(error).__name__}: {error}"
        ) from error


def refuse_batches(data: Any) -> None:
    """Raise for what looks like one collated batch, whose rows would be taken for samples."""
    advice = (
        "give the Dataset itself, or a DataLoader over it with shuffle=False: "
        "rows are kept by dataset index, and a batch alone does not say which samples it holds"
    )
    if isinstance(data, Mapping):
        keys = ", ".join(repr(key) for key in list(data)[:4])
        raise ArgumentError(f"a mapping ({keys}) is not a Dataset; {advice}")
    if isinstance(data, (list, tuple)) and data and all(is_array(part) for part in data):
        shapes = {(tuple(part.shape), str(part.dtype)) for part in data}
        lengths = {part.shape[0] for part in data}
        mixed = len(shapes) > 1 and len(lengths) == 1
        if isinstance(data, tuple) or len(data) <= _FEW or mixed:
            parts = ", ".join(str(tuple(part.shape)) for part in data[:4])
            raise ArgumentError(
                f"a {type(data).__name__} of {len(data)} arrays (of shapes {parts}) looks like one "
                f"batch, not like a Dataset; {advice}"
            )


def refuse_unknown(data: Any) -> None:
    """Raise for what cannot be iterated as samples, and for loaders whose order nobody knows."""
    if hasattr(data, "dataset") and hasattr(data, "batch_size"):
        raise ArgumentError(
            f"{type(data).__name__} is a loader whose order of samples is not known here; give its "
            "dataset, with collate_fn= where it has one (a torch DataLoader: fostore.torch)"
        )
    if not isinstance(data, Iterable):
        raise ArgumentError(
            f"{type(data).__name__} is neither a Dataset (__len__ and __getitem__), nor an iterable "
            "of samples, nor a DataLoader"
        )


def refuse_shuffling(loader: SimpleDataLoader) -> None:
    """Raise for a loader that shuffles: its rows would come in another order than the dataset's."""
    if loader.shuffle:
        raise ArgumentError(
            "the loader shuffles; distributions are kept by dataset index: use shuffle=False to "
            "generate (and shuffle=True as you like in output_dataloader)"
        )
