"""What rows are when the file does not say: which array, which kind, which dtype. Asked for where it is not plain."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fostore.conversion.files import Hints
from fostore.conversion.files._header import checked
from fostore.conversion.table import Batch, Table
from fostore.encodings import encoding_of, make_schema
from fostore.encodings.rows import as_counts
from fostore.errors import ArgumentError, FormatError, RowError, UnsafeError, UnsupportedError
from fostore.halves import widen
from fostore.schema import COUNTS, FLOATS, Array, Schema, sum_tolerance
from fostore.simplex import is_probs

_FIRST_ROWS = 64
_FIRST_BYTES = 4 << 20
_MAX_ROW_BYTES = 1 << 30
_SIGNED = {"int8": "uint8", "int16": "uint16", "int32": "uint32", "int64": "uint64"}
_ITEM_BYTES = {"bfloat16": 2}
_BITS = "void16"
"""What NumPy makes of a bfloat16 array of `ml_dtypes` when it saves it."""


@dataclass(frozen=True, slots=True)
class Found:
    """An array in a file: the name of its dtype ("bfloat16" included, whose rows come as bits) and its shape."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def is_float(self) -> bool:
        """Whether it may hold probabilities or logits."""
        return self.dtype in FLOATS

    @property
    def is_count(self) -> bool:
        """Whether it may hold votes."""
        return self.dtype in COUNTS or self.dtype in _SIGNED


def choose(arrays: Mapping[str, Found], where: str, inside: str | None) -> str:
    """The name of the array that holds the rows: the only one of floats with two or three axes, else of integers.

    Raises:
        ArgumentError: there is none, or several; names what is there.
    """
    if inside is not None:
        if inside not in arrays:
            raise ArgumentError(f"{where} has no array {inside!r}; it has {_shown(arrays)}")
        return inside
    matrices = {name: found for name, found in arrays.items() if len(found.shape) in (2, 3)}
    floats = [name for name, found in matrices.items() if found.is_float]
    candidates = floats or [name for name, found in matrices.items() if found.is_count]
    if len(candidates) == 1:
        return candidates[0]
    if not candidates:
        raise ArgumentError(
            f"{where} has no array of numbers with the axes (sample, class) or (sample, member, "
            f"class); it has {_shown(arrays)}"
        )
    raise ArgumentError(
        f"{where} has several arrays that may be the rows: {_shown(arrays)}; say which: "
        f"{where}::{candidates[0]}"
    )


def plain_table(
    where: str,
    format: str,
    found: Found,
    batches: Callable[[int, int], Iterator[Array]],
    hints: Hints,
    *,
    num_rows: int | None,
    class_names: Sequence[str] | None = None,
    meta: Mapping[str, Any] | None = None,
    notes: Sequence[str] = (),
    first: Array | None = None,
) -> Table:
    """Rows of an array that has no header; values are checked as they pass.

    Args:
        where: names the array in messages.
        format: the name of the format.
        found: its dtype and shape; the first axis is not looked at.
        batches: (first row, rows at a time) to the raw rows from there on, in any byte order;
            bfloat16 as uint16 bits.
        hints: what the user says.
        num_rows: None for a stream.
        class_names, meta, notes: what the file says besides.
        first: the first rows of a stream, which can be read once.

    Raises:
        ArgumentError: it is not plain what the rows are; says which hint to give.
        UnsupportedError: numbers or axes that no store has.
        UnsafeError: a row would take more than 1 GiB.
    """
    found, notes = _hinted(where, found, hints, notes)
    if len(found.shape) not in (2, 3) or min(found.shape[1:]) < 1:
        raise UnsupportedError(
            f"{where} has the shape {found.shape}, expected (samples, classes) or (samples, members, "
            "classes), at least one of each"
        )
    if math.prod(found.shape[1:]) * 8 > _MAX_ROW_BYTES:
        raise UnsafeError(f"{where} has rows of {found.shape[1:]} numbers, which is over 1 GiB")
    if not (found.is_float or found.is_count):
        hint = '; if they are bfloat16, say source_dtype="bfloat16"' if found.dtype == _BITS else ""
        raise UnsupportedError(
            f"{where} holds {found.dtype}, expected one of {[*FLOATS, *COUNTS, *_SIGNED]}{hint}"
        )
    kind = hints.kind or _guess_kind(where, found, batches, first, hints.tol)
    if (kind == "counts") != found.is_count:
        wanted = "integers" if kind == "counts" else "floating-point numbers"
        raise ArgumentError(f"{where} holds {found.dtype}, and {kind} are {wanted}")
    dtype = _SIGNED.get(found.dtype, found.dtype)
    if dtype != found.dtype:
        notes = (*notes, f"{found.dtype} votes became {dtype}")
    schema = make_schema(
        found.shape[-1],
        num_members=found.shape[1] if len(found.shape) == 3 else None,
        kind=kind,
        dtype=dtype,
        class_names=hints.class_names if class_names is None else class_names,
        temperature=1.0 if hints.temperature is None else hints.temperature,
        tol=None if kind == "counts" else hints.tol,
    )

    def columns(start: int, rows: int) -> Iterator[Batch]:
        raw = batches(start, rows)
        return checked(_stored(raw, schema, start, where), schema, start, where)

    return Table(
        where=where,
        format=format,
        schema=schema,
        num_rows=num_rows,
        batches=columns,
        meta=dict(meta or {}),
        trusted=True,
        notes=tuple(notes),
    )


