"""Telling the kernel which rows will be read, while they are not in memory, and only then.

Rows of a mapped file that are not resident come one page fault after another, each with a
read-ahead of up to megabytes around it. Announced, they are all in flight at once; but announcing
resident rows costs several times what gathering them does. So every view of a mapping keeps
count of what its announcements and gathers found, and announces while it is cold.
"""

from __future__ import annotations

import mmap
import os
import sys
from collections.abc import Iterator

import numpy as np

from fostore.formats.views.libc import libc
from fostore.schema.row import Array

SETTLED_ROWS = 16_384
"""Rows in a row that were resident when announced, after which data that was read is taken for resident."""

ALARM_ROWS = 256
"""The same for a cold spell in which nothing was read at all: a false alarm, or a warm start."""

SLOW_GATHER, SLOW_ROW, SLOW_BYTE = 50e-6, 8e-6, 0.5e-9
"""Seconds (a gather, and each row and byte of it) beyond which a gather waited for a disk.

First touches of resident pages stay below (3 to 6 us a row on a virtual machine), a random read of a disk is
ten times above. A gather that stays below unannounced has lost no more than this.
"""

PIECE_BYTES = 16 << 20
"""Pages announced at once by one gather: a gather of everything must not push out what it announced."""

_MAX_RANGES = 1024  # IOV_MAX
_PROCESS_MADVISE = 440  # the same number on every architecture but one


class Residency:
    """Whether the rows of a view are to be announced: decided from what was seen, without system calls.

    A view begins cold, since a wrong guess then costs an announcement, and the other one
    hundreds of page faults. Only hints hang on it: threads may race here, and lose a count.
    """

    def __init__(self) -> None:
        self._begin_cold()

    def _begin_cold(self) -> None:
        self.is_cold = True
        self.has_read = False  # in this cold spell
        self._idle_rows = 0
        self._ahead_rows = 0

    def announced(self, rows: int, *, read: bool, ahead: bool) -> None:
        """Rows were announced while cold; `read` says whether that made the kernel read anything.

        Args:
            rows: how many.
            read: False means that all were resident or on their way.
            ahead: they will be gathered later, and announced again then. The second time says
                nothing on what is resident.
        """
        if ahead:
            self._ahead_rows += rows
        elif self._ahead_rows > 0:
            self._ahead_rows = max(0, self._ahead_rows - rows)
            if not read:
                return
        if read:
            self.has_read, self._idle_rows = True, 0
            return
        self._idle_rows += rows
        if self._idle_rows >= (SETTLED_ROWS if self.has_read else ALARM_ROWS):
            self.is_cold = False

    def gathered(self, rows: int, row_bytes: int, seconds: float) -> None:
        """Rows were gathered while hot; a gather that waited for a disk ends that."""
        if seconds > SLOW_GATHER + rows * (SLOW_ROW + row_bytes * SLOW_BYTE):
            self._begin_cold()


