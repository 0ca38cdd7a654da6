"""Loading for JAX: batches as device arrays, shardings, masks; and one order on all sides."""

from __future__ import annotations

import itertools
import os
import pickle
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fostore
from fostore.errors import ArgumentError
from fostore.jax import FirstOrderDataset, output_dataloader
from sides import SIDES, make_pairs

NUM_SAMPLES, NUM_CLASSES = 203, 16


@pytest.fixture(scope="module")
def rows() -> np.ndarray:
    """Distributions that name their row: row i has class i % 16 and i // 16 above the others."""
    weights = np.ones((NUM_SAMPLES, NUM_CLASSES), np.float32)
    at = np.arange(NUM_SAMPLES)
    weights[at, at % NUM_CLASSES] += 3
    weights[at, at // NUM_CLASSES] += 9
    return weights / weights.sum(1, keepdims=True)


@pytest.fixture(scope="module")
def path(rows: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("store") / "a.zarr"
    with fostore.create(path, num_samples=len(rows), num_classes=NUM_CLASSES) as writer:
        writer.append(rows)
    return path


def indices(batches: Any) -> list[list[int]]:
    """The rows that batches of distributions hold, told by the distributions alone."""
    found = []
    for batch in batches:
        weights = np.asarray(batch)
        weights = weights / weights.min(1, keepdims=True)
        high = np.argmax(weights, 1)
        weights[np.arange(len(weights)), high] -= 9
        found.append((high * NUM_CLASSES + np.argmax(weights, 1)).tolist())
    return found


# ------------------------------------------------------------------ one order on all sides


def loader_of(side: str, path: Path, **options: Any) -> Any:
    return SIDES[side].module.output_dataloader(None, path, 10, **options)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"shuffle": True, "seed": 7},
        {"shuffle": True, "seed": 7, "drop_last": True},
        {"shuffle": True, "seed": 7, "pad_last": True},
        {"shuffle": True, "seed": 7, "rank": 1, "num_ranks": 3},
        {"shuffle": True, "seed": 7, "rank": 2, "num_ranks": 3, "pad_last": True},
        {"rank": 2, "num_ranks": 3, "drop_last": True},
    ],
)
def test_every_side_gives_the_same_batches_for_a_seed_and_an_epoch(
    options: dict[str, Any], path: Path
) -> None:
    found = {}
    for side in SIDES:
        loader = loader_of(side, path, **options)
        epochs = [indices(loader) for _ in range(2)]
        loader.set_epoch(0)
        assert indices(loader) == epochs[0]
        assert len(loader) == len(epochs[0])
        found[side] = epochs
    assert found["torch"] == found["numpy"]
    assert found["jax"] == found["numpy"]
    assert (found["numpy"][0] != found["numpy"][1]) == bool(options.get("shuffle"))


@pytest.mark.parametrize("to", SIDES)
@pytest.mark.parametrize("side", SIDES)
def test_an_epoch_begun_on_one_side_goes_on_on_any(side: str, to: str, path: Path) -> None:
    whole = indices(loader_of("numpy", path, shuffle=True, seed=7))
    first = loader_of(side, path, shuffle=True, seed=7)
    begun = indices(itertools.islice(first, 6))
    then = loader_of(to, path, shuffle=True, seed=7)
    then.load_state_dict(first.state_dict())
    assert begun + indices(then) == whole


# ------------------------------------------------------------------ batches


def test_batches_are_jax_arrays_of_the_base_dataset_and_the_store(
    path: Path, rows: np.ndarray
) -> None:
    pairs = make_pairs(NUM_SAMPLES)
    loader = output_dataloader(pairs, path, 32, shuffle=True, seed=1)
    for samples, (inputs, labels, found) in zip(
        list(loader.cursor.order.batches(0)), loader, strict=True
    ):
        assert all(isinstance(part, jax.Array) for part in (inputs, labels, found))
        np.testing.assert_array_equal(inputs, pairs.inputs[samples])
        np.testing.assert_array_equal(labels, pairs.labels[samples])
        np.testing.assert_array_equal(found, rows[samples])


