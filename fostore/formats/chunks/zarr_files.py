"""Where the chunks of a Zarr array lie: a file each, or a piece of a shard whose index says where (spec/zarr.md)."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from fostore.errors import DamageError, FormatError, FostoreError, UnsupportedError
from fostore.formats.chunks import codecs
from fostore.formats.chunks.array import Index, Packed, Survey, damage
from fostore.formats.chunks.codecs import CodecError
from fostore.formats.views.pieces import ArrayCache
from fostore.formats.zarr.folder import MAX_METADATA, unit_of
from fostore.formats.zarr.layout import ABSENT
from fostore.places.place import Place
from fostore.schema.ranges import Range
from fostore.schema.row import Array, expect

_INDEX_CACHE = 16 << 20
_CRC_BYTES = 4
_MOST = 1 << 40  # files along an axis: times the chunks of a shard, still numbers of 64 bits


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
        """Bytes of a file; see `ForeignArray`."""
        try:
            ((data, _),) = self.place.read_many([(name, start, stop)])
        finally:
            self.check()  # afterwards: the file was opened by its name, in whatever folder lay there
        return data

    def close(self) -> None:
        """Nothing is open."""


@dataclass(frozen=True, slots=True)
class ShardIndex:
    """The index of a shard as it is written: offset and size of every inner chunk."""

    num_chunks: int
    entry: np.dtype[Any]
    has_crc: bool
    at_end: bool

    @classmethod
    def parse(cls, sharding: dict[str, Any], num_chunks: int, where: str) -> ShardIndex:
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
        index = cls(num_chunks, entry, len(names) == 2, location == "end")
        if index.nbytes > MAX_METADATA:
            raise UnsupportedError(
                f"{where}: an index of {index.nbytes:,} bytes; use larger chunks"
            )
        return index

    @property
    def nbytes(self) -> int:
        return self.num_chunks * 16 + _CRC_BYTES * self.has_crc

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
class Files:
    """A container of files, each a chunk, or with an `index` a shard of `per_file` chunks.

    Their names are `folder` ("" or what ends in "/"), then `key`: what they begin with, and what parts their numbers.
    """

    root: Root
    folder: str
    key: tuple[str, str]
    per_file: tuple[int, ...]
    index: ShardIndex | None = None
    _entries: ArrayCache = field(default_factory=lambda: ArrayCache(_INDEX_CACHE))

    def where(self, index: Index) -> str:
        return f"{self.root.place}/{self._name(map(operator.floordiv, index, self.per_file))}"

    def locate(self, index: Index) -> Packed:
        file, inside = zip(*map(divmod, index, self.per_file), strict=True)
        name = self._name(file)
        if self.index is None:
            return Packed(name)
        entries = self._entries.get(file, partial(self._read_index, self.index, name))
        start, size = map(int, entries[int(np.ravel_multi_index(inside, self.per_file))])
        if start < 0:
            raise CodecError(f"its chunk {list(inside)} is missing")
        return Packed(name, start, size)

    def survey(self, rows_of: Callable[[Index], Range]) -> Survey:
        files = self._present()
        if self.index is None:
            return files, ()
        present = [np.empty((0, len(self.per_file)), np.int64)]
        problems: list[tuple[Range, str]] = []
        for file in files:
            first = file * np.array(self.per_file)
            height = int(first[0])
            start, stop = rows_of((height,))[0], rows_of((height + self.per_file[0] - 1,))[1]
            if start >= stop:
                continue  # beyond the shape: nobody's rows
            try:
                entries = self._read_index(self.index, self._name(file))
                held = np.unravel_index(np.flatnonzero(entries[:, 0] >= 0), self.per_file)
                present.append(np.stack(held, axis=1) + first)
            except CodecError as error:
                broken = damage(self.where(first.tolist()), (start, stop), error)
                problems.append(((start, stop), str(broken)))
            except (FormatError, DamageError, FileNotFoundError) as error:
                problems.append(((start, stop), str(error)))
        return np.concatenate(present), problems

    def _read_index(self, index: ShardIndex, name: str) -> Array:
        size = self.root.place.size(name)
        if size is None:
            self.root.check()
            raise FileNotFoundError(f"there is no {self.root.place}/{name}")
        start = max(size - index.nbytes, 0) if index.at_end else 0
        return index.decode(self.root.read(name, start, start + index.nbytes), size)

    def _present(self) -> Array:
        """Where the files stand that are there, int64 (n, axes)."""
        begin, separator = self.key
        num_axes = len(self.per_file)
        if separator == "/":
            indices = list(self._walk(self.folder + begin, num_axes))
        else:
            names = [name for name in self._names(self.folder) if name.startswith(begin)]
            numbers = [map(unit_of, name.removeprefix(begin).split(".")) for name in names]
            indices = [[n for n in index if n is not None] for index in numbers]
        present = [index for index in indices if len(index) == num_axes and max(index) < _MOST]
        return np.array(present, np.int64).reshape(-1, num_axes)

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

    def _name(self, file: Iterable[int]) -> str:
        begin, separator = self.key
        return f"{self.folder}{begin}{separator.join(map(str, file))}"
