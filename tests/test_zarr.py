"""The Zarr format: plain readers see what we see at every moment, and a stranger's folder is given nothing."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorstore
import zarr
from zarr.codecs import BytesCodec, Crc32cCodec, ShardingCodec

from fostore import disk
from fostore.errors import (
    ArgumentError,
    DamageError,
    FormatError,
    FostoreError,
    UnsafeError,
    UnsupportedError,
)
from fostore.formats import Run
from fostore.formats.zarr import FORMAT
from fostore.formats.zarr_layout import Shards
from fostore.formats.zarr_tails import MAX_OPEN
from fostore.ranges import Ranges
from units import SHAPES, UNIT, Filler, column_rows, full_store, header_of

N = 2 * UNIT + 700


@pytest.fixture(autouse=True)
def fast_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a sync does shows after a power cut only; waiting for it takes most of the time."""
    for name in ("sync_data", "sync_directory"):
        monkeypatch.setattr(disk, name, lambda _: None)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store.zarr"


@pytest.fixture
def filler(path: Path) -> Iterator[Filler]:
    writer = FORMAT.create(path, header_of("many columns", N))
    yield Filler(writer)
    writer.close()


def plain(path: Path, name: str) -> tuple[np.ndarray, np.ndarray]:
    """A column as zarr-python and as tensorstore read it."""
    group: Any = zarr.open_group(path, mode="r")
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(path / name)}}
    array = tensorstore.open(spec, read=True).result()
    return np.asarray(group[name][...]), np.asarray(array.read().result())


def assert_plain(path: Path, rows: int) -> None:
    """Plain readers see exactly the first `rows` rows of every column, bit by bit, without a warning."""
    header = FORMAT.open(path).header
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        names = {name for name, _ in zarr.open_group(path, mode="r").members()}
    assert names == {"block_hashes", *(column.name for column in header.schema.columns)}
    for column in header.schema.columns:
        expected = column_rows(column, 0, rows)
        for seen in plain(path, column.name):
            assert seen.dtype == column.numpy_dtype
            np.testing.assert_array_equal(seen, expected)


def edit(file: Path, change: Callable[[Any], None]) -> None:
    """Change a JSON file as a stranger would."""
    value = json.loads(file.read_text())
    change(value)
    file.write_text(json.dumps(value))


# Plain readers


@pytest.mark.parametrize("shape", SHAPES)
def test_plain_readers_read_every_shape(path: Path, shape: str) -> None:
    header = full_store(path, shape, N)
    assert_plain(path, N)
    group: Any = zarr.open_group(path, mode="r")
    assert group.attrs["fostore"]["id"] == header.id
    assert group.attrs["meta"] == {"note": "äß"}
    for column in header.schema.columns:
        assert group[column.name].metadata.dimension_names == ("sample", *column.axes)


def test_plain_readers_see_sealed_rows_at_every_moment(path: Path, filler: Filler) -> None:
    assert_plain(path, 0)
    filler.commit(0, UNIT + 5)
    assert_plain(path, 0)
    filler.seal(0)
    assert_plain(path, UNIT)
    filler.commit(2 * UNIT, N)
    filler.seal(2)
    assert_plain(path, UNIT)  # a hole: what lies behind it does not show
    filler.commit(UNIT + 5, 2 * UNIT)
    filler.seal(1)
    assert_plain(path, N)
    filler.finish(N)
    assert_plain(path, N)
    hashes, same = plain(path, "block_hashes")
    np.testing.assert_array_equal(hashes, FORMAT.open(path).block_hashes())
    np.testing.assert_array_equal(hashes, same)


def test_plain_readers_never_lose_rows_of_a_store_that_goes_on(path: Path) -> None:
    header = full_store(path, "many columns", N)
    filler = Filler(FORMAT.resume(path))
    filler.writer.replan(replace(header, num_samples=4 * UNIT, sealed=False, digest=None))
    assert_plain(path, N)
    filler.commit(N, 3 * UNIT)
    assert_plain(path, N)
    filler.seal(2)
    assert_plain(path, 3 * UNIT)
    filler.commit(3 * UNIT, 4 * UNIT)
    filler.finish(4 * UNIT)
    assert_plain(path, 4 * UNIT)


