"""One array of a store, with one entry a row: its name, its numbers, its shape and its role (spec/core.md, columns)."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from fostore.errors import FormatError, RowError, UnsupportedError

Array = np.ndarray[tuple[Any, ...], np.dtype[Any]]

FLOATS = {"float16": "float16", "bfloat16": "uint16", "float32": "float32", "float64": "float64"}
COUNTS = {"uint8": "uint8", "uint16": "uint16", "uint32": "uint32", "uint64": "uint64"}
_OTHERS = {"int64": "int64", "utf8": "uint8"}
_STORED = FLOATS | COUNTS | _OTHERS
"""What a column may hold, and the NumPy dtype that it lies in."""

_NAME = re.compile(r"[a-z][a-z0-9_]{0,62}\Z")
_MAX_ROW_BYTES = 1 << 30
_KINDS = {"name": str, "dtype": str, "stored": str, "axes": list, "shape": list, "role": str}

_HASHED = frozenset("content id class_label sequence token position".split())

TEXT = "text"
"""The layout of a column whose rows plain readers see as texts, not as the bytes of texts."""


class Lying(NamedTuple):
    """One row of a column as the arrays of Zarr and HDF5 have it."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    axes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Column:
    """One array of a store, with one entry a row.

    `dtype` is what the numbers mean, `stored` the NumPy dtype that lies on disk, little-endian
    (they differ for bfloat16, kept as uint16 bits, and for utf8, kept as bytes). `axes` and `shape`
    describe one row. `role` is "content" (the distributions), or that of a side column
    (`fostore.schema.sides`), such as "id". `layout` says how an array shows a row, the bytes being
    the same: `TEXT`, or None where it has the axes and the dtype of the column. It is no part of what
    the column is, so columns compare without it.
    """

    name: str
    dtype: str
    stored: str
    axes: tuple[str, ...]
    shape: tuple[int, ...]
    role: str = "content"
    extra: Mapping[str, Any] = field(default_factory=dict)
    layout: str | None = field(default=None, compare=False)
    numpy_dtype: np.dtype[Any] = field(init=False, repr=False, compare=False)
    """The dtype on disk."""
    row_bytes: int = field(init=False, repr=False, compare=False)
    """Bytes of one row."""

    def __post_init__(self) -> None:
        # Worked out once: every batch that passes asks for both, several times.
        dtype = np.dtype(self.stored).newbyteorder("<")
        object.__setattr__(self, "numpy_dtype", dtype)
        object.__setattr__(self, "row_bytes", math.prod(self.shape) * dtype.itemsize)

    @property
    def hashed(self) -> bool:
        """Whether the digest covers this column: what the rows are and whose, not how they came."""
        return self.role in _HASHED

    @property
    def lying(self) -> Lying:
        """What a row is in an array of Zarr or HDF5: a text of one width has no axis there."""
        if self.layout == TEXT:
            return Lying(np.dtype(f"S{self.row_bytes}"), (), ())
        return Lying(self.numpy_dtype, self.shape, self.axes)

    def check(self, rows: Array, count: int) -> None:
        """Raise RowError unless `rows` are `count` rows of the column, as they are stored."""
        if rows.shape != (count, *self.shape) or rows.dtype != self.numpy_dtype:
            raise RowError(
                f"column {self.name!r} stores {self.stored} of shape {self.shape} a row, "
                f"{rows.dtype} of shape {rows.shape} came for {count} rows"
            )

    def to_json(self) -> dict[str, Any]:
        """The column as it stands in the attributes of a store."""
        return {
            "name": self.name,
            "dtype": self.dtype,
            "stored": self.stored,
            "axes": list(self.axes),
            "shape": list(self.shape),
            "role": self.role,
            **({} if self.layout is None else {"layout": self.layout}),
            **self.extra,
        }

    @classmethod
    def from_json(cls, value: Any, where: str) -> Column:
        """Parse and check what a stranger wrote."""
        name, dtype, stored, axes, shape, role = expect_all(value, _KINDS, where)
        if not _NAME.match(name):
            raise FormatError(f"{where}: column name {name!r} is not a plain lower-case name")
        if _STORED.get(dtype) != stored:
            raise UnsupportedError(
                f"{where}: column {name!r} has dtype {dtype!r} stored as {stored!r}; this release "
                f"reads {sorted(_STORED)}"
            )
        kinds_fit = set(map(type, shape)) <= {int} and set(map(type, axes)) <= {str}
        if not kinds_fit or len(axes) != len(shape) or min(shape, default=1) < 1:
            raise FormatError(f"{where}: column {name!r} has axes and shape that disagree")
        layout = value.get("layout")
        if layout is not None and (layout != TEXT or dtype != "utf8" or len(shape) != 1):
            raise UnsupportedError(
                f"{where}: column {name!r} has the layout {layout!r:.80}; this release reads {TEXT!r}, of utf8"
            )
        extra = {k: item for k, item in value.items() if k not in _KINDS and k != "layout"}
        column = cls(name, dtype, stored, tuple(axes), tuple(shape), role, extra, layout)
        if column.row_bytes > _MAX_ROW_BYTES:
            raise FormatError(f"{where}: column {name!r} has rows of over 1 GiB")
        return column


def expect_all(value: Any, kinds: Mapping[str, type], where: str) -> list[Any]:
    """What `value` has under keys, each of its kind; see `expect`.

    One call for all that are plain: opening a store would otherwise make thirty.
    """
    is_plain = type(value) is dict
    return [
        value[key] if is_plain and type(value.get(key)) is kind else expect(value, key, kind, where)
        for key, kind in kinds.items()
    ]


def expect(value: Any, key: str, kinds: type | tuple[type, ...], where: str) -> Any:
    """`value[key]`, of one of `kinds`; bool is not taken for a number.

    Raises:
        FormatError: `value` is no object, the key is missing, or it holds something else.
    """
    if not isinstance(value, (dict, Mapping)):  # a dict is known without a call
        raise FormatError(f"{where} is {type(value).__name__}, expected an object")
    if key not in value:
        raise FormatError(f"{where} lacks the key {key!r}")
    item = value[key]
    allowed = kinds if isinstance(kinds, tuple) else (kinds,)
    if not isinstance(item, allowed) or (isinstance(item, bool) and bool not in allowed):
        names = " or ".join(kind.__name__ for kind in allowed)
        raise FormatError(f"{where}: {key!r} is {item!r:.80}, expected {names}")
    return item
