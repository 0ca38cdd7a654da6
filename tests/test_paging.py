"""Hints for cold data: when rows are announced, which pages that names, and that results never change."""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fostore
from fostore.errors import UncommittedError
from fostore.formats import Segment
from fostore.formats.views import paging
from fostore.formats.views import view as views
from fostore.formats.views.paging import (
    ALARM_ROWS,
    SETTLED_ROWS,
    Paging,
    Residency,
    page_ranges,
    paging_of,
    will_need,
)
from fostore.formats.views.view import ArrayView, mapped_view, segment_view
from fostore.schema.row import Column

WIDE = Column("probs", "float32", "float32", ("class",), (250,))
UNIX = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such hints")
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="Linux tells what was read")


@pytest.fixture(autouse=True)
def no_gather_is_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """However loaded the machine is that runs the tests."""
    monkeypatch.setattr(views, "perf_counter", lambda: 0.0)


def take(residency: Residency, rows: int, *, resident: bool) -> None:
    """What a view tells of one batch: announced while cold, slow where it was cold and not announced."""
    if residency.is_cold:
        residency.announced(rows, read=not resident, ahead=False)
    else:
        residency.gathered(rows, 40, 1e-5 if resident else 1.0)


# ---------------------------------------------------------------- when


def test_a_view_of_resident_data_is_hot_after_one_batch() -> None:
    residency = Residency()
    assert residency.is_cold
    take(residency, ALARM_ROWS, resident=True)
    assert not residency.is_cold


def test_one_resident_row_is_no_proof() -> None:
    residency = Residency()
    for _ in range(ALARM_ROWS - 1):
        take(residency, 1, resident=True)
    assert residency.is_cold
    take(residency, 1, resident=True)
    assert not residency.is_cold


def test_data_that_was_read_is_hot_when_many_rows_were_resident_in_a_row() -> None:
    residency = Residency()
    take(residency, 256, resident=False)
    take(residency, SETTLED_ROWS - 1, resident=True)
    assert residency.is_cold
    take(residency, 1, resident=False)
    take(residency, SETTLED_ROWS - 1, resident=True)
    assert residency.is_cold
    take(residency, 1, resident=True)
    assert not residency.is_cold


def test_a_gather_that_waits_makes_a_view_cold_again() -> None:
    residency = Residency()
    take(residency, ALARM_ROWS, resident=True)
    take(residency, 256, resident=True)
    assert not residency.is_cold
    take(residency, 256, resident=False)
    assert residency.is_cold
    take(residency, ALARM_ROWS, resident=True)
    assert not residency.is_cold, "nothing was read: it was a false alarm"


