"""Sealed stores that other tools rechunked or compressed: the same rows, the same digest, never a fill value."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import zarr
from zarr.codecs import (
    BloscCodec,
    BytesCodec,
    Crc32cCodec,
    GzipCodec,
    ShardingCodec,
    TransposeCodec,
    ZstdCodec,
)

import fostore
from fostore.errors import (
    DamageError,
    FormatError,
    FostoreError,
    UnsafeError,
    UnsupportedError,
)
from fostore.formats.chunks import codecs
from fostore.formats.chunks.codecs import CodecError
from fostore.formats.chunks.lzf import lzf
from fostore.formats.chunks.reader import ForeignReader
from fostore.formats.views.pieces import ArrayCache, EvenPieces, PieceView
from fostore.places.memory import Memory
from fostore.schema.row import Column
from support import probs
from units import column_rows

N = 2500
pytestmark = [
    pytest.mark.usefixtures("fast_disk"),
    # Of who makes an array of texts: zarr-python's type for them is in no registry yet (0054).
    pytest.mark.filterwarnings("ignore::zarr.errors.UnstableSpecificationWarning"),
]

# ------------------------------------------------------------------ stores


def probabilities(path: Path) -> None:
    with fostore.create(
        path, num_samples=N, num_classes=7, dtype="float16", unit_rows=2048
    ) as writer:
        writer.append(probs(N, 7))


def members(path: Path) -> None:
    rows = np.stack([probs(N, 3, seed=seed) for seed in range(2)], axis=1)
    with fostore.create(
        path, num_samples=N, num_classes=3, num_members=2, unit_rows=2048
    ) as writer:
        writer.append(rows)


def logits(path: Path) -> None:
    """Two content columns, and keys of five bytes, after which nothing is aligned."""
    keys = [f"ä{row:03x}" for row in range(N)]
    with fostore.create(
        path,
        num_samples=N,
        num_classes=5,
        kind="logits",
        ids="S5",
        unit_rows=4096,
        fingerprints=True,
    ) as writer:
        writer.append(
            np.log(probs(N, 5)) * 3,
            ids=keys,
            fingerprints=np.arange(N, dtype=np.uint64),
        )


STORES: dict[str, Callable[[Path], None]] = {
    "probs": probabilities,
    "members": members,
    "logits": logits,
}

ZSTD = [ZstdCodec()]
ZARR: dict[str, Callable[[tuple[int, ...]], dict[str, Any]]] = {
    "zstd": lambda s: {"chunks": (700, *s[1:]), "compressors": ZSTD},
    "zstd and crc32c": lambda s: {
        "chunks": (1024, *s[1:]),
        "compressors": [ZstdCodec(), Crc32cCodec()],
    },
    "blosc": lambda s: {"chunks": (512, *s[1:]), "compressors": [BloscCodec(cname="lz4")]},
    "plain small chunks": lambda s: {"chunks": (100, *s[1:]), "compressors": None},
    "chunks across classes": lambda s: {"chunks": (300, *(2 for _ in s[1:])), "compressors": ZSTD},
    "one chunk larger than all": lambda s: {"chunks": (4096, *s[1:]), "compressors": [GzipCodec()]},
    "other shards, gzip inside": lambda s: {
        "chunks": (50, *s[1:]),
        "shards": (400, *s[1:]),
        "compressors": [GzipCodec()],
    },
    "shards across classes": lambda s: {
        "chunks": (100, *(1 for _ in s[1:])),
        "shards": (500, *(2 for _ in s[1:])),
        "compressors": ZSTD,
    },
    "transposed": lambda s: {
        "chunks": (200, *s[1:]),
        "filters": [TransposeCodec(order=tuple(np.roll(range(len(s)), 1).tolist()))],
        "compressors": ZSTD,
    },
    "big endian": lambda s: {
        "chunks": (200, *s[1:]),
        "serializer": BytesCodec(endian="big"),
        "compressors": None,
    },
    "keys of version 2": lambda s: {
        "chunks": (200, *s[1:]),
        "chunk_key_encoding": {"name": "v2", "separator": "."},
    },
    "keys with points": lambda s: {
        "chunks": (200, *s[1:]),
        "chunk_key_encoding": {"name": "default", "separator": "."},
    },
    "an index at the start": lambda s: {
        "chunks": (400, *s[1:]),
        "serializer": ShardingCodec(
            chunk_shape=(50, *s[1:]), codecs=[BytesCodec(), ZstdCodec()], index_location="start"
        ),
        "compressors": None,
    },
}


def copy_zarr(source: Path, target: Path, how: str) -> None:
    """What somebody does with zarr-python: every array created anew, the attributes kept."""
    old: Any = zarr.open_group(source, mode="r")
    new = zarr.open_group(target, mode="w", attributes=dict(old.attrs), zarr_format=3)
    for name, array in old.arrays():
        options = ZARR[how](array.shape)
        if name == "block_hashes":
            options = {"chunks": (2, 1, 32)}
        if len(array.shape) == 1 and "filters" in options:
            options.pop("filters")
        copied = new.create_array(
            name, shape=array.shape, dtype=array.dtype, fill_value=0, **options
        )
        copied[:] = array[:]


HDF5: dict[str, dict[str, Any]] = {
    "gzip and shuffle": {"chunks": 300, "compression": "gzip", "shuffle": True},
    "gzip and fletcher32": {"chunks": 1024, "compression": "gzip", "fletcher32": True},
    "lzf": {"chunks": 500, "compression": "lzf", "shuffle": True},
    "chunked": {"chunks": 77},
    "across classes": {"chunks": 200, "across": 2, "compression": "gzip"},
    "big endian": {"big": True},
    "contiguous, moved": {},
}


def copy_hdf5(source: Path, target: Path, how: str, libver: Any = "earliest") -> None:
    """What h5repack does: every dataset with its contents in another layout, the attributes kept."""
    options = dict(HDF5[how])
    rows, across, big = (options.pop(key, None) for key in ("chunks", "across", "big"))
    with h5py.File(source, "r") as old, h5py.File(target, "w", libver=libver) as new:
        for name in sorted(old, key=lambda name: name != "sample_id"):
            value = old[name][:]
            chunks: Any = None
            if rows:
                others = (
                    value.shape[1:] if across is None else (min(across, n) for n in value.shape[1:])
                )
                chunks = (min(rows, len(value)), *others)
            dtype = value.dtype.newbyteorder(">") if big else value.dtype
            new.create_dataset(name, data=value, dtype=dtype, chunks=chunks, **options)
        for name in old.attrs:
            new.attrs[name] = old.attrs[name]


def layouts() -> Any:
    names = [f"zarr: {how}" for how in ZARR] + [f"hdf5: {how}" for how in HDF5]
    return pytest.mark.parametrize("name", names)


def make(folder: Path, store: str, name: str) -> tuple[Path, Path]:
    format, how = name.split(": ", 1)
    suffix = ".zarr" if format == "zarr" else ".h5"
    source, target = folder / f"ours{suffix}", folder / f"theirs{suffix}"
    STORES[store](source)
    (copy_zarr if format == "zarr" else copy_hdf5)(source, target, how)
    return source, target


# ------------------------------------------------------------------ the same results


@layouts()
@pytest.mark.parametrize("store", STORES)
def test_a_copy_in_another_layout_reads_the_same(tmp_path: Path, store: str, name: str) -> None:
    source, target = make(tmp_path, store, name)
    rows = np.random.default_rng(0).integers(0, N, 500)
    with fostore.open(source) as ours, fostore.open(target) as theirs:
        assert (len(theirs), theirs.is_sealed, theirs.shape) == (N, True, ours.shape)
        assert theirs.digest() == ours.digest()
        np.testing.assert_array_equal(theirs.take(rows), ours.take(rows))
        for index in range(len(ours.schema.columns)):
            expected = ours.reader.column(index).read(0, N)
            for start, stop in ((0, N), (0, 0), (3, 4), (190, 1111), (N - 1, N)):
                found = theirs.reader.column(index).read(start, stop)
                assert found.dtype == expected.dtype
                np.testing.assert_array_equal(found, expected[start:stop])
        assert [row for row, _ in theirs.items()] == list(range(N))
        np.testing.assert_array_equal(np.asarray(theirs), np.asarray(ours))
        if ours.ids is not None:
            np.testing.assert_array_equal(theirs.ids, ours.ids)
        np.testing.assert_array_equal(theirs.reader.block_hashes(), ours.reader.block_hashes())
        assert theirs.verify() == []


def test_every_copy_is_decoded_and_no_copy_of_ours_is(tmp_path: Path) -> None:
    for name in ("zarr: zstd", "hdf5: lzf"):
        folder = tmp_path / name[:4]
        folder.mkdir()
        source, target = make(folder, "logits", name)
        assert isinstance(fostore.open(target).reader, ForeignReader)
        assert not isinstance(fostore.open(source).reader, ForeignReader)


def test_datasets_that_hdf5_itself_copied_read_the_same(tmp_path: Path) -> None:
    source, target = tmp_path / "ours.h5", tmp_path / "theirs.h5"
    logits(source)
    with h5py.File(source, "r") as old, h5py.File(target, "w") as new:
        for name in old:
            old.copy(name, new)
        for name in old.attrs:
            new.attrs[name] = old.attrs[name]
    with fostore.open(source) as ours, fostore.open(target) as theirs:
        np.testing.assert_array_equal(np.asarray(theirs), np.asarray(ours))
        assert theirs.verify() == []


@pytest.mark.parametrize("how", ["gzip and shuffle", "chunked"])
def test_newer_object_formats_of_hdf5_read_the_same(tmp_path: Path, how: str) -> None:
    source, target = tmp_path / "ours.h5", tmp_path / "theirs.h5"
    members(source)
    copy_hdf5(source, target, how, libver="latest")
    with fostore.open(source) as ours, fostore.open(target) as theirs:
        np.testing.assert_array_equal(np.asarray(theirs), np.asarray(ours))
        assert theirs.verify() == []
    os.truncate(target, target.stat().st_size - 10)
    with pytest.raises(DamageError, match="cut"):
        fostore.open(target)


@pytest.mark.parametrize("name", ["zarr: zstd", "hdf5: lzf"])
def test_a_decoded_store_is_an_array_and_pickles_too(tmp_path: Path, name: str) -> None:
    source, target = make(tmp_path, "probs", name)
    with fostore.open(target) as store:
        whole = store.array
        assert np.shares_memory(whole, store.array)
        assert not whole.flags.writeable
        np.testing.assert_array_equal(whole, fostore.open(source).array)
        assert list(store.reader.segments(0)) == list(store.reader.runs()) == []
        store.refresh()
        again = pickle.loads(pickle.dumps(store))
        np.testing.assert_array_equal(again.take([5, 1]), store.take([5, 1]))


@pytest.mark.parametrize("name", ["zarr: zstd", "hdf5: gzip and shuffle"])
def test_a_decoded_store_is_not_written_to(tmp_path: Path, name: str) -> None:
    _, target = make(tmp_path, "probs", name)
    with pytest.raises(UnsupportedError, match="none can be written to"):
        fostore.create(target, exists="resume")


@pytest.mark.parametrize("name", ["zarr: zstd", "hdf5: gzip and shuffle"])
def test_a_store_in_progress_in_another_layout_is_refused(tmp_path: Path, name: str) -> None:
    suffix = ".zarr" if name.startswith("zarr") else ".h5"
    source, target = tmp_path / f"ours{suffix}", tmp_path / f"theirs{suffix}"
    writer = fostore.create(source, num_samples=N, num_classes=7, unit_rows=2048)
    writer.append(probs(2100, 7))
    writer.close()
    how = name.split(": ")[1]
    (copy_zarr if suffix == ".zarr" else copy_hdf5)(source, target, how)
    with pytest.raises(UnsupportedError, match="is not sealed"):
        fostore.open(target)


@pytest.mark.parametrize("name", ["zarr: zstd", "hdf5: gzip and shuffle"])
def test_a_forked_child_reads_what_its_parent_opened(tmp_path: Path, name: str) -> None:
    """In a process of its own: the suite's has threads, with which a fork warns."""
    _, target = make(tmp_path, "probs", name)
    code = """
import os, sys, warnings, fostore
warnings.simplefilter("ignore")
store = fostore.open(sys.argv[1])
first = store.take([3, 2000]).tobytes()
child = os.fork()
if child == 0:
    os._exit(0 if store.take([3, 2000]).tobytes() == first and len(store.take(range(0, 2500, 7))) else 1)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    subprocess.run([sys.executable, "-c", code, str(target)], check=True, timeout=60)


@pytest.mark.parametrize("name", ["zarr: zstd", "hdf5: gzip and shuffle"])
def test_rows_of_another_store_at_the_same_path_are_never_mixed_in(
    tmp_path: Path, name: str
) -> None:
    """HDF5 keeps the file that it opened; a folder has been replaced, and says so."""
    _, target = make(tmp_path, "probs", name)
    with fostore.open(target) as store:
        first = store.take([0])
        away = tmp_path / "away"
        target.rename(away)
        (shutil.copytree if away.is_dir() else shutil.copy)(away, target)
        if target.is_dir():
            for use in (lambda: store.take([N - 1]), store.refresh):
                with pytest.raises(DamageError, match="taken the place"):
                    use()
        else:
            store.take([N - 1])
        np.testing.assert_array_equal(store.take([0]), first)


def test_reading_a_decoded_store_imports_neither_zarr_nor_its_codecs(tmp_path: Path) -> None:
    _, target = make(tmp_path, "probs", "zarr: zstd")
    code = (
        "import sys, fostore; fostore.open(sys.argv[1]).take([1]); sys.exit('zarr' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, str(target)], check=True, timeout=60)


# ------------------------------------------------------------------ the cache


def view_of_blocks(num_rows: int, block_rows: int, max_bytes: int) -> tuple[PieceView, list[Any]]:
    column = Column("x", "float32", "float32", ("class",), (4,))
    everything = column_rows(column, 0, num_rows)
    calls: list[tuple[int, int]] = []

    def read(start: int, stop: int) -> np.ndarray:
        calls.append((start, stop))
        return everything[start:stop].copy()

    pieces = EvenPieces(read, block_rows, num_rows)
    view = PieceView(column, num_rows, pieces, ArrayCache(max_bytes))
    return view, calls


def test_rows_are_taken_in_any_order_and_each_block_is_decoded_once() -> None:
    view, calls = view_of_blocks(1000, 64, 1 << 20)
    expected = column_rows(Column("x", "float32", "float32", ("class",), (4,)), 0, 1000)
    rows = np.random.default_rng(1).integers(0, 1000, 400)
    found = view.take(rows)
    np.testing.assert_array_equal(found, expected[rows])
    assert found.ctypes.data % 64 == 0
    assert found.flags.writeable
    assert len(calls) == len(set(calls)) == len(np.unique(rows // 64))
    out = np.zeros((400, 4), np.float32)
    assert view.take(rows, out) is out
    np.testing.assert_array_equal(out, expected[rows])
    assert view.take(np.empty(0, np.int64)).shape == (0, 4)
    assert len(calls) == len(set(calls))
    assert not view.read(0, 10).flags.writeable


def test_the_cache_keeps_what_was_used_last_within_its_bound() -> None:
    block_bytes = 64 * 16
    view, calls = view_of_blocks(640, 64, 3 * block_bytes)
    for block in (0, 1, 2, 0, 3, 0, 1):  # 3 pushes 1 out, not 0
        view.read(block * 64, block * 64 + 1)
    assert [start // 64 for start, _ in calls] == [0, 1, 2, 3, 1]
    cache = ArrayCache(100)
    for key in range(10):
        cache.get(key, lambda: np.zeros(60, np.uint8))
        assert cache.nbytes == 60
    cache.get("large", lambda: np.zeros(1000, np.uint8))
    assert cache.nbytes == 1000
    cache.get("large", lambda: pytest.fail("it was not kept"))
    cache.get("small", lambda: np.zeros(1, np.uint8))
    assert cache.nbytes == 1


# ------------------------------------------------------------------ damage


def chunk_files(path: Path, column: str = "probs") -> list[Path]:
    return sorted(
        file for file in (path / column).rglob("*") if file.is_file() and file.name != "zarr.json"
    )


def assert_never_wrong(path: Path, expected: np.ndarray) -> None:
    """Either rows are right, or they are an error, or `verify` names them."""
    with fostore.open(path) as store:
        wrong: list[int] = []
        for row in range(0, N, 50):
            try:
                found = store.take(np.arange(row, row + 50))
            except DamageError as error:
                (first, last), *_ = error.rows
                found = None if first < row + 50 and row < last else expected[row : row + 50]
            if found is None or not np.array_equal(found, expected[row : row + 50]):
                wrong.append(row)
        touched = [finding.rows for finding in store.verify() if finding.rows]
    assert wrong
    for row in wrong:
        assert any(start < row + 50 and row < stop for start, stop in touched), row


@pytest.mark.parametrize("how", [how for how in ZARR if how != "one chunk larger than all"])
@pytest.mark.parametrize("damage", ["missing", "cut", "empty", "flipped"])
def test_a_damaged_zarr_chunk_is_named_and_never_read_as_rows(
    tmp_path: Path, how: str, damage: str
) -> None:
    source, target = make(tmp_path, "probs", f"zarr: {how}")
    expected = fostore.open(source).take(range(N))
    file = chunk_files(target)[1]
    data = bytearray(file.read_bytes())
    if damage == "missing":
        file.unlink()
    elif damage == "flipped":
        data[len(data) // 2] ^= 0x10
        file.write_bytes(data)
    else:
        file.write_bytes(data[: len(data) // 3 if damage == "cut" else 0])
    assert_never_wrong(target, expected)
    with fostore.open(target) as store:
        if damage == "missing":
            gaps = [finding for finding in store.verify("structure") if finding.rows]
            assert gaps
            assert "missing" in gaps[0].message
            with pytest.raises(DamageError, match="missing"):
                store.take(range(N))


def test_an_inner_chunk_that_is_left_out_is_damage(tmp_path: Path) -> None:
    source, target = make(tmp_path, "probs", "zarr: other shards, gzip inside")
    array: Any = zarr.open_array(target / "probs", mode="r+")
    array[450:500] = 0  # a whole inner chunk of the fill value, which zarr-python leaves out
    expected = fostore.open(source).take(range(N))
    with fostore.open(target) as store:
        (finding,) = store.verify("structure")
        assert finding.rows == (450, 500)
        with pytest.raises(DamageError, match="missing") as caught:
            store.take([460])
        assert caught.value.rows == ((450, 500),)
        np.testing.assert_array_equal(store.take([449, 500]), expected[[449, 500]])
        others = [f for f in store.verify() if f.rows != (450, 500)]
        assert others == []


def test_a_damaged_shard_index_is_found_without_reading_rows(tmp_path: Path) -> None:
    _, target = make(tmp_path, "probs", "zarr: other shards, gzip inside")
    file = chunk_files(target)[1]
    data = bytearray(file.read_bytes())
    data[-10] ^= 1
    file.write_bytes(data)
    with fostore.open(target) as store:
        (finding,) = store.verify("structure")
    assert finding.rows is not None
    assert "crc32c" in finding.message


def test_damage_in_one_chunk_does_not_hide_damage_in_another(tmp_path: Path) -> None:
    _, target = make(tmp_path, "probs", "zarr: zstd and crc32c")
    for file in (chunk_files(target)[0], chunk_files(target)[2]):
        file.write_bytes(file.read_bytes()[:-1] + b"?")
    with fostore.open(target) as store:
        touched = {finding.rows for finding in store.verify() if finding.rows}
    assert touched == {(0, 1024), (2048, N)}


def hdf5_chunks(path: Path, name: str = "probs") -> list[Any]:
    with h5py.File(path, "r") as file:
        dataset = file[name].id
        return [dataset.get_chunk_info(i) for i in range(dataset.get_num_chunks())]


@pytest.mark.parametrize("how", [how for how in HDF5 if HDF5[how].get("chunks")])
@pytest.mark.parametrize("bit", [1, 0x80])
def test_a_damaged_hdf5_chunk_is_never_read_as_rows(tmp_path: Path, how: str, bit: int) -> None:
    source, target = make(tmp_path, "probs", f"hdf5: {how}")
    expected = fostore.open(source).take(range(N))
    chunk = hdf5_chunks(target)[1]
    data = bytearray(target.read_bytes())
    data[chunk.byte_offset + chunk.size // 2] ^= bit
    target.write_bytes(data)
    assert_never_wrong(target, expected)


def test_an_hdf5_chunk_that_was_never_written_is_damage(tmp_path: Path) -> None:
    source, target = make(tmp_path, "probs", "hdf5: chunked")
    expected = fostore.open(source).take(range(N))
    with h5py.File(target, "r+") as file:
        del file["probs"]
        rows = file.create_dataset("probs", (N, 7), "<f2", chunks=(100, 7), compression="gzip")
        rows[:300], rows[400:] = expected[:300], expected[400:]
    with fostore.open(target) as store:
        (finding,) = store.verify("structure")
        assert finding.rows == (300, 400)
        with pytest.raises(DamageError, match="missing") as caught:
            store.take([399])
        assert caught.value.rows == ((300, 400),)
        np.testing.assert_array_equal(store.take([299, 400]), expected[[299, 400]])


def test_a_cut_hdf5_file_is_refused(tmp_path: Path) -> None:
    _, target = make(tmp_path, "probs", "hdf5: gzip and shuffle")
    os.truncate(target, target.stat().st_size - 1)
    with pytest.raises(DamageError, match="cut"):
        fostore.open(target)


# ------------------------------------------------------------------ strangers


def edit(file: Path, change: Callable[[Any], Any]) -> None:
    value = json.loads(file.read_text())
    change(value)
    value["attributes"].get("fostore", {}).pop("checksum", None)  # who means harm gets it right
    file.write_text(json.dumps(value))


def codec(value: Any) -> Callable[[Any], Any]:
    return lambda v: v["codecs"].append(value)


EDITS: dict[str, tuple[Callable[[Any], Any], type[FostoreError], str]] = {
    "an unknown codec": (codec({"name": "numcodecs.lzma"}), UnsupportedError, "numcodecs.lzma"),
    "a codec of the registry": (codec("numcodecs.delta"), UnsupportedError, "numcodecs.delta"),
    "a codec in the wrong place": (codec({"name": "bytes"}), UnsupportedError, "place"),
    "no codec": (lambda v: v.update(codecs=[]), FormatError, "lacks 'bytes'"),
    "a codec that is a number": (codec(7), FormatError, "codecs"),
    "an odd transpose": (
        lambda v: v["codecs"].insert(0, {"name": "transpose", "configuration": {"order": [0, 0]}}),
        FormatError,
        "order",
    ),
    "sharding beside another codec": (
        codec({"name": "sharding_indexed", "configuration": {}}),
        UnsupportedError,
        "alone",
    ),
    "another grid": (
        lambda v: v["chunk_grid"].update(name="rectilinear"),
        UnsupportedError,
        "rectilinear",
    ),
    "huge chunks": (
        lambda v: v["chunk_grid"]["configuration"].update(chunk_shape=[1 << 50, 7]),
        UnsafeError,
        "smaller chunks",
    ),
    "huge chunks across": (
        lambda v: v["chunk_grid"]["configuration"].update(chunk_shape=[1, 1 << 50]),
        UnsafeError,
        "smaller chunks",
    ),
    "chunks of nothing": (
        lambda v: v["chunk_grid"]["configuration"].update(chunk_shape=[0, 7]),
        FormatError,
        "chunks",
    ),
    "chunks of fewer axes": (
        lambda v: v["chunk_grid"]["configuration"].update(chunk_shape=[700]),
        FormatError,
        "chunks",
    ),
    "other classes": (lambda v: v.update(shape=[N, 8]), FormatError, "asks for"),
    "fewer rows": (lambda v: v.update(shape=[N - 1, 7]), FormatError, "asks for"),
    "another dtype": (lambda v: v.update(data_type="float32"), FormatError, "asks for"),
    "text": (lambda v: v.update(data_type="string"), UnsupportedError, "data_type"),
    "axes that are swapped": (
        lambda v: v.update(dimension_names=["class", "sample"]),
        FormatError,
        "dimension_names",
    ),
    "other keys": (
        lambda v: v.update(chunk_key_encoding={"name": "fanout"}),
        UnsupportedError,
        "fanout",
    ),
    "a transformer": (
        lambda v: v.update(storage_transformers=[{"name": "x"}]),
        UnsupportedError,
        "transformers",
    ),
    "an extension": (lambda v: v.update(future={"name": "x"}), UnsupportedError, "future"),
    "depth": (lambda v: v.update(codecs=json.loads("[" * 900 + "]" * 900)), FormatError, "codecs"),
}


@pytest.mark.parametrize("what", EDITS)
def test_what_is_not_decoded_is_refused_by_name(tmp_path: Path, what: str) -> None:
    change, error, words = EDITS[what]
    _, target = make(tmp_path, "probs", "zarr: zstd")
    edit(target / "probs" / "zarr.json", change)
    with pytest.raises(error, match=words):
        fostore.open(target)


def inner(change: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda v: change(v["codecs"][0]["configuration"])


SHARD_EDITS: dict[str, tuple[Callable[[Any], Any], type[FostoreError], str]] = {
    "an unknown codec": (inner(codec({"name": "lz4"})), UnsupportedError, "lz4"),
    "shards in shards": (inner(codec({"name": "sharding_indexed"})), UnsupportedError, "place"),
    "a packed index": (
        inner(lambda c: c["index_codecs"].append({"name": "gzip"})),
        UnsupportedError,
        "index_codecs",
    ),
    "an index in the middle": (
        inner(lambda c: c.update(index_location="middle")),
        FormatError,
        "middle",
    ),
    "chunks that do not divide": (
        inner(lambda c: c.update(chunk_shape=[300, 7])),
        FormatError,
        "multiple",
    ),
    "a huge shard": (
        lambda v: v["chunk_grid"]["configuration"].update(chunk_shape=[50 << 40, 7]),
        UnsupportedError,
        "index of",
    ),
}


@pytest.mark.parametrize("what", SHARD_EDITS)
def test_shards_that_are_not_decoded_are_refused_by_name(tmp_path: Path, what: str) -> None:
    change, error, words = SHARD_EDITS[what]
    _, target = make(tmp_path, "probs", "zarr: other shards, gzip inside")
    edit(target / "probs" / "zarr.json", change)
    with pytest.raises(error, match=words):
        fostore.open(target)


CLAIMS: dict[str, Callable[[Any], Any]] = {
    "big endian": lambda v: v["codecs"][0]["configuration"]["codecs"][0].update(
        configuration={"endian": "big"}
    ),
    "an index at the start": lambda v: v["codecs"][0]["configuration"].update(
        index_location="start"
    ),
    "keys of version 2": lambda v: v.update(chunk_key_encoding={"name": "v2"}),
    "gzip inside": lambda v: v["codecs"][0]["configuration"]["codecs"].append({"name": "gzip"}),
    "other inner chunks": lambda v: v["codecs"][0]["configuration"].update(chunk_shape=[1024, 7]),
}


@pytest.mark.parametrize("claim", CLAIMS)
def test_metadata_that_claims_another_layout_than_the_data_has_is_found(
    tmp_path: Path, claim: str
) -> None:
    path = tmp_path / "ours.zarr"
    probabilities(path)
    expected = fostore.open(path).take(range(N))
    edit(path / "probs" / "zarr.json", CLAIMS[claim])
    assert_never_wrong(path, expected)


@pytest.mark.parametrize(
    "place", ["probs", "probs/c", "probs/c/0", "probs/c/0/0", "probs/zarr.json"]
)
def test_no_link_is_followed_in_a_decoded_store(tmp_path: Path, place: str) -> None:
    _, target = make(tmp_path, "probs", "zarr: zstd")
    moved = tmp_path / "elsewhere"
    (target / place).rename(moved)
    (target / place).symlink_to(moved)
    with pytest.raises(UnsafeError, match="link"):
        fostore.open(target).take([0])


def test_a_claim_of_rows_costs_no_memory(tmp_path: Path) -> None:
    _, target = make(tmp_path, "probs", "zarr: zstd")
    rows = 1 << 52
    edit(target / "zarr.json", lambda v: v["attributes"]["fostore"].update(num_samples=rows))
    edit(target / "probs" / "zarr.json", lambda v: v.update(shape=[rows, 7]))
    edit(target / "block_hashes" / "zarr.json", lambda v: v.update(shape=[rows // 1024, 1, 32]))
    with fostore.open(target) as store:
        finding = store.verify("structure")[-1]
        assert finding.rows is not None
        assert finding.rows[1] == rows
        with pytest.raises(UnsafeError):
            store.reader.block_hashes()
        with pytest.raises(DamageError):
            store.take([rows - 1])


HDF5_STRANGERS: dict[str, tuple[dict[str, Any], type[FostoreError], str]] = {
    "scale and offset": ({"scaleoffset": 3, "dtype": "<i2"}, UnsupportedError, "filter 6"),
    "text": ({"dtype": h5py.string_dtype()}, UnsupportedError, "dtype"),
    "compound": ({"dtype": [("a", "<f4")]}, UnsupportedError, "dtype"),
    "another dtype": ({"dtype": "<f4"}, FormatError, "asks for"),
    "huge chunks": (
        {"dtype": "<f2", "chunks": ((1 << 28) + 1, 7), "maxshape": (None, 7)},
        UnsafeError,
        "smaller chunks",
    ),
}


@pytest.mark.parametrize("what", HDF5_STRANGERS)
def test_hdf5_that_is_not_decoded_is_refused_by_name(tmp_path: Path, what: str) -> None:
    options, error, words = HDF5_STRANGERS[what]
    _, target = make(tmp_path, "probs", "hdf5: gzip and shuffle")
    with h5py.File(target, "r+") as file:
        del file["probs"]
        chunks = {"chunks": (100, 7)} | options
        file.create_dataset("probs", (N, 7), **chunks)
    with pytest.raises(error, match=words):
        fostore.open(target)


@pytest.mark.parametrize("link", [h5py.SoftLink("/other"), h5py.ExternalLink("o.h5", "/probs")])
def test_no_link_of_hdf5_is_followed_in_a_decoded_store(tmp_path: Path, link: Any) -> None:
    _, target = make(tmp_path, "logits", "hdf5: gzip and shuffle")
    with h5py.File(target, "r+") as file:
        file.move("logsumexp", "other")
        file["logsumexp"] = link
    with pytest.raises(UnsafeError, match="link"):
        fostore.open(target)


def test_hdf5_garbage_is_an_error_of_ours_or_harmless(tmp_path: Path) -> None:
    _, target = make(tmp_path, "probs", "hdf5: gzip and shuffle")
    raw = target.read_bytes()
    data = {at for c in hdf5_chunks(target) for at in range(c.byte_offset, c.byte_offset + c.size)}
    used = [at for at in range(len(raw)) if raw[at] and at not in data]
    chance = np.random.default_rng(0)
    for _ in range(100):
        at = int(chance.choice(used))
        damaged = bytearray(raw)
        damaged[at : at + 4] = chance.bytes(4)
        target.write_bytes(damaged)
        try:
            with fostore.open(target) as store:
                store.take(range(N))
                store.verify()
        except (FormatError, DamageError):
            pass


# ------------------------------------------------------------------ codecs


def packed(name: str, data: bytes) -> bytes:
    import numcodecs

    if name == "crc32c":
        import crc32c

        return data + crc32c.crc32c(data).to_bytes(4, "little")
    if name == "deflate":
        return zlib.compress(data)
    makers = {"gzip": numcodecs.GZip, "zstd": numcodecs.Zstd, "blosc": numcodecs.Blosc}
    return bytes(makers[name]().encode(data))


@pytest.mark.parametrize("name", ["gzip", "zstd", "blosc", "deflate"])
def test_a_chunk_that_unpacks_to_more_than_it_may_is_refused(name: str) -> None:
    decoder = getattr(codecs, name)
    bomb = packed(name, bytes(1 << 20))
    assert bytes(codecs.unpack(bomb, [decoder], 1 << 20)) == bytes(1 << 20)
    for size in (0, 1000, (1 << 20) - 1, (1 << 20) + 1):
        with pytest.raises(CodecError):
            codecs.unpack(bomb, [decoder], size)


@pytest.mark.parametrize(
    "name", ["gzip", "zstd", "blosc", "deflate", "crc32c", "lzf", "fletcher32"]
)
def test_garbage_is_no_data(name: str) -> None:
    decoder = lzf if name == "lzf" else getattr(codecs, name)
    chance = np.random.default_rng(3)
    head = b"" if name in ("crc32c", "lzf", "fletcher32") else packed(name, b"x" * 100)[:9]
    for size in (0, 1, 3, 7, 20, 200):
        with pytest.raises(CodecError):
            codecs.unpack(head + chance.bytes(size), [decoder], 100)


def test_zstd_without_a_size_is_unpacked_to_exactly_what_is_expected() -> None:
    # Magic, no content size, window of 1 kB, one raw block of three bytes that is the last.
    frame = b"\x28\xb5\x2f\xfd\x00\x00" + (3 << 3 | 1).to_bytes(3, "little") + b"abc"
    assert bytes(codecs.unpack(frame, [codecs.zstd], 3)) == b"abc"
    for size in (2, 4, 100):
        with pytest.raises(CodecError):
            codecs.unpack(frame, [codecs.zstd], size)


@pytest.mark.parametrize("claimed", [101, 1 << 60])
def test_a_claim_of_more_than_expected_gets_no_memory(claimed: int) -> None:
    frame = b"\x28\xb5\x2f\xfd\xc0\x00" + claimed.to_bytes(8, "little") + b"\x01\x00\x00"
    with pytest.raises(CodecError, match="expected at most 100"):
        codecs.zstd(frame, 100)


def test_gzip_of_several_members_is_one_text() -> None:
    text = packed("gzip", b"ab") + packed("gzip", b"cd")
    assert codecs.unpack(text, [codecs.gzip], 4) == b"abcd"


@pytest.mark.parametrize("size", [0, 1, 2, 3, 10, 1001, 65_537, 300_000])
def test_filters_of_hdf5_are_undone_as_hdf5_does(tmp_path: Path, size: int) -> None:
    """The library packs, with the raw chunk read past its filters."""
    chance = np.random.default_rng(size)
    data = chance.integers(0, 4, size, dtype=np.uint8) if size % 2 else chance.bytes(size)
    data = np.frombuffer(bytes(data), np.uint8)
    if not size:
        return
    for options, decoder in (
        ({"fletcher32": True}, codecs.fletcher32),
        ({"compression": "lzf"}, lzf),
        ({"compression": "gzip"}, codecs.deflate),
    ):
        with h5py.File(tmp_path / "x.h5", "w") as file:
            dataset = file.create_dataset("x", data=data, chunks=(size,), **options)
            mask, raw = dataset.id.read_direct_chunk((0,))
        if not mask:
            assert bytes(codecs.unpack(raw, [decoder], size)) == data.tobytes()


def lzf_chunk(data: bytes) -> bytes:
    with h5py.File("x", "w", driver="core", backing_store=False) as file:
        rows = np.frombuffer(data, np.uint8)
        chunk = file.create_dataset("x", data=rows, chunks=rows.shape, compression="lzf")
        return bytes(chunk.id.read_direct_chunk((0,))[1])


def test_lzf_that_is_short_or_long_never_shows_what_the_memory_held() -> None:
    """HDF5's filter asks for memory until all fits, and takes less than a chunk for a chunk."""
    whole = lzf_chunk(bytes(range(100)) * 100)
    assert bytes(codecs.unpack(whole, [lzf], 10_000)) == bytes(range(100)) * 100
    for size in (0, 1, 9_999, 10_001, 1 << 20):
        with pytest.raises(CodecError):
            codecs.unpack(whole, [lzf], size)
    bomb = lzf_chunk(bytes(1 << 20))
    with pytest.raises(CodecError, match="more than 1,000 bytes"):
        lzf(bomb, 1000)
    for cut in (whole[:-1], whole[:1], whole + b"\x1f", b"\x20\xff", b"\xe0"):
        with pytest.raises(CodecError):
            codecs.unpack(cut, [lzf], 10_000)


