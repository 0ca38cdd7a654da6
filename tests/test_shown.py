"""`repr`, notebooks, CSV and LaTeX of what users hold: small, within 80 columns, and deaf to what a stranger wrote."""

from __future__ import annotations

import csv
import io
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fostore
from fostore import evaluate
from fostore.schema.shown import Grid, brief, labelled
from support import probs

N = 40
EVIL = ["<script>alert(1)</script>", "\x1b[31m\u202ea & $b_%", "z" * 500]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of a stranger's, with labels that fit it."""
    path = tmp_path_factory.mktemp("shown") / "a.zarr"
    meta = {EVIL[0]: EVIL[1], "long": EVIL[2] * 100, "list": list(range(1000))}
    with fostore.create(path, num_samples=N, num_classes=3, class_names=EVIL, meta=meta) as writer:
        writer.append(probs(N))
    return path


LABELS = np.arange(N) % 3
HELD: dict[str, Callable[[Path], Any]] = {
    "Store": fostore.open,
    "Header": lambda path: fostore.open(path).header,
    "Schema": lambda path: fostore.open(path).schema,
    "Receipt": lambda path: fostore.convert(
        path, path.with_suffix(".h5"), exists="overwrite", progress=False
    ),
    "Summary": lambda path: evaluate.summarize(path, LABELS),
    "Comparison": lambda path: evaluate.compare(path, path),
    "Metrics": lambda path: evaluate.label_metrics(path, LABELS),
    "Reliability": lambda path: evaluate.reliability(path, LABELS),
    "Uncertainty": lambda _: evaluate.ensemble_uncertainty(probs(N).reshape(N // 2, 2, 3)),
    "Coverage": lambda _: evaluate.coverage(LABELS > 0),
}


class Tags(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.add(tag)


@pytest.mark.parametrize("name", HELD)
def test_what_is_held_is_shown_in_a_few_lines_of_80_columns(name: str, path: Path) -> None:
    value = HELD[name](path)
    lines = repr(value).splitlines()
    assert len(lines) < 30
    folder = str(path.parent)  # of the machine, which may be long
    assert max(len(line.replace(folder, "")) for line in lines) <= 80
    assert "array(" not in repr(value)
    assert "\x1b" not in repr(value)
    assert "\u202e" not in repr(value)


@pytest.mark.parametrize("name", HELD)
def test_a_notebook_shows_a_table_in_which_nothing_runs(name: str, path: Path) -> None:
    shown = HELD[name](path)._repr_html_()
    assert Tags(shown).tags <= {"table", "caption", "thead", "tbody", "tr", "th", "td"}
    assert shown.startswith("<table")
    assert len(shown) < 20_000


@pytest.mark.parametrize("name", ["Summary", "Comparison", "Metrics", "Reliability", "Coverage"])
def test_figures_go_to_csv_in_full_and_to_latex_escaped(name: str, path: Path) -> None:
    value = HELD[name](path)
    rows = list(csv.reader(io.StringIO(value.to_csv())))
    assert len({len(row) for row in rows}) == 1
    whole = [cell for row in value.grid().rows for cell in row if isinstance(cell, float)]
    kept = {float(cell) for row in rows for cell in row if _is_number(cell)}
    assert set(whole) <= kept
    latex = value.to_latex()
    assert latex.startswith(r"\begin{tabular}{l")
    assert latex.count(r"\\") == len(rows)


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def test_latex_commands_in_a_name_are_text() -> None:
    latex = Grid("", [(r"\input{/etc/passwd} 5 % of $x_1^2$ & more #~", 1)]).to_latex()
    assert (
        r"\textbackslash{}input\{/etc/passwd\} 5 \% of \$x\_1\textasciicircum{}2\$ \& more"
        r" \#\textasciitilde{} & 1 \\" in latex
    )


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.1, "0.1"), (1 / 3, "0.3333"), (10**6, "1,000,000"), (True, "True"), ("a\nb", "a b")],
)
def test_a_cell_is_brief(value: Any, text: str) -> None:
    assert brief(value) == text


def test_one_sample_of_one_class_is_no_plural() -> None:
    shown = repr(evaluate.summarize(np.ones((1, 1), np.float32), [0]))
    assert shown.splitlines()[0].endswith("1 sample, 1 class")
    assert (
        "1 label" in repr(evaluate.label_metrics(np.ones((1, 1), np.float32), [0])).split("\n")[0]
    )


def test_a_digest_is_never_broken() -> None:
    digest = f"blake3:{'0' * 64}"
    assert labelled("digest", digest, 10) == ["  digest", f"    {digest}"]
    assert all(len(line) <= 80 for line in labelled("note", "some words " * 40, 10))


_FACTS = "--license MIT --creator Ada --description what -q"
COMMANDS = {
    "info": "info a.zarr",
    "head": "head a.zarr",
    "verify": "verify a.zarr",
    "plan": f"convert a.zarr {'b' * 40}.h5 --dtype float16 --dry-run",
    "receipt": f"convert a.zarr {'b' * 40}.h5 --dtype float16 --allow-lossy",
    "check": f"publish a.zarr b --check {_FACTS}",
    "publish": f"publish a.zarr {'b' * 40} {_FACTS}",
}


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
@pytest.mark.parametrize("classes", [3, 1000])
def test_commands_fit_a_terminal(tmp_path: Path, command: str, classes: int) -> None:
    names = [f"a class with a name of some length, number {k}" for k in range(classes)]
    with fostore.create(
        tmp_path / "a.zarr",
        num_samples=N,
        num_classes=classes,
        num_members=2,
        class_names=names,
        meta={"description": "what it is, in many words. " * 20},
        ids=[f"image number {i}" for i in range(N)],
    ) as writer:
        writer.append(np.stack([probs(N, classes)] * 2, axis=1))
    done = subprocess.run(
        [sys.executable, "-m", "fostore.cli", *command.split()],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert max(map(len, (done.stdout + done.stderr).splitlines())) <= 80, done.stdout
