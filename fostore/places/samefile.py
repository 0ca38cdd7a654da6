"""Whether a path still names the file that was opened: an overwrite puts another one there."""

from __future__ import annotations

import os
from pathlib import Path

from fostore.errors import FormatError, StoreNotFoundError


class SameFile:
    """What a file was like when it was opened; for files that nobody changes in place."""

    def __init__(self, path: Path, fd: int) -> None:
        self._path = path
        self._was = _stamp(os.fstat(fd))

    def check(self) -> None:
        """Refuse to go on as if nothing had happened.

        Raises:
            StoreNotFoundError, FormatError: nothing, or another file, lies at the path now.
        """
        try:
            found = os.stat(self._path)
        except FileNotFoundError as error:
            raise StoreNotFoundError(
                f"there is no store at {str(self._path)!r} any more"
            ) from error
        if _stamp(found) != self._was:
            raise FormatError(f"{self._path} is another store than before; open it again")


def _stamp(found: os.stat_result) -> tuple[int, int, int, int]:
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns
