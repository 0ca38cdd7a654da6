"""How much a row may lose by being encoded, where somebody has said so."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fostore.encodings.fidelity import Errors, Figures
from fostore.errors import ArgumentError, RowError
from fostore.schema.row import Array, Schema

_STAYS = "Rows that are committed stay; exists='resume' with a larger max_kl goes on with them"


def check_max_kl(max_kl: Any) -> None:
    """Raise ArgumentError for what bounds nothing; None is no bound."""
    if max_kl is not None and not (isinstance(max_kl, (int, float)) and max_kl >= 0):
        raise ArgumentError(
            f"max_kl is {max_kl!r}, expected nats that a row may lose at most, such as 1e-3"
        )


@dataclass(frozen=True, slots=True)
class Bound:
    """How many nats a row may lose at most; None is no bound."""

    max_kl: float | None
    schema: Schema
    stays: bool = True  # what is committed; else rows appear all at once

    def check(self, rows: Array, errors: Errors) -> None:
        """Raise RowError where one of `rows` (n,) loses more; names it."""
        if self.max_kl is None or errors.kl is None or not len(rows):
            return
        per_row = errors.kl.reshape(len(rows), -1).max(axis=-1)
        worst = int(per_row.argmax())
        self._check(int(rows[worst]), float(per_row[worst]))

    def check_figures(self, figures: Figures) -> None:
        """Raise RowError where one of many rows has lost more; names it."""
        self._check(figures.worst_row, figures.kl_max or 0.0)

    def _check(self, row: int | None, kl: float) -> None:
        if self.max_kl is None or kl <= self.max_kl:
            return
        spec = self.schema.encoding
        parameters = [f"{key}={value!r}" for key, value in spec.items() if key != "name"]
        raise RowError(
            f"row {row} loses {kl:.3g} nats (KL) as {' '.join([str(spec['name']), *parameters])}, and max_kl is "
            f"{self.max_kl:g}: keep more of each row (a larger k, rule='coarse', another encoding) in a new store, or "
            f"allow more. {_STAYS if self.stays else 'Nothing is written'}"
        )
