"""Chunks and shards of a Zarr array as they lie in files, decoded by an allow-list of codecs.

Used through zarr_foreign.py, which checks sizes before anything here is made.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fostore import disk
from fostore.errors import DamageError, FormatError, FostoreError, UnsupportedError
from fostore.formats.chunks import codecs
from fostore.formats.chunks.codecs import CodecError, Decoder
from fostore.formats.chunks.foreign import Index, Survey
from fostore.formats.views.pieces import ArrayCache
from fostore.formats.zarr.folder import MAX_METADATA, check_directory, find_chunk, unit_of
from fostore.formats.zarr.layout import ABSENT
from fostore.schema.ranges import Range
from fostore.schema.row import Array, expect

PACKERS: dict[str, Decoder] = {
    "gzip": codecs.gzip,
    "zstd": codecs.zstd,
    "blosc": codecs.blosc,
    "crc32c": codecs.crc32c,
}
ALLOWED = ("sharding_indexed", "bytes", "transpose", *PACKERS)
"""The codecs that are decoded; everything else is refused by name."""

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


@dataclass(frozen=True, slots=True)
class Codecs:
    """How one chunk was encoded: transposed, laid out as bytes, packed."""

    shape: tuple[int, ...]
    order: tuple[int, ...]
    stored: np.dtype[Any]
    packers: tuple[Decoder, ...]

    @classmethod
    def parse(
        cls, chain: list[Any], shape: tuple[int, ...], dtype: np.dtype[Any], where: str
    ) -> Codecs:
        order = tuple(range(len(shape)))
        stored: np.dtype[Any] | None = None
        packers = []
        for codec in chain:
            name, configuration = extension(codec, where, "codecs")
            if name not in ALLOWED:
                raise UnsupportedError(
                    f"{where} has the codec {name!r:.80}; fostore decodes {list(ALLOWED)} alone"
                )
            if name == "transpose" and stored is None:
                axes = expect(configuration, "order", list, f"{where}: 'transpose'")
                if any(type(n) is not int for n in axes) or sorted(axes) != list(range(len(shape))):
                    raise FormatError(f"{where}: 'transpose' has the order {axes!r:.80}")
                order = tuple(order[n] for n in axes)
            elif name == "bytes" and stored is None:
                endian = configuration.get(
                    "endian", "little" if dtype.itemsize == 1 or dtype.kind == "S" else None
                )
                if endian not in ("little", "big"):
                    raise FormatError(f"{where}: 'bytes' has the endian {endian!r:.80}")
                stored = dtype.newbyteorder("<" if endian == "little" else ">")
            elif name in PACKERS and stored is not None:
                packers.append(PACKERS[name])
            else:
                raise UnsupportedError(
                    f"{where}: 'codecs' has {name!r} in a place that is not decoded"
                )
        if stored is None:
            raise FormatError(f"{where}: 'codecs' lacks 'bytes'")
        return cls(shape, order, stored, tuple(packers))

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.stored.itemsize

    @property
    def limit(self) -> int:
        """Bytes that an encoded chunk may have."""
        return codecs.packed_limit(self.nbytes) if self.packers else self.nbytes

    def decode(self, data: bytes) -> Array:
        raw = codecs.unpack(data, self.packers, self.nbytes)
        lying = np.frombuffer(raw, self.stored).reshape([self.shape[n] for n in self.order])
        rows = np.ascontiguousarray(lying.transpose(np.argsort(self.order)))
        little: Array = rows.astype(self.stored.newbyteorder("<"), copy=False)
        return little


@dataclass(frozen=True, slots=True)
class Files:
    """The files of an array's chunks; every path is walked anew, so that no link is followed."""

    folder: Path
    key: tuple[str, str]
    recheck: Callable[[], None]

    def name(self, index: Index) -> str:
        first, separator = self.key
        return first + separator.join(map(str, index))

    def open(self, index: Index, rows: Range) -> int:
        """A descriptor of the file of a chunk.

        Raises:
            DamageError: there is none, or another store lies there by now.
            UnsafeError: a link.
        """
        path = find_chunk(self.folder, self.name(index))
        if path is None:
            self.recheck()
            raise DamageError(
                f"{self.folder / self.name(index)} is missing, and with it rows {rows[0]} to {rows[1] - 1}; "
                "a tool that leaves out chunks of its fill value must be told to write them",
                (rows,),
            )
        fd = disk.open_file(path)
        try:
            self.recheck()
        except BaseException:
            os.close(fd)
            raise
        return fd

    def present(self, num_axes: int) -> Array:
        """Where the chunks stand that have a file or a name, int64 (n, num_axes)."""
        first, separator = self.key
        if separator == ".":
            named = [
                name.removeprefix(first) for name in _names(self.folder) if name.startswith(first)
            ]
            parts = [[unit_of(part) for part in name.split(".")] for name in named]
            found = [[n for n in index if n is not None] for index in parts]
        else:
            found = list(_walk(self.folder / "c" if first else self.folder, num_axes))
        inside = [index for index in found if len(index) == num_axes and max(index) < 1 << 62]
        return np.array(inside, np.int64).reshape(-1, num_axes)


def _walk(folder: Path, depth: int) -> Iterator[list[int]]:
    for name in _names(folder):
        number = unit_of(name)
        if number is None:
            continue
        if depth == 1:
            yield [number]
        else:
            yield from ([number, *others] for others in _walk(folder / name, depth - 1))


