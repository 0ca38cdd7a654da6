"""A store of any number of units that nobody has written: names, sizes and records are made up as they are asked for.

What writes and finishes stores does not see the difference: its calls, bytes and memory are those of a real one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from fostore.formats.zarr.folder import METADATA, Folder, unit_of
from fostore.formats.zarr.records import UnitRecord, folder_of
from fostore.formats.zarr.state import parse_header
from fostore.places.place import ByUrl, Listed, Version, VersionedFile

_ETAG = '"00000000000000000000000000000000"'
TOKENS = 1000
"""Rows a sequence, where rows are tokens."""
_PAGE = 1000
"""Names that an object store gives in one answer, and removes in one request."""


class Imagined(ByUrl):
    """A `Storage` that keeps small files, forgets those of units, and counts requests as an object store bills them."""

    is_local = False

    def __init__(self, url: str = "imagined://plan.zarr") -> None:
        self.url = url
        self.calls: Counter[str] = Counter()
        self.bytes: Counter[str] = Counter()
        self.committed = 0
        """Units from 0 on that have a record."""
        self._files: dict[str, bytes] = {}

    def commit_all(self) -> None:
        """From now on all units are there."""
        header = parse_header(self._files[METADATA], METADATA)
        self._folder = folder = Folder.of(self, header)
        assert header.num_samples is not None
        self.committed = -(-header.num_samples // header.unit_rows)
        rng = np.random.default_rng(0)
        shape = folder.hashes.chunk_shape
        self._hashes = rng.integers(1, 255, shape, np.uint8)
        self._records = folder_of(folder)

    def _rows(self, unit: int) -> int:
        return self._folder.unit_stop(unit) - unit * self._folder.header.unit_rows

    def _record(self, unit: int) -> bytes:
        rows = self._rows(unit)
        columns = tuple((one.shard_bytes(rows), 0, _ETAG) for one in self._folder.shards)
        blocks = -(-rows // self._folder.header.block_rows)
        return UnitRecord(
            "0" * 32, "node-0000:12345", "2026-11-26T00:00:00Z", rows, columns,
            self._hashes[:blocks], _ETAG,
        ).pack(unit)  # fmt: skip

    def _piece(self, name: str, start: int, stop: int) -> tuple[bytes, Version]:
        column, is_shard, rest = name.partition("/c/")
        if self.committed and column == "sequence":
            first = int(rest.split("/")[0]) * self._folder.header.unit_rows
            rows = np.arange(first + start // 8, first + stop // 8, dtype=np.int64)
            return (rows // TOKENS).tobytes(), _ETAG
        if self.committed and is_shard and column in (one.name for one in self._folder.shards):
            return bytes(stop - start), _ETAG
        data = self._data(name)
        return data[start:stop], hash(data)

    def _data(self, name: str) -> bytes:
        if name in self._files:
            return self._files[name]
        folder, _, last = name.rpartition("/")
        unit = unit_of(last)
        if self.committed and folder == self._records and unit is not None:
            return self._record(unit)
        raise FileNotFoundError(f"there is no {self}/{name}")

    # Place

    def read(self, name: str, limit: int) -> bytes:
        return self.read_many([(name, 0, limit)])[0][0]

    def read_many(self, ranges: Sequence[tuple[str, int, int]]) -> list[tuple[bytes, Version]]:
        self.calls["GET"] += len(ranges)
        pieces = [self._piece(*one) for one in ranges]
        self.bytes["GET"] += sum(len(data) for data, _ in pieces)
        return pieces

    def open(self, name: str = "") -> VersionedFile:
        return VersionedFile(self, name)

    def size(self, name: str) -> int | None:
        self.calls["HEAD"] += 1
        try:
            return len(self._data(name))
        except FileNotFoundError:
            return None

    def names(self, folder: str = "") -> dict[str, str]:
        raise NotImplementedError  # no worker and no finisher asks for it

    def version(self, name: str = "") -> Version:
        self.calls["HEAD"] += 1
        data = self._files.get(name or METADATA)
        return None if data is None else hash(data)

    def below(self, name: str) -> Any:
        raise NotImplementedError  # no worker and no finisher asks for it

    # Storage

    def put(self, name: str, data: Any, replaces: Version = None) -> Version:
        self.calls["PUT"] += 1
        self.bytes["PUT"] += memoryview(data).nbytes
        if not name.endswith(METADATA):
            return _ETAG
        if replaces is None and name in self._files:
            return None
        self._files[name] = bytes(memoryview(data))
        return hash(self._files[name])

    def delete(self, names: Sequence[str]) -> None:
        self.calls["DELETE"] += -(-sum(1 for _ in names) // _PAGE)

    def listed(self, folder: str = "") -> Iterator[Listed]:
        for count, one in enumerate(self._listed(folder)):
            self.calls["LIST"] += count % _PAGE == 0
            yield one
        if not self.committed:
            self.calls["LIST"] += 1

    def _listed(self, folder: str) -> Iterator[Listed]:
        if not self.committed:
            return
        if self._records.startswith(folder):  # of the first column as well
            size = len(self._record(0))
            for unit in range(self.committed):
                yield Listed(f"{self._records}/{unit}", size, _ETAG)
        for layout in self._folder.layouts:
            if folder in (layout.name, f"{layout.name}/c"):
                is_column = layout in self._folder.shards
                for unit in range(self.committed):
                    size = layout.shard_bytes(self._rows(unit)) if is_column else layout.chunk_bytes
                    yield Listed(layout.key(unit), size, _ETAG)
