"""Beginning a Zarr store, and going on with one: what a kill left behind is healed here."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from fostore import disk
from fostore.errors import ArgumentError, DamageError, StoreExistsError
from fostore.formats import Run
from fostore.formats.claim import MAIN, WHOLE, Claim
from fostore.formats.zarr.folder import METADATA, Folder
from fostore.formats.zarr.journal import JournalHeader
from fostore.formats.zarr.state import group_metadata, load
from fostore.formats.zarr.tails import clean
from fostore.formats.zarr.units import ZarrUnits
from fostore.formats.zarr.writer import ZarrWriter
from fostore.places.local import Local
from fostore.schema.header import Header
from fostore.schema.ranges import Ranges


def create(path: Path, header: Header) -> ZarrWriter:
    """Make an empty store at `path`: built beside, synced, renamed."""
    if os.path.lexists(path):
        raise StoreExistsError(f"{str(path)!r} exists")
    if header.sealed:
        raise ArgumentError("a new store is not sealed")
    # Beside, and renamed when it is whole: no kill leaves half a store under its name.
    beside = disk.unfinished(path)
    disk.remove(beside)
    folder = Folder.of(Local(beside), header)
    text = group_metadata(header)
    try:
        for layout in folder.layouts:
            array = beside / layout.name
            disk.make_folders(array)
            disk.write_whole(array / METADATA, layout.text(0))
        disk.write_whole(folder.journal(MAIN), JournalHeader.of(header, MAIN).pack())
        disk.write_whole(beside / METADATA, text)
        disk.rename(beside, path)
    except BaseException:
        with suppress(OSError):
            disk.remove(beside)
        raise
    disk.sync_directory(path.parent)
    return ZarrWriter(load(Local(path), strict=True), Ranges(), ())


def resume(path: Path, claim: Claim = WHOLE) -> ZarrWriter | ZarrUnits:
    """Open a store for writing and heal what a kill left in the units claimed.

    That is torn records, half-sealed units, leftovers, and shapes where all is claimed.

    Raises:
        DamageError: the journal is gone or contradicts itself.
        ArgumentError: a part of a sealed store is claimed.
    """
    state = load(Local(path), strict=True)
    folder, header = state.folder, state.header
    if header.commits is not None:
        return ZarrUnits(Local(path), claim)
    if header.sealed:
        claim.check_whole(f"going on with {path}, which is sealed,")
    # The journal of who holds all units is there from the beginning to the end, whoever else writes.
    elif MAIN not in state.journals:
        raise DamageError(
            f"{folder.array(0)} has no journal, so nobody can tell which rows beyond the first "
            f"{state.published} are committed; was the store copied without its hidden files?"
        )
    journal = state.journals.get(claim.owner)
    own = {run.start for run in journal.runs} if journal else set()
    # Units below are sealed: what a journal still says of them is of no use.
    full = state.published // header.unit_rows * header.unit_rows
    sealed, runs = [(0, full)], []
    units: dict[int, list[Run]] = {}
    for run in state.runs:
        if run.start >= full:
            units.setdefault(run.start // header.unit_rows, []).append(
                run if run.start in own else replace(run, grows=False)
            )
    if state.published > full:
        units.setdefault(full // header.unit_rows, [])
    for unit, recorded in sorted(units.items()):
        if not claim.holds(unit):
            continue
        start, stop = unit * header.unit_rows, (unit + 1) * header.unit_rows
        rows = state.with_published(unit, recorded)
        if Ranges.of(*((r.start, r.stop) for r in rows)).covers(start, stop) and all(
            _is_sealed(folder, index, unit) for index in range(len(folder.shards))
        ):
            sealed.append((start, stop))
        else:
            runs += rows
    kept = {unit for unit, recorded in units.items() if recorded}
    clean(folder, claim, keep_units=None if header.sealed else kept)
    writer = ZarrWriter(state, claim.rows(header.unit_rows, Ranges.of(*sealed)), tuple(runs), claim)
    try:
        writer.heal()
    except BaseException:
        writer.close()
        raise
    return writer


def _is_sealed(folder: Folder, index: int, unit: int) -> bool:
    """Whether a column of a full unit lies in its shard for good."""
    layout, size = folder.shards[index], folder.place.size
    full = layout.shard_bytes(folder.header.unit_rows)
    return size(layout.tail(unit)) is None and size(layout.key(unit)) == full
