"""A report of a store: one page that needs no network and no script, from one pass over the rows.

The same store gives the same bytes, whatever folder it lies in. Everything in it that came with the store
(names, ids, metadata) is a stranger's: escaped, cut to a bounded length, and unable to run or load anything.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from fostore import disk
from fostore.errors import ArgumentError
from fostore.evaluate import axes, pictures, plot
from fostore.evaluate.calibration import NUM_BINS
from fostore.evaluate.sections import sections
from fostore.evaluate.sources import rows_of
from fostore.evaluate.summary import Summary, summarize
from fostore.places.names import destination
from fostore.schema.shown import brief, escaped
from fostore.version import __version__

_POINTS = 600
"""Of a scatter, each some 80 bytes of the page."""
_COLORS = {
    axes.BLUE: "--blue",
    axes.ORANGE: "--orange",
    axes.TEAL: "--teal",
    axes.INK: "--ink",
    axes.GREY: "--soft",
    axes.RULE: "--line",
    axes.SHADE: "--shade",
}
_COLOR = re.compile("|".join(_COLORS))
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"


def report(
    store: Any,
    labels: Any = None,
    *,
    output: str | os.PathLike[str] | None = None,
    title: str | None = None,
    level: str = "structure",
    bins: int = NUM_BINS,
    rule: str | None = None,
) -> str:
    """What a store is, how whole, how certain and how right, as one HTML page of less than 300 kB.

    One pass over the rows. Without matplotlib (the extra `plot`) the page has its tables alone, and says so.

    Args:
        store: a store or what else `summarize` takes; of a store, the page also has its integrity,
            what it was made from, and how to open it.
        labels: one class a sample, as `summarize` takes them.
        output: a file that the page is written to, whole, over what is there.
        title: of the page; else the name of the store.
        level: of the check, as `Store.verify` has it; "structure" reads no rows.
        bins: of the calibration errors.
        rule: of top-k rows, see `fostore.evaluate.by_rule`.

    Returns:
        The page.

    Raises:
        ArgumentError: no samples, or labels that do not fit; or as for `summarize`. Nothing is written.

    >>> page = report([[0.5, 0.5], [1.0, 0.0]], title="Two coins")
    >>> page.startswith("<!doctype html>"), "Two coins" in page, "<script" in page
    (True, True, False)
    """
    if output is not None and not destination(output).parent.is_dir():  # before the long pass
        raise ArgumentError(
            f"a report goes to {str(output)!r}, and there is no such folder; make it"
        )
    rows = rows_of(store, rule=rule)
    summary = summarize(rows, labels, bins=bins, rule=rule)
    name = title or Path(summary.where).name
    page = "\n".join(_page(name, summary, sections(summary, rows.stored, level, _drawn(summary))))
    if output is not None:
        disk.write_whole(destination(output), page.encode("utf-8"))
    return page


def _page(name: str, summary: Summary, parts: Iterable[tuple[str, str]]) -> Iterator[str]:
    head, *sections = parts
    short = escaped(brief(name, 120))
    yield "<!doctype html>"
    yield '<html lang="en">'
    yield "<head>"
    yield '<meta charset="utf-8">'
    yield f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
    yield '<meta name="viewport" content="width=device-width, initial-scale=1">'
    yield f'<meta name="generator" content="fostore {__version__}">'
    yield f"<title>{short}</title>"
    # A browser asks for an icon where a page names none.
    yield '<link rel="icon" href="data:,">'
    yield f"<style>\n{Path(__file__).with_name('report.css').read_text(encoding='utf-8')}</style>"
    yield "</head>"
    yield "<body>"
    yield f"<header>\n<h1><bdi>{short}</bdi></h1>\n{head[1]}"
    links = (f'<a href="#{_anchor(title)}">{title}</a>' for title, _ in sections)
    yield f'<nav aria-label="Sections">{" ".join(links)}</nav>\n</header>'
    yield "<main>"
    for title, content in sections:
        yield f'<section aria-labelledby="{_anchor(title)}">'
        yield f'<h2 id="{_anchor(title)}">{title}</h2>\n{content}\n</section>'
    yield "</main>"
    yield f"<footer>Made by <code>fostore report</code> {__version__}, from one pass over the rows.</footer>"
    yield "</body>\n</html>\n"


def _anchor(title: str) -> str:
    return title.lower().replace(" ", "-")


def _drawn(summary: Summary) -> dict[str, str]:
    """The pictures that this summary has, by name, as SVG for the page; none without matplotlib."""
    panels: dict[str, Callable[..., Any]] = {
        "entropy": partial(plot.entropy, summary),
        "confidence": partial(plot.confidence, summary),
    }
    if summary.num_members is not None:
        panels["uncertainty"] = partial(plot.uncertainty, summary, most=_POINTS)
    if summary.metrics is not None:
        panels["reliability"] = partial(plot.reliability, summary)
        panels["sets"] = partial(plot.label_sets, summary)
    if summary.num_classes == 3:
        panels["ternary"] = partial(plot.ternary, summary, most=_POINTS)
    try:
        axes.check_matplotlib()
    except ArgumentError:
        return {}
    return {name: _inlined(name, pictures.svg(panel)) for name, panel in panels.items()}


def _inlined(name: str, svg: str) -> str:
    """A picture as an element of the page: its colours are the page's, its ids its own."""
    svg = svg[svg.index("<svg") :]
    # Its style names every element of the page, and readers get the picture's words from its caption.
    svg = re.sub(r"<style.*?</style>|<metadata>.*?</metadata>|<!--.*?-->", "", svg, flags=re.S)
    svg = _COLOR.sub(lambda match: f"var({_COLORS[match[0]]})", svg)
    referred = set(re.findall(r"#([\w-]+)[\")]", svg))

    def kept(match: re.Match[str]) -> str:
        return f' id="{name}-{match[1]}"' if match[1] in referred else ""

    svg = re.sub(r' id="([\w.-]+)"', kept, svg)
    svg = re.sub(r'(href="|url\()#', rf"\g<1>#{name}-", svg)
    svg = re.sub(r' (?:width|height)="[\d.]+pt"', "", svg, count=2)
    svg = re.sub(r' xmlns(?::\w+)?="[^"]*"| version="1.1"', "", svg)
    width = float(re.search(r'viewBox="0 0 ([\d.]+)', svg)[1])  # type: ignore[index]  # it has one
    # So that texts of wide pictures and of square ones are of one size.
    start = (
        f'<svg role="img" aria-labelledby="{name}-caption" style="max-width:{1.6 * width:.0f}px"'
    )
    svg = svg.replace("xlink:href", "href").replace("<svg", start, 1)
    return re.sub(r"\n\s*", "\n", svg).strip()
