"""torch loading: batches gathered once, any order exactly once, resumed anywhere, moved ahead to a device."""

from __future__ import annotations

import multiprocessing
import pickle
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import (
    ConcatDataset,
    DataLoader,
    Dataset,
    RandomSampler,
    StackDataset,
    Subset,
    WeightedRandomSampler,
    default_collate,
    random_split,
)

import fostore
from fostore.errors import ArgumentError
from fostore.torch import (
    EpochSampler,
    FirstOrderDataset,
    OutputLoader,
    output_dataloader,
    prefetch_to_device,
)
from fostore.torch.rows import DictRow, PairedBatch
from sides import Pairs, make_pairs
from support import probs

SAMPLES = 50


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> fostore.Store:
    path = tmp_path_factory.mktemp("torch") / "rows.zarr"
    with fostore.create(path, num_samples=SAMPLES, num_classes=3) as writer:
        writer.append(probs(SAMPLES))
    return fostore.open(path)


@pytest.fixture
def pairs() -> Pairs:
    return make_pairs(SAMPLES)


class Numbered(Dataset[Any]):
    """Sample i is (i, -i)."""

    def __init__(self, count: int = SAMPLES) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[int, int]:
        return index, -index


class Dicts(Numbered):
    def __getitem__(self, index: int) -> Any:
        return {"x": torch.tensor([float(index)]), "label": index}


class Noisy(Numbered):
    """Draws from torch's global random numbers, as augmentation does."""

    def __getitem__(self, index: int) -> Any:
        return torch.rand(()), index


class Broken(Numbered):
    def __getitem__(self, index: int) -> Any:
        if index == 30:
            raise ValueError("sample 30 is broken")
        return index, 0


