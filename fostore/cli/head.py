"""`fostore head`: the first rows of a store or of any file that `fostore convert` reads."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Annotated, Literal

import typer

import fostore
from fostore.cli.report import reporting, say, show
from fostore.errors import FostoreError
from fostore.schema.jsontext import dumps
from fostore.schema.ranges import describe
from fostore.schema.shown import brief, wrapped

EXAMPLES = """
Examples:

`fostore head digits.zarr`

`fostore head results.h5::val/probs -n 2 --kind logits`
"""

_WIDTH, _NAME = 80, 24
_SHOWN = 8
"""Classes of a row that a table shows."""


def head(
    source: Annotated[
        str,
        typer.Argument(metavar="PATH", help="What `fostore convert` reads.", show_default=False),
    ],
    number: Annotated[int, typer.Option("--number", "-n", min=0, help="Rows to show.")] = 5,
    kind: Annotated[
        Literal["probs", "log_probs", "logits", "counts"] | None,
        typer.Option(help="What the rows are, where the file does not say.", show_default=False),
    ] = None,
    source_format: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="FORMAT",
            help="Its format, where the suffix does not say it: cifar10h, dcic ...",
            show_default=False,
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Whole rows, as JSON Lines without a header.")
    ] = False,
) -> None:
    """Show the first rows: ids and labels where they are kept, the largest classes, or with --json all numbers."""
    with reporting():
        is_empty = number > 0
        for line in _lines(source, number, kind, as_json, source_format):
            show(line)
            is_empty = False
        if is_empty:
            say(_why_none(source))


def _why_none(source: str) -> str:
    """Why there is no row to show: others of a store that several write may be there."""
    gaps = []
    with suppress(FostoreError):  # no store, and so a file without rows
        gaps = fostore.missing(source)
    if not gaps:
        return f"{source} has no rows"
    return f"{describe(gaps)} of {source} are missing: its first rows are not there yet"


def _lines(
    source: str, number: int, kind: str | None, as_json: bool, format: str | None
) -> Iterator[str]:
    from fostore.conversion.sources import first_rows  # which loads NumPy

    schema, rows = first_rows(source, number, format=format, kind=kind)
    names = schema.class_names or tuple(str(i) for i in range(schema.num_classes))
    for i, row in enumerate(rows):
        if as_json:
            yield dumps({"index": i, **row.beside, **row.numbers}).decode()
            continue
        beside = dict(row.beside)
        key, label = beside.pop("id", None), beside.pop("label", None)
        known = [] if key is None else [brief(str(key), _NAME)]
        known += [f"{name} {number}" for name, number in beside.items()]
        whose = f"{i} ({', '.join(known)})" if known else f"{i}"
        whose += "" if label is None else f", label {brief(names[label], _NAME)}"
        has_members = row.probs.ndim == 2
        classes, probs = (one if has_members else one[None] for one in (row.classes, row.probs))
        for member in range(len(probs)):
            of_whom = f" member {member}" if has_members else ""
            tops = zip(classes[member, :_SHOWN], probs[member, :_SHOWN], strict=True)
            yield _fitted(
                f"{whose}{of_whom}:",
                [f"{brief(names[k], _NAME)} {p:.4f}" for k, p in tops],
                schema.num_classes,
            )


def _fitted(front: str, classes: list[str], num_classes: int) -> str:
    """As many of a row's largest classes as a line of a terminal has room for, and how many it leaves out."""
    line = front
    for shown, one in enumerate(classes):
        left = num_classes - shown - 1
        more = f"  and {left:,} more" if left else ""
        if shown and len(f"{line}  {one}{more}") > _WIDTH:
            return wrapped(f"{line}  and {left + 1:,} more")
        line += f"{'  ' if shown else ' '}{one}"
    return wrapped(f"{line}{more}")
