"""What a Zarr store said at one moment: its header, the shapes of its arrays, its journals (spec/zarr.md).

Only our own layout is taken. The order of the reads is what makes a writer at work harmless: the header, then the
journals, then the shapes, for rows move from the journals to the shapes and never back.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fostore.errors import DamageError, FormatError, StoreNotFoundError, UnsupportedError
from fostore.formats import Run
from fostore.formats.zarr.folder import JOURNAL, MAX_METADATA, METADATA, Folder, names_in
from fostore.formats.zarr.layout import HASHES, parse_array
from fostore.places.place import Place
from fostore.schema import geometry, jsontext
from fostore.schema.header import Header
from fostore.schema.ranges import Range, Ranges
from fostore.schema.row import expect

if TYPE_CHECKING:
    from fostore.formats.zarr.journal import Journal

_MAX_JOURNAL = 1 << 30
_GROUP_KEYS = ("zarr_format", "node_type", "attributes", "consolidated_metadata")
_READABLE_BYTES = 64 << 10
_ATTEMPTS = 5


@dataclass(frozen=True, slots=True)
class State:
    """What a store said at one moment.

    `text` is that of its header. `shapes` are the rows that each column's array shows, `num_blocks` those of the
    hashes, `runs` what the journals of its owners hold. `problems` is what contradicts itself in journals.
    """

    folder: Folder
    text: bytes
    shapes: tuple[int, ...]
    num_blocks: int
    journals: Mapping[str, Journal]
    runs: tuple[Run, ...]
    problems: tuple[tuple[str, Range | None], ...]
    whole: Ranges | None = None
    """Rows of the units that have a record, where records commit: then nothing is published before the end."""

    @property
    def header(self) -> Header:
        """The attributes of the store."""
        return self.folder.header

    @property
    def published(self) -> int:
        """Rows from 0 on that lie in sealed units and that plain Zarr readers see."""
        return min(self.shapes)

    @property
    def committed(self) -> Ranges:
        """Every committed row."""
        if self.whole is not None:
            return self.whole
        return Ranges.of((0, self.published), *((run.start, run.stop) for run in self.runs))

    def open_units(self) -> dict[int, list[Run]]:
        """The units whose rows are not all published, with all their committed runs in order.

        Published rows of such a unit that no run of the journal covers are a run without checksum.
        """
        unit_rows = self.header.unit_rows
        units: dict[int, list[Run]] = {}
        for run in self.runs:
            units.setdefault(run.start // unit_rows, []).append(run)
        return {
            unit: self.with_published(unit, runs)
            for unit, runs in sorted(units.items())
            if runs[-1].stop > self.published
        }

    def with_published(self, unit: int, runs: list[Run]) -> list[Run]:
        """The runs of a unit, and its published rows that none of them covers."""
        covered = Ranges.of(*((run.start, run.stop) for run in runs))
        first, last = geometry.unit_range(unit, self.header.unit_rows, self.published)
        gaps = [Run(start, stop, None) for start, stop in covered.missing(last, first)]
        return sorted([*runs, *gaps], key=lambda run: run.start)


def load(place: Place, *, strict: bool) -> State:
    """Read a store's metadata and journals; lists no unit, opens no shard.

    Args:
        place: the store.
        strict: a damaged journal is an error; otherwise what is sound of it counts.

    Raises:
        StoreNotFoundError, FormatError, UnsupportedError, UnsafeError: as `fostore.open` has it.
        DamageError: `strict`, and a journal contradicts itself.
    """
    text = read_header(place)
    for left in reversed(range(_ATTEMPTS)):
        try:
            return _load_once(place, text, strict=strict)
        except RecursionError as error:
            raise FormatError(f"the metadata of {place} is nested too deeply") from error
        except FormatError:
            # A writer may have published another header between two of our reads.
            before, text = text, read_header(place)
            if not left or text == before:
                raise
    raise AssertionError("the last attempt returns or raises")  # pragma: no cover


def _load_once(place: Place, text: bytes, *, strict: bool) -> State:
    where = f"{place.url}/{METADATA}"
    folder = Folder.of(place, parse_header(text, where))
    header = folder.header
    if header.commits is not None:
        return _load_records(folder, text)
    journals: dict[str, Journal] = {}
    problems: list[tuple[str, Range | None]] = []
    if not header.sealed:
        journals, problems = _load_journals(folder, strict=strict)
    sizes = []
    for layout in folder.layouts:
        metadata = f"{layout.name}/{METADATA}"
        try:
            array = place.read(metadata, MAX_METADATA)
        except FileNotFoundError as error:
            raise _missing(place, layout.name) from error
        sizes.append(parse_array(array, layout, f"{place.url}/{metadata}"))
    *shapes, num_blocks = sizes
    _check_sizes(folder, shapes, num_blocks)
    runs = [run for journal in journals.values() for run in journal.runs]
    sound: list[Run] = []
    for run in sorted(runs, key=lambda run: run.start):
        if sound and run.start < sound[-1].stop:
            message = f"the journals of {place} both have rows {run.start} to {sound[-1].stop - 1}"
            if strict:
                raise DamageError(message, ((run.start, run.stop),))
            problems.append((message, (run.start, run.stop)))
            continue
        sound.append(run)
    return State(folder, text, tuple(shapes), num_blocks, journals, tuple(sound), tuple(problems))


def _load_records(folder: Folder, text: bytes) -> State:
    """Of a store whose units are written whole; its arrays are of no account before the end."""
    from fostore.formats.zarr import records  # as `_load_journals`

    empty = (0,) * len(folder.shards)
    rows = records.rows_of(folder, records.committed_units(folder))
    if read_header(folder.place) != text:  # finished meanwhile, and then the records go
        raise FormatError(f"{folder.place} was finished while it was opened; open it again")
    return State(folder, text, empty, 0, {}, (), (), rows)


def _missing(place: Place, array: str) -> FormatError:
    """Says whether an array is missing as a whole, or what it says of itself."""
    if place.version(array) is None:
        return FormatError(f"{place}/{METADATA} names the array {array!r}, which is not there")
    return FormatError(f"{place}/{array}/{METADATA} is missing")


def read_header(place: Place) -> bytes:
    """The text that holds the header of a store.

    Raises:
        StoreNotFoundError, FormatError: there is none.
    """
    try:
        return place.read(METADATA, MAX_METADATA)
    except NotADirectoryError as error:
        if place.version() is None:  # it would lie in a file
            raise
        raise FormatError(f"{place} is a file; a Zarr store is a folder") from error
    except FileNotFoundError as error:
        if place.version() is None:
            raise StoreNotFoundError(f"there is no store at {str(place)!r}") from error
        raise FormatError(
            f"{place} is not a store: it has no {METADATA} (Zarr of version 3, as fostore writes it)"
        ) from error


def parse_header(text: bytes, where: str) -> Header:
    """The header in the metadata of a group."""
    group = jsontext.loads(text, where)
    if expect(group, "zarr_format", int, where) != 3 or group.get("node_type") != "group":
        raise FormatError(f"{where} is not the metadata of a Zarr v3 group")
    unknown = [
        key
        for key, value in group.items()
        if key not in _GROUP_KEYS
        and not (isinstance(value, dict) and value.get("must_understand") is False)
    ]
    if unknown:
        unknown.sort()
        raise UnsupportedError(f"{where} needs {unknown!r:.80}, which this release does not have")
    header = Header.from_json(expect(group, "attributes", dict, where), where)
    if HASHES in [column.name for column in header.schema.columns]:
        raise FormatError(f"{where}: a column is called {HASHES!r}, where the hashes lie")
    return header


def group_metadata(header: Header) -> bytes:
    """The zarr.json of the group, which carries the header; indented while it is short enough for people."""
    group = {"zarr_format": 3, "node_type": "group", "attributes": header.to_json()}
    text = jsontext.dumps(group)
    readable = jsontext.dumps(group, indent=2) if len(text) < _READABLE_BYTES else text
    return readable if len(readable) < MAX_METADATA else text  # deep nests are mostly indentation


def _load_journals(
    folder: Folder, *, strict: bool
) -> tuple[dict[str, Journal], list[tuple[str, Range | None]]]:
    from fostore.formats.zarr import journal  # a sealed store has none, and opens without this
    from fostore.formats.zarr.journal import JournalHeader

    place, array = folder.place, folder.shards[0].name
    try:
        names = names_in(place, array)
    except FileNotFoundError as error:
        raise _missing(place, array) from error
    except UnsupportedError as error:
        raise UnsupportedError(
            f"{error}, and the store is not finished: its journals, which say what rows are committed, cannot be "
            "looked up. Open it where it is written, or from an object store; or finish it, and open it then"
        ) from error
    journals = {}
    problems: list[tuple[str, Range | None]] = []
    for name in sorted(name for name in names if name.startswith(JOURNAL)):
        owner, path = name.removeprefix(JOURNAL), f"{place}/{array}/{name}"
        try:
            data = place.read(f"{array}/{name}", _MAX_JOURNAL)
        except FileNotFoundError:
            continue  # the writer has finished since
        try:
            parsed = journal.parse(data, path, folder.header.num_samples, strict=strict)
            if parsed.header != JournalHeader.of(folder.header, owner):
                raise DamageError(f"{path} belongs to another store, schema, geometry or owner")
        except (DamageError, FormatError) as error:
            if strict:
                raise
            problems.append((str(error), None))
            continue
        journals[owner] = parsed
        problems += parsed.problems
    return journals, problems


def _check_sizes(folder: Folder, shapes: list[int], num_blocks: int) -> None:
    header = folder.header

    def shown() -> str:
        return ", ".join(f"{s.name} {rows}" for s, rows in zip(folder.shards, shapes, strict=True))

    if header.sealed and set(shapes) != {header.num_samples}:
        raise FormatError(
            f"{folder.place} is sealed with {header.num_samples} rows, and its arrays show: {shown()}"
        )
    if header.num_samples is not None and max(shapes) > header.num_samples:
        raise FormatError(
            f"{folder.place} plans {header.num_samples} rows, and its arrays show: {shown()}"
        )
    if header.sealed and num_blocks != -(-max(shapes) // header.block_rows):
        raise FormatError(
            f"{folder.place}/{HASHES}: hashes of {num_blocks} blocks for {max(shapes)} rows"
        )
