"""One store from engines that exist: torchrun, SLURM, plain shells, Ray; killed, and gone on with by other numbers."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

import fostore
from engine_target import (
    UNIT,
    K,
    N,
    Numbers,
    Other,
    Teacher,
    begin,
    drive,
    pipe,
    share,
    teach,
    unmade,
)
from fostore.errors import (
    ArgumentError,
    FormatError,
    IdentityError,
    RowError,
    StoreNotFoundError,
    UnsupportedError,
)
from test_publishing_targets import moto

__all__ = ["moto"]  # a fixture of another file

TARGET = Path(__file__).with_name("engine_target.py")
PATHS = os.pathsep.join([str(TARGET.parent), *sys.path])
QUIET = {
    "OMP_NUM_THREADS": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DISABLE_IMPORT_WARNING": "1",
    "RAY_prestart_worker_first_driver": "0",  # each is seconds of a core
}


@pytest.fixture(scope="module")
def digest(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Of the store that one process makes."""
    path = tmp_path_factory.mktemp("one") / "t.zarr"
    generator = fostore.FirstOrderDataGenerator(Teacher(), batch_size=256)
    store: Any = generator.generate_distributions(Numbers(), False, store=path, unit_rows=UNIT)
    return str(store.header.digest)


@pytest.fixture
def started() -> Iterator[Any]:
    """Starts processes, and kills what is left of them."""
    processes: list[psutil.Popen] = []

    def start(*command: Any, **environment: str) -> psutil.Popen:
        process = psutil.Popen(
            [sys.executable, *map(str, command)],
            env={**os.environ, **QUIET, "PYTHONPATH": PATHS, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        processes.append(process)
        return process

    yield start
    for process in processes:
        kill_tree(process)
        process.stdout.close()


def kill_all(processes: list[psutil.Process]) -> None:
    for one in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            one.kill()


def kill_tree(process: psutil.Process) -> None:
    try:
        tree = [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return
    kill_all(tree)
    psutil.wait_procs(tree, timeout=10)


def committed(path: Path) -> int:
    """Rows that are committed."""
    try:
        with fostore.open(path) as store:
            return len(store)
    except (StoreNotFoundError, FormatError):  # the second: a folder, and the store comes
        return 0


def wait_for(path: Path, rows: int, process: psutil.Popen, seconds: float = 60) -> int:
    end = time.monotonic() + seconds
    while (count := committed(path)) < rows:
        assert time.monotonic() < end, f"{count} of {rows} rows after {seconds} s"
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.05)
    return count


def assert_ends(process: psutil.Popen) -> None:
    out = process.communicate(timeout=120)[0]
    assert process.returncode == 0, out


# ------------------------------------------------------------------ shells, SLURM, torchrun


def test_shells_make_the_store_of_one_process(tmp_path: Path, started: Any, digest: str) -> None:
    path = tmp_path / "t.zarr"
    for process in [started(TARGET, "shell", path, f"{i}/3") for i in range(3)]:
        assert_ends(process)
    assert fostore.open(path).header.digest == digest  # who ended last has finished it
    assert fostore.missing(path) == []


def test_tasks_of_slurm_know_their_share(tmp_path: Path, started: Any, digest: str) -> None:
    """An array of two jobs, counted from 1, of two processes each."""
    path = tmp_path / "t.zarr"
    array = {
        "SLURM_ARRAY_TASK_COUNT": "2",
        "SLURM_ARRAY_TASK_MIN": "1",
        "SLURM_ARRAY_TASK_MAX": "2",
    }
    tasks = [
        started(
            TARGET, "slurm", path, "auto", **array,
            SLURM_ARRAY_TASK_ID=str(job), SLURM_PROCID=str(rank), SLURM_NTASKS="2",
        )
        for job in (1, 2)
        for rank in (0, 1)
    ]  # fmt: skip
    for task in tasks:
        assert_ends(task)
    assert fostore.open(path).header.digest == digest


def torchrun(ranks: int) -> list[str]:
    return ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]


def test_a_rank_of_torchrun_is_killed_and_fewer_go_on(
    tmp_path: Path, started: Any, digest: str
) -> None:
    path, pids = tmp_path / "t.zarr", tmp_path / "pids"
    pids.mkdir()
    run = started(
        *torchrun(4), TARGET, "torchrun", path,
        FOSTORE_TEST_PIDS=str(pids), FOSTORE_TEST_PAUSE="0.15",
    )  # fmt: skip
    wait_for(path, 1, run)
    os.kill(int(next(pids.iterdir()).name), signal.SIGKILL)
    assert run.wait(60) != 0  # torchrun ends the others
    kept = committed(path)
    assert 0 < kept < N
    again = started(*torchrun(3), TARGET, "torchrun", path)
    assert_ends(again)
    store = fostore.open(path)
    assert store.header.digest == digest


def test_a_worker_with_another_model_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "t.zarr"
    share(str(path), (0, 3))
    with pytest.raises(IdentityError, match="model"):
        share(str(path), (1, 3), Other)
    assert committed(path) == 3 * UNIT


# ------------------------------------------------------------------ Ray


@pytest.fixture(scope="module")
def cluster(moto: str) -> Iterator[Any]:
    """Runs functions of engine_target.py in one process, beside a cluster of Ray with three places for workers."""
    pytest.importorskip("ray", reason="Ray is not installed (pip install 'fostore[ray]')")
    import boto3

    service = {
        "AWS_ENDPOINT_URL": moto, "AWS_ACCESS_KEY_ID": "key-of-this-test",
        "AWS_SECRET_ACCESS_KEY": "secret-of-this-test", "AWS_REGION": "us-east-1",
    }  # fmt: skip
    spawn = multiprocessing.get_context("spawn")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**QUIET, **service, "PYTHONPATH": PATHS}.items():
            patch.setenv(name, value)
        boto3.client("s3", endpoint_url=moto).create_bucket(Bucket="data")
        with ProcessPoolExecutor(1, spawn, initializer=begin, initargs=(3,)) as pool:
            yield lambda function, *given, **named: pool.submit(function, *given, **named).result()


