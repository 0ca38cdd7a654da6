"""The generator: parameters checked, one run put together, in memory or into a store.

A framework's folder makes it usable by naming its `Framework`; everything else is here, once.
"""

from __future__ import annotations

import os
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, overload

import numpy as np

from fostore.containers.rows import is_array
from fostore.errors import ArgumentError, RowError
from fostore.generate import fingerprint, output
from fostore.generate.adapters import adapt, fixed_batch
from fostore.generate.draws import Drawing, check_draws, drawn_source
from fostore.generate.engine import Computed, Engine
from fostore.generate.framework import Framework, NumpyFramework, Reading, Selection
from fostore.generate.loop import run
from fostore.generate.mixing import refuse_mixing
from fostore.generate.source import (
    Indices,
    MapSource,
    Sequential,
    Source,
    StreamSource,
    steps,
)
from fostore.generate.storing import StoreRun, Target, check_target
from fostore.loading.plan import check_batch_size
from fostore.places.names import destination, local_path
from fostore.progress import Progress
from fostore.reading.store import Store
from fostore.schema import identity
from fostore.schema.class_names import agreed_names
from fostore.schema.ranges import Range, Ranges
from fostore.schema.row import FLOATS, Array
from fostore.schema.sides.views import encode_views

Model = Callable[..., Any]
_ENDLESS = 1 << 62


