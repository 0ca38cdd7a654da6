"""The loading core: the order of an epoch, where a loader is, what reads ahead, and SimpleDataLoader."""

from __future__ import annotations

import dataclasses
import gc
import inspect
import itertools
import json
import random
import subprocess
import sys
import threading
import time
import tracemalloc
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fostore
from fostore.containers.collate import collate
from fostore.errors import ArgumentError
from fostore.loading.cursor import Cursor
from fostore.loading.loader import SimpleDataLoader, run
from fostore.loading.options import Options, OrderOptions
from fostore.loading.order import Order
from fostore.loading.prefetch import ahead

SORTED = 1 << 16


def taken(order: Order, epoch: int = 0, position: int = 0) -> list[int]:
    return [i for batch in order.batches(epoch, position) for i in batch.tolist()]


def ranks_of(options: dict[str, Any], num_ranks: int) -> list[Order]:
    return [Order(**options, rank=rank, num_ranks=num_ranks) for rank in range(num_ranks)]


# ------------------------------------------------------------------ every sample once


@st.composite
def orders(draw: st.DrawFn, last: str = "short") -> tuple[dict[str, Any], int, int]:
    """Options of an order, a number of ranks, and an epoch."""
    num_ranks = draw(st.integers(1, 5))
    batch_size = draw(st.integers(1, 40))
    num_samples = draw(st.integers(0, 400) | st.integers(SORTED - 2, SORTED + 2))
    if last == "short" and 0 < num_samples % (batch_size * num_ranks) < num_ranks:
        num_samples -= num_samples % (batch_size * num_ranks)
    options = {
        "num_samples": num_samples,
        "batch_size": batch_size,
        "shuffle": draw(st.booleans()),
        "seed": draw(st.integers(0, (1 << 64) - 1)),
        "last": last,
    }
    return options, num_ranks, draw(st.integers(0, 1 << 33))


@given(orders())
def test_every_sample_comes_once_over_all_ranks(case: tuple[dict[str, Any], int, int]) -> None:
    options, num_ranks, epoch = case
    seen = [i for order in ranks_of(options, num_ranks) for i in taken(order, epoch)]
    assert sorted(seen) == list(range(options["num_samples"]))


@given(orders("drop"))
def test_dropping_leaves_out_less_than_a_global_batch(
    case: tuple[dict[str, Any], int, int],
) -> None:
    options, num_ranks, epoch = case
    batches = [batch for order in ranks_of(options, num_ranks) for batch in order.batches(epoch)]
    seen = [i for batch in batches for i in batch.tolist()]
    assert {len(batch) for batch in batches} <= {options["batch_size"]}
    assert len(set(seen)) == len(seen)
    assert 0 <= options["num_samples"] - len(seen) < options["batch_size"] * num_ranks


@given(orders("pad"))
def test_padding_fills_with_the_epochs_beginning_and_says_how_many(
    case: tuple[dict[str, Any], int, int],
) -> None:
    options, num_ranks, epoch = case
    n = options["num_samples"]
    ranks = ranks_of(options, num_ranks)
    own: list[int] = []
    filled: list[int] = []
    for k in range(ranks[0].num_batches()):
        position = k * ranks[0].global_batch_size
        for order in ranks:
            batch = order.batch(epoch, k).tolist()
            assert len(batch) == options["batch_size"]
            count = order.num_own(position)
            own += batch[:count]
            filled += batch[count:]
    assert sorted(own) == list(range(n))
    first = ranks[0].samples(epoch, 0, n).tolist()
    assert filled == list(itertools.islice(itertools.cycle(first), len(filled)))


@given(orders(), st.data())
def test_going_on_with_other_ranks_and_batches_still_gives_every_sample_once(
    case: tuple[dict[str, Any], int, int], data: st.DataObject
) -> None:
    options, num_ranks, epoch = case
    first = ranks_of(options, num_ranks)
    steps = data.draw(st.integers(0, first[0].num_batches()))
    seen = [i for order in first for k in range(steps) for i in order.batch(epoch, k).tolist()]
    position = min(steps * first[0].global_batch_size, options["num_samples"])
    other_ranks, other_size = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 7))
    options = {**options, "batch_size": other_size, "last": "pad"}
    for order in ranks_of(options, other_ranks):
        at = position
        for batch in order.batches(epoch, position):
            seen += batch.tolist()[: order.num_own(at)]
            at = order.after(at)
    assert sorted(seen) == list(range(options["num_samples"]))


