"""How units lie on disk: the seam between what a store is and how a format keeps it.

A format is one folder in this one and one line in `FORMATS`. It knows files; it knows nothing of
kinds, encodings, models or loaders. One conformance suite (tests/test_formats.py) runs over all.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from fostore.errors import ArgumentError, UnsupportedError
from fostore.formats.claim import WHOLE, Claim
from fostore.places.names import place_of
from fostore.places.place import Place, Storage
from fostore.schema.header import Header
from fostore.schema.ranges import Range, Ranges
from fostore.schema.row import Array

UnitsClaim = Claim | Callable[[int], Claim]
"""A claim, or what gives it, of the number of units of a store."""


class OtherLayoutError(UnsupportedError):
    """Arrays that are sound and lie in another way than fostore's: a format may be able to decode them."""


ONLY_OURS = "only a sealed store may lie so, and none can be written to: copy its rows to a new one"
"""What an `OtherLayoutError` says behind what is different."""


@dataclass(frozen=True, slots=True)
class Run:
    """Committed rows `[start, stop)` inside one unit, and what their bytes hash to.

    `crc` is the crc32c of the rows (spec/integrity.md): the crc32c over the little-endian uint32
    values, one a column in schema order, that are the crc32c of the column's bytes of these rows.
    A later run with the same start replaces an earlier one. None: covered by block hashes alone.
    `earlier` holds what is still known of those that it replaced, as increasing `(stop, crc)`: they
    tell where in the run damage lies. `grows` says whether a later run may replace it: not where
    the journal of another writer has it, since two journals would then name the same rows.
    """

    start: int
    stop: int
    crc: int | None
    earlier: tuple[tuple[int, int], ...] = field(default=(), compare=False)
    grows: bool = field(default=True, compare=False)


