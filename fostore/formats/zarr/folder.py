"""Where everything of a Zarr store lies (spec/zarr.md).

What a run in progress needs lies inside the column folders, where plain Zarr readers do not look.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fostore.errors import ArgumentError
from fostore.formats.zarr.layout import HASHES, Hashes, Shards
from fostore.places.litter import is_litter
from fostore.places.local import Local
from fostore.places.place import Place
from fostore.schema import geometry
from fostore.schema.header import MAX_TEXT, Header

METADATA = "zarr.json"
MAX_METADATA = MAX_TEXT
JOURNAL = ".fostore.journal."


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
        if any(column.name == HASHES for column in header.schema.columns):
            raise ArgumentError(f"a column cannot be called {HASHES!r}: that is where hashes lie")
        shards = tuple(Shards.of(column, header) for column in header.schema.columns)
        return cls(place, header, shards, Hashes.of(header))

    @property
    def layouts(self) -> tuple[Shards | Hashes, ...]:
        """Every array of the store: the columns, then the hashes."""
        return (*self.shards, self.hashes)

    @property
    def path(self) -> Path:
        """The folder, of a place on this machine."""
        return Path(self.place.url)

    def array(self, index: int) -> Path:
        """The folder of a column."""
        return self.path / self.shards[index].name

    def shard(self, index: int, unit: int) -> Path:
        """Where a sealed unit of a column lies."""
        return self.path / self.shards[index].key(unit)

    def tail(self, index: int, unit: int) -> Path:
        """Where the rows of a unit lie before it is sealed."""
        return self.path / self.shards[index].tail(unit)

    def journal(self, owner: str) -> Path:
        """The journal of a writer."""
        return self.array(0) / f"{JOURNAL}{owner}"

    @property
    def hash_array(self) -> Path:
        """The folder of the block hashes."""
        return self.path / HASHES

    def hash_chunk(self, unit: int) -> Path:
        """The block hashes of a unit."""
        return self.path / self.hashes.key(unit)

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


def read_file(path: Path, limit: int) -> bytes:
    """For the readers of foreign chunks, until they take a Place."""
    return Local(path.parent).read(path.name, limit)


def check_directory(path: str | Path) -> None:
    """For the readers of foreign chunks, until they take a Place."""
    path = Path(path)
    Local(path.parent).names(path.name)


def find_chunk(array: Path, key: str) -> Path | None:
    """For the readers of foreign chunks, until they take a Place."""
    return array / key if Local(array).size(key) is not None else None
