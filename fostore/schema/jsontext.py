"""Strict JSON text for metadata: what is written reads back equal, what is ambiguous is refused."""

from __future__ import annotations

import json
import zlib
from collections import Counter
from collections.abc import Mapping
from typing import Any, NoReturn

from fostore.errors import ArgumentError, FormatError

_CANONICAL = json.JSONEncoder(
    sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
)


def check_json(value: Any, where: str = "meta") -> Any:
    """`value` as plain JSON data (tuples become lists), or an error that names the place.

    Raises:
        ArgumentError: NaN or an infinity, a key that is no string, a type that JSON does not have,
            a value that holds itself.
    """
    try:
        return _plain(value, where)
    except RecursionError as error:
        raise ArgumentError(f"{where} is nested too deeply, or holds itself") from error


def check_object(given: Any, where: str = "meta") -> dict[str, Any]:
    """A mapping as plain JSON data, {} for None; anything else is an ArgumentError, as in `check_json`."""
    if given is not None and not isinstance(given, Mapping):
        raise ArgumentError(f"{where} is {given!r:.80}, expected a dict")
    checked: dict[str, Any] = check_json(dict(given or {}), where)
    return checked


def _plain(value: Any, where: str) -> Any:
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        if value != value or value in (float("inf"), float("-inf")):
            raise ArgumentError(f"{where} is {value}, which JSON cannot hold; use null or a string")
        return float(value)
    if isinstance(value, dict):
        for key in value:
            if not isinstance(key, str):
                raise ArgumentError(
                    f"{where} has the key {key!r} of type {type(key).__name__}; "
                    "JSON keys are strings: use str(key)"
                )
        return {key: _plain(item, f"{where}[{key!r}]") for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item, f"{where}[{i}]") for i, item in enumerate(value)]
    if hasattr(value, "item") and getattr(value, "shape", None) == ():
        return _plain(value.item(), where)  # a NumPy, torch or JAX scalar
    raise ArgumentError(
        f"{where} is of type {type(value).__name__}, which JSON does not have; "
        "use str, int, float, bool, None, list or dict"
    )


def dumps(value: Any, *, indent: int | None = None) -> bytes:
    """`value` as UTF-8 JSON; integers of any size and floats keep their exact value."""
    try:
        text = json.dumps(value, allow_nan=False, ensure_ascii=False, indent=indent)
        return text.encode("utf-8")
    except (ValueError, TypeError, RecursionError) as error:
        raise ArgumentError(f"this cannot be written as JSON: {error}") from error


def canonical(value: Any) -> bytes:
    """JSON text that is the same for equal values, whoever wrote them (spec/core.md, C-45)."""
    try:
        return _CANONICAL.encode(value).encode(
            "utf-8", "surrogatepass"
        )  # half of a pair is a value too
    except (ValueError, TypeError, RecursionError) as error:
        raise ArgumentError(f"this cannot be written as JSON: {error}") from error


def checksum(text: bytes) -> str:
    """The checksum of a text as a store's attributes hold it: every language has this crc32, and at no import."""
    return f"crc32:{zlib.crc32(text):08x}"


def loads(text: bytes | str, where: str, *, strange: list[str] | None = None) -> Any:
    """Parse JSON as RFC 8259 has it: no NaN, no duplicate keys, valid UTF-8, no number beyond a double.

    Args:
        text: in UTF-8.
        where: names it in messages.
        strange: where given, NaN, Infinity and -Infinity (which Python writes) become texts of these
            names, and are appended to it.

    Raises:
        FormatError: names `where` and the place in the text.
    """

    def refuse(token: str) -> NoReturn:
        raise FormatError(
            f"{where} holds {token}, which is not a JSON number; write null or a text in its place"
        )

    def keep(token: str) -> str:
        assert strange is not None
        strange.append(token)
        return token

    def finite(token: str) -> float:
        number = float(token)
        return number if abs(number) != float("inf") else refuse(token)

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        items = dict(pairs)
        if len(items) != len(pairs):
            twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
            raise FormatError(f"{where} holds the key {twice!r} twice")
        return items

    try:
        # json would guess UTF-16 and UTF-32 from the first bytes
        decoded = text.decode("utf-8") if isinstance(text, bytes) else text
        return json.loads(
            decoded,
            parse_float=finite,
            parse_constant=refuse if strange is None else keep,
            object_pairs_hook=unique,
        )
    except FormatError:
        raise
    except (ValueError, RecursionError) as error:
        is_wide = b"\0" in text if isinstance(text, bytes) else "\0" in text
        hint = "; save it as UTF-8" if is_wide or isinstance(error, UnicodeDecodeError) else ""
        raise FormatError(f"{where} is not JSON: {error}{hint}") from error
