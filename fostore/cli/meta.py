"""`fostore meta`: show a store's metadata, and add to it without changing a digest."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fostore.cli import options
from fostore.cli.report import reporting, show
from fostore.errors import ArgumentError

EXAMPLES = """
Examples:

`fostore meta digits.zarr`

`fostore meta digits.zarr --set license=MIT --set 'authors=["Ada"]'`
"""


def meta(
    path: Annotated[
        Path,
        typer.Argument(metavar="PATH", help="The store.", show_default=False, readable=False),
    ],
    values: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Add or replace; the value is JSON, or text where it is not. Repeat for more.",
        ),
    ] = None,
) -> None:
    """Print the metadata of a store as JSON; with --set change it. The digest stays as it is."""
    with reporting():
        import fostore
        from fostore.schema.jsontext import dumps

        if values:
            new = options.parse_meta(values, None, option="--set")
            with fostore.open(path) as store:  # or is refused before it is locked
                if store.format == "json":
                    raise ArgumentError(
                        f"{str(path)!r} is JSON, which is only written as a whole: `fostore convert` it "
                        "to another path with --meta KEY=VALUE"
                    )
            # Not in a `with` block, which would seal a stream that somebody means to go on with.
            writer = fostore.create(path, exists="resume", meta=new)
            try:
                writer.update_meta(new)
            finally:
                writer.close()
        show(dumps(dict(fostore.open(path).meta), indent=2).decode())
