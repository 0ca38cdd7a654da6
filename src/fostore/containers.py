"""What has rows: arrays, frames, tables, columns and sparse matrices, in memory or on disk, a batch at a time.

Nothing is imported to know them: a caller's object means that its library is imported already.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from fostore.errors import ArgumentError
from fostore.nested import PerSample
from fostore.schema import Array

_ASIDE = ("targets", "labels", "y", "ids", "classes")
"""What a dataset may say of all its samples: attributes of a container, or columns of a frame."""


class Rows(Sequence[Any]):
    """A container as a dataset: sample i is its row i, and a batch is a part of it.

    A batch is of the container's own kind where a model may want that (frames, sparse matrices), else
    an array, or a list of texts. An array in memory is sliced without a copy.
    """

    has_dtype = False
    """Whether the numbers have a dtype that somebody chose for a model; those of a frame have none."""

    def __init__(self, data: Any, count: int) -> None:
        self.data = data
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __getattr__(self, name: str) -> Any:
        if name in _ASIDE:
            return self._aside(name)
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def _aside(self, name: str) -> Any:
        return getattr(self.data, name)

    def take(self, indices: range | Array) -> Any:
        """The rows of `indices` as one batch, in that order."""
        raise NotImplementedError

    def __getitem__(self, index: Any) -> Any:
        """Sample `index`, as an input_getter sees it."""
        return self.take(range(index, index + 1))[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Any]:
        return [self[index] for index in indices]

    def require_numbers(self) -> None:
        """Raise ArgumentError, which names the column, where rows are not numbers alone."""


class _Arrays(Rows):
    """An array in memory."""

    has_dtype = True

    def take(self, indices: range | Array) -> Any:
        part = indices if isinstance(indices, np.ndarray) else slice(indices.start, indices.stop)
        return self.data[part]


class _OnDisk(Rows):
    """An array that is read where it is sliced: h5py, zarr, tensorstore, dask, a memory-mapped file."""

    has_dtype = True

    def take(self, indices: range | Array) -> Any:
        if isinstance(indices, range):
            return _fresh(self.data[indices.start : indices.stop])
        return np.stack([_fresh(self.data[index]) for index in indices.tolist()])

    def __getitem__(self, index: Any) -> Any:
        return _fresh(self.data[index])


def _fresh(part: Any) -> Array:
    """What was read in memory of its own, in this machine's byte order."""
    found = np.asarray(part)
    return np.array(found, found.dtype.newbyteorder("="), copy=None if found.base is None else True)


class _Sparse(Rows):
    """A SciPy sparse matrix; batches and samples are sparse as well."""

    def __init__(self, data: Any, count: int) -> None:
        rows = data.tocsr()
        if (
            not rows.has_canonical_format
        ):  # the same row, and so the same hash, however it was built
            rows = rows.copy()
            rows.sum_duplicates()
        super().__init__(rows, count)

    def take(self, indices: range | Array) -> Any:
        if isinstance(indices, range):
            return self.data[indices.start : indices.stop]
        return self.data[indices]

    def __getitem__(self, index: Any) -> Any:
        return self.data[index : index + 1]


class _Frame(Rows):
    """A pandas or polars frame; batches are frames, with the names of their columns."""

    def _aside(self, name: str) -> Any:
        if name in self.data.columns:
            return self.data[name]
        raise AttributeError(name)

    def take(self, indices: range | Array) -> Any:
        if _is_a(self.data, "polars", "DataFrame"):
            if isinstance(indices, range):
                return self.data.slice(indices.start, len(indices))
            return self.data[indices]
        part = indices if isinstance(indices, np.ndarray) else slice(indices.start, indices.stop)
        return self.data.iloc[part]

    def __getitem__(self, index: Any) -> Any:
        if _is_a(self.data, "polars", "DataFrame"):
            return self.data.row(index, named=True)
        return self.data.iloc[index]

    def require_numbers(self) -> None:
        name = _wordy(self.data)
        if name is not None:
            raise ArgumentError(
                f"column {name!r} of the {_kind(self.data)} holds {columns(self.data)[name].dtype}, and "
                "a model here takes numbers: choose columns (frame[[...]]), encode it, or take "
                "the input out of each row with input_getter"
            )


