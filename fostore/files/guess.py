"""An array that says nothing of itself, as rows: which array, which axes, which numbers; asked for if not plain."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from fostore.encodings import make_schema
from fostore.errors import ArgumentError, UnsafeError, UnsupportedError
from fostore.files import Hints
from fostore.files._header import checked
from fostore.files._kind import kind_of
from fostore.files._numbers import SIGNED, Found, columns_of, hundredths, name_of, votes
from fostore.files._spool import Swapped
from fostore.files.table import Table, changed
from fostore.schema.row import COUNTS, FLOATS, Array

__all__ = ["Found", "choose", "matrices", "name_of", "plain_table"]

_MAX_ROW_BYTES = 1 << 30
_BITS = "void16"
"""What NumPy makes of a bfloat16 array of `ml_dtypes` when it saves it."""


PLAIN = frozenset({"kind", "dtype", "class_names", "temperature", "tol", "transpose"})
"""The hints that every file without a header follows."""
_IDLE = {"logits": frozenset({"tol"}), "counts": frozenset({"tol", "temperature"})}
"""And those of them that can change nothing of a kind."""


def choose(arrays: Mapping[str, Found], where: str, inside: str | None) -> str:
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
        is_table = any(found.dtype == "records" for found in arrays.values())
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


def matrices(arrays: Mapping[str, Found]) -> list[str]:
    """The names of the arrays that may be rows: floats with two or three axes, else integers."""
    shaped = {name: found for name, found in arrays.items() if len(found.shape) in (2, 3)}
    floats = [name for name, found in shaped.items() if found.is_float]
    return floats or [name for name, found in shaped.items() if found.is_count]


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
    if hints.transpose:
        if num_rows is None or class_names is not None:
            raise ArgumentError(
                f"{where} has {'no known length' if num_rows is None else 'names for its columns'}, so "
                "its axes cannot be swapped; leave transpose= (--transpose) out"
            )
        found = Found(found.dtype, found.shape[::-1])
        batches, num_rows = Swapped(found.shape, batches).batches, found.shape[0]
        notes = (*notes, f"the axes were swapped: they are read last first, as {found.shape}")
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
            f"{where} holds {found.dtype}, expected one of {[*FLOATS, *COUNTS, *SIGNED]}{hint}"
        )
    kind = hints.kind or ("counts" if found.is_count else None)
    if kind != "counts" and found.is_float:
        kind, note = kind_of(where, found, batches, first, kind, hints, num_rows)
        if note:
            warnings.warn(f"{where}: {note}", stacklevel=2)
            notes = (*notes, note)
    if kind == "percent":
        notes = (*notes, "percentages were divided by 100")
        if found.is_count:
            notes = (*notes, f"{found.dtype} became float64")
            batches = changed(batches, lambda rows, start: rows.astype("<f8"))
            found = Found("float64", found.shape)
        batches, kind = changed(batches, partial(hundredths, found.dtype)), "probs"
    if hints.kind == "counts" and found.is_float:
        notes = (*notes, f"{found.dtype} votes became uint64")
        batches = changed(batches, partial(votes, found.dtype, where))
        found = Found("uint64", found.shape)
    if (kind == "counts") != found.is_count:
        numbers = "integers" if kind == "counts" else "floating-point numbers"
        raise ArgumentError(
            f"{where} holds {found.dtype}, and {kind} are {numbers}; say what its rows are: source_kind= "
            "(--source-kind); kind= (--kind) is what they become"
        )
    dtype = SIGNED.get(found.dtype, found.dtype)
    if dtype != found.dtype:
        notes = (*notes, f"{found.dtype} votes became {dtype}")
    assert kind is not None
    has_sums = kind in ("probs", "log_probs")
    schema = make_schema(
        found.shape[-1],
        num_members=found.shape[1] if len(found.shape) == 3 else None,
        kind=kind,
        dtype=dtype,
        class_names=hints.class_names if class_names is None else class_names,
        temperature=1.0 if hints.temperature is None or kind == "counts" else hints.temperature,
        tol=hints.tol if has_sums else None,
    )

    stored = changed(batches, partial(columns_of, schema, where))
    return Table(
        where=where,
        format=format,
        schema=schema,
        num_rows=num_rows,
        batches=lambda start, rows: checked(stored(start, rows), schema, start, where),
        meta=dict(meta or {}),
        trusted=True,
        notes=tuple(notes),
        took=PLAIN - _IDLE.get(kind, frozenset()),
    )


def _hinted(
    where: str, found: Found, hints: Hints, notes: Sequence[str]
) -> tuple[Found, Sequence[str]]:
    """A hint of the dtype says what the bits are; it changes none."""
    dtype = hints.dtype
    if dtype is None or dtype == found.dtype:
        return found, notes
    if dtype == "bfloat16" and found.dtype in ("uint16", _BITS):
        return Found("bfloat16", found.shape), (*notes, "16-bit numbers are bfloat16, as was said")
    if SIGNED.get(found.dtype) == dtype:
        return found, notes
    raise ArgumentError(
        f"{where} holds {found.dtype}, and source_dtype says {dtype!r}; to change numbers give "
        "dtype= (--dtype)"
    )


def _shown(arrays: Mapping[str, Found]) -> str:
    shown = [f"{name} ({found.dtype} {found.shape})" for name, found in list(arrays.items())[:12]]
    return ", ".join(shown) if shown else "none"
