"""croissant.json: what a machine needs to load the dataset (MLCommons Croissant 1.1)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fostore.publishing.described import Described
from fostore.publishing.documents.citation import bibtex
from fostore.schema import jsontext
from fostore.schema.row import Column

VERSION = "http://mlcommons.org/croissant/1.1"
_CONTEXT = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "arrayShape": "cr:arrayShape",
    "citeAs": "cr:citeAs",
    "column": "cr:column",
    "conformsTo": "dct:conformsTo",
    "containedIn": "cr:containedIn",
    "cr": "http://mlcommons.org/croissant/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "description": {"@container": "@language"},
    "equivalentProperty": "cr:equivalentProperty",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "extract": "cr:extract",
    "field": "cr:field",
    "fileObject": "cr:fileObject",
    "fileProperty": "cr:fileProperty",
    "fileSet": "cr:fileSet",
    "format": "cr:format",
    "includes": "cr:includes",
    "isArray": "cr:isArray",
    "isLiveDataset": "cr:isLiveDataset",
    "jsonPath": "cr:jsonPath",
    "key": "cr:key",
    "md5": "cr:md5",
    "name": {"@container": "@language"},
    "parentField": "cr:parentField",
    "path": "cr:path",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "recordSet": "cr:recordSet",
    "references": "cr:references",
    "regex": "cr:regex",
    "repeated": "cr:repeated",
    "replace": "cr:replace",
    "samplingRate": "cr:samplingRate",
    "sc": "https://schema.org/",
    "separator": "cr:separator",
    "source": "cr:source",
    "subField": "cr:subField",
    "transform": "cr:transform",
}
"""The specification's own, which validators compare with."""
_TYPES = {
    "float16": "cr:Float16",
    "bfloat16": "cr:Float32",  # which is how Parquet holds it
    "float32": "cr:Float32",
    "float64": "cr:Float64",
    "uint8": "cr:UInt8",
    "uint16": "cr:UInt16",
    "uint32": "cr:UInt32",
    "uint64": "cr:UInt64",
    "int64": "cr:Int64",
    "utf8": "sc:Text",
}


def text(described: Described) -> bytes:
    """The document. Record sets stand over Parquet alone: over Zarr and HDF5 validators pass what cannot be loaded."""
    facts = described.facts
    document: dict[str, Any] = {
        "@context": _CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": VERSION,
        "name": described.name,
        "alternateName": described.title,
        "description": described.description,
        "version": described.version,
        "datePublished": described.date,
        "license": described.license_url or described.license,
        "creator": [_person(creator.name, creator.orcid) for creator in described.facts.creators],
        "keywords": list(described.keywords),
        "isLiveDataset": False,
        "citeAs": bibtex(described),
        "distribution": list(_distribution(described)),
    }
    if described.url:
        document["url"] = described.url
    if facts.dataset:
        document["isBasedOn"] = facts.dataset
    if described.parquet:
        document["recordSet"] = [_records(described)]
    return jsontext.dumps(document, indent=2) + b"\n"


def _person(name: str, orcid: str | None) -> dict[str, str]:
    return {"@type": "Person", "name": name, **({"url": orcid} if orcid else {})}


def _distribution(described: Described) -> Iterator[dict[str, Any]]:
    """Every file of the payload by name, size and hash; a folder's files are no FileSet, which has no hash."""
    for file in described.files:
        yield {
            "@type": "cr:FileObject",
            "@id": file.name,
            "name": file.name,
            "contentUrl": file.name,
            "contentSize": f"{file.size} B",
            "encodingFormat": _media_type(file.name),
            "sha256": file.sha256,
        }


def _media_type(name: str) -> str:
    suffixes = {
        ".parquet": "application/x-parquet",
        ".h5": "application/x-hdf5",
        ".hdf5": "application/x-hdf5",
        ".json": "application/json",
        ".zip": "application/zip",
    }
    return next(
        (kind for suffix, kind in suffixes.items() if name.endswith(suffix)),
        "application/octet-stream",
    )


def _records(described: Described) -> dict[str, Any]:
    key = described.store.schema.role("id")
    records: dict[str, Any] = {
        "@type": "cr:RecordSet",
        "@id": "rows",
        "name": "rows",
        "description": described.rows_in_words,
        "field": [
            _field(described, column)
            for column in described.store.schema.columns
            if column.role in ("content", "id", "class_label")
        ],
    }
    if key is not None:
        records["key"] = {"@id": f"rows/{key.name}"}
    return records


def _field(described: Described, column: Column) -> dict[str, Any]:
    field: dict[str, Any] = {
        "@type": "cr:Field",
        "@id": f"rows/{column.name}",
        "name": column.name,
        "description": _meaning(described, column),
        "dataType": _TYPES[column.dtype],
        "source": {
            "fileObject": {"@id": described.parquet},
            "extract": {"column": column.name},
        },
    }
    if column.shape and column.dtype != "utf8":
        field["isArray"] = True
        field["arrayShape"] = ",".join(str(n) for n in column.shape)  # the specification's "10"
    return field


def _meaning(described: Described, column: Column) -> str:
    if column.role == "id":
        return "The key of the sample."
    if column.role == "class_label":
        return "The class of the sample as its dataset has it, a number from 0 in the order of the classes."
    axes = " x ".join(f"{axis} {n:,}" for axis, n in zip(column.axes, column.shape, strict=True))
    what = described.store.schema.kind if column.name == "distributions" else column.name
    return f"{what} ({column.dtype}{', ' + axes if axes else ''}) of the sample's row."
