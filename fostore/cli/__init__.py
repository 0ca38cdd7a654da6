"""The command line: results on stdout, narration on stderr, one line for an error.

Imported at every call of `fostore`, so nothing here loads a framework, a format or NumPy.
"""

from __future__ import annotations

from typing import Annotated

import typer

from fostore import __version__
from fostore.cli import convert, demo, generate, head, info, page, publish, shares, stats, verify

EXIT_CODES = """
Exit codes: 0 done, 1 failed (verify: findings), 2 wrong usage, 3 the store cannot be read, 130 interrupted.

Results go to stdout, everything else to stderr. NO_COLOR=1 switches colours off.
"""

app = typer.Typer(
    name="fostore",
    help="Store one predictive distribution for every sample of a dataset.",
    epilog=EXIT_CODES,
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"fostore {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    _version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    pass


app.command(epilog=generate.EXAMPLES)(generate.generate)
app.command(epilog=shares.MISSING_EXAMPLES)(shares.missing)
app.command(epilog=shares.FINISH_EXAMPLES)(shares.finish)
app.command(epilog=info.EXAMPLES)(info.info)
app.command(epilog=verify.EXAMPLES)(verify.verify)
app.command(epilog=convert.EXAMPLES)(convert.convert)
app.command(epilog=convert.CONCAT_EXAMPLES)(convert.concat)
app.command(epilog=convert.STACK_EXAMPLES)(convert.stack)
app.command(epilog=head.EXAMPLES)(head.head)
app.command(epilog=info.META_EXAMPLES)(info.meta)
app.command(epilog=stats.EXAMPLES)(stats.stats)
app.command(epilog=stats.COMPARE_EXAMPLES)(stats.compare)
app.command(epilog=page.EXAMPLES)(page.report)
app.command(epilog=publish.EXAMPLES)(publish.publish)
app.command(epilog=publish.CITE_EXAMPLES)(publish.cite)
app.command()(demo.demo)


def main() -> None:
    """Run the command line on `sys.argv` and exit with its code."""
    app(prog_name="fostore")
