"""`fostore convert` and `fostore stack`: any format to any other, and members to an ensemble."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from fostore.cli import options
from fostore.cli.report import reporting, say, show
from fostore.errors import ArgumentError
from fostore.places.names import local_path

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

Exists = Annotated[
    Literal["fail", "overwrite", "resume"],
    typer.Option(
        help="What to do with a destination that is there: refuse, replace it when the new one is "
        "whole, or accept it if it holds the same rows.",
        rich_help_panel=RUN,
    ),
]
Lossy = Annotated[
    bool,
    typer.Option(
        "--allow-lossy",
        help="Do what cannot be undone bit by bit; the receipt states the error.",
        rich_help_panel=RUN,
    ),
]
ReceiptFile = Annotated[
    Path | None,
    typer.Option(
        help="Write the receipt to this file, as JSON.", show_default=False, rich_help_panel=RUN
    ),
]
Constant = Annotated[
    bool,
    typer.Option(
        "--allow-constant",
        help="Take rows that look as if nobody had written them: logits equal for all classes, one row "
        "again and again to the end.",
        rich_help_panel=SOURCE,
    ),
]
Rows = Annotated[
    str | None,
    typer.Option(metavar="START:STOP[:STEP]", help="Only these rows.", rich_help_panel=CHANGE),
]
Verify = Annotated[
    Literal["none", "sample", "full"],
    typer.Option(help="How much of the result is read back and compared.", rich_help_panel=RUN),
]
Bar = Annotated[
    bool | None,
    typer.Option(
        "--progress/--no-progress",
        help="A progress bar. Default: where stderr is a terminal.",
        show_default=False,
        rich_help_panel=RUN,
    ),
]
Meta = Annotated[
    list[str] | None,
    typer.Option(
        metavar="KEY=VALUE",
        help="Metadata to add; the value is JSON, or text where it is not. Repeat for more.",
        rich_help_panel=CHANGE,
    ),
]


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
    rows: Rows = None,
    classes: Annotated[
        str | None,
        typer.Option(
            metavar="A,B,...",
            help="Only these classes (names or numbers), in this order; probabilities are renormalised.",
            rich_help_panel=CHANGE,
        ),
    ] = None,
    member: Annotated[
        int | None, typer.Option(help="Only this member of an ensemble.", rich_help_panel=CHANGE)
    ] = None,
    kind: Annotated[
        Literal["probs", "log_probs", "logits", "counts"] | None,
        typer.Option(help="What a row becomes.", show_default=False, rich_help_panel=CHANGE),
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(help="The numbers of a row: float32, float16, ...", rich_help_panel=CHANGE),
    ] = None,
    ids: Annotated[
        str | None,
        typer.Option(metavar="@FILE", help="One key a row, one a line.", rich_help_panel=CHANGE),
    ] = None,
    class_names: Annotated[
        str | None,
        typer.Option(
            metavar="A,B,...|@FILE", help="Class names, in order.", rich_help_panel=CHANGE
        ),
    ] = None,
    meta: Meta = None,
    source_format: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="FORMAT",
            help="Its format, where the suffix does not say it: cifar10h, dcic, npy, jsonl ...",
            rich_help_panel=SOURCE,
        ),
    ] = None,
    source_kind: Annotated[
        Literal["probs", "log_probs", "logits", "counts", "percent"] | None,
        typer.Option(help="What its rows are.", show_default=False, rich_help_panel=SOURCE),
    ] = None,
    source_dtype: Annotated[
        str | None, typer.Option(help="The numbers of a text file.", rich_help_panel=SOURCE)
    ] = None,
    temperature: Annotated[
        float | None,
        typer.Option(help="By which its logits were divided.", rich_help_panel=SOURCE),
    ] = None,
    source_tol: Annotated[
        float | None,
        typer.Option(help="How far from 1 its rows may sum.", rich_help_panel=SOURCE),
    ] = None,
    id_column: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="The column or array that says which sample a row is.",
            rich_help_panel=SOURCE,
        ),
    ] = None,
    columns: Annotated[
        str | None,
        typer.Option(
            metavar="A,B,...|@FILE",
            help="The columns that are the classes, in order.",
            rich_help_panel=SOURCE,
        ),
    ] = None,
    drop: Annotated[
        str | None,
        typer.Option(
            metavar="A,B,...|@FILE",
            help="Columns or arrays that are not looked at.",
            rich_help_panel=SOURCE,
        ),
    ] = None,
    delimiter: Annotated[
        str | None,
        typer.Option(
            help="Between the fields of a text file; a comma, in .tsv a tabulator.",
            show_default=False,
            rich_help_panel=SOURCE,
        ),
    ] = None,
    decimal: Annotated[
        str | None,
        typer.Option(help="In the numbers of a text file; a point.", rich_help_panel=SOURCE),
    ] = None,
    transpose: Annotated[
        bool | None,
        typer.Option(
            "--transpose/--no-transpose",
            help="Whether the axes of the array come last first, as MATLAB, Julia and R write them.",
            show_default=False,
            rich_help_panel=SOURCE,
        ),
    ] = None,
    exists: Exists = "fail",
    allow_lossy: Lossy = False,
    allow_constant: Constant = False,
    receipt: ReceiptFile = None,
    verify: Verify = "full",
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Show the plan, bytes and memory; write nothing.", rich_help_panel=RUN
        ),
    ] = False,
    max_memory: Annotated[
        str,
        typer.Option(metavar="SIZE", help="About how much to use: 200M, 1G.", rich_help_panel=RUN),
    ] = "512M",
    unit_rows: Annotated[
        int | None,
        typer.Option(min=1, help="Rows a unit of a store, a power of two.", rich_help_panel=RUN),
    ] = None,
    progress: Bar = None,
    traceback: Annotated[
        bool,
        typer.Option("--traceback", help="Show where an error came from.", rich_help_panel=RUN),
    ] = False,
) -> None:
    """Convert SRC to DST, check the result and print a receipt; nothing half-done appears under DST."""
    with reporting(with_traceback=traceback):
        from fostore.conversion import convert as run
        from fostore.conversion.run import prepare

        asked: dict[str, Any] = {
            "rows": parse_slice(rows),
            "classes": parse_classes(classes),
            "member": member,
            "kind": kind,
            "dtype": dtype,
            "ids": options.parse_ids(ids),
            "class_names": options.parse_names(class_names),
            "meta": options.parse_meta(meta or (), None),
            "source_format": source_format,
            "source_kind": source_kind,
            "source_dtype": source_dtype,
            "temperature": temperature,
            "source_tol": source_tol,
            "id_column": id_column,
            "columns": options.parse_names(columns, option="--columns"),
            "drop": options.parse_names(drop, option="--drop") or (),
            "delimiter": "\t" if delimiter == r"\t" else delimiter,
            "decimal": decimal,
            "transpose": transpose,
            "max_memory": parse_size(max_memory),
            "unit_rows": unit_rows,
            "allow_constant": allow_constant,
        }
        if dry_run:
            plan = prepare(source, destination, **asked)[0]
            show(plan.text())
            if (plan.lossy or plan.left_out) and not allow_lossy:
                show("needs       --allow-lossy")
            if exists == "fail" and destination != "-" and local_path(destination).exists():
                show("needs       --exists overwrite or resume: the destination is there")
            return
        done = run(
            source,
            destination,
            **asked,
            exists=exists,
            allow_lossy=allow_lossy,
            receipt=receipt,
            verify=verify,
            progress=sys.stderr.isatty() if progress is None else progress,
        )
        if destination == "-":
            say(done.text())
        else:
            show(done.text())


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
    rows: Rows = None,
    meta: Meta = None,
    exists: Exists = "fail",
    allow_lossy: Lossy = False,
    allow_constant: Constant = False,
    receipt: ReceiptFile = None,
    verify: Verify = "full",
    progress: Bar = None,
) -> None:
    """Make one store of ensembles: member i is the i-th source. All must be of the same samples."""
    with reporting():
        from fostore.conversion import stack as run

        done = run(
            sources,
            output,
            rows=parse_slice(rows),
            meta=options.parse_meta(meta or (), None),
            exists=exists,
            allow_lossy=allow_lossy,
            allow_constant=allow_constant,
            receipt=receipt,
            verify=verify,
            progress=sys.stderr.isatty() if progress is None else progress,
        )
        show(done.text())


def parse_slice(text: str | None) -> slice | None:
    """Rows from `start:stop` or `start:stop:step`, each of which may be left out.

    >>> parse_slice("10:20"), parse_slice("::2"), parse_slice(":5")
    (slice(10, 20, None), slice(None, None, 2), slice(None, 5, None))
    """
    if text is None:
        return None
    parts = text.split(":")
    if not 2 <= len(parts) <= 3 or not all(part == "" or part.isdecimal() for part in parts):
        raise ArgumentError(
            f"--rows is {text!r}, expected start:stop or start:stop:step, such as 0:500"
        )
    return slice(*(int(part) if part else None for part in parts))


def parse_classes(text: str | None) -> list[int | str] | None:
    """Classes by name or number.

    >>> parse_classes("cat, dog, 7")
    ['cat', 'dog', 7]
    """
    if text is None:
        return None
    names = [name.strip() for name in text.split(",")]
    return [int(name) if name.isdecimal() else name for name in names]


def parse_size(text: str) -> int:
    """Bytes from "200M", "1G" or a plain number.

    >>> parse_size("200M"), parse_size("4096")
    (209715200, 4096)
    """
    shifts = {"K": 10, "M": 20, "G": 30, "T": 40}
    plain = text.upper().removesuffix("B").removesuffix("I")
    number, shift = (plain[:-1], shifts[plain[-1]]) if plain[-1:] in shifts else (plain, 0)
    if not number.isdecimal():
        raise ArgumentError(f"--max-memory is {text!r}, expected a size such as 200M or 1G")
    return int(number) << shift
