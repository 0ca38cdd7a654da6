"""What the options of `fostore generate` say in text, as the values that the library takes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fostore import disk
from fostore.errors import ArgumentError, FormatError, PlaceError, StoreNotFoundError
from fostore.places.names import local_path
from fostore.schema.jsontext import loads

_MAX_BYTES = 1 << 30
"""Of a file of ids, names or metadata."""


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


def parse_ids(text: str | None) -> list[int] | list[str] | None:
    """Sample ids from the lines of `@file`; integers where every line is a plain one."""
    if text is None:
        return None
    if not text.startswith("@"):
        raise ArgumentError(f"--ids is {text!r}, expected @file with one id a line")
    lines = _lines(text, "--ids")
    # "007" is a name, not the number 7, so only what prints back as it came is an integer.
    if all(line.removeprefix("-").isdecimal() and str(int(line)) == line for line in lines):
        return [int(line) for line in lines]
    return lines


def parse_rows(text: str | None) -> tuple[int, int] | None:
    """Rows from `start:stop`; the stop is not included.

    >>> parse_rows("0:500")
    (0, 500)
    """
    if text is None:
        return None
    start, colon, stop = text.partition(":")
    if not (colon and start.isdecimal() and stop.isdecimal() and int(start) < int(stop)):
        raise ArgumentError(f"--rows is {text!r}, expected start:stop, such as 0:500")
    return int(start), int(stop)


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
