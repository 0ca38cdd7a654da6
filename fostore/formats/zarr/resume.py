"""Beginning a Zarr store, and going on with one: what a kill left behind is healed here."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from fostore import disk
from fostore.errors import ArgumentError, DamageError, StoreExistsError
from fostore.formats import Run
from fostore.formats.zarr.folder import METADATA, Folder
from fostore.formats.zarr.journal import JournalHeader
from fostore.formats.zarr.state import group_metadata, load
from fostore.formats.zarr.tails import clean
from fostore.formats.zarr.writer import OWNER, ZarrWriter
from fostore.places.local import Local
from fostore.schema.header import Header
from fostore.schema.ranges import Ranges


def create(path: Path, header: Header) -> ZarrWriter:
    """Make an empty store at `path`: built beside, synced, renamed."""
    if os.path.lexists(path):
        raise StoreExistsError(f"{str(path)!r} exists")
    if header.sealed:
        raise ArgumentError("a new store is not sealed")
    beside = disk.unfinished(path)
    disk.remove(beside)
    folder = Folder.of(Local(beside), header)
    text = group_metadata(header)
    try:
        for layout in folder.layouts:
            array = beside / layout.name
            disk.make_folders(array)
            disk.write_whole(array / METADATA, layout.text(0))
        disk.write_whole(folder.journal(OWNER), JournalHeader.of(header, OWNER).pack())
        disk.write_whole(beside / METADATA, text)
        disk.rename(beside, path)
    except BaseException:
        with suppress(OSError):
            disk.remove(beside)
        raise
    disk.sync_directory(path.parent)
    return ZarrWriter(load(Local(path), strict=True), Ranges(), ())


def resume(path: Path) -> ZarrWriter:
    """Open a store for writing and heal what a kill left: torn records, half-sealed units, shapes, leftovers.

    Raises:
        DamageError: the journal is gone or contradicts itself.
    """
    state = load(Local(path), strict=True)
    folder, header = state.folder, state.header
    if not header.sealed and OWNER not in state.journals:
        raise DamageError(
            f"{folder.array(0)} has no journal, so nobody can tell which rows beyond the first "
            f"{state.published} are committed; was the store copied without its hidden files?"
        )
    full = state.published // header.unit_rows * header.unit_rows
    sealed, runs = [(0, full)], []
    units: dict[int, list[Run]] = {}
    for run in state.runs:
        if run.start >= full:
            units.setdefault(run.start // header.unit_rows, []).append(run)
    if state.published > full:
        units.setdefault(full // header.unit_rows, [])
    for unit, found in sorted(units.items()):
        start, stop = unit * header.unit_rows, (unit + 1) * header.unit_rows
        rows = state.with_published(unit, found)
        if Ranges.of(*((r.start, r.stop) for r in rows)).covers(start, stop) and all(
            _is_sealed(folder, index, unit) for index in range(len(folder.shards))
        ):
            sealed.append((start, stop))
        else:
            runs += rows
    clean(folder, keep_units=None if header.sealed else {u for u, found in units.items() if found})
    writer = ZarrWriter(state, Ranges.of(*sealed), tuple(runs))
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
