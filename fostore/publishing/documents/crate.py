"""ro-crate-metadata.json: the bundle as a research object (RO-Crate 1.1)."""

from __future__ import annotations

from typing import Any

from fostore.publishing.described import Described
from fostore.schema import jsontext

_VERSION = "https://w3id.org/ro/crate/1.1"


def text(described: Described) -> bytes:
    """The document: the root dataset, its files, who made it, and the action that made the rows."""
    facts = described.facts
    people = [
        {"@id": creator.orcid or f"#creator-{i}", "@type": "Person", "name": creator.name}
        for i, creator in enumerate(described.facts.creators)
    ]
    license_id = described.license_url or "LICENSE"
    root: dict[str, Any] = {
        "@id": "./",
        "@type": "Dataset",
        "name": described.title,
        "description": described.description,
        "datePublished": described.date,
        "version": described.version,
        "license": {"@id": license_id},
        "creator": [{"@id": person["@id"]} for person in people],
        "keywords": ", ".join(described.keywords),
        "identifier": described.store.digest(),
        "hasPart": [{"@id": file.name} for file in described.files],
        "mentions": {"@id": "#generation"},
    }
    if described.url:
        root["url"] = described.url
    graph: list[dict[str, Any]] = [
        {
            "@id": "ro-crate-metadata.json",
            "@type": "CreativeWork",
            "about": {"@id": "./"},
            "conformsTo": {"@id": _VERSION},
        },
        root,
        *people,
        {"@id": license_id, "@type": "CreativeWork", "name": described.license},
        *(
            {
                "@id": file.name,
                "@type": "File",
                "name": file.name,
                "contentSize": str(file.size),
                "sha256": file.sha256,
            }
            for file in described.files
        ),
    ]
    action: dict[str, Any] = {
        "@id": "#generation",
        "@type": "CreateAction",
        "name": "generation of the distributions",
        "endTime": described.store.header.updated,
        "result": {"@id": "./"},
        "instrument": {"@id": "#software"},
    }
    used: dict[str, str] = {}  # one address may be that of both
    for fact, name in ((facts.dataset, "the base dataset"), (facts.model, "the model")):
        if fact:
            address = f"https://doi.org/{fact}" if fact.startswith("10.") else fact
            used[address] = f"{used[address]} and {name}" if address in used else name
    if used:
        action["object"] = [{"@id": address} for address in used]
    for address, name in used.items():
        graph.append({"@id": address, "@type": "CreativeWork", "name": name})
    software = dict(described.store.header.software)
    graph.append(action)
    graph.append(
        {
            "@id": "#software",
            "@type": "SoftwareApplication",
            "name": "fostore",
            "version": str(software.get("fostore", described.store.header.version)),
        }
    )
    document = {"@context": f"{_VERSION}/context", "@graph": graph}
    return jsontext.dumps(document, indent=2) + b"\n"
