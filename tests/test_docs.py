"""Runs the pages of docs/ one by one: blocks run or say why not, links lead somewhere, the reference is whole."""

from __future__ import annotations

import ast
import importlib
import re
from pathlib import Path

import pytest

from test_readme import README, run_page

ROOT = README.parent
DOCS = ROOT / "docs"
PAGES = sorted(page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md"))
RUN = [page for page in PAGES if "```python\n" in (DOCS / page).read_text(encoding="utf-8")]
LINKED = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(DOCS / page for page in PAGES)]

_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)


def fences_of(page: str) -> list[tuple[str, str]]:
    """The language and the first line of each fenced block.

    >>> fences_of("a\\n```python\\nx = 1\\n```\\n")
    [('python', 'x = 1')]
    """
    found, opened = [], False
    lines = page.splitlines()
    for number, line in enumerate(lines):
        if line.startswith("```"):
            opened = not opened
            if opened:
                found.append((line.removeprefix("```"), lines[number + 1]))
    return found


def anchors_of(page: str) -> set[str]:
    """The anchors of a page's headings, as the site makes them.

    >>> sorted(anchors_of("# A `b`?\\n## What it is\\n"))
    ['a-b', 'what-it-is']
    """
    headings = re.findall(r"^#+ (.+)$", _FENCED.sub("", page), re.MULTILINE)
    plain = [re.sub(r"[^\w\s-]", "", heading).strip().lower() for heading in headings]
    return {re.sub(r"[-\s]+", "-", heading) for heading in plain}


def broken_links(path: Path) -> list[str]:
    """The links of a page that lead to no file, or to no heading of it."""
    text = _FENCED.sub("", path.read_text(encoding="utf-8"))
    broken = []
    for link in _LINK.findall(text):
        if "://" in link:
            continue
        name, _, anchor = link.partition("#")
        target = (path.parent / name).resolve() if name else path
        if not target.exists() or (
            anchor and anchor not in anchors_of(target.read_text(encoding="utf-8"))
        ):
            broken.append(link)
    return broken


def test_there_are_pages_that_run() -> None:
    assert len(RUN) > 12


@pytest.mark.parametrize("page", RUN)
def test_the_python_blocks_of_a_page_run_in_order(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))  # else it writes into the user's home
    result = run_page((DOCS / page).read_text(encoding="utf-8"), tmp_path)
    assert result.returncode == 0, f"{result.stdout}\n{result.stderr}"


@pytest.mark.parametrize("page", PAGES)
def test_a_block_that_is_not_run_says_so_in_its_first_line(page: str) -> None:
    for language, first in fences_of((DOCS / page).read_text(encoding="utf-8")):
        assert language in ("python", "py"), "other text is indented"
        assert (language == "py") == first.startswith("# Not run"), first


@pytest.mark.parametrize("page", LINKED, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    assert broken_links(page) == []


def test_a_broken_link_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# A title\n[a](page.md#a-title) [b](none.md) [c](#none) [d](https://x.org/y)\n"
    )
    assert broken_links(page) == ["none.md", "#none"]


def public_names(package: str) -> set[str]:
    """The `__all__` of a package of fostore, read and not imported: torch and jax take seconds."""
    if not package:
        return set(importlib.import_module("fostore").__all__) - {"__version__", "FostoreError"}
    code = (ROOT / "fostore" / package / "__init__.py").read_text(encoding="utf-8")
    found = re.search(r"^__all__ = (\[[^]]+\])$", code, re.MULTILINE)
    assert found, package
    return set(ast.literal_eval(found[1]))


@pytest.mark.parametrize("package", ["", "torch", "jax", "ray", "evaluate", "interop"])
def test_the_reference_lists_every_public_name(package: str) -> None:
    page = (DOCS / "api" / f"{package or 'fostore'}.md").read_text(encoding="utf-8")
    dotted = re.escape(f"fostore.{package}.".replace("..", "."))
    public = public_names(package)
    assert public
    listed = set(re.findall(rf"(?:::: |heading: ){dotted}(\w+)$", page, re.MULTILINE))
    assert public <= listed


def test_the_reference_lists_every_error() -> None:
    from fostore import errors

    page = (DOCS / "api" / "errors.md").read_text(encoding="utf-8")
    tree = {name for name, one in vars(errors).items() if isinstance(one, type)}
    assert tree == set(re.findall(r"^::: fostore\.errors\.(\w+)$", page, re.MULTILINE))


def test_the_fidelity_table_is_what_the_benchmark_measures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    fidelity = importlib.import_module("fidelity")
    page = (DOCS / "dtype.md").read_text(encoding="utf-8")
    table = page.split("**10 classes**")[1].split("**1,000 classes**")[0]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.split("\n")]
    listed = {row[0]: row[3] for row in rows if len(row) == 7}  # of each, the mean TV
    assert set(listed) >= {f"{kind} {dtype}" for kind, dtype in fidelity.STORED}
    logits = fidelity.logits_of(10, fidelity.ROWS[10])
    found = fidelity.measure(logits, "probs", "float16", tmp_path)
    assert found.tv == pytest.approx(float(listed["probs float16"]), rel=0.02)


def test_the_tables_of_encodings_are_what_the_benchmark_measures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    fidelity = importlib.import_module("fidelity")
    page = (DOCS / "encodings.md").read_text(encoding="utf-8")
    table = page.split("**Drawn logits**")[1].split(fidelity.END)[0]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.split("\n")]
    listed = {row[0]: row[1:] for row in rows if len(row) == 7}
    assert set(listed) >= set(fidelity.ENCODED)
    few = ("u8_log_sqrt", "topk 20, uniform")
    monkeypatch.setattr(fidelity, "ENCODED", {name: fidelity.ENCODED[name] for name in few})
    again = fidelity.encoded(fidelity.logits_of(1_000, fidelity.ENCODED_ROWS), tmp_path)
    for line in again.split("\n")[2:]:
        name, *cells = [cell.strip() for cell in line.split("|")[1:-1]]
        assert cells == listed[name]
