"""`fostore verify`: whether a store holds what it promises."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from fostore.cli.report import FAILED, reporting, say, show
from fostore.errors import DamageError, FostoreError

EXAMPLES = """
Examples:

`fostore verify digits.zarr`

`fostore verify digits.zarr --level checksums && rsync -a digits.zarr backup:`

Exit codes: 0 nothing wrong, or warnings alone; 1 damage; 2 wrong usage; 3 not a store that can be read.
"""

_HELD = {
    "structure": "the files are whole",
    "checksums": "the files are whole and hold what was written",
    "full": "the files are whole, hold what was written, and every row is a distribution",
}


def verify(
    path: Annotated[
        Path,
        typer.Argument(
            metavar="PATH",
            help="A store, or a published bundle.",
            show_default=False,
            readable=False,
        ),
    ],
    level: Annotated[
        Literal["structure", "checksums", "full"],
        typer.Option(
            help="structure reads no rows; checksums reads all and compares hashes and digest; "
            "full also checks that every row is a distribution."
        ),
    ] = "full",
    as_json: Annotated[bool, typer.Option("--json", help="The findings, as JSON.")] = False,
) -> None:
    """Check a store or a published bundle: files, checksums and rows. A store that is not finished is not damaged."""
    with reporting():
        from fostore.schema import jsontext

        state, findings = check(path, level)
        damage = [finding for finding in findings if finding["severity"] == "damage"]
        if state["sealed"] is False:
            planned = "" if state["planned"] is None else f" of {state['planned']:,}"
            say(f"{path} is not finished: {state['rows']:,}{planned} rows are committed")
        if as_json:
            report = {"path": str(path), "level": level, **state, "findings": findings}
            show(jsontext.dumps(report, indent=2).decode())
        else:
            for finding in findings:
                show(_line(finding))
            if not damage:
                rows = "1 row" if state["rows"] == 1 else f"{state['rows']:,} rows"
                show(f"{path}: {rows}, {_HELD[level]}")
        if damage:
            say(f"{len(damage)} finding{'s' if len(damage) > 1 else ''}")
            raise typer.Exit(FAILED)


def check(path: Path, level: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """How far a store is, and what is wrong with it.

    A store so damaged that it does not open is a finding, its state is then unknown (None).
    """
    import fostore
    from fostore.formats import Finding
    from fostore.publishing import bundle

    if bundle.is_bundle(path):
        state: dict[str, Any] = {"rows": None, "planned": None, "sealed": None}
        with suppress(FostoreError):  # what cannot be read is a finding below
            manifest = bundle.read_manifest(path)
            state = {
                "rows": manifest["num_samples"],
                "planned": manifest["num_samples"],
                "sealed": True,
            }
        return state, [_plain(finding) for finding in bundle.verify(path, level)]
    try:
        store = fostore.open(path)
    except DamageError as error:
        where, message = str(path), str(error)
        state = {"rows": None, "planned": None, "sealed": None}
        return state, [_plain(Finding(where, rows, message)) for rows in error.rows or (None,)]
    findings = [_plain(finding) for finding in store.verify(level=level)]
    return {
        "rows": len(store),
        "planned": store.num_samples,
        "sealed": store.is_sealed,
    }, findings


def _plain(finding: Any) -> dict[str, Any]:
    rows = None if finding.rows is None else list(finding.rows)
    return {**asdict(finding), "rows": rows}


def _line(finding: dict[str, Any]) -> str:
    from fostore.schema.ranges import describe

    rows = "" if finding["rows"] is None else f" ({describe([tuple(finding['rows'])])})"
    prefix = "warning: " if finding["severity"] == "warning" else ""
    return f"{prefix}{finding['where']}: {finding['message']}{rows}"
