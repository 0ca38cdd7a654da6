"""How a command speaks and ends: results as lines or JSON, every error as one line on stderr and an exit code.

The exit code is the same for one reason in every command.
"""

from __future__ import annotations

import errno
import traceback
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from fostore.errors import ArgumentError, FormatError, FostoreError, StoreNotFoundError
from fostore.schema.jsontext import dumps
from fostore.schema.shown import plain

FAILED, USAGE, UNREADABLE, INTERRUPTED = 1, 2, 3, 130

# Text: a `Path` makes one slash of the two in a url.
StorePath = Annotated[
    str,
    typer.Argument(
        metavar="PATH", help="The store, or a bundle; a path or a url.", show_default=False
    ),
]
SourcePath = Annotated[
    str,
    typer.Argument(
        metavar="PATH", help="A store, or what `fostore convert` reads.", show_default=False
    ),
]
LabelsFile = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="The true classes: .npy, or text with one class number or name a line.",
        show_default=False,
    ),
]
Rule = Annotated[
    Literal["uniform", "renorm"] | None,
    typer.Option(
        help="Of top-k rows: spread what the classes have that are not kept over them, or give them none.",
        show_default=False,
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Everything, as JSON.")]

_CODES: tuple[tuple[type[BaseException], int], ...] = (
    (ArgumentError, USAGE),
    (FormatError, UNREADABLE),
    (StoreNotFoundError, UNREADABLE),
)
"""The first that fits counts; what is left (damage, what is not finished, a lock, a full disk ...) is FAILED."""
_NO_WAY_IN = {
    getattr(errno, name)
    for name in "ENOENT EACCES EPERM ENOTDIR EISDIR ELOOP ENAMETOOLONG ESTALE".split()
}
"""What a file system says of a path that cannot be read, whatever is there."""


def show(text: str) -> None:
    """Print a result."""
    typer.echo(plain(text))


def show_facts(facts: Any, lines: Iterable[str], as_json: bool) -> None:
    """Print facts, as JSON or as lines for people."""
    show(dumps(facts, indent=2).decode() if as_json else "\n".join(lines))


def say(message: str) -> None:
    """Tell the user something that is no result."""
    typer.echo(plain(message), err=True)


def exit_code(error: BaseException) -> int:
    """The exit code that an error stands for."""
    if isinstance(error, OSError) and error.errno in _NO_WAY_IN:
        return UNREADABLE
    return next((code for kind, code in _CODES if isinstance(error, kind)), FAILED)


@contextmanager
def reporting(*, with_traceback: bool = False, goes_on: bool = False) -> Iterator[None]:
    """Turn an error of the block into one line on stderr and the exit of the command, a warning into a line.

    Args:
        with_traceback: also print where the error came from.
        goes_on: what an interruption leaves under a hidden name is used by the next call, which is said.
    """
    try:
        with warnings.catch_warnings():
            # Python would add the file and line of ours that gave it, and its code.
            warnings.showwarning = lambda message, *_, **__: say(f"warning: {message}")
            yield
    except BrokenPipeError:
        raise  # `fostore info x.zarr | head -1` ends quietly: typer sees to it
    # Anything else is a bug of ours, whose traceback helps who reports it.
    except (FostoreError, OSError) as error:
        if with_traceback:
            say("".join(traceback.format_exception(error)).rstrip())
        say(f"error: {error}")
        for note in getattr(error, "__notes__", ()):
            say(f"  {note}")
        raise typer.Exit(exit_code(error)) from None
    except KeyboardInterrupt:
        say("interrupted" + (": run the same command to go on where it stopped" if goes_on else ""))
        raise typer.Exit(INTERRUPTED) from None
