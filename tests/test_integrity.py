"""What stands between a row and its loss: orders of writes and syncs, checksums, and what a kill leaves."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from typer.testing import CliRunner

import fostore
from fostore import disk
from fostore.cli import app
from fostore.conversion import convert
from fostore.encodings import encoding_of, make_schema
from fostore.errors import ArgumentError, DamageError, FormatError, RowError, UnsafeError
from fostore.files.json import export
from fostore.formats.zarr import tails as zarr_tails
from fostore.places import lock
from support import probs
from work import UNIT, K, N, begin

Events = list[tuple[str, int]]


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> Events:
    """Writes (with their offset) and syncs of data, as they come."""
    found: Events = []
    write_at, sync_data = disk.write_at, disk.sync_data

    def write(fd: int, data: Any, offset: int) -> None:
        found.append(("write", offset))
        write_at(fd, data, offset)

    def sync(fd: int) -> None:
        found.append(("sync", fd))
        sync_data(fd)

    monkeypatch.setattr(disk, "write_at", write)
    monkeypatch.setattr(disk, "sync_data", sync)
    return found


def sealed(path: Path, num_samples: int = N, **options: Any) -> Path:
    with begin(path, num_samples, **options) as writer:
        writer.append(probs(num_samples, K))
    return path


def begun(path: Path, stop: int) -> Path:
    """A store whose first rows are committed."""
    with begin(path) as writer:
        writer.append(probs(stop, K))
    return path


# ------------------------------------------------------------------ HDF5: hashes and header


def test_hashes_of_which_half_was_written_are_computed_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = fostore.open(sealed(tmp_path / "whole.h5")).digest()
    real = disk.write_at

    def half(fd: int, data: Any, offset: int) -> None:
        view = memoryview(data).cast("B")
        real(fd, view[:16] if len(view) == 32 else view, offset)
        if len(view) == 32:  # the hash of a unit of one block
            raise OSError(5, "I/O error")

    writer = begin(tmp_path / "s.h5")
    writer.append(probs(1500, K))
    monkeypatch.setattr(disk, "write_at", half)
    for act in (writer.commit, writer.close):
        with pytest.raises(OSError, match="I/O error"):
            act()
    monkeypatch.setattr(disk, "write_at", real)
    assert fostore.open(tmp_path / "s.h5").verify() == []
    with begin(tmp_path / "s.h5", exists="resume") as writer:
        start = len(writer)
        writer.append(probs(N - start, K, start=start))
    assert fostore.open(tmp_path / "s.h5").digest() == expected
    assert fostore.open(tmp_path / "s.h5").verify() == []


def test_hashes_are_durable_before_a_slot_says_so(tmp_path: Path, events: Events) -> None:
    writer = begin(tmp_path / "s.h5")
    with h5py.File(tmp_path / "s.h5", "r", locking=False) as file:
        hashes = file["block_hashes"].id.get_offset()
    writer.append(probs(UNIT, K))
    events.clear()
    writer.commit()
    at = events.index(("write", hashes))
    assert [what for what, _ in events[at:]] == ["write", "sync", "write", "sync"]
    writer.close()


def test_plain_readers_find_no_hash_of_a_block_that_has_grown(tmp_path: Path) -> None:
    sealed(tmp_path / "s.h5", 1300)
    with begin(tmp_path / "s.h5", exists="resume") as writer:
        writer.append(probs(100, K, start=1300))
    with h5py.File(tmp_path / "s.h5", "r", locking=False) as file:
        known = np.asarray(file["block_hashes"]).any(axis=(1, 2))
    assert known.tolist() == [True, False, False]


def test_a_header_is_durable_before_its_mirrors_change(tmp_path: Path, events: Events) -> None:
    with begin(sealed(tmp_path / "s.h5"), exists="resume") as writer:
        events.clear()
        writer.update_meta({"note": "new"})
    told = [what for what, _ in events]
    assert told[:3] == ["write", "sync", "write"]
    assert told[-1] == "sync"


# ------------------------------------------------------------------ Zarr: tails and journal


def test_a_sync_that_failed_is_not_repeated_and_taken_for_good(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system may have dropped the bytes, and would not say so again."""
    writer = begin(tmp_path / "s.zarr")
    units = writer._units
    units.write(0, 0, probs(10, K))
    with monkeypatch.context() as patch:
        patch.setattr(disk, "sync_data", failing)
        with pytest.raises(OSError, match="gone"):
            units.sync()
    with pytest.raises(OSError, match="gone"):
        units.sync()
    writer.release()


