"""What a writer may touch: whose journal it keeps, and which units are its own."""

from __future__ import annotations

from dataclasses import dataclass

from fostore.errors import ArgumentError, RowError
from fostore.schema.ranges import Range, Ranges

MAIN = "main"


@dataclass(frozen=True, slots=True)
class Claim:
    """The right of one writer: the units `[start, stop)`, or all of a store and what it says of itself.

    Writers whose units are disjoint may be at work together, each with a journal of its own. The
    header and what plain readers see belong to all units together, so one who claims less than
    all changes neither; that one is called "main", and nobody else is.
    """

    owner: str = MAIN
    units: Range | None = None

    def __post_init__(self) -> None:
        if (self.owner == MAIN) != (self.units is None):
            raise ArgumentError(
                f"{self.owner!r} claims {self.units or 'all units'}: all units, and they alone, belong "
                f"to {MAIN!r}"
            )

    @property
    def is_whole(self) -> bool:
        """Whether the header and the shapes of arrays may be changed, beside all units."""
        return self.units is None

    def holds(self, unit: int) -> bool:
        """Whether a unit may be written."""
        return self.units is None or self.units[0] <= unit < self.units[1]

    def rows(self, unit_rows: int, rows: Ranges) -> Ranges:
        """Those of `rows` that lie in the units claimed."""
        if self.units is None:
            return rows
        start, stop = self.units
        return Ranges(rows.overlap(start * unit_rows, stop * unit_rows))

    def check_rows(self, unit_rows: int, start: int, stop: int) -> None:
        """Raise RowError where some of the rows `[start, stop)` lie in units that are not claimed."""
        if not self.rows(unit_rows, Ranges.of((start, stop))).covers(start, stop):
            raise RowError(
                f"rows {start} to {stop - 1} lie in units that {self.owner!r} does not hold: it claims "
                f"{self.units} of {unit_rows} rows each"
            )

    def check_whole(self, what: str) -> None:
        """Refuse what changes the header or the shapes, for one who claims some units.

        Raises:
            ArgumentError: names the owner; nothing was changed.
        """
        if not self.is_whole:
            raise ArgumentError(
                f"{what} is for who holds all units; {self.owner!r} holds {self.units}"
            )


WHOLE = Claim()
