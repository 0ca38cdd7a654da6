"""Rows that nobody wrote are not taken for distributions."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import zarr
from typer.testing import CliRunner

import fostore
from fostore.cli import app
from fostore.conversion import convert
from fostore.conversion.sources import joined, open_table
from fostore.conversion.unwritten import watched
from fostore.errors import DamageError, RowError
from fostore.files import Hints
from support import probs

N, WRITTEN, K = 100, 55, 4
LOGITS = np.random.default_rng(0).normal(size=(N, K)).astype(np.float32)


def filled(kind: str, fill: Any, rows: np.ndarray | None = None) -> np.ndarray:
    """An array of `N` rows, of which the first `WRITTEN` were written."""
    whole = (
        np.array(LOGITS if kind == "logits" else probs(N, K), copy=True) if rows is None else rows
    )
    whole[WRITTEN:] = fill
    return whole


def to_npy(path: Path, rows: np.ndarray, name: str) -> str:
    np.save(path / "a.npy", rows)
    return str(path / "a.npy")


def to_npz(path: Path, rows: np.ndarray, name: str) -> str:
    np.savez(path / "a.npz", **{name: rows})
    return str(path / "a.npz")


def to_hdf5(path: Path, rows: np.ndarray, name: str) -> str:
    with h5py.File(path / "a.h5", "w") as file:
        file.create_dataset(name, data=rows, chunks=(20, *rows.shape[1:]))
    return str(path / "a.h5")


def to_zarr(path: Path, rows: np.ndarray, name: str) -> str:
    group = zarr.open_group(str(path / "a.zarr"), mode="w")
    array = group.create_array(
        name,
        shape=rows.shape,
        dtype=rows.dtype,
        chunks=(20, *rows.shape[1:]),
        config={"write_empty_chunks": True},
    )
    array[...] = rows
    return str(path / "a.zarr")


def to_csv(path: Path, rows: np.ndarray, name: str) -> str:
    lines = [",".join(f"class_{i}" for i in range(rows.shape[1]))]
    lines += [",".join(map(repr, row)) for row in rows.astype(float).tolist()]
    (path / "a.csv").write_text("\n".join(lines) + "\n")
    return str(path / "a.csv")


def to_pt(path: Path, rows: np.ndarray, name: str) -> str:
    torch = pytest.importorskip("torch")
    torch.save({name: torch.from_numpy(rows)}, path / "a.pt")
    return str(path / "a.pt")


def to_safetensors(path: Path, rows: np.ndarray, name: str) -> str:
    from safetensors.numpy import save_file

    save_file({name: rows}, path / "a.safetensors")
    return str(path / "a.safetensors")


def to_json(path: Path, rows: np.ndarray, name: str) -> str:
    table = {str(i): row for i, row in enumerate(rows.astype(float).tolist())}
    (path / "a.json").write_text(json.dumps({"meta": {}, "distributions": table}))
    return str(path / "a.json")


WRITERS = [to_npy, to_npz, to_hdf5, to_zarr, to_csv, to_pt, to_safetensors]
ids = lambda value: getattr(value, "__name__", None)  # noqa: E731


@pytest.mark.parametrize("write", WRITERS, ids=ids)
@pytest.mark.parametrize("fill", [0, -3.5])
def test_logits_of_an_array_that_was_not_filled_are_refused_with_their_rows(
    tmp_path: Path, write: Callable[..., str], fill: float
) -> None:
    source = write(tmp_path, filled("logits", fill), "logits")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(RowError, match="rows 55 to 99 have one number for all classes") as caught:
        convert(source, tmp_path / "b.zarr", source_kind="logits", progress=False)
    assert sorted(tmp_path.iterdir()) == before
    # The cures that it names.
    assert "rows=slice(0, 55)" in str(caught.value)
    convert(source, tmp_path / "b.zarr", source_kind="logits", rows=slice(0, 55), progress=False)
    assert len(fostore.open(tmp_path / "b.zarr")) == 55
    receipt = convert(
        source, tmp_path / "c.zarr", source_kind="logits", allow_constant=True, progress=False
    )
    assert any("rows 55 to 99" in note for note in receipt.notes)
    assert len(fostore.open(tmp_path / "c.zarr")) == N


@pytest.mark.parametrize("write", [*WRITERS, to_json], ids=ids)
@pytest.mark.parametrize("fill", ["uniform", "the last row"])
def test_probabilities_that_are_all_the_same_to_the_end_are_refused(
    tmp_path: Path, write: Callable[..., str], fill: str
) -> None:
    source = write(
        tmp_path, filled("probs", 1 / K if fill == "uniform" else probs(1, K)[0]), "probs"
    )
    with pytest.raises(RowError, match="rows 55 to 99, the last ones, are all the same"):
        convert(source, tmp_path / "b.zarr", progress=False)
    convert(source, tmp_path / "b.zarr", rows=slice(0, 55), progress=False)
    convert(source, tmp_path / "c.zarr", allow_constant=True, progress=False)


def hard_labels(rng: np.random.Generator) -> np.ndarray:
    return np.eye(K, dtype=np.float32)[np.sort(rng.integers(0, K, N))]


def smoothed_labels(rng: np.random.Generator) -> np.ndarray:
    """Class by class, as many as in each class before."""
    return np.repeat(0.9 * np.eye(K) + 0.1 / K, N // K, axis=0).astype(np.float32)


def a_prior(rng: np.random.Generator) -> np.ndarray:
    return np.tile(np.float32([0.4, 0.3, 0.2, 0.1]), (N, 1))


def one_uniform_row(rng: np.random.Generator) -> np.ndarray:
    rows = probs(N, K).copy()
    rows[[0, 1, 2, 50, N - 1]] = 1 / K
    return rows


def two_last_rows_alike(rng: np.random.Generator) -> np.ndarray:
    rows = probs(N, K).copy()
    rows[-1] = rows[-2]
    return rows


def rounded(rng: np.random.Generator) -> np.ndarray:
    first = np.round(rng.random(N), 1)
    first[-3:] = 0.3
    first[10:14] = 0.9
    return np.stack([first, 1 - first], axis=1)


def one_large_class(rng: np.random.Generator) -> np.ndarray:
    labels = np.r_[np.repeat(np.arange(K - 1), 5), np.full(N - 5 * (K - 1), K - 1)]
    return (0.9 * np.eye(K) + 0.1 / K)[labels].astype(np.float32)


def a_stump(rng: np.random.Generator) -> np.ndarray:
    """Two leaves, and the larger one to the end, longer than before."""
    leaf = np.r_[np.tile([0, 1, 1, 1, 1, 1, 1, 1], 11), np.ones(N - 88, int)]
    return np.float64([[0.2, 0.8], [0.95, 0.05]])[leaf]


@pytest.mark.parametrize(
    "make",
    [
        hard_labels,
        smoothed_labels,
        one_large_class,
        a_prior,
        one_uniform_row,
        two_last_rows_alike,
        rounded,
        a_stump,
    ],
    ids=ids,
)
def test_rows_that_are_alike_for_a_reason_are_taken(
    tmp_path: Path, make: Callable[..., np.ndarray]
) -> None:
    rows = make(np.random.default_rng(0))
    np.save(tmp_path / "a.npy", rows)
    receipt = convert(tmp_path / "a.npy", tmp_path / "b.zarr", progress=False)
    assert receipt.notes == ()
    assert np.array_equal(fostore.open(tmp_path / "b.zarr").array, rows)


@pytest.mark.parametrize("batch", [1, 7, 100])
@pytest.mark.parametrize("shape", [(N, K), (N, 3, K)])
def test_what_is_found_does_not_depend_on_how_the_rows_are_cut(
    shape: tuple[int, ...], batch: int
) -> None:
    from fostore.conversion.unwritten import Watch
    from fostore.encodings import encoding_of, make_schema

    members = shape[1] if len(shape) == 3 else None
    rows = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    rows[20:22] = rows[19]
    rows[30:33, ..., :1] = rows[30:33, ..., :1]
    rows[40, -1] = 0  # one member only, or one class
    rows[90:] = 1
    schema = make_schema(K, num_members=members, kind="logits", dtype="float32")
    watch = Watch(schema, "a", 0, is_allowed=True)
    columns = encoding_of(schema).encode(rows, schema, 0)
    for start in range(0, N, batch):
        watch.update([column[start : start + batch] for column in columns])
    watch.end()
    named = "rows 90 to 99" if members is None else "row 40 and rows 90 to 99"
    assert watch.notes == (f"{named} have one number for all classes, which was allowed",)


def test_constant_logits_in_the_middle_are_named_without_a_cut_that_would_lose_rows(
    tmp_path: Path,
) -> None:
    rows = LOGITS.copy()
    rows[[7, 30]] = 0
    np.save(tmp_path / "a.npy", rows)
    with pytest.raises(RowError, match="row 7 and row 30") as caught:
        convert(tmp_path / "a.npy", tmp_path / "b.zarr", source_kind="logits", progress=False)
    assert "--rows" not in str(caught.value)


@pytest.mark.parametrize("rows", [slice(10, 80), slice(10, None, 3), slice(60, None)], ids=str)
def test_only_the_rows_that_are_wanted_are_judged(tmp_path: Path, rows: slice) -> None:
    np.save(tmp_path / "a.npy", filled("logits", 0))
    with pytest.raises(RowError, match=f"rows {max(55, rows.start)} to {range(N)[rows][-1]} "):
        convert(
            tmp_path / "a.npy", tmp_path / "b.zarr", source_kind="logits", rows=rows, progress=False
        )


def test_votes_and_the_rows_of_stores_are_taken_as_they_are(tmp_path: Path) -> None:
    votes = np.tile(np.uint16([3, 0, 0, 1]), (N, 1))
    votes[:5] = [1, 1, 1, 1]
    np.save(tmp_path / "votes.npy", votes)
    convert(tmp_path / "votes.npy", tmp_path / "votes.zarr", source_kind="counts", progress=False)
    with fostore.create(tmp_path / "a.zarr", num_samples=N, num_classes=K, kind="logits") as writer:
        writer.append(filled("logits", 0))
    for suffix in (".h5", ".npz"):
        convert(tmp_path / "a.zarr", tmp_path / f"b{suffix}", progress=False)
        convert(tmp_path / f"b{suffix}", tmp_path / f"c{suffix}.zarr", progress=False)


@pytest.mark.parametrize("make", ["hdf5", "zarr 2", "zarr 3", "zarr 3, shards"])
def test_chunks_that_nobody_wrote_are_named_and_the_rows_before_them_can_be_taken(
    tmp_path: Path, make: str
) -> None:
    rows = probs(N, K)
    shape: dict[str, Any] = {"shape": (N, K), "dtype": "f4", "chunks": (20, K)}
    if make == "hdf5":
        source = tmp_path / "a.h5"
        with h5py.File(source, "w") as file:
            file.create_dataset("probs", **shape, fillvalue=1 / K)[:WRITTEN] = rows[:WRITTEN]
    else:
        source = tmp_path / "a.zarr"
        group = zarr.open_group(str(source), mode="w", zarr_format=2 if make == "zarr 2" else 3)
        more = {"shards": (40, K)} if make == "zarr 3, shards" else {}
        group.create_array("probs", **shape, **more, fill_value=1 / K)[:WRITTEN] = rows[:WRITTEN]
    with pytest.raises(DamageError) as caught:
        convert(
            source, tmp_path / "b.zarr", source_kind="probs", allow_constant=True, progress=False
        )
    assert caught.value.rows == ((60, 80),)
    with pytest.raises(RowError, match="rows 55 to 59"):
        convert(source, tmp_path / "b.zarr", source_kind="probs", rows=slice(0, 60), progress=False)
    convert(
        source, tmp_path / "b.zarr", source_kind="probs", rows=slice(0, WRITTEN), progress=False
    )
    assert np.array_equal(fostore.open(tmp_path / "b.zarr").array, rows[:WRITTEN])


@pytest.mark.parametrize("fill", [None, 0, -3.5])
def test_two_rounded_logits_may_be_equal_by_chance_and_not_again_and_again(
    tmp_path: Path, fill: float | None
) -> None:
    torch = pytest.importorskip("torch")
    rows = np.random.default_rng(0).normal(size=(N, 2)).astype(np.float32)
    rows[[0, 20, N - 1]] = [[0.5, 0.5], [1.25, 1.25], [-0.75, -0.75]]
    if fill is not None:
        rows[40:50] = fill
    torch.save(torch.from_numpy(rows).bfloat16(), tmp_path / "a.pt")
    if fill is None:
        convert(tmp_path / "a.pt", tmp_path / "b.zarr", source_kind="logits", progress=False)
        assert len(fostore.open(tmp_path / "b.zarr")) == N
        return
    for memory in (None, 1):  # however the rows are cut
        table = open_table(str(tmp_path / "a.pt"), Hints(kind="logits"))
        _, watch = watched(table, None, is_allowed=False)
        for batch in table.batches(0, memory or N):
            watch.update(batch)
        with pytest.raises(RowError, match="rows 40 to 49 have one number"):
            watch.end()


def test_json_lines_that_fostore_wrote_are_taken_as_they_are(tmp_path: Path) -> None:
    with fostore.create(tmp_path / "a.zarr", num_samples=N, num_classes=K, kind="logits") as writer:
        writer.append(filled("logits", 0))
    convert(tmp_path / "a.zarr", tmp_path / "b.jsonl", progress=False)
    receipt = convert(tmp_path / "b.jsonl", tmp_path / "c.zarr", progress=False)
    assert receipt.notes == ()
    assert fostore.open(tmp_path / "c.zarr").digest() == fostore.open(tmp_path / "a.zarr").digest()


@pytest.mark.parametrize("first", ["store", "file"])
def test_a_file_among_stores_is_looked_at(tmp_path: Path, first: str) -> None:
    with fostore.create(tmp_path / "a.zarr", num_samples=N, num_classes=K, kind="logits") as writer:
        writer.append(LOGITS)
    np.save(tmp_path / "b.npy", filled("logits", 0))
    stores = open_table(str(tmp_path / "a.zarr"))
    file = open_table(str(tmp_path / "b.npy"), Hints(kind="logits"))
    parts = [stores, file] if first == "store" else [file, stores]
    with pytest.raises(RowError, match="have one number for all classes"):
        convert(joined(parts), tmp_path / "c.zarr", progress=False)


def test_the_command_names_its_option_and_takes_it(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", filled("logits", 0))
    line = ["convert", str(tmp_path / "a.npy"), str(tmp_path / "b.zarr"), "--source-kind", "logits"]
    run = CliRunner().invoke(app, line)
    assert run.exit_code == 1
    assert "--allow-constant" in run.stderr
    assert "rows 55 to 99" in run.stderr
    run = CliRunner().invoke(app, [*line, "--allow-constant"])
    assert run.exit_code == 0, run.output
    assert "rows 55 to 99" in run.stdout


def test_a_stream_is_judged_at_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = "".join(json.dumps({"logits": row}) + "\n" for row in filled("logits", 0).tolist())
    stream = io.TextIOWrapper(io.BytesIO(lines.encode()))
    monkeypatch.setattr("sys.stdin", stream)
    with pytest.raises(RowError, match="rows 55 to 99"):
        convert("-", tmp_path / "b.zarr", source_kind="logits", progress=False)
    assert not (tmp_path / "b.zarr").exists()


def test_the_rows_that_a_stack_is_told_to_leave_out_can_be_left_out(tmp_path: Path) -> None:
    half = probs(N, K)
    half[WRITTEN:] = half[0]
    for name in ("a.npy", "b.npy"):
        np.save(tmp_path / name, half)
    line = [
        "stack",
        str(tmp_path / "a.npy"),
        str(tmp_path / "b.npy"),
        "-o",
        str(tmp_path / "c.zarr"),
    ]
    run = CliRunner().invoke(app, line)
    assert run.exit_code == 1
    assert f"--rows 0:{WRITTEN}" in run.stderr
    run = CliRunner().invoke(app, [*line, "--rows", f"0:{WRITTEN}"])
    assert run.exit_code == 0, run.stderr
    assert fostore.open(tmp_path / "c.zarr").shape == (WRITTEN, 2, K)
