"""One array of a store, with one entry a row: its name, its numbers, its shape and its role (spec/core.md, columns)."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fostore.errors import FormatError, UnsupportedError

Array = np.ndarray[tuple[Any, ...], np.dtype[Any]]

FLOATS = {"float16": "float16", "bfloat16": "uint16", "float32": "float32", "float64": "float64"}
COUNTS = {"uint8": "uint8", "uint16": "uint16", "uint32": "uint32", "uint64": "uint64"}
_OTHERS = {"int64": "int64", "utf8": "uint8"}
_STORED = FLOATS | COUNTS | _OTHERS
"""What a column may hold, and the NumPy dtype that it lies in."""

_NAME = re.compile(r"[a-z][a-z0-9_]{0,62}\Z")
_MAX_ROW_BYTES = 1 << 30
_KEYS = frozenset({"name", "dtype", "stored", "axes", "shape", "role"})


@dataclass(frozen=True, slots=True)
class Column:
    """One array of a store, with one entry a row.

    `dtype` is what the numbers mean, `stored` the NumPy dtype that lies on disk, little-endian
    (they differ for bfloat16, kept as uint16 bits, and for utf8, kept as bytes). `axes` and `shape`
    describe one row. `role` is "content" (the distributions), or that of a side column
    (`fostore.schema.sides`): "id", "fingerprint", "view" or "label".
    """

    name: str
    dtype: str
    stored: str
    axes: tuple[str, ...]
    shape: tuple[int, ...]
    role: str = "content"
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return math.prod(self.shape) * self.numpy_dtype.itemsize

    @property
    def numpy_dtype(self) -> np.dtype[Any]:
        """The dtype on disk."""
        return np.dtype(self.stored).newbyteorder("<")

    @property
    def hashed(self) -> bool:
        """Whether the digest covers this column: what the rows are and whose, not how they came."""
        return self.role in ("content", "id")

    def to_json(self) -> dict[str, Any]:
        """The column as it stands in the attributes of a store."""
        return {
            "name": self.name,
            "dtype": self.dtype,
            "stored": self.stored,
            "axes": list(self.axes),
            "shape": list(self.shape),
            "role": self.role,
            **self.extra,
        }

    @classmethod
    def from_json(cls, value: Any, where: str) -> Column:
        """Parse and check what a stranger wrote."""
        column = cls(
            name=expect(value, "name", str, where),
            dtype=expect(value, "dtype", str, where),
            stored=expect(value, "stored", str, where),
            axes=tuple(expect(value, "axes", list, where)),
            shape=tuple(expect(value, "shape", list, where)),
            role=expect(value, "role", str, where),
            extra={k: v for k, v in value.items() if k not in _KEYS},
        )
        if not _NAME.match(column.name):
            raise FormatError(
                f"{where}: column name {column.name!r} is not a plain lower-case name"
            )
        if _STORED.get(column.dtype) != column.stored:
            raise UnsupportedError(
                f"{where}: column {column.name!r} has dtype {column.dtype!r} stored as "
                f"{column.stored!r}; this release reads {sorted(_STORED)}"
            )
        sizes_fit = all(type(n) is int and n > 0 for n in column.shape)
        names_fit = all(isinstance(axis, str) for axis in column.axes)
        if len(column.axes) != len(column.shape) or not sizes_fit or not names_fit:
            raise FormatError(f"{where}: column {column.name!r} has axes and shape that disagree")
        if column.row_bytes > _MAX_ROW_BYTES:
            raise FormatError(f"{where}: column {column.name!r} has rows of over 1 GiB")
        return column


def expect(value: Any, key: str, kinds: type | tuple[type, ...], where: str) -> Any:
    """`value[key]`, of one of `kinds`; bool is not taken for a number.

    Raises:
        FormatError: `value` is no object, the key is missing, or it holds something else.
    """
    if not isinstance(value, Mapping):
        raise FormatError(f"{where} is {type(value).__name__}, expected an object")
    if key not in value:
        raise FormatError(f"{where} lacks the key {key!r}")
    item = value[key]
    wanted = kinds if isinstance(kinds, tuple) else (kinds,)
    if not isinstance(item, wanted) or (isinstance(item, bool) and bool not in wanted):
        names = " or ".join(kind.__name__ for kind in wanted)
        raise FormatError(f"{where}: {key!r} is {item!r:.80}, expected {names}")
    return item