def name_of(dtype: np.dtype[Any]) -> str:
    """The name of a dtype in any byte order."""
    return dtype.newbyteorder("=").name


def in_order(array: Array, dtype: str) -> Array:
    """C-contiguous, little-endian, aliasing where it can."""
    return np.ascontiguousarray(array, np.dtype(FLOATS.get(dtype, dtype)).newbyteorder("<"))


def _hinted(
    where: str, found: Found, hints: Hints, notes: Sequence[str]
) -> tuple[Found, Sequence[str]]:
    """A hint of the dtype says what the bits are; it changes none."""
    said = hints.dtype
    if said is None or said == found.dtype:
        return found, notes
    if said == "bfloat16" and found.dtype in ("uint16", _BITS):
        return Found("bfloat16", found.shape), (*notes, "16-bit numbers are bfloat16, as was said")
    if _SIGNED.get(found.dtype) == said:
        return found, notes
    raise ArgumentError(
        f"{where} holds {found.dtype}, and source_dtype says {said!r}; to change numbers give "
        "dtype= (--dtype)"
    )


def _guess_kind(
    where: str,
    found: Found,
    batches: Callable[[int, int], Iterator[Array]],
    first: Array | None,
    tol: float | None,
) -> str:
    if found.is_count:
        return "counts"
    size = math.prod(found.shape[1:]) * _ITEM_BYTES.get(found.dtype, 8)
    if first is None:
        first = next(batches(0, max(1, min(_FIRST_ROWS, _FIRST_BYTES // size))), None)
    advice = 'say source_kind="logits" (--source-kind logits), "log_probs" or "probs"'
    if first is None or not len(first):
        raise ArgumentError(f"{where} has no rows that would say what they are; {advice}")
    values = widen(in_order(first, found.dtype), found.dtype)
    if is_probs(values, sum_tolerance(found.dtype, found.shape[-1]) if tol is None else tol):
        return "probs"
    raise ArgumentError(
        f"the first rows of {where} are no probabilities (not negative, with the sum 1), and nothing "
        f"says what they are; {advice}; for sums that are off by more than rounding say source_tol= "
        "(--source-tol) as well"
    )


def _stored(batches: Iterator[Array], schema: Schema, start: int, where: str) -> Iterator[Batch]:
    encoding = encoding_of(schema)
    try:
        for raw in batches:
            if schema.kind == "counts":
                yield [as_counts(raw, schema.dtype, start)]
            elif schema.kind == "logits":
                rows = widen(in_order(raw, schema.dtype), schema.dtype)
                yield encoding.encode(rows, schema, start)
            else:
                yield [in_order(raw, schema.dtype)]
            start += len(raw)
    except RowError as error:
        raise FormatError(f"{where}: {error}") from error


def _shown(arrays: Mapping[str, Found]) -> str:
    shown = [f"{name} ({found.dtype} {found.shape})" for name, found in list(arrays.items())[:12]]
    return ", ".join(shown) if shown else "none"
