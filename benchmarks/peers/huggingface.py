"""Arrow and HF datasets: a fixed-size list column, memory-mapped from Arrow's file format."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from peers.peer import Gather, Peer


def write_arrow(path: Path, rows: np.ndarray) -> None:
    """One record batch in Arrow's file format."""
    import pyarrow

    values = pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(rows.reshape(-1)), rows.shape[1])
    table = pyarrow.table({"row": values})
    with pyarrow.ipc.new_file(path.with_suffix(".arrow"), table.schema) as file:
        file.write_table(table)


def open_arrow(path: Path) -> Gather:
    """One chunk, and an Arrow take of it: no Python object a row."""
    import pyarrow

    table = pyarrow.ipc.open_file(pyarrow.memory_map(str(path.with_suffix(".arrow")))).read_all()
    column = table["row"].combine_chunks()
    if isinstance(column, pyarrow.ChunkedArray):
        column = column.chunk(0)

    def gather(wanted: np.ndarray) -> np.ndarray:
        return _matrix(column.take(pyarrow.array(wanted)))

    return gather


def _matrix(lists: Any) -> np.ndarray:
    values: np.ndarray = lists.flatten().to_numpy()
    return values.reshape(len(lists), -1)


def write_dataset(path: Path, rows: np.ndarray) -> None:
    """A saved dataset with one column of fixed length."""
    import datasets
    import pyarrow

    values = pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(rows.reshape(-1)), rows.shape[1])
    datasets.disable_progress_bars()
    datasets.Dataset(pyarrow.table({"row": values})).save_to_disk(str(path))


def open_numpy(path: Path) -> Gather:
    """The batch in the format "numpy", as most training code has it."""
    import datasets

    stored = datasets.load_from_disk(str(path))
    # Without a dtype, halves would come as float32.
    dtype = np.dtype(stored.features["row"].feature.dtype)
    rows = stored.with_format("numpy", dtype=dtype)

    def gather(wanted: np.ndarray) -> np.ndarray:
        found: np.ndarray = rows[wanted.tolist()]["row"]
        return found

    return gather


def open_table(path: Path) -> Gather:
    """The batch as an Arrow table, whose values are one NumPy array without a copy."""
    import datasets

    rows = datasets.load_from_disk(str(path)).with_format("arrow")

    def gather(wanted: np.ndarray) -> np.ndarray:
        return _matrix(rows[wanted.tolist()]["row"].combine_chunks())

    return gather


PYARROW = Peer("pyarrow", "memory map, take", "pyarrow", "pyarrow", write_arrow, open_arrow)
ARROW = Peer(
    "HF datasets, arrow format",
    "expert: the table's values as an array",
    "datasets",
    "datasets",
    write_dataset,
    open_table,
)
NUMPY = Peer(
    "HF datasets",
    'with_format("numpy"), a list of rows',
    "datasets",
    "datasets",
    write_dataset,
    open_numpy,
    fresh="""
import datasets
rows = datasets.load_from_disk(path).with_format("numpy")[wanted]["row"]
""",
)
