"""How to cite: CITATION.cff (Citation File Format 1.2), BibTeX, and a line for a paper."""

from __future__ import annotations

import json
import re

from fostore.publishing.described import Described
from fostore.publishing.facts import Creator


def cff(described: Described) -> bytes:
    """CITATION.cff. Its texts are quoted as JSON quotes them, which YAML reads."""
    lines = [
        "cff-version: 1.2.0",
        "message: If you use this dataset, please cite it as below.",
        "type: dataset",
        f"title: {_quoted(described.title)}",
        f"version: {_quoted(described.version)}",
        f"date-released: {_quoted(described.date)}",
        "authors:",
    ]
    for creator in described.facts.creators:
        lines.append(f"  - name: {_quoted(creator.name)}")
        if creator.orcid:
            lines.append(f"    orcid: {_quoted(creator.orcid)}")
    if described.license_url:
        lines.append(f"license: {described.license}")
    if described.facts.doi:
        lines.append(f"doi: {_quoted(described.facts.doi)}")
    if described.facts.url:
        lines.append(f"url: {_quoted(described.facts.url)}")
    lines.append(f"abstract: {_quoted(described.description)}")
    lines.append("keywords:")
    lines += [f"  - {_quoted(word)}" for word in described.keywords]
    lines.append("identifiers:")
    lines.append("  - type: other")
    lines.append(f"    value: {_quoted(described.store.digest())}")
    lines.append("    description: digest of the rows, the same in every format (fostore)")
    return ("\n".join(lines) + "\n").encode("utf-8")


def bibtex(described: Described) -> str:
    """An entry of type `misc`: what BibTeX's own styles have for data."""
    authors = " and ".join(f"{{{_latex(creator.name)}}}" for creator in described.facts.creators)
    entries = {
        "author": authors,
        "title": f"{{{_latex(described.title)}}}",
        "year": str(described.year),
        "version": described.version,
        "howpublished": f"\\url{{{described.url}}}" if described.url else "Dataset",
        "doi": described.facts.doi or "",
        "note": f"Dataset, {_latex(described.store.digest()[:23])}",
    }
    body = ",\n".join(f"  {key} = {{{value}}}" for key, value in entries.items() if value)
    return f"@misc{{{_key(described)},\n{body}\n}}\n"


def line(described: Described) -> str:
    """The line for a paper that has no BibTeX."""
    where = described.url or f"digest {described.store.digest()}"
    return (
        f"{_names(described.facts.creators)} ({described.year}). {described.title} (version "
        f"{described.version}) [Data set]. {where}"
    )


def _names(creators: tuple[Creator, ...]) -> str:
    names = [creator.name for creator in creators]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} & {names[-1]}"


def _key(described: Described) -> str:
    family = described.facts.creators[0].name.split()[-1]
    return re.sub(r"[^A-Za-z0-9:-]", "", f"{family}{described.year}:{described.name}") or "dataset"


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _latex(text: str) -> str:
    """A text whose special characters LaTeX prints."""
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    return "".join(special.get(c) or (f"\\{c}" if c in "&%$#_{}" else c) for c in text)
