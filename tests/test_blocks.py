"""The order "blocks": every sample once, in windows of few blocks, by seed and epoch; and loaders that follow it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fostore
from fostore.errors import ArgumentError
from fostore.loading.loader import SimpleDataLoader
from fostore.loading.order import BLOCK_ROWS, WINDOW_ROWS, Order
from fostore.places.memory import Memory
from fostore.places.place import Version
from test_place_reads import rows_of, store_at

COUNTS = [
    0,
    1,
    127,
    128,
    129,
    8191,
    8192,
    8193,
    8192 + 128,
    20_000,
    3 * 8192,
    3 * 8192 + 5,
    100_001,
]


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("batch_size", [1, 64, 100])
def test_every_epoch_has_every_sample_once(count: int, batch_size: int) -> None:
    order = Order(count, max(batch_size, count // 300), shuffle="blocks", seed=3)
    whole = order.samples(0, 0, count)
    assert np.array_equal(np.sort(whole), np.arange(count))
    assert np.array_equal(np.concatenate([whole[:0], *order.batches(0)]), whole)
    for start, stop in ((0, 1), (count // 2, count), (8000, 9000), (count, count)):
        assert np.array_equal(order.samples(0, start, stop), whole[start:stop])
    if count > 100:
        others = [
            Order(count, 1, shuffle="blocks", seed=4).samples(0, 0, count),
            order.samples(1, 0, count),
        ]
        assert all((one != whole).mean() > 0.9 for one in others)


@pytest.mark.parametrize("count", [20_000, 3 * 8192, 100_001])
def test_a_window_lies_in_few_places(count: int) -> None:
    order = Order(count, 64, shuffle="blocks", seed=1)
    position, seen = 0, 0
    while position < count:
        start, stop = order.window(position)
        assert start == position
        assert order.window(stop - 1) == (start, stop)
        rows = np.sort(order.samples(0, start, stop))
        assert np.count_nonzero(np.diff(rows) > 1) <= WINDOW_ROWS // BLOCK_ROWS + 1
        position, seen = stop, seen + len(rows)
    assert seen == count


def test_any_sample_may_come_at_any_time_and_with_any_block() -> None:
    count, epochs = 64 * 1024, 300
    order = Order(count, 64, shuffle="blocks", seed=5)
    firsts = np.array([order.samples(epoch, 0, 1)[0] for epoch in range(epochs)])
    assert abs(firsts.mean() / count - 0.5) < 0.06  # 3.6 standard deviations
    places = np.array([np.flatnonzero(order.samples(e, 0, count) == 77)[0] for e in range(100)])
    assert len(np.unique(places // WINDOW_ROWS)) == 8
    inside = order.samples(0, 0, WINDOW_ROWS)
    assert len(np.unique(inside[:64] // BLOCK_ROWS)) > 25  # of 64 blocks


def test_the_order_is_what_it_was_when_checkpoints_were_written() -> None:
    order = Order(20_000, 64, shuffle="blocks", seed=7)
    assert order.samples(2, 8190, 8195).tolist() == [15922, 13443, 9224, 3868, 16967]


def test_ranks_share_an_epoch() -> None:
    batches = [
        np.concatenate(
            list(Order(20_000, 50, shuffle="blocks", seed=1, rank=r, num_ranks=4).batches(0))
        )
        for r in range(4)
    ]
    assert np.array_equal(np.sort(np.concatenate(batches)), np.arange(20_000))


def test_what_is_no_order_is_refused() -> None:
    with pytest.raises(ArgumentError, match="'blocks'"):
        Order(10, 2, shuffle="block")  # type: ignore[arg-type]


def test_a_state_says_the_order_and_goes_on_in_it() -> None:
    data = np.arange(20_000)
    loader = SimpleDataLoader(data, 64, "blocks", seed=3)
    batches = iter(loader)
    seen = [next(batches) for _ in range(150)]
    state = json.loads(json.dumps(loader.state_dict()))
    assert state["shuffle"] == "blocks"
    other = SimpleDataLoader(data, 64, "blocks", seed=3)
    other.load_state_dict(state)
    rest = list(other)
    assert np.array_equal(np.sort(np.concatenate([*seen, *rest])), data)
    with pytest.raises(ArgumentError, match="shuffle='blocks'"):
        SimpleDataLoader(data, 64, True, seed=3).load_state_dict(state)


class Counting(Memory):
    ranges = 0
    calls = 0

    def read_many(self, ranges: Sequence[tuple[str, int, int]]) -> list[tuple[bytes, Version]]:
        self.ranges += len(ranges)
        self.calls += 1
        return super().read_many(ranges)


@pytest.mark.parametrize("prefetch", [0, 2])
@pytest.mark.parametrize("batch_size", [64, 100])
@pytest.mark.parametrize("with_inputs", [False, True])
def test_a_loader_over_a_place_reads_whole_blocks(
    tmp_path: Path, prefetch: int, batch_size: int, with_inputs: bool
) -> None:
    path = store_at(tmp_path / "s.zarr", rows_of())
    place = Counting.of("memory://blocks.zarr", path)
    store, oracle = fostore.open(place), fostore.open(path)
    base = [(float(i), i) for i in range(len(oracle))] if with_inputs else None
    data = fostore.FirstOrderDataset(base, store, check="length") if with_inputs else store
    counted = {}
    for shuffle in ("blocks", True):
        place.ranges = 0
        loader = SimpleDataLoader(data, batch_size, shuffle, seed=3, prefetch=prefetch)
        order = loader.cursor.order
        for samples, batch in zip(order.batches(0), loader, strict=True):
            rows = batch[-1] if with_inputs else batch
            np.testing.assert_array_equal(rows, oracle.take(samples))
        counted[shuffle] = place.ranges
    # 20,000 rows are 157 blocks; some are cut by units or by where an epoch begins.
    assert counted["blocks"] < 200
    assert counted[True] > 10 * counted["blocks"]


def test_torch_follows_the_same_order(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from fostore.torch import output_dataloader

    path = store_at(tmp_path / "s.zarr", rows_of())
    place = Counting.of("memory://torch.zarr", path)
    store = fostore.open(place)
    loader = output_dataloader(np.arange(len(store)), store, 64, "blocks", seed=3, check="length")
    order = Order(len(store), 64, shuffle="blocks", seed=3)
    place.ranges = 0
    for samples, (_, rows) in zip(order.batches(0), loader, strict=True):
        np.testing.assert_array_equal(rows.numpy(), store.take(samples))
        break
    assert place.ranges < 200
    assert loader.state_dict()["shuffle"] == "blocks"


@pytest.mark.parametrize("by", ["shuffle", "sampler"])
def test_workers_that_would_fetch_blocks_row_by_row_are_refused(tmp_path: Path, by: str) -> None:
    pytest.importorskip("torch")
    from fostore.torch import EpochSampler, output_dataloader

    path = store_at(tmp_path / "s.zarr", rows_of())
    place = Counting.of("memory://workers.zarr", path)
    for source, refused in ((place, True), (path, False)):
        store = fostore.open(source)
        options: Any = {"shuffle": "blocks", "seed": 3}
        if by == "sampler":
            options = {"batch_sampler": EpochSampler(len(store), 64, **options)}
        options |= {"num_workers": 2, "multiprocessing_context": "spawn"}
        if refused:
            with pytest.raises(ArgumentError, match=r"num_workers=0.*Store\.download"):
                output_dataloader(None, store, **options)
        else:
            assert len(output_dataloader(None, store, **options)) == 313
    # In any other order a worker's batch is what it was: a request a row, at the same time.
    assert len(output_dataloader(None, fostore.open(place), 64, True, num_workers=2)) == 313
