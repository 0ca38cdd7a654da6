"""What the rows of a store hash to, whatever format, chunking or codec they lie in (spec/integrity.md)."""

from __future__ import annotations

import struct
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import Any

import numpy as np

from fostore.errors import ArgumentError
from fostore.schema import jsontext
from fostore.schema.header import Header
from fostore.schema.row import Array, Column

HASH_BYTES = 32
PREFIX = "blake3:"
_FEW_BYTES = 8192
_READ_BYTES = 8 << 20
_COLUMN_KEYS = frozenset({"name", "dtype", "stored", "axes", "shape", "role", "shift"})
"""Keys of a column that say what its numbers mean; a newer release may add others, which the digest leaves out."""


# ------------------------------------------------------------------ bytes


def buffer(rows: Array) -> Array:
    """The bytes of rows in row-major order as a uint8 array (n,); aliases where the rows lie like that."""
    flat: Array = np.ascontiguousarray(rows).reshape(-1).view(np.uint8)
    return flat


@cache
def _crc32c() -> Any:
    from crc32c import crc32c  # slow to import, and a sealed Zarr store is read without it

    return crc32c


def checksum(data: bytes | memoryview, value: int = 0) -> int:
    """The crc32c of bytes, going on from `value`.

    >>> hex(checksum(b"123456789"))
    '0xe3069283'
    """
    if len(data) <= _FEW_BYTES and "crc32c" not in sys.modules:
        return _small_checksum(data, value)
    return int(_crc32c()(data, value))


def _small_checksum(data: bytes | memoryview, value: int = 0) -> int:
    """The same in plain Python: loading the package costs 25 ms, a whole open of a sealed store less.

    Source: RFC 3720, appendix B.4; the polynomial is 0x1EDC6F41, here with its bits reversed.

    >>> hex(_small_checksum(b"123456789"))
    '0xe3069283'
    """
    table = _crc_table()
    value ^= 0xFFFFFFFF
    for byte in bytes(data):
        value = table[(value ^ byte) & 0xFF] ^ (value >> 8)
    return value ^ 0xFFFFFFFF


@cache
def _crc_table() -> list[int]:
    table = list(range(256))
    for _ in range(8):
        table = [(entry >> 1) ^ (0x82F63B78 if entry & 1 else 0) for entry in table]
    return table


def crc(rows: Array, value: int = 0) -> int:
    """The crc32c of a column's bytes, going on from `value`, the crc of the rows before.

    >>> rows = np.arange(6, dtype="<u2")
    >>> crc(rows[2:], crc(rows[:2])) == crc(rows)
    True
    """
    return checksum(buffer(rows).data, value)


def combine_crcs(crcs: Sequence[int]) -> int:
    """`Run.crc`: the crc32c over the columns' crc32c's, each a little-endian uint32, in schema order."""
    return checksum(struct.pack(f"<{len(crcs)}I", *crcs))


