"""Stores filled unit by unit, below the writer: what the tests of formats share."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from fostore.encodings import make_schema
from fostore.formats import Run, UnitWriter, WholeUnit
from fostore.schema import digest, geometry
from fostore.schema.header import Header
from fostore.schema.row import Column
from support import row_crc

UNIT = 2048
IDS = Column("sample_id", "utf8", "uint8", ("byte",), (6,), "id")
PRINTS = Column("input_hash", "uint64", "uint64", (), (), "fingerprint")
SHAPES: dict[str, dict[str, Any]] = {
    "one column": {"num_classes": 3},
    "members": {"num_classes": 3, "num_members": 2, "dtype": "float16"},
    "bits": {"num_classes": 250, "dtype": "bfloat16"},
    "logits": {"num_classes": 5, "kind": "logits"},
    "counts": {"num_classes": 4, "kind": "counts", "dtype": "uint64"},
    "many columns": {"num_classes": 10, "kind": "logits", "side_columns": (IDS, PRINTS)},
}


def header_of(shape: str, num_samples: int | None, *, unit_rows: int = UNIT) -> Header:
    """A header with one of `SHAPES`."""
    schema = make_schema(**SHAPES[shape])
    return Header(
        schema=schema,
        num_samples=num_samples,
        unit_rows=geometry.unit_rows(schema.row_bytes, num_samples, unit_rows),
        block_rows=geometry.block_rows(schema.row_bytes),
        meta={"note": "äß"},
    )


def column_rows(column: Column, start: int, stop: int) -> np.ndarray:
    """The rows of a column: random bytes that depend on the column and the row alone; floats are finite."""
    size = int(np.prod(column.shape, dtype=np.int64))
    numbers = np.arange(start * size, stop * size, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    numbers = (numbers ^ (numbers >> np.uint64(29))) + np.uint64(len(column.name))
    kind = column.numpy_dtype
    if kind.kind == "f":
        values = ((numbers >> np.uint64(40)).astype(np.float64) / 2**24).astype(kind)
    else:
        values = numbers.view(np.int64).astype(kind) if kind.kind == "i" else numbers.astype(kind)
    return np.ascontiguousarray(values.reshape(stop - start, *column.shape))


@dataclass
class Filler:
    """Fills a store with `column_rows` through its `UnitWriter`; `committed` is what was acknowledged."""

    writer: UnitWriter

    @property
    def header(self) -> Header:
        return self.writer.header

    def rows(self, start: int, stop: int) -> list[np.ndarray]:
        return [column_rows(column, start, stop) for column in self.header.schema.columns]

    def write(self, start: int, stop: int, *, run_start: int | None = None) -> list[Run]:
        """Write rows, and give the runs that commit them; `run_start`: they continue this run."""
        runs = []
        for _, first, last in geometry.split_at_units(start, stop, self.header.unit_rows):
            for index, rows in enumerate(self.rows(first, last)):
                self.writer.write(index, first, rows)
            begin = first if run_start is None else max(run_start, first - first % UNIT)
            runs.append(Run(begin, last, row_crc(self.rows(begin, last))))
        return runs

    def commit(self, start: int, stop: int, *, run_start: int | None = None) -> None:
        runs = self.write(start, stop, run_start=run_start)
        self.writer.sync()
        self.writer.commit(runs)

    def hashes(self, unit: int, num_rows: int) -> np.ndarray:
        first = unit * self.header.unit_rows
        size = self.header.block_rows
        hashed = [column for column in self.header.schema.columns if column.hashed]
        return np.stack(
            [
                np.stack(
                    [
                        digest.block_hash(column_rows(c, row, min(row + size, first + num_rows)))
                        for c in hashed
                    ]
                )
                for row in range(first, first + num_rows, size)
            ]
        )

    def seal(self, unit: int, num_rows: int | None = None) -> None:
        if num_rows is None:
            start, stop = geometry.unit_range(unit, self.header.unit_rows, self.header.num_samples)
            num_rows = stop - start
        self.writer.seal([WholeUnit(unit, num_rows, self.hashes(unit, num_rows))])

    def finish(self, num_samples: int) -> None:
        """Seal what is not sealed, publish, close."""
        for unit in range(-(-num_samples // self.header.unit_rows)):
            start, stop = geometry.unit_range(unit, self.header.unit_rows, num_samples)
            if not self.writer.sealed.covers(start, stop):
                self.seal(unit, stop - start)
        self.writer.finish(
            replace(self.header, num_samples=num_samples, sealed=True, digest="blake3:00")
        )
        self.writer.close()


def full_store(path: Path, shape: str, num_samples: int) -> Header:
    """A finished store at `path`."""
    from fostore.formats import format_of

    filler = Filler(format_of(path).create(path, header_of(shape, num_samples)))
    if num_samples:
        filler.commit(0, num_samples)
    filler.finish(num_samples)
    return filler.header


def edit(file: Path, change: Callable[[Any], None]) -> None:
    """Change a JSON file as a stranger would."""
    value = json.loads(file.read_text())
    change(value)
    value["attributes"].get("fostore", {}).pop("checksum", None)  # who means harm gets it right
    file.write_text(json.dumps(value))
