"""How the arrays of a store look as Zarr v3: metadata and shards, as numbers and JSON alone (spec/zarr.md).

A unit of a column is one shard: its rows as a flat row-major block, then an index of inner chunks. So it
maps as it lies, and plain Zarr readers read it as well.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from json.encoder import encode_basestring
from typing import Any

import numpy as np

from fostore.errors import FormatError, UnsupportedError
from fostore.formats import ONLY_OURS, OtherLayoutError
from fostore.schema import geometry, jsontext
from fostore.schema.columns import TEXT
from fostore.schema.header import Header
from fostore.schema.row import Array, Column, expect

HASHES = "block_hashes"
"""The array of block hashes, beside the columns; no column may have its name."""
OFFSETS = "offsets"
"""The array of where sequences begin, in a sealed store of token rows; no column may have its name."""
_OFFSETS_CHUNK = 1 << 17

TAIL = ".tail."
HASH_BYTES = 32
ABSENT = (1 << 64) - 1
_CRC_BYTES = 4
_ENTRY_BYTES = 16
_PIECE = 1 << 16  # index entries handled at once
_MAX_ROWS = 1 << 53  # beyond, JSON readers in other languages lose integers
_SHOWN = re.compile(rb'"shape": \[\n    (\d{1,16})\b')
_CODECS = ("sharding_indexed", "bytes", "crc32c")
_ARRAY_KEYS = frozenset(
    "zarr_format node_type shape data_type chunk_grid chunk_key_encoding fill_value codecs "
    "attributes dimension_names storage_transformers".split()
)
_FREE_KEYS = frozenset("chunk_grid chunk_key_encoding fill_value codecs dimension_names".split())
"""Keys that say how an array lies, not what it holds: other tools may choose them (chunks/zarr.py)."""


_LITTLE = """{
      "name": "bytes",
      "configuration": {
        "endian": "little"
      }
    }"""
_TEXTS = """{
    "name": "null_terminated_bytes",
    "configuration": {
      "length_bytes": %d
    }
  }"""
_SHORT, _LONG = ",\n    ", ",\n        "
_INNER = _LITTLE.replace("\n", "\n      ")
_SHARDING = f"""{{
      "name": "sharding_indexed",
      "configuration": {{
        "chunk_shape": [
          %s
        ],
        "codecs": [
          {_INNER}
        ],
        "index_codecs": [
          {_INNER},
          {{
            "name": "crc32c"
          }}
        ],
        "index_location": "end"
      }}
    }}"""


@dataclass(frozen=True, slots=True)
class Shards:
    """One column as an array of shards: a shard a unit, an inner chunk about 256 KiB of whole rows."""

    column: Column
    row_axis: str
    unit_rows: int
    inner_rows: int

    @classmethod
    def of(cls, column: Column, header: Header) -> Shards:
        """The layout of a column of the store with this header."""
        inner = geometry.inner_rows(column.row_bytes, header.unit_rows)
        return cls(column, header.schema.row_axis, header.unit_rows, inner)

    @property
    def index_bytes(self) -> int:
        """Bytes of the index at the end of every shard."""
        return self.unit_rows // self.inner_rows * _ENTRY_BYTES + _CRC_BYTES

    def data_bytes(self, num_rows: int) -> int:
        """Bytes before the index in a shard of `num_rows` rows: whole inner chunks."""
        return -(-num_rows // self.inner_rows) * self.inner_rows * self.column.row_bytes

    def shard_bytes(self, num_rows: int) -> int:
        """Bytes of a whole shard of `num_rows` rows."""
        return self.data_bytes(num_rows) + self.index_bytes

    @property
    def name(self) -> str:
        return self.column.name

    def key(self, unit: int) -> str:
        """The shard of a unit, such as "probs/c/3/0"."""
        return f"{self.name}/c/{unit}" + "/0" * len(self.column.lying.shape)

    def tail(self, unit: int) -> str:
        """Where the rows of a unit lie before it is sealed."""
        return f"{self.name}/{TAIL}{unit}"

    def padding(self, num_rows: int) -> Array:
        """The rows that fill the last inner chunk up, all at the fill value: (rows, *shape)."""
        rows = -num_rows % self.inner_rows
        fill = _fill(self.column)
        return np.full((rows, *self.column.shape), fill[1], self.column.numpy_dtype)

    def index_pieces(self, num_rows: int) -> Iterator[bytes]:
        """The index of a shard of `num_rows` rows, with its checksum at the end, in bounded pieces."""
        # Readers of a sealed store do without, and open faster.
        from fostore.schema.digest import checksum

        chunk = self.inner_rows * self.column.row_bytes
        present = -(-num_rows // self.inner_rows)
        crc = 0
        for first in range(0, self.unit_rows // self.inner_rows, _PIECE):
            last = min(first + _PIECE, self.unit_rows // self.inner_rows)
            entries = np.full((last - first, 2), ABSENT, "<u8")
            held = max(min(present, last) - first, 0)
            entries[:held, 0] = np.arange(first, first + held, dtype=np.uint64) * np.uint64(chunk)
            entries[:held, 1] = chunk
            piece = entries.tobytes()
            crc = checksum(piece, crc)
            yield piece
        yield crc.to_bytes(_CRC_BYTES, "little")

    def text(self, num_rows: int) -> bytes:
        """The zarr.json of the array while it shows `num_rows` rows."""
        column = self.column
        _, row, axes = column.lying
        codec = _SHARDING % ",\n          ".join(map(str, (self.inner_rows, *row)))
        data_type = _TEXTS % column.row_bytes if column.layout == TEXT else f'"{column.stored}"'
        names = map(encode_basestring, (self.row_axis, *axes))
        shape, shard = (num_rows, *row), (self.unit_rows, *row)
        return _text(shape, data_type, shard, _fill(column)[0], codec, names)


@dataclass(frozen=True, slots=True)
class Hashes:
    """The block hashes as an array uint8 (blocks, hashed columns, 32): a chunk holds those of one unit."""

    blocks: int
    columns: int

    @classmethod
    def of(cls, header: Header) -> Hashes:
        """The layout for the store with this header."""
        hashed = sum(column.hashed for column in header.schema.columns)
        return cls(header.unit_rows // header.block_rows, hashed)

    @property
    def chunk_shape(self) -> tuple[int, int, int]:
        """The hashes of one unit."""
        return self.blocks, self.columns, HASH_BYTES

    @property
    def chunk_bytes(self) -> int:
        """Bytes of one chunk, of a short unit as well."""
        return self.blocks * self.columns * HASH_BYTES

    @property
    def name(self) -> str:
        return HASHES

    def key(self, unit: int) -> str:
        """The chunk of a unit."""
        return f"{HASHES}/c/{unit}/0/0"

    def text(self, num_blocks: int) -> bytes:
        """The zarr.json of the array while it shows `num_blocks` blocks."""
        chunk, axes = self.chunk_shape, ('"block"', '"column"', '"byte"')
        return _text((num_blocks, *chunk[1:]), '"uint8"', chunk, 0, _LITTLE, axes)


@dataclass(frozen=True, slots=True)
class Offsets:
    """Where sequences begin as an array int64 (num_sequences + 1), whose chunks are at most 1 MiB."""

    count: int

    @property
    def chunk(self) -> int:
        """Entries of a chunk."""
        return min(_OFFSETS_CHUNK, 1 << (self.count - 1).bit_length())

    @property
    def chunk_bytes(self) -> int:
        """Bytes of a chunk, of the last one as well."""
        return self.chunk * 8

    def keys(self) -> Iterator[str]:
        """The files of the chunks."""
        return (f"{OFFSETS}/c/{at}" for at in range(-(-self.count // self.chunk)))

    def text(self) -> bytes:
        """The zarr.json of the array."""
        fill = int(np.iinfo("<i8").min)
        return _text((self.count,), '"int64"', (self.chunk,), fill, _LITTLE, ['"sequence"'])


def _text(
    shape: tuple[int, ...],
    data_type: str,
    chunk_shape: tuple[int, ...],
    fill_value: int | str,
    codec: str,
    dimension_names: Iterable[str],
) -> bytes:
    """Metadata as `json.dumps(..., indent=2)` spells it, which takes a hundred calls."""
    return f"""{{
  "zarr_format": 3,
  "node_type": "array",
  "shape": [
    {_SHORT.join(map(str, shape))}
  ],
  "data_type": {data_type},
  "chunk_grid": {{
    "name": "regular",
    "configuration": {{
      "chunk_shape": [
        {_LONG.join(map(str, chunk_shape))}
      ]
    }}
  }},
  "chunk_key_encoding": {{
    "name": "default",
    "configuration": {{
      "separator": "/"
    }}
  }},
  "fill_value": {fill_value},
  "codecs": [
    {codec}
  ],
  "attributes": {{}},
  "dimension_names": [
    {_SHORT.join(dimension_names)}
  ],
  "storage_transformers": []
}}""".encode()


def parse_array(text: bytes, layout: Shards | Hashes, where: str) -> int:
    """The rows (or blocks) that an array shows, if its metadata is exactly of this layout.

    Raises:
        OtherLayoutError: it is an array of the right shape and dtype that lies in another way.
        UnsupportedError: anything of Zarr that no store has; names it.
        FormatError: the array contradicts the header.
    """
    shown = _SHOWN.search(text)
    # Bytes first: to parse and compare our own metadata took a third of the calls of opening a store.
    if shown and int(shown[1]) <= _MAX_ROWS and layout.text(int(shown[1])) == text:
        return int(shown[1])
    value = jsontext.loads(text, where)
    shape = check_array(value, where)
    expected = json.loads(layout.text(shape[0]))
    _refuse_foreign(expect(value, "codecs", list, where), where)
    one_byte = expected["data_type"] == "uint8" or isinstance(expected["data_type"], dict)
    for key, known in expected.items():
        if key in ("attributes", "storage_transformers"):
            continue
        if key == "dimension_names" and value.get(key) is None:
            raise OtherLayoutError(f"{where} has no dimension names; {ONLY_OURS}")
        item = expect(value, key, object, where)
        if _plain(item, one_byte) != _plain(known, one_byte):
            message = f"{where}: {key!r} is {item!r:.200}, the header asks for {known!r:.200}"
            if key in _FREE_KEYS:
                raise OtherLayoutError(f"{message}; {ONLY_OURS}")
            raise FormatError(message)
    return int(shape[0])


def check_array(value: Any, where: str) -> list[Any]:
    """The shape of an array that asks for nothing beyond plain Zarr v3; its first size has been checked.

    Raises:
        UnsupportedError: extensions or storage transformers; names them.
        FormatError: no shape that an array can have.
    """
    shape: list[Any] = expect(value, "shape", list, where)
    if not shape or type(shape[0]) is not int or not 0 <= shape[0] <= _MAX_ROWS:
        raise FormatError(f"{where}: the shape is {shape!r:.80}")
    unknown = sorted(
        key for key in value if key not in _ARRAY_KEYS and _must_understand(value[key])
    )
    if unknown:
        raise UnsupportedError(f"{where} needs {unknown!r:.80}, which this release does not have")
    if value.get("storage_transformers"):
        raise UnsupportedError(f"{where} has storage transformers, which no store has")
    return shape


def _fill(column: Column) -> tuple[int | str, int | float]:
    """The fill value as JSON text and in NumPy: what a lost unit reads as, and no distribution holds."""
    if column.dtype == "bfloat16":
        return 0x7FC0, 0x7FC0
    if column.layout == TEXT:  # bytes in metadata are base64; these are no UTF-8
        return f'"{base64.b64encode(bytes([0xFF]) * column.row_bytes).decode()}"', 0xFF
    if column.numpy_dtype.kind == "f":
        return '"NaN"', np.nan
    limits = np.iinfo(column.numpy_dtype)
    value = int(limits.min if column.numpy_dtype.kind == "i" else limits.max)
    return value, value


def _must_understand(extension: Any) -> bool:
    return not (isinstance(extension, dict) and extension.get("must_understand") is False)


def _refuse_foreign(codecs: list[Any], where: str) -> None:
    for codec in codecs:
        name = codec.get("name") if isinstance(codec, dict) else codec
        if name not in _CODECS:
            raise OtherLayoutError(f"{where} has the codec {name!r:.80}; {ONLY_OURS}")
        inner = codec.get("configuration") if isinstance(codec, dict) else None
        if isinstance(inner, dict):
            for key in ("codecs", "index_codecs"):
                if isinstance(inner.get(key), list):
                    _refuse_foreign(inner[key], where)


def _plain(value: Any, one_byte: bool) -> Any:
    """Metadata without the spellings that Zarr leaves free, so that equal meanings compare equal."""
    if isinstance(value, list):
        return [_plain(item, one_byte) for item in value]
    if not isinstance(value, dict):
        # JSON's 1.0 and true equal 1 in Python, and are no sizes.
        return (type(value).__name__, value)
    items = {key: _plain(item, one_byte) for key, item in value.items()}
    if value.get("name") == "bytes" and one_byte:
        items.pop("configuration", None)  # one byte has no order
    if value.get("name") == "crc32c" and value.get("configuration") in ({}, None):
        items.pop("configuration", None)
    return items
