"""The calls of the C library on memory that Python has no functions for."""

from __future__ import annotations

import ctypes
import sys
from functools import cache
from typing import Any

_ADDRESS, _SIZE, _INT = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int


@cache
def libc() -> Any:
    """The C library with `map_memory` (mmap), `munmap`, `madvise` and `syscall`, or None where it lacks one."""
    if sys.platform not in ("linux", "darwin"):
        return None
    try:
        library: Any = ctypes.CDLL(None, use_errno=True)
        # off_t has 64 bits here: 32-bit systems have a second call for that.
        library.map_memory = library["mmap64" if hasattr(library, "mmap64") else "mmap"]
        library.map_memory.restype = _ADDRESS
        library.map_memory.argtypes = [_ADDRESS, _SIZE, _INT, _INT, _INT, ctypes.c_int64]
        library.munmap.argtypes = [_ADDRESS, _SIZE]
        library.madvise.argtypes = [_ADDRESS, _SIZE, _INT]
        # What ctypes is not told, it passes as 32 bits: an address would be cut.
        library.syscall.restype = ctypes.c_long
        library.syscall.argtypes = [ctypes.c_long, _INT, _ADDRESS, _SIZE, _INT, ctypes.c_uint]
    except (OSError, AttributeError):
        return None
    return library