class Weighted(Numbered):
    """Inputs that need gradients where gradients are on."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.ones((), requires_grad=True)

    def __getitem__(self, index: int) -> Any:
        return self.weight * index, index


def assert_same(batch: Any, other: Any) -> None:
    """Equal in type, structure and every number."""
    assert type(batch) is type(other)
    if isinstance(batch, torch.Tensor):
        assert batch.dtype == other.dtype
        assert torch.equal(batch, other)
    elif isinstance(batch, Mapping):
        assert list(batch) == list(other)
        for key in batch:
            assert_same(batch[key], other[key])
    elif isinstance(batch, (list, tuple)):
        assert len(batch) == len(other)
        for one, two in zip(batch, other, strict=True):
            assert_same(one, two)
    else:
        assert batch == other


def drawn(loader: Any) -> list[int]:
    """The inputs of a loader over `Numbered`, whose rows are checked on the way."""
    seen = []
    rows = probs(SAMPLES)
    for inputs, labels, distributions in loader:
        assert labels.tolist() == (-inputs).tolist()
        np.testing.assert_array_equal(distributions.numpy(), rows[inputs.numpy()])
        seen += inputs.tolist()
    return seen


# ------------------------------------------------------------------ stock loaders


def test_a_stock_loader_gives_what_it_gives_for_plain_rows(
    store: fostore.Store, pairs: Pairs
) -> None:
    rows = probs(SAMPLES)
    plain = [(*pairs[i], torch.from_numpy(rows[i])) for i in range(SAMPLES)]
    dataset = FirstOrderDataset(pairs, store)
    for batch, expected in zip(
        DataLoader(dataset, 8),
        DataLoader(plain, 8),
        strict=True,  # type: ignore[arg-type]
    ):
        assert_same(batch, expected)


def test_a_default_collated_batch_is_the_gathered_tensor_itself(
    store: fostore.Store, pairs: Pairs
) -> None:
    for base in (pairs, None):
        batch = FirstOrderDataset(base, store).__getitems__([4, 2, 2])
        collated = default_collate(batch)
        rows = collated if base is None else collated[-1]
        assert type(rows) is torch.Tensor
        assert rows.data_ptr() == batch.rows.data_ptr()
        np.testing.assert_array_equal(rows.numpy(), probs(SAMPLES)[[4, 2, 2]])


def test_distributions_alone_are_a_dataset(store: fostore.Store) -> None:
    dataset = FirstOrderDataset(None, store)
    assert len(dataset) == SAMPLES
    assert torch.equal(dataset[3], torch.from_numpy(probs(SAMPLES)[3]))
    found = list(DataLoader(dataset, 16))
    assert all(type(batch) is torch.Tensor for batch in found)
    np.testing.assert_array_equal(torch.cat(found).numpy(), probs(SAMPLES))
    found = list(output_dataloader(None, store, 16))
    assert [len(batch) for batch in found] == [16, 16, 16, 2]
    np.testing.assert_array_equal(torch.cat(found).numpy(), probs(SAMPLES))


def test_a_batch_is_a_sequence_of_real_rows(store: fostore.Store, pairs: Pairs) -> None:
    dataset = FirstOrderDataset(pairs, store)
    batch = dataset.__getitems__([3, 7])
    rows = list(batch)
    assert len(batch) == len(rows) == 2
    assert all(type(row) is tuple for row in rows)
    assert isinstance(batch[0], tuple)
    for at, index in enumerate((3, 7)):
        for row in (rows[at], batch[at], batch[at - 2], batch[:][at]):
            np.testing.assert_array_equal(row[0], pairs.inputs[index])
            assert row[1] == pairs.labels[index]
            assert torch.equal(row[2], dataset[index][2])
    with pytest.raises(IndexError):
        batch[2]
    assert_same(default_collate([batch[0], batch[1]]), default_collate(rows))


def test_a_custom_collate_sees_real_tuples(store: fostore.Store, pairs: Pairs) -> None:
    seen: list[Any] = []

    def keep(samples: Any) -> Any:
        seen.extend(type(sample) for sample in samples)
        xs, ys, rows = zip(*samples, strict=True)
        return np.stack(xs), ys, torch.stack(rows)

    for loader in (
        DataLoader(FirstOrderDataset(pairs, store), 25, collate_fn=keep),
        output_dataloader(pairs, store, 25, collate_fn=keep),
    ):
        seen.clear()
        _, _, rows = next(iter(loader))
        assert set(seen) == {tuple}
        np.testing.assert_array_equal(rows.numpy(), probs(SAMPLES)[:25])


@pytest.mark.parametrize("options", [{}, {"num_workers": 1}, {"sampler": range(8)}])
def test_a_custom_collate_gets_a_list(store: fostore.Store, options: dict[str, Any]) -> None:
    batch = next(iter(output_dataloader(None, store, 4, collate_fn=_reversed, **options)))
    assert torch.equal(batch, next(iter(output_dataloader(None, store, 4))).flip(0))


def _reversed(rows: Any) -> Any:
    rows.reverse()
    return torch.stack(rows)


def test_an_index_out_of_range_is_named(store: fostore.Store, pairs: Pairs) -> None:
    for distributions in (store, dict(enumerate(probs(SAMPLES)))):
        dataset = FirstOrderDataset(None, distributions)
        assert torch.equal(dataset.__getitems__([0, -1]).rows[1], dataset[SAMPLES - 1])
        for bad in (SAMPLES, -SAMPLES - 1):
            with pytest.raises(IndexError, match=f"sample {bad} of a dataset of 50 samples"):
                dataset.__getitems__([0, bad])


@pytest.mark.parametrize("workers", [0, 2])
def test_parts_of_a_dataset_keep_their_rows(store: fostore.Store, workers: int) -> None:
    dataset = FirstOrderDataset(Numbered(), store)
    part = Subset(dataset, [9, 4, 30])
    assert drawn(DataLoader(part, 2, num_workers=workers)) == [9, 4, 30]
    halves = random_split(dataset, [20, 30], generator=torch.Generator().manual_seed(0))
    assert sorted(drawn(DataLoader(ConcatDataset(halves), 7, num_workers=workers))) == [
        *range(SAMPLES)
    ]
    stacked = StackDataset(dataset, range(SAMPLES))  # type: ignore[arg-type]
    (inputs, _, rows), numbers = next(iter(DataLoader(stacked, 5, num_workers=workers)))
    assert inputs.tolist() == numbers.tolist()
    np.testing.assert_array_equal(rows.numpy(), probs(SAMPLES)[:5])


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_worker_processes_read_through_a_path(store: fostore.Store, method: str) -> None:
    store.take([0])  # mapped here already; the workers map for themselves
    loader = output_dataloader(Numbered(), store, 8, num_workers=1, multiprocessing_context=method)
    assert drawn(loader) == list(range(SAMPLES))


def test_a_worker_hands_a_raw_batch_over_as_a_list(store: fostore.Store) -> None:
    dataset = FirstOrderDataset(Numbered(), store)
    (batch,) = DataLoader(Subset(dataset, [1, 2]), 2, num_workers=1, collate_fn=_as_it_is)
    assert [row[0] for row in batch] == [1, 2]
    assert isinstance(pickle.loads(pickle.dumps(dataset.__getitems__([1, 2]))), list)


def _as_it_is(batch: Any) -> Any:
    return batch


def test_a_dataset_over_a_store_pickles_small(store: fostore.Store) -> None:
    dataset = FirstOrderDataset(None, store)
    data = pickle.dumps(dataset)
    assert len(data) < 2000
    assert torch.equal(pickle.loads(data)[5], dataset[5])


def test_dict_samples_carry_their_distribution_under_a_key(store: fostore.Store) -> None:
    dataset = FirstOrderDataset(Dicts(), store, target_key="teacher")
    row = dataset[4]
    assert isinstance(row, Mapping)
    assert not isinstance(row, dict), "Trainer drops keys out of dicts"
    assert list(row) == ["x", "label", "teacher"]
    batch = next(iter(DataLoader(dataset, 4)))
    expected = {
        "x": torch.arange(4.0)[:, None],
        "label": torch.arange(4),
        "teacher": torch.from_numpy(probs(SAMPLES)[:4]),
    }
    assert_same(batch, expected)
    assert_same(next(iter(output_dataloader(Dicts(), store, 4, target_key="teacher"))), expected)
    assert_same(next(iter(DataLoader(ConcatDataset([dataset]), 4))), expected)
    assert {type(row) for row in dataset.__getitems__([1, 2])} == {DictRow}
    with pytest.raises(ArgumentError, match="have 'label' already"):
        FirstOrderDataset(Dicts(), store, target_key="label").__getitems__([0])


# ------------------------------------------------------------------ order


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("prefetch", [0, 3])
def test_every_sample_comes_once_an_epoch_in_the_order_of_the_seed(
    store: fostore.Store, workers: int, prefetch: int
) -> None:
    options: dict[str, Any] = {"shuffle": True, "seed": 5, "prefetch": prefetch}
    loader = output_dataloader(Numbered(), store, 8, num_workers=workers, **options)
    assert isinstance(loader, DataLoader)
    assert (len(loader), loader.batch_size, loader.drop_last) == (7, 8, False)
    epochs = [drawn(loader), drawn(loader)]
    assert all(sorted(epoch) == list(range(SAMPLES)) for epoch in epochs)
    numpy_side = fostore.output_dataloader(Numbered(), store, 8, shuffle=True, seed=5)
    assert epochs == [[i for batch in numpy_side for i in batch[0].tolist()] for _ in range(2)]
    loader.set_epoch(0)
    assert drawn(loader) == epochs[0]


def test_a_seed_is_drawn_from_the_global_random_numbers(store: fostore.Store) -> None:
    orders = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        orders.append(drawn(output_dataloader(Numbered(), store, 8, shuffle=True)))
    assert orders[0] == orders[1] != orders[2]
    generated = [
        drawn(
            output_dataloader(
                Numbered(), store, 8, shuffle=True, generator=torch.Generator().manual_seed(seed)
            )
        )
        for seed in (3, 3, 4)
    ]
    assert generated[0] == generated[1] != generated[2]


@pytest.mark.parametrize(("drop_last", "pad_last", "count"), [(True, False, 48), (False, True, 56)])
def test_the_last_batch_is_dropped_or_padded_only_when_asked(
    store: fostore.Store, drop_last: bool, pad_last: bool, count: int
) -> None:
    loader = output_dataloader(Numbered(), store, 8, drop_last=drop_last, pad_last=pad_last)
    assert drawn(loader) == [*range(SAMPLES), *range(6)][:count]


def test_ranks_share_an_epoch_without_overlap(store: fostore.Store) -> None:
    options: dict[str, Any] = {"shuffle": True, "seed": 2, "num_ranks": 3}
    parts = [drawn(output_dataloader(Numbered(), store, 5, rank=i, **options)) for i in range(3)]
    assert sorted(i for part in parts for i in part) == list(range(SAMPLES))
    with pytest.raises(ArgumentError, match="give seed="):
        output_dataloader(Numbered(), store, 4, shuffle=True, rank=1, num_ranks=3)


# ------------------------------------------------------------------ state


@pytest.mark.parametrize("stop", [0, 1, 4, 7])
@pytest.mark.parametrize(
    ("first", "then"), [((0, 8), (0, 8)), ((2, 8), (0, 5)), ((0, 8), (2, 3)), ((2, 8), (2, 8))]
)
def test_a_loader_goes_on_exactly_where_batches_were_handed_out(
    store: fostore.Store, first: tuple[int, int], then: tuple[int, int], stop: int
) -> None:
    options: dict[str, Any] = {"shuffle": True, "seed": 9, "prefetch": 3}
    loader = output_dataloader(Numbered(), store, first[1], num_workers=first[0], **options)
    drawn(loader)
    whole = loader.epochs.order.samples(1, 0, SAMPLES).tolist()
    batches = iter(loader)
    seen = [i for _ in range(stop) for i in next(batches)[0].tolist()]
    state = pickle.loads(pickle.dumps(loader.state_dict()))
    del batches
    other = output_dataloader(Numbered(), store, then[1], num_workers=then[0], **options)
    other.load_state_dict(state)
    assert len(other) == -(-SAMPLES // then[1])
    if stop == 7:  # nothing is left of the epoch: asked for by its number it is empty
        other.set_epoch(1)
    assert seen + drawn(other) == whole
    assert drawn(other) == other.epochs.order.samples(2, 0, SAMPLES).tolist()


def test_a_state_at_the_end_of_an_epoch_goes_on_with_the_next(store: fostore.Store) -> None:
    loader = output_dataloader(Numbered(), store, 25, shuffle=True, seed=1)
    batches = iter(loader)
    next(batches)
    next(batches)
    other = output_dataloader(Numbered(), store, 25, shuffle=True, seed=1)
    other.load_state_dict(loader.state_dict())
    assert drawn(other) == other.epochs.order.samples(1, 0, SAMPLES).tolist()


def test_another_number_of_ranks_goes_on_with_the_same_samples(store: fostore.Store) -> None:
    options: dict[str, Any] = {"shuffle": True, "seed": 4}
    two = [
        output_dataloader(Numbered(), store, 6, rank=i, num_ranks=2, **options) for i in range(2)
    ]
    running = [iter(loader) for loader in two]
    seen = [i for batches in running for _ in range(2) for i in next(batches)[0].tolist()]
    state = two[0].state_dict()
    assert state == two[1].state_dict()
    three = [
        output_dataloader(Numbered(), store, 5, rank=i, num_ranks=3, **options) for i in range(3)
    ]
    for loader in three:
        loader.load_state_dict(state)
        seen += drawn(loader)
    assert sorted(seen) == list(range(SAMPLES))


def test_a_drawn_seed_comes_back_with_the_state(store: fostore.Store) -> None:
    loader = output_dataloader(Numbered(), store, 8, shuffle=True)
    rest = loader.epochs.order.samples(0, 8, SAMPLES).tolist()
    next(batches := iter(loader))
    other = output_dataloader(Numbered(), store, 8, shuffle=True)
    other.load_state_dict(loader.state_dict())
    assert drawn(other) == rest
    assert [i for batch in batches for i in batch[0].tolist()] == rest


def test_a_state_of_another_order_is_refused(store: fostore.Store) -> None:
    loader = output_dataloader(Numbered(), store, 8, shuffle=True, seed=1)
    state = output_dataloader(Numbered(), store, 8, shuffle=True, seed=2).state_dict()
    with pytest.raises(ArgumentError, match="seed=2, this loader has 1"):
        loader.load_state_dict(state)


# ------------------------------------------------------------------ torch's own keywords


def test_an_order_of_ones_own_is_torchs_loader(store: fostore.Store) -> None:
    dataset = Numbered()
    loader = output_dataloader(dataset, store, 8, sampler=WeightedRandomSampler([1.0] * 5, 20))
    assert type(loader) is DataLoader
    assert len(drawn(loader)) == 20
    loader = output_dataloader(dataset, store, 8, sampler=RandomSampler(dataset), num_workers=1)
    assert sorted(drawn(loader)) == list(range(SAMPLES))
    loader = output_dataloader(dataset, store, batch_sampler=[[3, 1], [2]])
    assert drawn(loader) == [3, 1, 2]
    loader = output_dataloader(dataset, store, batch_size=None)
    index, _, row = next(iter(loader))
    assert (index, row.shape) == (0, (3,))
    with pytest.raises(ArgumentError, match="choose one"):
        output_dataloader(dataset, store, 8, sampler=RandomSampler(dataset), seed=1)


def test_persistent_workers_follow_every_epoch_and_state(store: fostore.Store) -> None:
    loader = output_dataloader(
        Numbered(), store, 8, True, 1, seed=3, persistent_workers=True, worker_init_fn=_as_it_is
    )
    order = loader.epochs.order.samples
    assert drawn(loader) == order(0, 0, SAMPLES).tolist()
    next(iter(loader))
    state = loader.state_dict()
    loader.load_state_dict(state)
    assert drawn(loader) == order(1, 8, SAMPLES).tolist()
    assert drawn(loader) == order(2, 0, SAMPLES).tolist()


def test_persistent_workers_serve_one_iteration_at_a_time(store: fostore.Store) -> None:
    loader = output_dataloader(None, store, 16, num_workers=1, persistent_workers=True)
    older, newer = iter(loader), iter(loader)
    next(older)
    next(newer)
    with pytest.raises(
        RuntimeError, match=r"a newer iteration .* has taken its persistent workers"
    ):
        next(older)
    assert len(list(newer)) == len(loader) - 1


def test_what_is_done_to_one_batch_in_place_is_done_to_no_other(store: fostore.Store) -> None:
    weight = torch.ones(1, requires_grad=True)
    expected = list(output_dataloader(None, store, 16, prefetch=0))[2].clone()
    first, second, third, *_ = output_dataloader(None, store, 16)
    loss = (first * weight).sum()
    second.mul_(weight).fill_(7)
    loss.backward()
    assert weight.grad is not None
    assert torch.equal(third, expected)


def test_a_given_sampler_keeps_its_place_and_is_of_the_same_order(store: fostore.Store) -> None:
    sampler = EpochSampler(len(store), 16, shuffle=True, seed=3)
    list(zip(range(2), sampler, strict=False))
    again = EpochSampler(len(store), 16, shuffle=True, seed=3)
    again.load_state_dict(sampler.state_dict())
    loader = output_dataloader(None, store, batch_sampler=again)
    assert loader.state_dict() == sampler.state_dict()
    for options in ({"drop_last": True}, {"num_ranks": 2}):
        with pytest.raises(ArgumentError, match="contradicts the EpochSampler"):
            output_dataloader(None, store, batch_sampler=again, **options)
    with pytest.raises(ArgumentError, match="for 5 samples, and the dataset has"):
        output_dataloader(None, store, batch_sampler=EpochSampler(5))


def test_batches_that_come_in_any_order_are_refused(store: fostore.Store) -> None:
    with pytest.raises(ArgumentError, match="in_order=False"):
        output_dataloader(Numbered(), store, 8, num_workers=1, in_order=False)


def test_pinning_without_an_accelerator_makes_no_noise(store: fostore.Store) -> None:
    loader = output_dataloader(Numbered(), store, 8, pin_memory=True)
    if not torch.accelerator.is_available():
        assert loader.pin_memory is False
    assert len(drawn(loader)) == SAMPLES


def test_a_loader_may_have_any_dataset(store: fostore.Store) -> None:
    part = Subset(FirstOrderDataset(Numbered(), store), range(10, 20))
    assert drawn(OutputLoader(part, batch_size=3)) == list(range(10, 20))
    assert [x.tolist() for x, _ in OutputLoader(Numbered(4), 2)] == [[0, 1], [2, 3]]


# ------------------------------------------------------------------ the thread


def fostore_threads() -> list[threading.Thread]:
    names = ("fostore-prefetch", "fostore-device")  # the helper of large gathers stays for good
    return [thread for thread in threading.enumerate() if thread.name.startswith(names)]


def test_augmentation_draws_the_same_numbers_with_and_without_prefetch(
    store: fostore.Store,
) -> None:
    found: list[list[Any]] = []
    for prefetch in (0, 3):
        torch.manual_seed(0)
        loader = output_dataloader(Noisy(), store, 8, seed=0, prefetch=prefetch)
        found.append([])
        for x, _, _ in loader:
            time.sleep(0.005)  # a thread would have drawn for the next batches by now
            found[-1].append((x, torch.rand(())))
    assert_same(found[0], found[1])


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_the_thread_has_the_callers_gradient_mode(
    store: fostore.Store, mode: Callable[[], Any]
) -> None:
    with mode():
        batches = list(output_dataloader(Weighted(), store, 8, prefetch=3))
    needs = mode is torch.enable_grad
    assert [x.requires_grad for x, _, _ in batches] == [needs] * 7
    assert [x.is_inference() for x, _, _ in batches] == [mode is torch.inference_mode] * 7


class Multiplied(Numbered):
    """Inputs made by an operation that autocast and the default device change."""

    def __getitem__(self, index: int) -> Any:
        return torch.ones(1, 2) @ torch.ones(2, 1), index


def test_the_thread_has_the_callers_autocast_and_default_device(store: fostore.Store) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        batches = list(output_dataloader(Multiplied(), store, 8, prefetch=3))
    assert {x.dtype for x, _, _ in batches} == {torch.bfloat16}
    with torch.device("meta"):
        batches = list(output_dataloader(Multiplied(), store, 8, prefetch=3))
    assert {x.device.type for x, _, _ in batches} == {"meta"}
    assert {rows.device.type for _, _, rows in batches} == {"cpu"}


def test_an_error_comes_where_its_batch_would_have_come_and_the_thread_ends(
    store: fostore.Store,
) -> None:
    before = set(fostore_threads())  # of iterators that other tests left to the collector
    for move in (False, True):
        loader: Any = output_dataloader(Broken(), store, 8)
        loader = prefetch_to_device(loader, "cpu") if move else loader
        seen = []
        with pytest.raises(ValueError, match="sample 30 is broken"):
            for batch in loader:
                seen.append(batch[0].tolist())
        assert len(seen) == 3
        assert not set(fostore_threads()) - before


def test_leaving_early_ends_the_thread(store: fostore.Store) -> None:
    before = set(fostore_threads())
    for move in (False, True):
        loader: Any = output_dataloader(Numbered(), store, 2)
        for batches in (iter(prefetch_to_device(loader, "cpu") if move else loader),):
            next(batches)
            next(batches)
            assert set(fostore_threads()) - before
            batches.close()
        assert not set(fostore_threads()) - before


def test_leaving_early_ends_the_workers(store: fostore.Store) -> None:
    batches: Any = iter(output_dataloader(Numbered(), store, 2, num_workers=1))
    next(batches)
    assert multiprocessing.active_children()
    batches.close()  # `batches` is still held
    assert not multiprocessing.active_children()


# ------------------------------------------------------------------ devices


def test_batches_are_moved_ahead_in_their_order(store: fostore.Store) -> None:
    loader = output_dataloader(Numbered(), store, 8, shuffle=True, seed=1)
    for depth in (0, 2):
        loader.set_epoch(0)
        moved = prefetch_to_device(loader, "cpu", depth)
        assert len(moved) == 7
        assert drawn(moved) == loader.epochs.order.samples(0, 0, SAMPLES).tolist()
    (meta,) = prefetch_to_device([{"x": [torch.ones(2)], "name": "a"}], "meta")
    assert (meta["x"][0].device.type, meta["name"]) == ("meta", "a")


def test_the_state_of_a_prefetcher_is_that_of_the_batch_in_use(store: fostore.Store) -> None:
    loader = output_dataloader(Numbered(), store, 8, shuffle=True, seed=1)
    moved = prefetch_to_device(loader, "cpu", 3)
    batches = iter(moved)
    for _ in range(2):
        next(batches)
    deadline = time.monotonic() + 10
    while loader.state_dict()["position"] == 16 and time.monotonic() < deadline:
        time.sleep(0.001)  # until the thread has drawn the next batch
    state = moved.state_dict()
    assert state["position"] == 16 < loader.state_dict()["position"]
    batches.close()
    moved.load_state_dict(state)
    assert drawn(moved) == loader.epochs.order.samples(0, 16, SAMPLES).tolist()
    with pytest.raises(ArgumentError, match="list has no state_dict"):
        prefetch_to_device([1], "cpu").state_dict()
    with pytest.raises(ArgumentError, match="depth is -1"):
        prefetch_to_device(loader, "cpu", -1)


# ------------------------------------------------------------------ the sampler


def test_a_stock_loader_takes_the_sampler(store: fostore.Store) -> None:
    dataset = FirstOrderDataset(Numbered(), store)
    sampler = EpochSampler(dataset, 8, True, seed=5)
    loader = DataLoader(dataset, batch_sampler=sampler)
    ours = output_dataloader(Numbered(), store, 8, True, seed=5)
    assert [drawn(loader), drawn(loader)] == [drawn(ours), drawn(ours)]
    sampler.set_epoch(0)
    assert (len(sampler), sampler.batch_size, sampler.drop_last) == (7, 8, False)
    next(iter(loader))
    state = sampler.state_dict()
    assert state["position"] == 8
    other = EpochSampler(SAMPLES, 5, True, seed=5)
    other.load_state_dict(state)
    rest = [i for batch in other for i in batch]
    assert rest == sampler.order.samples(0, 8, SAMPLES).tolist()


def test_the_samplers_single_order_is_what_is_left_of_the_epoch() -> None:
    sampler = EpochSampler(SAMPLES, 8, True, seed=5)
    assert list(sampler.sampler) == sampler.order.samples(0, 0, SAMPLES).tolist()
    for last in ({}, {"drop_last": True}, {"pad_last": True}):
        for rank in range(2):
            part = EpochSampler(21, 4, rank=rank, num_ranks=2, **last).sampler
            assert len(list(part)) == len(part)


def test_a_sampler_that_cannot_be_followed_is_refused() -> None:
    with pytest.raises(ArgumentError, match="cannot follow WeightedRandomSampler"):
        EpochSampler(WeightedRandomSampler([1.0], 5), 8)


def test_a_batch_knows_no_dataset(store: fostore.Store) -> None:
    batch = FirstOrderDataset(None, store).__getitems__([1])
    assert isinstance(batch, PairedBatch)
    assert isinstance(iter(batch), Iterator)
    assert [type(row) for row in batch] == [torch.Tensor]