class Generator(ABC):
    """What the generators of all frameworks share; a subclass only says how to make its framework."""

    def __init__(
        self,
        model: Model | Sequence[Model],
        device: str = "cpu",
        batch_size: int = 64,
        output_mode: str = "auto",
        output_transform: Callable[[Any], Any] | None = None,
        input_getter: Callable[[Any], Any] | None = None,
        model_name: str | None = None,
        *,
        members: bool = False,
    ) -> None:
        output.check_modes(output_mode)
        self._many = isinstance(model, (list, tuple)) and not callable(model)
        given: list[Any] = list(model) if self._many else [model]  # type: ignore[arg-type]
        if not given:
            raise ArgumentError("the list of models is empty")
        self._given = given
        self._models: list[Model] = [self._adapt(one) for one in given]
        for one in self._models:
            if not callable(one):
                raise ArgumentError(_uncallable(one))
        for name, function in (
            ("output_transform", output_transform),
            ("input_getter", input_getter),
        ):
            if function is not None and not callable(function):
                raise ArgumentError(f"{name} is {type(function).__name__}, expected a function")
        self._framework = self._make_framework(device, self._models)
        self.model = model
        self.device = self._framework.device
        self.batch_size = check_batch_size(batch_size)
        self.output_mode = output_mode
        self.output_transform = output_transform
        self.input_getter = input_getter
        self.model_name = model_name
        self.members = members
        self._arrays_seen = 0

    def _adapt(self, model: Any) -> Any:
        """The model as something to call, where this side knows how."""
        return model

    @abstractmethod
    def _make_framework(self, device: str, models: Sequence[Model]) -> Framework:
        """What runs these models; raises ArgumentError where the device is not there."""

    @overload
    def generate_distributions(
        self, dataset_or_loader: Any, progress: bool = True, *, store: None = None, **options: Any
    ) -> dict[int, Array]: ...

    @overload
    def generate_distributions(
        self,
        dataset_or_loader: Any,
        progress: bool = True,
        *,
        store: str | os.PathLike[str],
        **options: Any,
    ) -> Store: ...

    # The overloads only say which result comes when; every option is spelled out here.
    def generate_distributions(  # type: ignore[misc]
        self,
        dataset_or_loader: Any,
        progress: bool = True,
        *,
        store: str | os.PathLike[str] | None = None,
        exists: str = "resume",
        store_as: str = "probs",
        dtype: str = "float32",
        meta: Mapping[str, Any] | None = None,
        class_names: Sequence[str] | None = None,
        ids: Any = None,
        views: Any = None,
        rows: Range | None = None,
        unit_rows: int | None = None,
        commit_seconds: float = 1.0,
        tol: float | None = None,
        collate_fn: Callable[[Any], Any] | None = None,
        temperature: float = 1.0,
        pad_last: bool = False,
        model_fingerprint: str | None = None,
        dataset_fingerprint: str | None = None,
        accept_differences: bool = False,
        num_draws: int | None = None,
        seed: int = 0,
        recheck: bool = True,
    ) -> dict[int, Array] | Store:
        """One distribution for every sample, kept by dataset index: in memory, or in a store.

        A store is written while the model runs and committed about once a second; a run that was
        killed goes on where it stopped when the same call is made again, and ends with the same
        bits. The models run in evaluation mode and without gradients, in this thread; training
        flags and all random states are afterwards as before.

        Args:
            dataset_or_loader: a Dataset (`__len__` and `__getitem__`), a Subset, an iterable of
                samples, or a loader that does not shuffle; or what has rows: a frame, an Arrow table, a
                sparse matrix, a column, an array on disk. Not a single batch.
            progress: whether to show a bar on stderr.
            store: a path that ends in `.zarr`, `.h5` or `.hdf5`; None keeps the rows in memory.

        With a store, and only then:
            exists: "resume" goes on with a store that was made from the same model, dataset and
                parameters, and refuses any other; "fail" refuses a path that is taken; "overwrite"
                replaces the old store at the moment when the new one is whole.
            store_as: "probs", "log_probs" or "logits" (needs a model that gives logits).
            dtype: "float32", "float16", "bfloat16" or "float64".
            meta: any JSON, kept beside the rows.
            class_names: one name a class; by default the model's own (`classes_`,
                `config.id2label`), where it has any. Whatever is given, a model, a dataset and
                `class_names` that have one set of names in several orders are refused.
            ids: one stable key a sample, integers or strings.
            views: how the dataset augmented each sample, so that a student can see the same view: a
                seed a sample (n,), or a seed and the number of the view (n, 2); `Store.views`.
            rows: `(start, stop)`, to fill a part of the store in this call.
            unit_rows: rows a unit of the store, a power of two.
            commit_seconds: how much work a kill may cost.
            model_fingerprint, dataset_fingerprint: names of yours that stand for a model or data
                that cannot be hashed (a served model, a jit function over global parameters).
            accept_differences: go on with a store although the model or the dataset is another than
                it was made from; what differs is recorded in the metadata.
            recheck: compute one committed batch again and compare it (see "resume" in the docs) before
                a store goes on or is returned whole. False skips that, which is recorded in the
                metadata; code, attributes and globals that differ are then refused.

        In both cases:
            tol: how far a row's sum may be from 1; by default from the dtype.
            collate_fn: makes a batch of a list of samples.
            temperature: by which logits are divided before the softmax.
            num_draws: how often the one model is asked for each batch, with dropout on and
                everything else in evaluation mode; draws fill the member axis. A model that takes
                its randomness as a parameter (`rng`, `generator`, `seed`; of JAX `key` as well)
                is given it. A dataset that augments at random shows each draw a view of its own.
            seed: with `num_draws`: the randomness of a draw is a function of it, the draw and the
                batch (of a view: the sample), so that a run gives the same bits again.
            pad_last: the model takes batches of the full size only: the last sample of a short one is
                repeated, and its repeats are dropped. Not needed where the model declares its batch
                (ONNX Runtime, Keras, `jax.export`).

        Returns:
            A dict from dataset index to a float32 row (num_classes,), or (num_members, num_classes)
            for a list of models or `members`, (num_draws, num_classes) with draws; with `store`, the
            store, opened.

        Raises:
            ArgumentError: a parameter, or what is no dataset; nothing was run.
            RowError: outputs that are no distributions, with the samples named.
            IdentityError: the store was made from something else, or the classes of model and
                dataset are not the same in one order; says what differs.
            GenerationError: the model or the dataset failed; names the samples of the batch. In
                all cases what was computed before is committed.
        """
        output.check_modes(self.output_mode, store_as, temperature)
        if dtype not in FLOATS:
            raise ArgumentError(f"dtype is {dtype!r}, expected one of {list(FLOATS)}")
        framework = self._framework
        check_draws(num_draws, seed, self._many or self.members)
        draws = num_draws is not None
        reading = Reading(self.batch_size, self.input_getter, collate_fn, seed if draws else None)
        with framework.kept_random_states():  # a sampler may draw when it names its batches
            source = framework.source(dataset_or_loader, reading)

        def probed(collate: Callable[[Any], Any]) -> Source | None:
            if hasattr(dataset_or_loader, "__next__"):
                return None
            return framework.source(dataset_or_loader, replace(reading, collate_fn=collate))

        rows = _check_rows(rows, source)
        own_names = agreed_names(
            self._given,
            source.dataset,
            class_names,
            transformed=self.output_transform is not None,
        )
        batch_size = self._batch_size(dataset_or_loader, source)
        engine_options: dict[str, Any] = {"again": _reader(source)}
        drawn: dict[str, Any] = {}
        if num_draws is not None:
            source = drawn_source(framework, source, num_draws)
            engine_options = {"drawing": Drawing(framework, self._models[0], num_draws, seed)}
            drawn = {"draws": int(num_draws), "seed": int(seed), "batch_size": batch_size}
        engine = self._engine(
            Selection(self.output_mode, store_as, dtype, temperature),
            tol,
            fixed=self._fixed(dataset_or_loader, source, pad_last),
            **engine_options,
        )
        if store is None:
            only_stored = {
                "exists": exists != "resume",
                "store_as": store_as != "probs",
                "dtype": dtype != "float32",
                "meta": meta is not None,
                "class_names": class_names is not None,
                "ids": ids is not None,
                "views": views is not None,
                "unit_rows": unit_rows is not None,
                "accept_differences": accept_differences,
                "recheck": not recheck,
            }
            asked = [name for name, is_given in only_stored.items() if is_given]
            if asked:
                raise ArgumentError(
                    f"{', '.join(asked)}: without store= there is nowhere to keep it"
                )
            self._warn_of_arrays(dataset_or_loader)
            refuse_mixing(framework, source, Ranges.of(rows or (0, _ENDLESS)), probed)
            with framework.running(self._models, draws):
                return _in_memory(framework, source, engine, rows, progress, self.model_name)
        encoded = None if views is None else encode_views(views)
        target = Target(
            local_path(store),
            exists,
            dtype,
            meta,
            class_names,
            ids,
            encoded,
            rows,
            unit_rows,
            commit_seconds,
            tol,
            accept_differences,
            recheck,
            is_named=model_fingerprint is not None,
            own_names=own_names,
        )
        check_target(target, source)
        with framework.kept_random_states():
            dataset = fingerprint.describe_dataset(
                source,
                ids=ids,
                views=encoded,
                input_getter=self.input_getter,
                fingerprint=dataset_fingerprint,
            )
        recorded = {"num_draws": num_draws, "seed": seed} if draws else {}
        transform = identity.describe_function(self.output_transform)

        def described() -> dict[str, Any]:
            function = self.output_transform
            details = {} if function is None else framework.details(function)
            with framework.kept_random_states():
                return {"model": self._describe_models(model_fingerprint), "output": details}

        first = described()

        def made_from(mode: output.Mode) -> dict[str, Any]:
            said = {"mode": output.named(mode), "transform": transform, **first["output"], **drawn}
            return {"model": first["model"], "dataset": dict(dataset), "output": said}

        storing = StoreRun(
            framework,
            source,
            engine,
            target,
            made_from=made_from,
            described=described,
            meta=lambda mode: {**self._meta(mode, batch_size), **recorded},
            probed=probed,
            hashes_inputs=dataset_fingerprint is None,
        )
        with framework.running(self._models, draws):
            return storing.run(progress, self.model_name)

    def save_distributions(
        self,
        path: str | os.PathLike[str],
        distributions: Any,
        meta: Mapping[str, Any] | None = None,
    ) -> None:
        """Write distributions as the guide's JSON, whole or not at all.

        Args:
            path: a file; missing parent folders are made. A link is followed.
            distributions: a mapping from dataset index to a row, or a `Store`.
            meta: any JSON; `model_name` is added.

        Raises:
            ArgumentError, RowError: what cannot be written; the file is as it was.
            DamageError: rows of the store have changed since they were written; as well.
        """
        from fostore.files import json  # import cost
        from fostore.formats import SUFFIXES
        from fostore.reading.proof import Proven

        real = destination(path)
        if real.suffix.lower() in SUFFIXES:
            raise ArgumentError(
                f"{str(path)!r} is a store by its suffix, and save_distributions writes JSON: give a name that "
                "ends in .json, or generate with store= (of a store: fostore.convert(store, path))"
            )
        named = {} if self.model_name is None else {"model_name": self.model_name}
        if isinstance(distributions, Store):  # with its metadata, ids, class names and identity
            proven = Proven(distributions.reader, str(distributions.path))
            json.export(real, proven, {**named, **(meta or {})})
        else:
            described = {"model_name": self.model_name, **(meta or {})}
            json.save(real, distributions, described)

    def load_distributions(
        self, path: str | os.PathLike[str]
    ) -> tuple[dict[int, Array], dict[str, Any]]:
        """The distributions and the metadata of the guide's JSON.

        Returns:
            A dict from dataset index to a row, and the metadata.

        Raises:
            FormatError: the file is not what the guide describes; nothing is loaded by halves.
        """
        from fostore.files import json  # import cost

        return json.load(local_path(path))

    def to_device(self, data: Any) -> Any:
        """Nested data (dicts, lists, tuples, named tuples) with every array on the generator's device."""
        return self._framework.to_device(data)

    def _engine(self, selection: Selection, tol: float | None = None, **options: Any) -> Engine:
        return Engine(
            self._framework,
            self._models,
            many=self._many,
            transform=self.output_transform,
            selection=selection,
            was_auto=self.output_mode == "auto",
            members=self.members,
            tol=tol,
            **options,
        )

    def _fixed(self, data: Any, source: Source, pad_last: bool) -> int | None:
        """Samples that the models take at once, no more and no fewer; None where any number will do."""
        declared = {size for model in self._models if (size := fixed_batch(model)) is not None}
        if len(declared) > 1:
            raise ArgumentError(
                f"the models take batches of {sorted(declared)} samples; generate a store with each, "
                "and fostore.stack makes their members one store"
            )
        return declared.pop() if declared else self._batch_size(data, source) if pad_last else None

    def _batch_size(self, data: Any, source: Source) -> int:
        """Samples of a full batch: a loader brings its own."""
        batches = source.batches if isinstance(source, MapSource) else None
        if isinstance(batches, Sequential):
            return batches.batch_size
        if batches is not None:
            return max(map(len, batches.batches), default=self.batch_size)
        return getattr(data, "batch_size", None) or self.batch_size

    def _describe_models(self, fingerprint: str | None) -> dict[str, Any]:
        if fingerprint is not None:
            return {"fingerprint": str(fingerprint)}
        described = [self._framework.describe(model) for model in self._models]
        return {"members": described} if self._many else described[0]

    def _meta(self, mode: output.Mode, batch_size: int) -> dict[str, Any]:
        return {
            "model_name": self.model_name,
            "output_mode": output.named(mode),
            "batch_size": batch_size,
            "device": self.device,
            **self._framework.software(),
        }

    def _warn_of_arrays(self, data: Any) -> None:
        if is_array(data):
            self._arrays_seen += 1
            if self._arrays_seen == 2:
                warnings.warn(
                    "generate_distributions was given an array again: its rows are numbered from 0 "
                    "once more, so distributions.update(...) would replace those of the call before. "
                    "Give the whole dataset or a loader instead of one batch after another",
                    stacklevel=3,
                )


