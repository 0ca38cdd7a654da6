"""The generator: parameters checked, one generation put together, in memory or into a store.

A framework's folder makes it usable by naming its `Framework`; everything else is here, once.
"""

from __future__ import annotations

import math
import os
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, overload

from fostore.containers.rows import is_array
from fostore.encodings import chosen
from fostore.errors import ArgumentError
from fostore.formats import SUFFIXES
from fostore.generate.adapters import adapt, fixed_of
from fostore.generate.draws import Drawing, check_draws, drawn_samples
from fostore.generate.engine import Engine
from fostore.generate.framework import Framework, Kept, Model
from fostore.generate.generation import Generation
from fostore.generate.models import Models
from fostore.generate.options import Options
from fostore.generate.recording import record
from fostore.generate.samples import Indexed, Indices, Reading, Samples, checked_range
from fostore.generate.tokens import Sequences, check_rows_of_tokens
from fostore.places.names import destination, local_path
from fostore.reading.proof import Proven
from fostore.reading.store import Store
from fostore.schema.class_names import agreed_names
from fostore.schema.integers import integer
from fostore.schema.jsontext import check_object
from fostore.schema.ranges import Range
from fostore.schema.row import Array


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
        Options(output_mode=output_mode).check_choices()  # type: ignore[arg-type]  # that is checked
        # A list that can be called, as an ensemble of a class of its own, is one model.
        self._many = isinstance(model, (list, tuple)) and not callable(model)
        given: list[Any] = list(model) if self._many else [model]  # type: ignore[arg-type]  # a list here
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
        self.batch_size = integer(batch_size, "batch_size", 1)
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
        store_as: str = "auto",
        dtype: str = "auto",
        meta: Mapping[str, Any] | None = None,
        class_names: Sequence[str] | None = None,
        ids: Any = None,
        views: Any = None,
        rows: Range | str | None = None,
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
        keep_labels: bool = False,
        encoding: str | Mapping[str, Any] | None = None,
        k: int | None = None,
        rule: str | None = None,
        temperatures: Sequence[float] | None = None,
        max_kl: float | None = None,
        tokenizer: Any = None,
        shard: Any = None,
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
            progress: whether to show a bar on stderr, or a line every ten seconds where that is no terminal.
            store: a path that ends in `.zarr`, `.h5` or `.hdf5`, or the url of a Zarr store on S3 (`s3://`), where a
                kill costs up to one unit; None keeps the rows in memory.

        With a store, and only then:
            exists: "resume" goes on with a store that was made from the same model, dataset and
                parameters, and refuses any other; "fail" refuses a path that is taken; "overwrite"
                replaces the old store at the moment when the new one is whole.
            store_as: "probs", "log_probs" or "logits" (needs a model that gives logits); "auto" is probs, and
                where an encoding is named what it keeps best.
            dtype: "float32", "float16", "bfloat16" or "float64"; "auto" is float32, and where an encoding is
                named what it usually has.
            meta: any JSON, kept beside the rows.
            class_names: one name a class; by default the model's own (`classes_`,
                `config.id2label`), where it has any. Whatever is given, a model, a dataset and
                `class_names` that have one set of names in several orders are refused.
            ids: one stable key a sample, integers or strings.
            views: how the dataset augmented each sample, so that a student can see the same view: a
                seed a sample (n,), or a seed and the number of the view (n, 2); `Store.views`.
            rows: `(start, stop)`, to fill a part of the store in this call. Or what a row is of a language
                model, which gives (sequences, length, classes): "tokens" keeps a row for each token of each
                sequence, "labelled" only those whose next token has a label (`labels`, not -100). Samples
                are then sequences: numbers of tokens, mappings with `input_ids`, or texts. Padding has no
                row; row t is what the model gives at token t, nothing is shifted.
            unit_rows: rows a unit of the store, a power of two.
            commit_seconds: how much work a kill may cost.
            model_fingerprint, dataset_fingerprint: names of yours that stand for a model or data
                that cannot be hashed (a served model, a jit function over global parameters).
            accept_differences: go on with a store although the model or the dataset is another than
                it was made from; what differs is recorded in the metadata.
            recheck: compute one committed batch again and compare it (see "resume" in the docs) before
                a store goes on or is returned whole. False skips that, which is recorded in the
                metadata; code, attributes and globals that differ are then refused.
            keep_labels: whether the class of each sample is kept beside its row (`Store.labels`), so that
                scores need no file of labels. Samples are (input, label), or mappings with a label; a
                label is a class number, or one of the class names.
            encoding: how rows become columns, such as "topk" (see `fostore.create`), with its parameters
                `k`, `rule` and `temperatures`. What it needs of a row is chosen on the device.
            max_kl: nats that a row may lose at most by being encoded; see `fostore.create`.
            tokenizer: makes sequences of texts, and its name and vocabulary become part of the identity of
                rows of tokens: one of Hugging Face's, or a function of a text.
            shard: `(i, n)`, "i/n", or "auto" under a launcher (torchrun, srun, an array of SLURM jobs): this
                process makes the i-th of n shares of a Zarr store, which all of them begin and write together
                (`fostore.open_units`); who ends last finishes it, and the others return it unfinished. Each
                compares weights, data and class names with the store before its first unit.

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
        # First of all, while nothing but the parameters is local. The attributes may have been changed.
        options = Options.of(vars(self), locals())
        options.check_choices()
        spec = chosen(encoding, **options.parameters)
        check_rows_of_tokens(options, self.members)
        if not 0 < temperature < math.inf:
            raise ArgumentError(f"temperature is {temperature!r}, expected a positive number")
        framework = self._framework
        draws = num_draws is not None
        check_draws(num_draws, seed, self._many or self.members)
        sequences = None if options.of_tokens is None else Sequences(options.of_tokens, tokenizer)
        reading = Reading(
            self.batch_size, self.input_getter, collate_fn, seed if draws else None, sequences
        )
        with framework.kept_random_states():  # a sampler may draw when it names its batches
            samples = framework.samples(dataset_or_loader, reading)
        if sequences is None:
            options = replace(options, rows=checked_range(rows, samples))
        own_names = None
        if (
            sequences is None
        ):  # tokens have names of their own, and labels of sequences are not theirs
            is_transformed = self.output_transform is not None
            own_names = agreed_names(
                self._given, samples.dataset, class_names, transformed=is_transformed
            )
        batch_size = self._batch_size(dataset_or_loader, samples)
        fixed = fixed_of(self._models, batch_size if pad_last else None)
        engine_options: dict[str, Any] = {"again": _reader(samples)}
        if num_draws is not None:
            samples = drawn_samples(framework, samples, num_draws)
            drawing = Drawing(framework, self._models[0], num_draws, seed)
            engine_options = {"drawing": drawing}
        if spec is None:
            store_as = "probs" if store_as == "auto" else store_as
            dtype = "float32" if dtype == "auto" else dtype
        kept = Kept(self.output_mode, store_as, dtype, temperature, spec)
        engine = self._engine(kept, fixed, tol=tol, **engine_options)
        if self.output_mode != "auto":
            engine.resolve(self.output_mode)
        generation = Generation(
            framework,
            self._models,
            samples,
            engine,
            options,
            batch_size,
            many=self._many,
            once=hasattr(dataset_or_loader, "__next__"),
        )
        if store is not None:
            return record(generation, own_names)
        if options.only_stored:
            raise ArgumentError(
                f"{', '.join(options.only_stored)}: without store= there is nowhere to keep it"
            )
        self._warn_of_arrays(dataset_or_loader)
        return generation.in_memory()

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

        real = destination(path)
        if real.suffix.lower() in SUFFIXES:
            raise ArgumentError(
                f"{str(path)!r} is a store by its suffix, and save_distributions writes JSON: give a name that "
                "ends in .json, or generate with store= (of a store: fostore.convert(store, path))"
            )
        given = check_object(meta)
        named = {} if self.model_name is None else {"model_name": self.model_name}
        if isinstance(distributions, Store):  # with its metadata, ids, class names and identity
            proven = Proven(distributions.reader, str(distributions.path))
            json.export(real, proven, {**named, **given})
        else:
            described = {"model_name": self.model_name, **given}
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

    def _engine(
        self,
        kept: Kept,
        fixed: int | None,
        *,
        again: Callable[[Indices], Any] | None = None,
        drawing: Drawing | None = None,
        tol: float | None = None,
        trying: bool = False,
    ) -> Engine:
        models = Models(
            self._framework,
            self._models,
            many=self._many,
            members=self.members,
            transform=self.output_transform,
            drawing=drawing,
            fixed=fixed,
            fresh=again is not None,
            looked=trying,
        )
        return Engine(self._framework, models, kept, again=again, tol=tol, trying=trying)

    def _batch_size(self, data: Any, samples: Samples) -> int:
        """Samples of a full batch: a loader brings its own."""
        batches = samples.batches if isinstance(samples, Indexed) else data
        return getattr(batches, "batch_size", None) or self.batch_size

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


def _reader(samples: Samples) -> Callable[[Indices], Any] | None:
    """What reads a batch once more, where batches are gathered freshly; else None."""
    if not isinstance(samples, Indexed) or not samples.fresh:
        return None
    return lambda indices: next(samples.few(indices))


def _uncallable(model: Any) -> str:
    came = f"the model is {type(model).__name__}, which cannot be called"
    if adapt(model) is model:
        return (
            f"{came}; expected a function of a batch that gives (samples, classes), or a list of them, "
            "whose outputs are members"
        )
    return f"{came}; fostore.FirstOrderDataGenerator runs it as it is"