def test_threads_unpack_lzf_together() -> None:
    data = [bytes([n]) * 5000 + bytes(range(250)) * n for n in range(1, 40)]
    packed = [lzf_chunk(each) for each in data]
    with ThreadPoolExecutor(4) as pool:
        unpacked = pool.map(lambda n: bytes(lzf(packed[n], len(data[n]))), list(range(39)) * 3)
        assert list(unpacked) == data * 3


def test_shuffled_bytes_that_are_no_whole_elements_are_unshuffled_as_hdf5_does(
    tmp_path: Path,
) -> None:
    """A checksum is shuffled with the rows where that filter came first, and leaves bytes over."""
    rows = np.random.default_rng(0).normal(size=37)
    with h5py.File(tmp_path / "x.h5", "w") as file:
        plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        plist.set_chunk((37,))
        plist.set_fletcher32()
        plist.set_shuffle()
        space = h5py.h5s.create_simple((37,))
        dataset = h5py.h5d.create(file.id, b"x", h5py.h5t.NATIVE_DOUBLE, space, plist)
        dataset.write(h5py.h5s.ALL, h5py.h5s.ALL, rows)
        raw = dataset.read_direct_chunk((0,))[1]
    decoders = [codecs.fletcher32, codecs.shuffle(8)]
    assert bytes(codecs.unpack(raw, decoders, 37 * 8)) == rows.tobytes()


@pytest.mark.parametrize("name", ["zarr: zstd", "zarr: other shards, gzip inside", "hdf5: lzf"])
def test_a_copy_in_another_layout_reads_the_same_from_a_place_that_is_no_disk(
    tmp_path: Path, name: str
) -> None:
    source, target = make(tmp_path, "logits", name)
    place = Memory.of(f"memory://theirs{target.suffix}", target)
    with fostore.open(source) as ours, fostore.open(place) as theirs:
        assert isinstance(theirs.reader, ForeignReader)
        np.testing.assert_array_equal(theirs.take(range(N)), ours.take(range(N)))
        assert theirs.verify() == []
