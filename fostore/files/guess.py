"""What rows are when the file does not say: which array, which kind, which dtype. Asked for where it is not plain."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fostore.encodings import encoding_of, make_schema
from fostore.encodings.rows import as_counts, round_to
from fostore.errors import (
    ArgumentError,
    DamageError,
    FormatError,
    RowError,
    UnsafeError,
    UnsupportedError,
)
from fostore.files import Hints
from fostore.files._header import checked
from fostore.files._spool import Swapped
from fostore.files.table import Batch, Table
from fostore.schema.halves import widen
from fostore.schema.row import COUNTS, FLOATS, Array, Schema, sum_tolerance
from fostore.schema.simplex import is_probs

_FIRST_ROWS = 64
_FIRST_BYTES = 4 << 20
_MAX_ROW_BYTES = 1 << 30
_SIGNED = {"int8": "uint8", "int16": "uint16", "int32": "uint32", "int64": "uint64"}
_ITEM_BYTES = {"bfloat16": 2}
_BITS = "void16"
"""What NumPy makes of a bfloat16 array of `ml_dtypes` when it saves it."""


PLAIN = frozenset({"kind", "dtype", "class_names", "temperature", "tol", "transpose"})
"""The hints that every file without a header follows."""
_IDLE = {"logits": frozenset({"tol"}), "counts": frozenset({"tol", "temperature"})}
"""And those of them that can change nothing of a kind."""


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
            f"{where} holds {found.dtype}, expected one of {[*FLOATS, *COUNTS, *_SIGNED]}{hint}"
        )
    kind = hints.kind or ("counts" if found.is_count else None)
    if kind != "counts" and found.is_float:
        kind, note = _looked_at(where, found, batches, first, kind, hints, num_rows)
        if note:
            warnings.warn(f"{where}: {note}", stacklevel=2)
            notes = (*notes, note)
    if kind == "percent":
        notes = (*notes, "percentages were divided by 100")
        if found.is_count:
            notes, batches = (*notes, f"{found.dtype} became float64"), _widened(batches)
            found = Found("float64", found.shape)
        batches, kind = _hundredths(batches, found.dtype), "probs"
    if hints.kind == "counts" and found.is_float:
        notes = (*notes, f"{found.dtype} votes became uint64")
        batches, found = _votes(batches, found.dtype, where), Found("uint64", found.shape)
    if (kind == "counts") != found.is_count:
        wanted = "integers" if kind == "counts" else "floating-point numbers"
        raise ArgumentError(
            f"{where} holds {found.dtype}, and {kind} are {wanted}; say what its rows are: source_kind= "
            "(--source-kind); kind= (--kind) is what they become"
        )
    dtype = _SIGNED.get(found.dtype, found.dtype)
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
        took=PLAIN - _IDLE.get(kind, frozenset()),
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


def _first_rows(batches: Callable[[int, int], Iterator[Array]], count: int) -> Array | None:
    """Up to `count` of the first rows; fewer where those behind them are damaged, which nobody may want."""
    while True:
        try:
            return next(batches(0, count), None)
        except DamageError:
            if count == 1:
                raise
            count = max(count // 4, 1)


def _looked_at(
    where: str,
    found: Found,
    batches: Callable[[int, int], Iterator[Array]],
    first: Array | None,
    kind: str | None,
    hints: Hints,
    num_rows: int | None,
) -> tuple[str, str]:
    """The kind of floats after a look at the first rows: probabilities, or what the user says that they are.

    Beside it stands what is to be said of that, if anything.

    Raises:
        ArgumentError: nothing says what they are, or the axes are swapped; names the way out.
    """
    size = math.prod(found.shape[1:]) * _ITEM_BYTES.get(found.dtype, 8)
    if first is None:
        first = _first_rows(batches, max(1, min(_FIRST_ROWS, _FIRST_BYTES // size)))
    if first is None or not len(first):
        if kind is not None:
            return kind, ""
        raise ArgumentError(f"{where} has no rows that would say what they are; {_ADVICE}")
    values = widen(in_order(first, found.dtype), found.dtype)
    tol = sum_tolerance(found.dtype, found.shape[-1]) if hints.tol is None else hints.tol
    if kind != "percent" and is_probs(values, tol):
        return kind or "probs", _OF_PROBS if kind == "logits" else ""
    if hints.transpose is None or (hints.transpose and kind is None):
        _refuse_swapped(where, found, batches, values, num_rows, hints)
    if kind is not None:
        return kind, ""
    with np.errstate(invalid="ignore"):
        sums = values.sum(axis=-1, dtype=np.float64)
        if bool((values >= 0).all() and (abs(sums - 100) <= 1).all()):
            raise ArgumentError(
                f"the rows of {where} sum to 100: if they are percentages, say source_kind='percent' "
                "(--source-kind percent), and they are divided by 100; for sums that are off by more "
                "than rounding say source_tol= (--source-tol) as well"
            )
        is_rounded = bool((values >= 0).all() and (abs(sums - 1) <= 0.1).all())
        is_log = bool((values <= 0).all()) and is_probs(np.exp(values), max(tol, 1e-2))
        is_whole = bool(((values >= 0) & (values == np.rint(values))).all())
    hint = ""
    if is_rounded:
        off = float(abs(sums - 1).max())
        hint = (
            f"; their sums are off by up to {off:.3g}: if they were rounded, say source_tol={_up(off)} "
            f"(--source-tol {_up(off)})"
        )
    elif is_log:
        hint = '; their exponentials sum to 1: they look like "log_probs"'
    elif is_whole:
        hint = '; they are whole numbers: if they are votes, say source_kind="counts" (--source-kind counts)'
    at = next(i for i in range(len(values)) if not is_probs(values[i : i + 1], tol))
    raise ArgumentError(
        f"the first rows of {where} are no probabilities (not negative, with the sum 1), and nothing "
        f"says what they are: row {at} is {_few(values[at])}{hint}; {_ADVICE}"
        + (
            ""
            if is_rounded
            else "; where sums are off by more than rounding, source_tol= (--source-tol)"
        )
    )


_OF_PROBS = (
    "the first rows are probabilities (not negative, with the sum 1), and were said to be logits, whose "
    'softmax evens them out; source_kind="probs" (--source-kind probs) takes them as they are, and kind= '
    "(--kind) is what they become"
)


def _few(row: Array) -> str:
    """The first numbers of a row, and how many there are."""
    numbers = row.reshape(-1)
    shown = ", ".join(f"{number:.6g}" for number in numbers[:4].tolist())
    return f"[{shown}, ...] ({row.size} numbers)" if row.size > 4 else f"[{shown}]"


_ADVICE = (
    'say source_kind="logits" (--source-kind logits), "log_probs" or "probs": what the rows of the source '
    "are; kind= (--kind) is what they become"
)


def _up(off: float) -> float:
    """A round tolerance above an error."""
    power = 10.0 ** math.floor(math.log10(off)) if off > 0 else 1e-3
    return float(f"{(math.floor(off / power) + 1) * power:.1g}")


def _refuse_swapped(
    where: str,
    found: Found,
    batches: Callable[[int, int], Iterator[Array]],
    first: Array,
    num_rows: int | None,
    hints: Hints,
) -> None:
    """Refuse an array whose columns sum to 1, or to 100, and its rows do not: its axes are swapped.

    Reading stops at the first column whose sum goes beyond, which of rows that are none is soon.
    """
    if num_rows is None or len(found.shape) < 2 or not bool((first >= 0).all()):
        return
    whole = 1.0 if bool((first <= 1.001).all()) else 100.0
    off = 1e-2 * whole
    sums = np.zeros(found.shape[1:])
    for batch in batches(0, max(1, _FIRST_BYTES // (math.prod(found.shape[1:]) * 8))):
        values = widen(in_order(batch, found.dtype), found.dtype)
        with np.errstate(invalid="ignore"):
            sums += values.sum(axis=0, dtype=np.float64)
        if not bool((sums <= whole + off).all()):
            return
    if bool((abs(sums - whole) <= off).all()):
        swapped = found.shape[::-1]
        how = (
            "transpose=False (--no-transpose)"
            if hints.transpose
            else "transpose=True (--transpose)"
        )
        raise ArgumentError(
            f"{where} has the shape {found.shape}, expected (sample, class): its rows do not sum to "
            f"{whole:g}, and every column does, so its axes are swapped. Say {how}, and they are read as "
            f"{swapped}"
            + (
                "; if they lie as they should, say transpose=False (--no-transpose)"
                if not hints.transpose
                else ""
            )
        )


def _widened(
    batches: Callable[[int, int], Iterator[Array]],
) -> Callable[[int, int], Iterator[Array]]:
    return lambda start, rows: (batch.astype("<f8") for batch in batches(start, rows))


def _votes(
    batches: Callable[[int, int], Iterator[Array]], dtype: str, where: str
) -> Callable[[int, int], Iterator[Array]]:
    """Whole numbers of votes that lie as floats.

    Raises:
        FormatError: one is negative, or not whole; names the row.
    """

    def whole(start: int, rows: int) -> Iterator[Array]:
        for batch in batches(start, rows):
            values = widen(in_order(batch, dtype), dtype)
            with np.errstate(invalid="ignore"):
                good = (values >= 0) & (values == np.rint(values)) & (values < 2.0**53)
            if not good.all():
                at = np.argwhere(~good)[0]
                raise FormatError(
                    f"{where}: row {start + at[0]} holds {values[tuple(at)]!r:.40} at class {at[-1]}, "
                    "expected a number of votes: whole, 0 or more"
                )
            yield values.astype("<u8")
            start += len(batch)

    return whole


def _hundredths(
    batches: Callable[[int, int], Iterator[Array]], dtype: str
) -> Callable[[int, int], Iterator[Array]]:
    """Percentages as the probabilities that they are, rounded once."""

    def divided(start: int, rows: int) -> Iterator[Array]:
        for batch in batches(start, rows):
            wide = widen(in_order(batch, dtype), dtype).astype(np.float64)
            yield round_to(wide / 100, dtype)

    return divided


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
