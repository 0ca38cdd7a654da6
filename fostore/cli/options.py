"""Options of commands: made of the fields of a dataclass of the library, and read from text as its values."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from fostore import disk
from fostore.errors import ArgumentError, FormatError, PlaceError, StoreNotFoundError
from fostore.generate.options import TOKEN_ROWS
from fostore.places.names import local_path
from fostore.schema.jsontext import loads

_MAX_BYTES = 1 << 30
"""Of a file of ids, names or metadata."""
_DIGITS = 18
"""Of a number that fits 64 bits."""


@dataclass(frozen=True, slots=True)
class Option:
    """A field of a dataclass of options as a command has it; name, type and default are those of the field."""

    panel: str
    help: str
    metavar: str | None = None
    flag: str | None = None
    least: float | None = None
    parse: Callable[[Any], Any] | None = None
    """Makes the value of a text, where the library takes something else."""
    kind: Any = str | None
    """The type of that text."""
    default: Any = None
    """And its default."""

    def parameter(self, name: str, kind: Any, default: Any) -> inspect.Parameter:
        """What typer makes an option of."""
        if self.parse is not None:
            kind, default = self.kind, self.default
        flag = self.flag or ("--" + name.replace("_", "-") if default is False else None)
        option = typer.Option(
            *([flag] if flag else []),  # a flag that is named has no `--no-` beside it
            help=self.help,
            metavar=self.metavar,
            min=self.least,
            rich_help_panel=self.panel,
            show_default=default is not None,
        )
        return inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=default,
            annotation=Annotated[kind, option],
        )


def of_encoding(panel: str, otherwise: str) -> dict[str, Option]:
    """How rows are kept, of a command that says what happens where too much is lost."""
    return {
        "encoding": Option(
            panel,
            "How rows are kept: dense, topk, u16_affine, u8_log_sqrt, sampled, or JSON with parameters.",
            "NAME|JSON",
            parse=_parse_encoding,
        ),
        "k": Option(panel, "Of topk: the classes of a row that are kept.", least=1),
        "rule": Option(
            panel,
            "Of top-k rows: what becomes of the classes that are not kept.",
            "coarse|uniform|renorm|zero",
        ),
        "temperatures": Option(
            panel,
            "Of topk: those at which what is not kept is summed as well.",
            "T,T,...",
            parse=_parse_numbers,
        ),
        "max_kl": Option(panel, f"Nats that a row may lose at most; else {otherwise}."),
    }


def give(
    command: Callable[..., None],
    given: type,
    table: Mapping[str, Option],
    before: str | None = None,
) -> None:
    """Put the options of `table` in the place of a command's `**given`, before one of its own or at the end.

    Args:
        given: the dataclass whose fields they are.
        before: the parameter that they come before; panels of the help stand in this order.
    """
    kinds, own = get_type_hints(given), get_type_hints(command, include_extras=True)
    defaults = {one.name: one.default for one in fields(given)}
    *others, _ = inspect.signature(command).parameters.values()
    parameters = [one.replace(annotation=own[one.name]) for one in others]
    at = len(others) if before is None else [one.name for one in others].index(before)
    parameters[at:at] = [
        option.parameter(name, kinds[name], defaults[name]) for name, option in table.items()
    ]
    # typer reads a command from its signature, and the types from its annotations
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # what `inspect` reads
    command.__annotations__ = {one.name: one.annotation for one in parameters}


def parsed(given: Mapping[str, Any], table: Mapping[str, Option]) -> dict[str, Any]:
    """What a command was given, as the library takes it."""
    values = {}
    for name, value in given.items():
        parse = table[name].parse
        values[name] = value if parse is None else parse(value)
    return values


def parse_meta(
    pairs: Sequence[str], file: Path | None, *, option: str = "--meta"
) -> dict[str, Any]:
    """Metadata from `key=value` pairs of `option` and a JSON file; a pair wins over the file.

    A value is JSON where it parses as such, text where it does not: `epochs=3`, `note=good`.

    >>> parse_meta(["epochs=3", "note=a good one", 'tags=["a", "b"]', 'version="2"'], None)
    {'epochs': 3, 'note': 'a good one', 'tags': ['a', 'b'], 'version': '2'}
    """
    meta: dict[str, Any] = {}
    if file is not None:
        try:
            raw = disk.read_named(local_path(file), _MAX_BYTES, "a file of JSON")
            meta = loads(raw, f"--meta-file {file}")
        except (FormatError, StoreNotFoundError, PlaceError) as error:
            raise ArgumentError(f"--meta-file cannot be read: {error}") from error
        if not isinstance(meta, dict):
            raise ArgumentError(
                f"--meta-file {file} holds a {type(meta).__name__}, expected an object"
            )
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not key or not equals:
            raise ArgumentError(f"{option} is {pair!r}, expected key=value, such as note=first")
        try:
            meta[key] = loads(text, f"{option} {key}")
        except FormatError:
            meta[key] = text
    return meta


def parse_names(text: str | None, *, option: str = "--class-names") -> list[str] | None:
    """Names from a comma list, or from the lines of `@file`."""
    if text is None:
        return None
    if text.startswith("@"):
        return _lines(text, option)
    return [name.strip() for name in text.split(",")]


def _parse_encoding(text: str | None) -> Any:
    """The name of an encoding, or JSON of its name and parameters.

    >>> _parse_encoding("topk"), _parse_encoding('{"name": "topk", "k": 3}')
    ('topk', {'name': 'topk', 'k': 3})
    """
    return text if text is None or not text.startswith("{") else loads(text, "--encoding")


def _parse_numbers(text: str | None) -> list[float] | None:
    """Numbers from a comma list.

    >>> _parse_numbers("2, 4.5")
    [2.0, 4.5]
    """
    if text is None:
        return None
    try:
        return [float(number) for number in text.split(",")]
    except ValueError as error:
        raise ArgumentError(f"--temperatures is {text!r}, expected numbers such as 2,4") from error


def parse_ids(text: str | None) -> list[int] | list[str] | None:
    """Sample ids from the lines of `@file`; integers where every line is a plain one."""
    if text is None:
        return None
    if not text.startswith("@"):
        raise ArgumentError(f"--ids is {text!r}, expected @file with one id a line")
    lines = _lines(text, "--ids")
    # "007" is a name, not the number 7, so only what prints back as it came is an integer.
    # A longer one fits no integer, and `int` raises ValueError of thousands of digits.
    if all(
        len(line) <= 20 and line.removeprefix("-").isdecimal() and str(int(line)) == line
        for line in lines
    ):
        return [int(line) for line in lines]
    return lines


def parse_slice(text: str | None) -> slice | None:
    """Rows from `start:stop` or `start:stop:step`, each of which may be left out.

    >>> parse_slice("10:20"), parse_slice("::2"), parse_slice(":5")
    (slice(10, 20, None), slice(None, None, 2), slice(None, 5, None))
    """
    if text is None:
        return None
    bounds = text.split(":")
    if not 2 <= len(bounds) <= 3 or not all(one == "" or one.isdecimal() for one in bounds):
        raise ArgumentError(
            f"--rows is {text!r:.60}, expected start:stop or start:stop:step, such as 0:500"
        )
    return slice(*(parse_number(one, "--rows") if one else None for one in bounds))


def parse_rows(text: str | None) -> tuple[int, int] | str | None:
    """Rows from `start:stop`, the stop not included; a word as it is, such as "tokens".

    >>> parse_rows("0:500"), parse_rows("tokens")
    ((0, 500), 'tokens')
    """
    if text is None or text in TOKEN_ROWS:
        return text
    rows = parse_slice(text)
    assert rows is not None
    if None in (rows.start, rows.stop) or rows.step is not None or not rows.start < rows.stop:
        words = " or ".join(TOKEN_ROWS)
        raise ArgumentError(f"--rows is {text!r}, expected start:stop, such as 0:500, or {words}")
    return rows.start, rows.stop


def parse_number(text: str, option: str) -> int:
    """A whole number of a text of digits; of thousands of them Python itself makes none."""
    if len(text) > _DIGITS:
        raise ArgumentError(
            f"{option} holds a number of {len(text):,} digits, expected one of at most {_DIGITS}"
        )
    return int(text)


def _lines(text: str, option: str) -> list[str]:
    path = local_path(text[1:])
    try:
        lines = disk.read_named(path, _MAX_BYTES, "a file of lines").decode("utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ArgumentError(f"{option}: {path} is not UTF-8 text: {error}") from error
    except (FormatError, StoreNotFoundError, PlaceError) as error:
        raise ArgumentError(f"{option} cannot be read: {error}") from error
    while lines and not lines[-1]:
        lines.pop()
    return lines
