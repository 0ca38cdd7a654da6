"""`fostore convert` and `fostore stack`: any format to any other, and members to an ensemble.

Their options are the fields of `Options`, with their types and defaults; here stands how they are shown and read.
"""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any

import typer

from fostore.cli import options
from fostore.cli.options import Option
from fostore.cli.report import reporting, say, show, show_facts
from fostore.conversion.options import Options
from fostore.errors import ArgumentError
from fostore.places.names import STREAM, is_url, local_path
from fostore.schema.jsontext import dumps

CHANGE, SOURCE, RUN = "What changes", "What the source does not say", "How it runs"

_DryRun = Annotated[
    bool,
    typer.Option(
        "--dry-run", help="Show the plan, bytes and memory; write nothing.", rich_help_panel=RUN
    ),
]
Traceback = Annotated[
    bool, typer.Option("--traceback", help="Show where an error came from.", rich_help_panel=RUN)
]
_ReceiptAsJson = Annotated[
    bool, typer.Option("--json", help="The receipt, as JSON.", rich_help_panel=RUN)
]
Quiet = Annotated[
    bool,
    typer.Option("--quiet", "-q", help="Say nothing but warnings and errors.", rich_help_panel=RUN),
]

EXAMPLES = """
Examples:

`fostore convert softmax.npy train.zarr --ids @keys.txt`

`fostore convert train.zarr train.parquet --receipt train.receipt.json`

`fostore convert results.h5::val/probs val.zarr`

`fostore convert 'shards/*.npz' all.zarr --dry-run`

`fostore convert train.zarr - --rows 0:5 | head`

Killed or interrupted? The same command goes on where it stopped.
"""

CONCAT_EXAMPLES = """
Examples:

`fostore concat part-0.npz part-1.npz part-2.npz -o all.zarr`

`fostore concat train.zarr more.csv -o all.zarr --source-dtype float32 --class-names @names.txt`
"""

STACK_EXAMPLES = """
Examples:

`fostore stack seed0.zarr seed1.zarr seed2.zarr -o ensemble.zarr`
"""


def convert(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SRC",
            help="A store or file; file.h5::group/probs for an array inside; a folder or 'pattern*' "
            "of shards; - for JSON Lines on stdin.",
            show_default=False,
        ),
    ],
    destination: Annotated[
        str,
        typer.Argument(
            metavar="DST",
            help="The suffix says the format; - for JSON Lines on stdout.",
            show_default=False,
        ),
    ],
    *,
    dry_run: _DryRun = False,
    traceback: Traceback = False,
    as_json: _ReceiptAsJson = False,
    quiet: Quiet = False,
    **given: Any,
) -> None:
    """Convert SRC to DST, check the result and print a receipt; nothing half-done appears under DST."""
    with reporting(with_traceback=traceback, goes_on=True):
        _convert(source, destination, given, dry_run=dry_run, as_json=as_json, quiet=quiet)


def concat(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="A B ...",
            help="Stores or files of any format, one after another; each as SRC of `convert`.",
            show_default=False,
        ),
    ],
    output: Annotated[
        str,
        typer.Option(
            "--output",
            "-o",
            help="The suffix says the format; - for JSON Lines.",
            show_default=False,
        ),
    ],
    *,
    dry_run: _DryRun = False,
    traceback: Traceback = False,
    as_json: _ReceiptAsJson = False,
    quiet: Quiet = False,
    **given: Any,
) -> None:
    """Put the rows of several sources one after another, as `convert` would put those of one.

    All must have the same classes, kind and dtype; what differs is named, with the option that cures it.
    """
    with reporting(with_traceback=traceback, goes_on=True):
        _convert(sources, output, given, dry_run=dry_run, as_json=as_json, quiet=quiet)


def _convert(
    source: str | list[str],
    destination: str,
    given: dict[str, Any],
    *,
    dry_run: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    as_json, asked = _asked(given, destination, as_json=as_json, quiet=quiet)
    if dry_run:
        _show_plan(source, destination, Options(**asked), as_json)
        return
    from fostore.conversion.converting import run  # which loads NumPy

    _show_receipt(run(source, destination, Options(**asked)), destination, as_json, quiet)


def _asked(
    given: dict[str, Any], destination: str, *, as_json: bool, quiet: bool
) -> tuple[bool, dict[str, Any]]:
    """Whether the receipt is JSON on stdout, and the options of the library."""
    if quiet:
        given = {**given, "progress": False}
    if given["receipt"] == "-":
        if destination == STREAM:
            raise ArgumentError("--receipt -: the rows go to stdout; name a file for the receipt")
        as_json, given = True, {**given, "receipt": None}
    return as_json, options.parsed(given, _OPTIONS)


def _show_receipt(receipt: Any, destination: str, as_json: bool, quiet: bool) -> None:
    if as_json or not quiet:
        text = dumps(receipt.to_json(), indent=2).decode() if as_json else receipt.text()
        (say if destination == STREAM else show)(text)


def _show_plan(source: str | list[str], destination: str, asked: Options, as_json: bool) -> None:
    from fostore.conversion.plan import prepare  # which loads NumPy

    plan, needs = prepare(source, destination, asked), []
    if (plan.lossy or plan.left_out) and not asked.allow_lossy:
        needs.append("--allow-lossy")
    is_path = destination != STREAM and not is_url(destination)
    if asked.exists == "fail" and is_path and local_path(destination).exists():
        needs.append("--exists overwrite or resume: the destination is there")
    show_facts({**plan.to_json(), "needs": needs}, [plan.text(needs)], as_json)


def stack(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="A B ...", help="Stores of single distributions.", show_default=False
        ),
    ],
    output: Annotated[
        str, typer.Option("--output", "-o", help="The store of ensembles.", show_default=False)
    ],
    *,
    as_json: _ReceiptAsJson = False,
    quiet: Quiet = False,
    **given: Any,
) -> None:
    """Make one store of ensembles: member i is the i-th source. All must be of the same samples."""
    with reporting(goes_on=True):
        as_json, asked = _asked(given, output, as_json=as_json, quiet=quiet)
        from fostore.conversion import stack as run  # which loads NumPy

        _show_receipt(run(sources, output, **asked), output, as_json, quiet)