@dataclass(frozen=True, slots=True)
class WholeUnit:
    """A unit all of whose `num_rows` rows are committed, ready to be sealed.

    `hashes` is uint8 (blocks of the unit, hashed columns, 32).
    """

    unit: int
    num_rows: int
    hashes: Array
    facts: Mapping[str, Any] = field(default_factory=dict)
    """What whoever wrote it knows of its rows, JSON, kept where units have records."""

    def check(self, header: Header) -> None:
        """Raise ArgumentError unless there is one hash for each block and hashed column."""
        blocks = -(-self.num_rows // header.block_rows)
        expected = (blocks, sum(column.hashed for column in header.schema.columns), 32)
        if self.hashes.shape != expected or self.hashes.dtype != np.uint8:
            raise ArgumentError(
                f"unit {self.unit} has {self.num_rows} rows and hashes of shape {expected}, "
                f"{self.hashes.dtype} of {self.hashes.shape} came"
            )


@dataclass(frozen=True, slots=True)
class Segment:
    """Rows `[start, stop)` of a column as they lie in a file: row-major, little-endian, at `offset` bytes."""

    path: str  # in a place that is not local a name. Text: a thousand paths cost milliseconds
    offset: int
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Finding:
    """Something in a store that should not be: where, which rows it touches (None: not tied to rows), and what.

    `severity` is "damage" where something is lost, contradicts itself or is nobody's, and "warning"
    where every row and all that the store says are right, and something lies about: litter of an
    operating system, or what a kill left in the last step of sealing.
    """

    where: str
    rows: Range | None
    message: str
    severity: str = "damage"


@dataclass(frozen=True, slots=True)
class Commit:
    """A unit that one of several writers committed: who, and when (UTC, ISO 8601)."""

    unit: int
    by: str
    written: str


class ColumnView(Protocol):
    """One column of a store for reading; rows that are not committed must not be asked for.

    Safe for several threads. Crosses neither fork-unsafe handles nor pickles: a store pickles as its path.
    A view that says so is one of these, and announces nothing where it does not say how.
    """

    @property
    def array(self) -> Array:
        """The column as one read-only array (rows, *shape); nothing is read by asking for it."""
        ...

    def take(self, rows: Array, out: Array | None = None) -> Array:
        """A fresh, writable array of the rows (int64, checked by the caller) in the order asked for."""
        ...

    @property
    def is_cold(self) -> bool:
        """Whether `announce` does something now. Costs nothing to ask."""
        return False

    def announce(self, rows: Array) -> None:
        """A hint that these rows (int64, checked by the caller) will be taken next: the system begins to read them.

        Returns without waiting for them, and never fails. Nothing where the data is resident, or
        where there is no such call. `take` announces its own rows, so a caller announces only
        what comes after: each batch once, one or two ahead, by the thread that takes, and then takes it.
        """
        return

    def read(self, start: int, stop: int) -> Array:
        """The rows `[start, stop)`, a read-only view where that costs nothing, else a copy."""
        ...


class Reader(Protocol):
    """A store opened for reading, treated as a stranger's.

    Opening reads metadata only. Links are never followed, nothing is allocated by what metadata
    claims beyond the bytes that are there, no plugin is loaded. A writer may be at work: `committed`
    is what was committed at the last `refresh`, and those rows never change.

    A class that says so is one of these, and has what it does not define itself from here.
    """

    header: Header
    committed: Ranges

    def refresh(self) -> None:
        """See what has been committed since."""
        ...

    def column(self, index: int) -> ColumnView:
        """The view of the column at `index` of the schema, mapped at first use.

        Raises DamageError (naming rows) where a file of committed rows is missing or too short.
        """
        ...

    def segments(self, index: int) -> Sequence[Segment]:
        """Where the committed rows of a column lie, in order; none, by default, for lack of raw bytes."""
        return ()

    def files(self) -> Sequence[str]:
        """The names, in its place, of all files of a sealed store, metadata last; "" is the place itself."""
        return ("",)

    def runs(self) -> Sequence[Run]:
        """Committed runs of units that are not sealed yet (what the journal or the slots hold); none by default."""
        return ()

    def commits(self, limit: int) -> Sequence[Commit]:
        """Who committed which units of a store that many write, of at most `limit` of them; none by default."""
        return ()

    def block_hashes(self) -> Array:
        """Block hashes as they lie: uint8 (blocks, hashed columns, 32); all zero where unknown."""
        ...

    def offsets(self) -> Array | None:
        """Where the sequences of a sealed store begin, as it lies: int64 (num_sequences + 1,); None by default.

        None also where it lies in another way than ours: it follows from the column of sequences.
        """
        return None

    def findings(self) -> Iterator[Finding]:
        """Structural damage: files that are missing, cut, torn, unexpected or contradictory. Reads no rows."""
        return iter(())

    def close(self) -> None:
        """Drop handles; arrays that were handed out stay valid."""
        return


class UnitWriter(Protocol):
    """A store opened for writing, by the one process that holds the lock of what it claims (the caller took it).

    What it does not do: check values, hash, decide when to commit. The order is the caller's:
    `write`... `sync`, `commit` (now a kill loses none of those rows), and `seal` for units that are
    whole. Not safe for several threads, except that `sync`, `commit` and `seal` may run in one
    thread while another writes rows that they do not cover.
    """

    header: Header
    sealed: Ranges
    """Rows of units that are sealed: written for good."""
    runs: tuple[Run, ...]
    """Committed runs of units that are not sealed, found when the store was opened. Their data has not been checked."""

    commits_runs: bool
    """Whether rows can be committed before their unit is whole; else `seal` commits them, and `commit` does nothing."""

    def write(self, column: int, start: int, rows: Array) -> None:
        """Write rows (C-contiguous, the stored dtype) at `start`; all inside one unit. Not durable.

        An error leaves rows that are not committed undefined, everything else untouched.
        """
        ...

    def read(self, column: int, start: int, stop: int) -> Array:
        """Rows written before, all inside one unit (of a sealed one as well)."""
        ...

    def sync(self) -> None:
        """Make all rows that were written before the call durable."""
        ...

    def commit(self, runs: Sequence[Run]) -> None:
        """Record runs whose rows are durable; when this returns they are committed."""
        ...

    def seal(self, units: Sequence[WholeUnit]) -> None:
        """Seal units together: what makes them durable is paid once for all. Idempotent.

        After a kill in between, those that are not sealed are in `runs` of the next writer.
        """
        ...

    def hashes(self, unit: int) -> Array:
        """The block hashes of a sealed unit, or of what was sealed of it; all zero where unknown."""
        ...

    def replan(self, header: Header) -> None:
        """Replace the header of a store that goes on (more rows planned, other metadata): not sealed, no digest."""
        ...

    def finish(self, header: Header, offsets: Array | None = None) -> None:
        """All rows are in sealed units: publish the final header and remove what only a run in progress needs.

        `offsets`, int64 (num_sequences + 1,), is where the sequences of token rows begin; durable before the header.
        """
        ...

    def close(self) -> None:
        """Release files; what was not committed is gone."""
        ...


class UnitsWriter(UnitWriter, Protocol):
    """A writer of whole units beside others; it holds no lock, and knows what is its own."""

    claim: Claim

    def facts(self, unit: int) -> Mapping[str, Any]:
        """What the record of a unit says of its rows; cheap behind `hashes` of it."""
        ...


class Opens(Protocol):
    """What a store can be opened from: a format, or a file format that keeps all that a store says."""

    name: str

    def open(self, path: Path | Place) -> Reader:
        """Open for reading.

        Raises FormatError, UnsupportedError, UnsafeError or DamageError; OSError as the system gives it.
        """
        ...

    def is_store(self, place: Place) -> bool:
        """Whether a place with a suffix of this one holds a store, and not just an array; see `is_store`."""
        ...


@runtime_checkable
class Format(Opens, Protocol):
    """A way to lay a store on disk."""

    streams: bool
    """Whether a store may be begun without knowing num_samples."""

    def create(self, path: Path, header: Header) -> UnitWriter:
        """Make an empty store at `path`, which does not exist; it appears whole or not at all."""
        ...

    def resume(self, path: Path, claim: Claim = WHOLE) -> UnitWriter:
        """Open a store for writing; heals what a kill left behind, without touching committed rows.

        A sealed store can be resumed too: its last, partial unit is then in `runs` (crc None), not in `sealed`.
        A writer that claims some units sees, heals and writes those alone, in a journal of its own.

        Raises UnsupportedError where the format has one writer, and less than all is claimed.
        """
        ...

    def units(
        self, place: Storage, header: Header | None = None, claim: UnitsClaim = WHOLE
    ) -> UnitsWriter:
        """Write whole units beside any number of others, here or behind a url; `seal` commits them.

        Args:
            header: begins a store with it where there is none; the one that is there counts else.
            claim: what is written, or a function of the number of units that says so.

        Raises UnsupportedError where the format has one writer.
        """
        ...


FORMATS = {"zarr": (".zarr",), "hdf5": (".h5", ".hdf5")}
"""The suffixes of each format, which is the folder here of that name; choosing one imports no other."""
SUFFIXES = {suffix: name for name, suffixes in FORMATS.items() for suffix in suffixes}

FILES = {".json": "fostore.files.json"}
"""Files that open as stores and are written as a whole: the module whose `FORMAT` opens them, by suffix."""


def is_store(path: Path | Place) -> bool:
    """Whether a path with a store's suffix holds a store, and not just an array of the same format.

    True as well where it is neither: opening it says what is wrong. False where there is nothing. Looks at
    nothing but regular files of bounded size; links inside a store are never followed.

    Raises:
        UnsafeError: what ought to hold the metadata is a link, no regular file, or too large.
    """
    return opens(path).is_store(place_of(path))


def is_store_name(path: Path | Place) -> bool:
    """Whether a path ends as the name of a store does; nothing is looked at, and no format loaded."""
    suffix = _suffix(path)
    return suffix in SUFFIXES or suffix in FILES


def opens(path: Path | Place) -> Opens:
    """What opens the store at a path, by its suffix.

    Raises:
        ArgumentError: nothing with this suffix is a store.
    """
    suffix = _suffix(path)
    module = FILES.get(suffix)
    if suffix in SUFFIXES:
        module = f"fostore.formats.{SUFFIXES[suffix]}"
    if module is None:
        raise ArgumentError(
            f"{str(path)!r} has the suffix {os.path.splitext(str(path))[1]!r}; a store ends in one of "
            f"{[*SUFFIXES, *FILES]}"
        )
    chosen: Opens = import_module(module).FORMAT
    return chosen


def format_of(path: Path | Place) -> Format:
    """The format that a path's suffix names, to write a store in.

    Raises:
        ArgumentError: no format has this suffix, or it is that of a file which is written as a whole.
    """
    chosen = opens(path)
    if not isinstance(chosen, Format):
        raise ArgumentError(
            f"{str(path)!r}: a {chosen.name.upper()} file cannot grow row by row. Write to a .zarr or .h5 "
            "store and then fostore.convert(store, path), or keep the rows in a dict and call "
            "save_distributions"
        )
    return chosen


def _suffix(path: Path | Place) -> str:
    # Not `Path.suffix`: it may be a place behind a url, whose text ends in the name as well.
    return os.path.splitext(str(path))[1].lower()