def _names(folder: Path) -> list[str]:
    """The names in a folder; none where it is no folder or a link, which reading would refuse."""
    try:
        check_directory(folder)
        return sorted(os.listdir(folder))
    except (FileNotFoundError, FostoreError):
        return []


@dataclass(frozen=True, slots=True)
class Chunks:
    """An array whose files are its chunks."""

    files: Files
    codecs: Codecs
    shape: tuple[int, ...]

    def rows(self, index: Index) -> Range:
        start = index[0] * self.codecs.shape[0]
        return start, min(start + self.codecs.shape[0], self.shape[0])

    def load(self, index: Index) -> Array:
        rows = self.rows(index)
        fd = self.files.open(index, rows)
        try:
            size = os.fstat(fd).st_size
            data = _read(fd, 0, size, self.codecs.limit)
            return self.codecs.decode(data)
        except CodecError as error:
            raise _damage(self.files.folder / self.files.name(index), rows, error) from error
        finally:
            os.close(fd)

    def survey(self) -> Survey:
        return Survey(self.files.present(len(self.shape)))


@dataclass(frozen=True, slots=True)
class ShardIndex:
    """Where the index of a shard lies and how it is written: offset and size of every inner chunk."""

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

    def read(self, fd: int) -> Array:
        """Offset and size of each inner chunk, int64 (n, 2); both are -1 where it is absent.

        Raises:
            CodecError: cut, damaged, or inner chunks that lie beyond the file.
        """
        size = os.fstat(fd).st_size
        if size < self.nbytes:
            raise CodecError(
                f"it has {size:,} bytes, and its index alone {self.nbytes:,}: it was cut"
            )
        data: Any = _read(fd, size - self.nbytes if self.at_end else 0, self.nbytes, self.nbytes)
        data = codecs.crc32c(data, len(data)) if self.has_crc else data
        found = np.frombuffer(data, self.entry).astype("u8").reshape(-1, 2)
        held = (found != np.uint64(ABSENT)).any(axis=1)
        entries: Array = np.where(held[:, None], found, 0).astype(np.uint64)
        # Both below the size first, so that their sum cannot overflow.
        if (entries > size).any() or (entries.sum(axis=1) > size).any():
            raise CodecError("its index names bytes beyond its end: it was cut or damaged")
        entries = entries.astype(np.int64)
        entries[~held] = -1
        return entries


class Shards:
    """An array whose files are shards of many chunks."""

    def __init__(
        self, files: Files, codec: Codecs, index: ShardIndex, shape: tuple[int, ...]
    ) -> None:
        self._files = files
        self._codecs = codec
        self._index = index
        self._shape = shape
        self._indexes = ArrayCache(_INDEX_CACHE)

    def load(self, index: Index) -> Array:
        shard = tuple(n // m for n, m in zip(index, self._index.per_shard, strict=True))
        inside = tuple(n % m for n, m in zip(index, self._index.per_shard, strict=True))
        place = int(np.ravel_multi_index(inside, self._index.per_shard))
        start = index[0] * self._codecs.shape[0]
        rows = start, min(start + self._codecs.shape[0], self._shape[0])
        name = self._files.folder / self._files.name(shard)
        fd = self._files.open(shard, rows)
        try:
            entries = self._indexes.get(shard, lambda: self._index.read(fd))
            offset, size = map(int, entries[place])
            if offset < 0:
                raise CodecError(f"its chunk {list(inside)} is missing")
            return self._codecs.decode(_read(fd, offset, size, self._codecs.limit))
        except CodecError as error:
            raise _damage(name, rows, error) from error
        finally:
            os.close(fd)

    def survey(self) -> Survey:
        num_axes, per_shard = len(self._shape), self._index.per_shard
        found = [np.empty((0, num_axes), np.int64)]
        problems: list[tuple[Range | None, str]] = []
        height = per_shard[0] * self._codecs.shape[0]
        for shard in self._files.present(num_axes).tolist():
            rows = shard[0] * height, min((shard[0] + 1) * height, self._shape[0])
            if rows[0] >= rows[1]:
                continue
            try:
                fd = self._files.open(tuple(shard), rows)
                try:
                    entries = self._index.read(fd)
                finally:
                    os.close(fd)
            except CodecError as error:
                name = self._files.folder / self._files.name(tuple(shard))
                problems.append((rows, _damage(name, rows, error).message))
                continue
            except DamageError as error:
                problems.append((rows, error.message))
                continue
            except FormatError as error:
                problems.append((rows, str(error)))
                continue
            places = np.stack(
                np.unravel_index(np.flatnonzero(entries[:, 0] >= 0), per_shard), axis=1
            )
            found.append(places + np.array(shard) * np.array(per_shard))
        return Survey(np.concatenate(found), tuple(problems))


def _read(fd: int, offset: int, size: int, limit: int) -> bytes:
    """`size` bytes at `offset`; nothing is allocated beyond `limit`."""
    if size > limit:
        raise CodecError(f"it has {size:,} bytes, expected at most {limit:,}")
    data = disk.read_at(fd, offset, size)
    if len(data) < size:
        raise CodecError("it was cut")
    return bytes(data)


def _damage(path: Path, rows: Range, error: Exception) -> DamageError:
    return DamageError(f"{path} is damaged: {error} (rows {rows[0]} to {rows[1] - 1})", (rows,))
