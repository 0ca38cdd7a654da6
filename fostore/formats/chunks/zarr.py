"""Zarr v3 arrays in other chunks and codecs than fostore's, decoded by fostore itself (spec/zarr.md, other layouts).

Codecs come from an allow-list and are never looked up in a registry, links are not followed, and a
chunk or an inner chunk that is not there is damage: the fill value is never read.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from fostore.errors import FormatError, UnsupportedError
from fostore.formats.chunks import codecs
from fostore.formats.chunks.array import ForeignArray, Packing, check_chunks
from fostore.formats.chunks.codecs import Decoder
from fostore.formats.chunks.reader import ForeignReader, require_sealed
from fostore.formats.chunks.zarr_files import Files, Root, ShardIndex, extension
from fostore.formats.zarr.folder import MAX_METADATA, METADATA
from fostore.formats.zarr.layout import HASHES, check_array
from fostore.formats.zarr.state import parse_header, read_header
from fostore.places.place import Place
from fostore.schema import jsontext
from fostore.schema.row import expect

_PACKERS: dict[str, Decoder] = {
    "gzip": codecs.gzip,
    "zstd": codecs.zstd,
    "blosc": codecs.blosc,
    "crc32c": codecs.crc32c,
}
_ALLOWED = ("sharding_indexed", "bytes", "transpose", *_PACKERS)
"""The codecs that are decoded; everything else is refused by name."""

_DTYPES = frozenset(
    "uint8 uint16 uint32 uint64 int8 int16 int32 int64 float16 float32 float64".split()
)

_TEXTS = {"fixed_length_utf32": ("U", 4), "null_terminated_bytes": ("S", 1)}
"""Texts of one width, as zarr-python writes them: NumPy's letter, and the bytes of a character."""
_MAX_TEXT = 1 << 16


def open_sealed(place: Place, why: Exception) -> ForeignReader:
    """The reader of a sealed store whose arrays lie in a way of their own.

    Args:
        place: the store.
        why: what is different about it, for the message where that is not allowed.

    Raises:
        UnsupportedError: it is not sealed, or has a codec outside the allow-list; names it.
        FormatError, UnsafeError: as `fostore.open` has it.
    """
    root = Root(place)
    header = parse_header(read_header(place), f"{place}/{METADATA}")
    require_sealed(header, str(place), why)
    schema = header.schema
    columns = [
        open_array(root, column.name, [schema.row_axis, *column.lying.axes])
        for column in schema.columns
    ]
    return ForeignReader(header, columns, open_array(root, HASHES), root)


def read_metadata(root: Root, folder: str, name: str) -> tuple[Any, str]:
    """The metadata in a folder of the root, and where it lies.

    Raises:
        FormatError: there is none.
        UnsafeError: a link, or more than metadata takes.
    """
    path = f"{folder}/{name}" if folder else name
    where = f"{root.place}/{path}"
    try:
        return jsontext.loads(root.place.read(path, MAX_METADATA), where), where
    except FileNotFoundError as error:
        raise FormatError(f"{where} is missing") from error


def open_array(root: Root, name: str, names: Sequence[str] | None = None) -> ForeignArray:
    """A Zarr v3 array of numbers or texts of one width, all that it asks for checked; reads its zarr.json alone.

    Args:
        root: the folder that it lies in.
        name: where in it, its parts joined by "/"; "" is the folder itself.
        names: what its dimensions must be called, where they have names.

    Raises:
        UnsupportedError: a codec, chunk grid, key encoding or dtype that is not decoded here; names it.
        UnsafeError: a link, or chunks that take too much memory.
        FormatError: no array, or one that contradicts itself.
    """
    value, where = read_metadata(root, name, METADATA)
    try:
        return _parse(root, name, value, where, names)
    except RecursionError as error:
        raise FormatError(f"{where} is nested too deeply") from error


