"""A generation that is recorded: begin a store or go on with one, write what is missing, seal."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from operator import itemgetter
from pathlib import Path
from typing import Any

from fostore.encodings import default_tolerance
from fostore.errors import ArgumentError, RowError
from fostore.generate import output
from fostore.generate.alignment import Alignment, Beside, BySample
from fostore.generate.by_token import ByToken
from fostore.generate.committed import CommittedRows, Consent, Rows, rows_of
from fostore.generate.engine import Computed
from fostore.generate.generation import Generation
from fostore.generate.loop import run
from fostore.generate.provenance import Provenance
from fostore.generate.recheck import Comparison
from fostore.generate.samples import Batch, Stream
from fostore.generate.storing import check_store, goes_on, where
from fostore.nested import each
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
    alignment: Alignment = BySample(generation, views)
    if options.of_tokens:
        alignment = ByToken(generation)
    with generation.running():
        _Recording(path, generation, provenance, alignment, own_names).run()
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
        alignment: Alignment,
        own_names: tuple[str, ...] | None,
    ) -> None:
        self._path = path
        self._generation = generation
        self._provenance = provenance
        self._alignment = alignment
        self._own_names = own_names
        self._options = options = generation.options
        self._framework = generation.framework
        self._engine = generation.engine
        self._consent = Consent(path, options.accept_differences, options.shard is not None)
        self._stack = ExitStack()
        self._writer: Writer | None = None
        self._finished: Store | None = None
        self._nameless = False  # an empty store that somebody created without an identity
        self._comparison: Comparison | None = None  # of a stream, while it passes
        self._committed = Ranges()
        self._samples_missing, self._rows_missing = Ranges(), Ranges()

    def run(self) -> None:
        options = self._options
        with self._stack:
            resumes = goes_on(self._path, options)
            if options.shard is not None and not resumes:
                self._plan()
                resumes = True
            if resumes:
                self._resume()
                self._record_consent()
            self._look_for_missing()
            if not resumes:
                self._generation.refuse_mixing(self._samples_missing)
                self._alignment.begin(0 if options.range is None else options.range[0])
            if self._samples_missing.items:
                self._write()
            self._end()

    def _plan(self) -> None:
        """Run the first batch, which shows what a row is, and begin the store or join it; no row is written.

        All that is compared with a store that is there is compared then, as in a run that goes on.
        """
        first = Ranges.of((0, 1))
        self._generation.refuse_mixing(first)
        self._alignment.begin(0)
        steps = self._alignment.samples.steps(first)
        run(steps, self._compute, lambda token: self._begin(*token), overlap=False)
        assert self._writer is not None
        self._writer.close()
        self._writer = None

    def _begin(self, computed: Computed | None, batch: Batch, beside: Beside) -> None:
        assert computed is not None
        self._engine.collect(computed)
        self._sides(computed, batch, beside)
        self._create(computed.row_shape, self._new_identity())

    def _write(self) -> None:
        samples = self._alignment.samples
        passed = None if self._comparison is None else self._comparison.passing
        done = self._alignment.done(self._committed)
        LOG.info(
            "generating %s: %s samples, %d of them are there", self._path, samples.num_samples, done
        )
        with self._generation.progress(done) as progress:
            run(
                samples.steps(self._samples_missing, passed),
                self._compute,
                lambda token: progress.add(self._deliver(*token)),
                overlap=self._framework.overlaps,
            )

    def _look_for_missing(self) -> None:
        is_sealed = self._finished is not None or (
            self._writer is not None and self._writer.header.sealed
        )
        missing = self._alignment.missing(self._committed, is_sealed)
        self._samples_missing, self._rows_missing = missing

    def _end(self) -> None:
        writer = self._writer
        if self._finished is not None:
            return  # nothing was opened for writing
        if writer is None:
            of_tokens = self._options.of_tokens
            raise ArgumentError(
                ("no sequence has a row" if of_tokens else "the stream is empty")
                + ", so the number of classes is not known"
            )
        self._record_consent()
        if self._engine.limit is not None:
            writer.update_meta({"batch_size_on_device": self._engine.limit})
        self._alignment.end(writer)

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
        if engine.kept.kind == "auto":
            engine.kept = replace(engine.kept, kind=header.schema.kind)
        if engine.kept.mode == "auto" and resolved is not None:
            engine.resolve(resolved)
        if stored:
            self._compare(header)
        elif not empty:
            self._consent.differs(
                "it holds rows and does not say what model and dataset they came from"
            )
        self._alignment.resume(header)
        if self._alignment.is_whole(header) and not self._options.accept_differences:
            # Nothing will be written. A kill at the very end may have left files to tidy up; where
            # the store is read-only or in use, that waits, and the rows are whole all the same.
            with suppress(OSError):
                create(self._path, exists="resume").close()
            self._finished = self._stack.enter_context(open_store(self._path))
            self._committed = self._finished.committed
        else:
            self._committed = self._create(None, stored).committed
            self._nameless = not stored
        size = header.meta.get("batch_size")
        size = size if type(size) is int and size > 0 else None
        kept: Rows = self._committed, self._column
        if self._options.shard is not None:  # those of the others as well
            kept = rows_of(self._stack.enter_context(open_store(self._path)))
        committed = CommittedRows(self._path, header.schema, *kept, size)
        self._alignment.follow(committed)
        self._look_for_missing()
        missing = self._samples_missing
        if missing.items:
            self._generation.refuse_mixing(missing)
        if not committed.rows.items:
            return
        comparison = Comparison(
            self._generation,
            self._alignment,
            committed,
            self._consent,
            stored,
            self._provenance.identity(engine.kept.mode),
        )
        if isinstance(self._alignment.samples, Stream) and missing.items:
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
            ("dtype", None if options.dtype == "auto" else options.dtype, schema.dtype),
            ("encoding", kept.encoding, dict(schema.encoding)),
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
        self._consent.refuse(*differences)

    def _create(self, row_shape: tuple[int, ...] | None, made_from: Any) -> Writer:
        """The writer of a new store, or (without a shape) of the one that is there."""
        options, kept = self._options, self._engine.kept
        names, meta, tol = options.class_names, options.meta, options.tol
        dtype: str | None = None if options.dtype == "auto" else options.dtype
        if row_shape is not None:  # a store that is there keeps what it has, or has not
            made, names = self._engine.schema(row_shape), self._names(row_shape[-1])
            meta = {**(meta or {}), **self._provenance.meta(kept.mode)}
            dtype = made.dtype
            tol = self._tolerance(row_shape[-1], made.dtype)
        writer = create_shared(
            self._path,
            options.shard,
            **self._alignment.planned(),
            num_classes=row_shape[-1] if row_shape else None,
            num_members=row_shape[0] if row_shape and len(row_shape) > 1 else None,
            dtype=dtype,
            kind=kept.kind,
            class_names=names,
            temperature=kept.temperature,
            meta=meta,
            identity=made_from,
            exists=options.exists,
            unit_rows=options.unit_rows,
            commit_seconds=options.commit_seconds,
            tol=tol,
            encoding=kept.encoding,
            max_kl=options.max_kl,
        )
        self._writer = self._stack.enter_context(writer)
        if writer.claim.units is not None:
            rows = writer.claim.rows(
                writer.header.unit_rows, Ranges.of((0, writer.num_samples or 0))
            )
            self._alignment.claim((rows.items or ((0, 0),))[0])
        return writer

    def _names(self, num_classes: int) -> Sequence[str] | None:
        """What a new store calls its classes."""
        own, given = self._own_names, self._options.class_names
        return own if given is None and own is not None and len(own) == num_classes else given

    def _tolerance(self, num_classes: int, dtype: str) -> float | None:
        """Half precision probabilities may be off by more than the stored dtype explains."""
        options, engine = self._options, self._engine
        if options.tol is not None or "probs" not in engine.kept.mode or engine.tol is None:
            return options.tol
        default = default_tolerance(engine.kept.kind, dtype, num_classes)
        return engine.tol if engine.tol > default else None

    # Batches

    def _compute(self, batch: Batch) -> tuple[Computed | None, Batch, Beside]:
        # Before the model runs: it may change its input in place.
        beside = self._alignment.beside(batch, is_begun=self._writer is not None)
        if self._comparison is not None:
            self._comparison.passing(batch, beside)
        if batch.tokens is not None and not len(batch.tokens):
            return None, batch, beside  # sequences without rows
        computed = self._engine.compute(batch)
        return computed, batch._replace(inputs=None), beside

    def _deliver(self, computed: Computed | None, batch: Batch, beside: Beside) -> int:
        """Write the rows of a batch that are missing; how many samples are done with it."""
        if computed is None:
            return len(batch.indices)
        rows, row_shape = self._engine.collect(computed), computed.row_shape
        alignment, writer = self._alignment, self._writer
        # before a store is made that would be without rows
        sides = self._sides(computed, batch, beside)
        if writer is None:
            # Only now are classes, output mode and dtype known, and what running changes in the model.
            writer = self._create(row_shape, self._new_identity())
        elif self._nameless:
            writer.set_identity(self._new_identity())
            self._nameless = False
        # The writer would refuse it as well, but without saying that it is the model that differs.
        self._consent.check_shape(row_shape, writer.schema)
        written = 0
        for start, places in alignment.runs(batch, beside, self._rows_missing):
            try:
                writer.write(
                    start,
                    each(itemgetter(places), rows),
                    **{
                        name: None if values is None else values[places]
                        for name, values in sides.items()
                    },
                )
            except RowError as error:
                raise self._engine.advice(error) from error
            written += len(batch.of_rows()[places])
        writer.hand_over()  # the next batch may be delivered by the relay's thread
        return written if batch.tokens is None else len(batch.indices)

    def _sides(self, computed: Computed, batch: Batch, beside: Beside) -> dict[str, Any]:
        """What goes with the rows of a batch; the first one decides what a new store keeps."""
        num_classes, writer = computed.row_shape[-1], self._writer
        if writer is None:
            self._alignment.settle(batch, beside)
        names = self._names(num_classes) if writer is None else writer.schema.class_names
        return self._alignment.sides(batch, beside, num_classes, names)

    def _new_identity(self) -> dict[str, Any]:
        return self._provenance.settled(self._engine.kept.mode, self._alignment.content)

    def _column(self, name: str, start: int, stop: int) -> Array:
        """Committed rows of a column, as stored."""
        if self._writer is not None:
            return self._writer.read_side(name, start, stop)
        assert self._finished is not None
        return rows_of(self._finished)[1](name, start, stop)
