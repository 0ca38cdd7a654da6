"""Samples of torch: datasets, and DataLoaders rebuilt so that only missing rows are read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
    default_collate,
    default_convert,
)

from fostore.containers.rows import Rows, as_dataset, find, is_array
from fostore.errors import ArgumentError, FostoreError
from fostore.generate.assembly import Assembly, has_batch_axis, input_of
from fostore.generate.datasets import (
    is_map,
    length_of,
    refuse_batches,
    refuse_shuffling,
    refuse_unknown,
    rows_samples,
)
from fostore.generate.randomness import Seeded
from fostore.generate.samples import Indexed, Indices, Listed, Reading, Samples, Sequential, Stream
from fostore.loading.loader import SimpleDataLoader
from fostore.nested import PerSample, is_numbers
from fostore.torch.arrays import Held, tensor_of, together_held
from fostore.torch.workers import starting_workers

_RANDOM = (RandomSampler, SubsetRandomSampler, WeightedRandomSampler)


def torch_samples(data: Any, reading: Reading) -> Samples:
    """The samples of a Dataset, an IterableDataset, a DataLoader, or an iterable of samples."""
    if isinstance(data, DataLoader):
        return _loader_samples(data, reading)
    if isinstance(data, SimpleDataLoader):
        refuse_shuffling(data)
        options = {"collate_fn": reading.collate_fn or data.collate_fn, "drop_last": data.drop_last}
        data = _with_batches(as_dataset(data.dataset), data.batch_size, options)
        return _loader_samples(data, reading)
    rows = _rows_of(data)
    if rows is not None:
        assemble = _assembly(reading, reading.collate_fn)
        return _rows_samples(rows, replace(reading, seed=None), assemble)
    if is_array(data) or isinstance(data, torch.Tensor):
        raise ArgumentError(
            f"a bare {type(data).__name__} is a batch, not a Dataset; use "
            "torch.utils.data.TensorDataset(tensor), or a DataLoader over a Dataset with "
            "shuffle=False: rows are kept by dataset index"
        )
    refuse_batches(data)
    if not isinstance(data, IterableDataset) and not is_map(data):
        refuse_unknown(data)
    return _loader_samples(
        _with_batches(data, reading.batch_size, {"collate_fn": reading.collate_fn}), reading
    )


def _assembly(reading: Reading, collate: Any) -> Assembly:
    return Assembly(reading.input_getter, collate, together_held, sequences=reading.sequences)


def _rows_of(data: Any) -> Rows | None:
    """A container whose rows are samples; numbers in memory are taken for a batch."""
    if isinstance(data, torch.Tensor) or type(data).__module__.partition(".")[0] in (
        "jax",
        "jaxlib",
    ):
        return None
    in_memory = isinstance(data, np.ndarray) and not isinstance(data, np.memmap)
    return None if in_memory and data.dtype.kind in "biufcmM" else find(data)


def _rows_samples(rows: Rows, reading: Reading, assemble: Assembly) -> Indexed:
    place = tensor_of if rows.has_dtype else _held
    return rows_samples(rows, reading, assemble, numbers_only=True, place=place)


def _held(batch: Any) -> Any:
    is_texts = isinstance(batch, PerSample) and not is_numbers(batch[0])
    return batch if is_texts else Held(batch)


def _with_batches(data: Any, batch_size: int, options: dict[str, Any]) -> DataLoader[Any]:
    is_stream = isinstance(data, IterableDataset) or not is_map(data)
    if is_stream and not isinstance(data, IterableDataset):
        data = _Iterated(data) if length_of(data) is None else _Sized(data)
    return DataLoader(data, batch_size=batch_size, **options)


def _loader_samples(loader: DataLoader[Any], reading: Reading) -> Samples:
    own_iter = type(loader).__iter__ is not DataLoader.__iter__
    if own_iter and not type(loader).__module__.startswith(("torchdata.", "accelerate.")):
        raise ArgumentError(
            f"{type(loader).__name__} iterates in a way of its own, so the order of its samples is "
            "not known; give its dataset, with collate_fn= where it has one"
        )
    collate: Any = reading.collate_fn or loader.collate_fn
    if collate in (default_collate, default_convert):  # torch's, and no user's
        collate = None
    assemble = _assembly(reading, collate)
    if isinstance(loader.dataset, IterableDataset):
        return _stream_samples(loader, assemble)
    dataset = as_dataset(loader.dataset)
    samples = len(dataset)
    batches = _batches_of(loader, samples)
    if isinstance(dataset, Rows) and assemble.getter is None and collate is None:
        return replace(_rows_samples(dataset, reading, assemble), batches=batches)
    samples_read: Any = dataset if reading.seed is None else Seeded(dataset, reading.seed)

    def read(wanted: Iterable[Indices], assemble: Assembly, few: bool) -> Iterator[Any]:
        workers = min(loader.num_workers, 1) if few else loader.num_workers
        rebuilt: DataLoader[Any] = DataLoader(
            samples_read,
            batch_sampler=map(_listed, wanted),
            collate_fn=assemble,
            **_options(loader, workers),
        )
        with starting_workers():
            return iter(rebuilt)

    return Indexed(
        dataset,
        samples,
        batches,
        read,
        assemble,
        fresh=collate is None,
        seeded=reading.seed is not None,
    )


def _stream_samples(loader: DataLoader[Any], assemble: Assembly) -> Stream:
    if loader.num_workers > 1:
        raise ArgumentError(
            f"{loader.num_workers} workers iterate the dataset side by side, so the order of its "
            "samples is not known; use num_workers=0 or 1, or a dataset with __getitem__"
        )

    def read(assemble: Assembly) -> Iterator[Any]:
        # Without a batch size the dataset makes the batches, and each comes to the collate_fn by itself.
        together = assemble if loader.batch_size is not None else _Whole(assemble)
        rebuilt = DataLoader(
            loader.dataset,
            batch_size=loader.batch_size,
            drop_last=loader.drop_last,
            collate_fn=_Handing(together),
            **_options(loader, loader.num_workers),
        )
        with starting_workers():
            return map(_batch_of, iter(rebuilt))

    return Stream(loader.dataset, length_of(loader.dataset), read, assemble, loader.drop_last)


def _options(loader: DataLoader[Any], workers: int) -> dict[str, Any]:
    """What a loader reads with, beside its dataset and its batches."""
    options: dict[str, Any] = {
        "num_workers": workers,
        "pin_memory": loader.pin_memory and torch.accelerator.is_available(),
        "worker_init_fn": loader.worker_init_fn,
        "timeout": loader.timeout if workers else 0,
    }
    if loader.generator is not None:  # a clone: the loader's own generator stays as it is
        options["generator"] = torch.Generator(loader.generator.device)
        options["generator"].set_state(loader.generator.get_state())
    if workers:
        options["multiprocessing_context"] = loader.multiprocessing_context
        options["prefetch_factor"] = loader.prefetch_factor
    return options


def _batches_of(loader: DataLoader[Any], samples: int) -> Sequential | Listed:
    """The dataset indices of a loader's batches, as its samplers name them."""
    if loader.batch_sampler is None:
        raise ArgumentError(
            "a DataLoader with batch_size=None hands out single samples; give it a batch_size, or "
            "give its dataset"
        )
    sampler: Any = loader.sampler
    dataset: Any = loader.dataset
    by_batch: Any = loader.batch_sampler
    own = type(by_batch) is BatchSampler
    inner: Any = by_batch.sampler if own else getattr(by_batch, "sampler", None)
    for one in (sampler, inner):
        if isinstance(one, _RANDOM):
            raise ArgumentError(
                f"the loader shuffles ({type(one).__name__}); distributions are kept by dataset "
                "index: use shuffle=False to generate (and shuffle=True as you like in "
                "output_dataloader)"
            )
    if own:
        size, drop_last = by_batch.batch_size, by_batch.drop_last
        if isinstance(inner, SequentialSampler) and inner.data_source is dataset:
            return Sequential(samples, size, drop_last)
        listed = Listed.of(by_batch, samples)
        if listed.num_rows == samples:
            # A permutation of all samples: the order of reading changes no row, so it is the dataset's.
            return Sequential(samples, size)
        return listed
    return Listed.of(by_batch, samples)


