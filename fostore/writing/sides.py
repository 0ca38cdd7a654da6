"""What goes with the rows: the values of side columns, with each batch or planned for the whole store.

A mapping `sides` holds them by keyword (`ids`, `views`, ...), so that a new one passes here unseen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from fostore.errors import ArgumentError, IdentityError, RowError
from fostore.schema.header import Header
from fostore.schema.integers import integer
from fostore.schema.ranges import Ranges
from fostore.schema.row import SAMPLE, TOKEN, Array, Column
from fostore.schema.sequences import RowOrder, check_count, offsets_of
from fostore.schema.sides import SIDES, Side, is_promise, side_of
from fostore.schema.sides.known import only_grow

Sides = Mapping[str, Any]
"""Values by keyword; None, or False, where there are none."""

_ReadSide = Callable[[str, int, int], Array]
"""(name of a column, start, stop) to written rows as they are stored."""

_COMPARED_ROWS = 1 << 16
_GROWING = "growing"
_ORDERED = ("sequence", "position")
"""Roles of the columns that say in which order rows of tokens come."""

ROWS = {"samples": SAMPLE, "tokens": TOKEN}
"""What a user calls rows, and the axis that they have."""


def token_sides(rows: str | None, num_classes: int | None, asked: Mapping[str, Any]) -> Sides:
    """What is promised to come with rows of tokens.

    Args:
        rows: what a user calls them; None where the store that is there decides.
        num_classes: how many tokens there are where nobody says.
        asked: the parameters of `fostore.create` that are of token rows alone.

    Raises:
        ArgumentError: no such rows, or what only rows of tokens have without them.
    """
    if rows is not None and rows not in ROWS:
        raise ArgumentError(f"rows is {rows!r:.80}, expected one of {list(ROWS)}")
    given = [name for name, value in asked.items() if value not in (None, False)]
    if rows != "tokens":
        if rows is not None and given:
            raise ArgumentError(f'{given[0]}= is of token rows alone: say rows="tokens"')
        return {"sequences": True} if given else {}
    size = asked["vocab_size"]
    size = num_classes if size is None else integer(size, "vocab_size", 1, 1 << 32)
    is_kept = asked["tokens"] is None or bool(asked["tokens"])
    return {
        "sequences": True,
        "tokens": is_kept and (str(size) if isinstance(size, int) and size > 0 else True),
        "positions": bool(asked["positions"]),
    }


def side_columns(sides: Sides, num_samples: int | None) -> list[Column]:
    """The columns that keep these values, in the order of a new store.

    Raises:
        ArgumentError: values that cannot be kept, or that come all at once and are not one a sample.
    """
    columns = []
    for side, values in _given(sides):
        columns.append(side.column(values))
        if not is_promise(values) and num_samples not in (None, len(values)):
            raise ArgumentError(f"{len(values)} {side.keyword} for {num_samples} samples")
    return columns


def check_kept(header: Header, sides: Sides) -> None:
    """Refuse values, given or promised, that a store with this header cannot keep.

    Raises:
        IdentityError: it has no column for them.
        RowError: one of them is none that its column may hold.
    """
    for side, values in _given(sides):
        column = header.schema.role(side.role)
        if column is not None:
            if side.check is not None and not is_promise(values):
                side.check(side.encode(values, column, 0), header.bounds, 0)
        else:
            raise IdentityError(
                f"the store keeps no {side.keyword}, and {side.keyword}= were given",
                (side.keyword,),
            )


class SideValues:
    """The side columns of one writer: values of each batch as they are stored, none of them wrong.

    Args:
        header: of the store, which keeps what `sides` has.
        sides: values for all rows, as `side_columns` has checked them, or promises of values.
        read: gives rows that are written.
        grows: the store is a sealed one that goes on as a stream.
    """

    def __init__(
        self, header: Header, sides: Sides, read: _ReadSide, *, grows: bool = False
    ) -> None:
        self._read = read
        self._bounds, schema = header.bounds, header.schema
        self._schema = schema
        self._least = header.num_sequences or 0
        if grows:
            self._bounds = self._bounds._replace(num_sequences=None)
        self._columns = [
            (side_of(column.role), column) for column in schema.columns if column.role != "content"
        ]
        self._planned = {
            side.keyword: side.encode(sides[side.keyword], column, 0)
            for side, column in self._columns
            if not (sides.get(side.keyword) is None or is_promise(sides[side.keyword]))
        }
        self.known = [
            (index, side.known(column, partial(read, column.name)))
            for index, (side, column) in enumerate(self._columns, len(schema.content))
            if side.keyword not in self._planned  # of those that come all at once `column` knows
            and side.known is not None
        ]
        self._joined, self._repeats_known = 0, True
        self._last: dict[str, int | None] = {}
        self._order = None
        if schema.role("sequence") is not None:
            names = [column.name for column in schema.columns]
            self._order = RowOrder(schema, lambda index, *rows: read(names[index], *rows))
        self.compares = bool(self.known or self._order)
        """Whether `add` has anything to look at."""

    def encode(self, start: int, stop: int, sides: Sides) -> list[Array]:
        """The values of the rows `[start, stop)`, one array a column.

        Raises:
            RowError: values are missing, do not fit, or are not those that were planned.
        """
        arrays = []
        for side, column in self._columns:
            values, planned = sides.get(side.keyword), self._planned.get(side.keyword)
            array = None if planned is None else planned[start:stop]
            if values is not None:
                array = side.encode(values, column, start)
                if side.check is not None:
                    side.check(array, self._bounds, start)
                if planned is not None and not np.array_equal(array, planned[start:stop]):
                    raise RowError(
                        f"{side.keyword} for rows {start} to {stop - 1} differ from those of create"
                    )
            # Here, for every side: the pipeline would find out in the middle of a batch.
            if array is None or array.shape != (stop - start, *column.shape):
                hint = f"none came; give {side.keyword}= for rows {start} to {stop - 1}"
                came = hint if array is None else f"an array of shape {array.shape} came"
                raise RowError(f"{stop - start} values of {column.name!r} were expected, {came}")
            arrays.append(np.ascontiguousarray(array))
        return arrays

    def add(self, start: int, columns: Sequence[Array], written: Ranges) -> None:
        """Take note of rows that come, one array a column of the store, before they are written.

        Raises:
            RowError: a value that may not repeat is there already, or a token does not follow those before it.
                None was taken.
        """
        if self._order is not None:
            self._order.add(start, columns, written)
        for index, known in self.known:
            known.add(start, columns[index], written)

    def offsets(self, num_sequences: int | None, num_rows: int) -> Array | None:
        """Where the sequences of all rows, which are there, begin; None where rows are no tokens.

        Raises:
            RowError: sequences have numbers far beyond the number of rows, or are out of order.
        """
        if self._order is None:
            return None
        last = self._read("sequence", num_rows - 1, num_rows)[0] if num_rows else -1
        count = max(int(last) + 1, self._least) if num_sequences is None else num_sequences
        check_count(count, num_rows, "the store", RowError)
        return offsets_of(self._in_order(num_rows), count)

    def _in_order(self, num_rows: int) -> Iterator[Array]:
        """The sequence of every row, in pieces; raises RowError where one does not follow the row before it."""
        order = RowOrder(self._schema)  # of all rows: of several writers each has seen its own
        columns = {at: c for at, c in enumerate(self._schema.columns) if c.role in _ORDERED}
        for start in range(0, num_rows, _COMPARED_ROWS):
            stop = min(start + _COMPARED_ROWS, num_rows)
            keys = {at: self._read(column.name, start, stop) for at, column in columns.items()}
            order.follow(start, keys)
            yield keys[self._schema.index("sequence")]

    def of_unit(
        self, start: int, stop: int, read: Callable[[int, int], list[Array]]
    ) -> Mapping[str, Any]:
        """For the record of a unit: the first and the last id where they only grow, as indices do."""
        if not self.known:
            return {}
        columns = read(start, stop)
        ends = {
            self._schema.columns[index].name: [int(columns[index][0]), int(columns[index][-1])]
            for index, _ in self.known
            if columns[index].dtype == np.int64 and only_grow(columns[index], None)
        }
        return {_GROWING: ends} if ends else {}

    def join(self, facts: Mapping[str, Any]) -> None:
        """Take the ids of the next unit: as long as they grow from one to the next, none came twice."""
        ends, self._joined = facts.get(_GROWING, {}), self._joined + 1
        for index, _ in self.known:
            name = self._schema.columns[index].name
            first, last = ends.get(name, (None, None))
            before = self._last.get(name)
            if first is None or (before is not None and first <= before):
                self._repeats_known = False
            self._last[name] = last

    def load(self, written: Ranges) -> None:
        """Compare all rows that are there, at the latest now; raises RowError where a value repeats."""
        if self._joined and self._repeats_known:
            return
        for _, known in self.known:
            known.load(written)

    def check_planned(self, written: Ranges, path: Path) -> None:
        """Raise IdentityError where rows that are written have other values than were planned."""
        for side, column in self._columns:
            planned = self._planned.get(side.keyword)
            if planned is None:
                continue
            for start, stop in written:
                # In pieces: what is written may be more than memory holds.
                for first in range(start, stop, _COMPARED_ROWS):
                    last = min(first + _COMPARED_ROWS, stop)
                    self._compare(side.keyword, column.name, planned, first, last, path)

    def _compare(
        self, keyword: str, name: str, planned: Array, first: int, last: int, path: Path
    ) -> None:
        stored, ours = self._read(name, first, last), planned[first:last]
        if np.array_equal(ours, stored):
            return
        pairs = enumerate(zip(stored, ours, strict=False), first)
        # Fewer may have been planned than are written: then the first one beyond differs.
        row = next((i for i, (a, b) in pairs if not np.array_equal(a, b)), first + len(ours))
        raise IdentityError(
            f"{str(path)!r} cannot be resumed: the {keyword} given differ from the store's from row "
            f"{row} on",
            (f"{keyword} differ from row {row} on",),
        )


def _given(sides: Sides) -> list[tuple[Side, Any]]:
    """What there is to keep, in the order of `SIDES`."""
    values = ((side, sides.get(side.keyword)) for side in map(side_of, SIDES))
    return [(side, value) for side, value in values if value is not None and value is not False]
