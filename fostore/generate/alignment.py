"""Whose rows a batch gives: the seam between samples that pass and rows that lie in a store.

A row belongs to a sample (`BySample`), or to a token of one (`fostore.generate.by_token`).
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Protocol

import numpy as np

from fostore.errors import ArgumentError, GenerationError
from fostore.generate.committed import CommittedRows, Consent
from fostore.generate.generation import Generation
from fostore.generate.labels import NOTHING, class_numbers, differ, tells
from fostore.generate.mixing import content_of
from fostore.generate.probe import HASHED, OPAQUE, NoLabels, Probe, hash_inputs, moved_label
from fostore.generate.provenance import labels_of
from fostore.generate.samples import ENDLESS, Batch, Indexed, Indices, Samples, Stream, labelled
from fostore.schema.header import Header
from fostore.schema.ranges import Range, Ranges
from fostore.schema.row import Array
from fostore.writing.writer import Writer

Beside = Any
"""What goes with the rows of a batch, or tells them from others, taken before a model changes its inputs."""


class Alignment(Protocol):
    """Which rows the samples of a batch have, and what goes with them. It sees batches in their order."""

    content: str
    """Whether inputs can be compared later; see `probe`."""

    @property
    def samples(self) -> Samples:
        """What is read, with what each batch brings beside its inputs."""
        ...

    def begin(self, first: int) -> None:
        """A new store: look at the batch of sample `first`."""
        ...

    def resume(self, header: Header) -> None:
        """The store that is there says what it keeps."""
        ...

    def claim(self, rows: Range) -> None:
        """Others write the rows that are not these."""
        ...

    def follow(self, committed: CommittedRows) -> None:
        """The rows that are there."""
        ...

    def is_whole(self, header: Header) -> bool:
        """Whether a store has all rows that there will be."""
        ...

    def missing(self, committed: Ranges, is_sealed: bool) -> tuple[Ranges, Ranges]:
        """The samples that are to be read, and the rows that are to be written."""
        ...

    def done(self, committed: Ranges) -> int:
        """Samples of the rows asked for that need not be read again."""
        ...

    def planned(self) -> dict[str, Any]:
        """What `create` is told of rows and of what goes with them."""
        ...

    def beside(self, batch: Batch, *, is_begun: bool = False) -> Beside:
        """What goes with the rows of a batch; `is_begun`: there is a store that says what it keeps."""
        ...

    def settle(self, batch: Batch, beside: Beside) -> None:
        """The first batch decides what a new store keeps."""
        ...

    def sides(
        self, batch: Batch, beside: Beside, num_classes: int, names: Sequence[str] | None
    ) -> dict[str, Any]:
        """Values of side columns by keyword, one for each row of a batch."""
        ...

    def runs(self, batch: Batch, beside: Beside, rows: Ranges) -> list[tuple[int, Any]]:
        """The rows of a batch that are among `rows`, as runs: (first row, places in the batch)."""
        ...

    def end(self, writer: Writer) -> None:
        """All samples have come.

        Raises:
            GenerationError: rows are missing all the same.
        """
        ...

    def picked(self, committed: CommittedRows) -> list[int]:
        """The samples of the first, the middle and the last committed row."""
        ...

    def look(self, committed: CommittedRows, consent: Consent) -> None:
        """Compare some samples of a dataset with what a store says of them."""
        ...

    def moved(self, batch: Batch, beside: Beside, committed: CommittedRows) -> str | None:
        """The first input of a batch that is another one than that of its committed rows."""
        ...


class BySample:
    """See `Alignment`: row i belongs to sample i."""

    def __init__(self, generation: Generation, views: Array | None) -> None:
        self._generation = generation
        self._options = options = generation.options
        self._framework = generation.framework
        self._views = views
        self._all = samples = generation.samples
        hashes_inputs = options.dataset_fingerprint is None
        tells_labels = labels_of(samples.dataset, samples.num_samples) is not None
        self.content = HASHED if hashes_inputs else OPAQUE
        # whether labels are kept as samples are read: where the dataset does not tell them at once
        self._labelled = hashes_inputs and not tells_labels
        self._exact = options.keep_labels  # whether the store keeps the labels themselves
        self._asked = options.range

    @property
    def samples(self) -> Samples:
        return labelled(self._all, hashes=self._labelled, exact=self._exact)

    def begin(self, first: int) -> None:
        if self.content == HASHED:
            self.content = content_of(self._framework, self._all, first)

    def resume(self, header: Header) -> None:
        self._labelled = header.schema.role("label") is not None
        if header.schema.role("class_label") is not None:
            self._exact = True
        if header.schema.role("fingerprint") is None:
            self.content = OPAQUE

    def claim(self, rows: Range) -> None:
        self._asked = rows

    def follow(self, committed: CommittedRows) -> None:
        pass

    def is_whole(self, header: Header) -> bool:
        return header.sealed and header.num_samples == self._all.num_samples

    def missing(self, committed: Ranges, is_sealed: bool) -> tuple[Ranges, Ranges]:
        start, stop = self._range()
        if isinstance(self._all, Stream) and is_sealed:
            return Ranges(), Ranges()  # however long the stream is now
        rows = Ranges(committed.missing(stop, start))
        return rows, rows

    def done(self, committed: Ranges) -> int:
        return sum(stop - start for start, stop in committed.overlap(*self._range()))

    def _range(self) -> tuple[int, int]:
        start, stop = self._asked or (0, self._all.num_samples)
        return start, ENDLESS if stop is None else stop

    def planned(self) -> dict[str, Any]:
        return {
            "num_samples": self._all.num_samples,
            "ids": self._options.ids,
            "views": self._views,
            "fingerprints": self.content == HASHED,
            "labels": self._labelled,
            "class_labels": self._exact or None,
        }

    def beside(self, batch: Batch, *, is_begun: bool = False) -> Beside:
        if self.content != HASHED:
            return None
        hashes = hash_inputs(self._framework, batch.inputs, len(batch.indices))
        if hashes is None and is_begun:
            raise ArgumentError(
                f"the inputs from sample {int(batch.indices[0])} on cannot be hashed as those before; "
                "give dataset_fingerprint= to identify the dataset by a name of yours"
            )
        return hashes

    def settle(self, batch: Batch, beside: Beside) -> None:
        if beside is None:
            self.content = OPAQUE if self.content == HASHED else self.content
        self._labelled = batch.labels is not None and tells(batch.labels)

    def sides(
        self, batch: Batch, beside: Beside, num_classes: int, names: Sequence[str] | None
    ) -> dict[str, Any]:
        values: dict[str, Any] = {"fingerprints": beside}
        if self._exact:
            values["class_labels"] = class_numbers(batch.exact, num_classes, names, batch.indices)
        if self._labelled:
            no_labels = np.full(len(batch.indices), NOTHING)
            values["labels"] = no_labels if batch.labels is None else batch.labels
        return values

    def runs(self, batch: Batch, beside: Beside, rows: Ranges) -> list[tuple[int, Any]]:
        return runs(batch.indices, rows)

    def end(self, writer: Writer) -> None:
        samples = self._all
        if isinstance(samples, Stream) and samples.num_samples and writer.missing():
            raise GenerationError(
                f"the stream ended after {len(writer)} samples, but its length is "
                f"{samples.num_samples}; the store is not whole"
            )

    def picked(self, committed: CommittedRows) -> list[int]:
        return committed.picked

    def look(self, committed: CommittedRows, consent: Consent) -> None:
        samples = self._all
        assert isinstance(samples, Indexed)
        if committed.schema.role("label") is not None:
            self._look_at_labels(samples, committed, consent)
        if self.content == HASHED:
            self._look_at_inputs(samples, committed, consent)

    def moved(self, batch: Batch, beside: Beside, committed: CommittedRows) -> str | None:
        noun = self._all.noun
        for start, places in self.runs(batch, beside, committed.rows):
            stop = start + len(batch.indices[places])
            if committed.schema.role("label") is not None and batch.labels is not None:
                other = np.flatnonzero(differ(batch.labels[places], committed.labels(start, stop)))
                if len(other):
                    return f"sample {start + int(other[0])} of the {noun} has another label"
            if beside is not None:
                other = np.flatnonzero(beside[places] != committed.hashes(start, stop))
                if len(other):
                    return f"sample {start + int(other[0])} of the {noun} has another content"
        return None

    def _look_at_labels(self, samples: Indexed, committed: CommittedRows, consent: Consent) -> None:
        picked = committed.picked
        stored = np.concatenate([committed.labels(i, i + 1) for i in picked])
        with self._framework.kept_random_states(), suppress(NoLabels):
            moved = moved_label(samples.dataset, np.array(picked), stored)
            if moved is not None:
                consent.differs(f"sample {moved} of the dataset has another label")

    def _look_at_inputs(self, samples: Indexed, committed: CommittedRows, consent: Consent) -> None:
        probe, picked = Probe(self._framework, samples), committed.picked
        with self._framework.kept_random_states():
            for index, now in zip(picked, probe.alone(picked), strict=True):
                then = int(committed.hashes(index, index + 1)[0])
                if now == then or probe.in_batch(index) == then:
                    continue
                if not probe.moves(index):
                    consent.differs(f"sample {index} of the dataset has another content")
                    return
                warnings.warn(
                    f"sample {index} reads differently each time (random augmentation?); length, "
                    "labels and ids decide whether the dataset is the same",
                    stacklevel=2,
                )
                return


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
