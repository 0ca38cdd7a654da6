"""What `fostore.evaluate.plot` draws, put into a file or a page: the same numbers are the same bytes.

Drawn without a screen, and put on disk whole or not at all; no setting of the caller's is touched.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from fostore import disk
from fostore.errors import ArgumentError
from fostore.evaluate import axes, plot
from fostore.evaluate.summary import Comparison, Summary
from fostore.places.names import destination, local_path

_SUFFIXES = (".png", ".pdf", ".svg")

_STYLE: dict[str, Any] = {
    "font.size": 9.5,
    "text.color": axes.INK,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 10,
    "axes.labelcolor": axes.INK,
    "axes.edgecolor": axes.SHADE,
    "xtick.color": axes.GREY,
    "ytick.color": axes.GREY,
    "text.parse_math": False,  # names of files and classes may hold dollar signs
    "axes.formatter.use_mathtext": False,
    "svg.hashsalt": "fostore",
}

_Panel = tuple[str, Callable[..., Any]]


def plot_summary(summary: Summary, path: str | Path) -> None:
    """Draw a summary: its entropies, with labels a reliability diagram, of three classes a ternary plot.

    Args:
        path: ends in .png, .pdf or .svg; written whole, over what is there.

    Raises:
        ArgumentError: matplotlib is missing, or another suffix; nothing was written.
    """
    panels: list[_Panel] = [("Uncertainty", partial(plot.entropy, summary))]
    if summary.num_members is not None:
        panels.append(("Disagreement", partial(plot.uncertainty, summary)))
    if summary.metrics is not None:
        panels.append(("Reliability", partial(plot.reliability, summary)))
    if summary.num_classes == 3:
        of = "predicted class" if summary.point_labels is None else "label"
        panels.append((f"Distributions, coloured by {of}", partial(plot.ternary, summary)))
    members = f", {summary.num_members} members" if summary.num_members else ""
    size = f"{summary.num_samples:,} samples, {summary.num_classes:,} classes{members}"
    _draw(panels, f"{Path(summary.where).name}: {size}", path)


def plot_comparison(comparison: Comparison, path: str | Path) -> None:
    """Draw a comparison: how far the samples are apart, and how certain either source is.

    Parameters and errors are those of `plot_summary`.
    """
    title = f"{Path(comparison.first).name} and {Path(comparison.second).name}"
    panels: list[_Panel] = [
        ("Distance", partial(plot.comparison, comparison)),
        ("Uncertainty", partial(plot.entropies, comparison)),
    ]
    _draw(panels, f"{title}, {comparison.num_samples:,} samples", path)


def check_plot(path: str | Path) -> None:
    """Raise ArgumentError where a plot cannot be drawn to `path`: before a long pass, not after it."""
    if local_path(path).suffix.lower() not in _SUFFIXES:
        raise ArgumentError(
            f"a plot goes to a file that ends in one of {list(_SUFFIXES)}, {str(path)!r} came"
        )
    if not destination(path).parent.is_dir():
        raise ArgumentError(f"a plot goes to {str(path)!r}, and there is no such folder; make it")
    axes.check_matplotlib()


def svg(panel: Callable[..., Any], size: tuple[float, float] = (5.0, 2.9)) -> str:
    """One picture as SVG whose texts are texts, for a page.

    Args:
        panel: draws on `ax`, as the functions of `fostore.evaluate.plot` do.
        size: inches, width and height.
    """
    # As texts, they are small, found by a search, and take the page's colour and font.
    with _figure(size, {"svg.fonttype": "none", "font.family": "sans-serif"}) as figure:
        panel(ax=figure.subplots())
        return _bytes(figure, "svg", transparent=True, bbox_inches="tight", pad_inches=0.02).decode(
            "utf-8"
        )


def _draw(panels: Sequence[_Panel], title: str, path: str | Path) -> None:
    check_plot(path)
    path = destination(path)
    columns = 2 if len(panels) == 4 else len(panels)
    rows = len(panels) // columns
    with _figure((5.6 * columns, 3.7 * rows + 0.3), {}) as figure:
        figure.suptitle(title, x=0.01, ha="left", fontsize=12.5, fontweight="bold")
        grid = figure.subplots(rows, columns, squeeze=False).ravel().tolist()
        for ax, (name, panel) in zip(grid, panels, strict=True):
            panel(ax=ax).set_title(name)
        drawn = _bytes(figure, path.suffix.lower()[1:])
    disk.write_whole(path, drawn)


@contextmanager
def _figure(size: tuple[float, float], style: dict[str, Any]) -> Iterator[Any]:
    """A figure without a screen, whatever the caller has set."""
    axes.check_matplotlib()
    import matplotlib as mpl  # an extra, and half a second
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    defaults: dict[Any, Any] = dict(mpl.rcParamsDefault)
    defaults.pop("backend")  # setting one would load a screen
    defaults.update(_STYLE | style)
    with mpl.rc_context(defaults):
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasAgg(figure)
        yield figure


def _bytes(figure: Any, kind: str, **options: Any) -> bytes:
    drawn = io.BytesIO()
    # The same numbers are the same bytes: matplotlib would write the time into both.
    dated = {
        "pdf": {"CreationDate": None},
        "svg": {"Date": None, "Creator": None, "Format": None, "Type": None},
    }.get(kind)
    figure.savefig(drawn, format=kind, dpi=160, metadata=dated, **options)
    return drawn.getvalue()
