"""What a function's code is: its source as the syntax tree prints it, or else its byte code.

Layout, comments and docstrings do not count, so a notebook cell that is run again defines the same
code. Byte code changes with the version of Python, so an entry names it, and entries of two
versions say nothing about each other.
"""

from __future__ import annotations

import ast
import dis
import functools
import linecache
import sys
import sysconfig
import types
from collections.abc import Iterable, Iterator
from typing import Any

from fostore.schema.identity.hashing import hash_bytes

_SOURCE, _BYTE_CODE = "source", "byte code"
_OWN = "fostore"
_LIBRARY_FOLDERS = tuple(
    {sysconfig.get_paths()[name] for name in ("purelib", "platlib", "stdlib", "platstdlib")}
)
HEAP = 1 << 9
"""Py_TPFLAGS_HEAPTYPE: a class that was written in Python."""
_Function = ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda


@functools.lru_cache(maxsize=4096)
def is_library(module: str) -> bool:
    """Whether a module is installed, and thus known by its name: an upgrade changes its source only."""
    top = module.partition(".")[0]
    if top in sys.stdlib_module_names or top == _OWN:
        return True
    loaded = sys.modules.get(module) or sys.modules.get(top)
    file = getattr(loaded, "__file__", None) or next(iter(getattr(loaded, "__path__", ())), None)
    if file is None:
        return top in sys.builtin_module_names
    folders = ("site-packages", "dist-packages")  # of other prefixes too: a user's own, Debian's
    return file.startswith(_LIBRARY_FOLDERS) or any(f"/{name}/" in file for name in folders)


def is_of_library(kind: type) -> bool:
    """Whether a class belongs to a library; what `exec` makes without a `__name__` says "builtins"."""
    if kind.__module__ == "builtins":
        return not kind.__flags__ & HEAP
    return is_library(kind.__module__)


def code_entry(function: types.FunctionType) -> str:
    """The code of a Python function: "source HASH", or where there is none "byte code 3.12 HASH"."""
    text = source_of(function)
    if text is not None:
        return f"{_SOURCE} {hash_bytes(text.encode())}"
    version = ".".join(map(str, sys.version_info[:2]))
    return f"{_BYTE_CODE} {version} {hash_bytes(repr(_byte_code(function.__code__)).encode())}"


def is_comparable(old: str, new: str) -> bool:
    """Whether two entries that differ say that something changed, and not only how it was read."""
    kinds = [entry.rpartition(" ")[0] for entry in (old, new)]
    return kinds[0] == kinds[1] or not any(kind.startswith(_BYTE_CODE) for kind in kinds)


def is_byte_code(entry: str) -> bool:
    """Whether an entry was made of byte code."""
    return entry.startswith(_BYTE_CODE)


def source_of(function: types.FunctionType) -> str | None:
    """A function's source without comments, docstrings and layout; None where it cannot be functions."""
    code = function.__code__
    linecache.checkcache(code.co_filename)  # a module may have been edited and loaded again
    lines = linecache.getlines(code.co_filename, function.__globals__)
    entry: Any = linecache.cache.get(code.co_filename, (None, None))
    size, modified = entry[:2]
    if modified is None:  # no file: a notebook's cell, a prompt
        return _source_in("".join(lines), code)
    return _source_of_file(code, code.co_filename, size, modified)


@functools.lru_cache(maxsize=1 << 14)
def _source_of_file(code: types.CodeType, name: str, *version: Any) -> str | None:
    """The same, once for each version of a file: a model of a large library has functions in a hundred."""
    return _source_in("".join(linecache.getlines(name)), code)


def _source_in(text: str, code: types.CodeType) -> str | None:
    # By name too: where the file has changed since, another function may begin in that line.
    functions = _functions_in(text).get((code.co_firstlineno, code.co_name), ())
    if len(functions) > 1:  # lambdas of one line: the smallest one that holds the code
        places = [p for p in code.co_positions() if None not in p and (p[2], p[3]) != (0, 0)]
        holding = [node for node in functions if places and all(_holds(node, p) for p in places)]
        functions = tuple(sorted(holding, key=_length)[:1])
    return ast.unparse(functions[0]) if functions else None


@functools.lru_cache(maxsize=16)
def _functions_in(text: str) -> dict[tuple[int, str], tuple[_Function, ...]]:
    """The functions of a file by their first line (a decorator's counts) and name."""
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError):  # what lies there is not what was run
        return {}
    functions: dict[tuple[int, str], tuple[_Function, ...]] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Lambda):
            key = (node.lineno, "<lambda>")
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            first = min(part.lineno for part in (node, *node.decorator_list))
            key = (first, node.name)
        else:
            continue
        functions[key] = (*functions.get(key, ()), node)
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            _drop_docstring(node)
    return functions


def _drop_docstring(node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) -> None:
    first = node.body[0]
    if isinstance(first, ast.Expr) and isinstance(getattr(first.value, "value", None), str):
        node.body = node.body[1:] or [ast.Pass()]


def _holds(node: _Function, place: Any) -> bool:
    line, last_line, column, last_column = place
    # The body, not the whole node: the code of a lambda holds no instruction for its parameters.
    body: Any = node.body
    start, end = (body.lineno, body.col_offset), (body.end_lineno, body.end_col_offset)
    return bool(start <= (line, column) and (last_line, last_column) <= end)


def _length(node: Any) -> tuple[int, int]:
    return node.end_lineno - node.lineno, node.end_col_offset - node.col_offset


def _byte_code(code: types.CodeType) -> Any:
    """What a code object does, without where it stands."""
    consts = [
        _byte_code(c)
        if isinstance(c, types.CodeType)
        else sorted(map(repr, c))
        if isinstance(c, frozenset)
        else repr(c)
        for c in code.co_consts
    ]
    return code.co_code.hex(), code.co_names, code.co_varnames, code.co_freevars, consts


def filled_cells(cells: Iterable[Any]) -> list[Any]:
    """The cells of a closure that hold a value already."""
    filled = []
    for cell in cells:
        try:
            _ = cell.cell_contents
        except ValueError:  # a name that is bound later
            continue
        filled.append(cell)
    return filled


def names_read(code: types.CodeType) -> tuple[set[str], set[str]]:
    """The global names that a code object reads, and the attributes of anything."""
    named: set[str] = set()
    attributes: set[str] = set()
    for step in _steps(code):
        if step.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            named.add(step.argval)
        elif step.opname.startswith(("LOAD_ATTR", "LOAD_METHOD")):
            attributes.add(step.argval)
    return named, attributes


def _steps(code: types.CodeType) -> Iterator[dis.Instruction]:
    yield from dis.get_instructions(code)
    for const in code.co_consts:
        if isinstance(const, types.CodeType):  # a comprehension, a function inside
            yield from _steps(const)
