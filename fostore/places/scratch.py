"""A file without a name for rows that must wait: beside what is being written, else in the temporary folder.

The temporary folder may be small, or memory, where the disk that takes the result has room for the rows
in any case. The file is gone with its last user, whatever happens to the process.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from fostore import disk
from fostore.errors import SpaceError

_folder: ContextVar[Path | None] = ContextVar("folder", default=None)


@contextmanager
def beside(path: Path | None) -> Iterator[None]:
    """Files that begin in this block lie on the disk of `path`, which need not exist yet; None changes nothing."""
    folder = _folder.get() if path is None else path.parent
    while folder is not None and not folder.is_dir():
        folder = folder.parent
    token = _folder.set(folder)
    try:
        yield
    finally:
        _folder.reset(token)


class Scratch:
    """An open file that no name leads to. Safe for several threads.

    Args:
        what: names the rows in errors.

    Raises:
        SpaceError: the disk is full; names the folder.
        PlaceError: the folder cannot be written.
    """

    def __init__(self, what: str) -> None:
        self._what = what
        chosen = _folder.get()
        self._is_temporary = chosen is None
        self.folder = Path(tempfile.gettempdir()) if chosen is None else chosen
        self.fd = disk.open_unnamed(self.folder)

    def write(self, data: Any, offset: int) -> None:
        """Write all of `data` at `offset`."""
        try:
            disk.write_at(self.fd, data, offset)
        except SpaceError as error:
            cure = "free some space there"
            if self._is_temporary:
                where = f"temporary folder {str(self.folder)!r}"
                cure += ", or set TMPDIR to a folder on a larger disk"
            else:
                where = f"folder of the destination, {str(self.folder)!r}"
                cure += ", or choose a destination on a larger disk"
            raise SpaceError(
                f"{self._what}: its rows do not fit into the {where} ({error}); {cure}"
            ) from error

    def read(self, size: int, offset: int) -> bytes:
        """The bytes at `offset`."""
        return bytes(disk.read_at(self.fd, offset, size))

    def close(self) -> None:
        """Give the disk back."""
        os.close(self.fd)
