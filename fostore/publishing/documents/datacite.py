"""datacite.json: what a DOI is registered with (DataCite metadata schema 4.5)."""

from __future__ import annotations

from typing import Any

from fostore.publishing.described import Described
from fostore.publishing.facts import Creator
from fostore.schema import jsontext

_FORMATS = {
    "zarr": "application/vnd+zarr",
    "hdf5": "application/x-hdf5",
    "json": "application/json",
}


def text(described: Described) -> bytes:
    """The document, without a DOI where none was given: who registers the dataset puts it in."""
    facts = described.facts
    rights: dict[str, str] = {"rights": described.license}
    if described.license_url:
        rights |= {
            "rightsUri": described.license_url,
            "rightsIdentifier": described.license.lower(),
            "rightsIdentifierScheme": "SPDX",
            "schemeUri": "https://spdx.org/licenses/",
        }
    document: dict[str, Any] = {
        "types": {"resourceType": "Dataset", "resourceTypeGeneral": "Dataset"},
        "creators": [_creator(creator) for creator in described.facts.creators],
        "titles": [{"title": described.title}],
        "publisher": {"name": described.facts.creators[0].name},
        "publicationYear": str(described.year),
        "subjects": [{"subject": word} for word in described.keywords],
        "dates": [
            {"date": described.date, "dateType": "Issued"},
            {"date": described.store.header.created, "dateType": "Created"},
        ],
        "version": described.version,
        "rightsList": [rights],
        "descriptions": [
            {"description": described.description, "descriptionType": "Abstract"},
        ],
        "sizes": [f"{described.num_bytes} bytes", f"{len(described.store)} rows"],
        "formats": [_FORMATS.get(described.store.format, "application/octet-stream")],
        "alternateIdentifiers": [
            {
                "alternateIdentifier": described.store.digest(),
                "alternateIdentifierType": "fostore digest",
            },
        ],
        "schemaVersion": "http://datacite.org/schema/kernel-4",
    }
    if facts.doi:
        document["doi"] = facts.doi
        document["prefix"], _, document["suffix"] = facts.doi.partition("/")
    if facts.url:
        document["url"] = facts.url
    related = [(facts.dataset, "IsDerivedFrom"), (facts.model, "IsDerivedFrom")]
    document["relatedIdentifiers"] = [
        {
            "relatedIdentifier": address,
            "relatedIdentifierType": "DOI" if address.startswith("10.") else "URL",
            "relationType": relation,
        }
        for address, relation in related
        if address
    ]
    return jsontext.dumps(document, indent=2) + b"\n"


def _creator(creator: Creator) -> dict[str, Any]:
    value: dict[str, Any] = {"name": creator.name}
    if creator.orcid:
        value["nameIdentifiers"] = [
            {
                "nameIdentifier": creator.orcid,
                "nameIdentifierScheme": "ORCID",
                "schemeUri": "https://orcid.org",
            }
        ]
    return value
