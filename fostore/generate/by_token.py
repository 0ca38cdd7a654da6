"""Rows of tokens: the rows of a sequence lie one after the other, those of the sequences in their order.

A store that stopped goes on with the sequence of its last row: that batch is computed once more as a whole, as it
was, since a model may give other last digits to a sequence in other company.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from fostore.errors import GenerationError
from fostore.formats import format_of
from fostore.generate.alignment import Beside
from fostore.generate.committed import CommittedRows, Consent
from fostore.generate.generation import Generation
from fostore.generate.mixing import content_of
from fostore.generate.probe import UNSTABLE
from fostore.generate.samples import (
    ENDLESS,
    Batch,
    Indexed,
    Samples,
    Sequential,
    name_samples,
)
from fostore.generate.tokens import refuse_order
from fostore.places.names import place_of
from fostore.schema.header import Header
from fostore.schema.ranges import Range, Ranges
from fostore.schema.row import Array
from fostore.writing.writer import Writer


class ByToken:
    """See `fostore.generate.alignment.Alignment`: rows belong to tokens of sequences."""

    def __init__(self, generation: Generation) -> None:
        self._generation = generation
        self._options = options = generation.options
        self.samples: Samples = generation.samples
        # whether positions are left out within a sequence
        self._skips = options.of_tokens != "tokens"
        self._committed: CommittedRows | None = None
        self._next = (0, 0)  # the sequence that comes next, and its first row
        self._total: int | None = None
        self.content = "tokens"  # which lie beside the rows, and say themselves what was read
        samples = generation.samples
        if isinstance(samples, Indexed) and not isinstance(samples.batches, Sequential):
            refuse_order(
                iter(samples.batches.touching(Ranges.of((0, ENDLESS)))), samples.num_samples
            )

    # The store

    def begin(self, first: int) -> None:
        content = content_of(self._generation.framework, self.samples, first)
        self.content = UNSTABLE if content == UNSTABLE else self.content
        self._total = self._counted()

    def resume(self, header: Header) -> None:
        size = header.meta.get("batch_size")
        samples = self.samples
        if not isinstance(samples, Indexed) or type(size) is not int or size < 1:
            pass
        elif isinstance(samples.batches, Sequential):
            self.samples = replace(samples, batches=Sequential(samples.num_samples, size))
        is_same = header.num_sequences == samples.num_samples
        self._total = header.num_samples if is_same else self._counted()

    def claim(self, rows: Range) -> None:
        raise AssertionError("refused before a store is begun")

    def follow(self, committed: CommittedRows) -> None:
        self._committed = committed

    def is_whole(self, header: Header) -> bool:
        return header.sealed and header.num_sequences == self.samples.num_samples

    def missing(self, committed: Ranges, is_sealed: bool) -> tuple[Ranges, Ranges]:
        last = self.samples.num_samples
        stop = ENDLESS if last is None else last
        if is_sealed:
            return Ranges(), Ranges()
        written = committed.prefix
        first = self._sequence_of(written - 1) if written else 0
        return Ranges.of((first, stop)), Ranges.of((written, ENDLESS))

    def done(self, committed: Ranges) -> int:
        return self._sequence_of(committed.prefix - 1) if committed.prefix else 0

    def planned(self) -> dict[str, Any]:
        return {
            "rows": "tokens",
            "num_samples": self._total,
            "num_sequences": self.samples.num_samples,
            "positions": True if self._skips else None,
        }

    def _counted(self) -> int | None:
        """The number of rows, where it has to be known: all sequences are read for it, and no model runs."""
        assert self._options.store is not None
        place = place_of(self._options.store)
        if place.is_local and format_of(place).streams:
            return None
        samples = self.samples
        assert isinstance(samples, Indexed)  # `_check_store` refuses streams for such a format
        every = samples.batches.touching(Ranges.of((0, samples.num_samples)))
        with self._generation.framework.kept_random_states():
            return sum(len(batch.tokens or ()) for batch in samples.inputs(every))

    # Batches

    def beside(self, batch: Batch, *, is_begun: bool = False) -> Beside:
        """The row of its first token: behind the batch before, else where the store has it."""
        first = int(batch.indices[0])
        sequence, row = self._next
        if first != sequence:
            row = self._row_of(first)
        assert batch.tokens is not None
        self._next = (int(batch.indices[-1]) + 1, row + len(batch.tokens))
        return row

    def settle(self, batch: Batch, beside: Beside) -> None:
        pass

    def sides(
        self, batch: Batch, beside: Beside, num_classes: int, names: Sequence[str] | None
    ) -> dict[str, Any]:
        assert batch.tokens is not None
        values = {"sequences": batch.of_rows(), "tokens": batch.tokens.tokens}
        if self._skips:
            values["positions"] = batch.tokens.positions
        return values

    def runs(self, batch: Batch, beside: Beside, rows: Ranges) -> list[tuple[int, Any]]:
        assert batch.tokens is not None
        overlap = rows.overlap(beside, beside + len(batch.tokens))
        return [(start, slice(start - beside, stop - beside)) for start, stop in overlap]

    def end(self, writer: Writer) -> None:
        if writer.header.sealed:
            return
        came, planned = self._next[0], self.samples.num_samples
        if planned is None:
            writer.seal(came)
        elif came < planned:
            raise GenerationError(
                f"the stream ended after {came} sequences, but its length is {planned}; the store is not whole"
            )
        if writer.missing():
            raise GenerationError(
                f"the sequences had {len(writer)} rows when the model saw them and {writer.num_samples} when they "
                "were counted: they read differently each time; use a .zarr path, or let them repeat"
            )

    # What is there

    def picked(self, committed: CommittedRows) -> list[int]:
        return sorted({self._sequence_of(row) for row in committed.picked})

    def look(self, committed: CommittedRows, consent: Consent) -> None:
        samples = self.samples
        assert isinstance(samples, Indexed)
        asked = [range(index, index + 1) for index in self.picked(committed)]
        with self._generation.framework.kept_random_states():
            for batch in samples.inputs(asked, few=True):
                moved = self.moved(batch, self.beside(batch), committed)
                if moved is not None:
                    consent.differs(moved)
                    return

    def moved(self, batch: Batch, beside: Beside, committed: CommittedRows) -> str | None:
        tokens = batch.tokens
        assert tokens is not None
        sequences = batch.of_rows()
        for start, places in self.runs(batch, beside, committed.rows):
            stop = start + len(tokens.tokens[places])
            kept = (
                ("sequence", sequences[places], "sequence"),
                ("position", tokens.positions[places], "position"),
                ("token", tokens.tokens[places], "token"),
            )
            for role, now, word in kept:
                column = committed.schema.role(role)
                if column is None:
                    continue
                then = committed.column(column.name, start, stop)
                other = np.flatnonzero(then != now)
                if len(other):
                    at = int(other[0])
                    place = tokens.positions[places][at]
                    return (
                        f"{name_samples(sequences[places][at : at + 1])} of the {self.samples.noun} has the {word} "
                        f"{now[at]} at position {place}, the store has {then[at]} in row {start + at}"
                    )
        return None

    def _sequence_of(self, row: int) -> int:
        """The sequence of a committed row."""
        return int(self._sequences(row, row + 1)[0])

    def _row_of(self, sequence: int) -> int:
        """The first committed row of a sequence, or of one after it; the row behind them all where there is none."""
        first, last = 0, 0 if self._committed is None else self._committed.rows.prefix
        while first < last:
            middle = (first + last) // 2
            if self._sequence_of(middle) < sequence:
                first = middle + 1
            else:
                last = middle
        return first

    def _sequences(self, start: int, stop: int) -> Array:
        assert self._committed is not None
        column = self._committed.schema.role("sequence")
        if column is None:
            raise GenerationError(f"{self._committed.path} keeps no rows of tokens")
        return self._committed.column(column.name, start, stop)
