"""A generation that is recorded: begin a store or go on with one, write what is missing, seal."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from fostore.encodings import default_tolerance
from fostore.errors import ArgumentError, GenerationError, RowError
from fostore.generate import output
from fostore.generate.committed import CommittedRows, Consent, Rows, rows_of
from fostore.generate.engine import Computed
from fostore.generate.generation import Generation
from fostore.generate.labels import NOTHING, class_numbers, tells
from fostore.generate.loop import run
from fostore.generate.mixing import content_of
from fostore.generate.probe import HASHED, OPAQUE, hash_inputs
from fostore.generate.provenance import Provenance, labels_of
from fostore.generate.recheck import Comparison, check_shape, runs
from fostore.generate.samples import ENDLESS, Batch, Stream, labelled
from fostore.generate.storing import check_store, exists, where
from fostore.progress import LOG
from fostore.reading.store import Store
from fostore.reading.store import open as open_store
from fostore.schema import identity
from fostore.schema.class_names import difference, reordered
from fostore.schema.header import Header
from fostore.schema.ranges import Ranges
from fostore.schema.row import Array
from fostore.schema.sides.views import encode_views
from fostore.writing.create import create
from fostore.writing.units import create_shared, finish, missing
from fostore.writing.writer import Writer


def record(generation: Generation, own_names: tuple[str, ...] | None) -> Store:
    """Write what is missing of a generation into `options.store`, and return the store, opened.

    `own_names`: what the model calls its classes: the store's names where the user gives none.
    """
    options = generation.options
    assert options.store is not None
    path = where(options.store)
    views = None if options.views is None else encode_views(options.views)
    check_store(path, options, generation.samples, views)
    provenance = Provenance(generation, views)
    with generation.running():
        _Recording(path, generation, provenance, views, own_names).run()
    if options.shard is not None and not missing(path):
        finish(path)  # the last one to end; several do no harm
    store = open_store(path)
    LOG.info(
        "generated %s: %d rows of %s, %s", path, len(store), store.num_samples, store.header.digest
    )
    return store


class _Recording:
    """What is missing in a store is computed and written, in order."""

    def __init__(
        self,
        path: Path | str,
        generation: Generation,
        provenance: Provenance,
        views: Array | None,
        own_names: tuple[str, ...] | None,
    ) -> None:
        self._path = path
        self._generation = generation
        self._provenance = provenance
        self._views = views
        self._own_names = own_names
        self._options = options = generation.options
        self._framework = generation.framework
        self._samples = samples = generation.samples
        self._engine = generation.engine
        hashes_inputs = options.dataset_fingerprint is None
        tells_labels = labels_of(samples.dataset, samples.num_samples) is not None
        self._content = HASHED if hashes_inputs else OPAQUE
        # whether labels are kept as samples are read: where the dataset does not tell them at once
        self._labelled = hashes_inputs and not tells_labels
        self._exact = options.keep_labels  # whether the store keeps the labels themselves
        self._consent = Consent(path, options.accept_differences)
        self._stack = ExitStack()
        self._writer: Writer | None = None
        self._finished: Store | None = None
        self._nameless = False  # an empty store that somebody created without an identity
        self._comparison: Comparison | None = None  # of a stream, while it passes
        self._committed = Ranges()
        self._wanted = Ranges()

    def run(self) -> None:
        options, shared = self._options, self._options.shard is not None
        with self._stack:
            resumes = options.exists == "resume" and exists(self._path, shared=shared)
            if shared and not resumes:
                self._plan()
                resumes = True
            if resumes:
                self._resume()
                self._record_consent()
            self._wanted = self._missing()
            if not resumes:
                self._generation.refuse_mixing(self._wanted)
                if self._content == HASHED:
                    first = 0 if options.rows is None else options.rows[0]
                    self._content = content_of(self._framework, self._samples, first)
            if self._wanted.items:
                self._write()
            self._end()

    def _plan(self) -> None:
        """Run the first batch, which shows what a row is, and begin the store or join it; no row is written.

        All that is compared with a store that is there is compared then, as in a run that goes on.
        """
        first = Ranges.of((0, 1))
        self._generation.refuse_mixing(first)
        if self._content == HASHED:
            self._content = content_of(self._framework, self._samples, 0)
        samples = labelled(self._samples, hashes=self._labelled, exact=self._exact)
        run(samples.steps(first), self._compute, lambda token: self._begin(*token), overlap=False)
        assert self._writer is not None
        self._writer.close()
        self._writer = None

    def _begin(
        self, computed: Computed, hashes: Array | None, labels: Array | None, exact: Any
    ) -> None:
        rows = self._engine.collect(computed)
        if self._exact:
            class_numbers(exact, rows.shape[-1], self._names(rows.shape[-1]), computed.indices)
        self._new_writer(rows.shape[1:], hashes, labels)

    def _write(self) -> None:
        samples = labelled(self._samples, hashes=self._labelled, exact=self._exact)
        passed = None if self._comparison is None else self._comparison.passing
        start, stop = self._options.rows or (0, ENDLESS)
        done = sum(b - a for a, b in self._committed.overlap(start, stop))
        LOG.info(
            "generating %s: %s samples, %d rows are there", self._path, samples.num_samples, done
        )
        with self._generation.progress(done) as progress:
            run(
                samples.steps(self._wanted, passed),
                self._compute,
                lambda token: progress.add(self._deliver(*token)),
                overlap=self._framework.overlaps,
            )

    def _missing(self) -> Ranges:
        samples = self._samples
        start, stop = self._options.rows or (0, samples.num_samples)
        if isinstance(samples, Stream) and (
            self._finished is not None or (self._writer is not None and self._writer.header.sealed)
        ):
            return Ranges()  # however long the stream is now
        return Ranges(self._committed.missing(ENDLESS if stop is None else stop, start))

    def _end(self) -> None:
        writer, samples = self._writer, self._samples
        if self._finished is not None:
            return  # nothing was opened for writing
        if writer is None:
            raise ArgumentError("the stream is empty, so the number of classes is not known")
        self._record_consent()
        if self._engine.limit is not None:
            writer.update_meta({"batch_size_on_device": self._engine.limit})
        if isinstance(samples, Stream) and samples.num_samples and writer.missing():
            raise GenerationError(
                f"the stream ended after {len(writer)} samples, but its length is "
                f"{samples.num_samples}; the store is not whole"
            )

    def _record_consent(self) -> None:
        """Keep what was accepted in the metadata, before anything is computed on top of it."""
        recorded = self._consent.recorded
        if self._writer is None or not recorded:
            return
        before = self._writer.header.meta.get("accepted_differences", [])
        new = [text for text in recorded if text not in before]
        self._writer.update_meta({"accepted_differences": [*before, *new]})
        recorded.clear()

    # Beginning and going on

    def _resume(self) -> None:
        with open_store(self._path) as store:
            header, empty = store.header, not len(store)
        stored, engine = header.identity, self._engine
        resolved = output.read_mode(stored.get("output", {}).get("mode"))
        if engine.kept.mode == "auto" and resolved is not None:
            engine.kept = replace(engine.kept, mode=resolved)
            output.check_resolved(resolved, engine.kept.kind, engine.kept.temperature)
        if stored:
            self._compare(header)
        elif not empty:
            self._consent.differs(
                "it holds rows and does not say what model and dataset they came from"
            )
        self._labelled = header.schema.role("label") is not None
        if header.schema.role("class_label") is not None:
            self._exact = True
        if header.schema.role("fingerprint") is None:
            self._content = OPAQUE
        is_whole = header.sealed and header.num_samples == self._samples.num_samples
        if is_whole and not self._options.accept_differences:
            # Nothing will be written. A kill at the very end may have left files to tidy up; where
            # the store is read-only or in use, that waits, and the rows are whole all the same.
            with suppress(OSError):
                create(self._path, exists="resume").close()
            self._finished = self._stack.enter_context(open_store(self._path))
            self._committed = self._finished.committed
        else:
            self._committed = self._create(None, stored).committed
            self._nameless = not stored
        missing = self._missing()
        if missing.items:
            self._generation.refuse_mixing(missing)
        kept: Rows = self._committed, self._column
        if self._options.shard is not None:  # those of the others as well
            kept = rows_of(self._stack.enter_context(open_store(self._path)))
        if not kept[0].items:
            return
        size = header.meta.get("batch_size")
        size = size if type(size) is int and size > 0 else None
        comparison = Comparison(
            self._generation,
            CommittedRows(self._path, header.schema, *kept, size),
            self._consent,
            stored,
            self._provenance.identity(engine.kept.mode),
            hashed=self._content == HASHED,
        )
        if isinstance(self._samples, Stream) and missing.items:
            self._comparison = comparison  # as it passes by
        else:
            comparison.look()

    def _compare(self, header: Header) -> None:
        """Compare what was given with what the store was made from, and with what it is."""
        options, kept, schema = self._options, self._engine.kept, header.schema
        made_from = self._provenance.identity(kept.mode)
        self._consent.differs(*identity.differences(header.identity, made_from))
        names = None if options.class_names is None else tuple(options.class_names)
        asked = (
            ("store_as", kept.kind, schema.kind),
            ("dtype", options.dtype, schema.dtype),
            ("temperature", kept.temperature, schema.temperature),
            ("class_names", names, schema.class_names),
            ("unit_rows", options.unit_rows, header.unit_rows),
        )
        differences = [
            f"{name} is {new!r}, the store has {old!r}"
            for name, new, old in asked
            if new is not None and new != old
        ]
        # Names that the user did not give are no promise: only another order of the same is refused.
        own, old_names = self._own_names, schema.class_names
        if own is not None and old_names is not None and reordered(own, old_names):
            differences.append(difference(own, old_names, ("for the model", "for the store")))
        identity.refuse(self._path, differences)  # no consent helps: the rows would be of two kinds

    def _create(self, row_shape: tuple[int, ...] | None, made_from: Any) -> Writer:
        """The writer of a new store, or (without a shape) of the one that is there."""
        options, kept = self._options, self._engine.kept
        names, meta, tol = options.class_names, options.meta, options.tol
        if row_shape is not None:  # a store that is there keeps what it has, or has not
            names = self._names(row_shape[-1])
            meta = {**(meta or {}), **self._provenance.meta(kept.mode)}
            tol = self._tolerance(row_shape[-1])
        writer = create_shared(
            self._path,
            options.shard,
            num_samples=self._samples.num_samples,
            num_classes=row_shape[-1] if row_shape else None,
            num_members=row_shape[0] if row_shape and len(row_shape) > 1 else None,
            dtype=options.dtype,
            kind=kept.kind,
            class_names=names,
            temperature=kept.temperature,
            ids=options.ids,
            views=self._views,
            fingerprints=self._content == HASHED,
            labels=self._labelled,
            class_labels=self._exact or None,
            meta=meta,
            identity=made_from,
            exists=options.exists,
            unit_rows=options.unit_rows,
            commit_seconds=options.commit_seconds,
            tol=tol,
        )
        self._writer = self._stack.enter_context(writer)
        if writer.claim.units is not None:
            rows = writer.claim.rows(
                writer.header.unit_rows, Ranges.of((0, writer.num_samples or 0))
            )
            self._options = replace(options, rows=(rows.items or ((0, 0),))[0])
            self._generation = replace(self._generation, options=self._options)
        return writer

    def _names(self, num_classes: int) -> Sequence[str] | None:
        """What a new store calls its classes."""
        own, given = self._own_names, self._options.class_names
        return own if given is None and own is not None and len(own) == num_classes else given

    def _tolerance(self, num_classes: int) -> float | None:
        """Half precision probabilities may be off by more than the stored dtype explains."""
        options, engine = self._options, self._engine
        if options.tol is not None or "probs" not in engine.kept.mode or engine.tol is None:
            return options.tol
        default = default_tolerance(engine.kept.kind, options.dtype, num_classes)
        return engine.tol if engine.tol > default else None

    # Batches

    def _compute(
        self, batch: Batch
    ) -> tuple[Computed, Array | None, Array | None, list[Any] | None]:
        hashes = None
        if self._content == HASHED:
            # Before the model runs: it may change its input in place.
            hashes = hash_inputs(self._framework, batch.inputs, len(batch.indices))
            if hashes is None and self._writer is not None:
                raise ArgumentError(
                    f"the inputs from sample {int(batch.indices[0])} on cannot be hashed as those before; "
                    "give dataset_fingerprint= to identify the dataset by a name of yours"
                )
        if self._comparison is not None:
            self._comparison.passing(batch, hashes)
        return self._engine.compute(batch), hashes, batch.labels, batch.exact

    def _deliver(
        self,
        computed: Computed,
        hashes: Array | None,
        labels: Array | None,
        exact: list[Any] | None,
    ) -> int:
        """Write the rows of a batch that are missing; how many they were."""
        rows, indices = self._engine.collect(computed), computed.indices
        writer = self._writer
        classes = None
        if self._exact:  # before a store is made that would be without rows
            num_classes = rows.shape[-1]
            names = self._names(num_classes) if writer is None else writer.schema.class_names
            classes = class_numbers(exact, num_classes, names, indices)
        if writer is None:
            writer = self._new_writer(rows.shape[1:], hashes, labels)
        elif self._nameless:
            writer.set_identity(self._new_identity())
            self._nameless = False
        if not self._labelled:
            labels = None
        elif labels is None:
            labels = np.full(len(indices), NOTHING)
        # The writer would refuse it as well, but without saying that it is the model that differs.
        check_shape(rows, writer.schema, self._path)
        written = 0
        for start, places in runs(indices, self._wanted):
            new = rows[places]
            try:
                writer.write(
                    start,
                    new,
                    fingerprints=None if hashes is None else hashes[places],
                    labels=None if labels is None else labels[places],
                    class_labels=None if classes is None else classes[places],
                )
            except RowError as error:
                raise self._engine.advice(error) from error
            written += len(new)
        writer.hand_over()  # the next batch may be delivered by the relay's thread
        return written

    def _new_writer(
        self, row_shape: tuple[int, ...], hashes: Array | None, labels: Array | None
    ) -> Writer:
        # Only now are classes, output mode and dtype known, and what running changes in the model.
        if hashes is None and self._content == HASHED:
            self._content = OPAQUE
        self._labelled = labels is not None and tells(labels)
        return self._create(row_shape, self._new_identity())

    def _new_identity(self) -> dict[str, Any]:
        return self._provenance.settled(self._engine.kept.mode, self._content)

    def _column(self, name: str, start: int, stop: int) -> Array:
        """CommittedRows rows of a column, as stored."""
        if self._writer is not None:
            return self._writer.read_side(name, start, stop)
        assert self._finished is not None
        return rows_of(self._finished)[1](name, start, stop)
