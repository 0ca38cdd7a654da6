"""Makes the site's search work in pages that are opened from disk: the index and lunr.js as one script.

A hook that `mkdocs.yml` names; `theme/search.html` is the page that loads the script.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mkdocs.contrib import search


def on_post_build(config: Any) -> None:
    """Called when all pages, and the index of the search plugin, are written."""
    folder = Path(config.site_dir) / "search"
    index = (folder / "search_index.json").read_text(encoding="utf-8")
    lunr = Path(search.__file__).parent / "templates" / "search" / "lunr.js"
    script = f"{lunr.read_text(encoding='utf-8')}\nconst SEARCHED = {index};\n"
    (folder / "search.js").write_text(script, encoding="utf-8")
