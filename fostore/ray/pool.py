"""A pool of actors that generate: each loads the model once, and writes the units of one share after another."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from inspect import signature
from typing import Any

import numpy as np
import ray
import ray.data

from fostore.errors import ArgumentError
from fostore.formats import is_store
from fostore.generate.frameworks import framework_of, generator_of
from fostore.generate.generator import Generator
from fostore.generate.storing import where as named
from fostore.places.names import place_of
from fostore.ray.pipeline import everywhere
from fostore.reading.store import Store
from fostore.reading.store import open as open_store
from fostore.schema.ranges import Ranges
from fostore.writing.shares import Share
from fostore.writing.units import check_shared, finish

_SHARES = 8
"""Shares a worker: what is left of one when another has ended, and what a share costs beside its rows, are small."""


def generate(
    dataset: Any,
    model: Callable[[], Any],
    store: str | os.PathLike[str],
    *,
    batch_size: int = 64,
    concurrency: int = 1,
    num_gpus: float | None = None,
    num_cpus: float | None = None,
    framework: str = "auto",
    generator: Mapping[str, Any] | None = None,
    ray_options: Mapping[str, Any] | None = None,
    shares: int | None = None,
    **options: Any,
) -> Store:
    """One distribution for every sample, by workers of a Ray cluster, in one store; goes on with what is there.

    Each worker is an actor: it makes the model once, compares weights, data and class names with the store before its
    first unit, computes rows and writes them itself, so that no row travels. Ray shows the shares that are done in its
    own bar and dashboard, and tries a share again whose worker died; units that were committed are not made again.
    Each share costs a batch more, which is compared with what is there, and the hash of the weights.

    Args:
        dataset: map-style (`__len__` and `__getitem__`); it travels to the workers, so give one that reads files. Or a
            class or function without arguments that returns it, called once in each worker.
        model: a class or function without arguments that returns the model, called once in each worker.
        store: a `.zarr` path that all machines see, or `s3://bucket/name.zarr`.
        batch_size: samples a batch of the model.
        concurrency: workers.
        num_gpus, num_cpus: of one worker; Ray finds a place for it.
        framework: "torch", "jax", "numpy", or "auto": what model and dataset are of.
        generator: more arguments of the `FirstOrderDataGenerator` of that framework, such as `output_mode`.
        ray_options: more that Ray Data's `map_batches` takes: `accelerator_type`, `resources`, `memory`, `runtime_env`.
        shares: pieces that the units are dealt out in; by default 8 a worker.
        options: of `generate_distributions`: `dtype`, `class_names`, `meta`, `unit_rows` ...

    Returns:
        The store, sealed.

    Raises:
        ArgumentError: a store that cannot be shared, or an option that has no meaning here; nothing was made.
        IdentityError: another model or dataset made what is there; says what differs.
        GenerationError, RowError: of a worker, as `generate_distributions` raises them; whatever else model or dataset
            raise while they are made, too. Ray's own error, with the traceback of the worker, is its cause. Units that
            are committed stay, and the same call goes on.

    >>> generate("data", dict, "t.zarr", rows=(0, 3))
    Traceback (most recent call last):
        ...
    fostore.errors.ArgumentError: rows= has no meaning here: Ray deals out what is missing, and shows how far it is
    """
    for name in ("rows", "shard", "exists", "progress"):
        if name in options:
            raise ArgumentError(
                f"{name}= has no meaning here: Ray deals out what is missing, and shows how far it is"
            )
    for name in options.keys() - signature(Generator.generate_distributions).parameters.keys():
        raise ArgumentError(
            f"{name}= is no option of generate_distributions; what makes the generator goes into "
            f"generator={{{name!r}: ...}}"
        )
    if concurrency < 1:
        raise ArgumentError(f"concurrency is {concurrency!r}, expected at least 1 worker")
    path = everywhere(named(store))
    count = _SHARES * concurrency if shares is None else shares
    todo = _open_shares(path, count)
    if todo:
        job = (dataset, model, path, count, batch_size, framework, dict(generator or {}), options)
        workers = min(concurrency, len(todo))
        _run(todo, job, workers, num_gpus=num_gpus, num_cpus=num_cpus, **(ray_options or {}))
    return finish(path)


def _open_shares(path: str, count: int) -> list[int]:
    """The shares of which rows are missing; all where there is no store yet."""
    if not is_store(place_of(path)):
        check_shared(path)
        return list(range(count))
    with open_store(path) as store:
        unit_rows, rows = store.header.unit_rows, store.num_samples or 0
        left = Ranges.of(*store.missing())
    claims = [Share(i, count).claim(-(-rows // unit_rows)) for i in range(count)]
    return [i for i, claim in enumerate(claims) if claim.rows(unit_rows, left)]


def _run(todo: list[int], job: tuple[Any, ...], workers: int, **options: Any) -> None:
    context = ray.data.DataContext.get_current().copy()
    context.raise_original_map_exception = True  # else Ray gives the text alone
    pool = ray.data.ActorPoolStrategy(
        min_size=1,  # it begins with what the cluster has
        max_size=workers,
        initial_size=workers,
        max_tasks_in_flight_per_actor=1,  # a share waits for who is free, not behind one that runs
    )
    with ray.data.DataContext.current(context):
        dealt = ray.data.from_items([{"share": i} for i in todo], override_num_blocks=len(todo))
        done = dealt.map_batches(
            _Worker, fn_constructor_args=job, batch_size=1, compute=pool, **options
        )
        try:
            done.materialize()
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, _WorkerError):
                raise error.cause.args[0] from error
            raise


class _WorkerError(ray.exceptions.UserCodeException):
    """An error of a worker, whole: `args[0]`. Of this class, since Ray takes others for errors of its own."""


class _Worker:
    """One actor: the model once, then the missing units of each share that it is given."""

    def __init__(
        self,
        dataset: Any,
        model: Callable[[], Any],
        path: str,
        count: int,
        batch_size: int,
        framework: str,
        arguments: dict[str, Any],
        options: dict[str, Any],
    ) -> None:
        self._job = dataset, model, framework, arguments, batch_size
        self._path, self._count, self._options = path, count, options
        self._generator: Any = None

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        try:
            # Here, for Ray starts an actor again and again that cannot be made.
            if self._generator is None:
                self._begin(*self._job)
            for share in batch["share"].tolist():
                self._generator.generate_distributions(
                    self._dataset,
                    store=self._path,
                    shard=(share, self._count),
                    progress=False,
                    **self._options,
                )
        except Exception as error:
            raise _WorkerError(error) from error
        return {"share": np.asarray(batch["share"])}

    def _begin(
        self, dataset: Any, model: Any, framework: str, arguments: dict[str, Any], batch_size: int
    ) -> None:
        is_made = isinstance(dataset, type) or not hasattr(dataset, "__getitem__")
        self._dataset = dataset() if is_made and callable(dataset) else dataset
        made = model()
        chosen = framework_of(made, self._dataset) if framework == "auto" else framework
        self._generator = generator_of(chosen)(made, batch_size=batch_size, **arguments)
