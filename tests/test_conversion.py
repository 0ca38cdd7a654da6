"""What a conversion promises: one digest on both sides, nothing lost in silence, nothing published by halves."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import zarr

import fostore
from fostore import disk
from fostore.conversion import Receipt, convert, stack
from fostore.conversion.options import Options
from fostore.conversion.plan import prepare
from fostore.conversion.sources import open_table
from fostore.errors import (
    ArgumentError,
    DamageError,
    FormatError,
    FostoreError,
    IdentityError,
    LockedError,
    RowError,
    SpaceError,
    StoreExistsError,
    UncommittedError,
    UnsafeError,
    UnsupportedError,
)
from fostore.files import Hints
from fostore.places.lock import Lock
from support import SUFFIXES, probs

N, K = 5000, 7
NAMES = tuple(f"class {i}" for i in range(K))
IDENTITY = {"model": {"class": "Net", "weights": "abc"}, "dataset": {"length": N}}


def make(path: Path, rows: Any = None, **options: Any) -> fostore.Store:
    """A sealed store of `rows`, with everything that a store can have."""
    rows = probs(N, K) if rows is None else np.asarray(rows)
    options = {"class_names": NAMES[: rows.shape[-1]], "meta": {"note": "first"}, **options}
    options = {"ids": [f"img-{i}" for i in range(len(rows))], **options}
    with fostore.create(
        path, num_samples=len(rows), num_classes=rows.shape[-1], unit_rows=4096, **options
    ) as writer:
        writer.append(rows)
    return fostore.open(path)


def quiet(source: Any, destination: Any, **options: Any) -> Receipt:
    return convert(source, destination, progress=False, **options)


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def flip(path: Path, at: int) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)
        file.seek(at)
        file.write(bytes([byte[0] ^ 1]))


def break_rows(path: Path) -> None:
    """Flip a byte of row 100 of a store."""
    if path.is_dir():
        unit = next(
            f for f in sorted((path / "probs").rglob("*")) if f.name == "0" or "/c/0" in str(f)
        )
        flip(unit if unit.is_file() else unit / "0", 100 * K * 4)
        return
    with h5py.File(path, "r") as file:
        offset = file["probs"].id.get_offset()
    flip(path, offset + 100 * K * 4)


# ------------------------------------------------------------------ what survives


@pytest.mark.parametrize("to", SUFFIXES)
@pytest.mark.parametrize("of", SUFFIXES)
def test_everything_survives_the_way_to_another_format_and_back(
    tmp_path: Path, of: str, to: str
) -> None:
    source = make(tmp_path / f"a{of}", identity=IDENTITY, temperature=2.0, fingerprints=False)
    there, back = tmp_path / f"b{to}", tmp_path / f"c{of}"
    receipts = [quiet(source.path, there), quiet(there, back)]
    for path, receipt in zip((there, back), receipts, strict=True):
        store = fostore.open(path)
        assert receipt.is_lossless
        assert receipt.source_digest == receipt.destination_digest == store.digest()
        assert store.digest() == source.digest()
        assert (store.meta, store.header.identity) == (source.meta, source.header.identity)
        assert store.schema == source.schema
        assert list(store.ids) == list(source.ids)
        assert np.array_equal(store.array, source.array)
        assert store.verify() == []
    assert names_in(tmp_path) == sorted([f"a{of}", f"b{to}", f"c{of}"])


@pytest.mark.parametrize("to", SUFFIXES)
def test_unknown_keys_of_a_newer_minor_version_survive(tmp_path: Path, to: str) -> None:
    path = make(tmp_path / "a.zarr").path
    file = path / "zarr.json"
    value = json.loads(file.read_text())
    value["attributes"]["fostore"]["license_hint"] = {"spdx": "MIT"}
    value["attributes"]["fostore"]["version"] = "1.7"
    del value["attributes"]["fostore"]["checksum"]
    file.write_text(json.dumps(value))
    quiet(path, tmp_path / f"b{to}")
    assert fostore.open(tmp_path / f"b{to}").header.extra == {"license_hint": {"spdx": "MIT"}}


@pytest.mark.parametrize("kind", ["probs", "log_probs", "logits"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("members", [None, 2])
def test_every_kind_and_dtype_keeps_its_digest(
    tmp_path: Path, kind: str, dtype: str, members: int | None
) -> None:
    rows = probs(300, 4).astype(np.float64)
    rows = rows if members is None else np.stack([rows] * members, axis=1)
    rows = rows if kind == "probs" else np.log(rows) + (3.5 if kind == "logits" else 0)
    store = make(tmp_path / "a.zarr", rows, kind=kind, dtype=dtype, num_members=members)
    assert quiet(store.path, tmp_path / "b.h5").destination_digest == store.digest()


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_an_empty_store_converts(tmp_path: Path, suffix: str) -> None:
    store = make(tmp_path / "a.zarr", probs(0, 3), ids=None)
    receipt = quiet(store.path, tmp_path / f"b{suffix}")
    assert (receipt.num_rows, receipt.destination_digest) == (0, store.digest())


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_counts_stay_counts(tmp_path: Path, suffix: str) -> None:
    votes = np.random.default_rng(0).integers(0, 6, (200, 5)).astype(np.uint8) + 1
    store = make(tmp_path / "a.zarr", votes, kind="counts", dtype="uint8")
    quiet(store.path, tmp_path / f"b{suffix}")
    there = fostore.open(tmp_path / f"b{suffix}")
    assert np.array_equal(there.column("counts"), votes)
    assert there.column("counts").dtype == np.uint8


def test_widening_changes_no_number_and_needs_no_consent(tmp_path: Path) -> None:
    rows = np.log(probs(500, 6).astype(np.float64)) + 2
    store = make(tmp_path / "a.zarr", rows, kind="logits", dtype="float16")
    quiet(store.path, tmp_path / "b.h5", dtype="float32")
    wide = fostore.open(tmp_path / "b.h5")
    assert np.array_equal(wide.column("logits"), store.column("logits").astype(np.float32))
    assert np.array_equal(wide.column("logsumexp"), store.column("logsumexp"))


def test_a_tolerance_that_was_widened_stays_wide(tmp_path: Path) -> None:
    rows = probs(100, 3) * np.float32(1.01)
    store = make(tmp_path / "a.zarr", rows, tol=0.05)
    quiet(store.path, tmp_path / "b.zarr", dtype="float64")
    assert fostore.open(tmp_path / "b.zarr").schema.sum_tolerance == 0.05


# ------------------------------------------------------------------ what is lost


def test_narrowing_is_refused_before_a_byte_is_written(tmp_path: Path) -> None:
    store = make(tmp_path / "a.zarr")
    for lossy in ({"dtype": "float16"}, {"kind": "log_probs"}):
        with pytest.raises(ArgumentError, match="allow_lossy"):
            quiet(store.path, tmp_path / "b.zarr", **lossy)
    assert names_in(tmp_path) == ["a.zarr"]


@pytest.mark.parametrize(("kind", "dtype"), [("probs", "float16"), ("logits", "float16")])
def test_the_receipt_states_the_error_that_float64_finds(
    tmp_path: Path, kind: str, dtype: str
) -> None:
    store = make(tmp_path / "a.zarr", probs(N, 50), class_names=None)
    receipt = quiet(store.path, tmp_path / "b.zarr", kind=kind, dtype=dtype, allow_lossy=True)
    there = fostore.open(tmp_path / "b.zarr")
    p = store.column("probs").astype(np.float64)
    q = there.column(kind).astype(np.float64)
    q = np.exp(q) if kind == "logits" else q
    p, q = p / p.sum(1, keepdims=True), q / q.sum(1, keepdims=True)
    tv, kl = np.abs(p - q).sum(1) / 2, (p * np.log(p / q)).sum(1)
    said = receipt.measured
    assert said is not None
    assert said["distributions"] == N
    assert said["max_tv"] == pytest.approx(tv.max(), rel=1e-9)
    assert said["max_tv"] > 0
    assert said["mean_tv"] == pytest.approx(tv.mean(), rel=1e-9)
    assert said["max_kl"] == pytest.approx(kl.max(), rel=1e-6, abs=1e-15)
    assert said["mean_kl"] == pytest.approx(kl.mean(), rel=1e-6, abs=1e-15)
    assert said["argmax_changes"] == int((p.argmax(1) != q.argmax(1)).sum())
    assert not receipt.is_lossless
    assert receipt.source_digest == store.digest() != there.digest()


def test_a_class_that_loses_all_its_probability_has_infinite_divergence(tmp_path: Path) -> None:
    store = make(tmp_path / "a.zarr", np.float32([[1 - 1e-9, 1e-9]]))
    receipt = quiet(store.path, tmp_path / "b.zarr", dtype="float16", allow_lossy=True)
    assert receipt.measured is not None
    assert receipt.measured["max_kl"] == "inf"
    assert json.loads(receipt.dumps())["measured"]["max_kl"] == "inf"


def test_votes_that_fit_lose_nothing_and_those_that_do_not_are_named(tmp_path: Path) -> None:
    store = make(
        tmp_path / "a.zarr", np.array([[1, 2], [0, 200]], np.uint32), kind="counts", dtype="uint32"
    )
    assert not quiet(store.path, tmp_path / "b.zarr", dtype="uint8").lossy
    big = make(
        tmp_path / "c.zarr", np.array([[1, 2], [0, 300]], np.uint32), kind="counts", dtype="uint32"
    )
    with pytest.raises(RowError, match="row 1 holds 300"):
        quiet(big.path, tmp_path / "d.zarr", dtype="uint8")
    assert names_in(tmp_path) == ["a.zarr", "b.zarr", "c.zarr"]


def test_counts_are_made_of_nothing_else(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="counts cannot be made"):
        quiet(make(tmp_path / "a.zarr").path, tmp_path / "b.zarr", kind="counts")


# ------------------------------------------------------------------ rows, classes, member, ids


@pytest.mark.parametrize(
    "part", [slice(10, 20), slice(None, None, 3), slice(4990, None), slice(7, 4000, 700)]
)
def test_rows_are_those_of_a_slice(tmp_path: Path, part: slice) -> None:
    store = make(tmp_path / "a.zarr")
    receipt = quiet(store.path, tmp_path / "b.h5", rows=part)
    there = fostore.open(tmp_path / "b.h5")
    assert np.array_equal(there.array, store.array[part])
    assert list(there.ids) == list(store.ids[part])
    assert receipt.num_rows == len(there)


def test_a_part_says_no_more_of_the_whole_dataset(tmp_path: Path) -> None:
    identity = {"dataset": {"length": N, "labels": "x", "name": "d"}, "model": {"class": "Net"}}
    store = make(tmp_path / "a.zarr", identity=identity)
    quiet(store.path, tmp_path / "b.zarr", rows=slice(0, 5))
    assert fostore.open(tmp_path / "b.zarr").header.identity == {
        "dataset": {"name": "d"},
        "model": {"class": "Net"},
    }


def test_classes_are_taken_in_the_order_asked_for_and_renormalised(tmp_path: Path) -> None:
    store = make(tmp_path / "a.zarr")
    quiet(store.path, tmp_path / "b.zarr", classes=["class 3", 0])
    there = fostore.open(tmp_path / "b.zarr")
    expected = store.array[:, [3, 0]].astype(np.float64)
    expected /= expected.sum(1, keepdims=True)
    assert there.schema.class_names == ("class 3", "class 0")
    assert np.allclose(there.array, expected, atol=1e-7)
    for bad in ([], [0, 0], ["nope"], [K]):
        with pytest.raises(ArgumentError, match="class"):
            quiet(store.path, tmp_path / "c.zarr", classes=bad)


def test_one_member_of_an_ensemble_comes_as_it_is(tmp_path: Path) -> None:
    rows = np.stack([probs(100, 3, seed=s) for s in range(3)], axis=1)
    store = make(tmp_path / "a.zarr", rows, num_members=3)
    quiet(store.path, tmp_path / "b.zarr", member=2)
    assert np.array_equal(fostore.open(tmp_path / "b.zarr").array, rows[:, 2])
    with pytest.raises(ArgumentError, match="member is 3"):
        quiet(store.path, tmp_path / "c.zarr", member=3)


def test_ids_and_class_names_are_given_to_rows_that_have_none(tmp_path: Path) -> None:
    store = make(tmp_path / "a.zarr", ids=None, class_names=None)
    receipt = quiet(store.path, tmp_path / "b.zarr", ids=list(range(5, N + 5)), class_names=NAMES)
    there = fostore.open(tmp_path / "b.zarr")
    assert there.ids.tolist() == list(range(5, N + 5))
    assert there.schema.class_names == NAMES
    assert receipt.source_digest == store.digest()
    for bad in ({"ids": [1, 2]}, {"ids": [1] * N}):
        with pytest.raises(ArgumentError):
            quiet(store.path, tmp_path / "c.zarr", **bad)
    with pytest.raises(ArgumentError, match="ids already"):
        quiet(there.path, tmp_path / "c.zarr", ids=list(range(N)))
    with pytest.raises(ArgumentError, match="class names"):
        quiet(there.path, tmp_path / "c.zarr", class_names=NAMES[::-1])


# ------------------------------------------------------------------ several sources


def test_shards_join_in_natural_order_however_they_are_named(tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    whole = probs(1100, 3)
    for i in range(11):
        with_ids = [f"{i}-{k}" + "x" * i for k in range(100)]  # texts of different width
        make(folder / f"s-{i}.zarr", whole[i * 100 : (i + 1) * 100], ids=with_ids)
    paths = [folder / f"s-{i}.zarr" for i in range(11)]
    digests = set()
    for at, source in enumerate([paths, folder, f"{folder}/s-*.zarr"]):
        out = tmp_path / f"out{at}.h5"
        digests.add(quiet(source, out).destination_digest)
        assert np.array_equal(fostore.open(out).array, whole)
        assert fostore.open(out).ids[1099] == "10-99" + "x" * 10
    assert len(digests) == 1


def test_shards_that_disagree_are_refused_by_name(tmp_path: Path) -> None:
    paths = [
        make(tmp_path / "a.zarr", probs(10, 3)).path,
        make(tmp_path / "b.zarr", probs(10, 4)).path,
    ]
    with pytest.raises(ArgumentError, match=r"b\.zarr cannot follow .*num_classes is 4"):
        quiet(paths, tmp_path / "c.zarr")


def test_members_are_stacked_and_checked(tmp_path: Path) -> None:
    stores = [
        make(
            tmp_path / f"{i}.zarr", probs(N, K, seed=i), identity={**IDENTITY, "model": {"seed": i}}
        )
        for i in range(3)
    ]
    receipt = stack([s.path for s in stores], tmp_path / "e.zarr", progress=False)
    there = fostore.open(tmp_path / "e.zarr")
    assert np.array_equal(there.array, np.stack([s.array for s in stores], axis=1))
    assert list(there.ids) == list(stores[0].ids)
    assert there.header.identity["model"] == {"members": [{"seed": i} for i in range(3)]}
    assert receipt.num_rows == N
    quiet(there.path, tmp_path / "one.zarr", member=1)
    one = fostore.open(tmp_path / "one.zarr")
    assert np.array_equal(one.array, stores[1].array)
    assert one.header.identity["model"] == {"seed": 1}


def test_members_of_other_samples_are_refused(tmp_path: Path) -> None:
    first = make(tmp_path / "a.zarr")
    other_ids = [f"img-{i}" for i in range(N)]
    other_ids[1234], other_ids[1235] = other_ids[1235], other_ids[1234]
    swapped = make(tmp_path / "b.zarr", ids=other_ids)
    with pytest.raises(IdentityError, match="row 1234"):
        stack([first.path, swapped.path], tmp_path / "e.zarr", progress=False)
    longer = make(tmp_path / "c.zarr", probs(N + 1, K))
    renamed = make(tmp_path / "d.zarr", class_names=NAMES[::-1])
    relabelled = make(tmp_path / "f.zarr", identity={"dataset": {"labels": "x"}})
    labelled = make(tmp_path / "g.zarr", identity={"dataset": {"labels": "y"}})
    for one, other in ((first, longer), (first, renamed), (relabelled, labelled)):
        with pytest.raises(IdentityError, match="is of other samples"):
            stack([one.path, other.path], tmp_path / "e.zarr", progress=False)
    assert not (tmp_path / "e.zarr").exists()
    assert not [name for name in names_in(tmp_path) if name.startswith(".")]


def test_members_whose_fingerprints_differ_are_refused_by_row(tmp_path: Path) -> None:
    for name, changed in (("a", 0), ("b", 1)):
        prints = np.arange(50, dtype=np.uint64)
        prints[17] += changed
        with fostore.create(
            tmp_path / f"{name}.zarr", num_samples=50, num_classes=3, fingerprints=True
        ) as writer:
            writer.append(probs(50), fingerprints=prints)
    with pytest.raises(IdentityError, match="row 17"):
        stack([tmp_path / "a.zarr", tmp_path / "b.zarr"], tmp_path / "e.zarr", progress=False)


# ------------------------------------------------------------------ the destination


def test_a_destination_that_is_there_is_kept_replaced_or_accepted(tmp_path: Path) -> None:
    for suffix in SUFFIXES:
        store, other = make(tmp_path / "a.zarr"), make(tmp_path / "o.zarr", probs(9, 3))
        out = tmp_path / f"b{suffix}"
        quiet(other.path, out)
        before = fostore.open(out).digest()
        for exists in ("fail", "resume"):
            with pytest.raises(StoreExistsError):
                quiet(store.path, out, exists=exists)
            assert fostore.open(out).digest() == before
        quiet(store.path, out, exists="overwrite")
        assert fostore.open(out).digest() == store.digest()
        assert quiet(store.path, out, exists="resume").verified == "full"
        assert names_in(tmp_path) == sorted(["a.zarr", "o.zarr", out.name])
        for path in (store.path, other.path, out):
            disk.remove(path)


def test_a_folder_of_other_things_is_never_replaced(tmp_path: Path) -> None:
    store = make(tmp_path / "a.zarr")
    mine = tmp_path / "mine.zarr"
    mine.mkdir()
    (mine / "thesis.tex").write_text("x")
    with pytest.raises(ArgumentError, match="folder of other things"):
        quiet(store.path, mine, exists="overwrite")
    assert (mine / "thesis.tex").read_text() == "x"


def test_the_source_is_no_destination(tmp_path: Path) -> None:
    one, two = make(tmp_path / "a.zarr"), make(tmp_path / "b.zarr")
    os.symlink(one.path, tmp_path / "link.zarr")
    for source, out in (
        (one.path, one.path),
        (one.path, tmp_path / "link.zarr"),
        ([one.path, two.path], two.path),
    ):
        with pytest.raises(ArgumentError, match="is the source as well"):
            quiet(source, out, exists="overwrite")
    assert fostore.open(two.path).verify() == []


def test_a_store_that_is_not_finished_says_which_rows_can_be_converted(tmp_path: Path) -> None:
    path = tmp_path / "a.zarr"
    writer = fostore.create(path, num_samples=N, num_classes=K)
    writer.append(probs(3000, K))
    writer.close()
    for rows in (None, slice(0, 3001), slice(0, None), slice(0, -1)):
        with pytest.raises(UncommittedError, match="--rows 0:3000"):
            quiet(path, tmp_path / "b.zarr", rows=rows)
    quiet(path, tmp_path / "b.zarr", rows=slice(0, 3000))
    assert np.array_equal(fostore.open(tmp_path / "b.zarr").array, probs(3000, K))


def test_two_conversions_to_one_destination_exclude_each_other(tmp_path: Path) -> None:
    store = make(tmp_path / "a.zarr")
    with Lock.acquire(tmp_path / "b.zarr"), pytest.raises(LockedError):
        quiet(store.path, tmp_path / "b.zarr")
    assert names_in(tmp_path) == ["a.zarr"]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_disk_that_fills_up_publishes_nothing_and_the_next_run_goes_on(
    tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = make(tmp_path / "a.zarr")
    out = tmp_path / f"b{suffix}"
    calls = 0
    true_write = os.pwrite

    def full(fd: int, data: Any, offset: int) -> int:
        nonlocal calls
        calls += len(memoryview(data).cast("B"))
        if calls > 100_000:
            raise OSError(errno.ENOSPC, "No space left on device")
        return true_write(fd, data, offset)

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        with pytest.raises(SpaceError):
            quiet(store.path, out)
    assert not out.exists()
    assert quiet(store.path, out).destination_digest == store.digest()
    assert names_in(tmp_path) == sorted(["a.zarr", out.name])


def test_a_disk_that_is_too_small_is_refused_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = make(tmp_path / "a.zarr")
    monkeypatch.setattr(disk, "free_bytes", lambda _: 1000)
    with pytest.raises(SpaceError, match="are free"):
        quiet(store.path, tmp_path / "b.h5")
    assert not (tmp_path / "b.h5").exists()


# ------------------------------------------------------------------ damage


@pytest.mark.parametrize("to", SUFFIXES)
@pytest.mark.parametrize("of", SUFFIXES)
@pytest.mark.parametrize("verify", ["none", "sample", "full"])
def test_a_damaged_source_publishes_nothing(tmp_path: Path, of: str, to: str, verify: str) -> None:
    path = make(tmp_path / f"a{of}").path
    break_rows(path)
    with pytest.raises(DamageError, match="damaged") as caught:
        quiet(path, tmp_path / f"b{to}", verify=verify)
    if verify == "full":
        assert caught.value.rows == ((0, 1024),)
    assert names_in(tmp_path) == [f"a{of}"]


@pytest.mark.parametrize(
    "change",
    [
        {"rows": slice(50, 200)},
        {"classes": [0, 1]},
        {"dtype": "float64"},
        {"dtype": "float16", "allow_lossy": True},
    ],
)
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_damage_is_found_in_a_part_as_well(tmp_path: Path, suffix: str, change: Any) -> None:
    path = make(tmp_path / f"a{suffix}").path
    break_rows(path)
    with pytest.raises(DamageError):
        quiet(path, tmp_path / "b.zarr", **change)
    quiet(path, tmp_path / "c.zarr", rows=slice(1024, 3000))  # blocks that are sound
    assert names_in(tmp_path) == [path.name, "c.zarr"]


def test_damage_is_found_in_a_shard_and_in_a_member(tmp_path: Path) -> None:
    sound, broken = make(tmp_path / "a.zarr").path, make(tmp_path / "b.zarr").path
    break_rows(broken)
    with pytest.raises(DamageError, match=r"b\.zarr is damaged"):
        stack([sound, broken], tmp_path / "c.zarr", progress=False)
    with pytest.raises(DamageError, match=r"b\.zarr is damaged"):
        quiet([sound, broken], tmp_path / "c.zarr")
    assert names_in(tmp_path) == ["a.zarr", "b.zarr"]


def test_a_digest_without_block_hashes_is_compared_when_all_rows_have_passed(
    tmp_path: Path,
) -> None:
    table = replace(open_table(make(tmp_path / "a.zarr").path), proof=None)
    assert quiet([table, table], tmp_path / "b.zarr", ids=None, rows=slice(0, N)).num_rows == N
    wrong = replace(table, digest="blake3:" + "0" * 64)
    with pytest.raises(DamageError, match="do not have the digest"):
        quiet([table, wrong], tmp_path / "c.zarr")
    assert names_in(tmp_path) == ["a.zarr", "b.zarr"]


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("verify", ["sample", "full"])
def test_what_is_read_back_otherwise_is_not_published(
    tmp_path: Path, suffix: str, verify: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The written part is broken between write and verify: row 0 is always in the sample."""
    from fostore.conversion.conversion import Conversion

    store = make(tmp_path / "a.zarr")
    true_verify = Conversion._verify

    def break_first(self: Any, part: Path) -> None:
        if part.is_dir():
            flip(
                next(
                    f
                    for f in sorted((part / "probs").rglob("*"))
                    if f.is_file() and f.name != "zarr.json"
                ),
                5,
            )
        else:
            with h5py.File(part, "r") as file:
                offset = file["probs"].id.get_offset()
            flip(part, offset + 5)
        true_verify(self, part)

    monkeypatch.setattr(Conversion, "_verify", break_first)
    with pytest.raises(DamageError, match="nothing was published"):
        quiet(store.path, tmp_path / f"b{suffix}", verify=verify)
    assert names_in(tmp_path) == ["a.zarr"]
    assert quiet(store.path, tmp_path / f"c{suffix}", verify="none").verified == "none"