@pytest.mark.parametrize("rows", [UNIT, UNIT - 300, 1])
@pytest.mark.parametrize("shape", SHAPES)
def test_shards_are_byte_for_byte_those_of_zarr_python(
    path: Path, tmp_path: Path, shape: str, rows: int
) -> None:
    header = full_store(path, shape, rows)
    for column in header.schema.columns:
        layout = Shards.of(column, header)
        ours = FORMAT.open(path)
        metadata = layout.metadata(rows)
        theirs = zarr.create(
            store=str(tmp_path / "theirs" / column.name),
            shape=(rows, *column.shape),
            chunks=(header.unit_rows, *column.shape),
            dtype=column.numpy_dtype,
            codecs=[
                ShardingCodec(
                    chunk_shape=(layout.inner_rows, *column.shape),
                    codecs=[BytesCodec()],
                    index_codecs=[BytesCodec(), Crc32cCodec()],
                )
            ],
            fill_value=np.nan if column.numpy_dtype.kind == "f" else metadata["fill_value"],
            zarr_format=3,
        )
        theirs[...] = column_rows(column, 0, rows)
        key = layout.key(0)
        one, other = path / column.name / key, tmp_path / "theirs" / column.name / key
        assert one.read_bytes() == other.read_bytes()
        ours.close()


def test_a_lost_unit_reads_as_nan_in_plain_readers(path: Path) -> None:
    full_store(path, "one column", N)
    shutil.rmtree(path / "probs" / "c" / "1")
    for seen in plain(path, "probs"):
        assert np.isnan(seen[UNIT : 2 * UNIT]).all()
        assert not np.isnan(seen[:UNIT]).any()


def test_the_last_shard_is_as_short_as_its_rows(path: Path) -> None:
    full_store(path, "bits", UNIT + 300)  # 250 classes of 2 bytes: inner chunks of 512 rows
    sizes = [(path / "probs" / "c" / unit / "0").stat().st_size for unit in "01"]
    assert sizes == [UNIT * 500 + 4 * 16 + 4, 512 * 500 + 4 * 16 + 4]


# Files


def test_a_finished_store_holds_nothing_of_the_run(path: Path) -> None:
    full_store(path, "many columns", N)
    files = {str(file.relative_to(path)) for file in path.rglob("*") if file.is_file()}
    expected = {"zarr.json", "block_hashes/zarr.json"}
    for unit in range(3):
        expected |= {f"logits/c/{unit}/0", f"logsumexp/c/{unit}", f"sample_id/c/{unit}/0"}
        expected |= {f"input_hash/c/{unit}", f"block_hashes/c/{unit}/0/0"}
    expected |= {f"{n}/zarr.json" for n in ("logits", "logsumexp", "sample_id", "input_hash")}
    assert files == expected


def test_a_run_in_progress_lies_inside_the_column_folders(path: Path, filler: Filler) -> None:
    filler.commit(0, 10)
    assert {entry.name for entry in path.iterdir()} == {
        "zarr.json",
        "block_hashes",
        *(column.name for column in filler.header.schema.columns),
    }
    assert (path / "logits" / ".fostore.journal.main").stat().st_size == 128 + 40
    assert all((path / c.name / ".tail.0").exists() for c in filler.header.schema.columns)


def test_rows_of_many_units_keep_few_files_open(path: Path) -> None:
    units = MAX_OPEN + 10
    filler = Filler(FORMAT.create(path, header_of("one column", units * UNIT)))
    runs = [run for unit in range(units) for run in filler.write(unit * UNIT, unit * UNIT + 2)]
    tails = [link for link in Path("/proc/self/fd").iterdir() if ".tail." in str(link.resolve())]
    assert len(tails) <= MAX_OPEN
    filler.writer.sync()
    filler.writer.commit(runs)
    for unit in range(units):
        runs = filler.write(unit * UNIT + 2, unit * UNIT + 3)
    filler.writer.close()
    reader = FORMAT.open(path)
    assert len(reader.committed) == 2 * units
    np.testing.assert_array_equal(
        reader.column(0).read((units - 1) * UNIT, (units - 1) * UNIT + 2),
        filler.rows((units - 1) * UNIT, (units - 1) * UNIT + 2)[0],
    )


def test_a_stream_needs_no_plan(path: Path) -> None:
    filler = Filler(FORMAT.create(path, header_of("one column", None)))
    filler.commit(0, UNIT + 9)
    filler.seal(0)
    assert FORMAT.open(path).header.num_samples is None
    filler.writer.close()
    filler = Filler(FORMAT.resume(path))
    filler.commit(UNIT + 9, 2 * UNIT + 9)
    filler.finish(2 * UNIT + 9)
    reader = FORMAT.open(path)
    assert reader.committed == Ranges.of((0, 2 * UNIT + 9))
    assert list(reader.findings()) == []
    assert_plain(path, 2 * UNIT + 9)


