"""`fostore publish` and `fostore cite`: a store as a dataset that others find, cite and check."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from fostore.cli.report import FAILED, reporting, say, show
from fostore.errors import ArgumentError
from fostore.schema import jsontext

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


def _fact(help: str, *names: str, metavar: str = "TEXT") -> Any:
    return typer.Option(
        *names, help=help, show_default=False, metavar=metavar, rich_help_panel=FACTS
    )


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
    license: Annotated[
        str | None, _fact("Of the rows: an SPDX id.", "--license", metavar="SPDX")
    ] = None,
    creators: Annotated[
        list[str] | None,
        _fact("'Name' or 'Name <https://orcid.org/...>'; may be repeated.", "--creator"),
    ] = None,
    description: Annotated[
        str | None, _fact("What the rows are, in a sentence or two.", "--description")
    ] = None,
    title: Annotated[str | None, _fact("What readers call it.", "--title")] = None,
    name: Annotated[str | None, _fact("A short name for addresses.", "--name")] = None,
    model_license: Annotated[
        str | None, _fact("Of the model.", "--model-license", metavar="SPDX")
    ] = None,
    outputs_license: Annotated[
        str | None,
        _fact("What the model's terms say of its outputs.", "--outputs-license", metavar="SPDX"),
    ] = None,
    dataset: Annotated[
        str | None, _fact("Where the base dataset is.", "--dataset", metavar="URL")
    ] = None,
    model: Annotated[str | None, _fact("Where the model is.", "--model", metavar="URL")] = None,
    url: Annotated[
        str | None, _fact("Where this dataset will be found.", "--url", metavar="URL")
    ] = None,
    doi: Annotated[str | None, _fact("Its DOI.", "--doi", metavar="DOI")] = None,
    date: Annotated[
        str | None,
        _fact("The day of publication; else the store's last change.", "--date", metavar="DAY"),
    ] = None,
    tags: Annotated[list[str] | None, _fact("A word for searches; repeatable.", "--tag")] = None,
    limits: Annotated[
        str | None, _fact("What the rows should not be used for.", "--limits")
    ] = None,
    facts: Annotated[
        Path | None,
        _fact("A TOML file with any of these; options go before it.", "--facts", metavar="FILE"),
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
        bool, typer.Option("--check", help="Say what is missing, graded, and write nothing.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="What was published, as JSON.")] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="No progress bar, and no lines of it.")
    ] = False,
) -> None:
    """Make a dataset of a store: a folder with data, lists of hashes, a card, a licence and how to cite it."""
    with reporting():
        from fostore import publishing  # loads NumPy, which half of the commands never need
        from fostore.publishing.facts import Facts

        given = {
            "license": license,
            "description": description,
            "title": title,
            "name": name,
            "model_license": model_license,
            "outputs_license": outputs_license,
            "dataset": dataset,
            "model": model,
            "url": url,
            "doi": doi,
            "date": date,
            "limits": limits,
            "tags": tags,
            "creators": creators,
        }
        facts_given = Facts.of({key: value for key, value in given.items() if value}, "the options")
        if facts is not None:
            facts_given = facts_given.over(Facts.read(facts))
        if check:
            gaps = publishing.check(store, facts_given, dest)
            if as_json:
                show(jsontext.dumps([asdict(gap) for gap in gaps], indent=2).decode())
            for gap in () if as_json else gaps:
                show(f"{gap.grade:<12} {gap.fact}: {gap.how}")
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
        if as_json:
            show(jsontext.dumps(asdict(made), indent=2).decode())
            return
        what = f"{made.where}: version {made.version}, {made.num_files} files, {made.num_bytes:,} bytes"
        show(f"{what}, {made.digest}" if made.changed else f"{what}; nothing has changed")
        for gap in made.gaps:
            say(f"nobody said: {gap.fact} ({gap.how})")


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