def _listed(indices: Indices) -> list[int]:
    return indices.tolist() if isinstance(indices, np.ndarray) else list(indices)


@dataclass(frozen=True, slots=True)
class _Whole:
    """The input of a batch that the dataset made itself."""

    assemble: Assembly

    def __call__(self, batch: Any) -> Any:
        sequences = self.assemble.sequences
        is_told = self.assemble.getter or self.assemble.collate or sequences
        if not is_told and not has_batch_axis(batch):
            raise ArgumentError(
                "a DataLoader with batch_size=None hands out what its dataset gives, and this does not show "
                "whether it is a batch or one sample (a batch has labels, one a row): give the loader a "
                "batch_size where the dataset gives samples, collate_fn=lambda batch: batch where it "
                "gives batches"
            )
        collate = self.assemble.collate or default_convert
        if self.assemble.getter is not None:
            made = collate(self.assemble.getter(batch))
        else:
            made = input_of(collate(batch))
        return made if sequences is None else sequences.handed(made)


@dataclass(frozen=True, slots=True)
class _Handing:
    """Hands errors of ours over as batches: a worker's are raised as text, and a stream is not read again."""

    together: Any

    def __call__(self, samples: Any) -> Any:
        try:
            return self.together(samples)
        except FostoreError as error:
            return error


def _batch_of(handed: Any) -> Any:
    if isinstance(handed, FostoreError):
        raise handed
    return handed


class _Iterated(IterableDataset[Any]):
    """Any iterable of samples as an IterableDataset."""

    def __init__(self, samples: Iterable[Any]) -> None:
        self._samples = samples

    def __iter__(self) -> Iterator[Any]:
        return iter(self._samples)


class _Sized(_Iterated):
    """Samples whose number is known."""

    def __len__(self) -> int:
        return len(self._samples)  # type: ignore[arg-type]  # made for those alone that have one
