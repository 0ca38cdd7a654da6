"""What has rows: arrays, frames, tables, columns and sparse matrices, in memory or on disk, a batch at a time.

Nothing is imported to know them: a caller's object means that its library is imported already.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np

from fostore.containers.columns import (
    arrow_dtype,
    arrow_numbers,
    columns,
    entries_of,
    first_text,
    is_a,
    is_arrow_number,
    is_frame,
    is_sparse,
    is_value,
    kind_of,
    take,
    values_of,
)
from fostore.errors import ArgumentError
from fostore.schema.row import Array

_ASIDE = ("targets", "labels", "y", "ids", "classes")
"""What a dataset may say of all its samples: attributes of a container, or columns of a frame."""


class Rows(Sequence[Any]):
    """A container as a dataset: sample i is its row i, and a batch is a part of it.

    A batch is of the container's own kind where a model may want that (frames, sparse matrices), else
    an array, or a list of texts. An array in memory is sliced without a copy.
    """

    has_dtype = False
    """Whether the numbers have a dtype that somebody chose for a model; those of a frame have none."""

    def __init__(self, data: Any) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getattr__(self, name: str) -> Any:
        if name in _ASIDE:
            return self._aside(name)
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def _aside(self, name: str) -> Any:
        return getattr(self.data, name)

    def take(self, indices: range | Array) -> Any:
        """The rows of `indices` as one batch, in that order."""
        return take(self.data, indices)

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

    def require_numbers(self) -> None:
        if self.data.dtype == object and self.data.ndim > 1:
            raise ArgumentError(
                f"an array of objects, of the shape {self.data.shape}, is no array of numbers, which a "
                "model here takes: give array.astype(np.float32) (to torch as "
                "TensorDataset(torch.from_numpy(...))), or encode its columns of text"
            )


class _Values(Rows):
    """An array of objects each of which is an array, or a list of numbers."""

    def take(self, indices: range | Array) -> Any:
        return entries_of(super().take(indices).tolist())


class _OnDisk(Rows):
    """An array that is read where it is sliced: h5py, zarr, tensorstore, dask, a memory-mapped file."""

    has_dtype = True

    def __init__(self, data: Any) -> None:
        super().__init__(data)
        self._count = int(data.shape[0])  # a file may be closed by the time somebody asks

    def __len__(self) -> int:
        return self._count

    def take(self, indices: range | Array) -> Any:
        if isinstance(indices, range):
            return _fresh(self.data[indices.start : indices.stop])
        # One by one: h5py takes lists of indices only in ascending order, and slowly.
        return np.stack([_fresh(self.data[index]) for index in indices.tolist()])

    def __getitem__(self, index: Any) -> Any:
        return _fresh(self.data[index])


def _fresh(piece: Any) -> Array:
    """What was read in memory of its own, in this machine's byte order."""
    read = np.asarray(piece)
    return np.array(read, read.dtype.newbyteorder("="), copy=None if read.base is None else True)


class _Sparse(Rows):
    """A SciPy sparse matrix; batches and samples are sparse as well."""

    def __init__(self, data: Any) -> None:
        rows = data.tocsr()
        if not rows.has_canonical_format:
            # The same row, and so the same hash, however the matrix was built.
            rows = rows.copy()
            rows.sum_duplicates()
        super().__init__(rows)

    def __len__(self) -> int:
        return int(self.data.shape[0])  # SciPy's own `len` refuses

    def __getitem__(self, index: Any) -> Any:
        return self.data[index : index + 1]


class _Frame(Rows):
    """A pandas or polars frame; batches are frames, with the names of their columns."""

    def _aside(self, name: str) -> Any:
        if name not in self.data.columns:
            raise AttributeError(name)
        return self.data[name]

    def __getitem__(self, index: Any) -> Any:
        if is_a(self.data, "polars", "DataFrame"):
            return self.data.row(index, named=True)
        return self.data.iloc[index]

    def require_numbers(self) -> None:
        name = first_text(self.data)
        if name is not None:
            raise ArgumentError(
                f"column {name!r} of the {kind_of(self.data)} holds {columns(self.data)[name].dtype}, and "
                "a model here takes numbers: choose columns (frame[[...]]), encode it, or take "
                "the input out of each row with input_getter"
            )


class _Column(Rows):
    """A pandas, polars or Arrow column: numbers as an array, all else as a list with an entry a sample."""

    def take(self, indices: range | Array) -> Any:
        return values_of(super().take(indices))


class _Table(Rows):
    """An Arrow table: batches are arrays (n, columns), or pandas frames where not all are numbers."""

    def __init__(self, data: Any) -> None:
        super().__init__(data)
        self._names = list(data.schema.names)
        self._wordy = next((f.name for f in data.schema if not is_arrow_number(f.type)), None)
        kinds = [arrow_dtype(data.column(name)) for name in self._names] if not self._wordy else []
        self._dtype = np.result_type(*kinds) if kinds else None

    def _aside(self, name: str) -> Any:
        if name not in self._names:
            raise AttributeError(name)
        return self.data.column(name)

    def take(self, indices: range | Array) -> Any:
        taken = super().take(indices)
        if self._dtype is None:
            if "pandas" not in sys.modules and find_spec("pandas") is None:
                raise ArgumentError(
                    f"column {self._wordy!r} of the Arrow table is not numbers, so a batch is a pandas "
                    "frame, and pandas is not installed: install it, or choose columns (select)"
                )
            return taken.to_pandas()
        made = np.empty((taken.num_rows, len(self._names)), self._dtype)
        for at, name in enumerate(self._names):
            made[:, at] = arrow_numbers(taken.column(name))
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


