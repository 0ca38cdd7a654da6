"""An array that says nothing of itself, as rows: which array, which axes, which numbers; asked for if not plain."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from fostore.encodings import make_schema
from fostore.errors import ArgumentError, UnsafeError, UnsupportedError
from fostore.files import Hints
from fostore.files._header import checked
from fostore.files._kind import kind_of
from fostore.files._numbers import columns_of, hundredths, votes
from fostore.files._spool import Swapped
from fostore.files.array import SIGNED, FileArray
from fostore.files.table import Table, changed
from fostore.schema.row import COUNTS, FLOATS, Array

_MAX_ROW_BYTES = 1 << 30
_BITS = "void16"
"""What NumPy makes of a bfloat16 array of `ml_dtypes` when it saves it."""


_PLAIN = frozenset({"kind", "dtype", "class_names", "temperature", "tol", "transpose"})
"""The hints that every file without a header follows."""
_IDLE = {"logits": frozenset({"tol"}), "counts": frozenset({"tol", "temperature"})}
"""And those of them that can change nothing of a kind."""


def choose(arrays: Mapping[str, FileArray], where: str, inside: str | None) -> str:
    """The name of the array that holds the rows: the only one of floats with two or three axes, else of integers.

    Raises:
        ArgumentError: there is none, or several; names what is there.
    """
    if inside is not None:
        if inside not in arrays:
            raise ArgumentError(f"{where} has no array {inside!r}; it has {_shown(arrays)}")
        return inside
    candidates = matrices(arrays)
    if len(candidates) == 1:
        return candidates[0]
    if not candidates:
        is_table = any(array.dtype == "records" for array in arrays.values())
        cure = "; tables of records, as to_hdf writes, are not read: write frame.to_parquet(path)"
        raise ArgumentError(
            f"{where} has no array of numbers with the axes (sample, class) or (sample, member, "
            f"class); it has {_shown(arrays)}{cure if is_table else ''}"
        )
    raise ArgumentError(
        f"{where} has several arrays that may be the rows: {_shown(arrays)}; say which: "
        f"{where}::{candidates[0]} (arrays that follow each other are read as one where their names are "
        "numbered without a gap and their rows have one shape and dtype)"
    )


def matrices(arrays: Mapping[str, FileArray]) -> list[str]:
    """The names of the arrays that may be rows: floats with two or three axes, else integers."""
    shaped = {name: array for name, array in arrays.items() if len(array.shape) in (2, 3)}
    floats = [name for name, array in shaped.items() if array.is_float]
    return floats or [name for name, array in shaped.items() if array.is_count]


def plain_table(
    where: str,
    format: str,
    array: FileArray,
    hints: Hints,
    *,
    is_stream: bool = False,
    class_names: Sequence[str] | None = None,
    meta: Mapping[str, Any] | None = None,
    notes: Sequence[str] = (),
    first: Array | None = None,
) -> Table:
    """Rows of an array that has no header; values are checked as they pass.

    Args:
        where: names the array in messages.
        format: the name of the format.
        array: the rows; its first axis is not looked at.
        hints: what the user says.
        is_stream: whether nobody knows how many rows there are.
        class_names, meta, notes: what the file says besides.
        first: the first rows of a stream, which can be read once.

    Raises:
        ArgumentError: it is not plain what the rows are; says which hint to give.
        UnsupportedError: numbers or axes that no store has.
        UnsafeError: a row would take more than 1 GiB.
    """
    array, notes = _hinted(where, array, hints, notes)
    if hints.transpose:
        if is_stream or class_names is not None:
            raise ArgumentError(
                f"{where} has {'no known length' if is_stream else 'names for its columns'}, so "
                "its axes cannot be swapped; leave transpose= (--transpose) out"
            )
        shape = array.shape[::-1]
        array = FileArray(array.dtype, shape, Swapped(shape, array.batches).batches)
        notes = (*notes, f"the axes were swapped: they are read last first, as {shape}")
    if len(array.shape) not in (2, 3) or min(array.shape[1:]) < 1:
        raise UnsupportedError(
            f"{where} has the shape {array.shape}, expected (samples, classes) or (samples, members, "
            "classes), at least one of each"
        )
    # A shape is what a stranger's header claims: one row is the least that is held in memory.
    if math.prod(array.shape[1:]) * 8 > _MAX_ROW_BYTES:
        raise UnsafeError(f"{where} has rows of {array.shape[1:]} numbers, which is over 1 GiB")
    if not (array.is_float or array.is_count):
        hint = '; if they are bfloat16, say source_dtype="bfloat16"' if array.dtype == _BITS else ""
        raise UnsupportedError(
            f"{where} holds {array.dtype}, expected one of {[*FLOATS, *COUNTS, *SIGNED]}{hint}"
        )
    kind = hints.kind or ("counts" if array.is_count else None)
    if kind != "counts" and array.is_float:
        kind, note = kind_of(where, array, first, kind, hints, is_stream=is_stream)
        if note:
            warnings.warn(f"{where}: {note}", stacklevel=2)
            notes = (*notes, note)
    if kind == "percent":
        notes = (*notes, "percentages were divided by 100")
        if array.is_count:
            notes = (*notes, f"{array.dtype} became float64")
            array = _made(array, "float64", lambda rows, start: rows.astype("<f8"))
        array, kind = _made(array, array.dtype, partial(hundredths, array.dtype)), "probs"
    if hints.kind == "counts" and array.is_float:
        notes = (*notes, f"{array.dtype} votes became uint64")
        array = _made(array, "uint64", partial(votes, array.dtype, where))
    if (kind == "counts") != array.is_count:
        numbers = "integers" if kind == "counts" else "floating-point numbers"
        raise ArgumentError(
            f"{where} holds {array.dtype}, and {kind} are {numbers}; say what its rows are: source_kind= "
            "(--source-kind); kind= (--kind) is what they become"
        )
    dtype = SIGNED.get(array.dtype, array.dtype)
    if dtype != array.dtype:
        notes = (*notes, f"{array.dtype} votes became {dtype}")
    assert kind is not None
    has_sums = kind in ("probs", "log_probs")
    schema = make_schema(
        array.shape[-1],
        num_members=array.shape[1] if len(array.shape) == 3 else None,
        kind=kind,
        dtype=dtype,
        class_names=hints.class_names if class_names is None else class_names,
        temperature=1.0 if hints.temperature is None or kind == "counts" else hints.temperature,
        tol=hints.tol if has_sums else None,
    )

    stored = changed(array.batches, partial(columns_of, schema, where))
    return Table(
        where=where,
        format=format,
        schema=schema,
        num_rows=None if is_stream else array.num_rows,
        batches=lambda start, rows: checked(stored(start, rows), schema, start, where),
        meta=dict(meta or {}),
        trusted=True,
        notes=tuple(notes),
        took=_PLAIN - _IDLE.get(kind, frozenset()),
    )


def _made(array: FileArray, dtype: str, change: Callable[[Array, int], Array]) -> FileArray:
    """The same rows in other numbers."""
    return FileArray(dtype, array.shape, changed(array.batches, change))


def _hinted(
    where: str, array: FileArray, hints: Hints, notes: Sequence[str]
) -> tuple[FileArray, Sequence[str]]:
    """A hint of the dtype says what the bits are; it changes none."""
    dtype = hints.dtype
    if dtype is None or dtype == array.dtype:
        return array, notes
    if dtype == "bfloat16" and array.dtype in ("uint16", _BITS):
        return replace(array, dtype="bfloat16"), (
            *notes,
            "16-bit numbers are bfloat16, as was said",
        )
    if SIGNED.get(array.dtype) == dtype:
        return array, notes
    raise ArgumentError(
        f"{where} holds {array.dtype}, and source_dtype says {dtype!r}; to change numbers give "
        "dtype= (--dtype)"
    )


def _shown(arrays: Mapping[str, FileArray]) -> str:
    shown = [f"{name} ({array.dtype} {array.shape})" for name, array in list(arrays.items())[:12]]
    return ", ".join(shown) if shown else "none"
