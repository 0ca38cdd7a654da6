"""How a value shows itself to people: a small table, as text, as HTML, as CSV or for a paper, escaped in each.

What it shows may be a stranger's: names and metadata are shown as they are, and command nothing.
"""

from __future__ import annotations

import csv
import html
import io
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_UNSHOWN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)
_WIDTH = 80
_CELL = 200
"""Characters of a cell: what is longer is named by its beginning."""
_MANY = 6
"""Entries of one value that are shown one by one."""
_TEX = {
    "\\": r"\textbackslash{}",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
}


def plain(text: str) -> str:
    """A text without what commands a terminal: names and metadata of a stranger's store are shown as they are.

    Such characters come as JSON writes them, so that JSON stays JSON.
    """
    return _UNSHOWN.sub(lambda match: f"\\u{ord(match.group()):04x}", text)


def escaped(text: Any) -> str:
    """A text as HTML, in an element or an attribute."""
    return html.escape(plain(str(text)))


def brief(value: Any, width: int = _CELL) -> str:
    """A value on one line of at most `width` characters; numbers with four digits.

    >>> brief(0.123456), brief(12345), brief("a" * 9, 6)
    ('0.1235', '12,345', 'aaaaa…')
    """
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    # Cut first: a text may be megabytes long.
    text = " ".join(plain(str(value)[: 4 * width]).split())
    return text if len(text) <= width else f"{text[: width - 1]}…"


def flat(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested values as dotted keys, a line each; what is too much for people to read is counted."""
    for key, item in value.items():
        nested = isinstance(item, list) and item and all(isinstance(i, Mapping) for i in item)
        if isinstance(item, (Mapping, list)) and len(item) > _MANY:
            yield f"{prefix}{key}", f"{counted(len(item), 'entry')}, see --json"
        elif isinstance(item, Mapping) or nested:
            inner = item if isinstance(item, Mapping) else dict(enumerate(item))
            yield from flat({str(k): v for k, v in inner.items()}, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", item


def counted(number: int, noun: str) -> str:
    """A number with its noun.

    >>> counted(1, "sample"), counted(2000, "class"), counted(3, "entry")
    ('1 sample', '2,000 classes', '3 entries')
    """
    if number == 1:
        return f"1 {noun}"
    many = f"{noun[:-1]}ies" if noun[-1] == "y" else f"{noun}es" if noun[-1] == "s" else f"{noun}s"
    return f"{number:,} {many}"


def labelled(label: str, value: str, wide: int, width: int = _WIDTH) -> list[str]:
    """A label and what stands beside it, in lines of at most `width` characters.

    A word that has no room beside its label, such as a digest, stands below it: broken, nobody could copy it.
    """
    front = f"  {label:<{wide}}"
    room = width - len(front)
    if len(front) + len(value) <= width:
        return [f"{front}{value}".rstrip()]
    whole = max(map(len, value.split()), default=0) <= room
    lines = textwrap.wrap(value, room if whole else width - 4, break_on_hyphens=False)
    if whole:
        return [f"{front}{lines[0]}", *(f"{' ' * len(front)}{line}" for line in lines[1:])]
    return [front.rstrip(), *(f"    {line}" for line in lines)]


def wrapped(text: str, width: int = _WIDTH) -> str:
    """A text as lines of a terminal, whose words stay whole: a path or a digest that is broken nobody can copy."""
    whole: dict[str, Any] = {"break_long_words": False, "break_on_hyphens": False}
    return "\n".join(textwrap.wrap(text, width, subsequent_indent="  ", **whole))


def tabled(title: str, rows: Sequence[tuple[str, str]]) -> str:
    """What is said of a title, a label and a value each, in full and in lines of a terminal."""
    wide = max(len(label) for label, _ in rows) + 2
    lines = [line for label, value in rows for line in labelled(label, value, wide)]
    return "\n".join([wrapped(title), *lines])


@dataclass(frozen=True, slots=True)
class Grid:
    """Rows of cells under a title: what `repr`, notebooks, `to_csv` and `to_latex` show of one value."""

    title: str
    rows: Sequence[Sequence[Any]]
    columns: Sequence[str] = ()
    """The heads, one a cell of each row; none where the first cell of a row says what it is."""

    def text(self, width: int = _WIDTH) -> str:
        """The grid in lines of at most `width` characters."""
        heads = [list(self.columns)] if self.columns else []
        cells = heads + [[brief(cell) for cell in row] for row in self.rows]
        if not cells:
            return self.title
        lines = textwrap.wrap(brief(self.title), width) or [""]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        if self.columns:  # of numbers, to the right
            widths[0] = max(min(widths[0], width - 2 - sum(widths[1:]) - 2 * len(widths[1:])), 8)
            for first, *others in cells:
                numbers = "".join(f"  {c:>{w}}" for c, w in zip(others, widths[1:], strict=True))
                lines.append(f"  {brief(first, widths[0]):<{widths[0]}}{numbers}"[:width].rstrip())
            return "\n".join(lines)
        wide = min(widths[0], width // 3) + 2
        for label, *values in cells:
            lines += labelled(brief(label, wide - 2), "  ".join(values), wide, width)
        return "\n".join(lines)

    def html(self) -> str:
        """The grid as an HTML table of its own, without a style."""
        heads = "".join(f'<th scope="col">{escaped(head)}</th>' for head in self.columns)
        lines = [f"<table><caption>{escaped(brief(self.title))}</caption>"]
        if heads:
            lines.append(f"<thead><tr>{heads}</tr></thead>")
        lines.append("<tbody>")
        for first, *others in self.rows:
            cells = "".join(f"<td>{escaped(brief(cell))}</td>" for cell in others)
            lines.append(f'<tr><th scope="row">{escaped(brief(first))}</th>{cells}</tr>')
        return "\n".join([*lines, "</tbody></table>"])

    def to_csv(self) -> str:
        """The grid as CSV, numbers in full."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerows([self.columns] if self.columns else [])
        writer.writerows([_whole(cell) for cell in row] for row in self.rows)
        return text.getvalue()

    def to_latex(self) -> str:
        """The grid as a LaTeX tabular (package booktabs), numbers with four digits."""
        size = len(self.rows[0]) if self.rows else len(self.columns)
        lines = [rf"\begin{{tabular}}{{l{'r' * (size - 1)}}}", r"\toprule"]
        if self.columns:
            lines += [" & ".join(map(_tex, self.columns)) + r" \\", r"\midrule"]
        lines += [" & ".join(map(_tex, row)) + r" \\" for row in self.rows]
        return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


class Shown:
    """What has a `grid`: `repr` is its lines, and a notebook shows its table."""

    __slots__ = ()

    def grid(self) -> Grid:
        """What is shown of it."""
        raise NotImplementedError

    def __repr__(self) -> str:
        return self.grid().text()

    def _repr_html_(self) -> str:
        return self.grid().html()


class Tabled(Shown):
    """What a paper has a table of."""

    __slots__ = ()

    def to_csv(self) -> str:
        """The figures as CSV, in full."""
        return self.grid().to_csv()

    def to_latex(self) -> str:
        """The figures as a LaTeX tabular (package booktabs), with four digits."""
        return self.grid().to_latex()


def _whole(cell: Any) -> Any:
    return cell if isinstance(cell, (int, float)) else plain(str(cell))


def _tex(cell: Any) -> str:
    text = cell.replace("\n", " ") if isinstance(cell, str) else brief(cell)
    return "".join(_TEX.get(sign, sign) for sign in plain(text))
