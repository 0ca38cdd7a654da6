"""The generation loop on its own, and the pure parts around it."""

from __future__ import annotations

import inspect
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fostore
from fostore import nested
from fostore.containers.collate import collate
from fostore.errors import ArgumentError, GenerationError, RowError
from fostore.generate import sizes, tuning
from fostore.generate.loop import DEPTH, run
from fostore.generate.models import takes_keywords
from fostore.generate.samples import Listed, Sequential
from fostore.schema.ranges import Ranges
from sides import SIDES, Linear, Side, make_pairs


def steps_of(count: int) -> Any:
    return ((range(i, i + 1), i) for i in range(count))


@pytest.mark.parametrize("overlap", [False, True])
def test_results_are_delivered_in_order(overlap: bool) -> None:
    delivered: list[int] = []

    def deliver(token: int) -> None:
        time.sleep(0.001 * (token % 3))
        delivered.append(token)

    run(steps_of(30), lambda step: step[1], deliver, overlap=overlap)
    assert delivered == list(range(30))


def test_the_model_runs_in_the_callers_thread_and_delivery_beside_it() -> None:
    threads: dict[str, set[int]] = {"compute": set(), "deliver": set()}

    def compute(step: tuple[Any, int]) -> int:
        x = step[1]
        threads["compute"].add(threading.get_ident())
        return x

    def deliver(token: int) -> None:
        if token:
            threads["deliver"].add(threading.get_ident())

    run(steps_of(5), compute, deliver, overlap=True)
    assert threads["compute"] == {threading.get_ident()}
    assert threads["deliver"].isdisjoint(threads["compute"])
    threads["deliver"].clear()
    run(steps_of(5), compute, deliver, overlap=False)
    assert threads["deliver"] == threads["compute"]


def test_the_queue_is_bounded() -> None:
    computed, delivered, lead = 0, 0, 0

    def compute(step: tuple[Any, int]) -> int:
        x = step[1]
        nonlocal computed, lead
        computed += 1
        lead = max(lead, computed - delivered)
        return x

    def deliver(_: int) -> None:
        nonlocal delivered
        time.sleep(0.002)
        delivered += 1

    run(steps_of(30), compute, deliver, overlap=True)
    assert lead <= DEPTH + 2  # those that wait, the one being delivered, the one just computed


@pytest.mark.parametrize("overlap", [False, True])
def test_an_error_of_delivery_reaches_the_caller_and_nothing_follows_it(overlap: bool) -> None:
    delivered: list[int] = []

    def deliver(token: int) -> None:
        if token == 3:
            raise RowError("row 3")
        delivered.append(token)

    with pytest.raises(RowError, match="row 3"):
        run(steps_of(30), lambda step: step[1], deliver, overlap=overlap)
    assert delivered == [0, 1, 2]


@pytest.mark.parametrize("overlap", [False, True])
def test_what_was_computed_before_an_error_is_delivered(overlap: bool) -> None:
    delivered: list[int] = []

    def compute(step: tuple[Any, int]) -> int:
        x = step[1]
        if x == 7:
            raise KeyboardInterrupt
        return x

    def deliver(token: int) -> None:
        time.sleep(0.001)
        delivered.append(token)

    with pytest.raises(KeyboardInterrupt):
        run(steps_of(30), compute, deliver, overlap=overlap)
    assert delivered == list(range(7))


@pytest.mark.parametrize("name", list(SIDES))
def test_a_store_written_beside_the_model_is_the_same(name: str, tmp_path: Path) -> None:
    pairs, side = make_pairs(), SIDES[name]

    def generator(overlaps: bool, linear: Linear) -> Any:
        made = side.generator(side.model(linear), batch_size=16)
        made._framework.overlaps = overlaps
        return made

    inline = generator(False, Linear()).generate_distributions(
        pairs, False, store=tmp_path / "a.h5"
    )
    failing = Linear()
    failing.fail_at = 4
    path = tmp_path / "b.h5"
    with pytest.raises(GenerationError):
        generator(True, failing).generate_distributions(pairs, False, store=path)
    assert len(fostore.open(path)) == 64
    beside = generator(True, Linear()).generate_distributions(pairs, False, store=path)
    assert beside.digest() == inline.digest()


# ------------------------------------------------------------------ batches


@given(
    samples=st.integers(0, 40),
    size=st.integers(1, 9),
    drop=st.booleans(),
    wanted=st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), max_size=4),
)
def test_the_batches_touched_are_the_aligned_ones_that_hold_a_wanted_row(
    samples: int, size: int, drop: bool, wanted: list[tuple[int, int]]
) -> None:
    batches = Sequential(samples, size, drop)
    rows = Ranges.of(*((a, min(b, batches.num_rows)) for a, b in wanted))
    every = [list(range(i, min(i + size, samples))) for i in range(0, samples, size)]
    if drop:
        every = [batch for batch in every if len(batch) == size]
    assert batches.num_rows == sum(map(len, every))
    expected = [batch for batch in every if any(i in rows for i in batch)]
    assert [list(batch) for batch in batches.touching(rows)] == expected
    listed = Listed.of(every[::-1], max(samples, 1))
    assert [b.tolist() for b in listed.touching(rows)] == expected[::-1]


def test_a_sampler_that_repeats_or_leaves_the_dataset_is_refused() -> None:
    with pytest.raises(ArgumentError, match="sample 3 more than once"):
        Listed.of([[1, 3], [3, 4]], 10)
    with pytest.raises(ArgumentError, match="names sample 10, but the dataset has 10"):
        Listed.of([[1, 10]], 10)