class _Column(Rows):
    """A pandas, polars or Arrow column: numbers as an array, all else as a list with an entry a sample."""

    def take(self, indices: range | Array) -> Any:
        return _values(_take_column(self.data, indices))

    def require_numbers(self) -> None:
        return None


class _Table(Rows):
    """An Arrow table: batches are arrays (n, columns), or pandas frames where not all are numbers."""

    def __init__(self, data: Any, count: int) -> None:
        super().__init__(data, count)
        self._names = list(data.schema.names)
        self._wordy = next((f.name for f in data.schema if not _is_arrow_number(f.type)), None)
        kinds = [_arrow_dtype(data.column(name)) for name in self._names] if not self._wordy else []
        self._dtype = np.result_type(*kinds) if kinds else None

    def _aside(self, name: str) -> Any:
        if name in self._names:
            return self.data.column(name)
        raise AttributeError(name)

    def take(self, indices: range | Array) -> Any:
        part = _take_arrow(self.data, indices)
        if self._dtype is None:
            if "pandas" not in sys.modules and not _importable("pandas"):
                raise ArgumentError(
                    f"column {self._wordy!r} of the Arrow table is not numbers, so a batch is a pandas "
                    "frame, and pandas is not installed: install it, or choose columns (select)"
                )
            return part.to_pandas()
        made = np.empty((part.num_rows, len(self._names)), self._dtype)
        for at, name in enumerate(self._names):
            made[:, at] = _arrow_numbers(part.column(name))
        return made

    def __getitem__(self, index: Any) -> Any:
        return self.data.slice(index, 1).to_pylist()[0]

    def require_numbers(self) -> None:
        if self._dtype is None:
            raise ArgumentError(
                f"column {self._wordy!r} of the Arrow table is not numbers, which a model here takes: "
                "choose columns (table.select([...])), or take the input out of each row with "
                "input_getter"
            )


def find(data: Any) -> Rows | None:
    """`data` as a dataset of rows; None where it is no container of rows (see the table in the docs).

    Raises:
        ArgumentError: it belongs to a library that is known here, and is nothing with rows; or rows
            cannot be read from it as it is. Says what to do.
    """
    if isinstance(data, Rows):
        return data
    if isinstance(data, np.ndarray):
        return _array(data)
    if _is_a(data, "pandas", "DataFrame") or _is_a(data, "polars", "DataFrame"):
        return _frame(data)
    if _is_a(data, "pandas", "Series") or _is_a(data, "pandas", "Index"):
        return _Column(data.to_series() if _is_a(data, "pandas", "Index") else data, len(data))
    if _is_a(data, "polars", "Series"):
        return _Column(data, len(data))
    if _is_a(data, "pyarrow", "Table") or _is_a(data, "pyarrow", "RecordBatch"):
        return _Table(data, data.num_rows)
    if _is_a(data, "pyarrow", "ChunkedArray") or _is_a(data, "pyarrow", "Array"):
        return _Column(data, len(data))
    if is_sparse(data):
        if data.ndim != 2:
            raise ArgumentError(f"a sparse array of {data.ndim} axes has no rows of features")
        return _Sparse(data, data.shape[0])
    _refuse_others(data)
    if not is_array(data):
        return None
    in_memory = type(data).__module__.partition(".")[0] in ("jaxlib", "jax", "torch")
    return _Arrays(np.asarray(data), len(data)) if in_memory else _OnDisk(data, int(data.shape[0]))


def as_dataset(data: Any) -> Any:
    """A container as a dataset of its rows, where `data[i]` is something else; anything else as it is.

    Raises:
        ArgumentError: see `find`.
    """
    if isinstance(data, np.ndarray) and not isinstance(data, np.memmap):
        return data
    if type(data).__module__.partition(".")[0] in ("torch", "jax", "jaxlib"):
        return data
    rows = find(data)
    return data if rows is None else rows


