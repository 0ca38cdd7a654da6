"""Columns as arrays: one address range over many files, its fallback, and arrays in memory: the same results."""

from __future__ import annotations

import gc
import math
import mmap
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fostore.errors import ArgumentError, DamageError, UncommittedError, UnsafeError
from fostore.formats import ColumnView, Segment
from fostore.formats.views import mapping
from fostore.formats.views.mapping import map_files
from fostore.formats.views.pieces import PieceView
from fostore.formats.views.view import ArrayView, mapped_view, segment_view, view_of
from fostore.schema.halves import aligned_empty
from fostore.schema.row import Column
from support import collected_after, uncollected

WIDE = Column("probs", "float32", "float32", ("class",), (8,))
SCALAR = Column("input_hash", "uint64", "uint64", (), ())
CUBE = Column("probs", "float16", "float16", ("member", "class"), (2, 3))


def rows_of(column: Column, start: int, stop: int) -> np.ndarray:
    size = int(np.prod(column.shape, dtype=int))
    values = np.arange(start * size, stop * size) % 1999
    return values.reshape(-1, *column.shape).astype(column.numpy_dtype)


def files_of(
    folder: Path, column: Column, *ranges: tuple[int, int], offset: int = 0
) -> list[Segment]:
    """One file a range, with something behind its rows."""
    segments = []
    for start, stop in ranges:
        path = folder / f"{start}-{stop}@{offset}"
        path.write_bytes(b"\xaa" * offset + rows_of(column, start, stop).tobytes() + b"\xbb" * 20)
        segments.append(Segment(path, offset, start, stop))
    return segments


@pytest.mark.parametrize("kind", [mapped_view, segment_view])
@pytest.mark.parametrize("column", [WIDE, SCALAR, CUBE], ids=lambda column: str(column.shape))
def test_both_views_give_the_same_rows(tmp_path: Path, kind: Any, column: Column) -> None:
    unit = 2 * 4096 // math.gcd(column.row_bytes, 4096)
    total = 3 * unit + 5
    segments = files_of(
        tmp_path, column, (0, unit), (unit, 2 * unit), (2 * unit, 3 * unit), (3 * unit, total)
    )
    seen = kind(segments, column, total)
    expected = rows_of(column, 0, total)
    for rows in (
        np.random.default_rng(0).integers(0, total, 1000),
        np.arange(total)[::-1],
        np.array([total - 1, 0, 0]),
        np.array([unit]),
        np.empty(0, np.int64),
    ):
        batch = seen.take(rows)
        np.testing.assert_array_equal(batch, expected[rows])
        assert batch.dtype == column.numpy_dtype
        assert batch.size == 0 or batch.ctypes.data % 64 == 0
        assert batch.flags.writeable
        out = np.zeros_like(batch)
        assert seen.take(rows, out) is out
        np.testing.assert_array_equal(out, expected[rows])
    for start, stop in ((0, total), (unit - 1, unit + 1), (7, 9), (total - 1, total), (4, 4)):
        np.testing.assert_array_equal(seen.read(start, stop), expected[start:stop])


def test_files_of_whole_pages_become_one_array(tmp_path: Path) -> None:
    segments = files_of(tmp_path, WIDE, (0, 256), (256, 512), (512, 600))
    seen = view_of(segments, WIDE, 600)
    assert isinstance(seen, ArrayView)
    np.testing.assert_array_equal(seen.array, rows_of(WIDE, 0, 600))
    np.testing.assert_array_equal(seen.array[250:260], rows_of(WIDE, 250, 260))
    with pytest.raises(ValueError, match="read-only"):
        seen.array[0] = 0
    with pytest.raises(ValueError):
        seen.array.flags.writeable = True


