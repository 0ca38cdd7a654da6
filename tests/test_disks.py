"""Disks as clusters have them: without locks, read-only, foreign, full, a small TMPDIR; a refusal names the cure."""

from __future__ import annotations

import errno
import fcntl
import os
import pickle
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import fostore
from fostore import disk
from fostore.cli import app
from fostore.conversion import convert, stack
from fostore.errors import DamageError, FostoreError, PlaceError, SpaceError
from fostore.evaluate import entropy
from fostore.places import spool
from support import SUFFIXES, probs

N, K = 40, 3
FILES = (".json", ".npy", ".npz", ".safetensors", ".parquet", ".arrow", ".csv", ".jsonl", ".pt")


def create(path: Path, **options: Any) -> None:
    with fostore.create(path, num_samples=N, num_classes=K, **options) as writer:
        writer.append(probs(N, K))


def quiet(source: Any, target: Any, **options: Any) -> Any:
    return convert(source, target, progress=False, allow_lossy=True, **options)


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def generate(path: Path) -> None:
    generator = fostore.FirstOrderDataGenerator(lambda x: x, output_mode="probs")
    generator.generate_distributions(probs(N, K), False, store=path)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    create(tmp_path / "source.zarr")
    return tmp_path / "source.zarr"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "here").mkdir()
    return tmp_path / "here"


WRITERS: list[tuple[str, Callable[[Path, Path], Any]]] = [
    *((suffix, lambda path, _: create(path)) for suffix in SUFFIXES),
    *((suffix, lambda path, _: generate(path)) for suffix in SUFFIXES),
    *(
        (suffix, lambda path, source: quiet(source, path))
        for suffix in (*SUFFIXES, ".json", ".npy")
    ),
    *((s, lambda path, source: stack([source], path, progress=False)) for s in SUFFIXES),
]
"""Whoever takes the writer's lock."""


# ------------------------------------------------------------------ what a file system refuses

LOCKS = dict.fromkeys(
    (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP), "reading needs no locks"
)
PLACES = {
    errno.EROFS: "write to another disk",
    errno.EACCES: "choose a folder of your own",
    errno.EPERM: "choose a folder of your own",
    errno.ENAMETOOLONG: "choose a shorter one",
    errno.ESTALE: "open the store again",
}
NAMES = errno.errorcode.__getitem__


