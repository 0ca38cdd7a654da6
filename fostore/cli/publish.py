"""`fostore publish` and `fostore cite`: a store as a dataset that others find, cite and check."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from fostore.cli import options
from fostore.cli.options import Option
from fostore.cli.report import FAILED, reporting, say, show, show_facts
from fostore.errors import ArgumentError
from fostore.publishing.facts import Facts
from fostore.schema.shown import wrapped

EXAMPLES = """
Examples:

`fostore publish digits.zarr published/digits --license CC-BY-4.0 --creator "Ada Lovelace" --description "..."`

`fostore publish digits.zarr published/digits --facts facts.toml --parquet`

`fostore publish digits.zarr hf://datasets/ada/digits --facts facts.toml --parquet --private`

`fostore publish digits.zarr --check --facts facts.toml`

Facts once given stay with the bundle: the next version asks for none of them again.
"""

CITE_EXAMPLES = """
Examples:

`fostore cite published/digits`

`fostore cite published/digits --as cff > CITATION.cff`
"""

FACTS = "Facts that only you know"


_FACTS = {
    "license": Option(FACTS, "Of the rows: an SPDX id.", "SPDX"),
    "creators": Option(
        FACTS,
        "'Name' or 'Name <https://orcid.org/...>'; may be repeated.",
        "TEXT",
        flag="--creator",
        parse=list,
        kind=list[str],
        default=(),
    ),
    "description": Option(FACTS, "What the rows are, in a sentence or two.", "TEXT"),
    "title": Option(FACTS, "What readers call it.", "TEXT"),
    "name": Option(FACTS, "A short name for addresses.", "TEXT"),
    "model_license": Option(FACTS, "Of the model.", "SPDX"),
    "outputs_license": Option(FACTS, "What the model's terms say of its outputs.", "SPDX"),
    "dataset": Option(FACTS, "Where the base dataset is.", "URL"),
    "model": Option(FACTS, "Where the model is.", "URL"),
    "url": Option(FACTS, "Where this dataset will be found.", "URL"),
    "doi": Option(FACTS, "Its DOI.", "DOI"),
    "date": Option(FACTS, "The day of publication; else the store's last change.", "DAY"),
    "tags": Option(
        FACTS,
        "A word for searches; repeatable.",
        "TEXT",
        flag="--tag",
        parse=list,
        kind=list[str],
        default=(),
    ),
    "limits": Option(FACTS, "What the rows should not be used for.", "TEXT"),
}


def publish(
    store: Annotated[
        Path, typer.Argument(metavar="STORE", help="A sealed store.", show_default=False)
    ],
    dest: Annotated[
        str | None,
        typer.Argument(
            metavar="DEST",
            help="A folder, a .zip file, hf://datasets/USER/NAME, or s3://bucket/prefix.",
            show_default=False,
        ),
    ] = None,
    *,
    facts: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="A TOML file with any of these; options go before it.",
            show_default=False,
            rich_help_panel=FACTS,
        ),
    ] = None,
    parquet: Annotated[
        bool, typer.Option(help="Also write the rows as Parquet, for hubs, duckdb and polars.")
    ] = False,
    private: Annotated[bool, typer.Option(help="A private repository on the hub.")] = False,
    revision: Annotated[
        str | None, typer.Option(metavar="NAME", help="A branch on the hub.", show_default=False)
    ] = None,
    sign: Annotated[
        Path | None,
        typer.Option(
            metavar="KEY", help="Sign the rows with this private key (PEM).", show_default=False
        ),
    ] = None,
    check: Annotated[
        bool,
        typer.Option("--check", "--dry-run", help="Say what is missing, graded; write nothing."),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="What was published, as JSON.")] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="No progress bar, and no lines of it.")
    ] = False,
    **given: Any,
) -> None:
    """Make a dataset of a store: a folder with data, lists of hashes, a card, a licence and how to cite it."""
    with reporting(goes_on=not check):
        from fostore import publishing  # loads NumPy, which half of the commands never need

        named = {name: value for name, value in options.parsed(given, _FACTS).items() if value}
        facts_given = Facts.of(named, "the options")
        if facts is not None:
            facts_given = facts_given.over(Facts.read(facts))
        if check:
            gaps = publishing.check(store, facts_given, dest)
            lines = [wrapped(f"{gap.grade:<12} {gap.fact}: {gap.how}") for gap in gaps]
            show_facts([asdict(gap) for gap in gaps], lines, as_json)
            if any(gap.grade == "required" for gap in gaps):
                raise typer.Exit(FAILED)
            return
        if dest is None:
            raise ArgumentError("DEST is missing: the folder of the bundle, or --check")
        made = publishing.publish(
            store,
            dest,
            facts=facts_given,
            parquet=parquet,
            private=private,
            revision=revision,
            sign=sign,
            progress=not quiet,
        )
        what = f"{made.where}: version {made.version}, {made.num_files} files, {made.num_bytes:,} bytes"
        what += f", {made.digest}" if made.changed else "; nothing has changed"
        show_facts(asdict(made), [wrapped(what)], as_json)
        for gap in () if as_json else made.gaps:
            say(wrapped(f"nobody said: {gap.fact} ({gap.how})"))


options.give(publish, Facts, _FACTS, before="facts")


def cite(
    path: Annotated[
        Path, typer.Argument(metavar="PATH", help="A bundle.", show_default=False, readable=False)
    ],
    form: Annotated[
        Literal["all", "bibtex", "cff", "line"],
        typer.Option("--as", help="One form alone."),
    ] = "all",
) -> None:
    """Print how to cite a published dataset: BibTeX, CITATION.cff and a line for a paper."""
    with reporting():
        from fostore import publishing  # loads NumPy, which half of the commands never need

        forms = publishing.cite(path)
        show("\n".join(forms.values()) if form == "all" else forms[form].rstrip())
