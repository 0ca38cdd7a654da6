"""One store from engines that exist: torchrun, SLURM, plain shells, Ray; killed, and gone on with by other numbers."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

import fostore
from engine_target import UNIT, K, N, Numbers, Other, Teacher, share, teach
from fostore.errors import ArgumentError, IdentityError, UnsupportedError

TARGET = Path(__file__).with_name("engine_target.py")
QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_DISABLE_IMPORT_WARNING": "1", "OMP_NUM_THREADS": "1"}


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
        paths = os.pathsep.join([str(TARGET.parent), *sys.path])
        process = psutil.Popen(
            [sys.executable, *map(str, command)],
            env={**os.environ, **QUIET, "PYTHONPATH": paths, **environment},
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
    except fostore.errors.StoreNotFoundError:
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

pytest.importorskip("ray", reason="Ray is not installed (pip install 'fostore[ray]')")


def test_an_actor_and_the_driver_are_killed_and_three_go_on(
    tmp_path: Path, started: Any, digest: str
) -> None:
    path, pids = tmp_path / "t.zarr", tmp_path / "pids"
    pids.mkdir()
    slow = {"FOSTORE_TEST_PIDS": str(pids), "FOSTORE_TEST_PAUSE": "0.2"}
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
    again = started(TARGET, "ray", path, 3)
    assert_ends(again)
    store = fostore.open(path)
    assert store.header.digest == digest
    assert len(store) == N


def planned(path: Path) -> Path:
    fostore.plan(path, num_samples=N, num_classes=K, unit_rows=UNIT)
    return path


def test_a_pipeline_of_ones_own_writes_whole_units(tmp_path: Path, started: Any) -> None:
    path = planned(tmp_path / "t.zarr")
    for unit in fostore.open_units(path, shard=(0, 3)):
        unit.write(teach({"row": np.array(unit.rows)})["probs"])
    assert_ends(started(TARGET, "pipeline", path))
    store = fostore.open(path)
    assert np.array_equal(store.take(np.arange(N)), teach({"row": np.arange(N)})["probs"])
    assert store.header.sealed


def test_units_that_come_in_parts_are_named_and_stay_missing(tmp_path: Path, started: Any) -> None:
    path = planned(tmp_path / "t.zarr")
    pipeline = started(TARGET, "parts", path)
    out = pipeline.communicate(timeout=120)[0]
    assert pipeline.returncode == 1
    assert "RowError" in out
    assert "came in parts of units of 1024 rows" in out
    with fostore.open(path) as store:
        assert not store.header.sealed
        taken = store.positions
        assert np.array_equal(store.take(taken), teach({"row": taken})["probs"])
    assert fostore.missing(path)


def test_what_has_no_meaning_with_ray_is_refused(tmp_path: Path) -> None:
    from fostore.ray import generate

    for wrong in ({"rows": (0, 5)}, {"shard": (0, 2)}, {"exists": "overwrite"}, {"concurrency": 0}):
        with pytest.raises(ArgumentError):
            generate(Numbers(), Teacher, tmp_path / "t.zarr", **wrong)
    with pytest.raises(UnsupportedError, match="one writer"):
        generate(Numbers(), Teacher, tmp_path / "t.h5")
