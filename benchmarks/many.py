"""What does a store from many processes cost? Shares beside one process, Ray beside map_batches, s3 beside PUTs.

Models sleep, so that what is measured is what is added to them. Digests of all that are compared are one.
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import os
import time
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import _bench
import _objects
import numpy as np

import fostore

CLASSES, BATCH = 10, 256
UNIT = 32 * BATCH


class Numbers:
    """Samples that are their own index."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Any:
        return np.float32([index, 1])


class Teacher:
    """A model that keeps no core busy, as one on an accelerator."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def __call__(self, inputs: Any) -> Any:
        time.sleep(self.seconds)
        weights = 1.5 + np.sin(inputs[:, :1] * np.arange(1, CLASSES + 1, dtype=np.float32))
        return (weights / weights.sum(-1, keepdims=True)).astype(np.float32)


def generate(path: str, count: int, seconds: float, shard: Any = None) -> float:
    """A store, or a share of it, in this process; gives the seconds."""
    generator = fostore.FirstOrderDataGenerator(Teacher(seconds), batch_size=BATCH)
    begin = time.perf_counter()
    generator.generate_distributions(
        Numbers(count), False, store=path, shard=shard, unit_rows=UNIT, model_fingerprint="t"
    )
    return time.perf_counter() - begin


# ---------------------------------------------------------------- shares


def shares(folder: Path, units: int, rounds: int) -> str:
    """Four processes beside one, with a model that sleeps; and without one, from rows that are there."""
    path, count = str(folder / "t.zarr"), units * UNIT
    digests = set()
    with multiprocessing.get_context("spawn").Pool(4) as pool:
        pool.map(_ready, range(8), chunksize=1)

        def run(function: Any, workers: int) -> float:
            jobs = [(path, count, (i, workers)) for i in range(workers)]
            begin = time.perf_counter()
            pool.starmap(function, jobs, chunksize=1)
            seconds = time.perf_counter() - begin
            store = fostore.finish(path)
            digests.add((function.__name__, store.digest()))
            store.close()
            _bench.discard(Path(path))
            return seconds

        cases = {
            (name, workers): partial(run, function, workers)
            for name, function in (
                ("a model that sleeps 10 ms a batch", _model),
                ("rows that are there", _rows),
            )
            for workers in (1, 4)
        }
        times = _bench.interleave(cases, rounds)
    assert len(digests) == 2, "the number of processes changes no row"
    lines = []
    for name in dict.fromkeys(name for name, _ in cases):
        one, four = times[name, 1], times[name, 4]
        ratio = _bench.ratio(one, four)
        goal = f"3.6: {_bench.verdict(ratio.median >= 3.6)}" if "model" in name else ""
        lines.append(
            [name, *(_bench.Spread.of(t).text(2, " s") for t in (one, four)), ratio.text(), goal]
        )
    return _bench.table(
        [f"{units} units of {UNIT:,} rows", "one process", "four", "times as fast", "goal"], lines
    )


def _ready(_: int) -> None:
    time.sleep(0.2)


def _model(path: str, count: int, shard: Any) -> None:
    generate(path, count, 0.01, shard)


def _rows(path: str, count: int, shard: Any) -> None:
    fostore.plan(path, num_samples=count, num_classes=CLASSES, unit_rows=UNIT)
    row = np.arange(1, CLASSES + 1, dtype=np.float32)
    rows = np.broadcast_to(row / row.sum(), (UNIT, CLASSES)).copy()
    for unit in fostore.open_units(path, shard=shard):
        unit.write(rows)


def finishing(folder: Path, units: int, rounds: int) -> str:
    """How long the last step takes."""
    path = folder / "t.zarr"

    def case() -> float:
        fostore.plan(path, num_samples=units << 10, num_classes=CLASSES, unit_rows=1 << 10)
        for unit in fostore.open_units(path):
            unit.write(np.full((len(unit), CLASSES), 1 / CLASSES, np.float32))
        begin = time.perf_counter()
        store = fostore.finish(path)
        seconds = time.perf_counter() - begin
        assert store.is_sealed
        assert len(store) == units << 10
        _bench.discard(path)
        return seconds

    (times,) = _bench.interleave({"": case}, rounds).values()
    spread = _bench.Spread.of(times)
    return (
        f"`fostore.finish` of {units:,} units in a folder: {spread.text(2, ' s')}; goal 2 s: "
        f"{_bench.verdict(spread.median <= 2)}."
    )


# ---------------------------------------------------------------- s3


def objects(units: int, rounds: int) -> str:
    """One process to an object store, beside the same bytes put by obstore one file after another."""
    import obstore
    from obstore.store import from_url

    count, classes = 16_384, 1000
    rng = np.random.default_rng(0)
    batch = rng.dirichlet(np.ones(classes), count).astype(np.float32)
    names = iter(range(1000))

    def ours() -> float:
        url = f"s3://bucket/{next(names)}.zarr"
        begin = time.perf_counter()
        with fostore.create(
            url, num_samples=units * count, num_classes=classes, unit_rows=count
        ) as writer:
            for _ in range(units):
                writer.append(batch)
        seconds = time.perf_counter() - begin
        store = fostore.open(url)
        assert np.array_equal(store.take([0, units * count - 1]), batch[[0, -1]])
        _forget(url)
        return seconds

    def plain() -> float:
        url = f"s3://bucket/{next(names)}.zarr"
        client = from_url(url, client_options={"allow_http": True})
        begin = time.perf_counter()
        for unit in range(units):
            obstore.put(
                client, f"probs/c/{unit}/0", batch.view(np.uint8).reshape(-1), use_multipart=False
            )
        seconds = time.perf_counter() - begin
        _forget(url)
        return seconds

    def _forget(url: str) -> None:
        client = from_url(url, client_options={"allow_http": True})
        for page in obstore.list(client):
            obstore.delete(client, [one["path"] for one in page])

    gigabytes = units * batch.nbytes / 1e9
    lines = []
    for name, mbps in (("as fast as loopback is", None), ("200 MB/s", 200)):
        with _objects.serving(mbps):
            times = _bench.interleave({"obstore.put": plain, "fostore.create": ours}, rounds)
        speeds = [
            _bench.Spread.of([gigabytes / t for t in spent]).text(2) for spent in times.values()
        ]
        ratio = _bench.ratio(times["obstore.put"], times["fostore.create"])
        lines.append([name, *speeds, ratio.text(), f"0.9: {_bench.verdict(ratio.median >= 0.9)}"])
    title = f"{units} units of {batch.nbytes / 2**20:.0f} MiB, server"
    return _bench.table(
        [title, "obstore.put, GB/s", "fostore.create, GB/s", "ratio", "goal"], lines
    )


# ---------------------------------------------------------------- Ray


class Bare:
    """What an actor does that keeps nothing."""

    def __init__(self, count: int, seconds: float) -> None:
        self.data, self.model = Numbers(count), Teacher(seconds)

    def __call__(self, batch: Any) -> Any:
        rows = self.model(np.stack([self.data[i] for i in batch["id"].tolist()]))
        return {"rows": np.array([len(rows)])}


def ray(folder: Path, units: tuple[int, int], rounds: int, seconds: float) -> str:
    """A pool of two actors that writes, beside one that keeps nothing."""
    import ray

    import fostore.ray

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray.init(
        address="local",
        num_cpus=4,  # reading takes some beside the two of the actors
        include_dashboard=False,
        logging_level="ERROR",
        log_to_driver=False,
    )
    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    path = str(folder / "t.zarr")
    digests = {}
    for number in units:
        generate(path, number * UNIT, 0)
        digests[number] = fostore.open(path).digest()
        _bench.discard(Path(path))

    def ours(number: int) -> float:
        begin = time.perf_counter()
        store = fostore.ray.generate(
            partial(Numbers, number * UNIT), partial(Teacher, seconds), path, batch_size=BATCH, concurrency=2,
            unit_rows=UNIT, model_fingerprint="t",
        )  # fmt: skip
        spent = time.perf_counter() - begin
        assert store.digest() == digests[number]
        store.close()
        _bench.discard(Path(path))
        return spent

    def bare(number: int) -> float:
        begin = time.perf_counter()
        rows = ray.data.range(number * UNIT, override_num_blocks=number).map_batches(
            Bare, fn_constructor_args=(number * UNIT, seconds), batch_size=BATCH, concurrency=2
        )
        count = sum(int(block["rows"].sum()) for block in rows.iter_batches())
        spent = time.perf_counter() - begin
        assert count == number * UNIT
        return spent

    cases: dict[Any, Callable[[], float]] = {
        (name, number): partial(case, number)
        for number in units
        for name, case in (("map_batches", bare), ("fostore.ray.generate", ours))
    }
    times = _bench.interleave(cases, rounds)
    ray.shutdown()
    few, many = units
    best = {case: min(spent) for case, spent in times.items()}
    names = "map_batches", "fostore.ray.generate"
    more = {name: (best[name, many] - best[name, few]) / (many - few) for name in names}
    lines = [
        [
            name,
            *(_bench.Spread.of(times[name, number]).text(1, " s") for number in units),
            f"{more[name] * 1e3:.0f} ms",
        ]
        for name in names
    ]
    bare_name, our_name = names
    ratios = [best[our_name, number] / best[bare_name, number] for number in units]
    after = more[our_name] / more[bare_name]
    lines.append(["of the best rounds", *(f"{one:.2f}" for one in ratios), f"{after:.2f}"])
    goals = f"1.3: {_bench.verdict(ratios[0] <= 1.3)}", "", f"1.05: {_bench.verdict(after <= 1.05)}"
    lines.append(["goal", *goals])
    titles = ["two actors", *(f"{n} units" for n in units), "a unit more"]
    return (
        f"A model of {seconds * 1e3:.0f} ms a batch of {BATCH}, units of {UNIT:,} rows. With the start of the actors, "
        f"of {rounds} rounds; ratios are of the best round of each, for what Ray starts takes seconds more or less:\n\n"
        + _bench.table(titles, lines)
    )


def main(arguments: argparse.Namespace) -> None:
    quick = arguments.quick
    chosen = arguments.part.split(",") if arguments.part else ["shares", "finish", "s3", "ray"]
    with _bench.scratch(arguments.dir) as folder:
        parts = [_bench.machine(folder, ["numpy", "obstore", "ray"])]
        if "shares" in chosen:
            parts.append(shares(folder, 8 if quick else 32, arguments.rounds))
        if "finish" in chosen:
            parts.append(finishing(folder, 50 if quick else 1000, arguments.rounds))
        if "s3" in chosen:
            parts.append(objects(2 if quick else 8, arguments.rounds))
        if "ray" in chosen and find_spec("ray"):
            parts.append(ray(folder, (2, 4) if quick else (16, 48), arguments.rounds, 0.02))
    _bench.report("many", parts, record=not quick and not arguments.part)


if __name__ == "__main__":
    options = _bench.parser(str(__doc__).splitlines()[0], 3)
    options.add_argument("--part", help="shares, finish, s3, ray; records nothing")
    main(_bench.parse(options))