def test_opening_costs_no_more_for_a_billion_rows(path: Path) -> None:
    """Sealed by hand, without the rows: opening must not look for them."""
    full_store(path, "one column", 0)
    rows = 1_000_000_000
    edit(path / "zarr.json", lambda v: v["attributes"]["fostore"].update(num_samples=rows))
    edit(path / "probs" / "zarr.json", lambda v: v.update(shape=[rows, 3]))
    edit(path / "block_hashes" / "zarr.json", lambda v: v.update(shape=[-(-rows // 1024), 1, 32]))
    FORMAT.open(path)
    best = min(_seconds(lambda: FORMAT.open(path)) for _ in range(20))
    assert best < 0.01
    with pytest.raises(DamageError, match="rows 0 to 2047"):
        FORMAT.open(path).column(0)
    assert sum(1 for _ in FORMAT.open(path).findings()) < 10


def _seconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def test_zarr_python_is_never_imported(path: Path) -> None:
    script = f"""\
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from pathlib import Path
from units import full_store, Filler
from fostore.formats.zarr import FORMAT
path = Path({str(path)!r})
full_store(path, "many columns", 5000)
FORMAT.resume(path).close()
reader = FORMAT.open(path)
reader.column(0).take(reader.column(3).array[:0].astype("i8"))
assert list(reader.findings()) == []
assert not {{"zarr", "numcodecs", "h5py", "tensorstore"}} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# Kills


def crash_at(patch: pytest.MonkeyPatch, name: str, when: Callable[..., bool]) -> None:
    """Let `disk.name` raise once `when` says so of its arguments."""
    call = getattr(disk, name)

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        if when(*args):
            raise KeyboardInterrupt
        return call(*args, **kwargs)

    patch.setattr(disk, name, wrapped)


@pytest.mark.parametrize("column", ["logits", "logsumexp", "sample_id", "input_hash"])
def test_a_unit_sealed_in_some_columns_only_is_healed(
    path: Path, filler: Filler, column: str
) -> None:
    filler.commit(0, UNIT)
    with pytest.MonkeyPatch.context() as patch:
        crash_at(patch, "rename", lambda source, _: source == path / column / ".tail.0")
        with pytest.raises(KeyboardInterrupt):
            filler.seal(0)
    filler.writer.close()
    assert_plain(path, 0)
    reader = FORMAT.open(path)
    assert reader.committed == Ranges.of((0, UNIT))
    assert list(reader.findings()) == []
    for index, expected in enumerate(filler.rows(0, UNIT)):
        np.testing.assert_array_equal(reader.column(index).array, expected)
    healed = Filler(FORMAT.resume(path))
    assert not healed.writer.sealed
    assert [(run.start, run.stop) for run in healed.writer.runs] == [(0, UNIT)]
    healed.seal(0)
    assert healed.writer.sealed == Ranges.of((0, UNIT))
    healed.writer.close()
    assert_plain(path, UNIT)


@pytest.mark.parametrize("array", ["logits", "logsumexp", "block_hashes"])
def test_rows_that_were_sealed_and_not_shown_are_shown_on_resume(
    path: Path, filler: Filler, array: str
) -> None:
    filler.commit(0, UNIT)
    with pytest.MonkeyPatch.context() as patch:
        crash_at(patch, "write_whole", lambda file, _: file == path / array / "zarr.json")
        with pytest.raises(KeyboardInterrupt):
            filler.seal(0)
    filler.writer.close()
    assert FORMAT.open(path).committed == Ranges.of((0, UNIT))
    writer = FORMAT.resume(path)
    assert writer.sealed == Ranges.of((0, UNIT))
    assert writer.runs == ()
    writer.close()
    assert_plain(path, UNIT)
    assert zarr.open_group(path, mode="r")["block_hashes"].shape[0] == 2


def test_a_kill_before_the_journal_goes_leaves_a_sealed_store(path: Path, filler: Filler) -> None:
    filler.commit(0, N)
    with pytest.MonkeyPatch.context() as patch:
        crash_at(patch, "remove", lambda file: ".fostore" in file.name)
        with pytest.raises(KeyboardInterrupt):
            filler.finish(N)
    filler.writer.close()
    reader = FORMAT.open(path)
    assert reader.header.sealed
    assert reader.committed == Ranges.of((0, N))
    (left,) = reader.findings()
    assert "was left by a run that is over" in left.message
    FORMAT.resume(path).close()
    assert list(FORMAT.open(path).findings()) == []


def test_hashes_that_a_kill_made_longer_do_not_accuse_published_rows(path: Path) -> None:
    """Sealing a unit again replaces its hashes first; its old rows must be checked by something else."""
    header = full_store(path, "one column", UNIT + 100)
    filler = Filler(FORMAT.resume(path))
    filler.writer.replan(replace(header, num_samples=2 * UNIT, sealed=False, digest=None))
    filler.commit(UNIT + 100, 2 * UNIT)
    with pytest.MonkeyPatch.context() as patch:
        crash_at(patch, "rename", lambda source, _: source.name == ".tail.1")
        with pytest.raises(KeyboardInterrupt):
            filler.seal(1)
    filler.writer.close()
    writer = FORMAT.resume(path)
    assert [(run.start, run.stop) for run in writer.runs] == [
        (UNIT, UNIT + 100),
        (UNIT + 100, 2 * UNIT),
    ]
    assert all(run.crc is not None for run in writer.runs)
    assert not writer.hashes(1).any()
    writer.close()
    reader = FORMAT.open(path)
    assert not reader.block_hashes()[2:].any()
    assert reader.block_hashes()[:2].any()


def test_a_failed_commit_leaves_no_half_of_it(path: Path, filler: Filler) -> None:
    filler.commit(0, 10)
    runs = [Run(10 + i, 11 + i, 7) for i in range(4)]
    write_at = disk.write_at

    def half(fd: int, data: Any, offset: int) -> None:
        write_at(fd, memoryview(data)[:100], offset)
        raise OSError("full")

    filler.write(10, 14)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(disk, "write_at", half)
        with pytest.raises(OSError, match="full"):
            filler.writer.commit(runs)
    assert FORMAT.open(path).committed == Ranges.of((0, 10))
    filler.commit(10, 12)
    assert FORMAT.open(path).committed == Ranges.of((0, 12))
    filler.writer.close()
    FORMAT.resume(path).close()


def test_after_a_failed_sync_nothing_is_committed(path: Path, filler: Filler) -> None:
    """The system may drop what it could not write and report success from then on."""
    filler.write(0, 10)
    with pytest.MonkeyPatch.context() as patch:
        crash = OSError(5, "lost")
        patch.setattr(disk, "sync_data", lambda fd: (_ for _ in ()).throw(crash))
        with pytest.raises(OSError, match="lost"):
            filler.writer.sync()
    with pytest.raises(OSError, match="lost"):
        filler.writer.sync()
    filler.writer.close()
    filler = Filler(FORMAT.resume(path))
    assert filler.writer.runs == ()
    filler.commit(0, 10)
    filler.writer.close()


def test_leftovers_of_a_killed_run_are_removed_on_resume(path: Path, filler: Filler) -> None:
    filler.commit(0, 10)
    filler.write(UNIT, UNIT + 10)
    filler.writer.close()
    for left in (".zarr.json.tmp", "logits/.zarr.json.tmp", "logsumexp/.tail.7.tmp"):
        (path / left).write_bytes(b"x")
    FORMAT.resume(path).close()
    names = {entry.name for entry in path.rglob("*")}
    assert not {name for name in names if name.endswith(".tmp")}
    assert ".tail.0" in names
    assert ".tail.1" not in names


def test_a_store_copied_without_hidden_files_is_not_resumed(path: Path, filler: Filler) -> None:
    filler.commit(0, UNIT + 5)
    filler.seal(0)
    filler.writer.close()
    (path / "logits" / ".fostore.journal.main").unlink()
    with pytest.raises(DamageError, match="no journal"):
        FORMAT.resume(path)
    reader = FORMAT.open(path)
    assert reader.committed == Ranges.of((0, UNIT))
    assert any("no journal" in finding.message for finding in reader.findings())


def test_a_damaged_journal_shows_what_is_sound_and_is_not_resumed(
    path: Path, filler: Filler
) -> None:
    for start in range(0, 50, 10):
        filler.commit(start, start + 10)
    filler.writer.close()
    journal = path / "logits" / ".fostore.journal.main"
    data = bytearray(journal.read_bytes())
    data[128 + 40 + 5] ^= 1
    journal.write_bytes(bytes(data))
    reader = FORMAT.open(path)
    assert reader.committed == Ranges.of((0, 10), (20, 50))
    assert any("record 1 is damaged" in finding.message for finding in reader.findings())
    with pytest.raises(DamageError, match="record 1 is damaged"):
        FORMAT.resume(path)


def test_the_journal_of_another_store_is_refused(
    path: Path, tmp_path: Path, filler: Filler
) -> None:
    other = Filler(FORMAT.create(tmp_path / "other.zarr", header_of("many columns", N)))
    other.commit(0, 10)
    other.writer.close()
    filler.writer.close()
    name = "logits/.fostore.journal.main"
    shutil.copy(tmp_path / "other.zarr" / name, path / name)
    with pytest.raises(DamageError, match="another store"):
        FORMAT.resume(path)
    assert not FORMAT.open(path).committed


# What the writer refuses


def test_rows_that_do_not_fit_are_refused(filler: Filler) -> None:
    (logits, *_), writer = filler.rows(0, 2), filler.writer
    for start, rows in (
        (UNIT - 1, logits),  # straddles a unit
        (N - 1, logits),  # beyond the plan
        (-2, logits),
        (0, logits[:, 1:]),
        (0, logits.astype(np.float64)),
    ):
        with pytest.raises(ArgumentError):
            writer.write(0, start, rows)


def test_a_replan_keeps_what_rows_are(path: Path, filler: Filler) -> None:
    filler.commit(0, UNIT)
    changes: list[dict[str, Any]] = [
        {"sealed": True},
        {"digest": "blake3:00"},
        {"id": "00000000-0000-0000-0000-000000000000"},
        {"unit_rows": 2 * UNIT},
        {"num_samples": UNIT - 1},
        {"schema": replace(filler.header.schema, temperature=2.0)},
    ]
    for change in changes:
        with pytest.raises(ArgumentError):
            filler.writer.replan(replace(filler.header, **change))
    assert FORMAT.open(path).header == filler.header


def test_a_sealed_unit_takes_no_rows_and_an_unwritten_one_no_seal(filler: Filler) -> None:
    filler.commit(0, UNIT + 5)
    filler.seal(0)
    with pytest.raises(ArgumentError, match="never changes"):
        filler.write(3, 4)
    with pytest.raises(ArgumentError, match="not committed"):
        filler.seal(1)
    with pytest.raises(ArgumentError, match="hashes"):
        filler.writer.seal(1, 5, filler.hashes(0, UNIT))


def test_a_sealed_store_takes_rows_after_a_replan_only(path: Path) -> None:
    full_store(path, "one column", N)
    filler = Filler(FORMAT.resume(path))
    before = {file: file.stat().st_mtime_ns for file in path.rglob("*")}
    with pytest.raises(ArgumentError, match="replan it first"):
        filler.write(N - 1, N)
    with pytest.raises(ArgumentError, match="replan it first"):
        filler.writer.commit([Run(N - 1, N, 0)])
    filler.writer.close()
    assert {file: file.stat().st_mtime_ns for file in path.rglob("*")} == before


def test_no_column_takes_the_place_of_the_hashes(path: Path) -> None:
    header = header_of("many columns", N)
    columns = (*header.schema.columns[:-1], replace(header.schema.columns[-1], name="block_hashes"))
    with pytest.raises(ArgumentError, match="block_hashes"):
        FORMAT.create(path, replace(header, schema=replace(header.schema, columns=columns)))
    assert not path.exists()


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
        with pytest.raises(UnsafeError, match="no regular file"):
            FORMAT.open(path).column(0)


Edit = Callable[[Any], None]


def codec(name: str) -> Edit:
    return lambda v: v["codecs"][0]["configuration"]["codecs"].append({"name": name})


ARRAY_EDITS: dict[str, tuple[Edit, type[FostoreError], str]] = {
    "a foreign codec": (codec("gzip"), UnsupportedError, "'gzip'"),
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
    "big endian": (
        lambda v: v["codecs"][0]["configuration"]["codecs"][0].update(
            configuration={"endian": "big"}
        ),
        FormatError,
        "codecs",
    ),
    "an index at the start": (
        lambda v: v["codecs"][0]["configuration"].update(index_location="start"),
        FormatError,
        "codecs",
    ),
    "other chunks": (
        lambda v: v["chunk_grid"]["configuration"].update(chunk_shape=[64, 3]),
        FormatError,
        "chunk_grid",
    ),
    "other keys": (
        lambda v: v.update(chunk_key_encoding={"name": "v2"}),
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
        lambda v: v["attributes"]["fostore"].update(id="../x", sealed=False),
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
    if "UUID" in name:
        (path / "probs" / ".fostore.journal.main").write_bytes(b"")
    edit(path / "zarr.json", change)
    if "UUID" in name:
        with pytest.raises(FostoreError):
            FORMAT.resume(path)
        assert not [f for f in FORMAT.open(path).findings() if f.rows]
    else:
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
    header = replace(header_of("one column", N), meta={"x": "y" * (64 << 20)})
    with pytest.raises(ArgumentError, match="metadata takes"):
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
