"""`fostore stats`: how uncertain the distributions of a store are, and with labels how right."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from fostore.cli.report import reporting, say, show

EXAMPLES = """
Examples:

`fostore stats digits.zarr`

`fostore stats digits.zarr --labels y_test.npy --plot digits.png`

`fostore stats softmax.npy --labels labels.txt --json | jq .labels.ece`
"""

_CLASSES = 10
"""Classes that the table shows."""

Plot = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Also draw it: .png, .pdf or .svg. Needs matplotlib: pip install 'fostore\\[plot]'.",
        show_default=False,
    ),
]


def stats(
    path: Annotated[
        str,
        typer.Argument(
            metavar="PATH", help="A store, or what `fostore convert` reads.", show_default=False
        ),
    ],
    labels: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="The true classes: .npy, or text with one class number or name a line.",
            show_default=False,
        ),
    ] = None,
    bins: Annotated[
        int, typer.Option(min=1, help="Bins of the calibration errors, of equal width.")
    ] = 15,
    as_json: Annotated[bool, typer.Option("--json", help="Everything, as JSON.")] = False,
    plot: Plot = None,
) -> None:
    """Say how uncertain the distributions of a store are, and with --labels how right; one pass."""
    with reporting():
        from fostore.evaluate.plots import check_plot, plot_summary
        from fostore.evaluate.summary import summarize
        from fostore.schema import jsontext

        if plot is not None:
            check_plot(plot)
        summary = summarize(path, labels, bins=bins)
        if as_json:
            show(jsontext.dumps(summary.to_json(), indent=2).decode())
        else:
            show("\n".join(_lines(summary)))
        if plot is not None:
            plot_summary(summary, plot)
            say(f"drew {plot}")


def _lines(summary: Any) -> Iterator[str]:
    members = "" if summary.num_members is None else f", {summary.num_members} members"
    yield summary.where
    yield f"  {summary.num_samples:,} samples, {summary.num_classes:,} classes{members}"
    yield ""
    uncertainty = "total" if summary.num_members else "entropy"
    most = f"nats, at most ln {summary.num_classes} = {summary.histogram.most:.4g}"
    yield from table(
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


def table(rows: list[tuple[str, Any, str]]) -> Iterator[str]:
    """Moments as a table of mean, standard deviation, least and most."""
    yield f"  {'':<12}{'mean':>10}{'std':>10}{'least':>10}{'most':>10}"
    for name, found, unit in rows:
        if found is None:
            continue
        numbers = (found.mean, found.std, found.least, found.most)
        cells = "".join(f"{number:>10.4g}" for number in numbers)
        infinite = f" (infinite for {found.num_infinite:,})" if found.num_infinite else ""
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
    found = metrics.reliability
    for b in range(bins):
        if found.count[b]:
            edges = f"{found.lower[b]:.3f} to {found.upper[b]:.3f}"
            gap = found.accuracy[b] - found.confidence[b]
            yield (
                f"  {edges:<16}{found.count[b]:>9,}{found.confidence[b]:>12.3f}"
                f"{found.accuracy[b]:>10.3f}{gap:>+8.3f}"
            )
