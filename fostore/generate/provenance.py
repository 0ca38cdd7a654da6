"""What the rows of a generation are made from, as identity and metadata of a store keep it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fostore.generate import output
from fostore.generate.generation import Generation
from fostore.generate.options import Options
from fostore.generate.samples import Samples
from fostore.generate.tokenizers import describe_tokenizer
from fostore.schema import identity
from fostore.schema.row import Array

_MANY_LABELS = 10_000_000


class Provenance:
    """Models, dataset and output of a generation; looked at once, and the models again once they have run.

    No random state is changed.
    """

    def __init__(self, generation: Generation, views: Array | None) -> None:
        self._generation = generation
        self._options = options = generation.options
        self._before = self._look()
        self._transform = identity.describe_function(options.output_transform)
        with generation.framework.kept_random_states():
            self._dataset = _describe_dataset(generation.samples, options, views)

    def identity(self, mode: output.Mode) -> dict[str, Any]:
        """The identity for a mode of output that is known by now."""
        drawn: dict[str, Any] = {}
        if self._options.num_draws is not None:
            drawn = {
                "draws": int(self._options.num_draws),
                "seed": int(self._options.seed),
                "batch_size": self._generation.batch_size,
            }
        made = {"mode": output.named(mode), "transform": self._transform}
        if self._options.of_tokens is not None:
            made["rows"] = self._options.of_tokens
        return {
            "model": self._before["model"],
            "dataset": dict(self._dataset),
            "output": {**made, **self._before["output"], **drawn},
        }

    def settled(self, mode: output.Mode, content: str) -> dict[str, Any]:
        """The identity that a new store keeps: the models have run by now, and show what that changes."""
        made_from = self.identity(mode)
        made_from["dataset"]["content"] = content
        return identity.settled(made_from, self._look())

    def meta(self, mode: output.Mode) -> dict[str, Any]:
        """What the metadata of a new store say."""
        framework = self._generation.framework
        return {
            "model_name": self._options.model_name,
            "output_mode": output.named(mode),
            "batch_size": self._generation.batch_size,
            "device": framework.device,
            **framework.software(),
            **self._options.recorded_draws,
        }

    def _look(self) -> dict[str, Any]:
        generation, transform = self._generation, self._options.output_transform
        framework = generation.framework
        details = {} if transform is None else framework.details(transform)
        model: dict[str, Any]
        if self._options.model_fingerprint is not None:
            model = {"fingerprint": str(self._options.model_fingerprint)}
        else:
            with framework.kept_random_states():
                described = [framework.describe(one) for one in generation.models]
            model = {"members": described} if generation.many else described[0]
        return {"model": model, "output": details}


def _describe_dataset(samples: Samples, options: Options, views: Array | None) -> dict[str, Any]:
    """What identifies a dataset beside the content of its samples."""
    ids = options.ids
    described: dict[str, Any] = {
        "length": samples.num_samples,
        "ids": None if ids is None else identity.hash_values(list(ids)),
    }
    described |= describe_tokenizer(options.tokenizer)
    if views is not None:
        described["views"] = identity.hash_values(views)
    if options.dataset_fingerprint is not None:
        return {**described, "fingerprint": str(options.dataset_fingerprint)}
    labels = labels_of(samples.dataset, samples.num_samples)
    return {
        **described,
        "labels": None if labels is None else identity.hash_values(labels),
        "input_getter": identity.describe_function(options.input_getter),
        "collate": identity.describe_function(samples.assemble.collate),
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
