"""Rows of a frame, a column, a table or a sparse matrix: taken, as arrays, as entries, as what can be hashed."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np

from fostore.containers.collate import collate
from fostore.nested import PerSample, is_numbers, pick
from fostore.schema.row import Array


def is_frame(data: Any) -> bool:
    """Whether `data` is a pandas or polars frame."""
    return is_a(data, "pandas", "DataFrame") or is_a(data, "polars", "DataFrame")


def is_sparse(data: Any) -> bool:
    """Whether `data` is a sparse array or matrix of SciPy."""
    sparse = sys.modules.get("scipy.sparse")
    return sparse is not None and bool(sparse.issparse(data))


def is_a(data: Any, library: str, name: str) -> bool:
    """Whether `data` is a `library.name`; the library is not imported for it."""
    kind = getattr(sys.modules.get(library), name, None)
    return kind is not None and isinstance(data, kind)


def kind_of(data: Any) -> str:
    """What a container is, as messages name it."""
    return f"{type(data).__module__.partition('.')[0]} {type(data).__name__}"


def columns(frame: Any) -> dict[Any, Any]:
    """The columns of a frame by name."""
    return {name: frame[name] for name in frame.columns}


def numbers_of(batch: Any) -> Array:
    """A frame whose columns are all numbers as an array (n, columns); missing ones are NaN."""
    made = batch.to_numpy()
    if made.dtype.kind in "biufc":
        return np.asarray(made)
    # Columns with missing numbers (pandas' NA, polars' null) make objects of all of them.
    return np.stack([_as_floats(column) for column in columns(batch).values()], axis=1)


def _as_floats(column: Any) -> Array:
    if is_a(column, "pandas", "Series"):
        return np.asarray(column.to_numpy(dtype=np.float64, na_value=np.nan))
    return np.asarray(column.to_numpy(), np.float64)


def first_text(frame: Any) -> Any | None:
    """The first column of a frame that holds something else than numbers."""
    return next((name for name, column in columns(frame).items() if not _is_numeric(column)), None)


def _is_numeric(column: Any) -> bool:
    if is_a(column, "polars", "Series"):
        return bool(column.dtype.is_numeric()) or str(column.dtype) == "Boolean"
    return getattr(column.dtype, "kind", "O") in "biufc"


def take(data: Any, indices: range | Array) -> Any:
    """Rows of any container by their positions, whatever its index says; a range copies no array."""
    if not _is_arrow(data):
        rows = slice(indices.start, indices.stop) if isinstance(indices, range) else indices
        return pick(data, rows)
    if isinstance(indices, range):
        return data.slice(indices.start, len(indices))
    return data.take(sys.modules["pyarrow"].array(indices))


def _is_arrow(data: Any) -> bool:
    return hasattr(data, "to_pylist")  # tables, batches and columns have it


def values_of(column: Any) -> Any:
    """A column as an array of numbers, or as what is in it, an entry a sample."""
    if _is_arrow(column):
        is_number = is_arrow_number(column.type)
        return arrow_numbers(column) if is_number else entries_of(column.to_pylist())
    if _is_numeric(column):
        made = np.asarray(column.to_numpy())
        return made if made.dtype.kind in "biufc" else _as_floats(column)
    return entries_of(column.to_list())


def is_value(entry: Any) -> bool:
    """Whether an entry of a column is itself an array: a list of numbers, or what Parquet's lists are read as."""
    return is_numbers(entry) or isinstance(entry, np.ndarray)


def entries_of(values: list[Any]) -> Any:
    """Entries, one a sample: arrays as one where they have one shape, all else as a list."""
    return collate(values, ragged=True) if values and is_value(values[0]) else PerSample(values)


def is_arrow_number(kind: Any) -> bool:
    """Whether an Arrow type is one of numbers or booleans."""
    types = sys.modules["pyarrow"].types
    is_number = types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind)
    return bool(is_number)


def arrow_dtype(column: Any) -> Any:
    """The dtype of a column as NumPy has it: one with missing numbers is float64."""
    kind = np.dtype(column.type.to_pandas_dtype())
    return np.dtype(np.float64) if column.null_count and kind.kind != "f" else kind


def arrow_numbers(column: Any) -> Array:
    """An Arrow column of numbers as an array; missing ones are NaN."""
    if column.null_count:  # `to_numpy` would make objects of integers then
        return np.array([np.nan if one is None else one for one in column.to_pylist()], np.float64)
    options = {} if hasattr(column, "chunks") else {"zero_copy_only": False}
    return np.asarray(column.to_numpy(**options))


def hashed_parts(path: str, leaf: Any) -> Iterator[tuple[str, Any]]:
    """A leaf of a batch as what has bytes: the same for a row in a batch of any size."""
    if isinstance(leaf, np.ndarray):
        # Text by what it says: NumPy's own has the width of the longest one of the array.
        is_text = leaf.dtype.kind == "O" or (leaf.dtype.kind in "UT" and leaf.ndim == 1)
        yield path, PerSample(leaf.tolist()) if is_text and leaf.ndim else leaf
    elif is_frame(leaf):
        if first_text(leaf) is None:
            yield path, np.asarray(numbers_of(leaf), np.float64)
            return
        for name, column in columns(leaf).items():
            values = _as_floats(column) if _is_numeric(column) else PerSample(_plain(column))
            yield f"{path}[{name!r}]", values
    elif is_sparse(leaf):
        rows = leaf.tocsr()
        # int64 whatever SciPy chose: it takes the narrowest integers that will do for the matrix.
        ends, indices = rows.indptr.tolist(), rows.indices.astype(np.int64)
        yield (
            f"{path} sparse {rows.dtype.name} {rows.shape[1]}",
            PerSample(
                indices[start:stop].tobytes() + rows.data[start:stop].tobytes()
                for start, stop in pairwise(ends)
            ),
        )
    else:
        yield path, leaf


def _plain(column: Any) -> list[Any]:
    """What is in a column; dates and the like as their text."""
    plain = (str, bytes, bool, int, float, list, tuple, dict, type(None))
    return [one if isinstance(one, plain) else str(one) for one in column.to_list()]