# ------------------------------------------------------------------ receipts, plans, memory


def test_the_receipt_is_written_and_says_what_was_done(tmp_path: Path) -> None:
    store = make(tmp_path / "a.zarr")
    receipt = quiet(
        store.path, tmp_path / "b.h5", rows=slice(0, 10), receipt=tmp_path / "r.json", meta={"x": 1}
    )
    said = json.loads((tmp_path / "r.json").read_text())
    assert said == json.loads(json.dumps(receipt.to_json()))
    assert said["source_digest"] == store.digest()
    assert said["destination_digest"] == fostore.open(tmp_path / "b.h5").digest()
    assert said["changes"] == {"rows": [0, 10, None]}
    assert (said["num_rows"], said["verified"]) == (10, "full")
    assert said["software"]["fostore"] == fostore.__version__
    assert fostore.open(tmp_path / "b.h5").meta == {"note": "first", "x": 1}


def test_a_receipt_that_cannot_be_written_is_refused_before_the_work(tmp_path: Path) -> None:
    store = make(tmp_path / "a.zarr")
    for receipt in (tmp_path / "no" / "r.json", tmp_path, tmp_path / "b.zarr"):
        with pytest.raises(ArgumentError, match="receipt"):
            quiet(store.path, tmp_path / "b.zarr", receipt=receipt)
    assert names_in(tmp_path) == ["a.zarr"]