def _parse(
    root: Root, name: str, value: Any, where: str, names: Sequence[str] | None
) -> ForeignArray:
    if expect(value, "zarr_format", int, where) != 3 or value.get("node_type") != "array":
        raise FormatError(f"{where} is not the metadata of a Zarr v3 array")
    shape = check_array(value, where)
    if not all(type(n) is int and n > 0 for n in shape[1:]):
        raise FormatError(f"{where}: the shape is {shape!r:.80}")
    dtype = _dtype(value.get("data_type"), where)
    axes = value.get("dimension_names")
    if names is not None and axes is not None and axes != list(names):
        raise FormatError(f"{where}: 'dimension_names' are {axes!r:.200}, expected {list(names)}")
    kind, grid = extension(expect(value, "chunk_grid", object, where), where, "chunk_grid")
    if kind != "regular":
        raise UnsupportedError(f"{where}: 'chunk_grid' is {kind!r:.80}, expected 'regular'")
    outer = expect(grid, "chunk_shape", list, f"{where}: 'chunk_grid'")
    key = _key_encoding(expect(value, "chunk_key_encoding", object, where), where)
    chain = expect(value, "codecs", list, where)
    inner, inside, index = outer, where, None
    per_file: tuple[int, ...] = (1,) * len(shape)
    kinds = [extension(codec, where, "codecs")[0] for codec in chain]
    if "sharding_indexed" not in kinds:
        check_chunks(shape, outer, dtype.itemsize, f"{where}: 'chunk_grid'")
    else:
        # Packed as a whole, a shard would have to be unpacked as a whole for one row.
        if kinds != ["sharding_indexed"]:
            raise UnsupportedError(
                f"{where}: 'codecs' has {kinds!r:.200}; sharding is decoded alone"
            )
        sharding = extension(chain[0], where, "codecs")[1]
        inside = f"{where}: 'sharding_indexed'"
        inner = expect(sharding, "chunk_shape", list, inside)
        check_chunks(shape, inner, dtype.itemsize, inside)
        sizes = all(type(n) is int and n > 0 for n in outer) and len(outer) == len(inner)
        if not sizes or any(shard % chunk for shard, chunk in zip(outer, inner, strict=True)):
            raise FormatError(
                f"{where}: 'chunk_grid' has shards of {outer!r:.80}, which are no multiple of {inner!r:.80}"
            )
        per_file = tuple(shard // chunk for shard, chunk in zip(outer, inner, strict=True))
        index = ShardIndex.parse(sharding, math.prod(per_file), inside)
        chain = expect(sharding, "codecs", list, inside)
    packing = _packing(chain, len(shape), dtype, inside)
    files = Files(root, name and f"{name}/", key, per_file, index)
    return ForeignArray(where, tuple(shape), tuple(inner), packing, files, root.read)


def _packing(chain: list[Any], num_axes: int, dtype: np.dtype[Any], where: str) -> Packing:
    """What a chain of codecs does to a chunk: any number of transpositions, the bytes, then packers."""
    order = tuple(range(num_axes))
    stored: np.dtype[Any] | None = None
    packers = []
    for codec in chain:
        name, configuration = extension(codec, where, "codecs")
        if name not in _ALLOWED:
            raise UnsupportedError(
                f"{where} has the codec {name!r:.80}; fostore decodes {list(_ALLOWED)} alone"
            )
        if name == "transpose" and stored is None:
            axes = expect(configuration, "order", list, f"{where}: 'transpose'")
            if any(type(n) is not int for n in axes) or sorted(axes) != list(range(num_axes)):
                raise FormatError(f"{where}: 'transpose' has the order {axes!r:.80}")
            # Each transposes what the one before it left.
            order = tuple(order[n] for n in axes)
        elif name == "bytes" and stored is None:
            # Where there is only one order, zarr-python names none.
            plain = "little" if dtype.itemsize == 1 or dtype.kind == "S" else None
            endian = configuration.get("endian", plain)
            if endian not in ("little", "big"):
                raise FormatError(f"{where}: 'bytes' has the endian {endian!r:.80}")
            stored = dtype.newbyteorder("<" if endian == "little" else ">")
        elif name in _PACKERS and stored is not None:
            packers.append(_PACKERS[name])
        else:
            raise UnsupportedError(f"{where}: 'codecs' has {name!r} in a place that is not decoded")
    if stored is None:
        raise FormatError(f"{where}: 'codecs' lacks 'bytes'")
    return Packing(order, stored, tuple(packers))


def _dtype(value: Any, where: str) -> np.dtype[Any]:
    if isinstance(value, str) and value in _DTYPES:
        return np.dtype(value).newbyteorder("<")
    if isinstance(value, dict) and value.get("name") in _TEXTS:
        name, configuration = extension(value, where, "data_type")
        size = expect(configuration, "length_bytes", int, f"{where}: 'data_type'")
        letter, width = _TEXTS[name]
        if 0 < size <= _MAX_TEXT and size % width == 0:
            return np.dtype(f"<{letter}{size // width}")
    raise UnsupportedError(
        f"{where}: 'data_type' is {value!r:.80}, expected one of {sorted(_DTYPES)}"
    )


def _key_encoding(value: Any, where: str) -> tuple[str, str]:
    """What a chunk's key begins with, and what separates its numbers."""
    name, configuration = extension(value, where, "chunk_key_encoding")
    separator = configuration.get("separator", "." if name == "v2" else "/")
    if name not in ("default", "v2") or separator not in ("/", "."):
        raise UnsupportedError(
            f"{where}: 'chunk_key_encoding' is {name!r:.80} with {separator!r:.80}"
        )
    return f"c{separator}" if name == "default" else "", separator
