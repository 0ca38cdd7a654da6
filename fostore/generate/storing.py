"""Generation into a store: begin or go on, write what is missing, seal."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from fostore.encodings import default_tolerance
from fostore.errors import (
    ArgumentError,
    GenerationError,
    IdentityError,
    RowError,
    StoreExistsError,
)
from fostore.formats import FILES, format_of
from fostore.generate import fingerprint, output
from fostore.generate.engine import Computed, Engine
from fostore.generate.framework import Framework
from fostore.generate.label_check import NoLabels, moved_label
from fostore.generate.labels import NOTHING, differ, tells
from fostore.generate.loop import run
from fostore.generate.mixing import refuse_mixing
from fostore.generate.recheck import Committed, Recheck, check_shape, runs
from fostore.generate.source import Indices, MapSource, Source, StreamSource, steps
from fostore.places.names import destination
from fostore.progress import Progress
from fostore.reading.store import Store
from fostore.reading.store import open as open_store
from fostore.schema import identity
from fostore.schema.class_names import difference, reordered
from fostore.schema.header import Header
from fostore.schema.jsontext import check_json
from fostore.schema.ranges import Range, Ranges
from fostore.schema.row import Array
from fostore.writing.create import create
from fostore.writing.writer import Writer

_ENDLESS = 1 << 62


@dataclass(frozen=True, slots=True)
class Target:
    """Where rows go and what goes with them; see `FirstOrderDataGenerator.generate_distributions`."""

    path: Path
    exists: str = "resume"
    dtype: str = "float32"
    meta: Mapping[str, Any] | None = None
    class_names: Sequence[str] | None = None
    ids: Any = None
    views: Any = None
    rows: Range | None = None
    unit_rows: int | None = None
    commit_seconds: float = 1.0
    tol: float | None = None
    accept_differences: bool = False
    recheck: bool = True
    is_named: bool = False
    """Whether a fingerprint of the user's stands for the model."""
    own_names: tuple[str, ...] | None = None
    """What the model calls its classes: the store's names where the user gives none."""


def check_target(target: Target, source: Source) -> None:
    """Raise for what would fail only after the first batch, or leave a store that is never whole.

    Raises:
        ArgumentError, StoreExistsError: nothing was run, nothing written.
    """
    path, samples = target.path, source.num_samples
    destination(path)  # a link that leads nowhere
    if target.exists not in ("resume", "fail", "overwrite"):
        raise ArgumentError(
            f"exists is {target.exists!r}, expected 'resume', 'fail' or 'overwrite'"
        )
    if path.suffix.lower() in FILES:
        raise ArgumentError(
            "a JSON file cannot be streamed or resumed; generate into .zarr or .h5, or without "
            "store= and then save_distributions(path, distributions)"
        )
    format = format_of(path)
    if samples is None and not format.streams:
        raise ArgumentError(
            f"{format.name} needs to know the number of samples, and the stream has no length; "
            "use a .zarr path, or a dataset with __len__"
        )
    if target.exists == "fail" and path.exists():
        raise StoreExistsError(
            f"{str(path)!r} exists; exists='resume' goes on with it, exists='overwrite' replaces it"
        )
    check_json(dict(target.meta or {}))
    if samples == 0:
        raise ArgumentError("the dataset is empty, so the number of classes is not known")
    if target.ids is not None and samples is not None and len(target.ids) != samples:
        raise ArgumentError(f"{len(target.ids)} ids for {samples} samples")
    if target.views is not None and samples is not None and len(target.views) != samples:
        raise ArgumentError(f"{len(target.views)} views for {samples} samples")
    if target.rows is not None:
        if isinstance(source, StreamSource):
            raise ArgumentError("rows= needs a dataset with __getitem__; a stream has no other end")
        if target.exists == "overwrite":
            raise ArgumentError(
                "rows= with exists='overwrite' would never replace the old store, since the new one "
                "is not whole; overwrite without rows=, or remove the old store first"
            )
    covered = source.batches.num_rows if isinstance(source, MapSource) else samples
    if (isinstance(source, StreamSource) and source.drop_last) or covered != samples:
        missing = "" if covered == samples else f" ({covered} of {samples} samples come)"
        raise ArgumentError(
            f"the loader leaves samples out{missing}, and a store keeps a row for every sample: use "
            "drop_last=False, and torch.utils.data.Subset(dataset, indices) for a part of a dataset"
        )