def test_a_plan_says_bytes_and_memory_and_writes_nothing(tmp_path: Path) -> None:
    store = make(tmp_path / "a.zarr")
    plan = prepare(store.path, str(tmp_path / "b.h5"), Options(dtype="float16"))
    text = plan.text()
    assert "dtype: float32 became float16" in text
    assert plan.num_bytes == N * (K * 2 + store.schema.row_bytes[1])
    assert plan.peak_bytes <= 512 << 20
    assert names_in(tmp_path) == ["a.zarr"]


def test_too_little_memory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="max_memory"):
        quiet(make(tmp_path / "a.zarr").path, tmp_path / "b.zarr", max_memory=1 << 20)


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_DATA is what Linux bounds memory by")
@pytest.mark.parametrize("options", ["", "dtype='float16', allow_lossy=True"])
def test_memory_stays_below_the_budget_whatever_the_size(tmp_path: Path, options: str) -> None:
    """The child may take the budget beyond what it has after its imports, and converts more than that."""
    source = tmp_path / "a.zarr"
    rows = probs(4096, 1000)
    with fostore.create(source, num_samples=40 * 4096, num_classes=1000) as writer:
        for _ in range(40):  # 655 MB
            writer.append(rows)
    code = f"""
import resource, sys
import fostore, zarr, h5py, blake3, crc32c, numpy
from fostore.conversion import convert
from fostore.conversion.options import Options
from fostore.conversion.plan import prepare
budget = 160 << 20
held = next(int(l.split()[1]) << 10 for l in open("/proc/self/status") if l.startswith("VmData"))
assert prepare({str(source)!r}, "x.h5", Options(max_memory=budget)).peak_bytes <= budget
resource.setrlimit(resource.RLIMIT_DATA, (held + budget, held + budget))
convert({str(source)!r}, {str(tmp_path / "b.h5")!r}, max_memory=budget, progress=False, {options})
try:
    numpy.ones(held + budget, numpy.uint8)
except MemoryError:
    print("bounded")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "bounded"), done.stderr


# ------------------------------------------------------------------ plain arrays


def plain_zarr(path: Path, rows: np.ndarray, version: int, **options: Any) -> None:
    options = {"chunks": (100, 3), **options}
    group = zarr.open_group(path, mode="w", zarr_format=version)  # type: ignore[arg-type]
    array = group.create_array("val/probs", shape=rows.shape, dtype=rows.dtype, **options)
    array[:] = rows


ZARR_CASES: list[tuple[int, dict[str, Any]]] = [
    (3, {}),
    (3, {"compressors": None}),
    (3, {"shards": (200, 6)}),
    (3, {"compressors": zarr.codecs.BloscCodec()}),
    (2, {}),
    (2, {"compressors": None, "order": "F"}),
    (2, {"compressors": __import__("numcodecs").Zlib(), "order": "F"}),
    (2, {"compressors": __import__("numcodecs").GZip()}),
    (2, {"compressors": __import__("numcodecs").Blosc(shuffle=2)}),
]


@pytest.mark.parametrize("dtype", ["<f4", ">f8", "<f2"])
@pytest.mark.parametrize(("version", "options"), ZARR_CASES)
@pytest.mark.filterwarnings("ignore")
def test_plain_zarr_arrays_become_stores(
    tmp_path: Path, version: int, options: dict[str, Any], dtype: str
) -> None:
    if version == 3:
        dtype = dtype.replace(">", "<")
    rows = probs(350, 5).astype(dtype)
    plain_zarr(tmp_path / "x.zarr", rows, version, **options)
    for at, source in enumerate((f"{tmp_path}/x.zarr::val/probs", tmp_path / "x.zarr")):
        receipt = quiet(source, tmp_path / f"{at}.h5")
        there = fostore.open(tmp_path / f"{at}.h5")
        assert np.array_equal(there.array, rows)
        assert there.array.dtype == np.dtype(dtype).newbyteorder("<")
        assert receipt.source_digest == receipt.destination_digest


def test_a_chunk_that_is_missing_is_damage_and_never_zeros(tmp_path: Path) -> None:
    for version in (2, 3):
        path = tmp_path / f"{version}.zarr"
        plain_zarr(path, probs(350, 3), version)
        name = "val/probs/2.0" if version == 2 else "val/probs/c/2/0"
        (path / name).unlink()
        with pytest.raises(DamageError, match="rows 200 to 299"):
            quiet(path, tmp_path / "out.zarr")
    assert names_in(tmp_path) == ["2.zarr", "3.zarr"]


@pytest.mark.parametrize(
    "change",
    [
        {"compressor": {"id": "pickle"}},
        {"filters": [{"id": "delta"}]},
        {"dtype": "|O"},
        {"dtype": [["a", "<f4"]]},
        {"chunks": [1 << 40, 3]},
        {"shape": [-1, 3]},
        {"order": "X"},
        {"zarr_format": 3},
    ],
)
def test_hostile_v2_metadata_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    plain_zarr(tmp_path / "x.zarr", probs(350, 3), 2)
    file = tmp_path / "x.zarr/val/probs/.zarray"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(FormatError):
        quiet(f"{tmp_path}/x.zarr::val/probs", tmp_path / "b.zarr")


def test_links_in_a_plain_array_are_never_followed(tmp_path: Path) -> None:
    plain_zarr(tmp_path / "x.zarr", probs(350, 3), 2)
    plain_zarr(tmp_path / "y.zarr", probs(350, 3), 2)
    chunk = tmp_path / "x.zarr/val/probs/0.0"
    chunk.unlink()
    os.symlink(tmp_path / "y.zarr/val/probs/0.0", chunk)
    os.symlink(tmp_path / "y.zarr/val", tmp_path / "x.zarr/other")
    for inside in ("val/probs", "other/probs"):
        with pytest.raises(UnsafeError, match="link"):
            quiet(f"{tmp_path}/x.zarr::{inside}", tmp_path / "b.zarr")
    for inside in ("../y.zarr/val/probs", "/..", "val//probs"):
        with pytest.raises(ArgumentError, match="no path inside"):
            quiet(f"{tmp_path}/x.zarr::{inside}", tmp_path / "b.zarr")


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"chunks": (100, 3)},
        {"chunks": (64, 5), "compression": "gzip", "shuffle": True},
        {"chunks": (64, 5), "compression": "lzf", "fletcher32": True},
    ],
)
def test_plain_hdf5_datasets_become_stores(tmp_path: Path, options: dict[str, Any]) -> None:
    rows = probs(350, 5).astype(">f8")
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file.create_dataset("val/probs", data=rows, **options)
        file.create_dataset("val/labels", data=np.arange(350))
    for at, source in enumerate((f"{tmp_path}/x.h5::val/probs", tmp_path / "x.h5")):
        quiet(source, tmp_path / f"{at}.zarr")
        assert np.array_equal(fostore.open(tmp_path / f"{at}.zarr").array, rows)


def test_several_arrays_are_listed_and_none_is_guessed(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["a"] = file["b"] = probs(10)
    with pytest.raises(ArgumentError, match=r"a \(float32 .*b \(float32"):
        quiet(tmp_path / "x.h5", tmp_path / "b.zarr")
    with pytest.raises(ArgumentError, match="no dataset 'c'"):
        quiet(f"{tmp_path}/x.h5::c", tmp_path / "b.zarr")


def test_hdf5_bytes_that_lie_elsewhere_are_refused(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "y.h5", "w") as file:
        file["probs"] = probs(10)
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["real/probs"] = probs(10)
        file["soft"] = h5py.SoftLink("/flat")
        file["group"] = h5py.SoftLink("/real")
        file["external"] = h5py.ExternalLink("y.h5", "probs")
        file.create_dataset("flat", (10, 3), "f4", external=[(tmp_path / "raw", 0, 120)])
        layout = h5py.VirtualLayout((10, 3), "f4")
        layout[:] = h5py.VirtualSource(str(tmp_path / "y.h5"), "probs", (10, 3))
        file.create_virtual_dataset("virtual", layout)
        file["objects"] = np.array(["a", "b"], dtype=h5py.string_dtype())
    for name in ("soft", "external", "flat", "virtual", "group/probs"):
        with pytest.raises(UnsafeError):
            quiet(f"{tmp_path}/x.h5::{name}", tmp_path / "b.zarr")
    with pytest.raises(UnsupportedError):
        quiet(f"{tmp_path}/x.h5::objects", tmp_path / "b.zarr")


def test_what_rows_are_is_asked_for_where_it_is_not_plain(tmp_path: Path) -> None:
    logits = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32)
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["out"] = logits
    with pytest.raises(ArgumentError, match="source_kind"):
        quiet(tmp_path / "x.h5", tmp_path / "b.zarr")
    quiet(tmp_path / "x.h5", tmp_path / "b.zarr", source_kind="logits", temperature=1.5)
    there = fostore.open(tmp_path / "b.zarr")
    assert np.allclose(there.take([0, 1], as_kind="logits"), logits[:2], atol=1e-5)
    assert there.schema.temperature == 1.5


def test_rows_that_are_no_distributions_are_named_and_nothing_is_left(tmp_path: Path) -> None:
    rows = probs(3000, 3)
    rows[2500, 1] = np.nan
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["probs"] = rows
    with pytest.raises(FostoreError, match="row 2500"):
        quiet(tmp_path / "x.h5", tmp_path / "b.zarr")
    assert names_in(tmp_path) == ["x.h5"]


def test_a_plain_array_is_not_written(tmp_path: Path) -> None:
    from fostore.files import file_format

    for name in ("plain-zarr", "plain-hdf5", "cifar10h", "dcic"):
        with pytest.raises(ArgumentError, match="only read"):
            file_format(name).write(
                tmp_path / "x", make(tmp_path / f"{name}.zarr").header, iter([]), 0
            )


# ------------------------------------------------------------------ published layouts


@pytest.mark.parametrize("dtype", ["float64", "int64"])
def test_the_votes_of_cifar10h_stay_votes(tmp_path: Path, dtype: str) -> None:
    votes = np.random.default_rng(0).multinomial(51, [0.1] * 10, size=100)
    np.save(tmp_path / "cifar10h-counts.npy", votes.astype(dtype))
    quiet(tmp_path / "cifar10h-counts.npy", tmp_path / "b.h5", source_format="cifar10h")
    there = fostore.open(tmp_path / "b.h5")
    assert there.schema.kind == "counts"
    assert there.column("counts").dtype == np.uint8
    assert np.array_equal(there.column("counts"), votes)
    assert there.column("counts").sum(axis=1).tolist() == [51] * 100
    assert there.schema.class_names is not None
    assert there.schema.class_names[3] == "cat"


def test_the_probabilities_of_cifar10h_stay_float64(tmp_path: Path) -> None:
    rows = probs(100, 10).astype(np.float64)
    rows /= rows.sum(1, keepdims=True)
    rows[0] = np.eye(10)[3]
    np.save(tmp_path / "cifar10h-probs.npy", rows)
    quiet(tmp_path / "cifar10h-probs.npy", tmp_path / "b.zarr", source_format="cifar10h")
    assert np.array_equal(fostore.open(tmp_path / "b.zarr").array, rows)


def test_cifar10h_of_another_shape_or_with_pickles_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", probs(10, 9))
    np.save(tmp_path / "y.npy", np.array([{}]), allow_pickle=True)
    for name in ("x.npy", "y.npy"):
        with pytest.raises(FormatError):
            quiet(tmp_path / name, tmp_path / "b.zarr", source_format="cifar10h")


DCIC = [
    {"name": "ann", "annotations": [
        {"image_path": "fold1/a.png", "class_label": "dog", "created_at": "2021"},
        {"image_path": "fold1/b.png", "class_label": "cat"},
    ]},
    {"name": "bob", "annotations": [
        {"image_path": "fold1/b.png", "class_label": "dog"},
        {"image_path": "fold1/b.png", "class_label": "cat"},
        {"image_path": "fold2/c.png", "class_label": "bird"},
    ]},
]  # fmt: skip


def test_annotations_become_votes_in_an_order_of_classes_that_is_recorded(tmp_path: Path) -> None:
    (tmp_path / "annotations.json").write_text(json.dumps(DCIC))
    receipt = quiet(tmp_path / "annotations.json", tmp_path / "b.zarr", source_format="dcic")
    there = fostore.open(tmp_path / "b.zarr")
    assert there.schema.class_names == ("bird", "cat", "dog")
    assert list(there.ids) == ["fold1/a.png", "fold1/b.png", "fold2/c.png"]
    assert there.column("counts").tolist() == [[0, 0, 1], [0, 2, 1], [1, 0, 0]]
    assert receipt.notes == ("class order sorted by name: bird, cat, dog",)
    given = {"source_format": "dcic", "class_names": ["dog", "cat", "bird", "frog"]}
    quiet(tmp_path / "annotations.json", tmp_path / "c.zarr", **given)
    assert fostore.open(tmp_path / "c.zarr").column("counts").tolist()[1] == [1, 2, 0, 0]
    with pytest.raises(ArgumentError, match="bird"):
        quiet(tmp_path, tmp_path / "d.zarr", source_format="dcic", class_names=["dog", "cat"])


@pytest.mark.parametrize(
    "value",
    [
        {},
        [],
        [1],
        [{"annotations": 3}],
        [{"annotations": [{"image_path": "a"}]}],
        [{"annotations": [7]}],
    ],
)
def test_other_annotations_are_refused(tmp_path: Path, value: Any) -> None:
    (tmp_path / "annotations.json").write_text(json.dumps(value))
    with pytest.raises(FormatError):
        open_table(tmp_path / "annotations.json", Hints(format="dcic"))


def test_convert_its_options_and_its_command_are_one_list() -> None:
    import dataclasses
    import inspect

    from fostore.cli.convert import convert as command
    from fostore.conversion.options import Options

    parameters = [
        parameter
        for parameter in inspect.signature(convert).parameters.values()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    ]
    fields = dataclasses.fields(Options)
    assert [(p.name, p.default) for p in parameters] == [(f.name, f.default) for f in fields]
    assert all(f"{f.name}" in str(convert.__doc__) for f in fields)
    extra = {"source", "destination", "dry_run", "traceback", "as_json", "quiet"}
    assert set(inspect.signature(command).parameters) == extra | {f.name for f in fields}
