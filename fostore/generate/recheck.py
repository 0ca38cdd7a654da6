"""Whether a model still gives the rows that a store holds: computed again and compared.

An identity is a list of what was looked at, so what it does not see would count as equal. Rows do not
err: on every resume one committed batch is computed again, as it was computed the first time.

What counts as the same is here and nowhere else. Stored numbers are compared as logarithms of
probabilities or as logits minus their row's maximum, x. They may differ by

    2 u |x|                      the stored dtype's rounding, u its unit roundoff (2 u for probabilities)
    n (1 + |x| + m)              other kernels: another device, batch size or number of threads

where m is the median of |x| in the row, at most 100, and n is 2^-10, or 2^-7 where the model's output
is bfloat16. Probabilities below the least normal number of their dtype (and of float32) count as it.
A run on the same machine gives the same bits; a temperature of 1.01 instead of 1 is seen.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np

from fostore.encodings import encoding_of
from fostore.errors import RowError
from fostore.generate.committed import CommittedRows, Consent
from fostore.generate.generation import Generation
from fostore.generate.labels import differ
from fostore.generate.probe import REREADS, NoLabels, Probe, hash_inputs, moved_label
from fostore.generate.samples import Batch, Indexed, Indices, Sequential, holding
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
    """CommittedRows rows beside what is at hand, before or while others are added to them.

    Of a dataset the labels, inputs and rows of the first, the middle and the last sample are compared
    (of rows, where there are no doubts, the first batch alone); of a stream each batch as it passes.
    """

    def __init__(
        self,
        generation: Generation,
        committed: CommittedRows,
        consent: Consent,
        stored: Mapping[str, Any],
        given: Mapping[str, Any],
        *,
        hashed: bool,
    ) -> None:
        """`stored`, `given`: the identity of the store, and the one at hand; `hashed`: inputs can be compared."""
        self._generation = generation
        self._framework = generation.framework
        self._samples = generation.samples
        self._committed = committed
        self._differs = consent.differs
        self._labelled = committed.schema.role("label") is not None
        self._hashed = hashed
        self._doubts = doubts = identity.doubts(stored, given)
        self._is_opaque = identity.is_opaque(given)
        self._wanted: list[int] = []  # rows whose batches are to be computed again
        self._agreed: list[tuple[int, int]] = []
        if generation.options.recheck:
            picked = committed.picked
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
            if self._labelled:
                self._look_at_labels(samples)
            if self._hashed:
                self._look_at_inputs(samples)
            while self._wanted:
                indices = self._batch_of(samples, self._wanted[0])
                self._compare(indices, lambda at=indices: next(samples.few(at)))  # type: ignore[misc]
                self._wanted = [row for row in self._wanted if row not in indices]
        elif self._wanted:
            for batch in samples.steps(Ranges.of((0, 1))):
                self._recompute(batch)
            if not self._agreed and self._wanted:
                self._cannot_tell("the stream is empty now")
            self._wanted = []
        self._say()

    def passing(self, batch: Batch, hashes: Array | None = None) -> None:
        """Compare the committed rows of a batch of a stream, before a model may change its inputs.

        `hashes`: of the inputs, where they are known already.
        """
        indices = batch.indices
        assert isinstance(indices, range)
        if self._hashed and hashes is None:
            hashes = hash_inputs(self._framework, batch.inputs, len(indices))
        for start, places in runs(indices, self._committed.rows):
            stop = start + len(indices[places])
            if self._labelled and batch.labels is not None:
                other = differ(batch.labels[places], self._committed.labels(start, stop))
                self._refuse_moved(start, other, "label")
            if hashes is not None:
                other = hashes[places] != self._committed.hashes(start, stop)
                self._refuse_moved(start, other, "content")
        self._recompute(batch)

    def _refuse_moved(self, start: int, other: Array, what: str) -> None:
        moved = np.flatnonzero(other)
        if len(moved):
            row = start + int(moved[0])
            self._differs(f"sample {row} of the {self._samples.noun} has another {what}")

    # Labels and inputs

    def _look_at_labels(self, samples: Indexed) -> None:
        picked = self._committed.picked
        stored = np.concatenate([self._committed.labels(i, i + 1) for i in picked])
        with self._framework.kept_random_states(), suppress(NoLabels):
            moved = moved_label(samples.dataset, np.array(picked), stored)
            if moved is not None:
                self._differs(f"sample {moved} of the dataset has another label")

    def _look_at_inputs(self, samples: Indexed) -> None:
        probe, picked = Probe(self._framework, samples), self._committed.picked
        with self._framework.kept_random_states():
            for index, now in zip(picked, probe.alone(picked), strict=True):
                then = int(self._committed.hashes(index, index + 1)[0])
                if now == then or probe.in_batch(index) == then:
                    continue
                if not probe.moves(index):
                    self._differs(f"sample {index} of the dataset has another content")
                    return
                warnings.warn(
                    f"sample {index} reads differently each time (random augmentation?); length, "
                    "labels and ids decide whether the dataset is the same",
                    stacklevel=2,
                )
                return

    # Rows

    def _recompute(self, batch: Batch) -> None:
        if any(row in batch.indices for row in self._wanted):
            self._wanted = [row for row in self._wanted if row not in batch.indices]
            self._compare(batch.indices, lambda: batch.inputs)
            if not self._wanted:
                self._say()

    def _batch_of(self, samples: Indexed, row: int) -> Indices:
        """The batch as it was: other neighbours may change what a model gives by a little."""
        batches, size = samples.batches, self._committed.batch_size
        if isinstance(batches, Sequential) and size is not None:
            batches = Sequential(batches.num_samples, size)
        return holding(batches, row)

    def _compare(self, indices: Indices, read: Callable[[], Any]) -> None:
        with self._framework.kept_random_states():
            # A run begins with the random states of the last one: what draws would repeat itself.
            self._framework.stir_random_states()
            inputs = read()
            hashes = hash_inputs(self._framework, inputs, len(indices))
            first = self._compute(indices, inputs)
            try:
                row = self._other_row(indices, first)
            except RowError as error:
                return self._differs(f"the model gives no rows of the kind that is kept: {error}")
            if row is None:
                self._agreed.append((int(min(indices)), int(max(indices)) + 1))
                return None
            self._wanted = []  # one difference is enough
            if hashes is not None and self._inputs_differ(indices, hashes):
                return None
            second = self._compute(indices, read())
            if self._are_other(first, second):
                return self._draws(row)
            return self._differs(
                f"the model gives another distribution for sample {row} than the store has"
                + (f" ({self._doubts})" if self._doubts else "")
            )

    def _compute(self, indices: Indices, inputs: Any) -> Array:
        # a copy: models reuse buffers
        engine = self._generation.engine
        return np.array(engine.collect(engine.compute(Batch(indices, inputs))))

    def _other_row(self, indices: Indices, rows: Array) -> int | None:
        """The first committed row of a batch that is another one now."""
        committed = self._committed
        schema = committed.schema
        check_shape(rows, schema, committed.path)
        for start, places in runs(indices, committed.rows):
            now = encoding_of(schema).encode(rows[places], schema, start)
            stop = start + len(now[0])
            stored = [committed.column(column.name, start, stop) for column in schema.content]
            bad = disagrees(schema, stored, now, self._generation.engine.dtype)
            if bad.any():
                return start + int(np.flatnonzero(bad)[0])
        return None

    def _are_other(self, first: Array, second: Array) -> bool:
        schema = self._committed.schema
        encoding = encoding_of(schema)
        one, other = (encoding.encode(rows, schema, 0) for rows in (first, second))
        return bool(disagrees(schema, one, other, self._generation.engine.dtype).any())

    def _inputs_differ(self, indices: Indices, hashes: Array) -> bool:
        """Whether the rows of a batch differ because its inputs do: from read to read, or for good."""
        samples = self._samples
        if isinstance(samples, Indexed):
            for again in Probe(self._framework, samples).together(*[indices] * REREADS):
                if again is None or not np.array_equal(again, hashes):
                    self._cannot_tell("its inputs read differently each time")
                    return True
        if not self._hashed:
            return False
        for start, places in runs(indices, self._committed.rows):
            now = hashes[places]
            other = self._committed.hashes(start, start + len(now)) != now
            if other.any():
                self._refuse_moved(start, other, "content")
                return True
        return False

    def _draws(self, row: int) -> None:
        """The model gave two answers for one batch, so neither says whether it is the same model."""
        if self._generation.options.model_fingerprint is not None:  # it stands for the model
            warnings.warn(
                f"the model gives another distribution for sample {row} each time (it draws random "
                f"numbers?), so {self._committed.path} goes on by model_fingerprint alone",
                stacklevel=2,
            )
            return
        self._differs(
            f"the model gives another distribution for sample {row} each time it is asked (it "
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


def check_shape(rows: Array, schema: Schema, path: object) -> None:
    """Raise IdentityError where a model gives other classes or members than the store has."""
    if rows.shape[1:] != schema.row_shape:
        given = f"the model gives rows of shape {rows.shape[1:]}"
        identity.refuse(path, [f"{given}, the store has {schema.row_shape}"])


def runs(indices: Indices, wanted: Ranges) -> list[tuple[int, Any]]:
    """The wanted rows of a batch as runs of consecutive rows: (first row, places in the batch)."""
    if isinstance(indices, range):
        first = indices.start
        overlap = wanted.overlap(first, indices.stop)
        return [(a, slice(a - first, b - first)) for a, b in overlap]
    order = np.argsort(indices)
    order = order[[int(row) in wanted for row in indices[order]]]
    # a run ends where the next row is not the next number
    parts = np.split(order, np.flatnonzero(np.diff(indices[order]) != 1) + 1)
    return [(int(indices[places[0]]), places) for places in parts if len(places)]