def test_dict_samples_become_dicts_of_arrays(path: Path, rows: np.ndarray) -> None:
    data = [{"x": np.float32([i, 1]), "name": f"s{i}"} for i in range(NUM_SAMPLES)]
    loader = output_dataloader(data, path, 4, target_key="soft")
    batch = next(iter(loader))
    assert isinstance(batch["x"], jax.Array)
    assert batch["name"] == ["s0", "s1", "s2", "s3"]
    np.testing.assert_array_equal(batch["soft"], rows[:4])
    sample = loader.dataset[5]
    assert isinstance(sample["soft"], jax.Array)
    np.testing.assert_array_equal(sample["soft"], rows[5])


def test_a_dataset_of_distributions_alone_gives_arrays(path: Path, rows: np.ndarray) -> None:
    dataset = FirstOrderDataset(None, path)
    assert isinstance(dataset[3], jax.Array)
    np.testing.assert_array_equal(dataset[3], rows[3])
    (batch,) = dataset.read_batches(np.arange(4), 4)
    assert isinstance(batch, jax.Array)
    assert len(pickle.dumps(dataset)) < 1500


def test_ragged_and_other_inputs_become_lists(rows: np.ndarray) -> None:
    data = [(np.zeros(i + 1, np.float32), object()) for i in range(4)]
    loader = output_dataloader(data, dict(enumerate(rows[:4])), 4)
    inputs, labels, found = next(iter(loader))
    assert [part.shape for part in inputs] == [(1,), (2,), (3,), (4,)]
    assert all(isinstance(part, jax.Array) for part in inputs)
    assert labels == [label for _, label in data]
    np.testing.assert_array_equal(found, rows[:4])


def test_half_floats_and_wide_integers_arrive_as_jax_has_them(rows: np.ndarray) -> None:
    data = [(np.float16([i]), np.int64(i)) for i in range(4)]
    inputs, labels, _ = next(iter(output_dataloader(data, dict(enumerate(rows[:4])), 4)))
    assert (inputs.dtype, labels.dtype) == (jnp.float16, jnp.int32)
    with jax.enable_x64(True):
        loader = output_dataloader(data, dict(enumerate(rows[:4])), 2)
        assert [batch[1].dtype for batch in loader] == [jnp.int64, jnp.int64]  # also in the thread


@pytest.mark.parametrize(
    ("options", "sizes"),
    [({}, [64, 64, 64, 11]), ({"drop_last": True}, [64] * 3), ({"pad_last": True}, [64] * 4)],
)
def test_the_last_batch_is_short_left_out_or_filled(
    options: dict[str, Any], sizes: list[int], path: Path
) -> None:
    assert [len(batch) for batch in output_dataloader(None, path, 64, **options)] == sizes


@pytest.mark.parametrize("base", ["none", "pairs", "dicts"])
@pytest.mark.parametrize("num_ranks", [1, 3])
def test_a_mask_marks_the_samples_that_count(base: str, num_ranks: int, path: Path) -> None:
    pairs = make_pairs(NUM_SAMPLES)
    data = {"none": None, "pairs": pairs, "dicts": [{"x": x} for x in pairs.inputs]}[base]
    options = {"target_key": "p"} if base == "dicts" else {}
    counted: list[int] = []
    for rank in range(num_ranks):
        loader = output_dataloader(
            data,
            path,
            64,
            shuffle=True,
            seed=3,
            mask_last=True,
            rank=rank,
            num_ranks=num_ranks,
            **options,
        )
        for batch in loader:
            mask, found = (batch["mask"], batch["p"]) if base == "dicts" else (batch[-1], batch[-2])
            assert (mask.shape, mask.dtype) == ((64,), jnp.bool_)
            assert len(found) == 64
            counted += indices([np.asarray(found)[np.asarray(mask)]])[0] if mask.any() else []
    assert sorted(counted) == list(range(NUM_SAMPLES))


