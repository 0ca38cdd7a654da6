"""Zarr v3 arrays in other chunks and codecs than fostore's, decoded by fostore itself (spec/zarr.md, other layouts).

Codecs come from an allow-list and are never looked up in a registry, links are not followed, and a
chunk or an inner chunk that is not there is damage: the fill value is never read.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fostore.errors import DamageError, FormatError, UnsupportedError
from fostore.formats.chunks.foreign import ForeignArray, ForeignReader, check_chunks, require_sealed
from fostore.formats.chunks.zarr_chunks import Chunks, Codecs, Files, ShardIndex, Shards, extension
from fostore.formats.zarr.folder import MAX_METADATA, METADATA, check_directory, read_file
from fostore.formats.zarr.layout import HASHES, check_array
from fostore.formats.zarr.state import parse_header, read_header
from fostore.places.local import Local
from fostore.schema import jsontext
from fostore.schema.row import expect

_DTYPES = frozenset(
    "uint8 uint16 uint32 uint64 int8 int16 int32 int64 float16 float32 float64".split()
)

_TEXTS = {"fixed_length_utf32": ("U", 4), "null_terminated_bytes": ("S", 1)}
"""Texts of one width, as zarr-python writes them: NumPy's letter, and the bytes of a character."""
_MAX_TEXT = 1 << 16


def open_sealed(path: Path, why: Exception) -> ForeignReader:
    """The reader of a sealed store whose arrays lie in a way of their own.

    Args:
        path: the store.
        why: what is different about it, for the message where that is not allowed.

    Raises:
        UnsupportedError: it is not sealed, or has a codec outside the allow-list; names it.
        FormatError, UnsafeError: as `fostore.open` has it.
    """
    there = os.stat(path)
    header = parse_header(read_header(Local(path)), f"{path}/{METADATA}")
    require_sealed(header, str(path), why)

    def recheck() -> None:
        try:
            if os.path.samestat(os.stat(path), there):
                return
        except FileNotFoundError:
            pass
        raise DamageError(f"another store has taken the place of {path}; open it again")

    columns = []
    for column in header.schema.columns:
        names = [header.schema.row_axis, *column.axes]
        columns.append(open_foreign_array(path / column.name, names=names, recheck=recheck))
    hashes = open_foreign_array(path / HASHES, recheck=recheck)
    return ForeignReader(header, columns, hashes, recheck=recheck, release=lambda: None)


def open_foreign_array(
    folder: Path,
    *,
    names: Sequence[str] | None = None,
    recheck: Callable[[], None] = lambda: None,
    texts: bool = False,
) -> ForeignArray:
    """A Zarr v3 array of numbers in a folder, after all that it asks for was checked; reads its zarr.json alone.

    Args:
        folder: the array.
        names: what its dimensions must be called, where they have names.
        recheck: called after every file that was read; raises where the folder is another one by now.
        texts: whether it may hold texts of one width as well.

    Raises:
        UnsupportedError: a codec, chunk grid, key encoding or dtype that is not decoded here; names it.
        UnsafeError: a link, or chunks that take too much memory.
        FormatError: no array, or one that contradicts itself.
    """
    where = str(folder / METADATA)
    try:
        check_directory(folder)
        value = jsontext.loads(read_file(folder / METADATA, MAX_METADATA), where)
    except FileNotFoundError as error:
        raise FormatError(f"{where} is missing") from error
    try:
        return _parse(folder, value, where, names, recheck, texts)
    except RecursionError as error:
        raise FormatError(f"{where} is nested too deeply") from error


def _parse(
    folder: Path,
    value: Any,
    where: str,
    names: Sequence[str] | None,
    recheck: Callable[[], None],
    texts: bool,
) -> ForeignArray:
    if expect(value, "zarr_format", int, where) != 3 or value.get("node_type") != "array":
        raise FormatError(f"{where} is not the metadata of a Zarr v3 array")
    shape = check_array(value, where)
    if not all(type(n) is int and n > 0 for n in shape[1:]):
        raise FormatError(f"{where}: the shape is {shape!r:.80}")
    dtype = _dtype(value.get("data_type"), where, texts)
    called = value.get("dimension_names")
    if names is not None and called is not None and called != list(names):
        raise FormatError(f"{where}: 'dimension_names' are {called!r:.200}, expected {list(names)}")
    name, grid = extension(expect(value, "chunk_grid", object, where), where, "chunk_grid")
    if name != "regular":
        raise UnsupportedError(f"{where}: 'chunk_grid' is {name!r:.80}, expected 'regular'")
    outer = expect(grid, "chunk_shape", list, f"{where}: 'chunk_grid'")
    key = _key_encoding(expect(value, "chunk_key_encoding", object, where), where)
    chain = expect(value, "codecs", list, where)
    files = Files(folder, key, recheck)
    kinds = [extension(codec, where, "codecs")[0] for codec in chain]
    if "sharding_indexed" not in kinds:
        check_chunks(shape, outer, dtype.itemsize, f"{where}: 'chunk_grid'")
        chunks = Chunks(files, Codecs.parse(chain, tuple(outer), dtype, where), tuple(shape))
        return ForeignArray(
            str(folder), tuple(shape), dtype, tuple(outer), chunks.load, chunks.survey
        )
    if kinds != ["sharding_indexed"]:
        raise UnsupportedError(f"{where}: 'codecs' has {kinds!r:.200}; sharding is decoded alone")
    sharding = extension(chain[0], where, "codecs")[1]
    inside = f"{where}: 'sharding_indexed'"
    inner = expect(sharding, "chunk_shape", list, inside)
    check_chunks(shape, inner, dtype.itemsize, inside)
    sizes = all(type(n) is int and n > 0 for n in outer) and len(outer) == len(inner)
    if not sizes or any(whole % part for whole, part in zip(outer, inner, strict=True)):
        raise FormatError(
            f"{where}: 'chunk_grid' has shards of {outer!r:.80}, which are no multiple of {inner!r:.80}"
        )
    per_shard = tuple(whole // part for whole, part in zip(outer, inner, strict=True))
    index = ShardIndex.parse(sharding, per_shard, inside)
    codec = Codecs.parse(expect(sharding, "codecs", list, inside), tuple(inner), dtype, inside)
    shards = Shards(files, codec, index, tuple(shape))
    return ForeignArray(str(folder), tuple(shape), dtype, tuple(inner), shards.load, shards.survey)


def _dtype(said: Any, where: str, texts: bool) -> np.dtype[Any]:
    if isinstance(said, str) and said in _DTYPES:
        return np.dtype(said).newbyteorder("<")
    if texts and isinstance(said, dict) and said.get("name") in _TEXTS:
        name, configuration = extension(said, where, "data_type")
        size = expect(configuration, "length_bytes", int, f"{where}: 'data_type'")
        letter, width = _TEXTS[name]
        if 0 < size <= _MAX_TEXT and size % width == 0:
            return np.dtype(f"<{letter}{size // width}")
    raise UnsupportedError(
        f"{where}: 'data_type' is {said!r:.80}, expected one of {sorted(_DTYPES)}"
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
