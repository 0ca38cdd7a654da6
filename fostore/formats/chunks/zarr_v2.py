"""Zarr v2 arrays, read only: other tools still write them, fostore never does.

Source: the Zarr storage specification, version 2 (`.zarray`). What v3 says of safety holds here too: codecs
come from an allow-list, links are not followed, and a chunk that is not there is damage.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from fostore.errors import FormatError, UnsupportedError
from fostore.formats.chunks import codecs
from fostore.formats.chunks.array import ForeignArray, Packing, check_chunks
from fostore.formats.chunks.codecs import Decoder
from fostore.formats.chunks.zarr import read_metadata
from fostore.formats.chunks.zarr_files import Files, Root
from fostore.schema.row import expect

METADATA = ".zarray"
_COMPRESSORS: dict[str, Decoder] = {
    "zlib": codecs.deflate,
    "gzip": codecs.gzip,
    "zstd": codecs.zstd,
    "blosc": codecs.blosc,
}
_DTYPES = re.compile(r"[<>|]([iu][1248]|f[248]|[US][1-9]\d{0,3})\Z")


def open_v2_array(root: Root, name: str) -> ForeignArray:
    """A Zarr v2 array of numbers or texts of one width, all that it asks for checked; reads its .zarray alone.

    Args:
        root: the folder that it lies in.
        name: where in it, its parts joined by "/"; "" is the folder itself.

    Raises:
        UnsupportedError: a compressor, filter or dtype that is not decoded here; names it.
        UnsafeError: a link, or chunks that take too much memory.
        FormatError: no array, or one that contradicts itself.
    """
    value, where = read_metadata(root, name, METADATA)
    if expect(value, "zarr_format", int, where) != 2:
        raise FormatError(f"{where} is not the metadata of a Zarr v2 array")
    shape, chunks = (expect(value, key, list, where) for key in ("shape", "chunks"))
    sizes = all(type(n) is int and n > 0 for n in shape[1:])
    if not shape or type(shape[0]) is not int or not 0 <= shape[0] <= 1 << 53 or not sizes:
        raise FormatError(f"{where}: the shape is {shape!r:.80}")
    dtype = value.get("dtype")
    if not isinstance(dtype, str) or not _DTYPES.match(dtype):
        raise UnsupportedError(f"{where}: 'dtype' is {dtype!r:.80}, expected plain numbers")
    if value.get("filters"):
        raise UnsupportedError(
            f"{where} has the filters {value['filters']!r:.200}; none is decoded"
        )
    order, separator = value.get("order", "C"), value.get("dimension_separator", ".")
    if order not in ("C", "F") or separator not in (".", "/"):
        raise FormatError(f"{where}: 'order' is {order!r:.80}, the separator {separator!r:.80}")
    check_chunks(shape, chunks, np.dtype(dtype).itemsize, where)
    axes = tuple(range(len(shape)))
    packing = Packing(axes[:: 1 if order == "C" else -1], np.dtype(dtype), _packers(value, where))
    files = Files(root, name and f"{name}/", ("", separator), (1,) * len(shape))
    return ForeignArray(where, tuple(shape), tuple(chunks), packing, files, root.read)


def _packers(value: Any, where: str) -> tuple[Decoder, ...]:
    compressor = value.get("compressor")
    if compressor is None:
        return ()
    name = expect(compressor, "id", str, f"{where}: 'compressor'")
    if name not in _COMPRESSORS:
        raise UnsupportedError(
            f"{where} has the compressor {name!r:.80}; fostore decodes {list(_COMPRESSORS)} alone"
        )
    return (_COMPRESSORS[name],)