def crc_of_rows(
    read: Callable[[int, int, int], Array], row_bytes: Sequence[int], start: int, stop: int
) -> int:
    """`Run.crc` of the rows `[start, stop)`, in bounded pieces.

    Args:
        read: (column, start, stop) to rows as they are stored.
        row_bytes: bytes of one row, one number a column.
    """
    crcs, rows = [0] * len(row_bytes), max(_READ_BYTES // max(row_bytes), 1)
    for first in range(start, stop, rows):
        last = min(first + rows, stop)
        crcs = [crc(read(i, first, last), value) for i, value in enumerate(crcs)]
    return combine_crcs(crcs)


def other_crc(crcs: Sequence[int], index: int, combined: int) -> list[int]:
    """The crcs with another one at `index`, so that they combine to `combined`; there is one such value.

    >>> other_crc([7, 0, 9], 1, combine_crcs([7, 8, 9]))
    [7, 8, 9]
    """
    at = [0 if i == index else crc for i, crc in enumerate(crcs)]
    zero = combine_crcs(at)
    # Each bit of the value flips fixed bits of the result: 32 equations over bits, solved by elimination.
    rows: list[tuple[int, int]] = []  # (what it flips, which bits of the value do it)
    left, value = combined ^ zero, 0
    for bit in range(32):
        at[index] = 1 << bit
        flips, bits = combine_crcs(at) ^ zero, 1 << bit
        for pivot, its_bits in rows:
            if flips ^ pivot < flips:
                flips, bits = flips ^ pivot, bits ^ its_bits
        rows.append((flips, bits))
        rows.sort(reverse=True)
    for flips, bits in rows:
        if left ^ flips < left:
            left, value = left ^ flips, value ^ bits
    at[index] = value
    return at


@cache
def _blake3() -> Any:
    from blake3 import blake3  # once: an import statement a block costs as much as its hash

    return blake3


def hasher() -> Any:
    """A fresh BLAKE3 with `update(buffer)` and `digest() -> bytes`, for a block that comes in pieces."""
    return _blake3()()


def block_hash(rows: Array) -> Array:
    """The BLAKE3 of one block's rows of one column, uint8 (32,), read-only."""
    return np.frombuffer(_blake3()(buffer(rows).data).digest(), np.uint8)


# ------------------------------------------------------------------ the digest of a store


def hashed_columns(header: Header) -> tuple[Column, ...]:
    """The columns that the digest covers, in schema order: the second axis of the block hashes."""
    return tuple(column for column in header.schema.columns if column.hashed)


def num_blocks(header: Header) -> int:
    """How many blocks the planned rows make: the first axis of the block hashes."""
    return -(-_num_samples(header) // header.block_rows)


def canonical(header: Header) -> bytes:
    """What the rows are, as canonical JSON: sorted keys, no spaces, UTF-8.

    Holds num_samples (of token rows num_sequences as well), axes, kind, encoding, the hashed columns
    (name, dtype, stored, axes, shape, role, and "shift" where there is one), class_names and
    temperature. Never how the rows came or lie: units, software, times, identity, metadata.
    """
    schema = header.schema.to_json()
    kept = {
        name: schema[name] for name in ("axes", "kind", "encoding", "class_names", "temperature")
    }
    columns = [
        {key: value for key, value in column.to_json().items() if key in _COLUMN_KEYS}
        for column in hashed_columns(header)
    ]
    _num_samples(header)
    return jsontext.canonical({**header.counts, "columns": columns, **kept})


def store_digest(header: Header, hashes: Array) -> str:
    """The digest of a store: "blake3:" and 64 hexadecimal digits (spec/integrity.md, digest).

    BLAKE3 over: the length of `canonical(header)` in bytes as a little-endian uint64; those bytes;
    then for each hashed column, in schema order, the 32 bytes of BLAKE3 over the concatenated
    hashes of its blocks. A block is `header.block_rows` rows as little-endian, row-major bytes of
    the stored dtype, the last one short. So it depends on the rows and on what they are, and on
    nothing else.

    Args:
        header: with num_samples known.
        hashes: uint8 (blocks, hashed columns, 32), each from `block_hash`; none may be unknown
            (all zero), else the digest is one that no store has.

    Raises:
        ArgumentError: the hashes are not one a block and hashed column.
    """
    return digest_of_pieces(header, (hashes,))


def digest_of_pieces(header: Header, pieces: Iterable[Array]) -> str:
    """The same of the hashes in pieces, one after another: of all of them one is in memory at a time."""
    rows, shape = 0, (len(hashed_columns(header)), HASH_BYTES)
    columns = [_blake3()() for _ in range(shape[0])]
    for piece in pieces:
        rows += len(piece)
        if piece.shape[1:] != shape or piece.dtype != np.uint8:
            break
        for i, column in enumerate(columns):
            column.update(buffer(piece[:, i]).data)
    else:
        piece = np.empty((0, *shape), np.uint8)
    came, expected = (rows, *piece.shape[1:]), (num_blocks(header), *shape)
    if came != expected or piece.dtype != np.uint8:
        raise ArgumentError(f"block hashes are {piece.dtype} {came}, expected uint8 {expected}")
    text = canonical(header)
    total = _blake3()(struct.pack("<Q", len(text)))
    total.update(text)
    for column in columns:
        total.update(column.digest())
    return f"{PREFIX}{total.hexdigest()}"


def _num_samples(header: Header) -> int:
    if header.num_samples is None:
        raise ArgumentError(
            "num_samples is not known yet; a digest is made when the store is sealed"
        )
    return header.num_samples