@pytest.mark.parametrize("code", LOCKS, ids=NAMES)
@pytest.mark.parametrize(("suffix", "write"), WRITERS)
def test_a_file_system_without_locks_is_named_and_nothing_stays(
    suffix: str,
    write: Callable[..., Any],
    code: int,
    folder: Path,
    source: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def lockf(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    path = folder / f"a{suffix}"
    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "lockf", lockf)
        with pytest.raises(PlaceError, match=LOCKS[code]) as caught:
            write(path, source)
        assert (caught.value.errno, str(path) in str(caught.value)) == (code, True)
        assert names_in(folder) == []
        assert len(fostore.open(source)) == N  # as the message says
    local = folder / "local"  # as the message says: written elsewhere, then copied here
    local.mkdir()
    write(local / path.name, source)
    (shutil.copytree if (local / path.name).is_dir() else shutil.copy)(local / path.name, path)
    if suffix != ".npy":
        assert fostore.open(path).verify() == []


@pytest.mark.parametrize("code", [*PLACES, errno.ENOSPC, errno.EDQUOT], ids=NAMES)
@pytest.mark.parametrize("call", ["the side file", "the folder"])
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_place_that_cannot_be_written_is_named_with_the_cure(
    suffix: str, call: str, code: int, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no(path: Any, *_: Any, **__: Any) -> None:
        raise OSError(code, os.strerror(code), os.fspath(path))

    path = folder / "new" / f"a{suffix}"
    if call == "the side file":
        monkeypatch.setattr(disk, "open_file", no)
    else:
        monkeypatch.setattr(os, "mkdir", no)
    expected = SpaceError if code in (errno.ENOSPC, errno.EDQUOT) else PlaceError
    with pytest.raises(expected, match=PLACES.get(code, "df -h, df -i, quota")) as caught:
        create(path)
    assert isinstance(caught.value, FostoreError)
    assert str(path.parent) in str(caught.value)
    assert isinstance(caught.value, OSError)


@pytest.mark.parametrize("suffix", [".zarr", ".h5", ".json"])
def test_a_name_that_leaves_no_room_for_the_side_file_is_refused_at_once(
    suffix: str, folder: Path, source: Path
) -> None:
    path = folder / ("x" * (253 - len(suffix)) + suffix)
    with pytest.raises(PlaceError, match="has a name that is too long"):
        quiet(source, path)
    assert names_in(folder) == []
    quiet(source, path.with_stem("x" * 200))


@pytest.mark.parametrize(
    "error",
    [
        disk.refusal(OSError(errno.EROFS, "Read-only file system"), "/mnt/a.zarr"),
        disk.refusal(OSError(errno.ENOSPC, "No space left on device"), "/mnt/a.zarr"),
        DamageError("row 3 is damaged", ((3, 4),)),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_a_worker_process_meets_arrives_as_it_was(error: Any) -> None:
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again), again.errno) == (type(error), str(error), error.errno)
    assert getattr(again, "rows", ()) == getattr(error, "rows", ())


def test_a_folder_in_the_place_of_a_file_is_named(folder: Path) -> None:
    (folder / "a.json").mkdir()
    with pytest.raises(PlaceError, match="is a folder"):
        fostore.FirstOrderDataGenerator(len).save_distributions(
            folder / "a.json", dict(enumerate(probs(N, K)))
        )
    assert names_in(folder) == ["a.json"]


def test_a_refusal_ends_a_command_with_one_line(
    folder: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lockf(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "lockf", lockf)
    result = CliRunner().invoke(app, ["convert", str(source), str(folder / "a.h5")])
    assert result.exit_code == 1
    assert result.stderr.startswith("error: the file system of")
    assert len(result.stderr.splitlines()) == 1


# ------------------------------------------------------------------ file systems of this machine


@pytest.fixture
def not_writable(tmp_path: Path, source: Path) -> Iterator[tuple[Path, str]]:
    """A folder of stores that may be read alone, and how that is called: a read-only mount where we may mount."""
    mine, shown = tmp_path / "mine", tmp_path / "shown"
    mine.mkdir()
    shutil.copytree(source, mine / "a.zarr")
    for suffix in (".h5", ".json"):
        quiet(source, mine / f"a{suffix}")
    if os.geteuid():
        mine.chmod(0o555)
        yield mine, "is not yours to use"
        mine.chmod(0o755)
        return
    shown.mkdir()
    try:
        subprocess.run(["mount", "--bind", str(mine), str(shown)], check=True)
    except (FileNotFoundError, subprocess.CalledProcessError):
        pytest.skip("root may write everywhere, and may not mount here")
    subprocess.run(["mount", "-o", "remount,bind,ro", str(shown)], check=True)
    yield shown, "read-only here"
    subprocess.run(["umount", "-l", str(shown)], check=True)


def test_what_may_only_be_read_is_read_without_a_lock_and_never_written(
    not_writable: tuple[Path, str], source: Path
) -> None:
    read_only, words = not_writable
    for name in names_in(read_only):
        store = fostore.open(read_only / name)
        assert np.array_equal(store[:], probs(N, K))
        assert store.verify() == []
        with pytest.raises(PlaceError, match=words):
            quiet(source, read_only / name, exists="overwrite")
        quiet(read_only / name, read_only.parent / f"copy-{name}")
    for suffix in SUFFIXES:
        for path, exists in [
            (f"a{suffix}", "resume"),
            (f"b{suffix}", "fail"),
            (f"n/b{suffix}", "fail"),
        ]:
            with pytest.raises(PlaceError, match=words):
                create(read_only / path, exists=exists)
    with pytest.raises(PlaceError, match=words):
        fostore.FirstOrderDataGenerator(len).save_distributions(
            read_only / "s.json", dict(enumerate(probs(N, K)))
        )


def no_room_in(folder: Path, patch: pytest.MonkeyPatch) -> None:
    """Files without a name that lie in `folder` take no byte."""
    fds: set[int] = set()
    open_unnamed, write = disk.open_unnamed, os.pwrite

    def opened(place: Path) -> int:
        fd = open_unnamed(place)
        (fds.add if place == folder else fds.discard)(fd)
        return fd

    def pwrite(fd: int, data: Any, offset: int) -> int:
        if fd in fds and disk.name_of(fd) in ("", str(folder)):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(fd, data, offset)

    patch.setattr(disk, "open_unnamed", opened)
    patch.setattr(os, "pwrite", pwrite)


def test_rows_that_wait_lie_beside_the_destination_and_not_in_a_small_tmpdir(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = tmp_path / "small"
    small.mkdir()
    no_room_in(small, monkeypatch)
    monkeypatch.setattr(spool, "MEMORY", 1 << 10)
    rows = probs(1000, K)
    path = tmp_path / "a.zarr"
    with fostore.create(path, num_samples=len(rows), num_classes=K, ids=range(len(rows))) as writer:
        writer.append(rows)
    quiet(path, tmp_path / "a.jsonl")  # a stream, of which nobody knows the length
    quiet(path, tmp_path / "log.json", kind="log_probs")
    monkeypatch.setenv("TMPDIR", str(small))
    monkeypatch.setattr(tempfile, "tempdir", None)
    for suffix in (".json", ".npz", ".safetensors", ".pt"):
        for source in ("a.zarr", "a.jsonl", "log.json"):
            quiet(tmp_path / source, tmp_path / f"b{suffix}", exists="overwrite")
    quiet(tmp_path / "log.json", tmp_path / "b.zarr")
    stack([tmp_path / "log.json"] * 2, tmp_path / "c.zarr", progress=False)
    with pytest.raises(SpaceError, match="set TMPDIR to a folder on a larger disk") as caught:
        fostore.open(tmp_path / "log.json")
    assert f"temporary folder {str(small)!r}" in str(caught.value)
    monkeypatch.setenv("TMPDIR", str(tmp_path))  # as the message says
    monkeypatch.setattr(tempfile, "tempdir", None)
    assert len(fostore.open(tmp_path / "log.json")) == len(rows)
    before = names_in(tmp_path)
    assert entropy(tmp_path / "log.json").shape == (len(rows),)
    assert names_in(tmp_path) == before


# ------------------------------------------------------------------ full disks, by injection


def full_at(patch: pytest.MonkeyPatch, budget: int, code: int = errno.ENOSPC) -> None:
    """Every write of the process takes from one budget."""
    left = [budget]
    write = os.pwrite

    def pwrite(fd: int, data: Any, offset: int) -> int:
        left[0] -= memoryview(data).nbytes
        if left[0] < 0:
            raise OSError(code, os.strerror(code))
        return write(fd, data, offset)

    patch.setattr(os, "pwrite", pwrite)


@pytest.mark.parametrize(
    ("code", "words"), [(errno.ENOSPC, "disk is full"), (errno.EDQUOT, "quota")]
)
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_writer_on_a_full_disk_says_how_much_where_and_goes_on_later(
    suffix: str, code: int, words: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = folder / f"a{suffix}"
    writer = fostore.create(path, num_samples=N, num_classes=K)
    writer.append(probs(N // 2, K))
    writer.commit()
    with monkeypatch.context() as patch:
        full_at(patch, 0, code)
        with pytest.raises(SpaceError, match=rf"{words}.*[\d,]+ bytes were left.*safe") as caught:
            writer.append(probs(N // 2, K, start=N // 2))
            writer.commit()
        assert str(folder) in str(caught.value)
        assert len(fostore.open(path)) == N // 2
    writer.close()
    with fostore.create(path, exists="resume") as writer:
        start = len(writer)
        assert start >= N // 2
        writer.append(probs(N - start, K, start=start))
    assert np.array_equal(fostore.open(path).array, probs(N, K))


@pytest.mark.skipif(not hasattr(os, "fdatasync"), reason="macOS has a sync of its own")
@pytest.mark.parametrize("code", [errno.EDQUOT, errno.ESTALE, errno.EROFS], ids=NAMES)
@pytest.mark.parametrize("call", ["pwrite", "fdatasync"])
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_file_server_that_gives_up_in_the_middle_of_a_run_is_named(
    suffix: str, call: str, code: int, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some say only when data is synced that there is no room for it, or that the file is gone."""
    path = folder / f"a{suffix}"
    writer = fostore.create(path, num_samples=N, num_classes=K)

    def no(*_: Any) -> None:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(os, call, no)
        with pytest.raises((SpaceError, PlaceError), match=str(folder)) as caught:
            writer.append(probs(N, K))
            writer.commit()
    assert isinstance(caught.value, SpaceError) == (code == errno.EDQUOT)
    with suppress(OSError):  # nothing is trusted after a sync that failed
        writer.close()
    with fostore.create(path, exists="resume") as writer:
        writer.append(probs(N - len(writer), K, start=len(writer)))
    assert np.array_equal(fostore.open(path).array, probs(N, K))


@pytest.mark.parametrize("suffix", [*SUFFIXES, *FILES])
def test_an_export_to_a_full_disk_names_it_and_keeps_what_was_there(
    suffix: str, folder: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = folder / f"a{suffix}"
    quiet(source, path)
    before = fostore.conversion.sources.open_table(path).num_rows
    for budget in (0, 400):
        with monkeypatch.context() as patch:
            full_at(patch, budget)
            with pytest.raises(SpaceError, match=str(folder)):
                quiet(source, path, exists="overwrite", kind="log_probs")
        assert fostore.conversion.sources.open_table(path).num_rows == before
    quiet(source, path, exists="overwrite", kind="log_probs")  # the same command, with room again
    assert names_in(folder) == [path.name]


def test_a_folder_that_is_not_there_yet_is_spooled_for_in_the_nearest_that_is(
    tmp_path: Path,
) -> None:
    with spool.beside(tmp_path / "a" / "b" / "c.json"):
        file = spool.Scratch("rows")
    assert file.folder == tmp_path
    file.close()
    file = spool.Scratch("rows")
    assert file.folder == Path(tempfile.gettempdir())
    file.close()


def test_a_spool_is_gone_with_a_killed_process(tmp_path: Path) -> None:
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom fostore.places import spool\n"
        "with spool.beside(Path(sys.argv[1])):\n    file = spool.Scratch('rows')\n"
        "file.write(bytes(100_000), 0)\nprint('written', flush=True)\ntime.sleep(60)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "x.json")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "written\n"
        process.send_signal(signal.SIGKILL)
    assert names_in(tmp_path) == []


def test_a_disk_that_is_too_small_is_named_before_the_work(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk, "free_bytes", lambda _: 100)
    for suffix in SUFFIXES:
        with pytest.raises(SpaceError, match=rf"{folder}.* needs \d+ bytes and 100 are free"):
            create(folder / f"a{suffix}")
    assert names_in(folder) == []