def test_an_actor_and_the_driver_are_killed_and_three_go_on(
    tmp_path: Path, started: Any, digest: str, cluster: Any
) -> None:
    path, pids = tmp_path / "t.zarr", tmp_path / "pids"
    pids.mkdir()
    slow = {"FOSTORE_TEST_PIDS": str(pids), "FOSTORE_TEST_PAUSE": "0.15"}
    driver = started(TARGET, "ray", path, 2, **slow)
    kept = wait_for(path, 1, driver)
    actors = {int(file.name) for file in pids.iterdir()}
    os.kill(actors.pop(), signal.SIGKILL)
    wait_for(path, kept + 2 * UNIT, driver)  # Ray gives its share to another one
    tree = driver.children(recursive=True)
    driver.kill()
    driver.wait(30)
    before = committed(path)
    assert before < N, "the driver was killed in the middle"
    kill_all(tree)  # what Ray would end by itself, some seconds later
    assert cluster(drive, str(path), 3) == digest
    store = fostore.open(path)
    assert len(store) == N
    assert store.verify() == []


def test_workers_of_ray_with_another_model_are_refused_by_name(
    tmp_path: Path, cluster: Any
) -> None:
    path = str(tmp_path / "t.zarr")
    share(path, (0, 3))
    with pytest.raises(IdentityError, match="model") as raised:
        cluster(drive, path, 2, Other)
    assert raised.value.differences
    assert committed(Path(path)) == 3 * UNIT


def test_a_model_that_cannot_be_made_ends_the_run(tmp_path: Path, cluster: Any) -> None:
    with pytest.raises(RuntimeError, match="no weights here"):
        cluster(drive, str(tmp_path / "t.zarr"), 1, unmade)


def test_ray_writes_to_object_stores(cluster: Any, digest: str) -> None:
    assert cluster(drive, "s3://data/t.zarr", 2, shares=3) == digest


def planned(path: Path) -> str:
    fostore.plan(path, num_samples=N, num_classes=K, unit_rows=UNIT, ids="S8")
    return str(path)


def assert_is_taught(store: fostore.Store) -> None:
    rows = store.positions
    oracle = teach({"row": rows})
    assert np.array_equal(store.take(rows), oracle["probs"])
    assert list(store.ids) == oracle["name"].tolist()


