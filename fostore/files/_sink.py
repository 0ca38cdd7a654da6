"""A file that is written from front to back through `fostore.disk`, or the standard output."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path
from typing import Any, Self

from fostore import disk
from fostore.places.names import STREAM


class Sink(io.RawIOBase):
    """Bytes appended one after another; libraries that want a file take it as one.

    Leaving `with` without an error makes the file durable.

    Args:
        path: made anew, or written on from `start`; "-" is the standard output.
        start: bytes that stay.
    """

    def __init__(self, path: Path, start: int = 0) -> None:
        self._fd: int | None = None
        self._offset = start
        if str(path) != STREAM:
            self._fd = disk.open_file(path, write=True, create=True)
            disk.truncate(self._fd, start)  # what lies behind was not whole

    def write(self, data: Any) -> int:
        size = memoryview(data).nbytes  # `len` of an array counts its rows
        if self.closed:
            raise ValueError("this file was closed")
        if self._fd is None:
            sys.stdout.buffer.write(data)
        elif size:
            disk.write_at(self._fd, data, self._offset)
        self._offset += size
        return size

    def fill(self, data: Any, offset: int) -> None:
        """Write over what stands at `offset`; of the standard output nothing can be taken back."""
        assert self._fd is not None
        disk.write_at(self._fd, data, offset)

    def tell(self) -> int:
        """Where the next bytes go."""
        return self._offset

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go back, as zipfile does to write a member's size and checksum before its data."""
        assert whence == os.SEEK_SET
        self._offset = offset
        return offset

    def writable(self) -> bool:
        return True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *others: object) -> None:
        if kind is None and self._fd is None:
            sys.stdout.buffer.flush()  # now, where an error has somebody to tell, not when Python ends
        if kind is None and self._fd is not None:
            disk.sync_data(self._fd)
        self.close()

    def close(self) -> None:
        """Close the file; what was written stays."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None
        super().close()
