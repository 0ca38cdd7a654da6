"""Distributions from anywhere (a store, a path, a mapping, an array), read piece by piece as float64.

`pieces` is the one loop of this package: everything else is a function of a piece, or adds pieces up.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from fostore import disk
from fostore.errors import ArgumentError, RowError, UncommittedError
from fostore.pairing.origin import Origin, origin_of
from fostore.places.names import local_path
from fostore.reading.store import Selection, Store
from fostore.reading.store import open as open_store
from fostore.schema import simplex
from fostore.schema.halves import widen
from fostore.schema.ranges import describe
from fostore.schema.row import Array, sum_tolerance

BUDGET = 1 << 19
"""Numbers of a piece, 4 MiB of float64; working on it takes a few times that, whatever the store's size."""

_ROUNDOFF = {"float16": 2.0**-11, "bfloat16": 2.0**-8, "float32": 2.0**-24, "float64": 2.0**-53}


class Piece:
    """Some consecutive rows, each renormalised to sum to 1 in float64.

    `probs` are as they came, (n, K) or (n, M, K); `mean` is the distribution that an ensemble
    predicts, the average of its members, (n, K). Logarithms are those that were stored, where
    logarithms were, so that no tiny probability is lost.
    """

    __slots__ = ("_logs", "_mean", "_mean_logs", "probs", "start")

    def __init__(self, start: int, probs: Array, logs: Array | None = None) -> None:
        self.start = start
        self.probs = probs
        self._logs = logs
        self._mean: Array | None = None
        self._mean_logs: Array | None = None

    def __len__(self) -> int:
        return len(self.probs)

    @property
    def stop(self) -> int:
        """The row after the last one."""
        return self.start + len(self)

    @property
    def logs(self) -> Array:
        """Logarithms of `probs`; minus infinity for 0."""
        if self._logs is None:
            self._logs = _log(self.probs)
        return self._logs

    @property
    def members(self) -> Piece:
        """The piece with a member axis, (n, M, K); a single distribution is one member."""
        if self.probs.ndim == 3:
            return self
        logs = None if self._logs is None else self._logs[:, None]
        return Piece(self.start, self.probs[:, None], logs)

    @property
    def mean(self) -> Array:
        """The average over members, (n, K)."""
        if self.probs.ndim == 2:
            return self.probs
        if self._mean is None:
            self._mean = np.add.reduce(self.probs, axis=1) / self.probs.shape[1]
        return self._mean

    @property
    def mean_logs(self) -> Array:
        """The logarithm of the average over members, (n, K)."""
        if self.probs.ndim == 2:
            return self.logs
        if self._mean_logs is None:
            if self._logs is None:
                self._mean_logs = _log(self.mean)
            else:
                top = np.maximum(self._logs.max(axis=1), np.finfo(np.float64).min)
                with np.errstate(under="ignore", divide="ignore"):
                    total = np.add.reduce(np.exp(self._logs - top[:, None]), axis=1)
                    self._mean_logs = np.log(total / self._logs.shape[1]) + top
        return self._mean_logs


@dataclass(frozen=True, slots=True)
class Rows:
    """What is known of a source before a row of it is read."""

    where: str
    """Names the source in messages."""
    count: int
    row_shape: tuple[int, ...]
    """([num_members,] num_classes)."""
    read: Callable[[int, int], Array]
    """The rows from `start` to `stop` as they are kept, and as `in_logs` says."""
    in_logs: bool = False
    tol: float | None = None
    """How far a row's sum may be from 1; None where rows are numbers and no distributions."""
    roundoff: float = _ROUNDOFF["float64"]
    """Half a unit in the last place of the numbers kept, relative."""
    keys: Array | None = None
    """The index of each row, int64, ascending; None: row i has index i."""
    class_names: tuple[str, ...] | None = None
    origin: Origin | None = None
    ids: Callable[[int, int], Array] | None = None
    """Of a file that has them: the ids of the rows from `start` to `stop`, (stop - start,)."""
    numbers: int | None = None
    """Numbers that reading a row takes, where they are more than the row has."""
    unfinished: str = ""
    """What a store that is not finished misses, in words."""

    @property
    def numbers_a_row(self) -> int:
        """Numbers that reading a row takes."""
        return math.prod(self.row_shape) if self.numbers is None else self.numbers

    @property
    def num_classes(self) -> int:
        """Classes of a distribution."""
        return self.row_shape[-1]

    @property
    def indices(self) -> Array:
        """The index of each row."""
        return np.arange(self.count) if self.keys is None else self.keys

    def piece(self, start: int, stop: int) -> Piece:
        """The rows from `start` to `stop`, checked and renormalised.

        Raises:
            RowError: a row is no distribution (or holds NaN); names it.
        """
        part = self.read(start, stop)
        if self.tol is None:
            numbers = np.asarray(part, np.float64)
            if not np.isfinite(numbers).all():
                row = start + int(np.argwhere(~np.isfinite(numbers))[0][0])
                raise RowError(f"{self.where}: row {row} holds a number that is not finite")
            return Piece(start, numbers)
        check = simplex.check_log_probs if self.in_logs else simplex.check_probs
        try:
            check(part, self.tol, start)
        except RowError as error:
            raise RowError(f"{self.where}: {error}") from None
        wide = np.array(widen(part, part.dtype.name), np.float64)
        if not self.in_logs:
            wide /= np.add.reduce(wide, axis=-1, keepdims=True)
            return Piece(start, wide)
        with np.errstate(under="ignore"):
            wide -= np.log(np.add.reduce(np.exp(wide), axis=-1, keepdims=True))
            return Piece(start, np.exp(wide), wide)