class Paging:
    """Announces the rows of one mapped array (rows, *shape) while its data is cold."""

    def __init__(self, array: Array) -> None:
        self.residency = Residency()
        self._array = array  # keeps the mapping, so that an address is never another one's
        self._base = array.ctypes.data
        self._row_bytes = array.strides[0]
        self._piece_rows = max(1, PIECE_BYTES // (self._row_bytes + mmap.PAGESIZE))
        self._is_random = False

    def announce(self, rows: Array) -> None:
        """Announce rows that will be gathered soon; nothing while hot."""
        if self.residency.is_cold:
            self._announce(rows, ahead=True)

    def expect_random(self, random: bool) -> None:
        """Say whether page faults come in no order, so that the kernel reads no neighbours at each.

        Read-ahead pushes announced rows out again where memory is short: an epoch in 100 MB of
        memory did not end. Whoever reads the array in order needs it, though.
        """
        if random != self._is_random:
            self._is_random = random
            advice = mmap.MADV_RANDOM if random else mmap.MADV_NORMAL
            skip = self._base % mmap.PAGESIZE  # rows of a file alone may begin inside a page
            libc().madvise(self._base - skip, self._array.nbytes + skip, advice)

    def announced(self, rows: Array) -> Iterator[slice]:
        """The pieces of one gather, each announced before it comes, and the next one with it."""
        size = self._piece_rows
        self._announce(rows[:size], ahead=False)
        for start in range(0, len(rows), size):
            if self.residency.is_cold:
                self._announce(rows[start + size : start + 2 * size], ahead=False)
            yield slice(start, start + size)

    def gathered(self, rows: int, seconds: float) -> None:
        """Rows were gathered, and it took so long (what announcing took included); call it above SLOW_GATHER."""
        if not self.residency.is_cold:
            self.residency.gathered(rows, self._row_bytes, seconds)

    def _announce(self, rows: Array, *, ahead: bool) -> None:
        if len(rows):
            starts, sizes = page_ranges(rows, self._row_bytes, self._base)
            before = _blocks_read()
            will_need(starts, sizes)
            self.residency.announced(len(rows), read=_blocks_read() != before, ahead=ahead)
            self.expect_random(self.residency.is_cold and self.residency.has_read)


def paging_of(array: Array) -> Paging | None:
    """The paging of a mapped array; None where the system takes no hints, or there is nothing to read."""
    return Paging(array) if array.size and libc() is not None else None


def page_ranges(
    rows: Array, row_bytes: int, base: int, page: int = mmap.PAGESIZE
) -> tuple[Array, Array]:
    """The whole pages that rows lie on, as starts and sizes (bytes, int64), in the order of the rows.

    A row that begins inside or right behind the range before it makes that range longer: runs of
    rows become one range. Nothing is sorted: rows come from the disk in about the order in which
    they are announced, and a gather then seldom waits for its first row.
    """
    starts = rows * row_bytes + base
    stops = (starts + (row_bytes + page - 1)) & -page
    starts &= -page
    fresh = np.empty(len(rows), bool)
    fresh[:1] = True
    np.logical_or(starts[1:] < starts[:-1], starts[1:] > stops[:-1], out=fresh[1:])
    first = np.flatnonzero(fresh)
    starts = starts[first]
    return starts, np.maximum.reduceat(stops, first) - starts


def will_need(starts: Array, sizes: Array) -> None:
    """Ask the kernel to begin reading address ranges of this process; a refusal changes nothing.

    One `process_madvise` for up to 1,024 ranges where there is that call (Linux 5.10), else one
    `madvise` a range.
    """
    if not _advise_at_once(starts, sizes):
        library = libc()
        for start, size in zip(starts.tolist(), sizes.tolist(), strict=True):
            library.madvise(start, size, mmap.MADV_WILLNEED)


def _advise_at_once(starts: Array, sizes: Array) -> bool:
    global _at_once
    if sys.platform != "linux" or not _at_once:
        return False
    vectors = np.stack([starts, sizes], axis=1).astype(np.uintp)  # struct iovec
    library = libc()
    try:
        # Opened each time: nothing is left that a fork could hand to a child, whose rows lie elsewhere.
        process = os.pidfd_open(os.getpid())
    except OSError:
        _at_once = False
        return False
    try:
        for first in range(0, len(vectors), _MAX_RANGES):
            part = vectors[first : first + _MAX_RANGES]
            advice = mmap.MADV_WILLNEED
            if (
                library.syscall(_PROCESS_MADVISE, process, part.ctypes.data, len(part), advice, 0)
                < 0
            ):
                _at_once = False
                break
    finally:
        os.close(process)
    return _at_once


_at_once = True


def _blocks_read() -> int:
    """Blocks that this thread has made the kernel read so far."""
    import resource  # Windows has none, and never comes here

    who = resource.RUSAGE_THREAD if sys.platform == "linux" else resource.RUSAGE_SELF
    return resource.getrusage(who).ru_inblock
