"""Where a conversion goes, and what may not be there: the source, a stranger's folder, the inside of a store."""

from __future__ import annotations

import os
from pathlib import Path

from fostore.conversion.sources import is_zarr
from fostore.errors import ArgumentError
from fostore.files.table import Table
from fostore.formats import is_store
from fostore.places.litter import is_litter
from fostore.places.names import STREAM, destination, inside, is_url, storage_of


def target_of(path: str | os.PathLike[str]) -> Path | None:
    """The path that a conversion to `path` writes, links followed; None for the standard output and what has a url."""
    is_stream = os.fspath(path) == STREAM
    return None if is_stream or storage_of(path) is not None else destination(path)


def refuse_target(path: Path, table: Table) -> None:
    """Refuse a destination whose replacement would take the source away, or a folder that is no store.

    Raises:
        ArgumentError: says which.
    """
    real = path.resolve()
    for source in _paths_of(table):
        if source == real or real in source.parents:
            raise ArgumentError(
                f"{str(path)!r} is the source as well ({source}); choose another destination"
            )
    if path.is_dir() and not is_zarr(path) and not all(is_litter(p.name) for p in path.iterdir()):
        raise ArgumentError(
            f"{str(path)!r} is a folder of other things and is not replaced; choose another "
            "destination, or remove it yourself"
        )


def refuse_receipt(receipt: Path | None, target: Path | None, source: Table) -> None:
    """A receipt that cannot be written, or would take the place of rows, is refused before the work."""
    if receipt is None:
        return
    if receipt.is_dir() or not receipt.absolute().parent.is_dir():
        raise ArgumentError(f"the receipt {str(receipt)!r} is a folder or has none to lie in")
    real = receipt.resolve()
    if target in (real, *real.parents):
        raise ArgumentError(
            f"the receipt {str(receipt)!r} would lie in the place of the destination {str(target)!r}"
        )
    if real in _paths_of(source) or _in_store(real):
        raise ArgumentError(
            f"the receipt {str(receipt)!r} would lie inside a store or in the place of the source"
        )


def refuse_inside(path: Path) -> None:
    """Refuse a destination inside the folder of a store."""
    if _in_store(path):
        raise ArgumentError(f"{str(path)!r} would lie inside a store; choose another destination")


def _in_store(path: Path) -> bool:
    """Whether a path lies in the folder of a store, where nothing else belongs."""
    return any(folder.suffix.lower() == ".zarr" and is_store(folder) for folder in path.parents)


def _paths_of(table: Table) -> list[Path]:
    """Where the rows of a table lie on this machine, every link followed."""
    return [inside(name)[0].resolve() for name in table.paths if not is_url(name)]
