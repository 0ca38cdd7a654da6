"""Grain: records that are whole batches, in the order of the loaders, with a state that can be saved."""

from __future__ import annotations

import json
import pickle
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fostore
from fostore.errors import ArgumentError
from sides import make_pairs
from support import probs

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what Grain's own imports have to say
    import grain

    from fostore.jax.grain import GrainSource, grain_dataset, grain_source

OPTIONS = {"shuffle": True, "seed": 7}
READ = grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)
ROWS = probs(103, 4)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("store") / "a.zarr"
    with fostore.create(path, num_samples=len(ROWS), num_classes=4) as writer:
        writer.append(ROWS)
    return path


def batches_of_the_loader(path: Path, epochs: int, **options: Any) -> list[Any]:
    return [batch for epoch in epochs_of_the_loader(path, epochs, **options) for batch in epoch]


def epochs_of_the_loader(path: Path, count: int, **options: Any) -> list[list[Any]]:
    loader = fostore.output_dataloader(None, path, 10, **OPTIONS, **options)
    return [[batch.tolist() for batch in loader] for _ in range(count)]


def as_lists(batches: Any) -> list[Any]:
    return [np.asarray(batch).tolist() for batch in batches]


def test_a_source_is_what_grain_asks_for(path: Path) -> None:
    source = grain_source(path, 10, **OPTIONS)
    assert isinstance(source, grain.sources.RandomAccessDataSource)
    assert repr(source) == repr(grain_source(path, 10, **OPTIONS))
    assert repr(source) != repr(grain_source(path, 10, shuffle=True, seed=8))
    assert "0x" not in repr(source)
    again = pickle.loads(pickle.dumps(source))
    assert len(pickle.dumps(source)) < 2000
    assert again[3].tolist() == source[3].tolist()


@pytest.mark.parametrize("options", [{}, {"drop_last": True}, {"pad_last": True}])
@pytest.mark.parametrize("ranks", [{}, {"rank": 1, "num_ranks": 2}])
def test_records_are_the_batches_of_the_loaders_epoch_after_epoch(
    options: dict[str, Any], ranks: dict[str, Any], path: Path
) -> None:
    expected = epochs_of_the_loader(path, 3, **options, **ranks)
    source = GrainSource(path, 10, **OPTIONS, **options, **ranks, num_epochs=3)
    assert as_lists(source[i] for i in range(len(source))) == [
        batch for epoch in expected for batch in epoch
    ]
    later = GrainSource(path, 10, **OPTIONS, **options, **ranks, first_epoch=2)
    assert as_lists(later[i] for i in range(len(later))) == expected[2]


@pytest.mark.parametrize("index", [-1, 11])
def test_a_record_out_of_range_is_an_index_error(index: int, path: Path) -> None:
    with pytest.raises(IndexError, match=f"record {index} of 11"):
        GrainSource(path, 10)[index]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shuffle": True}, "needs seed="),
        ({"first_epoch": -1}, "first_epoch is -1"),
        ({"num_epochs": 0}, "num_epochs 0"),
        ({"batch_size": 0}, "batch_size is 0"),
    ],
)
def test_a_source_refuses_what_it_cannot_repeat(
    options: dict[str, Any], message: str, path: Path
) -> None:
    with pytest.raises(ArgumentError, match=message):
        GrainSource(path, **options)


def test_the_loader_of_grain_reads_a_source(path: Path) -> None:
    source = GrainSource(path, 10, **OPTIONS, num_epochs=2)
    sampler = grain.samplers.SequentialSampler(len(source), grain.sharding.NoSharding())
    loader = grain.DataLoader(data_source=source, sampler=sampler, worker_count=0)
    assert as_lists(loader) == batches_of_the_loader(path, 2)


def test_a_repeated_dataset_reorders_every_epoch(path: Path) -> None:
    dataset = grain_dataset(path, 10, **OPTIONS)
    assert isinstance(dataset, grain.MapDataset)
    assert len(dataset) == 11
    expected = epochs_of_the_loader(path, 3)
    assert as_lists(dataset.to_iter_dataset(READ)) == expected[0]
    assert as_lists(dataset.repeat(3).to_iter_dataset(READ)) == [
        batch for epoch in expected for batch in epoch
    ]


def test_slices_of_a_dataset_part_the_batches(path: Path) -> None:
    dataset = grain_dataset(path, 10, **OPTIONS)
    (expected,) = epochs_of_the_loader(path, 1)
    parts = [as_lists(dataset[i::3].to_iter_dataset(READ)) for i in range(3)]
    assert [parts[i % 3][i // 3] for i in range(11)] == expected


@pytest.mark.parametrize("at", [0, 1, 7, 11, 15])
def test_a_saved_state_goes_on_exactly_where_the_iterator_was(at: int, path: Path) -> None:
    expected = batches_of_the_loader(path, 2)

    def iterator() -> Any:
        return iter(grain_dataset(path, 10, **OPTIONS).repeat(2).to_iter_dataset(READ))

    first = iterator()
    assert as_lists(next(first) for _ in range(at)) == expected[:at]
    state = json.loads(json.dumps(first.get_state()))
    other = iterator()
    other.set_state(state)
    assert as_lists(other) == expected[at:]


def test_samples_of_a_base_dataset_come_with_their_rows(path: Path) -> None:
    from fostore.jax import FirstOrderDataset as JaxDataset

    pairs = make_pairs(len(ROWS))
    for kind in (fostore.FirstOrderDataset, JaxDataset):
        source = GrainSource(kind(pairs, path), 10, **OPTIONS)
        for k, samples in enumerate(source.order.batches(0)):
            inputs, labels, found = source[k]
            assert isinstance(found, np.ndarray)
            np.testing.assert_array_equal(inputs, pairs.inputs[samples])
            np.testing.assert_array_equal(labels, pairs.labels[samples])
            np.testing.assert_array_equal(found, ROWS[samples])


WORKERS = """\
import json, sys
import numpy as np
import grain
from absl import flags
from fostore.jax.grain import grain_dataset

def batches(path):
    dataset = grain_dataset(path, 10, shuffle=True, seed=7).repeat(2)
    reading = dataset.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=2))
    return reading.mp_prefetch(grain.MultiprocessingOptions(num_workers=2))

if __name__ == "__main__":
    flags.FLAGS.mark_as_parsed()  # worker processes of Grain want that
    found = iter(batches(sys.argv[1]))
    begun = [np.asarray(next(found)).tolist() for _ in range(5)]
    other = iter(batches(sys.argv[1]))
    other.set_state(found.get_state())
    print(json.dumps(begun + [np.asarray(batch).tolist() for batch in other]))
"""


def test_worker_processes_of_grain_keep_order_and_state(path: Path, tmp_path: Path) -> None:
    import subprocess
    import sys

    script = tmp_path / "workers.py"  # workers import the main module again
    script.write_text(WORKERS)
    result = subprocess.run(
        [sys.executable, str(script), str(path)], capture_output=True, text=True, timeout=150
    )
    assert result.returncode == 0, result.stderr
    (line,) = [line for line in result.stdout.splitlines() if line.startswith("[[")]
    assert json.loads(line) == batches_of_the_loader(path, 2)


def test_grain_places_batches_on_a_device(path: Path) -> None:
    import jax

    dataset = grain_dataset(path, 10, **OPTIONS).to_iter_dataset(READ)
    batches = list(grain.experimental.device_put(dataset, jax.devices("cpu")[0]))
    assert all(isinstance(batch, jax.Array) for batch in batches)
    assert as_lists(batches) == epochs_of_the_loader(path, 1)[0]
