"""`fostore.evaluate.plot`: pictures of figures that are right, on axes of the caller's, told apart also in grey."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest

from fostore import evaluate
from fostore.errors import ArgumentError
from fostore.evaluate import plot
from fostore.evaluate.axes import BLUE, ORANGE, TEAL
from fostore.evaluate.histogram import Histogram
from support import probs

mpl.use("agg")
import matplotlib.pyplot as plt

ROWS = probs(118)
MEMBERS = np.stack([probs(118), probs(118, seed=1)], axis=1)
LABELS = np.arange(118) % 3
SUMMARY = evaluate.summarize(ROWS, LABELS)
RNG = np.random.default_rng(0)

PICTURES: dict[str, Callable[..., Any]] = {
    "entropy": lambda **ax: plot.entropy(SUMMARY, **ax),
    "confidence": lambda **ax: plot.confidence(ROWS, **ax),
    "reliability": lambda **ax: plot.reliability(SUMMARY, **ax),
    "reliability of rows": lambda **ax: plot.reliability(ROWS, LABELS, **ax),
    "ternary": lambda **ax: plot.ternary(SUMMARY, **ax),
    "uncertainty": lambda **ax: plot.uncertainty(MEMBERS, **ax),
    "uncertainty of each": lambda **ax: plot.uncertainty(
        evaluate.ensemble_uncertainty(MEMBERS), **ax
    ),
    "coverage": lambda **ax: plot.coverage(RNG.random(200), RNG.random(200) < 0.8, **ax),
    "label_sets": lambda **ax: plot.label_sets(MEMBERS, LABELS, **ax),
    "conformal": lambda **ax: plot.conformal(RNG.random(99), RNG.random(50), **ax),
    "comparison": lambda **ax: plot.comparison(ROWS, probs(118, seed=1), **ax),
    "comparison of equal ones": lambda **ax: plot.comparison(ROWS, ROWS, **ax),
    "entropies": lambda **ax: plot.entropies(ROWS, probs(118, seed=1), **ax),
}


@pytest.fixture(autouse=True)
def _closed() -> Iterator[None]:
    yield
    plt.close("all")


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_lands_on_the_axes_that_are_given_without_a_title(name: str) -> None:
    figure, axes = plt.subplots()
    assert PICTURES[name](ax=axes) is axes
    assert axes.get_title() == ""
    figure.canvas.draw()  # what cannot be drawn fails here


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_makes_axes_of_its_own_and_its_legend_covers_none_of_them(name: str) -> None:
    axes = PICTURES[name]()
    axes.figure.canvas.draw()
    legend, box = axes.get_legend().get_window_extent(), axes.get_window_extent()
    assert legend.x0 >= box.x1
    assert legend.x1 <= axes.figure.bbox.x1 + 1


def _lightness(color: str) -> float:
    """CIE L*, 0 to 100."""
    channels = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    y = float(np.dot(linear, [0.2126, 0.7152, 0.0722]))
    return 116 * y ** (1 / 3) - 16 if y > 0.008856 else 903.3 * y


def test_colours_differ_on_a_grey_printer() -> None:
    light = sorted(_lightness(color) for color in (BLUE, ORANGE, TEAL))
    assert min(b - a for a, b in itertools.pairwise(light)) > 9
    assert light[-1] < 65, "too light on paper"


@pytest.mark.parametrize(
    ("size", "least", "most"), [(0, 1, 1), (1, 1, 5040), (118, 6, 16), (100_000, 30, 240)]
)
def test_bins_grow_with_samples_and_lose_none(size: int, least: int, most: int) -> None:
    counting = Histogram.empty(0.0, 1.0)
    counting.add(np.random.default_rng(0).random(size))
    binned = counting.binned()
    assert int(binned.count.sum()) == size
    assert least <= len(binned.count) <= most


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_samples_that_are_all_alike_have_bins(value: float) -> None:
    counting = Histogram.empty(0.0, 1.0)
    counting.add(np.full(1000, value))
    assert int(counting.binned().count.max()) == 1000


def test_small_differences_are_seen() -> None:
    rows = ROWS.astype(np.float64)
    near = rows * (1 + 1e-6 * RNG.random(rows.shape))
    compared = evaluate.compare(rows, near)
    far = evaluate.tv(rows, near)
    edges, counted = compared.magnitudes.edges, compared.magnitudes.counted.count
    assert (counted == np.histogram(far, edges)[0]).all()
    axes = plot.comparison(compared)
    low, high = axes.get_xlim()
    assert low < far.min()
    assert high == 1.0
    assert low > 1e-10


def test_the_marked_radius_is_that_of_conformal_radius() -> None:
    center, target = probs(99), probs(99, seed=1)
    radius = evaluate.conformal_radius(center, target, confidence_level=0.8)
    axes = plot.conformal(evaluate.tv(center, target), confidence_level=0.8)
    assert f"radius {radius:.3g}" in axes.get_legend().get_texts()[1].get_text()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: plot.ternary(probs(9, 4)), "of 3 classes"),
        (lambda: plot.uncertainty(ROWS), "one distribution a row"),
        (lambda: plot.reliability(evaluate.summarize(ROWS)), "without labels"),
        (lambda: plot.coverage([1.0], np.array([True, False])), "one number a sample"),
        (lambda: plot.conformal([]), "one number a sample"),
    ],
)
def test_what_has_no_picture_is_refused(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        call()


def test_names_with_dollars_are_drawn_as_they_are(tmp_path: Path) -> None:
    import fostore

    names = ["$\\foo$", "_b", "$"]
    with fostore.create(
        tmp_path / "a.zarr", num_samples=118, num_classes=3, class_names=names
    ) as w:
        w.append(ROWS)
    axes = plot.ternary(tmp_path / "a.zarr")
    axes.figure.savefig(tmp_path / "a.svg")
    assert [text.get_text() for text in axes.get_legend().get_texts()] == [
        f"predicted {name}" for name in names
    ]


def test_every_picture_stands_in_the_docs_and_is_made_by_their_code() -> None:
    docs = Path(__file__).parent.parent / "docs"
    page = (docs / "pictures.md").read_text(encoding="utf-8")
    public = {name for name in vars(plot) if re.search(rf"^def {name}\(", _source(), re.M)}
    public = {name for name in public if not name.startswith("_")}
    assert public == {name for name in public if f"plot.{name}(" in page}
    made = set(re.findall(r"\(pictures/(\w+)\.svg\)", page))
    assert {name for name in made if f'"{name}"' not in page} == set()
    assert made == {path.stem for path in (docs / "pictures").iterdir()}


def _source() -> str:
    return Path(plot.__file__).read_text(encoding="utf-8")