def test_no_commit_follows_a_record_that_may_not_be_durable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = begin(tmp_path / "s.zarr")
    writer.append(probs(10, K))
    writer._rows.drain()
    runs = writer._rows.ledger.uncommitted()
    writer._units.sync()
    with monkeypatch.context() as patch:
        patch.setattr(disk, "sync_data", failing)
        with pytest.raises(OSError, match="gone"):
            writer._units.commit(runs)
    with pytest.raises(DamageError, match="failed halfway"):
        writer._units.commit(runs)
    writer.release()


def failing(_: int) -> None:
    raise OSError(5, "gone")


def test_a_tail_is_durable_before_its_descriptor_is_given_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, events: Events
) -> None:
    monkeypatch.setattr(zarr_tails, "_MAX_OPEN", 1)
    writer = begin(tmp_path / "s.zarr")
    events.clear()
    for unit in range(3):
        writer._units.write(0, unit * UNIT, probs(5, K))
    assert [what for what, _ in events].count("sync") == 2
    writer.release()


def test_a_sync_during_a_write_does_not_count_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, events: Events
) -> None:
    writer = begin(tmp_path / "s.zarr")
    units, write_at = writer._units, disk.write_at
    units.write(0, 0, probs(5, K))

    def with_sync(fd: int, data: Any, offset: int) -> None:
        units.sync()
        write_at(fd, data, offset)

    with monkeypatch.context() as patch:
        patch.setattr(disk, "write_at", with_sync)
        units.write(0, 5, probs(5, K, start=5))
    events.clear()
    units.sync()
    assert [what for what, _ in events] == ["sync"]
    writer.release()


def test_names_of_shards_and_hashes_are_durable_before_the_shapes_show_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[str, Path]] = []
    real = {name: getattr(disk, name) for name in ("rename", "sync_directory", "write_whole")}
    for name in real:

        def noting(*given: Any, what: str = name) -> None:
            told.append((what, given[1] if what == "rename" else given[0]))
            real[what](*given)

        monkeypatch.setattr(disk, name, noting)
    writer = begin(tmp_path / "s.zarr")
    writer.append(probs(UNIT, K))
    told.clear()
    writer.commit()
    shown = next(at for at, (what, _) in enumerate(told) if what == "write_whole")
    for at, (what, target) in enumerate(told[:shown]):
        if what == "rename":
            array = next(
                folder for folder in target.parents if folder.name in ("probs", "block_hashes")
            )
            for folder in (target.parent, array):  # the new name, and that the old one is gone
                assert ("sync_directory", folder) in told[at:shown]
    assert [what for what, _ in told[:shown]].count("rename") == 2
    writer.close()


def test_published_rows_of_a_unit_that_goes_on_get_a_checksum_of_their_own(tmp_path: Path) -> None:
    """Its block hashes may soon be those of a longer block."""
    sealed(tmp_path / "s.zarr", 1300)
    with begin(tmp_path / "s.zarr", exists="resume") as writer:
        writer.write(1500, probs(100, K, start=1500))
    runs = fostore.open(tmp_path / "s.zarr").reader.runs()
    assert [(run.start, run.stop) for run in runs] == [(1024, 1300), (1500, 1600)]
    assert all(run.crc is not None for run in runs)


def test_hashes_of_a_seal_that_was_cut_short_do_not_vouch_for_rows(tmp_path: Path) -> None:
    sealed(tmp_path / "s.zarr", 1300)
    for stop in (1400, 1500):
        with begin(tmp_path / "s.zarr", exists="resume") as writer:
            writer.append(probs(100, K, start=stop - 100))
            assert not writer._units.hashes(1).any() or stop == 1400
    with begin(tmp_path / "s.zarr", exists="resume") as writer:
        assert not writer._units.hashes(1).any()


# ------------------------------------------------------------------ both formats


def data_byte(path: Path, row: int) -> tuple[Path, int]:
    """The file and the offset of a row's first byte, in unit 0 of a store in progress."""
    if path.suffix == ".zarr":
        return path / "probs" / ".tail.0", row * K * 4
    with h5py.File(path, "r", locking=False) as file:
        return path, file["probs"].id.get_offset() + row * K * 4


def flip(file: Path, at: int, bit: int = 1) -> None:
    data = bytearray(file.read_bytes())
    data[at] ^= bit
    file.write_bytes(data)


def test_committed_rows_that_changed_are_not_gone_on_with(path: Path) -> None:
    flip(*data_byte(begun(path, 500), 77))
    with pytest.raises(DamageError, match="bytes have changed") as caught:
        begin(path, exists="resume")
    assert caught.value.rows == ((0, 500),)


