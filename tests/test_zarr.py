"""The Zarr format: plain readers see what we see at every moment, and a stranger's folder is given nothing."""

from __future__ import annotations

import json
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
)
from fostore.formats import Run, WholeUnit
from fostore.formats.zarr import FORMAT
from fostore.formats.zarr import reader as zarr_reader
from fostore.formats.zarr.layout import Hashes, Shards, parse_array
from fostore.formats.zarr.tails import _MAX_OPEN
from fostore.schema.ranges import Ranges
from units import SHAPES, UNIT, Filler, column_rows, edit, full_store, header_of

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
    filler.commit(3 * UNIT, 4 * UNIT)
    filler.seal(3)
    assert_plain(path, N)
    filler.seal(2)
    assert_plain(path, 4 * UNIT)
    filler.finish(4 * UNIT)
    assert_plain(path, 4 * UNIT)


@pytest.mark.parametrize("shape", SHAPES)
def test_our_own_metadata_is_known_by_its_bytes(
    path: Path, shape: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    header = full_store(path, shape, N)
    layouts = [*(Shards.of(column, header) for column in header.schema.columns), Hashes.of(header)]
    texts = [(path / layout.name / "zarr.json").read_bytes() for layout in layouts]
    for text in texts:
        assert text == json.dumps(json.loads(text), indent=2, ensure_ascii=False).encode()
    compact = [json.dumps(json.loads(text)).encode() for text in texts]
    sizes = [parse_array(text, layout, "") for text, layout in zip(compact, layouts, strict=True)]
    assert sizes == [N] * len(header.schema.columns) + [-(-N // header.block_rows)]
    monkeypatch.setattr(json, "loads", None)
    assert [parse_array(t, layout, "") for t, layout in zip(texts, layouts, strict=True)] == sizes


@pytest.mark.parametrize("rows", [UNIT, UNIT - 300, 1])
@pytest.mark.parametrize("shape", SHAPES)
def test_shards_are_byte_for_byte_those_of_zarr_python(
    path: Path, tmp_path: Path, shape: str, rows: int
) -> None:
    header = full_store(path, shape, rows)
    for column in header.schema.columns:
        layout = Shards.of(column, header)
        ours = FORMAT.open(path)
        metadata = json.loads(layout.text(rows))
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
        key = layout.key(0).removeprefix(f"{column.name}/")
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
    units = _MAX_OPEN + 10
    filler = Filler(FORMAT.create(path, header_of("one column", units * UNIT)))
    runs = [run for unit in range(units) for run in filler.write(unit * UNIT, unit * UNIT + 2)]
    tails = [link for link in Path("/proc/self/fd").iterdir() if ".tail." in str(link.resolve())]
    assert len(tails) <= _MAX_OPEN
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


def test_a_unit_that_is_sealed_while_it_is_mapped_is_found_again(
    path: Path, filler: Filler, monkeypatch: pytest.MonkeyPatch
) -> None:
    filler.commit(0, N)
    reader = FORMAT.open(path)
    view_of = zarr_reader.view_of
    units = iter(range(3))

    def seal_and_map(*args: Any) -> Any:
        if (unit := next(units, None)) is not None:
            filler.seal(unit)
        return view_of(*args)

    monkeypatch.setattr(zarr_reader, "view_of", seal_and_map)
    np.testing.assert_array_equal(reader.column(0).array, filler.rows(0, N)[0])


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


def test_a_short_shard_as_large_as_a_full_one_is_not_taken_for_it(path: Path) -> None:
    """One inner chunk a unit: 2,000 rows take the bytes of 2,048, and the tail has what is new."""
    header = full_store(path, "one column", 2000)
    filler = Filler(FORMAT.resume(path))
    filler.writer.replan(replace(header, num_samples=UNIT, sealed=False, digest=None))
    filler.commit(2000, UNIT)
    filler.writer.close()
    filler = Filler(FORMAT.resume(path))
    assert not filler.writer.sealed
    filler.finish(UNIT)
    assert_plain(path, UNIT)


def test_rows_that_were_never_committed_do_not_lengthen_a_shard(path: Path) -> None:
    filler = Filler(FORMAT.create(path, header_of("bits", None)))
    filler.write(0, UNIT)
    filler.commit(0, 100)
    filler.writer.close()
    Filler(FORMAT.resume(path)).finish(100)
    assert list(FORMAT.open(path).findings()) == []
    assert_plain(path, 100)


def test_a_torn_record_is_cut_off_on_resume(path: Path, filler: Filler) -> None:
    filler.commit(0, 10)
    filler.writer.close()
    journal = path / "logits" / ".fostore.journal.main"
    whole = journal.read_bytes()
    journal.write_bytes(whole + whole[-40:-7])
    assert list(FORMAT.open(path).findings()) == []
    FORMAT.resume(path).close()
    assert journal.read_bytes() == whole


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
        filler.writer.seal([WholeUnit(1, 5, filler.hashes(0, UNIT))])


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
