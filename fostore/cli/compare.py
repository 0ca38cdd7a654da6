"""`fostore compare`: how far two stores of the same samples are apart."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

import typer

from fostore.cli.report import reporting, say, show
from fostore.cli.stats import Plot, table

EXAMPLES = """
Examples:

`fostore compare teacher.zarr student.zarr`

`fostore compare float32.zarr float16.zarr --json | jq .kl.most`

`fostore compare teacher.zarr student.zarr --plot distance.png`
"""


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
    as_json: Annotated[bool, typer.Option("--json", help="Everything, as JSON.")] = False,
    plot: Plot = None,
) -> None:
    """Say how far two stores of the same samples are apart: divergences and agreement; one pass."""
    with reporting():
        from fostore.evaluate import summary
        from fostore.evaluate.plots import check_plot, plot_comparison
        from fostore.schema import jsontext

        if plot is not None:
            check_plot(plot)
        found = summary.compare(first, second, check=check)
        if as_json:
            show(jsontext.dumps(found.to_json(), indent=2).decode())
        else:
            show("\n".join(_lines(found)))
        if plot is not None:
            plot_comparison(found, plot)
            say(f"drew {plot}")


def _lines(found: Any) -> Iterator[str]:
    yield f"A  {found.first}"
    yield f"B  {found.second}"
    yield f"  {found.num_samples:,} samples, {found.num_classes:,} classes"
    differ = round((1 - found.agreement) * found.num_samples)
    others = f" ({differ:,} differ)" if differ else ""
    yield f"  the same top class for {found.agreement:.2%}{others}"
    yield ""
    yield from table(
        [
            ("KL(A || B)", found.kl, "nats"),
            ("KL(B || A)", found.kl_reverse, "nats"),
            ("JS", found.js, "nats, at most ln 2 = 0.6931"),
            ("TV", found.tv, "0 to 1"),
            ("entropy A", found.entropies[0], "nats"),
            ("entropy B", found.entropies[1], "nats"),
        ]
    )
    if found.furthest and found.furthest[0][1] > 0:
        shown = ", ".join(f"{index} ({far:.4g})" for index, far in found.furthest if far > 0)
        yield ""
        yield f"  furthest apart, by TV: samples {shown}"
