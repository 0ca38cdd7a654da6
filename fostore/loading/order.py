"""The order of an epoch: which samples every batch of every rank holds, as a pure function.

Nothing is kept but numbers: any position of any epoch can be asked for, in memory that does not grow
with the dataset. NumPy, torch and JAX loaders all follow it, so the same seed gives the same batches.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from fostore.errors import ArgumentError
from fostore.schema.integers import integer
from fostore.schema.row import Array

_LASTS = ("short", "drop", "pad")
_BOUNDS = {
    "batch_size": (1,),
    "num_samples": (0,),
    "seed": (0, (1 << 64) - 1),
    "rank": (),
    "num_ranks": (),
}
NAMED = ("blocks", "lengths")
"""Orders that are not those of True and False."""
Shuffle = bool | Literal["blocks", "lengths"]

# None of these can ever change: a checkpoint of today goes on with a release of next year (0017).
BLOCK_ROWS = 128
WINDOW_ROWS = 64 * BLOCK_ROWS
"""Of the order "blocks": samples that lie together, and samples that are shuffled together."""
GROUP_ROWS = 64
"""Of the order "lengths": samples of like length that come together, out of `WINDOW_ROWS` that were shuffled."""
_SORTED = 1 << 16
"""Up to so many samples are shuffled by sorting (512 kB); more by a permutation computed position by position."""
_ROUNDS = 4

_STRETCH = 1 << 16
"""Positions of an epoch that are computed at once: 1.7 us a batch of 256, a fifth of a narrow gather."""


@dataclass(frozen=True, slots=True)
class Order:
    """The batches of every epoch; batch k of all ranks together is a global batch.

    An epoch is a sequence of positions, one a sample. The global batch from position p holds the
    next `batch_size * num_ranks` of them, the first `batch_size` for rank 0, and so on. So a run
    that goes on from a position with another number of ranks still sees every sample once.

    Args:
        num_samples: samples of the dataset.
        batch_size: samples a batch of one rank.
        shuffle: another order in every epoch; else the order of the dataset. "blocks" is for rows behind a
            url, where rows that lie together cost one request: an epoch begins at a random sample (and goes on
            with the first after the last), is cut into blocks of 128 samples, and these come in random order; of
            64 blocks at a time the 8,192 samples are shuffled together. So any block may come at any time, while
            two samples of one block are never further apart than 8,192 (the last of them, and what is left of an
            uneven cut, come together in the last window). Where rows that lie together are alike, sorted by class
            say, such a window holds 64 places of the dataset and no more. 8,192 samples and less are shuffled fully.
            "lengths" is for sequences, so that batches have little padding: of the shuffled order 8,192 samples at
            a time are sorted by length, cut into groups of 64, and the groups come in random order. It is another
            order of training: samples of one length meet in one batch.
        seed: with the epoch it decides the order; 0 to 2**64 - 1.
        last: what becomes of a last global batch that is not full. "short": it is split evenly over
            the ranks; "drop": it is left out; "pad": samples from the epoch's beginning come again.
        rank, num_ranks: which part of every global batch is ours.
        lengths: of the samples, (num_samples,), for the order "lengths".

    Raises:
        ArgumentError: a value is out of its range, or the last batch is too short for all ranks.

    >>> order = Order(5, 2)
    >>> [batch.tolist() for batch in order.batches(epoch=0)]
    [[0, 1], [2, 3], [4]]
    >>> shuffled = Order(5, 2, shuffle=True, seed=7)
    >>> shuffled.samples(0, 0, 5).tolist(), shuffled.samples(1, 0, 5).tolist()
    ([2, 1, 4, 3, 0], [1, 3, 0, 2, 4])
    """

    num_samples: int
    batch_size: int
    shuffle: Shuffle = False
    seed: int = 0
    last: str = "short"
    rank: int = 0
    num_ranks: int = 1
    lengths: Array | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        if self.shuffle not in (False, True, *NAMED):
            raise ArgumentError(
                f"shuffle is {self.shuffle!r}, expected True, False, 'blocks' or 'lengths'"
            )
        if self.shuffle == "lengths" and (
            self.lengths is None or len(self.lengths) != self.num_samples
        ):
            raise ArgumentError(
                "shuffle='lengths' is for sequences whose lengths a store of token rows knows: a FirstOrderDataset "
                "of all of them"
            )
        for name, bounds in _BOUNDS.items():
            object.__setattr__(self, name, integer(getattr(self, name), name, *bounds))
        if self.last not in _LASTS:
            raise ArgumentError(f"last is {self.last!r}, expected one of {list(_LASTS)}")
        if self.num_ranks < 1 or not 0 <= self.rank < self.num_ranks:
            raise ArgumentError(
                f"rank is {self.rank!r} of num_ranks {self.num_ranks!r}, expected 0 to num_ranks - 1"
            )
        self.check_last(0)

    @property
    def global_batch_size(self) -> int:
        """Samples that all ranks together take in one step."""
        return self.batch_size * self.num_ranks

    def samples(self, epoch: int, start: int, stop: int) -> Array:
        """The samples at the positions `[start, stop)` of an epoch, int64 (stop - start,)."""
        if not self.shuffle:
            return np.arange(start, stop, dtype=np.int64)
        if self.shuffle == "blocks":
            return _in_blocks(
                start, min(stop, self.num_samples), self.num_samples, self.seed, epoch
            )
        if self.shuffle == "lengths" and self.lengths is not None:
            return _by_length(start, min(stop, self.num_samples), self.lengths, self.seed, epoch)
        return _shuffled(start, stop, self.num_samples, self.seed, epoch)

    def window(self, position: int) -> tuple[int, int]:
        """The positions around one whose samples lie together in few places; of "blocks" alone."""
        number = min(
            position // WINDOW_ROWS, self.num_samples // BLOCK_ROWS * BLOCK_ROWS // WINDOW_ROWS
        )
        start = number * WINDOW_ROWS
        stop = start + WINDOW_ROWS
        is_last = stop > self.num_samples // BLOCK_ROWS * BLOCK_ROWS
        return start, self.num_samples if is_last else stop

    def num_batches(self, position: int = 0) -> int:
        """Batches of this rank from a position to the end of the epoch."""
        left = max(self.num_samples - position, 0)
        whole, rest = divmod(left, self.global_batch_size)
        return whole + (rest > 0 and self.last != "drop")

    def after(self, position: int) -> int:
        """The position after the global batch that begins at `position`."""
        return min(position + self.global_batch_size, self.num_samples)

    def batch(self, epoch: int, index: int) -> Array:
        """This rank's batch `index` of an epoch, 0 to `num_batches() - 1`, without those before it."""
        position = index * self.global_batch_size
        if position + self.global_batch_size > self.num_samples:
            return self._last(epoch, position)
        # Not by `stretches`, which would compute thousands of batches for the one.
        start = position + self.rank * self.batch_size
        return self.samples(epoch, start, start + self.batch_size)

    def num_own(self, position: int) -> int:
        """Samples of this rank's batch at a position that are not there to fill it up."""
        left = min(max(self.num_samples - position, 0), self.global_batch_size)
        if left == self.global_batch_size:
            return self.batch_size
        if self.last == "pad":
            return min(max(left - self.rank * self.batch_size, 0), self.batch_size)
        return 0 if self.last == "drop" else len(range(self.rank, left, self.num_ranks))

    def batches(self, epoch: int, position: int = 0) -> Iterator[Array]:
        """This rank's batches of an epoch, from a position on: int64 (batch_size,), the last perhaps shorter."""
        return self.stretches(epoch, position, limit=1)

    def stretches(self, epoch: int, position: int = 0, limit: int | None = None) -> Iterator[Array]:
        """The same batches, several at once: each array is whole batches, one after another.

        Args:
            limit: batches a stretch at most; by default as many as are computed at once.

        Raises:
            ArgumentError: what is left for the last batch is too short for all ranks.
        """
        self.check_last(position)
        step = self.global_batch_size
        most = max(_STRETCH // step, 1)
        whole_end = position + (self.num_samples - position) // step * step
        while position < whole_end:
            stop = min(position + most * step, whole_end)
            shape = (-1, self.num_ranks, self.batch_size)
            ours = self.samples(epoch, position, stop).reshape(shape)[:, self.rank].reshape(-1)
            size = len(ours) if limit is None else limit * self.batch_size
            for start in range(0, len(ours), size):
                yield ours[start : start + size]
            position = stop
        if position < self.num_samples and self.last != "drop":
            yield self._last(epoch, position)

    def _last(self, epoch: int, position: int) -> Array:
        left = self.samples(epoch, position, self.num_samples)
        if self.last == "short":
            # Evenly, not rank by rank: those that have a batch would wait for one that has none.
            return np.array_split(left, self.num_ranks)[self.rank]
        again = np.arange(self.global_batch_size - len(left)) % self.num_samples
        first = self.samples(epoch, 0, int(again.max(initial=-1)) + 1)
        filled = np.concatenate([left, first[again]])
        ours: Array = filled.reshape(self.num_ranks, self.batch_size)[self.rank]
        return ours

    def check_last(self, position: int) -> None:
        """Raise unless every rank gets a sample of each batch from a position on.

        Raises:
            ArgumentError: what is left for the last batch is too short for all ranks.
        """
        rest = max(self.num_samples - position, 0) % self.global_batch_size
        if self.last == "short" and 0 < rest < self.num_ranks:
            raise ArgumentError(
                f"the last batch has {rest} samples for {self.num_ranks} ranks, so some would have "
                "none; use drop_last=True, or pad_last=True, which repeats samples from the "
                "beginning of the epoch"
            )


# ------------------------------------------------------------------ permutations


def _keys(*numbers: int) -> Array:
    """The keys of a permutation, by seed, epoch and what else there is; NumPy promises that SeedSequence stays."""
    # Two words each: of numbers as they are, epoch 1 of seed 5 would be epoch 0 of 5 + 2**32.
    words = [half for number in numbers for half in (number & 0xFFFF_FFFF, number >> 32)]
    keys: Array = np.random.SeedSequence(words).generate_state(_ROUNDS, np.uint64)
    return keys


# Several, for loaders that take turns; a big one costs 512 kB.
@functools.lru_cache(maxsize=4)
def _sorted_order(num_samples: int, seed: int, epoch: int) -> Array:
    """All samples, sorted by keyed hashes of their numbers: every order is as likely as any other."""
    hashes = _scramble(np.arange(num_samples, dtype=np.uint64), 64, _keys(seed, epoch))
    order = np.argsort(hashes).astype(np.int64)  # no two are equal: any way of sorting will do
    order.flags.writeable = False
    return order


def _shuffled(start: int, stop: int, count: int, seed: int, epoch: int) -> Array:
    """The values of the permutation of `[0, count)` of an epoch, at the positions `[start, stop)`."""
    if count <= _SORTED:
        return _sorted_order(count, seed, epoch)[start:stop]
    return _placed(start, stop, count, _keys(seed, epoch))


def _in_blocks(start: int, stop: int, num_samples: int, seed: int, epoch: int) -> Array:
    """The samples at positions of an epoch in the order "blocks", window by window."""
    pieces = [np.empty(0, np.int64)]
    last = num_samples // BLOCK_ROWS // (WINDOW_ROWS // BLOCK_ROWS)
    while start < stop:
        number = min(start // WINDOW_ROWS, last)
        window = _window(number, num_samples, seed, epoch)
        first = number * WINDOW_ROWS
        piece = window[start - first : stop - first]
        if not len(piece):  # the last window has no sample where all blocks fill windows
            break
        pieces.append(piece)
        start += len(piece)
    return np.concatenate(pieces)


@functools.lru_cache(maxsize=8)
def _window(number: int, num_samples: int, seed: int, epoch: int) -> Array:
    """The samples of a window, in their order: its blocks, and in the last window what is left of them."""
    num_blocks, rest = divmod(num_samples, BLOCK_ROWS)
    per_window = WINDOW_ROWS // BLOCK_ROWS
    first, last = number * per_window, min((number + 1) * per_window, num_blocks)
    blocks = _shuffled(first, last, num_blocks, seed, epoch)
    samples = (blocks[:, None] * BLOCK_ROWS + np.arange(BLOCK_ROWS)).reshape(-1)
    if number == num_blocks // per_window:
        samples = np.concatenate([samples, np.arange(num_samples - rest, num_samples)])
    # Where the cut begins is another number in each epoch, so that the rest is not always of the same samples.
    begin = int(_keys(seed, epoch, 0, 0)[0]) % max(num_samples, 1)
    hashes = _scramble(np.arange(len(samples), dtype=np.uint64), 64, _keys(seed, epoch, number, 1))
    order: Array = (samples[np.argsort(hashes)] + begin) % max(num_samples, 1)
    order.flags.writeable = False
    return order


def _by_length(start: int, stop: int, lengths: Array, seed: int, epoch: int) -> Array:
    """The samples at positions of an epoch in the order "lengths", window by window."""
    pieces = [np.empty(0, np.int64)]
    while start < stop:
        first = start // WINDOW_ROWS * WINDOW_ROWS
        last = min(first + WINDOW_ROWS, len(lengths))
        window = _shuffled(first, last, len(lengths), seed, epoch)
        window = window[np.argsort(lengths[window], kind="stable")]
        # The last group, which may be short, stays the last: all others are whole, wherever they come.
        groups = len(window) // GROUP_ROWS
        keys = _keys(seed, epoch, first // WINDOW_ROWS, 2)
        order = np.argsort(_scramble(np.arange(groups, dtype=np.uint64), 64, keys))
        whole = window[: groups * GROUP_ROWS].reshape(groups, GROUP_ROWS)[order].reshape(-1)
        window = np.concatenate([whole, window[len(whole) :]])
        end = min(stop, last)
        pieces.append(window[start - first : end - first])
        start = end
    return np.concatenate(pieces)


def _placed(start: int, stop: int, num_samples: int, keys: Array) -> Array:
    """The values of a keyed permutation of `[0, num_samples)` at the positions `[start, stop)`.

    A bijection on the next power of two; values beyond the samples are mapped on until they fall
    among them (cycle walking), which keeps it one.
    Source: J. Black and P. Rogaway, Ciphers with Arbitrary Finite Domains, 2002.
    """
    bits = (num_samples - 1).bit_length()
    word = np.uint32 if bits <= 32 else np.uint64  # half the memory to go through
    values = _scramble(np.arange(start, stop, dtype=np.uint64).astype(word), bits, keys)
    beyond = np.flatnonzero(values >= num_samples)
    while len(beyond):
        mapped = _scramble(values[beyond], bits, keys)
        values[beyond] = mapped
        beyond = beyond[mapped >= num_samples]
    return values.astype(np.int64)


def _scramble(values: Array, bits: int, keys: Array) -> Array:
    """A keyed bijection on the numbers below `2**bits`: every step can be undone within `bits` bits."""
    word = values.dtype.type
    mask, half = word((1 << bits) - 1), word((bits + 1) // 2)
    for key in keys.tolist():
        values = values ^ word(key & int(mask))  # xor, an odd factor and a shift can each be undone
        values = values * word((key >> 1 | 1) & int(mask)) & mask
        values ^= values >> half
    return values
