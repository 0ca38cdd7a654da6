"""Decoders of compressed chunks, each bounded by the size that its chunk must have.

No registry of another library is asked, so that no plugin can be loaded. What a stranger packed
small and unpacks large is refused as soon as it passes its bound.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

import numpy as np

from fostore.schema.digest import checksum

Buffer = Any
"""Whatever `memoryview` takes."""

Decoder = Callable[[Buffer, int], Buffer]
"""`decoder(data, size)`: what `data` unpacks to, `size` bytes at most; raises `CodecError`."""

_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_BLOSC_HEAD = 16
_PIECE_BYTES = 64 << 10


class CodecError(ValueError):
    """Bytes that a decoder cannot unpack, or that unpack to more than they may."""


def unpack(data: Buffer, decoders: Sequence[Decoder], size: int) -> Buffer:
    """Undo `decoders`, given in the order in which they packed: exactly `size` bytes.

    Raises:
        CodecError: the data is damaged, or has another size.
    """
    for left, decoder in enumerate(reversed(decoders), 1 - len(decoders)):
        # In between, what is packed already may be a little larger than what it holds.
        data = decoder(data, size if left == 0 else packed_limit(size))
    # Decoders only see to it that it is no more. Less would be a shorter chunk, read as rows of another shape.
    nbytes = memoryview(data).nbytes
    if nbytes != size:
        raise CodecError(f"it has {nbytes:,} bytes, expected {size:,}")
    return data


def packed_limit(size: int) -> int:
    """How many bytes `size` bytes can have when they are packed: no codec makes them much larger."""
    return size + size // 64 + (1 << 16)


def gzip(data: Buffer, size: int) -> bytes:
    """gzip, of one or several members."""
    return _inflate(data, size, 31)


def deflate(data: Buffer, size: int) -> bytes:
    """The gzip filter of HDF5, which is a zlib stream."""
    return _inflate(data, size, 15)


def _inflate(data: Buffer, size: int, wbits: int) -> bytes:
    parts: list[bytes] = []
    left = size
    data = memoryview(data).cast("B")
    stream: Any = None
    # In pieces: each member copies what is left of its piece, and there may be a million of them.
    for at in range(0, len(data), _PIECE_BYTES):
        piece = bytes(data[at : at + _PIECE_BYTES])
        while piece := piece if stream or not parts else piece.lstrip(b"\0"):
            stream = stream or zlib.decompressobj(wbits)
            try:
                parts.append(stream.decompress(piece, left + 1))
            except zlib.error as error:
                raise CodecError(f"it is no sound gzip data ({error})") from error
            left -= len(parts[-1])
            if left < 0:
                raise CodecError(f"it unpacks to more than {size:,} bytes")
            piece = stream.unused_data
            stream = None if stream.eof else stream
    if stream is not None:
        raise CodecError("its gzip data was cut")
    return b"".join(parts)


def zstd(data: Buffer, size: int) -> Buffer:
    """Zstandard; a frame that does not say its size must have exactly `size` bytes."""
    data = bytes(data)
    claimed = _zstd_size(data)
    if claimed is not None and claimed > size:
        raise CodecError(f"it unpacks to {claimed:,} bytes, expected at most {size:,}")
    return _unpacked("zstd", data, size if claimed is None else claimed)


def _unpacked(name: str, data: bytes, size: int) -> Buffer:
    """What a decoder of numcodecs makes of data that claims to hold `size` bytes.

    Into an array of that size, so that nothing larger is ever made. It must be the size that the data claims and
    not the one that is expected: numcodecs takes less for good, and leaves the rest as the memory was.
    """
    out = np.empty(size, np.uint8)
    try:
        if size:
            _library(name).decompress(data, out)
    except (RuntimeError, ValueError) as error:
        raise CodecError(f"it is no sound {name} data ({error})") from error
    return out


def _library(name: str) -> Any:
    """A module of numcodecs, by name: it takes 30 ms to import, which only such a chunk is worth."""
    return import_module(f"numcodecs.{name}")


def _zstd_size(data: bytes) -> int | None:
    """The size of its content that a frame claims (RFC 8878, 3.1.1.1), or None."""
    if len(data) < 6 or data[:4] != _ZSTD_MAGIC:
        raise CodecError("it is no zstd data")
    flags = data[4]
    single = flags >> 5 & 1
    width = (single, 2, 4, 8)[flags >> 6]
    at = 5 + (1 - single) + (0, 1, 2, 4)[flags & 3]
    if width == 0:
        return None
    if len(data) < at + width:
        raise CodecError("its zstd data was cut")
    return int.from_bytes(data[at : at + width], "little") + (256 if width == 2 else 0)


def blosc(data: Buffer, size: int) -> Buffer:
    """Blosc of version 1, whose head says both sizes."""
    data = bytes(data)
    if len(data) < _BLOSC_HEAD:
        raise CodecError("its blosc data was cut")
    claimed, packed = (int.from_bytes(data[at : at + 4], "little") for at in (4, 12))
    if packed != len(data) or claimed > size:
        raise CodecError(
            f"it claims {packed:,} bytes that unpack to {claimed:,}, expected {len(data):,} and {size:,}"
        )
    return _unpacked("blosc", data, claimed)


def crc32c(data: Buffer, size: int) -> Buffer:
    """Data followed by its crc32c."""
    view = memoryview(data).cast("B")
    if len(view) < 4 or checksum(view[:-4]) != int.from_bytes(view[-4:], "little"):
        raise CodecError("it does not have its crc32c")
    return view[:-4]


def fletcher32(data: Buffer, size: int) -> Buffer:
    """Data followed by its checksum, as HDF5 has it."""
    try:
        return _library("fletcher32").Fletcher32().decode(data)
    except (RuntimeError, IndexError) as error:  # IndexError: shorter than a checksum
        raise CodecError("it does not have its fletcher32 checksum") from error


def shuffle(itemsize: int) -> Decoder:
    """The shuffle filter of HDF5: the first bytes of all elements, then the second ones, and so on."""

    def unshuffle(data: Buffer, size: int) -> Buffer:
        flat = np.frombuffer(data, np.uint8)
        # What is left over at the end was left alone: a checksum before it may have made it odd.
        whole = len(flat) // itemsize * itemsize
        out = np.empty_like(flat)
        out[whole:] = flat[whole:]
        if whole:
            _library("shuffle").Shuffle(itemsize).decode(flat[:whole], out[:whole])
        return out

    return unshuffle
