"""Where the chunks of a Zarr array lie: a file each, or a piece of a shard whose index says where (spec/zarr.md)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fostore.errors import DamageError, FormatError, FostoreError, UnsupportedError
from fostore.formats.chunks import codecs
from fostore.formats.chunks.array import Extent, Index, Survey, chunk_rows, damage
from fostore.formats.chunks.codecs import CodecError
from fostore.formats.views.pieces import ArrayCache
from fostore.formats.zarr.folder import MAX_METADATA, unit_of
from fostore.formats.zarr.layout import ABSENT
from fostore.places.place import Place
from fostore.schema.ranges import Range
from fostore.schema.row import Array, expect

_INDEX_CACHE = 16 << 20
_CRC_BYTES = 4


def extension(value: Any, where: str, key: str) -> tuple[Any, dict[str, Any]]:
    """Name and configuration of what Zarr calls an extension; one without configuration may be its name alone."""
    if isinstance(value, str):
        return value, {}
    configuration = expect(value, "name", str, f"{where}: {key!r}") and value.get("configuration")
    if configuration is None:
        configuration = {}
    if not isinstance(configuration, dict):
        raise FormatError(f"{where}: {key!r} has the configuration {configuration!r:.80}")
    return value["name"], configuration


class Root:
    """A folder that stays the one that was opened: every read is of it, or an error."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self._version = place.version()

    def check(self) -> None:
        """Refuse another folder.

        Raises:
            DamageError: nothing, or another one, lies there by now.
        """
        if self.place.version() != self._version:
            raise DamageError(f"another store has taken the place of {self.place}; open it again")

    def read(self, name: str, start: int, stop: int) -> bytes:
        """Bytes of a file; see `Container.read`."""
        try:
            ((data, _),) = self.place.read_many([(name, start, stop)])
        finally:
            self.check()  # afterwards: the file was opened by its name, in whatever folder lay there
        return data

    def close(self) -> None:
        """Nothing is open."""


@dataclass(frozen=True, slots=True)
class Files:
    """A container whose chunks are files in a folder ("" is the root): `key` is what their names begin with, and
    what parts their numbers."""

    root: Root
    folder: str
    key: tuple[str, str]
    num_axes: int

    @property
    def path(self) -> str:
        """Where the array lies."""
        return f"{self.root.place}/{self.folder}" if self.folder else str(self.root.place)

    def name(self, index: Index) -> str:
        begin, separator = self.key
        return self._inside(begin + separator.join(map(str, index)))

    def _inside(self, name: str) -> str:
        return f"{self.folder}/{name}" if self.folder else name

    def where(self, index: Index) -> str:
        return f"{self.root.place}/{self.name(index)}"

    def locate(self, index: Index) -> Extent:
        return Extent(self.name(index))

    def read(self, name: str, start: int, stop: int) -> bytes:
        return self.root.read(name, start, stop)

    def survey(self) -> Survey:
        begin, separator = self.key
        if separator == "/":
            indices = list(self._walk(self._inside(begin), self.num_axes))
        else:
            names = [name for name in self._names(self.folder) if name.startswith(begin)]
            numbers = [map(unit_of, name.removeprefix(begin).split(".")) for name in names]
            indices = [[n for n in index if n is not None] for index in numbers]
        held = [index for index in indices if len(index) == self.num_axes and max(index) < 1 << 62]
        return Survey(np.array(held, np.int64).reshape(-1, self.num_axes))

    def _walk(self, folder: str, depth: int) -> Iterator[list[int]]:
        for name in self._names(folder):
            number = unit_of(name)
            if number is not None and depth == 1:
                yield [number]
            elif number is not None:
                for others in self._walk(f"{folder}{name}/", depth - 1):
                    yield [number, *others]

    def _names(self, folder: str) -> list[str]:
        """The names in a folder; none where it is no folder or a link, which reading would refuse."""
        try:
            return sorted(self.root.place.names(folder.rstrip("/")))
        except (FileNotFoundError, FostoreError):
            return []


