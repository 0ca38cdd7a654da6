"""What every document of a bundle says of its store: read once, so that no two documents disagree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fostore.encodings import default_encoding
from fostore.publishing.facts import Facts
from fostore.publishing.manifest import Entry
from fostore.reading.store import Store


@dataclass(frozen=True, slots=True)
class Described:
    """A store, the facts about it, and the files of its bundle."""

    store: Store
    facts: Facts
    version: str
    store_path: str
    """Of the store in the bundle, such as "data/digits.zarr"."""
    parquet: str | None
    """Of the same rows as Parquet in the bundle; None where nobody asked for it."""
    files: Sequence[Entry]
    """Those of the payload."""
    tree: str

    @property
    def name(self) -> str:
        """A short name for addresses and identifiers."""
        return self.facts.name or _slug(self.store.path.stem)

    @property
    def title(self) -> str:
        """What readers call the dataset."""
        return self.facts.title or f"{self.name}: predictive distributions"

    @property
    def license(self) -> str:
        """The SPDX expression of the rows' licence."""
        assert self.facts.license is not None, "publish checks that"
        return self.facts.license

    @property
    def license_url(self) -> str | None:
        """Where the licence is to be read; None for terms of one's own and for expressions."""
        if " " in self.license or self.license.startswith("LicenseRef-"):
            return None
        return f"https://spdx.org/licenses/{self.license}.html"

    @property
    def description(self) -> str:
        """What was said, and what the store says of its rows."""
        return f"{(self.facts.description or '').rstrip('.')}. {self.rows_in_words}"

    @property
    def rows_in_words(self) -> str:
        """One sentence: how many distributions, over what, stored as what."""
        schema = self.store.schema
        members = f"{schema.num_members} members' " if schema.num_members else ""
        each = "distributions" if schema.num_members else "one distribution"
        is_core = schema.encoding == default_encoding(schema.kind)
        stored = schema.kind if is_core else f"{schema.kind} ({schema.encoded})"
        sequences = self.store.num_sequences
        of = "samples" if sequences is None else f"tokens of {sequences:,} sequences"
        return (
            f"For each of {len(self.store):,} {of}: {members}{each} over {schema.num_classes:,} "
            f"classes, stored as {stored} in {schema.dtype}."
        )

    @property
    def date(self) -> str:
        """The day of publication, YYYY-MM-DD."""
        return self.facts.date or self.store.header.updated[:10]

    @property
    def year(self) -> int:
        """Of publication."""
        return int(self.date[:4])

    @property
    def url(self) -> str | None:
        """Where the dataset is found: its DOI before its address."""
        return f"https://doi.org/{self.facts.doi}" if self.facts.doi else self.facts.url

    @property
    def num_bytes(self) -> int:
        """Of the payload."""
        return sum(file.size for file in self.files)

    @property
    def keywords(self) -> tuple[str, ...]:
        """Tags of readers' searches, without those that are there already."""
        own = ("first-order data", "predictive distributions", "uncertainty", "distillation")
        return tuple(dict.fromkeys((*own, *self.facts.tags)))


def _slug(text: str) -> str:
    """A text as a short name: letters, digits, '.', '_' and '-'.

    >>> _slug("ViT on ImageNet (val)")
    'ViT-on-ImageNet-val'
    """
    kept = "".join(c if c.isascii() and (c.isalnum() or c in "._") else "-" for c in text)
    return "-".join(filter(None, kept.split("-"))).strip("._")[:96] or "dataset"
