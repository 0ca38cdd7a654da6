"""`report.html`: what the rows look like, on one page; drawn where matplotlib is installed."""

from __future__ import annotations

from fostore.evaluate.html import report
from fostore.publishing.described import Described
from fostore.schema.shown import escaped


def text(described: Described) -> bytes:
    """The page, from one pass over the rows; of a store without rows it says that alone."""
    title = described.title
    if not len(described.store):
        words = escaped(title)
        return f"<!doctype html>\n<title>{words}</title>\n<p>{words} has no rows.\n".encode()
    # Rows that leave the other classes open are shown as if these had equal shares, and the page says so.
    is_open = described.store.schema.encoding.get("rule") in ("coarse", "zero")
    return report(described.store, title=title, rule="uniform" if is_open else None).encode("utf-8")
