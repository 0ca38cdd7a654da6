"""Collating that mixes samples is found before a row is computed; augmentation is told apart from it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset, default_collate

from fostore.errors import ArgumentError
from fostore.generate.mixing import MixingTest
from fostore.torch import FirstOrderDataGenerator
from sides import Linear, Pairs, Side, Stream, make_pairs


def stacked(side: Side, samples: Any) -> Any:
    """What a plain collate_fn makes of (input, label) samples."""
    inputs = np.stack([np.asarray(x) for x, _ in samples])
    return side.array(inputs), side.array(np.array([y for _, y in samples]))


def mixup(x: Any) -> Any:
    """Every sample with its neighbour, by one random weight a batch."""
    share = float(np.random.beta(0.4, 0.4))
    return x * share + x[::-1] * (1 - share)


def sometimes(x: Any) -> Any:
    return mixup(x) if np.random.random() < 0.5 else x


def cutmix(x: Any) -> Any:
    """Some features of a neighbour."""
    mixed, cut = x.copy(), np.random.randint(1, x.shape[1])
    mixed[:, :cut] = x[::-1, :cut]
    return mixed


def shuffled(x: Any) -> Any:
    return x[np.random.permutation(len(x))]


def mixing(side: Side, how: Callable[[Any], Any]) -> Any:
    def collate(samples: Any) -> Any:
        inputs, labels = stacked(side, samples)
        return side.array(how(np.asarray(inputs))), labels

    return collate


class Flipped(Pairs):
    """Mirrors each sample at random, as pipelines of training do before they mix."""

    def __getitem__(self, index: int) -> Any:
        x, y = super().__getitem__(index)
        return (x[::-1].copy() if np.random.random() < 0.5 else x), y


HOW = [mixup, cutmix, sometimes, shuffled]


@pytest.mark.parametrize("stored", [True, False], ids=["store", "memory"])
@pytest.mark.parametrize("how", HOW)
def test_a_collate_fn_that_mixes_is_refused_by_name(
    side: Side, tmp_path: Path, how: Any, stored: bool
) -> None:
    linear = Linear()
    generator = side.generator(side.model(linear), batch_size=16)
    place: dict[str, Any] = {"store": tmp_path / "a.zarr"} if stored else {}
    np.random.seed(0)
    before = np.random.get_state()[1].tolist()  # type: ignore[index,union-attr]
    with pytest.raises(ArgumentError, match=r"mixes samples \(mixup, cutmix\)"):
        generator.generate_distributions(make_pairs(), False, collate_fn=mixing(side, how), **place)
    assert linear.batches == []
    assert not (tmp_path / "a.zarr").exists()
    assert before == np.random.get_state()[1].tolist()  # type: ignore[index,union-attr]
    plain = mixing(side, lambda x: x)  # the cure that is named
    assert len(generator.generate_distributions(make_pairs(), False, collate_fn=plain, **place))


def words(lengths: list[int]) -> list[Any]:
    """Sequences of numbers, a label each."""
    return [(np.full(length, at, np.float32), at) for at, length in enumerate(lengths)]


def padded(side: Side, samples: Any) -> Any:
    longest = max(len(x) for x, _ in samples)
    return side.array(np.stack([np.pad(x, (0, longest - len(x))) for x, _ in samples]))


def bag(x: np.ndarray) -> np.ndarray:
    return np.stack([x.sum(1), x.mean(1), x.max(1)], axis=1)


@pytest.mark.parametrize(
    "lengths", [[1, 2, 3, 4, 5], [5, 4, 3, 2, 1], [3, 3, 3, 4, 3], [2, 2, 5, 5, 2]]
)
def test_a_collate_fn_that_sorts_by_length_is_refused(
    side: Side, tmp_path: Path, lengths: list[int]
) -> None:
    def by_length(samples: Any) -> Any:
        return padded(side, sorted(samples, key=lambda sample: len(sample[0]), reverse=True))

    linear = side.model(bag)
    generator = side.generator(linear, batch_size=8, output_mode="logits")
    with pytest.raises(ArgumentError, match=r"changes their order \(by length\)"):
        generator.generate_distributions(
            words(lengths), False, collate_fn=by_length, store=tmp_path / "a.zarr"
        )
    assert not (tmp_path / "a.zarr").exists()
    # The cure: padded in the order in which they come.
    rows = generator.generate_distributions(
        words(lengths), False, collate_fn=lambda samples: padded(side, samples)
    )
    want = side.softmax(side.model(bag)(padded(side, words(lengths))))
    np.testing.assert_allclose(rows[4], np.asarray(want)[4], atol=1e-6)


def test_packing_that_sorts_is_refused_and_packing_in_order_is_not() -> None:
    def pack(samples: Any, is_sorted: bool) -> Any:
        if is_sorted:
            samples = sorted(samples, key=lambda sample: len(sample[0]), reverse=True)
        packed = torch.nn.utils.rnn.pack_sequence(
            [torch.from_numpy(x)[:, None] for x, _ in samples], enforce_sorted=is_sorted
        )
        return packed, [y for _, y in samples]

    network = torch.nn.RNN(1, 4, batch_first=True)
    generator = FirstOrderDataGenerator(
        lambda packed: network(packed)[1][0], batch_size=8, output_mode="logits"
    )
    with pytest.raises(ArgumentError, match="enforce_sorted=False"):
        generator.generate_distributions(
            words([2, 4, 3]), False, collate_fn=lambda samples: pack(samples, True)
        )
    rows = generator.generate_distributions(
        words([2, 4, 3]), False, collate_fn=lambda samples: pack(samples, False)
    )
    alone = network(torch.full((1, 4, 1), 1.0))[1][0].softmax(-1)[0].detach()
    np.testing.assert_allclose(rows[1], alone.numpy(), atol=1e-6)


def test_mixing_that_is_the_same_each_time_is_refused(side: Side) -> None:
    def always(x: Any) -> Any:
        order = np.random.default_rng(0).permutation(len(x))
        return 0.7 * x + 0.3 * x[order]

    generator = side.generator(side.model(Linear()), batch_size=16)
    with pytest.raises(ArgumentError, match="not in its place"):
        generator.generate_distributions(make_pairs(), False, collate_fn=mixing(side, always))


def of_sixteen(x: Any) -> Any:
    assert len(x) in (4, 16), "takes whole batches alone"
    return x


@pytest.mark.parametrize(
    "how",
    [
        lambda x: x - x.mean(0),  # of the batch, whatever the order
        lambda x: x + np.arange(len(x), dtype=np.float32)[:, None],  # by place
        of_sixteen,
    ],
    ids=["centred", "by place", "no single sample"],
)
def test_what_leaves_every_sample_in_its_place_is_no_mixing(side: Side, how: Any) -> None:
    generator = side.generator(side.model(Linear()), batch_size=16, output_mode="logits")
    rows = generator.generate_distributions(make_pairs(), False, collate_fn=mixing(side, how))
    assert len(rows) == 100


@pytest.mark.parametrize("how", HOW)
def test_mixing_hides_behind_no_augmentation(side: Side, tmp_path: Path, how: Any) -> None:
    pairs = Flipped(make_pairs().inputs, make_pairs().labels)
    generator = side.generator(side.model(Linear()), batch_size=16)
    with pytest.raises(ArgumentError, match="mixes samples"):
        generator.generate_distributions(
            pairs, False, collate_fn=mixing(side, how), store=tmp_path / "a.zarr"
        )


def test_augmentation_in_a_collate_fn_is_augmentation(side: Side, tmp_path: Path) -> None:
    def noisy(x: Any) -> Any:
        return x + np.random.normal(size=x.shape).astype(np.float32)

    generator = side.generator(side.model(Linear()), batch_size=16, output_mode="logits")
    with pytest.warns(UserWarning, match="sample 0 reads differently each time"):
        store = generator.generate_distributions(
            make_pairs(), False, collate_fn=mixing(side, noisy), store=tmp_path / "a.zarr"
        )
    assert store.header.identity["dataset"]["content"] == "unstable"


class Erased(Pairs):
    """Erases a sample once in ten or twenty times, as RandomErasing does."""

    share = 0.1

    def __getitem__(self, index: int) -> Any:
        x, y = super().__getitem__(index)
        return (x * 0 if np.random.random() < self.share else x), y


@pytest.mark.filterwarnings("ignore:sample . reads differently each time")
@pytest.mark.parametrize("share", [0.02, 0.1])
def test_augmentation_that_is_rare_is_not_mixing(tmp_path: Path, share: float) -> None:
    def collate(samples: Any) -> Any:
        x, y = default_collate([(torch.from_numpy(x), y) for x, y in samples])
        return x * (torch.rand(len(x), 1) > share), y

    pairs = Erased(make_pairs().inputs, make_pairs().labels)
    pairs.share = share
    generator = FirstOrderDataGenerator(torch.nn.Linear(4, 5), batch_size=16)
    for seed in range(12):
        np.random.seed(seed)
        torch.manual_seed(seed)
        generator.generate_distributions(make_pairs(), False, collate_fn=collate)
        generator.generate_distributions(pairs, False, store=tmp_path / f"{seed}.h5")


def by_length(samples: list[Any]) -> list[Any]:
    return sorted(samples, key=lambda sample: -len(sample[0]))


def one_further(samples: list[Any]) -> list[Any]:
    return [samples[-1], *samples[:-1]]


def backwards(samples: list[Any]) -> list[Any]:
    samples.reverse()
    return samples


@pytest.mark.parametrize("stored", [True, False], ids=["store", "memory"])
@pytest.mark.parametrize("order", [by_length, one_further, backwards])
def test_a_collate_fn_that_changes_the_order_is_refused_and_one_that_pads_is_not(
    side: Side, tmp_path: Path, order: Any, stored: bool
) -> None:
    sequences = [(np.ones((1 + i % 7, 4), np.float32) * i, i) for i in range(40)]

    def padded(samples: Any) -> Any:
        inputs = np.zeros((len(samples), 7, 4), np.float32)
        for row, (x, _) in zip(inputs, samples, strict=True):
            row[: len(x)] = x
        return {
            "x": side.array(inputs),
            "lengths": side.array(np.array([len(s[0]) for s in samples])),
        }

    linear = Linear()
    whole = side.model(linear)
    generator = side.generator(lambda batch: whole(batch["x"].sum(1)), batch_size=16)
    place: dict[str, Any] = {"store": tmp_path / "a.h5"} if stored else {}
    with pytest.raises(ArgumentError, match=r"the input of sample \d+ is not in its place"):
        generator.generate_distributions(
            sequences, False, collate_fn=lambda samples: padded(order(samples)), **place
        )
    assert linear.batches == []
    assert len(generator.generate_distributions(sequences, False, collate_fn=padded, **place)) == 40


def test_numbers_of_places_in_a_batch_are_no_other_order(side: Side) -> None:
    def collate(samples: Any) -> Any:
        inputs, _ = stacked(side, samples)
        return {"x": inputs, "place": side.array(np.arange(len(samples)))}

    whole = side.model(Linear())
    generator = side.generator(lambda batch: whole(batch["x"]), batch_size=16)
    assert len(generator.generate_distributions(make_pairs(), False, collate_fn=collate)) == 100


def test_mixing_that_began_later_is_refused_on_resume(side: Side, tmp_path: Path) -> None:
    generator = side.generator(side.model(Linear()), batch_size=16)
    options: dict[str, Any] = {"store": tmp_path / "a.zarr"}
    generator.generate_distributions(
        make_pairs(), False, rows=(0, 48), collate_fn=mixing(side, lambda x: x), **options
    )
    with pytest.raises(ArgumentError, match="mixes samples"):
        generator.generate_distributions(
            make_pairs(), False, collate_fn=mixing(side, mixup), **options
        )


def test_a_batch_that_a_dataset_mixes_is_refused(tmp_path: Path) -> None:
    class Batches(Pairs):
        def __getitems__(self, indices: list[int]) -> list[Any]:
            inputs = mixup(np.stack([self.inputs[i] for i in indices]))
            return [(x, 0) for x in inputs]

    generator = FirstOrderDataGenerator(torch.nn.Linear(4, 5), batch_size=16)
    with pytest.raises(ArgumentError, match="mixes samples"):
        generator.generate_distributions(
            Batches(make_pairs().inputs), False, store=tmp_path / "a.zarr"
        )


def test_mixing_of_a_stream_is_refused_where_it_can_be_read_twice(
    side: Side, tmp_path: Path
) -> None:
    inputs = make_pairs().inputs
    generator = side.generator(side.model(Linear()), batch_size=16)
    options: dict[str, Any] = {"collate_fn": mixing(side, mixup)}
    with pytest.raises(ArgumentError, match="the input of sample 0 is another one each time"):
        generator.generate_distributions(Stream(inputs), False, **options)
    once = iter(Stream(inputs))  # what can be read once is read once
    options = {"collate_fn": mixing(side, lambda x: x)}
    assert len(generator.generate_distributions(once, False, **options)) == 100


@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize("seeded", [True, False])
def test_mixing_of_a_loader_is_refused_with_workers_and_generators(
    tmp_path: Path, workers: int, seeded: bool
) -> None:
    def collate(samples: Any) -> Any:
        x, y = default_collate(samples)
        share = torch.rand(())
        return x * share + x.roll(1, 0) * (1 - share), y

    data = TensorDataset(torch.from_numpy(make_pairs().inputs), torch.zeros(100))
    loader = DataLoader(
        data,
        batch_size=16,
        collate_fn=collate,
        num_workers=workers,
        generator=torch.Generator().manual_seed(0) if seeded else None,
    )
    generator = FirstOrderDataGenerator(torch.nn.Linear(4, 5))
    state = torch.get_rng_state()
    for place in ({}, {"store": tmp_path / "a.zarr"}):
        with pytest.raises(ArgumentError, match="mixes samples"):
            generator.generate_distributions(loader, False, **place)
    assert torch.equal(state, torch.get_rng_state())
    assert len(generator.generate_distributions(loader, False, collate_fn=default_collate)) == 100


def test_samples_are_read_once_for_it_and_not_at_all_without_a_collate_fn(side: Side) -> None:
    generator = side.generator(side.model(Linear()), batch_size=16)
    pairs = make_pairs()
    generator.generate_distributions(pairs, False)
    assert pairs.read == [*range(100)]
    pairs.read.clear()
    generator.generate_distributions(pairs, False, collate_fn=mixing(side, lambda x: x))
    assert pairs.read == [*range(16), *range(100)]


def test_collating_in_place_changes_no_sample(side: Side) -> None:
    pairs = make_pairs()

    def collate(samples: Any) -> Any:
        for x, _ in samples[:1]:
            x *= 1  # numbers stay, and so does the memory of the dataset
            x += 1
        return stacked(side, samples)

    before = pairs.inputs.copy()
    generator = side.generator(side.model(Linear()))
    samples = [pairs[i] for i in range(8)]
    assert not MixingTest(generator._framework, collate)(samples).any()
    np.testing.assert_array_equal(pairs.inputs, before)