class _Part(Rows):
    """Chosen rows of a container, as torch's Subset names them: its own `data[i]` is no row of it."""

    def __init__(self, rows: Rows, indices: Any) -> None:
        super().__init__(rows)
        self._indices = np.asarray(indices, np.int64)
        self.has_dtype = rows.has_dtype

    def __len__(self) -> int:
        return len(self._indices)

    def _aside(self, name: str) -> Any:
        return np.asarray(getattr(self.data, name))[self._indices]

    def take(self, indices: range | Array) -> Any:
        # Named one by one, never as a range: what follows here may lie anywhere in the container.
        return self.data.take(self._indices[np.asarray(indices)])

    def __getitem__(self, index: Any) -> Any:
        return self.data[int(self._indices[index])]

    def require_numbers(self) -> None:
        self.data.require_numbers()


_BY_ANOTHER_INDEX = (_Frame, _Column, _Table, _Sparse, _Part)
"""Containers whose own `[i]` is a column, what a label stands for, or a matrix: not sample i."""


_KINDS: tuple[tuple[str, str, type[Rows]], ...] = (
    ("pandas", "Series", _Column),
    ("polars", "Series", _Column),
    ("pyarrow", "ChunkedArray", _Column),
    ("pyarrow", "Array", _Column),
    ("pyarrow", "Table", _Table),
    ("pyarrow", "RecordBatch", _Table),
)

_IN_MEMORY = ("jaxlib", "jax", "torch")
"""Libraries whose arrays NumPy takes as they lie."""


def _library(data: Any) -> str:
    return type(data).__module__.partition(".")[0]


def _within(data: Any) -> Rows | None:
    """The container that torch's Subset takes rows of, where it would take something else.

    Raises:
        ArgumentError: torch's ConcatDataset holds such containers.
    """
    if is_a(data, "torch.utils.data", "Subset"):
        rows = find(data.dataset)
        return _Part(rows, data.indices) if isinstance(rows, _BY_ANOTHER_INDEX) else None
    if is_a(data, "torch.utils.data", "ConcatDataset"):
        for one in data.datasets:
            if isinstance(find(one), _BY_ANOTHER_INDEX):
                raise ArgumentError(
                    f"a ConcatDataset would ask a {kind_of(one)} for its item i, which is not its row i; "
                    "put the containers together with their own library (pandas.concat, scipy.sparse.vstack)"
                )
    return None


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
    if is_frame(data):
        return _frame(data)
    if is_a(data, "pandas", "Index"):
        data = data.to_series()
    for library, name, kind in _KINDS:
        if is_a(data, library, name):
            return kind(data)
    if is_sparse(data):
        if data.ndim != 2:
            raise ArgumentError(f"a sparse array of {data.ndim} axes has no rows of features")
        return _Sparse(data)
    _refuse_others(data)
    if not is_array(data):
        return _within(data)
    return _Arrays(np.asarray(data)) if _library(data) in _IN_MEMORY else _OnDisk(data)


def as_dataset(data: Any) -> Any:
    """A container as a dataset of its rows, where `data[i]` is something else; anything else as it is.

    Raises:
        ArgumentError: see `find`; or it is a dict of columns.
    """
    # Arrays in memory have their rows at `data[i]` already, and stay what the user gave.
    if isinstance(data, np.ndarray) and not isinstance(data, (np.memmap, np.ma.MaskedArray)):
        return data
    if _library(data) in _IN_MEMORY and hasattr(data, "shape"):
        return data
    rows = find(data)
    if rows is None and isinstance(data, Mapping) and data and 0 not in data:
        keys = ", ".join(repr(key) for key in list(data)[:4])
        raise ArgumentError(
            f"a mapping ({keys}) is not a Dataset: sample 0 is not in it. A dict of columns is one as "
            "pandas.DataFrame(columns), or as a list of one dict a sample"
        )
    return data if rows is None else rows


def _array(data: Any) -> Rows | None:
    if data.ndim == 0:
        return None
    if np.ma.isMaskedArray(data) and np.ma.is_masked(data):
        raise ArgumentError(
            "a masked array has numbers that do not count, and a model would take them; give "
            "array.filled(value)"
        )
    if isinstance(data, np.memmap):  # its slices would be read when a model computes with them
        return _OnDisk(data)
    if data.dtype == object and data.ndim == 1 and len(data) and is_value(data[0]):
        return _Values(data)
    return _Arrays(np.asarray(data))


def _frame(data: Any) -> Rows:
    names = list(data.columns)
    if len(set(names)) != len(names):
        twice = next(name for at, name in enumerate(names) if name in names[:at])
        raise ArgumentError(f"the frame has two columns {twice!r}; rename one")
    return _Frame(data)


def _refuse_others(data: Any) -> None:
    """Name what belongs to a known library and has no rows that can be asked for."""
    library, kind = _library(data), f"a {kind_of(data)}"
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