@given(orders() | orders("drop") | orders("pad"), st.integers(1, 9))
def test_a_batch_alone_is_the_batch_of_the_epoch(
    case: tuple[dict[str, Any], int, int], limit: int
) -> None:
    options, num_ranks, epoch = case
    for order in ranks_of(options, num_ranks):
        batches = [batch.tolist() for batch in order.batches(epoch)]
        assert len(batches) == order.num_batches()
        assert batches == [order.batch(epoch, k).tolist() for k in range(len(batches))]
        stretches = [s.tolist() for s in order.stretches(epoch, 0, limit)]
        assert [i for s in stretches for i in s] == [i for b in batches for i in b]
        assert all(len(s) <= limit * order.batch_size for s in stretches)


def test_the_short_last_batch_is_split_evenly_over_the_ranks() -> None:
    options = {"num_samples": 107, "batch_size": 10, "shuffle": True, "seed": 1}
    sizes = [[len(b) for b in order.batches(0)] for order in ranks_of(options, 4)]
    assert sizes == [[10, 10, 7], [10, 10, 7], [10, 10, 7], [10, 10, 6]]
    own = [order.num_own(80) for order in ranks_of(options, 4)]
    assert own == [7, 7, 7, 6]


def test_a_global_batch_is_the_same_for_any_number_of_ranks() -> None:
    whole = [b.tolist() for b in Order(96, 12, shuffle=True, seed=5).batches(2)]
    options = {"num_samples": 96, "batch_size": 4, "shuffle": True, "seed": 5}
    parts = zip(*(order.batches(2) for order in ranks_of(options, 3)), strict=True)
    assert [np.concatenate(part).tolist() for part in parts] == whole


# ------------------------------------------------------------------ the order


@pytest.mark.parametrize(
    "num_samples", [1, 2, 3, SORTED - 1, SORTED, SORTED + 1, 2 * SORTED, 100_003]
)
def test_an_epoch_is_a_permutation_on_both_sides_of_the_threshold(num_samples: int) -> None:
    for seed, epoch in [(0, 0), (3, 1), ((1 << 64) - 1, 7)]:
        order = Order(num_samples, 1, shuffle=True, seed=seed).samples(epoch, 0, num_samples)
        assert order.dtype == np.int64
        assert np.array_equal(np.sort(order), np.arange(num_samples))