def test_rows_that_no_file_holds_are_not_zeros_but_out_of_reach(tmp_path: Path) -> None:
    """Reading them ends the process: what must never happen is a silent zero."""
    files_of(tmp_path, WIDE, (0, 128), (256, 384))
    script = f"""\
import sys
from pathlib import Path
from fostore.formats import Segment
from fostore.formats.views.view import mapped_view
from fostore.schema.row import Column
column = Column("probs", "float32", "float32", ("class",), (8,))
folder = Path({str(tmp_path)!r})
seen = mapped_view([Segment(folder / "0-128@0", 0, 0, 128), Segment(folder / "256-384@0", 0, 256, 384)], column, 384)
print(seen.array[127, 0] + seen.array[256, 0], flush=True)
seen.array[200].sum()
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout == f"{rows_of(WIDE, 127, 128)[0, 0] + rows_of(WIDE, 256, 257)[0, 0]}\n"
    assert done.returncode < 0


def test_a_file_whose_rows_begin_at_an_offset_is_mapped(tmp_path: Path) -> None:
    for offset in (4096, 8192):
        segments = files_of(tmp_path, WIDE, (0, 300), offset=offset)
        seen = view_of(segments, WIDE, 300)
        assert isinstance(seen, ArrayView)
        np.testing.assert_array_equal(seen.array, rows_of(WIDE, 0, 300))


def test_pieces_of_one_file_may_share_a_page(tmp_path: Path) -> None:
    path = files_of(tmp_path, WIDE, (0, 256))[0].path
    segments = [
        Segment(path, start * 32, start, stop) for start, stop in ((3, 10), (20, 30), (200, 256))
    ]
    seen = view_of(segments, WIDE, 256)
    assert isinstance(seen, ArrayView)
    rows = np.array([3, 9, 20, 29, 255])
    np.testing.assert_array_equal(seen.take(rows), rows_of(WIDE, 0, 256)[rows])


def test_what_cannot_be_one_range_falls_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    odd = files_of(tmp_path, WIDE, (0, 100), (100, 200))  # the second would begin inside a page
    shared = [odd[0], *files_of(tmp_path, WIDE, (100, 200), offset=3200)]  # two files in one page
    shifted = files_of(tmp_path, WIDE, (0, 50), offset=100)  # not at a page
    whole = files_of(tmp_path, WIDE, (0, 128), (128, 256))
    for segments in (odd, shared):
        seen = view_of(segments, WIDE, 200)
        assert isinstance(seen, PieceView)
        np.testing.assert_array_equal(seen.read(0, 200), rows_of(WIDE, 0, 200))
    assert isinstance(view_of(shifted, WIDE, 50), ArrayView)  # alone, it needs no range
    np.testing.assert_array_equal(view_of(shifted, WIDE, 50).array, rows_of(WIDE, 0, 50))
    assert isinstance(view_of(whole, WIDE, 256), ArrayView)
    monkeypatch.setattr(mapping, "MAX_SEGMENTS", 1)
    assert isinstance(view_of(whole, WIDE, 256), PieceView)
    monkeypatch.undo()
    monkeypatch.setattr(mapping, "libc", lambda: None)
    assert isinstance(view_of(whole, WIDE, 256), PieceView)
    monkeypatch.undo()

    def full(*_: object) -> int:
        raise OSError(12, "no more mappings")

    monkeypatch.setattr(mapping, "_map", full)
    np.testing.assert_array_equal(view_of(whole, WIDE, 256).read(100, 200), rows_of(WIDE, 100, 200))


def test_all_columns_together_map_a_bounded_number_of_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gc.collect()
    files = [(start, start + 128) for start in range(0, 128 * 5, 128)]
    segments, expected = files_of(tmp_path, WIDE, *files), rows_of(WIDE, 0, 640)
    held = sum(mapping._mapped.values())
    monkeypatch.setattr(mapping, "MAX_SEGMENTS", held + 8)
    monkeypatch.setattr("fostore.formats.views.view._OPEN_MAPS", 2)
    first, second = view_of(segments, WIDE, 640), view_of(segments, WIDE, 640)
    assert isinstance(first, ArrayView)
    assert isinstance(second, PieceView)
    rows = np.random.default_rng(0).integers(0, 640, 300)
    for seen in (first, second):
        np.testing.assert_array_equal(seen.take(rows), expected[rows])
    maps = Path("/proc/self/maps")
    if maps.exists():
        assert maps.read_text().count(str(tmp_path)) <= 5 + 2 + 1
    del first, seen
    gc.collect()
    assert sum(mapping._mapped.values()) == held
    assert isinstance(view_of(segments, WIDE, 640), ArrayView)


def test_a_mapping_may_be_collected_while_mappings_are_counted(tmp_path: Path) -> None:
    """A long run of loaders leaves mappings in cycles, and the collector takes them whenever it likes."""
    segments = files_of(tmp_path, WIDE, (0, 128))
    held = [map_files(segments, WIDE, 128) for _ in range(20)]
    for allocations in range(30):
        with uncollected():
            cycle: list[Any] = [map_files(segments, WIDE, 128)]
            cycle.append(cycle)
            del cycle
            with collected_after(allocations):
                assert mapping.is_mappable(segments, WIDE.row_bytes)
    assert len(held) == 20


def test_the_fallback_has_one_array_over_several_files(tmp_path: Path) -> None:
    segments = files_of(tmp_path, WIDE, (0, 128), (128, 256))
    seen = segment_view(segments, WIDE, 256)
    np.testing.assert_array_equal(seen.array, rows_of(WIDE, 0, 256))
    assert seen.array is seen.array
    assert not seen.array.flags.writeable


def test_the_fallback_refuses_rows_that_it_does_not_hold(tmp_path: Path) -> None:
    for ranges in (((0, 10), (20, 30)), ((5, 10),)):
        seen = segment_view(files_of(tmp_path, WIDE, *ranges), WIDE, 30)
        for row in (15, 29 if len(ranges) == 1 else 31, 4 if len(ranges) == 1 else 10):
            with pytest.raises(UncommittedError):
                seen.take(np.array([row, 7]))


def test_the_fallback_keeps_few_files_open(tmp_path: Path) -> None:
    segments = files_of(tmp_path, SCALAR, *((i, i + 1) for i in range(200)))
    seen = segment_view(segments, SCALAR, 200)
    before = len(os.listdir("/proc/self/fd")) if sys.platform == "linux" else 0
    np.testing.assert_array_equal(seen.take(np.arange(200)), rows_of(SCALAR, 0, 200))
    if sys.platform == "linux":
        assert len(os.listdir("/proc/self/fd")) - before <= 64


@pytest.mark.parametrize("kind", [mapped_view, segment_view, view_of])
def test_a_file_is_checked_before_it_is_mapped(tmp_path: Path, kind: Any) -> None:
    segments = files_of(tmp_path, WIDE, (0, 128), (128, 256))
    os.truncate(segments[1].path, 127 * 32)
    with pytest.raises(DamageError, match="rows 128 to 255 need 4,096") as caught:
        kind(segments, WIDE, 256)
    assert caught.value.rows == ((128, 256),)
    segments[1].path.unlink()
    with pytest.raises(DamageError, match="missing") as caught:
        kind(segments, WIDE, 256)
    assert caught.value.rows == ((128, 256),)
    segments[1].path.symlink_to(segments[0].path)
    with pytest.raises(UnsafeError, match="symbolic link"):
        kind(segments, WIDE, 256)
    segments[1].path.unlink()
    segments[1].path.mkdir()
    with pytest.raises(UnsafeError, match="no regular file"):
        kind(segments, WIDE, 256)


def test_segments_beyond_the_array_are_refused(tmp_path: Path) -> None:
    """Mapping them would overwrite whatever lies behind the range."""
    segments = files_of(tmp_path, WIDE, (0, 128), (128, 256))
    for wrong, num_rows in ((segments, 255), (segments[::-1], 256), ([segments[0]] * 2, 256)):
        with pytest.raises(ArgumentError):
            view_of(wrong, WIDE, num_rows)


@pytest.mark.parametrize("column", [WIDE, SCALAR, CUBE], ids=lambda column: str(column.shape))
def test_a_column_without_rows_is_empty(column: Column) -> None:
    seen = view_of([], column, 0)
    assert seen.array.shape == seen.read(0, 0).shape == (0, *column.shape)
    assert seen.take(np.empty(0, np.int64)).shape == (0, *column.shape)
    assert seen.array.dtype == column.numpy_dtype


@pytest.mark.skipif(sys.platform != "linux", reason="counts the mappings that Linux shows")
def test_the_range_is_given_back_with_its_last_array(tmp_path: Path) -> None:
    segments = files_of(tmp_path, WIDE, (0, 128), (128, 256))

    def mapped() -> int:
        return Path("/proc/self/maps").read_text().count(str(tmp_path))

    seen = view_of(segments, WIDE, 256)
    piece = seen.array[130:132]
    assert mapped() == 2
    del seen
    gc.collect()
    assert mapped() == 2
    np.testing.assert_array_equal(piece, rows_of(WIDE, 130, 132))
    del piece
    gc.collect()
    assert mapped() == 0


@pytest.mark.skipif(sys.platform != "linux", reason="counts the mappings that Linux shows")
def test_a_failure_halfway_leaves_no_mapping(tmp_path: Path) -> None:
    segments = files_of(tmp_path, WIDE, (0, 128), (128, 256))
    segments[1].path.unlink()
    with pytest.raises(DamageError):
        mapped_view(segments, WIDE, 256)
    gc.collect()
    assert str(tmp_path) not in Path("/proc/self/maps").read_text()


def test_a_claim_beyond_any_memory_is_no_mapping(tmp_path: Path) -> None:
    segments = files_of(tmp_path, WIDE, (0, 128))
    seen = view_of(segments, WIDE, 1 << 58)
    np.testing.assert_array_equal(seen.read(0, 128), rows_of(WIDE, 0, 128))


def test_an_array_in_memory_is_a_view_too() -> None:
    values = np.arange(12, dtype=np.float32).reshape(4, 3)
    seen = ArrayView(values)
    np.testing.assert_array_equal(seen.take(np.array([3, 0])), values[[3, 0]])
    np.testing.assert_array_equal(seen.read(1, 3), values[1:3])
    assert not seen.array.flags.writeable
    assert not seen.read(1, 3).flags.writeable
    assert values.flags.writeable


def test_threads_share_a_view(tmp_path: Path) -> None:
    segments = files_of(tmp_path, WIDE, *((i * 128, i * 128 + 128) for i in range(100)))
    expected = rows_of(WIDE, 0, 12_800)
    failures: list[BaseException] = []
    for seen in (mapped_view(segments, WIDE, 12_800), segment_view(segments, WIDE, 12_800)):

        def work(seed: int, seen: ColumnView = seen) -> None:
            try:
                for i in range(10):
                    rows = np.random.default_rng(seed * 100 + i).integers(0, 12_800, 500)
                    np.testing.assert_array_equal(seen.take(rows), expected[rows])
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not failures


def test_fresh_arrays_begin_at_64_bytes() -> None:
    for shape in ((1,), (3, 5), (7, 2, 3), (0, 4)):
        for dtype in ("<f2", "<f4", "<u8", "u1"):
            fresh = aligned_empty(shape, np.dtype(dtype))
            assert fresh.shape == shape
            assert fresh.dtype == dtype
            assert fresh.size == 0 or fresh.ctypes.data % 64 == 0
            fresh[...] = 1


def test_pages_are_what_these_tests_think() -> None:
    assert 4096 % mmap.PAGESIZE == 0, "on larger pages the views above fall back: adapt the numbers"
