"""The house in numbers: files, imports, names, comments, circles, and how far one call travels.

`make check` prints it as a report; no figure is a gate (`tests/test_house.py` holds the few that may
only fall). What each measure counts:

- *modules*, *lines*: the `.py` files of the package.
- *imports a module*: distinct modules of the package that a module imports, anywhere in it, itself
  excepted; `from fostore.x import y` counts `fostore.x.y` where that is a module, else `fostore.x`.
- *imports in functions*: import statements below a `def`, of whatever library.
- *public names*: functions and classes at the top level without an underscore; *public constants*:
  what is assigned there.
- *code lines a comment*: lines with a token that is neither comment nor docstring, by the number of
  comments that hold a word (pragmas such as `# noqa` and lines that part sections are none).
- *depth of imports*: modules in the longest chain of imports at the top level of modules, those for
  types left out; a circle counts as one.
- *import circles*: groups of modules that reach one another, imports in functions counted, those for
  types not.
- *names called found*: each use of a variable or parameter `found`.
- *calls*: calls of Python functions whose code lies in the package, by `sys.setprofile` in a fresh
  process, in its main thread, when the same work was done before (modules are imported, caches
  warm); a generator counts each time it is entered, a function that is called for each row once.
  *Changes of file* are neighbours in that sequence which lie in different files.
    - *batch written*: from one call of the model to the next, in `generate_distributions` of an
      array of rows, at batches of 512 rows of 10 float32 classes, to a Zarr store.
    - *append, commit*: the same batch by `Writer.append` and `Writer.commit`, alone.
    - *batch read*: 256 pairs from `output_dataloader` over that array and store, without a thread.
    - *take*: the first 256 random rows of an opened store by `Store.take`.
    - *open(x)[5]*: the store that was generated, opened, and one row read.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import re
import statistics
import subprocess
import sys
import tokenize
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

Modules = dict[str, tuple[Path, ast.Module]]
"""Each module by its dotted name: its file, and that parsed."""

GOALS: dict[str, float | None] = {
    "modules": None,
    "lines": 28_000,
    "median file": None,
    "largest file": 400,
    "imports a module": 3.5,
    "imports in functions": 60,
    "public names": 400,
    "public constants": None,
    "code lines a comment": 20,
    "depth of imports": 10,
    "import circles": 0,
    "names called found": 0,
    "batch written: calls": 50,
    "batch written: changes of file": 25,
    "append, commit: calls": None,
    "append, commit: changes of file": None,
    "batch read: calls": None,
    "batch read: changes of file": None,
    "take: calls": None,
    "take: changes of file": None,
    "open(x)[5]: calls": 250,
    "open(x)[5]: changes of file": None,
}
"""Each measure, and where it shall go; None where it only tells."""

_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
_NO_COMMENT = re.compile(r"#\s*(type:|noqa|pragma|fmt:|ruff:|mypy:|-{4})|\W*$")
_NO_CODE = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENCODING,
    tokenize.ENDMARKER,
}


# ---------------------------------------------------------------- files


def package_of(root: Path) -> Path:
    """The folder of the package in a checkout, which lay in `src` once."""
    for folder in (root / "fostore", root / "src" / "fostore"):
        if folder.is_dir():
            return folder
    raise SystemExit(f"{root} holds no fostore/ and no src/fostore/")


def modules_of(package: Path) -> Modules:
    """Each module by its dotted name, parsed."""
    modules = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package.parent).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        modules[name] = (path, ast.parse(path.read_bytes()))
    return modules


@dataclass(frozen=True, slots=True)
class Import:
    """One import statement: of which modules of anyone, in a function, for types alone."""

    modules: tuple[str, ...]
    inside: bool
    typing: bool


def imports_of(tree: ast.Module) -> list[Import]:
    """Every import statement of a module; `from a import b` gives `a.b` and, after it, `a`."""
    statements: list[Import] = []

    def walk(nodes: Iterable[ast.AST], inside: bool, typing: bool) -> None:
        for node in nodes:
            if isinstance(node, ast.Import):
                names = tuple(alias.name for alias in node.names)
                statements.append(Import(names, inside, typing))
            elif isinstance(node, ast.ImportFrom):
                names = tuple(f"{node.module}.{alias.name}" for alias in node.names)
                statements.append(Import(names, inside, typing))
            elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
                walk(node.body, inside, True)
                walk(node.orelse, inside, typing)
            else:
                below = inside or isinstance(node, _FUNCTIONS)
                walk(ast.iter_child_nodes(node), below, typing)

    walk(tree.body, False, False)
    return statements


def graph_of(modules: Modules, counts: Callable[[Import], bool]) -> dict[str, set[str]]:
    """For each module those of the package that it imports, by the statements that count."""
    return {
        name: {
            module if module in modules else module.rpartition(".")[0]
            for statement in imports_of(tree)
            if counts(statement)
            for module in statement.modules
        }
        & modules.keys() - {name}
        for name, (_, tree) in modules.items()
    }


def components(graph: dict[str, set[str]]) -> list[frozenset[str]]:
    """Strongly connected groups, leaves first (Tarjan 1972)."""
    order: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    groups: list[frozenset[str]] = []

    def visit(node: str) -> None:
        order[node] = low[node] = len(order)
        stack.append(node)
        for target in sorted(graph[node]):
            if target not in order:
                visit(target)
                low[node] = min(low[node], low[target])
            elif target in stack:
                low[node] = min(low[node], order[target])
        if low[node] == order[node]:
            cut = stack.index(node)
            groups.append(frozenset(stack[cut:]))
            del stack[cut:]

    for node in sorted(graph):
        if node not in order:
            visit(node)
    return groups


def depth(graph: dict[str, set[str]]) -> int:
    """Groups in the longest chain."""
    below: dict[str, int] = {}
    for group in components(graph):
        outward = {target for node in group for target in graph[node]} - group
        level = 1 + max((below[target] for target in outward), default=0)
        below.update(dict.fromkeys(group, level))
    return max(below.values())


def public_names(tree: ast.Module) -> tuple[int, int]:
    """Functions and classes at the top level without an underscore, and what is assigned there."""
    defined: set[str] = set()
    assigned: set[str] = set()
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            defined.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            leaves = (leaf for leaf in ast.walk(node) if isinstance(leaf, ast.Name))
            assigned |= {leaf.id for leaf in leaves if isinstance(leaf.ctx, ast.Store)}
    public = [sum(not name.startswith("_") for name in names) for names in (defined, assigned)]
    return public[0], public[1]


def _docstring_lines(tree: ast.Module) -> set[int]:
    """Lines of texts that stand as statements: docstrings, also those of constants."""
    return {
        line
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
        for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)
    }


def code_and_comments(path: Path, tree: ast.Module) -> tuple[int, int]:
    """Lines of code, and comments."""
    code: set[int] = set()
    comments = 0
    with path.open("rb") as file:
        for token in tokenize.tokenize(file.readline):
            if token.type == tokenize.COMMENT:
                comments += not _NO_COMMENT.match(token.string)
            elif token.type not in _NO_CODE:
                code.update(range(token.start[0], token.end[0] + 1))
    return len(code - _docstring_lines(tree)), comments


def uses(name: str, tree: ast.Module) -> int:
    """How often a variable or parameter of this name stands in a module."""
    return sum(
        (isinstance(node, ast.Name) and node.id == name)
        or (isinstance(node, ast.arg) and node.arg == name)
        for node in ast.walk(tree)
    )


def circles(modules: Modules) -> list[frozenset[str]]:
    """Groups of modules that reach one another when they run."""
    groups = components(graph_of(modules, lambda statement: not statement.typing))
    return [group for group in groups if len(group) > 1]


# ---------------------------------------------------------------- calls

TRACED = """
import collections, json, os, sys, tempfile
import numpy as np
import fostore

