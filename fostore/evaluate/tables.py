"""Tables, facts and figures of a report as HTML: they escape what they are given."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fostore.evaluate.sums import Moments
from fostore.schema.shown import brief, escaped


def figure(name: str, drawn: Mapping[str, str], caption: str) -> str:
    """A picture and its caption; nothing where it is not drawn."""
    if name not in drawn:
        return ""
    words = f'<figcaption id="{name}-caption">{escaped(caption)}</figcaption>'
    return f"<figure>\n{drawn[name]}\n{words}\n</figure>"


def facts(pairs: Iterable[tuple[str, Any]]) -> str:
    """Names, and what is known of each beside them."""
    lines = (row(brief(name, 80), [brief(value)]) for name, value in pairs)
    return f'<table class="facts"><tbody>{"".join(lines)}</tbody></table>'


def moments(named: Mapping[str, Moments | None]) -> str:
    """The mean and the range of each figure that is known."""
    rows = [
        (name, *map(brief, (each.mean, each.std, each.least, each.most)))
        for name, each in named.items()
        if each is not None
    ]
    return table(("", "mean", "std", "least", "most"), rows, "")


def table(heads: Sequence[str], rows: Iterable[Sequence[str]], caption: str, kind: str = "") -> str:
    """A table whose first cells say what their rows are."""
    return framed(heads, [row(first, others) for first, *others in rows], caption, kind)


def framed(
    heads: Sequence[str], lines: Iterable[str], caption: str, kind: str = "", last: str = ""
) -> str:
    """The lines of a table under their heads; it scrolls by itself where it is wider than the page."""
    cells = "".join(
        f'<th scope="col"><bdi>{escaped(head)}</bdi></th>' if head else "<td></td>"
        for head in heads
    )
    named = f"<caption>{escaped(caption)}</caption>" if caption else ""
    head = (
        f"<table{f' class={kind!r}' if kind else ''}>{named}<thead><tr>{cells}{last}</tr></thead>"
    )
    body = f"{head}<tbody>{''.join(lines)}</tbody></table>"
    label = escaped(caption or "Table")
    return f'<div class="scroll" tabindex="0" role="group" aria-label="{label}">{body}</div>'


def row(first: str, cells: Iterable[str], last: str = "") -> str:
    """A line of a table; `last` is HTML already."""
    inner = "".join(f"<td><bdi>{escaped(cell)}</bdi></td>" for cell in cells)
    return f'<tr><th scope="row"><bdi>{escaped(first)}</bdi></th>{inner}{last}</tr>'
