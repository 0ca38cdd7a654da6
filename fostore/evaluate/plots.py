"""Pictures of a summary or a comparison: entropy histogram, reliability diagram, ternary plot.

Drawn by matplotlib (the extra `plot`) without a screen, and put on disk whole or not at all.
"""

from __future__ import annotations

import io
import math
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from fostore import disk
from fostore.errors import ArgumentError
from fostore.evaluate.calibration import Reliability
from fostore.evaluate.summary import Comparison, Histogram, Summary
from fostore.places.names import destination, local_path
from fostore.schema.row import Array

SUFFIXES = (".png", ".pdf", ".svg")

# Okabe and Ito's palette, which colour-blind readers can tell apart.
_BLUE, _ORANGE, _GREEN, _GREY = "#0072B2", "#D55E00", "#009E73", "#5F6670"
_STYLE: dict[str, Any] = {
    "font.size": 9.5,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 10,
    "axes.labelcolor": "#333840",
    "axes.edgecolor": "#B8BEC6",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": "#E6E9ED",
    "grid.linewidth": 0.8,
    "xtick.color": "#5F6670",
    "ytick.color": "#5F6670",
    "legend.frameon": False,
    "text.parse_math": False,  # names of files and classes may hold dollar signs
    "svg.hashsalt": "fostore",  # the same picture is the same bytes
}


def plot_summary(summary: Summary, path: str | Path) -> None:
    """Draw a summary: its entropies, with labels a reliability diagram, of three classes a ternary plot.

    Args:
        path: ends in .png, .pdf or .svg; written whole, over what is there.

    Raises:
        ArgumentError: matplotlib is missing, or another suffix; nothing was written.
    """
    panels = [lambda axes: _entropies(axes, summary)]
    if summary.metrics is not None:
        table = summary.metrics.reliability
        panels.append(lambda axes: _reliability(axes, table))
    if summary.num_classes == 3:
        panels.append(lambda axes: _ternary(axes, summary))
    _draw(panels, _title(summary), path)


def plot_comparison(comparison: Comparison, path: str | Path) -> None:
    """Draw a comparison: how far the samples are apart, and how certain either source is.

    Parameters and errors are those of `plot_summary`.
    """
    title = f"{Path(comparison.first).name} and {Path(comparison.second).name}"
    panels = [
        lambda axes: _distances(axes, comparison),
        lambda axes: _two_entropies(axes, comparison),
    ]
    _draw(panels, f"{title}, {comparison.num_samples:,} samples", path)


def _title(summary: Summary) -> str:
    members = f", {summary.num_members} members" if summary.num_members else ""
    name = Path(summary.where).name
    return f"{name}: {summary.num_samples:,} samples, {summary.num_classes:,} classes{members}"


def check_plot(path: str | Path) -> None:
    """Raise ArgumentError where a plot cannot be drawn to `path`: before a long pass, not after it."""
    if local_path(path).suffix.lower() not in SUFFIXES:
        raise ArgumentError(
            f"a plot goes to a file that ends in one of {list(SUFFIXES)}, {str(path)!r} came"
        )
    if not destination(path).parent.is_dir():
        raise ArgumentError(f"a plot goes to {str(path)!r}, and there is no such folder; make it")
    try:
        import_module("matplotlib.figure")
    except ImportError as error:
        raise ArgumentError(
            "plots need matplotlib: pip install 'fostore[plot]' (or matplotlib)"
        ) from error


def _draw(panels: list[Any], title: str, path: str | Path) -> None:
    check_plot(path)
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    path = destination(path)
    kind = path.suffix.lower()[1:]
    defaults: dict[Any, Any] = dict(mpl.rcParamsDefault)
    defaults.pop("backend")  # setting one would load a screen
    defaults.update(_STYLE)
    with mpl.rc_context(defaults):
        figure = Figure(figsize=(4.9 * len(panels), 4.3), layout="constrained")
        FigureCanvasAgg(figure)
        figure.suptitle(title, x=0.01, ha="left", fontsize=12.5, fontweight="bold")
        for axes, panel in zip(
            np.atleast_1d(figure.subplots(1, len(panels))).tolist(), panels, strict=True
        ):
            panel(axes)
        drawn = io.BytesIO()
        dated = {"pdf": {"CreationDate": None}, "svg": {"Date": None}}.get(kind)
        figure.savefig(drawn, format=kind, dpi=160, metadata=dated)
    disk.write_whole(path, drawn.getvalue())


# ------------------------------------------------------------------ panels


def _entropies(axes: Any, summary: Summary) -> None:
    _bars(axes, summary.histogram, _BLUE)
    _mark(axes, summary.entropy.mean, f"mean {summary.entropy.mean:.3g}")
    _limit(axes, summary.num_classes)
    what = "total uncertainty" if summary.num_members else "entropy of each sample"
    axes.set(title="Uncertainty", xlabel=f"{what} (nats)", ylabel="samples")


def _bars(axes: Any, histogram: Histogram, color: str, **options: Any) -> None:
    axes.stairs(histogram.count, histogram.edges, fill=True, color=color, **options)
    axes.set_xlim(histogram.least, max(histogram.most, 1e-9))
    axes.set_ylim(bottom=0)