HERE = os.path.dirname(os.path.abspath(fostore.__file__)) + os.sep
CLASSES, BATCH, READ = 10, 512, 256
calls = []  # the code objects of the package that were entered


def note(frame, event, argument):
    if event == "call" and frame.f_code.co_filename.startswith(HERE):
        calls.append(frame.f_code)


def figures(codes, rows):
    often = {code for code, times in collections.Counter(codes).items() if times >= rows > 1}
    once, kept = set(), []
    for code in codes:
        if code not in once:
            kept.append(code.co_filename)
        if code in often:
            once.add(code)
    return {"calls": len(kept), "changes of file": sum(map(str.__ne__, kept, kept[1:]))}


def traced(work, rows=1):
    calls.clear()
    sys.setprofile(note)
    try:
        work()
    finally:
        sys.setprofile(None)
    return figures(calls, rows)


def model(batch):
    starts.append(len(calls))
    return np.asarray(batch) @ weights


starts = []
random = np.random.default_rng(0)
inputs = random.random((8 * BATCH, 16), np.float32)
weights = random.random((16, CLASSES), np.float32)
probs = np.full((BATCH, CLASSES), 1 / CLASSES, np.float32)
measures = {}
with tempfile.TemporaryDirectory() as folder:
    path = os.path.join(folder, "generated.zarr")
    generator = fostore.FirstOrderDataGenerator(model, output_mode="logits", batch_size=BATCH)
    traced(
        lambda: generator.generate_distributions(
            inputs, store=path, model_fingerprint="a model", progress=False
        )
    )
    measures["batch written"] = figures(calls[starts[-3] : starts[-2]], BATCH)

    with fostore.create(
        os.path.join(folder, "written.zarr"), num_samples=8 * BATCH, num_classes=CLASSES
    ) as writer:

        def append():
            writer.append(probs)
            writer.commit()

        append()
        measures["append, commit"] = traced(append)

    pairs = iter(
        fostore.output_dataloader(inputs, path, batch_size=READ, shuffle=True, seed=0, prefetch=0)
    )
    next(pairs)
    measures["batch read"] = traced(lambda: next(pairs), READ)

    chosen = random.permutation(len(inputs))[:READ]
    fostore.open(path).take(chosen)
    store = fostore.open(path)
    measures["take"] = traced(lambda: store.take(chosen))
    fostore.open(path)[5]
    measures["open(x)[5]"] = traced(lambda: fostore.open(path)[5])
