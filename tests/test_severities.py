"""Litter harms no store, damage has an address, and one reason has one exit code in every command."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import fostore
import fostore.evaluate
from fostore.cli import app
from fostore.conversion import convert
from fostore.errors import DamageError, FormatError, StoreNotFoundError, UncommittedError
from fostore.places.litter import is_litter
from fostore.places.local import LocalFile
from support import probs

N, K = 1500, 3
LITTER = [
    "._{}",
    ".DS_Store",
    "Thumbs.db",
    "desktop.ini",
    ".nfs000000000001",
    ".fuse_hidden0001",
    "~${}",
    ".{}.swp",
    ".syncthing.{}.tmp",
    "{}.sync-conflict-20260101-000000-ABCDEFG",
    "{} (a's conflicted copy 2026-01-01)",
]


def written(path: Path, num_samples: int = N, *, stop: int | None = None) -> Path:
    with fostore.create(path, num_samples=num_samples, num_classes=K, unit_rows=1024) as writer:
        writer.append(probs(num_samples if stop is None else stop, K))
    return path


def strew(store: Path) -> None:
    """Litter beside every file and in every folder of a store, folders of a NAS too."""
    for folder, _, files in list(os.walk(store)):
        for name in [*files, "zarr.json"]:
            for pattern in LITTER:
                Path(folder, pattern.format(name)).write_bytes(b"\0litter")
        Path(folder, "@eaDir").mkdir()
        Path(folder, "@eaDir", "zarr.json@SynoEAStream").write_bytes(b"x")


def test_no_file_of_a_store_is_litter(tmp_path: Path) -> None:
    for path in (written(tmp_path / "a.zarr"), written(tmp_path / "b.zarr", stop=700)):
        assert not [p.name for p in path.rglob("*") if is_litter(p.name)]
    assert not any(map(is_litter, [".zarr.json.tmp", ".12.tmp", ".fostore.journal.main", "c", "0"]))


def test_litter_is_one_warning_and_the_exit_code_is_0(tmp_path: Path) -> None:
    path = written(tmp_path / "a.zarr")
    strew(path)
    (finding,) = fostore.open(path).verify()
    assert (finding.severity, finding.rows) == ("warning", None)
    assert "harm nothing" in finding.message
    run = CliRunner().invoke(app, ["verify", str(path)])
    assert run.exit_code == 0
    said = " ".join(run.stdout.split())  # lines end where a terminal does
    assert said.count("warning:") == 1
    assert "every row is a distribution" in said
    report = json.loads(CliRunner().invoke(app, ["verify", str(path), "--json"]).stdout)
    assert [found["severity"] for found in report["findings"]] == ["warning"]


def test_litter_does_not_hide_damage_and_a_file_of_nobody_stays_a_finding(tmp_path: Path) -> None:
    path = written(tmp_path / "a.zarr")
    strew(path)
    (path / "probs" / "notes.txt").write_text("mine")
    severities = {f.message: f.severity for f in fostore.open(path).verify()}
    assert sorted(severities.values()) == ["damage", "warning"]
    assert any("notes.txt is no part" in message for message in severities)
    assert CliRunner().invoke(app, ["verify", str(path)]).exit_code == 1


def test_a_store_full_of_litter_is_resumed_sealed_copied_and_replaced(tmp_path: Path) -> None:
    path = written(tmp_path / "a.zarr", stop=1100)
    strew(path)
    store = fostore.open(path)
    assert np.array_equal(store[:1100], probs(1100, K))
    with fostore.create(path, num_samples=N, num_classes=K, exists="resume") as writer:
        assert len(writer) == 1100
        writer.append(probs(N - 1100, K, start=1100))
    store.refresh()
    assert store.is_sealed
    assert [finding.severity for finding in store.verify()] == ["warning"]
    convert(path, tmp_path / "b.h5", progress=False)
    convert(tmp_path / "b.h5", path, exists="overwrite", progress=False)
    assert fostore.open(path).verify() == []
    folder = tmp_path / "c.zarr"
    folder.mkdir()
    (folder / ".DS_Store").write_bytes(b"x")
    convert(path, folder, exists="overwrite", progress=False)
    assert fostore.open(folder).verify() == []


@pytest.mark.parametrize("source", ["shards", "shards/*"])
def test_litter_among_shards_brings_no_rows(tmp_path: Path, source: str) -> None:
    shards = tmp_path / "shards"
    shards.mkdir()
    for i in range(2):
        np.save(shards / f"{i}.npy", probs(100, K, start=100 * i))
    for name in ("1 (a's conflicted copy 2026-01-01).npy", "1.sync-conflict-20260101-000000-A.npy"):
        shutil.copy(shards / "1.npy", shards / name)
    for name in ("Thumbs.db", "._0.npy", "~$0.npy"):
        (shards / name).write_bytes(b"x")
    assert convert(tmp_path / source, tmp_path / "a.zarr", progress=False).num_rows == 200
    assert np.array_equal(fostore.open(tmp_path / "a.zarr")[:], probs(200, K))


@pytest.mark.parametrize("suffix", [".zarr", ".h5"])
def test_a_kill_in_the_last_step_of_sealing_leaves_a_whole_store_and_a_warning(
    tmp_path: Path, suffix: str
) -> None:
    from fostore.formats.hdf5 import writer as hdf5_writer
    from fostore.formats.zarr import writer as zarr_writer

    path = tmp_path / f"a{suffix}"
    child = os.fork()
    if child == 0:
        kill = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)  # noqa: E731
        zarr_writer.clean = kill  # type: ignore[assignment]
        hdf5_writer.HDF5Writer._write_mirrors = kill  # type: ignore[method-assign]
        written(path)
        os._exit(1)
    assert os.WIFSIGNALED(os.waitpid(child, 0)[1])
    store = fostore.open(path)
    assert store.is_sealed
    assert [finding.severity for finding in store.verify()] == ["warning"]
    assert CliRunner().invoke(app, ["verify", str(path)]).exit_code == 0
    fostore.create(path, exists="resume").close()
    assert fostore.open(path).verify() == []


def test_a_mirror_that_was_edited_is_damage(tmp_path: Path) -> None:
    path = written(tmp_path / "a.h5")
    data = bytearray(path.read_bytes())
    text = next(t for t in (b'"num_classes": 3', b'"num_classes":3') if t in data)
    data[data.index(text) + len(text) - 1] ^= 1  # before the slots of the header
    path.write_bytes(data)
    (finding,) = fostore.open(path).verify()
    assert finding.severity == "damage"
    assert "something else than the header" in finding.message
    assert CliRunner().invoke(app, ["verify", str(path)]).exit_code == 1


# ------------------------------------------------------------------------------ exit codes


REASONS = {
    "nothing there": 3,
    "a file": 3,
    "an empty folder": 3,
    "a folder without a suffix": 3,
    "another suffix": 3,
    "another HDF5 file": 3,
    "no JSON of ours": 3,
    "a file that may not be read": 3,
    "a folder that may not be read": 3,
    "not finished": 1,
    "cut": 1,
}
COMMANDS = {
    "verify": "verify {}",
    "info": "info {}",
    "head": "head {}",
    "stats": "stats {}",
    "compare": "compare {} ok.zarr",
    "compare with": "compare ok.zarr {}",
    "convert": "convert {} out.npz --no-progress",
    "meta": "meta {}",
    "stack": "stack {} ok.zarr -o out.zarr --no-progress",
}
PARTLY = ("verify", "info", "head", "stats", "meta")
"""Take what is there of a store that is not finished."""


def of_reason(reason: str) -> Path:
    """What is wrong for this reason, in the current folder."""
    if reason == "nothing there":
        return Path("none.zarr")
    if reason == "an empty folder":
        Path("dir.zarr").mkdir()
        return Path("dir.zarr")
    if reason == "a folder without a suffix":
        Path("dir").mkdir()
        return Path("dir")
    if reason == "another HDF5 file":
        import h5py

        with h5py.File("other.h5", "w") as file:
            file.attrs["mine"] = 1
        return Path("other.h5")
    if reason == "not finished":
        return written(Path("a.zarr"), stop=700)
    if reason == "cut":
        path = written(Path("a.h5"))
        os.truncate(path, path.stat().st_size // 2)
        return path
    names = {"a file": "a.zarr", "another suffix": "a.txt", "no JSON of ours": "a.json"}
    path = Path(names.get(reason, "a.h5"))
    path.write_text("[1]")
    return path


def close_to_readers(path: Path, patch: pytest.MonkeyPatch) -> Path:
    """Take the right to read `path` away; root, whom no mode keeps out, is refused as others are."""
    path.chmod(0)
    if os.geteuid() == 0:
        really, said, shut = os.open, os.access, path.absolute()

        def is_shut(name: object) -> bool:
            there = (
                Path(os.path.abspath(os.fsdecode(name))) if isinstance(name, (str, Path)) else None
            )
            return there is not None and shut in (there, *there.parents)

        def opened(name: object, *args: object, **more: object) -> int:
            if is_shut(name):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(name))
            return really(name, *args, **more)  # type: ignore[call-overload, no-any-return]

        patch.setattr(os, "open", opened)
        patch.setattr(os, "access", lambda name, *args: not is_shut(name) and said(name, *args))
    return path


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("reason", REASONS)
def test_one_reason_has_one_exit_code_in_every_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reason: str, command: str
) -> None:
    monkeypatch.chdir(tmp_path)
    written(Path("ok.zarr"))
    if reason.endswith("that may not be read"):
        path = Path("a.h5" if "file" in reason else "a.zarr")
        close_to_readers(written(path), monkeypatch)
    else:
        path = of_reason(reason)
    run = CliRunner().invoke(app, COMMANDS[command].format(path).split())
    if path.exists():
        path.chmod(0o700)
    expected = 0 if reason == "not finished" and command in PARTLY else REASONS[reason]
    assert run.exit_code == expected, run.output
    if expected:
        assert run.stderr.startswith("error: ") or command == "verify"
    assert not list(tmp_path.glob("out.*"))


def test_a_store_that_is_not_finished_is_compared_in_part_as_the_error_says(tmp_path: Path) -> None:
    half = fostore.open(written(tmp_path / "a.zarr", stop=700))
    whole = fostore.open(written(tmp_path / "b.zarr"))
    with pytest.raises(UncommittedError, match=r"rows 700 to 1499.*select\(range\(700\)\) of both"):
        fostore.evaluate.compare(half, whole)
    part = range(700)
    assert fostore.evaluate.compare(half.select(part), whole.select(part)).tv.mean == 0


@pytest.mark.parametrize("is_there", [True, False])
def test_a_path_with_another_suffix_is_no_store(tmp_path: Path, is_there: bool) -> None:
    path = tmp_path / "a.txt"
    if is_there:
        path.write_text("hello")
    with pytest.raises(FormatError if is_there else StoreNotFoundError, match=r"a\.txt"):
        fostore.open(path)


# ------------------------------------------------------------------------------ replaced stores


@pytest.mark.parametrize("is_sealed", [True, False])
@pytest.mark.parametrize("how", ["overwritten", "removed"])
@pytest.mark.parametrize("suffix", [".zarr", ".h5"])
def test_a_store_that_was_replaced_under_its_reader_is_not_called_damaged(
    tmp_path: Path, suffix: str, how: str, is_sealed: bool
) -> None:
    path = written(tmp_path / f"a{suffix}", stop=None if is_sealed else 1200)
    held, unmapped = fostore.open(path), fostore.open(path)
    rows = held[:].copy()
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    if how == "overwritten":
        with fostore.create(path, num_samples=N, num_classes=K, unit_rows=1024) as writer:
            writer.append(probs(N, K, seed=1))
    assert [f for f in held.verify() if f.severity == "damage"] == []
    convert(held, tmp_path / "b.zarr", rows=slice(0, len(rows)), progress=False)
    assert np.array_equal(fostore.open(tmp_path / "b.zarr")[:], rows)
    assert [f.severity for f in unmapped.verify()][-1] == "damage"  # none of its rows can be read
    words = "another store has taken" if how == "overwritten" else "any more|is missing"
    if is_sealed:
        with pytest.raises(DamageError, match=words):
            convert(unmapped, tmp_path / "c.zarr", progress=False)


# ------------------------------------------------------------------------------ refresh


@pytest.mark.parametrize("is_mapped", [True, False])
@pytest.mark.parametrize("how", ["overwritten", "renamed over", "removed"])
@pytest.mark.parametrize("suffix", [".zarr", ".h5", ".json"])
def test_refresh_says_that_another_store_lies_there_and_the_old_rows_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, how: str, is_mapped: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = written(tmp_path / "rows.zarr")
    others = tmp_path / "others.zarr"
    with fostore.create(others, num_samples=N, num_classes=K) as writer:
        writer.append(probs(N, K, seed=1))
    path = Path(f"a{suffix}")
    convert(rows, path, progress=False)
    store = fostore.open(path)  # by a relative name, and the process goes elsewhere
    (tmp_path / "elsewhere").mkdir()
    if is_mapped:
        assert np.array_equal(store[7], probs(1, K, start=7)[0])
    if how == "overwritten":
        convert(others, path, exists="overwrite", progress=False)
    elif how == "renamed over":
        convert(others, f"b{suffix}", progress=False)
        if suffix == ".zarr":
            shutil.rmtree(path)
        os.rename(f"b{suffix}", path)
    elif suffix == ".zarr":
        shutil.rmtree(path)
    else:
        path.unlink()
    os.chdir("elsewhere")
    expected = StoreNotFoundError if how == "removed" else FormatError
    for _ in range(2):  # and says so again
        with pytest.raises(expected, match="store"):
            store.refresh()
    if is_mapped:
        assert np.array_equal(store[7], probs(1, K, start=7)[0])
        assert np.array_equal(store.array, probs(N, K).astype(store.array.dtype))


@pytest.mark.parametrize("suffix", [".zarr", ".h5"])
def test_refresh_never_forgets_a_commit_that_was_seen(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    writer = fostore.create(path, num_samples=N, num_classes=K, commit_seconds=1e9)
    for start in (0, 100, 200):
        writer.append(probs(100, K, start=start))
        writer.commit()
    store = fostore.open(path)
    assert len(store) == 300
    tear_the_last_commit(path)
    assert len(fostore.open(path)) == 200
    store.refresh()
    assert len(store) == 300
    assert np.array_equal(store[250], probs(1, K, start=250)[0])
    writer.append(probs(100, K, start=300))
    writer.commit()
    writer.close()
    store.refresh()
    assert len(store) == 400


def tear_the_last_commit(path: Path) -> None:
    """A flipped bit in the record of the newest commit."""
    if path.is_dir():
        from fostore.formats.zarr.journal import RECORD_BYTES

        (journal,) = (path / "probs").glob(".fostore.journal*")
        data = bytearray(journal.read_bytes())
        data[-RECORD_BYTES + 8] ^= 1
        journal.write_bytes(data)
        return
    from fostore.formats.hdf5.file import inspect
    from fostore.formats.hdf5.records import PROGRESS, RUNS_MAGIC, read_record

    fd = os.open(path, os.O_RDWR)
    file = LocalFile(path, fd, owned=False)
    extent = inspect(file).extents[PROGRESS]
    record = read_record(file, extent, RUNS_MAGIC, "")
    at = extent.offset + record.slot * extent.shape[1] + 40
    os.pwrite(fd, bytes([os.pread(fd, 1, at)[0] ^ 1]), at)
    os.close(fd)