@pytest.mark.parametrize("num_samples", [(1 << 32) - 5, (1 << 32) + 5, 10**12, (1 << 62) + 1])
def test_sampled_places_of_a_vast_epoch_are_distinct_samples(num_samples: int) -> None:
    order = Order(num_samples, 1, shuffle=True, seed=11)
    starts = [0, 22_345, num_samples // 3, num_samples // 2, num_samples - 20_000]
    found = np.concatenate([order.samples(4, start, start + 20_000) for start in starts])
    assert found.min() >= 0
    assert found.max() < num_samples
    assert len(np.unique(found)) == len(found)
    assert abs(found.mean(dtype=np.float64) / num_samples - 0.5) < 0.01


def chi_square(counts: np.ndarray) -> float:
    """Of counts that should be equal, in standard deviations from what chance gives."""
    expected = counts.sum() / counts.size
    statistic = ((counts - expected) ** 2 / expected).sum()
    return float((statistic - (counts.size - 1)) / np.sqrt(2 * (counts.size - 1)))


@pytest.mark.parametrize("num_samples", [50_000, 65_537, 100_000, 1 << 17, 1_000_000])
@pytest.mark.parametrize("seed", [0, 1, 1 << 40])
def test_the_order_looks_shuffled(num_samples: int, seed: int) -> None:
    order = Order(num_samples, 1, shuffle=True, seed=seed).samples(0, 0, num_samples)
    places = np.arange(num_samples)
    # Where in the epoch the samples of each part of the dataset come.
    cells = 32 * (places * 32 // num_samples) + order * 32 // num_samples
    assert abs(chi_square(np.bincount(cells, minlength=1024))) < 6
    # How far apart neighbours in the epoch are, near and far.
    gaps = (np.diff(order) % num_samples) * 256 // num_samples
    assert abs(chi_square(np.bincount(gaps, minlength=256))) < 6
    # Low bits of neighbours: strides and parity patterns show here.
    pairs = 64 * (order[:-1] % 64) + order[1:] % 64
    assert abs(chi_square(np.bincount(pairs, minlength=4096))) < 6
    assert np.count_nonzero(np.diff(order) == 1) < 12
    assert np.count_nonzero(order == places) < 12


def test_orders_of_neighbouring_seeds_and_epochs_have_nothing_in_common() -> None:
    def order(seed: int, epoch: int) -> np.ndarray:
        return Order(100_000, 1, shuffle=True, seed=seed).samples(epoch, 0, 100_000)

    first = order(5, 0)
    for other in (order(6, 0), order(5, 1), order(5 + (1 << 32), 0)):
        assert np.count_nonzero(first == other) < 12
        assert abs(np.corrcoef(first, other)[0, 1]) < 0.02
    # Numbers that are strung together without their widths would make these the same.
    assert not np.array_equal(order(5, 1), order(5 + (1 << 32), 0))


def test_the_orders_are_those_of_all_releases() -> None:
    small = Order(10, 1, shuffle=True, seed=7)
    assert small.samples(0, 0, 10).tolist() == SMALL_EPOCH_0
    assert small.samples(1, 0, 10).tolist() == SMALL_EPOCH_1
    assert Order(100_000, 1, shuffle=True, seed=7).samples(3, 500, 506).tolist() == MEDIUM
    assert Order(10**12, 1, shuffle=True, seed=7).samples(3, 10**11, 10**11 + 4).tolist() == VAST


def test_an_epoch_of_a_vast_store_begins_in_little_memory() -> None:
    order = Order(10**12, 256, shuffle=True, seed=3, rank=1, num_ranks=2)
    next(order.batches(0))  # what is loaded once
    tracemalloc.start()
    batches = order.stretches(0, 512 * 10**6)
    for _ in range(3):
        assert len(next(batches)) <= SORTED
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 << 20
    assert order.num_batches() == -(-(10**12) // 512)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size is 0"),
        ({"batch_size": 2.0}, r"batch_size is 2\.0"),
        ({"batch_size": True}, "batch_size is True"),
        ({"num_samples": -1}, "num_samples is -1"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 1 << 64}, "seed is 18446744073709551616"),
        ({"seed": 1.5}, r"seed is 1\.5, expected an integer"),
        ({"last": "keep"}, "last is 'keep'"),
        ({"rank": 2, "num_ranks": 2}, "rank is 2 of num_ranks 2"),
        ({"rank": -1}, "rank is -1"),
        ({"num_ranks": 0}, "num_ranks 0"),
        ({"num_samples": 21, "num_ranks": 2}, "the last batch has 1 samples for 2 ranks"),
    ],
)
def test_a_plan_refuses_what_it_cannot_do(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        Order(**{"num_samples": 20, "batch_size": 10, **options})


# ------------------------------------------------------------------ where a loader is


def numbers(samples: int = 23, **options: Any) -> SimpleDataLoader:
    return SimpleDataLoader(range(samples), **{"batch_size": 5, **options})


def values(batches: Any) -> list[list[int]]:
    return [np.asarray(batch).tolist() for batch in batches]


def test_every_iteration_is_the_next_epoch_also_after_one_that_was_left() -> None:
    loader, same = numbers(shuffle=True, seed=2), numbers(shuffle=True, seed=2)
    epochs = [values(same) for _ in range(3)]
    assert epochs[0] != epochs[1]
    assert values(itertools.islice(loader, 2)) == epochs[0][:2]
    assert values(loader) == epochs[1]
    loader.set_epoch(0)
    assert values(loader) == epochs[0]
    loader.set_epoch(2)
    assert values(loader) == epochs[2]


@pytest.mark.parametrize("prefetch", [0, 3])
def test_a_state_counts_the_batches_handed_out(prefetch: int) -> None:
    loader = numbers(100, shuffle=True, seed=2, prefetch=prefetch)
    batches = iter(loader)
    for k in range(1, 8):
        next(batches)
        time.sleep(0.01)  # the thread reads ahead meanwhile
        assert loader.state_dict()["position"] == 5 * k
    state = json.loads(json.dumps(loader.state_dict()))
    rest = values(batches)
    other = numbers(100, shuffle=True, seed=2, prefetch=prefetch)
    other.load_state_dict(state)
    assert values(other) == rest
    assert values(other) == values(loader)  # the epoch after it


def test_a_state_goes_on_with_another_batch_size_and_number_of_ranks() -> None:
    loader = numbers(100, shuffle=True, seed=2)
    seen = [i for batch in itertools.islice(loader, 6) for i in batch.tolist()]
    for rank in range(2):
        other = numbers(100, batch_size=7, shuffle=True, seed=2, rank=rank, num_ranks=2)
        other.load_state_dict(loader.state_dict())
        seen += [i for batch in other for i in batch.tolist()]
    assert sorted(seen) == list(range(100))


def test_after_the_last_batch_the_state_goes_on_with_the_next_epoch() -> None:
    loader, whole = numbers(shuffle=True, seed=2), numbers(shuffle=True, seed=2)
    whole.set_epoch(1)
    following = values(whole)
    batches = iter(loader)
    for _ in range(len(loader)):
        next(batches)
    other = numbers(shuffle=True, seed=2)
    other.load_state_dict(loader.state_dict())
    assert values(other) == following
    other.load_state_dict(loader.state_dict())
    other.set_epoch(0)  # as a training loop says that begins again with the epoch of its checkpoint
    assert values(other) == []
    assert values(other) == following
    assert next(batches, None) is None
    assert (loader.state_dict()["epoch"], loader.state_dict()["position"]) == (1, 0)


def test_set_epoch_keeps_a_loaded_position_of_that_epoch_only() -> None:
    loader = numbers(shuffle=True, seed=2)
    state = {**loader.state_dict(), "epoch": 3, "position": 10}
    loader.load_state_dict(state)
    loader.set_epoch(3)
    assert len(values(loader)) == 3
    loader.load_state_dict(state)
    loader.set_epoch(4)
    assert len(values(loader)) == 5
    assert loader.state_dict()["epoch"] == 5
    with pytest.raises(ArgumentError, match="epoch is -1"):
        loader.set_epoch(-1)


def test_a_state_after_set_epoch_is_of_that_epoch() -> None:
    loader = numbers(shuffle=True, seed=2)
    next(iter(loader))
    loader.set_epoch(1)
    assert (loader.state_dict()["epoch"], loader.state_dict()["position"]) == (1, 0)


def test_a_loader_whose_seed_nobody_chose_takes_that_of_the_state() -> None:
    first, other = numbers(shuffle=True), numbers(shuffle=True)
    batches = iter(first)
    next(batches)
    other.load_state_dict(first.state_dict())
    assert values(other) == values(batches)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 2}, "version 2"),
        ({"seed": 3}, "seed=3, this loader has 2"),
        ({"num_samples": 24}, "num_samples=24"),
        ({"shuffle": False}, "shuffle=False"),
        ({"position": 24}, "position 24 of 23"),
        ({"position": -1}, "position -1"),
        ({"epoch": -1}, "epoch -1"),
        ({"epoch": "first"}, "no state of a loader"),
        ({"position": None}, "no state of a loader"),
        ({"position": 22}, "the last batch has 1 samples for 2 ranks"),
    ],
)
def test_a_state_of_another_order_is_refused_and_changes_nothing(
    change: dict[str, Any], message: str
) -> None:
    loader = numbers(23, batch_size=4, shuffle=True, seed=2, num_ranks=2)
    loader.set_epoch(6)
    before = loader.state_dict()
    with pytest.raises(ArgumentError, match=message):
        loader.load_state_dict({**before, **change})
    assert loader.state_dict() == before
    assert values(loader) == [b.tolist() for b in loader.cursor.order.batches(6)]


