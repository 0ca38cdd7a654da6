"""Reads the house style of docstrings for the site: doctests without a heading, groups of arguments.

A griffe extension that `mkdocs.yml` names; the parser of Google's style does the rest.
"""

from __future__ import annotations

import re
from typing import Any

import griffe

_GROUPS = ("With a store, and only then", "In both cases")
"""Headings that divide the arguments of `generate_distributions`."""


def to_google(text: str) -> str:
    """A docstring as Google's style has it: examples under `Examples:`, groups as `Args: ...`."""
    text = re.sub(rf"^({'|'.join(_GROUPS)}):$", r"Args: \1:", text, flags=re.MULTILINE)
    text = re.sub(r"::$", ":", text, flags=re.MULTILINE)  # what follows is indented, so code
    lines: list[str] = []
    inside = False
    for line in text.splitlines():
        if line.startswith(">>>") and not inside:
            lines += ["Examples:"]
            inside = True
        elif not line.strip():
            inside = False
        lines.append(f"    {line}" if inside else line)
    return "\n".join(lines)


class HouseStyle(griffe.Extension):
    """Rewrites each docstring when it is collected."""

    def on_instance(self, *, obj: griffe.Object, **others: Any) -> None:
        """Called for each module, class, function and attribute."""
        if obj.docstring is not None:
            obj.docstring.value = to_google(obj.docstring.value)
