"""SimpleDataLoader: batches of a dataset as NumPy arrays, without any framework; and the loop of all loaders."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from fostore.containers.rows import Rows, as_dataset, samples_of
from fostore.errors import ArgumentError
from fostore.loading.cursor import Cursor
from fostore.loading.plan import Plan, check_batch_size
from fostore.loading.prefetch import ahead
from fostore.nested import bring_together, collate
from fostore.schema.row import Array

Read = Callable[[Array], Sequence[Any]]
"""Gives the batches of a stretch of samples (int64), in order."""


def run(
    cursor: Cursor,
    read: Read,
    *,
    limit: int = 1,
    prefetch: int = 0,
    states: Callable[[], Any] | None = None,
    finish: Callable[[Any, int], Any] | None = None,
    announce: Callable[[Array], None] | None = None,
) -> Iterator[Any]:
    """One epoch of batches; the only loop that hands batches out.

    Args:
        cursor: where to begin; it counts what was handed out, not what `prefetch` has read.
        read: gives the batches of a stretch of samples.
        limit: batches a stretch at most.
        prefetch: batches that a thread reads ahead, rounded up to whole stretches.
        states: see `fostore.loading.prefetch.ahead`.
        finish: gets each batch, and how many of its samples do not merely fill it up; gives what
            is handed out.
        announce: told which samples the next stretch holds before this one is read, so that a
            disk can fetch them meanwhile.
    """
    plan = cursor.plan
    step, end = plan.global_batch_size, plan.num_samples
    epoch, position = cursor.begin()
    # No `map`: it would take a StopIteration out of a dataset for the end of the epoch.
    stretches = plan.stretches(epoch, position, limit)
    announced = stretches if announce is None else _announcing(stretches, announce)
    for batches in ahead((read(samples) for samples in announced), -(-prefetch // limit), states):
        for batch in batches:
            if finish is not None:
                batch = finish(batch, plan.num_own(position))
            position += step  # Plan.after, written out: between two batches everything is slow
            if position > end:
                position = end
            cursor.hand_out(epoch, position)
            yield batch
    cursor.end(epoch)


def _announcing(stretches: Iterator[Array], announce: Callable[[Array], None]) -> Iterator[Array]:
    """The same stretches; before one is given, the one after it is announced."""
    current = next(stretches, None)
    for following in stretches:
        announce(following)
        assert current is not None
        yield current
        current = following
    if current is not None:
        yield current


def make_plan(
    num_samples: int,
    batch_size: int,
    shuffle: bool,
    seed: int | None,
    *,
    drop_last: bool = False,
    pad_last: bool = False,
    rank: int = 0,
    num_ranks: int = 1,
    fresh_seed: Callable[[], int] | None = None,
) -> Cursor:
    """A cursor at the beginning of a plan, from what a loader's user says.

    Args:
        fresh_seed: draws a seed where none is given; by default the system's random numbers.

    Raises:
        ArgumentError: values that contradict each other; several ranks that shuffle without a seed.
    """
    if drop_last and pad_last:
        raise ArgumentError("drop_last leaves the last batch out, pad_last fills it; choose one")
    if seed is None and shuffle and num_ranks > 1:
        raise ArgumentError(
            f"{num_ranks} ranks that shuffle need one seed, else each takes samples of its own "
            "order; give seed="
        )
    chosen = seed if seed is not None else (fresh_seed or _fresh_seed)() if shuffle else 0
    plan = Plan(
        num_samples,
        check_batch_size(batch_size),
        shuffle=bool(shuffle),
        seed=chosen,
        last="drop" if drop_last else "pad" if pad_last else "short",
        rank=rank,
        num_ranks=num_ranks,
    )
    return Cursor(plan, seed_is_free=seed is None)


def _fresh_seed() -> int:
    return secrets.randbits(63)


class SimpleDataLoader:
    """Batches of a dataset with `__len__` and `__getitem__`, as nested NumPy arrays.

    The order of an epoch is that of every loader here for the same seed (`fostore.loading.plan`).
    Each iteration is the next epoch; `set_epoch` chooses it, and `state_dict` with
    `load_state_dict` goes on in the middle of one.

    Args:
        dataset: anything with `__len__` and `__getitem__`, or a frame, table, column or sparse matrix,
            whose rows are the samples and parts of which the batches. Where it has `read_batches`
            (as `FirstOrderDataset` does), batches come from there.
        batch_size: samples a batch, at least 1; the last batch may be shorter.
        shuffle: another order in every epoch. No global random state is read or changed.
        seed: makes the orders repeatable; None draws a fresh one.
        drop_last: leave out a last batch that is shorter.
        pad_last: fill it up with samples from the epoch's beginning.
        collate_fn: makes a batch of a list of samples; default: see below.
        rank, num_ranks: this process's part of every global batch of `batch_size * num_ranks`.
        prefetch: batches that a thread reads ahead; 0 for none. A dataset that draws from the
            global random states is read in the caller's thread all the same.

    A batch has the structure of one sample. What is an array, a number or a list of numbers in a sample
    (nested lists too) is one array (batch, ...) in a batch; texts, other objects and lists of numbers
    that differ in length are a list with one entry a sample; dicts, tuples and other lists stay what
    they are, with batches in them.

    Raises:
        ArgumentError: a value cannot be used, or two contradict each other; or, while it is iterated,
            samples do not go together: names the first that does not.

    >>> loader = SimpleDataLoader([(0, "a"), (1, "b"), (2, "c")], batch_size=2)
    >>> len(loader), [labels for _, labels in loader]
    (2, [['a', 'b'], ['c']])
    """

    def __init__(
        self,
        dataset: Any,
        batch_size: int = 64,
        shuffle: bool = False,
        *,
        seed: int | None = None,
        drop_last: bool = False,
        pad_last: bool = False,
        collate_fn: Callable[[Any], Any] | None = None,
        rank: int = 0,
        num_ranks: int = 1,
        prefetch: int = 0,
    ) -> None:
        self.dataset = dataset
        self._samples = as_dataset(dataset)
        self.batch_size = check_batch_size(batch_size)
        self.shuffle = shuffle
        self.drop_last = drop_last
        self.collate_fn = collate_fn
        self.prefetch = prefetch
        self.cursor = make_plan(
            len(self._samples),
            batch_size,
            shuffle,
            seed,
            drop_last=drop_last,
            pad_last=pad_last,
            rank=rank,
            num_ranks=num_ranks,
        )

    def __len__(self) -> int:
        """Batches of a whole epoch, also where the next iteration begins in the middle of one."""
        return self.cursor.plan.num_batches()

    def __iter__(self) -> Iterator[Any]:
        grouped = self.collate_fn is None and hasattr(self.dataset, "read_batches")
        limit = 1
        if grouped:
            limit = self.dataset.batches_at_once(self.batch_size, ahead=self.prefetch > 0)
        read = self._read_grouped if grouped else self._read
        announce = getattr(self.dataset, "announce", None)
        return run(self.cursor, read, limit=limit, prefetch=self.prefetch, announce=announce)

    def _read_grouped(self, samples: Array) -> Sequence[Any]:
        batches: Sequence[Any] = self.dataset.read_batches(samples, self.batch_size)
        return batches

    def _read(self, samples: Array) -> Sequence[Any]:
        if isinstance(self._samples, Rows) and self.collate_fn is None:
            return [self._samples.take(samples)]
        found = samples_of(self._samples, samples.tolist())
        if self.collate_fn is not None:
            return [self.collate_fn(found)]
        return [bring_together(collate, found, samples.tolist())]

    def set_epoch(self, epoch: int) -> None:
        """Make the next iteration this epoch; see `Cursor.set_epoch`."""
        self.cursor.set_epoch(epoch)

    def state_dict(self) -> dict[str, Any]:
        """Where the loader is: what was handed out, whatever prefetch has read."""
        return self.cursor.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there with the next iteration; batch size and ranks may differ.

        Raises:
            ArgumentError: the state is of another order of samples; the loader stays where it was.
        """
        self.cursor.load_state_dict(state)
