"""`fostore report`: a store as one page, to look at, to send, to keep."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from fostore.cli.report import LabelsFile, Rule, SourcePath, reporting, say

EXAMPLES = """
Examples:

`fostore report digits.zarr`

`fostore report digits.zarr --labels y_test.npy -o report.html`
"""


def report(
    path: SourcePath,
    labels: LabelsFile = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", help="The page, written over.")
    ] = Path("report.html"),
    title: Annotated[
        str | None, typer.Option(help="Of the page; else the store's name.", show_default=False)
    ] = None,
    level: Annotated[
        Literal["structure", "checksums", "full"],
        typer.Option(help="How a store is checked before, as `fostore verify` does."),
    ] = "structure",
    rule: Rule = None,
) -> None:
    """Make one page of a store: what it is, how whole, how certain, how right. No network, no script."""
    with reporting():
        from fostore.evaluate import report  # loads NumPy

        page: Any = report(path, labels, output=output, title=title, level=level, rule=rule)
        say(f"wrote {output}, {len(page.encode()):,} bytes")