class StoreRun:
    """One run of a generator into a store: what is missing is computed and written, in order."""

    def __init__(
        self,
        framework: Framework,
        source: Source,
        engine: Engine,
        target: Target,
        *,
        made_from: Callable[[output.Mode], dict[str, Any]],
        described: Callable[[], dict[str, Any]],
        meta: Callable[[output.Mode], dict[str, Any]],
        probed: Callable[[Callable[[Any], Any]], Source | None],
        hashes_inputs: bool,
    ) -> None:
        """`made_from` and `meta` give the identity and the metadata for a resolved output mode.

        `described` looks at the model once more; `probed`: see `mixing.refuse_mixing`.
        """
        self._framework = framework
        self._source = source
        self._engine = engine
        self._target = target
        self._made_from = made_from
        self._meta = meta
        self._content = fingerprint.HASHED if hashes_inputs else fingerprint.OPAQUE
        told = fingerprint.labels_of(source.dataset, source.num_samples) is not None
        self._labelled = hashes_inputs and not told  # whether labels are kept as samples are read
        self._stack = ExitStack()
        self._writer: Writer | None = None
        self._finished: Store | None = None
        self._accepted: list[str] = []
        self._nameless = False  # an empty store that somebody created without an identity
        self._recheck: Recheck | None = None
        self._probed = probed
        self._described = described
        self._there = Ranges()
        self._wanted = Ranges()

    def run(self, shown: bool, name: str | None) -> Store:
        """Write what is missing and return the store, opened."""
        target, source = self._target, self._source
        with self._stack:
            resumes = target.exists == "resume" and target.path.exists()
            if resumes:
                self._resume(target.path)
                self._record()
            self._wanted = self._missing()
            if not resumes:
                self._begin_reading()
            if self._wanted.items:
                rows = target.rows or (0, source.num_samples)
                total = None if rows[1] is None else rows[1] - rows[0]
                done = sum(b - a for a, b in self._there.overlap(rows[0], rows[1] or _ENDLESS))
                with Progress(shown, total, done, name) as progress:
                    self._loop(progress)
            self._end()
        return open_store(target.path)

    def _loop(self, progress: Progress) -> None:
        def deliver(token: tuple[Computed, Array | None, Array | None]) -> None:
            progress.add(self._deliver(*token))

        labels = self._source.assemble.labels
        labels.wanted = self._labelled
        try:
            run(
                steps(self._source, self._wanted, self._seen),
                self._compute,
                deliver,
                overlap=self._framework.overlaps,
            )
        finally:
            labels.wanted = False

    def _missing(self) -> Ranges:
        if isinstance(self._source, StreamSource):
            writer = self._writer
            if self._finished is not None or (writer is not None and writer.header.sealed):
                return Ranges()
            end = self._source.num_samples or _ENDLESS
            return Ranges(self._there.missing(end))
        rows = self._target.rows or (0, self._source.num_samples)
        return Ranges(self._there.missing(rows[1], rows[0]))

    def _end(self) -> None:
        writer, source = self._writer, self._source
        if self._finished is not None:
            return
        if writer is None:
            raise ArgumentError("the stream is empty, so the number of classes is not known")
        self._record()
        if self._engine.limit is not None:
            writer.update_meta({"batch_size_on_device": self._engine.limit})
        if isinstance(source, StreamSource) and source.num_samples and writer.missing():
            raise GenerationError(
                f"the stream ended after {len(writer)} samples, but its length is "
                f"{source.num_samples}; the store is not whole"
            )

    def _begin_reading(self) -> None:
        """What inputs are good for, before a new store gets any."""
        target, source = self._target, self._source
        refuse_mixing(self._framework, source, self._wanted, self._probed)
        if self._content == fingerprint.HASHED:
            first = 0 if target.rows is None else target.rows[0]
            self._content = fingerprint.content_of(self._framework, source, first)

    def _record(self) -> None:
        """Keep what was accepted in the metadata, before anything is computed on top of it."""
        if self._writer is None or not self._accepted:
            return
        before = self._writer.header.meta.get("accepted_differences", [])
        new = [text for text in self._accepted if text not in before]
        self._writer.update_meta({"accepted_differences": [*before, *new]})
        self._accepted = []

    # Beginning and going on

    def _resume(self, path: Path) -> None:
        with open_store(path) as store:
            header, empty = store.header, not len(store)
        stored, engine = header.identity, self._engine
        resolved = output.read_mode(stored.get("output", {}).get("mode"))
        if engine.selection.mode == "auto" and resolved is not None:
            engine.selection = replace(engine.selection, mode=resolved)
            output.check_resolved(resolved, engine.selection.kind, engine.selection.temperature)
        if stored:
            self._compare(header)
        elif not empty:
            self._differs(["it holds rows and does not say what model and dataset they came from"])
        self._labelled = header.schema.role("label") is not None
        hashed = header.schema.role("fingerprint") is not None
        if not hashed:
            self._content = fingerprint.OPAQUE
        is_whole = header.sealed and header.num_samples == self._source.num_samples
        if is_whole and not self._target.accept_differences:
            # Nothing will be written. A kill at the very end may have left files to tidy up; where
            # the store is read-only or in use, that waits, and the rows are whole all the same.
            with suppress(OSError):
                create(path, exists="resume").close()
            self._finished = self._stack.enter_context(open_store(path))
            self._there = self._finished.committed
        else:
            self._there = self._create(None, stored).committed
            self._nameless = not stored
        missing = self._missing()
        if missing.items:
            refuse_mixing(self._framework, self._source, missing, self._probed)
        if not self._there.items:
            return
        if isinstance(self._source, MapSource):
            if self._labelled:
                self._check_labels()
            if self._content == fingerprint.HASHED:
                with self._may_differ():
                    fingerprint.check_content(
                        self._framework, self._source, self._there, self._hashes, path
                    )
        self._look_again(header)

    def _look_again(self, header: Header) -> None:
        """Compute committed rows again, at once or (of a stream) when they pass by."""
        target, source = self._target, self._source
        given = self._made_from(self._engine.selection.mode)
        doubts = identity.doubts(header.identity, given)
        if not target.recheck:
            if doubts.code:
                self._differs([f"{doubts}, and recheck=False computes nothing again"])
            elif doubts:
                warnings.warn(f"{target.path} goes on although {doubts}", stacklevel=2)
            self._accepted.append("no committed batch was computed again (recheck=False)")
            return
        size = header.meta.get("batch_size")
        recheck = Recheck(
            self._framework,
            source,
            self._engine,
            Committed(
                target.path,
                header.schema,
                self._there,
                self._column,
                size if type(size) is int and size > 0 else None,
            ),
            doubts=doubts,
            is_opaque=identity.is_opaque(given),
            is_named=target.is_named,
            has_hashes=self._content == fingerprint.HASHED,
            differs=self._differs,
        )
        if isinstance(source, MapSource) or not self._missing().items:
            recheck.look()
        else:
            self._recheck = recheck

    def _compare(self, header: Header) -> None:
        made_from = self._made_from(self._engine.selection.mode)
        self._differs(identity.differences(header.identity, made_from))
        asked = (
            ("store_as", self._engine.selection.kind, header.schema.kind),
            ("dtype", self._target.dtype, header.schema.dtype),
            ("temperature", self._engine.selection.temperature, header.schema.temperature),
            ("class_names", _tuple(self._target.class_names), header.schema.class_names),
            ("unit_rows", self._target.unit_rows, header.unit_rows),
        )
        found = [
            f"{name} is {new!r}, the store has {old!r}"
            for name, new, old in asked
            if new is not None and new != old
        ]
        own, old_names = self._target.own_names, header.schema.class_names
        if own is not None and old_names is not None and reordered(own, old_names):
            found.append(difference(own, old_names, ("for the model", "for the store")))
        identity.refuse(self._target.path, found)

    def _differs(self, found: Sequence[str]) -> None:
        """Refuse what differs, or record it where the user accepts it."""
        if not found or not self._target.accept_differences:
            identity.refuse(self._target.path, found)
            return
        warnings.warn(
            f"{self._target.path} goes on although {'; '.join(found)}: recorded in its metadata",
            stacklevel=2,
        )
        self._accepted += found

    @contextmanager
    def _may_differ(self) -> Iterator[None]:
        try:
            yield
        except IdentityError as error:
            self._differs(error.differences)

    def _new_identity(self) -> dict[str, Any]:
        """The identity that a store is to keep; the model has run by now, and shows what that changes."""
        made_from = self._made_from(self._engine.selection.mode)
        made_from["dataset"]["content"] = self._content
        return identity.settled(made_from, self._described())

    def _create(self, row_shape: tuple[int, ...] | None, made_from: Mapping[str, Any]) -> Writer:
        target, selection = self._target, self._engine.selection
        new = row_shape is not None
        writer = create(
            target.path,
            num_samples=self._source.num_samples,
            num_classes=row_shape[-1] if row_shape else None,
            num_members=row_shape[0] if row_shape and len(row_shape) > 1 else None,
            dtype=target.dtype,
            kind=selection.kind,
            class_names=self._class_names(row_shape),
            temperature=selection.temperature,
            ids=target.ids,
            views=target.views,
            fingerprints=self._content == fingerprint.HASHED,
            labels=self._labelled,
            meta={**(target.meta or {}), **self._meta(selection.mode)} if new else target.meta,
            identity=made_from,
            exists=target.exists,
            unit_rows=target.unit_rows,
            commit_seconds=target.commit_seconds,
            tol=self._tolerance(row_shape[-1]) if row_shape else target.tol,
        )
        self._writer = self._stack.enter_context(writer)
        return writer

    def _class_names(self, row_shape: tuple[int, ...] | None) -> Sequence[str] | None:
        """The names of a new store; one that is there already keeps those that it has, or has not."""
        given, own = self._target.class_names, self._target.own_names
        if given is None and row_shape and own is not None and len(own) == row_shape[-1]:
            return own
        return given

    def _tolerance(self, num_classes: int) -> float | None:
        """Half precision probabilities may be off by more than the stored dtype explains."""
        target, selection = self._target, self._engine.selection
        if target.tol is not None or "probs" not in selection.mode or self._engine.tol is None:
            return target.tol
        default = default_tolerance(selection.kind, target.dtype, num_classes)
        return self._engine.tol if self._engine.tol > default else None

    # Batches

    def _compute(
        self, indices: Indices, inputs: Any
    ) -> tuple[Computed, Array | None, Array | None]:
        labels = self._source.assemble.labels.last if self._labelled else None
        if self._labelled and self._there.items and isinstance(self._source, StreamSource):
            self._check_passing(range(int(indices[0]), int(indices[-1]) + 1))
        if self._recheck is not None:
            self._recheck.passing(indices, inputs)
        hashes = None
        if self._content == fingerprint.HASHED:
            # Before the model runs: it may change its input in place.
            hashes = fingerprint.hash_inputs(self._framework, inputs, len(indices))
            if hashes is None and self._writer is not None:
                fingerprint.require_hashes(hashes, indices)
        return self._engine.compute(indices, inputs), hashes, labels

    def _deliver(self, computed: Computed, hashes: Array | None, labels: Array | None) -> int:
        """Write the rows of a batch that are missing; how many they were."""
        rows, indices = self._engine.collect(computed), computed.indices
        if self._writer is None:
            if hashes is None and self._content == fingerprint.HASHED:
                self._content = fingerprint.OPAQUE
            self._labelled = labels is not None and tells(labels)
            self._writer = self._create(rows.shape[1:], self._new_identity())
        elif self._nameless:
            self._writer.set_identity(self._new_identity())
            self._nameless = False
        if not self._labelled:
            labels = None
        elif labels is None:
            labels = np.full(len(indices), NOTHING)
        check_shape(rows, self._writer.schema, self._target.path)
        if self._there.items and isinstance(indices, range) and hashes is not None:
            self._compare_overlap(indices, hashes)
        written = 0
        for start, places in runs(indices, self._wanted):
            part, own = (None if one is None else one[places] for one in (hashes, labels))
            try:
                self._writer.write(start, rows[places], fingerprints=part, labels=own)
            except RowError as error:
                raise self._engine.advice(error) from error
            written += len(rows[places])
        self._writer.hand_over()  # the next batch may be delivered by the relay's thread
        return written

    # Comparing with what is there

    def _check_labels(self) -> None:
        """Compare the labels of up to three committed samples with those that were recorded."""
        picked = fingerprint.picked(self._there)
        stored = np.concatenate([self._column("label_hash", i, i + 1) for i in picked])
        with self._framework.kept_random_states(), suppress(NoLabels):
            moved = moved_label(self._source.dataset, np.array(picked), stored)
            if moved is not None:
                self._differs([f"sample {moved} of the dataset has another label"])

    def _check_passing(self, indices: range) -> None:
        """The same of a batch that a stream passes by."""
        labels = self._source.assemble.labels.last
        if labels is None:
            return
        for start, stop in self._there.overlap(indices.start, indices.stop):
            now = labels[start - indices.start : stop - indices.start]
            moved = np.flatnonzero(differ(now, self._column("label_hash", start, stop)))
            if len(moved):
                self._differs([f"sample {start + int(moved[0])} of the stream has another label"])

    def _seen(self, indices: range, inputs: Any) -> None:
        """A stream passes a batch whose rows are all committed."""
        if self._labelled:
            self._check_passing(indices)
        if self._content == fingerprint.HASHED:
            hashes = fingerprint.hash_inputs(self._framework, inputs, len(indices))
            stored = self._hashes(indices.start, indices.stop)
            with self._may_differ():
                fingerprint.check_seen(hashes, stored, indices, self._target.path)
        if self._recheck is not None:
            self._recheck.passing(indices, inputs)

    def _compare_overlap(self, indices: range, hashes: Array) -> None:
        if not isinstance(self._source, StreamSource):
            return
        for start, stop in self._there.overlap(indices.start, indices.stop):
            places = slice(start - indices.start, stop - indices.start)
            with self._may_differ():
                fingerprint.check_seen(
                    hashes[places],
                    self._hashes(start, stop),
                    range(start, stop),
                    self._target.path,
                )

    def _hashes(self, start: int, stop: int) -> Array:
        return self._column("input_hash", start, stop)

    def _column(self, name: str, start: int, stop: int) -> Array:
        """Committed rows of a column, as stored."""
        if self._writer is not None:
            return self._writer.read_side(name, start, stop)
        assert self._finished is not None
        column = self._finished.reader.column(self._finished.schema.index(name))
        return column.take(np.arange(start, stop))


def _tuple(names: Sequence[str] | None) -> tuple[str, ...] | None:
    return None if names is None else tuple(names)
