"""A generation that several processes share: the store is the one that a single process makes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fostore
from fostore.errors import ArgumentError, GenerationError, IdentityError, UnsupportedError
from fostore.places.memory import Memory
from fostore.writing.shares import Share, share_of
from sides import SIDES, Linear, Stream, make_pairs
from support import data_files
from test_publishing_targets import bucket, moto
from test_units import files_of

__all__ = ["bucket", "moto"]  # fixtures of another file
N, UNIT = 4500, 1024


def made(
    store: Any, side: str = "numpy", *, model: Any = None, pairs: Any = None, **options: Any
) -> Any:
    chosen = SIDES[side]
    generator = chosen.generator(
        chosen.model(model or Linear()), batch_size=100, output_mode="logits"
    )
    named = {"model_fingerprint": "m", "unit_rows": UNIT, "ids": range(N), "progress": False}
    return generator.generate_distributions(
        pairs or make_pairs(N), store=store, **{**named, **options}
    )


@pytest.fixture(params=["folder", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "folder":
        request.getfixturevalue("fast_disk")
        return str(tmp_path / "many.zarr")
    pytest.importorskip("obstore")
    request.getfixturevalue("bucket")
    return "s3://data/many.zarr"


@pytest.mark.parametrize("side", ["numpy", "torch", "jax"])
@pytest.mark.parametrize("options", [{}, {"keep_labels": True, "store_as": "logits"}])
def test_shares_make_the_store_that_one_process_makes(
    store: str, tmp_path: Path, side: str, options: dict[str, Any]
) -> None:
    pytest.importorskip(side)
    whole = made(tmp_path / "whole.zarr", side, **options)
    for i in (2, 0, 1):
        opened = made(store, side, shard=(i, 3), **options)
        assert opened.is_sealed is (i == 1), "who ends last finishes it"
    assert opened.digest() == whole.digest()
    assert opened.verify() == []
    assert files_of(store) == data_files(tmp_path / "whole.zarr") | {
        name: data for name, data in files_of(store).items() if name.endswith("zarr.json")
    }
    assert dict(opened.header.identity) == dict(whole.header.identity)
    assert made(store, side, shard="2/3", **options).is_sealed, "again is no error"


def test_one_process_generates_to_s3_and_goes_on_at_the_first_missing_unit(
    bucket: Any, tmp_path: Path
) -> None:
    url, model, pairs = "s3://data/one.zarr", Linear(), make_pairs(N)
    model.fail_at = 25
    with pytest.raises(GenerationError):
        made(url, model=model, pairs=pairs)
    assert fostore.missing(url) == [(2 * UNIT, N)]
    pairs.read.clear()
    opened = made(url, pairs=pairs, recheck=False)
    assert min(pairs.read[10:]) >= 2 * UNIT - 100
    assert opened.digest() == made(tmp_path / "whole.zarr").digest()
    assert made(url).is_sealed


def test_a_share_that_is_killed_is_made_by_others_of_another_number(
    store: str, tmp_path: Path
) -> None:
    model = Linear()
    model.fail_at = 18
    with pytest.raises(GenerationError):
        made(store, model=model, shard=(1, 2))
    made(store, shard=(0, 2))
    assert not fostore.open(store).is_sealed
    for i in range(3):
        made(store, shard=(i, 3))
    assert fostore.open(store).digest() == made(tmp_path / "whole.zarr").digest()


def test_a_worker_of_another_model_dataset_or_class_names_is_refused_by_name(store: str) -> None:
    names = list("abcde")
    made(store, shard=(0, 2), class_names=names)
    before = fostore.missing(store)
    for differs, options in {
        "model": {"model_fingerprint": "other"},
        "labels": {"pairs": make_pairs(N, seed=9)},
        "ids": {"ids": range(1, N + 1)},
        "class_names": {"class_names": names[::-1]},
        "dtype": {"dtype": "float16"},
        "disagree|differ|another": {
            "model": Linear(seed=4)
        },  # under the same name: it is computed again
    }.items():
        with pytest.raises(IdentityError, match=differs) as raised:
            made(store, shard=(1, 2), **{"class_names": names, **options})
        assert "give every share what the store was planned with" in str(raised.value)
        assert "overwrite" not in str(raised.value)  # which a share refuses
    assert fostore.missing(store) == before


def test_what_cannot_be_shared_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="this one streams"):
        made(tmp_path / "x.zarr", pairs=Stream(make_pairs(N).inputs), ids=None, shard=(0, 2))
    with pytest.raises(ArgumentError, match="leave out rows= and exists="):
        made(tmp_path / "x.zarr", shard=(0, 2), rows=(0, 5))
    with pytest.raises(UnsupportedError, match="one writer"):
        made(tmp_path / "x.h5", shard=(0, 2))
    memory = Memory("memory://x.zarr", {})
    with pytest.raises(ArgumentError, match="takes whole units"):
        made("memory://x.zarr", pairs=Stream(make_pairs(N).inputs), ids=None)
    assert not list(tmp_path.iterdir())
    assert not memory.files


def test_a_store_that_one_writer_began_takes_no_shares(tmp_path: Path) -> None:
    """Its rows lie in a journal: records beside that would count for nothing."""
    path = tmp_path / "x.zarr"
    made(path, rows=(0, 100), meta={"note": 1})
    before = {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}
    planned = {"num_samples": N, "num_classes": 3, "unit_rows": UNIT, "meta": {"note": 2}}
    for join in (
        lambda: made(path, shard=(1, 2)),
        lambda: fostore.plan(path, **planned, ids="int64", fingerprints=True),
        lambda: list(fostore.open_units(path)),
    ):
        with pytest.raises(ArgumentError, match="begun by one writer"):
            join()
    assert before == {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}
    assert made(path).is_sealed


@pytest.mark.parametrize("batch", [N, 300])
def test_who_writes_fast_keeps_no_more_units_in_memory_than_who_writes_slowly(
    monkeypatch: pytest.MonkeyPatch, batch: int
) -> None:
    memory = Memory("memory://x.zarr", {})
    monkeypatch.setattr("fostore.formats.zarr.units._OPEN_BYTES", 3 * (UNIT * 12 + 4096))
    rows = np.full((N, 3), 1 / 3, np.float32)
    with fostore.create(
        memory.url, num_samples=N, num_classes=3, unit_rows=UNIT, commit_seconds=1e9
    ) as writer:
        for start in range(0, N, batch):
            writer.append(rows[start : start + batch])
    assert fostore.open(memory.url).verify() == []


def test_who_was_killed_before_the_store_was_there_leaves_no_obstacle(tmp_path: Path) -> None:
    """Its folder, and a file without its name."""
    path = tmp_path / "t.zarr"
    path.mkdir()
    (path / ".zarr.json.0123456789ab.tmp").write_bytes(b"{")
    for i in range(2):
        made(path, shard=(i, 2))
    assert fostore.open(path).is_sealed


def test_more_shares_than_units_leave_some_without_work(tmp_path: Path) -> None:
    for i in range(7):
        opened = made(tmp_path / "x.zarr", shard=(i, 7))
    assert opened.is_sealed


def test_the_folder_of_a_store_that_another_process_just_begins_is_joined(tmp_path: Path) -> None:
    (tmp_path / "x.zarr").mkdir()  # its first file comes a moment later
    assert made(tmp_path / "x.zarr", shard=(0, 1)).is_sealed


# Which share


def test_a_share_is_told_or_asked_of_the_launcher() -> None:
    assert share_of(None) is None
    assert share_of((np.int64(3), 64)) == share_of("3/64") == Share(3, 64)
    slurm = {f"SLURM_ARRAY_TASK_{key}": value for key, value in {
        "ID": "7", "COUNT": "4", "MIN": "1", "STEP": "2", "MAX": "7",
    }.items()}  # fmt: skip
    for environment, expected in (
        ({"RANK": "1", "WORLD_SIZE": "4", "SLURM_PROCID": "0", "SLURM_NTASKS": "1"}, (1, 4)),
        ({"SLURM_PROCID": "5", "SLURM_NTASKS": "8"}, (5, 8)),
        (slurm, (3, 4)),
        ({**slurm, "RANK": "1", "WORLD_SIZE": "2"}, (7, 8)),
        ({"SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_TASK_MAX": "9"}, (3, 10)),
    ):
        share = share_of("auto", environment)
        assert share is not None
        assert (share.index, share.count) == expected
        assert all(name.partition(" ")[0] in environment for name in share.source.split("; "))
    with pytest.raises(ArgumentError, match="no launcher says"):
        share_of("auto", {"RANK": "1"})
    with pytest.raises(ArgumentError, match="of how many"):  # of a made-up number, tasks overlap
        share_of("auto", {"SLURM_ARRAY_TASK_ID": "2"})
    with pytest.raises(ArgumentError, match="which is none"):
        share_of("auto", {"RANK": "4", "WORLD_SIZE": "4"})


MODELS = """\
import numpy as np

