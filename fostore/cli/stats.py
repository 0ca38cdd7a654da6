"""`fostore stats` and `fostore compare`: how uncertain, how right, and how far apart distributions are."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from fostore.cli.report import AsJson, LabelsFile, Rule, SourcePath, reporting, say, show_facts

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
    members = "" if summary.num_members is None else f", {summary.num_members} members"
    yield summary.where
    yield f"  {summary.num_samples:,} samples, {summary.num_classes:,} classes{members}"
    yield ""
    uncertainty = "total" if summary.num_members else "entropy"
    most = f"nats, at most ln {summary.num_classes} = {math.log(summary.num_classes):.4g}"
    yield from _table(
        [
            (uncertainty, summary.entropy, most),
            ("aleatoric", summary.aleatoric, "nats, the members' own"),
            ("epistemic", summary.epistemic, "nats, what members disagree about"),
            ("confidence", summary.confidence, "the largest probability"),
        ]
    )
    yield ""
    yield from _classes(summary)
    if summary.metrics is not None:
        yield ""
        yield from _metrics(summary.metrics)


def _table(rows: list[tuple[str, Any, str]]) -> Iterator[str]:
    """Moments as a table of mean, standard deviation, least and most."""
    yield f"  {'':<12}{'mean':>10}{'std':>10}{'least':>10}{'most':>10}"
    for name, moments, unit in rows:
        if moments is None:
            continue
        numbers = (moments.mean, moments.std, moments.least, moments.most)
        cells = "".join(f"{number:>10.4g}" for number in numbers)
        infinite = f" (infinite for {moments.num_infinite:,})" if moments.num_infinite else ""
        yield f"  {name:<12}{cells}   {unit}{infinite}"


def _classes(summary: Any) -> Iterator[str]:
    names = summary.class_names or tuple(map(str, range(summary.num_classes)))
    order = (-summary.predicted).argsort(kind="stable")
    if summary.num_classes <= _CLASSES:
        order = range(summary.num_classes)
    width = min(max(len(names[k]) for k in order[:_CLASSES]), 24) + 2
    yield f"  {'class':<{width}}{'predicted':>10}{'share':>8}{'mean prob':>11}"
    for k in order[:_CLASSES]:
        count = int(summary.predicted[k])
        share = f"{count / summary.num_samples:.1%}"
        name = names[k] if len(names[k]) <= 24 else names[k][:23] + "…"
        yield f"  {name:<{width}}{count:>10,}{share:>8}{summary.mean_probs[k]:>11.4g}"
    if summary.num_classes > _CLASSES:
        yield f"  and {summary.num_classes - _CLASSES:,} more, see --json"


def _metrics(metrics: Any) -> Iterator[str]:
    impossible = metrics.num_impossible
    yield f"  {'accuracy':<15}{metrics.accuracy:.4f}"
    infinite = f"   {impossible:,} labels have the probability 0" if impossible else "   nats"
    yield f"  {'NLL':<15}{metrics.nll:.4g}{infinite}"
    yield f"  {'Brier':<15}{metrics.brier:.4g}   0 to 2"
    bins = len(metrics.reliability.count)
    yield f"  {'ECE':<15}{metrics.ece:.4g}   {bins} bins"
    yield f"  {'classwise ECE':<15}{metrics.classwise_ece:.4g}"
    yield ""
    yield f"  {'confidence':<16}{'samples':>9}{'confidence':>12}{'accuracy':>10}{'gap':>8}"
    table = metrics.reliability
    columns = (table.lower, table.upper, table.count, table.confidence, table.accuracy)
    for lower, upper, count, confidence, accuracy in zip(*columns, strict=True):
        if count:
            edges = f"{lower:.3f} to {upper:.3f}"
            gap = accuracy - confidence
            yield f"  {edges:<16}{count:>9,}{confidence:>12.3f}{accuracy:>10.3f}{gap:>+8.3f}"


def _lines_of_two(comparison: Any) -> Iterator[str]:
    yield f"A  {comparison.first}"
    yield f"B  {comparison.second}"
    yield f"  {comparison.num_samples:,} samples, {comparison.num_classes:,} classes"
    differ = round((1 - comparison.agreement) * comparison.num_samples)
    others = f" ({differ:,} differ)" if differ else ""
    yield f"  the same top class for {comparison.agreement:.2%}{others}"
    yield ""
    yield from _table(
        [
            ("KL(A || B)", comparison.kl, "nats"),
            ("KL(B || A)", comparison.kl_reverse, "nats"),
            ("JS", comparison.js, "nats, at most ln 2 = 0.6931"),
            ("TV", comparison.tv, "0 to 1"),
            ("entropy A", comparison.entropies[0], "nats"),
            ("entropy B", comparison.entropies[1], "nats"),
        ]
    )
    if comparison.furthest and comparison.furthest[0][1] > 0:
        shown = ", ".join(f"{index} ({far:.4g})" for index, far in comparison.furthest if far > 0)
        yield ""
        yield f"  furthest apart, by TV: samples {shown}"
