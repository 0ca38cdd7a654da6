"""`fostore stats` and `fostore compare`: how uncertain, how right, and how far apart distributions are."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from fostore.cli.report import AsJson, LabelsFile, Rule, SourcePath, reporting, say, show_facts
from fostore.schema.shown import Grid, brief

EXAMPLES = """
Examples:

`fostore stats digits.zarr`

`fostore stats digits.zarr --labels y_test.npy --plot digits.png`

`fostore stats softmax.npy --labels labels.txt --json | jq .labels.ece`
"""

COMPARE_EXAMPLES = """
Examples:

`fostore compare teacher.zarr student.zarr`

`fostore compare float32.zarr float16.zarr --json | jq .kl.most`

`fostore compare teacher.zarr student.zarr --plot distance.png`
"""

_CLASSES = 10
"""Classes that the table shows."""

_Plot = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Also draw it: .png, .pdf or .svg. Needs matplotlib: pip install 'fostore\\[plot]'.",
        show_default=False,
    ),
]


def stats(
    path: SourcePath,
    labels: LabelsFile = None,
    bins: Annotated[
        int, typer.Option(min=1, help="Bins of the calibration errors, of equal width.")
    ] = 15,
    as_json: AsJson = False,
    plot: _Plot = None,
    rule: Rule = None,
) -> None:
    """Say how uncertain the distributions of a store are, and with --labels how right; one pass."""
    with reporting():
        _show("summarize", (path, labels), {"bins": bins, "rule": rule}, _lines, as_json, plot)


def compare(
    first: Annotated[
        str,
        typer.Argument(
            metavar="A", help="A store, or what `fostore convert` reads.", show_default=False
        ),
    ],
    second: Annotated[
        str, typer.Argument(metavar="B", help="Another, of the same samples.", show_default=False)
    ],
    check: Annotated[
        Literal["auto", "length"],
        typer.Option(
            help="auto refuses stores whose class names, ids, labels or inputs differ; length looks "
            "at indices and classes alone."
        ),
    ] = "auto",
    as_json: AsJson = False,
    plot: _Plot = None,
    rule: Rule = None,
) -> None:
    """Say how far two stores of the same samples are apart: divergences and agreement; one pass."""
    with reporting():
        _show(
            "compare", (first, second), {"check": check, "rule": rule}, _lines_of_two, as_json, plot
        )


def _show(
    function: str,
    sources: tuple[Any, Any],
    options: dict[str, Any],
    lines: Callable[[Any], Iterator[str]],
    as_json: bool,
    plot: Path | None,
) -> None:
    """Print, and draw, what a function of `fostore.evaluate.summary` says."""
    from fostore.evaluate import pictures, summary  # load NumPy

    if plot is not None:
        pictures.check_plot(plot)  # before the long pass
    figures = getattr(summary, function)(*sources, **options)
    show_facts(figures.to_json(), lines(figures), as_json)
    if plot is not None:
        draw = pictures.plot_summary if function == "summarize" else pictures.plot_comparison
        draw(figures, plot)
        say(f"drew {plot}")


def _lines(summary: Any) -> Iterator[str]:
    yield summary.grid().text()
    most = f"An entropy is at most ln {summary.num_classes:,} = {math.log(summary.num_classes):.4g} nats"
    parts = "; aleatoric is the members' own, epistemic what they disagree about"
    yield from textwrap.wrap(f"{most}{parts if summary.num_members else ''}.", 80)
    yield ""
    order = (-summary.predicted).argsort(kind="stable").tolist()
    order = order[:_CLASSES] if summary.num_classes > _CLASSES else sorted(order)
    names = summary.class_names or tuple(map(str, range(summary.num_classes)))
    rows = [
        (
            brief(names[k], 24),
            int(summary.predicted[k]),
            f"{summary.predicted[k] / summary.num_samples:.1%}",
            float(summary.mean_probs[k]),
        )
        for k in order
    ]
    heads = ("class", "predicted", "share", "mean prob")
    yield Grid("Classes, by their most probable samples", rows, heads).text()
    if summary.num_classes > _CLASSES:
        yield f"  and {summary.num_classes - _CLASSES:,} more, see --json"
    if summary.metrics is not None:
        yield ""
        yield summary.metrics.reliability.grid().text()


def _lines_of_two(comparison: Any) -> Iterator[str]:
    yield comparison.grid().text()
    differ = round((1 - comparison.agreement) * comparison.num_samples)
    of = f"{comparison.num_samples:,} samples over {comparison.num_classes:,} classes"
    yield f"Of {of} {differ:,} have another top class."
    for name, kl in {"A || B": comparison.kl, "B || A": comparison.kl_reverse}.items():
        if kl.num_infinite:
            yield f"KL({name}) is infinite for {kl.num_infinite:,} of them."
    if comparison.furthest and comparison.furthest[0][1] > 0:
        shown = ", ".join(f"{index} ({far:.4g})" for index, far in comparison.furthest if far > 0)
        yield from textwrap.wrap(f"Furthest apart, by TV: samples {shown}", 80)