def test_collating_keeps_structure_and_dtypes() -> None:
    samples = [
        {"a": np.float16([i, 1]), "b": (i, f"s{i}"), "c": [np.int64(i), f"t{i}"]} for i in range(3)
    ]
    batch = collate(samples)
    assert batch["a"].dtype == np.float16
    assert batch["a"].shape == (3, 2)
    np.testing.assert_array_equal(batch["b"][0], [0, 1, 2])
    assert batch["b"][1] == ["s0", "s1", "s2"]
    assert type(batch["b"]) is tuple
    assert batch["c"][0].dtype == np.int64
    with pytest.raises(ArgumentError, match=r"sample 1 of the batch has the shape \(3,\)"):
        collate([np.zeros(2), np.zeros(3)])
    part = nested.slice_rows(batch, 1, 3, 3)
    assert part["b"][1] == ["s1", "s2"]
    np.testing.assert_array_equal(part["c"][0], [1, 2])


@pytest.mark.parametrize(
    ("function", "keys", "expected"),
    [
        (lambda input_ids, mask: 0, ["input_ids", "mask"], True),
        (lambda input_ids, mask=None: 0, ["input_ids"], True),
        (lambda input_ids, **rest: 0, ["input_ids", "labels"], True),
        (lambda **rest: 0, ["a"], True),
        (lambda *inputs: 0, ["a"], False),
        (lambda batch: 0, ["a", "b"], False),
        (lambda: 0, ["a"], False),
    ],
)
def test_keywords_are_meant_where_they_fit(function: Any, keys: list[str], expected: bool) -> None:
    assert takes_keywords(inspect.signature(function), keys) is expected


# ------------------------------------------------------------------ sizes


def bytes_of(path: Path) -> int:
    files = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]
    return sum(p.stat().st_size for p in files)


@pytest.mark.parametrize("suffix", ["zarr", "h5", "json"])
@pytest.mark.parametrize(
    ("classes", "members", "options"),
    [(10, None, {}), (1000, None, {"dtype": "float16", "kind": "logits"}), (10, 5, {})],
)
def test_the_estimated_size_is_that_of_the_files(
    suffix: str, classes: int, members: int | None, options: dict[str, str], tmp_path: Path
) -> None:
    samples = 20_000 if classes == 10 else 3000
    side, path = SIDES["numpy"], tmp_path / f"a.{suffix}"
    shape = (classes,) if members is None else (members, classes)
    logits = np.random.default_rng(0).normal(size=(samples, *shape)).astype(np.float32) * 3
    generator = side.generator(
        lambda x: logits[x[:, 0]],
        batch_size=512,
        output_mode="logits",
        members=members is not None,
    )
    indices = np.arange(samples)[:, None]
    if suffix == "json":
        options = {}  # text has probabilities only
        rows = generator.generate_distributions(indices, False)
        generator.save_distributions(path, rows)
    else:
        generator.generate_distributions(
            indices,
            False,
            store=path,
            store_as=options.get("kind", "probs"),
            dtype=options.get("dtype", "float32"),
        )
    estimate = fostore.estimate_size(
        samples, classes, num_members=members, format=suffix, **options
    )
    assert estimate == pytest.approx(bytes_of(path), rel=0.15 if suffix == "json" else 0.03)


def test_a_size_of_nonsense_is_refused() -> None:
    with pytest.raises(ArgumentError, match="format is 'parquet'"):
        sizes.estimate_size(10, 10, format="parquet")


# ------------------------------------------------------------------ batch sizes


@pytest.mark.parametrize("limit", [1, 2, 3, 37, 64, 100, 511, 512, 4000])
def test_the_largest_batch_that_fits_is_found(limit: int) -> None:
    side = SIDES["numpy"]
    tried: list[int] = []

    def model(x: np.ndarray) -> np.ndarray:
        tried.append(len(x))
        if len(x) > limit:
            raise RuntimeError("CUDA out of memory")
        return x

    generator = side.generator(model)
    assert tuning.search(generator, make_pairs(600), 512, None, True) == min(limit, 512)
    assert len(tried) < 50


def test_a_batch_never_exceeds_the_dataset_and_one_sample_must_fit() -> None:
    side = SIDES["numpy"]
    generator = side.generator(lambda x: x)
    assert tuning.search(generator, make_pairs(100), 512, None, True) == 100

    def never(x: np.ndarray) -> np.ndarray:
        raise RuntimeError("CUDA out of memory")

    with pytest.raises(GenerationError, match="single sample"):
        tuning.search(side.generator(never), make_pairs(100), 512, None, True)
    failing = Linear()
    failing.fail_at = 0
    with pytest.raises(GenerationError, match="no luck"):
        tuning.search(side.generator(failing), make_pairs(100), 512, None, True)


def test_on_a_cpu_throughput_decides() -> None:
    times = {1: 1.0, 2: 1.1, 4: 1.2, 8: 1.6, 16: 3.1, 32: 6.3, 40: 9.0}
    assert tuning.fastest(times.__getitem__, 40) == 8
    assert tuning.fastest({1: 2.0}.__getitem__, 1) == 1


def test_what_does_not_fit_ends_the_search() -> None:
    times = {1: 1.0, 2: 1.1, 4: 1.2, 8: None}
    assert tuning.fastest(times.__getitem__, 40) == 4
    with pytest.raises(GenerationError, match="single sample"):
        tuning.fastest({1: None}.__getitem__, 40)


@pytest.mark.parametrize("name", ["torch", "jax"])
def test_a_batch_size_is_found_with_a_real_model(name: str) -> None:
    side: Side = SIDES[name]
    find = side.module.find_optimal_batch_size
    found = find(side.model(Linear()), make_pairs(60), "cpu", max_batch=16)
    assert found in (1, 2, 4, 8, 16)
