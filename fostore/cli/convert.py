"""`fostore convert` and `fostore stack`: any format to any other, and members to an ensemble.

Their options are the fields of `Options`; here stands only how a text on the command line becomes such a value.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping
from dataclasses import Field, fields
from functools import partial
from typing import Annotated, Any, TypeVar, get_type_hints

import typer

from fostore.cli import options
from fostore.cli.report import reporting, say, show
from fostore.conversion.options import PANELS, RUN, Options, flag_of
from fostore.errors import ArgumentError
from fostore.places.names import local_path

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

Command = TypeVar("Command", bound=Callable[..., None])


def _with_options(command: Command, *names: str) -> Command:
    """The command with options in the place of its `**given`: those fields of `Options`, all by default."""
    types, own = get_type_hints(Options), get_type_hints(command, include_extras=True)
    shown = [one for one in fields(Options) if not names or one.name in names]
    shown.sort(key=lambda one: PANELS.index(one.metadata["panel"]))
    *positional, _ = inspect.signature(command).parameters.values()
    parameters = [one.replace(annotation=own[one.name]) for one in positional]
    parameters[2:2] = [_parameter(one, types[one.name]) for one in shown]
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {one.name: one.annotation for one in parameters}
    return command


def _parameter(one: Field[Any], type_: Any) -> inspect.Parameter:
    default = _DEFAULTS.get(one.name, one.default)
    flag = flag_of(one.name)
    if one.name in _TEXTS:
        type_ = _TYPES.get(one.name, str | None)
    option = typer.Option(
        f"{flag}/--no-{one.name}" if one.name in ("transpose", "progress") else flag,
        help=one.metadata["help"],
        rich_help_panel=one.metadata["panel"],
        show_default=default is not None,
        **one.metadata["typer"],
    )
    return inspect.Parameter(
        one.name,
        inspect.Parameter.KEYWORD_ONLY,
        default=default,
        annotation=Annotated[type_, option],
    )


def _parsed(given: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _TEXTS[name](value) if name in _TEXTS else value for name, value in given.items()}


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
        asked = Options(**_parsed(given))
        if dry_run:
            _show_plan(source, destination, asked)
            return
        from fostore.conversion.conversion import run  # which loads NumPy

        receipt = run(source, destination, asked)
        (say if destination == "-" else show)(receipt.text())


def _show_plan(source: str, destination: str, asked: Options) -> None:
    from fostore.conversion.plan import prepare  # which loads NumPy

    plan = prepare(source, destination, asked)
    show(plan.text())
    if (plan.lossy or plan.left_out) and not asked.allow_lossy:
        show("needs       --allow-lossy")
    if asked.exists == "fail" and destination != "-" and local_path(destination).exists():
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

        show(run(sources, output, **_parsed(given)).text())


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


def _parse_progress(wanted: bool | None) -> bool:
    return sys.stderr.isatty() if wanted is None else wanted


_TEXTS: dict[str, Callable[[Any], Any]] = {
    "rows": _parse_slice,
    "classes": _parse_classes,
    "class_names": options.parse_names,
    "ids": options.parse_ids,
    "meta": lambda pairs: options.parse_meta(pairs or (), None),
    "columns": partial(options.parse_names, option="--columns"),
    "drop": lambda text: options.parse_names(text, option="--drop") or (),
    "delimiter": lambda text: "\t" if text == r"\t" else text,
    "receipt": lambda text: text,
    "max_memory": _parse_size,
    "progress": _parse_progress,
}
"""What is given as text, or otherwise than to `fostore.convert`, and how it is read."""
_TYPES = {"meta": list[str] | None, "progress": bool | None, "max_memory": str}
_DEFAULTS: dict[str, Any] = {"drop": None, "max_memory": "512M", "progress": None}

_with_options(convert)
_with_options(
    stack,
    "rows",
    "meta",
    "exists",
    "allow_lossy",
    "allow_constant",
    "receipt",
    "verify",
    "progress",
)
