"""Stores as probly's representations: categorical distributions, samples of an ensemble, credal sets.

For probly 0.9 and newer (Python 3.12), which is imported when a function here is called.
"""

from __future__ import annotations

import importlib
import os
from typing import Any

import numpy as np

from fostore.encodings import encoding_of
from fostore.errors import ArgumentError, FostoreError
from fostore.reading.selection import Selection
from fostore.reading.store import Store
from fostore.reading.store import open as open_store
from fostore.schema.row import Array

_Stored = Store | Selection | str | os.PathLike[str]

_CREDAL_SETS = {
    "discrete": "ArrayDiscreteCredalSet",
    "convex": "ArrayConvexCredalSet",
    "intervals": "ArrayProbabilityIntervalsCredalSet",
    "distance": "ArrayDistanceBasedCredalSet",
    "singleton": "ArraySingletonCredalSet",
}


def to_categorical(store: _Stored) -> Any:
    """A store as probly's categorical distribution, of batch shape (N,) or (N, num_members).

    Stored floating probabilities, log-probabilities and logits stay where they are: the result
    holds the store's own mapped, read-only array, in its dtype (probly computes in it, so halves
    stay halves). What has to be decoded (counts, bfloat16, ...) and a `Selection` is read into
    memory as probabilities. probly itself reads probabilities once, to see that none is negative.

    Raises:
        FostoreError: probly is not installed.
        UncommittedError: the store has gaps.
    """
    distribution = _module("distribution")
    source = _opened(store)
    array, is_log = _numbers(source)
    if is_log:
        return distribution.create_categorical_distribution_from_logits(array)
    return distribution.create_categorical_distribution(array)


def to_sample(store: _Stored) -> Any:
    """An ensemble's store as probly's sample of categorical distributions; members are its sample axis, 1.

    Nothing is copied that `to_categorical` does not copy.

    Raises:
        ArgumentError: the rows have no member axis.
        FostoreError: probly is not installed.
    """
    source = _opened(store)
    if source.schema.num_members is None:
        raise ArgumentError(
            f"the rows are single distributions {source.schema.row_shape}, and a sample needs a member "
            "axis; to_categorical takes them, or give a list of models to generate_distributions"
        )
    array_sample = _module("sample").ArraySample
    return array_sample(array=to_categorical(source), sample_axis=1)


def to_credal_set(store: _Stored, kind: str = "convex", *, radius: Any = None) -> Any:
    """A store as one of probly's credal sets, one a sample.

    Args:
        store: an ensemble's store; with `radius`, single distributions are the centers.
        kind: "convex" (hull of the members), "discrete" (the members), "intervals" (their bounds a
            class), "distance" (the ball in total variation around their mean that holds them), or
            "singleton" (their mean).
        radius: a number, or one a sample, such as `fostore.evaluate.conformal_radius` gives: balls
            around the rows; `kind` has to be "distance" then.

    Raises:
        ArgumentError: an unknown kind, a radius that does not fit, or no member axis.
        FostoreError: probly is not installed.
    """
    if kind not in _CREDAL_SETS:
        raise ArgumentError(f"kind is {kind!r}, expected one of {list(_CREDAL_SETS)}")
    source = _opened(store)
    if radius is not None:
        return _balls(source, kind, radius)
    sample = to_sample(source)
    credal = getattr(_module("credal_set.array"), _CREDAL_SETS[kind])
    return credal.from_array_sample(sample)


def _balls(source: Store | Selection, kind: str, radius: Any) -> Any:
    radii = np.asarray(radius, np.float64)
    count = len(source)
    if kind != "distance":
        raise ArgumentError(f"radius= makes balls: kind='distance', not {kind!r}")
    if source.schema.num_members is not None:
        raise ArgumentError("radius= needs single distributions as centers, these have members")
    if radii.shape not in ((), (count,)) or not (radii >= 0).all():
        raise ArgumentError(
            f"radius has the shape {radii.shape}, expected a number of at least 0, or {count} of them"
        )
    balls = _module("credal_set.array").ArrayDistanceBasedCredalSet
    return balls(nominal=to_categorical(source), radius=np.broadcast_to(radii, (count,)))


def _numbers(source: Store | Selection) -> tuple[Array, bool]:
    """The rows as NumPy has them, (N, [M,] K), and whether they are logarithms or logits."""
    schema = source.schema
    mapped = schema.dtype != "bfloat16" and encoding_of(schema).is_plain(schema, schema.kind)
    if isinstance(source, Store) and mapped:
        return source.column(schema.content[0].name), schema.kind != "probs"
    return source.take(np.arange(len(source))), False


def _opened(store: _Stored) -> Store | Selection:
    if isinstance(store, (Store, Selection)):
        return store
    if isinstance(store, (str, os.PathLike)):
        return open_store(os.fspath(store))
    raise ArgumentError(f"store is {type(store).__name__}, expected a Store, a Selection or a path")


def _module(name: str) -> Any:
    """A module of `probly.representation`."""
    try:
        return importlib.import_module(f"probly.representation.{name}")
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != "probly":
            raise
        raise FostoreError(
            "probly is not installed, or too old: pip install 'probly>=0.9' (Python 3.12 or newer)"
        ) from error
