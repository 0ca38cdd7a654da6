"""A JSON document of the guide's layout, taken apart strictly in one pass (spec/json.md).

Tables that stand before `meta` are stepped over and read afterwards, since `meta` says what they are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from fostore.errors import FormatError
from fostore.formats.jsonsource import Source
from fostore.formats.jsontable import Place, Table, read_table
from fostore.formats.jsonwrite import KEY

Wanted = Sequence[tuple[Table, Place]]
"""The tables that a document must have, and what takes their rows."""


def read_document(
    source: Source,
    wanted_of: Callable[[dict[str, Any]], Wanted],
    notes: list[str] | None = None,
) -> dict[str, int]:
    """Read a document from its beginning to its end; gives where the value of each key begins.

    Args:
        source: the file, with its cursor at its beginning.
        wanted_of: is given `meta` ({} where there is none) once, and says which tables to read.
            What stands under any other key is ignored.
        notes: grows by what was read otherwise than it stands: NaN and infinities in `meta`, which
            Python writes and JSON does not have, become texts.

    Raises:
        FormatError: names the file, and the key or the line. Rows may have been placed by then.
    """
    places: dict[str, int] = {}
    try:
        left = _read_entries(source, wanted_of, places, [] if notes is None else notes)
    except FormatError:
        _blame_rows(source, places)
        raise
    beside = [name for name in places if name not in ("meta", "distributions")]
    if beside and notes is not None:
        notes.append(f"left out beside the rows: the keys {beside[:12]}")
    for name, table in left.items():
        if name not in places:
            raise FormatError(f"{source.where} has no {name!r}; its keys are {list(places)[:8]}")
        source.seek(places[name])
        read_table(source, *table)
    return places


def _read_entries(
    source: Source,
    wanted_of: Callable[[dict[str, Any]], Wanted],
    places: dict[str, int],
    notes: list[str],
) -> dict[str, tuple[Table, Place]]:
    """Go through the top level, note where values begin, and give the tables that were not read on the way."""
    left: dict[str, tuple[Table, Place]] | None = None
    source.expect(b"{", "an object: {")
    more = source.peek() != b"}"
    while more:
        name, offset = source.key()
        if name in places:
            source.fail(f"the key {name!r} comes twice", offset)
        first = source.peek()
        places[name] = source.offset
        if name == "meta":
            strange: list[str] = []
            meta = source.value(name, strange)
            if not isinstance(meta, dict):
                raise FormatError(
                    f"{source.where}{source.line(offset)}: 'meta' is {meta!r:.60}, expected an object"
                )
            if strange and KEY in meta:  # no store has them
                source.fail(f"'meta' holds {strange[0]}, which is not a JSON number", offset)
            if strange:
                notes.append(
                    f"the metadata holds {', '.join(sorted(set(strange)))}, which JSON does not have: "
                    "kept as text"
                )
            left = _by_name(wanted_of(meta))
        elif left is not None and name in left:
            read_table(source, *left.pop(name))
        elif first in (b"{", b"["):
            source.skip()
        else:
            source.value(name, [])
        more = source.peek() == b","
        source.at += more
    source.expect(b"}", "a comma or a closing brace")
    if source.peek():
        source.fail("more text after the document's end")
    return _by_name(wanted_of({})) if left is None else left


def _blame_rows(source: Source, places: dict[str, int]) -> None:
    """Raise for the first bad row of rows that were stepped over: what is open in it hides the table's end."""
    if "distributions" in places and "meta" not in places:
        source.seek(places["distributions"])
        read_table(source, Table("distributions", np.dtype("f8")), lambda index, rows: None)


def _by_name(wanted: Wanted) -> dict[str, tuple[Table, Place]]:
    return {table.name: (table, place) for table, place in wanted}
