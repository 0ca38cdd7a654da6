"""Tables with a column a class: which columns are the classes, and in which order; shared by text and Arrow files.

Nothing is guessed: a column that may be something else than a class is refused with what to say. Numbers
in the names of all classes are their order, since tables are often sorted as text (0, 1, 10, 11, 2).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NoReturn

import numpy as np

from fostore.errors import ArgumentError
from fostore.files import Hints
from fostore.files._keys import FILE_NAMES, is_index_name, is_key_name, plain_name
from fostore.schema.row import Array

_NO_CLASS = frozenset(
    "truth target targets label labels y_true y_pred ground_truth gt true_label true_class "
    "prediction predictions pred preds predicted predicted_label predicted_class "
    "row_id rowid fold split subset partition repeat confidence entropy loss correct".split()
)
"""Names that stand beside distributions and are no class, whatever is under them."""
_ROW_IDS = ("row_id", "rowid")
_LAST_NUMBER = re.compile(r"(.*?)(\d+)(\D*)\Z", re.DOTALL)
_CHANCE = 0.05
"""How likely whole numbers may be an accident before a column of them is refused."""
_SHOWN = 6


@dataclass(frozen=True, slots=True)
class _Wide:
    """What the columns of a table are."""

    classes: tuple[int, ...]
    """The columns of the classes by their places in the file, in the order of the classes."""
    class_names: tuple[str, ...] | None
    beside: dict[str, int]
    """The other columns: their places by name."""
    notes: tuple[str, ...] = ()


def numbered(names: Sequence[str]) -> list[int] | None:
    """The numbers in names that differ in one number alone, if they are 0 to n - 1 or 1 to n; else None.

    >>> numbered(["class_0", "class_10", "class_2"]), numbered(["b2", "b1"]), numbered(["cat", "dog"])
    (None, [2, 1], None)
    """
    numbers = _last_numbers(names)
    first = min(numbers, default=-1)
    whole = first in (0, 1) and sorted(numbers) == list(range(first, first + len(numbers)))
    return numbers if whole else None


def _last_numbers(names: Sequence[str]) -> list[int]:
    """The numbers in names that differ in them alone; else none."""
    matches = [match.groups() for name in names if (match := _LAST_NUMBER.match(name))]
    if len(matches) != len(names) or len({(head, tail) for head, _, tail in matches}) != 1:
        return []
    return [int(number) for _, number, _ in matches]


def nameless(num_classes: int) -> list[str]:
    """What stands over the numbers where classes have no names; "0" and "1" may be names."""
    return [f"class_{i}" for i in range(num_classes)]


def layout(
    where: str, names: Sequence[str], first: Sequence[Array | None], hints: Hints, kind: str | None
) -> _Wide:
    """What the columns of a table are.

    Args:
        where: names the table in messages.
        names: as they stand in the file.
        first: the first numbers of each column (n,), None where it holds text or anything else.
        hints: `columns`, `drop`, `id_column` and `class_names` of the user.
        kind: of the rows, where it is known.

    Raises:
        ArgumentError: a column may be a class or something else; says how to tell.
    """
    given = None if hints.class_names is None else tuple(hints.class_names)
    clean = [name.strip().removeprefix("#").strip() if i == 0 else name.strip()
             for i, name in enumerate(names)]  # fmt: skip
    _check_named(where, names, clean, hints)
    places: dict[str, int] = {}
    for i, (raw, name) in enumerate(zip(names, clean, strict=True)):
        places.setdefault(raw, i)
        places.setdefault(name, i)
    left = len(names) - len(given or ())
    if given is not None and left <= 1 and tuple(names[left:]) == given:
        # Whoever names them all as they stand knows that they are classes, and in this order.
        return _Wide(tuple(range(left, len(names))), given, {clean[i]: i for i in range(left)})
    if hints.columns is not None:
        chosen = [places[name] for name in hints.columns]
        if not chosen or len(set(chosen)) != len(chosen):
            raise ArgumentError(f"columns is {list(hints.columns)}, expected each class once")
        beside = {clean[i]: i for i in range(len(names)) if i not in chosen}
        picked = tuple(clean[i] for i in chosen)
        are_numbers = given is not None and numbered(picked) is not None
        return _Wide(tuple(chosen), None if are_numbers else picked, beside)
    asked_id = [] if hints.id_column is None else [hints.id_column]
    out = {places[name] for name in (*hints.drop, *asked_id)}
    is_index_first = is_index_name(names[0])
    values = [None if i in out else first[i] for i in range(len(names))]
    others = [i for i in range(len(names)) if i not in out]
    decimals = any(v is not None and len(v) and not _are_whole(v) for v in values)
    beside_at = set(out)
    unsure: dict[int, str] = {}
    for i in others:
        if not is_key_name(clean[i]) and not (i == 0 and is_index_first):
            continue
        one = values[i]
        if plain_name(clean[i]) not in FILE_NAMES or one is None or bool(np.isnan(one).any()):
            beside_at.add(i)
        elif not _are_whole(one):
            continue  # a class that is called so
        elif decimals:
            beside_at.add(i)
        else:
            unsure[i] = "holds whole numbers, as the others do: it is a class or a key"
    classes = [i for i in others if i not in beside_at]
    why = unsure | {
        i: "is no class by its name" for i in classes if plain_name(clean[i]) in _NO_CLASS
    }
    why.update({i: "holds something else than numbers" for i in classes if values[i] is None})
    is_ours = names[0] in ("index", "id") and list(names[1:]) == nameless(len(names) - 1)
    for i in _odd(values, [i for i in classes if i not in why], kind) if not is_ours else ():
        shown = ", ".join(f"{x:g}" for x in np.asarray(values[i])[:4])
        why[i] = f"holds whole numbers ({shown}, ...), unlike the others"
    if why:
        _refuse(where, clean, why, [i for i in classes if i not in why])
    if not classes:
        raise ArgumentError(
            f"{where} names no class; its columns are {list(names)[:_SHOWN]}; say which are classes: "
            "columns= (--columns A,B,...)"
        )
    beside = {clean[i]: i for i in sorted(beside_at)}
    raw_names = tuple(names[i] for i in classes)
    if given == raw_names:
        return _Wide(tuple(classes), raw_names, beside)
    notes = []
    named = [clean[i] for i in classes]
    stripped = sum(a != b for a, b in zip(named, raw_names, strict=True))
    if stripped:
        notes.append(f"{stripped} class names were stripped of white space")
    numbers = numbered(named)
    is_sorted = numbers is None or numbers == sorted(numbers)
    if numbers is not None and not is_sorted:
        order = np.argsort(numbers)
        before = named[:_SHOWN]
        classes, named = [classes[i] for i in order], [named[i] for i in order]
        notes.append(
            f"the numbers in the names are the order of the classes: {', '.join(named[:3])}, ... "
            f"{named[-1]}; in the file they stand as {', '.join(before)}, ..."
        )
    elif numbers is None and _has_gaps(named):
        notes.append(
            "the numbers in the class names are not 0 to n - 1, so the classes keep the order of the file"
        )
    # Whoever gives names means them instead of numbers, which is what pandas writes without names.
    if numbers is not None and given is not None:
        return _Wide(tuple(classes), None, beside, tuple(notes))
    is_nameless = is_sorted and named == nameless(len(named)) and raw_names == tuple(named)
    return _Wide(tuple(classes), None if is_nameless else tuple(named), beside, tuple(notes))


def _odd(values: Sequence[Array | None], classes: Sequence[int], kind: str | None) -> list[int]:
    """The columns whose whole numbers stand out among decimals, or count the rows or the votes of the others."""
    if len(classes) < 2 or not len(np.asarray(values[classes[0]])):
        return []
    table = np.stack([np.asarray(values[i]) for i in classes], axis=1)
    with np.errstate(invalid="ignore"):
        whole = (table == np.rint(table)) & np.isfinite(table)
    columns, rows = whole.all(axis=0), len(table)
    if columns.all():
        if rows < 4:
            return []
        counts = [np.arange(n, n + rows) for n in (0, 1)]
        rest = table.sum(axis=1) if len(classes) > 2 else np.full(rows, np.nan)
        return [i for i, column in zip(classes, table.T, strict=True)
                if any(np.array_equal(column, count) for count in counts)
                or np.array_equal(2 * column, rest)]  # fmt: skip
    cells = whole[:, ~columns]
    share = (cells.sum() + 1) / (cells.size + 2)  # of whole numbers among decimals (Laplace)
    is_chance = table.shape[1] * share**rows >= _CHANCE
    odd = []
    for at in np.flatnonzero(columns).tolist():
        least, most = table[:, at].min(), table[:, at].max()
        if kind in (None, "probs"):  # a class that is sure or impossible; sums are checked
            is_class = (least >= 0 and most <= 1) or (kind is None and is_chance)
        else:  # logits: masked (negative throughout), or a reference that is always 0
            is_class = most <= 0 or is_chance
        if not is_class:
            odd.append(classes[at])
    return odd


def _are_whole(values: Array) -> bool:
    return bool((np.isfinite(values) & (values == np.rint(values))).all())


def _has_gaps(names: Sequence[str]) -> bool:
    numbers = _last_numbers(names)
    return numbers != sorted(numbers)


def _check_named(where: str, names: Sequence[str], clean: Sequence[str], hints: Hints) -> None:
    asked = {
        "columns": hints.columns or (),
        "drop": hints.drop,
        "id_column": [hints.id_column] if hints.id_column is not None else (),
    }
    known = {*names, *clean}
    for option, columns in asked.items():
        for name in columns:
            if name not in known:
                raise ArgumentError(
                    f"{option} names {name!r}, and {where} has no such column; it has {list(clean)[:12]}"
                )
    for one, other in (("columns", "drop"), ("columns", "id_column"), ("drop", "id_column")):
        both = set(asked[one]) & set(asked[other])
        if both:
            raise ArgumentError(f"{sorted(both)[0]!r} is named by both {one} and {other}")


def _refuse(
    where: str, names: Sequence[str], why: Mapping[int, str], classes: Sequence[int]
) -> NoReturn:
    """Refuse columns that may be something else than classes; names each, and the ways out."""
    odd = [names[i] for i in why]
    reasons = "; ".join(f"the column {names[i]!r} {what}" for i, what in list(why.items())[:_SHOWN])
    left = [names[i] for i in classes]
    if len(left) > _SHOWN:
        left = [*left[: _SHOWN - 1], "..."]
    keys = [n for n in odd if plain_name(n) not in _NO_CLASS or plain_name(n) in _ROW_IDS]
    key = (
        f"or, if it says which sample a row is, take it for the ids: id_column={keys[0]!r} (--id-column "
        f"{keys[0]!r}); "
        if keys
        else ""
    )
    which = (
        f"columns={left} (--columns {','.join(left)!r})" if left else "columns= (--columns A,B,...)"
    )
    raise ArgumentError(
        f"{where}: {reasons}. Leave out what is no class: drop={odd} (--drop {','.join(odd)!r}); {key}or say "
        f"which columns are the classes: {which}"
    )
