"""Where everything of a Zarr store lies (spec/zarr.md).

What a run in progress needs lies inside the column folders, where plain Zarr readers do not look.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from fostore import disk
from fostore.errors import ArgumentError, DamageError
from fostore.formats.zarr.layout import HASHES, OFFSETS, Hashes, Offsets, Shards
from fostore.places.litter import is_litter
from fostore.places.place import Place
from fostore.schema import geometry
from fostore.schema.header import MAX_TEXT, Header
from fostore.schema.row import Array

METADATA = "zarr.json"
MAX_METADATA = MAX_TEXT
JOURNAL = ".fostore.journal."
_CHUNKS = 64
"""Chunks of offsets that are asked for at once."""


@dataclass(frozen=True, slots=True)
class Folder:
    """A store's arrays, by name in its place; a writer's paths."""

    place: Place
    header: Header
    shards: tuple[Shards, ...]
    hashes: Hashes

    @classmethod
    def of(cls, place: Place, header: Header) -> Folder:
        """The folder of a store with this header.

        Raises:
            ArgumentError: a column has the name that the block hashes need.
        """
        shards = [Shards.of(column, header) for column in header.schema.columns]
        if HASHES in [layout.name for layout in shards]:
            raise ArgumentError(f"a column cannot be called {HASHES!r}: that is where hashes lie")
        return cls(place, header, tuple(shards), Hashes.of(header))

    @property
    def layouts(self) -> tuple[Shards | Hashes, ...]:
        """Every array of the store: the columns, then the hashes."""
        return (*self.shards, self.hashes)

    @property
    def offsets(self) -> Offsets | None:
        """The array of where sequences begin, which a sealed store of token rows has beside those."""
        count = self.header.num_sequences
        return Offsets(count + 1) if self.header.sealed and count is not None else None

    @property
    def path(self) -> Path:
        """The folder, of a place on this machine."""
        return Path(self.place.url)

    def array(self, index: int) -> Path:
        """The folder of a column."""
        return self.path / self.shards[index].name

    def journal(self, owner: str) -> Path:
        """The journal of a writer."""
        return self.array(0) / f"{JOURNAL}{owner}"

    def unit_stop(self, unit: int) -> int:
        """The end of a unit under the plan."""
        return geometry.unit_range(unit, self.header.unit_rows, self.header.num_samples)[1]


def names_in(place: Place, folder: str = "") -> list[str]:
    """The names in a folder of the store, without litter of the operating system."""
    return [name for name in place.names(folder) if not is_litter(name)]


def is_temporary(name: str) -> bool:
    """Whether a name is one that a file has before it is whole."""
    return name.startswith(".") and name.endswith(".tmp")


def unit_of(name: str) -> int | None:
    """The unit that a file name says, in the one spelling that it has."""
    # `int` takes other spellings, and quadratic time for digits without end.
    plain = name.isascii() and name.isdecimal() and len(name) < 20
    return int(name) if plain and str(int(name)) == name else None


def units_in(place: Place, array: str) -> tuple[set[int], list[str]]:
    """The units that have something in an array's folder, and the names there that are no units.

    Raises:
        UnsafeError: the folder is a link.
    """
    try:
        named = {name: unit_of(name) for name in names_in(place, f"{array}/c")}
    except FileNotFoundError:
        return set(), []
    units = {unit for unit in named.values() if unit is not None}
    return units, [name for name, unit in named.items() if unit is None]


def locate(folder: Folder, index: int, unit: int, in_progress: bool) -> str | None:
    """The file that holds the rows of a unit: the tail of a unit in progress, else its shard.

    None where there is neither. A sealed, partial unit that goes on has both: then the tail holds
    all its rows, and the shard those that are published.

    Raises:
        UnsafeError: a link on the way.
    """
    layout = folder.shards[index]
    names = ([layout.tail(unit)] if in_progress else []) + [layout.key(unit)]
    return next((name for name in names if folder.place.size(name) is not None), None)


def read_hashes(folder: Folder, unit: int) -> Array:
    """The block hashes of a unit, uint8 (blocks of a full unit, hashed columns, 32); zero where unknown.

    Raises:
        DamageError: the file was cut.
    """
    layout = folder.hashes
    name = layout.key(unit)
    try:
        data = folder.place.read(name, layout.chunk_bytes)
    except FileNotFoundError:
        # Not sealed yet, or lost: `findings` tells which.
        return np.zeros(layout.chunk_shape, np.uint8)
    return parse_hashes(folder, unit, data)


def read_offsets(folder: Folder) -> Array | None:
    """Where the sequences of a sealed store begin; None where that array is not there as ours are."""
    layout = folder.offsets
    if layout is None:
        return None
    pieces: list[bytes] = []
    try:
        if folder.place.read(f"{OFFSETS}/{METADATA}", MAX_METADATA) != layout.text():
            return None
        # Some at a time: what is there is held, not what is claimed.
        keys = layout.keys()
        while asked := [(key, 0, layout.chunk_bytes) for key in islice(keys, _CHUNKS)]:
            pieces += [data for data, _ in folder.place.read_many(asked)]
    except FileNotFoundError:
        return None
    if any(len(piece) != layout.chunk_bytes for piece in pieces):
        return None
    return np.frombuffer(b"".join(pieces), "<i8")[: layout.count]


def write_offsets(folder: Folder, offsets: Array | None) -> None:
    """Write where sequences begin (None: rows are no tokens), durably, before the header says `sealed`."""
    if offsets is None:
        return
    disk.make_folders(folder.path / OFFSETS / "c")
    for name, data in offsets_files(offsets):
        disk.write_whole(folder.path / name, data)


def offsets_files(offsets: Array) -> Iterator[tuple[str, bytes]]:
    """The files that hold where sequences begin, by name, the metadata last."""
    layout = Offsets(len(offsets))
    for at, key in enumerate(layout.keys()):
        chunk = np.full(layout.chunk, np.iinfo("<i8").min, "<i8")
        held = offsets[at * layout.chunk : (at + 1) * layout.chunk]
        chunk[: len(held)] = held
        yield key, chunk.tobytes()
    yield f"{OFFSETS}/{METADATA}", layout.text()


def parse_hashes(folder: Folder, unit: int, data: bytes) -> Array:
    """The block hashes of a unit, of the bytes of its file; see `read_hashes`."""
    layout = folder.hashes
    if len(data) != layout.chunk_bytes:
        raise DamageError(
            f"{folder.place}/{layout.key(unit)} has {len(data)} bytes, expected {layout.chunk_bytes}"
        )
    return np.frombuffer(data, np.uint8).reshape(layout.chunk_shape)