@pytest.mark.parametrize("rows", [1, 256, 100_000])
@pytest.mark.parametrize("row_bytes", [40, 2000, 400_000])
def test_first_touches_are_no_alarm_and_a_disk_is(rows: int, row_bytes: int) -> None:
    residency = Residency()
    take(residency, ALARM_ROWS, resident=True)
    touches = rows * (1 + row_bytes // 65536)  # the kernel maps 16 pages at a touch
    residency.gathered(rows, row_bytes, touches * 6e-6 + rows * row_bytes / 10e9)
    assert not residency.is_cold
    residency.gathered(rows, row_bytes, rows * (80e-6 + row_bytes / 1e9))
    assert residency.is_cold


def test_rows_announced_ahead_do_not_pass_for_resident_when_they_are_taken() -> None:
    residency = Residency()
    batches = 2 * SETTLED_ROWS // 4096
    for _ in range(batches):
        residency.announced(4096, read=True, ahead=True)
    for _ in range(batches):
        residency.announced(4096, read=False, ahead=False)
    assert residency.is_cold


def test_rows_announced_ahead_that_were_resident_are_a_proof() -> None:
    residency = Residency()
    residency.announced(ALARM_ROWS, read=False, ahead=True)
    assert not residency.is_cold


def test_rows_announced_ahead_and_never_taken_cannot_keep_a_view_cold() -> None:
    residency = Residency()
    residency.announced(1000, read=True, ahead=True)
    take(residency, 1000, resident=True)
    take(residency, SETTLED_ROWS, resident=True)
    assert not residency.is_cold


def test_where_reads_are_not_counted_slow_gathers_keep_a_view_announcing() -> None:
    residency = Residency()
    for _ in range(5):
        assert residency.is_cold
        residency.announced(ALARM_ROWS, read=False, ahead=False)
        residency.gathered(ALARM_ROWS, 40, 1.0)
    residency.announced(ALARM_ROWS, read=False, ahead=False)
    residency.gathered(ALARM_ROWS, 40, 1e-5)
    assert not residency.is_cold


# ---------------------------------------------------------------- which pages


@given(
    st.lists(st.integers(0, 500), min_size=1, max_size=50),
    st.integers(1, 20_000),
    st.integers(0, 100),
)
def test_page_ranges_are_the_pages_of_the_rows(
    rows: list[int], row_bytes: int, base_page: int
) -> None:
    base = base_page * 4096
    starts, sizes = page_ranges(np.array(rows), row_bytes, base, 4096)
    assert (starts % 4096 == 0).all()
    assert (sizes % 4096 == 0).all()
    assert (sizes > 0).all()
    found = {
        page
        for start, size in zip(starts.tolist(), sizes.tolist(), strict=True)
        for page in range(start // 4096, (start + size) // 4096)
    }
    expected = {
        page
        for row in rows
        for page in range(
            (base + row * row_bytes) // 4096, (base + (row + 1) * row_bytes - 1) // 4096 + 1
        )
    }
    assert found == expected


def test_a_run_of_rows_is_one_range_and_the_order_of_others_is_kept() -> None:
    starts, sizes = page_ranges(np.arange(1000), 40, 0, 4096)
    assert (starts.tolist(), sizes.tolist()) == ([0], [40_960])
    starts, sizes = page_ranges(np.array([900, 0, 1, 500]), 4096, 8192, 4096)
    assert starts.tolist() == [8192 + 900 * 4096, 8192, 8192 + 500 * 4096]
    assert sizes.tolist() == [4096, 8192, 4096]


# ---------------------------------------------------------------- views


def mapped(folder: Path, rows: int) -> tuple[ArrayView, np.ndarray]:
    """A view over one synced file, and what it holds."""
    values = np.arange(rows * 250, dtype=np.float32).reshape(rows, 250)
    path = folder / "rows"
    with path.open("wb") as file:
        file.write(values.tobytes())
        file.flush()
        os.fsync(file.fileno())
    return mapped_view([Segment(path, 0, 0, rows)], WIDE, rows), values


def drop(path: Path) -> None:
    """Take a file that is nowhere mapped out of the page cache, if its file system can."""
    fd = os.open(path, os.O_RDONLY)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)


def resident(address: int, size: int) -> float:
    """The share of pages that are in memory."""
    pages = (ctypes.c_ubyte * (size // mmap.PAGESIZE))()
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.mincore(ctypes.c_void_p(address), ctypes.c_size_t(size), pages) == 0
    return sum(page & 1 for page in pages) / len(pages)


@UNIX
def test_a_hot_view_announces_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    view, values = mapped(tmp_path, 600)
    calls = []
    monkeypatch.setattr(paging, "will_need", lambda *ranges: calls.append(ranges))
    monkeypatch.setattr(paging, "_blocks_read", lambda: 0)
    rows = np.random.default_rng(0).permutation(600)
    for _ in range(3):
        np.testing.assert_array_equal(view.take(rows), values[rows])
        assert not view.is_cold
        view.announce(rows)
    assert len(calls) == 1


@UNIX
def test_a_slow_gather_of_a_hot_view_has_the_next_one_announced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    view, values = mapped(tmp_path, 600)
    monkeypatch.setattr(paging, "_blocks_read", lambda: 0)
    view.take(np.arange(600))
    assert not view.is_cold
    clock = iter([0.0, 0.001, 5.0, 5.5])
    monkeypatch.setattr(views, "perf_counter", lambda: next(clock))
    view.take(np.arange(300))
    assert not view.is_cold
    np.testing.assert_array_equal(view.take(np.arange(300)), values[:300])
    assert view.is_cold


@UNIX
def test_a_large_gather_is_announced_piece_by_piece_one_ahead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paging, "PIECE_BYTES", 100 * (1000 + mmap.PAGESIZE))
    view, values = mapped(tmp_path, 1050)
    told: list[str] = []
    reads = iter(range(1000))
    real = paging.page_ranges

    def note(rows: np.ndarray, *rest: int) -> tuple[np.ndarray, np.ndarray]:
        told.append(f"announce {len(rows)}")
        return real(rows, *rest)

    monkeypatch.setattr(paging, "page_ranges", note)
    monkeypatch.setattr(paging, "_blocks_read", lambda: next(reads))
    rows = np.random.default_rng(0).permutation(1050)[:250]
    np.testing.assert_array_equal(view.take(rows), values[rows])
    assert view.is_cold
    assert told == ["announce 100", "announce 100", "announce 50"]
    pieces = Paging(view.array).announced(rows)
    del told[:]
    next(pieces)
    assert told == ["announce 100", "announce 100"], "the next piece is on its way, and no other"
    out = np.empty((1050, 250), np.float32)
    assert view.take(np.arange(1050), out) is out
    np.testing.assert_array_equal(out, values)


@UNIX
@pytest.mark.parametrize("at_once", [True, False])
def test_announced_rows_come_into_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_once: bool
) -> None:
    """On a file system in memory this holds without a hint as well."""
    monkeypatch.setattr(paging, "_at_once", at_once)
    mapped(tmp_path, 4096)
    drop(tmp_path / "rows")
    view = mapped_view([Segment(tmp_path / "rows", 0, 0, 4096)], WIDE, 4096)
    begin = view.array.ctypes.data
    view.announce(np.arange(0, 4096, 32))  # 8 pages apart
    deadline = time.monotonic() + 10
    while not all(resident(begin + row * 1000 // 4096 * 4096, 4096) for row in range(0, 4096, 32)):
        assert time.monotonic() < deadline
        time.sleep(0.01)


@LINUX
def test_cold_rows_are_seen_to_be_read(tmp_path: Path) -> None:
    mapped(tmp_path, 4096)
    drop(tmp_path / "rows")
    view, values = mapped_view([Segment(tmp_path / "rows", 0, 0, 4096)], WIDE, 4096), None
    begin = view.array.ctypes.data
    was_cold = resident(begin, 1000 * mmap.PAGESIZE) < 0.5
    rows = np.random.default_rng(0).permutation(4096)[:ALARM_ROWS]
    values = np.arange(4096 * 250, dtype=np.float32).reshape(4096, 250)[rows]
    np.testing.assert_array_equal(view.take(rows), values)
    assert view.is_cold == was_cold
    if was_cold:  # and the read-ahead of a fault did not fetch what nobody asked for
        assert resident(begin, 1000 * mmap.PAGESIZE) < 0.8


def vm_flags(address: int) -> set[str]:
    """The kernel's flags of the map at an address, such as "rr": read at random."""
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first = line.split()[0]
        if "-" in first and not first.endswith(":"):
            begin, end = (int(part, 16) for part in first.split("-"))
            inside = begin <= address < end
        elif inside and first == "VmFlags:":
            return set(line.split()[1:])
    raise AssertionError("nothing is mapped there")


@LINUX
def test_faults_fetch_no_neighbours_while_rows_come_from_a_disk_at_random(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else an epoch in little memory does not end: read-ahead pushes out what was announced."""
    blocks = 0
    monkeypatch.setattr(paging, "_blocks_read", lambda: blocks)

    def will_read(*ranges: object) -> None:
        nonlocal blocks
        blocks += 8

    monkeypatch.setattr(paging, "will_need", will_read)
    view, _ = mapped(tmp_path, 1000)
    begin = view.array.ctypes.data
    assert "rr" not in vm_flags(begin)
    view.take(np.arange(256))
    assert "rr" in vm_flags(begin)
    view.read(0, 10)
    assert "rr" not in vm_flags(begin), "whoever reads in order gets the read-ahead"
    view.take(np.arange(256))
    assert "rr" in vm_flags(begin)
    monkeypatch.setattr(paging, "will_need", lambda *ranges: None)
    for _ in range(SETTLED_ROWS // 1000 + 1):
        view.take(np.arange(1000))
    assert not view.is_cold
    assert "rr" not in vm_flags(begin), "and so does data that is in memory"
    view._paging = paging_of(view.array)
    view.take(np.arange(256))
    assert "rr" not in vm_flags(begin), "a warm start says nothing on the order"


@LINUX
def test_refused_hints_change_no_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(pid: int, flags: int = 0) -> int:
        raise PermissionError(1, "not here")

    monkeypatch.setattr(os, "pidfd_open", refuse)
    monkeypatch.setattr(paging, "_at_once", True)
    view, values = mapped(tmp_path, 300)
    np.testing.assert_array_equal(view.take(np.arange(299, -1, -1)), values[::-1])
    assert not paging._at_once
    monkeypatch.setattr(paging, "_at_once", False)
    hole = mmap.mmap(-1, 4 * mmap.PAGESIZE)
    address = np.frombuffer(hole, np.uint8).ctypes.data
    will_need(np.array([address]), np.array([mmap.PAGESIZE]))


@LINUX
def test_a_refusal_by_the_kernel_falls_back_to_one_call_a_range(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(paging, "_at_once", True)
    monkeypatch.setattr(paging, "_PROCESS_MADVISE", -1)  # no such call
    region = mmap.mmap(-1, mmap.PAGESIZE)
    address = np.frombuffer(region, np.uint8).ctypes.data
    will_need(np.array([address]), np.array([mmap.PAGESIZE]))
    assert not paging._at_once


@LINUX
def test_announcing_leaves_no_descriptor_behind(tmp_path: Path) -> None:
    view, _ = mapped(tmp_path, 300)
    before = os.listdir("/proc/self/fd")
    for _ in range(5):
        will_need(*page_ranges(np.arange(0, 300, 7), 1000, view.array.ctypes.data))
    assert len(os.listdir("/proc/self/fd")) == len(before)


@LINUX
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_child_announces_its_own_pages(tmp_path: Path) -> None:
    mapped(tmp_path, 300)
    view = mapped_view([Segment(tmp_path / "rows", 0, 0, 300)], WIDE, 300)
    expected = view.take(np.arange(100))
    child = os.fork()
    if child == 0:
        try:
            view._paging = paging_of(view.array)  # cold again
            with pytest.MonkeyPatch.context() as patch:
                asked: list[int] = []
                opened = os.pidfd_open
                patch.setattr(os, "pidfd_open", lambda pid: (asked.append(pid), opened(pid))[1])
                same = bool((view.take(np.arange(100)) == expected).all())
            os._exit(0 if same and asked == [os.getpid()] else 1)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_threads_may_announce_and_take_together(tmp_path: Path) -> None:
    view, values = mapped(tmp_path, 2000)
    wrong: list[int] = []

    def work(seed: int) -> None:
        for _ in range(50):
            rows = np.random.default_rng(seed).integers(0, 2000, 64)
            view.announce(rows)
            if not (view.take(rows) == values[rows]).all():
                wrong.append(seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_views_that_are_no_mapping_take_the_hint_and_do_nothing(tmp_path: Path) -> None:
    mapped(tmp_path, 10)
    for view in (
        segment_view([Segment(tmp_path / "rows", n * 1000, n, n + 5) for n in (0, 5)], WIDE, 10),
        ArrayView(np.zeros((10, 250), np.float32)),
        mapped_view([], WIDE, 0),
    ):
        assert not view.is_cold
        view.announce(np.arange(3))


# ---------------------------------------------------------------- stores


@pytest.mark.parametrize("suffix", [".zarr", ".h5"])
@pytest.mark.parametrize("kind", ["probs", "logits"])
def test_a_store_takes_hints_for_committed_rows_alone(
    tmp_path: Path, suffix: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / f"store{suffix}"
    rows = np.full((300, 4), 0.25, np.float32)
    with fostore.create(path, num_samples=300, num_classes=4, kind=kind) as writer:
        writer.append(rows)
    store = fostore.open(path)
    store.announce([5, 3, 3])
    if sys.platform != "win32":
        with pytest.raises(UncommittedError, match="300"):
            store.announce([300])
    np.testing.assert_allclose(store.take([5, 3, 3]), rows[:3])
    store.take(np.arange(300))

    def refuse(*ranges: object) -> None:
        raise AssertionError("announced while hot")

    monkeypatch.setattr(paging, "will_need", refuse)
    if not store.reader.column(0).is_cold:
        store.announce([299])
