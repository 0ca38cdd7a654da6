"""What can be converted: a format is one file in this folder (or in its framework's) and one line here.

Stores (Zarr, HDF5) lie with `fostore.formats`; what is here moves rows in and out of single files.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from fostore.errors import ArgumentError
from fostore.files.table import Batch, Table
from fostore.schema.header import Header


@dataclass(frozen=True, slots=True)
class Hints:
    """What a user says of a file that does not say it itself; None: not said."""

    format: str | None = None
    """A name of `FILES`, where the suffix does not say it: "dcic", "cifar10h", "npy" ..."""
    inside: str | None = None
    """The array or column inside the file: what stands after `::`."""
    kind: str | None = None
    """One of `fostore.schema.KINDS`, or "percent": probabilities of which 100 make a whole."""
    dtype: str | None = None
    """Of the numbers in a text file."""
    class_names: Sequence[str] | None = None
    temperature: float | None = None
    tol: float | None = None
    """How far from 1 a row may sum; None: what rounding to the dtype explains."""
    ids: str | None = None
    """What the ids in a text file become: "int64", or "S24", text of at most so many bytes."""
    id_column: str | None = None
    """The column or array that says which sample a row is."""
    columns: Sequence[str] | None = None
    """The columns that are the classes, in the order of the classes."""
    drop: Sequence[str] = ()
    """Columns or arrays that are not looked at."""
    delimiter: str | None = None
    """Between the fields of a line of text; a comma, in `.tsv` a tabulator."""
    decimal: str | None = None
    """In the numbers of a text file: a point, if not said."""
    transpose: bool | None = None
    """Whether the axes come last first; None: as the file says, or as they lie."""
    layout: Mapping[str, Any] | None = None
    """What the layout of another tool leaves open, by the keys that its format asks for."""
    config: str | os.PathLike[str] | None = None
    """The file that says how the source was packed."""
    rows: slice | None = None
    """Those that will be wanted: that others are missing is no error then."""
    is_keyed: bool = False
    """Whether the caller has ids of his own, so that those beside the rows are named and not taken."""


DTYPES = ("float16", "float32", "float64", "uint8", "uint16", "uint32", "uint64", "int64")
"""What most formats hold, and text bit by bit."""


@dataclass(frozen=True, slots=True)
class Holds:
    """What a file format can keep."""

    header: bool
    """Whether it keeps a header: class names, identity, metadata, unknown keys, and every column."""
    dtypes: tuple[str, ...]
    """Stored NumPy dtypes that come back bit by bit; others are refused or widened, never narrowed."""
    members: bool = True
    names: bool = False
    """Whether it keeps class names although it has no header."""
    ids: bool = False
    """Whether it keeps ids although it has no header."""


@runtime_checkable
class FileFormat(Protocol):
    """One file format; a stranger's file is never trusted: no pickle, no plugin, no huge allocation.

    A class that says so is one of these, and has what it does not define itself from here.
    """

    name: str
    holds: Holds

    def read(self, path: Path, hints: Hints) -> Table:
        """The rows of a file; reads no more than metadata where the format allows.

        Raises FormatError, UnsupportedError, UnsafeError; ArgumentError where a hint is missing,
        saying which.
        """
        ...

    def write(self, path: Path, header: Header, batches: Iterator[Batch], start: int) -> None:
        """Write the rows from `start` on to `path`, a temporary name: anew where `start` is 0.

        Everything goes through `fostore.disk`; durable when it returns. What of the header the
        format cannot hold (`holds`) has been dropped by the caller, with the user's consent.
        A format that is only read need not define it.
        """
        raise ArgumentError(f"{self.name} is only read; write .jsonl, .npy, or any other format")

    def resume_at(self, path: Path, header: Header) -> int:
        """Whole rows in a file that was left half-written, cutting off what is not whole; 0: start anew.

        0 by default: a file whose rows are found by what stands at its end is none before.
        """
        return 0


@dataclass(frozen=True, slots=True)
class Home:
    """Where a format lives, and what is to be known of it before its library is loaded."""

    module: str
    suffixes: tuple[str, ...] = ()
    extra: str = ""
    """What installs the library that it needs."""
    library_bytes: int = 0
    """What its libraries take without any rows, measured."""
    copies: int = 8
    """Of a batch in memory at once: measured under 6, and more where numbers become objects or text."""
    is_text: bool = False
    """Whether a row in the middle is found by reading those before, so that a sample costs as much as all."""


FILES = {
    "json": Home("fostore.files.json", (".json",), copies=16, is_text=True),
    "jsonl": Home("fostore.files.jsonl", (".jsonl", ".ndjson"), copies=36, is_text=True),
    "npy": Home("fostore.files.npy", (".npy",)),
    "npz": Home("fostore.files.npz", (".npz",)),
    "safetensors": Home("fostore.files.safetensors", (".safetensors",)),
    "parquet": Home("fostore.files.parquet", (".parquet",), "convert", 110 << 20),
    "arrow": Home("fostore.files.arrow", (".arrow", ".feather"), "convert", 60 << 20),
    "csv": Home("fostore.files.csv", (".csv", ".tsv"), copies=24, is_text=True),
    "pt": Home("fostore.torch.files", (".pt", ".pth"), "torch", 170 << 20),
    "plain-zarr": Home("fostore.files.plain_zarr", (".zarr",)),
    "plain-hdf5": Home("fostore.files.plain_hdf5", (".h5", ".hdf5")),
    "cifar10h": Home("fostore.files.cifar10h"),
    "dcic": Home("fostore.files.dcic"),
    "distillkit": Home("fostore.files.distillkit", (), "convert", 110 << 20),
    "nemo": Home("fostore.files.nemo", copies=36, is_text=True),
    "axolotl": Home("fostore.files.axolotl", copies=36, is_text=True),
    "tinyvit": Home("fostore.files.tinyvit"),
    "fkd": Home("fostore.torch.fkd", (), "torch", 170 << 20),
}
SUFFIXES = {suffix: name for name, home in FILES.items() for suffix in home.suffixes}
"""By suffix; a `.zarr`, `.h5` or `.json` that holds a store is opened as one."""


def file_format(name: str) -> FileFormat:
    """The file format called `name`.

    Raises:
        ArgumentError: there is none, or the library that it needs is not installed; says which.
    """
    if name not in FILES:
        raise ArgumentError(f"{name!r} is no format; expected one of {sorted(FILES)}")
    try:
        chosen: FileFormat = import_module(FILES[name].module).FORMAT
    except ModuleNotFoundError as error:
        raise ArgumentError(
            f"the {name} format needs the package {error.name!r}: pip install 'fostore[{FILES[name].extra}]'"
        ) from error
    return chosen


def refuse_inside(path: Path, hints: Hints) -> None:
    """Refuse `path::name` of a file that holds one array alone, which has no name.

    Raises:
        ArgumentError: a name was given.
    """
    if hints.inside is not None:
        raise ArgumentError(
            f"{path} holds one array, which has no name: {hints.inside!r} is not in it; give the path alone"
        )
