"""Pictures for a paper or a notebook, one function a picture: onto your axes, or onto new ones, which are returned.

Every function takes what was computed already, or what it can be computed from in one pass. Titles are
yours. Colours differ in lightness and not in hue alone, markers and lines differ as well, so that a
picture survives a grey printer. Legends stand beside the axes. Needs matplotlib: the extra `plot`.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from fostore.errors import ArgumentError
from fostore.evaluate.axes import (
    BLUE,
    GREY,
    INK,
    ORANGE,
    RULE,
    SHADE,
    TEAL,
    axes_for,
    bars,
    beside,
    in_nats,
    last_edge,
    mark_mean,
    note,
)
from fostore.evaluate.calibration import Reliability
from fostore.evaluate.calibration import reliability as reliability_of
from fostore.evaluate.conformal import rank_of
from fostore.evaluate.covered import Coverage
from fostore.evaluate.covered import coverage as coverage_of
from fostore.evaluate.metrics import Metrics
from fostore.evaluate.summary import Comparison, Summary, summarize
from fostore.evaluate.summary import compare as compare_stores
from fostore.schema.row import Array
from fostore.schema.shown import brief

_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_MARKERS = ("o", "^", "s")


def entropy(summary: Any, *, ax: Any = None) -> Any:
    """How uncertain the samples are: a histogram of their entropies, in bins by rule, with the mean.

    Args:
        summary: a `Summary`, or what `summarize` takes.
        ax: axes to draw on; new ones where it is None.

    Returns:
        The axes.

    Raises:
        ArgumentError: matplotlib is missing; or as for `summarize`.
    """
    shown, ax = _summary(summary), axes_for(ax)
    bars(ax, shown.histogram, BLUE)
    mark_mean(ax, shown.entropy.mean)
    what = "total uncertainty" if shown.num_members else "entropy"
    ax.set(xlabel=f"{what} ({in_nats(shown.num_classes)})", ylabel="samples")
    return beside(ax)


def confidence(summary: Any, *, ax: Any = None) -> Any:
    """How sure the samples are: a histogram of their largest probabilities, with the mean.

    Parameters, result and errors are those of `entropy`.
    """
    shown, ax = _summary(summary), axes_for(ax)
    bars(ax, shown.confidences, BLUE, crop=False)
    mark_mean(ax, shown.confidence.mean)
    ax.set(xlabel="confidence (the largest probability)", ylabel="samples")
    return beside(ax)


def reliability(table: Any, labels: Any = None, *, ax: Any = None) -> Any:
    """Whether of the samples that are p sure a share of p is right: accuracy a bin, and its gap to confidence.

    Below the axis: the share of samples of each bin.

    Args:
        table: a `Reliability`, `Metrics` or `Summary` with labels; or distributions, with `labels`.
        labels: of the samples, as `evaluate.reliability` takes them.
        ax: axes to draw on; new ones where it is None.

    Returns:
        The axes.

    Raises:
        ArgumentError: matplotlib is missing, or no labels; or as for `evaluate.reliability`.

    Source: DeGroot and Fienberg, "The Comparison and Evaluation of Forecasters" (1983); Guo et al. (2017).
    """
    if isinstance(table, Summary):
        if table.metrics is None:
            raise ArgumentError(
                "a summary without labels has no reliability; summarize(store, labels)"
            )
        table = table.metrics
    shown = table.reliability if isinstance(table, Metrics) else table
    if not isinstance(shown, Reliability):
        shown = reliability_of(shown, labels)
    ax = axes_for(ax)
    full = shown.count > 0
    width = (shown.upper - shown.lower)[full]
    middle, accuracy = shown.lower[full] + width / 2, shown.accuracy[full]
    ax.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle=(0, (4, 3)), zorder=3)
    ax.bar(middle, accuracy, width * 0.92, color=BLUE, label="accuracy")
    gap = shown.confidence[full] - accuracy
    outline = {"facecolor": "none", "edgecolor": ORANGE, "linewidth": 1.2, "hatch": "////"}
    label = f"gap to confidence\nECE {shown.ece:.3g}"
    ax.bar(middle, gap, width * 0.92, bottom=accuracy, label=label, **outline)
    share = shown.count / shown.count.sum()
    edges = np.append(shown.lower, shown.upper[-1])
    below = -0.13 * share / float(share.max())
    ax.stairs(below, edges, fill=True, color=SHADE, label="share of samples")
    ticks = np.linspace(0, 1, 6)
    ax.set(xlim=(0, 1), ylim=(-0.14, 1), xticks=ticks, yticks=ticks)
    ax.set(xlabel="confidence", ylabel="accuracy", aspect="equal")
    return beside(ax)


def ternary(summary: Any, labels: Any = None, *, ax: Any = None, most: int = 4000) -> Any:
    """Distributions over three classes, each a point of a triangle: nearer to a corner is more of its class.

    Coloured by label where there are labels, else by the most probable class.

    Args:
        summary: a `Summary` of three classes, or what `summarize` takes.
        labels: as `summarize` takes them.
        ax: axes to draw on; new ones where it is None.
        most: points that are drawn, spread evenly over the rows.

    Returns:
        The axes.

    Raises:
        ArgumentError: matplotlib is missing, or there are more or fewer classes; or as for `summarize`.
    """
    shown = _summary(summary, labels)
    if shown.num_classes != 3:
        raise ArgumentError(
            f"a ternary plot is of 3 classes, {shown.where} has {shown.num_classes}"
        )
    ax = axes_for(ax)
    height = math.sqrt(3) / 2
    corners = np.array([[0.0, 0.0], [1.0, 0.0], [0.5, height]])
    ax.set(xlim=(-0.12, 1.12), ylim=(-0.12, height + 0.12), aspect="equal")
    ax.axis("off")
    for share in (0.2, 0.4, 0.6, 0.8):
        for k in range(3):
            ends = np.zeros((2, 3))
            ends[:, k] = share
            ends[0, (k + 1) % 3] = ends[1, (k + 2) % 3] = 1 - share
            ax.plot(*(ends @ corners).T, color=RULE, linewidth=0.8, zorder=1)
    ax.plot(*corners[[0, 1, 2, 0]].T, color=GREY, linewidth=1.2, zorder=2)
    names = [brief(name, 24) for name in shown.class_names or map("class {}".format, range(3))]
    offsets = [(0, -7, "left", "top"), (0, -7, "right", "top"), (0, 6, "center", "bottom")]
    for name, (x, y), (dx, dy, ha, va) in zip(names, corners.tolist(), offsets, strict=True):
        corner = (-0.1 if ha == "left" else 1.1 if ha == "right" else x, y)
        note(ax, name, corner, xytext=(dx, dy), ha=ha, va=va, color=INK)
    every = max(-(-len(shown.points) // most), 1)
    points = shown.points[::every]
    given = shown.point_labels
    groups = points.argmax(axis=1) if given is None else given[::every]
    size = float(np.clip(6000 / max(len(points), 1), 5, 24))
    for k, (color, marker) in enumerate(zip((BLUE, ORANGE, TEAL), _MARKERS, strict=True)):
        ax.scatter(
            *(points[groups == k] @ corners).T,
            s=size,
            color=color,
            marker=marker,
            alpha=0.6,
            linewidths=0,
            zorder=3,
            label=f"{'predicted' if given is None else 'label'} {names[k]}",
            rasterized=len(points) > 1000,  # thousands of points as vectors take seconds to show
        )
    is_whole = len(points) == shown.num_samples
    title = None if is_whole else f"{len(points):,} of {shown.num_samples:,}"
    return beside(ax, title=title, markerscale=math.sqrt(36 / size))


def uncertainty(summary: Any, *, ax: Any = None, most: int = 4000) -> Any:
    """What an ensemble is uncertain about: each sample by its aleatoric and its epistemic part.

    Lines join samples of equal total uncertainty.

    Args:
        summary: a `Summary` of an ensemble, an `Uncertainty`, or what `summarize` takes.
        ax: axes to draw on; new ones where it is None.
        most: points that are drawn, spread evenly over the rows.

    Returns:
        The axes.

    Raises:
        ArgumentError: matplotlib is missing, or rows have no members; or as for `summarize`.
    """
    if hasattr(summary, "aleatoric") and not isinstance(summary, Summary):
        pairs = np.stack([summary.aleatoric, summary.epistemic], axis=1)
    else:
        shown = _summary(summary)
        if shown.num_members is None:
            raise ArgumentError(f"{shown.where} has one distribution a row, and members disagree")
        pairs = shown.parted
    ax = axes_for(ax)
    points = pairs[:: max(-(-len(pairs) // most), 1)]
    end = max(float(points.sum(axis=1).max(initial=0.0)) * 1.05, 1e-9)
    for total in np.linspace(0, end, 6)[1:]:
        ax.plot([0, total], [total, 0], color=RULE, linewidth=0.8, zorder=1)
    size = float(np.clip(6000 / max(len(points), 1), 5, 24))
    style = {"color": BLUE, "alpha": 0.5, "linewidths": 0, "rasterized": len(points) > 1000}
    ax.scatter(*points.T, s=size, label="sample", zorder=3, **style)
    if len(points):
        mean = points.mean(axis=0)
        ax.scatter(*mean[:, None], s=60, color=ORANGE, marker="X", zorder=4, label="mean")
    ax.plot([], [], color=RULE, label="equal total")
    highest = 1.3 * float(points[:, 1].max(initial=0.0))
    ax.set(xlim=(0, end), ylim=(0, min(max(highest, 0.4 * end), end)), aspect="equal")
    ax.set(xlabel="aleatoric (nats)", ylabel="epistemic (nats)")
    ax.grid(visible=False)
    return beside(ax)


def coverage(sizes: Any, covered: Any, *, ax: Any = None, xlabel: str = "width of the set") -> Any:
    """Whether larger credal sets cover more: the coverage of samples of like size, and its 95 % interval.

    Args:
        sizes: (num_samples,) numbers: the radius or width of each sample's set, as `interval_width` gives.
        covered: (num_samples,) bools, as `interval_covered` gives.
        ax: axes to draw on; new ones where it is None.
        xlabel: what the sizes are.

    Returns:
        The axes.

    Raises:
        ArgumentError: matplotlib is missing, or not one number and one bool a sample.
    """
    total = coverage_of(covered)
    sizes, hits = np.asarray(sizes, np.float64), np.asarray(covered)
    if sizes.shape != hits.shape or not np.isfinite(sizes).all():
        raise ArgumentError(f"sizes are {sizes.shape}, expected {hits.shape}: one number a sample")
    ax = axes_for(ax)
    # As many samples in each group: intervals are as wide in each.
    groups = np.array_split(np.argsort(sizes, kind="stable"), min(max(len(sizes) // 20, 1), 10))
    shares = [Coverage(int(hits[group].sum()), len(group)) for group in groups]
    ends = np.array([[c - c.low, c.high - c] for c in shares]).T
    middle = [float(np.median(sizes[group])) for group in groups]
    style = {"color": BLUE, "marker": "o", "markersize": 5, "capsize": 3, "linewidth": 1.2}
    ax.errorbar(middle, shares, np.maximum(ends, 0), label="samples of like size", **style)
    dashed = {"color": ORANGE, "linewidth": 1.4, "linestyle": (0, (5, 2))}
    ax.axhline(float(total), label=f"all: {total:.3g}", **dashed)
    ax.set(xlabel=xlabel, ylabel="share covered", ylim=(min(0.0, *(c.low for c in shares)), 1.02))
    return beside(ax)


def label_sets(summary: Any, labels: Any = None, *, ax: Any = None) -> Any:
    """How wide sets must be to hold the label: the share that balls of one radius hold, by the classes in them.

    Of an ensemble, also what its members leave open: above the curve, it holds more labels with as many classes.

    Args:
        summary: a `Summary` with labels, or what `summarize` takes.
        labels: as `summarize` takes them.
        ax: axes to draw on; new ones where it is None.

    Result and errors are those of `entropy`; no labels are an ArgumentError as well.
    """
    shown = _summary(summary, labels)
    if (sets := shown.label_sets) is None:
        raise ArgumentError("a summary without labels has no label sets; summarize(store, labels)")
    ax = axes_for(ax)
    levels = np.linspace(0.5, 0.995, 100).tolist()
    points = [(ball[1], level) for level in levels if (ball := sets.ball(level))]
    ax.plot(*np.reshape(points, (-1, 2)).T, color=BLUE, linewidth=1.8, label="balls, promised")
    if sets.left_open is not None:
        style = {"color": ORANGE, "marker": "X", "s": 64, "zorder": 4}
        label = f"members leave open:\n{sets.covered:.1%} of labels"
        ax.scatter(sets.mean_open, float(sets.covered), label=label, **style)
    ax.set(xlabel="classes in the set (mean)", xlim=(0, None))
    ax.set(ylabel="share that holds the label", ylim=(0, 1.02))
    return beside(ax)


def conformal(
    scores: Any, test: Any = None, *, confidence_level: float = 0.9, ax: Any = None
) -> Any:
    """What radius it takes to cover with each confidence, by split conformal prediction; and what is covered.

    Args:
        scores: (num_samples,) of the calibration samples, such as `tv(center, target)`.
        test: those of other samples: the share of them that each radius covers is drawn beside.
        confidence_level: the level that is marked, with the radius that `conformal_radius` gives for it.
        ax: axes to draw on; new ones where it is None.

    Returns:
        The axes.

    Raises:
        ArgumentError: matplotlib is missing, or no scores.
    """
    ordered, ax = _sorted(scores), axes_for(ax)
    levels = np.arange(1, len(ordered) + 1) / (len(ordered) + 1)
    ax.step(ordered, levels, label="promised", color=BLUE, linewidth=1.8, where="post")
    if test is not None:
        others = _sorted(test)
        shares = np.arange(1, len(others) + 1) / len(others)
        dashed = {"color": ORANGE, "linewidth": 1.4, "where": "post", "linestyle": (0, (5, 2))}
        ax.step(others, shares, label="covered of the test", **dashed)
    rank = rank_of(confidence_level, len(ordered))
    if rank <= len(ordered):
        radius = float(ordered[rank - 1])
        level, label = confidence_level, f"radius {radius:.3g}\nfor {confidence_level:g}"
        ax.plot([0, radius, radius], [level, level, 0], color=GREY, linewidth=1)
        ax.plot(radius, level, "o", color=GREY, label=label)
    ax.set(xlabel="radius", ylabel="confidence", ylim=(0, 1.02), xlim=(0, None))
    return beside(ax)


def comparison(compared: Any, other: Any = None, *, ax: Any = None) -> Any:
    """How far the samples of two stores are apart: total variation on a scale that shows 1e-9 as well as 1.

    Args:
        compared: a `Comparison`; or a store, with `other`.
        other: the store that it is compared with.
        ax: axes to draw on; new ones where it is None.

    Returns:
        The axes.

    Raises:
        ArgumentError: matplotlib is missing; or as for `compare`.
    """
    shown, ax = _comparison(compared, other), axes_for(ax)
    counted, edges = shown.magnitudes.counted.count, shown.magnitudes.edges
    ax.set_xscale("log")
    ax.stairs(counted, edges, fill=True, color=BLUE, label="samples")
    # From a decade below the smallest difference, but never a scale of one decade alone.
    first = int(np.argmax(counted > 0)) if counted.any() else len(counted) - 8
    ax.set_xlim(edges[max(min(first - 4, len(counted) - 8), 0)], 1.0)
    ax.set_ylim(bottom=0)
    # Written out: powers are set as formulas, which a style may have switched off.
    ax.xaxis.set_major_formatter(lambda x, _: f"10{str(round(math.log10(x))).translate(_RAISED)}")
    ax.xaxis.set_minor_formatter(lambda *_: "")
    if shown.tv.mean > 0:
        mark_mean(ax, shown.tv.mean)
    if shown.magnitudes.equal:
        ax.plot([], [], " ", label=f"{shown.magnitudes.equal:,} below {edges[0]:.0e}")
    ax.plot([], [], " ", label=f"same top class:\n{shown.agreement:.2%}")
    ax.set(xlabel="total variation of each sample", ylabel="samples")
    return beside(ax)


def entropies(compared: Any, other: Any = None, *, ax: Any = None) -> Any:
    """How uncertain two stores of the same samples are: the outlines of their histograms.

    Parameters, result and errors are those of `comparison`.
    """
    shown, ax = _comparison(compared, other), axes_for(ax)
    names = (Path(shown.first).name, Path(shown.second).name)
    lines = ("solid", (0, (5, 2)))
    for i, (color, line) in enumerate(zip((BLUE, ORANGE), lines, strict=True)):
        # A label that begins with an underscore, as a name may, is left out of a legend.
        label = f"{'AB'[i]}: {brief(names[i], 24)}, mean {shown.entropies[i].mean:.3g}"
        histogram = shown.entropy_histograms[i]
        # By the width of a bin: the two may have other ones.
        density = histogram.count / max(shown.num_samples * np.diff(histogram.edges)[0], 1e-12)
        style = {"color": color, "linewidth": 1.6, "linestyle": line}
        ax.stairs(density, histogram.edges, label=label, **style)
    ax.set_xlim(0, max(last_edge(h) for h in shown.entropy_histograms))
    ax.set_ylim(bottom=0)
    ax.set(xlabel=f"entropy ({in_nats(shown.num_classes)})", ylabel="density of samples")
    return beside(ax)


# ------------------------------------------------------------------ what they take


def _summary(summary: Any, labels: Any = None) -> Summary:
    return summary if isinstance(summary, Summary) else summarize(summary, labels)


def _comparison(compared: Any, other: Any) -> Comparison:
    return compared if isinstance(compared, Comparison) else compare_stores(compared, other)


def _sorted(scores: Any) -> Array:
    ordered = np.sort(np.asarray(scores, np.float64))
    if ordered.ndim != 1 or not len(ordered) or np.isnan(ordered[-1]):
        raise ArgumentError(f"scores are {ordered.shape}, expected one number a sample, none NaN")
    return ordered
