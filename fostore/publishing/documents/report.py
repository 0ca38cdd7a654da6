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
    return report(described.store, title=title).encode("utf-8")
