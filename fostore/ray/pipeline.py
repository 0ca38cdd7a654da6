"""One's own Ray Data pipeline around a planned store: the rows that are missing come out, distributions go in.

fostore.plan(path, num_samples=len(dataset), num_classes=10)
ray.data.DataContext.get_current().target_max_block_size = None
source = UnitSource(path)
rows = ray.data.read_datasource(source, override_num_blocks=len(source))
rows.map_batches(Teacher, batch_size=256, concurrency=8).write_datasink(Datasink(path))
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import ray.data
from ray.data.block import BlockAccessor, BlockMetadata
from ray.data.datasource import ReadTask

from fostore.errors import ArgumentError, RowError
from fostore.places.names import is_url
from fostore.reading.store import open as open_store
from fostore.schema import geometry
from fostore.schema.ranges import describe
from fostore.schema.row import Array
from fostore.writing.units import Planned, Unit, Where, finish, missing

ROW = "row"
"""The column of the numbers of rows, which are the indices of the dataset."""
_ROW_BYTES = 8


def everywhere(path: Path | str) -> str:
    """A path, or a url, that means the same in a process that works in another folder."""
    name = os.fspath(path)
    return name if is_url(name) else os.path.abspath(name)


def _missing_units(path: Where) -> list[Unit]:
    """The units of a planned store that nobody has committed, in order; nothing is held open.

    Raises:
        StoreNotFoundError: nobody has planned it.
    """
    with open_store(path) as store:
        unit_rows, ranges = store.header.unit_rows, store.missing()
        return [
            Unit(everywhere(store.path), index, first, last)
            for start, stop in ranges
            for index, first, last in geometry.split_at_units(start, stop, unit_rows)
        ]


class UnitSource(ray.data.Datasource):
    """The numbers of the rows that are missing in a planned store: one read task, and one block, a unit.

    So whole units arrive at a `Datasink`, in any order. Read it with `override_num_blocks=len(source)`, else Ray cuts
    units into more blocks, and with `DataContext.target_max_block_size = None`, else what comes of large ones: a unit
    that is cut stays missing, and the sink says so.

    Args:
        path: a store that `fostore.plan` has begun, or its plan.

    Raises:
        StoreNotFoundError: nobody has planned it.
    """

    def __init__(self, path: Where | Planned) -> None:
        self._units = _missing_units(path.path if isinstance(path, Planned) else path)

    def __len__(self) -> int:
        """Units that were missing when this was made."""
        return len(self._units)

    def get_read_tasks(self, parallelism: int, *_: Any, **__: Any) -> list[Any]:
        """One a unit, whatever Ray asks for."""
        return [_read_task(unit.start, unit.stop) for unit in self._units]

    def estimate_inmemory_data_size(self) -> int:
        """Bytes of all numbers."""
        return sum(len(unit) for unit in self._units) * _ROW_BYTES


def _read_task(start: int, stop: int) -> Any:
    size = (stop - start) * _ROW_BYTES
    metadata = BlockMetadata(
        num_rows=stop - start, size_bytes=size, input_files=None, exec_stats=None
    )
    return ReadTask(lambda: [pa.table({ROW: np.arange(start, stop)})], metadata)


class Datasink(ray.data.Datasink[Any]):
    """Where distributions go: whole units of a planned store, each committed as soon as its rows are together.

    Args:
        path: a store that `fostore.plan` has begun, or its plan.
        rows: the column of row numbers, as `UnitSource` gives them.
        values: the column of distributions, (num_classes,) or (num_members, num_classes) a row.
        beside: columns that go with the rows, by the keyword of `Unit.write`: {"ids": "name", ...}.
        seal: whether the store is finished when all of its rows are there.

    Units of which a write task has a part alone are not written; the pipeline then ends in RowError, whole units stay.
    """

    def __init__(
        self,
        path: Where | Planned,
        *,
        rows: str = ROW,
        values: str = "probs",
        beside: Mapping[str, str] | None = None,
        seal: bool = True,
    ) -> None:
        path = path.path if isinstance(path, Planned) else path
        with open_store(path) as store:
            self._path = everywhere(store.path)
            self._unit_rows = store.header.unit_rows
            self._num_samples = store.num_samples
        if self._num_samples is None:
            raise ArgumentError(f"{self._path} is a stream, and units are those of planned rows")
        self._rows, self._values, self._beside = rows, values, dict(beside or {})
        self._seals = seal

    def write(self, blocks: Iterable[Any], ctx: Any) -> list[tuple[int, int]]:
        """Write the whole units among the rows of one task; gives the rows of units that are not."""
        names = [self._rows, self._values, *self._beside.values()]
        columns = [BlockAccessor.for_block(block).to_numpy(names) for block in blocks]
        columns = [one for one in columns if len(one[self._rows])]
        if not columns:
            return []
        together = {name: np.concatenate([one[name] for one in columns]) for name in names}
        rows = together[self._rows].astype(np.int64)
        order = np.argsort(rows, kind="stable")
        rows = rows[order]
        self._check(rows)
        left = []
        bounds = np.flatnonzero(np.diff(rows // self._unit_rows)) + 1
        for at in np.split(np.arange(len(rows)), bounds):
            index = int(rows[at[0]]) // self._unit_rows
            start, stop = geometry.unit_range(index, self._unit_rows, self._num_samples)
            if len(at) != stop - start:
                left.append((int(rows[at[0]]), int(rows[at[-1]]) + 1))
                continue
            chosen = order[at]
            beside = {key: _plain(together[name][chosen]) for key, name in self._beside.items()}
            Unit(self._path, index, start, stop).write(
                _stacked(together[self._values][chosen]), **beside
            )
        return left

    def _check(self, rows: Array) -> None:
        assert self._num_samples is not None
        if rows[0] < 0 or rows[-1] >= self._num_samples:
            bad = int(rows[0] if rows[0] < 0 else rows[-1])
            raise RowError(f"row {bad} came; {self._path} plans {self._num_samples} rows")
        twice = np.flatnonzero(rows[1:] == rows[:-1])
        if len(twice):
            raise RowError(f"row {int(rows[twice[0]])} came twice; {self._path} keeps one of each")

    def on_write_complete(self, write_result: Any) -> None:
        """Finish the store where nothing is missing, and say what was cut in two.

        Raises:
            RowError: rows came in parts of units.
        """
        cut = sorted(rows for left in write_result.write_returns for rows in left or ())
        open_rows = missing(self._path)
        if cut and open_rows:
            raise RowError(
                f"{describe(cut[:3])}{' and more' if len(cut) > 3 else ''} of {self._path} came in parts of units of "
                f"{self._unit_rows} rows, and units are written as a whole: read source = UnitSource(path) with "
                "override_num_blocks=len(source), set DataContext.get_current().target_max_block_size = None, and "
                "filter no rows. The whole ones are committed; the same pipeline goes on"
            )
        if self._seals and not open_rows:
            finish(self._path)


def _stacked(values: Array) -> Array:
    return np.stack(list(values)) if values.dtype == object else values


def _plain(values: Array) -> Any:
    return values.tolist() if values.dtype.kind in "OU" else values
