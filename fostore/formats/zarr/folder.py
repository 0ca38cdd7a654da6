"""A Zarr store as it lies in its folder: where things are, and what they say is committed (spec/zarr.md).

Everything is read as a stranger's: no link is followed, sizes are bounded, and only our own layout is
taken. What a run in progress needs lies inside the column folders, where plain Zarr readers do not look.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fostore import disk
from fostore.errors import (
    ArgumentError,
    DamageError,
    FormatError,
    StoreNotFoundError,
    UnsafeError,
    UnsupportedError,
)
from fostore.formats import Run
from fostore.formats.zarr.layout import HASHES, Hashes, Shards, parse_array
from fostore.places.litter import is_litter
from fostore.schema import geometry, jsontext
from fostore.schema.header import MAX_TEXT, Header
from fostore.schema.ranges import Range, Ranges
from fostore.schema.row import expect

if TYPE_CHECKING:
    from fostore.formats.zarr.journal import Journal

METADATA = "zarr.json"
JOURNAL = ".fostore.journal."
TAIL = ".tail."
MAX_METADATA = MAX_TEXT
MAX_JOURNAL = 1 << 30
_GROUP_KEYS = ("zarr_format", "node_type", "attributes", "consolidated_metadata")
_READABLE_BYTES = 64 << 10
_ATTEMPTS = 5


@dataclass(frozen=True, slots=True)
class Folder:
    """The paths of one store."""

    path: Path
    header: Header
    shards: tuple[Shards, ...]
    hashes: Hashes

    @classmethod
    def of(cls, path: Path, header: Header) -> Folder:
        """The folder of a store with this header.

        Raises:
            ArgumentError: a column has the name that the block hashes need.
        """
        if any(column.name == HASHES for column in header.schema.columns):
            raise ArgumentError(f"a column cannot be called {HASHES!r}: that is where hashes lie")
        shards = tuple(Shards.of(column, header) for column in header.schema.columns)
        return cls(path, header, shards, Hashes.of(header))

    def array(self, index: int) -> Path:
        """The folder of a column."""
        return self.path / self.shards[index].column.name

    def shard(self, index: int, unit: int) -> Path:
        """Where a sealed unit of a column lies."""
        return self.array(index) / self.shards[index].key(unit)

    def tail(self, index: int, unit: int) -> Path:
        """Where the rows of a unit lie before it is sealed."""
        return self.array(index) / f"{TAIL}{unit}"

    def journal(self, owner: str) -> Path:
        """The journal of a writer."""
        return self.array(0) / f"{JOURNAL}{owner}"

    @property
    def hash_array(self) -> Path:
        """The folder of the block hashes."""
        return self.path / HASHES

    def hash_chunk(self, unit: int) -> Path:
        """The block hashes of a unit."""
        return self.hash_array / self.hashes.key(unit)

    def arrays(self) -> list[tuple[Path, Shards | Hashes]]:
        """Every array of the store with its layout: the columns, then the hashes."""
        columns: list[tuple[Path, Shards | Hashes]] = [
            (self.array(i), layout) for i, layout in enumerate(self.shards)
        ]
        return [*columns, (self.hash_array, self.hashes)]

    def unit_stop(self, unit: int) -> int:
        """The end of a unit under the plan."""
        return geometry.unit_range(unit, self.header.unit_rows, self.header.num_samples)[1]


@dataclass(frozen=True, slots=True)
class State:
    """What a folder said at one moment.

    `shapes` are the rows that each column's array shows, `num_blocks` those of the hashes, `runs`
    what the journals hold. `problems` is what contradicts itself in journals.
    """

    folder: Folder
    shapes: tuple[int, ...]
    num_blocks: int
    journals: tuple[tuple[Path, Journal], ...]
    runs: tuple[Run, ...]
    problems: tuple[tuple[str, Range | None], ...]

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
        return Ranges.of((0, self.published), *((run.start, run.stop) for run in self.runs))

    def open_units(self) -> dict[int, list[Run]]:
        """The units whose rows are not all published, with all their committed runs in order.

        Published rows of such a unit that no run of the journal covers are a run without checksum.
        """
        unit_rows = self.header.unit_rows
        units: dict[int, list[Run]] = {}
        for run in self.runs:
            units.setdefault(run.start // unit_rows, []).append(run)
        found = {}
        for unit, runs in sorted(units.items()):
            if runs[-1].stop > self.published:
                found[unit] = self.with_published(unit, runs)
        return found

    def with_published(self, unit: int, runs: list[Run]) -> list[Run]:
        """The runs of a unit, and its published rows that none of them covers."""
        covered = Ranges.of(*((run.start, run.stop) for run in runs))
        first, last = geometry.unit_range(unit, self.header.unit_rows, self.published)
        gaps = [Run(start, stop, None) for start, stop in covered.missing(last, first)]
        return sorted([*runs, *gaps], key=lambda run: run.start)


def load(path: Path, *, strict: bool) -> State:
    """Read a store's metadata and journals; lists no unit, opens no shard.

    Args:
        path: the store.
        strict: a damaged journal is an error; otherwise what is sound of it counts.

    Raises:
        StoreNotFoundError, FormatError, UnsupportedError, UnsafeError: as `fostore.open` has it.
        DamageError: `strict`, and a journal contradicts itself.
    """
    try:
        if not stat.S_ISDIR(os.stat(path).st_mode):
            raise FormatError(f"{path} is a file; a Zarr store is a folder")
    except FileNotFoundError as error:
        raise StoreNotFoundError(f"there is no store at {str(path)!r}") from error
    for attempt in range(_ATTEMPTS):
        text = read_header(path)
        try:
            return _load_once(path, text, strict=strict)
        except RecursionError as error:
            raise FormatError(f"the metadata of {path} is nested too deeply") from error
        except FormatError:
            # A writer may have published another header between two of our reads.
            if attempt == _ATTEMPTS - 1 or text == read_header(path):
                raise
    raise AssertionError("the last attempt returns or raises")  # pragma: no cover


def read_file(path: Path, limit: int) -> bytes:
    """A small file as a whole; no link, no pipe, nothing beyond `limit` bytes.

    Raises:
        FileNotFoundError: there is none.
        UnsafeError: it is a link, no regular file, or too large.
    """
    if not stat.S_ISREG(os.lstat(path).st_mode):
        raise disk.stranger(path, "file")
    fd = disk.open_file(path)
    try:
        size = os.fstat(fd).st_size
        if size > limit:
            raise UnsafeError(f"{path} has {size:,} bytes, expected at most {limit:,}")
        return bytes(disk.read_at(fd, 0, size))
    finally:
        os.close(fd)


def check_directory(path: str | Path) -> None:
    """Refuse a folder of the store that is a link or no folder; none there raises FileNotFoundError."""
    if not stat.S_ISDIR(os.lstat(path).st_mode):
        raise disk.stranger(path, "folder")


def find_chunk(array: Path, key: str) -> Path | None:
    """The file of a chunk of an array, or None where there is none.

    Raises:
        UnsafeError: a link, or something else that no store has, on the way.
    """
    name = os.fspath(array)
    mode = 0
    for part in key.split("/"):  # text, not paths: this runs once a unit before a first batch
        if mode and not stat.S_ISDIR(mode):
            raise disk.stranger(name, "folder")
        name = f"{name}/{part}"
        try:
            mode = os.lstat(name).st_mode
        except FileNotFoundError:
            return None
    if not stat.S_ISREG(mode):
        raise disk.stranger(name, "file")
    return Path(name)


def plain_names(folder: str, *, folders: bool) -> set[str]:
    """The names in a folder that are folders, or regular files; links are neither.

    One call for a whole array: looking at each name costs more than mapping its file.

    Raises:
        UnsafeError: the folder itself is a link.
    """
    try:
        check_directory(folder)
    except FileNotFoundError:
        return set()
    with os.scandir(folder) as entries:
        return {
            entry.name
            for entry in entries
            if (entry.is_dir if folders else entry.is_file)(follow_symlinks=False)
        }


def is_there(path: Path) -> bool:
    """Whether a regular file lies at `path`; a link is refused."""
    try:
        mode = os.lstat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return False
    if not stat.S_ISREG(mode):
        raise disk.stranger(path, "file")
    return True


def group_metadata(header: Header) -> bytes:
    """The zarr.json of the group, which carries the header; indented while it is short enough for people."""
    group = {"zarr_format": 3, "node_type": "group", "attributes": header.to_json()}
    text = jsontext.dumps(group)
    readable = jsontext.dumps(group, indent=2) if len(text) < _READABLE_BYTES else text
    return readable if len(readable) < MAX_METADATA else text  # deep nests are mostly indentation


def names_in(folder: Path) -> list[str]:
    """The names in a folder of the store, without litter of the operating system."""
    with os.scandir(folder) as entries:
        return [entry.name for entry in entries if not is_litter(entry.name)]


def is_temporary(name: str) -> bool:
    """Whether a name is one that a file has before it is whole."""
    return name.startswith(".") and name.endswith(".tmp")


def unit_of(name: str) -> int | None:
    """The unit that a file name says, in the one spelling that it has."""
    plain = name.isascii() and name.isdecimal() and len(name) < 20
    return int(name) if plain and str(int(name)) == name else None


def unit_names(array: Path) -> tuple[set[int], list[str]]:
    """The units that have something in an array's folder, and the names there that are no units.

    Raises:
        UnsafeError: the folder is a link.
    """
    chunks = array / "c"
    try:
        check_directory(chunks)
    except FileNotFoundError:
        return set(), []
    named = {name: unit_of(name) for name in names_in(chunks)}
    units = {unit for unit in named.values() if unit is not None}
    return units, [name for name, unit in named.items() if unit is None]


def _load_once(path: Path, text: bytes, *, strict: bool) -> State:
    folder = Folder.of(path, parse_header(text, path / METADATA))
    header = folder.header
    where = path / METADATA
    for array, _ in folder.arrays():
        try:
            check_directory(array)
        except FileNotFoundError as error:
            raise FormatError(
                f"{where} names the array {array.name!r}, which is not there"
            ) from error
    # The journal before the shapes: rows move from the one to the other and never back.
    journals, problems = ([], []) if header.sealed else _load_journals(folder, strict=strict)
    sizes = []
    for array, layout in folder.arrays():
        metadata = array / METADATA
        try:
            value = jsontext.loads(read_file(metadata, MAX_METADATA), str(metadata))
        except FileNotFoundError as error:
            raise FormatError(f"{metadata} is missing") from error
        sizes.append(parse_array(value, layout, str(metadata)))
    *shapes, num_blocks = sizes
    _check_sizes(folder, shapes, num_blocks)
    runs = sorted((run for _, found in journals for run in found.runs), key=lambda run: run.start)
    sound: list[Run] = []
    for run in runs:
        if sound and run.start < sound[-1].stop:
            message = f"the journals of {path} both have rows {run.start} to {sound[-1].stop - 1}"
            if strict:
                raise DamageError(message, ((run.start, run.stop),))
            problems.append((message, (run.start, run.stop)))
            continue
        sound.append(run)
    return State(folder, tuple(shapes), num_blocks, tuple(journals), tuple(sound), tuple(problems))


def read_header(path: Path) -> bytes:
    """The text that holds the header of the store at `path`.

    Raises:
        FormatError: there is none.
    """
    try:
        return read_file(path / METADATA, MAX_METADATA)
    except FileNotFoundError as error:
        raise FormatError(
            f"{path} is not a store: it has no {METADATA} (Zarr of version 3, as fostore writes it)"
        ) from error


def parse_header(text: bytes, where: Path) -> Header:
    """The header in the metadata of a group."""
    group = jsontext.loads(text, str(where))
    if expect(group, "zarr_format", int, str(where)) != 3 or group.get("node_type") != "group":
        raise FormatError(f"{where} is not the metadata of a Zarr v3 group")
    unknown = sorted(
        key
        for key, value in group.items()
        if key not in _GROUP_KEYS
        and not (isinstance(value, dict) and value.get("must_understand") is False)
    )
    if unknown:
        raise UnsupportedError(f"{where} needs {unknown!r:.80}, which this release does not have")
    header = Header.from_json(expect(group, "attributes", dict, str(where)), str(where))
    if any(column.name == HASHES for column in header.schema.columns):
        raise FormatError(f"{where}: a column is called {HASHES!r}, where the hashes lie")
    return header


def _load_journals(
    folder: Folder, *, strict: bool
) -> tuple[list[tuple[Path, Journal]], list[tuple[str, Range | None]]]:
    from fostore.formats.zarr import journal  # a sealed store has none, and opens without this
    from fostore.formats.zarr.journal import JournalHeader

    journals = []
    problems: list[tuple[str, Range | None]] = []
    for name in sorted(names_in(folder.array(0))):
        if not name.startswith(JOURNAL):
            continue
        path = folder.array(0) / name
        try:
            data = read_file(path, MAX_JOURNAL)
        except FileNotFoundError:
            continue  # the writer has finished since
        try:
            found = journal.parse(data, str(path), folder.header.num_samples, strict=strict)
            owner = name.removeprefix(JOURNAL)
            if found.header != JournalHeader.of(folder.header, owner):
                raise DamageError(f"{path} belongs to another store, schema, geometry or owner")
        except (DamageError, FormatError) as error:
            if strict:
                raise
            problems.append((str(error), None))
            continue
        journals.append((path, found))
        problems += found.problems
    return journals, problems


def _check_sizes(folder: Folder, shapes: list[int], num_blocks: int) -> None:
    header = folder.header
    names = [layout.column.name for layout in folder.shards]
    told = ", ".join(f"{name} {rows}" for name, rows in zip(names, shapes, strict=True))
    if header.sealed and set(shapes) != {header.num_samples}:
        raise FormatError(
            f"{folder.path} is sealed with {header.num_samples} rows, and its arrays show: {told}"
        )
    if header.num_samples is not None and max(shapes) > header.num_samples:
        raise FormatError(
            f"{folder.path} plans {header.num_samples} rows, and its arrays show: {told}"
        )
    if header.sealed and num_blocks != -(-max(shapes) // header.block_rows):
        raise FormatError(
            f"{folder.hash_array}: hashes of {num_blocks} blocks for {max(shapes)} rows"
        )
