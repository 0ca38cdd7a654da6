"""Beginning a store, going on with one, or replacing one: what `exists` means, in one place."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from fostore import disk
from fostore.encodings import make_schema
from fostore.errors import ArgumentError, IdentityError, StoreExistsError, UnsupportedError
from fostore.formats import UnitWriter, format_of
from fostore.places.lock import Lock
from fostore.places.names import destination
from fostore.schema import geometry
from fostore.schema.header import VERSION, Header, now
from fostore.schema.jsontext import check_json
from fostore.schema.ranges import Ranges
from fostore.schema.row import Array, Column, Schema
from fostore.schema.sides.ids import encode_ids, id_column
from fostore.schema.sides.views import VIEW, encode_views
from fostore.version import __version__
from fostore.writing.writer import Writer

FINGERPRINT = Column("input_hash", "uint64", "uint64", (), (), "fingerprint")
LABEL = Column("label_hash", "uint64", "uint64", (), (), "label")
_SIDE = (FINGERPRINT, VIEW, LABEL)


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
) -> Writer:
    """Begin a store at `path` and return its writer, which holds the store's lock.

    Args:
        path: ends in `.zarr`, `.h5` or `.hdf5`; missing parent folders are made. A link is followed:
            what it leads to is written, and the link stays.
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

    Raises:
        ArgumentError, IdentityError: values that cannot be used (a url among them), or that contradict
            the store which is resumed. Nothing was written.
        PlaceError: the file system is read-only, not yours, has no locks, or takes no such name.
        StoreExistsError, LockedError, SpaceError, DamageError: see `fostore.errors`.
    """
    path = destination(path)  # absolute: a writer may outlive a change of the working folder
    format = format_of(path)
    if exists not in ("fail", "resume", "overwrite"):
        raise ArgumentError(f"exists is {exists!r}, expected 'fail', 'resume' or 'overwrite'")
    if num_samples is not None and (not hasattr(num_samples, "__index__") or num_samples < 0):
        raise ArgumentError(f"num_samples is {num_samples!r}, expected an integer of at least 0")
    numbers = {"commit_seconds": commit_seconds, "temperature": temperature, "tol": tol}
    for name, value in numbers.items():
        if value is not None and not hasattr(value, "__float__"):
            raise ArgumentError(f"{name} is {value!r}, expected a number")
    for name, given in (("meta", meta), ("identity", identity)):
        if given is not None and not isinstance(given, Mapping):
            raise ArgumentError(f"{name} is {given!r:.80}, expected a dict")
    if not commit_seconds >= 0:
        raise ArgumentError(f"commit_seconds is {commit_seconds!r}, expected 0 or more")
    if ids is not None and not isinstance(ids, str) and num_samples not in (None, len(ids)):
        raise ArgumentError(f"{len(ids)} ids for {num_samples} samples")
    planned_views = _planned_views(views, num_samples)
    checked_meta = check_json(dict(meta or {}))
    checked_identity = check_json(dict(identity or {}), "identity")
    if exists == "fail" and path.exists():
        raise StoreExistsError(
            f"{str(path)!r} exists; exists='resume' goes on with it, exists='overwrite' replaces it"
        )

    def new_header() -> Header:
        if num_classes is None:
            raise ArgumentError(f"{str(path)!r} is a new store and needs num_classes")
        side = [] if ids is None else [id_column(ids)]
        asked_for = (fingerprints, planned_views is not False, labels)
        side += [one for one, is_asked in zip(_SIDE, asked_for, strict=True) if is_asked]
        schema = make_schema(
            num_classes,
            num_members=num_members,
            kind=kind or "probs",
            dtype=dtype,
            class_names=class_names,
            temperature=1.0 if temperature is None else temperature,
            tol=tol,
            side_columns=side,
        )
        return Header(
            schema=schema,
            num_samples=None if num_samples is None else int(num_samples),
            unit_rows=geometry.unit_rows(schema.row_bytes, num_samples, unit_rows),
            block_rows=geometry.block_rows(schema.row_bytes),
            identity=checked_identity,
            software=software(),
            meta=checked_meta,
        )

    header = None if exists == "resume" and path.exists() else new_header()
    disk.make_folders(path.parent)
    lock = Lock.acquire(path)
    units: UnitWriter | None = None
    try:
        _clean(path)
        if exists == "resume" and path.exists():
            units = format.resume(path)
            asked = {
                "num_classes": num_classes,
                "num_members": num_members,
                "dtype": dtype,
                "kind": kind,
                "class_names": None if class_names is None else tuple(class_names),
                "temperature": temperature,
                "sum_tolerance": tol,
                "unit_rows": unit_rows,
            }
            _check_same(path, units.header, asked, fingerprints)
            if format.streams:  # a file of fixed size looks for its room when it is made or grows
                there = Ranges.of(*units.sealed, *_rows(units))
                planned = units.header.num_samples if num_samples is None else num_samples
                _require_free(path, units.header, planned, there)
            _replan(path, units, num_samples, checked_meta)
            header = units.header
            place = path
        else:
            if path.exists() and exists != "overwrite":
                raise StoreExistsError(f"{str(path)!r} was made by another process just now")
            header = header or new_header()
            _require_free(path, header, header.num_samples, Ranges())
            place = _beside(path, "new") if path.exists() else path
            units = format.create(place, header)
        keys = _keys(ids, header.schema)
        if planned_views is not False and header.schema.role("view") is None:
            raise IdentityError("the store keeps no views, and views= were given", ("views",))
        writer = Writer(
            place,
            units,
            lock,
            commit_seconds=commit_seconds,
            ids=keys,
            views=planned_views if isinstance(planned_views, np.ndarray) else None,
            replaces=None if place == path else path,
            grows=header.sealed and num_samples is None and format.streams,
        )
        if keys is not None:
            _check_planned(writer, "id", keys)
        if isinstance(planned_views, np.ndarray):
            _check_planned(writer, "view", planned_views)
        return writer
    except BaseException:
        if units is not None:
            units.close()
        lock.release()
        raise


def create_like(
    path: Path, header: Header, *, exists: str = "fail", commit_seconds: float = 1.0
) -> Writer:
    """Begin a store with a header that is at hand, or go on with one: what copies and conversions use.

    Raises:
        IdentityError: the store that is there plans other rows. Nothing was written.
        StoreExistsError, LockedError, SpaceError, DamageError: see `fostore.errors`.
    """
    path = path.absolute()
    format = format_of(path)
    disk.make_folders(path.parent)
    lock = Lock.acquire(path)
    units: UnitWriter | None = None
    try:
        _clean(path)
        if path.exists() and exists != "resume":
            raise StoreExistsError(f"{str(path)!r} exists")
        if path.exists():
            units = format.resume(path)
            there = (units.header.schema, units.header.num_samples)
            if there != (header.schema, header.num_samples):
                raise IdentityError(f"{str(path)!r} holds other rows", ("schema",))
        else:
            _require_free(path, header, header.num_samples, Ranges())
            units = format.create(path, header)
        return Writer(path, units, lock, commit_seconds=commit_seconds)
    except BaseException:
        if units is not None:
            units.close()
        lock.release()
        raise


def software() -> dict[str, str]:
    """The versions that a store records and nobody checks."""
    return {
        "fostore": __version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
    }


def _beside(path: Path, what: str) -> Path:
    return path.with_name(f".{path.name}.{what}")


def _clean(path: Path) -> None:
    """Remove what a killed creation or overwrite left beside the store; we hold the lock."""
    disk.mend_exchange(path)
    for what in ("tmp", "new"):
        disk.remove(_beside(path, what))
        disk.remove(_beside(_beside(path, what), "tmp"))


def _rows(units: UnitWriter) -> list[tuple[int, int]]:
    return [(run.start, run.stop) for run in units.runs]


def _require_free(path: Path, header: Header, planned: int | None, there: Ranges) -> None:
    if planned is None:
        return  # a stream has no known size
    rows = planned - len(there)
    disk.require_free(path, rows * sum(header.schema.row_bytes))


def _check_same(path: Path, header: Header, asked: Mapping[str, Any], fingerprints: bool) -> None:
    if header.version != VERSION:
        raise UnsupportedError(
            f"{str(path)!r} was written by version {header.version} of the format; this release "
            f"writes {VERSION} and could break what is new there: go on with a newer fostore"
        )
    schema = header.schema
    have = {
        "num_classes": schema.num_classes,
        "num_members": schema.num_members,
        "dtype": schema.dtype,
        "kind": schema.kind,
        "class_names": schema.class_names,
        "temperature": schema.temperature,
        "sum_tolerance": schema.sum_tolerance,
        "unit_rows": header.unit_rows,
    }
    differences = [
        f"{name} is {have[name]!r} in the store and {value!r} was asked for"
        for name, value in asked.items()
        if value is not None and value != have[name]
    ]
    if fingerprints and schema.role("fingerprint") is None:
        differences.append("the store keeps no input hashes")
    if differences:
        raise IdentityError(
            f"{str(path)!r} cannot be resumed: {'; '.join(differences)}. Give what the store has, "
            "choose another path, or make it anew with exists='overwrite'",
            tuple(differences),
        )


def _replan(
    path: Path, units: UnitWriter, num_samples: int | None, meta: Mapping[str, Any]
) -> None:
    header = units.header
    planned = header.num_samples
    if num_samples is not None and planned is not None and num_samples < planned:
        difference = f"num_samples is {planned} in the store and {num_samples} was asked for"
        raise IdentityError(
            f"{str(path)!r} cannot be resumed: {difference}, and a store never shrinks",
            (difference,),
        )
    grows = num_samples is not None and num_samples != planned
    new_meta = {**header.meta, **meta}
    if grows or (new_meta != header.meta and not header.sealed):
        units.replan(
            replace(
                header,
                num_samples=num_samples if grows else planned,
                meta=new_meta,
                sealed=False,
                digest=None,
                updated=now(),
            )
        )


def _keys(ids: Any, schema: Schema) -> Array | None:
    column = schema.role("id")
    if ids is None or isinstance(ids, str):
        return None
    if column is None:
        raise IdentityError("the store keeps no ids, and ids= were given", ("ids",))
    id_column(ids)  # refuses keys that are not unique
    return encode_ids(ids, column, 0)


def _planned_views(views: Any, num_samples: int | None) -> Array | bool:
    if views is None or isinstance(views, bool):
        return bool(views)
    encoded = encode_views(views)
    if num_samples not in (None, len(encoded)):
        raise ArgumentError(f"{len(encoded)} views for {num_samples} samples")
    return encoded


def _check_planned(writer: Writer, role: str, planned: Array) -> None:
    """The ids or views given on resume are those that the written rows have."""
    column = writer.schema.role(role)
    assert column is not None
    for start, stop in writer.committed:
        step = 1 << 16
        for first in range(start, stop, step):
            last = min(first + step, stop)
            there = writer.read_side(column.name, first, last)
            given = planned[first:last]
            same = len(given) == len(there) and np.array_equal(given, there)
            if not same:
                pairs = zip(there, given, strict=False)
                row = next(
                    (i for i, (a, b) in enumerate(pairs) if not np.array_equal(a, b)), len(given)
                )
                raise IdentityError(
                    f"{str(writer.path)!r} cannot be resumed: the {role}s given differ from the "
                    f"store's from row {first + row} on",
                    (f"{role}s differ from row {first + row} on",),
                )
