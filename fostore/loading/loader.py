"""SimpleDataLoader: batches of a dataset as NumPy arrays, without any framework; and the loop of all loaders."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from typing import Any, Unpack

from fostore.containers.collate import bring_together, collate, samples_of
from fostore.containers.rows import Rows, as_dataset
from fostore.loading.cursor import Cursor, Resumable
from fostore.loading.options import Options, OrderOptions, named
from fostore.loading.order import Order, Shuffle
from fostore.loading.prefetch import ahead
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
    """One epoch of batches; the only loop that reads them.

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
    order = cursor.order
    step, end = order.global_batch_size, order.num_samples
    epoch, position = cursor.begin()
    stretches = order.stretches(epoch, position, limit)
    if announce is not None and order.shuffle == "blocks":
        stretches = _with_windows(stretches, order, epoch, position, announce)
    elif announce is not None:
        stretches = _announced(stretches, announce)
    # No `map`: it would take a StopIteration out of a dataset for the end of the epoch.
    # Whole stretches go through the queue: a handover costs 10 to 50 us, as much as five small batches.
    read_ahead = ahead((read(samples) for samples in stretches), -(-prefetch // limit), states)
    with closing(read_ahead) as ready:
        for batches in ready:
            for batch in batches:
                if finish is not None:
                    batch = finish(batch, order.num_own(position))
                # Cursor.counted, written out: between two batches everything is slow.
                position += step
                if position > end:
                    position = end
                cursor.hand_out(epoch, position)
                yield batch
    cursor.end(epoch)


def _announced(stretches: Iterator[Array], announce: Callable[[Array], None]) -> Iterator[Array]:
    """The same stretches; before one is given, the one after it is announced."""
    current = next(stretches, None)
    while current is not None:
        following = next(stretches, None)
        if following is not None:
            announce(following)
        yield current
        current = following


def _with_windows(
    stretches: Iterator[Array],
    order: Order,
    epoch: int,
    position: int,
    announce: Callable[[Array], None],
) -> Iterator[Array]:
    """The same stretches; all samples of a window are announced together, one window before its first is given."""
    announced = order.window(position)[0]
    for samples in stretches:
        position = min(
            position + -(-len(samples) // order.batch_size) * order.global_batch_size,
            order.num_samples,
        )
        end = order.window(max(position - 1, 0))[1]
        while announced < min(end + 1, order.num_samples):  # the one in use, and the next
            start, stop = order.window(announced)
            announce(order.samples(epoch, start, stop))
            announced = stop
        yield samples


class SimpleDataLoader(Resumable):
    """Batches of a dataset with `__len__` and `__getitem__`, as nested NumPy arrays.

    The order of an epoch is that of every loader here for the same seed (`fostore.loading.order`).
    Each iteration is the next epoch; `set_epoch` chooses it, and `state_dict` with
    `load_state_dict` goes on in the middle of one.

    Args:
        dataset: anything with `__len__` and `__getitem__`, or a frame, table, column or sparse matrix,
            whose rows are the samples and parts of which the batches. Where it has `read_batches`
            (as `FirstOrderDataset` does), batches come from there.
        batch_size: samples a batch, at least 1; the last batch may be shorter.
        shuffle: another order in every epoch. No global random state is read or changed. "blocks" is for rows
            behind a url: blocks of 128 rows come in random order, and the rows of 64 blocks are shuffled
            together (`fostore.loading.order.Order` says how random that is). "lengths" is for sequences: batches of
            like length. Recorded in `state_dict`.
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

    @named
    def __init__(
        self,
        dataset: Any,
        batch_size: int = 64,
        shuffle: Shuffle = False,
        *,
        collate_fn: Callable[[Any], Any] | None = None,
        prefetch: int = 0,
        **order: Unpack[OrderOptions],
    ) -> None:
        self.dataset = dataset
        self._samples = as_dataset(dataset)
        self.collate_fn = collate_fn
        self.prefetch = prefetch
        options = Options(batch_size, shuffle, **order)
        self.cursor = options.cursor(len(self._samples), lengths=getattr(dataset, "lengths", None))
        self.batch_size = self.cursor.order.batch_size
        self.shuffle = shuffle
        self.drop_last = options.drop_last

    def __len__(self) -> int:
        """Batches of a whole epoch, also where the next iteration begins in the middle of one."""
        return self.cursor.order.num_batches()

    def __iter__(self) -> Iterator[Any]:
        announce = getattr(self.dataset, "announce", None)
        read, limit = self._read, 1
        # A collate_fn wants the samples, which `read_batches` brings together by itself.
        if self.collate_fn is None and hasattr(self.dataset, "read_batches"):
            read = self._read_grouped
            limit = self.dataset.batches_at_once(self.batch_size, ahead=self.prefetch > 0)
        return run(self.cursor, read, limit=limit, prefetch=self.prefetch, announce=announce)

    def _read_grouped(self, samples: Array) -> Sequence[Any]:
        batches: Sequence[Any] = self.dataset.read_batches(samples, self.batch_size)
        return batches

    def _read(self, samples: Array) -> Sequence[Any]:
        if isinstance(self._samples, Rows) and self.collate_fn is None:
            return [self._samples.take(samples)]
        indices = samples.tolist()
        chosen = samples_of(self._samples, indices)
        if self.collate_fn is not None:
            return [self.collate_fn(chosen)]
        return [bring_together(collate, chosen, indices)]