def test_ctrl_c_while_the_lock_is_signed_leaves_no_lock(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(_: int) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(lock, "_sign", interrupted)
        with pytest.raises(KeyboardInterrupt):
            begin(path)
    assert list(path.parent.iterdir()) == []
    sealed(path)


def test_a_second_thread_is_refused_by_name(path: Path) -> None:
    errors: list[BaseException] = []
    with begin(path) as writer:
        writer.append(probs(100, K))
        for act in (lambda: writer.append(probs(1, K)), writer.commit, writer.seal):
            in_thread(act, errors)
        assert len(writer) == 100
        writer.append(probs(N - 100, K, start=100))
    assert [type(error) for error in errors] == [ArgumentError] * 3
    assert "'MainThread', and 'another' called" in str(errors[0])
    assert fostore.open(path).verify() == []


def test_a_thread_that_has_ended_hands_the_writer_over(path: Path) -> None:
    errors: list[BaseException] = []
    with begin(path, commit_seconds=0) as writer:
        in_thread(lambda: writer.append(probs(100, K)), errors)
        writer.append(probs(N - 100, K, start=100))
    assert errors == []
    assert fostore.open(path).is_sealed


def in_thread(act: Callable[[], object], errors: list[BaseException]) -> None:
    def run() -> None:
        try:
            act()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, name="another")
    thread.start()
    thread.join()


# ------------------------------------------------------------------ header and metadata


HEADER_CHANGES: dict[str, Any] = {
    "num_samples": 1000,
    "identity": {"model": {"fingerprint": "other"}},
    "temperature": 2.0,
    "sum_tolerance": 0.5,
    "class_names": ["a", "c", "b"],
    "software": {},
    "created": "2020-01-01T00:00:00Z",
    "sealed": False,
    "unknown": 1,
}


@pytest.mark.parametrize("key", HEADER_CHANGES)
@pytest.mark.parametrize("suffix", [".zarr", ".json"])
@pytest.mark.parametrize("whole", [True, False])
def test_a_header_that_was_changed_is_refused(
    tmp_path: Path, key: str, suffix: str, whole: bool
) -> None:
    make = sealed if whole else lambda path, **more: begin(path, **more)
    made = make(tmp_path / "s.zarr", class_names=["a", "b", "c"])
    if not whole:
        made.append(probs(900, K))
        made.close()
    path = tmp_path / "s.zarr" / "zarr.json"
    if suffix == ".json":
        path = tmp_path / "s.json"
        export(path, fostore.open(tmp_path / "s.zarr").reader)
    document = json.loads(path.read_text())
    header = document["attributes" if suffix == ".zarr" else "meta"]["fostore"]
    if header.get(key) == HEADER_CHANGES[key]:
        return
    header[key] = HEADER_CHANGES[key]
    path.write_text(json.dumps(document))
    with pytest.raises((DamageError, FormatError)) as caught:
        fostore.open(tmp_path / f"s{suffix}")
    assert "checksum" in str(caught.value) or isinstance(caught.value, FormatError)
    if key in (
        "identity",
        "temperature",
        "sum_tolerance",
        "class_names",
        "software",
        "created",
        "unknown",
    ):
        assert "Restore" in str(caught.value)


def test_a_store_without_checksums_opens_goes_on_and_stays_so(tmp_path: Path) -> None:
    path = begun(tmp_path / "s.zarr", 500)
    group = json.loads((path / "zarr.json").read_text())
    for key in ("checksum", "meta_checksum"):
        del group["attributes"]["fostore"][key]
    (path / "zarr.json").write_text(json.dumps(group))
    assert fostore.open(path).verify() == []
    with begin(path, exists="resume") as writer:
        writer.append(probs(N - 500, K, start=500))
    assert fostore.open(path).verify() == []
    assert "checksum" not in json.loads((path / "zarr.json").read_text())["attributes"]["fostore"]


def test_metadata_that_was_changed_is_told_by_verify_and_written_anew_counts(
    tmp_path: Path,
) -> None:
    import zarr

    path = sealed(tmp_path / "s.zarr", meta={"note": "mine"})
    group: Any = zarr.open_group(path, mode="r+")
    group.attrs["meta"] = {"note": "by another program"}
    store = fostore.open(path)
    assert store.meta == {"note": "by another program"}
    assert [finding.where for finding in store.verify("structure")] == ["meta"]
    assert np.array_equal(store[:N], probs(N, K))
    with begin(path, exists="resume") as writer:
        writer.update_meta({"note": "ours"})
    assert fostore.open(path).verify() == []


@pytest.mark.parametrize("key", ['"meta"', '"fostore"'])
@pytest.mark.parametrize("bit", [1, 2, 4, 16, 32, 64])
def test_a_json_store_whose_keys_were_damaged_does_not_pass_for_plain_rows(
    tmp_path: Path, key: str, bit: int
) -> None:
    path = tmp_path / "s.json"
    convert(sealed(tmp_path / "s.zarr", 5, ids=range(10, 15)), path, progress=False)
    flip(path, path.read_bytes().index(key.encode()) + 2, bit)
    with pytest.raises((DamageError, FormatError)):
        fostore.open(path)


