"""Which fields of a line of text are what: the names, the classes, the index, what lies beside them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from fostore.errors import ArgumentError, FormatError
from fostore.files import Hints
from fostore.files._keys import IDS, INDEX, plain_name
from fostore.files._text import COMMA, Text, is_whole
from fostore.files._wide import layout, numbered
from fostore.schema.row import Array

MISSING = ("", "na", "n/a", "nan", "null", "none")
_FIRST_LINES = 64


@dataclass(frozen=True, slots=True)
class Layout:
    """Which fields of a line are what."""

    skip: int
    """Lines of names: 0 or 1."""
    width: int
    """Fields of a line."""
    classes: tuple[int, ...]
    """The fields of the classes, in the order of the classes."""
    beside: dict[str, int]
    """The other fields that may be keys, by name."""
    index: int | None
    """The field that counts the rows, as fostore writes it: its numbers must be 0, 1, 2, ..."""
    class_names: tuple[str, ...] | None
    dtype: str
    kind: str | None
    notes: tuple[str, ...] = ()

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    @property
    def own_ids(self) -> int | None:
        """The field of ids as fostore writes them: first, and called id."""
        return next((i for name, i in self.beside.items() if i == 0 and name == "id"), None)


def layout_of(text: Text, hints: Hints) -> Layout:
    """What the first lines say."""
    try:
        lines = text.first(_FIRST_LINES)
    except FormatError:
        if hints.delimiter is None:
            text.refuse_delimiter([])
        raise
    if not lines:
        raise FormatError(f"{text.where} is empty, expected a line of names")
    if lines[0][0][:4].lower() == "sep=":
        raise FormatError(
            f"{text.where}, line 1 is for Excel alone: remove it, and say delimiter={lines[0][0][4:5]!r} "
            "(--delimiter) where that is no comma"
        )
    if hints.delimiter is None:
        text.refuse_delimiter(lines)
    comma = next((f for line in lines[1:] for f in line if COMMA.match(f)), None)
    if comma is not None and text.decimal == ".":
        raise ArgumentError(
            f"{text.where} holds {comma!r}: if that is a number with a decimal comma, say decimal=',' "
            "(--decimal ,)"
        )
    is_named = _is_named(lines, text, hints)
    rows = lines[is_named:]
    # What a line without names is called in messages, and in what they advise.
    names = lines[0] if is_named else [f"column {i}" for i in range(len(lines[0]))]
    if is_named:
        _check_widths(lines, text)
    plain = [plain_name(name) for name in names]
    dropped = {name.strip() for name in hints.drop}
    named = {*dropped, hints.id_column}
    index = 0 if plain[0] == "index" and not named & {names[0], "index"} else None
    asked_of = hints
    if index is not None and hints.columns is None:
        asked_of = replace(hints, drop=(*hints.drop, names[0]))
    votes = _kind(rows, range(len(names)), hints)[0]
    known = hints.kind or ("counts" if votes == "counts" else None)
    wide = layout(text.where, names, _first_numbers(rows, len(names), text), asked_of, known)
    beside = {n: i for n, i in wide.beside.items() if i != index and not {n, names[i]} & dropped}
    kind, dtype = _kind(rows, wide.classes, hints)
    class_names = wide.class_names if is_named else None
    return Layout(
        int(is_named), len(names), wide.classes, beside, index, class_names, dtype, kind, wide.notes
    )


def _first_numbers(lines: list[list[str]], width: int, text: Text) -> list[Array | None]:
    """The numbers of the first rows by column; None for a column that holds something else in all of them.

    One cell that is no number among numbers is an error of its line, and is left for it to say.
    """
    columns: list[Array | None] = []
    for i in range(width):
        values = [text.number(line[i]) if i < len(line) else None for line in lines]
        is_text = bool(values) and all(value is None for value in values)
        columns.append(None if is_text else np.array(values, np.float64))
    return columns


def _check_widths(lines: list[list[str]], text: Text) -> None:
    """R's write.table leaves the name of its row names out, so that names and rows do not match; NumPy comments."""
    rows = {len(line) for line in lines[1:]}
    if rows and lines[0][0].lstrip()[:1] == "#" and rows != {len(lines[0])}:
        raise FormatError(f"{text.where}, line 1 is a comment, {lines[0][0]!r:.40}; remove it")
    if rows == {len(lines[0]) + 1}:
        raise FormatError(
            f"{text.where} names {len(lines[0])} columns, and its rows have {len(lines[0]) + 1} fields: R "
            "leaves out the name of its row names. Write it with col.names=NA, or put a name such as "
            f"'id' and a {text.delimiter!r} before the first line"
        )


def _is_named(lines: list[list[str]], text: Text, hints: Hints) -> bool:
    """Whether the first line holds names; a row must not be taken for them, nor they for a row.

    pandas writes 0, 1, 2 ... over columns without names, and a classifier's `classes_` may be numbers.
    """
    where, first = text.where, [field.strip() for field in lines[0]]
    if plain_name(first[0]) in (*INDEX, *IDS):
        return True
    if all(text.number(field) is not None for field in first):
        return _are_labels(lines, text, hints)
    bad = next(field for field in first if text.number(field) is None)
    has_numbers = any(text.number(field) is not None for field in first)
    if any(text.number(f) is not None and not f.isdecimal() for f in first) or (
        has_numbers and bad.lower() in MISSING
    ):
        raise FormatError(
            f"{where}, line 1, class {first.index(bad)}: {bad!r:.40} is no number, and others of the "
            "line are; if the line holds names, let the first column be the rows' 'index' or 'id'"
        )
    return True


def _are_labels(lines: list[list[str]], text: Text, hints: Hints) -> bool:
    """Whether a first line of numbers alone holds the numbers of classes: whole ones, none twice.

    Raises:
        ArgumentError: it may be a row as well.
    """
    first = [field.strip() for field in lines[0]]
    values = [text.number(field) for field in first]
    whole = [int(value) for value in values if value is not None and value.is_integer()]
    if len(lines) == 1 or len(set(whole)) < len(first):
        return False
    is_counted = whole == list(range(len(first)))
    decimals = {i for line in lines[1:] for i, f in enumerate(line) if (text.number(f) or 0.0) % 1}
    if decimals:
        # Distributions have no such row but 0,1 and 1,0; logits may, and not from 0 or 1 up. A column of
        # whole numbers may be keys.
        is_row = sum(whole) == 1 and min(whole) == 0
        is_known = len(first) > 2 and numbered([str(n) for n in whole]) is not None
        is_sure = is_known or not (is_row or hints.kind in ("logits", "log_probs"))
        if is_sure and (len(decimals) == len(first) or (is_counted and is_known)):
            return True
    elif not is_counted:
        return False
    raise ArgumentError(
        f"line 1 of {text.where} is {','.join(first[:5])}, which may be a row or the numbers of the "
        "classes; if it is a row, put a line of names before it, else names in its place"
    )


def _are_whole(lines: list[list[str]]) -> bool:
    return all(is_whole(field) for line in lines for field in line)


def _kind(lines: list[list[str]], classes: Sequence[int], hints: Hints) -> tuple[str | None, str]:
    """Whole numbers whose rows do not all have the sum 1 are votes."""
    kind = hints.kind
    fields = [[line[i] for i in classes if i < len(line)] for line in lines]
    whole = bool(fields) and _are_whole(fields)
    if kind is None and whole and any(sum(map(int, line)) != 1 for line in fields):
        kind = "counts"
    default = "uint64" if kind == "counts" else "float64"
    return kind, hints.dtype or default