def pieces(*sources: Rows) -> Iterator[tuple[Piece, ...]]:
    """The rows of all sources side by side, from front to back; each row is read once.

    The sources must have as many rows as the first one. Memory depends on `BUDGET` alone.
    """
    numbers = sum(rows.numbers_a_row for rows in sources)
    step = max(BUDGET // max(numbers, 1), 1)
    for start in range(0, sources[0].count, step):
        stop = min(start + step, sources[0].count)
        yield tuple(rows.piece(start, stop) for rows in sources)


def per_row(function: Callable[..., Array], *sources: Rows, dtype: type[Any] = np.float64) -> Array:
    """What `function` says of each row, (n,): it takes one piece a source, and never looks across rows."""
    found = np.empty(sources[0].count, dtype)
    for group in pieces(*sources):
        found[group[0].start : group[0].stop] = function(*group)
    return found


# ------------------------------------------------------------------ what a source is


def rows_of(source: Any, name: str = "store") -> Rows:
    """The distributions of a store, a selection, a path, a mapping of integers or an array.

    Args:
        source: a `Store` or `Selection`; the path of a store or of any file that `convert` reads; a
            mapping of dataset indices, read in their order; anything with a `shape` of (N, K) or
            (N, M, K) that can be sliced (NumPy, a memory map, h5py, zarr, torch on the CPU), or
            lists of that shape.
        name: what messages call it.

    Raises:
        ArgumentError: none of those.
        UncommittedError: a store with gaps.
    """
    if isinstance(source, Rows):
        return source
    if isinstance(source, (str, os.PathLike)):
        return _of_path(local_path(source))
    if isinstance(source, Store):
        return _of_store(source)
    if isinstance(source, Selection):
        return _of_selection(source)
    if isinstance(source, Mapping):
        return _of_mapping(source, name)
    if holds_sources(source):
        raise ArgumentError(
            f"{name} is a list of stores (or paths, mappings, arrays): ensemble_uncertainty and "
            "others that say so take one a member; arrays become one by np.stack(arrays, axis=1)"
        )
    rows = numbers_of(source, name)
    dtype = next(dtype for dtype, u in _ROUNDOFF.items() if u == rows.roundoff)
    return replace(rows, tol=sum_tolerance(dtype, rows.num_classes))


def holds_sources(source: Any) -> bool:
    """Whether it is a list of sources, such as one store a member, and not a list of rows."""
    if not isinstance(source, (list, tuple)) or not source:
        return False
    if isinstance(source[0], (str, os.PathLike, Store, Selection, Mapping, Rows)):
        return True
    return len(getattr(source[0], "shape", ())) > 1


def numbers_of(source: Any, name: str, *, classes: bool = True) -> Rows:
    """Rows of plain numbers, such as bounds: nothing is asked of them but to be finite.

    `classes`: each row has (at least) a class axis.
    """
    if not (hasattr(source, "shape") and hasattr(source, "__getitem__")):
        try:
            source = np.asarray(source)
        except (TypeError, ValueError) as error:
            raise ArgumentError(f"{name} makes no array: {error}") from error
    shape = tuple(int(n) for n in source.shape)
    if len(shape) not in ((2, 3) if classes else (1, 2, 3)):
        hint = "; one row alone is row[None]" if len(shape) == 1 else ""
        raise ArgumentError(
            f"{name} has the shape {shape}, expected (num_samples, num_classes) or (num_samples, "
            f"num_members, num_classes){hint}"
        )
    found = str(getattr(source, "dtype", "float64")).rpartition(".")[2]  # torch.float32 as well
    return Rows(
        where=name,
        count=shape[0],
        row_shape=shape[1:],
        read=lambda start, stop: _as_numbers(source[start:stop], name),
        roundoff=_ROUNDOFF.get(found, _ROUNDOFF["float64"]),
    )


def _as_numbers(part: Any, name: str) -> Array:
    if hasattr(part, "detach"):  # a torch tensor
        part = part.detach().cpu()
        if str(part.dtype) == "torch.bfloat16":
            part = part.float()
    array = np.asarray(part)
    if array.dtype.kind in "iub" or array.dtype.name == "bfloat16" or array.dtype.itemsize > 8:
        array = array.astype(np.float64)
    if array.dtype.kind != "f":
        raise ArgumentError(f"{name} holds {array.dtype}, expected numbers")
    return array


def _of_store(store: Store) -> Rows:
    if store.committed.prefix != len(store):
        raise UncommittedError(
            f"{describe(store.missing())} of {store.path} are not committed; finish the store, or "
            "evaluate a part of it: store.select(rows)"
        )
    missing = store.missing()
    unfinished = f"{describe(missing)} of {store.path} are not committed" if missing else ""
    return replace(_of_take(store, str(store.path), len(store)), unfinished=unfinished)


def _of_selection(selection: Selection) -> Rows:
    where = f"{selection.store.path} ({len(selection)} rows)"
    return _of_take(selection, where, len(selection))


def _of_take(source: Store | Selection, where: str, count: int) -> Rows:
    schema = source.schema
    in_logs = schema.kind in ("log_probs", "logits")
    kind = "log_probs" if in_logs else "probs"
    return Rows(
        where=where,
        count=count,
        row_shape=schema.row_shape,
        read=lambda start, stop: source.take(np.arange(start, stop), as_kind=kind),
        in_logs=in_logs,
        tol=max(schema.sum_tolerance, 1e-3),
        roundoff=_ROUNDOFF.get(schema.dtype, _ROUNDOFF["float32"]),
        class_names=schema.class_names,
        origin=origin_of(source),
    )


def _of_mapping(mapping: Mapping[Any, Any], name: str) -> Rows:
    keys = list(mapping)
    odd = next((key for key in keys if not isinstance(key, (int, np.integer))), None)
    if odd is not None:
        raise ArgumentError(
            f"{name} has the key {odd!r}; keys are dataset indices (integers), as "
            "generate_distributions and load_distributions return them"
        )
    indices = np.sort(np.array(keys, np.int64))
    shape = np.shape(mapping[keys[0]]) if keys else (0,)
    if len(shape) not in (1, 2):
        raise ArgumentError(
            f"{name}[{keys[0]}] has the shape {shape}, expected (num_classes,) or (num_members, num_classes)"
        )

    def read(start: int, stop: int) -> Array:
        wanted = indices[start:stop].tolist()
        parts = [np.asarray(mapping[key]) for key in wanted]
        for key, part in zip(wanted, parts, strict=True):
            if part.shape != shape:
                raise ArgumentError(
                    f"{name}[{key}] has the shape {part.shape}, {name}[{keys[0]}] has {shape}"
                )
        return _as_numbers(np.stack(parts), name)

    return Rows(
        where=name,
        count=len(keys),
        row_shape=shape,
        read=read,
        tol=sum_tolerance("float16", shape[-1]),  # lists do not say what they were rounded to
        roundoff=_ROUNDOFF["float32"],
        keys=None if np.array_equal(indices, np.arange(len(keys))) else indices,
    )


def _of_path(path: Path) -> Rows:
    from fostore.conversion.sources import open_table
    from fostore.formats import FILES, SUFFIXES, is_store

    with disk.refusing(path):
        if path.suffix.lower() in (*SUFFIXES, *FILES) and (not path.exists() or is_store(path)):
            return _of_store(open_store(path))
    from fostore.evaluate.tables import rows_of_table

    return rows_of_table(open_table(path))


# ------------------------------------------------------------------ several sources


def aligned(*sources: Rows) -> None:
    """Raise unless row i of every source has the same index, and as many classes.

    Raises:
        UncommittedError: lengths differ, and a store is not finished.
        ArgumentError: lengths, indices or numbers of classes differ; names the first that does.
    """
    first = sources[0]
    for other in sources[1:]:
        if other.count != first.count:
            for one in (first, other):
                if one.unfinished:
                    raise UncommittedError(
                        f"{one.unfinished}; finish the store, or compare what is there: "
                        f"store.select(range({one.count})) of both"
                    )
            raise ArgumentError(
                f"{first.where} has {first.count} rows and {other.where} has {other.count}; "
                "compare the same samples: store.select(rows) takes a part of a store"
            )
        if (first.keys is not None or other.keys is not None) and not np.array_equal(
            first.indices, other.indices
        ):
            at = int(np.flatnonzero(first.indices != other.indices)[0])
            raise ArgumentError(
                f"row {at} of {first.where} has the index {first.indices[at]}, "
                f"of {other.where} the index {other.indices[at]}"
            )
        if first.count and other.num_classes != first.num_classes:
            raise ArgumentError(
                f"{first.where} has {first.num_classes} classes and {other.where} has "
                f"{other.num_classes}"
            )


def refuse_empty(rows: Rows, what: str) -> None:
    """Raise ArgumentError where there is no row, and so no mean of anything."""
    if rows.count == 0:
        raise ArgumentError(f"{rows.where} has no rows, so it has no {what}")


def _log(probs: Array) -> Array:
    with np.errstate(divide="ignore"):
        logs: Array = np.log(probs)
    return logs
