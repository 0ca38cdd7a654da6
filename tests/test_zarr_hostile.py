"""A Zarr store that is damaged or made by a stranger: named, refused, never followed, never paid for with memory."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import zarr

from fostore import disk
from fostore.errors import (
    ArgumentError,
    DamageError,
    FormatError,
    FostoreError,
    UnsafeError,
    UnsupportedError,
)
from fostore.formats.zarr import FORMAT
from fostore.schema.ranges import Ranges
from units import UNIT, Filler, edit, full_store, header_of

N = 2 * UNIT + 700

pytestmark = pytest.mark.usefixtures("fast_disk")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store.zarr"


@pytest.fixture
def filler(path: Path) -> Iterator[Filler]:
    writer = FORMAT.create(path, header_of("many columns", N))
    yield Filler(writer)
    writer.close()


# Damage


@pytest.mark.parametrize(
    ("file", "words", "rows"),
    [
        ("logits/c/1/0", "bytes, expected", (UNIT, 2 * UNIT)),
        ("logsumexp/c/2", "bytes, expected", (2 * UNIT, N)),
        ("block_hashes/c/1/0/0", "bytes, expected", None),
    ],
)
def test_a_cut_file_is_named(path: Path, file: str, words: str, rows: Any) -> None:
    full_store(path, "many columns", N)
    os.truncate(path / file, (path / file).stat().st_size - 1)
    (finding,) = FORMAT.open(path).findings()
    assert finding.rows == rows
    assert words in finding.message


@pytest.mark.parametrize("name", ["logits", "input_hash"])
def test_missing_units_are_named_as_a_range(path: Path, name: str) -> None:
    full_store(path, "many columns", 5 * UNIT)
    for unit in (1, 2):
        disk.remove(path / name / "c" / str(unit))
    (finding,) = FORMAT.open(path).findings()
    assert finding.rows == (UNIT, 3 * UNIT)
    assert name in finding.message
    with pytest.raises(DamageError) as caught:
        FORMAT.open(path).column(0 if name == "logits" else 3)
    assert caught.value.rows == ((UNIT, 2 * UNIT),)


@pytest.mark.parametrize("at", [-1, -4, -20])
def test_a_damaged_index_is_found(path: Path, at: int) -> None:
    full_store(path, "bits", N)
    shard = path / "probs" / "c" / "1" / "0"
    data = bytearray(shard.read_bytes())
    data[at] ^= 1
    shard.write_bytes(bytes(data))
    (finding,) = FORMAT.open(path).findings()
    assert finding.rows == (UNIT, 2 * UNIT)
    assert "index" in finding.message


def test_files_that_are_no_part_of_the_store_are_named(path: Path) -> None:
    full_store(path, "one column", N)
    strange = [
        "extra",
        "probs/notes.txt",
        "probs/c/03",
        "probs/c/x",
        "block_hashes/old",
        "probs/.tail.1",
    ]
    for name in strange:
        (path / name).write_bytes(b"")
    shutil.copytree(path / "probs" / "c" / "0", path / "probs" / "c" / "9")
    found = {finding.message for finding in FORMAT.open(path).findings()}
    assert len(found) == len(strange) + 1
    for name in [*strange, "probs/c/9"]:
        assert any(f"{path / name}" in message for message in found), name


def test_committed_rows_whose_tail_was_cut_are_named(path: Path, filler: Filler) -> None:
    filler.commit(0, 10)
    filler.commit(10, 20)
    filler.writer.close()
    os.truncate(path / "logsumexp" / ".tail.0", 15 * 4)
    reader = FORMAT.open(path)
    (finding,) = reader.findings()
    assert finding.rows == (10, 20)
    assert reader.column(0).read(0, 20).shape == (20, 10)
    with pytest.raises(DamageError, match="cut"):
        reader.column(1)
    writer = FORMAT.resume(path)
    with pytest.raises(DamageError, match="cut"):
        writer.read(1, 10, 20)
    writer.close()


# Strangers


def refused(path: Path, kind: type[FostoreError]) -> str:
    with pytest.raises(kind) as caught:
        FORMAT.open(path)
    with pytest.raises(kind):
        FORMAT.resume(path)
    return str(caught.value)


@pytest.mark.parametrize(
    "place",
    [
        "zarr.json",
        "probs",
        "probs/zarr.json",
        "block_hashes",
        "probs/c",
        "probs/c/1",
        "probs/c/1/0",
        "block_hashes/c",
        "block_hashes/c/0/0/0",
    ],
)
def test_no_link_is_followed(path: Path, tmp_path: Path, place: str) -> None:
    full_store(path, "one column", N)
    moved = tmp_path / "elsewhere"
    (path / place).rename(moved)
    (path / place).symlink_to(moved)
    found: list[FostoreError] = []
    messages: list[str] = []
    try:
        reader = FORMAT.open(path)
        messages += [finding.message for finding in reader.findings()]
        for use in (lambda: reader.column(0), reader.block_hashes):
            try:
                use()
            except FostoreError as error:
                found.append(error)
    except FostoreError as error:
        found.append(error)
    assert [type(error) for error in found] == [UnsafeError]
    assert str(path / place) in str(found[0])


def test_a_link_in_the_place_of_a_tail_is_not_followed(
    path: Path, tmp_path: Path, filler: Filler
) -> None:
    filler.commit(0, 10)
    filler.writer.close()
    tail = path / "logits" / ".tail.0"
    tail.rename(tmp_path / "elsewhere")
    tail.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UnsafeError):
        FORMAT.open(path).column(0)
    writer = FORMAT.resume(path)
    with pytest.raises(UnsafeError):
        writer.read(0, 0, 10)
    with pytest.raises(UnsafeError):
        Filler(writer).write(10, 20)
    writer.close()


def test_a_pipe_does_not_hang_the_reader(path: Path) -> None:
    full_store(path, "one column", N)
    for place in ("probs/c/0/0", "probs/zarr.json", "zarr.json"):
        (path / place).unlink()
        os.mkfifo(path / place)
        with pytest.raises(UnsafeError, match="regular file"):
            FORMAT.open(path).column(0)


Edit = Callable[[Any], None]


def codec(name: str) -> Edit:
    return lambda v: v["codecs"][0]["configuration"]["codecs"].append({"name": name})


ARRAY_EDITS: dict[str, tuple[Edit, type[FostoreError], str]] = {
    "a foreign codec": (codec("numcodecs.lzma"), UnsupportedError, "'numcodecs.lzma'"),
    "a plugin": (lambda v: v.update(codecs=["my.plugin"]), UnsupportedError, "my.plugin"),
    "a transformer": (
        lambda v: v.update(storage_transformers=[{"name": "x"}]),
        UnsupportedError,
        "transformers",
    ),
    "an extension": (lambda v: v.update(future={"name": "x"}), UnsupportedError, "future"),
    "a huge shape": (lambda v: v.update(shape=[1 << 62, 3]), FormatError, "shape"),
    "rows beyond the plan": (lambda v: v.update(shape=[N + 1, 3]), FormatError, f"probs {N + 1}"),
    "fewer rows": (lambda v: v.update(shape=[N - 1, 3]), FormatError, f"probs {N - 1}"),
    "other classes": (lambda v: v.update(shape=[N, 4]), FormatError, "shape"),
    "a negative shape": (lambda v: v.update(shape=[-1, 3]), FormatError, "shape"),
    "a shape of floats": (lambda v: v.update(shape=[float(N), 3]), FormatError, "shape"),
    "another dtype": (lambda v: v.update(data_type="float64"), FormatError, "data_type"),
    "an object dtype": (lambda v: v.update(data_type="object"), FormatError, "data_type"),
    "other chunks": (
        lambda v: v["chunk_grid"]["configuration"].update(chunk_shape=[64, 3]),
        FormatError,
        "chunk_grid",
    ),
    "chunks of floats": (
        lambda v: v["chunk_grid"]["configuration"].update(chunk_shape=[float(UNIT), 3]),
        FormatError,
        "chunk_grid",
    ),
    "other keys": (
        lambda v: v.update(chunk_key_encoding={"name": "fanout"}),
        FormatError,
        "chunk_key_encoding",
    ),
    "no codecs": (lambda v: v.pop("codecs"), FormatError, "codecs"),
    "depth": (
        lambda v: v.update(codecs=json.loads("[" * 900 + "]" * 900)),
        FormatError,
        "probs",
    ),
}


@pytest.mark.parametrize("name", ARRAY_EDITS)
def test_an_array_of_another_layout_is_refused_by_name(path: Path, name: str) -> None:
    change, kind, words = ARRAY_EDITS[name]
    full_store(path, "one column", N)
    edit(path / "probs" / "zarr.json", change)
    assert words in refused(path, kind)


def rename_column(name: str) -> Edit:
    return lambda v: v["attributes"]["fostore"]["columns"][0].update(name=name)


GROUP_EDITS: dict[str, tuple[Edit, type[FostoreError], str]] = {
    "a path for a name": (rename_column("../../etc"), FormatError, "../../etc"),
    "an absolute name": (rename_column("/etc"), FormatError, "/etc"),
    "the hashes' name": (rename_column("block_hashes"), FormatError, "block_hashes"),
    "a column that is not there": (rename_column("other"), FormatError, "'other'"),
    "an array for a group": (lambda v: v.update(node_type="array"), FormatError, "group"),
    "Zarr 2": (lambda v: v.update(zarr_format=2), FormatError, "v3"),
    "an extension": (lambda v: v.update(future={"name": "x"}), UnsupportedError, "future"),
    "no header": (lambda v: v.update(attributes={}), FormatError, "fostore"),
    "an id that is no UUID": (
        lambda v: v["attributes"]["fostore"].update(id="../x"),
        FormatError,
        "UUID",
    ),
    "more rows than arrays": (
        lambda v: v["attributes"]["fostore"].update(num_samples=N + 1),
        FormatError,
        f"probs {N}",
    ),
}


@pytest.mark.parametrize("name", GROUP_EDITS)
def test_a_header_that_cannot_be_ours_is_refused(path: Path, name: str) -> None:
    change, kind, words = GROUP_EDITS[name]
    full_store(path, "one column", N)
    edit(path / "zarr.json", change)
    assert words in refused(path, kind)


@pytest.mark.parametrize(
    "text",
    [
        b'{"zarr_format": 3, "zarr_format": 3}',
        b"[" * 1_000_000,
        b'{"a":' * 50_000,
        b'{"zarr_format": NaN}',
        b"\xff\xfe",
        b"",
        b"1" * 5000,
    ],
    ids=["twice", "deep list", "deep object", "NaN", "not UTF-8", "empty", "long number"],
)
def test_ambiguous_or_hostile_json_is_refused(path: Path, text: bytes) -> None:
    for file in ("zarr.json", "probs/zarr.json", "block_hashes/zarr.json"):
        shutil.rmtree(path, ignore_errors=True)
        full_store(path, "one column", N)
        (path / file).write_bytes(text)
        assert file in refused(path, FormatError)


def test_metadata_beyond_the_limit_is_not_read(path: Path) -> None:
    full_store(path, "one column", N)
    os.truncate(path / "probs" / "zarr.json", 1 << 40)
    assert "bytes, expected at most" in refused(path, UnsafeError)


def test_metadata_that_readers_would_not_take_is_not_written(path: Path) -> None:
    header = replace(header_of("one column", N), meta={"x": "y" * (8 << 20)})
    with pytest.raises(ArgumentError, match=r"metadata and identity take 8,388,\d+ and"):
        FORMAT.create(path, header)


def test_a_claim_of_rows_costs_no_memory(path: Path) -> None:
    """2**52 rows in the metadata, none on disk: refused or reported at once."""
    full_store(path, "one column", 0)
    rows = 1 << 52
    edit(path / "zarr.json", lambda v: v["attributes"]["fostore"].update(num_samples=rows))
    edit(path / "probs" / "zarr.json", lambda v: v.update(shape=[rows, 3]))
    edit(path / "block_hashes" / "zarr.json", lambda v: v.update(shape=[rows // 1024, 1, 32]))
    reader = FORMAT.open(path)
    with pytest.raises(DamageError):
        reader.column(0)
    with pytest.raises(UnsafeError):
        reader.block_hashes()
    assert [finding.rows for finding in reader.findings()][:1] == [(0, rows)]


def test_metadata_that_zarr_python_wrote_again_is_still_ours(path: Path) -> None:
    full_store(path, "many columns", N)
    group: Any = zarr.open_group(path, mode="r+")
    group.attrs["more"] = {"of": "somebody"}
    with pytest.warns(zarr.errors.ZarrUserWarning):
        zarr.consolidate_metadata(path)
    for _, array in zarr.open_group(path, mode="r+", use_consolidated=False).arrays():
        array.attrs["note"] = "x"
    reader = FORMAT.open(path)
    assert reader.committed == Ranges.of((0, N))
    assert list(reader.findings()) == []