@pytest.mark.parametrize("suffix", [".zarr", ".h5"])
def test_metadata_beyond_the_limit_is_refused_before_anything_is_made(
    tmp_path: Path, suffix: str
) -> None:
    with pytest.raises(ArgumentError, match="keeps at most 8,388,608"):
        begin(tmp_path / f"s{suffix}", meta={"large": "x" * (8 << 20)})
    assert list(tmp_path.iterdir()) == []
    writer = begin(sealed(tmp_path / f"s{suffix}"), exists="resume")
    with writer, pytest.raises(ArgumentError, match="keeps at most 8,388,608"):
        writer.update_meta({"large": "x" * (8 << 20)})
    assert fostore.open(tmp_path / f"s{suffix}").verify() == []


def test_a_text_of_metadata_beyond_the_limit_is_not_parsed(tmp_path: Path) -> None:
    path = sealed(tmp_path / "s.zarr", 5)
    text = (path / "zarr.json").read_text()
    (path / "zarr.json").write_text(text + " " * (16 << 20))
    with pytest.raises(UnsafeError, match="expected at most 16,777,216"):
        fostore.open(path)
    rows = '{"0": [0.5, 0.5]}'
    (tmp_path / "s.json").write_text(
        f'{{"meta": {{"x": "{"y" * (16 << 20)}"}}, "distributions": {rows}}}'
    )
    with pytest.raises(UnsafeError, match="16,777,216"):
        fostore.open(tmp_path / "s.json")


def test_a_strangers_metadata_does_not_command_the_terminal(tmp_path: Path) -> None:
    evil = "\x1b]0;owned\x07 \x9b2J \r \u202e"
    path = sealed(tmp_path / "s.zarr", 5, meta={evil: evil}, class_names=["a", "b", evil])
    shown = {
        name: CliRunner().invoke(app, [name, str(path)])
        for name in ("info", "meta", "head", "verify", "stats")
    }
    for name, result in shown.items():
        assert result.exit_code == 0, (name, result.output)
        assert not {"\x1b", "\x07", "\x9b", "\r", "\u202e"} & set(result.output), name
    assert json.loads(shown["meta"].stdout) == {evil: evil}


# ------------------------------------------------------------------ what a kill leaves


def test_an_exchange_by_renames_that_was_cut_is_undone_by_whoever_writes_next(path: Path) -> None:
    """Without renameat2 (NFS, FUSE) a kill may leave the old store under a hidden name alone."""
    source = sealed(path.with_name(f"source{path.suffix}"))
    sealed(path, 1300)
    away = path.with_name(f".{path.name}.old")
    os.rename(path, away)
    with pytest.raises(ArgumentError, match="would lose"):
        convert(source, path, dtype="float16", exists="overwrite", progress=False)
    with pytest.raises(fostore.errors.StoreExistsError):
        convert(source, path, exists="fail", progress=False)
    assert len(fostore.open(path)) == 1300
    os.rename(path, away)
    with begin(path, None, exists="resume"):
        pass
    assert len(fostore.open(path)) == 1300
    os.rename(
        sealed(path.with_name(f"older{path.suffix}"), 5), away
    )  # as a cut behind the second rename leaves it
    convert(source, path, exists="overwrite", progress=False)
    assert len(fostore.open(path)) == N
    assert sorted(entry.name for entry in path.parent.iterdir()) == sorted([path.name, source.name])


def test_a_conversion_to_json_that_is_killed_leaves_nothing_that_the_next_one_does_not_take(
    tmp_path: Path,
) -> None:
    sealed(tmp_path / "s.zarr")
    script = (
        "import os, signal, sys; from fostore import disk; from fostore.conversion import convert\n"
        "real, calls = disk.write_at, []\n"
        "def write_at(fd, data, at):\n"
        "    real(fd, data, at); name = disk.name_of(fd)\n"
        "    if name.endswith('.json') or '.part.json' in name: os.kill(os.getpid(), signal.SIGKILL)\n"
        "disk.write_at = write_at\n"
        "convert(sys.argv[1], sys.argv[2], progress=False)\n"
    )
    out = tmp_path / "out"
    out.mkdir()
    for _ in range(2):
        asked = [sys.executable, "-c", script, str(tmp_path / "s.zarr"), str(out / "d.json")]
        assert subprocess.run(asked, check=False).returncode == -9
    convert(tmp_path / "s.zarr", out / "d.json", progress=False)
    assert [entry.name for entry in out.iterdir()] == ["d.json"]


# ------------------------------------------------------------------ values


def test_sums_of_half_precision_are_checked_where_rows_come_as_they_are_stored() -> None:
    schema = make_schema(3, dtype="float16")
    with pytest.raises(RowError, match="row 7"):
        encoding_of(schema).check([np.array([[0.5, 0.5, 0.5]], np.float16)], schema, 7)