print(json.dumps({f"{k}: {f}": n for k, both in measures.items() for f, n in both.items()}))
"""


def calls(package: Path) -> dict[str, float]:
    """Calls and changes of file for each kind of work."""
    environment = os.environ | {"PYTHONPATH": str(package.parent), "OMP_NUM_THREADS": "1"}
    # -P: without it the folder that we are called in comes before the checkout that is asked for.
    command = [sys.executable, "-P", "-c", TRACED]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{package}: {done.stderr[-2000:]}")
    figures: dict[str, float] = json.loads(done.stdout)
    return figures


# ---------------------------------------------------------------- the report


def measure(root: Path) -> dict[str, float]:
    """Every measure of the package in a checkout, in the order of `GOALS`."""
    package = package_of(root)
    modules = modules_of(package)
    names = frozenset(modules)
    lines = [path.read_bytes().count(b"\n") for path, _ in modules.values()]
    statements = [imports_of(tree) for _, tree in modules.values()]
    everywhere = graph_of(modules, lambda statement: True)
    public = [public_names(tree) for _, tree in modules.values()]
    code, comments = map(
        sum, zip(*(code_and_comments(*module) for module in modules.values()), strict=True)
    )
    figures = {
        "modules": len(modules),
        "lines": sum(lines),
        "median file": statistics.median(lines),
        "largest file": max(lines),
        "imports a module": round(sum(map(len, everywhere.values())) / len(names), 2),
        "imports in functions": sum(one.inside for many in statements for one in many),
        "public names": sum(names for names, _ in public),
        "public constants": sum(constants for _, constants in public),
        "code lines a comment": round(code / max(comments, 1), 1),
        "depth of imports": depth(
            graph_of(modules, lambda statement: not statement.inside and not statement.typing)
        ),
        "import circles": len(circles(modules)),
        "names called found": sum(uses("found", tree) for _, tree in modules.values()),
        **calls(package),
    }
    assert list(figures) == list(GOALS), "each measure has a goal, or None"
    return figures


def main() -> None:
    """Print the table, or its figures as JSON."""
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    options.add_argument("--root", type=Path, nargs="+", help="checkouts, default: this one")
    options.add_argument("--json", action="store_true", help="print JSON, a checkout an object")
    arguments = options.parse_args()
    roots = arguments.root or [Path(__file__).resolve().parent.parent]
    columns = [measure(root) for root in roots]
    if arguments.json:
        print(json.dumps(columns if arguments.root and len(roots) > 1 else columns[0], indent=2))
        return
    heads = [root.resolve().name for root in roots] if len(roots) > 1 else ["now"]
    print(f"{'measure':32}" + "".join(f"{head:>12}" for head in [*heads, "goal"]))
    for name, goal in GOALS.items():
        row = [*(figures[name] for figures in columns), "" if goal is None else goal]
        print(f"{name:32}" + "".join(f"{figure:>12}" for figure in row))
    for root in roots:
        for group in circles(modules_of(package_of(root))):
            print("circle:", ", ".join(sorted(group)))


if __name__ == "__main__":
    main()
