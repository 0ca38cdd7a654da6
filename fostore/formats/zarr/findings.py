"""What is wrong with the files of a Zarr store: missing, cut, torn, unexpected or contradictory."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import closing, suppress

from fostore.errors import DamageError, FormatError, UnsupportedError
from fostore.formats import Finding, Run
from fostore.formats.zarr.folder import (
    JOURNAL,
    METADATA,
    Folder,
    is_temporary,
    locate,
    names_in,
    read_hashes,
    read_offsets,
    unit_of,
    units_in,
)
from fostore.formats.zarr.layout import OFFSETS, TAIL
from fostore.formats.zarr.records import RECORDS
from fostore.formats.zarr.state import State
from fostore.places.litter import is_litter
from fostore.places.place import Place
from fostore.schema import geometry
from fostore.schema.ranges import Ranges, describe
from fostore.schema.row import TOKEN

_SHOWN = 5


def findings(state: State) -> Iterator[Finding]:
    """Everything structural that contradicts what the store says of itself; reads no rows.

    What a writer at work leaves by design (a journal, tails, a torn last record) is no finding.
    """
    folder, place = state.folder, state.folder.place
    sealed = state.header.sealed
    if state.whole is not None:
        yield from _whole_units(state)
        return
    try:
        place.names()
    except UnsupportedError as error:
        message = f"{error}: its rows are looked at, what else may lie beside them is not"
        yield Finding(os.path.basename(place.url), None, message, "warning")
        return
    expected = {METADATA, *(layout.name for layout in folder.layouts)}
    if state.header.schema.row_axis == TOKEN:  # a sealed store that goes on has those of before
        expected.add(OFFSETS)
    yield from _strangers(place, "", expected, sealed)
    for message, rows in state.problems:
        yield Finding("journal", rows, message)
    if not sealed and not state.journals and not state.problems:
        yield Finding(
            "journal",
            None,
            f"{place}/{folder.shards[0].name} has no journal: rows that were committed and not sealed "
            "are lost",
        )
    in_progress = state.open_units()
    for index in range(len(folder.shards)):
        yield from _array_files(state, index)
        yield from _column(state, index, in_progress)
    yield from _strangers(place, folder.hashes.name, {METADATA, "c"}, sealed)
    yield from _hashes(state, in_progress)
    if folder.offsets is not None:
        yield from _offsets(folder)
    yield from _litter(place, [layout.name for layout in folder.layouts])


def _whole_units(state: State) -> Iterator[Finding]:
    """Whether the files of every unit with a record are those that it names, and nothing else lies about."""
    from fostore.formats.zarr.checked import Checked  # of a sealed store there are no records

    folder, place, unit_rows = state.folder, state.folder.place, state.header.unit_rows
    arrays = {*(array.name for array in folder.layouts), OFFSETS}
    yield from _strangers(place, "", {METADATA, *arrays}, False)
    for at, array in enumerate(folder.layouts):
        with suppress(FileNotFoundError):  # before the first unit is written there are none
            beside = {METADATA, "c", *([RECORDS] if at == 0 else [])}
            yield from _strangers(place, array.name, beside, False)
    checked = Checked(folder)
    for start, stop in state.whole or ():
        for unit in checked.broken(range(start // unit_rows, -(-stop // unit_rows))):
            rows = geometry.unit_range(unit, unit_rows, state.header.num_samples)
            message = (
                f"{describe([rows])} do not lie as the record of their unit says: another writer or a tool changed "
                "them, or they were lost; `fostore finish` gives them up, to be written again"
            )
            yield Finding(f"unit {unit}", rows, message)
    for name, _ in checked.mends:
        message = (
            f"{place}/{name} has not the hashes of its unit's record; `fostore finish` mends it"
        )
        yield Finding("block hashes", None, message, "warning")


def _array_files(state: State, index: int) -> Iterator[Finding]:
    place, array = state.folder.place, state.folder.shards[index].name
    expected = {METADATA, "c"}
    if not state.header.sealed:
        full = state.published // state.header.unit_rows
        for name in names_in(place, array):
            if index == 0 and name.startswith(JOURNAL):
                expected.add(name)
            unit = unit_of(name.removeprefix(TAIL)) if name.startswith(TAIL) else None
            if unit is not None and unit >= full:
                expected.add(name)
    yield from _strangers(place, array, expected, state.header.sealed)


def _column(state: State, index: int, in_progress: dict[int, list[Run]]) -> Iterator[Finding]:
    place, header = state.folder.place, state.header
    layout = state.folder.shards[index]
    where = f"column {layout.name}"
    units, problems = _units(place, layout.name)
    yield from problems
    num_units = -(-state.published // header.unit_rows)
    held = Ranges.of(*((unit, unit + 1) for unit in units))
    for first, last in held.missing(num_units):
        rows = first * header.unit_rows, min(last * header.unit_rows, state.published)
        if first == last - 1 and first in in_progress:
            continue  # looked at below, with its tail
        yield Finding(where, rows, f"{where}: {describe([rows])} are missing")
    for unit in sorted(units):
        start = unit * header.unit_rows
        if unit < num_units:
            stop = min(start + header.unit_rows, state.published)
            if unit not in in_progress:
                yield from _shard(state, index, unit, start, stop)
        # Before the store is sealed, a unit may be whole and not published yet.
        elif unit not in in_progress and header.sealed:
            path = f"{place}/{layout.key(unit)}"
            yield Finding(where, None, f"{path} is beyond the last row of the store")
    for unit, runs in in_progress.items():
        yield from _unit_in_progress(state, index, unit, runs)


def _shard(state: State, index: int, unit: int, start: int, stop: int) -> Iterator[Finding]:
    """Whether a sealed unit has its size and its index: flat, row-major, with its checksum."""
    folder, layout = state.folder, state.folder.shards[index]
    where = f"column {layout.name}"
    rows = (start, stop)
    path = f"{folder.place}/{layout.key(unit)}"
    try:
        file = folder.place.open(layout.key(unit))
    except FileNotFoundError:
        yield Finding(where, rows, f"{path} is missing: {describe([rows])}")
        return
    except FormatError as error:
        yield Finding(where, rows, str(error))
        return
    with closing(file):
        size, held = file.size, stop - start
        if not state.header.sealed:
            # Between the seal of a unit that goes on and its publication, the shard holds more.
            held = max(held, (size - layout.index_bytes) // layout.column.row_bytes)
            held = min(held, folder.unit_stop(unit) - start)
        expected = layout.shard_bytes(held)
        if size != expected:
            message = f"{path} has {size:,} bytes, expected {expected:,}: {describe([rows])}"
            yield Finding(where, rows, message)
            return
        at = layout.data_bytes(held)
        for piece in layout.index_pieces(held):
            if file.read(at, len(piece)) != piece:
                message = f"{path}: the index of the shard is damaged; its rows may be sound"
                yield Finding(where, rows, message)
                return
            at += len(piece)


def _unit_in_progress(state: State, index: int, unit: int, runs: list[Run]) -> Iterator[Finding]:
    folder, layout = state.folder, state.folder.shards[index]
    where = f"column {layout.name}"
    try:
        name = locate(folder, index, unit, in_progress=True)
    except FormatError as error:
        yield Finding(where, (runs[0].start, runs[-1].stop), str(error))
        return
    size = (folder.place.size(name) if name is not None else None) or 0
    for run in runs:
        needed = (run.stop - unit * state.header.unit_rows) * layout.column.row_bytes
        if size < needed:
            rows = (run.start, run.stop)
            path = f"{folder.place}/{name or layout.tail(unit)}"
            message = f"{path} has {size:,} bytes, expected {needed:,}: {describe([rows])}"
            yield Finding(where, rows, message)


def _hashes(state: State, in_progress: dict[int, list[Run]]) -> Iterator[Finding]:
    """Whether the block hashes of every sealed unit are there and whole."""
    folder = state.folder
    units, problems = _units(folder.place, folder.hashes.name)
    yield from problems
    num_units = -(-state.published // state.header.unit_rows)
    held = Ranges.of(*((unit, unit + 1) for unit in (*units, *in_progress)))
    for first, last in held.missing(num_units):
        rows = first * state.header.unit_rows, min(last * state.header.unit_rows, state.published)
        message = f"the block hashes of {describe([rows])} are missing; the rows are not"
        yield Finding("block hashes", None, message)
    for unit in sorted(units):
        if unit < num_units and unit not in in_progress:
            try:
                read_hashes(folder, unit)
            except (DamageError, FormatError) as error:
                yield Finding("block hashes", None, str(error))


def _offsets(folder: Folder) -> Iterator[Finding]:
    """Whether the array of where sequences begin is there, and nothing else in its folder."""
    assert folder.offsets is not None
    yield from _strangers(folder.place, OFFSETS, {METADATA, "c"}, True)
    if read_offsets(folder) is None:
        message = (
            f"{folder.place}/{OFFSETS} is missing, cut or lies in another way; it follows from the column "
            "'sequence', and no row is touched"
        )
        yield Finding(OFFSETS, None, message)


def _units(place: Place, array: str) -> tuple[set[int], list[Finding]]:
    """The numbers of the units in an array's folder, and what else is there."""
    try:
        units, others = units_in(place, array)
    except FormatError as error:
        return set(), [Finding(array, None, str(error))]
    problems = [f"{place}/{array}/c/{name} is no part of the store" for name in sorted(others)]
    return units, [Finding(array, None, message) for message in problems]