class FirstOrderDataGenerator(Generator):
    """Generates the distributions of any callable over NumPy arrays, without a framework.

    The model gets a batch of inputs (n, ...) and returns (n, num_classes), or with `members`
    (n, num_members, num_classes): a NumPy array, a list of numbers, or anything with `__array__` or
    `__dlpack__`. Three kinds of model need no wrapper: a scikit-learn estimator is asked for
    `predict_proba`, a Keras or TensorFlow model for `predict_on_batch` (inference, on whatever
    backend), an ONNX Runtime session is `run`.

    Args:
        model: a callable or one of those, or a list, whose outputs become the members of an ensemble.
        device: "cpu", "cuda", "gpu" or "tpu"; recorded only, the model places its data itself.
        batch_size: samples a batch.
        output_mode: "logits" applies a softmax, "probs" uses outputs as they are, "auto" decides by
            the first batch and checks every later one.
        output_transform: applied to the model's output, before `output_mode`. For a list of models
            it gets the list of outputs.
        input_getter: gets one sample of the dataset, returns the model's input; by default the
            first part of a tuple, or of a list that is no list of numbers, or else the sample itself.
        model_name: kept in the metadata.
        members: one model gives the members of an ensemble, (n, num_members, num_classes).

    Raises:
        ArgumentError: a parameter cannot be used, or the model is a torch module.

    >>> import numpy as np
    >>> generator = FirstOrderDataGenerator(lambda x: x @ np.eye(2), output_mode="logits")
    >>> generator.generate_distributions(np.zeros((3, 2)), progress=False)[2]
    array([0.5, 0.5], dtype=float32)
    """

    def _adapt(self, model: Any) -> Any:
        return adapt(model)

    def _make_framework(self, device: str, models: Sequence[Model]) -> Framework:
        return NumpyFramework(device, models)


