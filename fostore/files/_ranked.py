"""Lists of likely classes that other tools wrote, as top-k rows: what they leave open is asked for, never guessed.

None of these layouts keeps what the other classes weigh, as fostore's own top-k rows do. Where the lists hold true
probabilities it is what is missing from 1, less whatever rounding did: such stores say so (`derived`). Where they were
made to sum to 1, or were never normalised, nobody knows it, and the only rule that is left is `renorm`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from fostore.encodings import chosen, encoding_of, make_schema
from fostore.encodings.rows import log
from fostore.encodings.selection import log_total
from fostore.encodings.topk_rows import RULES, Selected
from fostore.errors import ArgumentError, FormatError, RowError
from fostore.files import Hints
from fostore.schema.row import Array, Column, Schema

WHOLE, RENORMALISED = "whole", "renormalised"


class Ranked(NamedTuple):
    """n rows as a layout lists them, in any order of the classes."""

    values: Array
    """(n, k), floats of the layout's kind; minus infinity (0 of probs) is no weight."""
    ids: Array
    """(n, k), integers: the class of each value."""
    level: Array | None = None
    """(n,): of logits, the log-sum-exp over all classes, on the scale of `values`; None where nobody kept it."""
    sides: tuple[Array, ...] = ()
    """What lies beside the rows, as it is stored."""


@dataclass(frozen=True, slots=True)
class Open:
    """One thing that a layout does not say: a key of `layout=` (`--layout`)."""

    key: str
    what: str
    """The question, as an error asks it, with the answers that are possible."""
    parse: Callable[[Any], Any]
    """An answer, or ValueError."""


def _count(given: Any) -> int:
    number = int(given)
    if isinstance(given, (bool, float)) or number < 1:
        raise ValueError
    return number


def _one_of(*words: str) -> Callable[[Any], str]:
    def parse(given: Any) -> str:
        if given not in words:
            raise ValueError
        return str(given)

    return parse


NUM_CLASSES = Open(
    "num_classes", "how many classes (tokens of the vocabulary) the teacher had: a number", _count
)
K = Open("k", "how many classes of a row to take, where lists are longer: a number", _count)
MASS = Open(
    "mass",
    f"whether the numbers are what the teacher gave ({WHOLE}), or were made to sum to 1 over the listed classes "
    f"({RENORMALISED})",
    _one_of(WHOLE, RENORMALISED),
)
RULE = Open(
    "rule", f"what the classes that are not listed get: one of {', '.join(RULES)}", _one_of(*RULES)
)
NEXT, SAME = "next", "same"
PREDICTS = Open(
    "predicts",
    f"whether the list at a token is about the token after it ({NEXT}), or about this one ({SAME}: then the first "
    "token has none)",
    _one_of(NEXT, SAME),
)


def answers(
    hints: Hints, where: str, needed: Sequence[Open], optional: Sequence[Open] = (RULE, K)
) -> dict[str, Any]:
    """What the user says of a layout, by key.

    Raises:
        ArgumentError: an answer is missing, is none, or to a question that this layout does not ask.
    """
    questions = {question.key: question for question in (*needed, *optional)}
    given = dict(hints.layout or {})
    unknown = sorted(given.keys() - questions.keys())
    if unknown:
        raise ArgumentError(
            f"layout has {unknown}, which have no effect on {where}; it takes {list(questions)}"
        )
    missing = [question for question in needed if question.key not in given]
    if missing:
        asked = "; ".join(
            f"{question.what} (layout={{{question.key!r}: ...}}, --layout {question.key}=...)"
            for question in missing
        )
        raise ArgumentError(f"{where} does not say {asked}")
    answered = {}
    for key, answer in given.items():
        try:
            answered[key] = questions[key].parse(answer)
        except (ValueError, TypeError) as error:
            raise ArgumentError(
                f"layout[{key!r}] is {answer!r:.80}, expected {questions[key].what}"
            ) from error
    return answered


def temperature_of(hints: Hints, where: str) -> float:
    """The temperature at which the teacher was asked, which no list shows.

    Raises:
        ArgumentError: nobody says it.
    """
    if hints.temperature is None:
        raise ArgumentError(
            f"{where} does not say by which temperature the teacher's logits were divided before these numbers were "
            "made of them: temperature=1.0 (--temperature 1) where by none"
        )
    return hints.temperature


