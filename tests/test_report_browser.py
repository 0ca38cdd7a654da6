"""The report in a real browser: at a desk, on a phone, in the dark, on paper. Skipped where there is no Chromium.

FOSTORE_SCREENSHOTS=FOLDER keeps what was looked at.
"""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import numpy as np
import pytest

import fostore
from browser import CHROMIUM, Browser
from fostore import evaluate
from support import probs

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")

N = 300
VIEWS = {
    "desktop": ("screen", "light", 1280),
    "desktop-dark": ("screen", "dark", 1280),
    "phone": ("screen", "light", 390),
    "phone-dark": ("screen", "dark", 390),
    "print": ("print", "dark", 800),  # paper is white, whatever the screen is
}

CONTRAST = """
(() => {
  const numbers = (text) => (text.match(/[\\d.]+/g) || []).map(Number);
  const over = (top, under) => { const a = top[3] ?? 1; return [0, 1, 2].map(i => a * top[i] + (1 - a) * under[i]); };
  const behind = (element) => {
    const layers = [];
    for (let at = element; at; at = at.parentElement) layers.push(numbers(getComputedStyle(at).backgroundColor));
    return layers.reverse().reduce((under, layer) => layer.length ? over(layer, under) : under, [255, 255, 255]);
  };
  const linear = (v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const light = (c) => { const l = c.map(v => linear(v / 255));
    return 0.2126 * l[0] + 0.7152 * l[1] + 0.0722 * l[2]; };
  const worst = [];
  for (const element of document.body.querySelectorAll("*")) {
    const own = [...element.childNodes].some(node => node.nodeType === 3 && node.data.trim());
    if (!own || !element.getClientRects().length) continue;
    const style = getComputedStyle(element), back = behind(element);
    const front = over(numbers(element.namespaceURI.endsWith("svg") ? style.fill : style.color), back);
    const [a, b] = [light(front), light(back)].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05);
    if (ratio < 4.5) worst.push([element.textContent.slice(0, 30), ratio]);
  }
  return worst;
})()
"""
WIDER = """
[...document.body.querySelectorAll("*")].filter(e => !e.closest(".scroll, pre, svg") && e.getBoundingClientRect().right
  > document.documentElement.clientWidth + 1).map(e => e.outerHTML.slice(0, 80))
"""
OVERLAPS = """
[...document.querySelectorAll("svg")].flatMap(svg => {
  const boxes = [...svg.querySelectorAll("text")].map(e => [e.textContent, e.getBoundingClientRect()]);
  const wide = (p, q) => Math.min(p.right, q.right) - Math.max(p.left, q.left);
  const high = (p, q) => Math.min(p.bottom, q.bottom) - Math.max(p.top, q.top);
  return boxes.flatMap(([a, p], i) => boxes.slice(i + 1).filter(([b, q]) =>
    wide(p, q) > 1 && high(p, q) > 3).map(([b]) => `${a} | ${b}`));
})
"""


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A page with every section, and one of long and strange names."""
    folder = tmp_path_factory.mktemp("pages")
    rows = np.stack([probs(N, seed=seed) for seed in range(4)], axis=1)
    labels = probs(N).argmax(1)
    names = ["setosa", "versicolor", "virginica"]
    with fostore.create(
        folder / "iris.zarr", num_samples=N, num_classes=3, num_members=4, class_names=names
    ) as writer:
        writer.append(rows)
    evaluate.report(folder / "iris.zarr", labels, output=folder / "full.html")
    evil = [f"<b>{'endless' * 40}</b>{k}" for k in range(40)]
    with fostore.create(
        folder / "strange.zarr",
        num_samples=N,
        num_classes=40,
        class_names=evil,
        ids=[f"{'x' * 200}{i}" for i in range(N)],
        meta={"k" * 300: "v" * 3000, "<script>alert(1)</script>": "<img src=x onerror=alert(1)>"},
    ) as writer:
        writer.append(probs(N, 40))
    evaluate.report(
        folder / "strange.zarr", np.arange(N) % 40, output=folder / "strange.html", title="y" * 400
    )
    return {"full": folder / "full.html", "strange": folder / "strange.html"}


@pytest.mark.parametrize("page", ["full", "strange"])
@pytest.mark.parametrize("view", VIEWS)
def test_a_report_can_be_read(
    browser: Browser, pages: dict[str, Path], page: str, view: str
) -> None:
    media, scheme, width = VIEWS[view]
    browser.media(media, scheme, width)
    browser.show(pages[page].as_uri())
    if folder := os.environ.get("FOSTORE_SCREENSHOTS"):
        browser.screenshot(Path(folder) / f"{page}-{view}.png")
    asked = [
        event["params"]["request"]["url"]
        for event in browser.events
        if event.get("method") == "Network.requestWillBeSent"
    ]
    assert [url for url in asked if not url.startswith("data:")] == [pages[page].as_uri()]
    noise = [
        event["params"]
        for event in browser.events
        if event.get("method")
        in ("Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown")
    ]
    assert noise == []
    assert browser.value(WIDER) == []
    assert browser.value("document.documentElement.scrollWidth") <= width
    assert browser.value(CONTRAST) == []
    assert browser.value(OVERLAPS) == []
    background = browser.value("getComputedStyle(document.body).backgroundColor")
    is_dark = media == "screen" and scheme == "dark"
    assert (background == "rgb(255, 255, 255)") is not is_dark


def test_a_report_has_one_title_headings_in_order_and_words_for_pictures(
    browser: Browser, pages: dict[str, Path]
) -> None:
    browser.show(pages["full"].as_uri())
    levels = browser.value("[...document.querySelectorAll('h1,h2,h3,h4')].map(e => +e.tagName[1])")
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(b - a <= 1 for a, b in itertools.pairwise(levels))
    nodes = browser("Accessibility.getFullAXTree")["nodes"]
    pictures = [n for n in nodes if n.get("role", {}).get("value") in ("image", "img")]
    assert len(pictures) == 6
    assert all(len(picture["name"]["value"]) > 20 for picture in pictures)
    assert browser.value("document.documentElement.lang") == "en"


@pytest.mark.parametrize("width", [390, 800, 1280])
def test_figures_fit_their_tiles(browser: Browser, tmp_path: Path, width: int) -> None:
    """Numbers of many digits: of 1,000 classes every mean is below a hundredth."""
    with fostore.create(tmp_path / "a.zarr", num_samples=60, num_classes=1000) as writer:
        writer.append(np.random.default_rng(0).dirichlet(np.ones(1000), 60).astype(np.float32))
    evaluate.report(tmp_path / "a.zarr", np.arange(60), output=tmp_path / "a.html")
    browser.media("screen", "light", width)
    browser.show((tmp_path / "a.html").as_uri())
    tiles = browser.value(
        "[...document.querySelectorAll('.tiles div')].map(e => [e.textContent, e.scrollWidth - e.clientWidth])"
    )
    assert len(tiles) > 4
    assert [tile for tile in tiles if tile[1] > 0] == []


def test_the_checks_see_what_is_wrong(browser: Browser, tmp_path: Path) -> None:
    """A page that breaks what the others keep: else they would pass whatever the page is."""
    page = tmp_path / "bad.html"
    page.write_text(
        "<body style='background:#fff'><p style='color:#aaa'>pale</p><div style='width:3000px'>wide</div>"
        "<svg><text y=20>one</text><text y=20>two</text></svg><script>console.error('x')</script>"
    )
    browser.media("screen", "light", 390)
    browser.show(page.as_uri())
    assert browser.value(CONTRAST)[0][0] == "pale"
    assert browser.value(WIDER)
    assert browser.value(OVERLAPS) == ["one | two"]
    assert any(event.get("method") == "Runtime.consoleAPICalled" for event in browser.events)
