"""The documents of a bundle, each a pure function of what is described: one file here and one line below."""

from __future__ import annotations

from collections.abc import Callable

from fostore.publishing.described import Described
from fostore.publishing.documents import card, citation, crate, croissant, datacite, licence, report

DOCUMENTS: dict[str, Callable[[Described], bytes]] = {
    "croissant.json": croissant.text,
    "ro-crate-metadata.json": crate.text,
    "datacite.json": datacite.text,
    "CITATION.cff": citation.cff,
    "README.md": card.text,
    "LICENSE": licence.text,
    "report.html": report.text,
}
"""In the order in which they are written."""
