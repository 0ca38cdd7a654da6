"""What counts as a dataset: how a list, an array, a stream or a SimpleDataLoader becomes a source.

Frameworks share these rules; what a torch DataLoader is, the torch folder knows.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from fostore.containers.columns import is_frame, is_sparse
from fostore.containers.rows import Rows, find, is_array
from fostore.errors import ArgumentError, GenerationError
from fostore.generate.assembly import Assembly, Collate
from fostore.generate.randomness import Seeded
from fostore.generate.source import (
    Indices,
    MapSource,
    Sequential,
    Source,
    StreamSource,
    read_samples,
    read_stream,
)
from fostore.loading.loader import SimpleDataLoader
from fostore.nested import Getter, leaves

_FEW = 4
"""A list of so few arrays is taken for a collated batch, not for a dataset."""


def numpy_source(
    data: Any,
    batch_size: int,
    getter: Getter | None,
    collate: Collate | None,
    *,
    numbers_only: bool = False,
    seed: int | None = None,
) -> Source:
    """A source over anything that is no torch DataLoader; batches are NumPy arrays, or parts of a container.

    Args:
        numbers_only: see `rows_source`.

    With a `seed`, that of draws, a sample is read from random states that are a function of it.

    Raises:
        ArgumentError: `data` is a batch, or no dataset at all.
    """
    if isinstance(data, SimpleDataLoader):
        loader = data
        refuse_shuffling(loader)
        inner = numpy_source(
            loader.dataset,
            loader.batch_size,
            getter,
            collate or loader.collate_fn,
            numbers_only=numbers_only,
            seed=seed,
        )
        if isinstance(inner, MapSource):
            batches = Sequential(inner.num_samples, loader.batch_size, loader.drop_last)
            return replace(inner, batches=batches)
        return inner
    assemble = Assembly(getter, collate)
    rows = find(data)
    if rows is not None:
        return rows_source(rows, batch_size, assemble, numbers_only=numbers_only, seed=seed)
    refuse_batches(data)
    if is_map(data):
        samples = len(data)
        samples_read = data if seed is None else Seeded(data, seed)

        def read(batches: Iterable[Indices], few: bool) -> Iterator[Any]:
            return read_samples(samples_read, batches, assemble)

        batches = Sequential(samples, batch_size)
        return MapSource(
            data,
            samples,
            batches,
            read,
            assemble,
            fresh=collate is None,
            seeded=seed is not None,
        )
    refuse_unknown(data)
    return StreamSource(
        data,
        length_of(data),
        lambda: read_stream(iter(data), batch_size, assemble),
        assemble,
    )


def rows_source(
    rows: Rows,
    batch_size: int,
    assemble: Assembly,
    *,
    numbers_only: bool,
    place: Callable[[Any], Any] = lambda batch: batch,
    seed: int | None = None,
) -> MapSource:
    """A source over a container: batches are parts of it, unless a getter or collate_fn sees its samples.

    Args:
        numbers_only: the side's models take arrays, so that columns of text are refused.
        place: makes of a part what the side takes.
    """
    plain = assemble.getter is None and assemble.collate is None
    if plain and numbers_only:
        rows.require_numbers()

    is_seeded = (
        seed is not None and not plain
    )  # rows that nobody transforms read the same in every draw
    samples_read = Seeded(rows, seed) if seed is not None and is_seeded else rows

    def read(batches: Iterable[Indices], few: bool) -> Iterator[Any]:
        if not plain:
            return read_samples(samples_read, batches, assemble)
        return (place(rows.take(indices)) for indices in batches)

    batches = Sequential(len(rows), batch_size)
    return MapSource(rows, len(rows), batches, read, assemble, seeded=is_seeded)


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
