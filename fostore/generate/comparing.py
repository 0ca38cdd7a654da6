"""Committed rows beside what is at hand: the labels, inputs and rows of a few samples, compared on resume.

A dataset is asked for the first, the middle and the last committed sample; of a stream each batch is
compared as it passes.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import numpy as np

from fostore.generate import mixing
from fostore.generate.committed import Committed, Consent
from fostore.generate.framework import Framework
from fostore.generate.generation import Generation
from fostore.generate.labels import differ
from fostore.generate.probe import (
    HASHED,
    OPAQUE,
    REREADS,
    UNSTABLE,
    NoLabels,
    Probe,
    hash_inputs,
    moved_label,
)
from fostore.generate.recheck import Recheck
from fostore.generate.samples import Batch, Indexed, Samples, holding
from fostore.schema import identity
from fostore.schema.row import Array


class Comparison:
    """What is compared with committed rows before, or while, others are added to them."""

    def __init__(
        self,
        generation: Generation,
        committed: Committed,
        consent: Consent,
        *,
        stored: Mapping[str, Any],
        given: Mapping[str, Any],
        labelled: bool,
        hashed: bool,
    ) -> None:
        """
        Args:
            stored, given: the identity of the store, and the one at hand.
            labelled, hashed: whether the store keeps hashes of labels, of inputs.
        """
        self._framework = generation.framework
        self._samples = generation.samples
        self._committed = committed
        self._consent = consent
        self._labelled = labelled
        self._hashed = hashed
        self._recheck: Recheck | None = None
        doubts = identity.doubts(stored, given)
        if generation.options.recheck:
            opaque = identity.is_opaque(given)
            self._recheck = Recheck(
                generation, committed, consent, doubts=doubts, is_opaque=opaque, hashed=hashed
            )
            return
        if doubts.code:
            consent.differs(f"{doubts}, and recheck=False computes nothing again")
        elif doubts:
            warnings.warn(f"{committed.path} goes on although {doubts}", stacklevel=2)
        consent.recorded.append("no committed batch was computed again (recheck=False)")

    def look(self) -> None:
        """Compare samples of a dataset; of a stream the first batch, of which nothing else passes by."""
        if isinstance(self._samples, Indexed):
            if self._labelled:
                self._look_at_labels(self._samples)
            if self._hashed:
                self._look_at_inputs(self._samples)
        if self._recheck is not None:
            self._recheck.look()

    def _look_at_labels(self, samples: Indexed) -> None:
        picked = self._committed.picked
        stored = np.concatenate([self._committed.labels(i, i + 1) for i in picked])
        with self._framework.kept_random_states(), suppress(NoLabels):
            moved = moved_label(samples.dataset, np.array(picked), stored)
            if moved is not None:
                self._consent.differs(f"sample {moved} of the dataset has another label")

    def _look_at_inputs(self, samples: Indexed) -> None:
        probe, picked = Probe(self._framework, samples), self._committed.picked
        with self._framework.kept_random_states():
            for index, now in zip(picked, probe.alone(picked), strict=True):
                then = int(self._committed.hashes(index, index + 1)[0])
                if now == then or probe.in_batch(index) == then:
                    continue
                if not probe.moves(index):
                    self._consent.differs(f"sample {index} of the dataset has another content")
                    return
                warnings.warn(
                    f"sample {index} reads differently each time (random augmentation?); length, "
                    "labels and ids decide whether the dataset is the same",
                    stacklevel=2,
                )
                return

    def passing(self, batch: Batch, hashes: Array | None = None) -> None:
        """Compare the committed rows of a batch of a stream, before a model may change its inputs.

        `hashes`: of the inputs, where they are known already.
        """
        indices = batch.indices
        if isinstance(self._samples, Indexed) or not isinstance(indices, range):
            return
        if self._hashed and hashes is None:
            hashes = hash_inputs(self._framework, batch.inputs, len(indices))
        for start, stop in self._committed.rows.overlap(indices.start, indices.stop):
            places = slice(start - indices.start, stop - indices.start)
            if self._labelled and batch.labels is not None:
                other = differ(batch.labels[places], self._committed.labels(start, stop))
                self._moved(start, other, "label")
            if hashes is not None:
                other = hashes[places] != self._committed.hashes(start, stop)
                self._moved(start, other, "content")
        if self._recheck is not None:
            self._recheck.passing(batch)

    def _moved(self, start: int, other: Array, what: str) -> None:
        moved = np.flatnonzero(other)
        if len(moved):
            self._consent.differs(
                f"sample {start + int(moved[0])} of the stream has another {what}"
            )


_FEW = 8
"""Samples that are read twice where nothing but a stack is made of them."""


def content_of(framework: Framework, samples: Samples, first: int) -> str:
    """Whether inputs can be compared later: "hashed", "unstable" (random augmentation) or "opaque".

    Reads the batch of sample `first` of a dataset twice, as it will be collated (at most eight samples of
    it where they are only stacked); of a stream, which may be read once only, nothing.
    """
    if not isinstance(samples, Indexed):
        return HASHED
    if samples.draws_views:
        return UNSTABLE
    batch = holding(samples.batches, first)
    if samples.assemble.collate is None:
        batch = batch[:_FEW]
    rows = len(batch)
    with framework.kept_random_states():
        # in one go, so that workers with a seed of their own draw on
        first_read, second_read = samples.few(batch, batch)
        one, other = (hash_inputs(framework, read, rows) for read in (first_read, second_read))
        if one is None or other is None:
            return OPAQUE
        if np.array_equal(one, other):
            return HASHED
        place = int(np.flatnonzero(one != other)[0])
        sample = int(batch[place])
        if mixing.varies(framework, [first_read, second_read], rows).any():
            copies = samples.few(*[np.full(rows, sample)] * mixing.COPIES)
            if mixing.is_mixed(framework, copies, samples.few(*[batch] * REREADS), rows, place):
                raise mixing.refusal(sample)
    warnings.warn(
        f"sample {sample} reads differently each time (random augmentation?); on resume, length, "
        "labels and ids decide whether the dataset is the same, not its content",
        stacklevel=2,
    )
    return UNSTABLE
