"""The rows that loading benchmarks read, every library's copy of them, and the check of what comes back."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from peers import FLAT, PEERS, Peer

BATCH = 256


@dataclass(frozen=True, slots=True)
class Width:
    """One size of a row, and how many there are."""

    num_rows: int
    num_classes: int
    dtype: str

    @property
    def text(self) -> str:
        """`1,000,000 rows of 10 float32, 40 MB`."""
        size = self.num_rows * self.num_classes * np.dtype(self.dtype).itemsize / 1e6
        return f"{self.num_rows:,} rows of {self.num_classes:,} {self.dtype}, {size:,.0f} MB"

    def distributions(self) -> np.ndarray:
        """Rows that sum to 1, no two alike."""
        random = np.random.default_rng(self.num_classes)
        weights = random.random((self.num_rows, self.num_classes), np.float32)
        weights /= weights.sum(axis=1, keepdims=True)
        return weights.astype(self.dtype)


def widths(quick: bool) -> tuple[Width, Width]:
    """Narrow rows and wide rows."""
    if quick:
        return Width(10_000, 10, "float32"), Width(2_000, 1000, "float16")
    return Width(1_000_000, 10, "float32"), Width(100_000, 1000, "float16")


# ---------------------------------------------------------------- every library's copy


def chosen(arguments: argparse.Namespace) -> tuple[Peer, ...]:
    """The libraries that `--only` names, beside the yardstick and ourselves; without it all."""
    if arguments.only is None:
        return PEERS
    names = arguments.only.lower().split(",")
    return tuple(
        peer
        for peer in PEERS
        if peer is FLAT
        or peer.module == "fostore"
        or any(name and name in peer.name.lower() for name in names)
    )


@dataclass(frozen=True, slots=True)
class Copy:
    """A library that keeps the rows, ready to give them back."""

    peer: Peer
    path: Path
    gather: Callable[[np.ndarray], np.ndarray]


def copies(
    folder: Path, rows: np.ndarray, peers: Sequence[Peer]
) -> tuple[dict[str, Copy], dict[str, str]]:
    """Write the rows with every library and try one batch: the copies, and why others have none."""
    kept: dict[str, Copy] = {}
    lost: dict[str, str] = {}
    wanted = np.random.default_rng(0).integers(0, len(rows), BATCH)
    for number, peer in enumerate(peers):
        reason = peer.missing()
        if not reason:
            place = folder / f"{number:02}"
            place.mkdir()
            try:
                peer.write(place / "rows", rows)
                gather = peer.open(place / "rows")
                assert_rows(gather(wanted), rows[wanted], peer.name)
            except Exception as error:
                if peer.module == "fostore":
                    raise
                reason = f"failed: {type(error).__name__}: {error}".splitlines()[0][:120]
            else:
                kept[peer.name] = Copy(peer, place / "rows", gather)
        if reason:
            lost[peer.name] = reason
    return kept, lost


# ---------------------------------------------------------------- checks


def assert_rows(found: Any, expected: np.ndarray, name: str) -> None:
    """The very same numbers, in the same dtype and order."""
    batch = np.asarray(found)
    assert batch.dtype == expected.dtype, f"{name} gives {batch.dtype}, wrote {expected.dtype}"
    assert np.array_equal(batch, expected), f"{name} gives other rows than were written"


class Seen:
    """Which rows an epoch has given: told from all of a row's bytes, so that content is checked too."""

    def __init__(self, rows: np.ndarray) -> None:
        bits = rows.shape[1] * rows.itemsize // 2
        random = np.random.default_rng(1)
        self._factors = random.integers(0, 1 << 63, bits, np.uint64) * np.uint64(2) + np.uint64(1)
        keys = np.concatenate(
            [self._keys(rows[start : start + 4096]) for start in range(0, len(rows), 4096)]
        )
        self._order = np.argsort(keys)
        self._sorted = keys[self._order]
        assert (np.diff(self._sorted) > 0).all(), "two rows are alike"

    def _keys(self, rows: np.ndarray) -> np.ndarray:
        words = np.ascontiguousarray(rows).view(np.uint16).astype(np.uint64)
        keys: np.ndarray = (words * self._factors).sum(axis=1, dtype=np.uint64)
        return keys

    def numbers(self, batch: Any, name: str) -> np.ndarray:
        """The row numbers of a batch.

        Raises:
            AssertionError: a row is none of those that were written.
        """
        keys = self._keys(np.asarray(batch))
        places = np.minimum(np.searchsorted(self._sorted, keys), len(self._sorted) - 1)
        assert (self._sorted[places] == keys).all(), f"{name} gives rows that were never written"
        numbers: np.ndarray = self._order[places]
        return numbers

    def assert_epoch(self, batches: Iterable[Any], name: str, seconds: float) -> None:
        """Every row once; of a slow library as many rows as come in `seconds`, none of them twice."""
        given = np.zeros(len(self._order), np.int64)
        end = time.perf_counter() + seconds
        cut = False
        for batch in batches:
            given[self.numbers(batch, name)] += 1
            cut = time.perf_counter() > end
            if cut:
                break
        assert given.max() == 1, f"{name} repeats rows"
        assert cut or given.min() == 1, f"{name} leaves rows out"
