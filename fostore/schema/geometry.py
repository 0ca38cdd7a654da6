"""How many rows make a unit, a block and an inner chunk: pure arithmetic on row sizes (spec/core.md, geometry)."""

from __future__ import annotations

from collections.abc import Iterable
from math import gcd

from fostore.errors import ArgumentError

PAGE_BYTES = 4096  # what a memory map begins at
_UNIT_BYTES = 32 << 20  # few enough files for a large store, each mapped as one piece
_INNER_BYTES = 256 << 10  # what a remote reader fetches for one row
_BLOCK_BYTES = 4 << 20  # what is read to check one row
_BLOCK_ROWS = 1024
_MAX_UNITS = 16_384  # files a folder, and maps a process (Linux: 65,530)
_MAX_UNIT_ROWS = 1 << 53


def _nearest_power_of_two(value: float) -> int:
    """The power of two, at least 1, that is nearest to `value` in ratio.

    >>> [_nearest_power_of_two(v) for v in (0.3, 1, 3, 838_860)]
    [1, 1, 4, 1048576]
    """
    if value <= 1:
        return 1
    low = 1 << (int(value).bit_length() - 1)
    return low if value * value < 2 * low * low else 2 * low


def _next_power_of_two(value: int) -> int:
    """The smallest power of two that is at least `value` and at least 1."""
    return 1 << max(value - 1, 0).bit_length()


def block_rows(row_bytes: Iterable[int]) -> int:
    """Rows that are hashed together: at most 1,024 and at most 4 MiB of the widest column.

    Depends on the row sizes alone, since the digest depends on it.
    """
    widest = max(row_bytes)
    fitting = max(_BLOCK_BYTES // widest, 1)
    return min(_BLOCK_ROWS, 1 << (fitting.bit_length() - 1))


def smallest_unit_rows(row_bytes: Iterable[int]) -> int:
    """The smallest unit that holds whole blocks and, in every column, whole memory pages."""
    sizes = tuple(row_bytes)
    pages = (PAGE_BYTES // gcd(size, PAGE_BYTES) for size in sizes)
    return max(block_rows(sizes), *pages)


def unit_rows(
    row_bytes: Iterable[int],
    num_samples: int | None,
    explicit: int | None = None,
    *,
    is_capped: bool = True,
) -> int:
    """Rows a unit, a power of two: about 32 MiB of the widest column.

    Args:
        row_bytes: bytes of one row, one number a column.
        num_samples: rows planned; None where nobody knows yet.
        explicit: the choice of a user: a power of two, not under `smallest_unit_rows`.
        is_capped: whether there are so few that one process can map them all: not where many write whole
            units, each of which waits in memory.

    Raises:
        ArgumentError: `explicit` cannot be used; the message names the smallest that can.
    """
    sizes = tuple(row_bytes)
    smallest = smallest_unit_rows(sizes)
    if explicit is not None:
        number = hasattr(explicit, "__index__")
        if not number or not smallest <= explicit <= _MAX_UNIT_ROWS or explicit & (explicit - 1):
            raise ArgumentError(
                f"unit_rows is {explicit!r}; it must be a power of two and at least {smallest} "
                f"for rows of {max(sizes)} bytes"
            )
        return explicit
    rows = max(smallest, _nearest_power_of_two(_UNIT_BYTES / max(sizes)))
    if num_samples is not None:
        while is_capped and num_samples > rows * _MAX_UNITS:
            rows *= 2
        rows = max(smallest, min(rows, _next_power_of_two(num_samples)))
    return rows


def inner_rows(row_bytes: int, unit_rows: int) -> int:
    """Rows of one inner chunk of a shard: about 256 KiB of this column, at most a unit."""
    return min(_nearest_power_of_two(_INNER_BYTES / row_bytes), unit_rows)


def unit_range(unit: int, unit_rows: int, num_samples: int | None) -> tuple[int, int]:
    """The rows `(start, stop)` of a unit; the last one ends with the store."""
    start = unit * unit_rows
    stop = start + unit_rows
    return start, stop if num_samples is None else min(stop, num_samples)


def split_at_units(start: int, stop: int, unit_rows: int) -> list[tuple[int, int, int]]:
    """Cut `[start, stop)` at unit boundaries into `(unit, start, stop)`.

    >>> split_at_units(6, 17, 8)
    [(0, 6, 8), (1, 8, 16), (2, 16, 17)]
    """
    pieces = []
    while start < stop:
        unit = start // unit_rows
        end = min(stop, (unit + 1) * unit_rows)
        pieces.append((unit, start, end))
        start = end
    return pieces
