"""One store from many processes and machines: planned once, written unit by unit by whoever comes, finished by anybody.

    fostore.plan(path, num_samples=..., num_classes=...)    # in every process: who comes first makes it
    for unit in fostore.open_units(path, shard=(i, n)):     # what is missing of one share
        unit.write(rows_of(unit.start, unit.stop))          # committed when it returns
    fostore.finish(path)                                    # by one of them, or several

Nobody holds a lock: a unit is committed by one file that can be made once. So any process may be killed at any moment,
or wake up hours later, and a unit that was committed stays as it is.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fostore.encodings import encoding_of
from fostore.encodings.rows import as_given
from fostore.errors import RowError, StoreNotFoundError
from fostore.formats import UnitsClaim, format_of
from fostore.formats.claim import WHOLE, Claim
from fostore.places.local import Local
from fostore.places.names import destination, storage_of
from fostore.places.place import Storage
from fostore.reading.store import Store
from fostore.reading.store import open as open_store
from fostore.schema import geometry
from fostore.schema.header import Header
from fostore.schema.identity import JOINED, refuse
from fostore.schema.jsontext import check_object
from fostore.schema.ranges import Range, describe
from fostore.schema.row import Array
from fostore.writing.create import create
from fostore.writing.joining import join, open_writer, units_of
from fostore.writing.request import Request
from fostore.writing.shares import share_of
from fostore.writing.writer import Writer

Where = str | Path | Storage
"""A path, the url of an object store, or a place."""


@dataclass(frozen=True, slots=True)
class Planned:
    """A store that many write: where it lies, and what it says of itself."""

    path: str
    header: Header

    @property
    def num_units(self) -> int:
        """Units that the rows make."""
        return -(-(self.header.num_samples or 0) // self.header.unit_rows)


def plan(
    path: Where,
    *,
    num_samples: int,
    num_classes: int | None = None,
    num_members: int | None = None,
    dtype: str | None = None,
    kind: str | None = None,
    class_names: Sequence[str] | None = None,
    temperature: float | None = None,
    ids: Sequence[Any] | str | None = None,
    fingerprints: bool = False,
    labels: bool = False,
    views: Any = None,
    meta: Mapping[str, Any] | None = None,
    identity: Mapping[str, Any] | None = None,
    unit_rows: int | None = None,
    tol: float | None = None,
    encoding: str | Mapping[str, Any] | None = None,
    class_labels: Any = None,
    rows: str | None = None,
    num_sequences: int | None = None,
    tokens: bool | None = None,
    positions: bool = False,
    vocab_size: int | None = None,
    k: int | None = None,
    rule: str | None = None,
    temperatures: Sequence[float] | None = None,
) -> Planned:
    """Begin a store that many processes write, or join it; the same call in each of them.

    Args:
        path: ends in `.zarr`: a folder that all of them see, or `s3://bucket/name.zarr`.
        unit_rows: rows a unit, a power of two, by default about 32 MiB: what is committed as a whole, and what a kill
            costs a process. A process keeps one or two in memory.

    All else is as in `fostore.create`; values of ids, views and class labels that are given here decide what
    their columns are, and come with each unit all the same.

    Returns:
        What the store is. `fostore.open_units` gives its units to write.

    Raises:
        IdentityError: somebody has planned another store there; says what differs. Nothing was written.
        ArgumentError: values that cannot be used.
        UnsupportedError: a format with one writer (HDF5), or a url that is read only.
        PlaceError: the file system or the service refuses.
    """
    if kind is None and encoding is None and num_classes is not None:
        kind = "probs"  # as `create` has it: who leaves it out would write probabilities into a store of logits
    request = Request.of(locals())
    place = _storage(path)
    nothing = Claim("plan", (0, 0))
    with closing(join(place, request, claim=nothing)) as writer:
        header = writer.header
    listed = [
        f"identity {key!r} is {given!r:.80}, the store has {header.identity.get(key)!r:.80}"
        for key, given in check_object(identity, "identity").items()
        if given != header.identity.get(key)
    ]
    refuse(place.url, listed, JOINED)
    return Planned(place.url, header)


class Unit:
    """Consecutive rows that are written together, by `open_units`; pickles as its path and number.

    `rows` is their range, so that `unit.start` and `unit.stop` are indices of the dataset.
    """

    def __init__(self, path: str, index: int, start: int, stop: int) -> None:
        self.path, self.index, self.start, self.stop = path, index, start, stop
        self._writer: Writer | None = None

    @property
    def rows(self) -> range:
        """The rows of the unit, which are the indices of their samples."""
        return range(self.start, self.stop)

    def __len__(self) -> int:
        return self.stop - self.start

    def write(
        self,
        rows: Any,
        *,
        ids: Sequence[Any] | None = None,
        fingerprints: Array | None = None,
        views: Any = None,
        labels: Array | None = None,
        class_labels: Any = None,
        sequences: Any = None,
        tokens: Any = None,
        positions: Any = None,
    ) -> None:
        """Write and commit the unit: durable when it returns. One that was committed meanwhile stays as it is.

        Args:
            rows: (len(unit), num_classes) or (len(unit), num_members, num_classes), of the store's kind.

        The others are as in `Writer.append`.

        Raises:
            RowError: rows that do not fit, or are no distributions; nothing was committed.
            LockedError: another process writes the same unit; the unit is missing, or committed by that.
            SpaceError, PlaceError: it could not be written; the unit is missing, and may be written again.
        """
        beside = {"ids": ids, "fingerprints": fingerprints, "views": views, "labels": labels}
        beside |= {"class_labels": class_labels, "sequences": sequences, "tokens": tokens}
        beside["positions"] = positions
        writer, self._writer = self._writer, None
        own = writer is None
        if writer is None:
            claim = Claim(f"unit {self.index}", (self.index, self.index + 1))
            writer = _open(_storage(self.path), claim)
        try:
            rows, count = as_given(rows, encoding_of(writer.schema), writer.schema)
            if count != len(self):
                raise RowError(
                    f"unit {self.index} of {self.path} has the rows {self.start} to {self.stop - 1}, that is "
                    f"{len(self)}, and {count} came: a unit is written as a whole"
                )
            if not own or writer.missing():
                writer.write(self.start, rows, **beside)
                writer.commit()
        except BaseException:
            writer.release()  # it takes no more after an error; who writes again opens another one
            raise
        if own:
            writer.close()
        else:
            self._writer = writer

    def __reduce__(self) -> tuple[Any, ...]:
        return Unit, (self.path, self.index, self.start, self.stop)

    def __repr__(self) -> str:
        return f"Unit({self.path!r}, {self.index}, rows {self.start} to {self.stop - 1})"


def open_units(path: Where | Planned, *, shard: Any = None) -> Iterator[Unit]:
    """The units of a planned store that are missing, to be written one after another.

    Args:
        path: the store, or its plan.
        shard: `(i, n)`: the i-th, from 0, of n shares, which are consecutive units; by default all. "auto" asks the
            launcher (torchrun, srun, an array of SLURM jobs). The same unit in two processes is work done twice,
            and harms nothing. After a kill any n will do.

    Yields:
        `Unit`s, in order. One that is committed by somebody else meanwhile is left out.

    Raises:
        StoreNotFoundError: nobody has planned the store.
        ArgumentError: no such share; a store of another kind.
    """
    place = _storage(path.path if isinstance(path, Planned) else path)
    share = share_of(shard)
    claim: UnitsClaim = WHOLE if share is None else share.claim
    return _units(place, claim, _open(place, claim))


def _units(place: Storage, claim: UnitsClaim, writer: Writer) -> Iterator[Unit]:
    unit_rows = writer.header.unit_rows
    try:
        for start, stop in writer.missing():
            for index, first, last in geometry.split_at_units(start, stop, unit_rows):
                unit = Unit(place.url, index, first, last)
                unit._writer = writer
                yield unit
                if unit._writer is None:  # it could not be written, and the writer was released
                    writer = _open(place, claim)
                unit._writer = None
    finally:
        writer.release()


def create_shared(path: str | Path, shard: Any, *, exists: str, **asked: Any) -> Writer:
    """The writer of one share of a store, begun by this call or joined; without a share that of `fostore.create`.

    `asked` is as there; leaving the writer's `with` block does not seal the store.
    """
    share = share_of(shard)
    if share is None:
        return create(path, exists=exists, **asked)
    of_writer = {name: asked.pop(name) for name in ("commit_seconds", "max_kl") if name in asked}
    place, request = _storage(path), Request.of(asked)
    return join(place, request, exists=exists, claim=share.claim, **of_writer)


def check_shared(path: Where) -> None:
    """Raise UnsupportedError where a store at `path` could have one writer alone; nothing is made."""
    place = _storage(path)
    with contextlib.suppress(StoreNotFoundError):
        format_of(place).units(place, claim=Claim("nothing", (0, 0))).close()


def missing(path: Where) -> list[Range]:
    """Rows of a store that nobody has committed yet, as `(start, stop)`; none of one that is sealed.

    Raises:
        StoreNotFoundError, FormatError: as `fostore.open`.
    """
    with open_store(path) as store:
        return store.missing()


def finish(path: Where) -> Store:
    """Seal a store whose rows are all committed, and open it; of one that is sealed nothing changes.

    Holds every unit against its record, then writes what plain readers need, then the digest. A kill
    at any moment leaves what the next call mends; several calls at once do no harm.

    Raises:
        RowError: rows are missing (names them), two rows have one id, or files are not those that were committed:
            then their units are given up, and missing from now on. Nothing was sealed.
        LockedError: another process changed the store meanwhile; call it again.
    """
    with open_store(path) as store:
        header = store.header
    if header.sealed or header.commits is not None:
        opened = _open(_storage(path), WHOLE)
    else:
        opened = create(_storage(path).url, exists="resume")
    with closing(opened) as writer:
        gaps = writer.missing()
        if gaps:
            raise RowError(
                f"{describe(gaps)} of {writer.path} are missing: run once more what makes them, and then finish"
            )
        writer.seal()
    return open_store(path)


def _storage(path: Where) -> Storage:
    """Where units are written: behind a url, or in a folder of this machine."""
    if isinstance(path, Local):
        return path
    return storage_of(path) or Local(destination(path))  # type: ignore[arg-type]  # no place is left


def _open(place: Storage, claim: UnitsClaim) -> Writer:
    if not format_of(place).is_store(place):
        raise StoreNotFoundError(f"there is no store at '{place}'; fostore.plan begins one")
    return open_writer(place, units_of(place, None, claim))