def test_a_masked_epoch_compiles_its_step_once(path: Path) -> None:
    traced = []

    @jax.jit
    def step(found: Any, mask: Any) -> Any:
        traced.append(found.shape)
        return jnp.where(mask[:, None], found, 0).sum()

    total = sum(float(step(*batch)) for batch in output_dataloader(None, path, 64, mask_last=True))
    assert total == pytest.approx(NUM_SAMPLES, rel=1e-5)
    assert traced == [(64, NUM_CLASSES)]


def test_a_step_may_donate_batch_and_mask(path: Path) -> None:
    step = jax.jit(lambda batch: (batch[0] * 2, ~batch[1]), donate_argnums=0)
    loader = output_dataloader(None, path, 64, mask_last=True)
    assert sum(1 for batch in loader if step(batch)) == len(loader)


def test_ragged_inputs_do_not_lie_in_the_datasets_own_memory(rows: np.ndarray) -> None:
    data = [np.zeros((1 + i % 2, 16, 16), np.float32) for i in range(NUM_SAMPLES)]
    loader = output_dataloader(data, dict(enumerate(rows)), 4, prefetch=0)
    inputs, _ = next(iter(loader))
    for image in data:
        image.fill(5)
    assert not any(float(one.sum()) for one in inputs)


def test_a_mask_goes_with_no_other_way_of_ending() -> None:
    rows = {0: [0.5, 0.5]}
    with pytest.raises(ArgumentError, match="mask_last fills it; choose one"):
        output_dataloader(None, rows, mask_last=True, drop_last=True)


def test_a_mask_does_not_hide_a_key_of_the_samples(path: Path) -> None:
    data = [{"mask": np.ones(2)}] * NUM_SAMPLES
    loader = output_dataloader(data, path, mask_last=True, target_key="p")
    with pytest.raises(ArgumentError, match="samples have 'mask' already"):
        next(iter(loader))


# ------------------------------------------------------------------ devices


def test_a_device_is_a_name_or_a_device(path: Path) -> None:
    cpu = jax.devices("cpu")[0]
    for device in ("cpu", "cpu:0", cpu, jax.sharding.SingleDeviceSharding(cpu)):
        batch = next(iter(output_dataloader(None, path, 8, device=device)))
        assert batch.devices() == {cpu}
        assert batch.committed


def test_without_a_device_arrays_stay_free_to_move(path: Path) -> None:
    assert not next(iter(output_dataloader(None, path, 8))).committed


@pytest.mark.parametrize(
    ("device", "message"),
    [
        ("cpu:x", "one with its number"),
        ("cpu:999", "this process has 1 cpu devices"),
        ("disk", "device is 'disk'"),
        (3, "device is int"),
    ],
)
def test_a_device_that_is_not_there_is_refused(device: Any, message: str, path: Path) -> None:
    with pytest.raises(ArgumentError, match=message):
        output_dataloader(None, path, device=device)