def _array(data: Any) -> Rows | None:
    if data.ndim == 0:
        return None
    if np.ma.isMaskedArray(data) and np.ma.is_masked(data):
        raise ArgumentError(
            "a masked array has numbers that do not count, and a model would take them; give "
            "array.filled(value)"
        )
    if isinstance(data, np.memmap):
        return _OnDisk(data, len(data))
    return _Arrays(np.asarray(data), len(data))


def _frame(data: Any) -> Rows:
    names = list(data.columns)
    if len(set(names)) != len(names):
        twice = next(name for at, name in enumerate(names) if name in names[:at])
        raise ArgumentError(f"the frame has two columns {twice!r}; rename one")
    return _Frame(data, len(data))


def _refuse_others(data: Any) -> None:
    """Name what belongs to a known library and has no rows that can be asked for."""
    library = type(data).__module__.partition(".")[0]
    kind = f"a {library} {type(data).__name__}"
    if library == "polars" and hasattr(data, "collect"):
        raise ArgumentError(f"{kind} has no rows yet; give frame.collect()")
    if library == "pyarrow" and hasattr(data, "to_table"):
        raise ArgumentError(f"{kind} is read as a table: give data.to_table()")
    if library == "pyarrow" and hasattr(data, "read_all"):
        raise ArgumentError(f"{kind} is read once, in order: give reader.read_all()")
    if library in ("pandas", "polars", "pyarrow") and not isinstance(data, Mapping):
        raise ArgumentError(
            f"{kind} is no dataset of samples; give a frame or a table, whose rows are the samples, or one "
            "of its columns"
        )
    if library in ("h5py", "zarr") and not is_array(data):
        keys = ", ".join(repr(key) for key in list(data)[:4]) if _is_open(data) else "closed"
        raise ArgumentError(f"{kind} ({keys}) is no array; give one of its arrays, as data['x']")
    if library == "xarray" and not is_array(data):
        raise ArgumentError(f"{kind} holds several arrays; give one of them, as data['x']")


def _is_open(data: Any) -> bool:
    try:
        return bool(data) if type(data).__module__.startswith("h5py") else True
    except Exception:
        return False


def is_array(data: Any) -> bool:
    """Whether `data` is itself an array with rows.

    Raises:
        ArgumentError: it was one, and its file is closed.
    """
    if type(data).__module__.startswith("h5py.") and not data:
        raise ArgumentError(
            f"the file of this h5py {type(data).__name__} is closed; keep it open for as long as it is read"
        )
    has_shape = hasattr(data, "shape") and hasattr(data, "dtype") and hasattr(data, "ndim")
    return has_shape and hasattr(data, "__array__") and data.ndim > 0


def is_frame(data: Any) -> bool:
    """Whether `data` is a pandas or polars frame."""
    return _is_a(data, "pandas", "DataFrame") or _is_a(data, "polars", "DataFrame")


def is_sparse(data: Any) -> bool:
    """Whether `data` is a sparse array or matrix of SciPy."""
    sparse = sys.modules.get("scipy.sparse")
    return sparse is not None and bool(sparse.issparse(data))


def _is_a(data: Any, library: str, name: str) -> bool:
    kind = getattr(sys.modules.get(library), name, None)
    return kind is not None and isinstance(data, kind)


def _kind(data: Any) -> str:
    return f"{type(data).__module__.partition('.')[0]} {type(data).__name__}"


def _importable(name: str) -> bool:
    from importlib.util import find_spec

    return find_spec(name) is not None


# ------------------------------------------------------------------ what a batch holds


def columns(frame: Any) -> dict[Any, Any]:
    """The columns of a frame by name."""
    return {name: frame[name] for name in frame.columns}


def numbers_of(batch: Any) -> Array:
    """A frame whose columns are all numbers as an array (n, columns); missing ones are NaN."""
    made = batch.to_numpy()
    if made.dtype.kind in "biufc":
        return np.asarray(made)
    parts = [_as_floats(column) for column in columns(batch).values()]
    return np.stack(parts, axis=1)


