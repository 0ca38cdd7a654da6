"""Whether a model still gives the rows that a store holds: computed again and compared.

An identity is a list of what was looked at, so what it does not see would count as equal. Rows do not
err: on every resume one committed batch is computed again, as it was computed the first time.

How much noise counts as none is here, how rows of an encoding are compared is its own. Dense numbers are
compared as logarithms of probabilities or as logits minus their row's maximum, x. They may differ by

    2 u |x|                      the stored dtype's rounding, u its unit roundoff (2 u for probabilities)
    n (1 + |x| + m)              other kernels: another device, batch size or number of threads

where m is the median of |x| in the row, at most 100, and n is 2^-10, or 2^-7 where the model's output
is bfloat16. Probabilities below the least normal number of their dtype (and of float32) count as it.
A run on the same machine gives the same bits; a temperature of 1.01 instead of 1 is seen.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from operator import itemgetter
from typing import Any

import numpy as np

from fostore.encodings import encoding_of
from fostore.errors import RowError
from fostore.generate.alignment import Alignment, Beside
from fostore.generate.committed import CommittedRows, Consent
from fostore.generate.generation import Generation
from fostore.generate.probe import REREADS, Probe
from fostore.generate.samples import Batch, Indexed, Indices, Sequential, holding, name_samples
from fostore.nested import each
from fostore.schema import identity
from fostore.schema.ranges import Ranges, describe
from fostore.schema.row import Array, Schema

_NOISE = 2.0**-10
_HALF_NOISE = {"bfloat16": 2.0**-7}


def disagrees(
    schema: Schema, stored: Sequence[Array], now: Sequence[Array], output_dtype: str
) -> Array:
    """For each row, whether it is another one; both sides as content columns (n, ...) of the schema."""
    noise = _HALF_NOISE.get(output_dtype, _NOISE)
    return encoding_of(schema).disagrees(stored, now, schema, noise)


class Comparison:
    """Committed rows beside what is at hand, before or while others are added to them.

    Of a dataset the labels, inputs and rows of the first, the middle and the last sample are compared
    (of rows, where there are no doubts, the first batch alone); of a stream each batch as it passes.
    """

    def __init__(
        self,
        generation: Generation,
        alignment: Alignment,
        committed: CommittedRows,
        consent: Consent,
        stored: Mapping[str, Any],
        given: Mapping[str, Any],
    ) -> None:
        """`stored`, `given`: the identity of the store, and the one at hand."""
        self._generation = generation
        self._framework = generation.framework
        self._alignment = alignment
        self._samples = generation.samples
        self._committed = committed
        self._consent = consent
        self._differs = consent.differs
        self._doubts = doubts = identity.doubts(stored, given)
        self._is_opaque = identity.is_opaque(given)
        self._wanted: list[int] = []  # samples whose batches are to be computed again
        self._agreed: list[tuple[int, int]] = []
        if generation.options.recheck:
            picked = alignment.picked(committed)
            self._wanted = picked if doubts else picked[:1]
            return
        if doubts.code:
            self._differs(f"{doubts}, and recheck=False computes nothing again")
        elif doubts:
            warnings.warn(f"{committed.path} goes on although {doubts}", stacklevel=2)
        consent.recorded.append("no committed batch was computed again (recheck=False)")

    def look(self) -> None:
        """Compare samples of a dataset, or the first batch of a stream of which nothing else passes by."""
        samples = self._samples
        if isinstance(samples, Indexed):
            self._alignment.look(self._committed, self._consent)
            while self._wanted:
                indices = self._batch_of(samples, self._wanted[0])
                self._compare(lambda at=indices: next(samples.inputs([at], few=True)))  # type: ignore[misc]  # of a lambda
                self._wanted = [index for index in self._wanted if index not in indices]
        elif self._wanted:
            for batch in samples.steps(Ranges.of((0, 1))):
                self._recompute(batch)
            if not self._agreed and self._wanted:
                self._cannot_tell("the stream is empty now")
            self._wanted = []
        self._say()

    def passing(self, batch: Batch, beside: Beside = None) -> None:
        """Compare the committed rows of a batch of a stream, before a model may change its inputs.

        `beside`: what goes with its rows, where it is known already.
        """
        if beside is None:
            beside = self._alignment.beside(batch)
        self._refuse_moved(batch, beside)
        self._recompute(batch)

    def _refuse_moved(self, batch: Batch, beside: Beside) -> bool:
        moved = self._alignment.moved(batch, beside, self._committed)
        if moved is not None:
            self._differs(moved)
        return moved is not None

    # Rows

    def _recompute(self, batch: Batch) -> None:
        if any(index in batch.indices for index in self._wanted):
            self._wanted = [index for index in self._wanted if index not in batch.indices]
            self._compare(lambda: batch)
            if not self._wanted:
                self._say()

    def _batch_of(self, samples: Indexed, row: int) -> Indices:
        """The batch as it was: other neighbours may change what a model gives by a little."""
        batches, size = samples.batches, self._committed.batch_size
        if isinstance(batches, Sequential) and size is not None:
            batches = Sequential(batches.num_samples, size)
        return holding(batches, row)

    def _compare(self, read: Callable[[], Batch]) -> None:
        with self._framework.kept_random_states():
            # A run begins with the random states of the last one: what draws would repeat itself.
            self._framework.stir_random_states()
            batch = read()
            indices, beside = batch.indices, self._alignment.beside(batch)
            if batch.tokens is not None and not len(batch.tokens):
                return None
            first = self._compute(batch)
            try:
                other = self._other_row(batch, beside, first)
            except RowError as error:
                return self._differs(f"the model gives no rows of the kind that is kept: {error}")
            if other is None:
                rows = (int(min(indices)), int(max(indices)) + 1)
                if batch.tokens is not None:
                    rows = (beside, beside + len(batch.tokens))
                self._agreed.append(rows)
                return None
            self._wanted = []  # one difference is enough
            if self._inputs_differ(batch, beside):
                return None
            second = self._compute(read())
            if self._are_other(first, second):
                return self._draws(other)
            return self._differs(
                f"the model gives another distribution for {other} than the store has"
                + (f" ({self._doubts})" if self._doubts else "")
            )

    def _compute(self, batch: Batch) -> Any:
        engine = self._generation.engine
        computed = engine.compute(batch)
        self._consent.check_shape(computed.row_shape, self._committed.schema)
        return each(np.array, engine.collect(computed))  # a copy: models reuse buffers

    def _other_row(self, batch: Batch, beside: Beside, rows: Any) -> str | None:
        """The sample of the first committed row of a batch that is another one now."""
        committed = self._committed
        schema = committed.schema
        for start, places in self._alignment.runs(batch, beside, committed.rows):
            now = encoding_of(schema).encode(each(itemgetter(places), rows), schema, start)
            stop = start + len(now[0])
            stored = [committed.column(column.name, start, stop) for column in schema.content]
            bad = disagrees(schema, stored, now, self._generation.engine.dtype)
            if bad.any():
                at = int(np.flatnonzero(bad)[0])
                return name_samples(np.asarray(batch.of_rows())[places][at : at + 1])
        return None

    def _are_other(self, first: Any, second: Any) -> bool:
        schema = self._committed.schema
        encoding = encoding_of(schema)
        one, other = (encoding.encode(rows, schema, 0) for rows in (first, second))
        return bool(disagrees(schema, one, other, self._generation.engine.dtype).any())

    def _inputs_differ(self, batch: Batch, beside: Beside) -> bool:
        """Whether the rows of a batch differ because its inputs do: from read to read, or for good."""
        samples = self._samples
        if isinstance(samples, Indexed):
            asked = [batch.indices] * (1 + REREADS)
            first, *others = Probe(self._framework, samples).together(*asked)
            if first is not None and not all(
                again is not None and np.array_equal(first, again) for again in others
            ):
                self._cannot_tell("its inputs read differently each time")
                return True
        return self._refuse_moved(batch, beside)

    def _draws(self, other: str) -> None:
        """The model gave two answers for one batch, so neither says whether it is the same model."""
        if self._generation.options.model_fingerprint is not None:  # it stands for the model
            warnings.warn(
                f"the model gives another distribution for {other} each time (it draws random "
                f"numbers?), so {self._committed.path} goes on by model_fingerprint alone",
                stacklevel=2,
            )
            return
        self._differs(
            f"the model gives another distribution for {other} each time it is asked (it "
            "draws random numbers), so nothing can tell whether it is the model of the store: "
            "generate with num_draws= and seed=, which a resume repeats bit by bit, or go on "
            "unchecked with recheck=False"
        )

    def _cannot_tell(self, reason: str) -> None:
        """No row can be compared: what the identity sees decides, and what it cannot see refuses."""
        if self._doubts:
            self._differs(f"{self._doubts}, and {reason}")
        elif self._is_opaque:
            self._differs(
                f"the model cannot be hashed, and {reason}; recheck=False goes on unchecked"
            )

    def _say(self) -> None:
        if self._doubts and self._agreed:
            warnings.warn(
                f"the model or its code is not what made {self._committed.path}: "
                f"{self._doubts}; the "
                f"{describe(sorted(self._agreed))} were computed again and agree, so it goes on",
                stacklevel=2,
            )
        self._agreed = []