def _in_memory(
    framework: Framework,
    source: Source,
    engine: Engine,
    rows: Range | None,
    shown: bool,
    name: str | None,
) -> dict[int, Array]:
    total = source.num_samples
    wanted = Ranges.of(rows or (0, _ENDLESS if total is None else total))
    result: dict[int, Array] = {}
    with Progress(shown, total if rows is None else rows[1] - rows[0], 0, name) as progress:

        def deliver(computed: Computed) -> None:
            kept = np.array(engine.collect(computed), np.float32)  # a copy: models reuse buffers
            _check(kept, computed.indices, engine)
            listed = computed.indices
            keys = listed.tolist() if isinstance(listed, np.ndarray) else listed
            if rows is None:
                result.update(zip(keys, kept, strict=True))
            else:
                result.update((k, row) for k, row in zip(keys, kept, strict=True) if k in wanted)
            progress.add(len(kept))

        run(steps(source, wanted), engine.compute, deliver, overlap=framework.overlaps)
    if rows is None and total is not None and len(result) != total:
        warnings.warn(
            f"[FirstOrderDataGenerator] generated {len(result)} distributions, but dataset length "
            f"is {total}.",
            stacklevel=3,
        )
    return result


def _reader(source: Source) -> Callable[[Indices], Any] | None:
    """What reads a batch once more, where batches are gathered freshly; else None."""
    if not isinstance(source, MapSource) or not source.fresh:
        return None

    def again(indices: Indices) -> Any:
        (inputs,) = source.few(indices)
        return inputs

    return again


def _uncallable(model: Any) -> str:
    came = f"the model is {type(model).__name__}, which cannot be called"
    if adapt(model) is model:
        return (
            f"{came}; expected a function of a batch that gives (samples, classes), or a list of them, "
            "whose outputs are members"
        )
    return f"{came}; fostore.FirstOrderDataGenerator runs it as it is"


def _check(rows: Array, indices: Indices, engine: Engine) -> None:
    assert engine.tol is not None
    try:
        output.check_kept(rows, indices, "probs", engine.tol)
    except RowError as error:
        raise engine.advice(error) from error


def _check_rows(rows: Any, source: Source) -> Range | None:
    if rows is None:
        return None
    if isinstance(source, StreamSource):
        raise ArgumentError("rows= needs a dataset with __len__ and __getitem__, this one streams")
    try:
        start, stop = (int(n.__index__()) for n in rows)
    except (TypeError, ValueError, AttributeError):
        raise ArgumentError(f"rows is {rows!r}, expected (start, stop)") from None
    if not 0 <= start < stop <= source.num_samples:
        raise ArgumentError(
            f"rows is {(start, stop)}, expected 0 <= start < stop <= {source.num_samples}"
        )
    return start, stop
