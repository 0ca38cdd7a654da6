"""What every format promises (fostore.formats), each promise once, over all formats that take units."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest

from fostore import disk
from fostore.errors import ArgumentError, DamageError, FostoreError, StoreExistsError
from fostore.formats import Format, Reader, Run, WholeUnit, format_of, is_store
from fostore.schema.ranges import Ranges
from support import row_crc
from units import SHAPES, UNIT, Filler, column_rows, full_store, header_of

N = 2 * UNIT + 700

pytestmark = pytest.mark.usefixtures("fast_disk")


@pytest.fixture
def format(path: Path) -> Format:
    return format_of(path)


@pytest.fixture
def filler(path: Path, format: Format) -> Iterator[Filler]:
    writer = format.create(path, header_of("many columns", N))
    yield Filler(writer)
    writer.close()


def assert_holds(reader: Reader, rows: Ranges) -> None:
    """The store has committed exactly `rows`, and every view gives them."""
    assert reader.committed == rows
    for index, column in enumerate(reader.header.schema.columns):
        view = reader.column(index)
        for start, stop in rows:
            expected = column_rows(column, start, stop)
            np.testing.assert_array_equal(view.read(start, stop), expected)
            some = np.arange(stop - 1, start - 1, -97, dtype=np.int64)
            np.testing.assert_array_equal(view.take(some), expected[some - start])


def assert_sound(reader: Reader) -> None:
    assert [str(finding) for finding in reader.findings()] == []


def damage(path: Path, keep: float) -> None:
    """Cut the file that holds the last rows of a content column."""
    if path.is_dir():
        path = sorted(file for file in path.rglob("c/2/*") if file.parts[-4] != "block_hashes")[0]
    os.truncate(path, int(path.stat().st_size * keep))


# Rows come back


@pytest.mark.parametrize("shape", SHAPES)
def test_rows_of_every_shape_come_back(path: Path, format: Format, shape: str) -> None:
    header = full_store(path, shape, N)
    reader = format.open(path)
    assert reader.header == header
    assert_holds(reader, Ranges.of((0, N)))
    assert_sound(reader)
    assert list(reader.runs()) == []


@pytest.mark.parametrize("num_samples", [1, UNIT - 1, UNIT, UNIT + 1, 3 * UNIT])
def test_a_store_of_any_size_comes_back(path: Path, format: Format, num_samples: int) -> None:
    full_store(path, "one column", num_samples)
    reader = format.open(path)
    assert_holds(reader, Ranges.of((0, num_samples)))
    assert_sound(reader)


def test_a_store_without_rows_is_a_store(path: Path, format: Format) -> None:
    full_store(path, "many columns", 0)
    reader = format.open(path)
    assert reader.header.sealed
    assert_holds(reader, Ranges())
    assert_sound(reader)
    for index, column in enumerate(reader.header.schema.columns):
        assert reader.column(index).array.shape == (0, *column.shape)
        assert reader.column(index).take(np.empty(0, np.int64)).shape == (0, *column.shape)
    assert reader.block_hashes().shape[0] == 0


def test_a_new_store_opens_and_is_empty(path: Path, format: Format, filler: Filler) -> None:
    reader = format.open(path)
    assert not reader.header.sealed
    assert reader.header == filler.header
    assert_holds(reader, Ranges())
    assert_sound(reader)


def test_the_array_is_the_whole_column_and_read_only(path: Path, format: Format) -> None:
    full_store(path, "many columns", N)
    reader = format.open(path)
    array = reader.column(0).array
    np.testing.assert_array_equal(array, column_rows(reader.header.schema.columns[0], 0, N))
    assert not array.flags.writeable
    with pytest.raises(ValueError):
        array.flags.writeable = True


def test_a_batch_is_fresh_aligned_and_writable(path: Path, format: Format) -> None:
    full_store(path, "members", N)
    view = format.open(path).column(0)
    for count in (0, 1, 255):
        rows = np.random.default_rng(count).integers(0, N, count)
        batch = view.take(rows)
        assert batch.size == 0 or batch.ctypes.data % 64 == 0
        assert batch.flags.c_contiguous
        batch[:] = 0
    np.testing.assert_array_equal(
        view.read(0, 9), column_rows(format.open(path).header.schema.columns[0], 0, 9)
    )


def test_a_batch_can_be_taken_into_an_array(path: Path, format: Format) -> None:
    full_store(path, "one column", N)
    view = format.open(path).column(0)
    rows = np.array([N - 1, 0, 0, UNIT])
    out = np.empty((4, 3), np.float32)
    assert view.take(rows, out) is out
    np.testing.assert_array_equal(out, view.take(rows))


def test_arrays_outlive_the_reader_and_the_store(path: Path, format: Format) -> None:
    full_store(path, "one column", N)
    reader = format.open(path)
    array, piece = reader.column(0).array, reader.column(0).read(UNIT - 1, UNIT + 1)
    column = reader.header.schema.columns[0]
    reader.close()
    del reader
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    np.testing.assert_array_equal(array, column_rows(column, 0, N))
    np.testing.assert_array_equal(piece, column_rows(column, UNIT - 1, UNIT + 1))


def test_segments_say_where_the_bytes_lie(path: Path, format: Format, filler: Filler) -> None:
    filler.commit(0, UNIT)
    filler.seal(0)
    filler.commit(UNIT + 5, UNIT + 25)
    reader = format.open(path)
    for index, column in enumerate(reader.header.schema.columns):
        rows = Ranges()
        for segment in reader.segments(index):
            with Path(segment.path).open("rb") as file:
                file.seek(segment.offset)
                raw = file.read((segment.stop - segment.start) * column.row_bytes)
            assert raw == column_rows(column, segment.start, segment.stop).tobytes()
            rows = rows.add(segment.start, segment.stop)
        assert rows == reader.committed


# Commit


def test_rows_that_are_not_committed_are_not_there(
    path: Path, format: Format, filler: Filler
) -> None:
    filler.commit(0, 100)
    filler.write(100, 200)
    filler.writer.sync()
    assert_holds(format.open(path), Ranges.of((0, 100)))
    filler.writer.close()
    writer = format.resume(path)
    assert [(run.start, run.stop) for run in writer.runs] == [(0, 100)]
    assert not writer.sealed
    writer.close()


def test_committed_runs_survive_with_their_checksums(
    path: Path, format: Format, filler: Filler
) -> None:
    filler.commit(0, 100)
    filler.commit(300, 450)
    filler.commit(UNIT - 1, UNIT + 1)
    filler.writer.close()
    writer = format.resume(path)
    assert writer.runs == tuple(
        Run(a, b, row_crc([column_rows(c, a, b) for c in writer.header.schema.columns]))
        for a, b in ((0, 100), (300, 450), (UNIT - 1, UNIT), (UNIT, UNIT + 1))
    )
    for index, column in enumerate(writer.header.schema.columns):
        np.testing.assert_array_equal(writer.read(index, 310, 320), column_rows(column, 310, 320))
    writer.close()
    assert_sound(format.open(path))


def test_a_run_grows(path: Path, format: Format, filler: Filler) -> None:
    for start, stop in ((0, 10), (10, 500), (500, UNIT)):
        filler.commit(start, stop, run_start=0)
        (run,) = format.open(path).runs()
        assert (run.start, run.stop) == (0, stop)
    filler.writer.close()
    writer = format.resume(path)
    assert writer.runs == (Run(0, UNIT, row_crc(filler.rows(0, UNIT))),)
    writer.close()


def test_holes_stay_holes(path: Path, format: Format, filler: Filler) -> None:
    rows = Ranges.of((0, 3), (100, 101), (UNIT + 1000, UNIT + 1100), (2 * UNIT + 699, N))
    for start, stop in reversed(rows.items):
        filler.commit(start, stop)
    reader = format.open(path)
    assert_holds(reader, rows)
    assert_sound(reader)
    filler.writer.close()
    assert_holds(format.open(path), rows)


def test_an_empty_commit_and_no_rows_are_nothing(
    path: Path, format: Format, filler: Filler
) -> None:
    filler.writer.write(0, 0, filler.rows(0, 0)[0])
    filler.writer.sync()
    filler.writer.commit([])
    assert_holds(format.open(path), Ranges())


def test_the_writer_reads_what_it_wrote(filler: Filler) -> None:
    filler.write(5, 50)
    filler.commit(UNIT, 2 * UNIT)
    filler.seal(1)
    for index, column in enumerate(filler.header.schema.columns):
        for start, stop in ((5, 50), (UNIT + 7, 2 * UNIT), (9, 9)):
            np.testing.assert_array_equal(
                filler.writer.read(index, start, stop), column_rows(column, start, stop)
            )


def test_a_reader_sees_more_after_refresh(path: Path, format: Format, filler: Filler) -> None:
    reader = format.open(path)
    reached = 0
    for stop in (100, UNIT, UNIT + 1, N):
        filler.commit(reached, stop, run_start=0)
        reached = stop
        assert reader.committed.prefix < stop
        before = reader.column(0).read(0, reader.committed.prefix)
        reader.refresh()
        assert_holds(reader, Ranges.of((0, stop)))
        np.testing.assert_array_equal(before, filler.rows(0, len(before))[0])
    unmapped = format.open(path)
    filler.seal(0)
    filler.seal(1)
    filler.finish(N)
    for stale in (reader, unmapped):
        assert_holds(stale, Ranges.of((0, N)))
        stale.refresh()
        assert stale.header.sealed
        assert_holds(stale, Ranges.of((0, N)))


# Seal and finish


def test_sealed_units_are_sealed_on_resume(path: Path, format: Format, filler: Filler) -> None:
    filler.commit(0, 2 * UNIT + 5)
    filler.seal(0)
    filler.seal(0)
    assert filler.writer.sealed == Ranges.of((0, UNIT))
    assert {run.start for run in format.open(path).runs()} == {UNIT, 2 * UNIT}
    filler.writer.close()
    writer = format.resume(path)
    assert writer.sealed == Ranges.of((0, UNIT))
    assert [(run.start, run.stop) for run in writer.runs] == [
        (UNIT, 2 * UNIT),
        (2 * UNIT, 2 * UNIT + 5),
    ]
    Filler(writer).seal(1)
    assert writer.sealed == Ranges.of((0, 2 * UNIT))
    writer.close()
    assert_holds(format.open(path), Ranges.of((0, 2 * UNIT + 5)))


def test_units_are_sealed_in_any_order(path: Path, format: Format, filler: Filler) -> None:
    filler.commit(UNIT, N)
    for unit in (2, 1):
        filler.seal(unit)
        assert_holds(format.open(path), Ranges.of((UNIT, N)))
        assert_sound(format.open(path))
    filler.writer.close()
    filler = Filler(format.resume(path))
    filler.commit(0, UNIT)
    filler.finish(N)
    assert_holds(format.open(path), Ranges.of((0, N)))
    assert_sound(format.open(path))


def test_block_hashes_come_back(path: Path, format: Format, filler: Filler) -> None:
    filler.commit(0, N)
    expected = np.concatenate(
        [filler.hashes(unit, rows) for unit, rows in ((0, UNIT), (1, UNIT), (2, 700))]
    )
    assert not format.open(path).block_hashes().any()
    filler.seal(0)
    blocks = UNIT // filler.header.block_rows
    stored = format.open(path).block_hashes()
    np.testing.assert_array_equal(stored[:blocks], expected[:blocks])
    assert not stored[blocks:].any()
    np.testing.assert_array_equal(filler.writer.hashes(0), expected[:blocks])
    assert not filler.writer.hashes(1).any()
    filler.finish(N)
    np.testing.assert_array_equal(format.open(path).block_hashes(), expected)
    writer = format.resume(path)
    np.testing.assert_array_equal(writer.hashes(2), expected[2 * blocks :])
    writer.close()


def test_hashes_of_a_sealed_unit_can_be_set_again(
    path: Path, format: Format, filler: Filler
) -> None:
    filler.commit(0, N)
    right = filler.hashes(0, UNIT)
    filler.writer.seal([WholeUnit(0, UNIT, np.zeros_like(right))])
    filler.seal(0)
    filler.finish(N)
    np.testing.assert_array_equal(format.open(path).block_hashes()[: len(right)], right)


def test_a_store_that_lacks_rows_is_not_finished(
    path: Path, format: Format, filler: Filler
) -> None:
    filler.commit(0, 2 * UNIT)
    filler.seal(0)
    filler.seal(1)
    with pytest.raises(ArgumentError):
        filler.writer.finish(replace(filler.header, sealed=True, digest="blake3:00"))
    assert not format.open(path).header.sealed


def test_resuming_a_finished_store_changes_nothing(path: Path, format: Format) -> None:
    header = full_store(path, "many columns", N)
    writer = format.resume(path)
    assert writer.header == header
    assert writer.sealed == Ranges.of((0, 2 * UNIT))
    assert writer.runs == (Run(2 * UNIT, N, None),)
    Filler(writer).seal(2)
    writer.close()
    writer.close()
    reader = format.open(path)
    assert reader.header == header
    assert_holds(reader, Ranges.of((0, N)))
    assert_sound(reader)


def test_a_finished_store_can_go_on(path: Path, format: Format) -> None:
    header = full_store(path, "many columns", N)
    more = N + 2 * UNIT
    filler = Filler(format.resume(path))
    filler.writer.replan(
        replace(header, num_samples=more, sealed=False, digest=None, meta={"a": 1})
    )
    assert filler.header.num_samples == more
    reader = format.open(path)
    assert_holds(reader, Ranges.of((0, N)))
    assert not reader.header.sealed
    filler.commit(N, N + 10)
    assert_holds(format.open(path), Ranges.of((0, N + 10)))
    filler.writer.close()
    filler = Filler(format.resume(path))
    runs = Ranges.of(*((run.start, run.stop) for run in filler.writer.runs))
    assert runs == Ranges.of((2 * UNIT, N + 10))
    assert filler.writer.sealed == Ranges.of((0, 2 * UNIT))
    for run in filler.writer.runs:
        assert run.crc in (None, row_crc(filler.rows(run.start, run.stop)))
    filler.commit(N + 10, more)
    filler.finish(more)
    reader = format.open(path)
    assert reader.header.meta == {"a": 1}
    assert_holds(reader, Ranges.of((0, more)))
    assert_sound(reader)
    expected = [filler.hashes(unit, min(UNIT, more - unit * UNIT)) for unit in range(5)]
    np.testing.assert_array_equal(reader.block_hashes(), np.concatenate(expected))


# A store appears whole, and faults lose nothing


def test_a_store_is_made_whole_or_not_at_all(
    path: Path, format: Format, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError("no")

    with monkeypatch.context() as patch:
        patch.setattr(disk, "rename", fail)
        with pytest.raises(OSError):
            format.create(path, header_of("one column", N))
    assert not path.exists()
    format.create(path, header_of("one column", N)).close()
    assert {entry.name for entry in path.parent.iterdir()} == {path.name}
    with pytest.raises(StoreExistsError):
        format.create(path, header_of("one column", N))


# A crash at a sync leaves what a crash at the call after it leaves, and acknowledges less.
CALLS = "open_file write_at truncate allocate make_directory rename remove".split()


class Crash(Exception):
    """Power is gone: from here on nothing reaches the disk."""


class FailingDisk:
    """Counts the calls that change the disk; from call `at` on, each raises, a write half done."""

    def __init__(self, patch: pytest.MonkeyPatch, at: int) -> None:
        self.count = 0
        for name in CALLS:
            patch.setattr(disk, name, self._wrap(name, getattr(disk, name), at))

    def _wrap(self, name: str, call, at: int):  # type: ignore[no-untyped-def]
        def wrapped(*args, **kwargs):  # type: ignore[no-untyped-def]
            if name == "open_file" and not kwargs.get("write"):
                return call(*args, **kwargs)
            self.count += 1
            if self.count < at:
                return call(*args, **kwargs)
            if self.count == at and name == "write_at":
                fd, data, offset = args
                call(fd, memoryview(data).cast("B")[: memoryview(data).nbytes // 2], offset)
            raise Crash

        return wrapped


def test_a_crash_at_any_call_loses_no_committed_row(path: Path, format: Format) -> None:
    stop = UNIT + 300
    survived, at = False, 0
    while not survived:
        at += 1
        clear(path)
        acknowledged: list[tuple[int, int]] = []
        with pytest.MonkeyPatch.context() as patch:
            FailingDisk(patch, at)
            try:
                scenario(path, format, stop, acknowledged)
                survived = True
            except Crash:
                pass
        if not path.exists():
            assert not acknowledged
            continue
        reader = format.open(path)
        there = reader.committed
        assert all(there.covers(start, end) for start, end in acknowledged), f"call {at}"
        assert_holds(reader, there)
        assert not [finding for finding in reader.findings() if finding.rows is not None]
        finish_after_crash(path, format, stop)
    assert at > 40


def scenario(path: Path, format: Format, stop: int, acknowledged: list[tuple[int, int]]) -> None:
    """Every kind of step once: create, commits, seals, finish, resume, replan, a sealed unit that goes on."""
    header = header_of("logits", UNIT + 100)
    filler = Filler(format.create(path, header))
    try:
        for start, end in ((0, 700), (700, UNIT), (UNIT, UNIT + 100)):
            filler.commit(start, end)
            acknowledged.append((start, end))
        filler.seal(0)
        filler.finish(UNIT + 100)
        filler = Filler(format.resume(path))
        filler.seal(1)
        filler.writer.replan(replace(filler.header, num_samples=stop, sealed=False, digest=None))
        filler.commit(UNIT + 100, stop)
        acknowledged.append((UNIT + 100, stop))
        filler.finish(stop)
    finally:
        filler.writer.close()


def finish_after_crash(path: Path, format: Format, stop: int) -> None:
    """Resume, check what is there, write what is missing, and find a store that is whole."""
    filler = Filler(format.resume(path))
    writer = filler.writer
    there = Ranges.of(*writer.sealed, *((run.start, run.stop) for run in writer.runs))
    for run in writer.runs:
        rows = [
            writer.read(i, run.start, run.stop) for i in range(len(writer.header.schema.columns))
        ]
        for column, array in zip(writer.header.schema.columns, rows, strict=True):
            np.testing.assert_array_equal(array, column_rows(column, run.start, run.stop))
        if run.crc is None:
            held = writer.hashes(run.start // UNIT)
            np.testing.assert_array_equal(
                held, filler.hashes(run.start // UNIT, run.stop - run.start)
            )
        else:
            assert run.crc == row_crc(rows)
    if writer.header.sealed or writer.header.num_samples != stop:
        writer.replan(replace(writer.header, num_samples=stop, sealed=False, digest=None))
    for start, end in there.missing(stop):
        filler.commit(start, end)
    filler.finish(stop)
    reader = format.open(path)
    assert_holds(reader, Ranges.of((0, stop)))
    assert_sound(reader)
    expected = [filler.hashes(unit, min(UNIT, stop - unit * UNIT)) for unit in range(2)]
    np.testing.assert_array_equal(reader.block_hashes(), np.concatenate(expected))


def clear(path: Path) -> None:
    for entry in path.parent.iterdir():
        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()


# Damage


@pytest.mark.parametrize("keep", [0.9, 0.5, 0.1])
def test_rows_of_a_cut_file_are_not_handed_out(path: Path, format: Format, keep: float) -> None:
    full_store(path, "one column", 3 * UNIT)
    damage(path, keep)
    with pytest.raises(DamageError) as caught:
        format.open(path).column(0)
    assert "rows" in str(caught.value) or "cut" in str(caught.value)


def test_a_cut_file_is_found_and_its_rows_named(path: Path, format: Format) -> None:
    full_store(path, "many columns", N)
    damage(path, 0.95)
    try:
        found = [finding.rows for finding in format.open(path).findings()]
    except DamageError as error:
        found = list(error.rows)
    assert any(rows is not None and rows[1] > 2 * UNIT for rows in found)


def test_what_is_no_store_is_refused(path: Path, format: Format) -> None:
    for text in (b"", b"{}", b"\x89HDF\r\n\x1a\n", b"{" * 100_000):
        clear(path)
        if format.name == "zarr":
            path.mkdir()
            (path / "zarr.json").write_bytes(text)
        else:
            path.write_bytes(text)
        with pytest.raises(FostoreError):
            format.open(path)
    clear(path)
    with pytest.raises(FileNotFoundError):
        format.open(path)


def test_a_format_knows_its_own_from_arrays_and_from_nothing(path: Path, format: Format) -> None:
    assert not is_store(path)
    format.create(path, header_of("one column", UNIT)).close()
    assert is_store(path), "also before a row is there"
    clear(path)
    if path.suffix == ".zarr":
        path.mkdir()
        (path / "zarr.json").write_text('{"zarr_format": 3, "node_type": "array"}')
    else:
        with h5py.File(path, "w") as file:
            file["probs"] = np.zeros((3, 2))
    assert not is_store(path)
    clear(path)
    path.write_bytes(b"neither")
    assert is_store(path), "so that opening it says what it should be"