SHARDED = """\
import sys
import jax, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
import fostore
from fostore.errors import ArgumentError
from fostore.jax import output_dataloader
path = sys.argv[1]
devices = jax.devices()
assert len(devices) == 4
mesh = Mesh(np.array(devices), ("batch",))
split = NamedSharding(mesh, P("batch"))
rows = fostore.open(path)[:]
data = [(np.float32([i, i]), i, ) for i in range(len(rows))]

for options in ({"drop_last": True}, {"pad_last": True}, {"mask_last": True}):
    loader = output_dataloader(data, path, 32, shuffle=True, seed=2, device=split, **options)
    order = loader.cursor.order
    for samples, batch in zip(list(order.batches(0)), loader, strict=True):
        inputs, labels, found = batch[:3]
        for part in batch:
            assert part.sharding.is_equivalent_to(split, part.ndim), part.sharding
            assert {len(piece.data) for piece in part.addressable_shards} == {8}
        np.testing.assert_array_equal(np.asarray(found), rows[samples])
        np.testing.assert_array_equal(np.asarray(labels), samples)
    if "mask_last" in options:
        assert int(np.asarray(batch[3]).sum()) == len(rows) % 32

def refused(pattern, *args, **options):
    try:
        output_dataloader(None, path, *args, **options)
    except ArgumentError as error:
        assert pattern in str(error), error
    else:
        raise AssertionError(pattern)

refused("the last batch has 11 of 32 samples", 32, device=split)
refused("mask_last=True", 32, device=split)
refused("batches of 30 samples", 30, device=split, drop_last=True)
# 201 rows leave 9, of 200 rows 8: as many as the devices can share.
part = fostore.open(path).select(np.arange(200))
assert [len(b) for b in output_dataloader(None, part, 32, device=split)] == [32] * 6 + [8]
both = NamedSharding(Mesh(np.array(devices).reshape(2, 2), ("batch", "class")), P("batch", "class"))
batch = next(iter(output_dataloader(None, path, 32, device=both, drop_last=True)))
assert {piece.data.shape for piece in batch.addressable_shards} == {(16, 8)}

# The default device of the caller holds in the thread that reads ahead, also for a numbered one.
with jax.default_device(devices[3]):
    assert [b.devices() for b in output_dataloader(None, path, 64)] == [{devices[3]}] * 4
assert {d for b in output_dataloader(None, path, 64, device="cpu:2") for d in b.devices()} == {devices[2]}
print("all well")
"""


def test_a_sharding_splits_every_batch_and_refuses_uneven_ones_beforehand(path: Path) -> None:
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=4", "JAX_PLATFORMS": "cpu"}
    result = subprocess.run(
        [sys.executable, "-c", SHARDED, str(path)],
        env={**os.environ, **flags},
        capture_output=True,
        text=True,
        timeout=150,
    )
    assert result.stdout.strip() == "all well", result.stderr


TWO_PROCESSES = """\
import sys
import jax, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
import fostore
from fostore.errors import ArgumentError
from fostore.jax import output_dataloader
path, port, rank = sys.argv[1], sys.argv[2], int(sys.argv[3])
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(f"127.0.0.1:{port}", 2, rank)
split = NamedSharding(Mesh(np.array(jax.devices()), ("batch",)), P("batch"))
ours = {"rank": rank, "num_ranks": 2, "device": split}
try:
    output_dataloader(None, path, 10, **ours)
except ArgumentError as error:
    assert "the last batch has 3 of 20 samples" in str(error), error
else:
    raise AssertionError("not refused")
options = {"shuffle": True, "seed": 7, "mask_last": True}
loader = output_dataloader(None, path, 10, **options, **ours)
whole = output_dataloader(None, path, 20, **options, device=jax.local_devices()[0])
total = jax.jit(lambda rows, mask: (rows * mask[:, None] * np.arange(rows.shape[1])).sum())
for (rows, mask), (expected, expected_mask) in zip(loader, whole, strict=True):
    assert rows.shape == expected.shape
    np.testing.assert_allclose(total(rows, mask), total(expected, expected_mask), rtol=1e-5)
    (piece,) = rows.addressable_shards
    np.testing.assert_array_equal(piece.data, np.asarray(expected)[10 * rank : 10 * rank + 10])
print("all well")
"""