@dataclass(frozen=True, slots=True)
class ShardIndex:
    """The index of a shard as it is written: offset and size of every inner chunk."""

    per_shard: tuple[int, ...]
    entry: np.dtype[Any]
    has_crc: bool
    at_end: bool

    @classmethod
    def parse(cls, sharding: dict[str, Any], per_shard: tuple[int, ...], where: str) -> ShardIndex:
        chain = [
            extension(codec, where, "index_codecs")
            for codec in expect(sharding, "index_codecs", list, where)
        ]
        names = [name for name, _ in chain]
        endian = chain[0][1].get("endian") if chain else None
        if names not in (["bytes"], ["bytes", "crc32c"]) or endian not in ("little", "big"):
            raise UnsupportedError(
                f"{where}: 'index_codecs' has {names!r:.80} ({endian!r:.80}), expected bytes and crc32c"
            )
        location = sharding.get("index_location", "end")
        if location not in ("start", "end"):
            raise FormatError(f"{where}: 'index_location' is {location!r:.80}")
        entry = np.dtype("u8").newbyteorder("<" if endian == "little" else ">")
        index = cls(per_shard, entry, len(names) == 2, location == "end")
        if index.nbytes > MAX_METADATA:
            raise UnsupportedError(
                f"{where}: an index of {index.nbytes:,} bytes; use larger chunks"
            )
        return index

    @property
    def nbytes(self) -> int:
        return math.prod(self.per_shard) * 16 + _CRC_BYTES * self.has_crc

    def decode(self, data: Any, size: int) -> Array:
        """Offset and size of each inner chunk, int64 (n, 2), in a shard of `size` bytes; -1 where it is absent.

        Raises:
            CodecError: cut, damaged, or inner chunks that lie beyond the shard.
        """
        if len(data) < self.nbytes:
            raise CodecError(
                f"it has {size:,} bytes, and its index alone {self.nbytes:,}: it was cut"
            )
        data = codecs.crc32c(data, len(data)) if self.has_crc else data
        raw = np.frombuffer(data, self.entry).astype("u8").reshape(-1, 2)
        held = (raw != np.uint64(ABSENT)).any(axis=1)
        entries: Array = np.where(held[:, None], raw, 0).astype(np.uint64)
        # Both below the size first, so that their sum cannot overflow.
        if (entries > size).any() or (entries.sum(axis=1) > size).any():
            raise CodecError("its index names bytes beyond its end: it was cut or damaged")
        entries = entries.astype(np.int64)
        entries[~held] = -1
        return entries


@dataclass(frozen=True, slots=True)
class Shards:
    """A container whose files are shards of many chunks; `rows` are those of a chunk, and of the array."""

    files: Files
    index: ShardIndex
    rows: tuple[int, int]
    _indexes: ArrayCache = field(default_factory=lambda: ArrayCache(_INDEX_CACHE))

    def _shard(self, index: Index) -> Index:
        return tuple(n // m for n, m in zip(index, self.index.per_shard, strict=True))

    def where(self, index: Index) -> str:
        return self.files.where(self._shard(index))

    def locate(self, index: Index) -> Extent:
        shard, per_shard = self._shard(index), self.index.per_shard
        inside = tuple(n % m for n, m in zip(index, per_shard, strict=True))
        entries = self._indexes.get(shard, lambda: self._entries(shard))
        start, size = map(int, entries[int(np.ravel_multi_index(inside, per_shard))])
        if start < 0:
            raise CodecError(f"its chunk {list(inside)} is missing")
        return Extent(self.files.name(shard), start, size)

    def _entries(self, shard: Index) -> Array:
        name, nbytes = self.files.name(shard), self.index.nbytes
        size = self.files.root.place.size(name)
        if size is None:
            self.files.root.check()
            raise FileNotFoundError(name)
        start = max(size - nbytes, 0) if self.index.at_end else 0
        return self.index.decode(self.files.read(name, start, start + nbytes), size)

    def read(self, name: str, start: int, stop: int) -> bytes:
        return self.files.read(name, start, stop)

    def survey(self) -> Survey:
        per_shard, (size, num_rows) = self.index.per_shard, self.rows
        present = [np.empty((0, len(per_shard)), np.int64)]
        problems: list[tuple[Range, str]] = []
        for shard in self.files.survey().present.tolist():
            rows = chunk_rows(shard[0], per_shard[0] * size, num_rows)
            if rows[0] >= rows[1]:
                continue  # beyond the shape: nobody's rows
            try:
                entries = self._entries(tuple(shard))
            except CodecError as error:
                problems.append((rows, str(damage(self.files.where(tuple(shard)), rows, error))))
            except (FormatError, DamageError, FileNotFoundError) as error:
                problems.append((rows, str(error)))
            else:
                held = np.unravel_index(np.flatnonzero(entries[:, 0] >= 0), per_shard)
                present.append(np.stack(held, axis=1) + np.array(shard) * np.array(per_shard))
        return Survey(np.concatenate(present), tuple(problems))