weights = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
net = lambda x: x @ weights
data = [(x, 0) for x in np.random.default_rng(1).normal(size=(4500, 4)).astype(np.float32)]
"""


def test_the_whole_story_by_the_command_line(tmp_path: Path) -> None:
    (tmp_path / "models.py").write_text(MODELS)
    base = [sys.executable, "-m", "fostore.cli"]
    command = (
        "generate models.py:net models.py:data --framework numpy --model-fingerprint m".split()
    )
    command += "--output-mode logits --unit-rows 1024 --no-factory --no-progress".split()

    def start(*arguments: str, **environment: str) -> Any:
        return subprocess.Popen(
            [*base, *arguments], cwd=tmp_path, env={**os.environ, **environment}, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def run(*arguments: str, **environment: str) -> tuple[int, str, str]:
        process = start(*arguments, **environment)
        out, err = process.communicate(timeout=120)
        return process.returncode, out, err

    assert run(*command, "-o", "whole.zarr")[0] == 0
    both = [
        start(
            *command,
            "-o",
            "t.zarr",
            "--shard",
            "auto",
            SLURM_ARRAY_TASK_ID=str(i),
            SLURM_ARRAY_TASK_COUNT="3",
        )
        for i in (0, 1)
    ]
    for i, process in enumerate(both):
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        assert f"shard {i} of 3 (SLURM_ARRAY_TASK_ID" in err
        assert "not finished" in out
    assert run("missing", "t.zarr")[:2] == (0, "3072:4500\n")
    code, _, err = run("finish", "t.zarr")
    assert (code, "rows 3072 to 4499" in err) == (1, True)
    info = run("info", "t.zarr")[1]
    assert "written   3 of 5 units" in info
    code, out, _ = run(*command, "-o", "t.zarr", "--shard", "2/3")
    assert "sealed" in out
    code, out, _ = run("finish", "t.zarr")
    assert (code, "sealed" in out) == (0, True)
    assert run("missing", "t.zarr")[2] == "t.zarr: no row is missing\n"
    assert fostore.open(tmp_path / "t.zarr").verify() == []
    assert data_files(tmp_path / "t.zarr") == data_files(tmp_path / "whole.zarr")