def _parse_classes(text: str | None) -> list[int | str] | None:
    """Classes by name or number.

    >>> _parse_classes("cat, dog, 7")
    ['cat', 'dog', 7]
    """
    if text is None:
        return None
    names = [name.strip() for name in text.split(",")]
    return [options.parse_number(name, "--classes") if name.isdecimal() else name for name in names]


def _parse_size(text: str) -> int:
    """Bytes from "200M", "1G" or a plain number.

    >>> _parse_size("200M"), _parse_size("4096")
    (209715200, 4096)
    """
    shifts = {"K": 10, "M": 20, "G": 30, "T": 40}
    plain = text.upper().removesuffix("B").removesuffix("I")
    number, shift = (plain[:-1], shifts[plain[-1]]) if plain[-1:] in shifts else (plain, 0)
    if not number.isdecimal():
        raise ArgumentError(f"--max-memory is {text!r:.60}, expected a size such as 200M or 1G")
    return options.parse_number(number, "--max-memory") << shift


_OPTIONS = {
    "kind": Option(CHANGE, "What a row becomes."),
    "dtype": Option(CHANGE, "The numbers of a row: float32, float16, ..."),
    "rows": Option(CHANGE, "Only these rows.", "START:STOP[:STEP]", parse=options.parse_slice),
    "classes": Option(
        CHANGE,
        "Only these classes (names or numbers), in this order; probabilities are renormalised.",
        "A,B,...",
        parse=_parse_classes,
    ),
    "member": Option(CHANGE, "Only this member of an ensemble."),
    **options.of_encoding(CHANGE, "nothing is written"),
    "class_names": Option(
        CHANGE, "Class names, in order.", "A,B,...|@FILE", parse=options.parse_names
    ),
    "ids": Option(CHANGE, "One key a row, one a line.", "@FILE", parse=options.parse_ids),
    "meta": Option(
        CHANGE,
        "Metadata to add; the value is JSON, or text where it is not. Repeat for more.",
        "KEY=VALUE",
        parse=lambda pairs: options.parse_meta(pairs or (), None),
        kind=list[str] | None,
    ),
    "source_format": Option(
        SOURCE,
        "Its format, where the suffix does not say it: cifar10h, dcic, npy, jsonl ...",
        "FORMAT",
        flag="--from",
    ),
    "source_kind": Option(SOURCE, "What its rows are."),
    "source_dtype": Option(SOURCE, "The numbers of a text file."),
    "temperature": Option(SOURCE, "By which its logits were divided."),
    "source_tol": Option(SOURCE, "How far from 1 its rows may sum."),
    "id_column": Option(SOURCE, "The column or array that says which sample a row is.", "NAME"),
    "columns": Option(
        SOURCE,
        "The columns that are the classes, in order.",
        "A,B,...|@FILE",
        parse=partial(options.parse_names, option="--columns"),
    ),
    "drop": Option(
        SOURCE,
        "Columns or arrays that are not looked at.",
        "A,B,...|@FILE",
        parse=lambda text: options.parse_names(text, option="--drop") or (),
    ),
    "delimiter": Option(
        SOURCE,
        "Between the fields of a text file; a comma, in .tsv a tabulator.",
        parse=lambda text: "\t" if text == r"\t" else text,
    ),
    "decimal": Option(SOURCE, "In the numbers of a text file; a point."),
    "transpose": Option(
        SOURCE,
        "Whether the axes of the array come last first, as MATLAB, Julia and R write them.",
    ),
    "layout": Option(
        SOURCE,
        "What the layout of another tool leaves open, such as num_classes=32000; the error says which keys. Repeat for "
        "more.",
        "KEY=VALUE",
        parse=lambda pairs: options.parse_meta(pairs, None, option="--layout") if pairs else None,
        kind=list[str] | None,
    ),
    "config": Option(
        SOURCE,
        "The file that says how it was packed (DistillKit).",
        "FILE",
        parse=lambda text: text,
    ),
    "allow_constant": Option(
        SOURCE,
        "Take rows that look as if nobody had written them: logits equal for all classes, one row "
        "again and again to the end.",
    ),
    "exists": Option(
        RUN,
        "What to do with a destination that is there: refuse, replace it when the new one is whole, "
        "or accept it if it holds the same rows.",
    ),
    "allow_lossy": Option(
        RUN, "Do what cannot be undone bit by bit; the receipt states the error."
    ),
    "receipt": Option(
        RUN, "Write the receipt to this file, as JSON; - for stdout.", parse=lambda text: text
    ),
    "verify": Option(RUN, "How much of the result is read back and compared."),
    "max_memory": Option(
        RUN, "About how much to use: 200M, 1G.", "SIZE", parse=_parse_size, kind=str, default="512M"
    ),
    "unit_rows": Option(RUN, "Rows a unit of a store, a power of two.", least=1),
    "progress": Option(
        RUN,
        "A progress bar; where stderr is no terminal, a line every ten seconds.",
    ),
}
_OF_STACK = "rows meta exists allow_lossy allow_constant receipt verify progress".split()

options.give(convert, Options, _OPTIONS, before="dry_run")
options.give(concat, Options, _OPTIONS, before="dry_run")
options.give(stack, Options, {name: _OPTIONS[name] for name in _OF_STACK})
