"""Joining a store that is written in whole units: made by who comes first, and the same for all who come after."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from fostore.errors import ArgumentError, IdentityError, StoreExistsError
from fostore.formats import UnitsClaim, UnitsWriter, format_of
from fostore.formats.claim import WHOLE
from fostore.places.place import Storage
from fostore.schema import identity
from fostore.schema.header import Header, now
from fostore.schema.jsontext import check_object
from fostore.writing.request import Request
from fostore.writing.target import Target, check_word
from fostore.writing.writer import Writer


def join(
    place: Storage,
    request: Request,
    *,
    exists: str = "resume",
    commit_seconds: float = 1.0,
    claim: UnitsClaim = WHOLE,
    max_kl: float | None = None,
) -> Writer:
    """The writer of a store that is written in whole units, begun by this call or by somebody before.

    Raises:
        IdentityError: the store that is there is another one than is asked for. Nothing was written.
        StoreExistsError: `exists` is "fail", and there is one.
        ArgumentError: what cannot be: a stream, an overwrite.
    """
    check_word(exists)
    if exists == "overwrite":
        raise ArgumentError(
            f"{place} cannot be replaced at one moment: write to another name, or remove it first"
        )
    header = None
    format = format_of(place)
    if not format.is_store(place):
        header = planned(place, request)
    elif exists == "fail":
        raise _taken(place)
    units = units_of(place, header, claim)
    try:
        if header is None or units.header.id != header.id:
            if exists == "fail":
                raise _taken(place)
            _check_same(place, request, units)
        return open_writer(place, units, request, commit_seconds=commit_seconds, max_kl=max_kl)
    except BaseException:
        units.close()
        raise


def join_like(place: Storage, header: Header, *, commit_seconds: float = 1.0) -> Writer:
    """Begin a store with a header, or go on with one of the same rows: what conversions use.

    Raises:
        IdentityError: the store that is there plans other rows. Nothing was written.
    """
    units = units_of(place, header)
    held = units.header
    if (held.schema, held.num_samples) != (header.schema, header.num_samples):
        raise IdentityError(f"'{place}' holds other rows", ("schema",))
    return open_writer(place, units, commit_seconds=commit_seconds)


def units_of(
    place: Storage, header: Header | None = None, claim: UnitsClaim = WHOLE
) -> UnitsWriter:
    """What writes whole units of a store, which `header` begins where there is none.

    Raises:
        ArgumentError: the store is written in another way, by one writer. Nothing was written.
    """
    units = format_of(place).units(place, header, claim)
    if units.header.commits is None and not units.header.sealed:
        units.close()
        raise ArgumentError(
            f"'{place}' was begun by one writer (fostore.create, a generation without shard=), and keeps its rows in "
            "another way: go on with it as it was begun (exists='resume'), or plan another one"
        )
    return units


def open_writer(
    place: Storage,
    units: UnitsWriter,
    request: Request | None = None,
    *,
    commit_seconds: float = 1.0,
    max_kl: float | None = None,
) -> Writer:
    """A writer over units that are committed whole; no lock is held."""
    path: Any = getattr(place, "path", place.url)  # what a user sees of a folder of this machine
    return Writer(
        Target(path),
        units,
        None,
        commit_seconds=commit_seconds,
        sides={} if request is None else request.sides,
        claim=units.claim,
        max_kl=max_kl,
    )


def planned(place: Storage, request: Request) -> Header:
    """The header of a new store of whole units.

    Raises:
        ArgumentError: the number of samples is not known.
    """
    if request.num_samples is None:
        raise ArgumentError(
            f"{place} is written in whole units, and needs num_samples: a stream of unknown length goes to a .zarr "
            "folder of this machine, and fostore.convert copies that"
        )
    return request.header(place, is_capped=False)


def _taken(place: Storage) -> StoreExistsError:
    return StoreExistsError(f"'{place}' exists; exists='resume' goes on with it")


def _check_same(place: Storage, request: Request, units: UnitsWriter) -> None:
    header = units.header
    request.check_same(str(place), header, cure=identity.JOINED)
    meta = check_object(request.meta)
    for name, planned in header.counts.items():
        asked = getattr(request, name)
        if asked is not None and asked != planned:
            difference = f"{name} is {planned} in the store and {asked} was asked for"
            identity.refuse(place, [difference], identity.JOINED)
    if request.identity is not None and header.identity:
        made_from = check_object(request.identity, "identity")
        differences = identity.differences(header.identity, made_from)
        identity.refuse(place.url, differences, identity.JOINED)
    if {**header.meta, **meta} != header.meta and not header.sealed:
        units.replan(replace(header, meta={**header.meta, **meta}, updated=now()))
