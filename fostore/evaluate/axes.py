"""What the pictures of `fostore.evaluate.plot` share: colours, axes, legends, histograms."""

from __future__ import annotations

import math
from importlib import import_module
from typing import Any

import numpy as np

from fostore.errors import ArgumentError
from fostore.evaluate.histogram import Histogram

BLUE, ORANGE, TEAL = "#1f4e8c", "#c25400", "#4ba3a0"
"""Dark, middle, light: a tenth of the scale or more of lightness apart, and told apart by colour-blind readers."""
INK, GREY, RULE, SHADE = "#333840", "#6a727d", "#dfe3e8", "#c3cad2"


def axes_for(ax: Any) -> Any:
    """The caller's axes or new ones, without a frame."""
    if ax is None:
        check_matplotlib()
        import matplotlib.pyplot as plt  # an extra, and half a second

        ax = plt.subplots(figsize=(5.6, 3.4), layout="constrained")[1]
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(visible=True, axis="y", color=RULE, linewidth=0.8)
    ax.set_axisbelow(True)
    return ax


def check_matplotlib() -> None:
    """Raise ArgumentError where there is no matplotlib."""
    try:
        import_module("matplotlib.figure")
    except ImportError as error:
        raise ArgumentError(
            "plots need matplotlib: pip install 'fostore[plot]' (or matplotlib)"
        ) from error


def beside(ax: Any, **options: Any) -> Any:
    """The axes with their legend to the right, where it covers no number; a dollar in a name is a dollar."""
    place = {"loc": "upper left", "bbox_to_anchor": (1.01, 1.0), "borderaxespad": 0}
    legend = ax.legend(frameon=False, fontsize="small", **place, **options)
    for text in legend.get_texts():
        text.set_parse_math(False)
    return ax


def note(ax: Any, text: str, at: Any, **options: Any) -> None:
    """A text beside a point of the axes; a dollar in it is a dollar."""
    written = ax.annotate(text, at, textcoords="offset points", **options)
    written.set_parse_math(False)


def in_nats(num_classes: int) -> str:
    """The unit of an entropy, and its largest value."""
    return f"nats; uniform is ln {num_classes:,} = {math.log(num_classes):.3g}"


def last_edge(histogram: Histogram) -> float:
    """Where the last sample's bin ends."""
    filled = np.flatnonzero(histogram.count)
    return max(float(histogram.edges[filled[-1] + 1]) if len(filled) else 0.0, 1e-9)


def bars(ax: Any, histogram: Histogram, color: str, *, crop: bool = True) -> None:
    """A histogram as one filled outline."""
    ax.stairs(histogram.count, histogram.edges, fill=True, color=color, label="samples")
    ax.set_xlim(histogram.least, last_edge(histogram) if crop else histogram.most)
    ax.set_ylim(bottom=0)


def mark_mean(ax: Any, at: float) -> None:
    """A line at the mean, named in the legend."""
    if math.isfinite(at):  # an infinite divergence has no place on an axis
        style = {"color": ORANGE, "linewidth": 1.6, "linestyle": (0, (5, 2))}
        ax.axvline(at, label=f"mean {at:.3g}", **style)
