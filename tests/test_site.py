"""The documentation site from disk, in a real browser: its search finds, no table is cut at a desk or on a phone."""

from __future__ import annotations

from pathlib import Path

import pytest

from browser import CHROMIUM, Browser

build = pytest.importorskip("mkdocs.commands.build", reason="needs the extra docs")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")

ROOT = Path(__file__).parent.parent
WIDTHS = (1280, 390)
CUT = """
(() => {
  const wide = (e) => e.scrollWidth > e.clientWidth + 1;
  const phone = innerWidth < 600;  // where a table of many columns may be pushed aside, and nothing else
  const scrolls = (e) => phone && ["auto", "scroll"].includes(getComputedStyle(e).overflowX);
  const tables = [...document.querySelectorAll("table")].filter(table =>
    [table, table.parentElement].some(e => wide(e) && !scrolls(e))).map(table => table.textContent.trim().slice(0, 60));
  const page = document.documentElement;
  return page.scrollWidth > page.clientWidth + 1 ? [...tables, "the page itself"] : tables;
})()
"""
RESULTS = "[...document.querySelectorAll('#results a')].map(link => link.href)"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from mkdocs.config import load_config

    folder = tmp_path_factory.mktemp("site")
    build.build(load_config(str(ROOT / "mkdocs.yml"), site_dir=str(folder), strict=False))
    return folder


def test_no_table_is_cut_and_no_script_fails(site: Path, browser: Browser) -> None:
    pages = [page for page in site.rglob("*.html") if "<table" in page.read_text(encoding="utf-8")]
    assert len(pages) > 15
    cut, noise = {}, []
    for page in pages:
        browser.media("screen", "light", WIDTHS[0])
        browser.show(page.as_uri())
        for width in WIDTHS:
            browser.media("screen", "light", width)
            if tables := browser.value(CUT):
                cut[f"{page.name} at {width}"] = tables
        noise += [e for e in browser.events if e.get("method") == "Runtime.exceptionThrown"]
    assert cut == {}
    assert noise == []


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("temperature", "distillation.html"),
        ("output_dataloader", "api/torch.html#fostore.torch.output_dataloader"),
        ("conformal_rad", "api/evaluate.html#fostore.evaluate.conformal_radius"),  # half a word
        ('"publish" a: store*', "publishing.html"),
    ],
)
def test_the_search_of_a_page_finds_what_is_there(
    query: str, expected: str, site: Path, browser: Browser
) -> None:
    browser.media("screen", "light", 1280)
    browser.show((site / "decisions" / "index.html").as_uri())
    asked = f"document.querySelector('#rtd-search-form input').value = {query!r}"
    browser.follow(f"{asked}; document.querySelector('#rtd-search-form').submit()")
    assert not [e for e in browser.events if e.get("method") == "Runtime.exceptionThrown"]
    results = browser.value(RESULTS)
    assert any(expected in link for link in results), results
    for link in results:
        path, _, anchor = link.removeprefix(site.as_uri()).partition("#")
        assert f'id="{anchor}"' in (site / path.lstrip("/")).read_text(encoding="utf-8")


def test_the_check_of_tables_sees_one_that_is_cut(tmp_path: Path, browser: Browser) -> None:
    page = tmp_path / "bad.html"
    table = "<table><td style='min-width: 2000px'>wide</table>"
    page.write_text(
        f"<meta name=viewport content='width=device-width'><div style='overflow: auto'>{table}</div>"
    )
    for width, cut in ((1280, ["wide"]), (390, [])):
        browser.media("screen", "light", width)
        browser.show(page.as_uri())
        assert browser.value(CUT) == cut
    page.write_text(f"<meta name=viewport content='width=device-width'><div>{table}</div>")
    browser.show(page.as_uri())
    assert browser.value(CUT) == ["wide", "the page itself"]