def _mark(axes: Any, at: float, text: str, color: str = _ORANGE) -> None:
    if not math.isfinite(at):
        return
    axes.axvline(at, color=color, linewidth=1.6)
    left, right = axes.get_xlim()
    beyond = at > left + 0.7 * (right - left)
    axes.annotate(
        text,
        (at, 0.97),
        xycoords=("data", "axes fraction"),
        xytext=(-5 if beyond else 5, 0),
        textcoords="offset points",
        ha="right" if beyond else "left",
        va="top",
        color=color,
    )


def _limit(axes: Any, num_classes: int) -> None:
    """Names the right end of an axis of entropies."""
    axes.annotate(
        f"ln {num_classes}: uniform",
        (1.0, 1.01),
        xycoords="axes fraction",
        ha="right",
        va="bottom",
        fontsize=8,
        color=_GREY,
    )


def _reliability(axes: Any, table: Reliability) -> None:
    width = table.upper - table.lower
    middle = table.lower + width / 2
    full = table.count > 0
    axes.plot([0, 1], [0, 1], color=_GREY, linewidth=1, linestyle=(0, (4, 3)), zorder=3)
    axes.bar(
        middle[full],
        table.accuracy[full],
        width[full] * 0.92,
        color=_BLUE,
        alpha=0.85,
        label="accuracy",
    )
    gap = table.confidence[full] - table.accuracy[full]
    axes.bar(
        middle[full],
        gap,
        width[full] * 0.92,
        bottom=table.accuracy[full],
        facecolor="none",
        edgecolor=_ORANGE,
        linewidth=1,
        hatch="////",
        label="gap to confidence",
    )
    share = table.count / table.count.sum()
    axes.stairs(
        -0.12 * share / max(float(share.max()), 1e-12),
        np.append(table.lower, table.upper[-1]),
        fill=True,
        color="#C9CFD6",
        label="share of samples",
    )
    axes.set(
        xlim=(0, 1),
        ylim=(-0.14, 1),
        xticks=np.linspace(0, 1, 6),
        yticks=np.linspace(0, 1, 6),
        title="Reliability",
        xlabel="confidence",
        ylabel="accuracy",
    )
    axes.set_aspect("equal")
    axes.legend(loc="upper left", fontsize=8.5, title=f"ECE {table.ece:.3f}", alignment="left")


def _ternary(axes: Any, summary: Summary) -> None:
    height = math.sqrt(3) / 2
    corners = np.array([[0.0, 0.0], [1.0, 0.0], [0.5, height]])
    axes.set(title="Distributions", xlim=(-0.14, 1.14), ylim=(-0.14, height + 0.1))
    axes.set_aspect("equal")
    axes.axis("off")
    for share in (0.2, 0.4, 0.6, 0.8):
        for k in range(3):
            ends = np.zeros((2, 3))
            ends[:, k] = share
            ends[0, (k + 1) % 3] = ends[1, (k + 2) % 3] = 1 - share
            axes.plot(*(ends @ corners).T, color="#E6E9ED", linewidth=0.8, zorder=1)
    axes.plot(*corners[[0, 1, 2, 0]].T, color="#8A929C", linewidth=1.2, zorder=2)
    names = summary.class_names or ("class 0", "class 1", "class 2")
    places = [(-6, -7, "center", "top"), (6, -7, "center", "top"), (0, 6, "center", "bottom")]
    for name, corner, (x, y, ha, va) in zip(names, corners, places, strict=True):
        axes.annotate(
            name, corner, xytext=(x, y), textcoords="offset points", ha=ha, va=va, color="#333840"
        )
    groups = summary.points.argmax(axis=1) if summary.point_labels is None else summary.point_labels
    colors = np.array([_BLUE, _ORANGE, _GREEN])[groups]
    size = float(np.clip(6000 / max(len(summary.points), 1), 4, 26))
    axes.scatter(
        *_on_plane(summary.points, corners).T,
        s=size,
        c=colors,
        alpha=0.45,
        linewidths=0,
        zorder=3,
        rasterized=True,
    )
    what = "predicted class" if summary.point_labels is None else "label"
    shown = "" if len(summary.points) == summary.num_samples else f", {len(summary.points):,} shown"
    axes.text(0.5, -0.14, f"coloured by {what}{shown}", ha="center", fontsize=8, color=_GREY)


def _on_plane(points: Array, corners: Array) -> Array:
    found: Array = points @ corners
    return found


def _distances(axes: Any, comparison: Comparison) -> None:
    _bars(axes, comparison.histogram, _BLUE)
    _mark(axes, comparison.tv.mean, f"mean {comparison.tv.mean:.3g}")
    axes.set(
        title=f"Distance, {comparison.agreement:.1%} with the same top class",
        xlabel="total variation of each sample",
        ylabel="samples",
    )


def _two_entropies(axes: Any, comparison: Comparison) -> None:
    names = (Path(comparison.first).name, Path(comparison.second).name)
    for side, name, histogram, moments, color in zip(
        "AB",
        names,
        comparison.entropy_histograms,
        comparison.entropies,
        (_BLUE, _ORANGE),
        strict=True,
    ):  # a label that begins with an underscore, as a name may, is left out of a legend
        label = f"{side}: {name}, mean {moments.mean:.3g}"
        _bars(axes, histogram, color, alpha=0.55, label=label)
    _limit(axes, comparison.num_classes)
    axes.set(title="Uncertainty", xlabel="entropy of each sample (nats)", ylabel="samples")
    axes.set_ylim(top=1.2 * max(int(h.count.max()) for h in comparison.entropy_histograms))
    axes.legend(loc="upper right", fontsize=8.5)