def test_a_pipeline_of_ones_own_writes_whole_units(tmp_path: Path, cluster: Any) -> None:
    path = planned(tmp_path / "t.zarr")
    for unit in fostore.open_units(path, shard=(0, 3)):
        rows = teach({"row": np.array(unit.rows)})
        unit.write(rows["probs"], ids=rows["name"].tolist())
    cluster(pipe, path, whole=True)
    with fostore.open(path) as store:
        assert store.header.sealed
        assert_is_taught(store)


def test_units_that_come_in_parts_are_named_and_stay_missing(tmp_path: Path, cluster: Any) -> None:
    path = planned(tmp_path / "t.zarr")
    with pytest.raises(Exception, match="came in parts of units of 1024 rows"):
        cluster(pipe, path, whole=False)
    with fostore.open(path) as store:
        assert not store.header.sealed
        assert_is_taught(store)
    assert fostore.missing(path)


def test_what_has_no_meaning_with_ray_is_refused(tmp_path: Path) -> None:
    generate = pytest.importorskip("fostore.ray", exc_type=ImportError).generate
    refused: dict[str, Any] = {
        "rows": (0, 5),
        "shard": (0, 2),
        "exists": "overwrite",
        "progress": 0,
    }
    for wrong in ({name: value} for name, value in {**refused, "concurrency": 0}.items()):
        with pytest.raises(ArgumentError):
            generate(Numbers(), Teacher, tmp_path / "t.zarr", **wrong)
    # Here, and not in a worker, which knows it once the cluster runs and the model is made.
    with pytest.raises(ArgumentError, match="goes into generator="):
        generate(Numbers(), Teacher, tmp_path / "t.zarr", output_mode="logits")
    with pytest.raises(UnsupportedError, match="one writer"):
        generate(Numbers(), Teacher, tmp_path / "t.h5")
    assert list(tmp_path.iterdir()) == []


def block_of(rows: Any) -> Any:
    """What a write task is given."""
    arrow = pytest.importorskip("pyarrow")
    made = teach({"row": np.asarray(rows)})
    return arrow.table({**made, "probs": made["probs"].tolist()})


@pytest.fixture
def sink(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Of a store that was named from another folder than that of the tasks."""
    module = pytest.importorskip("fostore.ray", exc_type=ImportError)
    monkeypatch.chdir(tmp_path)
    planned(Path("t.zarr"))
    made = module.Datasink("t.zarr", beside={"ids": "name"})
    monkeypatch.chdir("/")
    return made


def test_a_sink_takes_rows_in_any_order_and_blocks(sink: Any, tmp_path: Path) -> None:
    rows = np.random.default_rng(0).permutation(3 * UNIT)
    assert sink.write([block_of([]), block_of(rows[:700]), block_of(rows[700:])], None) == []
    with fostore.open(tmp_path / "t.zarr") as store:
        assert len(store) == 3 * UNIT
        assert_is_taught(store)
    assert sink.write([], None) == []


def test_a_sink_leaves_units_of_which_it_has_a_part(sink: Any, tmp_path: Path) -> None:
    assert sink.write([block_of(range(100, 2 * UNIT))], None) == [(100, UNIT)]
    assert committed(tmp_path / "t.zarr") == UNIT


@pytest.mark.parametrize(
    ("rows", "words"), [([3, 1, 3], "row 3 came twice"), ([N], f"row {N} came"), ([-1], "row -1")]
)
def test_a_sink_refuses_rows_that_are_none(sink: Any, rows: list[int], words: str) -> None:
    with pytest.raises(RowError, match=words):
        sink.write([block_of(rows)], None)


def test_a_source_has_a_task_for_each_missing_unit(sink: Any, tmp_path: Path) -> None:
    from fostore.ray import UnitSource

    sink.write([block_of(range(UNIT, 2 * UNIT))], None)
    source = UnitSource(tmp_path / "t.zarr")
    blocks = [next(iter(task())) for task in source.get_read_tasks(1)]
    assert len(source) == len(blocks) == N // UNIT
    rows = np.concatenate([block["row"].to_numpy() for block in blocks])
    assert np.array_equal(rows, np.setdiff1d(np.arange(N), np.arange(UNIT, 2 * UNIT)))
    assert source.estimate_inmemory_data_size() == rows.nbytes
