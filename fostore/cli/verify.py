"""`fostore verify`: whether a store holds what it promises."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

import fostore
from fostore.cli.report import FAILED, StorePath, reporting, say, show_facts
from fostore.errors import ArgumentError, DamageError, FostoreError
from fostore.places.names import local_path, place_of
from fostore.schema.ranges import describe
from fostore.schema.shown import wrapped

EXAMPLES = """
Examples:

`fostore verify digits.zarr`

`fostore verify published/digits --key ada.pub`

`fostore verify s3://bucket/digits`

`fostore verify digits.zarr --level checksums && rsync -a digits.zarr backup:`

Exit codes: 0 nothing wrong, or warnings alone; 1 damage; 2 wrong usage; 3 not a store that can be read.
"""

_HELD = {
    "structure": "the files are whole",
    "checksums": "the files are whole and hold what was written",
    "full": "the files are whole, hold what was written, and every row is a distribution",
}


def verify(
    path: StorePath,
    level: Annotated[
        Literal["structure", "checksums", "full"],
        typer.Option(
            help="structure reads no rows; checksums reads all and compares hashes and digest; "
            "full also checks that every row is a distribution."
        ),
    ] = "full",
    key: Annotated[
        Path | None,
        typer.Option(
            help="Of a bundle: the public key by which its rows must be signed.",
            metavar="PUB",
            show_default=False,
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The findings, as JSON.")] = False,
) -> None:
    """Check a store or a published bundle, in a folder or behind a url: files, checksums and rows.

    What is not finished is not damaged. Of a bundle every file is checked.
    """
    with reporting():
        state, findings = _check(path, level, key)
        damage = [finding for finding in findings if finding["severity"] == "damage"]
        if state["sealed"] is False:
            planned = "" if state["planned"] is None else f" of {state['planned']:,}"
            say(f"{path} is not finished: {state['rows']:,}{planned} rows are committed")
        facts = {"path": path, "level": level, **state, "findings": findings}
        lines = [_line(finding) for finding in findings]
        if not damage:
            rows = "1 row" if state["rows"] == 1 else f"{state['rows']:,} rows"
            lines.append(wrapped(f"{path}: {rows}, {_HELD[level]}"))
        show_facts(facts, lines, as_json)
        if damage:
            say(f"{len(damage)} finding{'s' if len(damage) > 1 else ''}")
            raise typer.Exit(FAILED)


def _check(path: str, level: str, key: Path | None) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """How far a store is, and what is wrong with it.

    A store so damaged that it does not open is a finding, its state is then unknown (None).
    """
    from fostore.formats import Finding  # loads NumPy, which half of the commands never need
    from fostore.publishing import bundle, verification
    from fostore.reading.named import manifest_text, parse_manifest

    state: dict[str, Any] = {"rows": None, "planned": None, "sealed": None}
    place = place_of(path)
    if place.is_local and path.lower().endswith(".zip"):
        bundle.read_manifest(local_path(path))  # refuses an archive, and says how to unpack it
    text = manifest_text(place)
    if text is not None:
        with suppress(FostoreError):  # what cannot be read is a finding
            rows = parse_manifest(text, path)["num_samples"]
            state = {"rows": rows, "planned": rows, "sealed": True}
        findings = list(verification.verify(place, level, key, shown=True))
    elif key is not None:
        raise ArgumentError(f"{path} is no bundle, and --key checks the signature of one")
    else:
        try:
            store = fostore.open(path)
        except DamageError as error:  # so bad that nothing else can be asked of it
            findings = [Finding(path, rows, str(error)) for rows in error.rows or (None,)]
        else:
            state = {"rows": len(store), "planned": store.num_samples, "sealed": store.is_sealed}
            findings = store.verify(level=level)
    return state, [
        {**asdict(finding), "rows": finding.rows and list(finding.rows)} for finding in findings
    ]


def _line(finding: dict[str, Any]) -> str:
    rows = "" if finding["rows"] is None else f" ({describe([tuple(finding['rows'])])})"
    prefix = "warning: " if finding["severity"] == "warning" else ""
    return wrapped(f"{prefix}{finding['where']}: {finding['message']}{rows}")
