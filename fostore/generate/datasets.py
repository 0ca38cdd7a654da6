"""What counts as a dataset: how a list, an array, a stream or a SimpleDataLoader becomes samples.

Frameworks share these rules; what a torch DataLoader is, the torch folder knows.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np

from fostore.containers.collate import samples_of
from fostore.containers.columns import is_frame, is_sparse
from fostore.containers.rows import Rows, find, is_array
from fostore.errors import ArgumentError, GenerationError
from fostore.generate.assembly import Assembly
from fostore.generate.randomness import Seeded
from fostore.generate.samples import Indexed, Indices, Reading, Samples, Sequential, Stream
from fostore.loading.loader import SimpleDataLoader
from fostore.nested import leaves

_FEW = 4
"""A list of so few arrays is taken for a collated batch, not for a dataset."""


def numpy_samples(data: Any, reading: Reading, *, numbers_only: bool = False) -> Samples:
    """Samples of anything that is no torch DataLoader; batches are NumPy arrays, or parts of a container."""
    if isinstance(data, SimpleDataLoader):
        refuse_shuffling(data)
        collate = reading.collate_fn or data.collate_fn
        reading = replace(reading, batch_size=data.batch_size, collate_fn=collate)
        samples = numpy_samples(data.dataset, reading, numbers_only=numbers_only)
        if isinstance(samples, Stream):
            return samples
        batches = Sequential(samples.num_samples, data.batch_size, data.drop_last)
        return replace(samples, batches=batches)
    assemble = Assembly(reading.input_getter, reading.collate_fn, sequences=reading.sequences)
    rows = find(data)
    if rows is not None:
        return rows_samples(rows, reading, assemble, numbers_only=numbers_only)
    refuse_batches(data)
    if not is_map(data):
        refuse_unknown(data)

        def stream(assemble: Assembly) -> Iterator[Any]:
            return map(assemble, _listed_by(iter(data), reading.batch_size))

        return Stream(data, length_of(data), stream, assemble)
    return Indexed(
        data,
        len(data),
        Sequential(len(data), reading.batch_size),
        _reader(data if reading.seed is None else Seeded(data, reading.seed)),
        assemble,
        fresh=reading.collate_fn is None,
        seeded=reading.seed is not None,
    )


def rows_samples(
    rows: Rows,
    reading: Reading,
    assemble: Assembly,
    *,
    numbers_only: bool,
    place: Callable[[Any], Any] | None = None,
) -> Indexed:
    """The rows of a container: batches are parts of it, unless a getter or collate_fn sees its samples.

    Args:
        numbers_only: the side's models take arrays, so that columns of text are refused.
        place: makes of a part what the side takes.
    """
    batches = Sequential(len(rows), reading.batch_size)
    if assemble.getter or assemble.collate or assemble.sequences:
        is_seeded = reading.seed is not None
        read = _reader(rows if reading.seed is None else Seeded(rows, reading.seed))
        return Indexed(rows, len(rows), batches, read, assemble, seeded=is_seeded)
    if numbers_only:
        rows.require_numbers()

    def parts(batches: Iterable[Indices], _: Assembly, few: bool) -> Iterator[Any]:
        taken = map(rows.take, batches)
        return taken if place is None else map(place, taken)

    # Not seeded: rows that nobody transforms read the same in every draw.
    return Indexed(rows, len(rows), batches, parts, assemble)


def _reader(dataset: Any) -> Callable[[Iterable[Indices], Assembly, bool], Iterator[Any]]:
    def read(batches: Iterable[Indices], assemble: Assembly, few: bool) -> Iterator[Any]:
        for indices in batches:
            listed = indices.tolist() if isinstance(indices, np.ndarray) else list(indices)
            yield assemble(samples_of(dataset, listed))

    return read


def _listed_by(samples: Iterator[Any], size: int) -> Iterator[list[Any]]:
    """Lists of `size` samples; the last one may be short."""
    while listed := list(islice(samples, size)):
        yield listed


def is_map(data: Any) -> bool:
    """Whether samples can be asked for by index and counted."""
    return hasattr(data, "__getitem__") and length_of(data) is not None


def length_of(data: Any) -> int | None:
    """`len(data)`, or None where it has none."""
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
    if isinstance(data, (str, bytes, os.PathLike)):
        raise ArgumentError(
            f"{str(data)!r:.60} is text or a path, not a Dataset; read it first, and give what was read"
        )
    if isinstance(data, Mapping):
        keys = ", ".join(repr(key) for key in list(data)[:4])
        raise ArgumentError(
            f"a mapping ({keys}) is not a Dataset; {advice}. A dict of columns is one as "
            "pandas.DataFrame(columns), or as a list of one dict a sample"
        )
    if isinstance(data, (list, tuple)) and data and all(is_array(part) for part in data):
        shapes = {(tuple(part.shape), str(part.dtype)) for part in data}
        lengths = {part.shape[0] for part in data}
        mixed = len(shapes) > 1 and len(lengths) == 1
        if isinstance(data, tuple) or len(data) <= _FEW or mixed:
            parts = ", ".join(str(tuple(part.shape)) for part in data[:4])
            raise ArgumentError(
                f"a {type(data).__name__} of {len(data)} arrays (of shapes {parts}) looks like one "
                f"batch, not like a Dataset; {advice}. Where each array is one sample: "
                "[(array,) for array in arrays]"
            )
    if isinstance(data, (list, tuple)) and data and (is_frame(data[0]) or is_sparse(data[0])):
        kind = type(data[0]).__name__
        raise ArgumentError(
            f"a {type(data).__name__} of {len(data)} parts, the first a {kind}, is no Dataset; give one "
            f"{kind}, whose rows are the samples (the inputs alone: labels are not generated)"
        )


_LOADERS = ("dataset", "loader", "dataloader", "sampler", "batch_sampler", "batch_size", "root")
"""Attributes of what hands out the samples of something else, in an order and in batches of its own."""


def refuse_unknown(data: Any) -> None:
    """Raise for what cannot be iterated as samples, and for loaders whose order nobody knows."""
    kind = type(data).__name__
    inner = next((name for name in _LOADERS if getattr(data, name, None) is not None), None)
    if inner is None:
        hidden = getattr(data, "__dict__", {}).items()
        inner = next((name for name, value in hidden if _is_loader(value)), None)
    if inner is None and type(data).__module__.startswith("torchdata.nodes"):
        inner = "source"
    if inner is not None:
        raise ArgumentError(
            f"{kind} is a loader (it has {inner!r}), whose batches and order of samples are not known "
            "here; give its dataset, with collate_fn= where it has one (a torch DataLoader: "
            "fostore.torch)"
        )
    if not isinstance(data, Iterable):
        raise ArgumentError(
            f"{kind} is neither a Dataset (__len__ and __getitem__), nor an iterable "
            "of samples, nor a DataLoader"
        )
    if _is_batched(data):
        raise ArgumentError(
            f"{kind} gives batches (its element_spec has a free first axis), and rows are kept by sample: "
            "give the samples, as dataset.unbatch() does"
        )


def _is_loader(value: Any) -> bool:
    return hasattr(value, "dataset") and hasattr(value, "batch_size")


def _is_batched(data: Any) -> bool:
    """Whether TensorFlow's description of a dataset's elements has a free axis in front of each."""
    spec = getattr(data, "element_spec", None)
    shapes = [getattr(leaf, "shape", None) for _, leaf in leaves(spec)] if spec is not None else []
    return bool(shapes) and all(shape and shape[0] is None for shape in map(_as_tuple, shapes))


def _as_tuple(shape: Any) -> tuple[Any, ...]:
    try:
        return tuple(shape)
    except (TypeError, ValueError):  # of unknown rank
        return ()


def refuse_shuffling(loader: SimpleDataLoader) -> None:
    """Raise for a loader that shuffles: its rows would come in another order than the dataset's."""
    if loader.shuffle:
        raise ArgumentError(
            "the loader shuffles; distributions are kept by dataset index: use shuffle=False to "
            "generate (and shuffle=True as you like in output_dataloader)"
        )
