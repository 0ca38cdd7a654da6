"""The house keeps its plan: layers and glossary are those of CONTRIBUTING, and what is counted only falls.

The numbers here are ratchets: what is better than its number lowers the number, nothing raises it.
`python tests/test_house.py` prints them as they could be.
"""

from __future__ import annotations

import ast
import importlib.util
import json
import re
import subprocess
import sys
import tomllib
from collections import Counter
from pathlib import Path

import pytest

from mutants import MUTANTS

ROOT = Path(__file__).parent.parent
_SPEC = importlib.util.spec_from_file_location("house", ROOT / "benchmarks" / "house.py")
assert _SPEC is not None
assert _SPEC.loader is not None
house = importlib.util.module_from_spec(_SPEC)
sys.modules["house"] = house  # where its dataclasses look for their module
_SPEC.loader.exec_module(house)

MODULES = house.modules_of(ROOT / "fostore")
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text()

LONG: dict[str, int] = {}
"""Files of more than 400 lines, which hold a second noun still, with the lines that they may have."""
CIRCLES: list[list[str]] = []
"""Groups of modules that import each other still."""
UNEXPLAINED = 0
"""Imports in functions without a reason beside them: an optional library, or what importing costs."""
VAGUE: dict[str, int] = {
    "found": 0,
    "part": 169,
    "there": 0,
    "wanted": 36,
    "told": 0,
    "said": 0,
}
"""Names that say nothing of what they name, and how often they are used still."""
TWICE: dict[str, int] = {}
"""Words of the glossary that more than one class has for its name still."""
COMING: set[str] = set()
"""Files that CONTRIBUTING names, and that are not there yet."""


def _long() -> dict[str, int]:
    lines = {path: path.read_bytes().count(b"\n") for path, _ in MODULES.values()}
    return {str(path.relative_to(ROOT)): count for path, count in lines.items() if count > 400}


def test_no_file_is_longer_than_can_be_read_at_once() -> None:
    assert _long().keys() == LONG.keys(), "a file left the list, or joins it"
    assert {name: count for name, count in _long().items() if count > LONG[name]} == {}


def test_no_module_imports_itself_back() -> None:
    assert [sorted(group) for group in house.circles(MODULES)] == CIRCLES


def test_a_circle_is_seen_also_where_it_goes_through_a_function(tmp_path: Path) -> None:
    package = tmp_path / "fostore"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "one.py").write_text("from fostore import two\n")
    (package / "two.py").write_text("def late():\n    from fostore.one import nothing\n")
    modules = house.modules_of(package)
    assert house.circles(modules) == [{"fostore.one", "fostore.two"}]
    (package / "two.py").write_text(
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from fostore import one\n"
    )
    assert house.circles(house.modules_of(package)) == []


def _unexplained() -> list[str]:
    """Imports in functions without a comment in their line, before them, or before those they follow."""
    places = []
    for path, tree in MODULES.values():
        lines = path.read_text().splitlines()
        functions = (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))
        imports = {
            node.lineno: node.end_lineno or node.lineno
            for function in functions
            for node in ast.walk(function)
            if isinstance(node, ast.Import | ast.ImportFrom)
        }
        explained: set[int] = set()  # last lines
        for start, stop in sorted(imports.items()):
            own = any("#" in line for line in lines[start - 1 : stop])
            if own or lines[start - 2].lstrip().startswith("#") or start - 1 in explained:
                explained.add(stop)
            else:
                places.append(f"{path.relative_to(ROOT)}:{start}")
    return places


def test_an_import_in_a_function_has_its_reason_beside_it() -> None:
    assert len(_unexplained()) <= UNEXPLAINED, "\n".join(_unexplained())


def _uses(name: str) -> int:
    return sum(house.uses(name, tree) for _, tree in MODULES.values())


@pytest.mark.parametrize("name", sorted(VAGUE))
def test_names_say_what_they_name(name: str) -> None:
    assert _uses(name) <= VAGUE[name]


def _words() -> set[str]:
    """The words of the glossary, as a class would be called."""
    table = CONTRIBUTING.partition("## Glossary")[2].partition("\n## ")[0]
    return {word.capitalize() for word in re.findall(r"\*\*(\w+)\*\*", table)}


def _twice() -> dict[str, int]:
    nodes = (node for _, tree in MODULES.values() for node in tree.body)
    classes = Counter(node.name for node in nodes if isinstance(node, ast.ClassDef))
    return {word: classes[word] for word in sorted(_words()) if classes[word] > 1}


def test_a_word_of_the_glossary_is_one_class_at_most() -> None:
    assert {"Store", "Place", "Selection", "Plan", "Source", "Samples", "Table"} <= _words()
    assert _twice() == TWICE


def test_the_layers_of_contributing_are_those_that_are_checked() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    layers = contracts["contracts"][0]["layers"]
    picture = CONTRIBUTING.partition("## Layers")[2].partition("\n## ")[0]
    drawn = re.findall(r"^    (\w+(?: [|:] \w+)*)(?:  .*)?$", picture, re.MULTILINE)
    assert drawn == layers
    entries = {path.stem for path in (ROOT / "fostore").iterdir() if path.suffix in ("", ".py")}
    assert entries - {"__init__", "__pycache__"} == set(re.findall(r"\w+", " ".join(layers)))


def test_files_that_contributing_names_exist() -> None:
    """Those that a change would add are marked as new."""
    paths = r"`((?:fostore|tests|benchmarks)/[\w/.]+)`( \(new\))?"
    wrong = {
        path for path, new in re.findall(paths, CONTRIBUTING) if (ROOT / path).exists() == bool(new)
    }
    assert len(re.findall(paths, CONTRIBUTING)) > 40
    assert wrong - COMING == set()


def test_eight_of_ten_changes_touch_four_files_or_fewer() -> None:
    section = CONTRIBUTING.partition("## Ten changes")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (?!change|---)(.+?) \| (.+?) \|", section, re.MULTILINE)
    files = {change: len(re.findall(r"`[\w/]+\.\w+`", cell)) for change, cell in rows}
    assert len(files) == 10
    assert sum(1 <= count <= 4 for count in files.values()) >= 8, files


def test_every_mutant_finds_the_line_that_it_breaks() -> None:
    texts = {mutant.file: (ROOT / "fostore" / mutant.file).read_text() for mutant in MUTANTS}
    lost = [mutant.name for mutant in MUTANTS if texts[mutant.file].count(mutant.old) != 1]
    assert lost == []


def test_the_report_has_every_measure() -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "house.py"), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    assert list(figures) == list(house.GOALS)
    assert all(value >= 0 for value in figures.values())
    for measure in ("modules", "batch written: calls", "open(x)[5]: calls"):
        assert figures[measure] > 0


if __name__ == "__main__":
    for name, ratchet in {
        "LONG": _long(),
        "CIRCLES": [sorted(group) for group in house.circles(MODULES)],
        "UNEXPLAINED": len(_unexplained()),
        "VAGUE": {name: _uses(name) for name in VAGUE},
        "TWICE": _twice(),
    }.items():
        print(name, "=", ratchet)