@pytest.mark.parametrize("state", [{}, {"version": 1, "epoch": 0}])
def test_what_is_no_state_is_refused(state: dict[str, Any]) -> None:
    with pytest.raises(ArgumentError, match="no state of a loader"):
        Cursor(Order(10, 2)).load_state_dict(state)


# ------------------------------------------------------------------ reading ahead


class Counted:
    """Items that say which thread read them, and how many were read."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.read = 0
        self.threads: list[str] = []

    def __iter__(self) -> Iterator[int]:
        for i in range(self.count):
            self.read += 1
            self.threads.append(threading.current_thread().name)
            yield i


def prefetching() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name == "fostore-prefetch"]


@pytest.mark.parametrize("depth", [0, 1, 2, 7, 100])
@pytest.mark.parametrize("count", [0, 1, 2, 50])
def test_items_come_in_their_order_at_any_depth(depth: int, count: int) -> None:
    assert list(ahead(iter(Counted(count)), depth)) == list(range(count))
    assert prefetching() == []


def test_no_more_is_read_ahead_than_was_said() -> None:
    for depth in (1, 3):
        items = Counted(100)
        out = ahead(iter(items), depth)
        for taken_out in range(1, 6):
            next(out)
            time.sleep(0.05)
            assert items.read <= taken_out + depth + 1  # one more waits for its place
        assert items.read > 5
        out.close()


def test_without_depth_there_is_no_thread() -> None:
    items = Counted(5)
    assert list(ahead(iter(items), 0)) == list(range(5))
    assert set(items.threads) == {threading.current_thread().name}


def test_the_first_item_is_read_by_the_caller_and_the_others_by_the_thread() -> None:
    items = Counted(5)
    list(ahead(iter(items), 2))
    assert items.threads == [threading.current_thread().name, *["fostore-prefetch"] * 4]


@pytest.mark.parametrize("fail_at", [0, 1, 3])
@pytest.mark.parametrize("depth", [0, 2])
def test_an_error_comes_where_its_item_would_have_come(fail_at: int, depth: int) -> None:
    def items() -> Iterator[int]:
        for i in range(10):
            if i == fail_at:
                raise OSError("disk gone")
            yield i

    seen: list[int] = []
    with pytest.raises(OSError, match="disk gone"):
        for item in ahead(items(), depth):
            time.sleep(0.01)
            seen.append(item)
    assert seen == list(range(fail_at))
    assert prefetching() == []


def test_leaving_early_ends_the_thread() -> None:
    for leave in ("close", "drop", "raise"):
        items = Counted(1000)
        out = ahead(iter(items), 2)
        next(out), next(out)
        assert len(prefetching()) == 1
        if leave == "close":
            out.close()
        elif leave == "drop":
            del out
            gc.collect()
        else:
            with pytest.raises(KeyboardInterrupt):
                out.throw(KeyboardInterrupt())
        assert prefetching() == []
        assert items.read < 10


@pytest.mark.parametrize("depth", [0, 2])
def test_no_item_is_kept_once_another_is_asked_for(depth: int) -> None:
    items = ahead((np.zeros(1) for _ in range(9)), depth)
    first = weakref.ref(next(items))
    next(items), next(items), next(items)
    assert first() is None
    items.close()


def test_an_iteration_whose_thread_has_ended_leaves_nothing_running_and_says_so() -> None:
    out = ahead(iter(Counted(1000)), 2)
    beginner = threading.Thread(target=lambda: [next(out) for _ in range(2)])
    beginner.start()
    beginner.join()
    until = time.monotonic() + 10
    while prefetching() and time.monotonic() < until:
        time.sleep(0.02)
    assert prefetching() == []
    with pytest.raises(RuntimeError, match="begin a new iteration"):
        next(out)


class Cycle:
    """Keeps an iteration alive until the collector comes, as a frame in a traceback does."""

    def __init__(self, items: Iterator[Any]) -> None:
        self.items, self.own = items, self
        next(items), next(items)


def ended_within(seconds: float) -> bool:
    until = time.monotonic() + seconds
    while prefetching() and time.monotonic() < until:
        time.sleep(0.02)
    return not prefetching()


COLLECTED = """
import gc, time, threading
from fostore.loading.prefetch import ahead
gc.disable()
class Cycle: pass
cycle = Cycle()
cycle.items, cycle.own = ahead(iter(range(1000)), 2), cycle
next(cycle.items), next(cycle.items)
time.sleep(0.3)  # the thread waits for room
del cycle
gc.set_threshold(1)
gc.enable()  # and makes the next garbage, while this one sleeps
time.sleep(1)
print([t.name for t in threading.enumerate()])
"""


def test_an_iteration_that_its_own_thread_collects_ends() -> None:
    done = subprocess.run(
        [sys.executable, "-c", COLLECTED], capture_output=True, text=True, timeout=60
    )
    assert done.stdout.split() == ["['MainThread']"], done.stderr


def test_who_collects_an_iteration_waits_not_for_ever_for_what_it_holds_itself(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("fostore.loading.prefetch._PATIENCE_SECONDS", 0.2)
    held, is_reading = threading.Lock(), threading.Event()

    def items() -> Iterator[int]:
        yield from (0, 1)
        is_reading.set()
        with held:
            yield 2

    with held:
        Cycle(ahead(items(), 2))
        assert is_reading.wait(10)
        gc.collect()
    assert ended_within(10)


def test_an_iteration_may_go_on_in_another_thread() -> None:
    out = ahead(iter(Counted(50)), 2)
    seen = [next(out), next(out)]
    rest = threading.Thread(target=lambda: seen.extend(out))
    rest.start()
    rest.join()
    assert seen == list(range(50))


@pytest.mark.parametrize("draw", [random.random, np.random.rand, lambda: np.random.permutation(3)])
def test_a_dataset_that_draws_from_global_random_states_is_read_by_the_caller(draw: Any) -> None:
    threads: set[str] = set()

    class Augmented:
        def __len__(self) -> int:
            return 20

        def __getitem__(self, index: int) -> float:
            threads.add(threading.current_thread().name)
            return float(np.sum(draw()))

    loader = SimpleDataLoader(Augmented(), 2, prefetch=3)
    random.seed(1), np.random.seed(1)
    ahead_of_time = values(loader)
    assert threads == {threading.current_thread().name}
    random.seed(1), np.random.seed(1)
    assert values(SimpleDataLoader(Augmented(), 2)) == ahead_of_time


def test_reading_ahead_changes_no_random_state() -> None:
    random.seed(1), np.random.seed(1)
    before = random.getstate(), np.random.get_state()[1].tolist()
    values(numbers(shuffle=True, prefetch=2))
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before


# ------------------------------------------------------------------ the loop and the NumPy loader


def test_a_dataset_that_ends_too_early_does_not_end_the_epoch_silently() -> None:
    class Ending:
        def __len__(self) -> int:
            return 10

        def __getitem__(self, index: int) -> int:
            if index == 6:
                next(iter(()))
            return index

    for prefetch in (0, 2):
        with pytest.raises(RuntimeError, match="StopIteration"):
            list(SimpleDataLoader(Ending(), 2, prefetch=prefetch))


def test_finish_gets_every_batch_with_its_own_samples() -> None:
    cursor = Options(4, pad_last=True).cursor(10)
    found = run(cursor, lambda samples: [samples.tolist()], finish=lambda b, own: b[:own])
    assert list(found) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


@pytest.mark.parametrize(
    ("options", "sizes"),
    [({}, [4, 4, 2]), ({"drop_last": True}, [4, 4]), ({"pad_last": True}, [4, 4, 4])],
)
def test_the_last_batch_is_short_left_out_or_filled(
    options: dict[str, Any], sizes: list[int]
) -> None:
    loader = SimpleDataLoader(range(10), 4, **options)
    batches = values(loader)
    assert [len(batch) for batch in batches] == sizes
    assert len(loader) == len(sizes)
    if options.get("pad_last"):
        assert batches[-1] == [8, 9, 0, 1]


def test_loader_options_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(ArgumentError, match="choose one"):
        SimpleDataLoader(range(10), 4, drop_last=True, pad_last=True)
    with pytest.raises(ArgumentError, match="give seed="):
        SimpleDataLoader(range(10), 4, shuffle=True, num_ranks=2)


def test_an_empty_dataset_gives_no_batches() -> None:
    for last in ({}, {"drop_last": True}, {"pad_last": True}):
        assert list(SimpleDataLoader([], 4, **last)) == []


def test_samples_are_stacked_as_they_are_nested() -> None:
    samples = [{"x": np.full(2, i, np.float16), "name": f"s{i}", "y": (i, i / 2)} for i in range(3)]
    (batch,) = SimpleDataLoader(samples, 3)
    assert batch["x"].dtype == np.float16
    assert batch["x"].tolist() == [[0, 0], [1, 1], [2, 2]]
    assert batch["name"] == ["s0", "s1", "s2"]
    assert batch["y"][1].tolist() == [0, 0.5, 1]


def test_collate_fn_gets_the_list_of_samples() -> None:
    assert list(SimpleDataLoader("abcde", 2, collate_fn="".join)) == ["ab", "cd", "e"]


def test_ragged_samples_are_refused_or_become_lists() -> None:
    samples = [(np.zeros(2), [1, 2]), (np.zeros(3), [1])]
    with pytest.raises(ArgumentError, match=r"sample 1 of the batch has the shape \(3,\)"):
        collate(samples)
    arrays, lists = collate(samples, ragged=True)
    assert [array.shape for array in arrays] == [(2,), (3,)]
    assert lists == [[1, 2], [1]]


@pytest.mark.parametrize("prefetch", [0, 2])
@pytest.mark.parametrize("base", [True, False])
def test_the_numpy_loader_pairs_rows_with_their_samples(
    prefetch: int, base: bool, tmp_path: Any
) -> None:
    rows = np.random.default_rng(0).dirichlet(np.ones(4), 500).astype(np.float32)
    with fostore.create(tmp_path / "a.zarr", num_samples=500, num_classes=4) as writer:
        writer.append(rows)
    data = [(np.float32(i), i % 3) for i in range(500)] if base else None
    loader = fostore.output_dataloader(
        data, tmp_path / "a.zarr", 16, shuffle=True, seed=4, prefetch=prefetch
    )
    for epoch in range(2):
        samples = list(loader.cursor.order.batches(epoch))
        batches = list(loader)
        assert len(batches) == len(samples)
        for batch, wanted in zip(batches, samples, strict=True):
            if base:
                assert batch[0].tolist() == wanted.tolist()
                assert batch[1].tolist() == (wanted % 3).tolist()
            np.testing.assert_array_equal(batch[-1] if base else batch, rows[wanted])


# ------------------------------------------------------------------ golden values

SMALL_EPOCH_0 = [2, 1, 4, 9, 3, 7, 6, 0, 5, 8]
SMALL_EPOCH_1 = [1, 6, 3, 8, 0, 7, 9, 5, 2, 4]
MEDIUM = [14198, 62288, 92600, 42650, 1356, 90834]
VAST = [404967304305, 451671367666, 885260007571, 19041707790]


def test_every_loader_takes_the_options_of_the_order_and_shows_them() -> None:
    by_keyword = {field.name: field.default for field in dataclasses.fields(Options)}
    assert set(OrderOptions.__annotations__) == set(by_keyword) - {"batch_size", "shuffle"}
    for function in (SimpleDataLoader, fostore.output_dataloader):
        parameters = inspect.signature(function).parameters
        assert {name: parameters[name].default for name in by_keyword} == by_keyword
    with pytest.raises(TypeError, match="unexpected keyword argument 'sed'"):
        SimpleDataLoader([1], sed=3)  # type: ignore[call-arg]