def _as_floats(column: Any) -> Array:
    if _is_a(column, "pandas", "Series"):
        return np.asarray(column.to_numpy(dtype=np.float64, na_value=np.nan))
    return np.asarray(column.to_numpy(), np.float64)


def _wordy(frame: Any) -> Any | None:
    """The first column of a frame that holds something else than numbers."""
    for name, column in columns(frame).items():
        if not _is_numeric(column):
            return name
    return None


def _is_numeric(column: Any) -> bool:
    if _is_a(column, "polars", "Series"):
        return bool(column.dtype.is_numeric()) or str(column.dtype) == "Boolean"
    return getattr(column.dtype, "kind", "O") in "biufc"


def _take_column(column: Any, indices: range | Array) -> Any:
    if _is_a(column, "pandas", "Series"):
        part = indices if isinstance(indices, np.ndarray) else slice(indices.start, indices.stop)
        return column.iloc[part]
    if _is_a(column, "polars", "Series"):
        return (
            column[indices.start : indices.stop] if isinstance(indices, range) else column[indices]
        )
    return _take_arrow(column, indices)


def _take_arrow(data: Any, indices: range | Array) -> Any:
    if isinstance(indices, range):
        return data.slice(indices.start, len(indices))
    return data.take(sys.modules["pyarrow"].array(indices))


def _values(column: Any) -> Any:
    """A column as an array of numbers, or as what is in it, an entry a sample."""
    if hasattr(column, "to_pylist"):  # Arrow
        if _is_arrow_number(column.type):
            return _arrow_numbers(column)
        return _entries(column.to_pylist())
    if _is_numeric(column):
        made = np.asarray(column.to_numpy())
        return made if made.dtype.kind in "biufc" else _as_floats(column)
    return _entries(column.to_list())


def _entries(values: list[Any]) -> Any:
    from fostore.nested import is_numbers, stack_numbers

    return stack_numbers(values) if values and is_numbers(values[0]) else PerSample(values)


def _is_arrow_number(kind: Any) -> bool:
    types = sys.modules["pyarrow"].types
    is_number = types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind)
    return bool(is_number)


def _arrow_dtype(column: Any) -> Any:
    """The dtype of a column as NumPy has it: one with missing numbers is float64."""
    kind = np.dtype(column.type.to_pandas_dtype())
    return np.dtype(np.float64) if column.null_count and kind.kind != "f" else kind


def _arrow_numbers(column: Any) -> Array:
    if column.null_count:
        return np.array([np.nan if one is None else one for one in column.to_pylist()], np.float64)
    options = {} if hasattr(column, "chunks") else {"zero_copy_only": False}
    return np.asarray(column.to_numpy(**options))


def hashed_parts(path: str, leaf: Any) -> Iterator[tuple[str, Any]]:
    """A leaf of a batch as what has bytes: the same for a row in a batch of any size."""
    if isinstance(leaf, np.ndarray):
        yield path, PerSample(leaf.tolist()) if leaf.dtype == object and leaf.ndim else leaf
    elif is_frame(leaf):
        if _wordy(leaf) is None:
            yield path, np.asarray(numbers_of(leaf), np.float64)
            return
        for name, column in columns(leaf).items():
            values = _as_floats(column) if _is_numeric(column) else PerSample(_plain(column))
            yield f"{path}[{name!r}]", values
    elif is_sparse(leaf):
        rows = leaf.tocsr()
        ends, places = rows.indptr.tolist(), rows.indices.astype(np.int64)
        yield (
            f"{path} sparse {rows.dtype.name} {rows.shape[1]}",
            PerSample(
                places[start:stop].tobytes() + rows.data[start:stop].tobytes()
                for start, stop in pairwise(ends)
            ),
        )
    else:
        yield path, leaf


def _plain(column: Any) -> list[Any]:
    """What is in a column; dates and the like as their text."""
    plain = (str, bytes, bool, int, float, list, tuple, dict, type(None))
    return [one if isinstance(one, plain) else str(one) for one in column.to_list()]