def _strangers(
    place: Place, folder: str, expected: Iterable[str], sealed: bool
) -> Iterator[Finding]:
    where, path = (folder, f"{place}/{folder}") if folder else (_name(place), str(place))
    for name in sorted(set(names_in(place, folder)) - set(expected)):
        temporary = is_temporary(name)
        if temporary and not sealed:
            continue  # a writer's, at work or killed: the next one removes it
        if temporary or name.startswith((JOURNAL, TAIL, RECORDS)):
            message = f"{path}/{name} was left by a run that is over, and may be removed"
            yield Finding(where, None, message, "warning")
        else:
            yield Finding(where, None, f"{path}/{name} is no part of the store")


def _litter(place: Place, arrays: Iterable[str]) -> Iterator[Finding]:
    """All litter as one finding: a file manager leaves some in every folder."""
    litter: list[str] = []
    for folder in ("", *(f for array in arrays for f in (array, f"{array}/c"))):
        with suppress(FileNotFoundError):
            litter += filter(is_litter, place.names(folder))
    if litter:
        names = sorted(set(litter))
        shown = ", ".join(repr(name) for name in names[:_SHOWN]) + (" ..." * (len(names) > _SHOWN))
        message = (
            f"{len(litter)} files of an operating system or a sync tool lie in {place} ({shown}); they "
            "harm nothing and may be removed"
        )
        yield Finding(_name(place), None, message, "warning")


def _name(place: Place) -> str:
    return os.path.basename(place.url)
