"""An id that comes again is refused with the batch that brings it."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fostore
from fostore.conversion import convert
from fostore.errors import RowError
from fostore.schema.ranges import Ranges
from fostore.schema.sides import known as known_ids
from fostore.schema.sides.ids import encode_ids, id_column
from fostore.schema.sides.known import KnownIds
from support import probs

K = 3
KINDS = {
    "integers": ("int64", lambda n: n),
    "short text": ("S8", lambda n: f"i{n}"),
    "long text": ("S40", lambda n: f"a/long/folder/of/images/{n:08}.jpg"),
}


def begun(path: Path, promise: str) -> fostore.Writer:
    return fostore.create(
        path, num_samples=400, num_classes=K, ids=promise, unit_rows=1024, exists="resume"
    )


@pytest.mark.parametrize("resumes", [False, True])
@pytest.mark.parametrize("order", ["growing", "shuffled"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("suffix", [".zarr", ".h5"])
def test_an_id_that_an_earlier_batch_brought_is_refused_and_both_rows_are_named(
    tmp_path: Path, suffix: str, kind: str, order: str, resumes: bool
) -> None:
    promise, name = KINDS[kind]
    numbers = np.arange(400)
    if order == "shuffled":
        numbers = np.random.default_rng(0).permutation(numbers)
    ids: list[Any] = [name(n) for n in numbers.tolist()]
    path = tmp_path / f"a{suffix}"
    writer = begun(path, promise)
    for start in (0, 100):
        writer.append(probs(100, K, start=start), ids=ids[start : start + 100])
    if resumes:
        writer.close()
        writer = begun(path, promise)
    wrong = [*ids[200:250], ids[17], *ids[251:300]]
    with pytest.raises(RowError, match=f"row 250 has the id {ids[17]!r}, which row 17 has"):
        writer.append(probs(100, K, start=200), ids=wrong)
    assert len(writer) == 200
    # The right ones go in, and the store is whole.
    writer.append(probs(100, K, start=200), ids=ids[200:300])
    with pytest.raises(RowError, match="row 302 has the id"):
        writer.append(probs(100, K, start=300), ids=[*ids[300:302], ids[301], *ids[303:]])
    writer.append(probs(100, K, start=300), ids=ids[300:])
    writer.seal()
    writer.close()
    store = fostore.open(path)
    assert store.ids is not None
    assert store.ids.tolist() == ids
    assert store.verify() == []


def test_rows_in_any_order_are_compared_with_all_that_are_there(tmp_path: Path) -> None:
    writer = begun(tmp_path / "a.zarr", "int64")
    writer.write(300, probs(100, K, start=300), ids=range(300, 400))
    writer.write(0, probs(100, K), ids=range(100))
    with pytest.raises(RowError, match="row 100 has the id 300, which row 300 has"):
        writer.write(100, probs(100, K, start=100), ids=range(300, 400))
    with pytest.raises(RowError, match="row 120 has the id 20, which row 20 has"):
        writer.write(100, probs(100, K, start=100), ids=[*range(100, 120), 20, *range(121, 200)])
    writer.write(100, probs(200, K, start=100), ids=range(100, 300))
    writer.close()


@pytest.mark.parametrize(
    "suffix", [".zarr", ".h5", ".json", ".jsonl", ".npz", ".arrow", ".parquet"]
)
@pytest.mark.parametrize("kind", KINDS)
def test_shards_that_overlap_make_no_file_with_two_rows_for_one_sample(
    tmp_path: Path, kind: str, suffix: str
) -> None:
    _, named = KINDS[kind]
    for shard, first in (("a", 300), ("b", 100), ("c", 390)):
        ids = [named(i) for i in range(first, first + 100)]
        with fostore.create(
            tmp_path / f"{shard}.zarr", num_samples=100, num_classes=K, ids=ids
        ) as writer:
            writer.append(probs(100, K, start=first))
    shards = [tmp_path / f"{shard}.zarr" for shard in "abc"]
    with pytest.raises(RowError, match=f"row 200 has the id {named(390)!r}, which row 90 has"):
        convert(shards, tmp_path / f"all{suffix}", progress=False)
    assert not list(tmp_path.glob("*all*"))
    convert(shards[:2], tmp_path / f"all{suffix}", progress=False)


def test_what_comes_from_a_file_is_refused_as_well(tmp_path: Path) -> None:
    with fostore.create(
        tmp_path / "a.zarr", num_samples=100, num_classes=K, ids=[f"img-{i}" for i in range(100)]
    ) as writer:
        writer.append(probs(100, K))
    convert(tmp_path / "a.zarr", tmp_path / "a.jsonl", progress=False)
    text = (tmp_path / "a.jsonl").read_text()
    (tmp_path / "a.jsonl").write_text(text.replace('"img-90"', '"img-4"'))
    with pytest.raises(RowError, match="row 90 has the id 'img-4', which row 4 has"):
        convert(tmp_path / "a.jsonl", tmp_path / "b.zarr", progress=False)
    assert not (tmp_path / "b.zarr").exists()
    with pytest.raises(RowError, match="row 90 has the id 'img-4', which row 4 has"):
        convert(tmp_path / "a.jsonl", tmp_path / "b.npz", progress=False)


def test_ids_that_share_a_number_and_differ_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    column = id_column("S16")
    stored = encode_ids([f"id-{i}" for i in range(500)], column, 0)
    known = KnownIds(column, lambda start, stop: stored[start:stop])
    monkeypatch.setattr(known, "_numbers", lambda ids: np.zeros(len(ids), np.uint64))
    for start in range(0, 500, 50):
        known.add(start, stored[start : start + 50], Ranges.of((0, start)))
    with pytest.raises(RowError, match="row 500 has the id 'id-3', which row 3 has"):
        known.add(500, stored[3:4], Ranges.of((0, 500)))


@pytest.mark.parametrize("recent", [16, 1 << 16])
def test_a_known_id_is_found_however_the_numbers_are_kept(
    monkeypatch: pytest.MonkeyPatch, recent: int
) -> None:
    monkeypatch.setattr(known_ids, "_RECENT", recent)
    column = id_column("int64")
    stored = np.random.default_rng(0).permutation(3000).astype("<i8") - 1500
    known = KnownIds(column, lambda start, stop: stored[start:stop])
    for start in range(0, 3000, 10):
        known.add(start, stored[start : start + 10], Ranges.of((0, start)))
    for row in range(0, 3000, 97):
        with pytest.raises(RowError, match=f"which row {row} has"):
            known.add(3000, stored[row : row + 1], Ranges.of((0, 3000)))


@pytest.mark.parametrize(("order", "bytes_a_row"), [("growing", 0), ("shuffled", 8)])
def test_memory_is_what_the_docstring_says(order: str, bytes_a_row: int) -> None:
    column, rows = id_column("int64"), 600_000
    stored = np.arange(rows, dtype="<i8")
    if order == "shuffled":
        stored = np.random.default_rng(0).permutation(stored)
    known = KnownIds(column, lambda start, stop: stored[start:stop])
    tracemalloc.start()
    try:
        for start in range(0, rows, 10_000):
            known.add(start, stored[start : start + 10_000], Ranges.of((0, start)))
        held, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    few = 9 << 20  # the recent ones
    assert held < bytes_a_row * rows + few
    assert peak < 3 * bytes_a_row * rows + few
