"""`fostore report`: one page, the same bytes every time, small at any size, and deaf to what a stranger wrote."""

from __future__ import annotations

import itertools
import re
import shutil
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import fostore
from fostore import cli, evaluate
from fostore.errors import ArgumentError
from support import probs

N = 60
NAMES = ["setosa", "versicolor", "virginica"]
LIMIT = 300_000
EVIL = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(2)>',
    "\u202e'/*</style>{{x}}$x &lt;\x00\ud7ff",
]


class Page(HTMLParser):
    """What is on a page: elements in order, and the text of each heading."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.headings: list[tuple[int, str]] = []
        self._open: list[str] = []
        self.feed(page)
        self.close()
        assert self._open == [], "elements that are not closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if re.fullmatch("h[1-6]", tag):
            self.headings.append((int(tag[1]), ""))
        if tag not in ("meta", "link"):
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if any(re.fullmatch("h[1-6]", tag) for tag in self._open):
            level, text = self.headings[-1]
            self.headings[-1] = level, text + data

    @property
    def sections(self) -> list[str]:
        return [text for level, text in self.headings if level == 2]


def made(path: Path, rows: Any, **options: Any) -> Path:
    members = rows.shape[1] if rows.ndim == 3 else None
    with fostore.create(
        path,
        num_samples=len(rows),
        num_classes=rows.shape[-1],
        num_members=members,
        **options,
    ) as writer:
        writer.append(rows)
    return path


@pytest.fixture
def full(tmp_path: Path) -> Path:
    """A store that has every section."""
    rows = np.stack([probs(N), probs(N, seed=1)], axis=1)
    ids = [f"img-{i}" for i in range(N)]
    return made(tmp_path / "full.zarr", rows, class_names=NAMES, ids=ids, meta={"license": "MIT"})


@pytest.mark.parametrize("suffix", ["zarr", "h5"])
def test_a_page_has_all_sections_and_their_figures(tmp_path: Path, suffix: str) -> None:
    rows = np.stack([probs(N), probs(N, seed=1)], axis=1)
    ids = [f"img-{i}" for i in range(N)]
    path = made(tmp_path / f"full.{suffix}", rows, class_names=NAMES, ids=ids)
    labels = np.arange(N) % 3
    text = evaluate.report(path, labels)
    page = Page(text)
    assert page.sections == [
        "What it is",
        "Integrity and completeness",
        "Fidelity",
        "Uncertainty",
        "Disagreement of the members",
        "Classes",
        "Against the labels",
        "Coverage against width",
        "Distributions over three classes",
        "Most uncertain samples",
        "Provenance",
        "How to open it",
    ]
    metrics = evaluate.label_metrics(path, labels)
    digest = fostore.open(path).digest()
    for figure in (digest, f"{metrics.accuracy:.4f}", f"{metrics.ece:.4g}", *NAMES):
        assert figure in text
    worst = evaluate.select_uncertain_samples(path, n=1)[0]
    assert f"img-{worst}" in text
    pictures = [attributes for tag, attributes in page.elements if tag == "svg"]
    assert len(pictures) == 6


def test_a_page_needs_no_network_and_no_script(full: Path) -> None:
    text = evaluate.report(full, np.arange(N) % 3)
    page = Page(text)
    assert not {tag for tag, _ in page.elements} & {"script", "iframe", "object", "img", "form"}
    links = [
        value
        for _, attributes in page.elements
        for name, value in attributes.items()
        if name in ("href", "src", "action") or (value or "").startswith("url(")
    ]
    assert all((link or "").startswith(("#", "url(#", "data:,")) for link in links)
    assert not re.search(r"https?://(?!www\.w3\.org)|@import|url\((?!#)", text)
    assert "default-src 'none'" in text


def test_ids_are_unique_and_what_is_referred_to_is_there(full: Path) -> None:
    text = evaluate.report(full, np.arange(N) % 3)
    ids = re.findall(r' id="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    referred = re.findall(r'(?:href="|url\()#([\w-]+)', text)
    referred += re.findall(r'aria-labelledby="([^"]+)"', text)
    assert set(referred) <= set(ids)
    assert len(referred) > 10


def test_headings_are_in_order_and_pictures_have_words(full: Path) -> None:
    page = Page(evaluate.report(full, np.arange(N) % 3))
    levels = [level for level, _ in page.headings]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(b - a <= 1 for a, b in itertools.pairwise(levels))
    for tag, attributes in page.elements:
        if tag == "svg":
            assert attributes["role"] == "img"
            assert attributes["aria-labelledby"]


def test_the_same_store_gives_the_same_bytes_wherever_it_lies(full: Path, tmp_path: Path) -> None:
    shutil.copytree(full, tmp_path / "elsewhere" / full.name)
    pages = [evaluate.report(path) for path in (full, full, tmp_path / "elsewhere" / full.name)]
    assert pages[0] == pages[1] == pages[2]
    assert str(tmp_path) not in pages[0]


def test_colours_are_the_pages_own_so_that_it_can_be_dark(full: Path) -> None:
    drawn = "".join(re.findall(r"<svg.*?</svg>", evaluate.report(full), re.S))
    assert "var(--blue)" in drawn
    assert not re.search("#[0-9a-f]{6}", drawn)


def test_what_a_stranger_wrote_is_shown_and_does_nothing(tmp_path: Path) -> None:
    meta = {EVIL[0]: EVIL[1], "deep": {EVIL[2]: [EVIL[0]]}, "long": "x" * 100_000}
    path = made(
        tmp_path / "<b>evil&.zarr",
        probs(N),
        class_names=EVIL,
        meta=meta,
        ids=EVIL[:2] + list(map(str, range(N - 2))),
    )
    text = evaluate.report(path, np.arange(N) % 3, title=EVIL[0])
    page = Page(text)
    assert not {tag for tag, _ in page.elements} & {"script", "img", "b"}
    assert not any(name.startswith("on") for _, a in page.elements for name in a)
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert text.count("</style>") == 1
    assert not re.search("[\x00-\x08\u202e]", text)
    assert len(text.encode()) < LIMIT
    evaluate.report(path, output=tmp_path / "r.html")  # and it can be encoded


@pytest.mark.parametrize(
    ("samples", "classes", "members"), [(40, 100_000, None), (20_000, 3, 2), (3000, 1500, None)]
)
def test_a_page_is_small_at_any_size(
    tmp_path: Path, samples: int, classes: int, members: int | None
) -> None:
    rng = np.random.default_rng(0)
    shape = (samples, classes) if members is None else (samples, members, classes)
    rows = rng.dirichlet(np.ones(3), shape[:-1]) if classes == 3 else rng.random(shape)
    rows = np.float32(rows / rows.sum(-1, keepdims=True))
    names = [f"{'long ' * 12}{k}" for k in range(classes)]
    path = made(tmp_path / "a.zarr", rows, class_names=names)
    labels = rng.integers(0, classes, samples)
    page = evaluate.report(path, labels if classes < 100_000 else None)
    assert len(page.encode()) < LIMIT
    if classes > 24:
        assert f"and {classes - 24:,} more" in page


@pytest.mark.parametrize("rows", [np.ones((1, 1)), np.full((5, 3), 1 / 3), np.eye(4)])
def test_pages_of_rows_without_a_spread_are_made(rows: Any) -> None:
    Page(evaluate.report(rows, np.zeros(len(rows), int)))


@pytest.mark.parametrize("suffix", ["zarr", "h5"])
def test_what_the_encoding_lost_is_a_table(tmp_path: Path, suffix: str) -> None:
    path = made(tmp_path / f"a.{suffix}", probs(N, 9), encoding="topk", k=3)
    section = evaluate.report(path, rule="uniform").partition('id="fidelity"')[2]
    section = section.partition("</section>")[0]
    known = fostore.open(path).header.fidelity
    assert known is not None
    for source, what in (
        ("compared", "compared with what came"),
        ("columns", "read from the columns"),
    ):
        assert what in section
        for name, value in known[source].items():
            if name in ("kl_mean", "tv_mean", "missing_mass_max"):
                assert f"<bdi>{value:.4g}</bdi>" in section


def test_of_whole_rows_fidelity_is_what_rounding_costs(full: Path) -> None:
    section = evaluate.report(full).partition('id="fidelity"')[2].partition("</section>")[0]
    assert "off by at most 2^-24 of itself" in section
    assert "<table" not in section


def test_a_damaged_store_says_so(full: Path) -> None:
    (victim,) = (p for p in (full / "probs" / "c").rglob("*") if p.is_file())
    raw = bytearray(victim.read_bytes())
    raw[100] ^= 1
    victim.write_bytes(raw)
    text = evaluate.report(full, level="checksums")
    assert '<span class="badge bad">damaged</span>' in text
    assert '<span class="badge good">whole</span>' in evaluate.report(full)


def test_without_matplotlib_the_page_has_its_tables(
    full: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    text = evaluate.report(full)
    assert "<svg" not in text
    assert "matplotlib" in text
    assert len(Page(text).sections) == 9


def test_into_no_folder_nothing_is_read(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="no such folder"):
        evaluate.report(tmp_path / "nowhere.zarr", output=tmp_path / "none" / "r.html")


def test_most_uncertain_samples_are_the_same_whatever_the_pieces(
    full: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = evaluate.summarize(full, np.arange(N) % 3)
    monkeypatch.setattr("fostore.evaluate.rows.BUDGET", 42)  # 7 rows a piece
    pieces = evaluate.summarize(full, np.arange(N) % 3)
    assert pieces.most_uncertain == whole.most_uncertain
    assert [one.index for one in whole.most_uncertain] == evaluate.select_uncertain_samples(
        full, n=12
    )
    assert (pieces.parted == whole.parted).all()
    assert whole.confusion is not None
    assert pieces.confusion is not None
    assert (pieces.confusion.matrix == whole.confusion.matrix).all()
    expected = np.zeros((3, 3), int)
    predicted = fostore.open(full).take(range(N)).mean(1).argmax(1)
    np.add.at(expected, (np.arange(N) % 3, predicted), 1)
    assert (whole.confusion.matrix == expected).all()


def test_the_command_writes_the_page_that_the_function_returns(
    full: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("y.npy", np.arange(N) % 3)
    runner = CliRunner()
    result = runner.invoke(
        cli.app, ["report", "full.zarr", "--labels", "y.npy", "-o", "r.html", "--title", "Iris"]
    )
    assert (result.exit_code, result.stdout) == (0, ""), result.stderr
    expected = evaluate.report(full, np.arange(N) % 3, title="Iris")
    assert Path("r.html").read_text(encoding="utf-8") == expected
    assert runner.invoke(cli.app, ["report", "nowhere.zarr", "-o", "n.html"]).exit_code == 3
    assert runner.invoke(cli.app, ["report", "full.zarr", "-o", "none/n.html"]).exit_code == 2
    assert not Path("n.html").exists()
