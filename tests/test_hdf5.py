"""What the HDF5 format promises beyond every format: plain h5py at any moment, growth by one rename, no trust."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from fostore import disk
from fostore.errors import (
    ArgumentError,
    DamageError,
    FormatError,
    RowError,
    SpaceError,
    UnsafeError,
    UnsupportedError,
)
from fostore.formats import Run
from fostore.formats.hdf5 import FORMAT
from fostore.formats.hdf5.build import locate
from fostore.formats.hdf5.file import _check_extents, inspect
from fostore.formats.hdf5.records import HEADER, PROGRESS, Extent
from fostore.formats.hdf5.stream import HDF5Stream
from fostore.formats.hdf5.writer import HDF5Writer
from fostore.places.local import Local, LocalFile
from fostore.schema.ranges import Ranges
from fostore.schema.row import Column
from support import row_crc
from units import UNIT, Filler, column_rows, full_store, header_of

N = 2 * UNIT + 700
DIGEST = "blake3:" + "5a" * 32


class Crash(BaseException):
    """Nothing that code may catch."""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store.h5"


def begin(path: Path, num_samples: int = N, shape: str = "many columns", **changes: Any) -> Filler:
    return Filler(FORMAT.create(path, replace(header_of(shape, num_samples), **changes)))


def files(path: Path) -> list[str]:
    return sorted(entry.name for entry in path.parent.iterdir())


def place(path: Path, name: str) -> Any:
    with closing(Local(path).open()) as file:
        return inspect(file).extents[name]


def patch_bytes(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def assert_plain(path: Path, rows: Ranges) -> dict[str, Any]:
    """Plain h5py opens the file and has the rows; returns the JSON that it finds."""
    with h5py.File(path, "r") as file:
        found = {name: read_json(file, name) for name in ("fostore", "meta")}
        for spec in found["fostore"]["columns"]:
            data = file[spec["name"]]
            column = Column.from_json(spec, "x")
            assert data.shape == (found["fostore"]["num_samples"], *column.shape)
            for start, stop in rows:
                np.testing.assert_array_equal(data[start:stop], column_rows(column, start, stop))
        return found


def read_json(file: Any, name: str) -> Any:
    return json.loads(file[name][:].tobytes() if name in file else file.attrs[name])


# Plain readers


def test_plain_h5py_opens_the_file_at_every_moment(path: Path) -> None:
    filler = begin(path)
    assert_plain(path, Ranges())
    filler.write(0, 700)
    assert_plain(path, Ranges())
    filler.commit(0, 2 * UNIT)
    assert_plain(path, Ranges.of((0, 2 * UNIT)))
    filler.seal(0)
    filler.write(2 * UNIT, N)
    assert_plain(path, Ranges.of((0, 2 * UNIT)))  # as after a kill: the writer is just dropped
    filler = Filler(FORMAT.resume(path))
    assert assert_plain(path, Ranges.of((0, 2 * UNIT)))["fostore"]["sealed"] is False
    filler.commit(2 * UNIT, N)
    filler.finish(N)
    found = assert_plain(path, Ranges.of((0, N)))
    assert found["fostore"]["sealed"] is True
    assert found == json.loads(json.dumps(FORMAT.open(path).header.to_json()))


def test_what_plain_readers_find_is_of_the_oldest_formats(path: Path) -> None:
    full_store(path, "many columns", N)
    raw = path.read_bytes()
    assert raw[:8] == b"\x89HDF\r\n\x1a\n"
    assert raw[8] == 0
    with h5py.File(path, "r") as file:
        for name, data in file.items():
            plist = data.id.get_create_plist()
            assert plist.get_layout() == h5py.h5d.CONTIGUOUS
            assert plist.get_nfilters() == 0
            assert data.id.get_offset() % 4096 == 0, name
        assert file["logits"].attrs["axes"].tolist() == [b"sample", b"class"]
        assert file["input_hash"].attrs["axes"].tolist() == [b"sample"]
        for name in ("fostore", "meta"):
            kind = file.attrs.get_id(name).get_type()
            assert not kind.is_variable_str()
            assert kind.get_cset() == h5py.h5t.CSET_UTF8


def test_the_room_of_the_rows_is_taken_when_the_file_is_made(path: Path) -> None:
    begin(path, 50 * UNIT, "one column").writer.close()
    status = path.stat()
    assert status.st_blocks * 512 >= status.st_size


def test_the_state_of_a_run_lies_inside_one_sector(path: Path) -> None:
    filler = begin(path)
    before = path.read_bytes()
    filler.commit(0, N)
    filler.finish(N)
    fd = os.open(path, os.O_RDONLY)
    mirror = locate(fd, inspect(LocalFile(path, fd, owned=False))).mirrors["fostore"]
    os.close(fd)
    assert mirror.offset is not None
    first = mirror.offset + mirror.text.index(b'{"sealed"')
    version = mirror.offset + mirror.text.index(b'"version"')
    assert first // 512 == (version - 1) // 512
    after = path.read_bytes()
    rest = slice(version, mirror.offset + len(mirror.text))
    assert before[rest] == after[rest]
    assert before[first:version] != after[first:version]


@pytest.mark.parametrize("length", [59_000, 61_000, 70_000, 3_000_000])
def test_metadata_of_any_length_comes_back(path: Path, length: int) -> None:
    meta = {"long": "ä" * (length // 2)}
    begin(path, meta=meta).writer.close()
    assert FORMAT.open(path).header.meta == meta
    assert list(FORMAT.open(path).findings()) == []
    assert assert_plain(path, Ranges())["meta"] == meta


def test_class_names_longer_than_an_attribute_come_back(path: Path) -> None:
    header = header_of("bits", 300)
    names = tuple(f"{i:0400}" for i in range(250))
    FORMAT.create(path, replace(header, schema=replace(header.schema, class_names=names))).close()
    assert FORMAT.open(path).header.schema.class_names == names
    assert assert_plain(path, Ranges())["fostore"]["class_names"] == list(names)


# Slots


def test_many_units_are_few_entries_once_they_are_sealed(path: Path) -> None:
    count = 40
    filler = begin(path, count * UNIT, "one column")
    for unit in range(count):
        filler.commit(unit * UNIT, (unit + 1) * UNIT)
        filler.seal(unit)
    assert isinstance(filler.writer, HDF5Writer)
    filler.finish(count * UNIT)
    reader = FORMAT.open(path)
    assert reader._entries == [Run(0, count * UNIT, None)]
    assert_plain(path, Ranges.of((0, count * UNIT)))


def test_more_separate_runs_than_there_is_room_for_are_refused(path: Path) -> None:
    filler = begin(path, 2 * UNIT, "one column")
    room = inspect(filler.writer._hdf5).capacity  # type: ignore[attr-defined]
    assert room >= 2 + 64
    runs = [run for i in range(room) for run in filler.write(3 * i, 3 * i + 1)]
    filler.writer.sync()
    filler.writer.commit(runs)
    more = filler.write(3 * room, 3 * room + 1)
    with pytest.raises(RowError, match="in order"):
        filler.writer.commit(more)
    assert len(FORMAT.open(path).committed) == room
    filler.commit(0, 3 * room)
    assert FORMAT.open(path).committed == Ranges.of((0, 3 * room))


def test_a_torn_slot_costs_the_last_commit_and_no_more(path: Path) -> None:
    filler = begin(path)
    filler.commit(0, 100)
    filler.commit(100, 300)
    where = place(path, PROGRESS)
    sequence = filler.writer._sequence  # type: ignore[attr-defined]
    filler.writer.close()
    whole = path.read_bytes()
    newest = where.offset + sequence % 2 * where.shape[1]
    for cut in (0, 7, 8, 20, 31, 32, 40, 79):
        patch_bytes(path, newest + cut, b"\xaa" * 4)
        reader = FORMAT.open(path)
        assert reader.committed == Ranges.of((0, 100))
        assert [finding.where for finding in reader.findings()] == ["dataset progress"]
        again = Filler(FORMAT.resume(path))
        again.commit(100, 200)
        again.writer.close()
        assert FORMAT.open(path).committed == Ranges.of((0, 200))
        assert list(FORMAT.open(path).findings()) == []
        path.write_bytes(whole)


@pytest.mark.parametrize("name", [HEADER, PROGRESS])
@pytest.mark.parametrize("byte", [b"\0", b"\x55"])
def test_two_damaged_slots_are_damage(path: Path, name: str, byte: bytes) -> None:
    full_store(path, "one column", N)
    where = place(path, name)
    patch_bytes(path, where.offset, byte * where.nbytes)
    for call in (FORMAT.open, FORMAT.resume):
        with pytest.raises(DamageError, match="both slots"):
            call(path)


def test_a_torn_header_falls_back_to_the_one_before(path: Path) -> None:
    filler = begin(path)
    before = filler.header
    filler.writer.replan(replace(before, meta={"note": "new"}))
    where = place(path, HEADER)
    patch_bytes(path, where.offset + 100, b"\0\0")  # sequence 2 lies in slot 0
    assert FORMAT.open(path).header == before
    found = {finding.where for finding in FORMAT.open(path).findings()}
    assert found == {"dataset header", "fostore", "meta"}
    FORMAT.resume(path).close()
    assert assert_plain(path, Ranges())["meta"] == before.meta


def test_slots_that_contradict_each_other_are_found(path: Path) -> None:
    filler = begin(path)
    for stop in (10, 20, 30):
        filler.commit(stop - 10, stop)
    where = place(path, PROGRESS)
    old = path.read_bytes()
    filler.commit(30, 40)
    filler.commit(40, 50)
    filler.commit(50, 60)
    assert filler.writer._sequence % 2 == 1  # type: ignore[attr-defined]
    patch_bytes(path, where.offset, old[where.offset : where.offset + where.shape[1]])
    assert FORMAT.open(path).committed == Ranges.of((0, 60))
    assert any("sequences" in finding.message for finding in FORMAT.open(path).findings())


def test_a_short_unit_that_goes_on_is_not_sealed_before_its_hashes_are_new(path: Path) -> None:
    short = UNIT + 1500  # its last unit has a hash for every block, the last one of a short block
    full_store(path, "many columns", short)
    filler = Filler(FORMAT.resume(path))
    assert [(run.start, run.crc) for run in filler.writer.runs] == [(UNIT, None)]
    np.testing.assert_array_equal(filler.writer.hashes(1), filler.hashes(1, 1500))
    filler.writer.replan(replace(filler.header, num_samples=2 * UNIT, sealed=False, digest=None))
    np.testing.assert_array_equal(filler.writer.hashes(1), filler.hashes(1, 1500))
    filler.commit(short, 2 * UNIT)
    again = FORMAT.resume(path)
    assert again.sealed == Ranges.of((0, UNIT))
    expected = [row_crc(filler.rows(*rows)) for rows in ((UNIT, short), (short, 2 * UNIT))]
    assert [run.crc for run in again.runs] == expected
    assert not FORMAT.open(path).block_hashes()[2:].any()
    filler.finish(2 * UNIT)
    np.testing.assert_array_equal(FORMAT.open(path).block_hashes()[2:], filler.hashes(1, UNIT))


@pytest.mark.parametrize("at", [1, 2, 3])
def test_a_kill_while_a_sealed_short_unit_is_opened_again_seals_nothing_wrongly(
    path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    short = UNIT + 1500
    full_store(path, "many columns", short)
    filler = Filler(FORMAT.resume(path))
    filler.writer.replan(replace(filler.header, num_samples=2 * UNIT, sealed=False, digest=None))
    runs = filler.write(short, 2 * UNIT)
    count = 0

    def crash(fd: int, data: Any, offset: int) -> None:
        nonlocal count
        count += 1
        if count == at:
            raise Crash
        write_at(fd, data, offset)

    write_at = disk.write_at
    with monkeypatch.context() as patch:
        patch.setattr(disk, "write_at", crash)
        with pytest.raises(Crash):
            filler.writer.commit(runs)
    assert FORMAT.open(path).committed == Ranges.of((0, short))
    filler = Filler(FORMAT.resume(path))
    if filler.writer.runs[0].crc is None:
        np.testing.assert_array_equal(filler.writer.hashes(1), filler.hashes(1, 1500))
    filler.commit(short, 2 * UNIT)
    again = Filler(FORMAT.resume(path))
    assert again.writer.sealed == Ranges.of((0, UNIT))
    assert FORMAT.open(path).committed == Ranges.of((0, 2 * UNIT))
    again.finish(2 * UNIT)
    np.testing.assert_array_equal(FORMAT.open(path).block_hashes()[2:], again.hashes(1, UNIT))


def test_a_failed_slot_is_written_again_and_the_last_commit_stands(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    filler = begin(path)
    filler.commit(0, 100)
    runs = filler.write(100, 200)
    filler.writer.sync()

    def half(fd: int, data: Any, offset: int) -> None:
        os.pwrite(fd, memoryview(data).cast("B")[:40], offset)
        raise OSError(errno.EIO, "injected")

    with monkeypatch.context() as patch:
        patch.setattr(disk, "write_at", half)
        with pytest.raises(OSError, match="injected"):
            filler.writer.commit(runs)
    assert FORMAT.open(path).committed == Ranges.of((0, 100))
    filler.writer.commit(runs)
    assert FORMAT.open(path).committed == Ranges.of((0, 200))


# Header in place and beside


def test_a_header_that_fits_is_replaced_in_place(path: Path) -> None:
    filler = begin(path)
    filler.commit(0, 10)
    inode, size = path.stat().st_ino, path.stat().st_size
    for length in (0, 10, 2000, 1):
        header = replace(filler.header, meta={"x": "y" * length}, identity={"model": "z" * length})
        filler.writer.replan(header)
        assert FORMAT.open(path).header == header == filler.header
        assert assert_plain(path, Ranges.of((0, 10))) == json.loads(json.dumps(header.to_json()))
    assert (path.stat().st_ino, path.stat().st_size) == (inode, size)
    assert list(FORMAT.open(path).findings()) == []


def test_a_header_that_outgrows_its_room_moves_to_a_new_file(path: Path) -> None:
    filler = begin(path)
    filler.commit(0, UNIT)
    filler.seal(0)
    filler.commit(UNIT, UNIT + 10)
    filler.writer.replan(replace(filler.header, meta={"x": "y" * 100_000}))
    filler.commit(UNIT + 10, N)
    filler.finish(N)
    assert assert_plain(path, Ranges.of((0, N)))["meta"] == {"x": "y" * 100_000}
    assert files(path) == ["store.h5"]


def test_mirrors_that_a_power_cut_tore_are_mended_on_resume(path: Path) -> None:
    filler = begin(path)
    filler.commit(0, 5)
    filler.writer.close()
    raw = path.read_bytes()
    patch_bytes(path, raw.index(b'"version"'), b"\0\xff" * 20)
    assert FORMAT.open(path).committed == Ranges.of((0, 5))
    assert [finding.where for finding in FORMAT.open(path).findings()] == ["fostore"]
    FORMAT.resume(path).close()
    assert path.read_bytes() == raw
    assert list(FORMAT.open(path).findings()) == []


@pytest.mark.parametrize("committed", [0, 700, UNIT, N])
def test_a_larger_plan_keeps_every_committed_row(path: Path, committed: int) -> None:
    filler = begin(path)
    if committed:
        filler.commit(0, committed)
    filler.writer.close()
    filler = Filler(FORMAT.resume(path))
    reader = FORMAT.open(path)
    filler.writer.replan(replace(filler.header, num_samples=4 * UNIT + 1))
    assert files(path) == ["store.h5"]
    assert_plain(path, Ranges.of((0, committed)))
    old = reader.column(0)
    reader.refresh()
    assert reader.header.num_samples == 4 * UNIT + 1
    filler.commit(committed, 4 * UNIT + 1)
    filler.finish(4 * UNIT + 1)
    reader.refresh()
    assert reader.header.sealed
    column = reader.header.schema.columns[0]
    rows = column_rows(column, 0, 4 * UNIT + 1)
    np.testing.assert_array_equal(reader.column(0).array, rows)
    np.testing.assert_array_equal(old.read(0, committed), rows[:committed])


def test_a_view_is_of_the_file_that_the_header_is_of(path: Path) -> None:
    filler = begin(path, meta={"x": "y" * 50_000})
    filler.commit(0, N)
    reader = FORMAT.open(path)
    filler.writer.replan(replace(filler.header, num_samples=5 * UNIT, meta={}))
    rows = column_rows(reader.header.schema.columns[0], 0, N)
    np.testing.assert_array_equal(reader.column(0).read(0, N), rows)  # mapped only now


def test_a_reader_keeps_the_store_that_it_opened(path: Path) -> None:
    full_store(path, "one column", N)
    reader = FORMAT.open(path)
    column = reader.column(0)
    other = path.with_name("other.h5")
    full_store(other, "one column", 5)
    other.rename(path)
    with pytest.raises(FormatError, match="another store"):
        reader.refresh()
    assert reader.header.num_samples == N
    np.testing.assert_array_equal(
        column.read(0, N), column_rows(reader.header.schema.columns[0], 0, N)
    )
    fresh = FORMAT.open(path)
    full_store(other, "one column", 9)
    other.rename(path)
    with pytest.raises(DamageError, match="another"):
        fresh.column(0)


@pytest.mark.parametrize("call", ["rename", "sync_data", "allocate", "truncate", "open_file"])
@pytest.mark.parametrize("error", [OSError(errno.EIO, "injected"), Crash()])
def test_an_extension_that_fails_leaves_the_old_file(
    path: Path, monkeypatch: pytest.MonkeyPatch, call: str, error: BaseException
) -> None:
    filler = begin(path)
    filler.commit(0, N - 5)
    before = path.read_bytes()

    def fail(*_: Any, **__: Any) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(disk, call, fail)
        with pytest.raises(type(error)):
            filler.writer.replan(replace(filler.header, num_samples=2 * N))
    assert path.read_bytes() == before
    assert files(path) == ["store.h5"]
    filler.commit(N - 5, N)
    filler.finish(N)
    assert_plain(path, Ranges.of((0, N)))


def test_a_kill_during_an_extension_leaves_no_trace_after_a_resume(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    filler = begin(path)
    filler.commit(0, N)

    def kill(*_: Any) -> None:
        raise Crash

    with monkeypatch.context() as patch:
        patch.setattr(disk, "rename", kill)
        patch.setattr(disk, "remove", lambda target: kill() if target.exists() else None)
        with pytest.raises(Crash):
            filler.writer.replan(replace(filler.header, num_samples=2 * N))
    assert files(path) == [".store.h5.tmp", "store.h5"]
    FORMAT.resume(path).close()
    assert files(path) == ["store.h5"]
    assert FORMAT.open(path).committed == Ranges.of((0, N))


def test_what_others_put_into_the_file_is_not_lost(path: Path) -> None:
    full_store(path, "one column", N)
    with h5py.File(path, "r+") as file:
        file["notes"] = np.arange(3)
        file.attrs["seen"] = 1
    assert {f.where for f in FORMAT.open(path).findings()} >= {"notes", "attribute seen"}
    filler = Filler(FORMAT.resume(path))
    filler.writer.replan(replace(filler.header, meta={"k": 1}, sealed=False, digest=None))
    with pytest.raises(UnsupportedError, match="notes"):
        filler.writer.replan(replace(filler.header, num_samples=2 * N))
    with h5py.File(path, "r") as file:
        assert file["notes"][:].tolist() == [0, 1, 2]
        assert read_json(file, "meta") == {"k": 1}


def test_a_mirror_that_somebody_edited_is_mended(path: Path) -> None:
    filler = begin(path)
    filler.commit(0, N)
    filler.writer.close()
    with h5py.File(path, "r+") as file:
        file.attrs["meta"] = np.bytes_(b'{"note": "edited"}')
    assert FORMAT.open(path).header.meta == {"note": "äß"}
    assert "meta" in [finding.where for finding in FORMAT.open(path).findings()]
    filler = Filler(FORMAT.resume(path))
    filler.writer.replan(replace(filler.header, meta={"note": "x" * 500}))
    filler.finish(N)
    assert assert_plain(path, Ranges.of((0, N)))["meta"] == {"note": "x" * 500}


# Room and arguments


def test_a_store_of_unknown_length_is_sent_to_zarr(path: Path) -> None:
    with pytest.raises(ArgumentError, match="Zarr"):
        FORMAT.create(path, header_of("one column", None))
    filler = begin(path)
    with pytest.raises(ArgumentError, match="Zarr"):
        filler.writer.replan(replace(filler.header, num_samples=None))
    with pytest.raises(ArgumentError, match="shrink"):
        filler.writer.replan(replace(filler.header, num_samples=5))
    assert files(path) == ["store.h5"]


def test_a_full_disk_is_known_before_anything_is_there(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk, "free_bytes", lambda _: 1000)
    with pytest.raises(SpaceError, match="1,000 are free"):
        begin(path)
    assert files(path) == []


def test_a_disk_that_is_full_while_the_file_is_built_leaves_nothing(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise SpaceError("injected")

    for call in ("write_at", "truncate", "allocate"):
        with monkeypatch.context() as patch:
            patch.setattr(disk, call, full)
            with pytest.raises(SpaceError, match="injected"):
                begin(path)
        assert files(path) == []


def test_a_column_cannot_take_a_name_of_the_format(path: Path) -> None:
    header = header_of("one column", 5)
    column = Column("progress", "int64", "int64", (), (), "id")
    schema = replace(header.schema, columns=(*header.schema.columns, column))
    with pytest.raises(ArgumentError, match="'progress'"):
        FORMAT.create(path, replace(header, schema=schema))
    assert files(path) == []


def test_a_store_is_not_published_before_all_units_are_sealed(path: Path) -> None:
    filler = begin(path)
    filler.commit(0, N)
    filler.seal(0)
    with pytest.raises(ArgumentError, match="sealed"):
        filler.writer.finish(replace(filler.header, sealed=True, digest=DIGEST))
    assert not FORMAT.open(path).header.sealed


def test_a_run_must_lie_inside_a_unit(path: Path) -> None:
    filler = begin(path)
    for run in (Run(UNIT - 1, UNIT + 1, 0), Run(N - 1, N + 1, 0), Run(5, 5, 0)):
        with pytest.raises(ArgumentError, match="unit"):
            filler.writer.commit([run])
    assert not FORMAT.open(path).committed


def test_readers_and_links_to_the_file_are_followed_from_the_users_path(path: Path) -> None:
    full_store(path, "one column", N)
    link = path.with_name("link.h5")
    link.symlink_to(path)
    reader = FORMAT.open(link)
    np.testing.assert_array_equal(
        reader.column(0).array, column_rows(reader.header.schema.columns[0], 0, N)
    )


# Strangers


def replace_column(path: Path, make: Callable[[Any, Path], None]) -> None:
    full_store(path, "one column", N)
    with h5py.File(path, "r+") as file:
        del file["probs"]
        make(file, path)


def external_storage(file: Any, path: Path) -> None:
    secret = path.with_name("secret.bin")
    secret.write_bytes(bytes(N * 12))
    file.create_dataset("probs", (N, 3), "<f4", external=[(str(secret), 0, N * 12)])


def virtual_dataset(file: Any, path: Path) -> None:
    layout = h5py.VirtualLayout((N, 3), "<f4")
    layout[:] = h5py.VirtualSource("elsewhere.h5", "probs", (N, 3))
    file.create_virtual_dataset("probs", layout)


def compact(file: Any, path: Path) -> None:
    plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plist.set_layout(h5py.h5d.COMPACT)
    kind = h5py.h5t.py_create(np.dtype("<f4"))
    h5py.h5d.create(file.id, b"probs", kind, h5py.h5s.create_simple((8, 3)), plist)


def link(target: Any) -> Callable[[Any, Path], None]:
    def make(file: Any, path: Path) -> None:
        file["probs"] = target

    return make


def dataset(
    shape: tuple[int, ...] = (N, 3), dtype: Any = "<f4", **how: Any
) -> Callable[[Any, Path], None]:
    def make(file: Any, path: Path) -> None:
        file.create_dataset("probs", shape, dtype, **how)
        file["probs"][...] = (
            np.zeros(shape, dtype) if h5py.check_string_dtype(np.dtype(dtype)) is None else "x"
        )

    return make


STRANGERS: dict[str, tuple[Callable[[Any, Path], None], type[FormatError], str]] = {
    "external storage": (external_storage, UnsafeError, "other files"),
    "virtual dataset": (virtual_dataset, UnsafeError, "other files"),
    "soft link": (link(h5py.SoftLink("/block_hashes")), UnsafeError, "link"),
    "external link": (link(h5py.ExternalLink("other.h5", "/probs")), UnsafeError, "link"),
    "compact": (compact, UnsupportedError, "compact"),
    "text": (dataset(dtype=h5py.string_dtype()), UnsupportedError, "dtype"),
    "another dtype": (dataset(dtype="<f8"), UnsupportedError, "dtype"),
    "compound": (dataset(dtype=[("a", "<f4")]), UnsupportedError, "dtype"),
    "another shape": (dataset((N, 4)), FormatError, "shape"),
    "fewer rows": (dataset((N - 1, 3)), FormatError, "shape"),
    "a group": (lambda file, _: file.create_group("probs"), FormatError, "no dataset"),
    "nothing": (lambda file, _: None, FormatError, "no dataset"),
}


@pytest.mark.parametrize("what", STRANGERS)
def test_what_no_store_has_is_refused_by_name(path: Path, what: str) -> None:
    make, error, words = STRANGERS[what]
    replace_column(path, make)
    for call in (FORMAT.open, FORMAT.resume):
        with pytest.raises(error, match=words) as caught:
            call(path)
        assert str(path) in str(caught.value)


OTHER_LAYOUTS = {
    "gzip": (dataset(compression="gzip"), "filters"),
    "chunked": (dataset(chunks=(100, 3)), "chunked"),
    "big-endian": (dataset(dtype=">f4"), "dtype"),
}


@pytest.mark.parametrize("what", OTHER_LAYOUTS)
def test_a_sealed_store_in_another_layout_is_read_and_never_written_to(
    path: Path, what: str
) -> None:
    make, words = OTHER_LAYOUTS[what]
    replace_column(path, make)
    assert not FORMAT.open(path).column(0).read(0, N).any()
    with pytest.raises(UnsupportedError, match=words):
        FORMAT.resume(path)


def test_two_columns_on_the_same_bytes_are_refused(path: Path) -> None:
    full_store(path, "many columns", UNIT)
    with h5py.File(path, "r+") as file:
        shape, dtype = file["input_hash"].shape, file["input_hash"].dtype
        del file["input_hash"]
        del file["logsumexp"]
        file.create_dataset("logsumexp", (UNIT,), "<f4")[...] = 0
        first = file["logsumexp"].id.get_offset()
        file.create_dataset("input_hash", shape, dtype)[...] = 0
        second = file["input_hash"].id.get_offset()
    raw = path.read_bytes()
    address = second.to_bytes(8, "little")
    assert raw.count(address) == 1
    patch_bytes(path, raw.index(address), first.to_bytes(8, "little"))
    with pytest.raises(UnsafeError, match="lies on"):
        FORMAT.open(path)
    patch_bytes(path, raw.index(address), (len(raw) - 100).to_bytes(8, "little"))
    with pytest.raises(FormatError, match=r"claims bytes|cannot be read"):
        FORMAT.open(path)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"text",
        b"\x89HDF\r\n\x1a\n",
        b"\x89HDF\r\n\x1a\n" + b"\xff" * 5000,
        b"PK\x03\x04" * 100,
    ],
)
def test_what_is_no_hdf5_is_a_format_error(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    with pytest.raises(FormatError, match="fostore"):
        FORMAT.open(path)


def test_plain_hdf5_that_is_no_store_says_so(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file["probs"] = np.zeros((5, 3))
    with pytest.raises(FormatError, match="no dataset 'header'"):
        FORMAT.open(path)


def test_garbage_anywhere_in_the_metadata_is_an_error_of_ours_or_harmless(path: Path) -> None:
    full_store(path, "one column", 300)
    raw = path.read_bytes()
    chance = np.random.default_rng(0)
    end = place(path, HEADER).offset
    # Objects and the superblock; the mirrors between them are text that no reader of ours depends on.
    used = [at for at in range(end) if raw[at] not in (0, 0x20)]
    for _ in range(150):
        at = int(chance.choice(used))
        damaged = bytearray(raw)
        damaged[at : at + 4] = chance.bytes(4)
        path.write_bytes(damaged)
        try:
            reader = FORMAT.open(path)
            list(reader.findings())
            reader.column(0).read(0, 300)
            reader.close()
        except (FormatError, DamageError):
            pass


@pytest.mark.parametrize("size", [0.999, 0.8, 0.5])
def test_a_cut_file_names_the_rows_that_it_lost(path: Path, size: float) -> None:
    full_store(path, "one column", N)
    there = int(path.stat().st_size * size)
    offset = place(path, "probs").offset
    reader = FORMAT.open(path)
    os.truncate(path, there)
    expected = ((max(there - offset, 0) // 12, N),)
    for call in (FORMAT.open, FORMAT.resume):
        with pytest.raises(DamageError, match="cut") as caught:
            call(path)
        assert caught.value.rows == expected
    assert [finding.rows for finding in reader.findings()] == list(expected)


def test_bytes_after_the_end_are_found_and_harmless(path: Path) -> None:
    full_store(path, "one column", N)
    with path.open("ab") as file:
        file.write(b"x" * 100)
    reader = FORMAT.open(path)
    assert reader.committed == Ranges.of((0, N))
    assert any("100 bytes follow" in finding.message for finding in reader.findings())


def test_a_dataset_that_claims_bytes_beyond_the_file_is_refused(path: Path) -> None:
    for offset in (4096, 10_000, 2**60):
        with pytest.raises(UnsafeError, match="claims bytes"):
            _check_extents({"probs": Extent(offset, (1000, 3), 4)}, 16_095, str(path))
    _check_extents({"probs": Extent(4096, (1000, 3), 4)}, 16_096, str(path))


def test_metadata_that_claims_a_huge_piece_gets_no_memory(path: Path) -> None:
    path.write_bytes(b"x" * 100)
    with path.open("rb") as file:
        stream = HDF5Stream(LocalFile(path, file.fileno(), owned=False), 1 << 60)
        small, huge = bytearray(b"-" * 200), bytearray(b"-" * ((16 << 20) + 1))
        stream.readinto(small)
        assert small == b"x" * 100 + bytes(100)
        stream.readinto(huge)
    assert isinstance(stream.error, UnsafeError)
    assert huge[:1] == huge[-1:] == b"-"


def test_a_variable_length_attribute_is_refused(path: Path) -> None:
    full_store(path, "one column", N)
    with h5py.File(path, "r+") as file:
        file.attrs["meta"] = "variable"
    with pytest.raises(UnsupportedError, match="fixed length"):
        FORMAT.open(path)


def test_a_directory_or_a_pipe_is_no_store(path: Path) -> None:
    os.mkfifo(path)
    with pytest.raises(FormatError, match="not a file"):
        FORMAT.open(path)
    path.unlink()
    path.mkdir()
    with pytest.raises(FormatError, match="not a file"):
        FORMAT.open(path)


@pytest.mark.parametrize("work", ["fostore.open(path)", "fostore.create(path, exists='resume')"])
def test_a_read_that_failed_does_not_crash_the_process_at_its_end(path: Path, work: str) -> None:
    """h5py lets go of what it was given in its own time, which must not be after that of Python."""
    full_store(path, "one column", UNIT)
    script = (
        "import errno, sys, fostore\nfrom fostore import disk\npath = sys.argv[1]\n"
        "def broken(*_): raise OSError(errno.EIO, 'a read failed')\n"
        "real, disk.read_at = disk.read_at, lambda fd, at, size: broken() if size > 48 else real(fd, at, size)\n"
        f"try: {work}\nexcept OSError as error: print(error)\n"
    )
    command = [sys.executable, "-c", script, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, "a read failed" in done.stdout) == (0, True), done
