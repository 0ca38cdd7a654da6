"""`fostore convert` and `fostore stack`: any format to any other, and members to an ensemble.

Their options are the fields of `Options`, with their types and defaults; here stands how they are shown and read.
"""

from __future__ import annotations

import sys
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fostore.cli import options
from fostore.cli.options import Option
from fostore.cli.report import reporting, say, show
from fostore.conversion.options import Options
from fostore.errors import ArgumentError
from fostore.places.names import STREAM, local_path

if TYPE_CHECKING:
    from fostore.conversion.plan import Plan

CHANGE, SOURCE, RUN = "What changes", "What the source does not say", "How it runs"

EXAMPLES = """
Examples:

`fostore convert softmax.npy train.zarr --ids @keys.txt`

`fostore convert train.zarr train.parquet --receipt train.receipt.json`

`fostore convert results.h5::val/probs val.zarr`

`fostore convert 'shards/*.npz' all.zarr --dry-run`

`fostore convert train.zarr - --rows 0:5 | head`

Killed or interrupted? The same command goes on where it stopped.
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
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Show the plan, bytes and memory; write nothing.", rich_help_panel=RUN
        ),
    ] = False,
    traceback: Annotated[
        bool,
        typer.Option("--traceback", help="Show where an error came from.", rich_help_panel=RUN),
    ] = False,
    **given: Any,
) -> None:
    """Convert SRC to DST, check the result and print a receipt; nothing half-done appears under DST."""
    with reporting(with_traceback=traceback):
        asked = Options(**options.parsed(given, _OPTIONS))
        from fostore.conversion import conversion, plan  # which load NumPy

        if dry_run:
            _show_plan(plan.prepare(source, destination, asked), destination, asked)
        else:
            receipt = conversion.run(source, destination, asked)
            (say if destination == STREAM else show)(receipt.text())


def _show_plan(plan: Plan, destination: str, asked: Options) -> None:
    show(plan.text())
    if (plan.lossy or plan.left_out) and not asked.allow_lossy:
        show("needs       --allow-lossy")
    if asked.exists == "fail" and destination != STREAM and local_path(destination).exists():
        show("needs       --exists overwrite or resume: the destination is there")


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
    **given: Any,
) -> None:
    """Make one store of ensembles: member i is the i-th source. All must be of the same samples."""
    with reporting():
        from fostore.conversion import stack as run  # which loads NumPy

        show(run(sources, output, **options.parsed(given, _OPTIONS)).text())


def _parse_slice(text: str | None) -> slice | None:
    """Rows from `start:stop` or `start:stop:step`, each of which may be left out.

    >>> _parse_slice("10:20"), _parse_slice("::2"), _parse_slice(":5")
    (slice(10, 20, None), slice(None, None, 2), slice(None, 5, None))
    """
    if text is None:
        return None
    bounds = text.split(":")
    if not 2 <= len(bounds) <= 3 or not all(one == "" or one.isdecimal() for one in bounds):
        raise ArgumentError(
            f"--rows is {text!r}, expected start:stop or start:stop:step, such as 0:500"
        )
    return slice(*(int(one) if one else None for one in bounds))


def _parse_classes(text: str | None) -> list[int | str] | None:
    """Classes by name or number.

    >>> _parse_classes("cat, dog, 7")
    ['cat', 'dog', 7]
    """
    if text is None:
        return None
    names = [name.strip() for name in text.split(",")]
    return [int(name) if name.isdecimal() else name for name in names]


def _parse_size(text: str) -> int:
    """Bytes from "200M", "1G" or a plain number.

    >>> _parse_size("200M"), _parse_size("4096")
    (209715200, 4096)
    """
    shifts = {"K": 10, "M": 20, "G": 30, "T": 40}
    plain = text.upper().removesuffix("B").removesuffix("I")
    number, shift = (plain[:-1], shifts[plain[-1]]) if plain[-1:] in shifts else (plain, 0)
    if not number.isdecimal():
        raise ArgumentError(f"--max-memory is {text!r}, expected a size such as 200M or 1G")
    return int(number) << shift


def _parse_progress(is_shown: bool | None) -> bool:
    return sys.stderr.isatty() if is_shown is None else is_shown


_OPTIONS = {
    "kind": Option(CHANGE, "What a row becomes."),
    "dtype": Option(CHANGE, "The numbers of a row: float32, float16, ..."),
    "rows": Option(CHANGE, "Only these rows.", "START:STOP[:STEP]", parse=_parse_slice),
    "classes": Option(
        CHANGE,
        "Only these classes (names or numbers), in this order; probabilities are renormalised.",
        "A,B,...",
        parse=_parse_classes,
    ),
    "member": Option(CHANGE, "Only this member of an ensemble."),
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
    "receipt": Option(RUN, "Write the receipt to this file, as JSON.", parse=lambda text: text),
    "verify": Option(RUN, "How much of the result is read back and compared."),
    "max_memory": Option(
        RUN, "About how much to use: 200M, 1G.", "SIZE", parse=_parse_size, kind=str, default="512M"
    ),
    "unit_rows": Option(RUN, "Rows a unit of a store, a power of two.", least=1),
    "progress": Option(
        RUN,
        "A progress bar. Default: where stderr is a terminal.",
        parse=_parse_progress,
        kind=bool | None,
    ),
}
_OF_STACK = "rows meta exists allow_lossy allow_constant receipt verify progress".split()

options.give(convert, Options, _OPTIONS, before="dry_run")
options.give(stack, Options, {name: _OPTIONS[name] for name in _OF_STACK})
