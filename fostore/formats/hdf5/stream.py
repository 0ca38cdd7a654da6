"""A file as h5py reads and writes it: no path, no HDF5 lock, and every write through `fostore.disk`."""

from __future__ import annotations

import io
import os
from typing import Any

from fostore import disk
from fostore.errors import UnsafeError
from fostore.places.local import LocalFile
from fostore.places.place import File

_MAX_READ = 16 << 20  # HDF5 metadata is read in small pieces; a larger one is a claim of garbage
_HEAD_BYTES = 64 << 10
"""What is read first, and at once: HDF5 asks for a dozen small pieces, which all lie at the front of our files."""


class HDF5Stream:
    """A file as h5py's file-object driver wants it: `size` bytes, zeros where the file is shorter.

    Only a file of this machine can be written to.

    HDF5 calls on after a call has failed, and Python breaks when one of those finds an exception
    set. So nothing is raised here: `error` keeps what went wrong first, and nothing is done after it.
    """

    def __init__(self, file: File, size: int) -> None:
        self._file = file
        self._size = size
        self._head = b""
        self._position = 0
        self.error: BaseException | None = None

    def read(self, size: int = -1) -> bytes:
        """What marks a file object for h5py, which does not call it."""
        raise io.UnsupportedOperation("use readinto")

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move to `offset`, from the start or from the end."""
        self._position = offset if whence == os.SEEK_SET else self._size + offset
        return self._position

    def tell(self) -> int:
        """Where the next call reads or writes."""
        return self._position

    def readinto(self, buffer: Any) -> int:
        size = len(buffer)
        if size > _MAX_READ:  # not filled: the system gives memory out when it is touched
            self.error = self.error or UnsafeError(f"its metadata claims a piece of {size:,} bytes")
        else:
            data = self._read(self._position, size)
            buffer[:] = data + bytes(size - len(data))
        self._position += size
        return size

    def _read(self, offset: int, size: int) -> bytes:
        if not self._head:
            self._head = self._try(self._file.read, 0, _HEAD_BYTES) or b""
        if offset + size <= len(self._head):
            return self._head[offset : offset + size]
        return self._try(self._file.read, offset, size) or b""

    def write(self, data: Any) -> int:
        size = len(data)
        self._head = b""
        self._try(lambda: disk.write_at(self._fd, data, self._position))
        self._position += size
        self._size = max(self._size, self._position)
        return size

    def truncate(self, size: int) -> int:
        self._head = b""
        self._try(lambda: disk.truncate(self._fd, size))
        self._size = size
        return size

    @property
    def _fd(self) -> int:
        assert isinstance(self._file, LocalFile)
        return self._file.fd

    def flush(self) -> None:
        """Nothing is kept back."""

    def _try(self, call: Any, *arguments: Any) -> Any:
        if self.error is None:
            try:
                return call(*arguments)
            except BaseException as error:
                # Without its frames, which lead by way of h5py's to the property list that holds this
                # stream, where no collector looks: HDF5 would ask for Python when Python is gone.
                self.error = error.with_traceback(None)
        return None
