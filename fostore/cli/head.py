"""`fostore head`: the first rows of a store or of any file that `fostore convert` reads."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

import typer

from fostore.cli.report import reporting, show
from fostore.schema.jsontext import dumps
from fostore.schema.shown import brief

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
        for line in _lines(source, number, kind, as_json, source_format):
            show(line)


def _lines(
    source: str, number: int, kind: str | None, as_json: bool, format: str | None
) -> Iterator[str]:
    from fostore.conversion.sources import first_rows  # which loads NumPy

    schema, rows, sides = first_rows(source, number, format=format, kind=kind)
    names = schema.class_names or tuple(str(i) for i in range(schema.num_classes))
    ids, labels = sides.get("id"), sides.get("class_label")
    for i, row in enumerate(rows):
        if as_json:
            line = {"index": i, **({"id": ids[i]} if ids else {})}
            line |= {"label": labels[i]} if labels else {}
            yield dumps({**line, "probs": row.tolist()}).decode()
            continue
        whose = f"{i} ({brief(str(ids[i]), _NAME)})" if ids else f"{i}"
        whose += f", label {brief(names[labels[i]], _NAME)}" if labels else ""
        for member, one in enumerate(row if row.ndim == 2 else row[None]):
            of_whom = f" member {member}" if row.ndim == 2 else ""
            top = (-one).argsort(kind="stable")[:_SHOWN]
            yield _fitted(
                f"{whose}{of_whom}:",
                [f"{brief(names[k], _NAME)} {one[k]:.4f}" for k in top],
                len(one),
            )


def _fitted(front: str, classes: list[str], num_classes: int) -> str:
    """As many of a row's largest classes as a line of a terminal has room for, and how many it leaves out."""
    line = front
    for shown, one in enumerate(classes):
        left = num_classes - shown - 1
        more = f"  and {left:,} more" if left else ""
        if shown and len(f"{line}  {one}{more}") > _WIDTH:
            return f"{line}  and {left + 1:,} more"
        line += f"{'  ' if shown else ' '}{one}"
    return f"{line}{more}"
