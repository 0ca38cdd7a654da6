"""Beginning a store, going on with one, or replacing one: the one way to a writer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from fostore import disk
from fostore.encodings.bound import check_max_kl
from fostore.errors import ArgumentError, IdentityError
from fostore.formats import UnitWriter, format_of
from fostore.formats.claim import WHOLE, Claim
from fostore.places.lock import Lock
from fostore.places.names import destination, storage_of
from fostore.schema.header import Header, now
from fostore.schema.jsontext import check_object
from fostore.schema.ranges import Ranges
from fostore.writing.joining import join
from fostore.writing.ledger import rows_in
from fostore.writing.request import Request
from fostore.writing.sides import Sides
from fostore.writing.target import Target, check_exists
from fostore.writing.writer import Writer


def create(
    path: str | Path,
    *,
    num_samples: int | None = None,
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
    exists: str = "fail",
    unit_rows: int | None = None,
    commit_seconds: float = 1.0,
    tol: float | None = None,
    encoding: str | Mapping[str, Any] | None = None,
    class_labels: Any = None,
    k: int | None = None,
    rule: str | None = None,
    temperatures: Sequence[float] | None = None,
    max_kl: float | None = None,
    rows: str | None = None,
    num_sequences: int | None = None,
    tokens: bool | None = None,
    positions: bool = False,
    vocab_size: int | None = None,
) -> Writer:
    """Begin a store at `path` and return its writer, which holds the store's lock.

    Args:
        path: ends in `.zarr`, `.h5` or `.hdf5`; missing parent folders are made. A link is followed:
            what it leads to is written, and the link stays. Or the url of a Zarr store on S3 (`s3://`): there
            units are written as they become whole, so that a kill costs up to one unit, and two processes
            that write one store disturb each other and harm nothing.
        num_samples: rows planned; None for a stream, which only Zarr can keep.
        num_classes: classes of a distribution; may be left out where a store is resumed.
        num_members: distributions a row, for ensembles; None for one.
        dtype: float32 (default), float16, bfloat16 or float64; for counts uint32 (default), uint8,
            uint16 or uint64.
        kind: "probs" (default), "log_probs", "logits" or "counts": what `append` gets.
        class_names: one name a class; their order is part of the store's identity.
        temperature: by which the logits were divided; recorded, 1.0 by default.
        ids: one unique key a sample (integers or strings), or the promise "int64" or "S32" of keys
            that come with each batch.
        fingerprints: whether a 64-bit hash of the input comes with each row.
        labels: whether a 64-bit hash of the sample's label comes with each row.
        views: how each sample was augmented, so that it can be done again: a seed a row (n,), or a
            seed and the number of the view (n, 2); True promises them with each batch.
        meta: any JSON; string keys, no NaN.
        identity: what the rows are made from; generators fill this in.
        exists: "fail" refuses a path that is taken; "resume" goes on with the store there, or
            extends a sealed one, to a larger `num_samples` or (Zarr) by what is appended;
            "overwrite" replaces it at the moment when the new store is sealed, not before.
        unit_rows: rows a unit, a power of two; by default about 32 MiB.
        commit_seconds: how much work a kill may cost; 0 commits every batch.
        tol: how far a row's sum may be from 1; by default from the dtype.
        encoding: how rows become columns: a name, or a mapping of "name" and parameters; by default
            "dense", and "counts" for votes.
        class_labels: the class of each sample, a number a row (n,), which scores are computed against; True
            promises them with each batch. They are part of the content, as ids are.
        k: of the encoding "topk": classes a row that are kept, the largest ones.
        rule: of "topk": what a reader makes of the other classes where nobody says: "coarse" (default) takes
            them for one outcome; "uniform", "renorm" and "zero" see `Store.take`.
        temperatures: of "topk": those at which rows will be softened by the rules "coarse" and "zero"; what the
            other classes weigh then is kept for each.
        max_kl: nats that a row may lose at most by being encoded, of those that are compared (some 1,000, drawn by
            their numbers) and of all where the columns say it: else `append` or `seal` raises RowError, and the store
            is not sealed.
        rows: "samples" (default), or "tokens": a row is the distribution at one token of a sequence, and
            `sequences` and `tokens` come with each batch. `num_samples` counts rows, as everywhere.
        num_sequences: sequences planned; of token rows alone. None where nobody knows it yet (Zarr).
        tokens: whether the input token at each row comes with it; of token rows by default.
        positions: whether its position in the sequence comes with each row; for sequences of which rows
            are left out.
        vocab_size: how many tokens there are; `num_classes` by default.

    Raises:
        ArgumentError, IdentityError: values that cannot be used, or that contradict
            the store which is resumed. Nothing was written.
        UnsupportedError: a url that is read only.
        PlaceError: the file system is read-only, not yours, has no locks, or takes no such name.
        StoreExistsError, LockedError, SpaceError, DamageError: see `fostore.errors`.
    """
    given = dict(locals())
    check_max_kl(max_kl)
    place = storage_of(path)
    if place is not None:
        request = Request.of(given)
        return join(place, request, exists=exists, commit_seconds=commit_seconds, max_kl=max_kl)
    path = destination(path)  # absolute: a writer may outlive a change of the working folder
    format = format_of(
        path
    )  # first: where no store can be written, it does not matter what is there
    # Here before any work, and again under the lock (`Target.begin`).
    check_exists(path, exists)
    request = Request.of(given)
    if not commit_seconds >= 0:
        raise ArgumentError(f"commit_seconds is {commit_seconds!r}, expected 0 or more")

    def go_on(units: UnitWriter) -> None:
        request.check_same(path, units.header)
        # A file of fixed size looks for its room when it is made or grows.
        if format.streams:
            planned = units.header.num_samples if num_samples is None else num_samples
            _require_free(path, units.header, planned, rows_in(units))
        _replan(path, units, num_samples, num_sequences, check_object(meta))

    return begin(
        path,
        lambda: request.header(path),
        go_on,
        exists=exists,
        sides=request.sides,
        commit_seconds=commit_seconds,
        grows=num_samples is None,
        max_kl=max_kl,
    )


def create_like(path: Path, header: Header, *, commit_seconds: float = 1.0) -> Writer:
    """Go on with a store of the rows that `header` plans, or begin one: what conversions use.

    Raises:
        IdentityError: the store that is there plans other rows. Nothing was written.
        LockedError, SpaceError, DamageError: see `fostore.errors`.
    """

    def go_on(units: UnitWriter) -> None:
        planned = (units.header.schema, units.header.num_samples)
        if planned != (header.schema, header.num_samples):
            raise IdentityError(f"{str(path)!r} holds other rows", ("schema",))

    return begin(
        path.absolute(), lambda: header, go_on, exists="resume", commit_seconds=commit_seconds
    )


def begin(
    path: Path,
    new_header: Callable[[], Header],
    go_on: Callable[[UnitWriter], None],
    *,
    exists: str,
    sides: Sides | None = None,
    claim: Claim = WHOLE,
    commit_seconds: float = 1.0,
    grows: bool = False,
    max_kl: float | None = None,
) -> Writer:
    """The writer of the store at `path`, which holds the lock of what it claims.

    Args:
        path: absolute, as `check_exists` has seen it.
        new_header: of a store that is not there yet.
        go_on: refuses the store that is there, or brings it up to what is asked for.
        exists: see `create`.
        sides: values of side columns for all rows, or promises of them.
        claim: what the writer may touch; less than all only of a store that is there.
        grows: a sealed store goes on as a stream with the first row that is appended.
        max_kl: see `create`.
    """
    format = format_of(path)
    goes_on = exists == "resume"
    # A new store is refused before its folder is made.
    header = None if goes_on and path.exists() else new_header()
    disk.make_folders(path.parent)
    # From here on nobody else makes, cleans or goes on with these units.
    lock = Lock.acquire(path, claim.units)
    units: UnitWriter | None = None
    try:
        target = Target(path)
        if claim.is_whole:  # else what lies beside may be another's
            target.clean()
        if goes_on and path.exists():
            units = format.resume(path, claim)
            go_on(units)
        else:
            claim.check_whole("a new store")
            header, lies_at = header or new_header(), target.begin(exists)
            _require_free(path, header, header.num_samples, Ranges())
            units = format.create(lies_at, header)
        grows = grows and format.streams and units.header.sealed
        return Writer(
            target,
            units,
            lock,
            commit_seconds=commit_seconds,
            sides=sides or {},
            claim=claim,
            grows=grows,
            max_kl=max_kl,
        )
    except BaseException:  # Ctrl-C as well: a lock that is not given back lasts as long as we do
        if units is not None:
            units.close()
        lock.release()
        raise


def _require_free(path: Path, header: Header, planned: int | None, written: Ranges) -> None:
    if planned is None:
        return  # a stream has no known size
    rows = planned - len(written)
    disk.require_free(path, rows * sum(header.schema.row_bytes))


def _replan(
    path: Path,
    units: UnitWriter,
    num_samples: int | None,
    num_sequences: int | None,
    meta: Mapping[str, Any],
) -> None:
    header = units.header
    counts = {"num_samples": num_samples, "num_sequences": num_sequences}
    changed: dict[str, Any] = {}
    for name, count in counts.items():
        planned = getattr(header, name)
        if count is not None and planned is not None and count < planned:
            difference = f"{name} is {planned} in the store and {count} was asked for"
            raise IdentityError(
                f"{str(path)!r} cannot be resumed: {difference}, and a store never shrinks",
                (difference,),
            )
        if count is not None and count != planned:
            changed[name] = count
    if changed and header.sealed and num_samples is None and format_of(path).streams:
        changed["num_samples"] = None
    new_meta = {**header.meta, **meta}
    if changed or (new_meta != header.meta and not header.sealed):
        units.replan(
            replace(
                header,
                **changed,
                meta=new_meta,
                sealed=False,
                digest=None,
                updated=now(),
            )
        )
