"""README.md: the card that people read first, with front matter that the Hugging Face Hub reads."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from fostore.encodings import encoding_of
from fostore.encodings.fidelity import fidelity_lines
from fostore.evaluate.sections import plain_code, rounding
from fostore.publishing.described import Described
from fostore.publishing.documents import citation

_SIZES = (
    (1_000, "n<1K"),
    (10_000, "1K<n<10K"),
    (100_000, "10K<n<100K"),
    (1_000_000, "100K<n<1M"),
    (10_000_000, "1M<n<10M"),
    (100_000_000, "10M<n<100M"),
    (1_000_000_000, "100M<n<1B"),
    (10_000_000_000, "1B<n<10B"),
    (100_000_000_000, "10B<n<100B"),
    (1_000_000_000_000, "100B<n<1T"),
)
"""The hub's size categories."""
_HUB_LICENSES = frozenset(
    "apache-2.0 mit cc0-1.0 cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 "
    "cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nd-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 "
    "cc-by-nc-sa-4.0 bsd-2-clause bsd-3-clause gpl-2.0 gpl-3.0 agpl-3.0 lgpl-3.0 mpl-2.0 unlicense odbl pddl "
    "cdla-permissive-1.0 cdla-permissive-2.0 cdla-sharing-1.0 odc-by isc wtfpl zlib artistic-2.0 afl-3.0".split()
)
"""The licences that the hub knows by name; all others are `other`, with their name."""
_MANY_CLASSES = 20


def _size_category(rows: int) -> str:
    """The hub's category for so many rows.

    >>> _size_category(1_797)
    '1K<n<10K'
    """
    return next((name for limit, name in _SIZES if rows < limit), "n>1T")


def text(described: Described) -> bytes:
    """The card."""
    front = "\n".join(_front_matter(described))
    return ("\n\n".join([front, *_body(described)]) + "\n").encode("utf-8")


def _front_matter(described: Described) -> Iterator[str]:
    license_id = described.license.lower()
    yield "---"
    yield f"pretty_name: {json.dumps(described.title, ensure_ascii=False)}"
    if license_id in _HUB_LICENSES:
        yield f"license: {license_id}"
    else:
        yield "license: other"
        yield f"license_name: {license_id.replace(' ', '-')}"
        yield "license_link: LICENSE"
    yield "task_categories:"
    yield "  - other"
    yield "size_categories:"
    yield f"  - {_size_category(len(described.store))}"
    yield "tags:"
    for tag in (*described.keywords, "fostore"):
        yield f"  - {json.dumps(tag, ensure_ascii=False)}"
    if described.parquet:
        yield "configs:"
        yield "  - config_name: default"
        yield "    data_files:"
        yield "      - split: train"
        yield f"        path: {described.parquet}"
    else:
        yield "viewer: false  # the hub reads Parquet, not Zarr or HDF5"
    yield "---"


def _body(described: Described) -> Iterator[str]:
    """The blocks of the card, which an empty line parts."""
    store, schema, facts = described.store, described.store.schema, described.facts
    yield f"# {described.title}"
    yield described.description
    rows: dict[str, Any] = {
        "rows": f"{len(store):,}",
        "classes": f"{schema.num_classes:,}",
        "members": schema.num_members,
        "stored as": f"{schema.kind}, {schema.dtype}, encoding {schema.encoded}",
        "temperature": f"{schema.temperature:g}",
        "format": f"{store.format} (`{described.store_path}`)",
        "size": f"{described.num_bytes:,} bytes in {len(described.files):,} files",
        "version": described.version,
        "digest": f"`{store.digest()}`",
        "licence": described.license,
        "licence of the model": facts.model_license or "not stated",
        "terms on its outputs": facts.outputs_license or "not stated",
    }
    cells = [f"| {key} | {_cell(value)} |" for key, value in rows.items() if value is not None]
    yield "\n".join(["| | |", "|---|---|", *cells])
    if names := schema.class_names:
        shown = ", ".join(f"{i}: {name}" for i, name in enumerate(names[:_MANY_CLASSES]))
        more = f", ... ({len(names):,} in all)" if len(names) > _MANY_CLASSES else ""
        yield f"Classes: {_cell(shown)}{more}"
    yield "## Where it comes from"
    software = ", ".join(f"{k} {v}" for k, v in store.header.software.items() if v)
    origins = {"base dataset": facts.dataset or "not stated", "model": facts.model or "not stated"}
    for made_from, known in store.header.identity.items():
        origins[f"identity of the {made_from}"] = _identity(known)
    origins["made with"] = _cell(software)
    yield "\n".join(f"- {what}: {origin}" for what, origin in origins.items())
    yield "## How to open it"
    yield from _opening(described)
    yield "## Fidelity"
    yield _fidelity(described)
    if facts.limits:
        yield "## Limits"
        yield facts.limits
    yield "## How to check it"
    yield _code(
        "sh",
        "sha256sum -c manifest-sha256.txt tagmanifest-sha256.txt\n"
        "fostore verify .   # also hashes every row and compares the digest",
    )
    yield "## How to cite it"
    yield _code("bibtex", citation.bibtex(described).rstrip())


def _code(language: str, text: str) -> str:
    return f"```{language}\n{text}\n```"


def _opening(described: Described) -> Iterator[str]:
    path, schema = described.store_path, described.store.schema
    yield "With [fostore](https://pypi.org/project/fostore/), mapped and not loaded:"
    rows = (
        "rows = store.take([0, 1, 2])  # distributions, in this order"
        if encoding_of(schema).is_whole(schema)
        else "topk = store.take_topk([0, 1, 2])  # the largest classes of each, and what all others weigh"
    )
    yield _code("python", f'import fostore\n\nstore = fostore.open("{path}")\n{rows}')
    yield "Beside the base dataset in a training loop (for JAX: `from fostore.jax import ...`, the same names):"
    yield _code(
        "python",
        "from fostore.torch import output_dataloader\n\n"
        "loader = output_dataloader(dataset, store, batch_size=128, shuffle=True)  # refuses another dataset",
    )
    yield "Without fostore:"
    yield _code(
        "python", plain_code(described.store.format, f'"{path}"', f'"{schema.columns[0].name}"')
    )
    if described.parquet:
        yield _code(
            "python",
            "import duckdb, polars\n\n"
            f"duckdb.sql(\"select * from '{described.parquet}' limit 3\")\n"
            f'polars.scan_parquet("{described.parquet}").head(3).collect()',
        )


def _fidelity(described: Described) -> str:
    """How far a stored number may be from the one that the model gave."""
    schema, lost = described.store.schema, fidelity_lines(described.store.header.fidelity)
    if lost:
        what = f"Rows are kept by the encoding `{schema.encoding['name']}`, which loses some of each (KL in nats):"
        return "\n".join([what, "", *(f"- {line}" for line in lost)])
    return rounding(schema)


def _identity(value: Any) -> str:
    """What is said of a model or dataset in a line: its name, and the hash that decides."""
    if not isinstance(value, Mapping):
        return f"`{_cell(value)}`" if value else "not known"
    shown = {k: v for k, v in value.items() if isinstance(v, (str, int, float)) and v != ""}
    return ", ".join(f"{k} `{_cell(v)}`" for k, v in list(shown.items())[:6]) or "not known"


def _cell(value: Any) -> str:
    """A stranger's text inside a table or a line of Markdown."""
    text = " ".join(str(value).split())
    return text.replace("|", "\\|").replace("<", "&lt;")