def test_the_batches_of_several_processes_are_parts_of_one_global_array(path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", TWO_PROCESSES, str(path), port, str(rank)],
            env={**os.environ, "JAX_PLATFORMS": "cpu"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    for process in processes:
        out, err = process.communicate(timeout=150)
        assert out.strip().endswith("all well"), err


# ------------------------------------------------------------------ memory that is shared


@pytest.mark.parametrize("prefetch", [0, 2])
def test_batches_that_lie_in_the_loaders_memory_keep_their_values(
    prefetch: int, path: Path, rows: np.ndarray
) -> None:
    loader = output_dataloader(None, path, 16, shuffle=True, seed=1, prefetch=prefetch)
    samples = [s for epoch in range(3) for s in loader.cursor.order.batches(epoch)]
    batches = [batch for _ in range(3) for batch in loader]  # all alive at once
    for wanted, batch in zip(samples, batches, strict=True):
        np.testing.assert_array_equal(batch, rows[wanted])


def test_a_donated_batch_does_not_change_its_neighbours(path: Path, rows: np.ndarray) -> None:
    zero = jax.jit(lambda x: x * 0, donate_argnums=0)
    loader = output_dataloader(None, path, 16)
    batches = list(loader)  # they lie side by side in one gathered array
    del loader
    wiped = zero(batches[1])
    assert not np.asarray(wiped).any()
    for k in (0, 2, 3):
        np.testing.assert_array_equal(batches[k], rows[16 * k : 16 * k + 16])
    np.testing.assert_array_equal(fostore.open(path).take(np.arange(16, 32)), rows[16:32])


def test_on_a_cpu_batches_are_taken_without_a_copy(path: Path) -> None:
    loader = output_dataloader(None, path, 16, prefetch=0, device="cpu")
    gathered: list[np.ndarray] = []
    read = loader.dataset.host_batches

    def noted(samples: Any, batch_size: int) -> list[Any]:
        gathered.extend(read(samples, batch_size))
        return gathered

    loader.dataset.host_batches = noted  # type: ignore[method-assign]
    batch = next(iter(loader))
    assert batch.unsafe_buffer_pointer() == gathered[0].ctypes.data


# ------------------------------------------------------------------ ahead of the training loop


def test_arrays_are_placed_in_the_thread_and_the_state_counts_what_was_handed_out(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[str] = []
    put = jax.device_put

    def noted(*args: Any) -> Any:
        threads.append(threading.current_thread().name)
        return put(*args)

    monkeypatch.setattr(jax, "device_put", noted)
    loader = output_dataloader(make_pairs(NUM_SAMPLES), path, 16, shuffle=True, seed=5)
    batches = iter(loader)
    for k in range(1, 4):
        next(batches)
        assert loader.state_dict()["position"] == 16 * k
    batches.close()
    assert set(threads[1:]) == {"fostore-prefetch"}
    assert not [t for t in threading.enumerate() if t.name == "fostore-prefetch"]


def test_a_dataset_that_draws_is_read_by_the_caller(path: Path) -> None:
    threads = set()

    class Augmented:
        def __len__(self) -> int:
            return NUM_SAMPLES

        def __getitem__(self, index: int) -> Any:
            threads.add(threading.current_thread().name)
            return np.float32(np.random.rand(3)), index

    list(output_dataloader(Augmented(), path, 16, check="length"))
    assert threads == {threading.current_thread().name}


def test_a_bad_sample_is_an_error_of_its_batch(path: Path) -> None:
    data = [(np.float32([i]), i) for i in range(NUM_SAMPLES)]
    data[40] = None  # type: ignore[call-overload]

    class Strict:
        def __len__(self) -> int:
            return NUM_SAMPLES

        def __getitem__(self, index: int) -> Any:
            if data[index] is None:
                raise OSError("sample 40 cannot be decoded")
            return data[index]

    seen = []
    with pytest.raises(OSError, match="sample 40"):
        for batch in output_dataloader(Strict(), path, 16, check="length"):
            seen.append(len(batch))
    assert len(seen) == 2


LEFT = """\
import builtins, sys
import numpy as np
from fostore.jax import output_dataloader
data = [(np.full(2000, i, np.float32), i) for i in range(5000)]
loader = output_dataloader(data, {i: [0.5, 0.5] for i in range(5000)}, 64, prefetch=4)
iterator = builtins.kept = iter(loader)
next(iterator), next(iterator)
print("last line")
"""


def test_a_script_that_leaves_an_iterator_alive_ends_well() -> None:
    for _ in range(3):  # with a daemon thread about every second one was aborted
        result = subprocess.run(
            [sys.executable, "-c", LEFT], capture_output=True, text=True, timeout=60
        )
        assert (result.returncode, result.stdout.strip(), result.stderr) == (0, "last line", "")