def ranked_schema(
    where: str,
    answered: Mapping[str, Any],
    *,
    num_classes: int,
    k: int,
    kind: str,
    dtype: str,
    is_whole: bool,
    temperature: float,
    hints: Hints,
    side_columns: Sequence[Column] = (),
    **others: Any,
) -> Schema:
    """The schema of rows that are listed so.

    Args:
        answered: what `answers` gave.
        is_whole: whether what is missing from the whole is what the other classes weigh.

    Raises:
        ArgumentError: a rule that needs the weight of the other classes, where nobody knows it; or k is none.
    """
    k, listed = answered.get("k", k), k
    if k > listed:
        raise ArgumentError(f"layout['k'] is {k}, and {where} lists {listed} classes a row")
    rule = answered.get("rule", "coarse" if is_whole else "renorm")
    if not is_whole and rule != "renorm":
        raise ArgumentError(
            f"the rule {rule!r} needs the weight of the classes that {where} does not list, which is not kept there; "
            "what is left is renorm"
        )
    return make_schema(
        num_classes,
        kind=kind,
        dtype=dtype,
        class_names=hints.class_names,
        temperature=temperature,
        tol=hints.tol if kind != "logits" else None,
        encoding=chosen("topk", k=min(k, num_classes), rule=rule, derived=True),
        side_columns=side_columns,
        **others,
    )


def columns_of(
    rows: Ranked, schema: Schema, start: int, where: str, *, is_whole: bool
) -> list[Array]:
    """Listed rows as a store keeps them, their order and classes checked.

    Args:
        is_whole: as for `ranked_schema`; else the listed classes are all there is.

    Raises:
        RowError: a class that is none, or twice in a row; a number that is none of the kind; or, where the rule is
            `coarse`, a row whose listed classes weigh more than the whole, as rounding makes of the surest.
        FormatError: no row has as many classes as are to be kept.
    """
    k = schema.encoding["k"]
    if rows.values.shape[-1] < k:
        raise FormatError(
            f"{where}: row {start} lists {rows.values.shape[-1]} classes, expected at least {k}; "
            f"--layout k={rows.values.shape[-1]} takes so many of each"
        )
    values, ids = _in_order(rows, schema, start, where)
    logs = values.astype(np.float64)
    if schema.kind == "probs":
        logs = log(logs)
    level = rows.level
    if level is None:
        level = log_total(logs) if schema.kind == "logits" else np.zeros(len(logs))
    level = level.astype(np.float64)
    if is_whole:
        residual = _rest(logs[:, :k], level, schema, start, where)
    else:
        residual = log_total(logs[:, k:])
    if schema.kind == "logits":
        selected = Selected(values[:, :k] - values[:, :1], ids[:, :k], residual - logs[:, 0], level)
    else:
        selected = Selected(values[:, :k], ids[:, :k], residual)
    try:
        content = encoding_of(schema).encode(selected, schema, start)
    except RowError as error:
        raise RowError(f"{where}: {error}") from error
    return [*content, *rows.sides]


def _in_order(rows: Ranked, schema: Schema, start: int, where: str) -> tuple[Array, Array]:
    """Values and classes, larger first, of equal ones the smaller class; what has no weight comes last."""
    values, ids = rows.values, rows.ids.astype(np.int64)
    bad = np.isnan(values) | (values == np.inf)
    if bad.any():
        at, rank = np.argwhere(bad)[0]
        raise RowError(f"{where}: row {start + at} lists {values[at, rank]} at rank {rank}")
    outside = (ids < 0) | (ids >= schema.num_classes)
    if outside.any():
        at, rank = np.argwhere(outside)[0]
        raise RowError(
            f"{where}: row {start + at} lists the class {ids[at, rank]}, and there are "
            f"{schema.num_classes:,}: is num_classes right?"
        )
    order = np.lexsort((ids, -values), axis=-1)
    return np.take_along_axis(values, order, -1), np.take_along_axis(ids, order, -1)


def _rest(logs: Array, whole: Array, schema: Schema, start: int, where: str) -> Array:
    """The log of what the other classes weigh: the whole less what is listed."""
    share = log_total(logs) - whole
    over = share > 0
    if over.any() and schema.encoding["rule"] == "coarse":
        row = int(np.argmax(over))
        raise RowError(
            f"{where}: the classes that row {start + row} lists weigh {np.exp(share[row]):.6g} of the whole "
            f"({over.sum()} of {len(over)} rows are over 1, as rounding makes them), so that nothing is known of the "
            "others: --layout rule=renorm, uniform or zero takes their weight for 0"
        )
    with np.errstate(divide="ignore"):
        rest: Array = np.log1p(-np.exp(np.minimum(share, 0.0)))
    return rest + whole


def skipping(
    pieces: Callable[[], Iterator[Ranked]], schema: Schema, where: str, *, is_whole: bool
) -> Callable[[int, int], Iterator[list[Array]]]:
    """A reader of pieces that can only be read from the first on, as `Table.batches` wants one."""

    def batches(start: int, rows: int) -> Iterator[list[Array]]:
        row = 0
        for piece in pieces():
            stop = row + len(piece.values)
            if stop > start:
                columns = columns_of(piece, schema, row, where, is_whole=is_whole)
                for first in range(max(start - row, 0), stop - row, rows):
                    yield [np.ascontiguousarray(column[first : first + rows]) for column in columns]
            row = stop

    return batches
